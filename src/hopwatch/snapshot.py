"""What does this process do right now? Its loops, tasks, waits, open hops and threads as one JSON document.

Read by a thread that is not the loop's while everything goes on, so nothing here is one moment: a task may have ended
since it was listed. Nothing runs code of the application, and nothing of it is kept once the document is made.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import platform
import sys
import threading
import time
from collections import Counter
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hopwatch import hop_waits, orphans, records, telemetry, waits
from hopwatch import process as hopwatch_process
from hopwatch.instrumentation import deadlocks
from hopwatch.ledger import Entry, Note
from hopwatch.process import encodable, failed, failures
from hopwatch.waits import chain, judging, objects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from hopwatch.process import Process

MOST: Final = 1000
"""Tasks, and hops, that one document tells of; how many there are beside is told."""
MOST_THREADS: Final = 100
MOST_DEADLOCKS: Final = 50
MOST_STACK: Final = 40
MOST_KINDS: Final = 20
LONGEST: Final = 300
APART: Final = 0.05
"""Seconds between the two looks at a loop's thread: one that is at the same line in both is busy there."""
BUDGET: Final = 1.0
"""Seconds for looking at what tasks wait on; those that come after it are listed without."""
CYCLES_BUDGET: Final = 0.1
"""Seconds for each of the two looks for deadlocks."""
DEEPEST: Final = 50
_OURS: Final = frozenset({"hopwatch-ps", "hopwatch-ticker", "hopwatch-flusher"})
_POLLS: Final = ("selectors.py", "windows_events.py")


# A few numbers -----------------------------------------------------------------------------------------------------


def brief() -> dict[str, Any]:
    """Who this is, how much is open, and since when."""
    process = hopwatch_process.here()
    hops = process.ledger.open_hops()
    tasks = [task for task in all_tasks(_loops(_stacks()).values()) if not objects.has_ended(task)]
    return {
        **_who(process),
        "hops": len(hops),
        "tasks": len(tasks),
        "oldest": _moment(hops[0].started) if hops else None,
    }


def _who(process: Process) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "agent": _text(telemetry.agent_name("unknown")),
        "instance": process.instance,
        "python": platform.python_version(),
        "command": _text(" ".join(sys.orig_argv)),
        "at": _moment(time.time_ns()),
    }


