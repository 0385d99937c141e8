// What has changed? Listens to the collector, says when it cannot, and goes on from where it was.

import { applyCascade, applyOverview, freeze, state, tellTime } from "./state.js";
import { moment } from "./text.js";

const QUIET = 12000; // the collector says something every 5 s
const HIDDEN = 10000; // a page that nobody sees lets go of its connection: a browser has six of them for a host

let source = null;
let wanted = null;
let last = "";
let attempt = 0;
let retry = 0;
let watchdog = 0;
let hiding = 0;
let changed = () => {};

/** Listen from here on; `onChange(what)` is told of "overview", "cascade" or "link". */
export function start(onChange) {
  changed = onChange;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) {
      hiding = setTimeout(() => {
        close();
        freeze();
      }, HIDDEN);
    } else if (source === null) {
      attempt = 0;
      open();
    }
  });
  window.addEventListener("online", () => source === null && open());
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", (event) => event.persisted && open());
}

/** Listen to a cascade beside the overview, or to the overview alone (null). */
export function watch(cascade) {
  if (cascade === wanted && source !== null) return;
  if (cascade !== wanted) {
    wanted = cascade;
    state.cascade = null;
    last = last.replace(/\.\d*$/, "."); // the overview goes on; the cascade is told from its beginning
  }
  open();
}

function close() {
  source?.close();
  source = null;
  clearTimeout(retry);
  clearTimeout(watchdog);
}

function open() {
  close();
  const query = new URLSearchParams();
  if (wanted !== null) query.set("cascade", wanted);
  if (last) query.set("after", last);
  const mine = new EventSource(`/api/live?${query}`);
  source = mine;
  const cascade = wanted;
  heard();
  mine.addEventListener("overview", (event) => take(mine, () => applyOverview(JSON.parse(event.data)), "overview"));
  mine.addEventListener("cascade", (event) => take(mine, () => applyCascade(cascade, JSON.parse(event.data)), "cascade"));
  mine.addEventListener("alive", (event) => take(mine, () => {
    last = event.lastEventId;
    attempt = 0;
    tellTime(moment(JSON.parse(event.data).now) ?? Date.now());
    become("live");
  }, null));
  mine.onerror = () => mine === source && lose();
}

function take(from, apply, what) {
  if (from !== source) return;
  heard();
  try {
    apply();
  } catch (error) { // half of an event would be a wrong picture: have everything told anew
    console.error(error);
    last = "";
    lose();
    return;
  }
  if (what !== null) changed(what);
}

function heard() {
  clearTimeout(watchdog);
  watchdog = setTimeout(lose, QUIET);
}

function lose() {
  close();
  freeze();
  become("lost");
  // Not by EventSource's own retry: that one gives up for good at the first answer that is no stream.
  retry = setTimeout(open, Math.min(5000, 500 * 2 ** attempt));
  attempt = Math.min(attempt + 1, 5);
}

function become(link) {
  if (state.link === link) return;
  state.link = link;
  state.linkSince = Date.now();
  changed("link");
}
