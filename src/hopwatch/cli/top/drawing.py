"""How does one line look? Rich texts of exactly one line; whatever came by telemetry goes through `plain`, and none of it is markup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.cells import cell_len
from rich.text import Text

from hopwatch.cli.picture import VERDICT_STYLES
from hopwatch.cli.text import clock, count, moment, plain, span
from hopwatch.cli.top.lines import label
from hopwatch.cli.top.study import LOOKS, listed

if TYPE_CHECKING:
    from hopwatch.cli.top.lines import Line
    from hopwatch.cli.top.scale import Scale

VERDICTS: Final = ("in_flight", "stalled", "silent", "broken", "stranded", "unknown", "waiting", "settled")
GLYPHS: Final = {
    "settled": "✓", "in_flight": "▶", "waiting": "‖", "stalled": "■", "stranded": "⚓", "broken": "✖", "silent": "…",
    "unknown": "?",
}  # fmt: skip
STATES: Final = {
    "alive": ("●", "bold green", "heard of within 16 s"),
    "silent": (
        "✖",
        "bold red",
        "has open hops, and has not been heard of for 16 s: lost, stopped or cut off",
    ),
    "idle": ("○", "", "has nothing open, so it need not report"),
    "ended": ("■", "dim", "told of its end"),
}


def verdict_of(row: dict[str, Any]) -> str:
    """A row's verdict; what is none of ours is unknown."""
    name = row.get("verdict")
    return name if name in VERDICTS else "unknown"


def badge(verdict: str) -> tuple[str, str]:
    """A verdict as glyph and words, never by its colour alone, and its style."""
    name = verdict if verdict in VERDICTS else "unknown"
    return f"{GLYPHS[name]} {name.replace('_', ' ')}", VERDICT_STYLES[name]


