"""Does a sub-interpreter run as without hopwatch, which says that it keeps out of it, and is the main interpreter's work counted all the same?

Each story is a process of its own, played bare and with hopwatch.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)

LAUNCHER = str(Path(sys.executable).with_name("opentelemetry-instrument"))
WARNING = (
    "hopwatch WARNING hopwatch: this is a sub-interpreter, and hopwatch instruments the main interpreter only. "
    "The program goes on, and what runs here is not accounted for."
)
PROGRAM = """
import asyncio, logging, os, sys
logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
how = os.environ.get("HOW", "bare")
if how == "in code":
    import hopwatch
    hopwatch.instrument()

INSIDE = '''
import sys
sys.path[:] = {path!r}
import logging
if not logging.root.handlers:
    logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
import asyncio, contextlib

cascade = lambda name: contextlib.nullcontext()
if {how!r} != "bare":
    import hopwatch
    cascade = hopwatch.cascade
if {how!r} == "in code":
    hopwatch.instrument()
    hopwatch.instrument()
if {how!r} == "by hand":
    from hopwatch import orphans
    from hopwatch.instrumentation.a2a import A2AInstrumentor
    from hopwatch.instrumentation.acp import ACPInstrumentor
    from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
    for each in (A2AInstrumentor(), ACPInstrumentor(), AsyncioInstrumentor()):
        each.instrument()
        each.uninstrument()
        each.instrument()
    assert orphans.sources == []

async def work(number):
    await asyncio.sleep(0)
    return number

async def main():
    with cascade("inside") as root:
        lock, queue = asyncio.Lock(), asyncio.Queue()
        async with lock:
            queue.put_nowait(await asyncio.create_task(work(1)))
        print(await asyncio.gather(work(2), queue.get()), flush=True)
    if root is not None:
        from hopwatch import process
        assert root.id == "" and hopwatch.current() is None, root.id
        assert hopwatch.pending() == [] and await hopwatch.drain(1) == []
        assert process.failures == {{}}, process.failures

asyncio.run(main())
print(asyncio.BaseEventLoop.create_task.__code__.co_filename.endswith("base_events.py"), flush=True)
'''.format(path=sys.path, how=how)

def in_another():
    if sys.version_info >= (3, 14):
        from concurrent import interpreters
        other = interpreters.create()
        other.exec(INSIDE)
        other.close()
    elif sys.version_info >= (3, 13):
        import _interpreters
        other = _interpreters.create()
        assert _interpreters.exec(other, INSIDE) is None
        _interpreters.destroy(other)
    else:
        import _xxsubinterpreters
        # Of 3.12.1, asyncio crashes in the second interpreter that has a GIL of its own; without hopwatch, too.
        other = _xxsubinterpreters.create(isolated=False)
        _xxsubinterpreters.run_string(other, INSIDE)
        _xxsubinterpreters.destroy(other)

in_another()
in_another()

async def work():
    return "outside"

async def main():
    print(await asyncio.create_task(work()))

if how == "bare":
    asyncio.run(main())
else:
    import hopwatch
    from hopwatch import process
    with hopwatch.cascade("outside") as root:
        asyncio.run(main())
    assert len(root.id) == 32
    in_another()
    assert hopwatch.pending() == [], hopwatch.pending()
    if how != "by hand":
        assert not asyncio.BaseEventLoop.create_task.__code__.co_filename.endswith("base_events.py")
    assert process.failures == {}, process.failures
if how == "bare":
    in_another()
print("over")
"""


def played(tmp_path, how):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("OTEL_") and (key == "HOPWATCH_BLACKBOX" or not key.startswith("HOPWATCH"))
    }
    told = {
        "HOW": how,
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        # The one for gRPC logs an error: gRPC itself cannot be imported there.
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "asyncio,httpx,starlette,fastapi,asgi,grpc_client,grpc_server,grpc_aio_client,grpc_aio_server",
    }
    launcher = [LAUNCHER] if how == "by the launcher" else []
    done = subprocess.run(
        [*launcher, sys.executable, str(program)],
        env={**kept, **told},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """What the program does without us."""
    code, out, err = played(tmp_path_factory.mktemp("bare"), "bare")
    assert (code, err) == (0, ""), err
    assert out.splitlines() == ["[2, 1]", "True", "[2, 1]", "True", "outside", "[2, 1]", "True", "over"]
    return out


@pytest.mark.row("loops and threads", "sub-interpreters: left alone, with a word in the log")
@pytest.mark.parametrize("how", ["in code", "by hand", "by the launcher"])
def test_a_sub_interpreter_runs_as_it_does_without_us_and_the_log_says_that_it_is_left_alone(
    tmp_path, bare, how
):
    with_us = played(tmp_path, how)
    assert with_us[:2] == (0, bare), with_us
    warned = with_us[2].splitlines()
    # Once in each of the three, however often it is asked. The launcher comes before the program has set up its log.
    assert warned.count(WARNING) == (0 if how == "by the launcher" else 3), warned
