"""What do the threads of anyio still do, for whom nobody waits any more? Each function that a hop gives them is a job of it.

anyio's worker threads take what they run from queues of their own. Who waits for it may give up: `abandon_on_cancel` says
so, and from a cancellation of the task itself anyio shields nothing (`asyncio.wait_for`, say). The thread works on.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from hopwatch import process as hopwatch_process
from hopwatch.instrumentation import jobs, named
from hopwatch.process import current, failed

if TYPE_CHECKING:
    from hopwatch.instrumentation import Patches
    from hopwatch.ledger import Entry, Outcome

_get = current.get
_RUNS: Final = "run_sync_in_worker_thread"
_FRAMES: Final = 50
"""How deep a traceback is looked into for the frame of anyio that had the thread."""
_given_up: dict[int, tuple[Entry, Any, float]] = {}
"""Jobs that a thread was given and had not begun when their waiters gave up: whose thread, and since when it had been idle."""


class _Job:
    """What a thread of anyio is given in place of a function: it counts until that function is back."""

    __slots__ = ("awaited", "entry", "function", "hop")

    def __init__(self, function: Any, hop: Entry, entry: Entry) -> None:
        self.function = function
        self.hop = hop
        self.entry = entry
        self.awaited = True

    def __call__(self, *args: Any) -> Any:
        self._begin()
        try:
            result = self.function(*args)
        except BaseException as error:
            self._end("failed", type(error).__name__)
            raise
        self._end("finished", None)
        return result

    def __getattr__(self, name: str) -> Any:
        # As whoever looks at the function finds it: its name, say.
        return getattr(self.function, name)

    def __repr__(self) -> str:
        return repr(self.function)

    def _begin(self) -> None:
        try:
            if self.entry.done is not None:  # nobody saw that a thread had it
                entry = jobs._open("job", self.function, self.hop)  # noqa: SLF001
                if entry is None:
                    return
                self.entry = entry
            self.entry.instance_of = ref(threading.current_thread())
        except Exception:  # noqa: BLE001
            failed("anyio.job")
            jobs._lose(self.hop)  # noqa: SLF001

    def _end(self, outcome: Outcome, reason: str | None) -> None:
        try:
            if self.awaited and not self.entry.visible:
                # Who awaits it gets the error, and tells of it: an iterator ends by one in starlette.
                outcome, reason = "finished", None
            self.entry.finish(outcome, reason)
        except Exception:  # noqa: BLE001
            failed("anyio.job")

    def left(self, error: BaseException) -> None:
        """Note that nobody waits for it any more."""
        try:
            self.awaited = False
            entry = self.entry
            if entry.done is not None or entry.instance_of is not None:
                return
            worker = _worker_in(error)
            if worker is None:
                entry.finish("cancelled")
            else:
                # A thread that has just looked whether the waiter has given up will begin all the same.
                _given_up[id(entry)] = (entry, ref(worker), worker.idle_since)
        except Exception:  # noqa: BLE001
            failed("anyio.job")


def _worker_in(error: BaseException) -> Any:
    """The thread that was given what this error has ended the wait for; None where it was none's turn yet."""
    traceback = error.__traceback__
    for _ in range(_FRAMES):
        if traceback is None:
            break
        frame = traceback.tb_frame
        if frame.f_code.co_name == _RUNS and "worker" in frame.f_code.co_varnames:
            known = frame.f_locals
            worker = known.get("worker")
            if sys.version_info < (3, 13):
                known.clear()  # there it is a dict that stays with the frame, and would keep what is in it
            return worker
        traceback = traceback.tb_next
    return None


def _running(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`run_sync_in_worker_thread` of the backend, which the functions in `anyio.to_thread` end in."""
    if _get() is None:
        return wrapped(*args, **kwargs)
    if args:
        function, *others = args
    elif "func" in kwargs:
        kwargs, others = dict(kwargs), []
        function = kwargs.pop("func")
    else:
        return wrapped(*args, **kwargs)  # which says what is wrong
    return named(_run(wrapped, function, others, kwargs), wrapped)


async def _run(wrapped: Any, function: Any, others: list[Any], kwargs: dict[str, Any]) -> Any:
    hop, job = _get(), None
    if hop is not None:
        try:
            entry = jobs._open("job", function, hop)  # noqa: SLF001
            if entry is not None:
                job = _Job(function, hop, entry)
        except Exception:  # noqa: BLE001
            failed("anyio.job")
            jobs._lose(hop)  # noqa: SLF001
    if job is None:
        return await wrapped(function, *others, **kwargs)
    try:
        return await wrapped(job, *others, **kwargs)
    except BaseException as error:
        job.left(error)
        raise


def look(_: int) -> None:
    """Close the jobs that were given up before they began, once their threads have passed them over. Called by the ticker."""
    for key, (entry, reference, since) in list(_given_up.items()):
        worker = reference()
        # It tells when it has dealt with one, unless its loop is closed, and up to anyio 4.0 only if it has run it.
        over = (
            worker is None
            or not worker.is_alive()
            or worker.idle_since != since
            or not worker.queue.unfinished_tasks
        )
        if entry.done is not None or entry.instance_of is not None:
            _given_up.pop(key, None)
        elif over:
            _given_up.pop(key, None)
            entry.finish("cancelled")


def instrument(patches: Patches, module: Any) -> None:
    """Replace how anyio's backend on asyncio, which `module` is, has a thread run something."""
    # Before anyio 4 it is a function of the module.
    if not patches.wrap(getattr(module, "AsyncIOBackend", module), _RUNS, _running):
        patches.lack()
    hopwatch_process.on_tick(look)


def _in_child() -> None:
    _given_up.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
