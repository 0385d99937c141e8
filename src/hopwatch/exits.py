"""What was pending when this process, its runner or its loop ended, and who is told of it, within a bound?

A way out is noted at the moment at which it begins, before anything is cancelled: then it is still known what each task
waits on. What is pending then, and is cut off by it, is abandoned with a reason that names the way out. What ends by
itself after all has ended as it says.

| way out | noted |
|---|---|
| `asyncio.run`, `Runner.close` | before the runner cancels what is left (`instrumentation.ends`) |
| `loop.close()` | before the loop is closed (`instrumentation.ends`) |
| Ctrl-C under a runner | before it cancels the main task (`instrumentation.ends`) |
| `os.execv` and its like | before the process is replaced (`instrumentation.ends`) |
| SIGTERM, where nobody else handles it | in a handler of ours, which then lets the signal do its work |
| any other end that Python sees | by `atexit`; in children of multiprocessing, which leave it out, by a `Finalize` |
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import _logs, metrics, trace

from hopwatch import attributes as names
from hopwatch import hop_waits, records, telemetry, waits
from hopwatch import process as hopwatch_process
from hopwatch.ledger import Entry, Note
from hopwatch.process import failed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hopwatch.ledger import Ledger, Outcome
    from hopwatch.process import Process

PENDING: Final = "pending at shutdown"
DESTROYED: Final = "the task was destroyed while pending, for nothing kept a reference to it"
NOTHING_PENDING: Final = 0.2
"""Seconds that the end of a process is held up at most if nothing was pending."""
MAX_TOLD: Final = 1_000
"""How many entries without a record of their own get one at the end; what is beyond is counted as dropped on its hop."""
FLUSH_AFTER: Final = 500
"""Records between two flushes at the end: a batch processor holds 2,048 and throws away what comes after."""
OUTLIVES: Final = 1_000_000_000
"""Nanoseconds after which a task that was asked to cancel, and is pending still, is told of."""
ECHO: Final = 1.0
"""Seconds within which another SIGTERM is taken for the same: `timeout` sends it to its child, and to the group that this is in."""
WAKE_EVERY: Final = 1_000_000_000
MAX_ASKED: Final = 64
"""How many open hops are asked whether the main thread does their work."""
MAX_DEATHS: Final = 10_000
REPORT_EVERY: Final = 20
"""The report is written for runners and loops that end at most that many times as seldom as writing it takes."""
# As they are before `instrumentation.ends` replaces them.
_set_handler: Final = signal.signal
_get_handler: Final = signal.getsignal

Sampled = dict[str, Any] | None


class _State:
    """What is known of this process's end; a forked child begins with an empty one."""

    def __init__(self) -> None:
        self.forked = False
        self.leaving = False
        """A signal is ending the process: the next one does so at once, but for the echo of the same."""
        self.got_sigterm = -math.inf
        """When SIGTERM came, by the monotonic clock."""
        self.deaths: deque[dict[str, Any]] = deque(maxlen=MAX_DEATHS)
        """What has been abandoned at a way out, as the report shows it."""
        self.counts: Counter[str] = Counter()
        """How many of each kind."""
        self.cut: deque[tuple[Entry, Sampled]] = deque()
        """Noted entries that have been cut off and are not told of yet."""
        self.unnamed: deque[tuple[Entry, Sampled]] = deque()
        """Those of them that had no id yet when they were to be told of."""
        self.asked: dict[int, tuple[Any, int]] = {}
        """Open hops whose task has been asked to cancel, by id: the entry, and since when that is known; 0 once told."""
        self.finalized_by_multiprocessing = False
        self.provider: Any = None
        self.wake_due = 0
        """When the main thread's loop is woken next, in Unix nanoseconds."""
        self.report_due = 0.0
        """When the report may be written anew before the end, by the monotonic clock: it is all of it each time."""
        self.told_runners: set[int] = set()
        """Tasks that a death report was made of."""


_state = _State()
_meters: dict[str, Any] = {}


