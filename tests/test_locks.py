"""Who waits for a lock, and who holds it? asyncio's own primitives, on asyncio's loop and on uvloop's."""

import asyncio
import gc
import sys
import weakref

import pytest

import hopwatch
from hopwatch import process
from hopwatch.hop_waits import holder_of
from hopwatch.instrumentation import locks


def waits(watched):
    """The invisible waits that are open."""
    return sorted(each.name for each in watched.ledger.invisible() if each.kind == "lock")


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture(params=[asyncio.Lock, asyncio.Semaphore, asyncio.BoundedSemaphore])
def make_lock(request):
    return request.param


def holders(lock):
    held = holder_of(lock)
    return held if held is None or isinstance(held, tuple) else (held,)


# Waits ----------------------------------------------------------------------------------------------------------------


def test_a_lock_that_is_free_is_taken_without_an_entry_and_its_holder_is_known(watched, run, make_lock):
    async def main():
        lock = make_lock()
        async with lock:
            assert waits(watched) == []
            assert holders(lock) == (asyncio.current_task(),)
        await lock.acquire()
        lock.release()

    run(main)
    assert watched.told() == {"root": "finished"}
    assert watched.settled()


def test_a_wait_holds_its_hop_and_ends_with_the_lock(watched, run, make_lock):
    async def main():
        lock = make_lock()
        await lock.acquire()
        with hopwatch.cascade("inner"):
            waiter = asyncio.create_task(lock.acquire())
        await turns()
        assert len(waits(watched)) == 1
        assert "inner" in watched.open()
        lock.release()
        assert await waiter is True
        await turns()
        assert waits(watched) == []
        assert watched.open() == ["root"]
        lock.release()

    run(main)
    assert watched.settled()


def test_the_holder_is_the_task_that_waited_once_it_has_the_lock(watched, run, make_lock):
    async def main():
        lock = make_lock()
        gate = asyncio.Event()

        async def holder():
            async with lock:
                await gate.wait()

        await lock.acquire()
        assert holders(lock) == (asyncio.current_task(),)
        task = asyncio.create_task(holder())
        await turns()
        lock.release()
        await turns()
        assert holders(lock) == (task,)
        gate.set()
        await task

    run(main)
    assert watched.settled()


def test_who_acquires_with_a_timeout_holds_the_lock_itself(watched, run, make_lock):
    async def main():
        lock = make_lock()
        await asyncio.wait_for(lock.acquire(), 50)
        assert holders(lock) == (asyncio.current_task(),)
        waiter = asyncio.create_task(wait_and_tell(lock))
        await turns()
        lock.release()
        assert await waiter

    async def wait_and_tell(lock):
        await asyncio.wait_for(lock.acquire(), 50)
        found = holders(lock) == (asyncio.current_task(),)
        lock.release()
        return found

    run(main)
    assert watched.settled()


def test_a_wait_that_times_out_leaves_nothing_open_and_the_lock_as_it_was(watched, run, make_lock):
    async def main():
        lock = make_lock()
        await lock.acquire()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(lock.acquire(), 0.01)
        await turns()
        assert waits(watched) == []
        assert lock.locked()
        assert holders(lock) == (asyncio.current_task(),)
        lock.release()
        assert not lock.locked()

    run(main)
    assert set(watched.told().values()) <= {"finished", "cancelled"}
    assert watched.settled()


def test_a_wait_that_is_cancelled_or_closed_is_not_a_failure(watched, run, make_lock):
    async def main():
        lock = make_lock()
        await lock.acquire()
        task = asyncio.create_task(lock.acquire())
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        by_hand = lock.acquire()
        by_hand.send(None)
        assert len(waits(watched)) == 1
        by_hand.close()
        await turns()
        assert waits(watched) == []
        lock.release()
        await lock.acquire()

    run(main)
    assert watched.told() == {"root": "finished"}
    assert watched.settled()


def test_a_coroutine_of_a_wait_goes_by_the_name_of_what_it_waits_for(watched, run):
    async def main():
        lock = asyncio.Lock()
        await lock.acquire()
        coro = lock.acquire()
        assert coro.__qualname__ == "Lock.acquire"
        coro.close()
        task = asyncio.create_task(lock.acquire())
        await turns()
        watched.tick(later=1.5)
        assert watched.open() == ["root", "Lock.acquire"]
        task.cancel()

    run(main)
    assert watched.settled()


def test_a_wait_in_a_task_that_has_outlasted_the_threshold_is_told_of_once_by_the_task(watched, run):
    async def main():
        event = asyncio.Event()

        async def waiter():
            await event.wait()

        task = asyncio.create_task(waiter())
        await turns()
        watched.tick(later=1.5)
        assert len(watched.open()) == 2
        event.set()
        await task

    run(main)
    assert watched.settled()


