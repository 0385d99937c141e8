"""For whom are the items of a queue, and for whom do its consumers work? On asyncio's loop and on uvloop's."""

import asyncio
import gc
import sys
import threading
import weakref

import pytest
from opentelemetry import trace
from sqlalchemy.util.queue import AsyncAdaptedQueue

import hopwatch
from hopwatch import process
from hopwatch.instrumentation import queue_patches, queues
from ticking import collect

tracer = trace.get_tracer("tests")


class Item:
    pass


def put(queue, item, hop):
    with hopwatch.cascade(hop):
        queue.put_nowait(item)


def name_of_current():
    hop = hopwatch.current()
    return None if hop is None else hop.name


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


def made_outside(coro):
    with hopwatch.service():
        return asyncio.create_task(coro)


@pytest.fixture(params=["queue", "full", "lifo", "priority", "culsans"])
def make_queue(request):
    if request.param == "culsans":
        return pytest.importorskip("culsans", reason="ci: may be skipped").Queue
    return {
        "queue": asyncio.Queue,
        "full": lambda: asyncio.Queue(maxsize=3),
        "lifo": asyncio.LifoQueue,
        "priority": asyncio.PriorityQueue,
    }[request.param]


def get(queue):
    return queue.async_get() if hasattr(queue, "async_get") else queue.get()


def put_async(queue, item):
    return queue.async_put(item) if hasattr(queue, "async_put") else queue.put(item)


# Until when an item holds its hop -----------------------------------------------------------------------------------


def test_an_item_holds_its_hop_until_task_done(watched, run, make_queue):
    async def main():
        queue = make_queue()
        for _ in range(3):
            put(queue, 1, "inner")
            assert "inner" in watched.open()
            await get(queue)
            assert "inner" in watched.open()
            queue.task_done()
            assert "inner" not in watched.open()

    run(main)
    assert watched.settled()


def test_work_in_a_queue_of_the_kind_that_a_pool_of_connections_uses_holds_its_hop(watched, run):
    async def main():
        queue = AsyncAdaptedQueue()
        with hopwatch.cascade("inner"):
            queue.put_nowait("a job")
        assert "inner" in watched.open()
        assert queue.get_nowait() == "a job"
        assert "inner" in watched.open()
        queue._queue.task_done()
        assert "inner" not in watched.open()

    run(main)
    assert watched.settled()


@pytest.mark.parametrize("others", ["left", "cancelled", "taken"])
def test_tasks_that_as_completed_hands_out_are_over_when_they_are_whoever_takes_them(watched, run, others):
    async def main():
        go_on, tasks = asyncio.Event(), []

        async def answer(number):
            if number:
                await go_on.wait()
            return number

        with hopwatch.cascade("inner"):
            tasks += [asyncio.create_task(answer(number)) for number in range(3)]
            for first in asyncio.as_completed(tasks):
                await first
                if others != "taken":
                    break
                go_on.set()
            if others == "cancelled":
                for task in tasks:
                    task.cancel()
            assert ("inner" in watched.open()) is True
        go_on.set()
        await asyncio.wait(tasks)
        del first
        await asyncio.sleep(0)
        assert "inner" not in watched.open()
        gc.collect()

    run(main)
    assert watched.told()["inner"] == "finished"
    assert watched.settled()


def test_an_item_put_asynchronously_holds_its_hop_until_task_done(watched, run, make_queue):
    async def main():
        queue = make_queue()
        with hopwatch.cascade("inner"):
            await put_async(queue, 1)
        assert "inner" in watched.open()
        queue.get_nowait()
        queue.task_done()
        assert "inner" not in watched.open()

    run(main)
    assert watched.settled()


def test_a_producer_that_waits_for_room_holds_the_hop_and_then_its_item_does(watched, run):
    async def main():
        queue = asyncio.Queue(maxsize=1)
        put(queue, 1, "first")
        with hopwatch.cascade("second"):
            producer = asyncio.create_task(queue.put(2))
        with hopwatch.cascade("third"), pytest.raises(asyncio.QueueFull):
            queue.put_nowait(3)
        await turns()
        assert watched.open() == ["root", "first", "second"]
        for left in (["root", "second"], ["root"]):
            await queue.get()
            queue.task_done()
            await producer
            assert watched.open() == left

    run(main)
    assert watched.settled()


