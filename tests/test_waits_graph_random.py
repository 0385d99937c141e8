"""Is a task called deadlocked only where a model of the program says so? Random programs, played to rest."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hopwatch import waits
from test_waits_graph import Book
from ticking import collect

LOCKS, SEATS, QUEUES, TASKS = 3, 2, 2, 5

STEPS = st.one_of(
    st.tuples(st.just("lock"), st.integers(0, LOCKS - 1)),
    st.tuples(st.just("seat"), st.integers(0, SEATS - 1)),
    st.tuples(st.just("await"), st.integers(0, TASKS - 1)),
    st.tuples(st.just("gather"), st.lists(st.integers(0, TASKS - 1), min_size=1, max_size=3, unique=True)),
    st.tuples(st.just("put"), st.integers(0, QUEUES - 1)),
    st.tuples(st.just("get"), st.integers(0, QUEUES - 1)),
    st.tuples(st.just("join"), st.integers(0, QUEUES - 1)),
    st.tuples(st.just("done"), st.integers(0, QUEUES - 1)),
    st.tuples(st.just("sleep"), st.just(0)),
    st.tuples(st.just("event"), st.just(0)),
    st.tuples(st.just("hurry"), st.integers(0, LOCKS - 1)),
    st.tuples(st.just("turn"), st.just(0)),
)
CERTAIN = st.one_of(
    st.tuples(st.just("lock"), st.integers(0, LOCKS - 1)),
    st.tuples(st.just("await"), st.integers(0, TASKS - 1)),
    st.tuples(st.just("gather"), st.lists(st.integers(0, TASKS - 1), min_size=1, max_size=3, unique=True)),
    st.tuples(st.just("turn"), st.just(0)),
)


def programs(steps):
    return st.lists(st.lists(steps, max_size=5), min_size=TASKS, max_size=TASKS)


class World:
    """Runs a program, and knows of each task what it waits for, in words that the graph has no part in."""

    def __init__(self, program):
        self.program = program
        self.book = Book()
        self.locks = [asyncio.Lock() for _ in range(LOCKS)]
        self.seats = [self.book.semaphore(2) for _ in range(SEATS)]
        self.queues = [asyncio.Queue(1) for _ in range(QUEUES)]
        self.tasks = []
        self.waiting = {}
        self.held = {}
        self.over = False

    async def play(self, me, steps):
        if not steps:
            return
        (what, which), *rest = steps
        book = self.book
        self.waiting[me] = (what, which)
        if what in ("lock", "seat"):
            lock = (self.locks if what == "lock" else self.seats)[which]
            async with lock, book.note(lock):
                self.waiting.pop(me)
                self.held.setdefault((what, which), []).append(me)
                try:
                    await self.play(me, rest)
                finally:
                    self.held[what, which].remove(me)
            return
        if what == "hurry":
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.locks[which].acquire(), 600)
                self.locks[which].release()
        elif what == "await" and which != me:
            await self.tasks[which]
        elif what == "gather":
            await asyncio.gather(*(self.tasks[each] for each in which if each != me))
        elif what == "put":
            await self.queues[which].put(me)
        elif what == "get":
            await book.get(self.queues[which])
        elif what == "join":
            await self.queues[which].join()
        elif what == "done":
            if asyncio.current_task() in book.has.get(id(self.queues[which]), ()):
                book.task_done(self.queues[which])
        elif what == "sleep":
            await asyncio.sleep(600)
        elif what == "event":
            await asyncio.get_running_loop().create_future()
        else:
            await asyncio.sleep(0)
        self.waiting.pop(me, None)
        await self.play(me, rest)

    def frozen(self):
        """Who can never go on, by playing on: whoever may be freed by another that goes on is, until nothing changes.

        Only a sleep, a timeout and an event go on by themselves. Whoever goes on may do all of the rest of its program, so
        it releases, ends, takes and puts whatever it may.
        """
        stuck = {me for me, task in enumerate(self.tasks) if not task.done()}
        changed = True
        while changed:
            changed = False
            for me in sorted(stuck):
                if me in stuck and self.may_go_on(me, stuck):
                    stuck.discard(me)
                    changed = True
        return stuck

    def may_go_on(self, me, stuck):
        what, which = self.waiting.get(me, ("turn", 0))
        if what in ("lock", "seat"):
            holders = self.held.get((what, which), [])
            return any(holder not in stuck for holder in holders)
        if what == "await":
            return which not in stuck
        if what == "gather":
            return all(each not in stuck for each in which if each != me)
        if what in ("put", "get", "join"):
            return any(
                self.uses(each, which, me) for each in range(TASKS) if each not in stuck and each != me
            )
        return True

    def uses(self, one, queue, _):
        """Whether the program of a task says that it takes from, puts into or works off a queue."""
        return not self.tasks[one].done() and any(
            what in ("get", "put", "done") and which == queue for what, which in self.program[one]
        )


async def look_at(program):
    world = World(program)
    loop = asyncio.get_running_loop()
    world.tasks = [
        loop.create_task(world.play(me, steps), name=str(me)) for me, steps in enumerate(world.program)
    ]
    for _ in range(200):
        await asyncio.sleep(0)
    known = world.book.known()
    known = waits.Known(
        known.holders,
        known.permits,
        known.takers,
        known.working,
        lambda loop: [task for task in asyncio.all_tasks(loop) if task in world.tasks],
    )
    found = waits.deadlocks(world.tasks, known)
    frozen = world.frozen()
    named = [{int(task.get_name()) for task in each.tasks()} for each in found]
    behind = {int(task.get_name()) for each in found for one in each.behind if (task := one()) is not None}
    for task in world.tasks:
        task._log_destroy_pending = False  # a circle of awaits cannot be cancelled
        with contextlib.suppress(RecursionError):
            task.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    return named, behind, frozen


def played(program):
    """Play it on a loop of its own; what cannot be cancelled is left to the garbage collector."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(look_at(program))
    finally:
        loop.close()


# Tasks in a circle of awaits cannot be cancelled, and what is left of them is collected while it is pending.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected():
    """What is left of them is collected here: in another test it would be that one's failure."""
    yield
    for _ in range(3):  # what one collection finishes is gone with the next
        collect()


HURRY = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@HURRY
@given(programs(STEPS))
@example([[], [], [], [("lock", 0), ("lock", 0)], [("hurry", 0)]])
def test_what_is_called_a_deadlock_can_never_go_on(program):
    named, behind, frozen = played(program)
    assert all(each <= frozen for each in named)
    assert behind <= frozen


@HURRY
@given(programs(CERTAIN))
def test_with_locks_awaits_and_gathers_alone_all_that_can_never_go_on_is_found(program):
    named, behind, frozen = played(program)
    told = behind.union(*named) if named else behind
    assert told <= frozen
    # A gather may also be ended by a task that fails: while one of its tasks goes on, it is in doubt, and so is what needs it.
    if not any(what == "gather" for steps in program for what, _ in steps):
        assert told == frozen