def _text(value: str) -> str:
    return encodable(value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…")


def _moment(nanoseconds: int) -> str:
    at = datetime.fromtimestamp(nanoseconds / 1e9, tz=timezone.utc)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _orphans() -> list[dict[str, Any]]:
    """The service loops whose owner has ended."""
    return [
        {
            "id": f"{id(each.task):#x}",
            "name": _text(each.name),
            "owner": _text(each.owner),
            "since": _moment(each.since),
        }
        for each in orphans.now()[:MOST]
    ]


# Threads and loops -------------------------------------------------------------------------------------------------


class _Stack(NamedTuple):
    """Where a thread is, innermost first, as `file:line function`."""

    frames: tuple[str, ...]
    files: tuple[str, ...]
    loop: Any
    """The loop that runs in it, where its frames tell (Python 3.13 and later)."""

    def told(self) -> list[str]:
        """As a chain of awaits is told: outermost first."""
        return list(reversed(self.frames[:MOST_STACK]))

    @property
    def polls(self) -> bool:
        """Whether it waits for sockets and timers, as an event loop does that has nothing to do."""
        return bool(self.files) and self.files[0].replace("\\", "/").rpartition("/")[2] in _POLLS

    @property
    def at(self) -> str | None:
        """The innermost frame of the application that was called by the loop, or where there is none the innermost."""
        for place, file in zip(self.frames, self.files, strict=True):
            if file.startswith(_RUNS_CALLBACKS):
                break
            if waits.is_application(file):
                return place
        return self.frames[0] if self.frames else None


_RUNS_CALLBACKS: Final = asyncio.events.__file__
_RUN_FOREVER: Final = inspect.unwrap(asyncio.BaseEventLoop.run_forever).__code__


def _stacks() -> dict[int, _Stack]:
    """The stack of each thread but ours, by the thread's number."""
    out = {}
    me = threading.get_ident()
    for ident, innermost in sys._current_frames().items():  # noqa: SLF001 - the way to look at other threads
        if ident == me:
            continue
        frames: list[str] = []
        files: list[str] = []
        loop = None
        frame: FrameType | None = innermost
        while frame is not None and len(frames) < 10 * MOST_STACK:
            code = frame.f_code
            frames.append(_text(f"{code.co_filename}:{frame.f_lineno} {_name(code)}"))
            files.append(code.co_filename)
            if code is _RUN_FOREVER and sys.version_info >= (3, 13):
                # From here on f_locals is a view, which leaves nothing behind in the frame.
                loop = frame.f_locals.get("self")
            frame = frame.f_back
        out[ident] = _Stack(tuple(frames), tuple(files), loop)
    return out


def _name(code: Any) -> str:
    return str(getattr(code, "co_qualname", code.co_name))


def _again(read: Callable[[], Iterable[Any]]) -> list[Any]:
    """Read a set that another thread changes meanwhile; empty if it never stands still."""
    for _ in range(100):
        try:
            return list(read())
        except RuntimeError:
            continue
    return []


def _registered() -> list[Any]:
    """Every task that asyncio itself keeps a list of; from Python 3.14 only those that are not of its own class."""
    module: Any = asyncio.tasks
    found: list[Any] = []
    for name in ("_all_tasks", "_scheduled_tasks", "_eager_tasks"):  # until 3.11, from 3.12, from 3.12
        each = getattr(module, name, None)
        if each is not None:
            found.extend(_again(lambda each=each: each))  # type: ignore[misc]
    return found


def _loops(stacks: dict[int, _Stack]) -> dict[int, Any]:
    """Every loop that is known, by its id."""
    found = {id(stack.loop): stack.loop for stack in stacks.values() if stack.loop is not None}
    ledger = hopwatch_process.here().ledger
    tasks = _registered()
    for entry in (*ledger.open_hops(), *ledger.invisible()):
        task = entry.runner() if entry.runner is not None else None
        if task is not None:
            tasks.append(task)
    for task in tasks:
        if objects.is_a(task, objects.TASK_TYPES):
            loop = objects.loop_of(task)
            if loop is not None:
                found[id(loop)] = loop
    if sys.version_info >= (3, 14):
        # There asyncio lists tasks by loop only, and uvloop's loop has no frame to be found by.
        running = sys.modules.get("uvloop")
        if running is not None or not found:
            for thing in gc.get_objects():
                if objects.is_a(thing, asyncio.AbstractEventLoop):
                    found[id(thing)] = thing
    return found


def all_tasks(loops: Iterable[Any]) -> list[Any]:
    """The tasks of some loops that have not ended, each once."""
    found: dict[int, Any] = {id(task): task for task in _registered()}
    if sys.version_info >= (3, 14):
        for loop in loops:
            try:
                found.update((id(task), task) for task in asyncio.all_tasks(loop))
            except Exception:  # noqa: BLE001, S112 - a loop of another kind
                continue
    return [
        task
        for task in found.values()
        if objects.is_a(task, objects.TASK_TYPES) and not objects.has_ended(task)
    ]


def _running_in(loop: Any) -> Any:
    """The task that a loop runs at this moment."""
    try:
        return asyncio.current_task(loop)
    except Exception:  # noqa: BLE001 - a loop of another kind
        return None


# The document ------------------------------------------------------------------------------------------------------


def take(most: int = MOST) -> dict[str, Any]:
    """Everything that is open in this process.

    Args:
        most: tasks and hops that are told of one by one.
    """
    process = hopwatch_process.here()
    look = _Look(process, most)
    document = {
        **_who(process),
        "loops": look.loops(),
        "hops": look.hops(),
        "threads": look.threads(),
    }
    document["deadlocks"] = look.deadlocks()
    document["orphans"] = _orphans()
    ledger = process.ledger
    document["counts"] = {
        "hops": len(ledger.open_hops()),
        "entries": len(ledger),
        "tasks": look.number_of_tasks,
        "threads": look.number_of_threads,
        "dropped": ledger.dropped,
        "failures": dict(list(failures.items())[:MOST_KINDS]),
    }
    document["left_out"] = look.left_out
    return document


class _Look:
    """One document's worth of looking."""

    def __init__(self, process: Process, most: int) -> None:
        self.process = process
        self.most = most
        self.timers = waits.Timers()
        self.until = time.monotonic() + BUDGET
        self.left_out: dict[str, Any] = {}
        self.stacks = _stacks()
        loops = _loops(self.stacks)
        self.running = {key: _running_in(loop) for key, loop in loops.items()}
        self.known = loops
        self.tasks = all_tasks(loops.values())
        self.number_of_tasks = len(self.tasks)
        self.number_of_threads = len(self.stacks)
        self.entries = self._entries()
        self.names = {thread.ident: thread for thread in threading.enumerate()}
        self._candidates: list[waits.Deadlock] = []
        """The deadlocks of the first look; the second one, some time later, has to find the same waits."""

    def _entries(self) -> dict[int, Entry | Note]:
        """By the id of its task, the innermost entry that the task works for."""
        out: dict[int, Entry | Note] = {}
        ledger = self.process.ledger
        # What is visible is more than what only counts, and the latest hop of a task is the innermost.
        for entry in (*ledger.invisible(), *ledger.open_hops()):
            if entry.runner is None or entry.done is not None:
                continue
            task = entry.runner()
            if task is not None:
                out[id(task)] = entry
        return out

    # Loops and tasks

    def loops(self) -> list[dict[str, Any]]:
        """Each loop with its tasks as a tree: below a task stand those that it awaits."""
        awaited = {id(task): self._awaited(task) for task in self.tasks}
        below = {id(child) for children in awaited.values() for child in children}
        by_loop: dict[int, list[Any]] = {key: [] for key in self.known}
        for task in self.tasks:
            loop = objects.loop_of(task)
            by_loop.setdefault(id(loop), []).append(task)
        chosen = self._chosen(awaited, below)
        began = time.monotonic()
        self._candidates = self._cycles()
        # On a machine that is busy that takes longer, and must not take the time for the tasks away.
        self.until += min(time.monotonic() - began, 2 * CYCLES_BUDGET)
        time.sleep(max(0.0, self.until - BUDGET + APART - time.monotonic()))
        later = _stacks()
        out = []
        for key, tasks in by_loop.items():
            loop = self.known.get(key)
            if loop is None or (not tasks and key not in {id(each.loop) for each in self.stacks.values()}):
                continue
            told = self._loop(loop, later)
            seen: set[int] = set()
            roots = [task for task in tasks if id(task) not in below]
            told["tasks"] = self._branches(roots, awaited, chosen, seen)
            # What is left awaits itself through others: begin anywhere.
            told["tasks"] += self._branches(tasks, awaited, chosen, seen)
            out.append(told)
        self._count_left_out(chosen)
        return out

    def _chosen(self, awaited: dict[int, list[Any]], below: set[int]) -> set[int]:
        """Which tasks are told of one by one: first those at work for hops, and never one without whoever awaits it."""
        running = {id(task) for task in self.running.values() if task is not None}
        roots = sorted(
            (task for task in self.tasks if id(task) not in below),
            key=lambda task: (id(task) not in running, id(task) not in self.entries),
        )
        chosen: set[int] = set()
        waiting = list(reversed([*roots, *(task for task in self.tasks if id(task) in below)]))
        while waiting and len(chosen) < self.most:
            task = waiting.pop()
            if id(task) in chosen:
                continue
            chosen.add(id(task))
            waiting.extend(reversed(awaited.get(id(task), [])[: self.most]))
        return chosen

    def _branches(
        self, tasks: list[Any], awaited: dict[int, list[Any]], chosen: set[int], seen: set[int]
    ) -> list[dict[str, Any]]:
        """Trees of tasks, made without recursion: a chain of awaits may be as long as there are tasks."""
        out: list[dict[str, Any]] = []
        waiting: list[tuple[Any, list[dict[str, Any]], int]] = [(task, out, 0) for task in reversed(tasks)]
        while waiting:
            task, into, depth = waiting.pop()
            if id(task) not in chosen or id(task) in seen:
                continue
            seen.add(id(task))
            told = self._task(task)
            into.append(told)
            children = awaited.get(id(task), [])
            if children:
                # What is nested deeper than a reader of JSON likes stands beside.
                below = into if depth >= DEEPEST else told.setdefault("awaits", [])
                waiting.extend((child, below, depth + 1) for child in reversed(children))
        return out

    def _awaited(self, task: Any) -> list[Any]:
        try:
            return awaited_by(task)
        except Exception:  # noqa: BLE001 - the task went on meanwhile
            return []

    def _task(self, task: Any) -> dict[str, Any]:
        coroutine = objects.coroutine_of(task)
        told: dict[str, Any] = {
            "id": f"{id(task):#x}",
            "name": _text(objects.task_name(task) or ""),
            "coroutine": _text(str(getattr(coroutine, "__qualname__", type(coroutine).__name__))),
        }
        entry = self.entries.get(id(task))
        made_in = None
        if entry is not None:
            hop = entry if isinstance(entry, Entry) and entry.visible else entry.parent
            told["hop"] = hop.id if hop is not None else None
            told["cascade"] = hop.cascade if hop is not None else None
            told["since"] = _moment(entry.started)
            code, line = _origin(entry)
            if code is not None:
                made_in = code.co_filename
                told["made_at"] = _text(f"{code.co_filename}:{line} {_name(code)}")
        running = self.running.get(id(objects.loop_of(task))) is task
        told["state"] = "running" if running else "waiting"
        if time.monotonic() > self.until:
            told["waits_on"] = None
            return told
        try:
            wait = hop_waits.look_at(task, made_in=made_in, timers=self.timers)
            if wait.kind == "running" and not running:
                told["state"] = "ready"
            said = {key: value for key, value in wait.as_dict().items() if key not in ("of", "queue")}
            told["waits_on"] = waits.with_times(said)
            if wait.queue is not None:
                told["queue"] = {"taken_by": [], **wait.queue.as_dict()}
        except Exception:  # noqa: BLE001
            failed("ps.task")
            told["waits_on"] = None
        return told

    def _loop(self, loop: Any, later: dict[int, _Stack]) -> dict[str, Any]:
        thread = objects.field_of(loop, "_thread_id")
        if thread is None:
            thread = next((ident for ident, stack in self.stacks.items() if stack.loop is loop), None)
        told: dict[str, Any] = {
            "loop": f"{type(loop).__module__}.{type(loop).__qualname__}",
            "thread": thread,
        }
        task = self.running.get(id(loop))
        told["running"] = _text(objects.task_name(task) or "") if task is not None else None
        before, after = self.stacks.get(thread or 0), later.get(thread or 0)
        if before is None or after is None:
            # Another thread than ours runs it, or none; or it is uvloop's, which does not say.
            told["state"] = "busy" if task is not None else "unknown"
        elif before.polls or after.polls:
            told["state"] = "waits for events"
        elif not isinstance(loop, asyncio.BaseEventLoop) and task is None:
            told["state"] = "unknown"
        else:
            told["state"] = "busy"
            told["at"] = after.at
            told["stack"] = after.told()
            # Two looks at the same line: it has not been back at the loop in between, or comes there all the time.
            told["blocked"] = before.at == after.at and self.running.get(id(loop)) is _running_in(loop)
        return told

    def _count_left_out(self, chosen: set[int]) -> None:
        left = [task for task in self.tasks if id(task) not in chosen]
        if not left:
            return
        kinds: Counter[str] = Counter()
        for task in left:
            coroutine = objects.coroutine_of(task)
            kinds[_text(str(getattr(coroutine, "__qualname__", type(coroutine).__name__)))] += 1
        self.left_out["tasks"] = len(left)
        self.left_out["of"] = dict(kinds.most_common(MOST_KINDS))

    # Hops

    def hops(self) -> list[dict[str, Any]]:
        """The open hops, each with those below it, oldest first."""
        hops = self.process.ledger.open_hops()
        if len(hops) > self.most:
            self.left_out["hops"] = len(hops) - self.most
        told = {id(hop): self._hop(hop) for hop in hops[: self.most]}
        out = []
        for hop in hops[: self.most]:
            # The parent may have closed, and so be nobody that is listed here.
            above = told.get(id(hop.parent)) if hop.parent is not None else None
            if above is not None and _depth(hop) < DEEPEST:
                above.setdefault("below", []).append(told[id(hop)])
            else:
                out.append(told[id(hop)])
        return out

    def _hop(self, hop: Entry) -> dict[str, Any]:
        told: dict[str, Any] = {
            "id": hop.id,
            "cascade": hop.cascade,
            "parent": hop.parent_id or None,
            "kind": hop.kind,
            "name": _text(hop.name),
            "since": _moment(hop.started),
            "age": round((time.time_ns() - hop.started) / 1e9, 3),
            "done": hop.done is not None,
            "children": hop.children,
            "counted": len(hop.live or ()),
            "items": hop.held,
            "dropped": hop.dropped,
        }
        if hop.late:
            told["late"] = True
        told["waits_on"] = None
        if time.monotonic() <= self.until:
            try:
                waiting, _ = hop_waits.what_it_waits_on(hop, self.timers)
                told["waits_on"] = waits.with_times(waiting) if waiting is not None else None
            except Exception:  # noqa: BLE001
                failed("ps.hop")
        return told

    # Deadlocks

    def _cycles(self) -> list[waits.Deadlock]:
        until = time.perf_counter_ns() + int(CYCLES_BUDGET * 1e9)
        return waits.deadlocks(self.tasks, deadlocks.KNOWN, timers=waits.Timers(), until=until)

    def deadlocks(self) -> list[dict[str, Any]]:
        """The cycles of tasks that wait for one another for ever, whether anybody has told of them or not."""
        try:
            found = [
                each
                for each in (self._cycles() if self._candidates else [])
                if any(each.same_as(before) for before in self._candidates)
            ]
            if len(found) > MOST_DEADLOCKS:
                self.left_out["deadlocks"] = len(found) - MOST_DEADLOCKS
            return [self._deadlock(each) for each in found[:MOST_DEADLOCKS]]
        except Exception:  # noqa: BLE001
            failed("ps.deadlocks")
            return []

    def _deadlock(self, deadlock: waits.Deadlock) -> dict[str, Any]:
        told = deadlock.as_dict()
        told["tasks"] = deadlock.size
        told["words"] = encodable(told["words"])
        told["edges"] = [{**edge.as_dict(), "words": edge.words} for edge in deadlock.edges]
        hops = []
        for task in deadlock.tasks():
            entry = self.entries.get(id(task))
            hop = entry if isinstance(entry, Entry) and entry.visible else entry.parent if entry else None
            if hop is not None and hop.id not in hops:
                hops.append(hop.id)
        told["hops"] = hops
        return told

    # Threads

    def threads(self) -> list[dict[str, Any]]:
        """Where each thread is; those of hopwatch itself are only named."""
        if len(self.stacks) > MOST_THREADS:
            self.left_out["threads"] = len(self.stacks) - MOST_THREADS
        out = []
        for ident, stack in list(self.stacks.items())[:MOST_THREADS]:
            thread = self.names.get(ident)
            name = thread.name if thread is not None else None
            out.append(
                {
                    "thread": ident,
                    "name": _text(str(name)) if name is not None else None,
                    "daemon": thread.daemon if thread is not None else None,
                    "at": stack.at,
                    "stack": [] if name in _OURS else stack.told(),
                    "ours": name in _OURS,
                }
            )
        return out


def _depth(hop: Entry) -> int:
    depth, above = 0, hop.parent
    while above is not None and depth < DEEPEST:
        depth, above = depth + 1, above.parent
    return depth


def _origin(entry: Entry | Note) -> tuple[Any, int]:
    """Code and line of where a task was made."""
    if isinstance(entry, Note):
        return entry.code, records.line_of((entry.code, entry.offset))
    if entry.origin is None:
        return None, 0
    code = entry.origin[0]
    return code, records.line_of(entry.origin)


def awaited_by(task: Any) -> list[Any]:
    """The tasks that a task awaits: one, those of a gather, of `asyncio.wait`, or of a task group."""
    future = objects.waits_for(task)
    if future is None or not objects.is_pending(future):
        return []
    if objects.is_a(future, objects.TASK_TYPES):
        return [future]
    found: Any = None
    if objects.is_a(future, objects.GATHERING):
        found = objects.field_of(future, "_children")
    else:
        frames, _ = chain.walk(objects.coroutine_of(task))
        _, tail = chain.split(frames)
        kind, at = chain.primitive(tail)
        if kind == "wait" and at is not None:
            found = judging.awaited_set(at, frames)
        elif kind == "task_group" and at is not None:
            found = objects.field_of(chain.own(at, objects.TASK_GROUP), "_tasks")
        elif frames and frames[-1].name in (
            "wait_for",
            "_cancel_and_wait",
        ):  # 3.10 and 3.11: in a task of its own
            found = [
                thing
                for thing in objects.referents(frames[-1].awaitable)
                if objects.is_a(thing, (*objects.FUTURES,)) and thing is not future
            ]
        elif frames and chain.is_anyio_group(frames[-1]):
            group = next(
                (
                    t
                    for t in objects.referents(frames[-1].awaitable)
                    if objects.type_name(type(t)) == "TaskGroup"
                ),
                None,
            )
            found = objects.field_of(group, "_tasks")
        else:
            found = [_shielded(future)]
    if type(found) not in (set, frozenset, list, tuple):
        return []
    return [
        each
        for each in _again(lambda: found)
        if objects.is_a(each, objects.TASK_TYPES) and not objects.has_ended(each)
    ]


def _shielded(future: Any) -> Any:
    for callback in objects.callbacks_of(future):
        if getattr(callback, "__qualname__", "") == "shield.<locals>._outer_done_callback":
            cells = dict(zip(callback.__code__.co_freevars, objects.cells_of(callback), strict=False))
            return cells.get("inner")
    return None
