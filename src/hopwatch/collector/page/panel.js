// What is known of one hop, or of a group of them? What it waits on first, for that is what people come for.

import { deadlockFigure } from "./deadlock.js";
import { LOOKS, nameOf } from "./layout.js";
import { state } from "./state.js";
import { clockTime, count, el, moment, plain, say, span, told } from "./text.js";

const LONG = 20000;
const DEEPEST = 8;

/** A link to the trace elsewhere, if the collector was told where that is. */
export function traceLink(cascade, hop) {
  if (!state.traceUrl) return null;
  const href = state.traceUrl.replaceAll("{trace}", encodeURIComponent(cascade)).replaceAll("{span}", encodeURIComponent(hop ?? ""));
  return el("a", { href, target: "_blank", rel: "noopener noreferrer", class: "trace" }, "Open the trace", el("span", { class: "unseen" }, " in another window"), " ↗");
}

/** A text with a button that copies it. */
export function copyable(text, what) {
  const done = el("span", { class: "done", role: "status" });
  const button = el("button", { type: "button", class: "copy", "aria-label": `Copy the ${what}`, onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
      say(done, "copied");
    } catch { // not over plain http from elsewhere: then it is at least selected
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      say(done, "selected");
    }
    setTimeout(() => say(done, ""), 2000);
  } }, "Copy");
  const code = el("code", {}, plain(text, 200));
  return el("span", { class: "copyable" }, code, " ", button, " ", done);
}

/** One hop. `link(id, content)` makes a way to another one. */
export function hopDetails(study, id, link) {
  const fact = study.facts.get(id);
  const hop = fact.hop;
  const [glyph, look] = LOOKS[fact.look];
  const out = el("div", { class: "details" });
  const lasted = el("span", {});
  const tick = (at) => {
    if (fact.begun === null) say(lasted, "");
    else if (hop.state === "open") say(lasted, fact.look === "stale" ? `, last heard of ${fact.heard === null ? "never" : `${span(Math.max(0, at - fact.heard))} ago`}` : ` for ${span(Math.max(0, at - fact.begun))}`);
    else if (fact.over !== null) say(lasted, ` after ${span(Math.max(0, fact.over - fact.begun))}`);
  };
  out.append(el("p", { class: "standing", "data-look": fact.look }, el("span", { "aria-hidden": "true" }, `${glyph} `), look, lasted, hop.late ? "; it began late, after its parent had closed" : ""));
  if (hop.reason) out.append(el("p", { class: "why" }, told(hop.reason, LONG)));
  if (hop.waits_on || hop.state === "open" || hop.outcome === "abandoned") {
    out.append(el("h3", {}, hop.state === "open" && fact.look !== "stale" ? "Waits on" : "Waited on, when last looked at"));
    out.append(hop.waits_on ? waits(hop.waits_on, 0) : el("p", { class: "absent" }, "Not known: nobody has looked yet."));
    if (hop.waits_on?.deadlock?.edges) out.append(deadlockFigure({ deadlock: hop.waits_on.deadlock, agent: hop.agent }));
  }
  const list = el("dl");
  const row = (name, ...content) => list.append(el("div", {}, el("dt", {}, name), el("dd", {}, ...content)));
  if (hop.task_id !== null || hop.task_state !== null) {
    row("A2A task", hop.task_id === null ? "not known" : copyable(hop.task_id, "task's id"));
    row("Task's state", hop.task_state === null ? el("span", { class: "absent" }, "not known") : el("span", {}, told(hop.task_state.replace(/^TASK_STATE_/, "").toLowerCase().replaceAll("_", " "), 80)));
  }
  row("Hop", copyable(hop.id, "hop's id"));
  row("Agent", told(hop.agent, LONG), agentState(study.agents.get(hop.instance)));
  if (hop.location) row(hop.kind === "task" ? "Made at" : "Defined at", el("code", {}, told(hop.location, 2000)));
  if (hop.peer !== null || hop.peer_name !== null) row("Peer", told(hop.peer_name ?? "", 300), hop.peer ? ` (${peerWords(hop.peer)})` : "");
  row("Began", fact.begun === null ? el("span", { class: "absent" }, "not known") : clockTime(fact.begun) + (fact.skew ? ` (its clock is off by ${span(Math.abs(fact.skew))}; this is the collector's)` : ""));
  if (hop.state !== "open") row("Ended", fact.over === null ? el("span", { class: "absent" }, "not known") : clockTime(fact.over));
  if (hop.parent !== null) row("Caused by", study.facts.has(hop.parent) ? link(hop.parent, hopName(study.facts.get(hop.parent).hop)) : el("span", { class: "absent" }, `hop ${plain(hop.parent)}, which has not been seen`));
  const children = study.below.get(hop.id) ?? [];
  if (children.length || hop.children) {
    const dd = el("span", {}, `${count(children.length, "hop")}${hop.children > children.length ? `; it declared ${hop.children.toLocaleString("en")}` : ""}`);
    row("Caused", dd, children.length ? members(study, children, link) : null);
  }
  for (const missing of (study.cascade.missing ?? []).filter((each) => each.hop === hop.id).slice(0, 20)) row("Missing", el("span", { class: "absent" }, told(missing.sentence, 2000)));
  out.append(list);
  const link_ = traceLink(study.cascade.cascade, hop.id);
  if (link_) out.append(el("p", {}, link_));
  const attributes = Object.entries(hop.attributes ?? {});
  if (attributes.length) {
    out.append(el("details", { class: "attributes" }, el("summary", {}, count(attributes.length, "attribute")),
      el("dl", {}, attributes.slice(0, 200).map(([key, value]) => el("div", {}, el("dt", {}, told(key, 200)), el("dd", {}, told(value, LONG)))))));
  }
  tick(Date.now());
  return { element: out, title: `${plain(hop.kind, 30)} ${nameOf(hop)}`, tick };
}

