"""What is told of a deadlock, when, how often, and on which hops? Real programs, and a ticker that ticks by hand."""

import asyncio
import contextlib
import contextvars
import json
import sys
import time

import pytest
from opentelemetry import _logs

import hopwatch
from exported import cascades, ours, verdict
from hopwatch import attributes as names
from hopwatch import hop_waits
from hopwatch.instrumentation import deadlocks, takers
from ticking import collect

SINCE_311 = pytest.mark.skipif(sys.version_info < (3, 11), reason="new in Python 3.11; ci: may be skipped")


@pytest.fixture
def logged(monkeypatch):
    """The log records that were emitted."""
    records = []

    class Logger:
        def emit(self, record):
            records.append(record)

    monkeypatch.setattr(_logs, "get_logger", lambda *_: Logger())
    return records


@pytest.fixture(params=["asyncio", "uvloop"])
def play(request, watched, monkeypatch):
    """Run `main` inside a cascade, tick, and return the deadlocks that were reported."""
    # A machine that is busy may take longer over one look than a tick's budget, and would look again later.
    monkeypatch.setattr(deadlocks, "BUDGET", 5_000_000_000)
    make = (
        asyncio.new_event_loop if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    )

    def play_on(main, *, ticks=3, root="root"):
        async def inside():
            with hopwatch.cascade(root) if root else contextlib.nullcontext():
                keep = await main()
            await tick_of(watched, ticks)
            return keep, [each.deadlock for each in deadlocks._watch.reported]

        loop = make()
        try:
            keep, found = loop.run_until_complete(inside())
            names = sorted(tuple(sorted(task.get_name() for task in each.tasks())) for each in found)
            del keep, found
            return names
        finally:
            for task in (left := asyncio.all_tasks(loop)):
                with contextlib.suppress(RecursionError):
                    task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=5))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    yield play_on
    deadlocks.forget()


async def tick_of(watched, ticks=1):
    """Tick from another thread once every task rests, 0.3 s later each time."""
    await turns(12)
    asking = asyncio.current_task()

    def from_thread(at):
        until = time.monotonic() + 30
        while asking._fut_waiter is None and time.monotonic() < until:
            time.sleep(0.0005)
        watched.tick(0.3 * (at + 1))

    for at in range(ticks):
        await asyncio.to_thread(from_thread, at)


async def turns(count=4):
    for _ in range(count):
        await asyncio.sleep(0)


def spawn(coro, name):
    return asyncio.get_running_loop().create_task(coro, name=name)


async def nested(first, second):
    async with first:
        await turns()
        async with second:
            pass


def two_locks():
    one, two = asyncio.Lock(), asyncio.Lock()
    return [spawn(nested(one, two), "a"), spawn(nested(two, one), "b")]


async def two_locks_later():
    return two_locks()


# What is found with what the instrumentation knows --------------------------------------------------------------------


def test_two_locks_in_opposite_order(play):
    assert play(two_locks_later) == [("a", "b")]


def test_locks_that_were_taken_by_hand(play):
    async def main():
        async def by_hand(first, second):
            await first.acquire()
            try:
                await turns()
                await second.acquire()
                second.release()
            finally:
                first.release()

        one, two = asyncio.Lock(), asyncio.Lock()
        return [spawn(by_hand(one, two), "a"), spawn(by_hand(two, one), "b")]

    assert play(main) == [("a", "b")]


def test_a_gather_under_a_lock_that_its_children_need(play):
    async def main():
        lock = asyncio.Lock()

        async def child():
            async with lock:
                pass

        async def close():
            async with lock:
                await asyncio.gather(spawn(child(), "one"), spawn(child(), "two"))

        return [spawn(close(), "close")]

    assert play(main) == [("close", "one", "two")]


def test_an_aclose_that_gathers_under_a_lock_that_its_children_need(play):
    async def main():
        class Queue:
            def __init__(self):
                self.lock = asyncio.Lock()
                self.children = []

            async def close(self):
                async with self.lock:
                    await asyncio.gather(*(child.leave() for child in self.children))

        class Child:
            def __init__(self, parent):
                self.parent = parent
                parent.children.append(self)

            async def leave(self):
                async with self.parent.lock:
                    self.parent.children.remove(self)

        async def events():
            queue = Queue()
            Child(queue)
            try:
                yield 1
            finally:
                await queue.close()

        async def use():
            stream = events()
            await stream.__anext__()
            await stream.aclose()

        return [spawn(use(), "use")]

    ((first, *rest),) = play(main)
    assert len(rest) == 1
    assert "use" in (first, *rest)


