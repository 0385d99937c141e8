"""Does an agent or client of the Agent Client Protocol behave the same with us as without, and in which order may it be instrumented?"""

import asyncio
import inspect
import subprocess
import sys
import types
import warnings
from importlib import metadata
from pathlib import Path

import acp.connection
import acp.router
import acp.task.sender
import pytest
from acp.exceptions import RequestError
from any_acp import Agent, Client, connected, hang_up, hello, raw, say, streams, text
from hypothesis import given, settings
from hypothesis import strategies as st

import acp
import hopwatch
from exported import cascades, fresh, verdict
from hopwatch import process
from hopwatch.instrumentation import acp as instrumentation
from hopwatch.instrumentation import acp_seams
from hopwatch.instrumentation.acp import ACPInstrumentor
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor

PLUGIN = "hopwatch.pytest_plugin"
HERE = acp_seams.installed()
DUE = [seam for seam in acp_seams.SEAMS if seam.is_due(HERE)]


@pytest.fixture
def instrumentor():
    fresh()
    made = ACPInstrumentor()
    made.instrument()
    yield made
    made.uninstrument()
    assert process.failures == {}


# Seams -----------------------------------------------------------------------------------------------------------------


def test_the_installed_release_has_all_that_it_ought_to_have_by_its_sources_and_by_its_classes(instrumentor):
    assert acp_seams.missing(acp_seams.folder(), HERE) == []
    assert instrumentation.missing == []


def test_each_release_is_due_what_stands_where_the_answer_goes_out():
    def uses(*release):
        return {seam.use for seam in acp_seams.SEAMS if seam.is_due(release)}

    assert uses(0, 8, 1) == uses(0, 10, 1) == uses(0, 11, 1) == uses(0, 3)
    assert uses(0, 8, 1) - uses(0, 12, 1) == {"process", "respond"}
    assert uses(0, 12, 1) - uses(0, 8, 1) == {"execute"}
    # A release that nobody knows ought to have what the newest has, and one that cannot be told is looked for all of it.
    assert uses(7, 1) == uses(0, 12, 1)
    assert uses() == {seam.use for seam in acp_seams.SEAMS}


@pytest.mark.parametrize("seam", DUE, ids=str)
def test_a_seam_that_a_release_does_not_have_is_named_and_nothing_is_raised(seam, instrumentor):
    others = {
        each.name: lambda *_: None for each in DUE if (each.module, each.owner) == (seam.module, seam.owner)
    }
    del others[seam.name]
    module = types.ModuleType(seam.module)
    owner = type(seam.owner, (), others)
    if hasattr(owner, seam.name):  # every class has one of that name
        pytest.skip("a class without __init__ cannot be had; ci: may be skipped")
    setattr(module, seam.owner, owner)
    del instrumentation.missing[:]
    instrumentor._module(seam.module, module)
    assert str(seam) in instrumentation.missing


def test_a_module_that_has_lost_its_classes_is_told_of_and_nothing_is_raised(instrumentor):
    del instrumentation.missing[:]
    for name in acp_seams.modules():
        instrumentor._module(name, types.ModuleType(name))
    assert sorted(instrumentation.missing) == sorted(str(seam) for seam in DUE)


