"""Does each planted fault give its verdict, and name its hop? Real processes, the stock launcher, the real collector."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from hopwatch.demo.faults import FAULTS
from hopwatch.demo.run import AGENTS, Cast, free_ports, wait_for_card
from waiting import lives, until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(480)]


def play(fault, *more, **environment):
    return subprocess.run(
        [sys.executable, "-m", "hopwatch", "demo", "--fault", fault, *more],
        capture_output=True,
        text=True,
        timeout=420,
        # Whatever other instrumentations are installed beside: the demo is about hopwatch.
        env={
            **os.environ,
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "asyncio,httpx,starlette,fastapi,asgi,grpc_client,grpc_server,grpc_aio_client,grpc_aio_server",
            **environment,
        },
        check=False,
    )


def told(fault, *more):
    done = play(fault, "--json", *more)
    outcome = json.loads(done.stdout)
    # How soon a verdict is due is for somebody who watches to see: a machine that runs other tests beside it may be late.
    late = " came after " in (outcome["problem"] or "")
    assert outcome["problem"] is None or late, (outcome["problem"], outcome["history"], done.stderr[-3000:])
    assert done.returncode == late
    assert outcome["verdict"] == FAULTS[fault].verdict
    return outcome


def hops(told, /, **wanted):
    return [hop for hop in told["cascade"]["hops"] if all(hop[key] == value for key, value in wanted.items())]


def verdicts(outcome):
    """Each change of the verdict. For as long as a process stands still that has something to tell, it is unknown; that is passed over."""
    said = [change["verdict"] for change in outcome["history"] if change["verdict"] != "unknown"]
    return [verdict for verdict, before in zip(said, [None, *said], strict=False) if verdict != before]


def assert_all_of_it(outcome):
    """Three hops a message, two a push, and 1.3.0 pushes four times a task. On a busy machine a task, or an item in a queue, may
    take long enough to be shown; the demo itself looks that those did."""
    kinds = Counter(hop["kind"] for hop in outcome["cascade"]["hops"] if hop["kind"] not in ("task", "event"))
    assert kinds == {"send": 3, "request": 3, "execution": 3, "push": 12, "webhook": 12}


def place(hop):
    """The file and the line of a hop's location."""
    return re.match(r"(.*):(\d+) ", hop["location"]).groups()


def line(file, number):
    """What stands there."""
    return Path(file).read_text().splitlines()[int(number) - 1].strip()


def test_three_agents_that_do_their_work_settle_in_one_trace_over_four_processes():
    outcome = told("none")
    assert {hop["state"] for hop in outcome["cascade"]["hops"]} == {"ended"}
    assert len({hop["instance"] for hop in outcome["cascade"]["hops"]}) == 4
    assert_all_of_it(outcome)
    assert not any(hop["late"] for hop in outcome["cascade"]["hops"])


@pytest.mark.one_python
@pytest.mark.parametrize("binding", ["rest", "grpc"])
def test_whichever_binding_they_speak_it_is_the_same_cascade(binding):
    outcome = told("none", "--binding", binding)
    assert outcome["binding"] == binding
    assert_all_of_it(outcome)
    assert {hop["peer"] for hop in hops(outcome, kind="send")} == {"instrumented"}
    assert not hops(outcome, late=True)


@pytest.mark.one_python
@pytest.mark.parametrize(("binding", "fault"), [("rest", "hang"), ("grpc", "kill")])
def test_whichever_binding_they_speak_a_fault_gives_its_verdict_and_names_its_hop(binding, fault):
    outcome = told(fault, "--binding", binding)
    (worker,) = hops(outcome, kind="execution", agent="worker")
    if fault == "hang":
        assert outcome["cascade"]["frontier"] == [worker["id"]]
        assert "worker.py:" in outcome["cascade"]["reason"]
    else:
        assert (worker["outcome"], worker["reason"]) == ("abandoned", "process_killed")


def test_a_worker_that_awaits_a_future_nobody_sets_stalls_at_file_and_line():
    outcome = told("hang")
    (worker,) = hops(outcome, kind="execution", agent="worker")
    assert outcome["cascade"]["frontier"] == [worker["id"]]
    assert worker["waits_on"]["kind"] == "future"
    assert "worker.py:" in outcome["cascade"]["reason"]


def test_two_locks_in_opposite_order_stall_with_both_tasks_both_holders_and_the_whole_cycle():
    outcome = told("deadlock")
    reason = outcome["cascade"]["reason"]
    assert all(
        word in reason for word in ("execution of worker", "`stock`", "`account`", "'reserve'", "'charge'")
    )
    tasks = [hop for hop in hops(outcome, kind="task", agent="worker") if hop["state"] == "open"]
    edges = [hop["waits_on"]["deadlock"]["edges"] for hop in tasks]
    assert len(edges) == 2
    for each in edges:
        assert sorted((edge["task"], edge["held_by"]) for edge in each) == [
            ("charge", ["reserve"]),
            ("reserve", ["charge"]),
        ]


