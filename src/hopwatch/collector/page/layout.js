// What is drawn of a cascade? Lanes, bars and arrows out of hops: a pure function, bounded whatever comes in.

import { moment, plain } from "./text.js";

const GROUP_ABOVE = 120; // bars; with more, those that are alike are drawn as one
const ALIKE = 4; // so many at least
const LANES = 40;
export const NOT_SEEN = "not seen";

export const LOOKS = {
  lit: ["●", "at the frontier, open"],
  open: ["○", "open"],
  stale: ["◌", "open when last heard of"],
  failed: ["✗", "failed"],
  abandoned: ["✖", "abandoned: it never finished"],
  cancelled: ["⊘", "cancelled"],
  absent: ["?", "not seen"],
  finished: ["✓", "finished"],
};
const URGENT = ["lit", "abandoned", "failed", "stale", "absent", "open", "cancelled", "finished"];

/** How a hop stands: `stale` is one that is open in a process that is not heard of any more. */
export function lookOf(hop, frontier, agentState) {
  if (hop.state === "open") {
    if (agentState !== undefined && agentState !== "alive") return "stale";
    return frontier.has(hop.id) ? "lit" : "open";
  }
  return ["failed", "cancelled", "abandoned"].includes(hop.outcome) ? hop.outcome : "finished";
}

/** Everything that views ask of a cascade, worked out once for each change. */
export function studied(cascade) {
  const frontier = new Set(cascade.frontier ?? []);
  const agents = new Map((cascade.agents ?? []).map((each) => [each.instance, each]));
  const skews = cascade.skews ?? {};
  const hops = [...cascade.hops.values()];
  const below = new Map();
  const facts = new Map();
  for (const hop of hops) {
    const agent = agents.get(hop.instance);
    const skew = Math.abs(skews[hop.instance] ?? 0) > 2 ? skews[hop.instance] * 1000 : 0; // clocks of one host differ by less
    const begun = moment(hop.started);
    const over = moment(hop.ended);
    facts.set(hop.id, {
      hop,
      look: lookOf(hop, frontier, agent?.state),
      begun: begun === null ? null : begun + skew,
      over: over === null ? null : over + skew,
      heard: moment(agent?.heard),
      skew,
    });
    if (hop.parent !== null && cascade.hops.has(hop.parent)) {
      if (!below.has(hop.parent)) below.set(hop.parent, []);
      below.get(hop.parent).push(hop);
    }
  }
  hops.sort((a, b) => (facts.get(a.id).begun ?? Infinity) - (facts.get(b.id).begun ?? Infinity) || (a.id < b.id ? -1 : 1));
  for (const each of below.values()) each.sort((a, b) => (facts.get(a.id).begun ?? Infinity) - (facts.get(b.id).begun ?? Infinity));
  return { cascade, hops, facts, below, frontier, agents };
}

/** Lanes, bars and arrows of a cascade. */
export function laidOut(study) {
  const { hops, facts, agents, cascade } = study;
  const lanes = new Map();
  const laneOf = laneNames(study);
  for (const hop of hops) {
    const key = laneOf(hop);
    let lane = lanes.get(key);
    if (lane === undefined) lanes.set(key, (lane = { key, name: plain(hop.agent, 60), processes: new Map(), bars: [], others: key === "others" }));
    lane.processes.set(hop.instance, agents.get(hop.instance));
  }
  const { bars, barOf } = makeBars(study, laneOf);
  const ghosts = ghostsOf(study, barOf);
  if (ghosts.length) lanes.set(NOT_SEEN, { key: NOT_SEEN, name: "not seen", processes: new Map(), bars: [], ghost: true });
  bars.push(...ghosts);
  for (const bar of bars) lanes.get(bar.lane).bars.push(bar);
  const arrows = arrowsOf(study, barOf, ghosts);
  for (const lane of lanes.values()) pack(lane, study, barOf);
  let begin = Infinity;
  let end = -Infinity;
  let open = false;
  const events = [];
  for (const bar of bars) {
    begin = Math.min(begin, bar.from);
    end = Math.max(end, bar.to ?? bar.from);
    events.push(bar.from);
    if (bar.to === null) open = true;
    else events.push(bar.to);
  }
  // A cascade with nothing open but something on its way has no end yet either, yet nothing to draw up to now.
  return { lanes: [...lanes.values()], bars, arrows, begin, end, open, events, grouped: bars.some((bar) => bar.hops.length > 1), hops: hops.length, verdict: cascade.verdict };
}

