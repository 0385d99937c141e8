"""Which asyncio tasks does a cascade still have? Task creation, and tasks that are collected while pending."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
from collections import deque
from contextvars import copy_context
from time import time_ns
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from opentelemetry import _logs

from hopwatch import attributes as names
from hopwatch import process as hopwatch_process
from hopwatch import waits
from hopwatch.instrument.service import is_service, judged
from hopwatch.ledger import DURATIONS_A_TICK, Entry, Note
from hopwatch.process import current, failed
from hopwatch.telemetry import HopSpan

if TYPE_CHECKING:
    from hopwatch.instrument import Patches
    from hopwatch.ledger import Ledger

_ASYNCIO: Final = os.path.dirname(asyncio.__file__) + os.sep  # noqa: PTH120 - compared with co_filename, a str
_FRAMES_TO_SKIP: Final = 6
"""How many frames of asyncio may stand between a call site and `create_task` (gather: ensure_future, _ensure_future)."""
_WRAPPERS: Final = {
    # opentelemetry-instrumentation-asyncio (0.66b1) puts every coroutine into one of its own.
    "opentelemetry.instrumentation.asyncio": "coro",
    # a2a-sdk 1.3.0 does so with its own telemetry, also where that is switched off.
    "a2a.utils.telemetry": "func",
    "hopwatch.instrument.a2a": "wrapped",
}
"""Modules whose coroutines stand for another one, and the local variable that holds it."""
_TRANSPARENT: Final = tuple(os.sep + os.path.join(*parts) + os.sep for parts in (("opentelemetry", "instrumentation"), ("wrapt",)))  # noqa: PTH118
_ASYNCIO_CREATE_TASK: Final = asyncio.tasks.create_task.__code__
MAX_CODE: Final = 8192
_inside: dict[int, Any] = {}
_outside: dict[int, Any] = {}
"""Code objects by their id, which is theirs as long as they are kept here: asyncio's, and everybody else's."""
_get = current.get
_new = object.__new__
_getframe = sys._getframe  # noqa: SLF001 - the documented way to a caller that costs 60 ns, where inspect costs 30 us
destroyed: deque[tuple[TaskNote, dict[str, Any]]] = deque(maxlen=4096)
"""Tasks that were collected while pending, as told by the loop's exception handler; the ticker takes them from here."""


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
            if self.entry is not None or error is not None:
                self._end(ledger, task, error)
                return
            live = hop.live
            live.discard(self)
            if self.entry is not None:  # revealed by the ticker in between
                self._end(ledger, task, error)
                return
            ledger.size -= 1
            durations = ledger.durations
            if len(durations) < DURATIONS_A_TICK:
                durations.append(time_ns() - self.started)
            if hop.done is not None and not live:
                ledger.settle(hop)
        except Exception:  # noqa: BLE001
            failed("task.done")

    def _end(self, ledger: Ledger, task: Any, error: BaseException | None) -> None:
        entry = ledger.promote(self)
        if task.cancelled():
            entry.finish("cancelled")
        elif error is None:
            entry.finish()
        else:
            set_location(entry)
            entry.finish("failed", type(error).__name__)


def line_of(origin: tuple[Any, int]) -> int:
    """The line of an instruction."""
    code, offset = origin
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return int(line)
    return int(code.co_firstlineno)


def set_location(entry: Entry) -> None:
    """Put where an entry was made into its attributes."""
    if entry.origin is None:
        return
    code = entry.origin[0]
    entry.set(names.CODE_FILE_PATH, code.co_filename)
    entry.set(names.CODE_LINE_NUMBER, line_of(entry.origin))
    entry.set(names.CODE_FUNCTION_NAME, getattr(code, "co_qualname", code.co_name))


def _creating(original: Any) -> Any:
    """`create_task` of an event loop, with accounting."""

    @functools.wraps(original)
    def create_task(self: Any, coro: Any, *, name: Any = None, context: Any = None, **others: Any) -> Any:
        hop = _get() if context is None else context.get(current)
        # What was not given is not handed on: a task factory may take the coroutine alone.
        if context is not None:
            others["context"] = context
        if name is not None:
            others["name"] = name
        if hop is None:
            return original(self, coro, **others) if others else original(self, coro)
        try:
            known = judged(id(coro.cr_code))
        except AttributeError:  # no coroutine of Python's own: Cython's, or an async generator's aclose()
            known = None
        what: Any
        if known is None:
            service, what = _judge(coro)
        else:
            what, service = known
        if service:
            return _create_detached(original, self, coro, others)
        task = original(self, coro, **others) if others else original(self, coro)
        try:
            ledger = hop.ledger
            if ledger.size >= ledger.capacity:
                ledger.full(hop)
                return task
            frame = _getframe(1)
            if frame.f_code is _ASYNCIO_CREATE_TASK:
                frame = frame.f_back
            if id(frame.f_code) not in _outside:
                frame = _call_site(frame)
            note = _new(TaskNote)
            note.parent = hop
            note.started = time_ns()
            note.runner = ref(task)
            note.what = what
            note.code = frame.f_code
            note.offset = frame.f_lasti
            note.entry = None
            # As Ledger.count does, without the call: this is done for every task of a cascade.
            ledger.size += 1
            hop.live.add(note)
            if hop.closed or ledger.everything:
                set_location(ledger.reveal(note))
            # An eager task (3.12) may be done already; the callback comes all the same.
            task.add_done_callback(note)
        except Exception:  # noqa: BLE001
            failed("create_task")
        return task

    return create_task


