"""What is known, and as of when? Kept from what the collector tells, and read by the views."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from hopwatch.cli.text import moment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Link = Literal["connecting", "live", "lost"]


@dataclass(slots=True)
class Cascade:
    """One cascade as the collector told it last."""

    id: str
    head: dict[str, Any]
    """All of it but the hops."""
    hops: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether a record of it has come."""
        return bool(self.head.get("known"))


class Known:
    """The collector's cascades and agents, the one cascade that is looked at, and how the connection is.

    Args:
        clock: Unix seconds of this machine.
        ticks: seconds that only go forward.
    """

    def __init__(
        self, clock: Callable[[], float] = time.time, ticks: Callable[[], float] = time.monotonic
    ) -> None:
        self.cascades: dict[str, dict[str, Any]] = {}
        self.agents: dict[str, dict[str, Any]] = {}
        self.found: dict[str, dict[str, Any]] = {}
        """Cascades that only a search has found: nobody tells of their changes."""
        self.cascade: Cascade | None = None
        self.link: Link = "connecting"
        self.lost_at = 0.0
        """Unix seconds of this machine."""
        self.why = ""
        self.changes = 0
        """Goes up with every change of what is told of the one cascade."""
        self._clock = clock
        self._ticks = ticks
        self._told: tuple[float, float] | None = None
        self._frozen: float | None = None

    def now(self) -> float:
        """The collector's clock in Unix seconds. It stands still while nobody knows whether it still holds."""
        if self._frozen is not None:
            return self._frozen
        if self._told is None:
            return self._clock()
        at, heard = self._told
        return at + (self._ticks() - heard)

    def take(self, event: str, data: dict[str, Any], watched: str | None) -> None:
        """Take in one event of the collector's stream.

        Args:
            event: its name.
            data: its object.
            watched: the cascade that was asked for.

        Raises:
            KeyError, TypeError, AttributeError: it is not an object of that kind; half of it may have been taken in.
        """
        if event == "overview":
            self._take_overview(data)
        elif event == "cascade" and watched is not None:
            self._take_cascade(data, watched)
        elif event == "alive":
            at = moment(data["now"])
            self._told = (self._clock() if at is None else at.timestamp(), self._ticks())
            self._frozen = None
            self.link = "live"

    def watch(self) -> None:
        """Another cascade, or none, is looked at from here on: what was known of the one before goes."""
        self.cascade = None
        self.changes += 1

    def lose(self, why: str) -> None:
        """The connection is gone, and the clock stands still."""
        if self._frozen is None:
            self._frozen = self.now()
        if self.link != "lost":
            self.lost_at = self._clock()
        self.link = "lost"
        self.why = why

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every cascade that is known: those that are told, then those that were found."""
        yield from self.cascades.values()
        yield from self.found.values()

    def find(self, rows: list[dict[str, Any]]) -> None:
        """Take in what a search has found."""
        for row in rows:
            if row["cascade"] not in self.cascades:
                self.found[row["cascade"]] = row

    def _take_overview(self, data: dict[str, Any]) -> None:
        if data["whole"]:
            self.cascades.clear()
            self.agents.clear()
        for row in data["cascades"]:
            self.cascades[row["cascade"]] = row
            self.found.pop(row["cascade"], None)
        for each in data.get("gone", ()):
            self.cascades.pop(each, None)
        for agent in data["agents"]:
            if not isinstance(agent.get("open") or 0, int):
                raise TypeError("agent.open is no number")
            self.agents[agent["instance"]] = agent
        for each in data.get("agents_gone", ()):
            self.agents.pop(each, None)

    def _take_cascade(self, data: dict[str, Any], watched: str) -> None:
        head = {key: value for key, value in data.items() if key not in ("hops", "whole")}
        if data["whole"]:
            self.cascade = Cascade(watched, head)
        elif self.cascade is None:
            return
        else:
            self.cascade.head.update(head)
        for hop in data["hops"]:
            if not isinstance(hop["id"], str):
                raise TypeError("hop.id is no text")
            self.cascade.hops[hop["id"]] = hop
        self.changes += 1
