"""Which hops does a picture show, under which, and what does it say of each?

What comes in is the collector's object; nothing in it is trusted to be a tree, to be small or to be harmless text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final, Literal

from hopwatch.cli.text import clock, count, moment, plain, span

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LONGEST_REASON: Final = 1000
"""Characters of the verdict's sentence, which names several hops and places."""
MOST_NOTES: Final = 10
MOST_PARTS: Final = 8
MOST_FRAMES: Final = 5
DEEPEST_WAIT: Final = 4

Look = Literal["open", "lit", "finished", "failed", "cancelled", "abandoned", "absent"]
"""How a hop stands there; `lit` is open and at the frontier, `absent` a parent that is not there."""


@dataclass(slots=True)
class ShownAgent:
    """One agent as the picture names it."""

    name: str
    about: str
    silent: bool


@dataclass(slots=True)
class Row:
    """One line of the picture, with what is said beneath it."""

    depth: int
    look: Look | None
    """None for a line that is no hop: a heading, or how many more there are."""
    kind: str = ""
    agent: str = ""
    name: str = ""
    state: str = ""
    id: str = ""
    notes: list[tuple[int, str, str]] = field(default_factory=list)
    """Depth, text and style of each."""
    guides: tuple[bool, ...] = ()
    """For each level above whether something follows there; the last for the row itself."""
    leads: bool = False
    """Whether rows of a deeper level follow at once."""


@dataclass(slots=True)
class Plan:
    """Everything that a picture says, as harmless text; how it looks is left to whoever draws it."""

    cascade: str
    verdict: str
    reason: str
    times: list[str]
    agents: list[ShownAgent]
    counted: str
    rows: list[Row]
    missing: list[str]
    opaque: list[str]


@dataclass(slots=True)
class _Unit:
    """What takes one line: a hop, or several pushes that went well with the webhooks that took them."""

    hop: Mapping[str, Any]
    weight: int = 1
    """How many hops it stands for."""
    pushes: list[Mapping[str, Any]] = field(default_factory=list)
    """Those pushes; empty for a hop that stands for itself."""
    to: str = ""
    """Whom they went to."""
    children: list[_Unit] = field(default_factory=list)
    above: _Unit | None = None
    shown: bool = False


def planned(cascade: Mapping[str, Any], now: datetime | None, limit: int) -> Plan:
    """Decide what a picture of a cascade says.

    Args:
        cascade: the object that `GET /api/cascades/{id}` gives, or whatever else came.
        now: up to when an open hop has lasted; None is now.
        limit: hops to show.
    """
    now = now or datetime.now(timezone.utc)
    hops = _hops(cascade)
    frontier = {each for each in _listed(cascade.get("frontier")) if isinstance(each, str)}
    opened = sum(1 for hop in hops.values() if _is_open(hop))
    begun, over = moment(cascade.get("started")), moment(cascade.get("ended"))
    times: list[str] = []
    if begun is not None:
        told = f"began {plain(cascade.get('started'))}"
        if over is not None or opened:  # with nothing open and no end, when it ended is what is not known
            lasted = span(((over or now) - begun).total_seconds())
            told += f", lasted {lasted}" if over is not None else f", open for {lasted}"
        times.append(told)
    counted = count(len(hops), "hop")
    if opened:
        counted += f", {opened:,} open"
    at_frontier = len(frontier & hops.keys())
    if at_frontier:
        counted += f", {at_frontier:,} at the frontier"
    return Plan(
        cascade=plain(cascade.get("cascade")),
        verdict=plain(cascade.get("verdict")),
        reason=plain(cascade.get("reason"), LONGEST_REASON),
        times=times,
        agents=_agents(cascade, hops),
        counted=counted,
        rows=_rows(hops, frontier, now, max(1, limit)),
        missing=_some([plain(_field(each, "sentence") or each) for each in _listed(cascade.get("missing"))]),
        opaque=_some([plain(each) for each in _listed(cascade.get("opaque"))]),
    )


