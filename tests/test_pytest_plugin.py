"""Does a test fail that leaves asyncio tasks behind, and no other, and can it wait for the end of a cascade?

Every test here runs pytest in a process of its own, on a test file that it writes.
"""

import os
import subprocess
import sys
from importlib import metadata

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.timeout(600)  # each starts a Python or several, and some a collector and agents

PLUGIN = "hopwatch.pytest_plugin"
INSTALLED = any(point.value == PLUGIN for point in metadata.entry_points(group="pytest11"))
BEGINNING = """
import asyncio
import gc
import threading

import pytest

import hopwatch

async def forever():
    await asyncio.get_running_loop().create_future()
"""


@pytest.fixture
def suite(pytester, monkeypatch):
    """Write a test file, run it, and give what became of it."""
    for name in list(os.environ):
        if name != "HOPWATCH_BLACKBOX" and name.startswith(("OTEL_", "HOPWATCH_", "PYTEST_ADDOPTS")):
            monkeypatch.delenv(name)

    def run(text, *options, ini="", asyncio=True, plugin=True, **outcomes):
        settings = "asyncio_default_fixture_loop_scope = function\n" if asyncio else ""
        pytester.makeini(f"[pytest]\nfilterwarnings = error\n{settings}{ini}")
        pytester.makepyfile(test_it=BEGINNING + text)
        options = (*options, "-p", "no:anyio" if asyncio else "no:asyncio")
        if plugin and not INSTALLED:  # of a folder of sources on the path there is no entry point
            options = ("-p", PLUGIN, *options)
        run.here = [
            number
            for number, line in enumerate((BEGINNING + text).strip().splitlines(), 1)
            if line.endswith("# here")
        ]
        result = pytester.runpytest_subprocess("-ra", *options, timeout=280)
        result.assert_outcomes(**outcomes)
        return result.stdout

    return run


# What is left in a sync test ---------------------------------------------------------------------------------------


def test_a_test_that_awaits_all_that_it_starts_passes(suite):
    suite(
        """
def test_plain():
    pass

def test_clean():
    async def main():
        await asyncio.gather(*(asyncio.create_task(asyncio.sleep(0)) for _ in range(3000)))
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    asyncio.run(main())
""",
        passed=2,
    )


def test_a_test_fails_whose_runner_had_to_cancel_a_task_and_is_told_where_that_was_made(suite):
    told = suite(
        """
def test_left():
    async def main():
        task = asyncio.create_task(forever(), name="writer")  # here
        await asyncio.sleep(0)
    asyncio.run(main())
""",
        failed=1,
    )
    told.fnmatch_lines(
        [
            "*_ test_left _*",
            f"left pending: forever (task 'writer'), made at *.py:{suite.here[0]} in *main",
            "",
            "  forever (task 'writer')",
            f"    made at test_*.py:{suite.here[0]} in *main",
            "    waited on a future that nobody has set, at test_*.py:10 in forever",
            "    it was cancelled by the event loop's runner when that was closed",
            "FAILED test_*::test_left - Failed: left pending: forever*",
        ]
    )


def test_a_task_that_was_left_stays_told_though_a_later_one_has_its_place_in_memory(suite):
    told = suite(
        """
def test_left():
    async def main():
        tasks = [asyncio.create_task(forever()) for _ in range(50)]
        await asyncio.sleep(0)
    asyncio.run(main())
    async def other():
        await asyncio.gather(*(asyncio.create_task(asyncio.sleep(0)) for _ in range(500)))
    asyncio.run(other())
""",
        failed=1,
    )
    told.fnmatch_lines(["left pending: forever and 49 more, made at *"])


def test_a_test_fails_that_loses_a_task_to_garbage_collection(suite):
    told = suite(
        """
def test_lost():
    async def lost(future):
        await future
    async def main():
        asyncio.create_task(lost(asyncio.get_running_loop().create_future()))  # here
        await asyncio.sleep(0)
        gc.collect()
    asyncio.run(main())
""",
        failed=1,
    )
    told.fnmatch_lines(
        [f"    made at test_*.py:{suite.here[0]} in *main", "    it was destroyed while pending*"]
    )


