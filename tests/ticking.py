"""This process with asyncio instrumented and a ticker that ticks when a test says so."""

import contextlib
import gc
import os
import threading
import time

from exported import cascades, end_process, fresh
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
from hopwatch.telemetry import Telemetry


def collect():
    """Collect all garbage. `gc.collect` does nothing, and does not say so, while another thread is collecting."""
    here, done = threading.get_ident(), []

    def note(phase, info):
        if phase == "stop" and info["generation"] == 2 and threading.get_ident() == here:
            done.append(info)

    gc.callbacks.append(note)
    try:
        until = time.monotonic() + 30
        while not done:
            gc.collect()
            assert time.monotonic() < until, "another thread has been collecting all the time"
    finally:
        gc.callbacks.remove(note)


class Watched:
    """This process, whose ticker ticks only when the test says so."""

    def __init__(self):
        self.process = fresh()
        self.ledger = self.process.ledger

    def tick(self, later=0.0):
        """Look at everything as the ticker does, `later` seconds from now.

        What is invisible is told of after a second, if it is that much later: not if a busy machine has just taken that long.
        """
        now = time.time_ns() + int(later * 1e9)
        kept = self.process.settings
        if later >= 1 and "HOPWATCH_REVEAL_AFTER" not in os.environ:
            self.process.settings = kept._replace(reveal_after=1.0)
        for look in self.process.each_tick:
            look(now)
        self.process.telemetry._reveal(self.process, now)
        self.process.settings = kept

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


@contextlib.contextmanager
def watching(monkeypatch):
    monkeypatch.setattr(Telemetry, "_begin", lambda _: None)  # no threads: a test ticks by hand
    collect()
    watched = Watched()
    AsyncioInstrumentor().instrument()
    try:
        yield watched
    finally:
        AsyncioInstrumentor().uninstrument()
        end_process()