function laneNames(study) {
  const instances = new Set(study.hops.map((hop) => hop.instance));
  if (instances.size <= LANES) return (hop) => hop.instance;
  const ranks = new Map();
  for (const hop of study.hops) {
    const rank = URGENT.indexOf(study.facts.get(hop.id).look);
    ranks.set(hop.agent, Math.min(ranks.get(hop.agent) ?? 99, rank));
  }
  const names = [...ranks.keys()];
  if (names.length <= LANES) return (hop) => "agent " + hop.agent;
  const kept = new Set(names.sort((a, b) => ranks.get(a) - ranks.get(b)).slice(0, LANES - 1));
  return (hop) => (kept.has(hop.agent) ? "agent " + hop.agent : "others");
}

function makeBars(study, laneOf) {
  const { hops, facts } = study;
  const levels = [
    (hop, fact) => [laneOf(hop), hop.parent, hop.kind, hop.name, fact.look],
    (hop, fact) => [laneOf(hop), hop.kind, hop.name, fact.look],
    (hop, fact) => [laneOf(hop), hop.kind, fact.look],
    (hop, fact) => [laneOf(hop), fact.look],
  ];
  let groups = new Map(hops.map((hop) => [hop.id, [hop]]));
  for (const [level, keyOf] of levels.entries()) {
    if (groups.size <= GROUP_ABOVE) break;
    const alike = new Map();
    for (const hop of hops) {
      const key = JSON.stringify(keyOf(hop, facts.get(hop.id)));
      if (!alike.has(key)) alike.set(key, []);
      alike.get(key).push(hop);
    }
    groups = new Map();
    for (const [key, each] of alike) {
      if (each.length >= ALIKE || level > 1) groups.set("group " + key, each);
      else for (const hop of each) groups.set(hop.id, [hop]);
    }
  }
  const bars = [];
  const barOf = new Map();
  for (const [key, each] of groups) {
    const look = facts.get(each[0].id).look;
    let from = Infinity;
    let to = -Infinity;
    let heard = null;
    for (const hop of each) {
      const fact = facts.get(hop.id);
      if (fact.begun !== null) from = Math.min(from, fact.begun);
      if (hop.state === "open") {
        to = null;
        heard = Math.max(heard ?? 0, fact.heard ?? 0);
      } else if (to !== null) to = Math.max(to, fact.over ?? fact.begun ?? -Infinity);
    }
    if (from === Infinity) continue; // nobody knows when: it stands in the list of hops
    const bar = { key, hops: each, kind: each[0].kind, look, lane: laneOf(each[0]), from, to: to === null ? null : Math.max(from, to), heard: look === "stale" ? heard : null, row: 0, note: "", label: "" };
    bar.label = labelOf(bar);
    bar.note = noteOf(bar);
    bars.push(bar);
    for (const hop of each) barOf.set(hop.id, bar);
  }
  bars.sort((a, b) => a.from - b.from);
  return { bars, barOf };
}

export function nameOf(hop) {
  const to = plain(hop.peer_name, 80);
  const name = plain(hop.name, 120);
  return (hop.kind === "send" || hop.kind === "push") && to ? `${name ? name + " " : ""}to ${to}` : name;
}

function labelOf(bar) {
  const glyph = LOOKS[bar.look][0];
  const [hop] = bar.hops;
  if (bar.hops.length === 1) return `${glyph} ${plain(hop.kind, 30)} ${nameOf(hop)}`;
  const same = bar.hops.every((each) => each.name === hop.name);
  const kinds = bar.hops.every((each) => each.kind === hop.kind) ? plain(hop.kind, 30) : "hops";
  return `${glyph} ${bar.hops.length.toLocaleString("en")} × ${kinds}${same ? " " + plain(hop.name, 80) : ""}`;
}

/** What stands beside a bar that is not over, or that did not end well. */
function noteOf(bar) {
  const [hop] = bar.hops;
  const what = (each) => {
    if (bar.look === "failed" || bar.look === "abandoned" || bar.look === "cancelled") {
      const waited = each.waits_on?.what ? `, waited for ${plain(each.waits_on.what, 120)}` : "";
      return plain(each.reason, 200) + waited;
    }
    if (bar.look === "lit") return waitsInWords(each.waits_on);
    if (bar.look === "stale") return "its process has not been heard of since";
    return "";
  };
  const first = what(hop);
  return bar.hops.length === 1 ? first : first && bar.hops.every((each) => what(each) === first) ? first : "";
}

export function waitsInWords(waits) {
  if (!waits) return "nobody has looked at what it waits on yet";
  const place = waits.file ? ` at ${shortPath(waits.file)}${waits.line != null ? ":" + plain(waits.line) : ""}` : "";
  return `${waits.kind === "running" ? "" : "waits for "}${plain(waits.what || waits.kind || "something that nobody could tell", 160)}${place}`;
}