def test_a_test_fails_that_closes_a_loop_under_a_pending_task_or_leaves_the_loop_alone(suite):
    told = suite(
        """
def test_closed():
    loop = asyncio.new_event_loop()
    task = loop.create_task(forever())  # here
    task._log_destroy_pending = False
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

kept = []

def test_kept():
    loop = asyncio.new_event_loop()
    kept.append(loop)
    kept.append(loop.create_task(forever()))  # here
    kept[1]._log_destroy_pending = False
    loop.run_until_complete(asyncio.sleep(0))

def test_other():
    kept[0].close()
""",
        failed=1,
        passed=2,
        errors=1,
    )
    told.fnmatch_lines(
        [
            "*ERROR at teardown of test_kept*",
            f"    made at test_*.py:{suite.here[1]} in test_kept",
            "    it was still pending when the test and its fixtures were over",
            "*_ test_closed _*",
            f"    made at test_*.py:{suite.here[0]} in test_closed",
            "    its event loop was closed while it was pending",
        ]
    )


def test_tasks_that_are_collected_in_any_number_at_any_moment_are_all_told(suite):
    told = suite(
        """
def test_lost():
    async def main():
        for _ in range(50):
            asyncio.create_task(forever())
        await asyncio.sleep(0)
    asyncio.run(main())
""",
        failed=1,
    )
    told.fnmatch_lines(["left pending: forever and 49 more, made at *"])
    told.no_fnmatch_line("*hook leftovers*")


def test_a_thread_with_a_loop_of_its_own_is_watched_too(suite):
    told = suite(
        """
def test_in_a_thread():
    async def main():
        task = asyncio.create_task(forever())  # here
        await asyncio.sleep(0)
    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    thread.join()
""",
        failed=1,
    )
    told.fnmatch_lines([f"    made at test_*.py:{suite.here[0]} in *main"])


def test_a_test_that_fails_by_itself_keeps_its_failure_and_gets_a_section(suite):
    told = suite(
        """
def test_wrong():
    async def main():
        task = asyncio.create_task(forever())  # here
        await asyncio.sleep(0)
    asyncio.run(main())
    assert 1 == 2
""",
        failed=1,
    )
    told.fnmatch_lines(
        [
            "E*assert 1 == 2",
            "*- hopwatch: asyncio tasks left pending -*",
            f"    made at test_*.py:{suite.here[0]} in *main",
            "FAILED *::test_wrong - assert 1 == 2",
        ]
    )


def test_what_is_cancelled_but_not_awaited_or_declared_a_service_loop_is_not_left(suite):
    suite(
        """
def test_cancelled():
    async def main():
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        task.cancel()
    asyncio.run(main())

@hopwatch.service
async def dispatch():
    await asyncio.sleep(60)

def test_service_loop():
    async def main():
        task = asyncio.create_task(dispatch())
        with hopwatch.service():
            other = asyncio.create_task(forever())
        await asyncio.sleep(0)
    asyncio.run(main())

def test_an_async_generator_that_nobody_closes():
    async def numbers():
        yield 1
        yield 2
    async def main():
        async for each in numbers():
            break
        gc.collect()
    asyncio.run(main())
""",
        passed=3,
    )


def test_a_task_that_goes_on_after_it_was_asked_to_cancel_is_left(suite):
    told = suite(
        """
def test_stubborn():
    async def stubborn():
        try:
            await forever()
        except asyncio.CancelledError:
            await forever()
    async def main():
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
    asyncio.run(main())
""",
        failed=1,
    )
    told.fnmatch_lines(["left pending: *stubborn, made at*"])


def test_uvloop_is_watched_though_it_is_imported_only_in_the_test(suite):
    pytest.importorskip("uvloop")
    told = suite(
        """
def test_left():
    import uvloop
    async def main():
        task = asyncio.create_task(forever())  # here
        await asyncio.sleep(0)
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(main())
        asyncio.runners._cancel_all_tasks(loop)
    finally:
        loop.close()
""",
        failed=1,
    )
    told.fnmatch_lines([f"    made at test_*.py:{suite.here[0]} in *main"])


def test_an_expected_failure_and_a_skipped_test_are_what_they_were(suite):
    suite(
        """
@pytest.mark.xfail(strict=True)
def test_wrong():
    async def main():
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
    asyncio.run(main())
    assert False

@pytest.mark.leaves_pending("why")
def test_skipped():
    pytest.skip("not today")
""",
        xfailed=1,
        skipped=1,
    )


