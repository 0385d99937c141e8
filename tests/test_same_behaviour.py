"""Does a program do the same with us as without us, and is nothing left open once it has ended?

Random small programs of tasks, gathers, groups, queues, locks, timeouts, cancellations, failures and async generators
run bare and instrumented inside a cascade. Compared is the trace of what each part observes, in order.
"""

import asyncio
import gc
import sys
import time
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hopwatch
from exported import end_process
from hopwatch import process
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
from hopwatch.telemetry import Telemetry
from ticking import Watched, collect

GROUPS = sys.version_info >= (3, 11)
NUMBERS = st.integers(0, 2)


def steps():
    """A step is a tuple: what, then its arguments."""
    simple = st.one_of(
        st.tuples(st.just("pass")),
        st.tuples(st.just("sleep")),
        st.tuples(st.just("fail")),
        st.tuples(st.just("cancel me")),
        st.tuples(st.just("put"), NUMBERS),
        st.tuples(st.just("get"), NUMBERS),
        st.tuples(st.just("get and acknowledge"), NUMBERS),
        st.tuples(st.just("acknowledge"), NUMBERS),
        st.tuples(st.just("set"), NUMBERS),
        st.tuples(st.just("wait"), NUMBERS),
        st.tuples(st.just("cancel"), NUMBERS),
        st.tuples(st.just("thread")),
        st.tuples(st.just("timer"), NUMBERS),
    )

    def deeper(inner):
        programs = st.lists(inner, max_size=3)
        return st.one_of(
            st.tuples(st.just("task"), programs),
            st.tuples(st.just("await"), programs),
            st.tuples(st.just("shield"), programs),
            st.tuples(st.just("gather"), st.lists(programs, max_size=3), st.booleans()),
            st.tuples(st.just("group"), st.lists(programs, max_size=3)),
            st.tuples(st.just("lock"), NUMBERS, programs),
            st.tuples(st.just("semaphore"), programs),
            st.tuples(st.just("condition"), programs),
            st.tuples(st.just("timeout"), programs),
            st.tuples(st.just("try"), programs),
            st.tuples(st.just("generator"), programs, st.integers(1, 3)),
            st.tuples(st.just("cascade"), programs),
            st.tuples(st.just("service"), programs),
        )

    return st.recursive(simple, deeper, max_leaves=14)


class World:
    """What one run of a program has, and what it saw."""

    def __init__(self):
        self.trace = []
        self.queues = [asyncio.Queue(), asyncio.Queue(maxsize=1), asyncio.LifoQueue()]
        self.locks = [asyncio.Lock() for _ in range(3)]
        self.events = [asyncio.Event() for _ in range(3)]
        self.semaphore = asyncio.Semaphore(2)
        self.condition = asyncio.Condition()
        self.tasks = []
        self.count = 0
        self.threads = 0
        self.instrumented = False

    def see(self, who, *what):
        self.trace.append((who, *what))

    def name(self):
        self.count += 1
        return self.count


async def play(world, who, program):
    """Play a program and say how it ended."""
    try:
        for step in program:
            world.see(who, step[0])
            result = await PLAYERS[step[0]](world, who, *step[1:])
            if result is not None:
                world.see(who, step[0], result)
    except asyncio.CancelledError:
        world.see(who, "cancelled")
        raise
    except Exception as error:
        world.see(who, "failed", type(error).__name__)
        raise
    world.see(who, "ended")
    return who


async def _pass(world, who):
    pass


async def _sleep(world, who):
    await asyncio.sleep(0)


async def _fail(world, who):
    raise ValueError(who)


async def _cancel_me(world, who):
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


async def _put(world, who, number):
    try:
        world.queues[number].put_nowait(who)
    except asyncio.QueueFull:
        await world.queues[number].put(who)


async def _get(world, who, number):
    return await world.queues[number].get()


async def _get_and_acknowledge(world, who, number):
    item = await world.queues[number].get()
    await asyncio.sleep(0)
    world.queues[number].task_done()
    return item


async def _acknowledge(world, who, number):
    try:
        world.queues[number].task_done()
    except ValueError as error:
        return str(error)


async def _set(world, who, number):
    world.events[number].set()


async def _wait(world, who, number):
    return await world.events[number].wait()


async def _cancel(world, who, number):
    return world.tasks[number].cancel() if number < len(world.tasks) else None


async def _thread(world, who):
    world.threads += 1
    try:
        return await asyncio.to_thread(len, "four")
    finally:
        world.threads -= 1


async def _timer(world, who, number):
    asyncio.get_running_loop().call_later(0, world.events[number].set)
    asyncio.get_running_loop().call_later(60, print).cancel()


async def _task(world, who, program):
    world.tasks.append(asyncio.create_task(play(world, world.name(), program)))


async def _await(world, who, program):
    return await asyncio.create_task(play(world, world.name(), program))


async def _shield(world, who, program):
    task = asyncio.ensure_future(play(world, world.name(), program))
    world.tasks.append(task)
    return await asyncio.shield(task)


async def _gather(world, who, programs, caught):
    found = await asyncio.gather(
        *(play(world, world.name(), each) for each in programs), return_exceptions=caught
    )
    return [type(each).__name__ if isinstance(each, BaseException) else each for each in found]


async def _group(world, who, programs):
    if not GROUPS:
        return await _gather(world, who, programs, True)
    async with asyncio.TaskGroup() as group:
        made = [group.create_task(play(world, world.name(), each)) for each in programs]
    return [each.result() for each in made]


