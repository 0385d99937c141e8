"""Which service loops go on though their owner has ended? What instruments a library says so; who reports asks here.

A service loop is no cascade's work, so no hop tells of it. One that nobody will ever end is a leak: it is listed by
`hopwatch.pending` and `hopwatch ps`, and told of once by a log event and a metric.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import _logs, metrics

from hopwatch import attributes as names
from hopwatch.process import failed

if TYPE_CHECKING:
    from collections.abc import Callable


class Orphan(NamedTuple):
    """One service loop whose owner has ended.

    Attributes:
        name: of the loop's task, as the library calls it.
        owner: who it was, and how it ended, in a few words.
        since: when it ended, in Unix nanoseconds.
        task: the loop's task; None where it has been collected while pending.
    """

    name: str
    owner: str
    since: int
    task: Any


sources: list[Callable[[], list[Orphan]]] = []
"""Each says which orphans there are now."""
_told: dict[str, Any] = {}


def now() -> list[Orphan]:
    """The service loops of this process whose owner has ended, and which are pending."""
    out: list[Orphan] = []
    for source in sources:
        try:
            out.extend(source())
        except Exception:  # noqa: BLE001
            failed("orphans")
    return out


def sentence(loops: list[Orphan]) -> str:
    """What there is to say of the loops of one owner."""
    listed = " and ".join(f"'{each.name}'" for each in loops)
    lost = [each.name for each in loops if each.task is None]
    goes = "service loop goes" if len(loops) == 1 else "service loops go"
    collected = f"; {' and '.join(lost)}: destroyed while pending" if lost else ""
    return f"{len(loops)} {goes} on though the owner has ended: {listed}. {loops[0].owner}{collected}"


def tell(loops: list[Orphan]) -> None:
    """Tell once of the loops of one owner: a log event, and a metric."""
    try:
        counter = _told.get("counter")
        if counter is None:
            counter = _told["counter"] = metrics.get_meter(names.SCOPE).create_counter(
                names.METRIC_ORPHANED, "{loop}", "Service loops whose owner has ended without ending them"
            )
        for each in loops:
            counter.add(1, {names.SERVICE_LOOP: each.name})
        _logs.get_logger(names.SCOPE).emit(
            _logs.LogRecord(
                timestamp=time.time_ns(),
                trace_id=0,
                span_id=0,
                severity_text="WARN",
                severity_number=_logs.SeverityNumber.WARN,
                body=sentence(loops),
                attributes={
                    "event.name": names.EVENT_ORPHANED,
                    names.SERVICE_LOOPS: [each.name for each in loops],
                    names.SERVICE_OWNER: loops[0].owner,
                },
            )
        )
    except Exception:  # noqa: BLE001
        failed("orphans.tell")
