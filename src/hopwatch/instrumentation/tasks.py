"""Which asyncio tasks does a cascade still have? Task creation, and tasks that are collected while pending."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
from collections import deque
from time import time_ns
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from opentelemetry import _logs, trace
from opentelemetry import context as otel_context

from hopwatch import attributes as names
from hopwatch import exits, waits
from hopwatch import process as hopwatch_process
from hopwatch.instrumentation.service import judge, work
from hopwatch.ledger import DURATIONS_A_TICK, Entry, Note
from hopwatch.process import current, failed, machinery
from hopwatch.records import set_location
from hopwatch.telemetry import HopSpan

if TYPE_CHECKING:
    from hopwatch.instrumentation import Patches
    from hopwatch.ledger import Ledger, Outcome

_ASYNCIO: Final = os.path.dirname(asyncio.__file__) + os.sep  # noqa: PTH120 - compared with co_filename, a str
_FRAMES_TO_SKIP: Final = 12
"""How many frames that are not the application's may stand between a call site and `create_task` (gather: ensure_future, _ensure_future; anyio: start, our own _spawn, _spawn, and the pytest plugin's create_task)."""
_TRANSPARENT: Final = (
    f"{os.sep}opentelemetry{os.sep}instrumentation{os.sep}",
    f"{os.sep}wrapt{os.sep}",
    f"{os.sep}anyio{os.sep}",
)
_OURS: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep  # noqa: PTH120 - as _ASYNCIO
_DEMO: Final = f"{_OURS}demo{os.sep}"
"""The agents of the demo are applications as any other."""
_SDK_LOOPS: Final = frozenset(
    {"ActiveTask._run_producer", "ActiveTask._run_consumer", "EventQueueSource._dispatch_loop"}
)
_RECEPTION: Final = ".run_asgi"
"""How the coroutine ends that a server runs for each request."""
_COVERED: Final = frozenset({"EventQueueSource._deliver_to_sink", "EventQueueSink._put_internal"})
"""What these loops make and await while they have an event, which is counted until they call `task_done`."""
_ASYNCIO_CREATE_TASK: Final = asyncio.tasks.create_task.__code__
MAX_CODE: Final = 8192
_inside: dict[int, Any] = {}
_outside: dict[int, Any] = {}
"""Code objects by their id, which is theirs as long as they are kept here: asyncio's, and everybody else's."""
_get = current.get
_new = object.__new__
_module_at: Any = getattr(sys, "_getframemodulename", None)
"""The name of a caller's module without an object of its frame; from Python 3.12."""
_getframe = sys._getframe  # noqa: SLF001 - the documented way to a caller that costs 60 ns, where inspect costs 30 us
destroyed: deque[tuple[TaskNote, dict[str, Any]]] = deque()
"""Tasks that were collected while pending, as told by the loop's exception handler; the ticker takes them from here. At most as many as the ledger holds."""
_closings: dict[int, tuple[Entry, Any]] = {}
"""Async generators that a loop is about to close, each with a weak reference to the loop."""


class TaskNote(Note):
    """The note of an asyncio task; it is the task's done callback itself, which saves one object a task."""

    __slots__ = ()

    def __call__(self, task: Any) -> None:
        """Close it: the task is done."""
        try:
            # Not task.exception(): that would take away asyncio's "Task exception was never retrieved".
            error = task._exception  # noqa: SLF001
            hop: Any = self.parent
            ledger = hop.ledger
            if error is not None or self.entry is not None:
                self._end(ledger, task)
                return
            live = hop.live
            try:
                live.remove(self)
            except KeyError:  # the ticker is making an entry of it at this moment
                self._end(ledger, task)
                return
            ledger.size -= 1
            durations = ledger.durations
            if len(durations) < DURATIONS_A_TICK:
                durations.append(time_ns() - self.started)
            if hop.done is not None and not live:
                ledger.settle(hop)
        except Exception:  # noqa: BLE001
            failed("task.done")
            _lose(self.parent, self)

    def _end(self, ledger: Ledger, task: Any) -> None:
        if self.runner is None:
            return  # collected while pending, and woken all the same: the ticker tells of it
        entry = ledger.promote(self)
        if entry.done is None:  # or it was closed when its loop stopped
            exits.close_as(entry, task)