def _hops(cascade: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    out: dict[str, Mapping[str, Any]] = {}
    for hop in _listed(cascade.get("hops")):
        if isinstance(hop, dict) and isinstance(hop.get("id"), str):
            out.setdefault(hop["id"], hop)
    return out


def _agents(cascade: Mapping[str, Any], hops: Mapping[str, Mapping[str, Any]]) -> list[ShownAgent]:
    out: list[ShownAgent] = []
    known: set[object] = set()
    for agent in _listed(cascade.get("agents")):
        if not isinstance(agent, dict):
            continue
        known.add(plain(agent.get("name")))
        about = [plain(agent.get("state"))]
        if agent.get("pid"):
            about.append(f"pid {plain(agent['pid'])}")
        silent = agent.get("state") == "silent"
        if silent and agent.get("heard"):
            about.append(f"last heard of {plain(agent['heard'])}")
        out.append(ShownAgent(plain(agent.get("name")), ", ".join(each for each in about if each), silent))
    for hop in hops.values():
        name = plain(hop.get("agent"))
        if name and name not in known:
            known.add(name)
            out.append(ShownAgent(name, "", silent=False))
    return out


def _rows(hops: Mapping[str, Mapping[str, Any]], frontier: set[str], now: datetime, limit: int) -> list[Row]:
    roots, orphans, circles = _units(hops, frontier)
    groups = [(roots, None), (orphans, "parent not seen"), (circles, "parents that go round in a circle")]
    every = [unit for group, _ in groups for unit in _walk(group)]
    _choose(every, frontier, limit)
    rows: list[Row] = []
    for group, heading in groups:
        if not group:
            continue
        if heading:
            rows.append(Row(0, "absent", name=heading))
        rows.extend(_laid_out(group, frontier, now, 1 if heading else 0))
    shown = sum(unit.weight for unit in every if unit.shown)
    if shown < len(hops):
        rows.append(Row(0, None, name=f"{shown:,} of {len(hops):,} hops are shown"))
    _guide(rows)
    return rows


def _units(
    hops: Mapping[str, Mapping[str, Any]], frontier: set[str]
) -> tuple[list[_Unit], list[_Unit], list[_Unit]]:
    """The hops as units with their children: those without a parent, with one not seen, and in a circle."""
    below: dict[str, list[Mapping[str, Any]]] = {}
    top: list[Mapping[str, Any]] = []
    lost: list[Mapping[str, Any]] = []
    for hop in sorted(hops.values(), key=_age):
        parent = hop.get("parent")
        if parent is None:
            top.append(hop)
        elif isinstance(parent, str) and parent in hops:
            below.setdefault(parent, []).append(hop)
        else:
            lost.append(hop)
    seen: set[str] = set()

    def grown(starts: list[Mapping[str, Any]]) -> list[_Unit]:
        units = _merged([hop for hop in starts if hop["id"] not in seen], below, frontier)
        todo = list(units)
        seen.update(unit.hop["id"] for unit in units)
        while todo:
            unit = todo.pop()
            if unit.pushes:
                seen.update(push["id"] for push in unit.pushes)
                seen.update(hook["id"] for push in unit.pushes for hook in below.get(push["id"], ()))
                continue
            fresh = [hop for hop in below.get(unit.hop["id"], ()) if hop["id"] not in seen]
            unit.children = _merged(fresh, below, frontier)
            seen.update(hop["id"] for hop in fresh)
            for child in unit.children:
                child.above = unit
            todo.extend(unit.children)
        return units

    roots, orphans = grown(top), grown(lost)
    circles: list[_Unit] = []
    for hop in sorted((hop for hop in hops.values() if hop["id"] not in seen), key=_age):
        if hop["id"] not in seen:  # the first of a circle that is met stands for its beginning
            circles.extend(grown([hop]))
    return roots, orphans, circles


def _merged(
    siblings: list[Mapping[str, Any]], below: Mapping[str, list[Mapping[str, Any]]], frontier: set[str]
) -> list[_Unit]:
    """Siblings as units: pushes of one agent to one peer that went well take one line, with their webhooks."""
    out: list[_Unit] = []
    compact: dict[tuple[str, str], _Unit] = {}
    for hop in siblings:
        hooks = below.get(hop["id"], ())
        if not _went_well(hop, "push", frontier) or not all(
            _went_well(hook, "webhook", frontier) and not below.get(hook["id"]) for hook in hooks
        ):
            out.append(_Unit(hop))
            continue
        to = plain(hooks[0].get("agent")) if hooks else plain(hop.get("peer_name"))
        key = (plain(hop.get("agent")), to)
        unit = compact.get(key)
        if unit is None:
            unit = compact[key] = _Unit(hop, 0, to=to)
            out.append(unit)
        unit.pushes.append(hop)
        unit.weight += 1 + len(hooks)
    return out


def _went_well(hop: Mapping[str, Any], kind: str, frontier: set[str]) -> bool:
    return (
        hop.get("kind") == kind
        and hop.get("outcome") == "finished"
        and not _is_open(hop)
        and not hop.get("late")
        and hop["id"] not in frontier
    )


def _walk(units: list[_Unit]) -> Iterator[_Unit]:
    todo = units[::-1]
    while todo:
        unit = todo.pop()
        yield unit
        todo.extend(unit.children[::-1])


def _choose(every: list[_Unit], frontier: set[str], limit: int) -> None:
    """Mark which units are shown: the frontier and what leads to it, what went wrong, what is open, then the rest."""
    left = limit

    def urgency(unit: _Unit) -> int:
        if unit.hop["id"] in frontier:
            return 0
        if unit.hop.get("outcome") in ("abandoned", "failed"):
            return 1
        return 2 if _is_open(unit.hop) else 3

    # Sorting is stable, so what is equally urgent comes as it stands in the tree, each after what is above it.
    for unit in sorted(every, key=urgency):
        path: list[_Unit] = []
        at: _Unit | None = unit
        while at is not None and not at.shown:
            path.append(at)
            at = at.above
        if len(path) > left:  # too long a way to show: its end, and a little of its beginning
            path = path[: left - left // 4] + path[len(path) - left // 4 :]
        for each in path:
            each.shown = True
        left -= len(path)
        if not left:
            return


def _laid_out(units: list[_Unit], frontier: set[str], now: datetime, depth: int) -> list[Row]:
    """The rows of a group in the order of the tree, with a line wherever hops are left out."""
    rows: list[Row] = []
    leads = _leading(units)
    # What is still to do: a unit (None where those above it are all done, to tell how many were left out), its level,
    # how many hops were skipped between it and the row that it hangs from, and the count of those left out there.
    todo: list[tuple[_Unit | None, int, int, list[int]]] = []
    left_out = [0]
    todo.append((None, depth, 0, left_out))
    todo.extend((unit, depth, 0, left_out) for unit in reversed(units))
    while todo:
        unit, level, skipped, left_out = todo.pop()
        if unit is None:
            if left_out[0]:
                rows.append(Row(level, None, name=f"... and {left_out[0]:,} more"))
            continue
        if id(unit) not in leads:
            left_out[0] += _size(unit)
            continue
        if unit.shown:
            if skipped:
                rows.append(Row(level, None, name=f"... {count(skipped, 'hop')} between"))
                level += 1
            rows.append(_row(unit, level, frontier, now))
            level, skipped, left_out = level + 1, 0, [0]
            todo.append((None, level, 0, left_out))
        else:
            skipped += unit.weight
        todo.extend((child, level, skipped, left_out) for child in reversed(unit.children))
    return rows


def _leading(units: list[_Unit]) -> set[int]:
    """Units that are shown or have one below them that is."""
    out: set[int] = set()
    for unit in _walk(units):
        at: _Unit | None = unit if unit.shown else None
        while at is not None and id(at) not in out:
            out.add(id(at))
            at = at.above
    return out


def _size(unit: _Unit) -> int:
    return sum(each.weight for each in _walk([unit]))


def _row(unit: _Unit, depth: int, frontier: set[str], now: datetime) -> Row:
    hop = unit.hop
    if unit.pushes:
        return _pushes_row(unit, depth, now)
    lit = hop["id"] in frontier
    outcome = hop.get("outcome")
    look: Look = "finished"
    if _is_open(hop):
        look = "lit" if lit else "open"
    elif outcome in ("failed", "cancelled", "abandoned"):
        look = outcome
    state = "open" if _is_open(hop) else plain(outcome) or "ended"
    lasted = _lasted(hop, now)
    if lasted is not None:
        state += f" {span(lasted)}"
    task = plain(hop.get("task_state")).removeprefix("TASK_STATE_").lower().replace("_", " ")
    if task and hop.get("kind") in ("execution", "request"):
        state += f", task {task}"
    if hop.get("late"):
        state += ", late"
    if lit:
        state += ", frontier"
    row = Row(
        depth, look, kind=plain(hop.get("kind")), agent=plain(hop.get("agent")), name=_named(hop), state=state,
        id=plain(hop["id"]),
    )  # fmt: skip
    _note(row, hop)
    return row


def _named(hop: Mapping[str, Any]) -> str:
    name, to = plain(hop.get("name")), plain(hop.get("peer_name"))
    if hop.get("kind") in ("send", "push") and to:
        name = f"{name} to {to}" if name else f"to {to}"
        if hop.get("peer") in ("opaque", "refused", "unknown"):
            name += f" ({hop['peer']})"
    return name


def _pushes_row(unit: _Unit, depth: int, now: datetime) -> Row:
    pushes = unit.pushes
    hooks = unit.weight - len(pushes)
    taken = f", {count(hooks, 'webhook')}" if hooks else ""
    times = sorted(each for each in (_lasted(push, now) for push in pushes) if each is not None)
    state = "finished"
    if times:
        state += f" {span(times[0])}"
        if span(times[0]) != span(times[-1]):
            state += f" to {span(times[-1])}"
    return Row(
        depth,
        "finished",
        kind="push" if len(pushes) == 1 else f"{len(pushes)} pushes",
        agent=plain(unit.hop.get("agent")),
        name=(f"to {unit.to}" if unit.to else plain(unit.hop.get("name"))) + taken,
        state=state,
        id=plain(unit.hop["id"]) if len(pushes) == 1 else "",
    )


def _note(row: Row, hop: Mapping[str, Any]) -> None:
    """What is said beneath a hop: why it ended badly, where it comes from, and what it waits or waited on."""
    unfinished = _is_open(hop) or hop.get("outcome") == "abandoned"
    reason = plain(hop.get("reason"))
    if reason and hop.get("outcome") != "finished":
        row.notes.append((0, reason, "red"))
    if unfinished and hop.get("location"):
        made = "made at" if hop.get("kind") == "task" else "at"
        row.notes.append((0, f"{made} {plain(hop['location'])}", "dim"))
    waits = hop.get("waits_on")
    if unfinished and isinstance(waits, dict):
        _note_wait(row, waits, 0, "waited for " if hop.get("outcome") == "abandoned" else "waits for ")


def _note_wait(row: Row, waits: Mapping[str, Any], depth: int, verb: str) -> None:
    task = plain(waits.get("task"))
    if waits.get("kind") == "running":
        verb = "was " if verb == "waited for " else ""
    text = f"{task}: " if task and depth else verb
    text += plain(waits.get("what")) or plain(waits.get("kind")) or "something that nobody could tell"
    if waits.get("file"):
        text += f" at {plain(waits['file'])}"
        text += f":{plain(waits['line'])}" if waits.get("line") is not None else ""
        text += f" in {plain(waits['function'])}" if waits.get("function") else ""
    for key, word in (("holder", "held by"), ("peer", "peer")):
        value = waits.get(key)
        if value is not None and value != "" and not isinstance(value, (dict, list)):
            shown = plain(value)
            if shown not in text:
                text += f", {word} {shown}"
    until = clock(waits.get("until"))
    if until and until.removesuffix(" UTC") not in text:
        text += f", until {until}"
    row.notes.append((depth, text, "bold" if not depth else ""))
    chain = _listed(waits.get("chain"))
    if len(chain) > 1 and not depth:  # from the outside in; the inner frames tell more
        frames = ", ".join(plain(each) for each in chain[-MOST_FRAMES:])
        more = f"{len(chain) - MOST_FRAMES} more, " if len(chain) > MOST_FRAMES else ""
        row.notes.append((depth, f"by way of {more}{frames}", "dim"))
    parts = [each for each in _listed(waits.get("of")) if isinstance(each, dict)]
    if depth + 1 >= DEEPEST_WAIT:
        if parts:
            row.notes.append((depth + 1, f"... and {len(parts)} more", "dim"))
        return
    for part in parts[:MOST_PARTS]:
        _note_wait(row, part, depth + 1, "")
    if len(parts) > MOST_PARTS:
        row.notes.append((depth + 1, f"... and {len(parts) - MOST_PARTS} more", "dim"))


def _guide(rows: list[Row]) -> None:
    """Work out for each row on which levels something follows below it."""
    follows: list[bool] = []
    for row in reversed(rows):
        row.leads = len(follows) > row.depth + 1
        del follows[row.depth + 1 :]
        follows.extend([False] * (row.depth + 1 - len(follows)))
        row.guides = tuple(follows)
        follows[row.depth] = True


# The plan's details -----------------------------------------------------------------------------------------------


def _is_open(hop: Mapping[str, Any]) -> bool:
    return bool(hop.get("state") == "open")


def _age(hop: Mapping[str, Any]) -> tuple[float, str]:
    started = moment(hop.get("started"))
    return (started.timestamp() if started is not None else float("inf"), hop["id"])


def _lasted(hop: Mapping[str, Any], now: datetime) -> float | None:
    started, ended = moment(hop.get("started")), moment(hop.get("ended"))
    if started is None or (ended is None and not _is_open(hop)):
        return None
    return max(0.0, ((ended or now) - started).total_seconds())


def _listed(value: object) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _field(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None


def _some(texts: list[str], most: int = MOST_NOTES) -> list[str]:
    return texts if len(texts) <= most else [*texts[:most], f"... and {len(texts) - most:,} more"]
