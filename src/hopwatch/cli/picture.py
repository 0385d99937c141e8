"""How does a cascade look, in a terminal and in a pipe?

Both pictures come from one plan (`hopwatch.cli.plan`). `tree` draws it with colour and guides for a terminal, `lines`
writes it plainly, two spaces a level, for everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from hopwatch.cli.plan import LONGEST_REASON, planned
from hopwatch.cli.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from hopwatch.cli.plan import Look, Plan, Row

MOST_HOPS: Final = 200
"""Hops that one picture shows."""
DEEPEST_INDENT: Final = 24
"""Levels that a terminal gets indented; what is deeper stays there and tells its level."""

VERDICT_STYLES: Final = {
    "settled": "bold green",
    "in_flight": "bold cyan",
    "waiting": "bold yellow",
    "stalled": "bold red",
    "stranded": "bold red",
    "broken": "bold red",
    "silent": "bold magenta",
    "unknown": "bold magenta",
}
# Green, red and magenta are left to verdicts and outcomes.
_LANES: Final = (
    "cyan",
    "bright_yellow",
    "bright_blue",
    "bright_magenta",
    "bright_green",
    "yellow",
    "blue",
    "bright_cyan",
)

_GLYPHS: Final[dict[Look, tuple[str, str, str]]] = {
    # what it is: glyph, the same in ASCII, style
    "open": ("○", "o", "cyan"),
    "lit": ("●", "*", "bold reverse cyan"),
    "finished": ("✓", "+", "green"),
    "failed": ("✗", "x", "bold red"),
    "cancelled": ("⊘", "-", "yellow"),
    "abandoned": ("✖", "X", "bold red"),
    "absent": ("?", "?", "bold magenta"),
}


def tree(
    cascade: Mapping[str, Any], *, now: datetime | None = None, limit: int = MOST_HOPS
) -> RenderableType:
    """A cascade for a terminal.

    Args:
        cascade: the object that `GET /api/cascades/{id}` gives.
        now: up to when an open hop has lasted; by default now.
        limit: hops to show; the frontier and what leads to it come first, whatever else is there.

    Returns:
        Something that `rich` prints and that `rich.live` can show again and again.
    """
    return _Picture(planned(cascade, now, limit))


def lines(cascade: Mapping[str, Any], *, now: datetime | None = None, limit: int = MOST_HOPS) -> list[str]:
    """A cascade as plain lines, one fact each, two spaces a level; no colour, no box, no control character."""
    plan = planned(cascade, now, limit)
    out = [f"cascade {plan.cascade}", f"verdict {plan.verdict}"]
    if plan.reason:
        out.append(f"reason {plan.reason}")
    out.extend(f"time {each}" for each in plan.times)
    out.extend(f"agent {agent.name} {agent.about}".rstrip() for agent in plan.agents)
    out.append(f"total {plan.counted}")
    for row in plan.rows:
        out.append(_indent(row) + _row_in_words(row))
        out.extend(_indent(row) + "  " * (depth + 1) + text for depth, text, _ in row.notes)
    out.extend(f"missing {each}" for each in plan.missing)
    out.extend(f"opaque {each}" for each in plan.opaque)
    return out


def headline(cascade: Mapping[str, Any]) -> str:
    """The verdict and the reason in one plain line."""
    verdict, reason = plain(cascade.get("verdict")), plain(cascade.get("reason"), LONGEST_REASON)
    return f"{verdict}: {reason}" if reason else verdict


# A pipe ------------------------------------------------------------------------------------------------------------


def _indent(row: Row) -> str:
    return "  " * (row.depth + 1)


def _row_in_words(row: Row) -> str:
    if not row.kind:
        return row.name
    text = " ".join(each for each in (row.kind, row.agent, row.name) if each)
    return f"{text}: {row.state}" + (f" [{row.id}]" if row.id else "")


# A terminal --------------------------------------------------------------------------------------------------------


class _Picture:
    """A plan as rich draws it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        names = list(dict.fromkeys([agent.name for agent in plan.agents]))
        self._lanes = {name: _LANES[i % len(_LANES)] for i, name in enumerate(names)}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        plan, ascii_only = self._plan, options.ascii_only
        style = VERDICT_STYLES.get(plan.verdict, "bold")
        head = Text()
        head.append(f" {plan.verdict.replace('_', ' ').upper()} ", f"{style} reverse")
        head.append(f" {plan.cascade}", "bold")
        head.append(f"  {plan.counted}")
        yield head
        if plan.reason:
            yield Text(plan.reason, style)
        facts = Text(", ".join(plan.times), "dim")
        yield facts
        if plan.agents:
            yield self._legend(ascii_only)
        for row in plan.rows:
            yield from self._drawn(row, console, options, ascii_only)
        for each in plan.missing:
            yield Text(f"missing: {each}", "magenta")
        for each in plan.opaque:
            yield Text(f"not instrumented: {each}", "yellow")

    def _legend(self, ascii_only: bool) -> Text:
        out = Text()
        for agent in self._plan.agents[: 4 * len(_LANES)]:
            out.append("#" if ascii_only else "■", self._lanes[agent.name])
            out.append(f" {agent.name}", self._lanes[agent.name])
            out.append(f" ({agent.about})  " if agent.about else "  ", "bold red" if agent.silent else "dim")
        if len(self._plan.agents) > 4 * len(_LANES):
            out.append(f"... and {len(self._plan.agents) - 4 * len(_LANES):,} more", "dim")
        return out

    def _drawn(
        self, row: Row, console: Console, options: ConsoleOptions, ascii_only: bool
    ) -> Iterator[Segment]:
        # Guides may take half the width, for whatever is cut off at the right is lost.
        deepest = max(1, min(DEEPEST_INDENT, options.max_width // 4))
        first, after = _guides(row, ascii_only, deepest)
        text = Text()
        if row.look is not None:
            glyph, plainly, style = _GLYPHS[row.look]
            text.append(plainly if ascii_only else glyph, style)
            text.append(" ")
        if row.kind:
            text.append(row.kind, "bold" if row.look in ("lit", "failed", "abandoned") else "")
            text.append(f" {row.agent}", self._lanes.get(row.agent, ""))
            text.append(f" {row.name}")
            bad = row.look in ("failed", "abandoned")
            text.append(f"  {row.state}", "bold cyan" if row.look == "lit" else "red" if bad else "dim")
        else:
            text.append(row.name, "magenta" if row.look == "absent" else "dim")
        yield from _wrapped(text, first, after, console, options)
        for depth, note, style in row.notes:
            below = ("| " if ascii_only else "│ ") if row.leads else "  "
            margin = after + below + "  " * depth
            said = Text()
            said.append(note, style)  # as a span: a text's own style is lost when it is rendered line by line
            yield from _wrapped(said, margin, margin + "  ", console, options)


def _guides(row: Row, ascii_only: bool, deepest: int) -> tuple[str, str]:
    """What stands before a row's first line, and before the lines that continue it."""
    on, fork, last = ("| ", "|-", "`-") if ascii_only else ("│ ", "├╴", "└╴")
    above = row.guides[1:]
    deeper = ""
    if len(above) > deepest:
        deeper = f"{len(above)} "
        above = above[-deepest:]
    if not above:
        return "", ""
    lead = "".join(on if each else "  " for each in above[:-1])
    return lead + (fork if above[-1] else last) + deeper, lead + (on if above[-1] else "  ")


def _wrapped(
    text: Text, first: str, after: str, console: Console, options: ConsoleOptions
) -> Iterator[Segment]:
    width = max(4, options.max_width - max(len(first), len(after)))
    guide = Style(dim=True)
    for number, line in enumerate(text.wrap(console, width)):
        yield Segment(after if number else first, guide)
        line.end = ""
        yield from line.render(console)
        yield Segment.line()
