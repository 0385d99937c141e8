"""Which lines does the picture of a cascade have? As lanes with a bar a hop, or as a tree; bounded by grouping what is alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from hopwatch.cli.text import count, plain
from hopwatch.cli.top.study import LOOKS, URGENT, name_of, reason_of, walked

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from hopwatch.cli.top.study import Fact, Look, Study

GROUP_ABOVE: Final = 120
"""Lines; with more, hops that are alike take one."""
ALIKE: Final = 4
"""So many at least."""
MOST_MISSING: Final = 100
DEEPEST: Final = 12
"""Levels that are indented; what is deeper stays there and tells its level."""


@dataclass(slots=True)
class Line:
    """One line of a picture."""

    kind: Literal["lane", "hop", "group", "note", "missing", "heading"]
    key: str = ""
    """What the cursor stays on when the picture changes; empty for a line that cannot be chosen."""
    facts: list[Fact] = field(default_factory=list)
    """The hop, or those that are drawn as one."""
    look: Look = "finished"
    depth: int = 0
    text: str = ""
    """What is said: the lane's name, the reason beneath a hop."""
    more: bool = False
    """Of a group whether its hops are shown beneath it."""


def lane_lines(
    study: Study, *, expanded: Collection[str] = (), wanted: Callable[[Fact], bool] | None = None
) -> list[Line]:
    """A lane for each process, in the order of their first hops, and in each its hops by their start."""
    lanes: dict[str, list[Fact]] = {}
    for fact in study.facts.values():
        if wanted is None or wanted(fact):
            lanes.setdefault(str(fact.hop.get("instance")), []).append(fact)
    total = sum(len(each) for each in lanes.values())
    out: list[Line] = []
    for instance, facts in lanes.items():
        words = _lane_words(study.agents.get(instance), facts)
        worst = min((fact.look for fact in facts), key=URGENT.index)
        out.append(Line("lane", text=words, look=worst, facts=facts))
        for group in _grouped(facts, total, len(lanes)):
            out.extend(_of_group(group, f"lane {instance}", 1, expanded))
    return out + _missing_lines(study)


def tree_lines(
    study: Study, *, expanded: Collection[str] = (), wanted: Callable[[Fact], bool] | None = None
) -> list[Line]:
    """Each hop beneath the one that caused it."""
    total = len(study.facts)
    out: list[Line] = []
    headed = False
    grouped: set[str] = set()
    leaves = _leaves(study) if total > GROUP_ABOVE and wanted is None else {}
    for fact, depth in walked(study):
        if fact.id in grouped or (wanted is not None and not wanted(fact)):
            continue
        if fact.above is None and fact.hop.get("parent") is not None and not headed:
            headed = True
            out.append(Line("heading", look="absent", text="their parents have not been seen"))
        if fact.above is not None and not fact.below:
            alike = leaves.get((fact.above.id, *_key(fact)), [])
            if len(alike) >= ALIKE:
                grouped.update(each.id for each in alike)
                out.extend(_of_group(alike, f"tree {fact.above.id}", depth, expanded))
                continue
        out.extend(_of_hop(fact, depth))
    return out + _missing_lines(study)


def matching(words: str, *, unfinished: bool) -> Callable[[Fact], bool] | None:
    """Which hops are wanted: those with all of these words, and perhaps only what did not end well, or has not ended."""
    parts = words.lower().split()
    if not parts and not unfinished:
        return None

    def wanted(fact: Fact) -> bool:
        if unfinished and fact.look == "finished":
            return False
        hop = fact.hop
        said = " ".join(
            str(hop.get(each) or "")[:2_000]
            for each in ("kind", "agent", "name", "id", "peer_name", "outcome")
        ).lower()
        return all(each in said for each in parts)

    return wanted


def label(line: Line) -> str:
    """What stands in a line of a hop or of several: glyph, kind and name."""
    glyph = LOOKS[line.look][0]
    if line.kind == "missing":
        return f"{glyph} {line.text}"
    hop = line.facts[0].hop
    if line.kind == "hop":
        return f"{glyph} {plain(hop.get('kind'), 30)} {name_of(hop)}"
    kinds = {str(fact.hop.get("kind")) for fact in line.facts}
    names = {str(fact.hop.get("name")) for fact in line.facts}
    what = plain(kinds.pop(), 30) if len(kinds) == 1 else "hops"
    folded = "▾" if line.more else "▸"
    return f"{folded}{glyph} {len(line.facts):,} \u00d7 {what}" + (
        f" {plain(names.pop(), 80)}" if len(names) == 1 else ""
    )


