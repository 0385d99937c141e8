// How is something said on the page? Whatever comes by telemetry is shown as text, and only through what is here.

const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu;

/** Any value as harmless text of one line: what cannot be seen is written as its escape, what is too long is cut. */
export function plain(value, longest = 200) {
  if (value === null || value === undefined) return "";
  let text = typeof value === "string" ? value : typeof value === "object" ? JSON.stringify(value) : String(value);
  let cut = false;
  if (text.length > longest) {
    text = text.slice(0, longest - 1);
    if (/[\uD800-\uDBFF]$/.test(text)) text = text.slice(0, -1);
    cut = true;
  }
  text = text.replace(UNSEEN, (c) => {
    const code = c.codePointAt(0);
    const hex = code.toString(16);
    return code < 0x100 ? "\\x" + hex.padStart(2, "0") : code < 0x10000 ? "\\u" + hex.padStart(4, "0") : "\\U" + hex.padStart(8, "0");
  });
  return cut ? text + "…" : text;
}

/** An element. Attributes are set as such, texts become text nodes; nothing is ever read as markup. */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((each) => each !== null && each !== undefined && each !== ""));
  return made;
}

/** What an agent said: isolated, so that its direction of writing ends with it. */
export function told(value, longest) {
  const made = document.createElement("bdi");
  made.textContent = plain(value, longest);
  return made;
}

/** Change a text only where it is another one: an unchanged one shall not be read out again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Milliseconds of an RFC 3339 time with microseconds; null for what is none. */
export function moment(value) {
  if (typeof value !== "string") return null;
  const at = Date.parse(value);
  if (Number.isNaN(at)) return null;
  const fraction = /\.\d{3}(\d{1,3})/.exec(value);
  return fraction ? at + Number(fraction[1].padEnd(3, "0")) / 1000 : at;
}

/** A length of time as a person would say it. */
export function span(ms) {
  if (!(ms > 0)) return "0 ms";
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (ms < 59950) return `${(ms / 1000).toFixed(1)} s`;
  const s = Math.round(ms / 1000);
  for (const [unit, length, smaller, part] of [["d", 86400, "h", 3600], ["h", 3600, "min", 60], ["min", 60, "s", 1]]) {
    if (s >= length) {
      const rest = Math.floor((s % length) / part);
      return `${Math.floor(s / length)} ${unit}${rest ? ` ${rest} ${smaller}` : ""}`;
    }
  }
  return `${s} s`;
}

/** The same without parts of a second, for what is told again every second. */
export function about(ms) {
  return ms < 1000 ? "less than 1 s" : span(Math.floor(ms / 1000) * 1000).replace(".0 s", " s");
}

export function count(number, one, more = one + "s") {
  return `${number.toLocaleString("en")} ${number === 1 ? one : more}`;
}

export function clockTime(ms) {
  return new Date(ms).toISOString().slice(11, 19) + " UTC";
}

export const VERDICTS = ["in_flight", "stalled", "silent", "broken", "stranded", "unknown", "waiting", "settled"];
const GLYPHS = { settled: "✓", in_flight: "▶", waiting: "⏸", stalled: "■", stranded: "⚓", broken: "✖", silent: "…", unknown: "?" };

export function verdictName(name) {
  return plain(name ?? "unknown").replace("_", " ");
}

/** A verdict as a badge: never by its colour alone. */
export function badge(name, known = true) {
  const kind = VERDICTS.includes(name) ? name : "unknown";
  return el("span", { class: "badge", "data-verdict": kind },
    el("span", { "aria-hidden": "true" }, GLYPHS[kind] + " "), known ? verdictName(name) : "not known");
}