class Fate:
    """What an entry's end is, other than `finished`, once a way out has been noted that will cut it off."""

    __slots__ = ("sampled", "why")

    def __init__(self, why: str, sampled: Sampled) -> None:
        self.why = why
        self.sampled = sampled

    def __call__(self, entry: Entry, outcome: Outcome, reason: str | None) -> tuple[Outcome, str | None]:
        """Say that the entry was abandoned, and remember it for the report."""
        if outcome == "abandoned":  # destroyed while pending, say: that reason is the better one
            return outcome, reason
        try:
            _describe(entry, self.sampled)
            how = f"; it then failed ({reason})" if outcome == "failed" else ""
            _state.cut.append((entry, self.sampled))
            return "abandoned", f"{self.why}{_awaited(self.sampled)}{how}"
        except Exception:  # noqa: BLE001
            failed("exits.fate")
            return "abandoned", self.why


def _awaited(sampled: Sampled) -> str:
    if not sampled:
        return ""
    if sampled.get("kind") == "running":
        return f"; it was running{_where(sampled)}"
    return f"; it awaited {phrase_of(sampled)}"


def phrase_of(sampled: dict[str, Any]) -> str:
    """What somebody waits on and where, as the end of a sentence."""
    what, where = str(sampled.get("what", "something")), _where(sampled)
    return what if where and what.endswith(where) else f"{what}{where}"


def _where(sampled: dict[str, Any]) -> str:
    return f" at {sampled['file']}:{sampled['line']}" if sampled.get("file") else ""


def _describe(entry: Entry, sampled: Sampled) -> None:
    if names.CODE_FILE_PATH not in (entry.attributes or ()):
        records.set_location(entry)
    if sampled:
        entry.set(names.HOP_WAITS, records.waits_text(sampled))


# What is pending -------------------------------------------------------------------------------------------------


def pending_entries(ledger: Ledger) -> list[Entry | Note]:
    """What has not ended of its own: open hops and what cannot be seen outside, oldest first."""
    found: list[Entry | Note] = [
        each for each in (*ledger.open_hops(), *ledger.invisible()) if each.done is None
    ]
    found.sort(key=lambda each: each.started)
    return found


def sampled_all(found: Iterable[Entry | Note], seconds: float) -> dict[int, Sampled]:
    """What each of them waits on, by id, as far as the time allows."""
    timers = waits.Timers()
    until = time.monotonic() + seconds
    out: dict[int, Sampled] = {}
    for each in found:
        if time.monotonic() > until:
            break
        out[id(each)] = sample(each, timers)
    return out


def sample(noted: Entry | Note, timers: waits.Timers | None = None) -> Sampled:
    """What one entry waits on, or None where that is not known."""
    try:
        if isinstance(noted, Entry) and noted.visible:
            told = hop_waits.what_it_waits_on(noted, timers)[0]
        else:
            found = hop_waits.of_entry(noted, timers)
            told = found[0] if found is not None else None
        return waits.with_times(told) if told is not None else None
    except Exception:  # noqa: BLE001
        failed("exits.sample")
        return None


def location_of(noted: Entry | Note) -> str | None:
    """`file:line function`: where it was made, or, of an execution, where it is defined."""
    if isinstance(noted, Note):
        origin: Any = (noted.code, noted.offset)
    else:
        said = noted.attributes or {}
        if names.CODE_FILE_PATH in said:
            function = said.get(names.CODE_FUNCTION_NAME)
            place = f"{said[names.CODE_FILE_PATH]}:{said.get(names.CODE_LINE_NUMBER, 0)}"
            return f"{place} {function}" if function else place
        origin = noted.origin
    if origin is None:
        return None
    code = origin[0]
    return f"{code.co_filename}:{records.line_of(origin)} {getattr(code, 'co_qualname', code.co_name)}"


def held_by(hop: Entry) -> str:
    """What the items are called that a hop only counts."""
    return "an item in a queue" if hop.held == 1 else f"{hop.held} items in queues"


# A runner or a loop ends -----------------------------------------------------------------------------------------


