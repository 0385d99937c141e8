"""Does a cascade know all of its asyncio tasks, and how each ended? On asyncio's loop and on uvloop's."""

import asyncio
import contextvars
import gc
import sys
import threading
import weakref

import pytest

import hopwatch
from hopwatch import process
from hopwatch.instrumentation import service, tasks
from hopwatch.process import current
from ticking import collect

SENTENCE = "the task was destroyed while pending, for nothing kept a reference to it"


async def nothing():
    return None


async def forever():
    await asyncio.get_running_loop().create_future()


class Worker:
    async def work(self):
        raise ValueError("no")


# Healthy tasks ----------------------------------------------------------------------------------------------------


def test_a_task_made_in_a_hop_holds_the_hop_open_until_it_ends(watched, run):
    async def main():
        gate = asyncio.Event()
        with hopwatch.cascade("inner"):
            task = asyncio.create_task(gate.wait())
        assert "inner" in watched.open()
        gate.set()
        await task
        await asyncio.sleep(0)
        assert "inner" not in watched.open()

    run(main)
    assert watched.told() == {"root": "finished", "inner": "finished"}
    assert watched.settled()


def test_a_task_of_a_task_holds_the_hop_open_after_its_maker_has_ended(watched, run):
    async def main():
        gate = asyncio.Event()

        async def maker():
            return asyncio.create_task(gate.wait())

        with hopwatch.cascade("inner"):
            made = await asyncio.create_task(maker())
        await asyncio.sleep(0)
        assert "inner" in watched.open()
        gate.set()
        await made
        await asyncio.sleep(0)
        assert "inner" not in watched.open()

    run(main)
    assert watched.settled()


def test_a_thousand_tasks_that_behave_cost_no_span(watched, run):
    async def main():
        await asyncio.gather(*(nothing() for _ in range(1000)))

    run(main)
    assert watched.told() == {"root": "finished"}
    assert watched.settled()


def test_outside_any_hop_nothing_is_counted(watched, run):
    async def main():
        await asyncio.create_task(nothing())
        assert len(watched.ledger) == 0

    run(main, root=None)
    assert watched.told() == {}


def test_a_task_that_outlasts_the_threshold_is_revealed_with_its_place_and_its_true_start(watched, run):
    async def main():
        task = asyncio.create_task(forever(), name="slow one")
        line = sys._getframe().f_lineno - 1
        await asyncio.sleep(0)
        watched.tick(later=1.5)
        assert "forever" in watched.open()
        task.cancel()
        return line

    line = run(main)
    hop = watched.hops()["forever"]
    assert (hop.kind, hop.outcome, hop.location.split()[0]) == ("task", "cancelled", f"{__file__}:{line}")
    assert watched.settled()


def test_a_task_behind_a_decorator_goes_by_the_same_name_each_time(watched, run):
    async def main():
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                await asyncio.create_task(Worker().work())

    run(main)
    assert set(watched.told()) == {"root", "Worker.work"}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12; ci: may be skipped")
def test_an_eager_task_that_is_done_at_once_and_one_that_is_not(watched):
    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        gate = asyncio.Event()
        await asyncio.create_task(nothing())
        with hopwatch.cascade("inner"):
            task = asyncio.create_task(gate.wait())
        assert "inner" in watched.open()
        gate.set()
        await task

    asyncio.run(main_in_a_cascade(main))  # uvloop 0.22 hands a factory more than eager_task_factory takes
    assert watched.settled()


# Tasks that fail --------------------------------------------------------------------------------------------------


def test_a_task_that_fails_is_revealed_with_where_it_was_made(watched, run):
    async def main():
        task = asyncio.create_task(Worker().work())
        line = sys._getframe().f_lineno - 1
        with pytest.raises(ValueError, match="no"):
            await task
        return line

    line = run(main)
    hop = watched.hops()["Worker.work"]
    assert (hop.outcome, hop.reason, hop.location.split()[0]) == (
        "failed",
        "ValueError",
        f"{__file__}:{line}",
    )


@pytest.mark.parametrize("how", ["gather", "ensure_future", "wait_for", "loop"])
def test_the_place_is_the_applications_line_however_the_task_is_made(watched, run, how):
    async def main():
        loop = asyncio.get_running_loop()
        make = {
            "gather": lambda: asyncio.gather(Worker().work()),
            "ensure_future": lambda: asyncio.ensure_future(Worker().work()),
            "wait_for": lambda: asyncio.wait_for(asyncio.create_task(Worker().work()), 5),
            "loop": lambda: loop.create_task(Worker().work()),
        }[how]
        with pytest.raises(ValueError, match="no"):
            await make()

    run(main)
    assert watched.hops()["Worker.work"].location.startswith(f"{__file__}:")


