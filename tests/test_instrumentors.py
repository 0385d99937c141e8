"""Are the instrumentors found, do they put everything back, and do they load nothing that the application does not?"""

import asyncio
import concurrent.futures.process
import concurrent.futures.thread
import importlib.metadata
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import wrapt

from hopwatch.instrumentation import Patches
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor

ABSENT = object()


def owners():
    out = [
        asyncio.BaseEventLoop,
        asyncio.Queue,
        asyncio.Lock,
        asyncio.Semaphore,
        asyncio.Event,
        asyncio.Condition,
        threading.Thread,
        concurrent.futures.thread.ThreadPoolExecutor,
        concurrent.futures.process.ProcessPoolExecutor,
    ]
    if hasattr(asyncio, "Barrier"):
        out.append(asyncio.Barrier)
    for module, name in (("uvloop", "Loop"), ("culsans", "Queue")):
        try:
            out.append(getattr(__import__(module), name))
        except ImportError:
            continue
    return out


def attributes():
    return {(owner, name): value for owner in owners() for name, value in vars(owner).items()}


def replaced(before):
    after = attributes()
    return {
        key for key in before.keys() | after.keys() if before.get(key, ABSENT) is not after.get(key, ABSENT)
    }


@pytest.fixture
def instrumentor():
    one = AsyncioInstrumentor()
    yield one
    if one.is_instrumented_by_opentelemetry:
        one.uninstrument()


def test_uninstrument_puts_every_attribute_back_as_it_was(instrumentor):
    before = attributes()
    instrumentor.instrument()
    changed = {owner.__name__ for owner, _ in replaced(before)}
    assert changed == {owner.__name__ for owner in owners()}
    instrumentor.uninstrument()
    assert replaced(before) == set()


@pytest.mark.parametrize("detail", ["hops", "all"])
def test_instrumenting_twice_and_uninstrumenting_twice_is_harmless(instrumentor, detail, monkeypatch):
    from hopwatch import process

    monkeypatch.setenv("HOPWATCH_DETAIL", detail)
    monkeypatch.setattr(process, "_process", None)
    before = attributes()
    instrumentor.instrument()
    once = attributes()
    instrumentor.instrument()
    assert attributes() == once
    instrumentor.uninstrument()
    instrumentor.uninstrument()
    assert replaced(before) == set()
    instrumentor.instrument()
    assert {key for key, value in once.items() if before.get(key, ABSENT) is not value} == replaced(before)
    instrumentor.uninstrument()
    assert replaced(before) == set()


def test_what_somebody_else_replaced_after_us_stays_theirs(instrumentor, monkeypatch):
    instrumentor.instrument()
    monkeypatch.setattr(asyncio.Lock, "release", theirs := object())
    instrumentor.uninstrument()
    assert vars(asyncio.Lock)["release"] is theirs


def test_what_is_wrapped_keeps_its_name_and_its_words(instrumentor):
    before = {key: value for key, value in attributes().items() if callable(value)}
    instrumentor.instrument()
    for owner, name in {
        (owner, name) for owner, name in before if vars(owner)[name] is not before[owner, name]
    }:
        new, old = vars(owner)[name], before[owner, name]
        assert (new.__name__, new.__qualname__, new.__doc__) == (old.__name__, old.__qualname__, old.__doc__)


def test_a_library_that_is_imported_after_we_are_gone_is_left_alone():
    patches = Patches()
    seen = []
    patches.when_imported("this_module_is_imported_later", seen.append)
    patches.undo()
    sys.modules["this_module_is_imported_later"] = sys
    try:
        import wrapt

        wrapt.notify_module_loaded(sys)
        import this_module_is_imported_later  # noqa: F401
    finally:
        del sys.modules["this_module_is_imported_later"]
    assert seen == []


def test_a_hook_for_an_import_that_fails_does_not_fail_the_import(monkeypatch):
    from hopwatch import process

    monkeypatch.setattr(process, "failures", {})

    def broken(_):
        raise RuntimeError("ours")

    patches = Patches("hopwatch_a2a")
    patches.complete()
    assert "hopwatch_a2a" in process.in_place
    patches.when_imported("json", broken)
    assert "hopwatch_a2a" not in process.in_place
    patches.complete()
    assert "hopwatch_a2a" not in process.in_place


@pytest.mark.uncounted
def test_a_release_that_lacks_what_is_to_be_wrapped_is_not_taken_for_counted(monkeypatch):
    from hopwatch import process
    from hopwatch.instrumentation import a2a, a2a_seams

    here = next(each for each in a2a_seams.SEAMS if each.is_due(a2a_seams.installed()))
    gone = here._replace(name="this_is_gone")
    monkeypatch.setattr(a2a_seams, "SEAMS", (*a2a_seams.SEAMS, gone))
    instrumentor = a2a.A2AInstrumentor()
    instrumentor.instrument()
    try:
        __import__(gone.module)
        assert a2a.missing == [str(gone)]
        assert "hopwatch_a2a" in process.uncounted().split(",")
    finally:
        instrumentor.uninstrument()
    monkeypatch.undo()
    instrumentor.instrument()
    try:
        assert a2a.missing == []
        assert "hopwatch_a2a" not in process.uncounted()
    finally:
        instrumentor.uninstrument()