# Switching it off, expecting it ------------------------------------------------------------------------------------

LEFT = """
def test_left():
    async def main():
        task = asyncio.create_task(forever())  # here
        await asyncio.sleep(0)
    asyncio.run(main())
"""


def test_it_is_switched_off_by_an_option_or_by_the_ini_file_and_the_option_prevails(suite):
    suite(LEFT, "--hopwatch=off", passed=1)
    suite(LEFT, ini="hopwatch = off\n", passed=1)
    suite(LEFT, "--hopwatch=on", ini="hopwatch = off\n", failed=1)
    suite(LEFT, "-p", f"no:{'hopwatch' if INSTALLED else PLUGIN}", passed=1, plugin=False)


def test_a_setting_that_is_none_is_said(suite, pytester):
    pytester.makeini("[pytest]\nhopwatch = maybe\n")
    options = () if INSTALLED else ("-p", PLUGIN)
    result = pytester.runpytest_subprocess(*options, "-p", "no:asyncio")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*the ini option hopwatch is 'maybe'; it is on or off*"])


def test_a_mark_expects_it_and_fails_where_nothing_is_left_or_no_reason_is_given(suite):
    told = suite(
        """
@pytest.mark.leaves_pending("the server is stopped by the next test")
def test_expected():
    async def main():
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
    asyncio.run(main())

@pytest.mark.leaves_pending(reason="it was so once")
def test_no_longer():
    pass

@pytest.mark.leaves_pending
def test_no_reason():
    pass

@pytest.mark.leaves_pending("  ")
def test_empty_reason():
    pass

@pytest.mark.leaves_pending("why")
def test_fails_by_itself():
    assert False
""",
        "--strict-markers",
        passed=2,
        failed=1,
        errors=3,
    )
    told.fnmatch_lines(
        [
            "*ERROR at teardown of test_no_longer*",
            "this test left no asyncio task pending, though it is marked leaves_pending('it was so once')*",
            "*ERROR at setup of test_no_reason*",
            "leaves_pending needs a reason*",
            "*ERROR at setup of test_empty_reason*",
        ]
    )


# pytest-asyncio and anyio ----------------------------------------------------------------------------------------


def test_an_async_test_of_pytest_asyncio_is_told_of_what_its_loop_s_runner_had_to_cancel(suite):
    pytest.importorskip("pytest_asyncio")
    told = suite(
        """
@pytest.mark.asyncio
async def test_clean():
    await asyncio.create_task(asyncio.sleep(0))

@pytest.mark.asyncio
@pytest.mark.parametrize("leave", [False, True])
async def test_left(leave):
    task = asyncio.create_task(forever())  # here
    await asyncio.sleep(0)
    if not leave:
        task.cancel()

@pytest.mark.asyncio
async def test_wrong():
    task = asyncio.create_task(forever())  # here
    await asyncio.sleep(0)
    assert 1 == 2

@pytest.mark.asyncio
@pytest.mark.leaves_pending("on purpose")
async def test_expected():
    task = asyncio.create_task(forever())
    await asyncio.sleep(0)
""",
        passed=4,
        failed=1,
        errors=1,
    )
    told.fnmatch_lines(
        [
            "*ERROR at teardown of test_left?True?*",
            f"    made at test_*.py:{suite.here[0]} in test_left",
            "    it was cancelled by the event loop's runner when that was closed",
            "E*assert 1 == 2",
            "*- hopwatch: asyncio tasks left pending at teardown -*",
            f"    made at test_*.py:{suite.here[1]} in test_wrong",
        ]
    )


def test_the_tasks_of_fixtures_are_theirs_until_they_are_torn_down(suite):
    pytest.importorskip("pytest_asyncio")
    told = suite(
        """
import pytest_asyncio

@pytest_asyncio.fixture
async def tidy():
    task = asyncio.create_task(forever())
    yield task
    task.cancel()
    await asyncio.wait([task])

@pytest_asyncio.fixture
async def untidy():
    yield asyncio.create_task(forever())  # here

@pytest_asyncio.fixture
async def client():
    tasks = []
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

@pytest.mark.asyncio
async def test_tidy(tidy):
    assert not tidy.done()

@pytest.mark.asyncio
async def test_that_hands_its_task_to_a_fixture(client):
    client.append(asyncio.create_task(forever()))

@pytest.mark.asyncio
async def test_untidy(untidy):
    await asyncio.sleep(0)
""",
        passed=3,
        errors=1,
    )
    told.fnmatch_lines(
        ["*ERROR at teardown of test_untidy*", f"    made at test_*.py:{suite.here[0]} in untidy"]
    )