def test_a_consumer_that_never_calls_task_done_is_through_with_an_item_at_its_next_get(
    watched, run, make_queue
):
    async def main():
        queue = make_queue()
        for number in range(3):
            put(queue, number, f"hop {number}")
        seen = []
        for _ in range(3):
            await get(queue)
            seen.append(len(watched.open()))
        assert seen == [4, 3, 2]

    run(main)
    assert watched.settled()


def test_a_consumer_that_never_calls_task_done_is_through_when_it_waits_for_the_next_item(
    watched, run, make_queue
):
    async def main():
        queue = make_queue()

        async def consume():
            while True:
                await get(queue)

        consumer = made_outside(consume())
        put(queue, 1, "inner")
        while queue.qsize():
            await asyncio.sleep(0)
        await turns()
        watched.tick()
        assert watched.open() == ["root"]
        consumer.cancel()

    run(main)
    assert watched.settled()


def test_a_consumer_that_never_calls_task_done_is_through_at_its_end(watched, run, make_queue):
    async def consume(queue):
        await get(queue)

    async def main():
        queue = make_queue()
        put(queue, 1, "inner")
        await made_outside(consume(queue))
        await turns()
        watched.tick()
        assert watched.open() == ["root"]

    run(main)
    assert watched.told()["inner"] == "finished"
    assert watched.settled()


async def by_a_task(queue):
    return await asyncio.create_task(queue.get())


async def by_waiting_for_the_first(queue):
    getter, other = asyncio.create_task(queue.get()), asyncio.create_task(asyncio.Event().wait())
    await asyncio.wait({getter, other}, return_when=asyncio.FIRST_COMPLETED)
    other.cancel()
    return getter.result()


async def by_gathering(queue):
    (item,) = await asyncio.gather(queue.get())
    return item


async def by_a_timeout(queue):
    return await asyncio.wait_for(queue.get(), 600)  # a task of its own up to 3.11


WAYS = [by_a_task, by_waiting_for_the_first, by_gathering, by_a_timeout]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", ["taken as it comes", "taken from what is there"])
def test_an_item_that_another_task_took_for_its_consumer_is_worked_on_until_task_done(
    watched, run, way, first
):
    async def consume(queue, begun, go_on):
        while True:
            begun.set_result(await way(queue))
            begun, go_on = await go_on
            queue.task_done()

    async def main():
        loop = asyncio.get_running_loop()
        queue = asyncio.Queue()
        begun, go_on = loop.create_future(), loop.create_future()
        if first == "taken from what is there":
            put(queue, 1, "hop 1")
        consumer = made_outside(consume(queue, begun, go_on))
        await turns(8)
        if first == "taken as it comes":
            put(queue, 1, "hop 1")
        for number in (1, 2):
            assert await begun == number
            await turns(8)
            watched.tick()
            watched.tick()
            assert f"hop {number}" in watched.open()
            begun, following = loop.create_future(), loop.create_future()
            go_on.set_result((begun, following))
            go_on = following
            await turns(8)
            assert watched.open() == ["root"]
            put(queue, number + 1, f"hop {number + 1}")
        await begun
        consumer.cancel()
        await asyncio.wait({consumer})
        watched.tick()

    run(main)
    assert watched.told()["hop 1"] == watched.told()["hop 2"] == "finished"


@pytest.mark.parametrize("way", WAYS)
def test_who_takes_items_by_other_tasks_and_never_calls_task_done_is_through_when_it_comes_back(
    watched, run, way
):
    async def consume(queue, begun, go_on):
        begun.set_result(await way(queue))
        await go_on
        await way(queue)

    async def main():
        loop = asyncio.get_running_loop()
        queue = asyncio.Queue()
        begun, go_on = loop.create_future(), loop.create_future()
        put(queue, 1, "inner")
        consumer = made_outside(consume(queue, begun, go_on))
        await begun
        await turns(8)
        watched.tick()
        watched.tick()
        assert sorted(watched.open()) == ["inner", "root"]
        go_on.set_result(None)
        await turns(8)
        watched.tick()
        assert watched.open() == ["root"]
        consumer.cancel()
        await asyncio.wait({consumer})

    run(main)
    assert watched.settled()