def _grouped(facts: list[Fact], total: int, lanes: int) -> list[list[Fact]]:
    """A lane's hops, with those that are alike together; the more there are in the picture, the less alike they need be."""
    groups = [[fact] for fact in facts]
    if total <= GROUP_ABOVE:
        return groups
    levels: tuple[Callable[[Fact], tuple[Any, ...]], ...] = (
        lambda fact: (fact.hop.get("parent"), *_key(fact)),
        _key,
        lambda fact: (fact.hop.get("kind"), fact.look),
        lambda fact: (fact.look,),
    )
    room = max(len(LOOKS), GROUP_ABOVE // lanes)
    for number, key_of in enumerate(levels):
        if len(groups) <= room:
            break
        alike: dict[tuple[Any, ...], list[Fact]] = {}
        for fact in facts:
            alike.setdefault(key_of(fact), []).append(fact)
        groups = []
        for each in alike.values():
            if len(each) >= ALIKE or number > 1:
                groups.append(each)
            else:
                groups.extend([fact] for fact in each)
    return groups


def _leaves(study: Study) -> dict[tuple[Any, ...], list[Fact]]:
    """Hops that caused nothing, by the one that caused them and by what they are."""
    out: dict[tuple[Any, ...], list[Fact]] = {}
    for fact in study.facts.values():
        if fact.above is not None and not fact.below:
            out.setdefault((fact.above.id, *_key(fact)), []).append(fact)
    return out


def _key(fact: Fact) -> tuple[Any, ...]:
    return (str(fact.hop.get("instance")), str(fact.hop.get("kind")), str(fact.hop.get("name")), fact.look)


def _of_group(facts: Sequence[Fact], where: str, depth: int, expanded: Collection[str]) -> list[Line]:
    if len(facts) == 1:
        return _of_hop(facts[0], depth)
    key = f"{where} {facts[0].id}"
    open_ = key in expanded
    reasons = {reason_of(fact) for fact in facts[:1_000]}
    out = [Line("group", key, list(facts), facts[0].look, depth, more=open_)]
    if len(reasons) == 1 and (reason := reasons.pop()):
        out.append(Line("note", facts=[facts[0]], look=facts[0].look, depth=depth + 1, text=reason))
    if open_:
        out.extend(Line("hop", fact.id, [fact], fact.look, depth + 1) for fact in facts)
    return out


def _of_hop(fact: Fact, depth: int) -> list[Line]:
    out = [Line("hop", fact.id, [fact], fact.look, depth)]
    reason = reason_of(fact)
    if reason:
        out.append(Line("note", facts=[fact], look=fact.look, depth=depth + 1, text=reason))
    return out


def _missing_lines(study: Study) -> list[Line]:
    if not study.missing:
        return []
    out = [Line("lane", text="not seen: promised or declared, and it has not come", look="absent")]
    for number, each in enumerate(study.missing[:MOST_MISSING]):
        teller = study.facts.get(str(each.get("hop")))
        out.append(
            Line(
                "missing",
                f"missing {number}",
                [teller] if teller else [],
                "absent",
                1,
                plain(each.get("sentence"), 400),
            )
        )
    if len(study.missing) > MOST_MISSING:
        out.append(Line("heading", look="absent", text=f"and {len(study.missing) - MOST_MISSING:,} more"))
    return out


def _lane_words(agent: dict[str, Any] | None, facts: list[Fact]) -> str:
    name = plain(facts[0].hop.get("agent"), 60)
    opened = sum(fact.open for fact in facts)
    about = [name]
    if agent is None:
        about.append("not known how it is")
    else:
        if agent.get("pid"):
            about.append(f"pid {plain(agent['pid'])}")
        state = plain(agent.get("state"))
        about.append("silent: not heard of for 16 s" if state == "silent" else state)
    about.append(count(len(facts), "hop") + (f", {opened:,} open" if opened else ""))
    return ", ".join(about)
