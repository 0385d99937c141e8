"""What does a collector say of agents and clients of the Agent Client Protocol in processes of their own, over stdio and WebSocket?"""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from any_acp import CLOSES, SERVICE_LOOPS, V12

from hopwatch.demo.run import Cast, agent_environment, launcher, start_collector

HERE = Path(__file__).parent
WITHIN = 120.0
PLAIN = [sys.executable, str(HERE / "agent_program.py")]

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


class Stage:
    """A collector, and programs that tell it of their hops."""

    def __init__(self, folder):
        self.folder = folder
        self.cast = Cast(folder)
        self.url = start_collector(self.cast)
        self.environment = {
            **os.environ,
            "HOPWATCH_BLACKBOX": str(folder / "blackbox"),
            "PYTHONWARNINGS": "default",
            # Where the machine is busy, what takes more than a second would be told of as hops besides.
            "HOPWATCH_REVEAL_AFTER": "3600",
        }

    def start(self, name, *command, **environment):
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**self.environment, **agent_environment(name, self.url), **environment},
            )
        self.cast.processes[name] = process
        return process

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def judged(self, wanted, method="session/prompt"):
        """The cascade of a method, as soon as the collector says of it what is wanted."""
        until = time.monotonic() + WITHIN
        seen = {}
        with httpx.Client(base_url=self.url, timeout=20) as client:
            while time.monotonic() < until:
                for each in client.get("/api/cascades").raise_for_status().json()["cascades"]:
                    found = client.get(f"/api/cascades/{each['cascade']}").raise_for_status().json()
                    if any(hop["name"] == method and hop["kind"] == "send" for hop in found["hops"]):
                        seen = found
                        if wanted(found):
                            return found
                time.sleep(0.1)
        raise AssertionError(f"this was not said; the last was: {json.dumps(seen, indent=1)}")

    def end(self):
        for each in self.cast.processes.values():
            if each.stdin is not None:
                each.stdin.close()
        for each in self.cast.processes.values():
            if each.stdin is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    each.wait(20)
                each.stdout.close()
        self.cast.end()


@pytest.fixture
def stage(tmp_path):
    made = Stage(tmp_path)
    try:
        yield made
    finally:
        made.end()


def editor(stage, words, *where, **environment):
    return stage.start(
        "editor",
        *launcher(),
        str(HERE / "editor.py"),
        words,
        *where,
        **{"AGENT_NAME": "worker", **environment},
    )


def kinds(cascade):
    """(agent, kind, name) of each hop, and of the one that caused it."""
    by_id = {hop["id"]: hop for hop in cascade["hops"]}
    return sorted(
        (hop["agent"], hop["kind"], hop["name"], by_id[hop["parent"]]["agent"] if hop["parent"] else None)
        for hop in cascade["hops"]
    )


PROMPTED = [
    ("editor", "request", "fs/read_text_file", "worker"),
    ("editor", "request", "session/update", "worker"),
    ("editor", "request", "session/update", "worker"),
    ("editor", "send", "session/prompt", None),
    ("worker", "request", "session/prompt", "editor"),
    ("worker", "send", "fs/read_text_file", "worker"),
    ("worker", "send", "session/update", "worker"),
    ("worker", "send", "session/update", "worker"),
]


@pytest.mark.row("acp", "stdio, two processes", "agent-client-protocol")
def test_a_prompt_over_stdio_is_one_cascade_of_two_processes_and_settled(stage):
    program = editor(stage, "go", *launcher(), *PLAIN[1:])
    assert program.stdout.readline() == "end_turn ['I begin', '/notes', 'what stands in /notes']\n", (
        stage.log("editor")
    )
    found = stage.judged(lambda seen: seen["verdict"] == "settled")
    assert kinds(found) == PROMPTED
    assert found["opaque"] == []


@pytest.mark.skipif(
    not V12, reason="agent-client-protocol has WebSocket and Streamable HTTP from 0.12 on; ci: may be skipped"
)
@pytest.mark.parametrize("scheme", [
    pytest.param("ws", marks=pytest.mark.row("acp", "WebSocket, two processes", "agent-client-protocol", "websockets")),
    pytest.param("http", marks=pytest.mark.row("acp", "Streamable HTTP, two processes", "agent-client-protocol", "httpx")),
])  # fmt: skip
def test_a_prompt_over_the_web_is_one_cascade_of_two_processes_and_settled(stage, scheme):
    agent = stage.start("worker", *launcher(), *PLAIN[1:], "web")
    port = agent.stdout.readline().strip()
    assert port, stage.log("worker")
    # Where OpenTelemetry's own instrumentation of httpx carries the hop too, the POST is one more hop of the agent.
    alone = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "httpx"}
    program = editor(stage, "go", f"{scheme}://127.0.0.1:{port}/acp", **alone)
    assert program.stdout.readline() == "end_turn ['I begin', '/notes', 'what stands in /notes']\n", (
        stage.log("editor")
    )
    found = stage.judged(lambda seen: seen["verdict"] == "settled")
    assert kinds(found) == PROMPTED
    (prompt,) = [hop for hop in found["hops"] if (hop["kind"], hop["name"]) == ("send", "session/prompt")]
    assert (prompt["attributes"]["server.address"], prompt["attributes"]["server.port"]) == (
        "127.0.0.1",
        int(port),
    )
    # The connection and what serves it live on, and hold nothing open.
    stage.judged(lambda seen: seen["verdict"] == "settled", "initialize")
    assert program.poll() is None
    agent.terminate()