def note(loop: Any, tasks: set[Any] | None, why: str, extra: Iterable[Entry] = ()) -> list[Entry]:
    """Note what is pending on an event loop that is about to end; call `cut` once it has.

    Args:
        loop: the loop.
        tasks: those that will be cancelled; None for all of the loop.
        why: the reason that an entry gets that is cut off.
        extra: entries that belong to the loop though no task does their work.

    Returns:
        The entries, each of which is abandoned if it ends otherwise than by finishing.
    """
    process = hopwatch_process.here()
    ledger = process.ledger
    if not len(ledger):
        return []
    refresh()
    _state.told_runners.clear()
    found: list[Entry | Note] = []
    for each in pending_entries(ledger):
        # A wait for a lock is what its task does, and the task is there too.
        task = each.runner() if each.runner is not None and each.kind != "lock" else None
        if (
            task is not None
            and not task.done()
            and (task in tasks if tasks is not None else runs_on(task, loop))
        ):
            found.append(each)
    found.extend(each for each in extra if each.done is None)
    looked = sampled_all(found, process.settings.shutdown_timeout / 3)
    noted: list[Entry] = []
    for each in found:
        entry = ledger.promote(each) if isinstance(each, Note) else each
        if entry.done is None:
            if entry.fate is None:
                entry.fate = Fate(f"{PENDING}: {why}", looked.get(id(each)))
            noted.append(entry)
    return noted


def runs_on(task: Any, loop: Any) -> bool:
    """Tell whether a task is one of this loop's."""
    get_loop = getattr(task, "get_loop", None)
    return get_loop is not None and get_loop() is loop


def cut(noted: Iterable[Entry], way: str, *, ended: bool) -> None:
    """Tell of what was cut off, once the runner or loop has ended.

    Args:
        noted: what `note` returned.
        way: what ended: `runner` or `loop`.
        ended: whether nothing of it can go on any more; otherwise what is open still has its own end before it.
    """
    if ended:
        for entry in noted:
            if entry.done is None:
                entry.finish("cancelled")  # its fate makes it abandoned
    if _tell_cut():
        _write_report(way)


def _tell_cut() -> bool:
    """Tell of what has been cut off; one that another thread is making visible just now waits for the next call, once."""
    told = False
    for each in _taken(_state.unnamed):
        _died(*each)
        told = True
    for entry, sampled in _taken(_state.cut):
        if entry.id:
            _died(entry, sampled)
            told = True
        else:
            _state.unnamed.append((entry, sampled))
    return told


def _taken(waiting: deque[tuple[Entry, Sampled]]) -> Iterator[tuple[Entry, Sampled]]:
    """Take out what is there, one by one; another thread may be at it too."""
    while waiting:
        try:
            yield waiting.popleft()
        except IndexError:
            return


def _died(entry: Entry, sampled: Sampled) -> None:
    """Write down one that was abandoned at a way out, and tell of it by a log event: one for each task."""
    _state.counts[entry.kind] += 1
    _state.deaths.append(_as_reported(entry, sampled, entry.reason))
    _count(names.METRIC_PENDING, entry.kind)
    task = entry.runner() if entry.runner is not None else None
    if entry.kind in ("event", "lock") or len(_state.told_runners) >= MAX_TOLD:
        return
    if task is not None:
        if id(task) in _state.told_runners:
            return
        _state.told_runners.add(id(task))
    tell(names.EVENT_TASK_NEVER_FINISHED, f"{entry.name}: {entry.reason}", entry)


def _as_reported(entry: Entry, sampled: Sampled, reason: str | None) -> dict[str, Any]:
    """One that was pending, in the form of the report."""
    return {
        "kind": entry.kind,
        "name": entry.name,
        "id": entry.id,
        "cascade": entry.cascade,
        "location": location_of(entry),
        "waits_on": sampled,
        "reason": reason,
    }


def _count(metric: str, kind: str) -> None:
    counter = _meters.get(metric)
    if counter is not None:
        counter.add(1, {names.HOP_KIND: kind})


def tell(event: str, body: str, entry: Entry | None, attributes: Any = None, *, bad: bool = True) -> None:
    """Send a log event, in the trace of a hop."""
    try:
        level = _logs.SeverityNumber.ERROR if bad else _logs.SeverityNumber.INFO
        said = entry.attributes if entry is not None else None
        _logs.get_logger(names.SCOPE).emit(
            _logs.LogRecord(
                timestamp=time.time_ns(),
                trace_id=int(entry.cascade or "0", 16) if entry is not None else 0,
                span_id=int(entry.id or "0", 16) if entry is not None else 0,
                severity_text=level.name,
                severity_number=level,
                body=body,
                attributes={"event.name": event, **(said or {}), **(attributes or {})},
            )
        )
    except Exception:  # noqa: BLE001
        failed("exits.tell")


