"""When may one stop waiting, and with which exit code?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hopwatch.cli.client import LONGEST_ANSWER, NotKnown, Unreachable
from hopwatch.verdict import FINAL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

EXIT_CODES: Final = {
    "settled": 0,
    "in_flight": 10,
    "waiting": 11,
    "stalled": 12,
    "stranded": 13,
    "broken": 14,
    "silent": 15,
    "unknown": 16,
}
"""What `hopwatch wait` ends with, by verdict."""
POLL_EVERY: Final = 0.2
LEAST_ANSWER: Final = 5.0
"""Seconds that an answer may take however little time is left: on a busy machine one may take some."""
PATIENCE: Final = 10.0
"""Seconds that a collector which did answer may be away (a restart) before that counts as a failure."""


@dataclass(slots=True)
class Sight:
    """What one look at the cascade showed."""

    cascade: dict[str, Any]
    """The collector's object; for a cascade that nobody knows yet one with the verdict `unknown` and no hops."""
    known: bool
    final: bool
    """Whether this is the last look."""

    @property
    def code(self) -> int:
        """The exit code that its verdict stands for."""
        return EXIT_CODES.get(self.cascade["verdict"], EXIT_CODES["unknown"])


def watch(
    ask: Callable[[str, float], dict[str, Any]],
    wanted: str,
    *,
    timeout: float,
    until: Collection[str] = (),
    strict: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Sight]:
    """Look at a cascade until its verdict is final, one of `until`, or the time is over.

    Args:
        ask: `Collector.cascade`: an id and the seconds that an answer may take.
        wanted: the cascade's id or a unique prefix; after the first answer the whole id is asked for.
        timeout: seconds. There is always one look, and always one at the end of the time.
        until: verdicts that end the waiting although they are not final.
        strict: settled up to an opaque peer counts as unknown.
        clock: seconds, going forward.
        sleep: waits so many seconds.

    Yields:
        Each look; exactly the last one is `final`.

    Raises:
        CollectorError: the collector never answered, or has not for `PATIENCE` seconds or at the end of the time.
    """
    deadline = clock() + timeout
    lost: float | None = None
    answered = False
    while True:
        began = clock()
        over = began >= deadline
        try:
            # A collector that hangs must not keep one much beyond the time that one has given it.
            cascade = ask(wanted, min(LONGEST_ANSWER, max(LEAST_ANSWER, deadline - began)))
            known = True
        except NotKnown:
            cascade = nothing_known(wanted)
            known = False
        except Unreachable:
            now = clock()
            lost = lost if lost is not None else now
            if not answered or over or now - lost >= PATIENCE:
                raise
            sleep(min(POLL_EVERY, max(0.0, deadline - now)))
            continue
        answered = True
        lost = None
        if known:
            wanted = cascade["cascade"]
        if strict and cascade["verdict"] == "settled" and cascade.get("opaque"):
            cascade = _doubted(cascade)
        verdict = cascade["verdict"]
        over = over or (known and verdict in FINAL) or verdict in until
        yield Sight(cascade, known, over)
        if over:
            return
        # A cascade of many thousand hops costs the collector something: it gets at least four times that as a rest.
        rest = max(POLL_EVERY, 4 * (clock() - began))
        sleep(min(rest, max(0.0, deadline - clock())))


def nothing_known(wanted: str) -> dict[str, Any]:
    """The object of a cascade that the collector has not heard of: unknown, and nothing in it."""
    return {
        "cascade": wanted,
        "verdict": "unknown",
        "reason": f"No record of a cascade {wanted} has come to the collector.",
        "started": None,
        "ended": None,
        "frontier": [],
        "missing": [],
        "opaque": [],
        "agents": [],
        "hops": [],
    }


def _doubted(cascade: dict[str, Any]) -> dict[str, Any]:
    peers = ", ".join(str(each) for each in cascade["opaque"])
    reason = f"Settled only up to {peers}, which hopwatch cannot see into: with --strict that is unknown."
    return {**cascade, "verdict": "unknown", "reason": reason}
