// What is type-checked? Writes each dashboard beside it as TypeScript, panel by panel, so that an error names the panel:
//   node generate.mjs [FOLDER]      by default the folder above this one
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const folder = process.argv[2] ?? join(here, "..");
const into = join(here, "generated");

rmSync(into, { recursive: true, force: true });
mkdirSync(into);
const names = readdirSync(folder).filter((name) => name.endsWith(".json"));
if (names.length === 0) throw new Error(`there is no dashboard in ${folder}`);

/** A constant that has to be of a type; what the type does not know is an error, for the value stands there as it is. */
const constant = (name, type, value) => `export const ${name}: ${type} = ${JSON.stringify(value, null, 2)};\n`;

for (const name of names) {
  const dashboard = JSON.parse(readFileSync(join(folder, name), "utf8"));
  const inside = dashboard.panels.flatMap((panel) => panel.panels ?? []);
  const lines = ['import type { Dashboard, Kinds } from "../types.js";\n'];
  for (const panel of [...dashboard.panels, ...inside]) {
    const whole = panel.type === "row" ? { ...panel, panels: [] } : panel;
    lines.push(`// ${JSON.stringify(panel.title)}\n`, constant(`panel${panel.id}`, `Kinds[${JSON.stringify(panel.type)}]`, whole));
  }
  lines.push(constant("dashboard", "Dashboard", { ...dashboard, panels: [] }));
  writeFileSync(join(into, `${name.replace(/\.json$/, "")}.ts`), lines.join("\n"));
}
console.log(`${names.length} dashboards`);
