"""Which metrics does a process give of its hops? Counters, histograms and gauges, by the application's own meter provider."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry import metrics
from opentelemetry.trace import set_span_in_context

from hopwatch import attributes as names
from hopwatch.ledger import DURATIONS_A_TICK
from hopwatch.process import failures

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable

    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.trace import Span

    from hopwatch.process import Process
    from hopwatch.telemetry import Telemetry

_NO_CONTEXT: Final = otel_context.Context()


class Meters:
    """The metrics of a process. What is open is observed when somebody asks; what ended is recorded by the ticker."""

    def __init__(self, telemetry: Telemetry) -> None:
        meter = metrics.get_meter(names.SCOPE)
        self._hops = meter.create_histogram(names.METRIC_DURATION, "s", "How long hops took")
        self._durations = {
            "task": meter.create_histogram(
                names.METRIC_TASK_DURATION, "s", "How long asyncio tasks of cascades ran"
            ),
            "event": meter.create_histogram(names.METRIC_EVENT_DURATION, "s", "From enqueue to task_done"),
            "lock": meter.create_histogram(names.METRIC_LOCK_WAIT, "s", "How long tasks waited for a lock"),
        }
        self.lock_hold = meter.create_histogram(names.METRIC_LOCK_HOLD, "s", "How long a lock was held")
        self.queue_wait = meter.create_histogram(names.METRIC_QUEUE_WAIT, "s", "From enqueue to dequeue")
        self.queue_depth = meter.create_histogram(
            names.METRIC_QUEUE_DEPTH, "{item}", "Items in the queue after an enqueue"
        )
        self.destroyed = meter.create_counter(
            names.METRIC_DESTROYED, "{task}", "Tasks that were collected while pending"
        )
        self.deadlocks = meter.create_counter(
            names.METRIC_DEADLOCKS, "{deadlock}", "Cycles of tasks that wait for one another"
        )
        reference = weakref.ref(telemetry)

        def observe(count: Any) -> Any:
            def callback(_: CallbackOptions) -> Iterable[Observation]:
                telemetry = reference()
                process = telemetry._process() if telemetry is not None else None  # noqa: SLF001
                return (
                    []
                    if process is None
                    else [metrics.Observation(value, labels) for value, labels in count(process)]
                )

            return callback

        meter.create_observable_up_down_counter(
            names.METRIC_OPEN, [observe(_open_by_kind)], "{hop}", "Hops that are open in this process"
        )
        meter.create_observable_counter(
            names.METRIC_DROPPED,
            [observe(lambda process: [(process.ledger.dropped, {})])],
            "{entry}",
            "Entries that did not fit into the ledger",
        )
        meter.create_observable_counter(
            names.METRIC_FAILURES,
            [observe(lambda _: [(count, {"hook": hook}) for hook, count in list(failures.items())])],
            "{failure}",
            "Hooks of hopwatch that failed",
        )

    def record(self, ledger: Any, ended: deque[tuple[str, str, int, Span]]) -> None:
        """Put the durations of what ended lately into histograms."""
        while ended:
            kind, outcome, duration, span = ended.popleft()
            # In the context of the hop, so that the SDK may keep it as an exemplar: its trace id is the cascade's.
            self._hops.record(
                duration / 1e9,
                {names.HOP_KIND: kind, names.HOP_OUTCOME: outcome},
                set_span_in_context(span, _NO_CONTEXT),
            )
        durations = ledger.durations
        for _ in range(2 * DURATIONS_A_TICK):  # a busy process pays a bounded price
            try:
                duration = durations.popleft()
            except IndexError:
                return
            if isinstance(duration, tuple):
                kind, duration = duration
            else:
                kind = "task"
            histogram = self._durations.get(kind)
            if histogram is not None:
                histogram.record(duration / 1e9)


def _open_by_kind(process: Process) -> list[tuple[int, dict[str, str]]]:
    counts: dict[str, int] = {}
    for hop in process.ledger.open_hops():
        counts[hop.kind] = counts.get(hop.kind, 0) + 1
    return [(count, {names.HOP_KIND: kind}) for kind, count in counts.items()]