def test_a_loop_of_a_module_is_watched_and_the_tasks_of_its_wider_fixtures_are_nobody_s(suite):
    pytest.importorskip("pytest_asyncio")
    told = suite(
        """
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="module")

class Server:
    def __init__(self):
        self.wanted = asyncio.Queue()
        self.workers = []

    async def serve(self):
        while True:
            await self.wanted.get()
            self.workers.append(asyncio.create_task(forever()))
            asyncio.get_running_loop().call_soon(lambda: self.workers.append(asyncio.create_task(forever())))

@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server():
    it = Server()
    task = asyncio.create_task(it.serve())
    yield it
    for each in [task, *it.workers]:
        each.cancel()

async def test_first(server):
    server.wanted.put_nowait(1)
    while len(server.workers) < 2:
        await asyncio.sleep(0.01)

async def test_left(server):
    global kept
    kept = asyncio.create_task(forever())  # here
    await asyncio.sleep(0)

async def test_after_it(server):
    await asyncio.sleep(0)
    assert not kept.done()

async def test_last(server):
    task = asyncio.create_task(forever())
    await asyncio.sleep(0)
""",
        passed=4,
        errors=2,
    )
    told.fnmatch_lines(
        [
            "*ERROR at teardown of test_left*",
            f"    made at test_*.py:{suite.here[0]} in test_left",
            "    it was still pending when the test and its fixtures were over",
            "*ERROR at teardown of test_last*",
        ]
    )


def test_a_server_in_a_thread_of_the_session_is_nobody_s(suite):
    pytest.importorskip("pytest_asyncio")
    suite(
        """
@pytest.fixture(scope="session")
def port():
    found, stop = [], []
    ready = threading.Event()

    async def serve(reader, writer):
        writer.write(await reader.readline())
        await asyncio.sleep(60)  # keeps the connection

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        found.append(server.sockets[0].getsockname()[1])
        end = asyncio.Event()
        stop.extend((asyncio.get_running_loop(), end))
        ready.set()
        await end.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    ready.wait(60)
    yield found[0]
    stop[0].call_soon_threadsafe(stop[1].set)
    thread.join()

@pytest.mark.asyncio
@pytest.mark.parametrize("number", [1, 2])
async def test_echo(port, number):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"hello\\n")
    assert await reader.readline() == b"hello\\n"
    writer.close()
    await writer.wait_closed()
""",
        passed=2,
    )


ANYIO = """
import anyio

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


def test_an_async_test_of_anyio_is_told_of_what_it_left(suite):
    told = suite(
        ANYIO
        + """
@pytest.mark.anyio
async def test_clean():
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 0)

@pytest.mark.anyio
async def test_left():
    task = asyncio.create_task(forever())  # here
    await anyio.sleep(0)
""",
        asyncio=False,
        passed=1,
        failed=1,
    )
    told.fnmatch_lines(
        [
            f"    made at test_*.py:{suite.here[0]} in test_left",
            "    it was cancelled by the event loop's runner*",
        ]
    )


def test_the_task_that_anyio_steps_all_tests_with_is_nobody_s_and_what_they_leave_is_theirs(suite):
    told = suite(
        """
import anyio

@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"

@pytest.fixture(scope="module")
async def wide():
    task = asyncio.create_task(forever())
    yield task
    task.cancel()

@pytest.fixture
async def group():
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep_forever)
        yield tasks
        tasks.cancel_scope.cancel()

@pytest.mark.anyio
async def test_first(wide, group):
    group.start_soon(anyio.sleep_forever)
    await anyio.sleep(0)

@pytest.mark.anyio
async def test_left(wide):
    global kept
    kept = asyncio.create_task(forever())  # here

@pytest.mark.anyio
async def test_last(wide):
    await anyio.sleep(0)
