"""When does a runner, a loop or the program itself begin to end? What is pending is noted then, before it is cut off.

Wrapped are what runners cancel the leftovers with (`_cancel_all_tasks`, the same in Python 3.10 to 3.15, and the copies
of it that others use on 3.10), what they handle Ctrl-C with (from 3.11), `close` of the loops, `signal.signal`, for servers set
SIGTERM to its default and raise it again, and `os.execv` and `os.execve`, which the rest of that family calls.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from time import time_ns
from typing import TYPE_CHECKING, Any
from weakref import ref

from hopwatch import draining, exits
from hopwatch import process as hopwatch_process
from hopwatch.instrumentation import jobs, queues
from hopwatch.process import failed

if TYPE_CHECKING:
    from hopwatch.instrumentation import Patches
    from hopwatch.ledger import Entry


def _cancelling(original: Any) -> Any:
    """What a runner cancels with, when its main task is over."""

    @functools.wraps(original)
    def _cancel_all_tasks(loop: Any, *args: Any, **kwargs: Any) -> Any:
        noted: list[Entry] = []
        try:
            _drain(loop)
        finally:
            try:
                noted = _note_tasks(loop)
            except Exception:  # noqa: BLE001
                failed("runner.end")
            try:
                result = original(loop, *args, **kwargs)
            finally:
                try:
                    exits.cut(noted, "runner", ended=False)
                except Exception:  # noqa: BLE001
                    failed("runner.end")
        return result

    return _cancel_all_tasks


def _drain(loop: Any) -> None:
    """Let what is left end by itself, for as long as `HOPWATCH_DRAIN` says."""
    seconds = hopwatch_process.here().settings.drain
    if not seconds or not len(hopwatch_process.here().ledger):
        return
    waiting = draining.drain(seconds, None)
    try:
        loop.run_until_complete(waiting)
    except Exception:  # noqa: BLE001 - what the application's tasks raise does not come out here
        failed("drain")
    finally:
        waiting.close()


def _note_tasks(loop: Any) -> list[Entry]:
    if not len(hopwatch_process.here().ledger):
        return []
    tasks = {task for task in asyncio.all_tasks(loop) if not task.done()}
    _show_taken(loop)
    return exits.note(loop, tasks, "cancelled by asyncio.run at its end")


def _show_taken(loop: Any) -> None:
    """Give the items that consumers of this loop work on entries of their own, so that they do not vanish with those."""
    for line in list(queues.watched):
        for taken in list(line.taken):
            hop: Any = taken.hop
            task = taken.task() if taken.task is not None else None
            if (
                hop is None
                or taken.entry is not None
                or taken.counted
                or line.quiet
                or task is None
                or task.done()
                or task.get_loop() is not loop
            ):
                continue
            entry = queues.entry_for_item(line, hop, time_ns())
            entry.runner = taken.task
            hop.ledger.count(entry, hop)
            taken.entry = entry
            hop.ledger.unhold(hop)
            # From here on the end of the consumer is not the end of the item.
            line.acknowledges = True


def _interrupting(original: Any) -> Any:
    """A runner's handler of Ctrl-C, which cancels the main task, and with it what that one waits for."""

    @functools.wraps(original)
    def _on_sigint(self: Any, signum: Any, frame: Any, main_task: Any) -> Any:
        try:
            if not main_task.done() and not self._interrupt_count:
                _show_taken(self._loop)
                exits.note(self._loop, None, "SIGINT")
        except Exception:  # noqa: BLE001
            failed("runner.sigint")
        return original(self, signum, frame, main_task)

    return _on_sigint


def _closing(original: Any) -> Any:
    """`close` of an event loop: what is pending on it will never go on."""

    @functools.wraps(original)
    def close(self: Any) -> Any:
        noted: list[Entry] = []
        try:
            if not self.is_closed() and not self.is_running() and len(hopwatch_process.here().ledger):
                _show_taken(self)
                noted = exits.note(self, None, "its event loop was closed", _timers_of(self))
        except Exception:  # noqa: BLE001
            failed("loop.close")
        result = original(self)
        try:
            exits.cut(noted, "loop", ended=True)
            # An application that handled SIGTERM by this loop does so no more.
            exits.take_sigterm()
        except Exception:  # noqa: BLE001
            failed("loop.close")
        return result

    return close