@pytest.mark.parametrize("instrumented", [False, True])
def test_asyncio_still_tells_of_an_exception_that_nobody_retrieved(watching_with, run, instrumented):
    told = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        task = asyncio.create_task(Worker().work())
        await asyncio.wait([task])
        del task
        collect()

    if instrumented:
        with watching_with() as watched:
            run(main)
            assert watched.told()["Worker.work"] == "failed"
    else:
        run(main, root=None)
    assert told == ["Task exception was never retrieved"]


def test_an_exception_that_was_retrieved_is_not_told_of_by_asyncio(watched, run):
    told = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        with pytest.raises(ValueError, match="no"):
            await asyncio.create_task(Worker().work())
        collect()

    run(main)
    assert told == []


# Tasks that are destroyed while pending ---------------------------------------------------------------------------


def test_a_task_that_nobody_keeps_is_abandoned_with_its_place_and_what_it_awaited(watched, run):
    told = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        asyncio.create_task(forever())
        line = sys._getframe().f_lineno - 1
        await asyncio.sleep(0)
        collect()
        watched.tick()
        return line

    line = run(main)
    hop = watched.hops()["forever"]
    assert told == ["Task was destroyed but it is pending!"]
    assert (hop.outcome, hop.location.split()[0]) == ("abandoned", f"{__file__}:{line}")
    assert hop.reason.startswith(f"{SENTENCE}; it awaited ")
    assert watched.settled()
    assert list(watched.told()).count("forever") == 1


def test_a_task_in_a_cycle_is_abandoned_when_another_thread_collects_it(watched, run):
    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)

        async def one(holder):
            holder.append(asyncio.current_task())
            await asyncio.get_running_loop().create_future()

        gc.disable()
        try:
            asyncio.create_task(one([]))
            await asyncio.sleep(0)
            collector = threading.Thread(target=gc.collect)
            collector.start()
            await asyncio.to_thread(collector.join)
        finally:
            gc.enable()
        watched.tick()

    run(main)
    name = next(name for name in watched.told() if name.endswith("one"))
    assert watched.told()[name] == "abandoned"
    assert watched.settled()


def test_children_of_a_gather_that_nobody_keeps_are_abandoned_though_asyncio_says_nothing(watched, run):
    async def main():
        asyncio.gather(forever(), forever())
        await asyncio.sleep(0)
        collect()
        watched.tick()
        assert "forever" not in watched.told()  # asyncio may be just about to tell of them
        watched.tick()
        watched.tick()  # on a slow machine they have become visible at the first tick, and are other objects since

    run(main)
    assert watched.told()["forever"] == "abandoned"
    assert watched.settled()