""",
        asyncio=False,
        passed=3,
        errors=1,
    )
    told.fnmatch_lines(
        ["*ERROR at teardown of test_left*", f"    made at test_*.py:{suite.here[0]} in test_left"]
    )


def test_it_works_in_the_workers_of_xdist(suite):
    pytest.importorskip("xdist", reason="ci: may be skipped; pytest-xdist is not among the test requirements")
    told = suite(LEFT + LEFT.replace("test_left", "test_left_too"), "-n", "2", failed=2)
    told.fnmatch_lines([f"    made at test_*.py:{suite.here[0]} in *main"])


# Agents of the A2A SDK in the test's own process --------------------------------------------------------------------

AGENT = """
import httpx
from a2a.helpers import new_task_from_user_message, new_text_part
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, AgentSkill
from starlette.applications import Starlette

class Agent(AgentExecutor):
    async def execute(self, context, queue):
        task = context.current_task or new_task_from_user_message(context.message)
        await queue.enqueue_event(task)
        updater = TaskUpdater(queue, task.id, task.context_id)
        await updater.start_work()
        await self.work(context.get_user_input())
        await updater.add_artifact([new_text_part("done")])
        await updater.complete()

    async def work(self, text):
        await asyncio.sleep(0)

    async def cancel(self, context, queue):
        await TaskUpdater(queue, context.task_id, context.context_id).cancel()

card = AgentCard(
    name="agent", description="counts", version="1", capabilities=AgentCapabilities(streaming=True),
    supported_interfaces=[AgentInterface(url="http://agent/", protocol_binding="JSONRPC", protocol_version="1.0")],
    default_input_modes=["text/plain"], default_output_modes=["text/plain"],
    skills=[AgentSkill(id="count", name="count", description="counts", tags=["count"])],
)

async def send(agent, now=False):
    handler = DefaultRequestHandler(agent_executor=agent, task_store=InMemoryTaskStore(), agent_card=card)
    app = Starlette(routes=create_jsonrpc_routes(handler, "/"))
    message = {"messageId": "1", "role": "ROLE_USER", "parts": [{"text": "apples"}]}
    params = {"message": message, "configuration": {"returnImmediately": now}}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://agent", timeout=60) as client:
        body = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": params}
        answer = await client.post("/", json=body, headers={"A2A-Version": "1.0"})
        return answer.json()["result"]["task"]["status"]["state"]
"""


@pytest.mark.parametrize("library", ["asyncio", "anyio"])
def test_an_agent_that_does_its_work_leaves_nothing_whatever_the_sdk_has_to_close_yet(suite, library):
    if library == "asyncio":
        pytest.importorskip("pytest_asyncio")
    suite(
        (ANYIO if library == "anyio" else "")
        + AGENT
        + f"""
def test_by_asyncio_run():
    assert asyncio.run(send(Agent())) == "TASK_STATE_COMPLETED"

@pytest.mark.{library}
async def test_in_a_loop_of_the_framework():
    assert await send(Agent()) == "TASK_STATE_COMPLETED"

@pytest.mark.{library}
async def test_with_a_cascade(cascade):
    assert await send(Agent()) == "TASK_STATE_COMPLETED"
    await cascade.settled(timeout=120)
""",
        asyncio=library == "asyncio",
        passed=3,
    )


def test_a_task_that_an_agent_leaves_is_told_and_so_is_its_execution_that_goes_on(suite):
    told = suite(
        AGENT
        + """
class Careless(Agent):
    async def work(self, text):
        self.kept = asyncio.create_task(forever())  # here

def test_of_the_agent():
    assert asyncio.run(send(Careless())) == "TASK_STATE_COMPLETED"

class Slow(Agent):
    async def work(self, text):
        await forever()

def test_goes_on():
    assert asyncio.run(send(Slow(), now=True)) in ("TASK_STATE_SUBMITTED", "TASK_STATE_WORKING")
""",
        failed=2,
    )
    told.fnmatch_lines(
        [
            f"left pending: forever, made at test_*.py:{suite.here[0]} in *work",
            "*HOPWATCH_SERVICE_LOOPS=test_it:forever",
            "left pending: Agent.execute, made at *active_task.py:* in *_run_producer",
        ]
    )


def test_what_the_environment_declares_a_service_loop_is_not_left_but_what_it_makes_is(suite, monkeypatch):
    monkeypatch.setenv("HOPWATCH_SERVICE_LOOPS", "test_it:Pool.consume")
    told = suite(
        """
