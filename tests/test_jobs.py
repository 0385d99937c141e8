"""What may still act for a cascade outside its tasks: jobs of executors, threads, timers."""

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import multiprocessing
import os
import sys
import threading
import time
import weakref

import anyio.from_thread
import anyio.to_thread
import pytest
from anyio._backends import _asyncio as of_anyio

import hopwatch
from hopwatch import hop_waits, process
from hopwatch.instrumentation import anyio_jobs, jobs
from ticking import collect


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


async def comes(holds):
    """Wait until something holds: who awaits a job may be told of its end before its thread has told us."""
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        await asyncio.sleep(0)


def wait_for(event):
    assert event.wait(60)


def fail():
    raise ValueError("no")


threading_start = threading.Thread.start
"""As it is without us."""


def whose():
    hop = hopwatch.current()
    return None if hop is None else hop.name


# Executors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["to_thread", "executor", "submit"])
def test_a_job_holds_its_hop_until_it_has_run(watched, run, how):
    async def main():
        gate = threading.Event()
        loop = asyncio.get_running_loop()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            with hopwatch.cascade("inner"):
                job = {
                    "to_thread": lambda: asyncio.ensure_future(asyncio.to_thread(wait_for, gate)),
                    "executor": lambda: loop.run_in_executor(pool, wait_for, gate),
                    "submit": lambda: asyncio.wrap_future(pool.submit(wait_for, gate)),
                }[how]()
                await turns()
            assert "inner" in watched.open()
            assert "job wait_for" in {each.name for each in watched.ledger.invisible()}
            gate.set()
            await job
            await turns()
            await comes(lambda: watched.open() == ["root"])

    run(main)
    assert watched.settled()
    assert watched.told() == {"root": "finished", "inner": "finished"}


def test_a_job_that_is_cancelled_before_it_runs_and_one_that_never_starts(watched, run):
    async def main():
        gate = threading.Event()
        pool = concurrent.futures.ThreadPoolExecutor(1)
        with hopwatch.cascade("inner"):
            first = pool.submit(wait_for, gate)
            second = pool.submit(wait_for, gate)
            pool.submit(wait_for, gate)
        assert second.cancel()
        pool.shutdown(wait=False, cancel_futures=True)
        gate.set()
        await asyncio.wrap_future(first)
        pool.shutdown()
        assert watched.open() == ["root"]

    run(main)
    assert watched.settled()


def test_a_job_whose_waiter_is_cancelled_runs_on_and_holds_its_hop(watched, run):
    async def main():
        started, gate = threading.Event(), threading.Event()

        def work():
            started.set()
            wait_for(gate)

        with hopwatch.cascade("inner"):
            task = asyncio.create_task(asyncio.to_thread(work))
        await turns()
        await asyncio.get_running_loop().run_in_executor(None, wait_for, started)
        task.cancel()
        await asyncio.wait([task])
        await turns()
        assert "inner" in watched.open()
        gate.set()
        await asyncio.get_running_loop().shutdown_default_executor()
        assert watched.open() == ["root"]

    run(main)
    assert watched.settled()


def test_a_job_that_fails_is_revealed(watched, run):
    async def main():
        with pytest.raises(ValueError, match="no"):
            await asyncio.to_thread(fail)

    run(main)
    assert watched.hops()["job fail"].outcome == "failed"
    assert watched.hops()["job fail"].reason == "ValueError"


def test_a_job_in_another_process_holds_its_hop_and_its_pool_does_not(watched, run):
    async def main():
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            with hopwatch.cascade("inner"):
                job = pool.submit(os.getpid)
                assert "job getpid" in {each.name for each in watched.ledger.invisible()}
            assert await asyncio.wrap_future(job) != os.getpid()
            watched.tick()
            await comes(lambda: watched.open() == ["root"])

    run(main)
    assert watched.settled()