def _lose(hop: Entry, noted: TaskNote | Entry | None) -> None:
    """A hook failed: what it was for is counted as dropped, so that it holds nothing open and settles nothing."""
    try:
        entry = getattr(noted, "entry", None) if isinstance(noted, TaskNote) else noted
        if entry is not None:
            entry.finish("abandoned", "a hook of hopwatch failed, and what became of it is not known")
        else:
            hop.ledger.lose(hop, noted)
    except Exception:  # noqa: BLE001
        failed("lose")


def _creating(original: Any) -> Any:
    """`create_task` of an event loop, with accounting."""

    @functools.wraps(original)
    def create_task(self: Any, coro: Any, *, name: Any = None, context: Any = None, **others: Any) -> Any:
        # What was not given is not handed on: a task factory may take the coroutine alone.
        if context is None:
            hop = _get()
        else:
            hop = hop_in(context)
            others["context"] = context
        if name is not None:
            others["name"] = name
        if hop is None:
            return original(self, coro, **others) if others else original(self, coro)
        what: Any
        try:
            what = work[id(coro.cr_code)]
        except (AttributeError, KeyError):  # new, a service loop, wrapped, or not a coroutine of Python's own
            service, what = judge(coro)
            if service:
                return _create_detached(original, self, coro, others)
            if what in _COVERED and machinery.get():
                return original(self, coro, **others) if others else original(self, coro)
        task = original(self, coro, **others) if others else original(self, coro)
        note = None
        try:
            ledger = hop.ledger
            if ledger.size >= ledger.capacity and ledger.full(hop):
                return task
            frame: Any
            if _module_at is not None:
                # To make an object of asyncio.create_task's own frame would cost as much as all else that is done here with frames.
                frame = _getframe(2 if _module_at(1) == "asyncio.tasks" else 1)
            else:
                frame = _getframe(1)
                if frame.f_code is _ASYNCIO_CREATE_TASK:
                    frame = frame.f_back
            code = frame.f_code
            if id(code) not in _outside:
                frame = _call_site(frame)
                code = frame.f_code
            note = _new(TaskNote)
            note.parent = hop
            note.started = time_ns()
            note.runner = ref(task)
            note.what = what
            note.code = code
            note.offset = frame.f_lasti
            note.entry = None
            # As Ledger.count does, without the call: this is done for every task of a cascade.
            ledger.size += 1
            live: Any = hop.live
            live.add(note)
            if hop.closed or ledger.everything:
                set_location(ledger.reveal(note))
            # An eager task (3.12) may be done already; the callback comes all the same.
            task.add_done_callback(note)
        except Exception:  # noqa: BLE001
            failed("create_task")
            _lose(hop, note)
        return task

    return create_task


def hop_in(context: Any) -> Entry | None:
    """The current hop of a context that the application brought."""
    try:
        hop: Entry | None = context.get(current)
    except Exception:  # noqa: BLE001 - not a context: asyncio will say so
        return None
    return hop


def _call_site(frame: Any) -> Any:
    """The first frame outside asyncio, outside what wraps it, and outside hopwatch itself."""
    for _ in range(_FRAMES_TO_SKIP):
        code = frame.f_code
        if id(code) in _outside:
            break
        if id(code) not in _inside:
            name = code.co_filename
            inside = (
                name.startswith(_ASYNCIO)
                or any(part in name for part in _TRANSPARENT)
                or (name.startswith(_OURS) and not name.startswith(_DEMO))
            )
            known = _inside if inside else _outside
            if len(known) < MAX_CODE:
                known[id(code)] = code
            if not inside:
                break
        if frame.f_back is None:
            break
        frame = frame.f_back
    return frame


