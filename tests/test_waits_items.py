"""Does each thing that a task may wait for tell what it is, who is at the other end, and until when? As `pending` tells it."""

from __future__ import annotations

import asyncio
import gc
import inspect
import re
import socket
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest

import hopwatch
from hopwatch import hop_waits, waits

HERE = __file__
SINCE_311 = pytest.mark.skipif(sys.version_info < (3, 11), reason="new in Python 3.11; ci: may be skipped")


class Shop:
    """What a story is told with: tasks that have come to rest, and what has to be put away after it."""

    def __init__(self):
        self.after = []
        self.doors = threading.Event()

    async def at_rest(self, coroutine, name):
        """Start a task, and return once it and those that it made wait for something that does not come at once."""
        task = asyncio.create_task(coroutine, name=name)
        for _ in range(2000):
            await asyncio.sleep(0)
            others = asyncio.all_tasks() - {asyncio.current_task()}
            if all(each._fut_waiter is not None and not each._fut_waiter.done() for each in others):
                return task
        raise AssertionError("the tasks did not come to rest")

    def wait_in_a_thread(self, begun=None):
        if begun is not None:
            begun.set()
        self.doors.wait(100)  # in the thread

    def stands_at(self, line):
        """Whether some thread is at this line of `wait_in_a_thread`, or in what that calls."""
        frames = list(sys._current_frames().values())
        while frames:
            frame = frames.pop()
            if frame.f_code is Shop.wait_in_a_thread.__code__ and frame.f_lineno == line:
                return True
            if frame.f_back is not None:
                frames.append(frame.f_back)
        return False


def line_of(function, text="# here"):
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if text in line)


def clock(until):
    return time.strftime("%H:%M:%SZ", time.gmtime(until))


async def stays(seconds=60):
    await asyncio.sleep(seconds)


# Each story gets a shop, and returns what is awaited, the sentence (or what makes it of what was told), and the rest ----


async def a_future(shop):
    async def asks(answer):
        await answer  # here

    return asks(asyncio.get_running_loop().create_future()), "a future `answer` that nobody has set", {
        "kind": "future", "moves": False,
    }  # fmt: skip


async def a_sleep(shop):
    async def asks():
        await asyncio.sleep(45)  # here

    def says(told):
        assert told["until"] == pytest.approx(time.time() + 45, abs=30)
        assert told["left"] == pytest.approx(told["until"] - time.time(), abs=30)
        return f"asyncio.sleep(45) until {clock(told['until'])}"

    return asks(), says, {"kind": "sleep", "moves": True, "seconds": 45.0}


async def a_lock(shop):
    stock = asyncio.Lock()

    async def holds():
        async with stock:
            await stays()

    async def asks():
        async with stock:  # here
            pass

    await shop.at_rest(holds(), "clerk")
    return asks(), "lock `stock` held by task 'clerk'", {
        "kind": "lock", "moves": True, "holder": "clerk", "holders": ["clerk"],
    }  # fmt: skip


async def a_lock_that_was_taken_outside_of_any_cascade(shop):
    stock = asyncio.Lock()

    async def holds():
        async with stock:
            await stays()

    async def asks():
        async with stock:  # here
            pass

    with hopwatch.service():
        await shop.at_rest(holds(), "keeper")
    return asks(), "lock `stock` held by task 'keeper'", {
        "kind": "lock", "moves": True, "holder": "keeper", "holders": ["keeper"],
    }  # fmt: skip


async def a_lock_that_was_taken_by_hand_outside_of_any_cascade(shop):
    stock = asyncio.Lock()

    async def asks():
        async with stock:  # here
            pass

    with hopwatch.service():
        await asyncio.create_task(stock.acquire())
    return asks(), "lock `stock`", {"kind": "lock", "moves": False}


async def a_semaphore(shop):
    seats = asyncio.Semaphore(2)

    async def sits():
        async with seats:
            await stays()

    async def asks():
        async with seats:  # here
            pass

    await shop.at_rest(sits(), "first")
    await shop.at_rest(sits(), "second")
    return asks(), "semaphore `seats` held by tasks 'first' and 'second'", {
        "kind": "semaphore", "moves": True, "holder": "first", "holders": ["first", "second"],
    }  # fmt: skip


async def works(queue, at_once):
    for _ in range(at_once):
        await queue.get()
        queue.task_done()
    await queue.get()
    await stays()
    queue.task_done()


