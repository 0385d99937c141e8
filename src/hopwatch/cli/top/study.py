"""How does each hop of a cascade stand, and below which other one? Worked out once for each change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from hopwatch.cli.text import clock, moment, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hopwatch.cli.top.known import Cascade

Look = Literal["lit", "open", "stale", "failed", "abandoned", "cancelled", "absent", "finished"]
"""How a hop stands: `lit` is open and at the frontier, `stale` open when its process was last heard of, `absent` not seen."""

LOOKS: Final[dict[Look, tuple[str, str, str]]] = {
    # glyph, words, style
    "lit": ("●", "at the frontier, open", "bold cyan"),
    "open": ("○", "open", "cyan"),
    "stale": ("◌", "open when last heard of", "bold magenta"),
    "failed": ("✗", "failed", "bold red"),
    "abandoned": ("✖", "abandoned: it never finished", "bold red"),
    "cancelled": ("⊘", "cancelled", "yellow"),
    "absent": ("?", "not seen", "bold magenta"),
    "finished": ("✓", "finished", "green"),
}
URGENT: Final[tuple[Look, ...]] = (
    "lit", "abandoned", "failed", "stale", "absent", "open", "cancelled", "finished",
)  # fmt: skip
YEARS: Final = 1e10
"""Seconds: no two clocks of real machines are that far apart, and the sums stay numbers."""
CLOCKS_DIFFER: Final = 2.0
"""Seconds: clocks of one host differ by less."""


@dataclass(slots=True)
class Fact:
    """One hop, and what follows from the rest of the cascade for it. Times are Unix seconds."""

    hop: dict[str, Any]
    id: str
    look: Look
    begun: float | None
    over: float | None
    heard: float | None
    """When its process was last heard of."""
    skew: float
    below: list[Fact] = field(default_factory=list)
    above: Fact | None = None

    @property
    def open(self) -> bool:
        """Whether its end has not come."""
        return bool(self.hop.get("state") == "open")

    def until(self, now: float) -> float | None:
        """Up to when it is known to have lasted."""
        if not self.open:
            return self.over if self.over is not None else self.begun
        if self.look == "stale" and self.heard is not None and self.begun is not None:
            return min(now, max(self.heard, self.begun))
        return now


@dataclass(slots=True)
class Study:
    """A cascade with everything that views ask of it."""

    cascade: Cascade
    facts: dict[str, Fact]
    """By the hop's id, by their start."""
    agents: dict[str, dict[str, Any]]
    tops: list[Fact]
    """Those with no parent that is there."""
    frontier: set[str]
    missing: list[dict[str, Any]]
    opened: int

    @property
    def verdict(self) -> str:
        """What the collector concludes."""
        return plain(self.cascade.head.get("verdict") or "unknown")


def studied(cascade: Cascade) -> Study:
    """Work out how each hop stands."""
    head = cascade.head
    frontier = {each for each in listed(head.get("frontier")) if isinstance(each, str)}
    agents = {
        each["instance"]: each for each in dicts(head.get("agents")) if isinstance(each.get("instance"), str)
    }
    skews = head.get("skews")
    facts: dict[str, Fact] = {}
    for identity, hop in cascade.hops.items():
        instance = hop.get("instance")
        agent = agents.get(instance) if isinstance(instance, str) else None
        skew = skews.get(instance) if isinstance(skews, dict) else None
        skew = float(skew) if isinstance(skew, (int, float)) and CLOCKS_DIFFER < abs(skew) < YEARS else 0.0
        facts[identity] = Fact(
            hop, identity, look_of(hop, frontier, agent), _at(hop.get("started"), skew), _at(hop.get("ended"), skew),
            None if agent is None else _at(agent.get("heard"), 0.0), skew,
        )  # fmt: skip
    ordered = dict(sorted(facts.items(), key=lambda item: (_begin(item[1]), item[0])))
    tops: list[Fact] = []
    for fact in ordered.values():
        parent = fact.hop.get("parent")
        above = ordered.get(parent) if isinstance(parent, str) else None
        if above is None or above is fact:
            tops.append(fact)
        else:
            above.below.append(fact)
            fact.above = above
    opened = sum(fact.open for fact in ordered.values())
    return Study(cascade, ordered, agents, tops, frontier, dicts(head.get("missing")), opened)


def look_of(hop: dict[str, Any], frontier: set[str], agent: dict[str, Any] | None) -> Look:
    """How a hop stands, seen together with its process."""
    if hop.get("state") == "open":
        if agent is not None and agent.get("state") != "alive":
            return "stale"
        return "lit" if hop.get("id") in frontier else "open"
    outcome = hop.get("outcome")
    return outcome if outcome in ("failed", "cancelled", "abandoned") else "finished"


def walked(study: Study) -> Iterator[tuple[Fact, int]]:
    """Every hop once, each behind the one that caused it, with its depth."""
    seen: set[str] = set()

    def walk(starts: Iterable[Fact]) -> Iterator[tuple[Fact, int]]:
        todo = [(fact, 0) for fact in starts][::-1]
        while todo:
            fact, depth = todo.pop()
            if fact.id in seen:
                continue
            seen.add(fact.id)
            yield fact, depth
            todo.extend((each, depth + 1) for each in reversed(fact.below))

    yield from walk(study.tops)
    for (
        fact
    ) in study.facts.values():  # parents that go round in a circle: the first that is met is its beginning
        if fact.id not in seen:
            yield from walk([fact])


def name_of(hop: dict[str, Any]) -> str:
    """What a hop is called, with whom it went to."""
    name, to = plain(hop.get("name"), 120), plain(hop.get("peer_name"), 80)
    return f"{name} to {to}".strip() if hop.get("kind") in ("send", "push") and to else name


def reason_of(fact: Fact) -> str:
    """Why a hop is not over, or did not end well, in one line; nothing for one that ended well."""
    hop, waits = fact.hop, fact.hop.get("waits_on")
    if fact.look in ("failed", "abandoned", "cancelled"):
        waited = waits.get("what") if isinstance(waits, dict) else None
        return plain(hop.get("reason"), 400) + (f", waited for {plain(waited)}" if waited else "")
    if fact.look == "lit":
        return in_words(waits)
    if fact.look == "stale":
        return "its process has not been heard of since" + (f" {clock(fact.heard)}" if fact.heard else "")
    return ""


def in_words(waits: object) -> str:
    """What a hop waits on, in one line. File and line come first, for the end of a line may be cut off."""
    if not isinstance(waits, dict):
        return "nobody has looked at what it waits on yet"
    what = plain(waits.get("what") or waits.get("kind") or "something that nobody could tell")
    at = f"at {where}: " if (where := place(waits)) else ""
    return at + ("" if waits.get("kind") == "running" else "waits for ") + what


def place(waits: dict[str, Any], *, folders: bool = False) -> str:
    """`file:line` of the innermost frame of the application; nothing where that is not known."""
    file = plain(waits.get("file"), 1000)
    if not file:
        return ""
    line = waits.get("line")
    shown = file if folders else file.rpartition("/")[2]
    return shown + (f":{plain(line)}" if line is not None else "")


def listed(value: object) -> list[Any]:
    """A list, or an empty one for anything else."""
    return value if isinstance(value, list) else []


def dicts(value: object) -> list[dict[str, Any]]:
    """The objects of a list."""
    return [each for each in listed(value) if isinstance(each, dict)]


def _at(value: object, skew: float) -> float | None:
    at = moment(value)
    return None if at is None else at.timestamp() + skew


def _begin(fact: Fact) -> float:
    return float("inf") if fact.begun is None else fact.begun