class Pool:
    async def consume(self):
        self.job = asyncio.create_task(forever())  # here
        await forever()

async def start():
    pool = Pool()
    pool.task = asyncio.create_task(pool.consume())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return pool

def test_left():
    asyncio.run(start())

def test_stopped():
    async def main():
        (await start()).job.cancel()
    asyncio.run(main())
""",
        failed=1,
        passed=1,
    )
    told.fnmatch_lines([f"left pending: forever, made at test_*.py:{suite.here[0]} in *consume"])


# What it costs others ---------------------------------------------------------------------------------------------


def test_loading_the_plugin_loads_neither_opentelemetry_nor_what_a_collector_needs():
    text = f"import {PLUGIN}, sys; print([each for each in sys.modules if each.partition('.')[0] in {{'opentelemetry', 'wrapt', 'httpx', 'uvicorn', 'starlette', 'grpc', 'rich', 'click'}}])"
    told = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=True
    )
    assert told.stdout == "[]\n"


def test_everything_is_put_back_at_the_end_of_the_run(suite, pytester):
    pytester.makeconftest(
        """
import asyncio

before = asyncio.BaseEventLoop.create_task, asyncio.BaseEventLoop.call_exception_handler, asyncio.runners._cancel_all_tasks

def pytest_sessionfinish():
    assert asyncio.BaseEventLoop.create_task is not before[0]

def pytest_unconfigure(config):
    def look():
        after = asyncio.BaseEventLoop.create_task, asyncio.BaseEventLoop.call_exception_handler, asyncio.runners._cancel_all_tasks
        print("put back:", after == before)
    config.add_cleanup(look)
"""
    )
    told = suite("\ndef test_nothing():\n    pass\n", passed=1)
    told.fnmatch_lines(["put back: True"])


# The fixture `cascade` ----------------------------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize("library", ["asyncio", "anyio", "sync"])
def test_a_test_waits_until_its_cascade_is_settled(suite, library):
    if library == "asyncio":
        pytest.importorskip("pytest_asyncio")
    head = {"asyncio": "@pytest.mark.asyncio\nasync ", "anyio": "@pytest.mark.anyio\nasync ", "sync": ""}[
        library
    ]
    body = """
    assert hopwatch.current().cascade == cascade.id
    task = asyncio.create_task(asyncio.sleep(0.3))
    assert (await cascade.verdict()).verdict != "settled"
    seen = await cascade.settled(timeout=120)
    assert task.done()
    assert seen.verdict == "settled"
    assert [hop["name"] for hop in seen.cascade["hops"]][:1] == [request.node.nodeid]
    assert "verdict settled" in seen.picture
"""
    if library == "sync":
        body = (
            "\n    async def main():" + body.replace("\n", "\n    ").rstrip() + "\n    asyncio.run(main())\n"
        )
    early = """
@pytest.fixture
async def early():  # so that anyio's task is older than the cascade
    yield 1
"""
    text = ANYIO + early if library == "anyio" else ""
    arguments = "early, cascade, request" if library == "anyio" else "cascade, request"
    # Twice: the second test uses the same collector, and is another cascade.
    text += f"{head}def test_one({arguments}):{body}\n{head}def test_two({arguments}):{body}"
    suite(text, asyncio=library != "anyio", passed=2)


@pytest.mark.processes
def test_a_task_that_is_left_after_a_test_with_a_cascade_is_told_with_the_line_that_made_it(suite):
    told = suite(
        """
def test_one(cascade):
    pass

def test_left():
    async def main():
        task = asyncio.create_task(forever())  # here
        await asyncio.sleep(0)
    asyncio.run(main())
""",
        passed=1,
        failed=1,
    )
    told.fnmatch_lines([f"    made at test_*.py:{suite.here[0]} in *main"])


@pytest.mark.processes
def test_a_cascade_that_cannot_be_settled_fails_the_test_with_the_picture_of_it(suite):
    told = suite(
        """
def test_stalled(cascade):
    async def main():
        task = asyncio.create_task(forever(), name="writer")
        seen = await cascade.verdict("stalled", timeout=120)
        assert seen.verdict == "stalled"
        try:
            await cascade.settled(timeout=0.5)
        finally:
            task.cancel()
    asyncio.run(main())