@pytest.mark.one_python
def test_an_agent_that_hangs_is_named_with_what_it_waits_for_and_so_is_who_waits_for_it(stage):
    editor(stage, "hang", *launcher(), *PLAIN[1:])
    found = stage.judged(lambda seen: seen["verdict"] == "stalled")
    assert "agent_program.py" in found["reason"]
    waits = {(hop["agent"], hop["kind"]): hop["waits_on"] for hop in found["hops"]}
    assert waits["worker", "request"]["kind"] == "event"
    assert waits["editor", "send"]["what"].startswith("session/prompt to worker at process ")
    assert waits["editor", "send"]["what"].endswith(": the answer")
    assert waits["editor", "send"]["asks"]


@pytest.mark.one_python
def test_an_agent_that_dies_leaves_a_broken_cascade_and_an_editor_that_knows_or_waits_for_ever(stage):
    program = editor(stage, "die", *launcher(), *PLAIN[1:])
    found = stage.judged(lambda seen: seen["verdict"] == "broken")
    assert "worker" in found["reason"]
    if CLOSES or V12:
        assert program.stdout.readline().startswith("ConnectionError")


@pytest.mark.one_python
def test_an_agent_without_hopwatch_is_served_as_before_where_nothing_is_injected_and_the_verdict_says_up_to_whom(
    stage,
):
    program = editor(stage, "go", *PLAIN, HOPWATCH_ACP_INJECT="false")
    assert program.stdout.readline() == "end_turn ['I begin', '/notes', 'what stands in /notes']\n", (
        stage.log("editor")
    )
    found = stage.judged(lambda seen: seen["verdict"] == "settled")
    assert found["opaque"] == ["worker"]
    # What the agent asks and says while it works on the prompt is part of it.
    assert kinds(found) == [
        ("editor", "request", "fs/read_text_file", "editor"),
        ("editor", "request", "session/update", "editor"),
        ("editor", "request", "session/update", "editor"),
        ("editor", "send", "session/prompt", None),
    ]


@pytest.mark.one_python
def test_an_editor_without_hopwatch_is_asked_as_before(stage):
    command = [sys.executable, str(HERE / "editor.py"), "go", *launcher(), *PLAIN[1:]]
    program = stage.start("editor", *command, AGENT_NAME="worker")
    assert program.stdout.readline() == "end_turn ['I begin', '/notes', 'what stands in /notes']\n", (
        stage.log("editor")
    )
    found = stage.judged(lambda seen: seen["verdict"] == "settled", "session/update")
    assert found["opaque"] == ["stdio"]


@pytest.mark.skipif(CLOSES, reason="from 0.11 on run_agent closes its connection; ci: may be skipped")
@pytest.mark.row("acp", "orphaned service loops", "agent-client-protocol")
def test_a_bridge_that_cancels_its_agent_leaves_two_loops_which_are_named_before_the_collector_of_garbage_says_so(
    stage, record_property
):
    program = stage.start("bridge", *launcher(), str(HERE / "bridge.py"))
    said = []
    while (line := program.stdout.readline().strip()) not in ("told", ""):
        said.append(line)
    assert line == "told", stage.log("bridge")
    assert [each.partition(":")[0] for each in said] == SERVICE_LOOPS
    for each in said:
        assert "task 'bridge-7' (run_agent), which owned it" in each
        assert each.endswith("has ended")
    wanted = [f"service loop '{name}' goes on though its owner has ended" for name in SERVICE_LOOPS]
    until = time.monotonic() + WITHIN
    while True:  # a process has two seconds for its answer, and may be given no turn in them
        asked = subprocess.run(
            [sys.executable, "-m", "hopwatch", "ps", str(program.pid)],
            env=stage.environment, capture_output=True, text=True, timeout=WITHIN, check=False,
        )  # fmt: skip
        if all(each in asked.stdout for each in wanted):
            break
        assert time.monotonic() < until, asked
    assert "destroyed" not in stage.log("bridge")
    program.stdin.write("\n")
    program.stdin.flush()
    assert program.stdout.readline() == "collected\n"
    assert stage.log("bridge").count("Task was destroyed but it is pending!") == len(SERVICE_LOOPS)
    found = stage.judged(lambda seen: seen["verdict"] == "settled", "initialize")
    names = " and ".join(f"'{each}'" for each in SERVICE_LOOPS)
    record_property(
        f"run_agent is cancelled while it listens: {found['verdict']}",
        f"{len(SERVICE_LOOPS)} service loops go on though the owner has ended: {names}. {said[0].partition(': ')[2]}",
    )


@pytest.mark.skipif(not CLOSES, reason="up to 0.10.1 run_agent leaves its loops; ci: may be skipped")
def test_a_bridge_that_cancels_its_agent_leaves_nothing_where_the_library_closes_the_connection(
    stage, record_property
):
    program = stage.start("bridge", *launcher(), str(HERE / "bridge.py"))
    assert program.stdout.readline() == "told\n", stage.log("bridge")
    found = stage.judged(lambda seen: seen["verdict"] == "settled", "initialize")
    record_property(
        f"run_agent is cancelled while it listens: {found['verdict']}", "nothing: no loop is left"
    )
