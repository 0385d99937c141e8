"""How do hops become spans? From the ledger to spans, markers, heartbeats and metrics.

Everything goes out by the application's own providers and exporter. Two threads of ours help: the ticker, which
looks at what is open about four times a second and sleeps while nothing is, and the flusher, which asks the provider
to export, for an exporter that hangs must hang nobody else.
"""

from __future__ import annotations

import math
import os
import random
import secrets
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import _logs, metrics, trace
from opentelemetry import context as otel_context
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from hopwatch import attributes as names
from hopwatch import hop_waits, records, waits
from hopwatch.ledger import DURATIONS_A_TICK
from hopwatch.meters import Meters
from hopwatch.process import current, encodable, failed, keeps_looking, uncounted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextvars import ContextVar

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span

    from hopwatch.blackbox import BlackBox
    from hopwatch.ledger import Entry, Kind
    from hopwatch.process import Process

SECOND: Final = 1_000_000_000
TICK: Final = 0.25
"""Seconds between two looks at what is open; a hop that is shorter never gets a marker."""
HEARTBEAT: Final = 5 * SECOND
FLUSH_EVERY: Final = SECOND
MARKERS_AT: Final = tuple(int(age * SECOND) for age in (TICK, 1, 10, 60, 300))
SAMPLING_BUDGET: Final = 2_000_000
"""Nanoseconds a tick for looking at what hops wait on."""

KINDS: Final[dict[str, SpanKind]] = {
    "request": SpanKind.SERVER,
    "send": SpanKind.CLIENT,
    "push": SpanKind.PRODUCER,
    "webhook": SpanKind.CONSUMER,
    "execution": SpanKind.INTERNAL,
    "task": SpanKind.INTERNAL,
    "event": SpanKind.INTERNAL,
    "lock": SpanKind.INTERNAL,
}


class Carrier:
    """What came in with a message: the hop that sent it, and the OpenTelemetry context around it."""

    __slots__ = ("cascade", "context", "hop", "mark")

    def __init__(self, cascade: str, hop: str, context: Context | None, *, mark: str = "") -> None:
        self.cascade = cascade
        self.hop = hop
        self.context = context
        self.mark = mark
        """What stands behind the hop: `push` where a push brought it, or which connection of the Agent Client Protocol did."""

    @property
    def push(self) -> bool:
        """Whether a push brought it: then what takes it is a webhook."""
        return self.mark == "push"


class Seed:
    """What an entry's span will be made from, until there is one."""

    __slots__ = ("carrier", "context", "links")

    def __init__(self, context: Context | None, carrier: Carrier | None, links: Sequence[Link]) -> None:
        self.context = context
        self.carrier = carrier
        self.links = links


class HopSpan:
    """A hop's span, and what was last said of it."""

    __slots__ = (
        "context",
        "lifted",
        "markers",
        "moves",
        "name",
        "record",
        "rests_on",
        "sampled",
        "since",
        "span",
        "told",
    )

    def __init__(
        self, span: Span, context: SpanContext, name: str, record: Span | None, *, lifted: bool = False
    ) -> None:
        self.span = span
        """What is current while the hop is."""
        self.name = name
        self.context = context
        self.record = record
        """What is exported at the hop's end, the same span as a rule; None where nothing is."""
        self.lifted = lifted
        """Whether it goes out though the sampler had it recorded only."""
        self.markers = 0
        self.told: dict[str, Any] | None = None
        self.moves: bool | None = None
        self.sampled = 0
        self.rests_on: list[Any] = []
        """Weak references to the futures that the last answer rests on."""
        self.since = 0.0
        """Since when it has rested on these, in Unix seconds."""

    def stands_still(self, rests_on: list[Any]) -> float | None:
        """Tell since when a hop rests on the same futures, in Unix seconds; None where that cannot be told.

        Each wait is a future of its own, so nothing that the answer rests on has moved since then.
        """
        last, self.rests_on = self.rests_on, rests_on
        if not rests_on or None in rests_on:
            return None
        # There is one weak reference to a future, and `last` keeps it: the same references are the same futures.
        if {*map(id, last)} != {*map(id, rests_on)}:
            self.since = math.ceil(time.time() * 1e6) / 1e6
        return self.since

    @property
    def recording(self) -> bool:
        """Whether anybody will hear of the hop."""
        return self.record is not None

    def around(self) -> Context:
        """A context in which this span is the current one."""
        return set_span_in_context(self.span, otel_context.get_current())