@pytest.mark.parametrize("how", ["run_coroutine_threadsafe", "call_soon_threadsafe", "a loop of its own"])
def test_what_a_pool_s_thread_has_a_loop_do_belongs_to_the_hop_that_gave_it_the_job(watched, run, how):
    async def main():
        loop, gate, seen, given = asyncio.get_running_loop(), asyncio.Event(), [], []

        async def ask():
            seen.append(hopwatch.current().name)
            if how != "a loop of its own":
                await gate.wait()

        def job():
            if how == "run_coroutine_threadsafe":
                given.append(asyncio.run_coroutine_threadsafe(ask(), loop))
            elif how == "call_soon_threadsafe":
                loop.call_soon_threadsafe(lambda: given.append(asyncio.ensure_future(ask())))
            else:
                asyncio.run(ask())

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            with hopwatch.cascade("inner"):
                await loop.run_in_executor(pool, job)
            await comes(lambda: seen == ["inner"])
            if how != "a loop of its own":
                assert "inner" in watched.open() or any(each.late for each in watched.ledger.open_hops())
            gate.set()
            await comes(lambda: watched.open() == ["root"])
            # The thread is nobody's again.
            assert await loop.run_in_executor(pool, hopwatch.current) is not None
            assert (
                await asyncio.wrap_future(contextvars.Context().run(pool.submit, hopwatch.current))
            ) is None

    run(main)
    assert watched.settled()


def test_what_a_job_starts_counts_on_the_same_hop(watched, run):
    async def main():
        assert await asyncio.to_thread(whose) == "root"

    run(main)
    assert watched.settled()


# Threads of anyio -----------------------------------------------------------------------------------------------------


class GivesUp:
    """A task that has anyio run a function in a thread, and gives up once that has begun, which it holds until `gate` is set.

    Args:
        by: what it gives up by: the `scope` around it, where anyio was told that the thread may be left alone, or a
            cancellation of the `task`, from which anyio shields nothing.
        then: what the function does at its end.
    """

    def __init__(self, by, then=lambda: None):
        self.by = by
        self.then = then
        self.began, self.gate = threading.Event(), threading.Event()
        self.scope = anyio.CancelScope()

    def work(self):
        self.began.set()
        wait_for(self.gate)
        self.then()

    async def waits(self):
        with self.scope:
            await anyio.to_thread.run_sync(self.work, abandon_on_cancel=self.by == "scope")

    async def has_given_up(self):
        task = asyncio.create_task(self.waits())
        await comes(self.began.is_set)
        (self.scope if self.by == "scope" else task).cancel()
        await asyncio.wait([task])
        await turns()


def jobs_of(watched):
    return [each.name for each in watched.ledger.invisible() if each.name.startswith("job")]


@pytest.mark.parametrize("by", ["scope", "task"])
def test_a_job_of_anyio_whose_waiter_has_given_up_holds_its_hop_until_it_has_run(watched, run, by):
    async def main():
        job = GivesUp(by)
        with hopwatch.cascade("inner"):
            await job.has_given_up()
        assert "inner" in watched.open()
        assert jobs_of(watched) == ["job GivesUp.work"]
        job.gate.set()
        await comes(lambda: watched.open() == ["root"])

    run(main)
    assert watched.told() == {"root": "finished", "inner": "finished"}
    assert watched.settled()


def test_what_a_thread_of_anyio_has_the_loop_do_after_its_waiter_has_given_up_is_not_late(watched, run):
    async def main():
        did = []

        async def report():
            await asyncio.sleep(0)
            did.append(whose())

        job = GivesUp("scope", lambda: anyio.from_thread.run(report))
        with hopwatch.cascade("inner"):
            await job.has_given_up()
        job.gate.set()
        await comes(lambda: watched.open() == ["root"])
        assert did == ["inner"]

    run(main)
    assert not any(hop.late for hop in watched.hops().values())
    assert watched.settled()


def test_a_job_of_anyio_that_fails_is_a_hop_only_where_nobody_is_told_of_it(watched, run):
    async def main():
        with pytest.raises(ValueError, match="no"):
            await anyio.to_thread.run_sync(fail)
        assert jobs_of(watched) == []
        job = GivesUp("scope", fail)
        await job.has_given_up()
        job.gate.set()
        await comes(lambda: jobs_of(watched) == [])

    run(main)
    assert watched.told() == {"root": "finished", "job GivesUp.work": "failed"}
    assert watched.hops()["job GivesUp.work"].reason == "ValueError"
    assert watched.settled()


def test_a_job_of_anyio_that_was_given_up_before_it_got_a_thread_holds_nothing(watched, run):
    async def main():
        limiter = anyio.CapacityLimiter(1)
        limiter.acquire_on_behalf_of_nowait("somebody else")
        with hopwatch.cascade("inner"):
            task = asyncio.create_task(anyio.to_thread.run_sync(fast, limiter=limiter))
            await turns()
            assert limiter.statistics().tasks_waiting == 1
            task.cancel()
            await asyncio.wait([task])
        await turns()
        assert watched.open() == ["root"]

    run(main)
    assert watched.settled()