# Cancellations that do not end what they should ------------------------------------------------------------------


def ending(entry: Entry, task: Any) -> None:
    """Tell of a task that finishes though it was asked to cancel. Called for tasks that have an entry, before it ends."""
    asked = getattr(task, "cancelling", None)  # from Python 3.11
    if asked is None or not asked():
        return
    if not entry.visible:
        entry.ledger.reveal(entry)
    records.set_location(entry)
    entry.set(names.SWALLOWED, True)
    _count(names.METRIC_SWALLOWED, entry.kind)
    tell(names.EVENT_SWALLOWED, f"{entry.name} was asked to cancel, and finished as if nobody had", entry)


def close_ended(noted: Entry | Note) -> bool:
    """Close the entry of a task that has ended, whose done callback has not come or will never; called again it does nothing.

    The callbacks of a task are called at the next turn of its loop, and a loop that has been stopped may have none.

    Returns:
        Whether it is closed: False where the task is pending, or gone, or there is none.
    """
    task = ended_task(noted)
    if task is None:
        return False
    entry = noted.parent.ledger.promote(noted) if isinstance(noted, Note) else noted
    if entry.done is None:
        close_as(entry, task)
    return True


def ended_task(noted: Entry | Note) -> Any:
    """The task with which an entry ends, if it has ended: None for what only one of its steps does, as a cascade in a `with`."""
    if noted.runner is None or not (isinstance(noted, Note) or noted.noted):
        return None
    task = noted.runner()
    return task if task is not None and task.done() else None


def close_as(entry: Entry, task: Any) -> None:
    """Close an entry as its task has ended."""
    # Not task.exception(): that would take away asyncio's "Task exception was never retrieved".
    error = task._exception  # noqa: SLF001
    if task.cancelled():
        entry.finish("cancelled")
    elif error is None:
        ending(entry, task)
        entry.finish()
    else:
        records.set_location(entry)
        entry.finish("failed", type(error).__name__)


def look(now: int) -> None:
    """Tell of what was cut off lately, and of tasks that outlive a cancellation. Called by the ticker."""
    _tell_cut()
    _wake_main_loop(now)
    asked: dict[int, tuple[Any, int]] = {}
    for hop in hopwatch_process.here().ledger.open_hops():
        task = hop.runner() if hop.runner is not None and hop.done is None else None
        cancelling = getattr(task, "cancelling", None)
        if cancelling is None or task is None or task.done() or not cancelling():
            continue
        since = _state.asked.get(id(hop), (hop, now))[1]
        if since and now - since > OUTLIVES:
            since = 0
            hop.set(names.OUTLIVED, True)
            _count(names.METRIC_OUTLIVED, hop.kind)
            tell(names.EVENT_OUTLIVED, f"{hop.name} was asked to cancel, and is pending still", hop)
        asked[id(hop)] = (hop, since)
    _state.asked = asked
    refresh()


def _wake_main_loop(now: int) -> None:
    """Have the main thread's loop turn once a second, so that a SIGTERM for our handler is not overlooked.

    A signal that comes just before the loop goes to sleep sets a flag that nobody looks at before it wakes up. The default
    action would have ended the process.
    """
    if now < _state.wake_due or _get_handler(signal.SIGTERM) is not on_sigterm:
        return
    _state.wake_due = now + WAKE_EVERY
    main = threading.main_thread().ident
    for hop in hopwatch_process.here().ledger.open_hops()[:MAX_ASKED]:
        task = hop.runner() if hop.runner is not None else None
        get_loop = getattr(task, "get_loop", None)
        loop = get_loop() if get_loop is not None else None
        if loop is not None and getattr(loop, "_thread_id", None) == main:  # uvloop sees to that itself
            with contextlib.suppress(RuntimeError):  # it has been closed
                loop.call_soon_threadsafe(_nothing)
            return


def _nothing() -> None:
    pass


# The process ends ------------------------------------------------------------------------------------------------