class Telemetry:
    """The ledger's observer in a real process."""

    def __init__(self, process: Process) -> None:
        self._process = weakref.ref(process)
        self._instance = process.instance
        self._pid = process.pid
        self._box = process.box
        self._successor: Any = None
        self._tracer = trace.get_tracer(names.SCOPE)
        self._always: Any = None if process.settings.sampling == "all" else self._tracer
        """The tracer of what is told beside the hops' own spans, once it is known."""
        # The low half is 1: a sampler that goes by a ratio of trace ids keeps it, whatever the ratio.
        self._own_trace = (secrets.randbits(64) or 1) << 64 | 1
        self._wake = threading.Event()
        self._idle = True
        self._flush = threading.Event()
        self._flushing = False
        self._waiting = 0
        """Records that no flush has been asked for yet."""
        self._flushed_at = 0
        self._beat_at = 0
        self._timers: waits.Timers | None = None
        self._to_look_at: list[Entry] = []
        """The open hops of the current round of sampling that have not been looked at yet, the oldest last."""
        self._ended: deque[tuple[str, str, int, Span]] = deque(maxlen=2 * DURATIONS_A_TICK)
        """Kind, outcome and nanoseconds of hops that closed, for a histogram."""
        self._started = False
        self._starting = threading.Lock()
        self.ticking = threading.Lock()
        """Held while the ticker looks at everything; who ends the process looks once more."""
        self.wakers: list[Callable[[], None]] = []
        """Called when a hop has closed, on any thread: who waits for that."""
        self._everything_out: threading.Event | None = None
        self._meters = Meters(self)
        self.lock_hold = self._meters.lock_hold
        self.queue_wait = self._meters.queue_wait
        self.queue_depth = self._meters.queue_depth

    # The ledger's observer -----------------------------------------------------------------------------------

    def opened(self, entry: Entry) -> None:
        """Start the span of a hop that is visible from now on, with its true start."""
        try:
            _admit(entry)
            self._start(entry)
            if self._box is not None:
                self._box.write(entry)
        except Exception:  # noqa: BLE001 - nothing of ours reaches the application
            failed("telemetry.opened")
        if not entry.id:
            # Its children still need a name for it; no record of it will come, so no verdict can be settled.
            entry.id = f"{random.getrandbits(64) or 1:016x}"
            entry.cascade = entry.cascade or f"{random.getrandbits(128) or 1:032x}"
        if self._idle:
            self._begin()

    def closed(self, entry: Entry) -> None:
        """End the hop's span at the time at which its own work was over."""
        for wake in self.wakers:
            wake()
        hop = entry.span
        if not isinstance(hop, HopSpan) or hop.record is None:
            return
        try:
            span = hop.record
            if entry.reason:
                entry.reason = encodable(entry.reason)
            _admit(entry)
            span.set_attributes(records.end_attributes(entry, self._instance))
            if entry.outcome == "failed" or entry.outcome == "abandoned":
                span.set_status(Status(StatusCode.ERROR, entry.reason))
            if hop.name != entry.name:
                span.update_name(entry.name)
            done = max(entry.done or 0, entry.started)
            if hop.lifted:
                # Exporters go by this flag. What begins below the span later shall not see it: the sampler may go by it, too.
                _settle(span, _sampled(hop.context))
                try:
                    span.end(end_time=done)
                finally:
                    _settle(span, hop.context)
            else:
                span.end(end_time=done)
            if self._box is not None:
                self._box.erase(entry)
            self._waiting += 1
            if len(self._ended) < DURATIONS_A_TICK:
                self._ended.append((entry.kind, entry.outcome or "finished", done - entry.started, span))
        except Exception:  # noqa: BLE001
            failed("telemetry.closed")
        if self._idle:
            self._begin()

    def late(self, parent: Entry) -> None:
        """Correct what the record of a closed hop declared."""
        try:
            self._tell(
                parent, "hopwatch.late", records.late_attributes(parent, self._instance), time.time_ns()
            )
        except Exception:  # noqa: BLE001
            failed("telemetry.late")

    def task_destroyed(self) -> None:
        """Count a task that was collected while pending."""
        self._meters.destroyed.add(1)

    def deadlock_found(self, hops: Iterable[Entry]) -> None:
        """Count a deadlock, and tell at once what the hops that it concerns wait on. Called by the ticker."""
        self._meters.deadlocks.add(1)
        for hop in hops:
            span = hop.span
            if isinstance(span, HopSpan) and not hop.closed:
                self._sample(hop, span, time.time_ns())
                self._mark(hop, span)
        self._flushed_at = 0

    def _start(self, entry: Entry) -> None:
        seed = entry.span if isinstance(entry.span, Seed) else None
        parent = entry.parent
        carrier = seed.carrier if seed else None
        if parent is not None:
            entry.cascade, entry.parent_id = parent.cascade, parent.id
        elif carrier is not None:
            entry.cascade, entry.parent_id, entry.remote = carrier.cascade, carrier.hop, True
        else:
            entry.parent_id = ""  # as it reads anyway, but quicker
        above = self._above(entry, seed)
        kind, links = KINDS[entry.kind], seed.links if seed else ()
        span = self._tracer.start_span(
            entry.name, context=above, kind=kind, links=links, start_time=entry.started
        )
        context = span.get_span_context()
        outer = trace.get_current_span(above).get_span_context()
        if not context.is_valid or context.span_id == outer.span_id:
            # No SDK: the interface hands back the context around it. The ledger counts all the same.
            context = SpanContext(
                int(entry.cascade, 16) if entry.cascade else random.getrandbits(128) or 1,
                random.getrandbits(64) or 1,
                is_remote=False,
                trace_flags=TraceFlags(0),
                trace_state=outer.trace_state,
            )
        entry.id = f"{context.span_id:016x}"
        entry.cascade = f"{context.trace_id:032x}"
        flags = context.trace_flags
        record = span if span.is_recording() else None
        lifted = False
        if self._always is not self._tracer and not flags & TraceFlags.SAMPLED:
            always = self._told_by()
            if always is self._tracer:
                pass
            elif record is not None:
                lifted = True  # the sampler says to record it and not to export it: its end changes that
            else:
                from hopwatch import sampling  # noqa: PLC0415 - only with HOPWATCH_SAMPLING=all

                again = sampling.start_as(
                    always,
                    context,
                    entry.name,
                    context=above,
                    kind=kind,
                    links=links,
                    start_time=entry.started,
                )
                if again.is_recording():  # unless the provider has switched our tracer off
                    record = again
        state = _with_hop(context.trace_state, entry)
        context = SpanContext(
            context.trace_id, context.span_id, is_remote=False, trace_flags=flags, trace_state=state
        )
        if record is span and _settle(span, context):
            visible = span
        else:
            visible = NonRecordingSpan(context)
            lifted = False  # nobody can mark this one for export
            if record is not None and record is not span:
                _settle(record, _sampled(context))
        entry.span = HopSpan(visible, context, entry.name, record, lifted=lifted)

    def _above(self, entry: Entry, seed: Seed | None) -> Context:
        """The OpenTelemetry context that is the parent of the hop's span: always one of the hop's own cascade."""
        context = seed.context if seed and seed.context is not None else None
        if entry.cascade:
            trace_id = int(entry.cascade, 16)
            if (
                context is not None
                and trace.get_current_span(context).get_span_context().trace_id == trace_id
            ):
                return context
            carrier = seed.carrier if seed else None
            brought = carrier.context if carrier is not None else None
            if (
                brought is not None
                and trace.get_current_span(brought).get_span_context().trace_id == trace_id
            ):
                return brought
            parent = entry.parent
            if parent is not None and isinstance(parent.span, HopSpan):
                return set_span_in_context(parent.span.span, context)
            remote = SpanContext(
                trace_id, int(entry.parent_id or "1", 16), is_remote=True, trace_flags=TraceFlags(1)
            )
            return set_span_in_context(NonRecordingSpan(remote), context)
        return context if context is not None else otel_context.get_current()

    def _tell(self, entry: Entry, name: str, attributes: dict[str, Any], at: int) -> None:
        hop = entry.span
        if not isinstance(hop, HopSpan) or not hop.recording:
            return
        context = set_span_in_context(NonRecordingSpan(hop.context), otel_context.Context())
        self._told_by().start_span(name, context=context, attributes=attributes, start_time=at).end(
            end_time=at
        )
        self._waiting += 1

    def _told_by(self) -> Any:
        """The tracer of markers, corrections and heartbeats: of all of them, or of those that the sampler keeps."""
        if self._always is not None:
            return self._always
        from hopwatch import sampling  # noqa: PLC0415 - only with HOPWATCH_SAMPLING=all

        always = sampling.keeping_all(self._tracer)
        if always is None:
            return self._tracer
        self._always = always
        return always

    # The ticker ------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._idle = False
        if not self._started:
            with self._starting:
                if not self._started:
                    self._started = True
                    try:
                        threading.Thread(target=self._ticker, name="hopwatch-ticker", daemon=True).start()
                        threading.Thread(target=self._flusher, name="hopwatch-flusher", daemon=True).start()
                    except RuntimeError:  # the interpreter is going down: no thread can be started any more
                        self._started = False
                        return
                    from hopwatch import exits  # noqa: PLC0415 - it needs this module

                    exits.begin()
        self._wake.set()

    def _ticker(self) -> None:
        while True:
            process = self._process()
            if process is None:
                return
            try:
                with self.ticking:
                    busy = self._tick(process)
                if self._box is not None:
                    self._look_for_the_dead(self._box)
            except Exception:  # noqa: BLE001
                failed("telemetry.tick")
                busy = True
            if busy:
                del process
                time.sleep(TICK)
                continue
            self._idle = True
            if len(process.ledger) or self._waiting:  # something opened just before we said that we are idle
                self._idle = False
                continue
            del process
            self._wake.wait()
            self._wake.clear()

    def _look_for_the_dead(self, box: BlackBox) -> None:
        """Tell of earlier processes of this agent that left hops open."""
        if self._successor is None:
            from hopwatch.reaping import Successor  # noqa: PLC0415 - not before there is a hop

            self._successor = Successor(box, self._told_by())
        self._successor.look()

    def _tick(self, process: Process) -> bool:
        """Look at everything once.

        Returns:
            Whether there is anything to look at again soon.
        """
        now = time.time_ns()
        ledger = process.ledger
        # A loop's timers are read at most once a tick.
        self._timers = waits.Timers()
        for look in process.each_tick:
            try:
                look(now)
            except Exception:  # noqa: BLE001
                failed(f"tick.{getattr(look, '__name__', look)}")
        self._reveal(process, now)
        hops = ledger.open_hops()
        # Hops are in the order of their start: short ones cost no heartbeat.
        if hops and now - hops[0].started >= MARKERS_AT[0] and now - self._beat_at >= HEARTBEAT:
            if not self._to_look_at:
                self._to_look_at = hops[::-1]
            self._look_at_some()
            self._beat(process, hops, now)
        elif self._to_look_at:
            self._look_at_some()
            if hops and not self._to_look_at:
                self._beat(process, hops, now)  # the last one was told before this round was through
        for hop in hops:
            span = hop.span
            if not isinstance(span, HopSpan) or hop.closed:
                continue
            age = now - hop.started
            due = (
                MARKERS_AT[span.markers]
                if span.markers < len(MARKERS_AT)
                else (span.markers - len(MARKERS_AT) + 2) * MARKERS_AT[-1]
            )
            if age >= due:
                while age >= due:
                    span.markers += 1
                    due = (
                        MARKERS_AT[span.markers]
                        if span.markers < len(MARKERS_AT)
                        else (span.markers - len(MARKERS_AT) + 2) * MARKERS_AT[-1]
                    )
                self._sample(hop, span, time.time_ns())
                self._mark(hop, span)
        self._meters.record(ledger, self._ended)
        if self._waiting and now - self._flushed_at >= FLUSH_EVERY and not self._flushing:
            self._flushed_at = now
            self._waiting = 0
            self._flushing = True
            self._flush.set()
        self._timers = None  # it keeps the handles that it has read
        return bool(hops or len(ledger) or self._waiting or any(each() for each in keeps_looking))

    def look(self) -> None:
        """Have the ticker look, though no hop may be open."""
        if self._idle:
            self._begin()

    def _reveal(self, process: Process, now: int) -> None:
        threshold = int(process.settings.reveal_after * SECOND)
        ledger = process.ledger
        overdue = ledger.overdue(now - threshold)
        if not overdue:
            return
        runners = {
            id(task)
            for hop in ledger.open_hops()
            if hop.runner is not None and (task := hop.runner()) is not None
        }
        for entry in overdue:
            parent = entry.parent
            outlived = parent is not None and parent.done is not None and now - parent.done > threshold
            if not outlived:
                # Another hop that the same task is in the middle of tells the story better.
                task = entry.runner() if entry.runner is not None else None
                if entry.quiet or (task is not None and id(task) in runners):
                    continue
                runners.add(id(task))
            revealed = ledger.reveal(entry)
            if revealed.origin is not None:
                records.set_location(revealed)

    def _look_at_some(self) -> None:
        """Sample what open hops wait on, within the budget of a tick; a marker goes out where it changed.

        Each heartbeat begins a round over all of them, and the ticks after it go on with it.
        """
        until = time.perf_counter_ns() + SAMPLING_BUDGET
        while self._to_look_at:
            hop = self._to_look_at.pop()
            span = hop.span
            if hop.closed or not isinstance(span, HopSpan):
                continue
            before = (span.told, span.moves)
            self._sample(hop, span, time.time_ns())
            if span.markers and (span.told, span.moves) != before and not hop.closed:
                self._mark(hop, span)
            if time.perf_counter_ns() > until:
                return

    def _sample(self, hop: Entry, span: HopSpan, now: int) -> None:
        try:
            rests_on: list[Any] = []
            span.told, span.moves = hop_waits.what_it_waits_on(hop, self._timers, rests_on)
            since = span.stands_still(rests_on)
            if since is not None and span.told is not None and (span.told.get("asks") or not span.moves):
                span.told["since"] = since
        except Exception:  # noqa: BLE001
            failed("telemetry.sample")
            span.told, span.moves = None, True
        span.sampled = now

    def _mark(self, hop: Entry, span: HopSpan) -> None:
        if self._box is not None:
            self._box.rewrite(hop)
        moves = span.moves is not False
        self._tell(
            hop,
            "hopwatch.open",
            records.open_attributes(hop, self._instance, span.told, moves=moves),
            span.sampled,
        )

    def _beat(self, process: Process, hops: list[Entry], now: int) -> None:
        self._beat_at = now
        looked = [hop.span.sampled or hop.started for hop in hops if isinstance(hop.span, HopSpan)]
        attributes = records.heartbeat_attributes(
            self._instance, self._pid, len(hops), process.ledger.dropped, min(looked, default=0)
        )
        self.tell_own("hopwatch.heartbeat", attributes)

    def tell_own(self, name: str, attributes: dict[str, Any]) -> None:
        """Send a record of the process itself, in its own trace."""
        above = SpanContext(self._own_trace, 1, is_remote=True, trace_flags=TraceFlags(1))
        context = set_span_in_context(NonRecordingSpan(above), otel_context.Context())
        at = time.time_ns()
        self._told_by().start_span(name, context=context, attributes=attributes, start_time=at).end(
            end_time=at
        )
        self._waiting += 1

    def tell_gone(self, entry: Entry, told: dict[str, Any] | None, reason: str) -> None:
        """Tell of an open hop that its process is about to be replaced."""
        self._tell(
            entry,
            "hopwatch.gone",
            records.gone_attributes(entry, self._instance, told, reason),
            time.time_ns(),
        )

    @property
    def started(self) -> bool:
        """Whether any hop has been opened since this process began."""
        return self._started

    def flush_everything(self, timeout: float) -> bool:
        """Have the flusher export all that has been recorded: spans, logs, metrics.

        Args:
            timeout: seconds to wait for it at most.

        Returns:
            Whether it was through in time.
        """
        if not self._started:
            return False
        done = self._everything_out = threading.Event()
        self._flush.set()
        return done.wait(timeout)

    def _flusher(self) -> None:
        while True:
            self._flush.wait()
            self._flush.clear()
            done, self._everything_out = self._everything_out, None
            if self._process() is None and done is None:
                return
            try:
                _force_flush(trace.get_tracer_provider())
                if done is not None:
                    _force_flush(_logs.get_logger_provider())
                    _force_flush(metrics.get_meter_provider())
            except Exception:  # noqa: BLE001
                failed("telemetry.flush")
            finally:
                self._flushing = False
                if done is not None:
                    done.set()


