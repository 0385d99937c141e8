"""Which tasks wait for one another so that none can ever go on? Real programs, looked at from another thread."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import time

import pytest

from hopwatch import waits
from hopwatch.waits import Free, Known
from test_waits import SINCE_311, blocked

HERE = __file__


class Book:
    """What instrumentation would know: filled in by the programs themselves."""

    def __init__(self):
        self.held, self.permitted, self.took, self.has = {}, {}, {}, {}

    def holders(self, lock):
        return list(self.held.get(id(lock), ())) or None

    def known(self):
        return Known(
            holders=self.holders,
            permits=lambda semaphore: self.permitted.get(id(semaphore)),
            takers=lambda queue: self.took.get(id(queue)),
            working=lambda queue: self.has.get(id(queue)),
            tasks=asyncio.all_tasks,
        )

    @contextlib.asynccontextmanager
    async def note(self, lock):
        """Note who holds a lock; inside its block."""
        holders, task = self.held.setdefault(id(lock), []), asyncio.current_task()
        holders.append(task)
        try:
            yield
        finally:
            holders.remove(task)

    def semaphore(self, count):
        made = asyncio.Semaphore(count)
        self.permitted[id(made)] = count
        return made

    async def get(self, queue):
        item = await queue.get()
        self.took.setdefault(id(queue), set()).add(asyncio.current_task())
        self.has.setdefault(id(queue), []).append(asyncio.current_task())
        return item

    def task_done(self, queue):
        self.has[id(queue)].remove(asyncio.current_task())
        queue.task_done()


@pytest.fixture(params=["asyncio", "uvloop"])
def story(request):
    """Run `main(book)` to its tasks, wait until they rest, and return what two looks found."""
    make = (
        asyncio.new_event_loop if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    )

    return lambda main: play(main, make)


async def look(tasks, known, **more):
    """Look from another thread, as the ticker does, once the task that asks is at rest as well."""
    asking = asyncio.current_task()

    def from_thread():
        until = time.monotonic() + 30
        while asking._fut_waiter is None and time.monotonic() < until:
            time.sleep(0.0005)
        return waits.deadlocks(tasks, known, **more)

    return await asyncio.to_thread(from_thread)


def play(main, make=asyncio.new_event_loop):
    async def run():
        book = Book()
        tasks = await main(book)
        await turns(10)
        await blocked(*asyncio.all_tasks() - {asyncio.current_task()})
        free = Free()
        known = book.known()
        first = await look(tasks, known, free=free)
        second = await look(tasks, known, free=free)
        assert len(first) == len(second)
        assert all(any(one.same_as(other) for other in second) for one in first)
        json.dumps([one.as_dict() for one in first])
        names = sorted(tuple(sorted(task.get_name() for task in one.tasks())) for one in first)
        words = [one.words for one in first]
        held = [one.holds() for one in first]
        del first
        return names, words, held

    return run_on(make, run())


def run_on(make, main):
    loop = make()
    try:
        return loop.run_until_complete(main)
    finally:
        for task in (left := asyncio.all_tasks(loop)):
            with contextlib.suppress(RecursionError):
                task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=0.5))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def spawn(coro, name):
    return asyncio.get_running_loop().create_task(coro, name=name)


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def nested(book, first, second, both=None):
    async with first, book.note(first):
        await turns()
        async with second, book.note(second):
            pass


# --- locks -----------------------------------------------------------------------------------------------------------


def test_two_locks_in_opposite_order_are_told_with_each_edge_in_words(story):
    async def main(book):
        stock, account = asyncio.Lock(), asyncio.Lock()

        async def reserve():
            async with stock, book.note(stock):
                await turns()
                async with account:
                    pass

        async def charge():
            async with account, book.note(account):
                await turns()
                async with stock:
                    pass

        return [spawn(reserve(), "reserve"), spawn(charge(), "charge")]

    names, (words,), held = story(main)
    assert names == [("charge", "reserve")]
    assert held == [True]
    first, second = words.split("; ")
    assert first.startswith("'charge' holds lock `account`, wants lock `stock` at " + HERE)
    assert first.endswith(", which 'reserve' holds")
    assert second.startswith("'reserve' holds lock `stock`, wants lock `account` at " + HERE)
    assert second.endswith(", which 'charge' holds")


@pytest.mark.parametrize("count", [3, 7, 40])
def test_any_number_of_locks_in_a_ring_are_one_deadlock(story, count):
    async def main(book):
        locks = [asyncio.Lock() for _ in range(count)]
        return [
            spawn(nested(book, lock, locks[(at + 1) % count]), f"t{at:02}") for at, lock in enumerate(locks)
        ]

    names, (words,), _ = story(main)
    assert names == [tuple(f"t{at:02}" for at in range(count))]
    assert ("more" in words) == (count > 16)


def test_a_lock_that_is_taken_by_hand_counts_if_its_holder_would_release_it(story):
    async def main(book):
        first, second = asyncio.Lock(), asyncio.Lock()

        async def by_hand(one, other):
            await one.acquire()
            try:
                async with book.note(one):
                    await turns()
                    await other.acquire()
                    other.release()
            finally:
                one.release()

        return [spawn(by_hand(first, second), "a"), spawn(by_hand(second, first), "b")]

    names, _, _ = story(main)
    assert names == [("a", "b")]


def test_a_lock_that_is_used_as_a_signal_is_no_deadlock(story):
    async def main(book):
        gate = asyncio.Lock()

        async def wait_twice():
            await gate.acquire()
            async with book.note(gate):
                await gate.acquire()
            gate.release()

        return [spawn(wait_twice(), "waits")]

    assert story(main)[0] == []


def test_a_lock_whose_holder_is_not_known_or_sleeps_is_no_deadlock(story):
    async def main(book):
        known, unknown = asyncio.Lock(), asyncio.Lock()

        async def sleeper():
            async with known, book.note(known):
                await asyncio.sleep(60)

        async def a():
            async with unknown, known:
                pass

        async def b():
            async with unknown:
                pass

        tasks = [spawn(sleeper(), "sleeper")]
        await turns()
        return [*tasks, spawn(a(), "a"), spawn(b(), "b")]

    assert story(main)[0] == []


def test_a_task_that_takes_its_own_lock_again_waits_for_itself(story):
    async def main(book):
        lock = asyncio.Lock()
        return [spawn(nested(book, lock, lock), "twice")]

    names, (words,), _ = story(main)
    assert names == [("twice",)]
    assert "which it holds itself" in words


def test_a_lock_that_a_condition_has_let_go_of_is_in_doubt(story):
    async def main(book):
        condition, lock = asyncio.Condition(), asyncio.Lock()

        async def notified():
            async with condition, book.note(condition._lock):
                await condition.wait()

        async def a():
            async with condition, book.note(condition._lock):
                await turns()
                async with lock:
                    pass

        async def b():
            async with lock, book.note(lock):
                await turns()
                async with condition:
                    pass

        tasks = [spawn(notified(), "notified")]
        await turns()
        return [*tasks, spawn(a(), "a"), spawn(b(), "b")]

    assert story(main)[0] == []  # who waits to be notified is noted as a second holder: doubt


def test_a_condition_is_its_lock(story):
    async def main(book):
        condition, lock = asyncio.Condition(), asyncio.Lock()

        async def a():
            async with condition, book.note(condition._lock):
                await turns()
                async with lock:
                    pass

        async def b():
            async with lock, book.note(lock):
                await turns()
                async with condition:
                    pass

        return [spawn(a(), "a"), spawn(b(), "b")]

    assert story(main)[0] == [("a", "b")]


# --- gathers, groups, awaits -----------------------------------------------------------------------------------------


def gathering(*coros):
    async def gather():
        await asyncio.gather(*coros)

    return gather


def test_a_gather_under_a_lock_that_its_children_need_is_told_with_its_children(story):
    async def main(book):
        lock = asyncio.Lock()

        async def child():
            async with lock:
                pass

        async def close():
            async with lock, book.note(lock):
                await asyncio.gather(spawn(child(), "one"), spawn(child(), "two"))

        return [spawn(close(), "close")]

    names, (words,), _ = story(main)
    assert names == [("close", "one", "two")]
    assert "'close' holds lock `lock`, waits for tasks 'one' and 'two' (gather)" in words
    assert re.search(r"'one' wants lock `lock` at \S+, which 'close' holds", words)


def test_the_teardown_of_a_generator_that_gathers_under_a_lock_is_found(story):
    async def main(book):
        lock = asyncio.Lock()

        async def child():
            async with lock:
                pass

        async def items():
            try:
                yield 1
            finally:
                async with lock, book.note(lock):
                    await asyncio.gather(spawn(child(), "one"), spawn(child(), "two"))

        async def use():
            generator = items()
            async for _ in generator:
                break
            await generator.aclose()

        return [spawn(use(), "use")]

    assert story(main)[0] == [("one", "two", "use")]


@pytest.mark.parametrize("every", [False, True])
def test_a_child_that_goes_on_may_fail_and_end_a_gather_unless_it_returns_exceptions(story, every):
    async def main(book):
        lock = asyncio.Lock()

        async def child():
            async with lock:
                pass

        async def close():
            async with lock, book.note(lock):
                await asyncio.gather(
                    spawn(child(), "child"), spawn(asyncio.sleep(60), "sleeps"), return_exceptions=every
                )

        return [spawn(close(), "close")]

    assert story(main)[0] == ([("child", "close")] if every else [])


@SINCE_311
def test_a_task_group_under_a_lock_that_its_tasks_need_is_found(story):
    async def main(book):
        lock = asyncio.Lock()

        async def close():
            async with lock, book.note(lock), asyncio.TaskGroup() as group:
                group.create_task(nested(book, lock, lock), name="one")
                group.create_task(nested(book, lock, lock), name="two")

        return [spawn(close(), "close")]

    names, (words,), _ = story(main)
    assert names == [("close", "one", "two")]
    assert "(task group)" in words


def test_a_task_group_of_anyio_is_found_too(story):
    anyio = pytest.importorskip("anyio")

    async def main(book):
        lock = asyncio.Lock()

        async def child():
            async with lock:
                pass

        async def close():
            async with lock, book.note(lock), anyio.create_task_group() as group:
                group.start_soon(child, name="one")

        return [spawn(close(), "close")]

    assert story(main)[0] == [("close", "one")]


@pytest.mark.parametrize(
    ("when", "found"),
    [("ALL_COMPLETED", True), ("FIRST_COMPLETED", False), ("FIRST_EXCEPTION", False)],
)
def test_asyncio_wait_for_all_is_held_up_by_one_and_for_the_first_by_none_while_one_goes_on(
    story, when, found
):
    async def main(book):
        lock = asyncio.Lock()

        async def child():
            async with lock:
                pass

        async def close():
            async with lock, book.note(lock):
                tasks = {spawn(child(), "child"), spawn(asyncio.sleep(60), "sleeps")}
                await asyncio.wait(tasks, return_when=getattr(asyncio, when))

        return [spawn(close(), "close")]

    assert story(main)[0] == ([("child", "close")] if found else [])


@pytest.mark.parametrize("how", ["await", "shield", "wait_for"])
def test_an_await_under_a_lock_that_the_task_needs_is_found(story, how):
    async def main(book):
        lock = asyncio.Lock()

        async def child():
            async with lock:
                pass

        async def outer():
            async with lock, book.note(lock):
                task = spawn(child(), "child")
                if how == "await":
                    await task
                elif how == "shield":
                    await asyncio.shield(task)
                else:
                    await asyncio.wait_for(task, None)

        return [spawn(outer(), "outer")]

    assert story(main)[0] == [("child", "outer")]


def test_a_task_that_awaits_itself_through_others_is_found(story):
    async def main(_):
        tasks = {}

        async def waits(name):
            await turns()
            await tasks[name]

        tasks["a"] = spawn(waits("b"), "a")
        tasks["b"] = spawn(waits("c"), "b")
        tasks["c"] = spawn(waits("a"), "c")
        return list(tasks.values())

    names, (words,), _ = story(main)
    assert names == [("a", "b", "c")]
    assert [edge.partition(" at ")[0] for edge in words.split("; ")] == [
        "'a' waits for task 'b'",
        "'b' waits for task 'c'",
        "'c' waits for task 'a'",
    ]


def test_a_library_that_owns_the_frames_changes_nothing_about_a_lock(story):
    async def main(book):
        namespace = {"asyncio": asyncio}
        source = "async def under(lock, note, other):\n async with lock, note(lock):\n  for _ in range(5): await asyncio.sleep(0)\n  async with other: pass"
        exec(compile(source, "/venv/lib/python3/site-packages/pool/module.py", "exec"), namespace)
        one, two = asyncio.Lock(), asyncio.Lock()
        return [
            spawn(namespace["under"](one, book.note, two), "a"),
            spawn(namespace["under"](two, book.note, one), "b"),
        ]

    assert story(main)[0] == [("a", "b")]


# --- semaphores ------------------------------------------------------------------------------------------------------


def test_a_semaphore_whose_holders_all_wait_for_it_is_found(story):
    async def main(book):
        seats = book.semaphore(2)
        return [spawn(nested(book, seats, seats), name) for name in ("a", "b")]

    names, (words,), _ = story(main)
    assert names == [("a", "b")]
    assert "wants semaphore" in words
    assert "which 'a' and 'b' hold" in words


@pytest.mark.parametrize("reason", ["one moves", "one is not known", "taken by hand", "of unknown size"])
def test_a_semaphore_is_no_deadlock_where(story, reason):
    async def main(book):
        seats = book.semaphore(2)
        if reason == "of unknown size":
            book.permitted.clear()

        async def moves():
            async with seats:
                if reason != "one is not known":
                    async with book.note(seats):
                        await asyncio.sleep(60)
                await asyncio.sleep(60)

        async def by_hand():
            await seats.acquire()
            async with book.note(seats):
                await turns()
                await seats.acquire()

        other = moves() if reason.startswith("one") else nested(book, seats, seats)
        first = by_hand() if reason == "taken by hand" else nested(book, seats, seats)
        return [spawn(first, "a"), spawn(other, "b")]

    assert story(main)[0] == []


# --- queues ----------------------------------------------------------------------------------------------------------


async def pump(book, mine, theirs):
    """Take one item, and put more into the other's queue than it has room for."""
    await book.get(mine)
    for _ in range(3):
        await theirs.put(0)


