"""What does a collector ask of its store? One small protocol, and what goes in and out of it.

A store merges records into hops and keeps them, with what is known of agents and of A2A tasks. It judges nothing:
whoever asks gets a `Snapshot` and judges that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from concurrent.futures import Future

    from hopwatch.collector.batch import Batch, Refusals
    from hopwatch.records import Hop
    from hopwatch.verdict import Agent, Name


class StoreError(RuntimeError):
    """The store cannot be used; the message says which, why, and what to do."""


class StoreBusyError(StoreError):
    """The store takes nothing at the moment; trying again later may help."""


class UnknownCascadeError(LookupError):
    """No cascade has such an id."""


class AmbiguousCascadeError(LookupError):
    """More than one cascade's id begins so."""

    def __init__(self, prefix: str, candidates: Sequence[str]) -> None:
        super().__init__(prefix)
        self.candidates = list(candidates)


@dataclass(slots=True)
class Row:
    """One cascade as a list shows it. Times are Unix nanoseconds."""

    number: int
    """Grows with every cascade that is new to the store."""
    cascade: str
    version: int
    """Grows whenever anything that a verdict stands on may have changed."""
    started: int | None
    ended: int | None
    """When the last hop ended, whether or not others are open."""
    active: int
    """When a record last came, by the collector's clock."""
    hops: int
    open: int
    rejected: int
    agents: list[str]
    verdict: Name | None
    """A verdict that was remembered for this version."""
    reason: str | None


@dataclass(slots=True)
class Snapshot:
    """Everything that a verdict on one cascade stands on, at one moment. Nobody changes what it holds."""

    row: Row
    hops: Mapping[str, Hop]
    agents: Mapping[str, Agent]
    tasks: Mapping[tuple[str, str], tuple[str, int]]
    elsewhere: Mapping[tuple[str, str], str]
    """By task, a cascade that is open and has worked on it: of those tasks that are in no terminal state where this cascade is not open."""


@dataclass(slots=True)
class Remembered:
    """A verdict that time alone does not change."""

    number: int
    version: int
    verdict: Name
    reason: str


@dataclass(slots=True)
class Totals:
    """How much there is, for `/healthz`."""

    cascades: int
    bytes: int
    location: str
    pending: int = 0
    """Batches that wait to be written."""


class Store(Protocol):
    """Keeps hops. Every method may be called from any thread; all but `write` wait for the answer."""

    def write(self, batch: Batch) -> Future[Refusals]:
        """Take in a batch. The future is done when it is committed, and tells what the store refused of it.

        Raises:
            StoreBusyError: too much waits already, or there is no room.
        """
        ...

    def snapshot(self, prefix: str) -> Snapshot:
        """The one cascade whose id begins with `prefix`.

        Raises:
            UnknownCascadeError: there is none.
            AmbiguousCascadeError: there are several.
        """
        ...

    def rows(self, before: int | None, limit: int, verdicts: frozenset[Name] = frozenset()) -> list[Row]:
        """At most `limit` cascades with a number below `before`, newest first.

        With `verdicts`, only those that are remembered as one of them, or of which no verdict is remembered.
        """
        ...

    def remember(self, verdicts: Iterable[Remembered]) -> None:
        """Remember verdicts, each as long as its cascade has the same version."""
        ...

    def open_hops(self, limit: int) -> list[Hop]:
        """At most `limit` open hops, oldest first."""
        ...

    def agents(self) -> list[tuple[Agent, int]]:
        """Every process known, each with how many of its hops are open here; the one heard last comes first."""
        ...

    def watched(self, since: int, limit: int) -> tuple[list[Row], int]:
        """At most `limit` of the cascades that have an open hop, or of which a record came at `since` or later.

        Returns:
            Those with an open hop first, the oldest before the others; then the rest, the one heard of last first. And
            how many more there are.
        """
        ...

    def totals(self) -> Totals:
        """How much there is."""
        ...

    def close(self) -> None:
        """Write what waits, and close."""
        ...