def _sampled(context: SpanContext) -> SpanContext:
    return SpanContext(
        context.trace_id,
        context.span_id,
        is_remote=False,
        trace_flags=TraceFlags(context.trace_flags | TraceFlags.SAMPLED),
        trace_state=context.trace_state,
    )


def _admit(entry: Entry) -> None:
    """Have a hop tell what is not counted where it is, if there is such a thing now."""
    lacking = uncounted()
    if lacking:
        entry.set(names.HOP_UNCOUNTED, lacking)


def _settle(span: Any, context: SpanContext) -> bool:
    """Give a span its context anew.

    The tracestate of a span is settled before its id is known, and OpenTelemetry (1.45) has no call to change it later. Every
    other instrumentation hands on the tracestate of the span that is current, so this is what makes our hop's id survive their
    spans.

    Returns:
        Whether the span has it. One of an SDK of another make may not; one that Logfire (5.2) has wrapped has.
    """
    inner = span
    for _ in range(4):
        known = getattr(inner, "__dict__", {})
        if "_context" in known:
            inner._context = context  # noqa: SLF001
            return span.get_span_context() is context
        inner = known.get("span")
        if inner is None:
            return False
    return False


def _force_flush(provider: Any) -> None:
    flush = getattr(provider, "force_flush", None)
    if flush is not None:
        flush()