def two_sides(book, more=None):
    left, right = asyncio.Queue(1), asyncio.Queue(1)
    left.put_nowait(0)
    right.put_nowait(0)
    tasks = [spawn(pump(book, left, right), "left"), spawn(pump(book, right, left), "right")]
    if more is not None:
        tasks.append(spawn(more(left, right), "more"))
    return tasks


def test_two_sides_that_fill_each_others_queue_are_found(story):
    async def main(book):
        return two_sides(book)

    names, (words,), _ = story(main)
    assert names == [("left", "right")]
    assert "'left' wants room in queue `theirs`" in words
    assert "from which only 'right' could take" in words


def test_a_queue_that_somebody_else_can_reach_is_no_deadlock(story):
    async def main(book):
        async def reaches(left, _):
            await asyncio.sleep(60)
            left.get_nowait()

        return two_sides(book, reaches)

    assert story(main)[0] == []


def test_a_queue_that_somebody_else_can_reach_through_an_object_is_no_deadlock(story):
    async def main(book):
        class Shop:
            def __init__(self, queue):
                self.queues = [queue]

            async def later(self):
                await asyncio.get_running_loop().create_future()

        async def reaches(left, _):
            await Shop(left).later()

        return two_sides(book, reaches)

    assert story(main)[0] == []


