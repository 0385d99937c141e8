"""What does a collector say of the ways in which a2a-sdk itself loses work? Real processes, and the verdict and sentence of each."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from any_release import OLD, RELEASE

from hopwatch.demo.run import Cast, agent_environment, launcher, start_collector

PROGRAM = Path(__file__).with_name("failing_agent.py")
WITHIN = 120.0

pytestmark = [pytest.mark.processes, pytest.mark.timeout(400)]


@contextlib.contextmanager
def played(story, folder):
    """Play a failure; gives a function that waits for a verdict, and for what is to be told with it, and returns the cascade."""
    cast = Cast(folder)
    try:
        url = start_collector(cast)
        with (folder / "agent.log").open("w") as log:
            program = subprocess.Popen(
                [*launcher(), str(PROGRAM), story],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**_environment(folder), **agent_environment("agent", url)},
            )
            cast.processes["agent"] = program
            line = program.stdout.readline()
            assert line == "ready\n", (folder / "agent.log").read_text()

            def judged(wanted, holds=lambda _: True):
                until = time.monotonic() + WITHIN
                seen = {}
                with httpx.Client(base_url=url, timeout=20) as client:
                    while time.monotonic() < until:
                        known = client.get("/api/cascades").raise_for_status().json()["cascades"]
                        for each in known:
                            seen = client.get(f"/api/cascades/{each['cascade']}").raise_for_status().json()
                            if seen["verdict"] == wanted and holds(seen):
                                return seen
                        time.sleep(0.1)
                raise AssertionError(f"{wanted} was not said; the last was: {seen}")

            yield judged
            program.stdin.close()
            program.wait(120)
    finally:
        for each in cast.processes.values():
            if each.stdin is not None:
                each.stdin.close()
        cast.end()


def _environment(folder):
    import os

    return {
        **os.environ,
        "HOPWATCH_BLACKBOX": str(folder / "blackbox"),
        "PYTHONUNBUFFERED": "1",
        # Whatever other instrumentations are installed beside: those of asyncio put a coroutine of theirs around each.
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "asyncio,httpx,starlette,fastapi,asgi",
    }


@pytest.mark.skipif(
    not (0, 3, 22) <= RELEASE < (0, 3, 25),
    reason="ci: may be skipped: only releases below 0.3.25 forget the task",
)
def test_the_task_that_reads_on_is_forgotten_and_the_cascade_is_broken_with_where_it_was_made(
    tmp_path, record_property
):
    with played("forgotten", tmp_path) as judged:
        cascade = judged("broken")
        (lost,) = [hop for hop in cascade["hops"] if hop["outcome"] == "abandoned"]
        assert lost["name"] == "ResultAggregator._continue_consuming"
        assert "result_aggregator.py:162" in lost["location"]
        assert lost["reason"].startswith(
            "the task was destroyed while pending, for nothing kept a reference to it; it awaited a future"
        )
        assert f"failing_agent.py:{_line('create_future()')}" in lost["reason"]
        assert lost["reason"] in cascade["reason"]
        record_property(
            f"the task that reads on after the answer waits for a push, and nobody keeps it: {cascade['verdict']}",
            cascade["reason"],
        )


@pytest.mark.skipif(RELEASE < (0, 3, 25), reason="ci: may be skipped: releases below 0.3.25 forget the task")
def test_the_task_that_reads_on_is_kept_and_what_it_waits_for_is_told(tmp_path, record_property):
    with played("forgotten", tmp_path) as judged:

        def tells(cascade):
            held = [hop["waits_on"] for hop in cascade["hops"] if hop["id"] in cascade["frontier"]]
            return f"failing_agent.py:{_line('create_future()')}" in str(held)

        cascade = judged("stalled", tells)
        record_property(
            f"the task that reads on after the answer waits for a push, and is kept: {cascade['verdict']}",
            cascade["reason"],
        )


@pytest.mark.skipif(OLD, reason="ci: may be skipped: 0.3 has another engine")
def test_a_subscriber_that_stalls_keeps_the_producer_in_close_and_both_are_named(tmp_path, record_property):
    with played("stalls", tmp_path) as judged:

        def tells(cascade):
            # It may stand still for a moment before that, too.
            (ran,) = [hop for hop in cascade["hops"] if hop["kind"] == "execution"]
            wanted = (
                "subscriber 'tail'",
                "undelivered event",
                f"until then 'producer:{ran['task_id']}' cannot close its queues",
            )
            return ran["task_state"] == "TASK_STATE_COMPLETED" and all(
                each in cascade["reason"] for each in wanted
            )

        cascade = judged("stalled", tells)
        record_property(
            f"a subscriber does not take the last events: {cascade['verdict']}", cascade["reason"]
        )


@pytest.mark.skipif(OLD, reason="ci: may be skipped: 0.3 has another engine")
def test_a_subscriber_that_reads_to_the_end_settles_or_leaves_the_producer_in_close_for_ever(
    tmp_path, record_property
):
    with played("reads", tmp_path) as judged:

        def tells(cascade):
            (ran,) = [hop for hop in cascade["hops"] if hop["kind"] == "execution"]
            wanted = (
                "which has left, to acknowledge 1 event",
                f"'producer:{ran['task_id']}' cannot close its queues",
            )
            return all(each in cascade["reason"] for each in wanted)

        cascade = judged("stalled", tells) if RELEASE < (1, 2) else judged("settled")
        record_property(f"a subscriber reads to the end: {cascade['verdict']}", cascade["reason"])


def _line(text):
    lines = PROGRAM.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