async def _lock(world, who, number, program):
    async with world.locks[number]:
        return await play(world, world.name(), program)


async def _semaphore(world, who, program):
    async with world.semaphore:
        return await play(world, world.name(), program)


async def _condition(world, who, program):
    async with world.condition:
        world.condition.notify()
        await play(world, world.name(), program)
        await world.condition.wait()


async def _timeout(world, who, program):
    # Time itself would make two runs differ: it ends what is still waiting after some turns of the loop.
    task = asyncio.ensure_future(play(world, world.name(), program))
    for _ in range(6):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=60)
    return "cancelled" if task.cancelled() else type(task.exception()).__name__


async def _try(world, who, program):
    try:
        await play(world, world.name(), program)
    except Exception as error:
        return type(error).__name__


async def _generator(world, who, program, much):
    async def numbers():
        try:
            for number in range(2):
                await play(world, world.name(), program)
                yield number
        finally:
            world.see(who, "generator closed")

    async for number in numbers():
        if number + 1 >= much:
            break


async def _cascade(world, who, program):
    with hopwatch.cascade(f"hop {who}") if world.instrumented else open_nothing():
        return await play(world, world.name(), program)


async def _service(world, who, program):
    with hopwatch.service() if world.instrumented else open_nothing():
        task = asyncio.create_task(play(world, world.name(), program))
    world.tasks.append(task)


def open_nothing():
    import contextlib

    return contextlib.nullcontext()


PLAYERS = {
    "pass": _pass,
    "sleep": _sleep,
    "fail": _fail,
    "cancel me": _cancel_me,
    "put": _put,
    "get": _get,
    "get and acknowledge": _get_and_acknowledge,
    "acknowledge": _acknowledge,
    "set": _set,
    "wait": _wait,
    "cancel": _cancel,
    "thread": _thread,
    "timer": _timer,
    "task": _task,
    "await": _await,
    "shield": _shield,
    "gather": _gather,
    "group": _group,
    "lock": _lock,
    "semaphore": _semaphore,
    "condition": _condition,
    "timeout": _timeout,
    "try": _try,
    "generator": _generator,
    "cascade": _cascade,
    "service": _service,
}


def run(make_loop, program, *, instrumented):
    """Play a program to its end, or for so many turns of the loop; then cancel what is left, as `asyncio.run` does."""
    gc.disable()  # so that what is collected is collected at the same moment
    loop = make_loop()
    told = []
    loop.set_exception_handler(lambda _, context: told.append(context["message"].split("\n")[0]))

    async def main():
        world = World()
        world.instrumented = instrumented

        async def root():
            if not instrumented:
                return await play(world, 0, program)
            with hopwatch.cascade("root"):
                return await play(world, 0, program)

        task = asyncio.ensure_future(root())
        turns, until = 0, time.monotonic() + 30
        while not task.done() and turns < 300 and time.monotonic() < until:
            turns += not world.threads  # a thread takes its time
            await asyncio.sleep(0.0005 if world.threads else 0)
        left = sorted(
            asyncio.all_tasks(loop) - {asyncio.current_task()},
            key=lambda each: int(each.get_name().rpartition("-")[2]),
        )
        for _ in range(3):  # what it cancels may wait again
            for each in left:
                each.cancel()
            for _ in range(300):  # turns, and no time, which is another one in each run
                if all(each.done() for each in left):
                    break
                await asyncio.sleep(0)
            left = [each for each in left if not each.done()]
        for _ in range(5):
            await asyncio.sleep(0)
        return world.trace

    try:
        trace = loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
        gc.enable()
    collect()  # now asyncio tells of what was never retrieved
    return trace, sorted(set(told))


def loops():
    yield pytest.param(asyncio.new_event_loop, id="asyncio")
    try:
        import uvloop
    except ImportError:
        return
    yield pytest.param(uvloop.new_event_loop, id="uvloop")


def has(program, *words):
    return any(word in repr(program) for word in words)


@pytest.fixture
def young():
    """What there is already is not looked at by the collections of each run, which would take most of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.row("loops and threads", "random programs of asyncio, on its own loop and uvloop's", "uvloop")
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("young")
@pytest.mark.parametrize("make_loop", list(loops()))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=st.lists(steps(), max_size=5))
def test_a_program_behaves_the_same_and_leaves_nothing_open(make_loop, program):
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # what a bare program warns of, an instrumented one may too
        patch.setattr(Telemetry, "_begin", lambda _: None)
        bare = run(make_loop, program, instrumented=False)
        watched = Watched()
        AsyncioInstrumentor().instrument()
        try:
            ours = run(make_loop, program, instrumented=True)
            assert process.failures == {}
            if has(program, "'thread'"):
                # When a thread answers is not the program's doing: the same things happen, in some order.
                assert sorted(map(repr, ours[0])) == sorted(map(repr, bare[0])) or not in_order(program)
            else:
                assert ours == bare
            assert watched.settled(), (watched.open(), watched.ledger.invisible(), watched.ledger.size)
            declared = watched.hops()
            assert "root" in declared
            if not has(program, "'put'"):
                assert all(hop.outcome != "abandoned" for hop in declared.values())
        finally:
            AsyncioInstrumentor().uninstrument()
            end_process()


def in_order(program):
    """Whether a program's course does not depend on when its threads answer."""
    return not has(
        program,
        "'task'",
        "'gather'",
        "'group'",
        "'timeout'",
        "'shield'",
        "'service'",
        "'cancel",
        "'get",
        "'wait",
        "'lock",
        "'semaphore",
    )