def leave(way: str, why: str) -> None:
    """Abandon what is pending, tell of it, and have all that was recorded exported, within the bound.

    Args:
        way: `exit`, `SIGTERM` and the like.
        why: the same for a reader, as the reason of what was pending.
    """
    process = hopwatch_process.here()
    until = time.monotonic() + process.settings.shutdown_timeout
    _state.told_runners.clear()
    if not process.telemetry.started and not len(process.ledger):
        _write_report(way)
        return
    box = process.box
    if box is not None:
        box.seal(f"{PENDING}: {why}")
    # The ticker shall not look at the same time; one that hangs does not hold us up.
    mine = process.telemetry.ticking.acquire(timeout=min(0.25, process.settings.shutdown_timeout))
    try:
        _look_once_more(process)
        _abandon_all(process, f"{PENDING}: {why}", until)
    finally:
        if mine:
            process.telemetry.ticking.release()
    _tell_cut()
    if _state.unnamed:
        _tell_cut()
    _sum_up(process, way)
    _write_report(way)
    left = max(0.0, until - time.monotonic())
    out = process.telemetry.flush_everything(left if _state.counts else min(left, NOTHING_PENDING))
    if box is not None and (out or box.empty):
        box.remove()


def _look_once_more(process: Process) -> None:
    now = time.time_ns()
    for each in process.each_tick:
        try:
            each(now)
        except Exception:  # noqa: BLE001
            failed(f"tick.{getattr(each, '__name__', each)}")


def _abandon_all(process: Process, why: str, until: float) -> None:
    ledger = process.ledger
    room = MAX_TOLD
    ends = 0
    for _ in range(3):  # what other threads, or the ends of the first ones, have opened meanwhile
        hops = ledger.open_hops()
        if not hops:
            return
        found = pending_entries(ledger)
        looked = sampled_all(found, max(0.0, until - time.monotonic()) / 3)
        held = {id(hop): held_told(hop) for hop in hops if hop.held}
        # From the inside out, so that nothing is late: first what is below hops, then the newest hops.
        inside = [each for each in found if not each.visible]
        outside = [each for each in reversed(found) if each.visible]
        for each in [*inside[:room], *outside]:
            ends += _abandon(each, why, looked.get(id(each)))
            if ends >= FLUSH_AFTER:
                ends = 0
                process.telemetry.flush_everything(max(0.0, until - time.monotonic()) / 2)
        room -= min(room, len(inside))
        for hop in hops:
            _empty(hop, why, held.get(id(hop)))


def _abandon(noted: Entry | Note, why: str, sampled: Sampled) -> int:
    try:
        if close_ended(noted):
            return 0
        entry = noted.parent.ledger.promote(noted) if isinstance(noted, Note) else noted
        if entry.done is not None:
            return 0
        _describe(entry, sampled)
        if entry.kind in ("send", "push") and names.PEER not in (entry.attributes or ()):
            entry.set(names.PEER, "unknown")
        gone = entry.kind == "task" and entry.runner is not None and entry.runner() is None
        entry.finish("abandoned", DESTROYED if gone else why + _awaited(sampled))
        _state.cut.append((entry, sampled))
    except Exception:  # noqa: BLE001
        failed("exits.abandon")
        return 0
    return 1


def held_told(hop: Entry) -> Sampled:
    """What the items wait on that a hop only counts; None where there are none that somebody else does not tell of."""
    if hop_waits.explain_held is None:
        return None
    try:
        parts = hop_waits.explain_held(hop, None)
    except Exception:  # noqa: BLE001
        failed("exits.held")
        return None
    if not parts:
        return None
    moves = any(moves for _, moves in parts)
    return {"kind": "gather", "what": held_by(hop), "moves": moves, "of": [part for part, _ in parts]}


def _empty(hop: Entry, why: str, sampled: Sampled) -> None:
    """Abandon what a hop only counts: items in queues, and entries for which there was no room in the report."""
    try:
        ledger = hop.ledger
        count = hop.held
        if count > 0 and not hop.closed:
            entry = ledger.open("event", held_by(hop), hop)
            if entry is not None:
                entry.set(names.ITEMS, count)
                _describe(entry, sampled)
                _state.cut.append((entry, sampled))
                entry.finish("abandoned", why)
            hop.held = 0
        for each in ledger.below(hop, ledger.capacity):
            ledger.lose(hop, each)
        ledger.settle(hop)
    except Exception:  # noqa: BLE001
        failed("exits.empty")


