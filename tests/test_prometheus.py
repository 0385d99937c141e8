"""Do the dashboards and alerts work? A real Prometheus scrapes real collectors while real agents do each fault.

Every expression of every panel and rule has to have data under one fault at least; every alert fires where it must and
nowhere else; and one goes all the way through Alertmanager to a webhook.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import yaml

from collector.telling import collector, end, protobuf, trace
from dashboard_expressions import FOLDER, compared, filled_in, of_panels, of_rules, rules
from hopwatch import attributes as names
from hopwatch.demo.faults import worker_sleeps
from hopwatch.demo.run import (
    AGENTS,
    Cast,
    agent_environment,
    free_ports,
    launcher,
    slow_server,
    start_agents,
    start_collector,
)
from prometheus_programs import command, needs

pytestmark = [pytest.mark.one_python, pytest.mark.processes, pytest.mark.timeout(1500)]

RUNBOOKS = "https://ops.example.org/runbooks"
PATIENCE = 240.0
TOO_LONG = 30
"""Seconds that stand for the 15 minutes of HopInFlightTooLong."""
OLD = "HopInFlightTooLong"
MUST = {
    "none": set(),
    "hang": {"CascadeStalled", OLD},
    "drop-push": {"CascadeStalled"},
    "deadlock": {"CascadeStalled", "Deadlock"},
    "gc": {"CascadeBroken"},
    "silent": {"AgentSilent"},
    "lost": {"TelemetryIncomplete"},
    "stranded": {"CascadeStranded"},
}
"""Which alerts each fault has to bring; `stranded` is told to a collector and not played."""
MAY = {"drop-push": {OLD}, "deadlock": {OLD}, "gc": {OLD}, "silent": {OLD}, "lost": {OLD}}
"""Where hops stay open, time alone makes them old."""
TOGETHER = 3
"""How many faults are played at the same time."""


def until(look, what, say=lambda: ""):
    """What `look` returns as soon as that is true; `say` tells how it stands where it never is."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {PATIENCE:g} s. {say()}")
        time.sleep(0.1)