def test_a_full_queue_from_which_nobody_has_taken_yet_is_no_deadlock(story):
    async def main(_):
        async def fill(queue):
            for _ in range(3):
                await queue.put(0)

        return [spawn(fill(asyncio.Queue(1)), "fills")]

    assert story(main)[0] == []


def test_a_join_inside_its_own_consumer_is_found(story):
    async def main(book):
        async def consume(queue):
            while True:
                await book.get(queue)
                await queue.join()
                book.task_done(queue)

        queue = asyncio.Queue()
        queue.put_nowait(1)
        queue.put_nowait(2)
        return [spawn(consume(queue), "consumer")]

    names, (words,), _ = story(main)
    assert names == [("consumer",)]
    assert re.search(
        r"waits for queue `queue` to be worked off at \S+, from which it took an item itself without task_done",
        words,
    )


def test_a_join_that_waits_for_what_was_handed_on_is_no_deadlock(story):
    async def main(book):
        async def handle(queue):
            await asyncio.sleep(60)
            queue.task_done()

        async def dispatch(queue):
            await book.get(queue)
            keep = spawn(handle(queue), "handler")
            await queue.join()
            await keep

        queue = asyncio.Queue()
        queue.put_nowait(1)
        return [spawn(dispatch(queue), "dispatcher")]

    assert story(main)[0] == []