def test_a_job_of_anyio_that_was_given_up_before_its_thread_took_it_holds_its_hop_until_it_is_clear_that_it_will_not_run(
    watched, run
):
    async def main():
        gate, ran = threading.Event(), []
        threading.settrace(lambda *_: wait_for(gate))  # is called in the new thread, before it does anything
        try:
            with hopwatch.cascade("inner"):
                task = asyncio.create_task(anyio.to_thread.run_sync(ran.append, 1, abandon_on_cancel=True))
                await comes(
                    lambda: any(type(each) is of_anyio.WorkerThread for each in threading.enumerate())
                )
                await turns()
                task.cancel()
                await asyncio.wait([task])
            await turns()
            watched.tick()
            assert "inner" in watched.open()
        finally:
            threading.settrace(None)
            gate.set()
        await comes(lambda: watched.tick() or watched.open() == ["root"])
        assert ran == []

    run(main)
    assert watched.settled()


def test_a_job_of_anyio_runs_as_it_does_without_us(watched, run):
    variable = contextvars.ContextVar("variable")
    limiter = anyio.CapacityLimiter(1)
    error = LookupError("theirs")
    thread = []

    def work(first, second):
        thread.append(threading.current_thread())
        variable.set("changed in the thread")
        return first, second, limiter.borrowed_tokens

    def ask():
        return variable.get(), whose(), anyio.from_thread.run_sync(variable.get)

    def break_off():
        raise error

    def stop():
        raise StopIteration

    async def main():
        variable.set("of the task")
        told = [await anyio.to_thread.run_sync(work, 1, 2, limiter=limiter)]
        told.append(await anyio.to_thread.run_sync(ask))
        with pytest.raises(LookupError) as caught:
            await anyio.to_thread.run_sync(break_off)
        assert caught.value is error
        for wrong, kind in ((stop, RuntimeError), (7, TypeError)):
            with pytest.raises(kind) as caught:
                await anyio.to_thread.run_sync(wrong)
            told.append(str(caught.value))
        told.append((type(thread[-1]), variable.get(), limiter.borrowed_tokens))
        return told

    seen = run(main)
    assert seen[1][1] == "root"
    seen[1] = (seen[1][0], None, seen[1][2])
    assert seen == run(main, root=None)
    assert watched.told() == {"root": "finished"}
    assert watched.settled()


def test_a_job_of_anyio_outside_any_hop_is_not_touched_and_afterwards_all_is_as_it_was(watching_with, run):
    backend = of_anyio.AsyncIOBackend

    def looks():
        method = backend.run_sync_in_worker_thread
        return (
            inspect.signature(method),
            method.__qualname__,
            inspect.iscoroutinefunction(method),
            method.__self__,
        )

    def called_by():
        return sys._getframe(1).f_code.co_filename

    def ask():
        return anyio.to_thread.run_sync(called_by)

    found, before = vars(backend)["run_sync_in_worker_thread"], looks()
    with watching_with() as watched:
        assert vars(backend)["run_sync_in_worker_thread"] is not found
        assert looks() == before
        assert run(ask, root=None) == of_anyio.__file__
        assert run(ask) == anyio_jobs.__file__
        assert watched.settled()
    assert vars(backend)["run_sync_in_worker_thread"] is found
    assert process.failures == {}


@pytest.mark.parametrize("name", ["_open", "_name", "ref", "finish"])
def test_a_hook_for_anyio_that_fails_is_counted_and_the_application_goes_on(
    watching_with, run, monkeypatch, name
):
    def broken(*_, **__):
        raise RuntimeError("ours")

    with watching_with() as watched:

        async def main():
            with monkeypatch.context() as patch:
                if name == "finish":
                    patch.setattr(watched.ledger, "release", broken)
                else:
                    patch.setattr(anyio_jobs if name == "ref" else jobs, name, broken)
                assert await anyio.to_thread.run_sync(len, "four") == 4
                with pytest.raises(ValueError, match="no"):
                    await anyio.to_thread.run_sync(fail)

        run(main)
        assert process.failures


def test_what_a_job_of_anyio_was_given_is_collected_as_soon_as_without_us(watched, run):
    class Work:
        def __call__(self):
            return None

    async def main():
        work = Work()
        reference = weakref.ref(work)
        await anyio.to_thread.run_sync(work)
        del work
        # The thread lets go of what it ran when it has told of it, and before anyio 4.5 when it is given something else.
        await anyio.to_thread.run_sync(fast)
        await comes(lambda: reference() is None)

    run(main)
    assert watched.settled()