def test_a_destroyed_task_that_the_exception_handler_keeps_and_that_is_woken_is_abandoned_not_failed(
    watched, run
):
    kept = []

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: kept.append(context["task"]))
        future = []

        async def one():
            waited = loop.create_future()
            future.append(waited)
            holder = [asyncio.current_task()]
            await waited
            return holder

        asyncio.create_task(one())
        await asyncio.sleep(0)
        waited = weakref.ref(future.pop())
        collect()
        if waited() is not None:
            waited().set_result(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        watched.tick()
        watched.tick()

    run(main)
    name = next(name for name in watched.told() if name.endswith("one"))
    # Either it was collected for good, or it lived on because of the handler and came to its end.
    assert watched.told()[name] == "abandoned"
    kept.clear()


def test_the_callback_of_a_destroyed_task_does_not_make_it_failed(watched, run):
    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        note = next(each for each in watched.ledger.invisible() if each.runner() is task)
        loop.call_exception_handler({"message": "Task was destroyed but it is pending!", "task": task})

        class Ended:
            _exception = RuntimeError("cannot reuse already awaited coroutine")

        note(Ended())
        watched.tick()
        task.cancel()

    run(main)
    assert watched.told()["forever"] == "abandoned"
    assert watched.settled()


# Races with the ticker ----------------------------------------------------------------------------------------------


def test_a_task_that_ends_while_the_ticker_looks_for_dead_ones_is_not_abandoned(watched, run, monkeypatch):
    async def main():
        task = asyncio.create_task(nothing())
        snapshot = watched.ledger.invisible()
        await task
        del task
        await asyncio.sleep(0)
        collect()
        monkeypatch.setattr(watched.ledger, "invisible", lambda: snapshot)
        tasks.look(0)
        monkeypatch.undo()

    run(main)
    assert watched.told() == {"root": "finished"}
    assert watched.ledger.open_hops() == []
    assert len(watched.ledger) == 0


def test_a_task_that_ends_while_the_ticker_reveals_it_is_over(watched, run):
    async def main():
        task = asyncio.create_task(nothing())
        note = next(each for each in watched.ledger.invisible() if each.runner() is task)
        await task
        await asyncio.sleep(0)
        entry = watched.ledger.reveal(note)
        assert entry.done is not None
        assert not entry.visible

    run(main)
    assert watched.told() == {"root": "finished"}
    assert len(watched.ledger) == 0


def test_tasks_that_end_on_a_loop_while_another_thread_ticks_all_the_time_end_well(watched, run, switching):
    stop = threading.Event()
    seen = []

    def tick():
        while not stop.is_set():
            watched.tick(later=2.0)
            seen.append(1)

    ticker = threading.Thread(target=tick)

    async def main():
        ticker.start()
        for _ in range(400):
            await asyncio.gather(*(asyncio.sleep(0) for _ in range(5)))

    try:
        run(main)
    finally:
        stop.set()
        ticker.join()
    assert set(watched.told().values()) == {"finished"}
    assert watched.settled()


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_a_task_that_ended_just_before_its_loop_was_closed_is_not_abandoned(watched, kind):
    loop = asyncio.new_event_loop() if kind == "asyncio" else pytest.importorskip("uvloop").new_event_loop()
    with hopwatch.cascade("root"):

        async def main():
            async def last():
                await asyncio.sleep(0)
                await asyncio.sleep(0)

            return [asyncio.create_task(nothing()), asyncio.create_task(last())]

        made = loop.run_until_complete(main())
        while not all(task.done() for task in made):  # ends as soon as they have, before their callbacks
            loop.call_soon(loop.stop)
            loop.run_forever()
        loop.close()
    del made
    collect()
    assert watched.settled()
    assert watched.told() == {"root": "finished"}


def end_as_the_loop_stops(loop, coroutines):
    """Make tasks of them and run the loop until they have ended, but not their callbacks; returns the tasks, with the loop stopped."""

    async def main():
        return [asyncio.create_task(each()) for each in coroutines]

    made = loop.run_until_complete(main())
    while not all(task.done() for task in made):
        loop.call_soon(loop.stop)
        loop.run_forever()
    return made


MAKER = f"{end_as_the_loop_stops.__name__}.<locals>.main"


async def fails_at_once():
    raise ValueError("no")


async def is_cancelled():
    raise asyncio.CancelledError


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
@pytest.mark.parametrize("detail", ["hops", "all"])
def test_tasks_that_ended_as_their_loop_stopped_have_ended_so_though_nobody_closes_the_loop(
    watching_with, kind, detail
):
    with watching_with(HOPWATCH_DETAIL=detail) as watched:
        loop = (
            asyncio.new_event_loop() if kind == "asyncio" else pytest.importorskip("uvloop").new_event_loop()
        )
        loop.set_exception_handler(lambda *_: None)  # nobody asks for the exception
        with hopwatch.cascade("root"):
            made = end_as_the_loop_stops(loop, [nothing, fails_at_once, is_cancelled])
        assert watched.open() == []
        assert len(watched.ledger) == 0
        told = {"root": "finished", "fails_at_once": "failed"}
        if detail == "all":
            told |= {"nothing": "finished", "is_cancelled": "cancelled", MAKER: "finished"}
        assert watched.told() == told
        del made
        assert watched.settled()
        loop.close()
        assert watched.told() == told
        assert process.failures == {}


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_a_loop_that_goes_on_after_its_tasks_ended_as_it_stopped_counts_none_of_them_twice(watched, kind):
    loop = asyncio.new_event_loop() if kind == "asyncio" else pytest.importorskip("uvloop").new_event_loop()
    called = []

    async def noticed():
        asyncio.current_task().add_done_callback(called.append)

    with hopwatch.cascade("root"):
        for _ in range(3):
            assert not end_as_the_loop_stops(loop, [noticed])[0].cancelled()
        loop.run_until_complete(asyncio.sleep(0))
    assert len(called) == 3
    assert watched.open() == []
    assert len(watched.ledger) == 0
    loop.close()
    assert watched.settled()
    assert watched.told() == {"root": "finished"}


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_a_task_that_was_revealed_and_ended_just_before_its_loop_was_closed_is_not_abandoned(watched, kind):
    loop = asyncio.new_event_loop() if kind == "asyncio" else pytest.importorskip("uvloop").new_event_loop()
    gate = asyncio.Event()

    async def waits():
        await gate.wait()

    with hopwatch.cascade("root"):
        task = loop.create_task(waits())
        loop.run_until_complete(asyncio.sleep(0))
        watched.tick(later=2)
        gate.set()
        while not task.done():
            loop.call_soon(loop.stop)
            loop.run_forever()
    loop.close()
    assert watched.open() == []
    assert set(watched.told().values()) == {"finished"}
    assert watched.settled()


# Service loops ------------------------------------------------------------------------------------------------------


@hopwatch.service
async def decorated_loop():
    assert hopwatch.current() is None
    await forever()


def around(function):
    import functools

    @functools.wraps(function)
    async def wrapper(*args):
        return await function(*args)

    return wrapper


@hopwatch.service
@around
async def loop_behind_a_decorator():
    assert hopwatch.current() is None
    await forever()


@around
async def work_behind_the_same_decorator():
    assert hopwatch.current() is not None
    await forever()


async def named_loop():
    assert hopwatch.current() is None
    await forever()


@around
async def named_loop_behind_a_decorator():
    assert hopwatch.current() is None
    await forever()


def _start(function):
    async def main():
        with hopwatch.cascade("inner"):
            task = asyncio.create_task(function())
            await asyncio.sleep(0)
            assert hopwatch.current().name == "inner"
        await asyncio.sleep(0)
        assert not task.done() or task.exception() is None
        return task

    return main


@pytest.mark.parametrize("function", [decorated_loop, loop_behind_a_decorator])
def test_a_loop_that_is_decorated_as_a_service_holds_nothing_open(watched, run, function):
    async def main():
        for _ in range(2):
            task = await _start(function)()
            assert watched.open() == ["root"]
            task.cancel()

    run(main)
    assert watched.settled()


def test_what_stands_behind_the_decorator_of_a_service_loop_is_still_work(watched, run):
    async def main():
        loop_task = await _start(loop_behind_a_decorator)()
        work = await _start(work_behind_the_same_decorator)()
        assert watched.open() == ["root", "inner"]
        loop_task.cancel()
        work.cancel()

    run(main)
    assert watched.settled()


@pytest.mark.parametrize("function", [named_loop, named_loop_behind_a_decorator])
def test_a_loop_that_the_environment_names_holds_nothing_open(watching_with, run, function):
    with watching_with(HOPWATCH_SERVICE_LOOPS=f"{__name__}:{function.__qualname__}") as watched:

        async def main():
            for _ in range(2):
                task = await _start(function)()
                assert watched.open() == ["root"]
                task.cancel()

        run(main)
        assert watched.settled()
    service.configure(())


def test_tasks_made_in_a_service_block_hold_nothing_open(watched, run):
    async def main():
        with hopwatch.cascade("inner"), hopwatch.service():
            task = asyncio.create_task(named_loop())
        await asyncio.sleep(0)
        assert watched.open() == ["root"]
        task.cancel()

    run(main)
    assert watched.settled()


def test_functions_whose_code_is_equal_are_judged_each_by_itself(watched, run):
    source = "async def loop(gate):\n    await gate.wait()\n"
    one, two = {}, {}
    exec(compile(source, "one.py", "exec"), one)
    exec(compile(source, "one.py", "exec"), two)
    assert one["loop"].__code__ == two["loop"].__code__
    hopwatch.service(one["loop"])

    async def main():
        gate = asyncio.Event()
        with hopwatch.cascade("inner"):
            made = [asyncio.create_task(one["loop"](gate)), asyncio.create_task(two["loop"](gate))]
        assert watched.open() == ["root", "inner"]
        gate.set()
        await asyncio.gather(*made)

    run(main)
    assert watched.settled()


def test_a_task_factory_that_takes_the_coroutine_alone_may_make_a_service_loop(watched):
    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coro: asyncio.Task(coro, loop=loop))
        for make in (decorated_loop, nothing):
            asyncio.create_task(make()).cancel()
        await asyncio.sleep(0)

    asyncio.run(main_in_a_cascade(main))
    assert watched.settled()