def _timers_of(loop: Any) -> list[Entry]:
    out: list[Entry] = []
    for entry, handle in list(jobs._timers.values()):  # noqa: SLF001
        of = entry.instance_of() if entry.instance_of is not None else None
        timer = handle()
        if of is loop and timer is not None and not timer.cancelled():
            out.append(entry)
    return out


def _replacing(original: Any) -> Any:
    """`os.execv` or `os.execve`: the process goes on as another program, unless that fails."""

    @functools.wraps(original)
    def execute(*args: Any, **kwargs: Any) -> Any:
        box = None
        try:
            if _can_be_run(args[0] if args else kwargs.get("path")):
                exits.replaced()
                box = hopwatch_process.here().box
                if box is not None:
                    box.leaving("execv")
        except Exception:  # noqa: BLE001
            failed("execv")
        try:
            return original(*args, **kwargs)
        finally:
            if box is not None:
                try:
                    box.leaving(None)
                except Exception:  # noqa: BLE001
                    failed("execv")

    return execute


def _handling(original: Any) -> Any:
    """`signal.signal`: who leaves SIGTERM to its default action again leaves it to us."""

    @functools.wraps(original)
    def signal_(signalnum: Any, handler: Any, *args: Any) -> Any:
        before = original(signalnum, handler, *args)
        if isinstance(handler, int) and handler == signal.SIG_DFL and signalnum == signal.SIGTERM:
            try:
                exits.take_sigterm()
            except Exception:  # noqa: BLE001
                failed("signal")
        return _shown(before)

    return signal_


def _asking(original: Any) -> Any:
    """`signal.getsignal`: where we handle SIGTERM, nobody else does."""

    @functools.wraps(original)
    def getsignal(signalnum: Any, *args: Any) -> Any:
        return _shown(original(signalnum, *args))

    return getsignal


def _shown(handler: Any) -> Any:
    # An application that calls the handler before its own, or asks whether there is one, goes on as without us.
    return signal.SIG_DFL if handler is exits.on_sigterm else handler


def _can_be_run(path: Any) -> bool:
    """Whether a program stands there. Nearly every call that fails does so for lack of it, and ends nothing."""
    if isinstance(path, int):
        return True
    try:
        return os.access(path, os.X_OK) and not os.path.isdir(path)  # noqa: PTH112
    except (TypeError, ValueError, OSError):
        return False


_WITH_A_RUNNER = (
    "uvloop",
    # What these use before Python 3.11. Hypercorn's is taskgroup's.
    "uvicorn._compat",
    "anyio._backends._asyncio",
    "taskgroup.runners",
    "backports.asyncio.runner.runner",
)
"""Modules that have a copy of asyncio's `_cancel_all_tasks`."""


def instrument(patches: Patches) -> None:
    """Replace what ends runners, loops and processes; handle SIGTERM where nobody does."""
    runners: Any = asyncio.runners
    patches.replace(runners, "_cancel_all_tasks", _cancelling)
    if hasattr(runners, "Runner"):
        patches.replace(runners.Runner, "_on_sigint", _interrupting)
    patches.replace(asyncio.BaseEventLoop, "close", _closing)
    patches.replace(signal, "signal", _handling)
    patches.replace(signal, "getsignal", _asking)
    patches.replace(os, "execv", _replacing)
    patches.replace(os, "execve", _replacing)
    for name in _WITH_A_RUNNER:
        patches.when_imported(name, functools.partial(_with_a_runner, ref(patches)))
    process = hopwatch_process.here()
    if process.telemetry.started or process.settings.report:
        exits.begin()
    else:
        # A server that handles SIGTERM itself puts back what it found, and raises the signal again.
        exits.take_sigterm()


def _with_a_runner(reference: Any, module: Any) -> None:
    patches = reference()
    if patches is None:
        return
    patches.replace(module, "_cancel_all_tasks", _cancelling)
    runner = getattr(module, "Runner", None)
    if runner is not getattr(asyncio, "Runner", None) and hasattr(runner, "_on_sigint"):
        patches.replace(runner, "_on_sigint", _interrupting)
    if hasattr(module, "Loop"):
        patches.replace(module.Loop, "close", _closing)