def test_an_attribute_that_a_release_does_not_have_is_left_out():
    class Owner:
        def there(self):
            return 1

    patches = Patches()
    assert patches.replace(Owner, "there", lambda original: lambda self: original(self) + 1)
    assert not patches.replace(Owner, "gone", lambda original: original)
    assert Owner().there() == 2
    patches.undo()
    assert Owner().there() == 1


def test_a_method_that_another_instrumentation_has_wrapped_is_called_as_a_method():
    class Owner:
        def there(self):
            return 1

    def theirs(wrapped, instance, args, kwargs):
        return (type(instance), wrapped(*args, **kwargs))

    wrapt.wrap_function_wrapper(Owner, "there", theirs)
    before = vars(Owner)["there"]
    patches = Patches()
    patches.replace(Owner, "there", lambda original: lambda self: [original(self)])
    patches.wrap(Owner, "there", lambda wrapped, _, args, kwargs: wrapped(*args, **kwargs))
    assert Owner().there() == [(Owner, 1)]
    patches.undo()
    assert vars(Owner)["there"] is before


def test_an_inherited_attribute_is_inherited_again():
    class Base:
        def there(self):
            return 1

    class Owner(Base):
        pass

    patches = Patches()
    patches.replace(Owner, "there", lambda original: lambda self: original(self) + 1)
    assert Owner().there() == 2
    assert Base().there() == 1
    patches.undo()
    assert "there" not in vars(Owner)


def test_the_launcher_finds_the_instrumentors_by_their_entry_points():
    found = {each.name: each for each in importlib.metadata.entry_points(group="opentelemetry_instrumentor")}
    assert found["hopwatch_asyncio"].load() is AsyncioInstrumentor
    assert found["hopwatch_a2a"].value == "hopwatch.instrumentation.a2a:A2AInstrumentor"


def in_a_new_process(source, *options):
    done = subprocess.run(
        [sys.executable, *options, "-c", source],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    "module", ["tasks", "queues", "locks", "jobs", "service", "asyncio", "a2a", "asgi", "aiohttp_server"]
)
def test_importing_an_instrumentation_imports_none_of_what_it_instruments(module):
    done = in_a_new_process(f"""
import json, sys
import hopwatch.instrumentation.{module}
found = {{"a2a", "aiohttp", "hypercorn", "starlette", "fastapi", "httpx", "grpc", "uvloop", "culsans", "uvicorn"}} & set(sys.modules)
print(json.dumps(sorted(found)))
""")
    assert json.loads(done.stdout) == []


def test_instrumenting_imports_nothing_either_and_takes_in_what_comes_later():
    done = in_a_new_process("""
import json, sys
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
AsyncioInstrumentor().instrument()
before = sorted({"uvloop", "culsans", "concurrent.futures.process"} & set(sys.modules))
import concurrent.futures.process
print(json.dumps([before, hasattr(concurrent.futures.process.ProcessPoolExecutor.submit, "__wrapped__")]))
""")
    assert json.loads(done.stdout) == [[], True]


def test_a_hook_that_fails_prints_nothing_where_logging_is_not_configured():
    done = in_a_new_process("""
import asyncio
from opentelemetry import trace
import hopwatch
from hopwatch import process
from hopwatch.instrumentation import tasks
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
AsyncioInstrumentor().instrument()

def broken(*_):
    raise RuntimeError("ours")

tasks.time_ns = broken

async def work():
    return 1

async def main():
    with hopwatch.cascade("root"):
        assert await asyncio.create_task(work()) == 1

asyncio.run(main())
assert process.failures == {"create_task": 1}, process.failures
""")
    assert (done.stdout, done.stderr) == ("", "")


def test_a_forked_child_reports_nothing_of_its_parents_tasks():
    done = in_a_new_process(
        """
import asyncio, gc, os, sys
from exported import cascades, exporter, fresh
import hopwatch
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
from hopwatch.instrumentation import queues, tasks
from hopwatch import process
AsyncioInstrumentor().instrument()
fresh()

async def forever():
    await asyncio.get_running_loop().create_future()

loop = asyncio.new_event_loop()
loop.set_exception_handler(lambda *_: None)
with hopwatch.cascade("root"):
    queue = asyncio.Queue()
    queue.put_nowait(1)
    task = loop.create_task(forever())
    loop.run_until_complete(asyncio.sleep(0))
    child = os.fork()
    if child == 0:
        exporter.clear()  # the parent's marker, where the machine took its time
        del task, queue
        gc.collect()
        for look in process.here().each_tick:
            look(0)
        os._exit(1 if cascades() or process.failures else 0)
_, status = os.waitpid(child, 0)
task.cancel()
loop.run_until_complete(asyncio.wait([task]))
loop.close()
sys.exit(os.waitstatus_to_exitcode(status))
""",
        "-W",
        "ignore",
    )
    assert done.stderr == ""
