"""Stories about the chain that people are told, and about timers that are read once a tick.

The stories about what each wait is are in `test_waits.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from hopwatch import waits
from hopwatch.waits import Timers, glance, of_task, timers
from test_waits import HERE as THERE
from test_waits import SINCE_311, blocked, finish, line_of, napping, play, stuck
from ticking import collect

HERE = __file__


@contextlib.asynccontextmanager
async def resting(*stories):
    """Have a task for each story that has come to rest."""
    tasks = [asyncio.create_task(story) for story in stories]
    await blocked(*tasks)
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def look(task, **known):
    return await asyncio.to_thread(of_task, task, **known)


def test_the_package_has_these_functions_and_types():
    assert sorted(waits.__all__) == [
        "Across", "Deadlock", "Free", "Job", "Known", "Queue", "Send", "Timers", "Wait", "asked", "clock", "deadlocks",
        "glance", "is_application", "of_task", "when_of", "with_times",
    ]  # fmt: skip


# --- the chain -----------------------------------------------------------------------------------------------------


def wrapper(path):
    """Return a coroutine function that awaits another one, from a file of that name."""
    namespace = {}
    exec(compile("async def wrapped(inner, *args): return await inner(*args)", path, "exec"), namespace)
    return namespace["wrapped"]


SITE = "/venv/lib/python3/site-packages"
MACHINERY = [
    "/src/hopwatch/instrumentation/tasks.py",
    f"{SITE}/hopwatch/instrumentation/a2a.py",
    f"{SITE}/opentelemetry/instrumentation/asyncio/__init__.py",
    f"{SITE}/wrapt/wrappers.py",
    f"{SITE}/a2a/utils/telemetry.py",
]


@pytest.mark.parametrize("path", MACHINERY)
def test_the_chain_does_not_tell_of_instrumentation_in_between(path):
    async def last(event):
        await event.wait()  # here

    async def first(event):
        await wrapper(path)(last, event)

    async def main():
        async with resting(first(asyncio.Event())) as tasks:
            return await look(tasks[0])

    wait = play(main())
    assert [step.rpartition(".")[2] for step in wait.chain] == ["first", "last", "wait"]
    assert (wait.kind, wait.moves, wait.file, wait.line) == ("event", False, HERE, line_of(last, "# here"))


def test_what_the_chain_does_not_tell_is_judged_all_the_same():
    async def main():
        library = wrapper(f"{SITE}/opentelemetry/instrumentation/pool/__init__.py")
        async with resting(library(asyncio.Event().wait)) as tasks:
            return await look(tasks[0])

    wait = play(main())
    assert (wait.kind, wait.moves) == ("event", True)
    assert [step.rpartition(" ")[2] for step in wait.chain] == ["Event.wait"]


def test_the_rest_of_an_instrumented_package_is_told():
    async def main():
        async with resting(wrapper(f"{SITE}/a2a/server/telemetry.py")(stuck)) as tasks:
            return await look(tasks[0])

    assert [step.rpartition(" ")[2] for step in play(main()).chain] == ["wrapped", "stuck", "Event.wait"]


# --- a coroutine that is closed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [glance, of_task])
def test_of_a_closed_coroutine_is_said_no_more_than_where_it_was_written(ask):
    async def main():
        task = asyncio.create_task(stuck(), name="lost")
        await blocked(task)
        task.get_coro().close()  # as a cyclic collection does, before the task is reported destroyed
        wait = ask(task)
        task.cancel()
        await asyncio.wait({task})
        return wait, task.cancelled() or task.exception()

    wait, _ = play(main())
    written = line_of(stuck, "async def")
    assert (wait.kind, wait.moves, wait.task) == ("future", True, "lost")
    assert (wait.file, wait.line, wait.function) == (THERE, written, "stuck")
    assert wait.what.endswith(
        f"its coroutine is closed, and all that is left is that it was written at {THERE}:{written}"
    )


# --- timers, read once a tick --------------------------------------------------------------------------------------


def test_questions_of_one_tick_read_each_timer_once(monkeypatch):
    read = []
    acted_on = timers._acted_on
    monkeypatch.setattr(timers, "_acted_on", lambda handle: read.append(id(handle)) or acted_on(handle))

    async def main():
        loop = asyncio.get_running_loop()
        handles = [loop.call_later(60, loop.create_future().set_result, None) for _ in range(200)]
        async with resting(*(stuck() for _ in range(20))) as tasks:
            tick = Timers()
            found = [of_task(task, timers=tick) for task in tasks]
        for handle in handles:
            handle.cancel()
        return found

    found = play(main())
    assert not any(wait.moves for wait in found)
    assert len(read) == len(set(read))
    assert 200 <= len(read) < 220


def test_a_timer_that_is_made_during_a_tick_is_seen_and_one_that_is_cancelled_is_not():
    async def tick_of(event):
        await event.wait()

    async def main():
        loop, event, tick = asyncio.get_running_loop(), asyncio.Event(), Timers()
        async with resting(tick_of(event), stuck()) as (task, other):
            found = [await look(other, timers=tick), await look(task, timers=tick)]
            by_method = loop.call_later(60, event.set)
            found.append(await look(task, timers=tick))
            by_method.cancel()
            found.append(await look(task, timers=tick))
            by_closure = loop.call_later(60, lambda: event.set())  # noqa: PLW0108 - what it closes over is the point
            found += [await look(task, timers=tick), await look(other, timers=tick)]
            by_closure.cancel()
            found.append(await look(task, timers=tick))
        return found

    found = play(main())
    assert [wait.moves for wait in found] == [False, False, True, False, True, False, False]
    assert found[2].until == pytest.approx(time.time() + 60, abs=30)


def test_what_a_callback_closes_over_may_change_during_a_tick():
    async def wants(future):
        await future

    async def main():
        loop, tick = asyncio.get_running_loop(), Timers()
        future = None
        handle = loop.call_later(60, lambda: future.set_result(None))
        async with resting(stuck()) as (other,):
            first = await look(other, timers=tick)
            future = loop.create_future()
            async with resting(wants(future)) as (task,):
                second = await look(task, timers=tick)
        handle.cancel()
        return first, second

    first, second = play(main())
    assert (first.moves, second.moves) == (False, True)
    assert second.until is not None


@SINCE_311
@pytest.mark.parametrize("others", [0, timers.TIMERS + 1])
def test_a_timeout_behind_a_context_manager_is_found_on_a_loop_with_few_timers_or_many(others):
    @contextlib.asynccontextmanager
    async def limited():
        async with asyncio.timeout(60):
            yield

    async def hurry(event):
        async with limited():
            await event.wait()

    async def main():
        loop, tick = asyncio.get_running_loop(), Timers()
        handles = [loop.call_later(60, list) for _ in range(others)]
        async with resting(stuck(), hurry(asyncio.Event())) as tasks:
            found = [await look(task, timers=tick) for task in tasks]
        for handle in handles:
            handle.cancel()
        return found

    patient, hurried = play(main())
    assert (patient.moves, hurried.moves) == (False, True)
    assert hurried.until == pytest.approx(time.time() + 60, abs=30)


def test_one_tick_asks_about_tasks_of_several_loops():
    uvloop = pytest.importorskip("uvloop")
    tick = Timers()

    async def main():
        async with resting(stuck(), napping()) as tasks:
            return [of_task(task, timers=tick).moves for task in tasks]

    for make in (asyncio.new_event_loop, uvloop.new_event_loop, asyncio.new_event_loop):
        assert finish(make(), main()) == [False, True]


def test_timers_that_were_dropped_keep_nothing_alive():
    import weakref

    async def main():
        loop, event, tick = asyncio.get_running_loop(), asyncio.Event(), Timers()
        handle = loop.call_later(60, event.set)
        async with resting(stuck()) as tasks:
            assert not of_task(tasks[0], timers=tick).moves
        handle.cancel()
        del tick, handle
        return weakref.ref(event)

    ref = play(main())
    collect()
    assert ref() is None


# --- code of the application ---------------------------------------------------------------------------------------


def test_a_metaclass_of_the_application_is_not_asked_for_the_hash_of_its_class():
    called = []

    class Meta(type):
        def __hash__(cls):
            called.append("hash")
            return 1

        def __eq__(cls, other):
            called.append("eq")
            return cls is other

    class Thing(metaclass=Meta):
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            return None

    async def uses(thing, event):
        with thing:
            await event.wait()

    async def main():
        handle = asyncio.get_running_loop().call_later(60, print, Thing())
        async with resting(uses(Thing(), asyncio.Event())) as tasks:
            called.clear()
            wait, _ = of_task(tasks[0]), glance(tasks[0])
            told = called.copy()
        handle.cancel()
        return wait, told

    wait, told = play(main())
    assert told == []
    assert not wait.moves
