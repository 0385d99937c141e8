// Which processes report, and how are they? A table, with who is lost or silent first.

import { now, state } from "./state.js";
import { about, clockTime, count, el, moment, plain, say, told } from "./text.js";

const PAGE = 200;
const WORDS = {
  alive: ["●", "alive", "heard of within 16 s"],
  silent: ["✖", "silent", "has open hops, and has not been heard of for 16 s: lost, stopped or cut off"],
  idle: ["○", "idle", "has nothing open, so it need not report"],
  ended: ["⏹", "ended", "told of its end"],
};
const RANK = { silent: 0, alive: 1, idle: 2, ended: 3 };

export function agentsView() {
  let shown = PAGE;
  const rows = new Map();
  const summary = el("p", { class: "summary" });
  const body = el("tbody");
  const more = el("button", { type: "button", class: "more", hidden: true, onclick: () => { shown += PAGE; refresh(); } }, "Show more");
  const head = ["Agent", "State", "Last heard of", "Open hops", "Dropped records", "Process", "Cascades"];
  const element = el("div", { class: "agents-view" },
    el("h1", {}, "Agents"), summary,
    el("div", { class: "scroll", role: "region", "aria-label": "Agents, a table", tabindex: "0" },
      el("table", {}, el("thead", {}, el("tr", {}, head.map((each) => el("th", { scope: "col" }, each)))), body)),
    more);

  function refresh() {
    const all = [...state.agents.values()];
    const rank = (each) => RANK[each.state] ?? 4;
    all.sort((a, b) => rank(a) - rank(b) || b.open - a.open || plain(a.name).localeCompare(plain(b.name)));
    const counts = {};
    for (const each of all) counts[each.state] = (counts[each.state] ?? 0) + 1;
    say(summary, all.length
      ? `${count(all.length, "process", "processes")}: ${Object.entries(WORDS).filter(([key]) => counts[key]).map(([key, [, word]]) => `${counts[key]} ${word}`).join(", ")}`
      : "No process has been heard of.");
    const visible = all.slice(0, shown);
    const kept = new Set(visible.map((each) => each.instance));
    for (const [id, row] of rows) {
      if (!kept.has(id)) {
        row.element.remove();
        rows.delete(id);
      }
    }
    visible.forEach((each, place) => {
      let row = rows.get(each.instance);
      if (row === undefined) rows.set(each.instance, (row = makeRow()));
      if (row.of !== each) row.fill(each);
      if (body.children[place] !== row.element) body.insertBefore(row.element, body.children[place] ?? null);
    });
    more.hidden = visible.length >= all.length;
    tick();
  }

  function tick() {
    const at = now();
    for (const row of rows.values()) row.tick(at);
  }

  return { element, refresh, tick };
}

function makeRow() {
  const heard = el("td");
  const element = el("tr");
  const row = {
    element,
    of: null,
    fill(of) {
      row.of = of;
      row.heard = moment(of.heard);
      const [glyph, word, meaning] = WORDS[of.state] ?? ["?", plain(of.state), ""];
      const ended = of.ended
        ? el("span", { class: "note" }, " by ", told(of.ended.how, 60), ended_at(of.ended), pendingWords(of.ended.pending)) : null;
      const focused = element.contains(document.activeElement);
      element.dataset.state = of.state;
      element.replaceChildren(
        el("th", { scope: "row" }, told(of.name, 80)),
        el("td", {}, el("span", { class: "agent-state", "data-state": of.state, title: meaning },
          el("span", { "aria-hidden": "true" }, `${glyph} `), word), ended),
        heard,
        el("td", { class: "figure" }, of.open.toLocaleString("en")),
        el("td", { class: of.dropped ? "figure bad" : "figure" }, of.dropped.toLocaleString("en"),
          of.dropped ? el("span", { class: "note" }, " (its ledger was full)") : null),
        el("td", {}, of.pid === null ? "pid not known" : `pid ${of.pid}`, " ", el("code", {}, plain(of.instance))),
        el("td", {}, el("a", { href: `#/?${new URLSearchParams({ agent: of.name })}` }, "cascades", el("span", { class: "unseen" }, " of ", told(of.name, 80)))));
      if (focused) element.querySelector("a").focus({ preventScroll: true });
    },
    tick(at) {
      say(heard, row.heard === null ? "never" : `${about(Math.max(0, at - row.heard))} ago`);
    },
  };
  return row;
}

function ended_at(ended) {
  const at = moment(ended.at);
  return at === null ? "" : ` at ${clockTime(at)}`;
}

function pendingWords(pending) {
  const parts = Object.entries(pending ?? {}).filter(([, number]) => number);
  return parts.length ? `, with ${parts.map(([kind, number]) => `${number} × ${plain(kind, 40)}`).join(", ")} pending` : "";
}
