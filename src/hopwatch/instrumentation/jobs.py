"""What may still act for a cascade outside its tasks? Jobs of executors, threads, and timers of the application.

Counted while they may act: a job until its future is done, a thread until it is not alive any more, a timer until its
callback has run or it was cancelled (the last two are looked at by the ticker, so they may count a quarter of a
second too long). Callbacks given to `call_soon` run at the loop's next turn and are not counted.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import functools
import inspect
import os
import sys
import threading
from contextvars import Context
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from hopwatch import hop_waits, waits
from hopwatch import process as hopwatch_process
from hopwatch.instrumentation.service import is_service
from hopwatch.instrumentation.tasks import hop_in
from hopwatch.process import current, failed
from hopwatch.waits.timers import WRAPPING

if TYPE_CHECKING:
    from hopwatch.instrumentation import Patches
    from hopwatch.ledger import Entry, Outcome

_get = current.get
LIBRARIES: Final = frozenset(
    {
        "aiohttp", "aiologic", "anyio", "async_timeout", "asyncio", "asyncpg", "concurrent", "culsans", "fastapi", "grpc", "h11", "h2",
        "hopwatch", "httpcore", "httptools", "httpx", "hypercorn", "opentelemetry", "redis", "sniffio", "sqlalchemy",
        "sse_starlette", "starlette", "threading", "uvicorn", "uvloop", "websockets", "wsproto",
    }
)  # fmt: skip
"""Top-level packages whose timers are their own business: keep-alives, timeouts, pings."""
_STARTERS: Final = frozenset(
    {
        "call_soon",
        "call_soon_threadsafe",
        "create_task",
        "ensure_future",
        "notify",
        "notify_all",
        "put_nowait",
        "release",
        "run_coroutine_threadsafe",
        "run_in_executor",
        "send_nowait",
        "set",
        "set_exception",
        "set_result",
        "start",
        "submit",
    }
)
"""Functions of theirs that start what the application gave them, or wake it."""
_timers: dict[int, tuple[Entry, Any]] = {}
_threads: dict[int, tuple[Entry, Any]] = {}


def _name(function: Any) -> tuple[str, str]:
    while isinstance(function, functools.partial):
        inner = function.func
        # asyncio.to_thread hands on Context.run, with what it is to run.
        through = (
            function.args
            and getattr(inner, "__name__", "") == "run"
            and isinstance(getattr(inner, "__self__", None), Context)
        )
        function = function.args[0] if through else inner
    return getattr(function, "__module__", None) or "", getattr(function, "__qualname__", None) or type(
        function
    ).__qualname__


def _is_work(callback: Any) -> bool:
    """Whether what a timer calls belongs to the application, or makes a task or a job of what does."""
    module, qualname = _name(callback)
    # First, for most timers are of these: a message over HTTP sets half a dozen of them.
    if module.partition(".")[0] in LIBRARIES and qualname.rpartition(".")[2] not in _STARTERS:
        return False
    # Neither of the two is ever called; asyncio's debug mode says so.
    return callable(callback) and not inspect.iscoroutinefunction(callback)


def _open(kind: str, function: Any, hop: Entry) -> Entry | None:
    """Count what may act for a hop outside its tasks; None where the ledger is full."""
    return hop.ledger.open("task", f"{kind} {_name(function)[1]}", hop)


class _Carried:
    """A job that works for the hop that submitted it: a pool's thread has no context of its own."""

    __slots__ = ("function", "hop")

    def __init__(self, function: Any, hop: Entry) -> None:
        self.function = function
        self.hop = hop

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = current.set(self.hop)
        try:
            return self.function(*args, **kwargs)
        finally:
            current.reset(before)

    def __repr__(self) -> str:
        return repr(self.function)


def _in_a_thread(executor: Any) -> bool:
    """Whether an executor calls what it is given in a thread of this interpreter: for other interpreters it is pickled (3.14)."""
    if not isinstance(executor, concurrent.futures.thread.ThreadPoolExecutor):
        return False
    others = getattr(sys.modules.get("concurrent.futures.interpreter"), "InterpreterPoolExecutor", None)
    return others is None or not isinstance(executor, others)


