"""Stories about what a pending task waits on, and whether that can move by itself.

Every wait is looked at from another thread while the loop waits for that thread, as the ticker does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import sys
import threading
import time
import types
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hopwatch import waits
from hopwatch.waits import Wait, chain, glance, is_application, judging, of_task
from ticking import collect

HERE = __file__
SINCE_311 = pytest.mark.skipif(sys.version_info < (3, 11), reason="new in Python 3.11; ci: may be skipped")
SINCE_312 = pytest.mark.skipif(sys.version_info < (3, 12), reason="new in Python 3.12; ci: may be skipped")


def finish(loop, main):
    """Run `main` as `asyncio.run` would, on a loop of our choice, and leave nothing behind."""
    try:
        return loop.run_until_complete(asyncio.wait_for(main, 90))
    finally:
        leftover = asyncio.all_tasks(loop)
        for task in leftover:
            task.cancel()
        if leftover:
            loop.run_until_complete(asyncio.wait(leftover))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    """Run a story on either loop."""
    make = (
        asyncio.new_event_loop if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    )
    return lambda main: finish(make(), main)


def play(main):
    return finish(asyncio.new_event_loop(), main)


async def blocked(*tasks):
    """Return once every task waits for a future."""
    for _ in range(2000):
        if all(
            task.done() or (task._fut_waiter is not None and not task._fut_waiter.done()) for task in tasks
        ):
            return
        await asyncio.sleep(0)
    raise AssertionError("the tasks did not come to rest")


async def seen(awaitable, **known) -> Wait:
    task = asyncio.ensure_future(awaitable)
    await asyncio.sleep(0)
    await blocked(*asyncio.all_tasks() - {asyncio.current_task()})
    wait = await asyncio.to_thread(of_task, task, **known)
    json.dumps(wait.as_dict())
    return wait


def line_of(function, text):
    """Return the line on which `function` says `text`."""
    import inspect

    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if text in line)


def installed(package, source, **known):
    """Return the namespace of a module that looks as if it lay in site-packages."""
    namespace = dict(known, asyncio=asyncio)
    exec(compile(source, f"/venv/lib/python3/site-packages/{package}/module.py", "exec"), namespace)
    return types.SimpleNamespace(**namespace)


# --- futures and primitives of the application ---------------------------------------------------------------------


def test_a_task_that_awaits_a_future_nobody_set_is_passive_at_its_file_and_line(run):
    async def charge(answer):
        await answer  # here

    async def main():
        task = asyncio.create_task(charge(asyncio.get_running_loop().create_future()), name="charge 7")
        return await seen(task)

    wait = run(main())
    assert (wait.kind, wait.moves, wait.task) == ("future", False, "charge 7")
    assert wait.what == "a future `answer` that nobody has set"
    assert (wait.file, wait.line) == (HERE, line_of(charge, "# here"))
    assert wait.function.endswith("<locals>.charge")
    assert wait.chain == (f"{wait.file}:{wait.line} {wait.function}",)


def test_the_line_is_the_innermost_one_of_the_application(run):
    async def inner(event):
        await event.wait()  # here

    async def outer(event):
        await inner(event)

    wait = run(seen(outer(asyncio.Event())))
    assert (wait.kind, wait.moves, wait.line) == ("event", False, line_of(inner, "# here"))
    assert wait.what == "event `event`, which nobody has set"
    assert [step.rpartition(".")[2] for step in wait.chain] == ["outer", "inner", "wait"]


class Shop:
    def __init__(self):
        self.stock = asyncio.Lock()
        self.orders = asyncio.Queue(1)
        self.seats = asyncio.Semaphore(0)
        self.news = asyncio.Condition()
        self.ready = asyncio.Event()

    async def take(self):
        async with self.stock:
            pass

    async def take_plainly(self):
        await self.stock.acquire()

    async def sit(self):
        async with self.seats:
            pass

    async def hear(self):
        async with self.news:
            await self.news.wait()

    async def hear_of(self):
        async with self.news:
            await self.news.wait_for(lambda: False)

    async def opened(self):
        await self.ready.wait()

    async def next_order(self):
        return await self.orders.get()

    async def order(self, what):
        await self.orders.put((what, len(what)))

    async def closing(self):
        await self.orders.join()


@pytest.mark.parametrize(
    ("method", "kind", "what"),
    [
        ("take", "lock", "lock `self.stock`"),
        ("take_plainly", "lock", "lock `self.stock`"),
        ("sit", "semaphore", "semaphore `self.seats`"),
        ("hear", "condition", "condition `self.news` to be notified"),
        ("hear_of", "condition", "condition `self.news` to be notified"),
        ("opened", "event", "event `self.ready`, which nobody has set"),
        ("next_order", "queue_get", "an item from queue `self.orders` (0 of 1 inside)"),
        ("order", "queue_put", "room in queue `self.orders` (1 of 1 inside)"),
        ("closing", "queue_join", "queue `self.orders` to be worked off (1 of 1 inside)"),
    ],
)
def test_a_primitive_of_the_application_is_passive_and_has_the_name_that_the_source_gives_it(
    run, method, kind, what
):
    async def main():
        shop = Shop()
        await shop.stock.acquire()
        if method in {"order", "closing"}:
            shop.orders.put_nowait("first")
        return await seen(getattr(shop, method)(*(["tea"] if method == "order" else [])))

    wait = run(main())
    assert (wait.kind, wait.moves, wait.what) == (kind, False, what)
    assert wait.file == HERE
    assert wait.function == f"Shop.{method}"


@SINCE_311
def test_a_barrier_waits_for_others(run):
    async def meet(gate):
        await gate.wait()

    async def main():
        return await seen(meet(asyncio.Barrier(2)))

    wait = run(main())
    assert (wait.kind, wait.moves, wait.what) == ("barrier", False, "others at barrier `gate`")


def test_what_has_no_name_in_the_source_is_known_by_its_address(run):
    locks = [asyncio.Lock()]

    async def take():
        async with locks[0]:
            pass

    async def main():
        await locks[0].acquire()
        return await seen(take())

    assert run(main()).what == f"lock 0x{id(locks[0]):x}"


# --- locks and who holds them --------------------------------------------------------------------------------------


async def hold(lock, then):
    async with lock:
        await then()


def test_a_lock_whose_holder_sleeps_moves(run):
    async def main():
        lock = asyncio.Lock()
        holder = asyncio.create_task(hold(lock, napping), name="holder")
        await blocked(holder)
        return await seen(hold(lock, stuck), holder_of=lambda it: holder if it is lock else None)

    wait = run(main())
    assert (wait.kind, wait.moves, wait.holder) == ("lock", True, "holder")
    assert wait.what == "lock `lock` held by task 'holder'"
    assert wait.of[0].kind == "sleep"


def test_a_lock_whose_holder_waits_for_an_event_is_passive(run):
    async def main():
        lock = asyncio.Lock()
        holder = asyncio.create_task(hold(lock, stuck), name="holder")
        await blocked(holder)
        return await seen(hold(lock, stuck), holder_of=lambda _: holder)

    wait = run(main())
    assert (wait.moves, wait.holder, wait.of[0].kind) == (False, "holder", "event")


def test_a_lock_that_a_finished_task_never_released_is_passive(run):
    async def main():
        lock = asyncio.Lock()
        holder = asyncio.create_task(lock.acquire(), name="gone")
        await holder
        return await seen(hold(lock, stuck), holder_of=lambda _: holder)

    wait = run(main())
    assert not wait.moves
    assert wait.what == "lock `lock`, never released by task 'gone', which has ended"


def test_two_tasks_and_two_locks_in_opposite_order_are_a_cycle(run):
    async def both(first, second, gate):
        async with first:
            await gate.wait()
            async with second:
                pass

    async def main():
        left, right, gate = asyncio.Lock(), asyncio.Lock(), asyncio.Event()
        one = asyncio.create_task(both(left, right, gate), name="one")
        two = asyncio.create_task(both(right, left, gate), name="two")
        holders = {id(left): one, id(right): two}
        await blocked(one, two)
        gate.set()
        await asyncio.sleep(0)
        return [await seen(task, holder_of=lambda it: holders[id(it)]) for task in (one, two)]

    one, two = run(main())
    assert (one.moves, one.holder) == (False, "two")
    assert (two.moves, two.holder) == (False, "one")
    assert one.what == "lock `second` held by task 'two': a cycle"
    assert one.of[0].holder == "one"


def test_a_semaphore_moves_if_one_of_those_who_hold_it_moves(run):
    async def main():
        seats = asyncio.Semaphore(2)
        holders = [asyncio.create_task(hold(seats, then), name=then.__name__) for then in (stuck, napping)]
        await blocked(*holders)
        waiter = asyncio.create_task(hold(seats, stuck))
        return await seen(waiter, holder_of=lambda _: holders), await seen(
            waiter, holder_of=lambda _: holders[:1]
        )

    both, one = run(main())
    assert (both.kind, both.moves, both.holder) == ("semaphore", True, "stuck")
    assert both.what == "semaphore `lock` held by tasks 'stuck' and 'napping'"
    assert not one.moves


def test_a_task_that_takes_its_own_lock_again_is_a_cycle(run):
    async def twice(lock):
        async with lock, lock:
            pass

    async def main():
        task = asyncio.create_task(twice(asyncio.Lock()), name="twice")
        return await seen(task, holder_of=lambda _: task)

    wait = run(main())
    assert not wait.moves
    assert wait.what.endswith("held by task 'twice': a cycle")


def test_a_holder_that_cannot_be_told_is_nothing_to_fail_over(run):
    def broken(_):
        raise RuntimeError("the table of holders is gone")

    async def main():
        lock = asyncio.Lock()
        await lock.acquire()
        return await seen(hold(lock, stuck), holder_of=broken)

    wait = run(main())
    assert (wait.kind, wait.moves) == ("unknown", True)


# --- timers --------------------------------------------------------------------------------------------------------


def test_a_sleep_moves_and_says_until_when(run):
    async def nap():
        await asyncio.sleep(60)

    wait = run(seen(nap()))
    assert (wait.kind, wait.moves) == ("sleep", True)
    assert wait.until == pytest.approx(time.time() + 60, abs=30)
    assert wait.what.startswith("asyncio.sleep(60) until ")


def test_wait_for_bounds_an_event_and_looks_through_to_it(run):
    async def hurry(event):
        await asyncio.wait_for(event.wait(), 60)  # here

    wait = run(seen(hurry(asyncio.Event())))
    assert (wait.kind, wait.moves) == ("event", True)
    assert wait.until == pytest.approx(time.time() + 60, abs=30)
    assert wait.line == line_of(hurry, "# here")


def test_wait_for_without_a_timeout_bounds_nothing(run):
    async def patient(event):
        await asyncio.wait_for(event.wait(), None)

    wait = run(seen(patient(asyncio.Event())))
    assert (wait.kind, wait.moves) == ("event", False)


def test_wait_for_over_a_bare_future_is_bounded_too(run):
    async def hurry():
        await asyncio.wait_for(asyncio.get_running_loop().create_future(), 60)

    wait = run(seen(hurry()))
    assert (wait.kind, wait.moves) == ("future", True)
    assert wait.until is not None


def test_a_wait_for_whose_time_is_over_waits_for_what_it_cancelled(run):
    stubborn_ends = []

    async def stubborn():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stubborn_ends.append(asyncio.get_running_loop().create_future())
            await stubborn_ends[0]

    async def main():
        task = asyncio.create_task(asyncio.wait_for(stubborn(), 0.001), name="patient")
        while not stubborn_ends:
            await asyncio.sleep(0)
        wait = await seen(task, made_in=HERE)
        stubborn_ends[0].set_result(None)
        await asyncio.wait({task})
        task.exception()
        return wait

    wait = run(main())
    assert (wait.kind, wait.moves, wait.until) == ("future", False, None)
    assert wait.what == "a future that nobody has set"


@SINCE_311
def test_asyncio_timeout_bounds_what_is_below_it(run):
    async def inner(event):
        await event.wait()

    async def outer(event):
        async with asyncio.timeout(60):
            await inner(event)

    wait = run(seen(outer(asyncio.Event())))
    assert (wait.kind, wait.moves) == ("event", True)
    assert wait.until == pytest.approx(time.time() + 60, abs=30)


@SINCE_311
def test_a_timeout_of_none_or_one_that_was_left_bounds_nothing(run):
    async def outer(event):
        async with asyncio.timeout(60) as left:
            pass
        async with asyncio.timeout(None):
            await event.wait()
        return left

    wait = run(seen(outer(asyncio.Event())))
    assert (wait.moves, wait.until) == (False, None)


@SINCE_311
def test_the_timeout_of_another_task_bounds_nothing_here(run):
    async def owner(given, event):
        async with asyncio.timeout(60) as mine:
            given.append(mine)
            await event.wait()

    async def other(theirs, event):
        await event.wait()
        return theirs

    async def main():
        given = []
        first = asyncio.create_task(owner(given, asyncio.Event()))
        await blocked(first)
        return await seen(other(given[0], asyncio.Event()))

    assert not run(main()).moves


@SINCE_311
def test_a_timeout_behind_a_context_manager_of_the_application_is_found(run):
    @contextlib.asynccontextmanager
    async def limited():
        async with asyncio.timeout(60):
            yield

    class Limit:
        async def __aenter__(self):
            self.inner = asyncio.timeout(60)
            await self.inner.__aenter__()

        async def __aexit__(self, *exc):
            await self.inner.__aexit__(*exc)

    async def through_generator(event):
        async with limited():
            await event.wait()

    async def through_class(event):
        async with Limit():
            await event.wait()

    async def through_stack(event):
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(limited())
            await event.wait()

    for story in (through_generator, through_class, through_stack):
        wait = run(seen(story(asyncio.Event())))
        assert wait.moves, story
        assert wait.until == pytest.approx(time.time() + 60, abs=30)


def test_a_deadline_of_anyio_bounds(run):
    anyio = pytest.importorskip("anyio")

    async def with_scope(event):
        with anyio.move_on_after(60):
            await event.wait()

    async def with_generator(event):
        with anyio.fail_after(60):
            await event.wait()

    async def without(event):
        with anyio.CancelScope():
            await event.wait()

    for story in (with_scope, with_generator):
        wait = run(seen(story(asyncio.Event())))
        assert wait.moves, story
        assert wait.until == pytest.approx(time.time() + 60, abs=30)
    assert not run(seen(without(asyncio.Event()))).moves


def test_a_future_that_a_timer_will_set_moves():
    async def tick(answer):
        await answer

    async def main():
        loop = asyncio.get_running_loop()
        waits = []
        for arm in (
            lambda it: loop.call_later(60, it.set_result, None),
            lambda it: loop.call_later(60, functools.partial(it.set_result, None)),
            lambda it: loop.call_later(60, lambda: it.set_result(None)),
            lambda it: loop.call_later(60, lambda it: it.set_result(None), it),
        ):
            future = loop.create_future()
            handle = arm(future)
            waits.append(await seen(tick(future)))
            handle.cancel()
        return waits

    for wait in play(main()):
        assert wait.moves
        assert wait.until is not None


def test_an_event_that_a_timer_will_set_moves_until_the_timer_is_cancelled():
    async def tick(event):
        await event.wait()

    async def main():
        event = asyncio.Event()
        handle = asyncio.get_running_loop().call_later(60, event.set)
        task = asyncio.create_task(tick(event))
        first = await seen(task)
        handle.cancel()
        return first, await seen(task)

    before, after = play(main())
    assert before.moves
    assert not after.moves


# --- sockets, threads, calls ---------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def silent_server():
    """A server that accepts and says nothing."""
    accepted = []

    async def keep(reader, writer):
        accepted.append(writer)

    server = await asyncio.start_server(keep, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], accepted
    finally:
        server.close()
        for writer in accepted:
            writer.close()


def test_a_stream_waits_for_its_peer(run):
    async def read(reader):
        await reader.read(1)  # here

    async def main():
        async with silent_server() as (port, accepted):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while not accepted:
                await asyncio.sleep(0)
            wait = await seen(read(reader))
            writer.close()
            return port, wait

    port, wait = run(main())
    assert (wait.kind, wait.moves) == ("socket", True)
    assert wait.peer == f"127.0.0.1:{port}"
    assert wait.what == f"data from 127.0.0.1:{port}"
    assert wait.line == line_of(read, "# here")


def test_a_plain_socket_of_the_loop_moves(run):
    import socket

    async def receive(sock):
        await asyncio.get_running_loop().sock_recv(sock, 1)

    async def main():
        here, there = socket.socketpair()
        with here, there:
            here.setblocking(False)
            task = asyncio.create_task(receive(here))
            wait = await seen(task)
            task.cancel()
            await asyncio.wait({task})
            return wait

    wait = run(main())
    assert (wait.kind, wait.moves) == ("socket", True)


def test_an_http_call_waits_for_a_socket_though_its_last_frame_is_an_event(run):
    httpx = pytest.importorskip("httpx")

    async def ask(client, port):
        await client.get(f"http://127.0.0.1:{port}/")  # here

    async def main():
        async with silent_server() as (port, accepted), httpx.AsyncClient(trust_env=False) as client:
            task = asyncio.create_task(ask(client, port))
            until = time.monotonic() + 60
            while not (accepted and "SocketStream.receive" in " ".join(of_task(task).chain)):
                assert time.monotonic() < until, of_task(task)
                await asyncio.sleep(0)
            wait = await seen(task)
            task.cancel()
            await asyncio.wait({task})
            return port, wait

    port, wait = run(main())
    assert (wait.kind, wait.moves, wait.peer) == ("socket", True, f"127.0.0.1:{port}")
    assert wait.line == line_of(ask, "# here")


def test_a_job_in_a_thread_moves(run):
    release = threading.Event()

    async def by_to_thread():
        await asyncio.to_thread(release.wait, 30)

    async def by_executor(pool):
        await asyncio.get_running_loop().run_in_executor(pool, release.wait, 30)

    async def by_gather(pool):
        await asyncio.gather(
            by_executor(pool), asyncio.get_running_loop().run_in_executor(pool, release.wait, 30)
        )

    async def main():
        with ThreadPoolExecutor(4) as pool:
            try:
                tasks = [
                    asyncio.create_task(job) for job in (by_to_thread(), by_executor(pool), by_gather(pool))
                ]
                return [await seen(task) for task in tasks]
            finally:
                release.set()
                await asyncio.wait(tasks)

    first, second, third = run(main())
    assert (first.kind, first.moves) == (second.kind, second.moves) == ("thread", True)
    assert (third.kind, third.moves, {child.kind for child in third.of}) == ("gather", True, {"thread"})


def test_a_grpc_call_moves(run):
    stub = installed("grpc/aio", "async def call(future): await future")

    async def ask():
        await stub.call(asyncio.get_running_loop().create_future())

    wait = run(seen(ask()))
    assert (wait.kind, wait.moves) == ("call", True)


# --- other tasks ---------------------------------------------------------------------------------------------------


async def stuck():
    await asyncio.Event().wait()


async def napping():
    await asyncio.sleep(60)


def test_a_task_that_awaits_a_task_is_as_that_task_is(run):
    async def parent(child):
        await child

    async def main():
        return (
            await seen(parent(asyncio.create_task(stuck(), name="child"))),
            await seen(parent(asyncio.create_task(napping(), name="child"))),
        )

    first, second = run(main())
    assert (first.kind, first.moves, first.what) == ("task", False, "task 'child'")
    assert first.of[0].kind == "event"
    assert (second.moves, second.of[0].kind) == (True, "sleep")


def test_tasks_that_await_one_another_are_a_cycle(run):
    async def main():
        tasks = {}

        async def one():
            await tasks["two"]

        async def two():
            # Shielded, for `cancel` on a cycle of bare awaits recurses for ever.
            await asyncio.shield(tasks["one"])

        tasks["one"] = asyncio.create_task(one(), name="one")
        tasks["two"] = asyncio.create_task(two(), name="two")
        await blocked(*tasks.values())
        waits = [await seen(task) for task in tasks.values()]
        tasks["two"].cancel()
        await asyncio.wait(tasks.values())
        return waits

    one, two = run(main())
    assert (one.kind, one.moves, one.what) == ("task", False, "task 'two': a cycle")
    assert (two.kind, two.moves) == ("task", False)
    assert two.what == "task 'one' (shielded): a cycle"


def test_a_gather_is_as_its_children(run):
    async def parent(*children):
        await asyncio.gather(*children)

    async def main():
        quiet, lively = await seen(parent(stuck(), stuck())), await seen(parent(stuck(), napping()))
        return quiet, lively

    quiet, lively = run(main())
    assert (quiet.kind, quiet.moves) == ("gather", False)
    assert quiet.what.startswith("2 tasks (gather): 'Task-")
    assert [child.kind for child in quiet.of] == ["event", "event"]
    assert (lively.moves, sorted(child.kind for child in lively.of)) == (True, ["event", "sleep"])


def test_a_gather_tells_of_sixteen_children_and_judges_all(run):
    async def parent(*children):
        await asyncio.gather(*children)

    async def main():
        return (
            await seen(parent(*(stuck() for _ in range(40)))),
            await seen(parent(*(stuck() for _ in range(40)), napping())),
            await seen(parent(*(stuck() for _ in range(400)))),
        )

    quiet, lively, many = run(main())
    assert (quiet.moves, len(quiet.of)) == (False, judging.LISTED)
    assert quiet.what.startswith("40 tasks (gather): ")
    assert quiet.what.endswith(" and 36 more")
    assert (lively.moves, len(lively.of)) == (True, judging.LISTED)
    assert many.moves, "more than are looked at is doubt"


def test_asyncio_wait_is_as_its_members(run):
    async def parent(*children, timeout=None):
        await asyncio.wait({asyncio.ensure_future(child) for child in children}, timeout=timeout)

    async def main():
        return (
            await seen(parent(stuck(), stuck())),
            await seen(parent(stuck(), napping())),
            await seen(parent(stuck(), timeout=60)),
        )

    quiet, lively, bounded = run(main())
    assert (quiet.kind, quiet.moves) == ("wait", False)
    assert quiet.what.startswith("2 tasks (wait): 'Task-")
    assert lively.moves
    assert bounded.moves
    assert bounded.until == pytest.approx(time.time() + 60, abs=30)


def test_as_completed_is_as_its_members(run):
    async def parent(*children):
        for first in asyncio.as_completed(set(children)):
            await first

    async def main():
        return await seen(parent(stuck(), stuck())), await seen(parent(stuck(), napping()))

    quiet, lively = run(main())
    assert (quiet.kind, quiet.moves) == ("wait", False)
    assert lively.moves


@SINCE_311
def test_a_task_group_is_as_its_tasks(run):
    async def parent(*children):
        async with asyncio.TaskGroup() as group:
            for child in children:
                group.create_task(child)

    async def main():
        return await seen(parent(stuck(), stuck())), await seen(parent(stuck(), napping()))

    quiet, lively = run(main())
    assert (quiet.kind, quiet.moves) == ("task_group", False)
    assert quiet.what.startswith("2 tasks (task group): 'Task-")
    assert lively.moves


def test_a_task_group_of_anyio_is_as_its_tasks(run):
    anyio = pytest.importorskip("anyio")

    async def parent(*children):
        async with anyio.create_task_group() as group:
            for child in children:
                group.start_soon(child)

    async def main():
        return await seen(parent(stuck, stuck)), await seen(parent(stuck, napping))

    quiet, lively = run(main())
    assert (quiet.kind, quiet.moves) == ("task_group", False)
    assert (lively.kind, lively.moves) == ("task_group", True)


def test_a_shield_is_as_what_it_shields(run):
    async def parent(inner):
        await asyncio.shield(inner)

    async def main():
        return (
            await seen(parent(stuck())),
            await seen(parent(napping())),
            await seen(parent(asyncio.gather(stuck(), napping()))),
            await seen(parent(asyncio.get_running_loop().create_future())),
        )

    quiet, lively, gathered, future = run(main())
    assert (quiet.kind, quiet.moves) == ("task", False)
    assert (lively.kind, lively.moves) == ("task", True)
    assert (gathered.kind, gathered.moves) == ("gather", True)
    assert (future.kind, future.moves) == ("future", False)


def test_a_bare_coroutine_of_asyncio_in_a_task_is_judged_by_who_made_or_awaits_it(run):
    async def parent(child):
        await asyncio.wait({child})

    async def main():
        child = asyncio.create_task(asyncio.Event().wait())
        alone = await seen(child)
        return alone, await seen(child, made_in=HERE), await seen(parent(child))

    alone, told, awaited = run(main())
    assert alone.moves, "a library may have made it"
    assert not told.moves
    assert not awaited.moves


# --- through whatever stands in the chain --------------------------------------------------------------------------


def test_the_chain_goes_on_through_generators_and_wrappers(run):
    async def numbers(event):
        yield 1
        await event.wait()  # here
        yield 2

    async def by_async_for(event):
        async for _ in numbers(event):
            pass

    async def by_anext(event):
        source = numbers(event)
        await source.__anext__()
        await source.__anext__()

    async def by_default(event):
        source = numbers(event)
        await anext(source, None)
        await anext(source, None)

    class Awaitable:
        def __init__(self, event):
            self.event = event

        def __await__(self):
            return (yield from last(self.event).__await__())

    async def last(event):
        async for _ in numbers(event):
            pass

    async def by_await(event):
        await Awaitable(event)

    @contextlib.asynccontextmanager
    async def entered(event):
        await last(event)
        yield

    async def by_manager(event):
        async with entered(event):
            pass

    async def by_stack(event):
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(entered(event))

    for story in (by_async_for, by_anext, by_default, by_await, by_manager, by_stack):
        wait = run(seen(story(asyncio.Event())))
        assert (wait.kind, wait.moves, wait.line) == ("event", False, line_of(numbers, "# here")), story


def test_an_awaitable_of_an_unknown_sort_is_doubt(run):
    class Iterator:
        def __init__(self, future):
            self.inner = future.__await__()

        def __iter__(self):
            return self

        def __await__(self):
            return self

        def __next__(self):
            return next(self.inner)

    async def odd(future):
        await Iterator(future)

    async def main():
        return await seen(odd(asyncio.get_running_loop().create_future()))

    assert run(main()).moves


def test_a_chain_deeper_than_is_followed_is_doubt(run):
    async def deep(left):
        await (deep(left - 1) if left else stuck())

    assert not run(seen(deep(20))).moves
    assert run(seen(deep(200))).moves


# --- whose code it is ----------------------------------------------------------------------------------------------


def test_the_same_event_inside_a_library_may_stand_for_a_socket(run):
    library = installed("poolz", "async def fetch(event): await event.wait()")

    async def ask(event):
        await library.fetch(event)  # here

    wait = run(seen(ask(asyncio.Event())))
    assert (wait.kind, wait.moves) == ("event", True)
    assert wait.what.endswith(" inside poolz")
    assert wait.line == line_of(ask, "# here")


@pytest.mark.parametrize("package", ["a2a/server", "acp"])
def test_inside_an_agents_sdk_an_event_is_an_event(run, package):
    sdk = installed(package, "async def fetch(event): await event.wait()")

    async def ask(event):
        await sdk.fetch(event)

    wait = run(seen(ask(asyncio.Event())))
    assert (wait.kind, wait.moves, wait.what) == ("event", False, "event `event`, which nobody has set")


def test_a_package_can_be_declared_part_of_the_application(run, monkeypatch):
    library = installed("corp/agents", "async def fetch(event): await event.wait()")
    monkeypatch.setenv("HOPWATCH_APPLICATION", "other, corp.agents")
    is_application.cache_clear()
    chain.place_of.cache_clear()
    try:
        wait = run(seen(library.fetch(asyncio.Event())))
        assert not is_application("/venv/lib/python3/site-packages/corp/agentsmith.py")
    finally:
        monkeypatch.undo()
        is_application.cache_clear()
        chain.place_of.cache_clear()
    assert (wait.moves, wait.file) == (False, "/venv/lib/python3/site-packages/corp/agents/module.py")


def test_what_the_application_is():
    import dataclasses

    import hypothesis

    assert is_application(HERE)
    assert is_application("<stdin>")
    assert is_application("/venv/lib/python3/site-packages/hopwatch/demo/agents.py")
    assert not is_application(asyncio.__file__)
    assert not is_application(dataclasses.__file__)
    assert not is_application(hypothesis.__file__)
    assert not is_application(waits.__file__)
    assert not is_application("<frozen importlib._bootstrap>")


def test_the_queues_of_the_sdk_are_passive(run):
    culsans = pytest.importorskip(
        "culsans", reason="a2a-sdk uses asyncio's own queues from Python 3.13; ci: may be skipped"
    )

    async def get(queue):
        await queue.get()

    async def put(queue):
        await queue.put(2)

    async def join(queue):
        await queue.join()

    async def main():
        full, empty = culsans.Queue(1).async_q, culsans.Queue(1).async_q
        full.put_nowait(1)
        return [await seen(story) for story in (get(empty), put(full), join(full))]

    assert [(wait.kind, wait.moves, wait.what) for wait in run(main())] == [
        ("queue_get", False, "an item from queue `queue` (0 of 1 inside)"),
        ("queue_put", False, "room in queue `queue` (1 of 1 inside)"),
        ("queue_join", False, "queue `queue` to be worked off (1 of 1 inside)"),
    ]


def test_a_consumer_of_an_event_queue_of_a2a_is_passive(run):
    event_queue = pytest.importorskip("a2a.server.events.event_queue")

    async def consume(queue):
        await queue.dequeue_event()

    async def main():
        return await seen(consume(event_queue.EventQueueLegacy()))

    wait = run(main())
    assert (wait.kind, wait.moves) == ("queue_get", False)
    assert wait.function.endswith("consume")


# --- tasks that are not waiting ------------------------------------------------------------------------------------


def test_a_task_that_runs_or_is_about_to_or_has_ended_moves(run):
    inside = []

    async def looks():
        inside.append(of_task(asyncio.current_task()))

    async def main():
        task = asyncio.create_task(looks())
        ready = of_task(task)
        await task
        return ready, of_task(task)

    ready, ended = run(main())
    assert [wait.kind for wait in (ready, inside[0], ended)] == ["running"] * 3
    assert all(wait.moves for wait in (ready, inside[0], ended))


def test_a_task_whose_future_was_just_set_moves(run):
    async def wants(future):
        await future

    async def main():
        future = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(wants(future))
        await blocked(task)
        future.set_result(None)
        return of_task(task)

    assert run(main()).kind == "running"


@SINCE_312
def test_an_eager_task_is_looked_at_like_any_other():
    inside = []

    async def eager():
        inside.append(of_task(asyncio.current_task()))
        await asyncio.Event().wait()

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        wait = await seen(asyncio.create_task(eager()))
        asyncio.get_running_loop().set_task_factory(None)
        return wait

    assert not play(main()).moves
    assert inside[0].moves


def test_tasks_in_pure_python_are_understood():
    async def main():
        loop = asyncio.get_running_loop()

        async def wants(future):
            await future

        return await seen(
            asyncio.tasks._PyTask(wants(asyncio.futures._PyFuture(loop=loop)), loop=loop, name="pure")
        )

    wait = play(main())
    assert (wait.kind, wait.moves, wait.task) == ("future", False, "pure")


@pytest.mark.parametrize("thing", [None, 1, object(), asyncio.Task, types.SimpleNamespace(_fut_waiter=1)])
def test_what_is_no_task_is_doubt(thing):
    assert of_task(thing).moves
    assert glance(thing).moves


# --- what it must not do -------------------------------------------------------------------------------------------


def test_no_code_of_the_application_is_called(run):
    called = []

    class Touchy:
        def __getattribute__(self, name):
            called.append(name)
            return object.__getattribute__(self, name)

        def __repr__(self):
            called.append("repr")
            return ""

        def __eq__(self, other):
            called.append("eq")
            return True

        __hash__ = object.__hash__

        @property
        def __class__(self):
            called.append("class")
            return asyncio.Lock

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            return None

    class Name(str):
        __slots__ = ()

        def __str__(self):
            called.append("str")
            return self

    class TouchyLock(asyncio.Lock):
        def __repr__(self):
            called.append("repr")
            return ""

        @property
        def _locked(self):
            called.append("locked")
            return True

        @_locked.setter
        def _locked(self, value):
            pass

    class TouchyFuture(asyncio.Future):
        @property
        def _callbacks(self):
            called.append("callbacks")

        def done(self):
            called.append("done")
            return super().done()

    async def uses(thing, lock, future):
        with thing:
            mine = thing
            if lock is not None:
                async with lock:
                    pass
            await future
        return mine

    async def main():
        lock = TouchyLock()
        tasks = [
            asyncio.create_task(uses(Touchy(), None, TouchyFuture()), name=Name("name")),
            asyncio.create_task(uses(Touchy(), lock, TouchyFuture())),
        ]
        await blocked(*tasks)
        called.clear()
        waits = [of_task(task, holder_of=lambda _: None) for task in tasks]
        waits += [glance(task) for task in tasks]
        return waits, called.copy()

    waits, called_by_us = run(main())
    assert called_by_us == []
    assert [(wait.kind, wait.moves) for wait in waits] == [("future", False), ("lock", False)] * 2


def test_the_locals_of_the_application_are_left_alone():
    class Big:
        pass

    async def frugal(event, started):
        big = Big()
        view = locals()
        ref = weakref.ref(big)
        view.pop("big")
        started.append(ref)
        first = asyncio.Event()
        started.append(first)
        await first.wait()
        del big
        assert "big" not in view
        await event.wait()

    async def main():
        started, event = [], asyncio.Event()
        task = asyncio.create_task(frugal(event, started))
        await seen(task)
        started[1].set()
        await blocked(task)
        assert not (await seen(task)).moves
        assert started[0]() is None, "a local that the application deleted is kept alive"
        event.set()
        await task

    play(main())


def test_a_task_is_not_kept_alive_by_what_was_told_of_it(run):
    async def main():
        task = asyncio.create_task(stuck())
        wait = await seen(task)
        task.cancel()
        await asyncio.wait({task})
        return wait, weakref.ref(task)

    wait, ref = run(main())
    collect()
    assert not wait.moves
    assert ref() is None


def test_a_wait_is_told_in_json_without_what_is_unknown():
    wait = Wait(
        "gather",
        moves=False,
        what="1 task (gather)",
        of=(Wait("event", moves=False, what="event"),),
        chain=("a", "b"),
    )
    assert wait.as_dict() == {
        "kind": "gather",
        "moves": False,
        "what": "1 task (gather)",
        "of": [{"kind": "event", "moves": False, "what": "event"}],
        "chain": ["a", "b"],
    }


# --- a glance ------------------------------------------------------------------------------------------------------


def test_a_glance_tells_where_a_destroyed_task_was():
    told = []

    def handler(loop, context):
        told.append(glance(context["task"]))

    async def lost(gate):
        await gate  # here

    async def main():
        asyncio.get_running_loop().set_exception_handler(handler)
        asyncio.create_task(lost(asyncio.get_running_loop().create_future()), name="lost")
        await asyncio.sleep(0)
        collect()

    play(main())
    # The collector closes the coroutine first, so that often no more is left than where it was written.
    assert [(wait.kind, wait.task, wait.file) for wait in told] == [("future", "lost", HERE)]
    assert told[0].function.endswith("lost")
    assert told[0].line in {line_of(lost, "async def"), line_of(lost, "# here")}


@pytest.mark.parametrize(
    ("story", "kind", "moves"),
    [
        (napping, "sleep", True),
        (stuck, "event", False),
        (lambda: hold(asyncio.Lock(), stuck), "event", False),
    ],
)
def test_a_glance_knows_the_kind_of_a_wait(run, story, kind, moves):
    async def main():
        task = asyncio.create_task(story())
        await blocked(task)
        return glance(task)

    wait = run(main())
    assert (wait.kind, wait.moves) == (kind, moves)


# --- random programs -----------------------------------------------------------------------------------------------

LEAVES = ["future", "event", "queue", "condition", "sleep", "thread", "library", "timer"]
WRAPPERS = ["plain", "generator", "wait_for", "patient", "shield", "manager"]


@st.composite
def programs(draw):
    """A list of tasks; each says which locks it takes, what it waits on then, and through what."""
    count = draw(st.integers(1, 6))
    program = []
    for number in range(count):
        sort = draw(st.sampled_from([*LEAVES, "task", "gather", "wait", "lock", "shielded"]))
        others = st.integers(0, number - 1) if number else st.nothing()
        if sort in {"task", "gather", "wait"} and not number:
            sort = "future"
        if sort == "task":
            target = [draw(others)]
        elif sort in {"gather", "wait"}:
            target = draw(st.lists(others, min_size=1, max_size=3, unique=True))
        elif sort in {"lock", "shielded"}:  # of any task: cycles are welcome
            target = [draw(st.integers(0, count - 1))]
        else:
            target = []
        program.append((sort, target, draw(st.sampled_from(WRAPPERS))))
    return program


def movers(program):
    """Say which tasks can move by themselves: the least fixed point."""
    found = set()
    while True:
        more = {
            number
            for number, (sort, targets, wrapper) in enumerate(program)
            if sort in {"sleep", "thread", "library", "timer"}
            or wrapper == "wait_for"
            or any(t in found for t in targets)
        }
        if more == found:
            return found
        found = more


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(programs())
def test_no_task_that_can_move_is_called_passive(program):
    library = installed("randomz", "async def fetch(event): await event.wait()")
    release = threading.Event()

    async def main():
        loop = asyncio.get_running_loop()
        pool = ThreadPoolExecutor(len(program))
        tasks, locks = [], [asyncio.Lock() for _ in program]
        gate = asyncio.Event()
        timers = []

        async def leaf(number, sort, targets):
            if sort == "future":
                await loop.create_future()
            elif sort == "timer":
                future = loop.create_future()
                timers.append(loop.call_later(60, future.set_result, None))
                await future
            elif sort == "event":
                await asyncio.Event().wait()
            elif sort == "queue":
                await asyncio.Queue().get()
            elif sort == "condition":
                condition = asyncio.Condition()
                async with condition:
                    await condition.wait()
            elif sort == "sleep":
                await asyncio.sleep(60)
            elif sort == "thread":
                await loop.run_in_executor(pool, release.wait, 30)
            elif sort == "library":
                await library.fetch(asyncio.Event())
            elif sort == "task":
                await tasks[targets[0]]
            elif sort == "shielded":
                await asyncio.shield(tasks[targets[0]])
            elif sort == "gather":
                await asyncio.gather(*(tasks[target] for target in targets))
            elif sort == "wait":
                await asyncio.wait({tasks[target] for target in targets})
            elif sort == "lock":
                async with locks[targets[0]]:
                    pass

        async def yields(*step):
            await leaf(*step)
            yield None

        @contextlib.asynccontextmanager
        async def managed(*step):
            await leaf(*step)
            yield

        async def body(number, sort, targets, wrapper):
            async with locks[number]:
                await gate.wait()
                step = (number, sort, targets)
                if wrapper == "plain":
                    await leaf(*step)
                elif wrapper == "generator":
                    async for _ in yields(*step):
                        pass
                elif wrapper == "wait_for":
                    await asyncio.wait_for(leaf(*step), 60)
                elif wrapper == "patient":
                    await asyncio.wait_for(leaf(*step), None)
                elif wrapper == "shield":
                    await asyncio.shield(leaf(*step))
                else:
                    async with managed(*step):
                        pass

        holders = {}
        for number, step in enumerate(program):
            tasks.append(asyncio.create_task(body(number, *step), name=str(number)))
            holders[id(locks[number])] = tasks[-1]
        await asyncio.sleep(0)
        gate.set()
        for _ in range(10):
            await asyncio.sleep(0)
        await blocked(*asyncio.all_tasks() - {asyncio.current_task()})
        seen = await asyncio.to_thread(
            lambda: [of_task(task, holder_of=lambda lock: holders.get(id(lock))) for task in tasks]
        )
        release.set()
        pool.shutdown()
        for timer in timers:
            timer.cancel()
        return seen

    expected = movers(program)
    try:
        seen = play(main())
    finally:
        release.set()
    for number, wait in enumerate(seen):
        assert wait.moves == (number in expected), (number, program[number], wait)


# --- many threads --------------------------------------------------------------------------------------------------


def test_a_thread_that_looks_all_the_time_hurts_nothing(switching):
    current: list[weakref.ref] = []
    refs = []
    failures = []
    over = threading.Event()
    looked = [0]

    def watch():
        while not over.is_set():
            for ref in current[:]:
                task = ref()
                if task is None:
                    continue
                try:
                    wait = of_task(task, holder_of=lambda _: None)
                except BaseException as error:  # pragma: no cover
                    failures.append(error)
                    return
                if wait.what == judging.UNREADABLE.what:
                    failures.append(wait)
                looked[0] += 1
                del task

    async def churn():
        lock, queue, event = asyncio.Lock(), asyncio.Queue(2), asyncio.Event()

        async def numbers():
            for number in range(3):
                await asyncio.sleep(0)
                yield number

        async def worker(number):
            async with lock:
                await asyncio.sleep(0)
            async for _ in numbers():
                pass
            await asyncio.gather(asyncio.sleep(0), asyncio.shield(asyncio.sleep(0.0001)))
            await queue.put(number)
            await asyncio.wait_for(queue.get(), 60)
            queue.task_done()

        # Whoever looks may get no turn for a while.
        least, most = time.monotonic() + 0.3, time.monotonic() + 60
        while time.monotonic() < least or (looked[0] <= 100 and not failures and time.monotonic() < most):
            tasks = [asyncio.create_task(worker(number)) for number in range(20)]
            current[:] = [weakref.ref(task) for task in tasks]
            refs.extend(current)
            event.set()
            await asyncio.gather(*tasks)
            del tasks

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        play(churn())
    finally:
        over.set()
        watcher.join()
    collect()
    assert failures == []
    assert looked[0] > 100
    assert [ref for ref in refs if ref() is not None] == []