def test_an_item_that_a_task_took_for_nobody_known_settles_nothing(watched, run):
    async def main():
        queue = asyncio.Queue()
        put(queue, 1, "inner")
        taken = made_outside(queue.get())
        await turns(8)
        watched.tick()
        assert taken.result() == 1

    run(main)
    assert watched.settled()
    assert watched.hops()["inner"].dropped == 1  # and so the verdict is unknown


class Wrapping(asyncio.Queue):
    """A queue out of which comes something else than was put in."""

    def _init(self, maxsize):
        self.kept = self._queue = []

    def _put(self, item):
        self.kept.append((item,))

    def _get(self):
        return self.kept.pop(0)[0][1]


def test_an_item_that_comes_out_of_its_queue_as_another_object_settles_nothing(watched, run):
    async def main():
        queue = Wrapping()
        put(queue, (1, object()), "inner")
        await get(queue)
        watched.tick()
        queue.task_done()

    run(main)
    assert watched.settled()
    assert watched.hops()["inner"].dropped == 1  # and so the verdict is unknown


def test_a_batch_consumer_holds_all_three_until_it_calls_task_done_three_times(watched, run, make_queue):
    async def main():
        for _ in range(2):
            queue = make_queue()
            for number in range(3):
                put(queue, number, f"hop {number}")
            batch = [await get(queue) for _ in range(3)]
            assert sorted(batch) == [0, 1, 2]
            watched.tick()
            assert sorted(watched.open()) == ["hop 0", "hop 1", "hop 2", "root"]
            for left in (2, 1, 0):
                queue.task_done()
                assert len(watched.open()) == left + 1
            assert name_of_current() == "root"

    run(main)
    assert watched.settled()


def test_a_batch_consumer_that_waits_for_more_still_holds_what_it_has(watched, run, make_queue):
    async def main():
        queue = make_queue()

        async def consume():
            await get(queue)
            await get(queue)
            queue.task_done()
            queue.task_done()

        consumer = made_outside(consume())
        put(queue, 1, "one")
        await turns()
        watched.tick()
        assert watched.open() == ["root", "one"]
        put(queue, 2, "two")
        await consumer
        assert watched.open() == ["root"]

    run(main)
    assert watched.settled()


def test_several_consumers_each_let_go_of_their_own_hop(watched, run, make_queue):
    async def main():
        queue = make_queue()
        gates = {}
        entered = asyncio.Event()

        async def consume():
            while True:
                item = await get(queue)
                gates[item] = asyncio.Event()
                if len(gates) == 3:
                    entered.set()
                assert name_of_current() == f"hop {item}"
                await gates[item].wait()
                assert name_of_current() == f"hop {item}"
                queue.task_done()
                assert name_of_current() is None

        consumers = [made_outside(consume()) for _ in range(3)]
        for number in range(3):
            put(queue, number, f"hop {number}")
        await entered.wait()
        for number in (1, 2, 0):
            assert f"hop {number}" in watched.open()
            gates[number].set()
            await turns()
            assert f"hop {number}" not in watched.open()
        for consumer in consumers:
            consumer.cancel()
        await asyncio.wait(consumers)

    run(main)
    assert watched.settled()


def test_items_that_no_hop_put_there_are_nobodys(watched, run, make_queue):
    async def main():
        queue = make_queue()
        seen = {}

        async def consume():
            for _ in range(2):
                item = await get(queue)
                seen[item] = name_of_current()
                queue.task_done()

        for number in range(0, 4, 2):
            consumer = made_outside(consume())
            with hopwatch.service():
                await put_async(queue, number)
            put(queue, number + 1, f"hop {number + 1}")
            await consumer
        assert seen == {0: None, 1: "hop 1", 2: None, 3: "hop 3"}

    run(main)
    assert watched.settled()


