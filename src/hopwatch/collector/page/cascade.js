// How does one cascade stand? Its verdict, its picture, its hops as a list, and one hop beside them.

import { deadlockFigure, deadlocksOf } from "./deadlock.js";
import { LOOKS, nameOf, studied } from "./layout.js";
import { copyable, groupDetails, hopDetails, traceLink } from "./panel.js";
import { pictureView } from "./picture.js";
import { now, state } from "./state.js";
import { about, badge, clockTime, count, el, moment, plain, say, span, told, verdictName } from "./text.js";

const PAGE = 100;
const REDRAW = 300; // milliseconds between two drawings, however often something changes

export function cascadeView(to, announce) {
  const id = to.cascade;
  let chosen = to.hop; // a hop's id
  let group = null; // a bar that stands for several
  let study = null;
  let of = null;
  let spoken = null;
  let drawnAt = 0;
  let later = 0;
  let panelKey = "";
  let panelTick = () => {};
  let restore = null;
  let deadlocksKey = "";

  const verdict = el("span", { class: "verdict" });
  const times = el("p", { class: "times" });
  const reason = el("p", { class: "reason" });
  const opaque = el("p", { class: "opaque", hidden: true });
  const deadlocks = el("section", { class: "deadlocks", hidden: true, "aria-labelledby": "deadlocks-title" }, el("h2", { id: "deadlocks-title" }, "Deadlocks"));
  const picture = pictureView((bar) => (bar.hops.length === 1 ? goTo(bar.hops[0].id) : showGroup(bar)));
  const shorten = el("input", { type: "checkbox", checked: true, onchange: () => picture.shorten(shorten.checked) });
  const legend = el("ul", { class: "legend", "aria-label": "What the bars mean" }, Object.entries(LOOKS).map(([look, [glyph, words]]) =>
    el("li", { "data-look": look }, el("span", { class: "swatch", "aria-hidden": "true" }, glyph), words)));
  const pictureNote = el("p", { class: "note" });
  const outline = outlineView(link);
  const missing = el("section", { class: "missing", hidden: true, "aria-labelledby": "missing-title" }, el("h2", { id: "missing-title" }, "Missing from the account"), el("ul"));
  const panelTitle = el("h2", { id: "panel-title", tabindex: "-1" });
  const panelBody = el("div");
  const panel = el("aside", { class: "panel", hidden: true, "aria-labelledby": "panel-title" },
    el("button", { type: "button", class: "close", onclick: leave, "aria-label": "Close the details" }, "✕"), panelTitle, panelBody);
  const drawing = el("section", { class: "drawing", "aria-labelledby": "picture-title" },
    el("div", { class: "bar-of-controls" }, el("h2", { id: "picture-title" }, "Picture"), el("label", {}, shorten, " shorten quiet stretches")),
    picture.element, pictureNote, el("details", { class: "legend-box" }, el("summary", {}, "What the bars mean"), legend));
  const known = el("div", { hidden: true }, reason, opaque, deadlocks, drawing, missing, outline.element);
  const unknown = el("p", { class: "absent", hidden: true });
  const element = el("div", { class: "cascade-view" },
    el("div", { class: "with-panel" },
      el("div", { class: "body" },
        el("p", { class: "back" }, el("a", { href: "#/" }, "← All cascades")),
        el("h1", {}, "Cascade ", el("span", { class: "id" }, id.slice(0, 8)), " ", verdict),
        el("p", { class: "ids" }, copyable(id, "cascade's id"), " ", traceLink(id, "")),
        times, unknown, known),
      panel));
  element.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !panel.hidden) {
      event.preventDefault();
      leave();
    }
  });

  function link(hop, ...content) {
    return el("a", { href: `#/cascade/${id}/hop/${hop}` }, ...content.map((each) => (typeof each === "string" ? told(each, 300) : each)));
  }

  function goTo(hop) {
    restore = hop;
    location.hash = `#/cascade/${id}/hop/${hop}`;
  }

  function showGroup(bar) {
    restore = bar.key;
    group = bar.key;
    chosen = null;
    history.replaceState(null, "", `#/cascade/${id}`);
    showPanel(bar, true);
  }

  function leave() {
    const back = restore ?? chosen;
    group = null;
    chosen = null;
    history.replaceState(null, "", `#/cascade/${id}`);
    showPanel(null, false);
    if (back === null || !picture.focus(back)) document.getElementById("main").focus({ preventScroll: true });
  }

  function showPanel(bar, focus) {
    const shown = bar ?? (chosen !== null && study?.facts.has(chosen) ? chosen : null);
    picture.mark(bar ? bar.key : chosen);
    outline.mark(chosen);
    panel.hidden = shown === null && chosen === null;
    element.classList.toggle("has-panel", !panel.hidden);
    if (panel.hidden) {
      panelKey = "";
      return;
    }
    const key = bar ? `group ${bar.key} ${bar.hops.length}` : `hop ${chosen} ${JSON.stringify(study?.facts.get(chosen)?.hop ?? null)} ${study?.facts.get(chosen)?.look} ${study?.below.get(chosen)?.length}`;
    if (key !== panelKey) {
      panelKey = key;
      const open = [...panelBody.querySelectorAll("details")].map((each) => each.open);
      const held = panelBody.contains(document.activeElement);
      if (shown === null) {
        say(panelTitle, `Hop ${plain(chosen, 20)}`);
        panelBody.replaceChildren(el("p", { class: "absent" }, "This hop has not been seen."));
        panelTick = () => {};
      } else {
        const { element: content, title, tick } = bar ? groupDetails(study, bar, link) : hopDetails(study, chosen, link);
        panelTitle.replaceChildren(told(title, 400));
        panelBody.replaceChildren(content);
        panelBody.querySelectorAll("details").forEach((each, i) => (each.open = open[i] ?? each.open));
        panelTick = tick;
        panelTick(now());
      }
      if (held && !focus) panelTitle.focus({ preventScroll: true });
    }
    if (focus) {
      panelTitle.focus({ preventScroll: true });
      panel.scrollIntoView({ block: "nearest" });
    }
  }

  function refresh() {
    const cascade = state.cascade?.cascade === id ? state.cascade : null;
    if (cascade === of) return;
    if (cascade !== null && of !== null && performance.now() - drawnAt < REDRAW) {
      clearTimeout(later);
      later = setTimeout(refresh, REDRAW);
      return;
    }
    const first = of === null;
    of = cascade;
    known.hidden = !cascade?.known;
    unknown.hidden = cascade === null || cascade.known;
    say(unknown, "No record of this cascade has come. If one does, it is shown here.");
    if (!cascade?.known) {
      verdict.replaceChildren(cascade === null ? el("span", { class: "note" }, "…") : badge("unknown", false));
      return;
    }
    drawnAt = performance.now();
    study = studied(cascade);
    verdict.replaceChildren(badge(cascade.verdict));
    const said = plain(cascade.reason, 3000);
    if (reason.textContent !== said) reason.replaceChildren(told(said, 3000));
    if (spoken !== null && spoken !== cascade.verdict) announce(`The cascade is now ${verdictName(cascade.verdict)}. ${plain(cascade.reason, 300)}`);
    spoken = cascade.verdict;
    opaque.hidden = !cascade.opaque.length;
    say(opaque, cascade.opaque.length ? `Not instrumented, so nothing is known of what they do: ${cascade.opaque.slice(0, 20).map((each) => plain(each, 80)).join(", ")}${cascade.opaque.length > 20 ? ` and ${cascade.opaque.length - 20} more` : ""}` : "");
    fillMissing(cascade.missing);
    const locked = deadlocksOf(study.hops);
    const lockedKey = JSON.stringify(locked.map((each) => [each.key, each.deadlock]));
    if (lockedKey !== deadlocksKey) {
      deadlocksKey = lockedKey;
      deadlocks.hidden = !locked.length;
      deadlocks.replaceChildren(deadlocks.firstChild, ...locked.slice(0, 5).map(deadlockFigure), locked.length > 5 ? el("p", { class: "note" }, `and ${locked.length - 5} more`) : "");
    }
    drawing.hidden = outline.element.hidden = !study.hops.length; // every record of it was refused
    picture.update(study);
    const facts = picture.facts();
    for (const each of legend.children) each.hidden = !(each.dataset.look === "absent" ? facts.notSeen : study.hops.some((hop) => study.facts.get(hop.id).look === each.dataset.look));
    say(pictureNote, facts.grouped ? `${count(study.hops.length, "hop")} in ${count(facts.bars, "bar")}: hops that are alike are drawn as one. Every hop is in the list below.` : "");
    outline.update(study);
    const bar = group === null ? null : picture.barOf(group);
    if (group !== null && bar === null) group = null;
    showPanel(bar, first && chosen !== null);
    tick();
  }

  function fillMissing(all) {
    missing.hidden = !all.length;
    missing.lastChild.replaceChildren(...all.slice(0, 50).map((each) => el("li", {}, el("span", { "aria-hidden": "true" }, "? "), told(each.sentence, 2000), each.hop && study.facts.has(each.hop) ? [" (", link(each.hop, "the hop that tells of it"), ")"] : null)),
      ...(all.length > 50 ? [el("li", {}, `and ${all.length - 50} more`)] : []));
  }

  function tick() {
    if (of === null || !of.known) return;
    const at = now();
    const begun = moment(of.started);
    const over = moment(of.ended);
    const open = study.hops.filter((hop) => hop.state === "open").length;
    const parts = [];
    if (begun !== null) parts.push(`Began at ${clockTime(begun)}`);
    if (begun !== null && over !== null) parts.push(`took ${span(over - begun)}`);
    else if (begun !== null && open) parts.push(`open for ${about(Math.max(0, at - begun))}`);
    parts.push(count(study.hops.length, "hop") + (open ? `, ${open.toLocaleString("en")} open, ${study.frontier.size.toLocaleString("en")} at the frontier` : ""));
    say(times, parts.join("; ") + ".");
    picture.place();
    panelTick(at);
  }

  return {
    element,
    refresh,
    tick,
    end: () => clearTimeout(later),
    goTo: (next) => {
      if (next.hop === chosen && group === null) return;
      chosen = next.hop;
      group = null;
      showPanel(null, chosen !== null);
    },
  };
}