def _submitting(original: Any) -> Any:
    """`submit` of an executor: the job counts until its future is done, which a running job's is only at its end."""

    @functools.wraps(original)
    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        hop = _get()
        job = _Carried(fn, hop) if hop is not None and _in_a_thread(self) else fn
        future = original(self, job, *args, **kwargs)
        if hop is not None:
            try:
                entry = _open("job", fn, hop)
                if entry is not None:
                    entry.instance_of = ref(future)
                    future.add_done_callback(functools.partial(_job_done, entry))
            except Exception:  # noqa: BLE001
                failed("submit")
                _lose(hop)
        return future

    return submit


def _job_done(entry: Entry, future: Any) -> None:
    try:
        error = None if future.cancelled() else future.exception()
        if future.cancelled():
            entry.finish("cancelled")
        elif error is None:
            entry.finish()
        else:
            entry.finish("failed", type(error).__name__)
    except Exception:  # noqa: BLE001 - concurrent.futures would print it
        failed("job.done")


def _starting(original: Any) -> Any:
    """`Thread.start`: the thread counts while it is alive, unless it serves its pool."""

    @functools.wraps(original)
    def start(self: Any) -> Any:
        hop = _get()
        if hop is None:
            return original(self)
        # The thread forgets its target when it has run, which may be before we are back.
        target = getattr(self, "_target", None)
        result = original(self)
        try:
            function = target if target is not None else type(self).run
            module, qualname = _name(function)
            if not is_service(getattr(function, "__code__", function), module, qualname):
                entry = _open("thread", function, hop)
                if entry is not None:
                    _threads[id(entry)] = (entry, ref(self))
        except Exception:  # noqa: BLE001
            failed("thread.start")
            _lose(hop)
        return result

    return start


def _lose(hop: Entry) -> None:
    """Something that was started could not be counted: no verdict on its cascade may be settled."""
    try:
        hop.ledger.lose(hop)
    except Exception:  # noqa: BLE001
        failed("lose")


class _Timed:
    """A timer's callback that says when it has run, and how."""

    __slots__ = ("callback", "entry")

    def __init__(self, callback: Any, entry: Entry) -> None:
        self.callback = callback
        self.entry = entry

    def __call__(self, *args: Any) -> Any:
        try:
            result = self.callback(*args)
        except BaseException as error:
            self._end("failed", type(error).__name__)
            raise
        self._end("finished", None)
        return result

    def _end(self, outcome: Outcome, reason: str | None) -> None:
        try:
            _timers.pop(id(self.entry), None)
            self.entry.finish(outcome, reason)
        except Exception:  # noqa: BLE001
            failed("timer.done")

    def __repr__(self) -> str:
        # As asyncio's debug mode and its messages show the callback.
        return repr(self.callback)

    def __eq__(self, other: object) -> bool:
        # As handles of timers are compared.
        return bool(self.callback == (other.callback if isinstance(other, _Timed) else other))

    def __hash__(self) -> int:
        return hash(self.callback)


WRAPPING.add(_Timed)


def _scheduling(original: Any) -> Any:
    """`call_at` or `call_later` of a loop."""

    @functools.wraps(original)
    def schedule(self: Any, when: Any, callback: Any, *args: Any, context: Any = None) -> Any:
        hop = _get() if context is None else hop_in(context)
        if hop is None or isinstance(callback, _Timed):
            return original(self, when, callback, *args, context=context)
        entry = None
        try:
            if _is_work(callback):
                entry = _open("timer", callback, hop)
                if entry is not None:
                    entry.instance_of = ref(self)
        except Exception:  # noqa: BLE001
            failed("timer")
            _lose(hop)
        if entry is None:
            return original(self, when, callback, *args, context=context)
        timed = _Timed(callback, entry)
        try:
            handle = original(self, when, timed, *args, context=context)
        except BaseException:
            timed._end("cancelled", None)  # noqa: SLF001
            raise
        try:
            if entry.done is None:
                _timers[id(entry)] = (entry, ref(handle))
        except TypeError:  # a loop whose handles take no weak reference: the timer counts until it has run
            pass
        return handle

    return schedule