def test_the_same_object_twice_counts_twice(watched, run, make_queue):
    async def main():
        queue = make_queue()
        item = 7
        put(queue, item, "one")
        put(queue, item, "two")
        for left in (1, 0):
            await get(queue)
            queue.task_done()
            assert len(watched.open()) == left + 1

    run(main)
    assert watched.settled()


def test_another_task_may_call_task_done(watched, run, make_queue):
    async def main():
        queue = make_queue()
        put(queue, 1, "inner")

        async def helper():
            assert name_of_current() == "inner"
            queue.task_done()
            assert name_of_current() == "inner"

        async def consume():
            await get(queue)
            await asyncio.create_task(helper())

        await made_outside(consume())
        await turns()
        assert watched.open() == ["root"]

    run(main)
    assert watched.settled()


def test_a_consumer_whose_helper_called_task_done_goes_back_at_its_next_item(watched, run):
    async def main():
        queue = asyncio.Queue()
        put(queue, 1, "one")
        put(queue, 2, "two")

        async def helper():
            queue.task_done()

        async def consume():
            await queue.get()
            await asyncio.create_task(helper())
            await queue.get()
            assert name_of_current() == "two"
            queue.task_done()
            assert name_of_current() is None

        await made_outside(consume())

    run(main)
    assert watched.settled()


# Ends -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same_hop", [False, True])
@pytest.mark.parametrize("times", [1, 3])
def test_a_consumer_that_is_cancelled_in_the_middle_lets_go(watched, run, make_queue, same_hop, times):
    async def main():
        queue = make_queue()
        taken = asyncio.Event()

        async def consume():
            for number in range(times):
                await get(queue)
                if number == times - 1:
                    taken.set()
                    await asyncio.get_running_loop().create_future()
                queue.task_done()

        with hopwatch.cascade("inner"):
            consumer = asyncio.create_task(consume()) if same_hop else made_outside(consume())
            for number in range(times):
                await put_async(queue, number)
        await taken.wait()
        assert "inner" in watched.open()
        consumer.cancel()
        await asyncio.wait([consumer])
        for _ in range(3):
            watched.tick()
            await turns()
        assert watched.open() == ["root"]

    run(main)
    assert watched.settled()


def test_a_consumer_that_is_destroyed_in_the_middle_lets_go(watched, run, make_queue):
    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        queue = make_queue()
        taken = asyncio.Event()

        async def consume():
            await get(queue)
            taken.set()
            await asyncio.get_running_loop().create_future()
            queue.task_done()

        task = made_outside(consume())
        put(queue, 1, "inner")
        await taken.wait()
        del task
        await turns()
        collect()
        watched.tick()
        assert watched.open() == ["root"]

    run(main)
    assert watched.settled()


def test_items_of_a_queue_that_is_collected_are_abandoned(watched, run, make_queue):
    async def main():
        queue = make_queue()
        put(queue, 1, "one")
        put(queue, 2, "two")
        del queue
        collect()
        watched.tick()
        assert watched.open() == ["root"]

    run(main)
    hops = watched.hops()
    assert (hops["event in a queue"].outcome, hops["event in a queue"].reason) == (
        "abandoned",
        "the queue that held it was collected",
    )
    assert watched.settled()
    assert not queues.watched


@pytest.mark.skipif(
    sys.version_info < (3, 13), reason="asyncio.Queue.shutdown came with 3.13; ci: may be skipped"
)
@pytest.mark.parametrize("make", [asyncio.Queue, asyncio.LifoQueue])
def test_a_queue_that_is_shut_down_at_once_drops_its_items(watched, run, make):
    async def main():
        queue = make()
        put(queue, 1, "inner")
        queue.shutdown(immediate=True)
        assert watched.open() == ["root"]

    run(main)
    assert watched.settled()


def test_a_queue_that_is_shut_down_gracefully_keeps_its_items(watched, run, make_queue):
    async def main():
        queue = make_queue()
        if not hasattr(queue, "shutdown"):
            return
        put(queue, 1, "inner")
        queue.shutdown()
        assert "inner" in watched.open()
        await get(queue)
        queue.task_done()
        assert watched.open() == ["root"]

    run(main)
    assert watched.settled()