/** The hops as a list that is read from the top: the order of the tree, a part at a time. */
function outlineView(link) {
  let shown = PAGE;
  let study = null;
  let marked = null;
  const rows = new Map();
  const words = el("input", { type: "search", oninput: () => { shown = PAGE; fill(); }, placeholder: "agent, kind or name" });
  const only = el("input", { type: "checkbox", onchange: () => { shown = PAGE; fill(); } });
  const summary = el("p", { class: "summary" });
  const list = el("ol", { class: "hops-list" });
  const more = el("button", { type: "button", class: "more", hidden: true, onclick: () => {
    const first = shown;
    shown *= 2; // seven times, and 10,000 are there
    fill();
    list.children[first]?.querySelector("a")?.focus();
  } });
  const element = el("section", { class: "outline", "aria-labelledby": "hops-title" },
    el("div", { class: "bar-of-controls" }, el("h2", { id: "hops-title" }, "Hops"),
      el("label", {}, "Text ", words), el("label", {}, only, " only what did not end well, or has not ended")),
    summary, list, more);

  function ordered() {
    const out = [];
    const seen = new Set();
    const walk = (roots) => {
      const todo = roots.map((hop) => [hop, 0]).reverse();
      while (todo.length) {
        const [hop, depth] = todo.pop();
        if (seen.has(hop.id)) continue;
        seen.add(hop.id);
        out.push([hop, depth]);
        const below = study.below.get(hop.id) ?? [];
        for (let i = below.length - 1; i >= 0; i -= 1) todo.push([below[i], depth + 1]);
      }
    };
    walk(study.hops.filter((hop) => hop.parent === null || !study.cascade.hops.has(hop.parent)));
    for (const hop of study.hops) if (!seen.has(hop.id)) walk([hop]); // parents that go round in a circle
    return out;
  }

  function fillRow(row, hop, look, depth) {
    const fact = study.facts.get(hop.id);
    const [glyph, words] = LOOKS[look];
    const focused = row.item.contains(document.activeElement);
    const way = link(hop.id, el("span", { class: "glyph", "aria-hidden": "true" }, glyph), " ", el("span", { class: "kind" }, plain(hop.kind, 30)), " ", el("b", {}, told(hop.agent, 60)), " ", told(nameOf(hop), 120));
    way.dataset.hop = hop.id;
    if (hop.id === marked) way.setAttribute("aria-current", "true");
    const lasted = hop.state === "open" || look === "abandoned" || fact.begun === null || fact.over === null ? "" : ` ${span(Math.max(0, fact.over - fact.begun))}`;
    const bad = ["failed", "abandoned", "cancelled"].includes(look) && hop.reason;
    row.item.replaceChildren(way, el("span", { class: "note" }, ` ${words}${lasted}${hop.late ? ", late" : ""}`), ...(bad ? [el("span", { class: "why" }, " ", told(hop.reason, 200))] : []));
    row.item.dataset.look = look;
    row.item.style.setProperty("--depth", String(Math.min(depth, 12)));
    Object.assign(row, { hop, look, depth, way });
    if (focused) way.focus({ preventScroll: true });
  }

  function fill() {
    if (study === null) return;
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let all = ordered();
    if (only.checked) all = all.filter(([hop]) => study.facts.get(hop.id).look !== "finished");
    if (wanted.length) all = all.filter(([hop]) => {
      const hay = `${hop.kind} ${hop.agent} ${hop.name} ${hop.id} ${hop.peer_name ?? ""}`.toLowerCase();
      return wanted.every((word) => hay.includes(word));
    });
    const visible = all.slice(0, shown);
    const kept = new Set(visible.map(([hop]) => hop.id));
    for (const [id, row] of rows) {
      if (kept.has(id)) continue;
      row.item.remove();
      rows.delete(id);
    }
    // What has not changed is left as it is: thousands may be shown, and few of them change at once.
    let at = list.firstChild;
    for (const [hop, depth] of visible) {
      const { look } = study.facts.get(hop.id);
      let row = rows.get(hop.id);
      if (row === undefined) rows.set(hop.id, (row = { item: el("li"), hop: null, look: "", depth: -1 }));
      if (row.hop !== hop || row.look !== look || row.depth !== depth) fillRow(row, hop, look, depth);
      if (at === row.item) at = at.nextSibling;
      else {
        const focused = row.item.contains(document.activeElement) ? document.activeElement : null;
        list.insertBefore(row.item, at);
        focused?.focus({ preventScroll: true });
      }
    }
    say(summary, visible.length === study.hops.length ? "" : `${count(all.length, "hop")} of ${study.hops.length.toLocaleString("en")}${visible.length < all.length ? `; the first ${visible.length} are shown` : ""}`);
    more.hidden = visible.length >= all.length;
    say(more, `Show ${Math.min(shown, all.length - visible.length).toLocaleString("en")} more`);
  }

  return {
    element,
    update: (next) => {
      study = next;
      fill();
    },
    mark: (id) => {
      if (id === marked) return;
      rows.get(marked)?.way.removeAttribute("aria-current");
      rows.get(id)?.way.setAttribute("aria-current", "true");
      marked = id;
    },
  };
}
