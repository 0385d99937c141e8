"""What works in many ways at once, keeps a diary of it, and ends as it was told? One process of a run of the storm.

The diary is what the verdicts are compared with. It knows nothing of hopwatch: each line is appended by one `write`, before work
begins and as the last thing that the work does.

| line | meaning |
|---|---|
| `<role> R <root> <cascade>` | a cascade has begun; the names of its work begin with that of its root |
| `<role> S <work>` | work is about to be started, or, if it begins late, has started |
| `<role> D <work>` | somebody is about to cancel it, on purpose |
| `<role> E <work> ok, failed, cancelled or collected` | its code has come to its end |
| `<role> W <way> [<work>]` | the way out begins, in the last step of some work |
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import queue
import random
import resource
import signal
import sys
import threading
import time
from contextvars import copy_context

import hopwatch
from hopwatch import exits

if "PATIENT" in os.environ:
    exits.NOTHING_PENDING = 60.0
BUDGET = 40
"""How many pieces of work a root makes at most."""
ENDS_WITHIN = 4.0
"""Seconds after which the way out is taken, though the program did not come to its step."""
COMES_TO_ITS_END_WITHIN = 40.0
"""The same where nothing hangs: then all work ends by itself, however long a busy machine takes for it."""


class Program:
    """The work of one process.

    Args:
        run: the plan, as a dict of `storm.plan.Run`.
        role: which of the run's processes this is.
        diary: the path of the diary.
    """

    def __init__(self, run, role, diary):
        self.run = run
        self.role = role
        self.victim = role == run["victim"]
        self.file = os.open(diary, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.steps = 0
        self.left = BUDGET
        self.open = set()
        self.kept = set()
        self.leaving = False
        self.counting = threading.Lock()
        self.loop = None
        self.thread = threading.get_ident()
        self.trigger = None
        self.lock = asyncio.Lock()
        self.send = None
        """What hands work to another agent, in a process that can."""
        self.go = queue.SimpleQueue()
        # Made before any cascade: no work of one.
        threading.Thread(target=self.aside, daemon=True).start()

    # The diary ---------------------------------------------------------------------------------------------

    def write(self, *words):
        os.write(self.file, (" ".join((self.role, *words)) + "\n").encode())

    def step(self, work=None):
        """Count a step, and take the way out where it is due; `work` is what comes to its end by it."""
        if not self.victim:
            return
        with self.counting:
            self.steps += 1
            due = self.steps >= self.run["step"] and not self.leaving
            if due:
                self.leaving = True
        if due:
            self.way_out(work)

    def begin(self, work):
        self.open.add(work)
        self.write("S", work)
        try:
            self.step()
        except BaseException:
            self.over(work, "failed")  # it will not be started
            raise

    def over(self, work, how):
        if work in self.open:
            self.open.discard(work)
            self.write("E", work, how)
            if how != "collected":
                self.step(work)

    # Work --------------------------------------------------------------------------------------------------

    def spawn(self, work, body, *, late=False):
        """Start a task; what begins late says so itself, for who made it is over."""
        if not late:
            self.begin(work)
        coro = self.piece(work, body, late)
        coro.__qualname__ = work
        task = asyncio.get_running_loop().create_task(coro)
        self.kept.add(task)
        task.add_done_callback(self.kept.discard)
        # Where it was cancelled before it had begun.
        task.add_done_callback(lambda done: self.over(work, "cancelled") if done.cancelled() else None)
        return task

    async def piece(self, work, body, late=False):
        if late:
            self.begin(work)
        try:
            await body(work)
        except asyncio.CancelledError:
            self.over(work, "cancelled")
            raise
        except GeneratorExit:
            self.over(work, "collected")
            raise
        except BaseException:
            self.over(work, "failed")
            raise
        self.over(work, "ok")

    async def body(self, work):
        """Do a few things, drawn from the seed by the name of the work."""
        draw = random.Random(f"{self.run['seed']} {work}")
        deep = work.rpartition("w")[2].count(".")  # at a worker it begins anew
        things = ["sleep", "sleep", "timer", "thread", "job", "block", "fail", "cancel", "timeout"]
        if deep < 3:
            things += ["children", "children", "detached", "queue", "lock", "late", "bare_thread"]
        if self.send is not None and deep < 2:
            things += ["send"] * 5
        if self.run["hangs"] and deep > 0:
            things.append("hang")
        for number in range(draw.randint(1, 3) if deep else 4):
            if self.left <= 0:
                return
            thing = draw.choice(things)
            if not deep and not number and self.send is not None:
                thing = "send"
            await getattr(self, f"do_{thing}")(f"{work}.{number}", draw)

    async def do_sleep(self, work, draw):
        await asyncio.sleep(draw.choice((0, 0, draw.uniform(0, 0.02), draw.uniform(0, 0.3))))
        self.step()

    async def do_hang(self, work, draw):
        await asyncio.get_running_loop().create_future()

    async def do_children(self, work, draw):
        self.left -= 2
        await asyncio.gather(*[self.spawn(f"{work}c{n}", self.body) for n in range(draw.randint(1, 2))])

    async def do_detached(self, work, draw):
        self.left -= 1
        self.spawn(f"{work}d", self.body)

    async def do_block(self, work, draw):
        self.left -= 1
        work += "b"
        with hopwatch.cascade(work):
            self.begin(work)
            await self.piece_here(work, draw)

    async def piece_here(self, work, draw):
        """A piece of work in the caller's own task."""
        pause = draw.uniform(0, 0.05)

        async def inside(_):
            await asyncio.sleep(pause)

        await self.piece(work, inside)

    async def do_queue(self, work, draw):
        items, count = asyncio.Queue(draw.choice((0, 1))), draw.randint(1, 4)
        self.left -= 2

        async def consume(_):
            for _ in range(count):
                item = await items.get()
                await asyncio.sleep(draw.uniform(0, 0.01))
                self.over(item, "ok")
                items.task_done()

        consumer = self.spawn(f"{work}q", consume)
        for number in range(count):
            self.begin(f"{work}i{number}")
            await items.put(f"{work}i{number}")
        if draw.random() < 0.5:
            await items.join()
            await consumer

    async def do_lock(self, work, draw):
        self.left -= 2

        async def guarded(_):
            async with self.lock:
                await asyncio.sleep(draw.uniform(0, 0.02))

        await asyncio.gather(*[self.spawn(f"{work}k{n}", guarded) for n in range(2)])

    def in_thread(self, work, seconds):
        def blocking():
            time.sleep(seconds)
            self.over(work, "ok")

        blocking.__qualname__ = work
        self.begin(work)
        return blocking

    async def do_thread(self, work, draw):
        await asyncio.to_thread(self.in_thread(f"{work}t", draw.uniform(0, 0.02)))

    async def do_job(self, work, draw):
        job = asyncio.get_running_loop().run_in_executor(
            None, self.in_thread(f"{work}j", draw.uniform(0, 0.05))
        )
        if draw.random() < 0.5:
            await job

    async def do_bare_thread(self, work, draw):
        threading.Thread(target=self.in_thread(f"{work}h", draw.uniform(0, 0.1))).start()

    async def do_timer(self, work, draw):
        work += "m"
        self.begin(work)

        def fire():
            self.over(work, "ok")

        fire.__qualname__ = work
        asyncio.get_running_loop().call_later(draw.uniform(0, 0.1), fire)

    async def do_fail(self, work, draw):
        async def fails(_):
            await asyncio.sleep(draw.uniform(0, 0.01))
            raise ValueError("planned")

        with contextlib.suppress(ValueError):
            await self.spawn(f"{work}x", fails)

    async def forever(self, _):
        await asyncio.get_running_loop().create_future()

    async def do_cancel(self, work, draw):
        task = self.spawn(f"{work}a", self.forever)
        for _ in range(draw.randint(0, 2)):
            await asyncio.sleep(0)
        self.write("D", f"{work}a")
        task.cancel()
        await asyncio.wait([task])

    async def do_timeout(self, work, draw):
        task = self.spawn(f"{work}o", self.forever)
        self.write("D", f"{work}o")
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(task, draw.uniform(0, 0.02))

    async def do_late(self, work, draw):
        """Have something start when this work may be over: nobody can know of it before it does."""
        self.left -= 1
        asyncio.get_running_loop().call_soon(lambda: self.spawn(f"{work}L", self.body, late=True))

    async def do_send(self, work, draw):
        self.left -= 3
        await self.send(f"{work}s")

    # The way out -------------------------------------------------------------------------------------------

    def way_out(self, work=None):
        """Take it, in whatever thread this is."""
        way = self.run["way"]
        self.leaving = True
        if way == "clean":
            return
        self.write("W", way, *([work] if work else []))
        if way in ("gc", "swallow"):
            self.loop.call_soon_threadsafe(getattr(self, way), context=copy_context())
        elif way in ("fork_exit", "fork_kill"):
            self.fork(way)
        elif way in ("sys_exit", "keyboard"):
            error = SystemExit(3) if way == "sys_exit" else KeyboardInterrupt()
            if threading.get_ident() == self.thread and asyncio.current_task() is not None:
                raise error
            self.loop.call_soon_threadsafe(self.throw, error)
        elif way in ("return", "exception", "loop_close"):
            self.loop.call_soon_threadsafe(self.main_ends)
        elif way == "sigterm_twice" or self.run["jitter"]:
            self.go.put(way)
        else:
            self.now(way)

    def throw(self, error):
        raise error

    def main_ends(self):
        if not self.trigger.done():
            self.trigger.set_result(None)

    def aside(self):
        """Another thread: what it does comes at any moment of the others."""
        way = self.go.get()
        until = time.monotonic() + self.run["jitter"]
        while time.monotonic() < until:
            time.sleep(min(0.01, self.run["jitter"] / 10))
        if way == "sigterm_twice":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(self.run["jitter"])
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.now(way)

    def now(self, way):
        if way == "os_exit":
            os._exit(5)
        elif way == "abort":
            os.abort()
        elif way == "segfault":
            ctypes.string_at(0)
        elif way == "execv":
            os.execv(sys.executable, [sys.executable, "-c", ""])
        else:
            number = {"stop_kill": signal.SIGSTOP, "sigint": signal.SIGINT, "sigkill": signal.SIGKILL}
            os.kill(os.getpid(), number.get(way, signal.SIGTERM))

    def forgotten(self):
        """Where the hop of what is lost may have closed already, it begins late."""
        hop = hopwatch.current()
        root = hop is not None and next(
            (name for name, its in self.roots.items() if its == hop.cascade), None
        )
        return f"{root}.0L" if root else None

    def gc(self):
        work = self.forgotten()
        if work is None:
            return
        coro = self.piece(f"{work}g", self.forever, late=True)
        coro.__qualname__ = f"{work}g"
        self.loop.create_task(coro)
        self.loop.call_later(0.05, gc.collect)

    def swallow(self):
        work = self.forgotten()

        async def stubborn(_):
            with contextlib.suppress(asyncio.CancelledError):
                await self.forever(_)
            await asyncio.sleep(0.01)

        if work is not None:
            self.spawn(f"{work}w", stubborn, late=True)
        self.loop.call_later(0.01, self.main_ends)

    def fork(self, way):
        work = self.forgotten()
        if work is None:
            return
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            return
        try:
            with hopwatch.cascade(f"{work}f"):
                self.write("S", f"{work}f")
                if way == "fork_kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                os._exit(0)
        finally:
            os._exit(9)

    # Mains -------------------------------------------------------------------------------------------------

    roots: dict

    def begin_in(self, loop):
        self.loop = loop
        self.trigger = loop.create_future()
        self.roots = {}

    async def main(self, count):
        """Begin cascades; be over when all of their work is, or the way out is taken."""
        self.begin_in(asyncio.get_running_loop())
        for number in range(count):
            root = f"r{number}"
            with hopwatch.cascade(f"root {root}") as begun:
                self.roots[root] = begun.id
                self.write("R", root, begun.id)
                self.spawn(root, self.body)
        until = time.monotonic() + (ENDS_WITHIN if self.run["hangs"] else COMES_TO_ITS_END_WITHIN)
        calm = 0
        while not self.trigger.done() and time.monotonic() < until and calm < 3:
            # What is late begins a turn later: nothing is over before it has been so for some.
            calm = 0 if self.open else calm + 1
            await asyncio.wait([self.trigger], timeout=0.01)
        if self.open and (not self.victim or self.run["way"] == "clean"):
            self.write("W", "return")
        if self.victim and not self.leaving:
            self.way_out()
        if self.victim and self.run["way"] not in ("clean", "gc", "fork_exit", "fork_kill"):
            await asyncio.wait([self.trigger], timeout=ENDS_WITHIN)
        if self.run["way"] == "gc":
            await asyncio.sleep(0.1)
        if self.victim and self.run["way"] == "exception":
            raise RuntimeError("the way out")


def main():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    run, role, diary = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    if run["loop"] == "uvloop":
        import uvloop

        start, new_event_loop = uvloop.run, uvloop.new_event_loop
    else:
        start, new_event_loop = asyncio.run, asyncio.new_event_loop
    program = Program(run, role, diary)
    if role in ("planner", "worker"):
        from agents import serve

        start(serve(program, *sys.argv[4:]))
        return
    if role == "user":
        from agents import user

        begun = user(program, *sys.argv[4:])
    else:
        begun = program.main(2)
    if run["way"] == "loop_close" and program.victim:
        loop = new_event_loop()
        loop.run_until_complete(begun)
        loop.close()
    else:
        start(begun)


if __name__ == "__main__":
    main()
