"""Whatever an application runs its tasks with, does its hop stay open until all of it has ended, and is what fails or is cut off told as it was?

Task groups of asyncio and anyio, timeouts, eager tasks, threads, executors, interpreters, and several loops in several threads.
"""

import asyncio
import concurrent.futures
import contextlib
import inspect
import multiprocessing
import subprocess
import sys
import textwrap
import threading
import time

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

import hopwatch
from hopwatch.testing.leftovers import Watch

WHAT = "loops and threads"


def of_asyncio(which):
    return pytest.mark.row(WHAT, f"{which}, on asyncio's loop and uvloop's", "uvloop")


# Groups of tasks --------------------------------------------------------------------------------------------------


async def wait_for(event):
    await event.wait()


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="asyncio.TaskGroup came with Python 3.11; ci: may be skipped"
)
@of_asyncio("`asyncio.TaskGroup`")
def test_a_task_group_holds_its_hop_until_the_last_of_its_tasks(watched, run):
    async def main():
        gates = [asyncio.Event(), asyncio.Event()]

        async def group():
            async with asyncio.TaskGroup() as tasks:
                for gate in gates:
                    tasks.create_task(wait_for(gate))

        with hopwatch.cascade("inner"):
            task = asyncio.create_task(group())
        for gate in gates:
            await asyncio.sleep(0)
            assert "inner" in watched.open()
            gate.set()
        await task
        await asyncio.sleep(0)
        assert "inner" not in watched.open()

    run(main)
    assert watched.told() == {"root": "finished", "inner": "finished"}
    assert watched.settled()


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="asyncio.TaskGroup came with Python 3.11; ci: may be skipped"
)
@of_asyncio("`asyncio.TaskGroup`")
def test_a_task_that_fails_ends_its_group_and_the_others_are_cancelled_not_lost(watching_with, run):
    async def fail():
        raise LookupError("no")

    async def forever():
        await asyncio.get_running_loop().create_future()

    async def main():
        seen = []
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(forever())
                tasks.create_task(fail())
        except BaseException as error:
            seen.append([type(each) for each in error.exceptions])
        return seen

    with watching_with(HOPWATCH_DETAIL="all") as watched:
        assert run(main) == [[LookupError]]
        ended = {name.rpartition(".")[2]: outcome for name, outcome in watched.told().items()}
        assert ended == {"root": "finished", "fail": "failed", "forever": "cancelled"}
        assert watched.settled()


@pytest.mark.row(
    WHAT, "anyio's task groups and cancel scopes, on asyncio's loop and uvloop's", "anyio", "uvloop"
)
def test_a_task_group_of_anyio_holds_its_hop_and_what_its_scope_cancels_is_cancelled(watching_with, run):
    async def finishes(gate):
        await gate.wait()

    async def hangs(*, task_status):
        task_status.started()
        await anyio.sleep_forever()

    async def main():
        gate = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(finishes, gate)
            await tasks.start(hangs)
            assert "root" in watched.open()
            gate.set()
            await anyio.lowlevel.checkpoint()
            with anyio.move_on_after(0.01) as scope:
                await anyio.sleep_forever()
            assert scope.cancelled_caught
            with anyio.CancelScope(shield=True):
                await asyncio.create_task(asyncio.sleep(0))
            tasks.cancel_scope.cancel()

    with watching_with(HOPWATCH_DETAIL="all") as watched:
        run(main)
        ended = {name.rpartition(".")[2]: outcome for name, outcome in watched.told().items()}
        assert (ended.get("root"), ended.get("finishes"), ended.get("hangs")) == (
            "finished",
            "finished",
            "cancelled",
        ), ended
        assert watched.settled()


@pytest.mark.row(
    WHAT, "where anyio's task groups were given a task, on asyncio's loop and uvloop's", "anyio", "uvloop"
)
def test_a_task_of_anyio_s_is_told_with_the_line_that_gave_it_to_the_group(watched, run):
    async def sub():
        await anyio.sleep_forever()

    async def starts(*, task_status):
        task_status.started()
        await anyio.sleep_forever()

    async def main():
        here = inspect.currentframe()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sub)
            lines = [here.f_lineno - 1]
            await tasks.start(starts)
            lines.append(here.f_lineno - 1)
            tasks.create_task(sub())
            lines.append(here.f_lineno - 1)
            places = [
                each.location for each in hopwatch.pending() if "sub" in each.name or "starts" in each.name
            ]
            tasks.cancel_scope.cancel()
        assert sorted(each.split(" ")[0] for each in places) == [f"{__file__}:{line}" for line in lines]
        assert all(each.endswith("main") for each in places)

    run(main)
    assert watched.settled()


