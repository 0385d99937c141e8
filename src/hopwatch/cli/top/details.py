"""What is known of one hop? What it waits on first, for that is what people come for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from hopwatch.cli.text import clock, count, plain, span
from hopwatch.cli.top.drawing import about
from hopwatch.cli.top.study import LOOKS, dicts, listed, name_of, place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hopwatch.cli.top.lines import Line
    from hopwatch.cli.top.study import Fact, Study

LONG: Final = 2_000
"""Characters of one text."""
MOST: Final = 30_000
"""Characters of all of it: whoever wants more asks with `hopwatch show --json`."""
DEEPEST: Final = 8
MOST_PARTS: Final = 20
MOST_FRAMES: Final = 50
PEERS: Final = {
    "opaque": "not instrumented: hopwatch cannot see into it",
    "refused": "refused it",
    "unknown": "nobody knows whether it arrived",
}


class _Page:
    """A text that grows by rows, up to a bound."""

    def __init__(self) -> None:
        self.text = Text()

    def say(self, said: str, style: str = "", indent: int = 0) -> None:
        """A line of its own."""
        if len(self.text) < MOST:
            self.text.append("  " * indent + said + "\n", style)

    def row(self, name: str, said: str, indent: int = 0) -> None:
        """A line with a name."""
        if len(self.text) < MOST:
            self.text.append("  " * indent + f"{name}: ", "dim")
            self.text.append(said + "\n")

    def title(self, said: str) -> None:
        """A line over others."""
        self.say("")
        self.say(said, "bold")


def title_of(line: Line) -> str:
    """What the panel is about, in one line."""
    if line.kind == "missing":
        return "Not seen"
    if line.kind == "group":
        return f"{len(line.facts):,} hops that are alike"
    return _named(line.facts[0])


def hop_details(study: Study, fact: Fact, now: float, trace_url: str | None = None) -> Text:
    """Everything about one hop."""
    hop = fact.hop
    page = _Page()
    glyph, look, style = LOOKS[fact.look]
    late = "; it began late, after its parent had closed" if hop.get("late") else ""
    page.say(f"{glyph} {look}{_lasted(fact, now)}{late}", style)
    if hop.get("reason"):
        page.say(plain(hop["reason"], LONG), "red")
    waits = hop.get("waits_on")
    if isinstance(waits, dict) or fact.open:
        page.title("Waits on" if fact.open and fact.look != "stale" else "Waited on, when last looked at")
        if isinstance(waits, dict):
            _wait(page, waits, 0)
        else:
            page.say("not known: nobody has looked yet", "dim")
    deadlock = waits.get("deadlock") if isinstance(waits, dict) else None
    if isinstance(deadlock, dict):
        page.title("Deadlock")
        for each in edges_in_words(deadlock):
            page.say(each)
    page.title("Hop")
    page.row("Id", plain(fact.id))
    if hop.get("task_id") is not None or hop.get("task_state") is not None:
        page.row("A2A task", plain(hop.get("task_id"), LONG) or "not known")
        state = plain(hop.get("task_state")).removeprefix("TASK_STATE_").lower().replace("_", " ")
        page.row("Task's state", state or "not known")
    page.row("Agent", plain(hop.get("agent"), LONG) + _agent_state(study, fact))
    if hop.get("location"):
        page.row("Made at" if hop.get("kind") == "task" else "Defined at", plain(hop["location"], LONG))
    if hop.get("peer") is not None or hop.get("peer_name") is not None:
        peer = plain(hop.get("peer"))
        page.row(
            "Peer",
            f"{plain(hop.get('peer_name'), 300)} ({PEERS.get(peer, peer)})"
            if peer
            else plain(hop.get("peer_name"), 300),
        )
    skewed = f" (its clock is off by {span(abs(fact.skew))}; this is the collector's)" if fact.skew else ""
    page.row("Began", (clock(fact.begun) or "not known") + skewed)
    if not fact.open:
        page.row("Ended", clock(fact.over) or "not known")
    parent = hop.get("parent")
    if parent is not None:
        page.row(
            "Caused by", _named(fact.above) if fact.above else f"hop {plain(parent)}, which has not been seen"
        )
    declared = hop.get("children")
    if fact.below or declared:
        more = isinstance(declared, int) and declared > len(fact.below)
        page.row("Caused", count(len(fact.below), "hop") + (f"; it declared {declared:,}" if more else ""))
        _members(page, fact.below)
    for lacking in [each for each in study.missing if each.get("hop") == fact.id][:MOST_PARTS]:
        page.row("Missing", plain(lacking.get("sentence"), LONG))
    if trace_url:
        page.row(
            "Trace", trace_url.replace("{trace}", plain(study.cascade.id)).replace("{span}", plain(fact.id))
        )
    attributes = hop.get("attributes")
    if isinstance(attributes, dict) and attributes:
        page.title(count(len(attributes), "attribute"))
        for key, value in attributes.items():
            page.row(plain(key), plain(value, LONG))
    return _bounded(page.text)


def line_details(study: Study, line: Line, now: float, trace_url: str | None = None) -> Text:
    """What is said of a line: of its hop, of the hops that it stands for, or of what is missing."""
    if line.kind == "hop":
        return hop_details(study, line.facts[0], now, trace_url)
    page = _Page()
    glyph, look, style = LOOKS[line.look]
    if line.kind == "missing":
        page.say(f"{glyph} {line.text}", style)
        if line.facts:
            page.row("The hop that tells of it", _named(line.facts[0]))
    else:
        page.say(f"{glyph} {count(len(line.facts), 'hop')}: {look}", style)
        page.say("They are alike, so they are drawn as one. Enter shows them beneath it.")
        _members(page, line.facts)
    return _bounded(page.text)


def edges_in_words(deadlock: dict[str, Any]) -> list[str]:
    """Each task of a deadlock with what it wants and who holds that, in the order of the cycle."""
    edges = dicts(deadlock.get("edges"))
    by_task = {plain(edge.get("task")): edge for edge in edges}
    ordered: list[dict[str, Any]] = []
    edge = edges[0] if edges else None
    while edge is not None and not any(edge is each for each in ordered):
        ordered.append(edge)
        edge = next((by_task[holder] for holder in _holders(edge) if holder in by_task), None)
    ordered += [each for each in edges if not any(each is other for other in ordered)]
    out = []
    for each in ordered[:MOST_PARTS]:
        at = f" at {plain(each['at'], 300)}" if each.get("at") else ""
        wants = plain(each.get("wants") or each.get("kind"), 160)
        out.append(f"{plain(each.get('task'), 120)} wants {wants}, held by {', '.join(_holders(each))}{at}")
    if not out:
        out.append(plain(deadlock.get("words"), LONG))
    return out


def cycle(deadlock: dict[str, Any]) -> str:
    """A deadlock as the cycle that it is, in one line."""
    edges = dicts(deadlock.get("edges"))
    by_task = {plain(edge.get("task")): edge for edge in edges}
    if not edges:
        return plain(deadlock.get("words"), LONG)
    parts: list[str] = []
    seen: set[str] = set()
    task = plain(edges[0].get("task"))
    while task in by_task and task not in seen and len(seen) < 16:
        seen.add(task)
        edge = by_task[task]
        parts.append(f"{task} ─({plain(edge.get('wants') or edge.get('kind'), 60)})→ ")
        task = next(iter(_holders(edge)), "?")
    return "".join(parts) + task


def _holders(edge: dict[str, Any]) -> list[str]:
    held = edge.get("held_by")
    return [plain(each) for each in (held if isinstance(held, list) else [held]) if each not in (None, "")]


def _wait(page: _Page, waits: dict[str, Any], depth: int) -> None:
    task = plain(waits.get("task"))
    said = plain(waits.get("what") or waits.get("kind") or "something that nobody could tell", LONG)
    moves = "" if waits.get("moves") is False else " (it may move by itself)"
    page.say((f"task {task}: " if depth and task else "") + said + moves, "" if depth else "bold", depth)
    if waits.get("file"):
        at = place(waits, folders=True)
        page.row("At", at + (f" in {plain(waits['function'], 300)}" if waits.get("function") else ""), depth)
    if not depth and task:
        page.row("Task", task, depth)
    for name, key in (("Held by", "holder"), ("Peer", "peer")):
        if waits.get(key) not in (None, ""):
            page.row(name, plain(waits[key], 400), depth)
    if until := clock(waits.get("until")):
        page.row("Until", until, depth)
    chain = listed(waits.get("chain"))
    if len(chain) > 1:
        page.row(f"Await chain, {count(len(chain), 'frame')}", "", depth)
        for frame in chain[:MOST_FRAMES]:
            page.say(plain(frame, 1000), "dim", depth + 1)
    parts = dicts(waits.get("of"))
    if parts and depth >= DEEPEST:
        page.say(f"and {len(parts)} more below", "dim", depth + 1)
        return
    for part in parts[:MOST_PARTS]:
        _wait(page, part, depth + 1)
    if len(parts) > MOST_PARTS:
        page.say(f"and {len(parts) - MOST_PARTS} more", "dim", depth + 1)


def _members(page: _Page, facts: Sequence[Fact]) -> None:
    for fact in facts[:MOST_PARTS]:
        glyph, _, style = LOOKS[fact.look]
        page.say(f"{glyph} {_named(fact)}", style, 1)
    if len(facts) > MOST_PARTS:
        page.say(f"and {len(facts) - MOST_PARTS:,} more", "dim", 1)


def _named(fact: Fact) -> str:
    return f"{plain(fact.hop.get('kind'), 30)} of {plain(fact.hop.get('agent'), 60)}: {name_of(fact.hop)}"


def _lasted(fact: Fact, now: float) -> str:
    if fact.begun is None:
        return ""
    if fact.look == "stale":
        return "" if fact.heard is None else f", {about(now - fact.heard)} ago"
    if fact.open:
        return f" for {about(now - fact.begun)}"
    return "" if fact.over is None else f" after {span(max(0.0, fact.over - fact.begun))}"


def _agent_state(study: Study, fact: Fact) -> str:
    agent = study.agents.get(str(fact.hop.get("instance")))
    if agent is None:
        return ", not known how it is"
    pid = f", pid {plain(agent['pid'])}" if agent.get("pid") else ""
    heard = clock(fact.heard)
    quiet = f", last heard of at {heard}" if heard and agent.get("state") != "alive" else ""
    return f"{pid}, {plain(agent.get('state'))}{quiet}"


def _bounded(text: Text) -> Text:
    if len(text) > MOST:
        text.truncate(MOST)
        text.append("\n… there is more: hopwatch show --json ID", "dim")
    return text
