"""Which tasks wait for one another so that none of them can ever go on? Deadlocks, read from live objects.

The graph is one of needs. A task needs another task to end (it awaits it), to release a lock, to take from a queue or to
call `task_done`. Needs are of two sorts: of *every* one, so that one that cannot go on holds it up (`asyncio.wait`,
`gather(return_exceptions=True)`), and of *some* one, so that only all of them together hold it up (the holders of a
semaphore; the tasks of a `gather` or a task group, any of which may fail and thereby end the wait).

Whatever is in doubt is taken to go on: a bare future, an event, a condition, a `get` from a queue, a lock of which nobody
knows who holds it, a timer that is pending. What is left when all that can go on has been taken away, again and again, can
never go on, and it contains a cycle. So a deadlock is reported only if each of its edges is certain. It can still be undone
from outside the graph: somebody may cancel one of the tasks, or release a lock that is not theirs.

As in the rest of this package nothing runs code of the application, and nothing that is remembered keeps an object alive.
What only instrumentation can know comes in as functions (`Known`). One look may see two moments; whoever reports
compares two looks (`Deadlock.same_as`): every wait is a future of its own, so equal waits mean that nobody moved between.
"""

from __future__ import annotations

import asyncio
import time
import types
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hopwatch.waits.chain import ASYNCIO, Frame, is_anyio_group, own, primitive, split, walk
from hopwatch.waits.deadlock import TOLD, Deadlock, Need, Node, edge_of, holds_up, labels_of, tasks_in
from hopwatch.waits.judging import awaited_set
from hopwatch.waits.objects import (
    FUTURES,
    GATHERING,
    TASK_GROUP,
    TASK_TYPES,
    callbacks_of,
    content,
    coroutine_of,
    field_of,
    has_ended,
    is_a,
    is_pending,
    loop_of,
    raw_referents,
    referents,
    task_name,
    type_name,
    waits_for,
)
from hopwatch.waits.reach import awaiting, cell_named, names_in, refers_to, times_inside
from hopwatch.waits.timers import Timers, hidden_timer, timer_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

NODES: Final = 2048
"""How many tasks one look takes in."""
CHILDREN: Final = 1024
"""How many tasks one wait may be for; beyond it, doubt."""
ABOVE: Final = 128
"""How many tasks that await those of a deadlock are asked for a deadline; beyond it, doubt."""
REFERRING: Final = 256
"""How many tasks a loop may have for a queue's parties to be known; beyond it, doubt."""
SCANNED: Final = 512
"""How many tasks a loop may have for the holder of a lock to be looked for among all of them."""
REMEMBERED: Final = 65_536


def _nobody(_: object) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Known:
    """What only instrumentation knows. Each function may be called from any thread and says None for "not known".

    Attributes:
        holders: The task that holds a lock, or those that hold a semaphore.
        permits: How many may hold a semaphore at once.
        takers: Every task that has ever taken an item from a queue, since the queue was made.
        working: The tasks that took an item from a queue and have not called `task_done` for it.
        tasks: All tasks of a loop.
    """

    holders: Callable[[object], Any] = _nobody
    permits: Callable[[object], int | None] = _nobody
    takers: Callable[[object], Collection[Any] | None] = _nobody
    working: Callable[[object], Collection[Any] | None] = _nobody
    tasks: Callable[[object], Collection[Any] | None] = _nobody


class Free:
    """The waits that were found to be none of a deadlock's, so that the next look need not read them again.

    A wait is a future of its own: as long as a task waits for the same one, the answer holds.
    """

    __slots__ = ("_waits",)

    def __init__(self) -> None:
        self._waits: dict[int, tuple[weakref.ref[Any], weakref.ref[Any]]] = {}

    def __contains__(self, wait: tuple[object, object]) -> bool:
        known = self._waits.get(id(wait[0]))
        return known is not None and known[0]() is wait[0] and known[1]() is wait[1]

    def add(self, task: object, future: object) -> None:
        """Remember a wait."""
        if len(self._waits) >= REMEMBERED:
            self._waits.clear()
        self._waits[id(task)] = (weakref.ref(task), weakref.ref(future))