def _showing(original: Any) -> Any:
    """`_format_callback_source`: a timer's `repr` shows what the application gave it."""

    @functools.wraps(original)
    def _format_callback_source(func: Any, *args: Any, **kwargs: Any) -> Any:
        return original(func.callback if type(func) is _Timed else func, *args, **kwargs)

    return _format_callback_source


def look(_: int) -> None:
    """Close what has ended without telling: cancelled timers and threads. Called by the ticker."""
    for key, (entry, reference) in list(_timers.items()):
        handle = reference()
        if handle is None or handle.cancelled():
            _timers.pop(key, None)
            entry.finish("cancelled")
    for key, (entry, reference) in list(_threads.items()):
        thread = reference()
        if thread is None or not thread.is_alive():
            _threads.pop(key, None)
            entry.finish()


def explain(entry: Entry, timers: waits.Timers | None = None) -> tuple[dict[str, Any], bool] | None:
    """What a job or thread does, or when a timer runs; None for an entry that is none of these.

    All of them move: nobody can tell what a thread waits for.
    """
    what, _, name = entry.name.partition(" ")
    threads = timers.threads if timers is not None else waits.Timers().threads
    known = _timers.get(id(entry))
    told: dict[str, Any]
    if known is not None and known[0] is entry:
        handle = known[1]()
        until = waits.when_of(handle) if handle is not None else None
        told = {"kind": "timer", "moves": True, "what": f"timer `{name}`{waits.clock(until)}"}
        if until is not None:
            told["until"] = until
        told.update(_written_at(handle))
        return told, True
    known = _threads.get(id(entry))
    if known is not None and known[0] is entry:
        thread = known[1]()
        job = threads.standing(thread) if thread is not None else None
    elif what == "job" and entry.kind == "task" and isinstance(entry.instance_of, ref):
        of = entry.instance_of()
        if isinstance(of, threading.Thread):
            job = threads.standing(of)
        else:
            job = threads.job(of) if of is not None else None
    else:
        return None
    told = {"kind": "thread", "moves": True, "what": f"{what} `{name}`"}
    if job is not None:
        told["what"] += f" {job.words}"
        told["job"] = job.as_dict()
    return told, True


def _written_at(handle: Any) -> dict[str, Any]:
    """Where the callback of a timer is written, as the frames of a task are told."""
    function = getattr(handle, "_callback", None)  # uvloop's handle does not show it
    function = function.callback if type(function) is _Timed else None
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    if type(function) is not FunctionType:
        return {}
    code = function.__code__
    return {"file": code.co_filename, "line": code.co_firstlineno, "function": function.__qualname__}


def instrument(patches: Patches) -> None:
    """Replace what starts jobs, threads and timers."""
    hop_waits.explain_outside = explain
    patches.replace(concurrent.futures.thread.ThreadPoolExecutor, "submit", _submitting)
    patches.replace(threading.Thread, "start", _starting)
    patches.replace(asyncio.BaseEventLoop, "call_at", _scheduling)
    patches.replace(asyncio.format_helpers, "_format_callback_source", _showing)  # type: ignore[attr-defined]
    hopwatch_process.on_tick(look)


def instrument_processes(patches: Patches, module: Any) -> None:
    """The same for pools of processes, whose module is loaded late."""
    patches.replace(module.ProcessPoolExecutor, "submit", _submitting)


def instrument_uvloop(patches: Patches, loop: Any) -> None:
    """The same on `uvloop.Loop`, whose `call_later` does not go through `call_at`."""
    patches.replace(loop, "call_at", _scheduling)
    patches.replace(loop, "call_later", _scheduling)


def _in_child() -> None:
    # What the parent process started runs there.
    _timers.clear()
    _threads.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
