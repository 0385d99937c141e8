"""Does the stack run without containers? The real programs with the committed configuration files, as `make stack` starts them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from hopwatch.demo.run import AGENTS, Cast, agent_environment, launcher, slow_server, start_agents
from prometheus_programs import STACK, needs, programs
from waiting import lives

pytestmark = [pytest.mark.one_python, pytest.mark.processes, pytest.mark.timeout(1200)]

PATIENCE = 180.0


def until(look, what, say=lambda: ""):
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what} did not come within {PATIENCE:g} s. {say()}"
        time.sleep(0.1)
    return found


class Stack:
    """`stack/run.py` in a process of its own, as a user would have it."""

    def __init__(self, folder, *options, **environment):
        self.folder = folder
        self.said = []
        self.process = subprocess.Popen(
            [sys.executable, str(STACK / "run.py"), "--folder", str(folder), "--no-install", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "HOPWATCH_BLACKBOX": str(folder.parent / "boxes"), **environment},
        )
        self.ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.said.append(line)
            if "Ready; Ctrl-C ends all of it" in line:
                self.ready.set()

    def wait_until_ready(self):
        until(lambda: self.ready.is_set() or self.process.poll() is not None, "the stack", self.told)
        assert self.ready.is_set(), self.told()
        return json.loads((self.folder / "running.json").read_text())

    def told(self):
        logs = {
            path.name: path.read_text(errors="replace")[-1500:] for path in self.folder.glob("logs/*.log")
        }
        return "".join(self.said) + json.dumps(logs, indent=1)

    def end(self, by=signal.SIGINT):
        """Its exit code."""
        self.process.send_signal(by)
        code = self.process.wait(PATIENCE)
        self._reader.join(30)
        return code

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(30)
        self.process.stdout.close()


@pytest.fixture
def stack(tmp_path):
    """Start one; all of them end with the test."""
    started = []

    def start(*options, **environment):
        started.append(Stack(tmp_path / "stack", *options, **environment))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_a_cascade_goes_through_all_of_it_to_prometheus_and_an_alert_to_the_webhook(stack, tmp_path):
    needs("prometheus")
    needs("alertmanager")
    otelcol = programs.find("otelcol")
    if otelcol is None:
        pytest.skip(
            "there is no OpenTelemetry Collector: HOPWATCH_OTELCOL names none; stack/otelcol/build makes one"
        )
    running = stack("--free-ports")
    told = running.wait_until_ready()
    assert set(told["processes"]) == {"hopwatch", "alerts", "alertmanager", "prometheus", "otelcol"}
    at = {name: f"http://127.0.0.1:{port}" for name, port in told["ports"].items()}
    assert (
        f"export HOPWATCH_URL={at['HOPWATCH_PORT']} HOPWATCH_TOKEN_FILE={told['token_file']}"
        in running.told()
    )
    with httpx.Client(timeout=60) as client:

        def ask(expression):
            answer = client.get(f"{at['PROMETHEUS_PORT']}/api/v1/query", params={"query": expression}).json()
            return {
                tuple(sorted(each["metric"].items())): float(each["value"][1])
                for each in answer["data"]["result"]
            }

        # Everything that Prometheus is told to scrape answers it; and hopwatch answers nobody else without the token.
        until(lambda: len(ask("up == 1")) == 4, "four targets", lambda: (ask("up"), running.told()))
        assert client.get(f"{at['HOPWATCH_PORT']}/metrics").status_code == 401
        play(at["OTELCOL_HTTP_PORT"], tmp_path, "none")
        until(
            lambda: any(ask('hopwatch_cascades{verdict="settled"} >= 1')),
            "the settled cascade at Prometheus",
            lambda: (ask("hopwatch_cascades > 0"), running.told()),
        )
        # By the rules that are committed, through Alertmanager with the route that is committed: no need to wait for their minutes.
        rules = client.get(f"{at['PROMETHEUS_PORT']}/api/v1/rules").json()["data"]["groups"]
        assert {rule["health"] for group in rules for rule in group["rules"]} <= {"ok", "unknown"}
        (manager,) = until(
            lambda: client.get(f"{at['PROMETHEUS_PORT']}/api/v1/alertmanagers").json()["data"][
                "activeAlertmanagers"
            ],
            "Alertmanager at Prometheus",
        )
        assert manager["url"].startswith(at["ALERTMANAGER_PORT"])
        alert = {
            "labels": {"alertname": "CascadeBroken", "severity": "critical", "instance": "here\x1b[31m"},
            "annotations": {"summary": "1 cascades broke", "runbook_url": "docs/runbooks/CascadeBroken.md"},
        }
        assert client.post(f"{at['ALERTMANAGER_PORT']}/api/v2/alerts", json=[alert]).status_code == 200
        log = running.folder / "logs" / "alerts.log"
        until(lambda: "\n" in log.read_text(), "the alert at the webhook", running.told)
        assert log.read_text() == (
            "firing CascadeBroken (critical) at here?[31m: 1 cascades broke docs/runbooks/CascadeBroken.md\n"
        )
        assert client.post(at["ALERTS_PORT"], content=b"{}").status_code == 400
    pids = told["processes"].values()
    assert all(lives(pid) for pid in pids)
    assert running.end() == 0, running.told()
    assert [pid for pid in pids if lives(pid)] == []
    assert running.said[-1] == "Everything has ended.\n"
    assert not (running.folder / "running.json").exists()


def play(endpoint, folder, fault):
    """The demo's agents and user, who send all that they tell to the OpenTelemetry Collector, as any others would. It asks for no token."""
    cast = Cast(folder / "demo")
    cast.folder.mkdir()
    try:
        with slow_server(15) as slow:
            frontdesk, port = start_agents(cast, fault, endpoint, slow)
            user = cast.start(
                "user",
                [*launcher(), str(AGENTS / "user.py"), "--port", str(port), "--to", frontdesk],
                agent_environment("user", endpoint),
            )
            assert user.wait(PATIENCE) == 0, cast.tail("user")
    finally:
        cast.end()


