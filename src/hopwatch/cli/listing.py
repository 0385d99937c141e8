"""How does a list of cascades look, as a table in a terminal and as lines in a pipe?"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from hopwatch.cli.picture import VERDICT_STYLES
from hopwatch.cli.plan import LONGEST_REASON
from hopwatch.cli.text import moment, plain, span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType


def table(rows: Sequence[Mapping[str, Any]], *, now: datetime | None = None) -> RenderableType:
    """The collector's list of cascades as a table for a terminal.

    Args:
        rows: the objects under `cascades` of `GET /api/cascades`.
        now: up to when ages are told; by default now.
    """
    now = now or datetime.now(timezone.utc)
    out = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("cascade", "verdict"):
        out.add_column(column, no_wrap=True)
    for column in ("began", "open"):
        out.add_column(column, no_wrap=True, justify="right")
    out.add_column("agents and reason", overflow="fold")
    for row, prefix in zip(rows, _prefixes(rows), strict=True):
        verdict = plain(row.get("verdict"))
        begun = moment(row.get("started"))
        # The larger unit alone: a list is for finding a cascade, and `show` tells the rest.
        age = " ".join(span(max(0.0, (now - begun).total_seconds())).split()[:2]) if begun is not None else ""
        about = Text(", ".join(_agents(row)), "dim")
        about.append(f"\n{plain(row.get('reason'))}", "not dim")
        out.add_row(
            Text(prefix),
            Text(verdict.replace("_", " "), VERDICT_STYLES.get(verdict, "")),
            Text(f"{age} ago" if age else ""),
            Text(f"{_number(row.get('open'))}/{_number(row.get('hops'))}"),
            about,
        )
    return out


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same, one line a cascade: whole id, verdict, began, lasted, open hops, agents, reason."""
    out: list[str] = []
    for row in rows:
        lasted = _lasted(row)
        facts = [
            plain(row.get("cascade")),
            f"{plain(row.get('verdict')):<9}",
            plain(row.get("started")) or "-",
            f"lasted {lasted}" if lasted else "not over" if row.get("open") else "end unknown",
            f"{_number(row.get('open'))}/{_number(row.get('hops'))} open",
            ",".join(_agents(row)) or "-",
            plain(row.get("reason"), LONGEST_REASON),
        ]
        out.append("  ".join(facts).rstrip())
    return out


def _prefixes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The beginnings of the ids, long enough to tell these apart."""
    ids = [plain(row.get("cascade")) for row in rows]
    length = 12
    while length < 32 and len({each[:length] for each in ids}) < len(set(ids)):
        length += 4
    return [each[:length] for each in ids]


def _lasted(row: Mapping[str, Any]) -> str:
    begun, over = moment(row.get("started")), moment(row.get("ended"))
    return span(max(0.0, (over - begun).total_seconds())) if begun is not None and over is not None else ""


def _agents(row: Mapping[str, Any]) -> list[str]:
    agents = row.get("agents")
    if not isinstance(agents, list):
        return []
    names = list(
        dict.fromkeys(plain(each.get("name") if isinstance(each, dict) else each) for each in agents)
    )
    return names if len(names) <= 8 else [*names[:8], f"{len(names) - 8} more"]


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"