def _call_site(frame: Any) -> Any:
    """The first frame outside asyncio, and outside what wraps it."""
    for _ in range(_FRAMES_TO_SKIP):
        code = frame.f_code
        if id(code) in _outside:
            break
        if id(code) not in _inside:
            name = code.co_filename
            inside = name.startswith(_ASYNCIO) or any(part in name for part in _TRANSPARENT)
            known = _inside if inside else _outside
            if len(known) < MAX_CODE:
                known[id(code)] = code
            if not inside:
                break
        if frame.f_back is None:
            break
        frame = frame.f_back
    return frame


def _judge(coro: Any) -> tuple[bool, str]:
    """Whether a coroutine is a service loop, and its name: looked for behind what others, and we, wrap around it."""
    name = getattr(coro, "__qualname__", None) or type(coro).__name__
    try:
        for _ in range(4):
            frame = getattr(coro, "cr_frame", None)
            if frame is None:
                return False, name
            module = frame.f_globals.get("__name__", "")
            name = coro.__qualname__
            wrapped = _WRAPPERS.get(module)
            inner = frame.f_locals.get(wrapped) if wrapped else None
            if inner is None:
                return is_service(coro.cr_code, module, name), name
            if not hasattr(inner, "cr_frame"):  # a function
                name = inner.__qualname__
                code = getattr(getattr(inner, "__func__", inner), "__code__", None)
                # Behind a wrapper many functions may have one code object: the name tells them apart.
                return is_service(code, inner.__module__, name, shared=True), name
            coro = inner
    except Exception:  # noqa: BLE001
        failed("service")
    return False, name


def _create_detached(original: Any, loop: Any, coro: Any, kwargs: dict[str, Any]) -> Any:
    """Create a service loop's task with no current hop, so that what it does later is not charged to who started it."""
    context = kwargs.get("context")
    context = copy_context() if context is None else context.copy()
    context.run(current.set, None)
    if sys.version_info >= (3, 11):
        kwargs["context"] = context
        return original(loop, coro, **kwargs)
    return context.run(functools.partial(original, loop, coro, **kwargs))


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
        if hop is not None and hop.done is None:
            try:
                entry = hop.ledger.open("task", "close of an async generator", hop)
            except Exception:  # noqa: BLE001
                failed("asyncgen")
        result = original(self, agen)
        if entry is not None:
            try:
                self.call_soon_threadsafe(entry.finish)  # after the call that makes the task
            except RuntimeError:  # the loop is closed: nothing will run any more
                entry.finish("cancelled")
        return result

    return _asyncgen_finalizer_hook


def look(_: int) -> None:
    """Report the tasks that were collected while pending. Called by the ticker."""
    while destroyed:
        _bury(*destroyed.popleft())
    ledger = hopwatch_process.here().ledger
    for entry in [*ledger.invisible(), *ledger.open_hops()]:
        # A child of gather() is collected without a word (asyncio switches the report off for it).
        if entry.kind == "task" and entry.runner is not None and entry.runner() is None and entry.done is None and not destroyed:
            _bury(entry, None)


def _bury(noted: TaskNote | Entry, waiting: dict[str, Any] | None) -> None:
    ledger = hopwatch_process.here().ledger
    entry = ledger.promote(noted) if isinstance(noted, Note) else noted
    if entry.done is not None:
        return
    hop = entry.span
    if isinstance(hop, HopSpan) and hop.told is not None and not (waiting and waiting.get("file")):
        waiting = hop.told  # in a cyclic collection the coroutine is often closed before asyncio tells of the task
    set_location(entry)
    what = "; it awaited " + _phrase(waiting) if waiting else ""
    reason = f"the task was destroyed while pending, for nothing kept a reference to it{what}"
    if waiting:
        entry.set(names.HOP_WAITS, json.dumps(waiting, ensure_ascii=False))
    entry.finish("abandoned", reason)
    hopwatch_process.here().telemetry.task_destroyed()
    report(entry, reason)


def _phrase(waiting: dict[str, Any]) -> str:
    where = f" at {waiting['file']}:{waiting['line']}" if waiting.get("file") else ""
    return f"{waiting.get('what', 'something')}{where}"


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


def instrument(patches: Patches) -> None:
    """Replace what makes tasks, on asyncio's loop and on uvloop's where that is loaded later."""
    loop = asyncio.BaseEventLoop
    patches.replace(loop, "create_task", _creating)
    patches.replace(loop, "call_exception_handler", _handling)
    patches.replace(loop, "_asyncgen_finalizer_hook", _finalizing)
    hopwatch_process.on_tick(look)


def instrument_uvloop(patches: Patches, loop: Any) -> None:
    """The same on `uvloop.Loop`, which is not a `BaseEventLoop`."""
    patches.replace(loop, "create_task", _creating)
    patches.replace(loop, "call_exception_handler", _handling)
    patches.replace(loop, "_asyncgen_finalizer_hook", _finalizing)
