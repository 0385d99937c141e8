// What does the page know, and as of when? Kept here, changed by the stream alone, read by the views.

export const state = {
  cascades: new Map(),
  agents: new Map(),
  /** Those that only a search has found: nobody tells of their changes. */
  found: new Map(),
  cascade: null,
  /** "connecting", "live", "lost" */
  link: "connecting",
  linkSince: Date.now(),
  traceUrl: null,
};

let told = null; // the collector's time, and when it was told
let frozen = null;

/** The collector's clock in milliseconds. It stands still while nobody knows whether it still holds. */
export function now() {
  if (frozen !== null) return frozen;
  return told === null ? Date.now() : told.at + (performance.now() - told.heard);
}

export function tellTime(at) {
  told = { at, heard: performance.now() };
  frozen = null;
}

export function freeze() {
  if (frozen === null) frozen = now();
}

export function applyOverview(data) {
  if (data.whole) {
    state.cascades.clear();
    state.agents.clear();
  }
  for (const row of data.cascades) {
    state.cascades.set(row.cascade, row);
    state.found.delete(row.cascade);
  }
  for (const id of data.gone ?? []) state.cascades.delete(id);
  for (const agent of data.agents) state.agents.set(agent.instance, agent);
  for (const id of data.agents_gone ?? []) state.agents.delete(id);
}

export function applyCascade(wanted, data) {
  if (data.whole) {
    state.cascade = { ...data, cascade: wanted, hops: new Map() };
  } else if (state.cascade === null) {
    return;
  } else {
    const hops = state.cascade.hops;
    state.cascade = { ...state.cascade, ...data, cascade: wanted, hops };
  }
  for (const hop of data.hops) state.cascade.hops.set(hop.id, hop);
}
