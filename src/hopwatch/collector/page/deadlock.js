// Which tasks wait for one another? A deadlock as the cycle that it is: a ring of tasks, and an arrow for each wait.

import { el, plain, told } from "./text.js";

const SVG = "http://www.w3.org/2000/svg";
let drawn = 0;

function svg(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function text(content, attributes) {
  const made = svg("text", attributes);
  made.textContent = content;
  return made;
}

/** The different deadlocks that a cascade's hops tell of. */
export function deadlocksOf(hops) {
  const found = new Map();
  for (const hop of hops) {
    const deadlock = hop.waits_on?.deadlock;
    if (!deadlock || !Array.isArray(deadlock.edges)) continue;
    const key = JSON.stringify([hop.instance, deadlock.edges.map((edge) => [edge.task, edge.wants]).sort()]);
    if (!found.has(key)) found.set(key, { key, deadlock, agent: hop.agent, hops: [] });
    found.get(key).hops.push(hop);
  }
  return [...found.values()];
}

/** A drawing of one deadlock with the same in words below it. */
export function deadlockFigure({ deadlock, agent }) {
  const edges = deadlock.edges.slice(0, 16);
  const nodes = [];
  const place = new Map();
  const node = (name) => {
    if (!place.has(name)) {
      place.set(name, nodes.length);
      nodes.push(name);
    }
    return place.get(name);
  };
  const links = [];
  for (const edge of edges) {
    const from = node(plain(edge.task, 200));
    const holders = (Array.isArray(edge.held_by) ? edge.held_by : [edge.held_by]).filter((each) => each !== null && each !== undefined && each !== "");
    for (const holder of holders) links.push({ from, to: node(plain(holder, 200)), edge });
  }
  const cut = edges.length < (deadlock.tasks ?? edges.length) || nodes.length === 0;
  const caption = el("figcaption", {}, "Deadlock in ", told(agent, 60), `: ${nodes.length === 1 ? "a task waits" : `${nodes.length} tasks wait`} for ${nodes.length === 1 ? "itself" : "one another"}, and none can go on.`,
    cut && nodes.length ? ` ${edges.length} of ${deadlock.tasks} tasks are shown.` : "");
  const list = el("ol", { class: "edges" }, edges.map((edge) => el("li", {},
    el("strong", {}, told(edge.task, 120)), " wants ", told(edge.wants || edge.kind, 160), ", held by ",
    el("strong", {}, told(Array.isArray(edge.held_by) ? edge.held_by.join(", ") : edge.held_by, 200)),
    edge.at ? [" at ", el("code", {}, told(edge.at, 300))] : null)));
  return el("figure", { class: "deadlock" }, caption, links.length ? ring(nodes, links) : null, list);
}

function ring(nodes, links) {
  const id = `deadlock${++drawn}`;
  const many = nodes.length > 6;
  const width = 460;
  const height = many ? 420 : nodes.length > 2 ? 300 : 210;
  const middle = { x: width / 2, y: height / 2 };
  const radius = { x: width / 2 - 80, y: height / 2 - (nodes.length > 2 ? 36 : 60) };
  const box = { w: 116, h: 30 };
  const spots = nodes.map((_, i) => {
    // Two stand side by side; more begin at the top.
    const angle = nodes.length === 2 ? Math.PI * (1 - i) : (2 * Math.PI * i) / nodes.length - Math.PI / 2;
    return nodes.length === 1 ? middle : { x: middle.x + radius.x * Math.cos(angle), y: middle.y + (nodes.length === 2 ? 0 : radius.y * Math.sin(angle)) };
  });
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "ring", role: "img", "aria-label": `${nodes.length} tasks in a ring: ${links.map(({ from, to, edge }) => `${nodes[from]} wants ${plain(edge.wants || edge.kind, 80)}, held by ${nodes[to]}`).join("; ")}` },
    svg("defs", {}, svg("marker", { id, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, orient: "auto" }, svg("path", { d: "M0 0 L8 4 L0 8 z", class: "ring-head" }))));
  const short = (value, letters) => (value.length > letters ? value.slice(0, letters - 1) + "…" : value);
  links.forEach(({ from, to, edge }) => {
    const a = spots[from];
    const b = spots[to];
    if (from === to) {
      root.append(svg("path", { class: "wait", d: `M${a.x - 30} ${a.y - box.h / 2} C${a.x - 60} ${a.y - 90} ${a.x + 60} ${a.y - 90} ${a.x + 30} ${a.y - box.h / 2}`, "marker-end": `url(#${id})` }));
      root.append(text(short(plain(edge.wants || edge.kind, 80), 40), { x: a.x, y: a.y - 74, "text-anchor": "middle", class: "want" }));
      return;
    }
    // Bent outwards, so that two that wait for each other have an arrow each.
    const dx = b.x - a.x;
    const dy = b.y - a.y;
    const length = Math.hypot(dx, dy) || 1;
    const bend = nodes.length === 2 ? 70 : 22;
    const control = { x: (a.x + b.x) / 2 + (dy / length) * bend, y: (a.y + b.y) / 2 - (dx / length) * bend };
    const start = border(a, control, box);
    const stop = border(b, control, box);
    root.append(svg("path", { class: "wait", d: `M${start.x} ${start.y} Q${control.x} ${control.y} ${stop.x} ${stop.y}`, "marker-end": `url(#${id})` }));
    if (!many) {
      const at = { x: (start.x + 2 * control.x + stop.x) / 4, y: (start.y + 2 * control.y + stop.y) / 4 };
      root.append(text(short(plain(edge.wants || edge.kind, 80), nodes.length === 2 ? 40 : 22), { x: at.x, y: at.y + (nodes.length === 2 ? (control.y < a.y ? -8 : 18) : 4), "text-anchor": "middle", class: "want" }));
    }
  });
  nodes.forEach((name, i) => {
    const { x, y } = spots[i];
    root.append(svg("rect", { class: "task", x: x - box.w / 2, y: y - box.h / 2, width: box.w, height: box.h, rx: 6 }),
      text(short(name, 16), { x, y: y + 5, "text-anchor": "middle", class: "task-name" }));
  });
  return root;
}

/** Where the way from a box's middle to a point leaves the box. */
function border(middle, to, box) {
  const dx = to.x - middle.x;
  const dy = to.y - middle.y;
  const scale = Math.min(dx ? (box.w / 2 + 3) / Math.abs(dx) : Infinity, dy ? (box.h / 2 + 3) / Math.abs(dy) : Infinity);
  return { x: Math.round(middle.x + dx * scale), y: Math.round(middle.y + dy * scale) };
}