def test_a_task_is_told_with_the_line_that_made_it_where_the_pytest_plugin_looks_too(watched, run):
    looks = Watch()

    async def main():
        here = inspect.currentframe()
        looks.begin("a test")  # after asyncio was instrumented, as in a pytest that `hopwatch run` starts
        try:
            async with anyio.create_task_group() as tasks:
                task, lines = asyncio.create_task(wait_for(asyncio.Event())), [here.f_lineno]
                tasks.start_soon(anyio.sleep_forever)
                lines.append(here.f_lineno - 1)
                await anyio.lowlevel.checkpoint()
                places = {
                    each.location.split(" ")[0]
                    for each in hopwatch.pending()
                    if each.name in ("wait_for", "sleep_forever")
                }
                task.cancel()
                tasks.cancel_scope.cancel()
        finally:
            looks.remove()
        assert places == {f"{__file__}:{line}" for line in lines}

    run(main)
    assert watched.settled()


@pytest.mark.row(
    WHAT, "anyio's threads, and calls from them, on asyncio's loop and uvloop's", "anyio", "uvloop"
)
def test_a_thread_of_anyio_that_calls_back_into_the_loop_works_for_its_hop(watched, run):
    async def main():
        with hopwatch.cascade("inner"):
            hop = hopwatch.current()

            async def inside():
                return hopwatch.current()

            def in_a_thread():
                return hopwatch.current(), anyio.from_thread.run(inside)

            assert await anyio.to_thread.run_sync(in_a_thread) == (hop, hop)
        # The pool's idle thread is no work of the hop that happened to start it.
        assert "inner" not in watched.open()

    run(main)
    assert watched.settled()


# Timeouts ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def bounded(how):
    if how == "asyncio.timeout":
        async with asyncio.timeout(0.01):
            yield
    else:
        with anyio.fail_after(0.01):
            yield


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(
            "asyncio.timeout",
            marks=[
                of_asyncio("`asyncio.timeout` and `asyncio.wait_for`"),
                pytest.mark.skipif(
                    sys.version_info < (3, 11),
                    reason="asyncio.timeout came with Python 3.11; ci: may be skipped",
                ),
            ],
        ),
        pytest.param(
            "anyio",
            marks=pytest.mark.row(
                WHAT, "`anyio.fail_after`, on asyncio's loop and uvloop's", "anyio", "uvloop"
            ),
        ),
    ],
)
def test_a_timeout_ends_what_it_bounds_and_leaves_nothing_open(watched, run, how):
    async def main():
        gate = asyncio.Event()
        with pytest.raises(TimeoutError), hopwatch.cascade("inner"):
            async with bounded(how):
                await asyncio.create_task(gate.wait(), name="bounded")
        await asyncio.sleep(0)
        assert "inner" not in watched.open()

    run(main)
    assert watched.told()["inner"] == "failed"
    assert watched.settled()


@of_asyncio("`asyncio.timeout` and `asyncio.wait_for`")
def test_wait_for_cancels_what_it_gives_up_and_leaves_nothing_open(watched, run):
    async def main():
        with hopwatch.cascade("inner"), pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.create_task(asyncio.Event().wait()), 0.01)
        await asyncio.sleep(0)
        assert "inner" not in watched.open()

    run(main)
    assert watched.told()["inner"] == "finished"
    assert watched.settled()


# Eager tasks ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="eager tasks came with Python 3.12; ci: may be skipped"
)
@of_asyncio("eager tasks")
def test_eager_tasks_that_make_each_other_hold_their_hop_until_the_last_one(watched, run):
    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        gate = asyncio.Event()
        order = []

        async def inner():
            order.append("inner begins")
            await gate.wait()
            order.append("inner ends")

        async def outer():
            order.append("outer begins")
            task = asyncio.create_task(inner())
            order.append("outer ends")
            return task

        with hopwatch.cascade("hop"):
            made = asyncio.create_task(outer())
            order.append("made")
        # uvloop 0.23 hands what it makes on Python 3.14 to no factory, without us too.
        if type(asyncio.get_running_loop()).__module__.startswith("asyncio") or sys.version_info < (3, 14):
            assert order == ["outer begins", "inner begins", "outer ends", "made"]
        assert "hop" in watched.open()
        gate.set()
        await (await made)
        await asyncio.sleep(0)
        assert "hop" not in watched.open()
        assert order[-1] == "inner ends"

    run(main)
    assert watched.settled()


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="eager tasks came with Python 3.12; ci: may be skipped"
)
@pytest.mark.row(
    WHAT, "anyio's task groups beside eager tasks, on asyncio's loop and uvloop's", "anyio", "uvloop"
)
def test_a_task_that_anyio_makes_past_the_factory_of_eager_tasks_holds_its_hop_too(watched, run):
    async def main():
        gate = anyio.Event()
        order = []

        async def finishes():
            order.append("begins")
            await gate.wait()

        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with anyio.create_task_group() as tasks:  # as a server has one for all of its requests
            with hopwatch.cascade("request"):
                tasks.start_soon(finishes)
                order.append("started")
            await anyio.lowlevel.checkpoint()
            assert "request" in watched.open()
            assert [
                each.name.rpartition(".")[2] for each in hopwatch.pending() if "finishes" in each.name
            ] == ["finishes"]
            (location,) = [each.location for each in hopwatch.pending() if "finishes" in each.name]
            assert "test_loops.py" in location
            gate.set()
        await asyncio.sleep(0)
        assert "request" not in watched.open()
        assert order == ["started", "begins"]

    run(main)
    assert watched.settled()


