"""Can what a task waits on move by itself?"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import types
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from hopwatch.waits import databases
from hopwatch.waits.chain import (
    APPLICATION,
    ASYNCIO,
    LIBRARY,
    LOCKS,
    PASSIVE,
    SDK,
    Frame,
    is_anyio_group,
    is_sending,
    own,
    own_named,
    package_of,
    place_of,
    primitive,
    split,
    told,
    walk,
    worker_of_anyio,
)
from hopwatch.waits.facts import Job, Queue
from hopwatch.waits.objects import (
    FUTURES,
    GATHERING,
    TASK_GROUP,
    TASK_TYPES,
    callbacks_of,
    cells_of,
    content,
    coroutine_of,
    field_of,
    has_ended,
    is_a,
    is_pending,
    loop_of,
    module_of,
    raw_referents,
    referents,
    task_name,
    type_name,
    waits_for,
)
from hopwatch.waits.reach import awaiting
from hopwatch.waits.sockets import wanted
from hopwatch.waits.timers import Timers, clock, delay_of, handles_in, hidden_timer, timer_in, unix
from hopwatch.waits.wait import ENDED, MOVING, PHRASES, RUNNING, UNREADABLE, Wait, words_for

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from hopwatch.waits.facts import Send
    from hopwatch.waits.wait import Across, Kind

    Holders = asyncio.Task[Any] | Collection[asyncio.Task[Any]] | None
    HolderOf = Callable[[object], Holders]

TASKS: Final = 128
"""How many tasks one question looks at; beyond it, doubt."""
DEPTH: Final = 32
"""How many tasks that await one another are followed in a row."""
LISTED: Final = 16
ABOVE: Final = 128
"""How many tasks that await one whose answer is owed are asked for a deadline; beyond it, doubt."""
SORTED: Final = 256
"""How many tasks of a set are told in the order of their names."""
NAMED: Final = 4
"""How many tasks a phrase names."""


def of_task(
    task: asyncio.Task[Any],
    *,
    holder_of: HolderOf | None = None,
    working_on: Callable[[object], Collection[Any] | None] | None = None,
    send_of: Callable[[object], Send | None] | None = None,
    made_in: str | None = None,
    timers: Timers | None = None,
    across: Across | None = None,
    rests_on: list[Any] | None = None,
    polling: Callable[[list[Frame]], tuple[int, object] | None] | None = None,
) -> Wait:
    """Tell what `task` waits on and whether that can move by itself. From any thread; it never raises.

    Args:
        task: The task. One that has ended or runs right now moves.
        holder_of: Tells which task holds a lock or semaphore, or None if that is not known; for a semaphore it may be a
            list, tuple or set of all who hold it, of whom one that moves is enough. A lock whose holder is not known is
            passive.
        working_on: Tells which tasks took an item from a queue and have not called `task_done` for it, or None if that is
            not known. It may be asked about any queue; who is not known may stand as None in what it returns.
        send_of: Tells which message to another agent a task is in the middle of sending, if any.
        made_in: The file that made the task, if known. It decides for a task that runs asyncio's own coroutine and
            nothing else, such as `create_task(queue.join())` in the A2A SDK, which else would be in doubt.
        timers: What the questions of one tick share, so that each loop's timers are read once for all of them.
        across: What is known of the hops that tasks work for; without it nothing is said of answers.
        rests_on: Is filled with a weak reference to each future that the answer rests on, unless it moves by itself.
            Each wait is a future of its own: the same references a second time mean that nobody moved between.
        polling: Tells of a `wait_for` whose timeout changes nothing, for whoever awaits it asks again: its place among the
            frames, and an object that stays the same until something was got there.
    """
    try:
        look = _Look(holder_of, timers, working_on, send_of, across, polling)
        wait = look.at_task(task, LIBRARY if made_in is None else place_of(made_in))
        if wait.asks or not wait.moves:
            wait = look.confirmed(wait)
        if rests_on is not None and (wait.asks or not wait.moves):
            rests_on.extend(
                weakref.ref(look.stays.get(place, future)) for place, (_, future) in enumerate(look.rests_on)
            )
    except Exception:  # noqa: BLE001  (a watcher in somebody's production must not be what fails)
        return UNREADABLE
    return wait


def glance(task: asyncio.Task[Any]) -> Wait:
    """Tell the little that is cheap about `task`: its own frames and the sort of future. It never raises.

    For finalizers, where a task may be half gone. It looks at no other task, no callback and no timer, so `moves` is
    False only where `of_task` would have to find one of those to say True.
    """
    try:
        future = waits_for(task)
        if not is_pending(future):
            return RUNNING if not has_ended(task) else ENDED
        frames, lost = walk(coroutine_of(task))
        decisive, tail = split(frames)
        place = decisive.place if decisive else LIBRARY
        kind, _ = primitive(tail)
        if kind is None:
            kind = "task" if is_a(future, TASK_TYPES) else "gather" if is_a(future, GATHERING) else "future"
        passive = kind not in MOVING and place in PASSIVE and not lost
        return _told(Wait(kind, moves=not passive, what=PHRASES.get(kind, kind).format("")), task, frames)
    except Exception:  # noqa: BLE001  (as above, and a finalizer has nobody to tell)
        return UNREADABLE


def _told(wait: Wait, task: object, frames: list[Frame]) -> Wait:
    """Add whose wait it is and where."""
    file, line, function = wait.file, wait.line, wait.function
    if file is None:
        for frame in reversed(frames):
            if frame.place == APPLICATION:
                file, line, function = frame.file, frame.line, frame.function
                break
    what = wait.what
    if frames and frames[-1].closed:
        last = frames[-1]
        what = f"{what}; its coroutine is closed, and all that is left is that it was written at {last.file}:{last.line}"
    return Wait(  # `replace` takes twice as long
        wait.kind, wait.moves, what, file, line, function, task_name(task), wait.until, wait.peer, wait.holder,
        wait.of, told(frames) + wait.chain, wait.asks, wait.expires, wait.holder_hop, wait.holders, wait.seconds,
        wait.queue, wait.job, wait.send,
    )  # fmt: skip


def asked(waits: Collection[Wait]) -> tuple[tuple[str, ...], float | None]:
    """Return which sends have to be answered for any of these waits to end, and when a timer ends one of them.

    Nothing where one of them may end for another reason.
    """
    moving = [wait for wait in waits if wait.moves]
    if not all(wait.asks for wait in moving):
        return (), None
    asks = tuple({ask: None for wait in moving for ask in wait.asks})
    return asks, min((wait.expires for wait in moving if wait.expires is not None), default=None)


class _Look:
    """One question and what it has seen so far."""

    def __init__(
        self,
        holder_of: HolderOf | None,
        timers: Timers | None,
        working_on: Callable[[object], Collection[Any] | None] | None,
        send_of: Callable[[object], Send | None] | None,
        across: Across | None,
        polling: Callable[[list[Frame]], tuple[int, object] | None] | None,
    ) -> None:
        self.polling = polling
        self.harmless: set[int] = set()  # ids of timers of polls, which only have them ask again
        self.stays: dict[
            int, Any
        ] = {}  # what of a poll stays the same, by the place of its future in `rests_on`
        self.holder_of = holder_of
        self.working_on = working_on
        self.send_of = send_of
        self.across = across
        self.timers = timers or Timers()
        self.answers: dict[int, Wait | None] = {}  # None: still being asked, so coming back to it is a cycle
        self.rests_on: list[tuple[object, object]] = []  # (the task, or None; the future)
        self.owners: list[object] = []  # the events, locks and queues that they belong to
        self.cycle = False
        self.root: object = None

    def at_task(self, task: object, place: int, depth: int = 0) -> Wait:
        """Judge a task. `place` decides for frames that are all asyncio's own."""
        if self.root is None:
            self.root = task
        if id(task) in self.answers:
            known = self.answers[id(task)]
            name = task_name(task)
            if known is not None:
                return Wait(
                    known.kind,
                    known.moves,
                    f"{known.what} (told above)",
                    task=name,
                    asks=known.asks,
                    expires=known.expires,
                )
            self.cycle = self.cycle or task is self.root
            return Wait(
                "task", moves=False, what=f"task '{name}', which in turn waits for this: a cycle", task=name
            )
        if depth >= DEPTH or len(self.answers) >= TASKS:
            return Wait("unknown", moves=True, what="more tasks than are looked at", task=task_name(task))
        self.answers[id(task)] = None
        wait = self._task(task, place, depth)
        self.answers[id(task)] = wait
        return wait

    def _task(self, task: object, place: int, depth: int) -> Wait:
        if not is_a(task, TASK_TYPES):
            return Wait("unknown", moves=True, what="a task of a foreign kind")
        future = waits_for(task)
        if has_ended(task):
            return replace(ENDED, task=task_name(task))
        frames, lost = walk(coroutine_of(task))
        if future is None or not is_pending(future):
            if future is None or is_a(future, FUTURES):
                return _told(RUNNING, task, frames)
            return _told(Wait("unknown", moves=True, what="a future of a foreign kind"), task, frames)
        if not frames:
            # An eager task (3.12) that has not been started has no coroutine to look at.
            return _told(Wait("unknown", moves=True, what="something that has no frames"), task, frames)
        decisive, tail = split(frames)
        if decisive is not None:
            place = decisive.place
        poll = self.polling(frames) if self.polling is not None else None
        first = len(self.rests_on)
        self.rests_on.append((task, future))
        wait = self._inner(frames, decisive, tail, future, place=LIBRARY if lost else place, depth=depth)
        bounding = frames
        if poll is not None:
            at, stays = poll
            self.harmless.update(handles_in(frames[at]))
            self.stays.update(dict.fromkeys(range(first, len(self.rests_on)), stays))
            bounding = [*frames[:at], *frames[at + 1 :]]
        if (
            wait.kind in ("socket", "call")
            and self.across is not None
            and not databases.is_one(decisive)
            and (send := self.across.asks(task))
        ):
            wait = replace(wait, asks=(send,))
        if waits_for(task) is not future:
            return _told(
                RUNNING, task, []
            )  # it went on while it was looked at: the frames are of two moments
        when = timer_in(bounding, task)
        if when is None and (wait.asks or not wait.moves):
            handles = self.timers.of(loop_of(task))
            when = handles.ending((id(task),), but=self.harmless)[1]
            if when is None and not handles.complete:
                when = hidden_timer(bounding, task)
        wait = wait if when is None else _bounded(wait, when)
        return _told(self._sending(wait, task, frames), task, frames)

    def _sending(self, wait: Wait, task: object, frames: list[Frame]) -> Wait:
        """Say to whom a message is under way that the task waits for; it may have a stream open and wait for something else."""
        if self.send_of is None or not any(is_sending(frame) for frame in frames):
            return wait
        send = self.send_of(task)
        return wait if send is None else replace(wait, what=f"{send.words}: {wait.what}", send=send)

    def _inner(
        self,
        frames: list[Frame],
        decisive: Frame | None,
        tail: list[Frame],
        future: object,
        *,
        place: int,
        depth: int,
    ) -> Wait:
        """Judge what the innermost frames await."""
        for frame in reversed(frames):
            if frame.place == APPLICATION:
                break
            if "/grpc/aio/" in frame.file:
                return Wait("call", moves=True, what=PHRASES["call"])
        kind, at = primitive(tail)
        last = frames[-1]
        if decisive is last and last.place == SDK and (found := self._at_connection(last, depth)) is not None:
            return found
        if kind is None and last.place == ASYNCIO and last.name in {"wait_for", "_cancel_and_wait"}:
            inner = self._waited_for(last, future, place, depth)
            if inner is not None:
                return inner
        if kind == "socket" or (decisive is not None and _is_socket(decisive)):
            what, peer = wanted([*tail, decisive] if decisive else tail, at)
            return Wait("socket", moves=True, what=what, peer=peer)
        if decisive is not None and kind is None and is_anyio_group(decisive):
            group = next(
                (t for t in referents(decisive.awaitable) if type_name(type(t)) == "TaskGroup"), None
            )
            return self.at_many("task_group", field_of(group, "_tasks"), place, depth)
        worker = worker_of_anyio(decisive) if decisive is not None and kind is None else None
        if worker is not None:
            return _of_job(self.timers.threads.standing(worker))
        if at is None and databases.is_one(decisive):
            return databases.wait_of(frames, self.timers.threads)
        if at is None or kind == "thread":
            return self.at_future(future, place, depth, decisive if not tail else None)
        if kind == "sleep":
            seconds = delay_of(at)
            what = PHRASES["sleep"] if seconds is None else f"{PHRASES['sleep']}({seconds:g})"
            return Wait("sleep", moves=True, what=what, seconds=seconds)
        if kind == "wait":
            return self.at_many(kind, awaited_set(at, frames), place, depth)
        if kind == "task_group":
            return self.at_many(
                kind, field_of(own(at, TASK_GROUP), "_tasks") if TASK_GROUP else None, place, depth
            )
        return self._at_primitive(kind or "unknown", [at, *tail], decisive, place, depth)

    def _at_connection(self, frame: Frame, depth: int) -> Wait | None:
        """Judge what a message of the Agent Client Protocol waits for at its own end: to be written, or the answer."""
        file = frame.file.replace("\\", "/")
        if frame.name == "send_request" and file.endswith("/acp/connection.py"):
            connection = own_named(frame, "Connection")
            read = (
                self.across.is_read(connection) if self.across is not None and self.across.is_read else None
            )
            if read is False:
                what = "the answer, which can never come: nobody reads from the connection any more"
                return Wait("future", moves=False, what=what)
            return Wait("call", moves=True, what="the answer")
        if frame.name == "send" and file.endswith("/acp/task/sender.py"):
            writer = field_of(own_named(frame, "MessageSender"), "_task")
            if not is_a(writer, TASK_TYPES):
                return None
            name = task_name(writer)
            if has_ended(writer):
                error = field_of(writer, "_exception")
                how = f" with {type_name(type(error))}" if error is not None else ""
                what = f"'{name}' to write it, which has ended{how}, so nobody ever will"
                return Wait("future", moves=False, what=what)
            child = self.at_task(writer, SDK, depth + 1)
            how = f", which waits for {child.what}" if child.kind == "socket" else ""
            return Wait("task", moves=child.moves, what=f"'{name}' to write it{how}", of=(child,))
        return None

    def _at_primitive(
        self, kind: Kind, tail: list[Frame], decisive: Frame | None, place: int, depth: int
    ) -> Wait:
        classes = (
            _queue_classes()
            if kind.startswith("queue")
            else tuple(cls for cls, sort in LOCKS if cls and sort == kind)
        )
        # A queue of culsans is behind a proxy, so that only a frame further in has it.
        looked = tail if kind.startswith("queue") else tail[:1]
        owner = (
            next((found for frame in looked if (found := own(frame, classes)) is not None), None)
            if classes
            else None
        )
        if owner is not None:
            self.owners.append(owner)
        words = words_for(decisive, kind) if decisive is not None and place in PASSIVE else None
        label = f" `{words}`" if words else f" 0x{id(owner):x}" if owner is not None else ""
        what = PHRASES.get(kind, "something").format(label)
        queue = self._queue(owner) if kind.startswith("queue") and owner is not None else None
        if queue is not None and queue.words:
            what += f" ({queue.words})"
        if place not in PASSIVE:
            return Wait(kind, moves=True, what=f"{what}{_inside(decisive)}", queue=queue)
        if kind not in ("lock", "semaphore"):
            return Wait(kind, moves=kind in MOVING, what=what, queue=queue)
        if kind == "lock" and owner is not None and field_of(owner, "_locked") is False:
            return Wait(kind, moves=True, what=f"{what}, which is changing hands")
        holders = self._holders(owner)
        if not holders:
            return Wait(kind, moves=False, what=what)
        names = " and ".join(f"'{task_name(holder)}'" for holder in holders[:3]) + ", ..." * (
            len(holders) > 3
        )
        name, many = task_name(holders[0]), "s" * (len(holders) > 1)
        everybody = tuple(task_name(holder) or "a task" for holder in holders[:LISTED])
        alive = [holder for holder in holders if not has_ended(holder)]
        if not alive:
            ended = "has ended" if not many else "have ended"
            return Wait(
                kind,
                moves=False,
                what=f"{what}, never released by task{many} {names}, which {ended}",
                holder=name,
                holders=everybody,
            )
        held = tuple(self.at_task(holder, place, depth + 1) for holder in alive[:LISTED])
        moves = any(wait.moves for wait in held) or len(alive) > LISTED
        asks, expires = asked(held) if len(alive) <= LISTED else ((), None)
        hop = self.across.hop_of(alive[0]) if self.across is not None and len(holders) == 1 else None
        return Wait(
            kind,
            moves=moves,
            what=f"{what} held by task{many} {names}",
            holder=name,
            of=held,
            asks=asks,
            expires=expires,
            holder_hop=hop,
            holders=everybody,
        )

    def _queue(self, queue: object) -> Queue:
        """Tell how full a queue is, and who took items from it without `task_done`."""
        inside = field_of(queue, "_queue")
        if inside is None:
            inside = field_of(queue, "_Queue__data")  # culsans
        takers = self.working_on(queue) if self.working_on is not None else None
        return Queue(
            f"{id(queue):#x}",
            len(inside) if module_of(type(inside)) in ("collections", "builtins") else None,
            field_of(queue, "_maxsize"),
            field_of(queue, "_unfinished_tasks"),
            None
            if takers is None
            else tuple(task_name(one) if one is not None else None for one in [*takers][:LISTED]),
        )

    def _holders(self, owner: object) -> list[Any]:
        found = self.holder_of(owner) if self.holder_of is not None and owner is not None else None
        if found is None:
            return []
        return [*found] if type(found) in (list, tuple, set, frozenset) else [found]

    def _waited_for(self, frame: Frame, waiter: object, place: int, depth: int) -> Wait | None:
        """Judge what the `wait_for` of 3.10 and 3.11 waits for, in a task of its own, as if it were awaited directly."""
        inner = next((t for t in referents(frame.awaitable) if is_a(t, FUTURES) and t is not waiter), None)
        if inner is None or waiter is None:
            return None
        if is_a(inner, TASK_TYPES):
            return self.at_task(inner, place, depth + 1)
        return self.at_future(inner, place, depth)

    def at_future(self, future: object, place: int, depth: int, frame: Frame | None = None) -> Wait:
        """Judge a future. `frame` awaits it directly, if any does."""
        if is_a(future, TASK_TYPES):
            child = self.at_task(future, place, depth + 1)
            return Wait(
                "task",
                moves=child.moves,
                what=f"task '{task_name(future)}'",
                of=(child,),
                asks=child.asks,
                expires=child.expires,
            )
        if not is_pending(future):
            return ENDED if is_a(future, FUTURES) else UNREADABLE
        self.rests_on.append((None, future))
        if depth >= DEPTH:
            return Wait("unknown", moves=True, what="more futures than are looked at")
        if is_a(future, GATHERING):
            return self.at_many("gather", field_of(future, "_children"), place, depth)
        for callback in callbacks_of(future):
            if type(callback) is not types.FunctionType:
                continue
            name = callback.__qualname__
            if name == "_chain_future.<locals>._call_check_cancel":
                return self._job(_closed_in(callback, "source"), place, depth)
            if name == "shield.<locals>._outer_done_callback":
                # By its name, for from 3.14 the task that awaits the shield is closed over as well.
                inner = _closed_in(callback, "inner")
                if not is_a(inner, FUTURES) or inner is future:
                    return Wait("unknown", moves=True, what="something shielded")
                wait = self.at_future(inner, place, depth + 1)
                return replace(wait, what=f"{wait.what} (shielded)")
        words = words_for(frame, "future") if frame is not None and place in PASSIVE else None
        what = PHRASES["future"].format(f" `{words}`" if words else "")
        return Wait(
            "future",
            moves=place not in PASSIVE,
            what=what if place in PASSIVE else f"{what}{_inside(frame)}",
        )

    def _job(self, source: object, place: int, depth: int) -> Wait:
        """Judge a future of `concurrent.futures`: a job of a thread or process, or a task of a loop in another thread."""
        if not is_a(source, concurrent.futures.Future):
            return Wait("thread", moves=True, what=PHRASES["thread"])
        for callback in (field_of(source, "_done_callbacks") or ())[:8]:
            if (
                type(callback) is types.FunctionType
                and callback.__qualname__ == "_chain_future.<locals>._call_check_cancel"
            ):
                task = _closed_in(callback, "source")
                if is_a(task, TASK_TYPES):  # of `run_coroutine_threadsafe`
                    other = self.at_task(task, place, depth + 1)
                    what = f"task '{task_name(task)}' of another thread's loop"
                    return Wait("thread", moves=True, what=what, of=(other,))
        return _of_job(self.timers.threads.job(source))

    def at_many(self, kind: Kind, awaited: object, place: int, depth: int) -> Wait:
        """Judge a set of tasks and futures, any of which can end the wait or bring its end nearer."""
        if type(awaited) not in (set, frozenset, list, tuple):
            return Wait(kind, moves=True, what=f"{PHRASES[kind]} that could not be read")
        pending = [one for one in list(awaited) if not has_ended(one)]  # type: ignore[call-overload]
        if (
            type(awaited) in (set, frozenset) and len(pending) <= SORTED
        ):  # in an order that people can follow, and that stays
            pending.sort(key=_by_name)
        listed: list[Wait] = []
        seen: list[Wait] = []
        moves = not pending
        for one in pending:
            if len(listed) >= LISTED and moves:
                break
            wait = (
                self.at_task(one, place, depth + 1)
                if is_a(one, TASK_TYPES)
                else self.at_future(one, place, depth + 1)
            )
            moves = moves or wait.moves
            seen.append(wait)
            if len(listed) < LISTED:
                listed.append(wait)
        things = "task" if all(is_a(one, TASK_TYPES) for one in pending) else "future"
        what = (
            f"{len(pending)} {things}{'s' * (len(pending) != 1)} ({kind.replace('_', ' ')}){_named(pending)}"
        )
        asks, expires = asked(seen) if pending and len(seen) == len(pending) else ((), None)
        return Wait(kind, moves=moves, what=what, of=tuple(listed), asks=asks, expires=expires)

    def confirmed(self, wait: Wait) -> Wait:
        """Return a passive answer if it held as a whole, and no timer of the loop is about to end it.

        The same for one that only the answer to a message can end. There a deadline above counts as well.
        """
        for task, future in self.rests_on:
            if not is_pending(future) or (task is not None and waits_for(task) is not future):
                return replace(
                    wait,
                    moves=True,
                    what=f"{wait.what}; something went on while it was looked at",
                    asks=(),
                    expires=None,
                )
        wanted = {id(one) for pair in (*self.rests_on, self.owners) for one in pair if one is not None}
        loops = {
            id(loop): loop
            for task, _ in self.rests_on
            if task is not None and (loop := loop_of(task)) is not None
        }
        for loop in loops.values():
            handles = self.timers.of(loop)
            handles.read()
            found, when = handles.ending(wanted, but=self.harmless)
            if found:
                return (
                    _bounded(wait, when)
                    if when is not None
                    else replace(wait, moves=True, asks=(), expires=None)
                )
        if wait.asks:
            return self._without_deadline_above(wait)
        if self.cycle:
            return replace(wait, what=f"{wait.what}: a cycle")
        return wait

    def _without_deadline_above(self, wait: Wait) -> Wait:
        """Return a wait for an answer, bounded by the deadlines of those who await its task and would cancel it."""
        seen = {id(self.root)}
        todo = [self.root]
        while todo:
            for above in awaiting(todo.pop()):
                if id(above) in seen:
                    continue
                if len(seen) > ABOVE:
                    return replace(wait, asks=(), expires=None)
                seen.add(id(above))
                todo.append(above)
                frames, lost = walk(coroutine_of(above))
                when = timer_in(frames, above)
                if when is None and not lost:
                    handles = self.timers.of(loop_of(above))
                    handles.read()
                    waiter = waits_for(above)
                    found, when = handles.ending(
                        {id(above)} | ({id(waiter)} if waiter is not None else set())
                    )
                    lost = found and when is None
                    if when is None and not handles.complete:
                        when = hidden_timer(frames, above)
                if when is not None:
                    wait = _bounded(wait, when)
                elif lost:
                    return replace(wait, asks=(), expires=None)
        return wait


