"""Fixtures that several modules use: a process of its own for each test, with asyncio instrumented."""

import asyncio
import contextlib
import gc
import time

import pytest

import hopwatch
from exported import cascades, fresh
from hopwatch import process
from hopwatch.instrument.asyncio import AsyncioInstrumentor
from hopwatch.telemetry import Telemetry


class Watched:
    """This process, whose ticker ticks only when the test says so."""

    def __init__(self):
        self.process = fresh()
        self.ledger = self.process.ledger

    def tick(self, later=0.0):
        """Look at everything as the ticker does, `later` seconds from now."""
        now = time.time_ns() + int(later * 1e9)
        for look in self.process.each_tick:
            look(now)
        self.process.telemetry._reveal(self.process, now)

    def settled(self):
        """Tick as often as the slowest rule needs, and say whether nothing is open."""
        for _ in range(3):
            self.tick()
        return not self.ledger.open_hops() and len(self.ledger) == 0

    def open(self):
        """The names of the hops that are open."""
        return [entry.name for entry in self.ledger.open_hops()]

    def hops(self):
        """What was exported of each hop, by its name."""
        return {hop.name: hop for hops in cascades().values() for hop in hops.values()}

    def told(self):
        """The outcomes of the hops by their names."""
        return {name: hop.outcome for name, hop in self.hops().items()}


@pytest.fixture
def watched(monkeypatch):
    """A fresh process with asyncio instrumented; no hook of ours may fail in it."""
    with watching(monkeypatch) as found:
        yield found
        assert process.failures == {}


@pytest.fixture
def watching_with(monkeypatch):
    """The same with environment variables, and hooks may fail: `with watching_with(HOPWATCH_DETAIL="all") as watched`."""

    def make(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return watching(monkeypatch)

    return make


@contextlib.contextmanager
def watching(monkeypatch):
    monkeypatch.setattr(Telemetry, "_begin", lambda _: None)  # no threads: a test ticks by hand
    gc.collect()
    watched = Watched()
    AsyncioInstrumentor().instrument()
    try:
        yield watched
    finally:
        AsyncioInstrumentor().uninstrument()
        process._process = None


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine function inside a cascade called `root`, on asyncio's loop and on uvloop's."""
    make = asyncio.new_event_loop
    if request.param == "uvloop":
        make = pytest.importorskip("uvloop").new_event_loop

    def run_in_cascade(main, *, root="root"):
        async def inside():
            if root is None:
                return await main()
            with hopwatch.cascade(root):
                return await main()

        loop = make()
        try:
            return loop.run_until_complete(asyncio.wait_for(inside(), 20))
        finally:
            for task in (left := asyncio.all_tasks(loop)):
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    return run_in_cascade
