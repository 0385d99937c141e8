// Which cascades are there? A list that is filtered here, and searched for at the collector where it is long.

import { now, state } from "./state.js";
import { VERDICTS, about, badge, count, el, moment, plain, say, span, told, verdictName } from "./text.js";

const PAGE = 100;

export function listView(to, announce) {
  const chosen = { verdicts: new Set(), agent: "", text: "", order: "newest" };
  let shown = PAGE;
  let asked = "";
  let saidAt = 0;
  let said = "";
  const rows = new Map();

  const boxes = new Map();
  const verdicts = el("fieldset", { class: "verdicts" }, el("legend", {}, "Verdict"));
  for (const verdict of VERDICTS) {
    const number = el("span", { class: "number" });
    const box = el("input", { type: "checkbox", value: verdict, onchange: choose });
    boxes.set(verdict, { box, number });
    verdicts.append(el("label", {}, box, badge(verdict), number));
  }
  const agent = el("select", { onchange: choose }, el("option", { value: "" }, "all"));
  const text = el("input", { type: "search", placeholder: "id, agent or words of the reason", oninput: choose });
  const order = el("select", { onchange: choose },
    el("option", { value: "newest" }, "newest first"), el("option", { value: "open" }, "oldest open first"));
  const summary = el("p", { class: "summary" });
  const list = el("ul", { class: "cascades" });
  const more = el("button", { type: "button", class: "more", hidden: true, onclick: () => {
    const first = shown;
    shown += PAGE;
    refresh();
    list.children[first]?.querySelector("a")?.focus();
  } });
  const element = el("div", { class: "list" },
    el("h1", {}, "Cascades"),
    el("form", { class: "filters", role: "search", "aria-label": "Filter cascades", onsubmit: (event) => event.preventDefault() },
      verdicts,
      el("div", { class: "fields" },
        el("label", {}, "Agent ", agent), el("label", {}, "Text ", text), el("label", {}, "Order ", order))),
    summary, list, more);

  function read(choices) {
    chosen.verdicts = new Set(choices.getAll("verdict").filter((each) => VERDICTS.includes(each)));
    chosen.agent = choices.get("agent") ?? "";
    chosen.text = choices.get("text") ?? "";
    chosen.order = choices.get("order") === "open" ? "open" : "newest";
    for (const [verdict, { box }] of boxes) box.checked = chosen.verdicts.has(verdict);
    if (text.value !== chosen.text) text.value = chosen.text;
    order.value = chosen.order;
  }

  function choose() {
    const choices = new URLSearchParams();
    for (const [verdict, { box }] of boxes) if (box.checked) choices.append("verdict", verdict);
    if (agent.value) choices.set("agent", agent.value);
    if (text.value) choices.set("text", text.value);
    if (order.value !== "newest") choices.set("order", order.value);
    const query = choices.toString();
    history.replaceState(null, "", query ? `#/?${query}` : "#/");
    read(choices);
    shown = PAGE;
    refresh();
    search();
  }

  /** Of older ones nobody tells: with a verdict chosen, ask for them once. */
  async function search() {
    const query = [...chosen.verdicts].map((each) => `verdict=${each}`).join("&");
    if (!query || query === asked) return;
    asked = query;
    try {
      const answer = await fetch(`/api/cascades?${query}&limit=1000`);
      if (!answer.ok) return;
      for (const row of (await answer.json()).cascades) {
        if (!state.cascades.has(row.cascade)) state.found.set(row.cascade, row);
      }
      refresh();
    } catch {
      asked = "";
    }
  }

  function refreshAgents(all) {
    const names = new Set();
    for (const row of all) for (const name of row.agents) names.add(name);
    if (chosen.agent) names.add(chosen.agent);
    const sorted = [...names].sort().slice(0, 500);
    if (sorted.join("\n") !== agent.dataset.names) {
      agent.replaceChildren(el("option", { value: "" }, "all"),
        ...sorted.map((name) => el("option", { value: name }, plain(name, 60))));
      agent.dataset.names = sorted.join("\n");
    }
    agent.value = chosen.agent;
  }

  function refresh() {
    const all = [...state.cascades.values(), ...state.found.values()];
    refreshAgents(all);
    const words = chosen.text.toLowerCase().split(/\s+/).filter(Boolean);
    const matching = all.filter((row) => {
      if (chosen.agent && !row.agents.includes(chosen.agent)) return false;
      if (!words.length) return true;
      const hay = `${row.cascade} ${row.agents.join(" ")} ${row.reason} ${verdictName(row.verdict)}`.toLowerCase();
      return words.every((word) => hay.includes(word));
    });
    const counts = {};
    for (const row of matching) counts[row.verdict ?? "unknown"] = (counts[row.verdict ?? "unknown"] ?? 0) + 1;
    for (const [verdict, { number }] of boxes) say(number, String(counts[verdict] ?? 0));
    const wanted = chosen.verdicts.size ? matching.filter((row) => chosen.verdicts.has(row.verdict)) : matching;
    const begun = new Map(wanted.map((row) => [row, moment(row.started) ?? 0]));
    wanted.sort((a, b) => chosen.order === "open"
      ? (b.open > 0) - (a.open > 0) || (a.open > 0 ? begun.get(a) - begun.get(b) : begun.get(b) - begun.get(a))
      : begun.get(b) - begun.get(a));
    const visible = wanted.slice(0, shown);
    const kept = new Set(visible.map((row) => row.cascade));
    for (const [id, row] of rows) {
      if (!kept.has(id)) {
        row.element.remove();
        rows.delete(id);
      }
    }
    visible.forEach((each, place) => {
      let row = rows.get(each.cascade);
      if (row === undefined) rows.set(each.cascade, (row = makeRow(each.cascade)));
      if (row.of !== each) row.fill(each);
      if (list.children[place] !== row.element) {
        const focused = row.element.contains(document.activeElement) ? document.activeElement : null;
        list.insertBefore(row.element, list.children[place] ?? null);
        focused?.focus({ preventScroll: true });
      }
    });
    const open = wanted.filter((row) => row.open > 0).length;
    const nothing = state.link === "live" ? "No cascade has come yet. Agents report here once they are started with hopwatch." : "Nothing is known yet.";
    const sentence = !all.length ? nothing
      : `${count(wanted.length, "cascade")}${wanted.length < all.length ? ` of ${all.length.toLocaleString("en")}` : ""}, ${open.toLocaleString("en")} with open hops`
        + (visible.length < wanted.length ? `; the first ${visible.length} are shown` : "");
    say(summary, sentence);
    more.hidden = visible.length >= wanted.length;
    say(more, `Show ${Math.min(PAGE, wanted.length - visible.length)} more`);
    if (sentence !== said && Date.now() - saidAt > 5000) { // not every second, or nothing else can be heard
      if (said) announce(sentence);
      said = sentence;
      saidAt = Date.now();
    }
    tick();
  }

  function tick() {
    const at = now();
    for (const row of rows.values()) row.tick(at);
  }

  read(to.choices);
  search();
  return { element, refresh, tick, goTo: (next) => { read(next.choices); shown = PAGE; search(); } };
}