async def main_in_a_cascade(main):
    with hopwatch.cascade("root"):
        return await main()


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="create_task(context=) came with 3.11; ci: may be skipped"
)
def test_a_context_that_the_application_gives_is_the_one_that_the_task_runs_in(watched, run):
    variable = contextvars.ContextVar("variable", default="before")

    async def work():
        variable.set("after")

    async def main():
        context = contextvars.copy_context()
        await asyncio.create_task(work(), context=context)
        assert context[variable] == "after"
        assert variable.get() == "before"

    run(main)
    assert watched.settled()


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="create_task(context=) came with 3.11; ci: may be skipped"
)
def test_the_context_of_a_service_loop_is_the_applications_where_it_gives_one(watched, run):
    variable = contextvars.ContextVar("variable", default="before")

    @hopwatch.service
    async def loop():
        variable.set("after")

    async def main():
        context = contextvars.copy_context()
        await asyncio.create_task(loop(), context=context)
        assert context[variable] == "after"

    run(main)
    assert watched.settled()


def test_a_service_loop_sees_every_other_context_variable(watched, run):
    variable = contextvars.ContextVar("variable", default="before")
    seen = []

    @hopwatch.service
    async def loop():
        seen.append((variable.get(), current.get()))

    async def main():
        variable.set("mine")
        await asyncio.create_task(loop())
        assert hopwatch.current().name == "root"

    run(main)
    assert seen == [("mine", None)]