def test_workers_that_wait_for_more_do_not_hide_a_join_and_are_no_deadlock_themselves(story):
    async def main(book):
        async def worker(queue):
            while True:
                await book.get(queue)
                book.task_done(queue)

        async def bad(queue):
            await book.get(queue)
            await queue.join()

        queue = asyncio.Queue()
        queue.put_nowait(1)
        tasks = [spawn(bad(queue), "bad")]
        await turns()
        return [*tasks, spawn(worker(queue), "one"), spawn(worker(queue), "two")]

    assert story(main)[0] == [("bad",)]


def test_an_idle_pool_of_workers_is_no_deadlock(story):
    async def main(book):
        async def worker(queue):
            while True:
                await book.get(queue)

        queue = asyncio.Queue()
        return [spawn(worker(queue), f"w{at}") for at in range(3)]

    assert story(main)[0] == []


# --- timers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["wait_for", "above", "gather above", "cancel later", "group above"])
def test_a_timer_that_is_pending_anywhere_above_frees_it(story, where):
    if where == "group above" and sys.version_info < (3, 11):
        pytest.skip("new in Python 3.11; ci: may be skipped")

    async def main(book):
        one, two = asyncio.Lock(), asyncio.Lock()

        async def hurried(first, second):
            async with first, book.note(first):
                await turns()
                await asyncio.wait_for(second.acquire(), 60)

        first = hurried(one, two) if where == "wait_for" else nested(book, one, two)
        tasks = [spawn(first, "a"), spawn(nested(book, two, one), "b")]
        if where == "above":
            spawn(asyncio.wait_for(tasks[0], 60), "above")
        elif where == "gather above":

            async def both():
                await asyncio.gather(*tasks)

            spawn(asyncio.wait_for(both(), 60), "above")
        elif where == "group above":

            async def group():
                async with asyncio.timeout(60), asyncio.TaskGroup() as tg:
                    tg.create_task(nested(book, one, two), name="c")
                    tg.create_task(nested(book, two, one), name="d")

            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            tasks = [spawn(group(), "above")]
        elif where == "cancel later":
            asyncio.get_running_loop().call_later(60, tasks[0].cancel)
        return tasks

    if where == "cancel later":  # uvloop does not show its timers
        assert play(main)[0] == []
    else:
        assert story(main)[0] == []


def test_what_dissolves_does_not_hold_any_more():
    async def run():
        book = Book()
        tasks = two_sides(book)
        await turns(10)
        await blocked(*tasks)
        (found,) = await look(tasks, book.known())
        held = found.holds()
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        after = found.holds(), await look(tasks, book.known())
        tasks[1].cancel()
        return held, after

    assert run_on(asyncio.new_event_loop, run()) == (True, (False, []))


@pytest.mark.skipif(
    sys.version_info >= (3, 14),
    reason="asyncio itself does not list such tasks from Python 3.14 on; ci: may be skipped",
)
def test_tasks_in_pure_python_deadlock_as_others_do():
    async def main(book):
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coro, **more: asyncio.tasks._PyTask(coro, loop=loop, **more))
        one, two = asyncio.Lock(), asyncio.Lock()
        found = [spawn(nested(book, one, two), "a"), spawn(nested(book, two, one), "b")]
        loop.set_task_factory(None)
        return found

    assert play(main)[0] == [("a", "b")]