@SINCE_311
def test_a_task_group_under_a_lock_that_its_tasks_need(play):
    async def main():
        lock = asyncio.Lock()

        async def child():
            async with lock:
                pass

        async def close():
            async with lock, asyncio.TaskGroup() as group:
                group.create_task(child(), name="one")

        return [spawn(close(), "close")]

    assert play(main) == [("close", "one")]


def test_tasks_that_await_one_another(play):
    async def main():
        tasks = {}

        async def waits(name):
            await turns()
            await tasks[name]

        tasks.update(a=spawn(waits("b"), "a"), b=spawn(waits("a"), "b"))
        return list(tasks.values())

    assert play(main) == [("a", "b")]


@pytest.mark.parametrize("make", [asyncio.Semaphore, asyncio.BoundedSemaphore])
def test_a_semaphore_whose_holders_all_wait_for_it(play, make):
    async def main():
        seats = make(2)
        return [spawn(nested(seats, seats), "a"), spawn(nested(seats, seats), "b")]

    assert play(main) == [("a", "b")]


def test_a_semaphore_that_was_given_more_permits_is_in_doubt(play):
    async def main():
        seats = asyncio.Semaphore(2)
        seats.release()

        async def rests():
            async with seats:
                await asyncio.get_running_loop().create_future()

        return [
            spawn(rests(), "rests"),
            spawn(nested(seats, seats), "a"),
            spawn(nested(seats, seats), "b"),
        ]

    assert play(main) == []


async def pump(mine, theirs):
    await mine.get()
    for _ in range(3):
        await theirs.put(0)


def test_a_queue_between_two_full_sides(play):
    async def main():
        left, right = asyncio.Queue(1), asyncio.Queue(1)
        await left.put(0)
        await right.put(0)
        return [spawn(pump(left, right), "left"), spawn(pump(right, left), "right")]

    assert play(main) == [("left", "right")]


def test_a_queue_from_which_another_took_before_is_in_doubt_while_that_one_goes_on(play):
    async def main():
        left, right = asyncio.Queue(1), asyncio.Queue(1)
        await left.put(0)

        async def other(get):
            await get()
            await asyncio.sleep(60)

        tasks = [spawn(other(left.get), "other")]
        await turns()
        await left.put(0)
        await right.put(0)
        return [*tasks, spawn(pump(left, right), "left"), spawn(pump(right, left), "right")]

    assert play(main) == []


@pytest.mark.parametrize("acknowledges", [True, False])
def test_a_join_inside_its_own_consumer(play, acknowledges):
    async def main():
        queue = asyncio.Queue()

        async def consume():
            await queue.get()
            await queue.join()
            if acknowledges:
                queue.task_done()

        await queue.put(0)
        return [spawn(consume(), "consumer")]

    assert play(main) == [("consumer",)]


def test_a_join_while_others_work_is_none(play):
    async def main():
        queue = asyncio.Queue()

        async def work():
            await queue.get()
            await asyncio.get_running_loop().create_future()
            queue.task_done()

        await queue.put(0)
        return [spawn(work(), "worker"), spawn(queue.join(), "joins")]

    assert play(main) == []


def test_a_holder_outside_any_cascade_is_part_of_it(play):
    async def main():
        lock = asyncio.Lock()
        others = {}

        async def inside():
            async with lock:
                await others["outside"]

        async def outside():
            await turns(3)
            async with lock:
                pass

        others["outside"] = contextvars.Context().run(spawn, outside(), "outside")
        return [spawn(inside(), "inside"), others["outside"]]

    assert play(main) == [("inside", "outside")]


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("how", ["method", "function", "argument"])
def test_a_timer_that_cancels_one_of_them_undoes_it(play, inside, how):
    def cancel(task):
        task.cancel()

    async def main():
        tasks = two_locks()
        call_later = asyncio.get_running_loop().call_later
        what = {
            "method": (tasks[0].cancel,),
            "function": (lambda: tasks[0].cancel("late"),),
            "argument": (cancel, tasks[0]),
        }
        if inside:
            call_later(60, *what[how])
        else:
            contextvars.Context().run(call_later, 60, *what[how])
        return tasks

    assert play(main) == []


# What is told ---------------------------------------------------------------------------------------------------------


def test_it_is_told_once_after_the_second_look_with_every_edge(play, watched, logged):
    assert play(two_locks_later, ticks=1) == []
    assert logged == []
    assert play(two_locks_later, ticks=6) == [("a", "b")]
    (record,) = logged
    assert record.attributes["event.name"] == names.EVENT_DEADLOCK
    assert record.attributes[names.DEADLOCK_TASKS] == 2
    assert record.body.startswith("Deadlock of 2 tasks: 'a' holds lock `second` (0x")
    edges = json.loads(record.attributes[names.DEADLOCK_EDGES])
    assert [(edge["task"], edge["held_by"]) for edge in edges] == [("a", ["b"]), ("b", ["a"])]
    assert edges[0]["wants"] == edges[1]["holds"][0]
    assert edges[1]["wants"] == edges[0]["holds"][0]
    assert all(edge["at"].rpartition(":")[0] == __file__ for edge in edges)