# Threads --------------------------------------------------------------------------------------------------------------


def test_a_thread_holds_its_hop_while_it_is_alive(watched, run):
    async def main():
        gate = threading.Event()
        with hopwatch.cascade("inner"):
            thread = threading.Thread(target=wait_for, args=(gate,))
            thread.start()
        watched.tick()
        assert "inner" in watched.open()
        assert "thread wait_for" in {each.name for each in watched.ledger.invisible()}
        gate.set()
        await asyncio.get_running_loop().run_in_executor(None, thread.join)
        watched.tick()
        assert watched.open() == ["root"]

    run(main)
    assert watched.settled()


def test_a_thread_that_has_ended_before_start_comes_back_is_still_known_by_its_name(watched, monkeypatch):
    original = jobs._starting(lambda thread: (threading_start(thread), thread.join()))
    opened = []
    monkeypatch.setattr(jobs, "_open", lambda kind, function, hop: opened.append(jobs._name(function)[1]))
    with hopwatch.cascade("root"):
        original(threading.Thread(target=fast))
    assert opened == ["fast"]


def fast():
    pass


def test_the_threads_of_a_pool_hold_nothing_open(watched, run):
    async def main():
        pool = concurrent.futures.ThreadPoolExecutor(1)
        with hopwatch.cascade("inner"):
            await asyncio.wrap_future(pool.submit(fast))
        await turns()
        watched.tick()
        await comes(lambda: watched.open() == ["root"])
        pool.shutdown()

    run(main)
    assert watched.settled()


def test_a_child_process_is_not_counted_whatever_asyncio_waits_for_it_with(watched, run):
    async def main():
        with hopwatch.cascade("inner"):
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                "input()",
                stdin=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        await comes(lambda: watched.open() == ["root"])
        child.stdin.close()
        await child.wait()

    run(main)
    assert watched.settled()


def test_the_feeder_of_a_multiprocessing_queue_holds_nothing_open(watched):
    queue = multiprocessing.get_context("spawn").Queue()
    with hopwatch.cascade("root"):
        queue.put(1)
    watched.tick()
    assert watched.open() == []
    assert queue.get(timeout=60) == 1
    queue.close()
    queue.join_thread()
    assert watched.settled()


# Timers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["later", "at"])
def test_a_timer_of_the_application_holds_its_hop_until_it_has_run(watched, run, how):
    async def main():
        loop = asyncio.get_running_loop()
        ran = asyncio.Event()
        seen = []

        def callback(*args):
            seen.append((whose(), args))
            ran.set()

        with hopwatch.cascade("inner"):
            if how == "later":
                handle = loop.call_later(0.01, callback, 1, 2)
            else:
                handle = loop.call_at(loop.time() + 0.01, callback, 1, 2)
        assert "inner" in watched.open()
        assert handle.when() > 0
        await ran.wait()
        assert seen == [("inner", (1, 2))]
        assert watched.open() == ["root"]

    run(main)
    assert watched.settled()


@pytest.mark.parametrize(
    "wakes",
    [
        lambda: asyncio.Queue().put_nowait,
        lambda: asyncio.Event().set,
        lambda: asyncio.Semaphore().release,
        lambda: asyncio.get_running_loop().create_future().set_result,
        lambda: threading.Event().set,
        lambda: concurrent.futures.Future().set_result,
    ],
    ids=["put_nowait", "set", "release", "set_result", "threading", "concurrent"],
)
def test_a_timer_by_which_the_application_wakes_somebody_holds_its_hop(watched, run, wakes):
    async def main():
        with hopwatch.cascade("inner"):
            handle = asyncio.get_running_loop().call_later(60, wakes(), 1)
        watched.tick()
        assert "inner" in watched.open()
        handle.cancel()
        watched.tick()
        assert watched.open() == ["root"]

    run(main)


def test_a_timer_that_is_cancelled_lets_go_at_the_next_look(watched, run):
    async def main():
        with hopwatch.cascade("inner"):
            handle = asyncio.get_running_loop().call_later(60, fast)
        assert not handle.cancelled()
        handle.cancel()
        watched.tick()
        assert watched.open() == ["root"]

    run(main)
    assert watched.settled()