function makeRow(id) {
  const verdict = el("span", { class: "verdict" });
  const age = el("span", { class: "age" });
  const agents = el("span", { class: "agents" });
  const hops = el("span", { class: "hops" });
  const reason = el("p", { class: "reason" });
  const element = el("li", { class: "cascade" },
    el("a", { href: `#/cascade/${id}` }, verdict, el("span", { class: "id" }, id.slice(0, 8)), age, agents, hops), reason);
  const row = {
    element,
    of: null,
    fill(of) {
      const shown = row.of?.verdict;
      row.of = of;
      element.dataset.verdict = of.verdict;
      if (shown !== of.verdict) verdict.replaceChildren(badge(of.verdict));
      const names = of.agents.slice(0, 6).map((name) => plain(name, 40)).join(", ")
        + (of.agents.length > 6 ? ` and ${of.agents.length - 6} more` : "");
      if (agents.textContent !== names) agents.replaceChildren(told(names, 400));
      say(hops, of.open ? `${of.open.toLocaleString("en")} of ${count(of.hops, "hop")} open` : count(of.hops, "hop"));
      const said = plain(of.reason, 400);
      if (reason.textContent !== said) reason.replaceChildren(told(said, 400));
      row.begun = moment(of.started);
      row.over = moment(of.ended);
    },
    tick(at) {
      if (row.begun === null) say(age, "nobody knows since when");
      else if (row.over !== null) say(age, `${about(Math.max(0, at - row.begun))} ago, took ${span(row.over - row.begun)}`);
      else if (row.of.open) say(age, `open for ${about(Math.max(0, at - row.begun))}`);
      else say(age, `began ${about(Math.max(0, at - row.begun))} ago`);
    },
  };
  return row;
}
