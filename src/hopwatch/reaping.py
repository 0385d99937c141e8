"""Which processes died with work open, and who tells of it? Finding black boxes without an owner, and delivering them.

A box whose lock is free has lost its process. Whoever takes the lock delivers what was open in it, and removes it: once, for
the lock is taken by one only. If the delivery fails the box stays for the next one. A delivery that was repeated after all does no harm:
records of one hop are merged.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from hopwatch import blackbox, records, state_folder
from hopwatch.blackbox import POSSIBLE, SUFFIX, UNFINISHED, Box, BoxError
from hopwatch.process import failed, logger
from hopwatch.state_folder import FolderError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from opentelemetry.trace import Tracer

MAX_BOXES: Final = 1_000
"""Files that one look considers; the rest wait for the next."""
MAX_SET_ASIDE: Final = 32
"""Files that are kept of those that cannot be trusted; the oldest go first."""
SET_ASIDE: Final = "set-aside"
UNFINISHED_FOR: Final = 60.0
"""Seconds after which a box that was never finished is removed."""
LOOK_EVERY: Final = 5.0
"""Seconds between two looks of an agent for what died before it, while hops of its own are open."""
AT_ONCE: Final = 256
"""Records between two flushes: the batch processor keeps 2,048 by default and drops the rest."""
SPAN_NAME: Final = "hopwatch.abandoned"

_one_at_a_time = threading.Lock()
"""POSIX locks do not tell the threads of a process apart."""
_told: set[str] = set()
"""Problems that have been logged and cannot be put right here."""


class UndeliveredError(RuntimeError):
    """What a box says could not be delivered; the message says why."""


@dataclass
class Reaped:
    """What a look at a folder found.

    Attributes:
        boxes: those that were delivered and removed. One with no hop open is removed in silence, and not among them.
        undelivered: those that stay, each with the reason.
        set_aside: names of files that cannot be trusted, each with the reason.
    """

    boxes: list[Box] = field(default_factory=list)
    undelivered: list[tuple[Box, str]] = field(default_factory=list)
    set_aside: list[tuple[str, str]] = field(default_factory=list)


def reap(folder: str, deliver: Callable[[Box], None], *, agent: str | None = None) -> Reaped:
    """Deliver the boxes of processes that died, and remove them.

    Args:
        folder: where the boxes are.
        deliver: is called with each box that has something to tell; raises if it could not be delivered.
        agent: only boxes of processes that called themselves so.

    Returns:
        What was found.

    Raises:
        FolderError: the folder cannot be trusted.
    """
    out = Reaped()
    path = state_folder.checked(folder)
    if path is None or not POSSIBLE or not _one_at_a_time.acquire(blocking=False):
        return out
    try:
        with os.scandir(path) as found:
            listed = [each.name for each, _ in zip(found, range(MAX_BOXES), strict=False)]
        for name in sorted(listed):
            if name.startswith("."):
                continue
            # A file that cannot be looked at now (no descriptors left, a disk's error) is left for the next time.
            with contextlib.suppress(OSError):
                if name.endswith(SUFFIX):
                    _reap_one(path / name, deliver, agent, out)
                elif name.endswith(UNFINISHED):
                    _tidy(path / name)
    finally:
        _one_at_a_time.release()
    return out


@dataclass
class Lying:
    """What lies in a folder of black boxes.

    Attributes:
        alive: how many boxes of processes that live.
        dead: boxes whose processes have died and that nobody has delivered yet.
        untrusted: why files that call themselves boxes cannot be trusted, one sentence each.
        set_aside: how many files were set aside.
        more: whether there are more files than were looked at.
    """

    alive: int = 0
    dead: list[Box] = field(default_factory=list)
    untrusted: list[str] = field(default_factory=list)
    set_aside: int = 0
    more: bool = False


def lying(folder: Path) -> Lying:
    """Look at what lies in a folder, and change nothing.

    To know whether a process lives, the lock of its box is asked for, and let go at once. Who reaps at that very moment
    finds it taken, and does so at the next look.

    Args:
        folder: one that `state_folder.checked` has accepted.
    """
    out = Lying()
    with _one_at_a_time, contextlib.suppress(OSError):
        with os.scandir(folder) as found:
            listed = [each.name for each, _ in zip(found, range(MAX_BOXES + 1), strict=False)]
        out.more = len(listed) > MAX_BOXES
        for name in sorted(listed[:MAX_BOXES]):
            if name.endswith(SUFFIX) and not name.startswith("."):
                with contextlib.suppress(OSError):  # it is gone, say
                    _look_at(folder / name, out)
        with os.scandir(folder / SET_ASIDE) as kept:
            out.set_aside = sum(1 for _ in zip(kept, range(MAX_BOXES), strict=False))
    return out


def _look_at(path: Path, out: Lying) -> None:
    if blackbox.owned(path):
        out.alive += 1
        return
    try:
        file = blackbox.opened(path, write=True)
        try:
            free = _locked(file, path)
            box = blackbox.read_open(file, path)
        finally:
            os.close(file)
    except BoxError as error:
        out.untrusted.append(str(error))
        return
    if not free or _in_use(box):
        out.alive += 1
    else:
        out.dead.append(box)


def _reap_one(path: Path, deliver: Callable[[Box], None], agent: str | None, out: Reaped) -> None:
    if blackbox.owned(path):
        return
    try:
        file = blackbox.opened(path, write=True)
    except BoxError as error:
        _set_aside(path, str(error), out)
        return
    try:
        if not _locked(file, path):
            return
        try:
            box = blackbox.read_open(file, path)
        except BoxError as error:
            _set_aside(path, str(error), out)
            return
        if (agent is not None and box.agent != agent) or _in_use(box):
            return
        if box.hops or box.unplaced or box.torn:
            try:
                deliver(box)
            except Exception as error:  # noqa: BLE001 - whatever it is, the box stays
                out.undelivered.append((box, f"{error}" or type(error).__name__))
                return
            out.boxes.append(box)
        path.unlink()
    finally:
        os.close(file)


def _locked(file: int, path: Path) -> bool:
    """Take the lock; False where the process lives, or somebody else has been here first."""
    try:
        blackbox.lock(file)
        now, mine = path.lstat(), os.fstat(file)
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino)


def _in_use(box: Box) -> bool:
    """Whether the process lives that the box names, without its lock: it may have closed every descriptor that it found.

    It then still has the file mapped, which it has not after an `exec`.
    """
    if box.boot != blackbox.boot_id():
        return False
    try:
        with open(f"/proc/{box.pid}/maps", errors="replace") as maps:  # noqa: PTH123
            return any(line.rstrip("\n").endswith(f"/{box.path.name}") for line in maps)
    except OSError:
        return False


def _tidy(path: Path) -> None:
    """Remove a box that its process died over while it made it: nothing was in it."""
    try:
        if blackbox.owned(path) or time.time() - path.lstat().st_mtime < UNFINISHED_FOR:
            return
        file = blackbox.opened(path, write=True)
    except BoxError:
        return
    try:
        if _locked(file, path):
            path.unlink()
    finally:
        os.close(file)


def _set_aside(path: Path, why: str, out: Reaped) -> None:
    """Move what cannot be trusted out of the way, as it is. A link is moved itself."""
    kept = path.parent / SET_ASIDE
    try:
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode):
            say_once(f"{why}, and a folder is not set aside")
            return
        state_folder.checked(kept, make=True)
        files = sorted(kept.iterdir(), key=lambda each: each.lstat().st_mtime)
        for oldest in files[: max(0, len(files) - MAX_SET_ASIDE + 1)]:
            oldest.unlink()
        path.rename(kept / path.name)
    except FileNotFoundError:
        return
    except (OSError, FolderError) as error:
        say_once(f"{why}, and it cannot be set aside: {error}")
        return
    logger.warning("hopwatch: %s. It was set aside in %s; what was open in it is not known.", why, kept)
    out.set_aside.append((path.name, why))


def say_once(problem: str) -> None:
    """Log a problem that will be met again and again."""
    if problem not in _told and len(_told) < 256:
        _told.add(problem)
        logger.warning("hopwatch: %s.", problem)


# By an agent's own tracer --------------------------------------------------------------------------------------


def through(tracer: Tracer, flush: Callable[[], Any]) -> Callable[[Box], None]:
    """Deliver by a tracer: a zero-length span for each hop, whose parent is the hop's own span.

    Args:
        tracer: of the process that found the box.
        flush: exports what waits; returns False where it could not.
    """
    from opentelemetry.context import Context  # noqa: PLC0415 - the command line reaps without a tracer
    from opentelemetry.trace import (  # noqa: PLC0415
        NonRecordingSpan,
        SpanContext,
        TraceFlags,
        set_span_in_context,
    )

    def deliver(box: Box) -> None:
        at = time.time_ns()
        for number, hop in enumerate(box.hops, 1):
            died = SpanContext(
                int(hop.cascade, 16), int(hop.id, 16), is_remote=True, trace_flags=TraceFlags(1)
            )
            span = tracer.start_span(
                SPAN_NAME,
                context=set_span_in_context(NonRecordingSpan(died), Context()),
                attributes=records.abandoned_attributes(hop, box.instance, box.reason),
                start_time=at,
            )
            if not span.is_recording():
                raise UndeliveredError("the sampler drops the record")
            span.end(end_time=at)
            if number % AT_ONCE == 0 and flush() is False:
                raise UndeliveredError("the records could not be exported")
        if flush() is False:
            raise UndeliveredError("the records could not be exported")

    return deliver


class Successor:
    """Tells of the earlier processes of this agent, by its own tracer and in a thread of its own.

    Args:
        box: this process's own: boxes beside it are looked at, of the same name.
        tracer: of this process.
    """

    def __init__(self, box: blackbox.BlackBox, tracer: Tracer) -> None:
        self._box = box
        self._tracer = tracer
        self._due = 0.0
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Look now and then; called by the ticker, and holds it up no longer than starting a thread does."""
        now = time.monotonic()
        if now < self._due or self._box.path is None:
            return
        self._due = now + LOOK_EVERY
        if self._thread is not None and self._thread.is_alive():
            return
        if not self._others():
            return
        # The flush may hang with the exporter, and the ticker must not.
        self._thread = threading.Thread(target=self._run, name="hopwatch-successor", daemon=True)
        with contextlib.suppress(RuntimeError):  # the interpreter is going down
            self._thread.start()

    def _others(self) -> bool:
        """Whether there is a box beside ours that may be of the same agent: looked at by name, as cheap as can be."""
        own = self._box.path
        if own is None:
            return False
        prefix = blackbox.file_prefix(self._box.agent)
        with contextlib.suppress(OSError), os.scandir(own.parent) as found:
            return any(
                each.name.startswith(prefix) and each.name.endswith(SUFFIX) and each.name != own.name
                for each, _ in zip(found, range(MAX_BOXES), strict=False)
            )
        return False

    def _run(self) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - as above

        try:
            flush = getattr(trace.get_tracer_provider(), "force_flush", None) or (lambda: None)
            found = reap(self._box.folder, through(self._tracer, flush), agent=self._box.agent)
            for box, why in found.undelivered:
                say_once(f"what was open in process {box.pid} of {box.agent} could not be told: {why}")
        except FolderError as error:
            say_once(str(error))
        except Exception:  # noqa: BLE001 - nothing of ours reaches the application
            failed("reaping.successor")