export function groupDetails(study, bar, link) {
  const [glyph, look] = LOOKS[bar.look];
  const element = el("div", { class: "details" });
  element.append(el("p", { class: "standing", "data-look": bar.look }, el("span", { "aria-hidden": "true" }, `${glyph} `), `${count(bar.hops.length, "hop")}: ${look}`));
  if (bar.note) element.append(el("p", { class: "why" }, bar.note));
  if (bar.missing) element.append(el("p", {}, "The hop that tells of it: ", study.facts.has(bar.missing.hop) ? link(bar.missing.hop, hopName(study.facts.get(bar.missing.hop).hop)) : plain(bar.missing.hop)));
  else element.append(el("p", {}, "They are alike, so they are drawn as one."), members(study, bar.hops, link));
  return { element, title: bar.label.slice(2), tick: () => {} };
}

function members(study, hops, link) {
  const list = el("ul", { class: "members" });
  let shown = 0;
  const more = el("button", { type: "button", class: "more", onclick: () => {
    const first = shown;
    show(shown + 100);
    list.children[first]?.querySelector("a")?.focus();
  } });
  const show = (until) => {
    for (const hop of hops.slice(shown, until)) {
      const fact = study.facts.get(hop.id);
      list.append(el("li", {}, el("span", { "aria-hidden": "true" }, LOOKS[fact.look][0] + " "), link(hop.id, hopName(hop)), el("span", { class: "note" }, ` ${LOOKS[fact.look][1]}`)));
    }
    shown = Math.min(until, hops.length);
    more.hidden = shown >= hops.length;
    say(more, `Show ${Math.min(100, hops.length - shown)} of ${(hops.length - shown).toLocaleString("en")} more`);
  };
  show(20);
  return el("div", {}, list, more);
}

function hopName(hop) {
  return `${plain(hop.kind, 30)} of ${plain(hop.agent, 60)}: ${nameOf(hop)}`;
}

function agentState(agent) {
  if (!agent) return el("span", { class: "absent" }, ", not known how it is");
  const heard = moment(agent.heard);
  return `, ${agent.pid ? `pid ${agent.pid}, ` : ""}${agent.state === "alive" ? "alive" : `${plain(agent.state)}${heard === null ? "" : `, last heard of at ${clockTime(heard)}`}`}`;
}

function peerWords(peer) {
  return { opaque: "not instrumented: hopwatch cannot see into it", refused: "refused it", unknown: "nobody knows whether it arrived", instrumented: "instrumented" }[peer] ?? plain(peer, 60);
}

function waits(wait, depth) {
  const item = el("div", { class: "wait" });
  if (depth && wait.task) item.append(el("p", { class: "task" }, "task ", told(wait.task, 200)));
  item.append(el("p", {}, told(wait.what || wait.kind || "something that nobody could tell", LONG), wait.moves === false ? "" : el("span", { class: "note" }, " (it may move by itself)")));
  const facts = el("dl");
  const row = (name, ...content) => facts.append(el("div", {}, el("dt", {}, name), el("dd", {}, ...content)));
  if (wait.file) row("At", el("code", {}, told(`${wait.file}${wait.line != null ? ":" + wait.line : ""}`, 1000)), wait.function ? [" in ", told(wait.function, 300)] : null);
  if (!depth && wait.task) row("Task", told(wait.task, 300));
  if (wait.holder != null && wait.holder !== "") row("Held by", told(wait.holder, 400));
  if (wait.peer) row("Peer", told(wait.peer, 300));
  if (typeof wait.until === "number" && Number.isFinite(wait.until) && Math.abs(wait.until) < 8e12) row("Until", clockTime(wait.until * 1000));
  if (facts.children.length) item.append(facts);
  if (Array.isArray(wait.chain) && wait.chain.length > 1) {
    item.append(el("details", { class: "chain" }, el("summary", {}, `Await chain, ${count(wait.chain.length, "frame")}`),
      el("ol", {}, wait.chain.slice(0, 100).map((frame) => el("li", {}, el("code", {}, told(frame, 1000)))))));
  }
  const parts = Array.isArray(wait.of) ? wait.of.filter((each) => each && typeof each === "object") : [];
  if (parts.length) {
    if (depth >= DEEPEST) item.append(el("p", { class: "note" }, `and ${parts.length} more below`));
    else {
      item.append(el("ul", { class: "of" }, parts.slice(0, 20).map((part) => el("li", {}, waits(part, depth + 1)))));
      if (parts.length > 20) item.append(el("p", { class: "note" }, `and ${parts.length - 20} more`));
    }
  }
  return item;
}