class Webhook:
    """Takes what Alertmanager posts."""

    def __init__(self):
        self.alerts = []
        took = self.alerts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                took.extend(json.loads(self.rfile.read(int(self.headers["content-length"])))["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Monitoring:
    """Prometheus with the committed rules, Alertmanager with the committed route, both in a hurry, and the webhook."""

    def __init__(self, folder, stack):
        self.folder = folder
        self.targets = {}
        self.processes = {}
        self.lock = threading.Lock()
        self.starting = threading.Lock()
        self.webhook = Webhook()
        stack.callback(self.webhook.close)
        port, alertmanager_port = free_ports(2)
        self._write_targets()
        (folder / "prometheus.yml").write_text(yaml.safe_dump(self._configuration(alertmanager_port)))
        (folder / "hopwatch.yml").write_text(yaml.safe_dump(hurried_rules()))
        route = yaml.safe_load((FOLDER / "alerts" / "alertmanager.yml").read_text("utf-8"))
        route["route"].update(group_wait="0s", group_interval="1s")
        for receiver in route["receivers"]:
            receiver["webhook_configs"][0]["url"] = f"http://127.0.0.1:{self.webhook.port}/alerts"
        (folder / "alertmanager.yml").write_text(yaml.safe_dump(route))
        self._start(
            stack, "alertmanager", "--config.file=alertmanager.yml", "--storage.path=alertmanager",
            f"--web.listen-address=127.0.0.1:{alertmanager_port}", "--cluster.listen-address=",
        )  # fmt: skip
        self._start(
            stack, "prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=prometheus",
            f"--web.listen-address=127.0.0.1:{port}",
        )  # fmt: skip
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        stack.callback(self.client.close)

        for program, at in (("prometheus", port), ("alertmanager", alertmanager_port)):
            until(lambda program=program, at=at: self._ready(program, at), program)

    def _ready(self, program, port):
        log = (self.folder / f"{program}.log").read_text()
        assert self.processes[program].poll() is None, f"{program} ended: {log[-2000:]}"
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{port}/-/ready").status_code == 200
        return False

    def _configuration(self, alertmanager):
        found = yaml.safe_load((FOLDER / "alerts" / "prometheus.yml").read_text("utf-8"))
        found["global"] = {
            # Not less: a scrape has no more time than lies between two, and one that fails makes every alert begin anew.
            "scrape_interval": "2s",
            "evaluation_interval": "1s",
            "external_labels": {"hopwatch_runbooks": RUNBOOKS},
        }
        (manager,) = found["alerting"]["alertmanagers"]
        manager["static_configs"] = [{"targets": [f"127.0.0.1:{alertmanager}"]}]
        (scrape,) = found["scrape_configs"]
        del scrape["static_configs"]
        scrape["file_sd_configs"] = [{"files": ["targets.json"], "refresh_interval": "1s"}]
        return found

    def _start(self, stack, program, *options):
        log = stack.enter_context((self.folder / f"{program}.log").open("w"))
        process = subprocess.Popen([*command(program), *options], cwd=self.folder, stdout=log, stderr=log)
        self.processes[program] = process

        def stop():
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

        stack.callback(stop)

    def scrape(self, fault, url):
        """From now on the collector of a fault is scraped, under the fault's name; None takes it away."""
        with self.lock:
            self.targets[fault] = url
            self._write_targets()

    def _write_targets(self):
        new = self.folder / "targets.new"
        new.write_text(
            json.dumps(
                [
                    {"targets": [url.removeprefix("http://")], "labels": {"instance": fault}}
                    for fault, url in self.targets.items()
                    if url is not None
                ]
            )
        )
        new.rename(self.folder / "targets.json")

    def ask(self, expression):
        """The answer, without what is no number."""
        answer = self.client.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, (expression, answer.text)
        return [each for each in answer.json()["data"]["result"] if not math.isnan(float(each["value"][1]))]

    def told(self, alert):
        """Wait until the webhook was told of an alert."""
        until(
            lambda: any(each["labels"]["alertname"] == alert for each in list(self.webhook.alerts)),
            f"{alert} at the webhook",
        )

    def state(self, fault):
        """How it stands with a fault, for whoever has to find out why it is not as it should be."""
        asked = ("ALERTS", "up", "hopwatch_cascades > 0", "hopwatch_open_hops > 0", "hopwatch_processes > 0")
        found = [
            (*sorted(each["metric"].values()), each["value"][1])
            for expression in asked
            for each in self.ask(expression)
        ]
        with contextlib.suppress(httpx.HTTPError):
            found += httpx.get(f"{self.targets[fault]}/api/cascades").json()["cascades"]
        return "\n".join(str(each) for each in found if not isinstance(each, tuple) or fault in each)

    def firing(self, fault):
        """Every alert that has ever fired of a fault."""
        found = self.ask(
            f'max by (alertname) (max_over_time(ALERTS{{alertstate="firing", instance="{fault}"}}[10m]))'
        )
        return {each["metric"]["alertname"] for each in found}


def hurried_rules():
    """The committed rules, with seconds for minutes."""
    document = yaml.safe_load((FOLDER / "alerts" / "hopwatch.yml").read_text("utf-8"))
    for rule in document["groups"][0]["rules"]:
        # A collector that stands still for some seconds is not down.
        rule["for"] = "20s" if rule["alert"] == "CollectorDown" else "2s"
        rule.pop("keep_firing_for", None)
        if rule["alert"] == OLD:
            assert "> 900" in rule["expr"]
            rule["expr"] = rule["expr"].replace("> 900", f"> {TOO_LONG}")
    return document


class Seen:
    """What came of it."""

    def __init__(self):
        self.fired = {}
        self.answered = set()
        self.later = {}
        self.failed = {}


def look_around(monitoring, seen):
    """Ask everything once, and remember what had data."""
    for each in (*of_panels(), *of_rules()):
        if each.where.startswith("rule "):
            for part in compared(each.expression):
                if monitoring.ask(part):
                    seen.answered.add((each.where, part))
        elif monitoring.ask(filled_in(each.expression)):
            seen.answered.add(tuple(each))


def played(fault, folder, monitoring, seen):
    """Play a fault until its alerts have fired, and say which did."""
    cast = Cast(folder)
    extra = {
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "asyncio,httpx,starlette,fastapi,asgi,grpc_client,grpc_server,grpc_aio_client,grpc_aio_server"
    }
    try:
        with slow_server(15) as slow, httpx.Client(timeout=60) as client:
            with monitoring.starting:  # one cast at a time: starting is what takes a processor
                url = start_collector(cast)
                monitoring.scrape(fault, url)
                frontdesk, port = start_agents(cast, fault, url, slow, extra=extra)
            cast.start(
                "user",
                [*launcher(), str(AGENTS / "user.py"), "--port", str(port), "--to", frontdesk],
                {**agent_environment("user", url), **extra},
            )

            def worker_is_asleep():
                rows = client.get(f"{url}/api/cascades").json()["cascades"]
                return any(
                    worker_sleeps(client.get(f"{url}/api/cascades/{row['cascade']}").json()) for row in rows
                )

            if fault == "silent":
                until(worker_is_asleep, "the worker's execution")
                cast.processes["worker"].send_signal(signal.SIGSTOP)
            if fault == "none":
                settled = 'hopwatch_cascades{instance="none", verdict="settled"} == 1'
                until(lambda: monitoring.ask(settled), "the settled cascade")
            until(
                lambda: MUST[fault] <= monitoring.firing(fault),
                f"{MUST[fault]} of {fault}",
                lambda: monitoring.state(fault),
            )
            settle(monitoring, fault)
            look_around(monitoring, seen)
            seen.fired[fault] = monitoring.firing(fault)
            if fault == "hang":
                cast.processes["worker"].terminate()
                wanted = {"TasksPendingAtShutdown", "CascadeBroken"}
                until(
                    lambda: wanted <= monitoring.firing(fault),
                    f"{wanted} of the worker that was ended",
                    lambda: monitoring.state(fault),
                )
                look_around(monitoring, seen)
                monitoring.told("TasksPendingAtShutdown")
                seen.later[fault] = monitoring.firing(fault)
            if fault == "none":
                cast.processes["collector"].terminate()
                until(lambda: "CollectorDown" in monitoring.firing(fault), "CollectorDown")
                monitoring.told("CollectorDown")
                seen.later[fault] = monitoring.firing(fault)
            monitoring.scrape(fault, None)
    finally:
        cast.end()


def told(folder, monitoring, seen):
    """Tell a collector of a cascade whose A2A task was left in the middle."""
    left = {names.A2A_TASK_ID: "t1", names.A2A_TASK_STATE: "TASK_STATE_WORKING"}
    with collector(folder / "hops.sqlite") as running:
        monitoring.scrape("stranded", f"http://127.0.0.1:{running.port}")
        running.post(protobuf(end(trace(), "1111111111111111", **left)))
        until(lambda: MUST["stranded"] <= monitoring.firing("stranded"), "CascadeStranded")
        settle(monitoring, "stranded")
        look_around(monitoring, seen)
        seen.fired["stranded"] = monitoring.firing("stranded")
        monitoring.scrape("stranded", None)


def settle(monitoring, fault):
    """Wait for as many more scrapes as an alert that must not fire would need."""
    count = f'count_over_time(up{{instance="{fault}"}}[10m])'
    (begun,) = monitoring.ask(count)
    until(
        lambda: float(monitoring.ask(count)[0]["value"][1]) >= float(begun["value"][1]) + 3,
        "three more scrapes",
    )


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    for program in ("prometheus", "alertmanager"):
        needs(program)
    with contextlib.ExitStack() as stack:
        monitoring = Monitoring(tmp_path_factory.mktemp("monitoring"), stack)
        found = Seen()
        with ThreadPoolExecutor(TOGETHER) as pool:
            # The slowest first.
            jobs = {
                fault: pool.submit(played, fault, tmp_path_factory.mktemp(fault), monitoring, found)
                for fault in ("silent", "hang", "lost", "none", "drop-push", "deadlock", "gc")
            }
            jobs["stranded"] = pool.submit(told, tmp_path_factory.mktemp("stranded"), monitoring, found)
            for fault, job in jobs.items():
                error = job.exception()
                if error is not None:
                    found.failed[fault] = "".join(traceback.format_exception(error))
        found.webhook = monitoring.webhook.alerts
        until(
            lambda: (
                {"TasksPendingAtShutdown", "CollectorDown"}
                <= {each["labels"]["alertname"] for each in found.webhook}
            ),
            "the webhook's alerts",
        )
        yield found


@pytest.mark.parametrize("fault", sorted(MUST))
def test_each_fault_brings_its_alerts_and_no_other(seen, fault):
    assert seen.failed.get(fault) is None
    assert MUST[fault] <= seen.fired[fault] <= MUST[fault] | MAY.get(fault, set())


def test_a_worker_that_is_ended_with_work_pending_brings_the_alert_and_breaks_the_cascade(seen):
    assert seen.failed.get("hang") is None
    assert seen.later["hang"] == {"TasksPendingAtShutdown", "CascadeBroken", "CascadeStalled", OLD}


def test_a_collector_that_is_stopped_is_down(seen):
    assert seen.failed.get("none") is None
    assert seen.later["none"] == {"CollectorDown"}


def test_every_alert_has_fired_once(seen):
    assert seen.failed == {}
    fired = set().union(*seen.fired.values(), *seen.later.values())
    assert fired == {rule["alert"] for rule in rules()}


def test_every_expression_of_every_panel_had_data(seen):
    assert seen.failed == {}
    assert [each for each in of_panels() if tuple(each) not in seen.answered] == []


def test_everything_that_a_rule_compares_had_data(seen):
    assert seen.failed == {}
    wanted = [(each.where, part) for each in of_rules() for part in compared(each.expression)]
    assert [each for each in wanted if each not in seen.answered] == []
    assert len(wanted) >= len(rules())


def test_an_alert_reaches_the_webhook_with_its_runbook(seen):
    (alert, *_) = [each for each in seen.webhook if each["labels"]["alertname"] == "TasksPendingAtShutdown"]
    assert (alert["status"], alert["labels"]["agent"], alert["labels"]["severity"]) == (
        "firing",
        "worker",
        "warning",
    )
    assert alert["annotations"]["runbook_url"] == f"{RUNBOOKS}/TasksPendingAtShutdown.md"
    assert (FOLDER.parent / "docs" / "runbooks" / "TasksPendingAtShutdown.md").exists()
