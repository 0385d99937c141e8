"""What does one request say? Records, signs of life and refusals: what a receiver hands to a store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from hopwatch.records import Heartbeat, Hop, Shutdown

MAX_REASONS: Final = 16
"""Different reasons that are kept of one request; further ones are only counted."""


class Sender(NamedTuple):
    """What a resource calls itself."""

    service: str
    """`service.name`."""
    instance: str | None
    """`service.instance.id`, where it is given."""


@dataclass(slots=True)
class Refusals:
    """What was refused, how often, and why."""

    count: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, count: int = 1) -> None:
        """Count `count` spans as refused for `reason`."""
        self.count += count
        if reason in self.reasons or len(self.reasons) < MAX_REASONS:
            self.reasons[reason] += count

    def sentence(self) -> str:
        """All of it in one line, for `partial_success.error_message`."""
        if not self.count:
            return ""
        shown = "; ".join(f"{count} x {reason}" for reason, count in self.reasons.most_common(5))
        spans = "span was" if self.count == 1 else "spans were"
        return f"{self.count} {spans} refused: {shown}"


@dataclass(slots=True)
class Batch:
    """Everything that one request says."""

    arrived: int
    """Unix nanoseconds of the collector's clock."""
    hops: list[Hop] = field(default_factory=list)
    heartbeats: list[Heartbeat] = field(default_factory=list)
    shutdowns: list[Shutdown] = field(default_factory=list)
    senders: dict[str, Sender] = field(default_factory=dict)
    """Who sent the records of each instance of ours."""
    signs: set[Sender] = field(default_factory=set)
    """Resources that sent anything at all."""
    refused: Refusals = field(default_factory=Refusals)
    refused_of: Counter[str] = field(default_factory=Counter)
    """How many records were refused of each cascade whose id is known."""
    ignored: int = 0
    """Spans that are not ours."""

    @property
    def size(self) -> int:
        """How much work it is for a store."""
        return len(self.hops) + len(self.heartbeats) + len(self.shutdowns) + 1