# Async generators ---------------------------------------------------------------------------------------------------


def test_an_async_generator_that_is_left_with_break_is_closed_within_the_hop(watched, run):
    closed = []

    async def numbers():
        try:
            for number in range(10):
                yield number
        finally:
            await asyncio.sleep(0)
            closed.append(hopwatch.current().name)

    async def main():
        with hopwatch.cascade("inner"):
            async for _ in numbers():
                break
        assert "inner" in watched.open()
        while not closed:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert "inner" not in watched.open()

    run(main)
    assert closed == ["inner"]
    assert not any(hop.late for hop in watched.hops().values())
    assert watched.settled()


def test_an_async_generator_of_a_hop_whose_own_work_is_over_keeps_it_open_too(watched, run):
    closed = []

    async def numbers():
        try:
            yield 1
        finally:
            closed.append(1)

    async def main():
        gate = asyncio.Event()

        async def reader():
            await gate.wait()
            async for _ in numbers():
                break

        with hopwatch.cascade("inner"):
            task = asyncio.create_task(reader())
        gate.set()
        await task
        while not closed:
            await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)

    run(main)
    assert not any(hop.late for hop in watched.hops().values())
    assert watched.settled()


def test_where_the_loop_runs_already_when_asyncio_is_instrumented_an_async_generator_is_closed_within_the_hop_too(
    watching_with, run
):
    closed = []

    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.append(hopwatch.current())

    async def main():
        before = sys.get_asyncgen_hooks()
        with watching_with() as watched:
            with hopwatch.cascade("inner"):
                async for _ in numbers():
                    break
            assert "inner" in watched.open()
            while not closed:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert [hop.name for hop in closed] == ["inner"]
            assert not any(hop.late for hop in watched.hops().values())
            assert watched.settled()
            assert sys.get_asyncgen_hooks().finalizer != before.finalizer
        assert sys.get_asyncgen_hooks() == before
        assert process.failures == {}

    run(main, root=None)