def test_a_timer_whose_loop_is_collected_lets_go(watched):
    loop = asyncio.new_event_loop()
    with hopwatch.cascade("inner"):
        loop.call_later(60, fast)
    loop.close()
    del loop
    collect()
    assert watched.settled()


def test_a_timer_whose_callback_fails_is_a_failure_and_the_loop_is_told(watched, run):
    told = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        asyncio.get_running_loop().call_later(0, fail)
        while not told:
            await asyncio.sleep(0)

    run(main)
    assert [type(error) for error in told] == [ValueError]
    assert (watched.hops()["timer fail"].outcome, watched.hops()["timer fail"].reason) == (
        "failed",
        "ValueError",
    )


def test_the_timers_of_asyncio_itself_are_nobodys(watched, run):
    async def main():
        sleeper = asyncio.create_task(asyncio.sleep(60))
        await turns()
        assert not [each for each in watched.ledger.invisible() if each.name.startswith("timer")]
        sleeper.cancel()

    run(main)
    assert watched.settled()


def test_a_timer_that_makes_a_task_is_work_though_its_callback_is_asyncios(watched, run):
    async def main():
        loop = asyncio.get_running_loop()
        ran = asyncio.Event()

        async def work():
            ran.set()

        with hopwatch.cascade("inner"):
            loop.call_later(0.01, functools.partial(loop.create_task, work()))
        assert "inner" in watched.open()
        await ran.wait()
        await turns()
        assert watched.open() == ["root"]

    run(main)
    assert not any(hop.late for hop in watched.hops().values())
    assert watched.settled()


def test_a_timer_shows_as_the_applications_callback_and_debug_mode_still_refuses_what_cannot_be_called(
    watched,
):
    loop = asyncio.new_event_loop()
    with hopwatch.cascade("root"):
        handle = loop.call_later(60, fast)
        assert "fast" in repr(handle)
        handle.cancel()
        loop.set_debug(True)
        with pytest.raises(TypeError):
            loop.call_later(1, 7)

        async def coroutine():
            pass

        with pytest.raises(TypeError):
            loop.call_later(1, coroutine)
    loop.close()
    assert watched.settled()


# Detail all, references, guards ------------------------------------------------------------------------------------------


def test_with_detail_all_everything_is_seen_and_the_count_is_right(watching_with, run):
    with watching_with(HOPWATCH_DETAIL="all") as watched:

        async def main():
            ran = asyncio.Event()
            await asyncio.to_thread(fast)
            asyncio.get_running_loop().call_later(0, ran.set)
            asyncio.get_running_loop().call_later(0, fast)
            thread = threading.Thread(target=fast)
            thread.start()
            thread.join()
            await ran.wait()
            await turns()

        run(main)
        assert watched.settled()
        hops = watched.hops()
        assert {"job fast", "timer fast", "thread fast"} <= set(hops)
        assert process.failures == {}


def test_what_jobs_timers_and_threads_were_given_is_collected_as_soon_as_without_us(watched, run):
    class Work:
        def __call__(self):
            return None

    async def main():
        loop = asyncio.get_running_loop()
        work = Work()
        reference = weakref.ref(work)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            await asyncio.wrap_future(pool.submit(work))
        handle = loop.call_later(60, work)
        handle.cancel()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        watched.tick()
        del work, handle, thread, pool
        return reference

    reference = run(main)
    collect()
    assert reference() is None
    assert watched.settled()


@pytest.mark.parametrize("name", ["_open", "_name", "_job_done", "_is_work", "finish"])
def test_a_hook_that_fails_is_counted_and_the_application_goes_on(
    watching_with, run, monkeypatch, name, capfd
):
    def broken(*_, **__):
        raise RuntimeError("ours")

    with watching_with() as watched:

        async def main():
            ran = asyncio.Event()

            def callback():
                ran.set()

            with monkeypatch.context() as patch:
                if name in ("finish", "_job_done"):
                    patch.setattr(watched.ledger, "release", broken)
                else:
                    patch.setattr(jobs, name, broken)
                assert await asyncio.to_thread(len, "four") == 4
                asyncio.get_running_loop().call_later(0, callback)
                await ran.wait()
                thread = threading.Thread(target=fast)
                thread.start()
                thread.join()
            watched.tick()

        run(main)
        assert process.failures
    assert "ours" not in capfd.readouterr().err


# What is said of those that outlast their hop ---------------------------------------------------------------------------