async def a_queue_that_is_empty(shop):
    orders = asyncio.Queue()

    async def asks():
        await orders.get()  # here

    orders.put_nowait("tea")
    await shop.at_rest(works(orders, 0), "postman")
    return asks(), "an item from queue `orders` (0 inside, 1 taken without task_done by 'postman')", {
        "kind": "queue_get", "moves": False,
        "queue": {"queue": hex(id(orders)), "depth": 0, "maxsize": 0, "unfinished": 1, "taken_by": ["postman"]},
    }  # fmt: skip


async def a_queue_that_is_full(shop):
    orders = asyncio.Queue(2)

    async def asks():
        await orders.put("milk")  # here

    orders.put_nowait("tea")
    await shop.at_rest(works(orders, 0), "postman")
    orders.put_nowait("cake")
    orders.put_nowait("jam")
    return asks(), "room in queue `orders` (2 of 2 inside, 1 taken without task_done by 'postman')", {
        "kind": "queue_put", "moves": False,
        "queue": {"queue": hex(id(orders)), "depth": 2, "maxsize": 2, "unfinished": 3, "taken_by": ["postman"]},
    }  # fmt: skip


async def a_queue_that_has_to_be_worked_off(shop):
    orders = asyncio.Queue()

    async def asks():
        await orders.join()  # here

    for order in ("tea", "cake", "jam", "milk"):
        orders.put_nowait(order)
    # The third is taken by the short path, which notes no task: that it is the postman, his frames tell.
    await shop.at_rest(works(orders, 2), "postman")
    return asks(), "queue `orders` to be worked off (1 inside, 1 taken without task_done by 'postman')", {
        "kind": "queue_join", "moves": False,
        "queue": {"queue": hex(id(orders)), "depth": 1, "maxsize": 0, "unfinished": 2, "taken_by": ["postman"]},
    }  # fmt: skip


async def an_event(shop):
    class Door:
        opened = asyncio.Event()

    door = Door()

    async def asks():
        await door.opened.wait()  # here

    return asks(), "event `door.opened`, which nobody has set", {"kind": "event", "moves": False}


async def a_gather(shop):
    async def asks():
        await asyncio.gather(  # here
            asyncio.create_task(stays(), name="left"), asyncio.create_task(stays(), name="right")
        )

    def says(told):
        assert [(each["task"], each["kind"]) for each in told["of"]] == [
            ("left", "sleep"),
            ("right", "sleep"),
        ]
        return "2 tasks (gather): 'left' and 'right'"

    return asks(), says, {"kind": "gather", "moves": True}


async def a_task_group(shop):
    async def asks():
        async with asyncio.TaskGroup() as group:  # here
            for number in range(11, 5, -1):
                group.create_task(stays(), name=f"guest-{number}")

    def says(told):
        assert [each["task"] for each in told["of"]] == [f"guest-{number}" for number in range(6, 12)]
        return "6 tasks (task group): 'guest-6', 'guest-7', 'guest-8', 'guest-9' and 2 more"

    return asks(), says, {"kind": "task_group", "moves": True}


async def silent_server(shop):
    async def silent(_, writer):
        shop.after.append(writer.close)

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    shop.after.append(server.close)
    return server.sockets[0].getsockname()[1]


async def a_stream_that_is_read(shop):
    port = await silent_server(shop)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    shop.after.append(writer.close)

    async def asks():
        await reader.read(1)  # here

    return asks(), f"data from 127.0.0.1:{port}", {
        "kind": "socket", "moves": True, "peer": f"127.0.0.1:{port}",
    }  # fmt: skip


async def a_stream_that_is_written(shop):
    port = await silent_server(shop)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    shop.after.append(writer.transport.abort)
    writer.write(b"x" * 30_000_000)  # more than the kernel and the other side's buffer take

    async def asks():
        await writer.drain()  # here

    return asks(), f"127.0.0.1:{port} to take data", {
        "kind": "socket", "moves": True, "peer": f"127.0.0.1:{port}",
    }  # fmt: skip


async def a_plain_socket(shop):
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    plain = socket.create_connection(("127.0.0.1", port))
    plain.setblocking(False)
    shop.after += [plain.close, listening.close]

    async def asks():
        await asyncio.get_running_loop().sock_recv(plain, 1)  # here

    return asks(), f"data from 127.0.0.1:{port}", {
        "kind": "socket", "moves": True, "peer": f"127.0.0.1:{port}",
    }  # fmt: skip