def test_its_tasks_become_hops_whose_markers_say_it_at_once_and_the_cascade_is_stalled(play, watched):
    play(two_locks_later)
    markers = [
        json.loads(span.attributes[names.HOP_WAITS])
        for span in ours()
        if span.attributes[names.RECORD] == names.RECORD_OPEN
    ]
    # Of both tasks, and of the hop above them.
    assert [each["kind"] for each in markers] == ["lock", "lock", "gather"]
    assert all(len(each["deadlock"]["edges"]) == 2 and each["moves"] is False for each in markers)
    assert all("deadlock" not in part for each in markers for part in each.get("of", ()))


def test_the_verdict_names_the_cycle(play, watched):
    async def main():
        await asyncio.sleep(0)
        tasks = two_locks()
        await tick_of(watched, 3)
        (hops,) = cascades().values()
        found = verdict({key: hop for key, hop in hops.items() if hop.kind == "task" and hop.waits})
        assert "deadlock" in str(hops)
        return tasks, found

    said = []

    async def keep():
        tasks, found = await main()
        said.append(found)
        return tasks

    play(keep)
    assert "wants lock" in said[0].reason or said[0].verdict in ("unknown", "in_flight", "silent")


def test_who_waits_behind_it_is_told_of_it_too(play, watched):
    async def main():
        tasks = two_locks()

        async def behind():
            with hopwatch.cascade("behind"):
                await tasks[0]

        return [*tasks, spawn(behind(), "behind")]

    async def asks():
        tasks = await main()
        await tick_of(watched, 3)
        (hop,) = [hop for hop in watched.ledger.open_hops() if hop.name == "behind"]
        told, _ = hop_waits.what_it_waits_on(hop)
        assert len(told["deadlock"]["edges"]) == 2
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        told, _ = hop_waits.what_it_waits_on(watched.ledger.open_hops()[0])
        assert "deadlock" not in told
        return tasks

    play(asks)


def test_a_second_deadlock_of_the_same_tasks_is_told_again(play, watched, logged):
    async def main():
        one, two = asyncio.Lock(), asyncio.Lock()

        async def stubborn(first, second):
            for _ in range(2):
                with contextlib.suppress(asyncio.CancelledError):
                    await nested(first, second)

        tasks = [spawn(stubborn(one, two), "a"), spawn(stubborn(two, one), "b")]
        await tick_of(watched, 3)
        assert len(logged) == 1
        for task in tasks:
            task.cancel()
        await tick_of(watched, 3)
        assert len(logged) == 2
        return tasks

    play(main)


def test_nothing_of_the_application_is_kept_alive_by_what_was_told(play, watched):
    import weakref

    kept = []

    async def main():
        class Lock(asyncio.Lock):
            pass

        one, two = Lock(), Lock()
        tasks = [spawn(nested(one, two), "a"), spawn(nested(two, one), "b")]
        await tick_of(watched, 3)
        kept.extend(map(weakref.ref, (one, two, *tasks)))
        assert deadlocks._watch.reported
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    play(main, ticks=0)
    collect()
    assert [each() for each in kept] == [None] * 4


# What it costs and where it ends --------------------------------------------------------------------------------------


def test_takers_beyond_what_is_known_are_doubt(watched):
    async def main():
        queue = asyncio.Queue(4)

        async def take():
            await queue.get()

        for _ in range(2 * takers.MAX_TAKERS):
            await queue.put(0)
            await take()
        assert takers.takers_of(queue) == [asyncio.current_task()]
        parked = [asyncio.create_task(take()) for _ in range(takers.MAX_TAKERS + 1)]
        release = asyncio.Event()

        async def take_and_stay():
            await queue.get()
            await release.wait()

        for task in parked:
            task.cancel()
        await asyncio.wait(parked)
        living = [asyncio.create_task(take_and_stay()) for _ in range(takers.MAX_TAKERS + 1)]
        for _ in living:
            await queue.put(0)
        await turns()
        assert takers.takers_of(queue) is None
        release.set()
        await asyncio.wait(living)

    asyncio.run(main())


def test_who_takes_outside_a_task_is_doubt(watched):
    async def main():
        queue = asyncio.Queue(4)
        queue.put_nowait(0)
        taken = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: taken.set_result(queue.get_nowait()))
        await taken
        assert takers.takers_of(queue) is None
        assert takers.takers_of(asyncio.Queue()) is None
        assert takers.takers_of(object()) is None
        assert takers.permits_of(object()) is None

    asyncio.run(main())