def test_an_item_that_the_application_removed_behind_our_back_holds_nothing_open(watched, run):
    async def main():
        queue = asyncio.Queue()
        put(queue, 1, "gone")
        queue._queue.clear()
        put(queue, 2, "there")
        for _ in range(3):
            watched.tick()
            await turns()
        assert watched.open() == ["root", "there"]
        await queue.get()
        queue.task_done()
        assert watched.open() == ["root"]

    run(main)
    assert watched.settled()


def test_a_queue_of_the_applications_own_that_keeps_the_last_item_only(watched, run):
    class Last(asyncio.Queue):
        def _put(self, item):
            self._queue.clear()
            super()._put(item)

    async def main():
        queue = Last()
        put(queue, Item(), "first")
        put(queue, Item(), "last")
        await queue.get()
        queue.task_done()
        assert watched.open() == ["root"]

    run(main)
    assert watched.settled()


def test_a_queue_may_be_used_where_no_loop_runs(watched):
    queue = asyncio.Queue()
    put(queue, 1, "inner")
    assert "inner" in watched.open()
    queue.get_nowait()
    watched.tick()
    assert watched.open() == []
    assert watched.settled()


def test_items_of_several_cascades_and_many_consumers_all_come_to_their_end(watched, run, make_queue):
    async def main():
        queue = make_queue()
        done = []

        async def consume():
            while True:
                item = await get(queue)
                await asyncio.sleep(0)
                done.append((item, name_of_current()))
                queue.task_done()

        consumers = [made_outside(consume()) for _ in range(4)]
        for number in range(40):
            with hopwatch.cascade(f"hop {number}"):
                await put_async(queue, number)
        while len(done) < 40:
            await asyncio.sleep(0)
        assert sorted(done) == [(number, f"hop {number}") for number in range(40)]
        for consumer in consumers:
            consumer.cancel()
        await asyncio.wait(consumers)

    run(main)
    assert watched.settled()


# For whom a consumer works -------------------------------------------------------------------------------------------


def test_the_consumers_current_hop_and_span_follow_the_item_and_go_back(watched, run, make_queue):
    async def main():
        queue = make_queue()
        seen = []

        def look():
            seen.append((name_of_current(), trace.get_current_span().get_span_context().span_id))

        async def consume():
            look()
            for _ in range(2):
                await get(queue)
                look()
                queue.task_done()
                look()

        ids = {}
        for name in ("one", "two"):
            with hopwatch.cascade(name):
                ids[name] = trace.get_current_span().get_span_context().span_id
                queue.put_nowait(name)
        before = trace.get_current_span().get_span_context().span_id
        await made_outside(consume())
        first, second = (seen[1][0], seen[3][0])
        assert sorted((first, second)) == ["one", "two"]
        assert seen == [
            (None, before),
            (first, ids[first]),
            (None, before),
            (second, ids[second]),
            (None, before),
        ]

    run(main)
    assert watched.settled()


def test_a_consumer_in_the_middle_of_a_hop_of_its_own_keeps_it(watched, run, make_queue):
    async def main():
        queue = make_queue()
        put(queue, 1, "inner")
        with hopwatch.cascade("mine"):
            await get(queue)
            assert name_of_current() == "mine"
            queue.task_done()
            assert name_of_current() == "mine"

    run(main)
    assert watched.settled()


def test_a_consumer_with_a_recording_span_of_its_own_keeps_it(watched, run, make_queue):
    async def main():
        queue = make_queue()
        put(queue, 1, "inner")

        async def consume():
            with tracer.start_as_current_span("its own") as span:
                await get(queue)
                assert name_of_current() == "inner"
                assert trace.get_current_span() is span
                queue.task_done()
                assert trace.get_current_span() is span

        await made_outside(consume())

    run(main)
    assert watched.settled()


def test_a_consumer_that_opens_a_span_around_its_work_comes_back_to_the_items(watched, run, make_queue):
    async def main():
        queue = make_queue()
        before = trace.get_current_span()
        put(queue, 1, "inner")

        async def consume():
            await get(queue)
            with tracer.start_as_current_span("work"):
                pass
            assert trace.get_current_span() is not before
            queue.task_done()
            assert trace.get_current_span() is before

        await made_outside(consume())

    run(main)
    assert watched.settled()


