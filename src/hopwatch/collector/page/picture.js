// How is a cascade drawn? Lanes with bars on one clock, and arrows between them, as SVG that can be walked by keyboard.

import { LOOKS, laidOut, scaled } from "./layout.js";
import { now } from "./state.js";
import { count, plain, say, span } from "./text.js";

const SVG = "http://www.w3.org/2000/svg";
const BAR = 18;
const GAP = 4;
const NOTE = 15;
const HEAD = 22;
const AXIS = 26;
const PAD = 8;
const LETTER = 6.6; // width of a letter, roughly: a label that nearly fits is cut

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function set(element, attributes) {
  for (const [key, value] of Object.entries(attributes)) {
    const text = typeof value === "number" ? String(Math.round(value * 10) / 10) : value;
    if (element.getAttribute(key) !== text) element.setAttribute(key, text);
  }
}

function fitted(text, width) {
  const letters = Math.floor(width / LETTER);
  return letters < 3 ? "" : text.length <= letters ? text : text.slice(0, letters - 1) + "…";
}

let pictures = 0;

export function pictureView(choose) {
  const me = `picture${++pictures}`;
  const root = svg("svg", { class: "picture", role: "group", "aria-label": "Picture of the cascade" });
  let layout = null;
  let drawn = new Map();
  let arrows = [];
  let axis = null;
  let breaks = null;
  let shorten = true;
  let current = null; // the key of the bar that the tabulator leads to
  let chosen = null;
  let placedAt = 0;

  const element = document.createElement("div");
  element.className = "picture-frame";
  element.append(root);
  new ResizeObserver(() => place(true)).observe(element);
  root.addEventListener("keydown", walk);
  root.addEventListener("click", (event) => {
    const bar = event.target.closest("[data-bar]");
    if (bar) pick(bar.dataset.bar);
  });
  root.addEventListener("focusin", (event) => {
    const bar = event.target.closest("[data-bar]");
    if (bar) rove(bar.dataset.bar);
  });

  function pick(key) {
    const one = drawn.get(key);
    if (one) choose(one.bar);
  }

  function rove(key) {
    if (current !== null) drawn.get(current)?.g.setAttribute("tabindex", "-1");
    current = key;
    drawn.get(key)?.g.setAttribute("tabindex", "0");
  }

  function walk(event) {
    const at = drawn.get(current);
    if (!at) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      pick(current);
      return;
    }
    const all = [...drawn.values()];
    let to = null;
    if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      const way = event.key === "ArrowRight" ? 1 : -1;
      const order = all.slice().sort((a, b) => a.bar.from - b.bar.from || a.y - b.y);
      to = order[order.indexOf(at) + way];
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const way = event.key === "ArrowDown" ? 1 : -1;
      const order = all.slice().sort((a, b) => a.y - b.y || a.bar.from - b.bar.from);
      to = order[order.indexOf(at) + way];
    } else if (event.key === "Home") [to] = all.slice().sort((a, b) => a.bar.from - b.bar.from);
    else if (event.key === "End") to = all.slice().sort((a, b) => a.bar.from - b.bar.from).pop();
    else return;
    event.preventDefault();
    if (to) to.g.focus();
  }

  /** Draw what has changed: everything anew, but the focus stays where it is. */
  function update(study) {
    const focused = root.contains(document.activeElement) ? document.activeElement.closest("[data-bar]")?.dataset.bar : null;
    layout = laidOut(study);
    drawn = new Map();
    arrows = [];
    const background = svg("g", { "aria-hidden": "true" });
    axis = svg("g", { class: "axis", "aria-hidden": "true" });
    breaks = svg("g", { class: "breaks", "aria-hidden": "true" });
    const lines = svg("g", { class: "arrows", "aria-hidden": "true" });
    const bars = svg("g", {});
    let y = AXIS;
    for (const lane of layout.lanes) {
      lane.y = y;
      lane.tops = [];
      y += HEAD;
      for (let row = 0; row < lane.rows; row += 1) {
        lane.tops.push(y);
        y += BAR + GAP + (lane.noted.has(row) ? NOTE : 0);
      }
      y += PAD;
      lane.band = svg("rect", { class: lane.ghost ? "lane ghost" : "lane", x: 0, y: lane.y, height: y - lane.y - 3 });
      lane.title = svg("text", { class: "lane-name", x: PAD, y: lane.y + 15 });
      background.append(lane.band, lane.title);
      const group = svg("g", { role: "group", "aria-label": laneWords(lane) });
      for (const bar of lane.bars) {
        const top = lane.tops[bar.row];
        const rect = svg("rect", { class: "bar", y: top, height: BAR, rx: 3 });
        const tail = bar.look === "stale" ? svg("rect", { class: "tail", y: top, height: BAR, rx: 3 }) : null;
        const label = svg("text", { class: "label", y: top + 13 });
        const note = bar.note ? svg("text", { class: "note", y: top + BAR + 12 }) : null;
        const hit = svg("rect", { class: "hit", y: top - 2, height: BAR + 4 });
        const title = svg("title");
        const g = svg("g", { class: "hop", role: "button", tabindex: "-1", "data-bar": bar.key, "data-look": bar.look, "data-kind": plain(bar.kind, 30) }, title, hit);
        if (tail) g.append(tail);
        g.append(rect, label);
        if (note) g.append(note);
        group.append(g);
        drawn.set(bar.key, { bar, g, rect, tail, label, note, hit, title, y: top });
      }
      bars.append(group);
    }
    for (const arrow of layout.arrows) {
      const path = svg("path", { class: "arrow", "data-kind": plain(arrow.kind, 30), "data-look": arrow.look, "marker-end": `url(#${me}-${arrow.look === "absent" ? "absent" : "head"})` });
      lines.append(path);
      arrows.push({ arrow, path });
    }
    const marker = (id) => svg("marker", { id: `${me}-${id}`, class: `head ${id}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse" },
      svg("path", { d: "M0 0 L8 4 L0 8 z" }));
    root.replaceChildren(svg("defs", {}, marker("head"), marker("absent")), background, axis, breaks, lines, bars);
    lines.classList.toggle("many", arrows.length > 60);
    layout.height = y + 4;
    if (current === null || !drawn.has(current)) {
      current = layout.bars.find((bar) => bar.look === "lit")?.key ?? layout.bars[0]?.key ?? null;
    }
    if (current !== null) drawn.get(current).g.setAttribute("tabindex", "0");
    mark(chosen);
    place(true);
    if (focused && drawn.has(focused)) drawn.get(focused).g.focus({ preventScroll: true });
    else if (focused) drawn.get(current)?.g.focus({ preventScroll: true });
  }

  /** Which hop's bar is marked as the one that is shown beside. */
  function mark(id) {
    chosen = id;
    for (const { bar, g } of drawn.values()) {
      if (id !== null && (bar.key === id || bar.hops.some((hop) => hop.id === id))) g.setAttribute("aria-current", "true");
      else g.removeAttribute("aria-current");
    }
  }

  /** Put everything where it belongs now. */
  function place(force = false) {
    if (layout === null || !element.isConnected) return;
    const width = Math.max(280, element.clientWidth);
    const at = now();
    if (!force && (!layout.open || at - placedAt < 200)) return;
    placedAt = at;
    const end = layout.open ? Math.max(at, layout.end, layout.begin + 1) : Math.max(layout.end, layout.begin + 1);
    const { place: where, stretches } = scaled(layout.events, layout.begin, end, shorten);
    const x = (moment) => PAD + where(moment) * (width - 2 * PAD);
    set(root, { width, height: layout.height, viewBox: `0 0 ${width} ${layout.height}` });
    drawAxis(width, x, stretches);
    for (const lane of layout.lanes) {
      set(lane.band, { width });
      say(lane.title, fitted(laneWords(lane), width - 2 * PAD));
      const rows = new Map();
      for (const bar of lane.bars) {
        if (!rows.has(bar.row)) rows.set(bar.row, []);
        rows.get(bar.row).push(bar);
      }
      for (const row of rows.values()) row.forEach((bar, i) => placeBar(bar, row[i + 1], x, width, end));
    }
    for (const { arrow, path } of arrows) {
      const from = drawn.get(arrow.from.key);
      const to = drawn.get(arrow.to.key);
      const tox = Math.max(x(arrow.to.from), Math.min(x(arrow.at), x(arrow.to.to ?? end)));
      const fromx = Math.max(x(arrow.from.from), Math.min(tox - 6, x(arrow.from.to ?? end)));
      const down = to.y > from.y;
      const y1 = down ? from.y + BAR : from.y;
      const y2 = down ? to.y : to.y + BAR;
      const bend = (y2 - y1) / 2;
      set(path, { d: `M${fromx.toFixed(1)} ${y1} C${fromx.toFixed(1)} ${y1 + bend} ${tox.toFixed(1)} ${y2 - bend} ${tox.toFixed(1)} ${y2}` });
    }
  }

  function placeBar(bar, next, x, width, end) {
    const { g, rect, tail, label, note, hit, title } = drawn.get(bar.key);
    const left = x(bar.from);
    const until = bar.to ?? (bar.heard !== null && bar.heard > bar.from ? Math.min(bar.heard, end) : end);
    const right = Math.max(left + 3, x(until));
    set(rect, { x: left, width: right - left });
    if (tail) set(tail, { x: right, width: Math.max(0, x(end) - right) });
    const whole = bar.to === null ? Math.max(right, x(end)) : right;
    const room = (next ? x(next.from) : width) - whole - 6;
    const needed = bar.label.length * LETTER + 8;
    set(hit, { x: left - 2, width: Math.max(24, whole - left + 4) });
    let text;
    if (needed <= right - left || room < 40 || right - left > room) {
      text = fitted(bar.label, right - left - 8);
      set(label, { x: left + 4, "text-anchor": "start" });
      label.classList.remove("beside");
    } else {
      text = fitted(bar.label, room - 4);
      set(label, { x: whole + 4, "text-anchor": "start" });
      label.classList.add("beside");
    }
    say(label, text);
    if (note) {
      const space = width - left - PAD;
      const before = left - PAD;
      const ends = space < bar.note.length * LETTER && before > space;
      say(note, fitted(bar.note, ends ? width - 2 * PAD : space));
      set(note, { x: ends ? width - PAD : left, "text-anchor": ends ? "end" : "start" });
    }
    const words = barWords(bar, end);
    if (g.getAttribute("aria-label") !== words.spoken) g.setAttribute("aria-label", words.spoken);
    say(title, words.shown);
  }

  function drawAxis(width, x, stretches) {
    const marks = [];
    const cuts = [];
    const whole = stretches.length ? stretches[stretches.length - 1].to - stretches[0].from : 0;
    let free = -Infinity;
    const tick = (at, anchor) => {
      const place = x(at);
      const text = at === layout.begin ? "0" : "+" + span(at - layout.begin);
      const size = text.length * LETTER;
      const left = anchor === "end" ? place - size : anchor === "middle" ? place - size / 2 : place;
      if (left < free || left + size > width) return;
      free = left + size + 14;
      marks.push(svg("line", { x1: place, x2: place, y1: AXIS - 6, y2: layout.height }),
        Object.assign(svg("text", { x: place, y: 14, "text-anchor": anchor }), { textContent: text }));
    };
    for (const each of runs(stretches)) {
      const left = x(each.from);
      const right = x(each.to);
      if (each.short) {
        const text = `${span(each.to - each.from)} in which nothing began or ended`;
        const shown = right - left > text.length * LETTER + 12 ? text : span(each.to - each.from);
        cuts.push(svg("rect", { x: left, y: AXIS - 4, width: right - left, height: layout.height - AXIS + 4 }));
        if (right - left > shown.length * LETTER) {
          cuts.push(Object.assign(svg("text", { x: (left + right) / 2, y: 14, "text-anchor": "middle" }), { textContent: `⫽ ${shown} ⫽` }));
          free = (left + right) / 2 + (shown.length + 4) * LETTER / 2 + 10;
        }
        continue;
      }
      const length = each.to - each.from;
      const wanted = Math.max(1, Math.floor((right - left) / 90));
      const step = nice(length / wanted);
      if (each.from === layout.begin) tick(each.from, "start");
      for (let n = Math.ceil((each.from - layout.begin) / step); n <= (each.to - layout.begin) / step && marks.length < 60; n += 1) {
        if (n > 0) tick(layout.begin + n * step, "middle");
      }
    }
    axis.replaceChildren(...marks);
    breaks.replaceChildren(...cuts);
    root.setAttribute("aria-label", `Picture of the cascade: ${count(layout.hops, "hop")} in ${count(layout.lanes.filter((lane) => !lane.ghost).length, "lane")}, over ${span(whole)}. Arrow keys go from bar to bar, Enter tells more of one.`);
  }

  return {
    element,
    update,
    place,
    mark,
    barOf: (key) => drawn.get(key)?.bar ?? null,
    focus: (id) => {
      const found = [...drawn.values()].find(({ bar }) => bar.key === id || bar.hops.some((hop) => hop.id === id));
      found?.g.focus();
      return Boolean(found);
    },
    shorten: (yes) => {
      shorten = yes;
      place(true);
    },
    facts: () => ({ bars: drawn.size, grouped: layout?.grouped ?? false, notSeen: layout?.lanes.some((lane) => lane.ghost) ?? false }),
  };
}

/** Neighbouring stretches that are not shortened, as one. */
function runs(stretches) {
  const out = [];
  for (const each of stretches) {
    const last = out[out.length - 1];
    if (last && !last.short && !each.short) last.to = each.to;
    else out.push({ ...each });
  }
  return out;
}

function nice(length) {
  const power = 10 ** Math.floor(Math.log10(Math.max(length, 0.001)));
  for (const each of [1, 2, 5, 10]) if (each * power >= length) return each * power;
  return 10 * power;
}

function laneWords(lane) {
  if (lane.ghost) return "not seen: promised or declared, and it has not come";
  if (lane.others) return `${lane.processes.size.toLocaleString("en")} further processes`;
  const processes = [...lane.processes.values()];
  if (processes.length > 1) return `${lane.name}, ${processes.length} processes`;
  const [agent] = processes;
  const state = agent ? (agent.state === "silent" ? "silent: not heard of for 16 s" : plain(agent.state)) : "not known";
  return `${lane.name}${agent?.pid ? `, pid ${agent.pid}` : ""}, ${state}`;
}

function barWords(bar, end) {
  if (bar.look === "absent") return { spoken: `Not seen, ${plain(bar.kind)}: ${bar.note}`, shown: bar.note };
  const [, look] = LOOKS[bar.look];
  const lasted = bar.to === null ? span(end - bar.from) : span(bar.to - bar.from);
  const label = bar.label.slice(2);
  const agent = plain(bar.hops[0].agent, 60);
  const shown = `${label} of ${agent}: ${look}, ${bar.hops.length > 1 ? "over " : ""}${lasted}${bar.note ? `; ${bar.note}` : ""}`;
  // The length of what runs is left out where it is read out: it would be read again four times a second.
  return { shown, spoken: bar.to === null ? `${label} of ${agent}: ${look}${bar.note ? `; ${bar.note}` : ""}` : shown };
}