def _queue_classes() -> tuple[Any, ...]:
    culsans = getattr(sys.modules.get("culsans"), "Queue", None)  # the SDK's before Python 3.13
    return (asyncio.Queue,) if culsans is None else (asyncio.Queue, culsans)


def _named(pending: list[Any]) -> str:
    """Return the names of the first tasks."""
    listed = [f"'{task_name(one)}'" for one in pending[:NAMED] if is_a(one, TASK_TYPES)]
    if not listed:
        return ""
    if len(pending) > len(listed):
        listed.append(f"{len(pending) - len(listed)} more")
    return ": " + (" and ".join([", ".join(listed[:-1]), listed[-1]]) if len(listed) > 1 else listed[0])


def _by_name(task: object) -> tuple[str, int, str]:
    """A key by which 'Task-9' comes before 'Task-10'."""
    name = (task_name(task) if is_a(task, TASK_TYPES) else None) or ""
    stem = name.rstrip("0123456789")
    number = name[len(stem) :]
    return stem, int(number) if number and number.isascii() and len(number) < 20 else -1, name


def _of_job(job: Job) -> Wait:
    return Wait("thread", moves=True, what=f"a job {job.words}", job=job)


def _closed_in(function: Any, name: str) -> Any:
    return dict(zip(function.__code__.co_freevars, cells_of(function), strict=False)).get(name)