def test_task_done_inside_a_hop_of_the_consumers_own_does_not_leave_it_with_the_items_hop_for_ever(
    watched, run
):
    async def main():
        queue = asyncio.Queue()
        put(queue, 1, "one")
        put(queue, 2, "two")

        async def consume():
            await queue.get()
            with hopwatch.cascade("mine"):
                queue.task_done()
            await queue.get()
            assert name_of_current() == "two"
            queue.task_done()
            assert name_of_current() is None

        await made_outside(consume())

    run(main)
    assert watched.settled()


def test_a_consumer_of_two_queues_goes_back_in_whatever_order_it_lets_go(watched, run):
    async def main():
        one, two = asyncio.Queue(), asyncio.Queue()
        put(one, 1, "one")
        put(two, 2, "two")

        async def consume():
            await one.get()
            await two.get()
            assert name_of_current() == "two"
            one.task_done()
            two.task_done()
            assert name_of_current() is None

        await made_outside(consume())

    run(main)
    assert watched.settled()


def test_a_worker_that_one_hop_started_lazily_works_for_each_items_hop(watched, run, make_queue):
    async def main():
        queue = make_queue()
        seen = []

        async def consume():
            for _ in range(2):
                item = await get(queue)
                seen.append((item, name_of_current()))
                queue.task_done()

        with hopwatch.cascade("starter"):
            worker = asyncio.create_task(consume())
            queue.put_nowait("starter")
        await turns()
        put(queue, "other", "other")
        await worker
        assert seen == [("starter", "starter"), ("other", "other")]

    run(main)
    assert not any(hop.late for hop in watched.hops().values())
    assert watched.settled()


def test_what_a_consumer_starts_for_an_item_counts_on_the_items_hop(watched, run, make_queue):
    async def main():
        queue = make_queue()
        gate = asyncio.Event()
        made = []

        async def consume():
            await get(queue)
            made.append(asyncio.create_task(gate.wait()))
            queue.task_done()

        put(queue, 1, "inner")
        await made_outside(consume())
        assert "inner" in watched.open()
        gate.set()
        await made[0]
        await turns()
        assert watched.open() == ["root"]

    run(main)
    assert watched.settled()


def test_an_item_whose_hop_is_done_and_closed_is_late_and_never_dropped(watched, run):
    async def main():
        queue = asyncio.Queue()
        with hopwatch.cascade("inner"):
            hop = process.current.get()
        assert hop.closed
        token = process.current.set(hop)
        queue.put_nowait(1)
        process.current.reset(token)
        assert "event in a queue" in watched.open()
        await queue.get()
        queue.task_done()
        assert watched.open() == ["root"]

    run(main)
    assert watched.hops()["event in a queue"].late
    assert watched.hops()["inner"].late_children == 1
    assert watched.settled()


# What can be seen ----------------------------------------------------------------------------------------------------


def test_an_item_that_waits_longer_than_the_threshold_is_revealed(watched, run):
    async def main():
        queue = asyncio.Queue()
        put(queue, 1, "inner")
        watched.tick()
        watched.tick(later=1.5)
        await turns()
        assert watched.open() == ["root", "inner", "event in a queue"] or watched.open() == [
            "root",
            "event in a queue",
        ]
        put(queue, 2, "second")
        await queue.get()
        queue.task_done()
        assert "event in a queue" not in watched.open()
        assert "second" in watched.open()
        await queue.get()
        queue.task_done()

    run(main)
    assert watched.told()["event in a queue"] == "finished"
    assert watched.settled()


def test_with_detail_all_every_item_is_seen_and_the_count_is_right(watching_with, run):
    with watching_with(HOPWATCH_DETAIL="all") as watched:

        async def main():
            queue = asyncio.Queue()
            for number in range(3):
                put(queue, number, f"hop {number}")
            assert watched.open().count("event in a queue") == 3
            for _ in range(3):
                await queue.get()
                queue.task_done()
            assert watched.open() == ["root"]

        run(main)
        assert watched.settled()
        hops = watched.hops()
        assert all(hops[f"hop {number}"].children == 1 for number in range(3))
        assert process.failures == {}