export function shortPath(path) {
  const parts = plain(path, 1000).split("/");
  return parts[parts.length - 1];
}

function ghostsOf(study, barOf) {
  const out = [];
  const seen = new Set();
  for (const missing of study.cascade.missing ?? []) {
    const key = `missing ${missing.what} ${missing.hop} ${missing.id}`;
    if (seen.has(key) || out.length >= 20) continue;
    seen.add(key);
    const teller = study.facts.get(missing.hop);
    const at = teller?.begun ?? teller?.over ?? null;
    if (at === null) continue;
    out.push({
      key, hops: [], kind: missing.what, look: "absent", lane: NOT_SEEN, row: 0, missing,
      from: at, to: at, heard: null,
      label: `? ${plain(missing.what, 30)}`, note: plain(missing.sentence, 200),
    });
  }
  return out;
}

function arrowsOf(study, barOf, ghosts) {
  const arrows = new Map();
  for (const hop of study.hops) {
    const to = barOf.get(hop.id);
    const from = hop.parent === null ? undefined : barOf.get(hop.parent);
    if (to === undefined || from === undefined || from === to) continue;
    if (from.lane === to.lane && !["send", "push"].includes(study.facts.get(hop.parent).hop.kind)) continue;
    const key = `${from.key} ${to.key}`;
    const known = arrows.get(key);
    if (known) known.weight += 1;
    else arrows.set(key, { from, to, at: study.facts.get(hop.id).begun ?? to.from, kind: study.facts.get(hop.parent).hop.kind, look: to.look, weight: 1 });
  }
  for (const ghost of ghosts) {
    const from = barOf.get(ghost.missing.hop);
    if (from !== undefined) arrows.set(ghost.key, { from, to: ghost, at: ghost.from, kind: "missing", look: "absent", weight: 1 });
  }
  return [...arrows.values()].slice(0, 400);
}

/** Which of a lane's rows each bar has: none covers another one, and none is above the one that caused it. */
function pack(lane, study, barOf) {
  const ends = [];
  lane.bars.sort((a, b) => a.from - b.from || (b.to ?? Infinity) - (a.to ?? Infinity));
  for (const bar of lane.bars) {
    const parent = bar.hops.length ? barOf.get(bar.hops[0].parent) : undefined;
    let row = parent !== undefined && parent !== bar && parent.lane === lane.key ? parent.row + 1 : 0;
    while (row < ends.length && ends[row] > bar.from) row += 1;
    while (ends.length <= row) ends.push(-Infinity);
    ends[row] = bar.to ?? Infinity;
    if (bar.note) ends[row] = Infinity; // its note needs the room behind it
    bar.row = row;
  }
  lane.rows = Math.max(1, ends.length);
  lane.noted = new Set(lane.bars.filter((bar) => bar.note).map((bar) => bar.row));
}

/** Where a moment is, from 0 to 1. Stretches in which nothing happens are shortened, and say so. */
export function scaled(events, begin, end, shorten) {
  const stops = [...new Set([begin, ...events.filter((at) => at > begin && at < end), end])].sort((a, b) => a - b);
  const stretches = [];
  for (let i = 1; i < stops.length; i += 1) stretches.push({ from: stops[i - 1], to: stops[i], short: false });
  const lengthOf = (each) => each.to - each.from;
  if (shorten && stretches.length > 2) {
    for (let tries = 0; tries < 3; tries += 1) {
      const left = stretches.filter((each) => !each.short);
      const total = left.reduce((sum, each) => sum + lengthOf(each), 0);
      const longest = left.reduce((a, b) => (lengthOf(a) >= lengthOf(b) ? a : b), left[0]);
      if (left.length < 3 || !longest || lengthOf(longest) < 0.55 * total || lengthOf(longest) < 1000) break;
      longest.short = true;
    }
  }
  const shorts = stretches.filter((each) => each.short).length;
  const room = shorts ? 0.24 / shorts ** 0.5 : 0;
  const total = stretches.filter((each) => !each.short).reduce((sum, each) => sum + lengthOf(each), 0);
  let at = 0;
  for (const each of stretches) {
    each.at = at;
    each.share = each.short ? room : total > 0 ? (lengthOf(each) / total) * (1 - room * shorts) : 0;
    at += each.share;
  }
  const place = (moment) => {
    if (!stretches.length || moment <= begin) return 0;
    if (moment >= end) return 1;
    let low = 0;
    let high = stretches.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (stretches[middle].to < moment) low = middle + 1;
      else high = middle;
    }
    const each = stretches[low];
    const length = lengthOf(each);
    return each.at + (length > 0 ? ((moment - each.from) / length) * each.share : 0);
  };
  return { place, stretches };
}