def agent_name(unknown: str = "unknown_service") -> str:
    """What this process calls itself: `service.name` of the application's tracer provider, or of the environment.

    Args:
        unknown: what it is called where neither says.
    """
    try:
        resource: Any = getattr(trace.get_tracer_provider(), "resource", None)
        name = resource.attributes.get(names.SERVICE_NAME) if resource is not None else None
    except Exception:  # noqa: BLE001 - a provider of the application's own
        name = None
    return str(name or os.environ.get("OTEL_SERVICE_NAME") or unknown)


def _with_hop(state: TraceState, entry: Entry) -> TraceState:
    """The tracestate with our entry in front, as the specification wants it of whoever changes its own."""
    value = f"{entry.cascade}-{entry.id}"
    if entry.kind == "push":
        value += "-push"
    elif entry.kind == "send" and (entry.attributes or {}).get(names.RPC_SYSTEM) == names.JSONRPC:
        value += f"-{names.TRANSPORT_MARK}"
    if not state:
        return TraceState([(names.TRACESTATE_KEY, value)])
    items = [(key, each) for key, each in state.items() if key != names.TRACESTATE_KEY]
    return TraceState([(names.TRACESTATE_KEY, value), *items[:31]])


def begin(
    process: Process,
    kind: Kind,
    name: str,
    parent: Entry | None,
    *,
    carrier: Carrier | None = None,
    attributes: dict[str, Any] | None = None,
    runner: Any = None,
    origin: tuple[Any, int] | None = None,
    links: Sequence[Link] = (),
) -> Entry | None:
    """Open a hop, with the OpenTelemetry context that is current.

    Args:
        process: this process.
        kind: see `hopwatch.ledger.Kind`.
        name: the span's.
        parent: the hop of this process that it is done for.
        carrier: or what came in with the message that caused it.
        attributes: of its span.
        runner: weak reference to the asyncio task that does the work.
        origin: code object and instruction offset of the line that made it.
        links: to other spans.

    Returns:
        The hop, or None where the ledger is full.
    """
    if parent is not None and parent.ledger is not process.ledger:
        # Forked: the hop is one of the parent process.
        carrier = carrier or Carrier(parent.cascade, parent.id, None)
        parent = None

    def prepare(entry: Entry) -> None:
        entry.span = Seed(otel_context.get_current(), carrier, links)
        entry.runner = runner
        entry.origin = origin
        if attributes:
            entry.attributes = attributes

    return process.ledger.open(kind, name, parent, prepare=prepare)


