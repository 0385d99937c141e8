"""Where on a line does a moment stand? One clock for all bars, on which stretches without any event may be shortened."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from hopwatch.cli.text import span

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_SHORTENED: Final = 3
LONG: Final = 1.0
"""Seconds: a shorter stretch stays as it is."""
MOSTLY: Final = 0.55
"""Only a stretch that takes more than this part of what is left is shortened."""
ROOM: Final = 0.24
"""Part of the line that one shortened stretch takes; several take less each."""


class Moments:
    """When anything of a cascade began or ended, worked out once for each change.

    Args:
        events: Unix seconds, in any order.
    """

    def __init__(self, events: Iterable[float]) -> None:
        stops = sorted(set(events))
        self.number = len(stops)
        self.begin, self.end = (stops[0], stops[-1]) if stops else (0.0, 0.0)
        gaps = sorted(pairwise(stops), key=lambda gap: gap[0] - gap[1])
        self.quiet = gaps[:MOST_SHORTENED]
        """The longest stretches in which nothing began or ended."""


@dataclass(slots=True)
class _Part:
    """A stretch of the line that is drawn to one scale."""

    begin: float
    end: float
    short: bool
    at: float = 0.0
    share: float = 0.0

    @property
    def length(self) -> float:
        """In seconds."""
        return self.end - self.begin


class Scale:
    """Moments as places from 0 to 1.

    Args:
        moments: of the cascade.
        until: where the line ends, if that is later: now.
        shorten: whether up to three long stretches without an event take less room than their length.
    """

    def __init__(self, moments: Moments, until: float | None = None, *, shorten: bool = True) -> None:
        self.begin = moments.begin
        self.end = max(moments.end, until) if until is not None else moments.end
        gaps = [*moments.quiet, (moments.end, self.end)] if self.end > moments.end else moments.quiet
        number = moments.number + (self.end > moments.end)
        self._parts = self._parted(self._shortened(gaps, number) if shorten else [])
        shorts = sum(part.short for part in self._parts)
        room = ROOM / shorts**0.5 if shorts else 0.0
        total = sum(part.length for part in self._parts if not part.short)
        at = 0.0
        for part in self._parts:
            part.at = at
            part.share = room if part.short else part.length / total * (1 - room * shorts) if total else 0.0
            at += part.share
        self._ends = [part.end for part in self._parts]

    def place(self, moment: float) -> float:
        """Where a moment is, from 0 to 1."""
        if not self._parts or moment <= self.begin:
            return 0.0
        if moment >= self.end:
            return 1.0
        part = self._parts[bisect_left(self._ends, moment)]
        return part.at + (moment - part.begin) / part.length * part.share

    def axis(self, width: int) -> str:
        """A line of that width which names moments, in lengths of time since the beginning."""
        cells = [" "] * width

        def put(column: int, *texts: str) -> None:
            """The first of these texts for which there is room."""
            for text in texts:
                place = max(0, min(column, width - len(text)))
                around = cells[max(0, place - 1) : place + len(text) + 1]
                if len(text) <= width and all(cell == " " for cell in around):
                    cells[place : place + len(text)] = text
                    return

        # What is not to scale is said first: without that the rest would be a wrong picture.
        for part in [part for part in self._parts if part.short]:
            left, right = round(part.at * width), round((part.at + part.share) * width)
            long, brief = f"⫽ {span(part.length)} ⫽", f"⫽{span(part.length)}".replace(" ", "")
            middle = left + max(0, right - left - len(long)) // 2
            put(middle, *((long, brief, "⫽") if right - left > len(long) else (brief, "⫽")))
        put(0, "0")
        for part in [part for part in self._parts if not part.short]:
            room = max(1, round(part.share * width) // 12)
            step = _nice(part.length / room)
            number = math.floor((part.begin - self.begin) / step + 1e-6) + 1
            for each in range(number, number + 2 * room + 2):
                if each * step <= (part.end - self.begin) * (1 + 1e-9):
                    text = f"+{span(each * step)}".replace(".0 ", " ")
                    put(round(self.place(self.begin + each * step) * width), text)
        return "".join(cells)

    def _shortened(self, gaps: list[tuple[float, float]], number: int) -> list[tuple[float, float]]:
        """The stretches that take less room: those that would leave none to everything else."""
        out: list[tuple[float, float]] = []
        left = self.end - self.begin
        for begin, end in sorted(gaps, key=lambda gap: gap[0] - gap[1])[:MOST_SHORTENED]:
            if number - len(out) < 4 or end - begin < max(LONG, MOSTLY * left):
                break
            out.append((begin, end))
            left -= end - begin
        return sorted(out)

    def _parted(self, shorts: list[tuple[float, float]]) -> list[_Part]:
        out: list[_Part] = []
        at = self.begin
        for begin, end in shorts:
            if begin > at:
                out.append(_Part(at, begin, short=False))
            out.append(_Part(begin, end, short=True))
            at = end
        if self.end > at:
            out.append(_Part(at, self.end, short=False))
        return out


def _nice(length: float) -> float:
    """The next length of which people count: 1, 2 or 5 of some power of ten."""
    power = 10.0 ** math.floor(math.log10(max(length, 1e-6)))
    return next((each * power for each in (1, 2, 5) if each * power >= length), 10 * power)