def _create_detached(original: Any, loop: Any, coro: Any, others: dict[str, Any]) -> Any:
    """Create a service loop's task with no current hop, so that what it does later is not charged to who started it.

    A context that the application brings stays as it is, for the application may look into it later.
    """
    name = getattr(coro, "__qualname__", "")
    around = _without_our_span() if name.endswith(_RECEPTION) else None
    hop = current.set(None)
    mark = machinery.set(name in _SDK_LOOPS)
    try:
        return original(loop, coro, **others)
    finally:
        current.reset(hop)
        machinery.reset(mark)
        if around is not None:
            otel_context.detach(around)


def _without_our_span() -> Any:
    """Take the current hop's span out of OpenTelemetry's context, as long as nobody else's is in front of it.

    Otherwise a request that brings no trace of its own would join the one before it. Returns what undoes it, or None.
    """
    hop = _get()
    span = hop.span if hop is not None else None
    if not isinstance(span, HopSpan) or trace.get_current_span() is not span.span:
        return None
    return otel_context.attach(trace.set_span_in_context(trace.INVALID_SPAN))


def _handling(original: Any) -> Any:
    """`call_exception_handler` of an event loop: here asyncio tells that a pending task was collected."""

    @functools.wraps(original)
    def call_exception_handler(self: Any, context: Any) -> Any:
        try:
            task = context.get("task")
            if task is not None and str(context.get("message", "")).startswith("Task was destroyed"):
                # This may be any thread, inside the garbage collector: look, append, and leave the rest to the ticker.
                for callback in task._callbacks or ():  # noqa: SLF001
                    note = callback[0]
                    if isinstance(note, TaskNote):
                        destroyed.append((note, waits.glance(task).as_dict()))
                        # A done callback may come yet, with a RuntimeError of the coroutine that was closed.
                        note.runner = None
        except Exception:  # noqa: BLE001
            failed("destroyed")
        return original(self, context)

    return call_exception_handler


def _finalizing(original: Any) -> Any:
    """A loop's hook for abandoned async generators, which closes them in a task of their own at its next turn.

    a2a-sdk 1.3.0 leaves the generator of a subscription with `break`, and closes it only so: until then the hop that
    did it stays open, or what the closing does would seem to come late.
    """

    @functools.wraps(original)
    def _asyncgen_finalizer_hook(self: Any, agen: Any) -> Any:
        hop = _get()
        entry = None
        if hop is not None and not hop.closed:
            try:
                entry = hop.ledger.open("task", "close of an async generator", hop)
                if entry is not None:
                    _closings[id(entry)] = (entry, ref(self))
            except Exception:  # noqa: BLE001
                failed("asyncgen")
        result = original(self, agen)
        if entry is not None:
            try:
                self.call_soon_threadsafe(_closed, entry, "finished")  # after the call that makes the task
            except RuntimeError:  # the loop is closed: nothing will run any more
                _closed(entry, "cancelled")
        return result

    return _asyncgen_finalizer_hook


def _spawning(module: Any) -> Any:
    """`TaskGroup._spawn` of anyio, which makes its tasks past the loop where asyncio's factory for eager tasks is set: they are never eager."""

    def make(original: Any) -> Any:
        @functools.wraps(original)
        def _spawn(self: Any, *args: Any, **kwargs: Any) -> Any:
            hop, before = _get(), None
            try:
                if hop is not None:
                    factory = asyncio.get_running_loop().get_task_factory()
                    eager = getattr(module, "_eager_task_factory_code", None)
                    if eager is not None and getattr(factory, "__code__", None) is eager:
                        before = set(self._tasks)
            except Exception:  # noqa: BLE001
                failed("anyio.spawn")
            result = original(self, *args, **kwargs)
            if hop is not None and before is not None:
                try:
                    for task in self._tasks - before:
                        service, what = judge(task.get_coro())
                        if not service and not (
                            hop.ledger.size >= hop.ledger.capacity and hop.ledger.full(hop)
                        ):
                            _note(hop, task, what, _call_site(_getframe(1)))
                except Exception:  # noqa: BLE001
                    failed("anyio.spawn")
                    _lose(hop, None)
            return result

        return _spawn

    return make