class within:  # noqa: N801 - used as a function
    """Make a hop and its span the current ones for a block. Never around a `yield` of a generator that others step.

    Args:
        entry: the hop; None for a block that changes nothing.
        outgoing: a context variable that holds the hop meanwhile: whose HTTP request comes next.
    """

    __slots__ = ("_around", "_entry", "_hop", "_out", "_outgoing")

    def __init__(self, entry: Entry | None, outgoing: ContextVar[Entry | None] | None = None) -> None:
        self._entry = entry
        self._outgoing = outgoing

    def __enter__(self) -> None:
        entry = self._entry
        if entry is None:
            return
        self._hop = current.set(entry)
        self._around = otel_context.attach(entry.span.around()) if isinstance(entry.span, HopSpan) else None
        self._out = self._outgoing.set(entry) if self._outgoing is not None else None

    def __exit__(self, *_: object) -> None:
        # In another context (a coroutine that was collected is closed in one) nothing of ours is set.
        if self._entry is None or current.get() is not self._entry:
            return
        try:
            if self._out is not None and self._outgoing is not None:
                self._outgoing.reset(self._out)
            if self._around is not None:
                otel_context.detach(self._around)
            current.reset(self._hop)
        except ValueError:  # stepped in another context than it was entered in
            failed("within")