def test_items_that_do_not_fit_are_counted_as_dropped(watching_with, run):
    with watching_with(HOPWATCH_CAPACITY="16") as watched:

        async def main():
            queue = asyncio.LifoQueue()
            for number in range(40):
                queue.put_nowait(number)
            for _ in range(40):
                await queue.get()
                queue.task_done()

        run(main)
        assert watched.settled()
        assert watched.hops()["root"].dropped == watched.ledger.dropped == 40 - 15


# No strong references, nothing printed, nothing left behind ----------------------------------------------------------


def test_items_and_queues_are_collected_as_soon_as_without_us(watched, run, make_queue):
    async def main():
        gc.disable()
        try:
            queue = make_queue()
            item = Item()
            references = [weakref.ref(item), weakref.ref(queue)]
            with hopwatch.cascade("inner"):
                try:
                    queue.put_nowait(item)
                except TypeError:
                    return []
            item = await get(queue)
            queue.task_done()
            del item, queue
            if "culsans" in str(make_queue):
                collect()  # its queues are cycles
            return [reference() for reference in references]
        finally:
            gc.enable()

    assert run(main) in ([None, None], [])
    assert watched.settled()


@pytest.mark.parametrize(
    ("hook", "name"), [("queue.put", "enqueued"), ("queue.get", "dequeued"), ("queue.task_done", "done_with")]
)
def test_a_hook_that_fails_is_counted_and_the_queue_goes_on(
    watching_with, run, make_queue, monkeypatch, hook, name, capfd
):
    def broken(*_):
        raise RuntimeError("ours")

    with watching_with() as watched:

        async def main():
            queue = make_queue()
            put(queue, 1, "one")
            with monkeypatch.context() as patch:
                patch.setattr(queue_patches, name, broken)
                if name == "enqueued":
                    with hopwatch.service():
                        queue.put_nowait(2)
                else:
                    put(queue, 2, "two")
                assert sorted([await get(queue), await get(queue)]) == [1, 2]
                queue.task_done()
                queue.task_done()
            put(queue, 3, "three")
            assert await get(queue) == 3
            queue.task_done()
            assert watched.open() == ["root"]

        run(main)
        assert process.failures == {hook: 1}
        assert watched.settled()
        assert sum(hop.dropped for hop in watched.hops().values()) >= 1
    assert "ours" not in capfd.readouterr().err


def test_a_queue_that_is_in_use_while_we_are_taken_out_holds_nothing_open(watching_with, run):
    with watching_with() as watched:

        async def main():
            queue = asyncio.Queue()
            put(queue, 1, "inner")
            return queue

        queue = run(main)
    assert watched.ledger.open_hops() == []
    assert watched.hops()["inner"].dropped == 1
    with watching_with() as watched:

        async def again():
            put(queue, 2, "second")
            assert await queue.get() == 1
            assert name_of_current() == "root"
            assert await queue.get() == 2
            queue.task_done()
            queue.task_done()

        run(again)
        assert watched.settled()
        assert process.failures == {}


@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="a2a-sdk takes culsans before 3.13 only; ci: may be skipped"
)
def test_a_culsans_queue_between_threads_counts_what_its_blocking_methods_move(watched, run):
    culsans = pytest.importorskip("culsans", reason="ci: may be skipped")

    async def main():
        queue = culsans.Queue()
        put(queue, 0, "zero")
        thread = threading.Thread(target=queue.sync_put, args=(1,))
        with hopwatch.service():
            thread.start()
        await asyncio.to_thread(thread.join)
        put(queue, 2, "two")
        seen = []
        for _ in range(3):
            item = await made_outside(consume(queue))
            seen.append(item)
        assert seen == [(0, "zero"), (1, None), (2, "two")]
        put(queue, 3, "three")
        queue.clear()

    async def consume(queue):
        item = await queue.async_q.get()
        name = name_of_current()
        queue.async_q.task_done()
        return item, name

    run(main)
    assert watched.settled()