def test_broken(cascade):
    async def lost(future):
        await future
    async def main():
        asyncio.create_task(lost(asyncio.get_running_loop().create_future()))
        await asyncio.sleep(0)
        gc.collect()
        await cascade.settled(timeout=120)
    asyncio.run(main())

def test_wrong_name(cascade):
    with pytest.raises(ValueError, match="'finished' is not a verdict"):
        asyncio.run(cascade.verdict("finished"))
""",
        failed=2,
        passed=1,
    )
    told.fnmatch_lines(
        [
            "E*AssertionError: the cascade is not settled within 0.5 s",
            "E*verdict stalled",
            "E*a future that nobody has set at *",
            "E*AssertionError: the cascade will never be settled",
            "E*verdict broken",
            "E*lost: abandoned*",
        ]
    )


@pytest.mark.processes
def test_a_cascade_over_two_processes_is_settled_when_both_are_done_and_names_the_one_that_hangs(
    suite, pytester
):
    pytest.importorskip("pytest_asyncio")
    told = suite(
        """
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import hopwatch.demo
import httpx
from a2a.client import ClientConfig, ClientFactory
from a2a.helpers import new_text_message
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, Role, SendMessageConfiguration, SendMessageRequest

from hopwatch.demo.run import free_ports

WORKER = Path(hopwatch.demo.__file__).parent / "agents" / "worker.py"

@pytest.fixture
def worker(cascade, request):
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "hopwatch", "run", "--", sys.executable, str(WORKER), "--port", str(port), "--fault", request.param]
    with subprocess.Popen(command, env={**os.environ, **cascade.environment("worker")}) as process:
        until = time.monotonic() + 90
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
        process.kill()

async def send(url):
    async with httpx.AsyncClient(timeout=60) as http:
        interface = AgentInterface(url=f"{url}/", protocol_binding="JSONRPC", protocol_version="1.0")
        card = AgentCard(name="worker", supported_interfaces=[interface], capabilities=AgentCapabilities())
        client = ClientFactory(ClientConfig(httpx_client=http, streaming=False, polling=True)).create(card)
        message = new_text_message("count the apples", role=Role.ROLE_USER)
        configuration = SendMessageConfiguration(return_immediately=True)
        async for _ in client.send_message(SendMessageRequest(message=message, configuration=configuration)):
            pass

@pytest.mark.asyncio
@pytest.mark.parametrize("worker", ["none"], indirect=True)
async def test_done(cascade, worker):
    await send(worker)
    seen = await cascade.settled(timeout=120)
    assert {(hop["agent"], hop["kind"]) for hop in seen.cascade["hops"]} >= {("pytest", "task"), ("pytest", "send"), ("worker", "request"), ("worker", "execution")}

@pytest.mark.asyncio
@pytest.mark.parametrize("worker", ["hang"], indirect=True)
async def test_hangs(cascade, worker):
    await send(worker)
    assert (await cascade.verdict("stalled", timeout=120)).verdict == "stalled"
    await cascade.settled(timeout=0.1)
""",
        passed=1,
        failed=1,
    )
    told.fnmatch_lines(["E*verdict stalled", "E*execution worker *: open *", "E*worker.py:*"])


@pytest.mark.processes
def test_the_collector_that_the_environment_names_is_the_one_that_is_asked(suite, tmp_path, monkeypatch):
    from collector.telling import collector

    with collector(tmp_path / "hops.sqlite") as running:
        monkeypatch.setenv("HOPWATCH_URL", f"http://127.0.0.1:{running.port}")
        suite(
            """
def test_one(cascade):
    asyncio.run(cascade.settled(timeout=120))
""",
            passed=1,
        )
        assert [row["verdict"] for row in running.get("/api/cascades")["cascades"]] == ["settled"]


def test_what_the_fixture_needs_is_named_where_it_is_not_installed(suite, pytester):
    pytester.makeconftest("import sys\nsys.modules['uvicorn'] = None\n")
    told = suite("\ndef test_one(cascade):\n    pass\n", errors=1)
    told.fnmatch_lines(["the fixture `cascade` needs uvicorn*pip install 'hopwatch?collector,otlp?'*"])
