"""When has this process nothing pending any more? `hopwatch.drain` and `hopwatch.pending`."""

import asyncio

import pytest

import hopwatch
from hopwatch import draining


async def forever():
    await asyncio.get_running_loop().create_future()


def names(found):
    return [each.name for each in found]


def test_a_drain_with_nothing_pending_comes_back_at_once(watched, run):
    assert run(hopwatch.drain) == []
    assert run(hopwatch.drain, root=None) == []


def test_a_drain_waits_for_tasks_and_for_what_those_start(watched, run):
    ended = []

    async def late():
        await asyncio.sleep(0.02)
        ended.append("late")

    async def early():
        await asyncio.sleep(0.02)
        ended.append("early")
        tasks.append(asyncio.create_task(late()))

    tasks = []

    async def main():
        tasks.append(asyncio.create_task(early()))
        assert await hopwatch.drain(50) == []
        return list(ended)

    assert run(main) == ["early", "late"]


def test_a_drain_comes_back_as_soon_as_the_last_task_has_ended(watched, run, monkeypatch):
    # It does not look again by itself: only who tells of an end has it come back.
    monkeypatch.setattr(draining, "POLL", 3600.0)
    monkeypatch.setattr(draining, "POLL_HELD", 3600.0)

    async def main():
        task = asyncio.create_task(asyncio.sleep(0.02))
        assert await hopwatch.drain(3600) == []
        assert task.done()

    run(main)


def test_a_drain_says_what_is_left_when_the_time_is_over(watched, run):
    async def main():
        task = asyncio.create_task(forever())
        (found,) = await hopwatch.drain(0.02)
        task.cancel()
        return found

    found = run(main)
    assert (found.kind, found.name, found.hop, found.done) == ("task", "forever", None, False)
    assert found.location.startswith(f"{__file__}:")
    assert found.waits_on["what"] == "a future that nobody has set"
    assert 0 <= found.age < 60
    assert len(found.cascade) == 32


def test_a_drain_waits_for_other_cascades_unless_one_is_named(watched, run):
    async def other():
        with hopwatch.cascade("other"):
            await forever()

    async def main():
        task = asyncio.create_task(other())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with hopwatch.cascade("mine") as mine:
            quick = asyncio.create_task(asyncio.sleep(0.01))
        assert await hopwatch.drain(50, cascade=mine.id) == []
        assert quick.done()
        assert names(await hopwatch.drain(0.01)) == ["other"]
        task.cancel()
        await asyncio.wait([task])
        assert await hopwatch.drain(50) == []

    run(main, root=None)


def test_a_drain_does_not_wait_for_service_loops(watched, run):
    @hopwatch.service
    async def loop():
        await forever()

    async def main():
        task = asyncio.create_task(loop())
        found = await hopwatch.drain(50)
        task.cancel()
        return found

    assert run(main) == []


def test_a_drain_waits_for_items_in_queues(watched, run):
    async def main():
        queue = asyncio.Queue()
        queue.put_nowait("item")
        left = await hopwatch.drain(0.01)
        assert [(each.kind, each.name) for each in left if each.kind == "event"] == [
            ("event", "an item in a queue")
        ]
        draining = asyncio.ensure_future(hopwatch.drain(50))
        await queue.get()
        queue.task_done()
        return await draining

    assert run(main) == []


def test_a_drain_does_not_wait_for_the_hops_that_its_caller_is_in_the_middle_of(watched, run):
    async def main():
        with hopwatch.cascade("inner"):
            assert await hopwatch.drain(50) == []

        async def below():
            with hopwatch.cascade("below"):
                return await hopwatch.drain(50)

        return await asyncio.create_task(below())

    assert run(main) == []


def test_a_drain_hears_of_hops_that_close_in_other_threads(watched, run):
    import threading

    go = threading.Event()

    def work():
        with hopwatch.cascade("in a thread"):
            entered.set()
            go.wait(50)

    entered = threading.Event()

    async def main():
        thread = threading.Thread(target=work)
        thread.start()
        entered.wait(50)
        assert names(await hopwatch.drain(0.01)) == ["in a thread"]
        go.set()
        found = await hopwatch.drain(50)
        thread.join()
        return found

    assert run(main, root=None) == []


def test_a_drain_that_is_cancelled_leaves_nothing_behind(watched, run):
    async def main():
        task = asyncio.create_task(forever())
        draining = asyncio.ensure_future(hopwatch.drain())
        await asyncio.sleep(0.01)
        draining.cancel()
        await asyncio.wait([draining])
        task.cancel()
        await asyncio.wait([task])
        return watched.process.telemetry.wakers

    assert run(main) == []


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_cannot_be_is_refused(timeout):
    with pytest.raises(ValueError, match="the timeout is"):
        asyncio.run(hopwatch.drain(timeout))


def test_pending_tells_of_items_in_queues_and_of_where_tasks_were_made(watched, run):
    async def main():
        queue = asyncio.Queue()
        queue.put_nowait(1)
        queue.put_nowait(2)
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        found = hopwatch.pending()
        task.cancel()
        return found, queue

    found, _ = run(main)
    assert [(each.kind, each.name) for each in found] == [
        ("task", "root"),
        ("event", "2 items in queues"),
        ("task", "forever"),
    ]
    assert found[2].location.startswith(f"{__file__}:")