def _sum_up(process: Process, way: str) -> None:
    counts = dict(_state.counts)
    attributes = records.shutdown_attributes(process.instance, process.pid, way, counts)
    try:
        process.telemetry.tell_own("hopwatch.shutdown", attributes)
    except Exception:  # noqa: BLE001
        failed("exits.shutdown")
    what = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing"
    said = {key: value for key, value in attributes.items() if key != names.RECORD}
    tell(names.EVENT_SHUTDOWN, f"{way}: {what} was pending", None, said, bad=bool(counts))


def _write_report(way: str) -> None:
    """Write what was pending into the file that `HOPWATCH_REPORT` names, whole or not at all."""
    process = hopwatch_process.here()
    path = process.settings.report
    began = time.monotonic()
    if not path or (way in ("runner", "loop") and began < _state.report_due):
        return
    if _state.forked:
        path += f".{process.pid}"
    beside = f"{path}.{process.pid}.tmp"
    try:
        said = {
            "ended": way,
            "pid": process.pid,
            "agent": telemetry.agent_name(),
            "instance": process.instance,
            "pending": list(_state.deaths),
        }
        with open(beside, "w", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - a str, as it was given
            json.dump(said, file, ensure_ascii=False)
        os.replace(beside, path)  # noqa: PTH105
        now = time.monotonic()
        _state.report_due = now + REPORT_EVERY * (now - began)
    except Exception:  # noqa: BLE001
        failed("exits.report")
        with contextlib.suppress(OSError):
            os.unlink(beside)  # noqa: PTH108


def replaced() -> None:
    """Tell that this process is about to be replaced by another program, without ending anything: that may fail."""
    process = hopwatch_process.here()
    if not process.telemetry.started:
        return
    until = time.monotonic() + process.settings.shutdown_timeout
    if process.telemetry.ticking.acquire(timeout=min(0.25, process.settings.shutdown_timeout)):
        try:
            _look_once_more(process)  # threads and cancelled timers end without telling
        finally:
            process.telemetry.ticking.release()
    ledger = process.ledger
    why = f"{PENDING}: the process was replaced by another program (execv)"
    found = [each for each in pending_entries(ledger) if not close_ended(each)]
    looked = sampled_all(found, process.settings.shutdown_timeout / 3)
    counts = Counter[str]()
    deaths: list[dict[str, Any]] = []
    for each in found[:MAX_TOLD]:
        sampled = looked.get(id(each))
        entry = ledger.reveal(each)
        if entry.done is not None:
            continue
        if entry.origin is not None:
            records.set_location(entry)
        reason = why + _awaited(sampled)
        process.telemetry.tell_gone(entry, sampled, reason)
        counts[entry.kind] += 1
        deaths.append(_as_reported(entry, sampled, reason))
    for hop in ledger.open_hops():
        if hop.done is not None or hop.held:
            # Only what it started goes on: its own end is told too, for nobody else will.
            process.telemetry.tell_gone(hop, held_told(hop), why)
            counts["event"] += hop.held
    kept, known = _state.deaths.copy(), _state.counts.copy()
    try:
        _state.deaths.extend(deaths)
        _state.counts.update(counts)
        _sum_up(process, "execv")
        _write_report("execv")
        left = max(0.0, until - time.monotonic())
        process.telemetry.flush_everything(left if _state.counts else min(left, NOTHING_PENDING))
    finally:
        _state.deaths, _state.counts = kept, known


# Atexit, SIGTERM, multiprocessing --------------------------------------------------------------------------------


def begin() -> None:
    """See to it that the end of this process is told. Called when its first hop opens, and when asyncio is instrumented."""
    try:
        meter = metrics.get_meter(names.SCOPE)
        if not _meters:
            _meters[names.METRIC_PENDING] = meter.create_counter(
                names.METRIC_PENDING, "{task}", "What was pending when the process ended"
            )
            _meters[names.METRIC_SWALLOWED] = meter.create_counter(
                names.METRIC_SWALLOWED, "{task}", "Tasks that finished though they were asked to cancel"
            )
            _meters[names.METRIC_OUTLIVED] = meter.create_counter(
                names.METRIC_OUTLIVED,
                "{task}",
                "Tasks that were pending a second after they were asked to cancel",
            )
        hopwatch_process.on_tick(look)
        refresh(first=True)
        take_sigterm()
        _finalize_with_multiprocessing()
    except Exception:  # noqa: BLE001
        failed("exits.begin")


def refresh(*, first: bool = False) -> None:
    """Have our report at the end come before the shutdown of the application's provider, though that is a newer one."""
    provider = trace.get_tracer_provider()
    if first or provider is not _state.provider:
        _state.provider = provider
        atexit.unregister(_at_exit)
        atexit.register(_at_exit)


def _at_exit() -> None:
    try:
        way, why = "exit", "the interpreter exited"
        error = getattr(sys, "last_value", None)
        if isinstance(error, KeyboardInterrupt):
            way, why = "SIGINT", "SIGINT"
        elif error is not None:
            way, why = "exception", f"the interpreter exited by {type(error).__name__}"
        leave(way, why)
    except KeyboardInterrupt:
        return  # whoever asks once more does not want to wait; it would be printed
    except Exception:  # noqa: BLE001 - it would be printed
        failed("exits.atexit")


def _finalize_with_multiprocessing() -> None:
    """In a child of multiprocessing, which leaves by `os._exit`, have its own last step be ours."""
    parent = getattr(sys.modules.get("multiprocessing.process"), "parent_process", None)
    if parent is None or parent() is None or _state.finalized_by_multiprocessing:
        return
    from multiprocessing.util import Finalize  # noqa: PLC0415 - only where it is loaded

    Finalize(None, _at_exit, exitpriority=0)
    _state.finalized_by_multiprocessing = True


def take_sigterm() -> None:
    """Handle SIGTERM where nobody does: report, flush, and let it end the process as it would have."""
    if (
        threading.current_thread() is not threading.main_thread()
        or os.getpid() == 1  # the kernel keeps a SIGTERM with the default action from the first process
        or not hopwatch_process.here().settings.signals
        or _get_handler(signal.SIGTERM) is not signal.SIG_DFL
    ):
        return
    try:
        _set_handler(signal.SIGTERM, on_sigterm)
    except ValueError:  # not the main interpreter
        return


def on_sigterm(number: int, _: Any) -> None:
    """Tell what SIGTERM cuts off, then die of it."""
    if time.monotonic() - _state.got_sigterm < ECHO:
        return
    _state.got_sigterm = time.monotonic()
    try:
        process = hopwatch_process.here()
        if not _state.leaving and (process.telemetry.started or process.settings.report):
            _state.leaving = True
            # The main thread may hold any lock just now: what needs one is done by another thread, which has not
            # got it. A second SIGTERM comes in between and ends the process at once.
            done = _thread.allocate_lock()
            done.acquire()
            try:
                _thread.start_new_thread(_leave_by_signal, (done,))
            except RuntimeError:  # the interpreter is shutting down, and makes no threads any more
                _leave_by_signal(done)
            done.acquire(timeout=process.settings.shutdown_timeout + 0.1)
    except Exception:  # noqa: BLE001
        failed("exits.sigterm")
    finally:
        with contextlib.suppress(ValueError):  # another thread than the main one
            _set_handler(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _leave_by_signal(done: Any) -> None:
    try:
        leave("SIGTERM", "SIGTERM")
    except Exception:  # noqa: BLE001
        failed("exits.sigterm")
    finally:
        done.release()


def forget() -> None:
    """Let go of the signal and of atexit: nothing is instrumented any more."""
    atexit.unregister(_at_exit)
    if threading.current_thread() is threading.main_thread() and _get_handler(signal.SIGTERM) is on_sigterm:
        _set_handler(signal.SIGTERM, signal.SIG_DFL)


def _before_fork() -> None:
    # A signal that has a handler in Python only sets a flag, which a child forgets when it begins. With the default action
    # it would have ended that child: so it has to wait until the child can handle it.
    _forking.mask = None
    try:
        if _get_handler(signal.SIGTERM) is on_sigterm:
            _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    except Exception:  # noqa: BLE001
        failed("exits.fork")


def _after_fork() -> None:
    mask, _forking.mask = getattr(_forking, "mask", None), None
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _in_child() -> None:
    # What the parent process leaves behind is told there.
    global _state  # noqa: PLW0603
    _state = _State()
    _state.forked = True
    # What opens in the child has an end of its own; its first hop calls `begin`, which finds the signal taken.
    _after_fork()


_forking: Final = threading.local()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)