def told_of(watched, name):
    """What is said of an entry that has outlasted its hop, and so has become a hop of its own."""
    watched.tick(later=5)
    (hop,) = [each for each in watched.ledger.open_hops() if each.name == name]
    return hop_waits.what_it_waits_on(hop)


def test_a_timer_that_outlasts_its_hop_says_when_it_runs(watched, run):
    async def main():
        with hopwatch.cascade("inner"):
            handle = asyncio.get_running_loop().call_later(3600, fast)
        told, moves = told_of(watched, "timer fast")
        assert (told["kind"], moves, told["moves"]) == ("timer", True, True)
        assert told["until"] == pytest.approx(time.time() + 3600, abs=60)
        assert told["what"] == f"timer `fast` until {time.strftime('%H:%M:%SZ', time.gmtime(told['until']))}"
        if "file" in told:  # uvloop does not show what a timer calls
            assert (told["file"], told["line"]) == (__file__, fast.__code__.co_firstlineno)
        handle.cancel()
        watched.tick()

    run(main)
    assert watched.settled()


def test_a_job_that_outlasts_its_hop_says_where_its_thread_stands(watched, run):
    async def main():
        gate = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="kitchen") as pool:
            with hopwatch.cascade("inner"):
                running = asyncio.get_running_loop().run_in_executor(pool, wait_for, gate)
                waiting = asyncio.get_running_loop().run_in_executor(pool, fast)
            line = wait_for.__code__.co_firstlineno + 1
            until = time.monotonic() + 30
            found = told_of(watched, "job wait_for")[0]
            while found["job"].get("at") != f"{__file__}:{line} wait_for" and time.monotonic() < until:
                await asyncio.sleep(0.01)
                found = told_of(watched, "job wait_for")[0]
            assert found == {
                "kind": "thread",
                "moves": True,
                "what": f"job `wait_for` in thread 'kitchen_0', which is at {__file__}:{line} wait_for",
                "job": {"state": "running", "thread": "kitchen_0", "at": f"{__file__}:{line} wait_for"},
            }
            assert told_of(watched, "job fast")[0]["what"] == "job `fast` that no thread has begun"
            gate.set()
            await asyncio.gather(running, waiting)

    run(main)
    assert watched.settled()


def test_a_thread_that_outlasts_its_hop_says_where_it_stands(watched, run):
    async def main():
        begun, gate = threading.Event(), threading.Event()

        def works():
            begun.set()
            wait_for(gate)

        with hopwatch.cascade("inner"):
            thread = threading.Thread(target=works, name="baker")
            thread.start()
        begun.wait(60)
        until = time.monotonic() + 30
        told, moves = told_of(watched, f"thread {works.__qualname__}")
        while not told["job"]["at"].endswith(" wait_for") and time.monotonic() < until:
            await asyncio.sleep(0.01)
            told, moves = told_of(watched, f"thread {works.__qualname__}")
        assert moves
        assert told["what"].startswith(
            f"thread `{works.__qualname__}` in thread 'baker', which is at {__file__}:"
        )
        gate.set()
        thread.join()
        watched.tick()

    run(main)
    assert watched.settled()


def test_work_that_no_task_does_is_not_said_to_be_over_and_moves_whatever_it_has_started_waits_for(watched):
    async def waits(event):
        await event.wait()

    loop = asyncio.new_event_loop()
    with hopwatch.cascade("by hand"):
        event = asyncio.Event()
        task = loop.create_task(waits(event))
        loop.run_until_complete(turns())
        (hop,) = watched.ledger.open_hops()
        told, moves = hop_waits.what_it_waits_on(hop)
        assert (told["what"], moves) == ("its own work, which no asyncio task does", True)
        assert [each["kind"] for each in told["of"]] == ["event", "event"]
        event_set = loop.call_soon(event.set)
        loop.run_until_complete(task)
        assert event_set is not None
    loop.close()
    assert watched.settled()


def test_a_job_of_anyio_that_outlasts_its_hop_says_where_its_thread_stands(watched, run):
    async def main():
        job = GivesUp("scope")
        with hopwatch.cascade("inner"):
            await job.has_given_up()
        told, moves = told_of(watched, "job GivesUp.work")
        job.gate.set()
        await comes(lambda: watched.open() == ["root"])
        assert (told["kind"], moves) == ("thread", True)
        assert told["what"].startswith(
            f"job `GivesUp.work` in thread 'AnyIO worker thread', which is at {__file__}:"
        )

    run(main)
    assert watched.settled()