def test_with_hopwatch_alone_it_says_what_is_missing_and_how_to_get_it(stack, tmp_path):
    nothing = tmp_path / "empty"
    nothing.mkdir()
    running = stack("--free-ports", PATH=str(nothing), HOPWATCH_PROMETHEUS="", HOPWATCH_OTELCOL="")
    told = running.wait_until_ready()
    assert set(told["processes"]) == {"hopwatch"}
    missing = [line for line in running.said if line.startswith("Not run: ")]
    assert [line.split(":")[1].split(",")[0].strip() for line in missing] == [
        "Prometheus", "Alertmanager", "the OpenTelemetry Collector", "Grafana"
    ]  # fmt: skip
    assert "HOPWATCH_PROMETHEUS" in missing[0]
    assert "stack/otelcol/build" in missing[2]
    token = {"authorization": f"Bearer {(running.folder / 'secrets' / 'token').read_text()}"}
    url = f"http://127.0.0.1:{told['ports']['HOPWATCH_PORT']}/api/cascades"
    assert [httpx.get(url, headers=each, timeout=60).status_code for each in ({}, token)] == [401, 200]
    assert running.end(signal.SIGTERM) == 0


def test_a_port_that_is_taken_and_a_second_stack_are_refused_and_leave_nothing_running(stack, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = stack("--free-ports", PATH="", HOPWATCH_PROMETHEUS="", HOPWATCH_OTELCOL="")
        refused.wait_until_ready()
        second = stack(HOPWATCH_PORT=str(port))
        assert second.process.wait(PATIENCE) == 1
        assert "it runs already" in second.told()
        assert refused.end() == 0
        third = stack(HOPWATCH_PORT=str(port))
        assert third.process.wait(PATIENCE) == 1
        assert f"port {port} is taken; name another one with HOPWATCH_PORT" in third.told()


def test_when_a_part_dies_the_rest_is_stopped_and_the_reason_told(stack):
    running = stack("--free-ports", PATH="", HOPWATCH_PROMETHEUS="", HOPWATCH_OTELCOL="")
    pid = running.wait_until_ready()["processes"]["hopwatch"]
    os.kill(pid, signal.SIGKILL)
    assert running.process.wait(PATIENCE) == 1
    assert "stack: hopwatch ended with -9" in running.told()


def test_when_it_is_killed_itself_its_children_end_too(stack):
    running = stack("--free-ports", PATH="", HOPWATCH_PROMETHEUS="", HOPWATCH_OTELCOL="")
    pid = running.wait_until_ready()["processes"]["hopwatch"]
    running.process.kill()
    until(lambda: not lives(pid), "the end of hopwatch")