def _note(hop: Entry, task: Any, what: str, frame: Any) -> None:
    """Count a task as `create_task` does, which has all of this within itself."""
    ledger = hop.ledger
    note = _new(TaskNote)
    note.parent = hop
    note.started = time_ns()
    note.runner = ref(task)
    note.what = what
    note.code = frame.f_code
    note.offset = frame.f_lasti
    note.entry = None
    ledger.size += 1
    live: Any = hop.live
    live.add(note)
    if hop.closed or ledger.everything:
        set_location(ledger.reveal(note))
    task.add_done_callback(note)


def _closed(entry: Entry, outcome: Outcome) -> None:
    try:
        _closings.pop(id(entry), None)
        entry.finish(outcome)
    except Exception:  # noqa: BLE001
        failed("asyncgen")


def _closing(original: Any) -> Any:
    """`close` of an event loop, which forgets the done callbacks that have not run yet."""

    @functools.wraps(original)
    def close(self: Any) -> Any:
        try:
            before = self.is_closed()
            ended = [] if before else _ended_in(self)
        except Exception:  # noqa: BLE001
            ended = []
            failed("loop.close")
        result = original(self)
        try:
            for noted in ended:
                exits.close_ended(noted)
            for entry, loop in list(_closings.values()):
                if loop() is self:
                    _closed(entry, "cancelled")
        except Exception:  # noqa: BLE001
            failed("loop.close")
        return result

    return close


def _stopping(original: Any) -> Any:
    """`run_forever` of an event loop, which calls no done callbacks any more once it has been told to stop, and may never run again."""

    @functools.wraps(original)
    def run_forever(self: Any) -> Any:
        try:
            return original(self)
        finally:
            try:
                for noted in _ended_in(self):
                    exits.close_ended(noted)
            except Exception:  # noqa: BLE001
                failed("loop.stop")

    return run_forever


def _ended_in(loop: Any) -> list[Note | Entry]:
    """What is told of the tasks of a loop that have ended and whose done callbacks have not run."""
    ready = getattr(loop, "_ready", None)
    if type(ready) is deque:
        callbacks = [getattr(handle, "_callback", None) for handle in list(ready)]
        return [each for each in callbacks if isinstance(each, TaskNote)]
    # uvloop does not show what it is about to call.
    ledger = hopwatch_process.here().ledger
    if not len(ledger):
        return []
    out: list[Note | Entry] = []
    for noted in exits.pending_entries(ledger):
        task = exits.ended_task(noted)
        if task is not None and task.get_loop() is loop:
            out.append(noted)
    return out


_gone: Final[dict[int, Note | Entry]] = {}
"""What had lost its task at the last look."""


def look(_: int) -> None:
    """Report the tasks that were collected while pending. Called by the ticker."""
    while destroyed:
        _bury(*destroyed.popleft())
    ledger = hopwatch_process.here().ledger
    gone = {
        id(entry): entry
        for entry in [*ledger.invisible(), *ledger.open_hops()]
        if entry.kind == "task" and entry.runner is not None and entry.done is None and entry.runner() is None
    }
    # A child of gather() is collected without a word (asyncio switches the report off for it). Of others the word may be on
    # its way: a collector that runs in another thread clears the references to a task before it has asyncio tell of it.
    for each, entry in gone.items():
        if each in _gone:
            _bury(entry, None)
    _gone.clear()
    _gone.update(gone)


def _bury(noted: Note | Entry, waiting: dict[str, Any] | None) -> None:
    ledger = hopwatch_process.here().ledger
    if (noted.parent.ledger if isinstance(noted, Note) else noted.ledger) is not ledger:
        return  # forked: it is the parent process's task, and runs there
    # A note whose task ended while we looked is over, and so is what is made of it.
    entry = ledger.promote(noted) if isinstance(noted, Note) else noted
    if entry.done is not None:
        return
    hop = entry.span
    if isinstance(hop, HopSpan) and hop.told is not None and not (waiting and waiting.get("file")):
        waiting = (
            hop.told
        )  # in a cyclic collection the coroutine is often closed before asyncio tells of the task
    if not (waiting and waiting.get("file")) and names.HOP_WAITS in (entry.attributes or {}):
        waiting = json.loads(entry.attributes[names.HOP_WAITS])  # type: ignore[index]
    set_location(entry)
    what = "; it awaited " + exits.phrase_of(waiting) if waiting else ""
    reason = f"{exits.DESTROYED}{what}"
    if waiting:
        entry.set(names.HOP_WAITS, json.dumps(waiting, ensure_ascii=False))
    entry.finish("abandoned", reason)
    hopwatch_process.here().telemetry.task_destroyed()
    report(entry, reason)