def test_what_was_wrapped_is_put_back_as_it_was_and_looks_the_same_meanwhile():
    owners = [
        (acp.connection.Connection, "acp.connection"),
        (acp.router.MessageRouter, "acp.router"),
        (acp.task.sender.MessageSender, "acp.task.sender"),
    ]
    before = [dict(vars(owner)) for owner, _ in owners]
    fresh()
    made = ACPInstrumentor()
    made.instrument()
    for seam in DUE:
        (owner, was) = next(
            (owner, was) for (owner, module), was in zip(owners, before, strict=True) if module == seam.module
        )
        now = getattr(owner, seam.name)
        assert inspect.signature(now) == inspect.signature(was[seam.name])
        assert now.__qualname__ == was[seam.name].__qualname__
        assert inspect.iscoroutinefunction(now) == inspect.iscoroutinefunction(was[seam.name])
    made.uninstrument()
    assert [dict(vars(owner)) for owner, _ in owners] == before


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_library_may_be_imported_before_or_after_and_is_never_imported_by_us(order):
    program = f"""
import sys
if {order == "before"}:
    import acp
from hopwatch.instrumentation.acp import ACPInstrumentor
made = ACPInstrumentor()
made.instrument()
assert ("acp" in sys.modules) == {order == "before"}, "imported"
assert "httpx" not in sys.modules and "starlette" not in sys.modules
import acp
wrapped = acp.connection.Connection.send_request
assert wrapped is acp.connection.Connection.send_request or sys.version_info < (3, 12)
made.uninstrument()
print(wrapped.__wrapped__ is acp.connection.Connection.send_request)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "True\n", done.stderr


# The same outcome ------------------------------------------------------------------------------------------------------


class Instrumented:
    def __enter__(self):
        fresh()
        AsyncioInstrumentor().instrument()
        ACPInstrumentor().instrument()

    def __exit__(self, *_):
        ACPInstrumentor().uninstrument()
        AsyncioInstrumentor().uninstrument()
        assert process.failures == {}


STEPS = (
    "ok",
    "raises",
    "refuses",
    "updates",
    "reads",
    "cancelled",
    "slow",
    "meta",
    "unknown method",
    "bad params",
)


async def play(steps):
    """Let a client and an agent do these things, and write down all that either of them sees."""
    log = []
    gates = {}

    class Busy(Agent):
        async def prompt(self, prompt, session_id, **rest):
            words = prompt[0].text
            log.append(("prompt", words, {key: value for key, value in rest.items() if value is not None}))
            try:
                if words == "raises":
                    raise LookupError("no such thing")
                if words == "refuses":
                    raise RequestError.invalid_params({"why": words})
                if words == "updates":
                    for each in range(3):
                        await say(self, session_id, str(each))
                if words == "reads":
                    log.append(
                        (await self.connection.read_text_file(path="/x", session_id=session_id)).content
                    )
                if words in ("cancelled", "slow"):
                    gates["begun"].set()
                    await gates["go"].wait()
            finally:
                log.append(("left", words))
            return await super().prompt(prompt, session_id)

    client = Client()
    agent = Busy()
    async with connected(agent, client) as connection:
        session = await hello(connection)
        for step in steps:
            gates["begun"], gates["go"] = asyncio.Event(), asyncio.Event()
            try:
                if step == "unknown method":
                    answer = await raw(connection, "no/such", {"a": 1})
                elif step == "bad params":
                    answer = await raw(connection, "session/prompt", {"sessionId": 7})
                elif step == "meta":
                    answer = await raw(connection, "_tool", {"_meta": {"k": [1, {"x": None}]}, "b": "ü"})
                else:
                    more = {"extra": 1} if step == "ok" else {}
                    asking = asyncio.ensure_future(
                        connection.prompt(prompt=[text(step)], session_id=session, **more)
                    )
                    if step in ("cancelled", "slow"):
                        await gates["begun"].wait()
                        if step == "cancelled":
                            asking.cancel()
                        gates["go"].set()
                    answer = await asking
                log.append(repr(answer))
            except (Exception, asyncio.CancelledError) as error:
                log.append(
                    (
                        type(error).__name__,
                        str(error),
                        getattr(error, "code", None),
                        repr(getattr(error, "data", None)),
                    )
                )
        names = sorted(task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("acp."))
        log.append(names)
    # Who is told of a cancelled prompt's end, and when, is a matter of the loop's turns.
    return sorted(map(repr, log)), client.seen, agent.seen


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=6))
def test_a_client_and_an_agent_see_the_same_with_us_as_without(steps):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        bare = asyncio.run(play(steps))
        with Instrumented():
            ours = asyncio.run(play(steps))
    assert ours == bare


def test_a_cascade_of_everything_is_settled():
    async def main():
        with hopwatch.cascade("root"):
            await play([step for step in STEPS if step != "cancelled"])
        while process.here().ledger.open_hops():
            await asyncio.sleep(0.01)

    with Instrumented():
        asyncio.run(main())
    (hops,) = cascades().values()
    assert verdict(hops).verdict == "settled"


# Connections that are older or younger than the instrumentation -------------------------------------------------------


def test_a_connection_that_was_there_before_serves_what_carries_a_hop_without_its_keys():
    agent = Agent()

    async def main():
        here, there = await streams()
        running = asyncio.create_task(acp.run_agent(agent, *there))
        while agent.connection is None:
            await asyncio.sleep(0)
        with Instrumented():
            connection = acp.connect_to_agent(Client(), *here)
            with hopwatch.cascade("root"):
                session = await hello(connection)
                await connection.prompt(prompt=[text("go")], session_id=session)
                await raw(connection, "_tool", {"a": 1})
            while process.here().ledger.open_hops():
                await asyncio.sleep(0.01)
            (hops,) = cascades().values()
        await connection.close()
        await hang_up(here[0])
        await asyncio.wait([running])
        await agent.connection.close()
        await hang_up(there[0])
        return hops

    hops = asyncio.run(main())
    assert agent.seen == ["initialize", ("go", {}), ("tool", {"a": 1})]
    assert len(hops) == 9
    assert verdict(hops).verdict == "settled"


def test_a_connection_goes_on_after_the_instrumentation_is_taken_out():
    agent = Agent()

    async def main():
        with Instrumented():
            here, there = await streams()
            running = asyncio.create_task(acp.run_agent(agent, *there))
            connection = acp.connect_to_agent(Client(), *here)
            session = await hello(connection)
        answer = await connection.prompt(prompt=[text("go")], session_id=session, mine=1)
        await connection.close()
        await hang_up(here[0])
        await asyncio.wait([running])
        await agent.connection.close()
        await hang_up(there[0])
        return answer.stop_reason

    assert asyncio.run(main()) == "end_turn"
    assert agent.seen == ["initialize", ("go", {"mine": 1})]


# What doctor says ------------------------------------------------------------------------------------------------------


def findings(version, source):
    from hopwatch.cli.doctor import _acp

    return {each.subject: (each.level, each.text) for each in _acp(version, source)}


def test_doctor_says_which_release_is_there_and_that_child_processes_get_no_settings():
    found = findings(".".join(map(str, HERE)), acp_seams.folder)
    assert found["agent-client-protocol"][0] == "ok"
    assert "spawn_agent_process" in found["agent-client-protocol's children"][1]
    assert "agent-client-protocol's seams" not in found
    assert findings(None, lambda: None)["agent-client-protocol"] == (
        "note",
        "agent-client-protocol is not installed",
    )


@pytest.mark.parametrize(
    ("version", "level"), [("0.7.1", "warning"), ("0.9.0", "note"), ("0.12.9", "note"), ("1.0.0", "warning")]
)
def test_doctor_names_what_a_release_lacks_that_nobody_knows(version, level, tmp_path):
    (tmp_path / "acp" / "task").mkdir(parents=True)
    (tmp_path / "acp" / "connection.py").write_text(
        "class Connection:\n    async def send_request(self, method, params=None): ...\n"
    )
    found = findings(version, lambda: tmp_path)
    assert found["agent-client-protocol"][0] == level
    said, text = found["agent-client-protocol's seams"]
    assert said == "warning"
    assert "acp.connection.Connection.send_notification" in text
    assert "Connection.send_request" not in text
    assert "sends, requests, connections that nobody closes are accounted for in part" in text


# What the pytest plugin says -------------------------------------------------------------------------------------------


def test_a_test_that_does_not_close_its_connection_is_told_of_the_loops_that_it_leaves(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(
        "import asyncio, acp, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from any_acp import Client, streams\n"
        "def test_it():\n"
        "    async def main():\n"
        "        here, there = await streams()\n"
        "        acp.connect_to_agent(Client(), *here)\n"
        "        await asyncio.sleep(0)\n"
        "    asyncio.run(main())\n"
    )
    plugin = (
        []
        if any(point.value == PLUGIN for point in metadata.entry_points(group="pytest11"))
        else ["-p", PLUGIN]
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, "-p", "no:asyncio", "-p", "no:cacheprovider", "-W", "ignore", str(tmp_path)],
        capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    assert "acp.Sender.loop" in done.stdout