def test_events_conditions_and_barriers_are_waited_for_too(watched, run):
    async def main():
        event, condition = asyncio.Event(), asyncio.Condition()

        async def for_condition():
            async with condition:
                await condition.wait()
                return "condition"

        tasks = [asyncio.create_task(event.wait()), asyncio.create_task(for_condition())]
        await turns()
        assert waits(watched) == ["wait for Condition", "wait for Event"]
        event.set()
        async with condition:
            condition.notify()
        assert await asyncio.gather(*tasks) == [True, "condition"]
        assert waits(watched) == []
        assert await event.wait() is True
        if hasattr(asyncio, "Barrier"):
            barrier = asyncio.Barrier(2)
            first = asyncio.create_task(barrier.wait())
            await turns()
            assert "wait for Barrier" in waits(watched)
            assert sorted([await barrier.wait(), await first]) == [0, 1]

    run(main)
    assert watched.told() == {"root": "finished"}
    assert watched.settled()


def test_a_semaphore_knows_all_its_holders_also_one_that_took_it_twice(watched, run):
    async def main():
        semaphore = asyncio.Semaphore(3)
        gate = asyncio.Event()

        async def holder():
            async with semaphore:
                await gate.wait()

        task = asyncio.create_task(holder())
        await turns()
        me = asyncio.current_task()
        await semaphore.acquire()
        await semaphore.acquire()
        assert sorted(map(id, holders(semaphore))) == sorted(map(id, (task, me, me)))
        semaphore.release()
        assert sorted(map(id, holders(semaphore))) == sorted(map(id, (task, me)))
        semaphore.release()
        assert holders(semaphore) == (task,)
        gate.set()
        await task
        assert holders(semaphore) is None

    run(main)
    assert watched.settled()


# Where no task runs, and outside any hop ---------------------------------------------------------------------------------


def test_a_lock_may_be_asked_for_where_no_task_and_no_loop_runs(watched, make_lock):
    with hopwatch.cascade("root"):
        lock = make_lock()
        coro = lock.acquire()
        coro.close()
        loop = asyncio.new_event_loop()
        tasks = []
        loop.call_soon(lambda: tasks.append(loop.create_task(lock.acquire())))
        loop.run_until_complete(asyncio.sleep(0))
        assert loop.run_until_complete(tasks[0]) is True
        lock.release()
        loop.close()
    assert watched.settled()


def test_a_lock_taken_outside_any_hop_is_nobodys(watched, run):
    async def main():
        lock = asyncio.Lock()
        await lock.acquire()
        lock.release()
        with hopwatch.service():
            await lock.acquire()
        assert holder_of(lock) is None

    run(main)
    assert watched.settled()


# Detail all, references, guards -------------------------------------------------------------------------------------------


def test_with_detail_all_every_wait_is_seen_and_how_long_a_lock_was_held(watching_with, run):
    with watching_with(HOPWATCH_DETAIL="all") as watched:

        async def main():
            lock = asyncio.Lock()
            await lock.acquire()
            task = asyncio.create_task(lock.acquire())
            await turns()
            assert "wait for Lock" in watched.open()
            lock.release()
            await task
            lock.release()

        run(main)
        assert len(locks.holds) == 2
        assert watched.settled()
        assert not locks.holds
        hops = watched.hops()
        assert hops["root"].children == len([hop for hop in hops.values() if hop.parent == hops["root"].id])
        assert process.failures == {}


def test_locks_and_their_holders_are_collected_as_soon_as_without_us(watched, run, make_lock):
    async def main():
        gc.disable()
        try:
            lock = make_lock()

            async def holder(lock):
                await lock.acquire()

            task = asyncio.create_task(holder(lock))
            await task
            await turns()
            references = [weakref.ref(task), weakref.ref(lock)]
            del task
            assert references[0]() is None
            assert not holders(lock)
            del lock
            return references[1]
        finally:
            gc.enable()

    assert run(main)() is None


@pytest.mark.parametrize("name", ["current_task", "_open", "_hold_one", "_close", "_running"])
def test_a_hook_that_fails_is_counted_and_the_lock_works(
    watching_with, run, make_lock, monkeypatch, name, capfd
):
    def broken(*_):
        raise ZeroDivisionError("ours")

    with watching_with() as watched:

        async def main():
            lock = make_lock()
            with monkeypatch.context() as patch:
                if name == "_close":
                    patch.setattr(watched.ledger, "release", broken)
                elif name == "_open":
                    patch.setattr(watched.ledger, "open", broken)
                else:
                    patch.setattr(locks, name, broken)
                assert await lock.acquire() is True
                task = asyncio.create_task(lock.acquire())
                await turns()
                lock.release()
                assert await task is True
                lock.release()
                event = asyncio.Event()
                task = asyncio.create_task(event.wait())
                await turns()
                event.set()
                assert await task is True
                assert not lock.locked()

        run(main)
        if name not in ("_hold_one", "_running") or make_lock is not asyncio.Lock:
            assert process.failures
    assert "ours" not in capfd.readouterr().err


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Barrier came with 3.11; ci: may be skipped")
def test_a_wait_that_raises_of_itself_still_raises(watched, run):
    async def main():
        barrier = asyncio.Barrier(2)
        task = asyncio.create_task(barrier.wait())
        await turns()
        await barrier.abort()
        with pytest.raises(asyncio.BrokenBarrierError):
            await task
        condition = asyncio.Condition()
        with pytest.raises(RuntimeError):
            await condition.wait()

    run(main)
    assert watched.settled()