def report(entry: Entry, reason: str) -> None:
    """Tell of a task that never finished by a log event, in the hop's own trace."""
    try:
        _logs.get_logger(names.SCOPE).emit(
            _logs.LogRecord(
                timestamp=time_ns(),
                trace_id=int(entry.cascade or "0", 16),
                span_id=int(entry.id or "0", 16),
                severity_text="ERROR",
                severity_number=_logs.SeverityNumber.ERROR,
                body=f"{entry.name}: {reason}",
                attributes={"event.name": names.EVENT_TASK_NEVER_FINISHED, **(entry.attributes or {})},
            )
        )
    except Exception:  # noqa: BLE001
        failed("report")


hidden: tuple[type, ...] = (TaskNote,)
"""Kinds of done callbacks that are ours."""


def _showing(original: Any) -> Any:
    """`_future_repr_info`: a task's `repr` lists its done callbacks, and ours is none of the application's."""

    @functools.wraps(original)
    def _future_repr_info(future: Any) -> Any:
        words = original(future)
        try:
            callbacks = future._callbacks  # noqa: SLF001
            if callbacks and any(isinstance(each[0], hidden) for each in callbacks):
                theirs = [each for each in callbacks if not isinstance(each[0], hidden)]
                at = next(index for index, word in enumerate(words) if word.startswith("cb=["))
                words[at : at + 1] = [asyncio.base_futures._format_callbacks(theirs)] if theirs else []  # noqa: SLF001
        except Exception:  # noqa: BLE001
            failed("task.repr")
        return words

    return _future_repr_info


def instrument(patches: Patches) -> None:
    """Replace what makes tasks, on asyncio's loop and on uvloop's where that is loaded later."""
    loop = asyncio.BaseEventLoop
    patches.replace(loop, "create_task", _creating)
    patches.replace(loop, "call_exception_handler", _handling)
    patches.replace(loop, "_asyncgen_finalizer_hook", _finalizing)
    patches.replace(loop, "run_forever", _stopping)
    patches.replace(loop, "close", _closing)
    patches.replace(asyncio.base_futures, "_future_repr_info", _showing)
    hopwatch_process.on_tick(look)


def instrument_anyio(patches: Patches, module: Any) -> None:
    """Replace how anyio's task groups make tasks on asyncio."""
    patches.replace(module.TaskGroup, "_spawn", _spawning(module))


def instrument_uvloop(patches: Patches, loop: Any) -> None:
    """The same on `uvloop.Loop`, which is not a `BaseEventLoop`."""
    patches.replace(loop, "create_task", _creating)
    patches.replace(loop, "call_exception_handler", _handling)
    patches.replace(loop, "_asyncgen_finalizer_hook", _finalizing)
    patches.replace(loop, "run_forever", _stopping)
    patches.replace(loop, "close", _closing)


def renew_hooks() -> None:
    """Have the loop that runs in this thread close async generators by the method that its class has now: it took that of before when it began to run."""
    try:
        loop: Any = asyncio._get_running_loop()  # noqa: SLF001 - the public one raises where none runs
        hook: Any = sys.get_asyncgen_hooks().finalizer
        own = loop is not None and getattr(hook, "__self__", None) is loop
        if own and hook.__name__ == "_asyncgen_finalizer_hook":
            sys.set_asyncgen_hooks(finalizer=loop._asyncgen_finalizer_hook)  # noqa: SLF001
    except Exception:  # noqa: BLE001
        failed("asyncgen")


def _in_child() -> None:
    destroyed.clear()
    _closings.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
