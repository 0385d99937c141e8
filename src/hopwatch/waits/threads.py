"""Which thread does a job, and where does that thread stand?

A thread is looked at by its frames, as `sys._current_frames` gives them. Which job it does is told by the frame of
`concurrent.futures` that runs it: the one local that is read there is the only one that this package reads of any frame,
for the frames of running code tell their locals in no other way.
"""

from __future__ import annotations

import concurrent.futures.thread
import sys
import threading
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from hopwatch.waits.chain import is_application
from hopwatch.waits.facts import Job
from hopwatch.waits.objects import field_of, is_a

if TYPE_CHECKING:
    from types import FrameType

STACK: Final = 200
"""How many frames of a thread are looked at."""
THREADS: Final = 256
"""How many threads are looked at."""

_RUN: Final = getattr(
    getattr(concurrent.futures.thread, "_WorkItem", None), "run", None
)  # its `self` has the future
_RUNS: Final = getattr(_RUN, "__code__", None)


class Threads:
    """What the threads of this process do: read when first asked for, and once only."""

    __slots__ = ("_jobs", "_stacks")

    def __init__(self) -> None:
        self._stacks: dict[int, str | None] | None = None
        self._jobs: list[tuple[ref[Any], int]] = []

    def _read(self) -> dict[int, str | None]:
        if self._stacks is None:
            self._stacks = {}
            frames = sys._current_frames()  # noqa: SLF001 - the only way
            # A local that has its own frame is a cycle, and keeps what that frame has until the next collection.
            frames.pop(threading.get_ident(), None)
            for ident, innermost in list(frames.items())[:THREADS]:
                self._learn(self._stacks, ident, innermost)
            self._learn(self._stacks, threading.get_ident(), sys._getframe())  # noqa: SLF001
        return self._stacks

    def _learn(self, stacks: dict[int, str | None], ident: int, innermost: FrameType) -> None:
        stacks[ident], runs = _stands(innermost)
        future = _future_of(runs) if runs is not None else None
        if future is not None:
            self._jobs.append((ref(future), ident))

    def job(self, future: Any) -> Job:
        """Tell who does what a future of `concurrent.futures` stands for."""
        stacks = self._read()
        ident = next((number for reference, number in self._jobs if reference() is future), None)
        if ident is not None:
            return Job("running", _name_of(ident), stacks.get(ident))
        return Job("waiting" if field_of(future, "_state") == "PENDING" else "elsewhere")

    def standing(self, thread: threading.Thread) -> Job:
        """Tell where a thread stands."""
        ident = field_of(thread, "_ident")
        return Job("running", _text(field_of(thread, "_name")), self._read().get(ident))


def _stands(innermost: FrameType) -> tuple[str | None, FrameType | None]:
    """Where a thread stands, as `file:line function`, and the frame that runs its job, if it is one of a pool."""
    at = None
    frame: FrameType | None = innermost
    for _ in range(STACK):
        if frame is None:
            break
        code = frame.f_code
        if code is _RUNS:
            return at or _place(innermost), frame
        if at is None and is_application(code.co_filename):
            at = _place(frame)
        frame = frame.f_back
    return at or _place(innermost), None


def _place(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} {getattr(code, 'co_qualname', code.co_name)}"


def _future_of(frame: FrameType) -> Any:
    if frame.f_trace is not None:
        return None  # a debugger writes back what it read: leave it alone
    known = frame.f_locals
    item = known.get("self")
    if sys.version_info < (3, 13):
        known.clear()  # there it is a dict that stays with the frame, and would keep the job alive
    return field_of(item, "future")


def _name_of(ident: int) -> str | None:
    threads: Any = getattr(threading, "_active", None)
    return _text(field_of(threads.get(ident), "_name")) if type(threads) is dict else None


def _text(name: object) -> str | None:
    return str.__str__(name)[:200] if is_a(name, str) else None