def find(
    tasks: Iterable[Any],
    known: Known,
    *,
    free: Free | None = None,
    timers: Timers | None = None,
    until: int | None = None,
) -> list[Deadlock]:
    """Return the deadlocks that any of `tasks` is part of or waits for. From any thread; it never raises.

    Args:
        tasks: Where to begin. What they lead to is looked at as well, whether it is among them or not.
        known: What the instrumentation knows.
        free: What earlier looks have found, for cheaper looks.
        timers: What the questions of one tick share.
        until: When to stop taking in more, by `time.perf_counter_ns`. What was not looked at is taken to go on.
    """
    try:
        return _Graph(known, free if free is not None else Free(), timers, until).found(tasks)
    except Exception:  # noqa: BLE001  (a watcher in somebody's production must not be what fails)
        return []


class _Graph:
    """One look."""

    def __init__(self, known: Known, free: Free, timers: Timers | None, until: int | None) -> None:
        self.known = known
        self.free = free
        self.timers = timers
        self.until = until
        self.nodes: dict[int, Node] = {}
        self.seen: set[int] = set()
        self.todo: deque[Any] = deque()
        self.looping: dict[int, list[Any] | None] = {}

    def found(self, tasks: Iterable[Any]) -> list[Deadlock]:
        for task in tasks:
            if self._late():
                break
            self.todo.append(task)
            while self.todo and len(self.nodes) < NODES and not self._late():
                self._take_in(self.todo.popleft())
            self.todo.clear()
        stuck = self._stuck({*self.nodes})
        for _ in range(8):
            cycles = [cycle for cycle in self._cycles(stuck) if cycle]
            if not cycles:
                return []
            # What the cycles rest on, though it is no part of them, must not be freed either.
            bounded = {key for key in self._resting_on(cycles, stuck) if self._is_bounded(self.nodes[key])}
            if not bounded:
                return [self._told(cycle, stuck) for cycle in cycles if self._still(cycle)]
            stuck = self._stuck(stuck - bounded)
        return []

    def _late(self) -> bool:
        return self.until is not None and time.perf_counter_ns() > self.until

    # Reading ---------------------------------------------------------------------------------------------------

    def _take_in(self, task: Any) -> None:
        if id(task) in self.seen:
            return
        self.seen.add(id(task))
        node = self._node(task)
        if node is not None:
            self.nodes[id(task)] = node
            self.todo.extend(tasks_in(node.need))

    def _node(self, task: Any) -> Node | None:
        if not is_a(task, TASK_TYPES):
            return None
        future = waits_for(task)
        if not is_pending(future) or (task, future) in self.free:
            return None
        node = Node(task, future, "task", Need(every=True, of=[]))
        need = (
            self._future(node, future, 0) if is_a(future, (*TASK_TYPES, *GATHERING)) else self._walked(node)
        )
        if need is None:
            return None
        node.need = need
        return node

    def _goes_on(self, task: Any) -> bool:
        """Whether a task is known to go on without its frames being read."""
        future = waits_for(task)
        return not is_pending(future) or (task, future) in self.free

    def _walked(self, node: Node) -> Need | None:
        frames, lost = walk(coroutine_of(node.task))
        if lost or not frames or waits_for(node.task) is not node.future:
            return None
        node.frames = frames
        decisive, tail = split(frames)
        kind, at = primitive(tail)
        last = frames[-1]
        if kind is None and last.place == ASYNCIO and last.name in {"wait_for", "_cancel_and_wait"}:
            # 3.10 and 3.11: it is waited for in a task of its own.
            inner = next(
                (t for t in referents(last.awaitable) if is_a(t, FUTURES) and t is not node.future), None
            )
            return self._future(node, inner, 0)
        if decisive is not None and kind is None and is_anyio_group(decisive):
            group = next(
                (t for t in referents(decisive.awaitable) if type_name(type(t)) == "TaskGroup"), None
            )
            return self._group(node, group)
        if at is None:
            need = self._future(node, node.future, 0)
            if need is None and _shielded(node.future) is None:
                self.free.add(node.task, node.future)
            return need
        if kind == "lock":
            return self._lock(node, own(at, asyncio.Lock))
        if kind == "semaphore":
            return self._semaphore(node, own(at, asyncio.Semaphore))
        if kind == "wait" and at.name == "_wait":
            return self._wait(node, at, frames)
        if kind == "task_group" and TASK_GROUP:
            return self._group(node, own(at, TASK_GROUP))
        if kind == "queue_put":
            return self._put(node, own(at, asyncio.Queue))
        if kind == "queue_join":
            return self._join(node, own(at, asyncio.Queue))
        self.free.add(node.task, node.future)  # it ends by itself, or nobody knows how, whatever others do
        return None

    def _future(self, node: Node, future: Any, depth: int) -> Need | None:
        if not is_pending(future) or depth > 8:
            return None
        if is_a(future, TASK_TYPES):
            return None if self._goes_on(future) else Need(every=True, of=[future])
        if is_a(future, GATHERING):
            node.kind = "gather"
            return self._gather(node, future, depth)
        inner = _shielded(future)
        return self._future(node, inner, depth + 1) if inner is not None else None

    def _gather(self, node: Node, future: Any, depth: int) -> Need | None:
        children = field_of(future, "_children")
        if type(children) is not list or len(children) > CHILDREN:
            return None
        children = [*{id(child): child for child in children}.values()]
        pending = [child for child in children if is_pending(child)]
        every = False
        for callback in callbacks_of(pending[0]) if pending else ():
            if (
                type(callback) is types.FunctionType
                and callback.__qualname__ == "gather.<locals>._done_callback"
                and cell_named(callback, "outer") is future
            ):
                every = cell_named(callback, "return_exceptions") is True
        if not every and any(_has_failed(child) for child in children if not is_pending(child)):
            return None  # it is about to end with that failure
        return self._many(node, pending, depth, every=every)

    def _many(self, node: Node, pending: Collection[Any], depth: int, *, every: bool) -> Need | None:
        needs: list[Any] = []
        for one in pending:
            need = self._future(node, one, depth + 1)
            if need is not None:
                needs.extend(need.of if need.every == every or len(need.of) == 1 else [need])
            elif not every:
                return None
        return Need(every=every, of=needs) if needs else None

    def _group(self, node: Node, group: Any) -> Need | None:
        node.kind = "task_group"
        children = field_of(group, "_tasks")
        if type(children) is not set or len(children) > CHILDREN:
            return None
        tasks = list(children)
        if any(not is_pending(task) for task in tasks):
            return None  # something has just ended
        return self._many(node, tasks, 0, every=False)

    def _wait(self, node: Node, at: Frame, frames: list[Frame]) -> Need | None:
        node.kind = "wait"
        awaited = awaited_set(at, frames)
        if type(awaited) not in (set, frozenset, list) or len(awaited) > CHILDREN:
            return None
        awaited = list(awaited)
        things = [content(t) if type(t) is types.CellType else t for t in raw_referents(at.awaitable)]
        every = any(type(thing) is str and thing == asyncio.ALL_COMPLETED for thing in things)
        if not every and any(not is_pending(one) for one in awaited):
            return None  # it has ended, or something of it has failed, or nobody can tell
        return self._many(node, [one for one in awaited if is_pending(one)], 0, every=every)

    def _lock(self, node: Node, lock: Any) -> Need | None:
        node.kind, node.owner = "lock", lock
        if (
            lock is None
            or field_of(lock, "_locked") is not True
            or not _is_in(field_of(lock, "_waiters"), node.future)
        ):
            return None
        holders = [one for one in _listed(self.known.holders(lock)) if not has_ended(one)]
        if not holders:  # taken outside of what the instrumentation watches
            holders = [task for task, _ in self._inside(lock, loop_of(node.task))]
        if len(holders) != 1:
            return None
        return Need(every=True, of=holders) if self._keeps(holders[0], lock, node) else None

    def _keeps(self, task: Any, lock: Any, node: Node) -> bool:
        """Whether a task that is said to hold a lock is one that will release it itself."""
        if self._goes_on(task):
            return False
        frames, lost = walk(coroutine_of(task))
        if lost:
            return False
        if times_inside(frames, lock) > (task is node.task or self._waits_at(task, lock)):
            return True
        # Taken and released by hand. That a task waits for what it holds itself is then how a lock is used as a signal.
        if task is node.task or not any("release" in names for names in map(names_in, frames)):
            return False
        return not self._inside(lock, loop_of(task))  # nobody else is seen to hold it

    def _waits_at(self, task: Any, lock: Any) -> bool:
        """Whether a task waits to get this very lock: an `async with` that is being entered looks like one that was."""
        return _is_in(field_of(lock, "_waiters"), waits_for(task))

    def _semaphore(self, node: Node, semaphore: Any) -> Need | None:
        node.kind, node.owner = "semaphore", semaphore
        if semaphore is None or field_of(semaphore, "_value") != 0:
            return None
        if not _is_in(field_of(semaphore, "_waiters"), node.future):
            return None
        permits = field_of(semaphore, "_bound_value") or self.known.permits(semaphore)
        if not permits:
            return None
        holders = [*{id(one): one for one in _listed(self.known.holders(semaphore))}.values()]
        # One that is taken by hand may be released by anybody: that is how producers and consumers use it.
        inside = [(one, self._times(one, semaphore)) for one in holders]
        if sum(times for _, times in inside) < permits:
            inside = self._inside(semaphore, loop_of(node.task))
        holders = [one for one, times in inside if times > 0]
        if sum(times for _, times in inside) != permits or any(self._goes_on(one) for one in holders):
            return None
        return Need(every=False, of=holders)

    def _times(self, task: Any, lock: Any) -> int:
        """How many `async with` blocks of a lock or semaphore a task is inside of."""
        frames, lost = walk(coroutine_of(task))
        return 0 if lost else times_inside(frames, lock) - self._waits_at(task, lock)

    def _inside(self, lock: Any, loop: Any) -> list[tuple[Any, int]]:
        """Who of all tasks of a loop is inside an `async with` of a lock or semaphore."""
        tasks = self._tasks_of(loop)
        if tasks is None or len(tasks) > SCANNED:
            return []
        out = []
        for task in tasks:
            if self._late():
                return []
            times = self._times(task, lock)
            if times > 0:
                out.append((task, times))
        return out

    def _tasks_of(self, loop: Any) -> list[Any] | None:
        if id(loop) not in self.looping:
            tasks = self.known.tasks(loop)
            self.looping[id(loop)] = None if tasks is None else list(tasks)
        return self.looping[id(loop)]

    def _put(self, node: Node, queue: Any) -> Need | None:
        node.kind, node.owner = "queue_put", queue
        if not _is_in(field_of(queue, "_putters"), node.future):
            return None
        takers = self.known.takers(queue)
        if not takers:
            return None
        parties = self._parties(queue, node)
        if parties is None or any(self._goes_on(one) or _getting_from(one, queue) for one in parties):
            return None
        alive = [one for one in takers if not has_ended(one)]
        if not alive:
            return None
        found = {id(one): one for one in (*alive, *parties) if one is not node.task or one in alive}
        return Need(every=False, of=[*found.values()])

    def _join(self, node: Node, queue: Any) -> Need | None:
        node.kind, node.owner = "queue_join", queue
        unfinished = field_of(queue, "_unfinished_tasks")
        working = self.known.working(queue)
        if type(unfinished) is not int or unfinished < 1 or not working:
            return None
        if any(has_ended(one) for one in working):
            return None
        parties = self._parties(queue, node)
        if parties is None:
            return None
        # Who took an item has to say that it is done; so could whoever else can reach the queue, unless it waits for more.
        others = [
            one
            for one in parties
            if not any(one is each for each in working)
            and not _getting_from(one, queue)
            and one is not node.task
        ]
        if any(self._goes_on(one) for one in others):
            return None
        return Need(every=False, of=[Need(every=True, of=[*working]), *others])

    def _parties(self, queue: Any, node: Node) -> list[Any] | None:
        """The tasks that can reach a queue from their frames, None where that cannot be told."""
        tasks = self._tasks_of(loop_of(node.task))
        if tasks is None or len(tasks) > REFERRING or self._late():
            return None
        return [task for task in tasks if not has_ended(task) and refers_to(task, queue)]

    # Solving ---------------------------------------------------------------------------------------------------

    def _stuck(self, keys: set[int]) -> set[int]:
        """Take away what can go on, until nothing more can."""
        stuck = set(keys)
        needed_by: dict[int, list[int]] = {}
        for key in stuck:
            for task in tasks_in(self.nodes[key].need):
                needed_by.setdefault(id(task), []).append(key)
        todo = [key for key in stuck if not holds_up(self.nodes[key].need, stuck)]
        while todo:
            key = todo.pop()
            if key not in stuck:
                continue
            stuck.discard(key)
            todo.extend(
                each
                for each in needed_by.get(key, ())
                if each in stuck and not holds_up(self.nodes[each].need, stuck)
            )
        return stuck

    def _below(self, key: int, stuck: set[int]) -> list[int]:
        return [id(task) for task in tasks_in(self.nodes[key].need) if id(task) in stuck]

    def _cycles(self, stuck: set[int]) -> list[list[int]]:
        """Return the strongly connected sets among what is stuck (Tarjan's, without recursion)."""
        order: dict[int, int] = {}
        low: dict[int, int] = {}
        path: list[int] = []
        on_path: set[int] = set()
        out: list[list[int]] = []
        for root in stuck:
            if root in order:
                continue
            work = [(root, iter(self._below(root, stuck)))]
            order[root] = low[root] = len(order)
            path.append(root)
            on_path.add(root)
            while work:
                key, below = work[-1]
                for each in below:
                    if each not in order:
                        order[each] = low[each] = len(order)
                        path.append(each)
                        on_path.add(each)
                        work.append((each, iter(self._below(each, stuck))))
                        break
                    if each in on_path:
                        low[key] = min(low[key], order[each])
                else:
                    work.pop()
                    if work:
                        low[work[-1][0]] = min(low[work[-1][0]], low[key])
                    if low[key] == order[key]:
                        found = []
                        while True:
                            each = path.pop()
                            on_path.discard(each)
                            found.append(each)
                            if each == key:
                                break
                        if len(found) > 1 or key in self._below(key, stuck):
                            out.append(self._in_order(found))
        return out

    def _in_order(self, keys: list[int]) -> list[int]:
        """A cycle as one would tell it: each after one that waits for it, by name from the first."""
        left = set(keys)
        out: list[int] = []
        todo = [min(keys, key=lambda key: task_name(self.nodes[key].task) or "")]
        while left:
            key = todo.pop() if todo else next(iter(left))
            if key not in left:
                continue
            left.discard(key)
            out.append(key)
            todo.extend(each for each in reversed(self._below(key, left)))
        return out

    def _resting_on(self, cycles: list[list[int]], stuck: set[int]) -> set[int]:
        reached: set[int] = set()
        todo = [key for cycle in cycles for key in cycle]
        while todo:
            key = todo.pop()
            if key not in reached:
                reached.add(key)
                todo.extend(self._below(key, stuck))
        return reached

    # Doubts ----------------------------------------------------------------------------------------------------

    def _is_bounded(self, node: Node) -> bool:
        """Whether a timer will end this wait: its own, or one of a task that awaits this one and would cancel it."""
        if self._deadline(node.task, (node.future, node.owner)):
            return True
        seen = {id(node.task)}
        todo = [node.task]
        while todo:
            for above in awaiting(todo.pop()):
                if id(above) in seen:
                    continue
                if len(seen) > ABOVE or self._deadline(above, (waits_for(above),)):
                    return True
                seen.add(id(above))
                todo.append(above)
        return False

    def _deadline(self, task: Any, others: tuple[Any, ...]) -> bool:
        frames, lost = walk(coroutine_of(task))
        if lost or timer_in(frames, task) is not None:
            return True
        if self.timers is None:
            self.timers = Timers()
        handles = self.timers.of(loop_of(task))
        handles.read()
        if handles.ending({id(task), *(id(one) for one in others if one is not None)})[0]:
            return True
        return not handles.complete and hidden_timer(frames, task) is not None

    def _still(self, cycle: list[int]) -> bool:
        nodes = [self.nodes[key] for key in cycle]
        return all(is_pending(node.future) and waits_for(node.task) is node.future for node in nodes)

    # Telling ---------------------------------------------------------------------------------------------------

    def _told(self, cycle: list[int], stuck: set[int]) -> Deadlock:
        nodes = [self.nodes[key] for key in cycle]
        labels = labels_of(nodes[: 4 * TOLD])
        held: dict[int, list[str]] = {}
        for node in nodes:
            if node.kind in ("lock", "semaphore"):
                for holder in tasks_in(node.need):
                    name = labels.get(id(node.owner), "")
                    if name and name not in held.setdefault(id(holder), []):
                        held[id(holder)].append(name)
        edges = tuple(
            edge_of(node, labels, tuple(held.get(id(node.task), ())), stuck) for node in nodes[:TOLD]
        )
        waits = tuple((weakref.ref(node.task), weakref.ref(node.future)) for node in nodes)
        return Deadlock(edges, len(nodes), self._behind({*cycle}, stuck), waits)

    def _behind(self, cycle: set[int], stuck: set[int]) -> tuple[weakref.ref[Any], ...]:
        """The tasks that need one of a cycle, directly or through others, and whose wait no timer ends."""
        needed_by: dict[int, list[int]] = {}
        for key in stuck:
            for each in self._below(key, stuck):
                needed_by.setdefault(each, []).append(key)
        reached, bounded = set(cycle), set[int]()
        todo = [*cycle]
        while todo:
            for each in needed_by.get(todo.pop(), ()):
                if each not in reached and each not in bounded:
                    if self._late():
                        break
                    if self._is_bounded(self.nodes[each]):
                        bounded.add(each)
                        continue
                    reached.add(each)
                    todo.append(each)
        return tuple(weakref.ref(self.nodes[key].task) for key in reached - cycle)


def _listed(found: Any) -> list[Any]:
    if found is None:
        return []
    return [*found] if type(found) in (list, tuple, set, frozenset) else [found]


def _is_in(waiting: Any, future: Any) -> bool:
    return type(waiting) is deque and any(one is future for one in list(waiting))


def _has_failed(future: Any) -> bool:
    return field_of(future, "_state") == "CANCELLED" or field_of(future, "_exception") is not None


def _shielded(future: Any) -> Any:
    """What a `shield` stands before, None where this future is none."""
    for callback in callbacks_of(future):
        if (
            type(callback) is types.FunctionType
            and callback.__qualname__ == "shield.<locals>._outer_done_callback"
        ):
            inner = cell_named(callback, "inner")
            return inner if is_a(inner, FUTURES) and inner is not future else None
    return None


def _getting_from(task: Any, queue: Any) -> bool:
    return _is_in(field_of(queue, "_getters"), waits_for(task))