# Threads, executors and loops ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("to_thread", marks=of_asyncio("`asyncio.to_thread`")),
        pytest.param("threads", marks=of_asyncio("`ThreadPoolExecutor`, by `run_in_executor`")),
        pytest.param("processes", marks=of_asyncio("`ProcessPoolExecutor`, by `run_in_executor`")),
    ],
)
def test_a_job_gives_its_result_and_holds_its_hop_until_then(watched, run, how):
    async def main():
        with contextlib.ExitStack() as stack:
            if how == "to_thread":
                job = asyncio.to_thread(sum, [1, 2, 3])
            else:
                pool = (
                    concurrent.futures.ThreadPoolExecutor(1)
                    if how == "threads"
                    else concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
                )
                stack.enter_context(pool)
                job = asyncio.get_running_loop().run_in_executor(pool, sum, [1, 2, 3])
            with hopwatch.cascade("inner"):
                task = asyncio.ensure_future(job) if how == "to_thread" else job
            assert await task == 6

    run(main)
    assert watched.settled()


@pytest.mark.row(WHAT, "several loops in several threads, asyncio's beside uvloop's", "uvloop")
def test_loops_in_several_threads_each_hold_their_own_hop_and_one_that_spans_two_is_open_until_both_are_over(
    watched,
):
    uvloop = pytest.importorskip("uvloop")
    makers = [asyncio.new_event_loop, uvloop.new_event_loop, asyncio.new_event_loop]
    loops = [make() for make in makers]
    threads = [threading.Thread(target=loop.run_forever) for loop in loops]
    for thread in threads:
        thread.start()
    entered, gates = threading.Barrier(len(loops) + 1), [None] * len(loops)

    async def work(number):
        gates[number] = asyncio.Event()
        with hopwatch.cascade(f"hop {number}"):
            task = asyncio.create_task(gates[number].wait())
            # A task of this hop on the next loop.
            there = asyncio.run_coroutine_threadsafe(
                asyncio.sleep(0, number), loops[(number + 1) % len(loops)]
            )
        assert await asyncio.wrap_future(there) == number
        await asyncio.to_thread(entered.wait, 60)
        await task
        return number

    try:
        done = [asyncio.run_coroutine_threadsafe(work(number), loop) for number, loop in enumerate(loops)]
        entered.wait(60)
        assert {name for name in watched.open() if name.startswith("hop")} == {"hop 0", "hop 1", "hop 2"}
        for number, loop in enumerate(loops):
            loop.call_soon_threadsafe(gates[number].set)
            assert done[number].result(60) == number
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(
                60
            )  # the task's callbacks have run
            left = {f"hop {other}" for other in range(number + 1, len(loops))}
            until = time.monotonic() + 30
            while {name for name in watched.open() if name.startswith("hop")} != left:
                assert time.monotonic() < until  # a job's thread may tell of its end later than of its result
                time.sleep(0.001)
    finally:
        for loop, thread in zip(loops, threads, strict=True):
            loop.call_soon_threadsafe(loop.stop)
            thread.join(60)
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
    assert watched.settled()
    assert set(watched.told().values()) == {"finished"}


@pytest.mark.skipif(
    sys.version_info < (3, 14), reason="InterpreterPoolExecutor came with Python 3.14; ci: may be skipped"
)
@pytest.mark.row(WHAT, "`InterpreterPoolExecutor`: jobs count, what they start there does not")
def test_a_job_in_another_interpreter_holds_its_hop_until_it_is_done(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import asyncio, os
            import hopwatch
            hopwatch.instrument()
            from concurrent.futures import InterpreterPoolExecutor

            async def main():
                ours, theirs = os.pipe()
                with InterpreterPoolExecutor(1) as pool:
                    with hopwatch.cascade("root") as root:
                        job = asyncio.get_running_loop().run_in_executor(pool, os.read, ours, 1)
                    assert "job read" in [each.name for each in hopwatch.pending(root.id)], hopwatch.pending()
                    os.write(theirs, b"!")
                    assert await job == b"!"
                    assert await hopwatch.drain(60) == []

            asyncio.run(main())
            from hopwatch import process
            assert process.failures == {}, process.failures
        """)
    )
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=110, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