@pytest.mark.one_python
def test_a_refused_push_stalls_the_one_that_waits_for_it_and_is_named():
    outcome = told("drop-push")
    assert "answered 503" in outcome["cascade"]["reason"]
    (waiting,) = hops(outcome, kind="execution", agent="planner")
    assert waiting["id"] in outcome["cascade"]["frontier"]
    assert waiting["waits_on"]["line"]


@pytest.mark.one_python
def test_a_slow_server_keeps_it_in_flight_and_then_it_settles():
    outcome = told("slow")
    assert verdicts(outcome) == ["in_flight", "settled"]


def test_a_task_that_nobody_keeps_breaks_the_cascade_with_where_it_was_made_and_what_it_awaited():
    outcome = told("gc")
    (lost,) = hops(outcome, outcome="abandoned")
    assert lost["kind"] == "task"
    assert "worker.py:" in lost["location"]
    assert "awaited a future" in lost["reason"]


def test_a_worker_that_gets_sigterm_breaks_the_cascade_with_what_was_pending_and_what_that_awaited():
    outcome = told("term")
    (cut,) = hops(outcome, kind="execution", outcome="abandoned")
    reason = re.fullmatch(
        r"pending at shutdown: SIGTERM; it awaited data from 127\.0\.0\.1:\d+ at (\S+worker\.py):(\d+)",
        cut["reason"],
    )
    assert line(*reason.groups()) == "await reader.readline()"
    assert (
        line(*place(cut))
        == "async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:"
    )
    assert (
        f"Execution of worker (Worker.execute) was abandoned: {cut['reason']}; defined at {cut['location']}"
        in (outcome["cascade"]["reason"])
    )
    assert {hop["outcome"] for hop in hops(outcome, agent="worker")} == {"finished", "abandoned"}
    ended = outcome["ended"]
    assert (ended["agent"], ended["exit_code"], ended["how"]) == ("worker", -signal.SIGTERM, "SIGTERM")
    assert ended["pending"]["execution"] == 1


def test_a_worker_that_is_killed_breaks_the_cascade():
    outcome = told("kill")
    (cut,) = hops(outcome, outcome="abandoned")
    assert (cut["agent"], cut["kind"], cut["reason"]) == ("worker", "execution", "process_killed")
    assert line(*place(cut)).startswith("async def execute(")
    assert "process_killed" in outcome["cascade"]["reason"]
    assert outcome["ended"] == {
        "agent": "worker",
        "exit_code": -signal.SIGKILL,
        "how": "process_killed",
        "pending": {"execution": 1},
    }


def test_a_task_that_a_worker_leaves_behind_breaks_the_cascade_with_where_it_was_made():
    outcome = told("pending")
    (cut,) = hops(outcome, outcome="abandoned")
    assert (cut["agent"], cut["kind"], cut["name"]) == ("worker", "task", "Worker.tidy_up")
    assert line(*place(cut)) == 'self.keep(asyncio.create_task(self.tidy_up(), name="tidy up"))'
    reason = re.fullmatch(
        r"pending at shutdown: cancelled by asyncio\.run at its end; it awaited asyncio\.sleep\(600\) until \S+ at (\S+worker\.py):(\d+)",
        cut["reason"],
    )
    assert line(*reason.groups()) == "await asyncio.sleep(600)"
    assert outcome["ended"] == {"agent": "worker", "exit_code": 0, "how": "exit", "pending": {"task": 1}}
    (execution,) = hops(outcome, kind="execution", agent="worker")
    assert (execution["outcome"], execution["task_state"]) == ("finished", "TASK_STATE_COMPLETED")


@pytest.mark.parametrize("fault", ["term", "kill", "pending"])
def test_without_hopwatch_the_worker_ends_with_the_same_exit_code(tmp_path, fault):
    cast = Cast(tmp_path)
    (port,) = free_ports(1)
    with contextlib.ExitStack() as stack:
        slow = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        slow.settimeout(90)
        try:
            worker = cast.start(
                "worker",
                [
                    sys.executable, str(AGENTS / "worker.py"), "--port", str(port), "--fault", fault,
                    "--slow", "{}:{}".format(*slow.getsockname()),
                ],
            )  # fmt: skip
            wait_for_card(cast, "worker", port, time.monotonic() + 120)
            message = {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "work"}]}
            params = {"message": message, "configuration": {"returnImmediately": fault != "pending"}}
            answer = httpx.post(
                f"http://127.0.0.1:{port}/",
                json={"jsonrpc": "2.0", "id": "1", "method": "SendMessage", "params": params},
                headers={"A2A-Version": "1.0"},
                timeout=90,
            ).json()
            state = answer["result"]["task"]["status"]["state"]
            if fault == "pending":
                assert state == "TASK_STATE_COMPLETED"
            else:
                stack.enter_context(slow.accept()[0])  # the worker waits for what it says
            worker.send_signal(FAULTS[fault].strike[0])
            assert worker.wait(90) == FAULTS[fault].ending.exit_code
            assert "hopwatch" not in cast.tail("worker")
        finally:
            cast.end()


