// Which view is shown? Follows the address, hands on what has changed, and says how the connection is.

import { agentsView } from "./agents.js";
import { cascadeView } from "./cascade.js";
import { listView } from "./list.js";
import { state } from "./state.js";
import { start, watch } from "./stream.js";
import { clockTime, say } from "./text.js";

const main = document.getElementById("main");
const link = document.getElementById("link");
const announcer = document.getElementById("announcer");

let view = null;
let pending = 0;

/** #/, #/agents, #/cascade/ID, #/cascade/ID/hop/ID; what a view chooses stands behind a question mark. */
function route() {
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?");
  const parts = path.split("/").filter(Boolean);
  const choices = new URLSearchParams(query);
  if (parts[0] === "agents") return { name: "agents", key: "agents", choices };
  if (parts[0] === "cascade" && /^[0-9a-f]{32}$/.test(parts[1] ?? "")) {
    return { name: "cascade", key: `cascade ${parts[1]}`, cascade: parts[1], hop: parts[2] === "hop" ? parts[3] : null, choices };
  }
  return { name: "list", key: "list", choices };
}

function follow() {
  if (location.hash === "#main") return; // the link over the header: it moves the focus only
  const to = route();
  for (const each of document.querySelectorAll("nav a")) {
    if (each.dataset.view === to.name) each.setAttribute("aria-current", "page");
    else each.removeAttribute("aria-current");
  }
  watch(to.cascade ?? null);
  if (view?.key === to.key) {
    view.goTo?.(to);
    refresh();
    return;
  }
  const first = view === null;
  document.title = `${{ list: "Cascades", agents: "Agents", cascade: `Cascade ${to.cascade?.slice(0, 8)}` }[to.name]} - hopwatch`;
  view?.end?.();
  view = { list: listView, agents: agentsView, cascade: cascadeView }[to.name](to, announce);
  view.key = to.key;
  main.replaceChildren(view.element);
  window.scrollTo(0, 0);
  view.refresh();
  if (!first) main.focus({ preventScroll: true });
}

/** Have it read out. */
function announce(text) {
  say(announcer, text);
}

function refresh() {
  clearTimeout(pending);
  pending = 0;
  view?.refresh();
}

function tellLink() {
  link.dataset.link = state.link;
  document.body.classList.toggle("stale", state.link === "lost");
  if (state.link === "live") say(link, "Live");
  else if (state.link === "connecting") say(link, "Connecting…");
  else say(link, `Connection lost at ${clockTime(state.linkSince)}. What you see is of then. Trying again…`);
}

start((what) => {
  if (what === "link") tellLink();
  if (!pending) pending = setTimeout(refresh, what === "link" ? 0 : 60);
});
setInterval(() => view?.tick?.(), 250);
window.addEventListener("hashchange", follow);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
try {
  const settings = await (await fetch("/page/settings.json")).json();
  if (/^https?:\/\//.test(settings.trace_url ?? "")) state.traceUrl = settings.trace_url;
} catch { // links are a help, and the page is of use without them
  console.error("the page's settings could not be read");
}
follow();