def cascade_row(row: dict[str, Any], width: int, now: float) -> Text:
    """A cascade as one line of the list: verdict, id, age, hops, agents, reason."""
    words, style = badge(verdict_of(row))
    out = Text(no_wrap=True, end="")
    _column(out, words, 12, style)
    _column(out, plain(row.get("cascade"), 40)[:8], 8, "bold" if row.get("open") else "")
    _column(out, age_of(row, now), 17, right=True)
    opened = f"{_number(row.get('open'))}/" if row.get("open") else ""
    _column(out, f"{opened}{_number(row.get('hops'))}", 11, right=True)
    names = ", ".join(agents_of(row))
    left = width - cell_len(out.plain)
    _column(out, names, max(8, min(26, left // 2)), "cyan")
    out.append(plain(row.get("reason"), 400), "dim")
    return out


def cascade_words(row: dict[str, Any], now: float) -> Text:
    """The same with everything that is known of it, for the space below the list."""
    words, style = badge(verdict_of(row))
    out = Text()
    out.append(words, style)
    out.append(f" {plain(row.get('cascade'))}", "bold")
    begun, over = moment(row.get("started")), moment(row.get("ended"))
    if begun is not None:
        out.append(f"  began at {clock(begun.timestamp())}")
        if over is not None:
            out.append(f", took {span(max(0.0, (over - begun).total_seconds()))}")
        elif row.get("open"):
            out.append(f", open for {about(now - begun.timestamp())}")
    hops = row.get("hops")
    out.append(f"  {count(hops, 'hop')}" if isinstance(hops, int) else "")
    out.append(f", {_number(row['open'])} open" if row.get("open") else "")
    out.append(f"  {', '.join(agents_of(row))}", "cyan")
    out.append(f"\n{plain(row.get('reason'), 1_000)}")
    return out


def age_of(row: dict[str, Any], now: float) -> str:
    """How long ago a cascade began, or for how long it has been open."""
    begun = moment(row.get("started"))
    if begun is None:
        return "not known"
    age = about(now - begun.timestamp())
    return f"open {age}" if row.get("open") and row.get("ended") is None else f"{age} ago"


def about(seconds: float) -> str:
    """A length of time without parts of a second, for what is told again every second."""
    seconds = max(0.0, seconds)
    return "under 1 s" if seconds < 1 else span(float(int(seconds))).replace(".0 s", " s")


def agents_of(row: dict[str, Any]) -> list[str]:
    """The names of a cascade's agents as text; the first few of many."""
    names = [plain(each, 40) for each in listed(row.get("agents"))]
    return names if len(names) <= 6 else [*names[:6], f"and {len(names) - 6} more"]


def agent_row(agent: dict[str, Any], width: int, now: float) -> Text:
    """A process as one line: state, name, open hops, when it was heard of, which it is, how it ended."""
    state = plain(agent.get("state"), 20)
    glyph, style, _ = STATES.get(state, ("?", "magenta", ""))
    out = Text(no_wrap=True, end="")
    _column(out, f"{glyph} {state}", 9, style)
    _column(out, plain(agent.get("name"), 60), max(12, min(26, width // 5)), "cyan")
    _column(out, f"{_number(agent.get('open'))} open", 11, "bold" if agent.get("open") else "dim", right=True)
    heard = moment(agent.get("heard"))
    _column(
        out, "never heard of" if heard is None else f"{about(now - heard.timestamp())} ago", 16, right=True
    )
    _column(out, f"pid {plain(agent['pid'])}" if agent.get("pid") else "pid not known", 13)
    _column(out, plain(agent.get("instance"), 16), 16, "dim")
    if agent.get("dropped"):
        out.append(f"{_number(agent['dropped'])} dropped: its ledger was full  ", "bold red")
    out.append(end_of(agent))
    return out


def end_of(agent: dict[str, Any]) -> str:
    """How a process ended, and what was pending then."""
    ended = agent.get("ended")
    if not isinstance(ended, dict):
        return ""
    at = moment(ended.get("at"))
    said = f"by {plain(ended.get('how'), 60)}" + (f" at {clock(at.timestamp())}" if at is not None else "")
    pending = ended.get("pending")
    parts = (
        [f"{plain(n)} \u00d7 {plain(kind, 40)}" for kind, n in pending.items() if n]
        if isinstance(pending, dict)
        else []
    )
    return said + (f", with {', '.join(parts)} pending" if parts else "")


def bar_row(line: Line, width: int, now: float, scale: Scale) -> Text:
    """A line of the lanes: what it is, and its bar on the one clock."""
    out = Text(no_wrap=True, end="")
    _, _, style = LOOKS[line.look]
    if line.kind in ("lane", "heading"):
        out.append(
            line.text,
            f"bold {'red' if line.look == 'stale' else ''}".strip()
            if line.kind == "lane"
            else "bold magenta",
        )
        return out
    indent = "  " * line.depth
    if line.kind == "note":
        out.append(f"{indent}  ↳ {line.text}", style)
        return out
    room = labels(width)
    words = style.replace("bold cyan", "bold reverse cyan") if line.look == "lit" else style
    if line.kind == "missing":
        out.append(indent + label(line), style)
        return out
    _column(out, indent + label(line), room - 1, words, cut=True)
    _bar(out, line, width - room, now, scale, style)
    return out


def labels(width: int) -> int:
    """How much of a line its label takes."""
    return max(18, min(46, width * 2 // 5))


def tree_row(line: Line, width: int, now: float) -> Text:
    """A line of the tree: what it is, of which agent, how it stands, and since when."""
    out = Text(no_wrap=True, end="")
    _, look, style = LOOKS[line.look]
    if line.kind in ("lane", "heading"):
        out.append(line.text, "bold magenta")
        return out
    deepest = max(2, min(12, width // 8))
    indent = "  " * min(line.depth, deepest) + (f"{line.depth} " if line.depth > deepest else "")
    if line.kind == "note":
        out.append(f"{indent}  ↳ {line.text}", style)
        return out
    out.append(indent)
    out.append(label(line), style.replace("bold cyan", "bold reverse cyan") if line.look == "lit" else style)
    if line.kind == "missing":
        return out
    fact = line.facts[0]
    out.append(f"  {plain(fact.hop.get('agent'), 40)}", "")
    out.append(f"  {look}", style if line.look != "finished" else "dim")
    if line.kind == "hop" and fact.begun is not None and (until := fact.until(now)) is not None:
        out.append(f" {_short(until - fact.begun, open_=fact.open)}", "dim")
    if fact.hop.get("late"):
        out.append(", late", "yellow")
    return out


def _bar(out: Text, line: Line, room: int, now: float, scale: Scale, style: str) -> None:
    begun = min((fact.begun for fact in line.facts if fact.begun is not None), default=None)
    if begun is None or room < 8:
        return
    until = max((at for fact in line.facts if (at := fact.until(now)) is not None), default=begun)
    width = room - 9
    left = min(width - 1, int(scale.place(begun) * width))
    right = max(left + 1, round(scale.place(until) * width))
    opened = any(fact.open for fact in line.facts)
    out.append(" " * left)
    out.append(("█" if line.look in ("lit", "open") else "━") * (right - left), style)
    if line.look == "stale" and (end := round(scale.place(now) * width)) > right:
        out.append("╌" * (end - right), style)
    out.append(f" {_short(until - begun, open_=opened)}", "dim")


def _short(seconds: float, *, open_: bool) -> str:
    return about(seconds) if open_ else span(max(0.0, seconds))


def _column(
    out: Text, words: str, width: int, style: str = "", *, right: bool = False, cut: bool = False
) -> None:
    text = Text(words, style, no_wrap=True)
    text.truncate(width, overflow="ellipsis")
    space = " " * max(0, width - cell_len(text.plain))
    out.append(space if right else "")
    out.append_text(text)
    out.append(("" if right else space) + (" " if cut else "  "))


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"
