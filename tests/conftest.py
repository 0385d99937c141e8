"""Fixtures that several modules use: a process of its own for each test, with asyncio instrumented."""

import asyncio
import atexit
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from importlib import metadata

import pytest

import hopwatch
from hopwatch import process
from ticking import watching

# On a machine that is busy any example may take longer than the 0.2 s that Hypothesis allows, and not the next time: it is "flaky".
with contextlib.suppress(ImportError):  # not in every environment of tests/sdk
    from hypothesis import HealthCheck, settings

    settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("busy")
# The client first: if `a2a.server.routes` is imported before it, 1.3.0 imports in a circle and knows no 0.3 over gRPC from then on.
with contextlib.suppress(ImportError):
    import a2a.client  # noqa: F401
# Whoever starts the tests in the background of a script has them ignore Ctrl-C, and so would every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# No black box or socket of a test is found by anybody else, and none of somebody else's by a test.
os.environ["HOPWATCH_BLACKBOX"] = tempfile.mkdtemp(prefix="hopwatch-tests-")
atexit.register(shutil.rmtree, os.environ["HOPWATCH_BLACKBOX"], ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # also of a test that is skipped then: its row says that it was not run
def pytest_runtest_setup(item):
    """Note in the report for which row of docs/compatibility.md a test stands, with the releases that it ran with."""
    for mark in item.iter_markers("row"):
        what, which, *distributions = mark.args
        releases = ", ".join(f"{name} {release(name)}" for name in distributions)
        item.user_properties.append(("row", f"{what} | {which} | {releases}"))


def release(distribution):
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(not installed)"


@pytest.fixture
def watched(monkeypatch):
    """A fresh process with asyncio instrumented; no hook of ours may fail in it."""
    with watching(monkeypatch) as found:
        yield found
        assert process.failures == {}


@pytest.fixture(autouse=True)
def partly_instrumented(monkeypatch, request):
    """A test instruments what it is about, in a process that has loaded all the libraries of the others; that is not to be told of."""
    if request.node.get_closest_marker("uncounted") is None:
        monkeypatch.setattr(process, "LIBRARIES", {})


@pytest.fixture
def switching():
    """Threads take turns every few instructions, so that a step which another thread may not see half done is seen half done."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def watching_with(monkeypatch):
    """The same with environment variables, and hooks may fail: `with watching_with(HOPWATCH_DETAIL="all") as watched`."""

    def make(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return watching(monkeypatch)

    return make


@pytest.fixture(scope="module")
def a2a_instrumented():
    """asyncio and the A2A SDK are instrumented while the tests of a module run."""
    from hopwatch.instrumentation.a2a import A2AInstrumentor
    from hopwatch.instrumentation.asyncio import AsyncioInstrumentor

    AsyncioInstrumentor().instrument()
    A2AInstrumentor().instrument()
    yield
    A2AInstrumentor().uninstrument()
    AsyncioInstrumentor().uninstrument()


@pytest.fixture
def empty():
    """A fresh process of its own for a test, nothing exported yet; no hook of ours may fail in it."""
    from exported import fresh

    fresh()
    yield
    assert process.failures == {}


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
            return loop.run_until_complete(asyncio.wait_for(inside(), 60))
        finally:
            for task in (left := asyncio.all_tasks(loop)):
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            # Who awaits a job may be told of its end before its thread has told us.
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    return run_in_cascade