def test_the_hook_for_async_generators_of_somebody_else_in_a_running_loop_stays_theirs(watching_with, run):
    async def main():
        before = sys.get_asyncgen_hooks()

        def theirs(agen):
            before.finalizer(agen)

        sys.set_asyncgen_hooks(finalizer=theirs)
        try:
            with watching_with():
                assert sys.get_asyncgen_hooks().finalizer is theirs
            assert sys.get_asyncgen_hooks().finalizer is theirs
        finally:
            sys.set_asyncgen_hooks(*before)

    run(main, root=None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning")
def test_an_async_generator_whose_loop_is_closed_before_it_is_leaves_nothing_open(watched):
    loop = asyncio.new_event_loop()

    async def numbers():
        yield 1

    async def main():
        async for _ in numbers():
            break

    with hopwatch.cascade("root"):
        loop.run_until_complete(main())
        loop.close()
    collect()
    assert watched.settled()


# Detail, capacity ---------------------------------------------------------------------------------------------------


def test_with_detail_all_every_task_is_seen_at_once_and_the_count_is_right(watching_with, run):
    with watching_with(HOPWATCH_DETAIL="all") as watched:

        async def main():
            gate = asyncio.Event()
            task = asyncio.create_task(gate.wait(), name="waits")
            assert watched.open() == ["root", "Event.wait"]
            gate.set()
            await task

        run(main)
        assert watched.settled()
        hops = watched.hops()
        assert (
            hops["root"].children == len([hop for hop in hops.values() if hop.parent == hops["root"].id]) > 0
        )
        assert process.failures == {}


def test_what_does_not_fit_into_the_ledger_is_counted_and_the_application_goes_on(watching_with, run):
    with watching_with(HOPWATCH_CAPACITY="16") as watched:

        async def main():
            assert len(await asyncio.gather(*(nothing() for _ in range(50)))) == 50

        run(main)
        hop = watched.hops()["root"]
        assert hop.dropped == watched.ledger.dropped == 50 - 15
        assert watched.settled()


# No strong references -----------------------------------------------------------------------------------------------


def test_tasks_and_their_exceptions_are_collected_as_soon_as_without_us(watched, run):
    class PayloadError(Exception):
        pass

    async def main():
        gc.disable()
        try:
            task = asyncio.create_task(forever())
            fails = asyncio.create_task(failing(PayloadError))
            await asyncio.wait([fails])
            await asyncio.sleep(0)
            error = weakref.ref(fails.exception())
            references = [weakref.ref(task), weakref.ref(fails), error]
            task.cancel()
            await asyncio.wait([task])
            await asyncio.sleep(0)
            del task, fails
            # The traceback of an exception is a cycle with its frame where that still runs; these have ended.
            return [reference() for reference in references]
        finally:
            gc.enable()

    async def failing(kind):
        raise kind

    assert run(main) == [None, None, None]


def test_what_is_remembered_of_functions_is_code_and_never_an_object_of_the_application(watched):
    class Callable:
        __qualname__ = "Callable"

        def __call__(self):
            return None

    one = Callable()
    reference = weakref.ref(one)
    with hopwatch.cascade("root"):
        thread = threading.Thread(target=one)
        thread.start()
        thread.join()
    del one, thread
    assert watched.settled()
    assert reference() is None


# Guards -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["time_ns", "_new", "judge", "_getframe", "_call_site"])
def test_a_hook_that_fails_while_a_task_is_made_is_counted_and_makes_the_cascade_uncertain(
    watching_with, run, monkeypatch, name, caplog, capfd
):
    def broken(*_):
        raise RuntimeError("ours")

    with watching_with() as watched:

        async def main():
            with monkeypatch.context() as patch:
                patch.setattr(tasks, name, broken)
                if name == "judge":
                    patch.setattr(service, "is_service", broken)
                    patch.undo()
                    patch.setattr(service, "is_service", broken)
                    service.forget()
                if name == "_call_site":
                    tasks._outside.clear()
                tasks_made = [asyncio.create_task(nothing()) for _ in range(3)]
                assert await asyncio.gather(*tasks_made) == [None] * 3

        run(main)
        assert sum(process.failures.values()) >= 1
        assert len([record for record in caplog.records if record.name == "hopwatch"]) == len(
            process.failures
        )
        assert watched.settled()
        if name != "judge":
            assert watched.hops()["root"].dropped >= 3
    assert "ours" not in capfd.readouterr().err


def test_a_callback_of_ours_that_fails_holds_nothing_open(watching_with, run, monkeypatch):
    with watching_with() as watched:

        async def main():
            with monkeypatch.context() as patch:
                patch.setattr(tasks, "DURATIONS_A_TICK", None)
                await asyncio.create_task(nothing())
                await asyncio.sleep(0)

        run(main)
        assert process.failures == {"task.done": 1}
        assert watched.settled()


def test_a_foreign_task_of_a_task_factory_holds_nothing_open_for_ever(watching_with):
    with watching_with() as watched:

        class Foreign:
            """Less than a task: no weak references, no exception to look at."""

            __slots__ = ("callbacks", "coro")

            def __init__(self, coro):
                self.coro = coro
                coro.close()

            def add_done_callback(self, callback, **_):
                callback(self)

            def set_name(self, name):
                pass

        loop = asyncio.new_event_loop()
        loop.set_task_factory(lambda _, coro, **__: Foreign(coro))
        with hopwatch.cascade("root"):
            assert isinstance(loop.create_task(nothing()), Foreign)
        loop.close()
        assert watched.settled()
        assert watched.hops()["root"].dropped == 1