@pytest.mark.one_python
def test_a_worker_that_is_stopped_is_silent_and_in_flight_again_when_it_goes_on():
    outcome = told("silent")
    assert verdicts(outcome) == ["in_flight", "silent", "in_flight"]


@pytest.mark.one_python
def test_a_worker_whose_telemetry_never_leaves_it_is_unknown_and_never_settled():
    outcome = told("lost")
    assert all(change["verdict"] in ("in_flight", "unknown") for change in outcome["history"])
    assert "was promised hop" in outcome["cascade"]["reason"]


@pytest.mark.one_python
def test_a_subscriber_that_stalls_keeps_it_in_flight_with_producer_queue_events_and_subscriber_until_it_hangs_up():
    outcome = told("leak")
    assert verdicts(outcome) == ["in_flight", "settled"]
    assert not hops(outcome, late=True)
    (worker,) = hops(outcome, kind="execution", agent="worker")
    assert worker["task_state"] == "TASK_STATE_COMPLETED"
    (delivery,) = [
        hop for hop in outcome["cascade"]["hops"] if hop["state"] == "open" and hop["kind"] == "event"
    ]
    assert (delivery["parent"], delivery["name"]) == (worker["id"], "delivery of the last events")
    reason = outcome["cascade"]["reason"]
    assert re.search(
        r"of request SubscribeToTask \([0-9a-f]{16}\) to take \d+ undelivered events? from queue 0x", reason
    )
    assert f"'producer:{worker['task_id']}' cannot close" in reason


@pytest.mark.one_python
def test_work_that_begins_after_its_parent_closed_is_flagged_and_it_settles_only_after_it():
    outcome = told("late")
    assert verdicts(outcome) == ["in_flight", "settled"]
    (known,) = hops(outcome, kind="task", agent="worker", name="Worker.afterwards")
    (late,) = hops(outcome, kind="task", agent="worker", name="Worker.one_more")
    (sent,) = hops(outcome, kind="send", agent="worker")
    assert (known["late"], late["late"], sent["late"]) == (False, True, True)
    (first, *_) = hops(outcome, kind="execution", agent="worker")
    assert late["parent"] == first["id"]
    assert late["started"] > first["ended"]
    assert "began late" in outcome["cascade"]["reason"]


def test_the_demo_says_in_plain_lines_what_it_saw():
    done = play("none")
    assert done.returncode == 0
    assert "As it must be: settled" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.one_python
def test_settings_and_proxies_that_are_meant_for_other_programs_do_not_reach_its_agents(tmp_path):
    nowhere = "http://127.0.0.1:9"
    done = play(
        "none",
        OTEL_SDK_DISABLED="true",
        OTEL_TRACES_SAMPLER="always_off",
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=nowhere + "/v1/traces",
        HOPWATCH_DETAIL="all",
        HOPWATCH_TOKEN_FILE=str(tmp_path / "token"),
        HOPWATCH_URL=nowhere,
        HTTP_PROXY=nowhere,
        http_proxy=nowhere,
        ALL_PROXY=nowhere,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "As it must be: settled" in done.stdout


def below(pid):
    """The processes that a process has started."""
    out = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                out.append(int(stat.parent.name))
    return out


@pytest.mark.one_python
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_told_to_end_ends_all_that_it_started(tmp_path, number):
    running = subprocess.Popen(
        [sys.executable, "-m", "hopwatch", "demo", "--fault", "slow"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with running:
        try:
            while "in_flight" not in running.stdout.readline():
                assert running.poll() is None
            started = below(running.pid)
            assert len(started) >= 4  # the collector and three agents
            running.send_signal(number)
            running.stdout.read()
            assert running.wait(90) == 128 + number
        finally:
            running.kill()
    until(lambda: not any(map(lives, started)))
    assert not list(tmp_path.glob("hopwatch-demo-*"))


def test_an_unknown_fault_is_a_usage_error_that_names_the_known_ones():
    done = play("gravity")
    assert done.returncode == 2
    assert "gravity" in done.stderr
    assert "drop-push" in done.stderr
