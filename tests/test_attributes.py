"""Are queues, locks and semaphores the same objects with hopwatch's remarks on them: copied, pickled, and with classes that take none?"""

import asyncio
import copy
import pickle

import pytest


class Slotted(asyncio.Queue):
    """Has a slot besides."""

    __slots__ = ("extra",)


def refusing(cls):
    """A class whose objects take no attribute that they do not know."""

    class Refusing(cls):
        def __setattr__(self, name, value):
            if name.startswith("_hopwatch"):
                raise AttributeError(name)
            super().__setattr__(name, value)

    return Refusing


@pytest.mark.parametrize("make", [asyncio.Queue, asyncio.PriorityQueue, asyncio.LifoQueue, Slotted])
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda queue: pickle.loads(pickle.dumps(queue))]
)
def test_a_queue_is_copied_and_pickled_as_without_us(watched, run, make, copied):
    async def main():
        queue = make()
        if make is Slotted:
            queue.extra = "kept"
        queue.put_nowait(1)
        queue.put_nowait(2)
        assert queue.get_nowait() in (1, 2)
        other = copied(queue)
        assert not [name for name in vars(other) if name.startswith("_hopwatch")]
        assert getattr(other, "extra", "kept") == "kept"
        assert (other.qsize(), other._unfinished_tasks) == (1, 2)
        queue.task_done()
        queue.get_nowait()
        queue.task_done()
        await queue.join()

    run(main)
    assert watched.settled()


@pytest.mark.parametrize("make", [asyncio.Lock, asyncio.Semaphore])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda lock: pickle.loads(pickle.dumps(lock))])
def test_a_lock_that_is_held_is_copied_and_pickled_as_without_us(watched, run, make, copied):
    async def main():
        lock = make()
        await lock.acquire()
        assert copied(lock).locked()
        lock.release()

    run(main)
    assert watched.settled()


@pytest.mark.parametrize("cls", [asyncio.Lock, asyncio.Semaphore, asyncio.BoundedSemaphore])
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_a_lock_that_takes_no_attribute_of_ours_works_as_without_us(watched, run, cls, inside):
    async def main():
        lock = refusing(cls)()
        order = []

        async def use(number):
            async with lock:
                order.append(number)
                await asyncio.sleep(0)

        await asyncio.gather(use(1), use(2))
        assert order == [1, 2]

    run(main, root="root" if inside else None)
    assert watched.settled()


@pytest.mark.parametrize("cls", [asyncio.Queue, asyncio.PriorityQueue])
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_a_queue_that_takes_no_attribute_of_ours_works_and_is_counted(watched, run, cls, inside):
    seen = []

    async def main():
        queue = refusing(cls)(1)
        queue.put_nowait(1)
        seen.extend(watched.open())

        async def use():
            while await queue.get():
                queue.task_done()
            queue.task_done()

        user = asyncio.create_task(use())
        await queue.put(2)
        await queue.put(0)
        await queue.join()
        await user

    run(main, root="root" if inside else None)
    assert seen == (["root"] if inside else [])
    assert watched.settled()