async def a_connection_that_is_not_there_yet(shop):
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(0)
    where = listening.getsockname()
    shop.after.append(listening.close)
    for _ in range(4):  # nobody accepts: these fill its backlog
        other = socket.socket()
        other.setblocking(False)
        other.connect_ex(where)
        shop.after.append(other.close)

    async def asks():
        await asyncio.open_connection(*where)  # here

    if not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):  # uvloop does not show the address
        return asks(), "a connection", {"kind": "socket", "moves": True}
    peer = f"127.0.0.1:{where[1]}"
    return asks(), f"a connection to {peer}", {"kind": "socket", "moves": True, "peer": peer}


async def a_socket_that_is_listened_on(shop):
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    shop.after.append(listening.close)

    async def asks():
        await asyncio.get_running_loop().sock_accept(listening)  # here

    return asks(), f"somebody to connect to 127.0.0.1:{listening.getsockname()[1]}", {"kind": "socket"}


async def a_process(shop):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE
    )

    async def ends():
        process.stdin.close()
        await process.wait()

    shop.after.append(ends)

    async def asks():
        await process.wait()  # here

    return asks(), f"process {process.pid}", {"kind": "socket", "moves": True}


async def a_job_in_an_executor(shop):
    pool = ThreadPoolExecutor(1, thread_name_prefix="kitchen")
    begun = threading.Event()
    shop.after += [shop.doors.set, pool.shutdown]

    async def asks():
        await asyncio.get_running_loop().run_in_executor(pool, shop.wait_in_a_thread, begun)  # here

    task = await shop.at_rest(asks(), "asks")
    while not begun.is_set():
        await asyncio.sleep(0)
    line = line_of(Shop, "# in the thread")
    while not shop.stands_at(line):  # which it says a line before
        await asyncio.sleep(0)
    at = f"{HERE}:{line} {'Shop.' * (sys.version_info >= (3, 11))}wait_in_a_thread"
    return task, f"a job in thread 'kitchen_0', which is at {at}", {
        "kind": "thread", "moves": True, "job": {"state": "running", "thread": "kitchen_0", "at": at},
    }  # fmt: skip


async def a_job_that_no_thread_is_free_for(shop):
    pool = ThreadPoolExecutor(1, thread_name_prefix="kitchen")
    shop.after += [shop.doors.set, pool.shutdown]
    pool.submit(shop.wait_in_a_thread)

    async def asks():
        await asyncio.get_running_loop().run_in_executor(pool, shop.wait_in_a_thread)  # here

    return asks(), "a job that no thread has begun", {
        "kind": "thread", "moves": True, "job": {"state": "waiting"},
    }  # fmt: skip


async def a_job_of_anyio(shop):
    begun = threading.Event()
    shop.after.append(shop.doors.set)

    async def asks():
        await anyio.to_thread.run_sync(shop.wait_in_a_thread, begun)  # here

    task = await shop.at_rest(asks(), "asks")
    while not begun.is_set():
        await asyncio.sleep(0)

    def says(told):
        job = told["job"]
        assert re.fullmatch(rf"{re.escape(HERE)}:\d+ \S*wait_in_a_thread", job["at"])
        return f"a job in thread '{job['thread']}', which is at {job['at']}"

    return task, says, {"kind": "thread", "moves": True}


async def a_coroutine_of_another_loop(shop):
    other = asyncio.new_event_loop()
    begun = []

    def lives():
        other.run_forever()
        for task in (left := asyncio.all_tasks(other)):
            task.cancel()
        if left:
            other.run_until_complete(asyncio.wait(left))
        other.close()

    async def there():
        asyncio.current_task().set_name("abroad")
        begun.append(asyncio.current_task())
        await asyncio.sleep(600)

    thread = threading.Thread(target=lives, daemon=True)
    thread.start()

    def stop():
        other.call_soon_threadsafe(other.stop)
        thread.join(60)

    shop.after.append(stop)

    async def asks():
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), other))  # here

    task = await shop.at_rest(asks(), "asks")
    while not begun or begun[0]._fut_waiter is None:
        await asyncio.sleep(0)

    def says(told):
        assert [(each["task"], each["kind"]) for each in told["of"]] == [("abroad", "sleep")]
        return "task 'abroad' of another thread's loop"

    return task, says, {"kind": "thread", "moves": True}