def _is_socket(frame: Frame) -> bool:
    file = frame.file.replace("\\", "/")
    return (
        "/anyio/" in file and frame.function.startswith(("SocketStream.", "UNIXSocketStream."))
    ) or file.startswith("uvloop/")


def _closed_over(generator: object) -> list[types.CellType]:
    return [thing for thing in raw_referents(generator) if type(thing) is types.CellType]


def awaited_set(frame: Frame, frames: list[Frame]) -> Any:
    """Return what `asyncio.wait` or `asyncio.as_completed` waits for."""
    if frame.name == "_wait":
        return next(
            (thing for thing in referents(frame.awaitable) if type(thing) in (set, frozenset, list)), None
        )
    for outer in (frame, *frames):
        for thing in referents(outer.awaitable):
            if type_name(type(thing)) == "_AsCompletedIterator":  # 3.13
                return field_of(thing, "_todo")
            if type(thing) is types.GeneratorType and thing.__qualname__ == "as_completed":  # until 3.12
                return next((t for t in map(content, _closed_over(thing)) if type(t) is set), None)
    return None


def _inside(frame: Frame | None) -> str:
    package = package_of(frame.file.replace("\\", "/")) if frame is not None else None
    return f" inside {package.partition('.')[0]}" if package else ""


def _bounded(wait: Wait, when: float) -> Wait:
    """Return a wait that a timer ends at `when`, if nothing ends it before."""
    until = unix(when)
    asks, expires = (wait.asks, until) if until is not None else ((), None)
    if expires is not None and wait.expires is not None:
        expires = min(expires, wait.expires)
    what = wait.what
    if until is not None and wait.until is not None:
        what = what.removesuffix(clock(wait.until))
        until = min(until, wait.until)
    return replace(
        wait,
        moves=True,
        until=until,
        what=f"{what}{clock(until)}",
        asks=asks,
        expires=expires if asks else None,
    )