STORIES = [
    a_future,
    a_sleep,
    a_lock,
    a_lock_that_was_taken_outside_of_any_cascade,
    a_lock_that_was_taken_by_hand_outside_of_any_cascade,
    a_semaphore,
    a_queue_that_is_empty,
    a_queue_that_is_full,
    a_queue_that_has_to_be_worked_off,
    an_event,
    a_gather,
    pytest.param(a_task_group, marks=SINCE_311),
    a_stream_that_is_read,
    a_stream_that_is_written,
    a_plain_socket,
    a_connection_that_is_not_there_yet,
    a_socket_that_is_listened_on,
    a_process,
    a_job_in_an_executor,
    a_job_that_no_thread_is_free_for,
    a_job_of_anyio,
    a_coroutine_of_another_loop,
]


def asked():
    """What is said of the task that asks, from a thread, by the call that anybody may make."""
    found = [each.waits_on for each in hopwatch.pending() if (each.waits_on or {}).get("task") == "asks"]
    # With a lock or an event the wait has an entry of its own, and tells the same.
    return next(told for told in found if told["task"] == "asks")


@pytest.mark.parametrize("story", STORIES)
def test_what_a_task_waits_for_is_told_with_the_line_and_who_is_at_the_other_end(watched, run, story):
    async def main():
        shop = Shop()
        try:
            awaited, says, has = await story(shop)
            task = awaited if isinstance(awaited, asyncio.Task) else await shop.at_rest(awaited, "asks")
            with hopwatch.service():  # who looks is no work
                told = await asyncio.to_thread(asked)
            assert told["what"] == (says if isinstance(says, str) else says(told))
            assert {key: told[key] for key in has} == has
            assert (told["file"], told["line"]) == (HERE, line_of(story))
            assert told["chain"][0].endswith("asks")
            task.cancel()
            await asyncio.wait([task])
        finally:
            for undo in shop.after:
                undone = undo()
                if inspect.isawaitable(undone):
                    await undone
            await asyncio.sleep(0)

    run(main)


def test_a_wait_that_has_not_changed_reads_the_same_at_the_next_look(watched, run):
    async def main():
        await Shop().at_rest(stays(), "asks")
        (hop,) = watched.ledger.open_hops()
        looks = [hop_waits.what_it_waits_on(hop) for _ in range(100)]
        # Else each heartbeat would send a marker for each hop that sleeps. A clock that is set is a change, and so is a look
        # that stood still between the two clocks.
        assert max(looks.count(each) for each in looks) >= 96

    run(main)


def test_what_lasts_is_told_apart_from_what_is_sent_for_it_changes_all_the_time():
    told = {
        "kind": "gather", "moves": True, "what": "2 tasks",
        "of": [
            {"kind": "sleep", "moves": True, "what": "asyncio.sleep(60)", "until": 1060.0},
            {"kind": "socket", "moves": True, "what": "data", "send": {"method": "SendMessage", "since": 990.0}},
        ],
    }  # fmt: skip
    timed = waits.with_times(told, now=1000.0)
    assert timed["of"][0] == {**told["of"][0], "left": 60.0}
    assert timed["of"][1]["send"] == {"method": "SendMessage", "since": 990.0, "age": 10.0}
    assert "left" not in told["of"][0]
    assert waits.with_times({"until": 1.0}, now=1000.0) == {"until": 1.0, "left": 0.0}


def test_a_look_at_a_job_leaves_nothing_in_the_frame_that_runs_it():
    """The frame of the pool is the only one of which locals are read. What is left in it would outlive a job that fails."""

    class Order:
        pass

    order = Order()
    alive = weakref.ref(order)
    begun, gate = threading.Event(), threading.Event()

    def serve(_):
        begun.set()
        gate.wait(60)
        raise ValueError  # it has a traceback, which has the frame

    gc.collect()
    gc.disable()
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="kitchen") as pool:
            future = pool.submit(serve, order)
            assert begun.wait(60)
            job = waits.Timers().threads.job(future)
            assert (job.state, job.thread) == ("running", "kitchen_0")
            gate.set()
            error = future.exception(60)
            assert error.__traceback__ is not None
            del future, order, error
        assert alive() is None
    finally:
        gc.enable()


def test_a_job_that_looks_at_itself_is_found_in_its_own_thread():
    def look(given):
        return waits.Timers().threads.job(given.result(60))

    with ThreadPoolExecutor(1, thread_name_prefix="kitchen") as pool, ThreadPoolExecutor(1) as other:
        gate = threading.Event()
        given = other.submit(lambda: gate.wait(60) and future)
        future = pool.submit(look, given)
        gate.set()
        assert future.result(60).thread == "kitchen_0"
