"""Does `/metrics` say what the store holds? In OpenMetrics, within bounds, and to a real Prometheus."""

from __future__ import annotations

import os
import subprocess
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as text_parser
from telling import PLANNER, SECOND, WORKER, collector, end, foreign, heartbeat, opened, protobuf, trace

from hopwatch import attributes as names
from hopwatch import exits
from hopwatch.collector import metrics, otlp
from hopwatch.collector.api import agent_object, cascade_object
from hopwatch.collector.judged import Judge
from hopwatch.collector.metrics import Metrics
from hopwatch.collector.store.sqlite import SqliteStore
from hopwatch.collector.traffic import Traffic
from prometheus_programs import needs

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
NOW = time.time_ns() // SECOND * SECOND
ROOT = "2222222222222222"
HOP = "1111111111111111"


class Scraped:
    """A store, what was told to it, and what a scrape at `now` says."""

    def __init__(self):
        self.now = NOW
        self.ticks = 0.0
        self.store = SqliteStore(":memory:", clock=lambda: self.now)
        self.traffic = Traffic()
        self.metrics = Metrics(
            self.store,
            Judge(self.store, clock=lambda: self.now),
            self.traffic,
            clock=lambda: self.now,
            monotonic=lambda: self.ticks,
        )

    def tell(self, *spans, **resource):
        batch = otlp.read_traces(protobuf(*spans, **resource), json=False, now=self.now)
        self.traffic.arriving(batch)
        stored = self.store.write(batch).result(60)
        self.traffic.taken("http", "traces", batch, stored)

    def scrape(self):
        """By name of the sample: its labels' values, in the order of their names and joined by commas, and the value."""
        self.ticks += 1_000.0
        return parsed(self.metrics.answer(OPENMETRICS)[0])

    def close(self):
        self.store.close()


def parsed(body, parse=text_string_to_metric_families):
    out = {}
    for family in parse(body.decode()):
        for sample in family.samples:
            labels = ",".join(value for _, value in sorted(sample.labels.items()))
            out.setdefault(sample.name, {})[labels] = sample.value
    return out


def some(values):
    return {labels: value for labels, value in values.items() if value}


@pytest.fixture
def scraped():
    made = Scraped()
    yield made
    made.close()


# What is counted -----------------------------------------------------------------------------------------------


def test_an_empty_store_says_zero_of_every_verdict_and_names_no_agent(scraped):
    found = scraped.scrape()
    assert found["hopwatch_cascades"] == dict.fromkeys(
        ("settled", "in_flight", "waiting", "stalled", "stranded", "broken", "silent", "unknown"), 0
    )
    assert "hopwatch_open_hops" not in found
    assert found["hopwatch_cascades_unread"] == {"": 0}
    assert found["hopwatch_records_received_total"] == {"hop": 0, "heartbeat": 0, "shutdown": 0}


def test_cascades_are_counted_by_their_verdicts_and_open_hops_by_agent_and_kind(scraped):
    at = NOW - 30 * SECOND
    settled, moving, broken = trace(), trace(), trace()
    scraped.tell(end(settled, HOP, at=at), heartbeat(at=NOW))
    scraped.tell(
        opened(moving, ROOT, at=at, kind="request", sampled=NOW),
        opened(moving, HOP, at=at + SECOND, parent=ROOT, sampled=NOW, waits={"kind": "socket", "what": "x"}),
    )
    scraped.tell(
        end(broken, HOP, at=at, kind="task", outcome="abandoned", **{names.HOP_REASON: "process_killed"})
    )
    found = scraped.scrape()
    assert some(found["hopwatch_cascades"]) == {"settled": 1, "in_flight": 1, "broken": 1}
    assert some(found["hopwatch_open_hops"]) == {"worker,request": 1, "worker,execution": 1}
    assert some(found["hopwatch_open_hop_age_seconds"]) == {"worker,request": 30, "worker,execution": 29}
    assert some(found["hopwatch_cascade_age_seconds"]) == {"in_flight": 30}
    # Only where the work stands: the request waits for the execution below it.
    assert found["hopwatch_waiting_hops"] == {"worker,true,socket": 1}
    assert some(found["hopwatch_abandoned_hops"]) == {"worker,killed": 1}
    assert some(found["hopwatch_processes"]) == {"worker,alive": 1}


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("process_killed", "killed"),
        (f"{exits.PENDING}: SIGTERM", "shutdown"),
        ("the task was destroyed while pending, for nothing kept a reference to it", "collected"),
        ("an item", "other"),
    ],
)
def test_what_never_finished_is_counted_by_its_cause(scraped, reason, cause):
    scraped.tell(end(trace(), HOP, at=NOW, outcome="abandoned", **{names.HOP_REASON: reason}))
    assert some(scraped.scrape()["hopwatch_abandoned_hops"]) == {f"worker,{cause}": 1}


def test_a_gauge_falls_when_the_hop_ends_also_where_the_end_comes_twice(scraped):
    cascade = trace()
    scraped.tell(opened(cascade, HOP, at=NOW, sampled=NOW))
    assert some(scraped.scrape()["hopwatch_open_hops"]) == {"worker,execution": 1}
    for _ in range(2):
        scraped.tell(end(cascade, HOP, at=NOW))
        found = scraped.scrape()
        assert some(found["hopwatch_open_hops"]) == {}
        assert some(found["hopwatch_cascades"]) == {"settled": 1}


def test_one_deadlock_that_two_hops_tell_of_is_one(scraped):
    locked = {
        "kind": "lock", "moves": False, "what": "lock", "deadlock": {"words": "'a' wants what 'b' holds"}
    }  # fmt: skip
    for cascade, hop in ((trace(), HOP), (trace(), ROOT)):
        scraped.tell(opened(cascade, hop, at=NOW, sampled=NOW, waits=locked, moves=False))
    found = scraped.scrape()
    assert found["hopwatch_open_deadlocks"] == {"worker": 1}
    assert found["hopwatch_waiting_hops"] == {"worker,false,lock": 2}


def test_swallowed_and_outlived_cancellations_are_counted_of_ended_hops_too(scraped):
    scraped.tell(end(trace(), HOP, at=NOW, kind="task", **{names.SWALLOWED: True}))
    scraped.tell(opened(trace(), HOP, at=NOW, kind="task", **{names.OUTLIVED: True}))
    found = scraped.scrape()
    assert (found["hopwatch_swallowed_cancellations"], found["hopwatch_outlived_cancellations"]) == (
        {"worker": 1},
        {"worker": 1},
    )


def test_what_was_pending_when_a_process_ended_is_there_for_an_hour(scraped):
    gone = heartbeat(at=NOW)
    gone["says"].update(
        {
            names.RECORD: names.RECORD_SHUTDOWN,
            names.SHUTDOWN_WAY: "SIGTERM",
            f"{names.SHUTDOWN_PENDING}.task": 3,
        }
    )
    scraped.tell(gone)
    found = scraped.scrape()
    assert some(found["hopwatch_pending_at_shutdown"]) == {"worker,task": 3}
    assert some(found["hopwatch_processes"]) == {"worker,ended": 1}
    scraped.now += metrics.WINDOW + SECOND
    assert "hopwatch_pending_at_shutdown" not in scraped.scrape()


def test_a_process_with_open_hops_that_is_not_heard_of_is_silent_and_one_without_is_idle(scraped):
    scraped.tell(opened(trace(), HOP, at=NOW, sampled=NOW), heartbeat(at=NOW))
    scraped.tell(end(trace(), HOP, at=NOW, instance=PLANNER), service="planner")
    scraped.now += 20 * SECOND
    found = scraped.scrape()
    assert some(found["hopwatch_processes"]) == {"worker,silent": 1, "planner,idle": 1}
    assert some(found["hopwatch_process_silence_seconds"]) == {"worker": 20}
    assert some(found["hopwatch_cascades"]) == {"silent": 1, "settled": 1}


def test_the_metrics_the_api_and_each_cascade_say_the_same_of_a_process(scraped):
    """What its last heartbeat told to be open may have ended since, and what was opened after it may not be in it."""
    busy, over = trace(), trace()
    scraped.tell(opened(busy, HOP, at=NOW, sampled=NOW), heartbeat(at=NOW, **{names.HEARTBEAT_OPEN: 0}))
    scraped.tell(end(over, HOP, at=NOW, instance=PLANNER), heartbeat(PLANNER, at=NOW), service="planner")
    judge = Judge(scraped.store, clock=lambda: scraped.now)
    for seconds, states in ((10, ("alive", "alive")), (20, ("silent", "idle"))):
        scraped.now = NOW + seconds * SECOND
        processes = {
            agent.name: agent_object(agent, count, scraped.now) for agent, count in scraped.store.agents()
        }
        assert (processes["worker"]["state"], processes["planner"]["state"]) == states
        shown = []
        for cascade in (busy, over):
            snapshot = scraped.store.snapshot(cascade)
            (agent,) = cascade_object(snapshot, judge.verdict(snapshot), scraped.now)["agents"]
            shown.append(agent["state"])
        assert tuple(shown) == states
        assert some(scraped.scrape()["hopwatch_processes"]) == {
            f"{name},{state}": 1 for name, state in zip(("worker", "planner"), states, strict=True)
        }


def test_what_ended_more_than_an_hour_ago_no_longer_counts_and_what_is_open_does(scraped):
    scraped.tell(end(trace(), HOP, at=NOW))
    scraped.tell(opened(trace(), ROOT, at=NOW, sampled=NOW))
    scraped.now += metrics.WINDOW + SECOND
    found = scraped.scrape()
    assert some(found["hopwatch_cascades"]) == {"silent": 1}
    assert some(found["hopwatch_open_hop_age_seconds"]) == {"worker,execution": 3601}
    assert found["hopwatch_store_cascades"] == {"": 2}


def test_records_are_counted_as_taken_rejected_and_passed_over_and_their_lag_is_taken(scraped):
    cascade = trace()
    scraped.tell(
        end(cascade, HOP, at=NOW, kind="?"), end(cascade, ROOT, at=NOW), foreign(), heartbeat(at=NOW - 2 * SECOND)
    )  # fmt: skip
    scraped.tell(end(cascade, ROOT, at=NOW, instance=PLANNER))  # a hop of another process: the store refuses
    found = scraped.scrape()
    assert found["hopwatch_records_received_total"] == {"hop": 1, "heartbeat": 1, "shutdown": 0}
    assert found["hopwatch_records_rejected_total"] == {"": 2}
    assert found["hopwatch_spans_ignored_total"] == {"": 1}
    assert (found["hopwatch_record_lag_seconds_count"], found["hopwatch_record_lag_seconds_sum"]) == (
        {"": 1},
        {"": 2},
    )
    assert some(found["hopwatch_cascades"]) == {"unknown": 1}


KINDS = st.sampled_from(names.KINDS)
HOPS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 6), KINDS, st.booleans(), st.integers(0, 2)), max_size=30
)


@settings(max_examples=40, deadline=None)
@given(HOPS, st.sets(st.integers(0, 30)))
def test_whatever_is_told_and_whenever_somebody_scrapes_the_gauges_are_what_the_store_holds(told, scrapes):
    it = Scraped()
    try:
        for step, (cascade, hop, kind, is_open, agent) in enumerate(told):
            make = opened if is_open else end
            it.tell(
                make(f"{cascade + 1:032x}", f"{hop:016x}", at=NOW - hop * SECOND, kind=kind, instance=f"{agent + 1:016x}"),
                service=f"agent-{agent}",
            )  # fmt: skip
            if step in scrapes:
                it.scrape()
        found = it.scrape()
        count, oldest = {}, {}
        for hop in it.store.open_hops(1_000):
            key = f"{hop.agent},{hop.kind}"
            count[key] = count.get(key, 0) + 1
            oldest[key] = max(oldest.get(key, 0), (NOW - hop.started) / SECOND)
        assert some(found.get("hopwatch_open_hops", {})) == count
        assert some(found.get("hopwatch_open_hop_age_seconds", {})) == oldest
        assert sum(found["hopwatch_cascades"].values()) == len({cascade for cascade, *_ in told})
        judge = Judge(it.store, clock=lambda: it.now)
        for verdict, number in found["hopwatch_cascades"].items():
            assert len(judge.listed(frozenset([verdict]), 100)) == number
    finally:
        it.close()


# Bounds --------------------------------------------------------------------------------------------------------


def test_agents_beyond_the_bound_share_one_series_and_none_that_has_its_own_loses_it(scraped, monkeypatch):
    monkeypatch.setattr(metrics, "MAX_AGENTS", 2)
    for name in ("one", "two"):
        scraped.tell(opened(trace(), HOP, at=NOW, sampled=NOW, instance=os.urandom(8).hex()), service=name)
    scraped.scrape()
    for name in ("a", "b", "c"):
        scraped.tell(opened(trace(), HOP, at=NOW, sampled=NOW, instance=os.urandom(8).hex()), service=name)
    assert some(scraped.scrape()["hopwatch_open_hops"]) == {
        "one,execution": 1,
        "two,execution": 1,
        "(others),execution": 3,
    }


def test_hostile_names_of_agents_come_back_whole_from_the_parser(scraped):
    name = 'a"b\\c\nd{}=# EOF'
    scraped.tell(opened(trace(), HOP, at=NOW, sampled=NOW), service=name)
    scraped.tell(opened(trace(), HOP, at=NOW, sampled=NOW, instance=PLANNER), service="x" * 5_000)
    body, _ = scraped.metrics.answer(OPENMETRICS)
    labels = {
        sample.labels["agent"]
        for family in text_string_to_metric_families(body.decode())
        if family.name == "hopwatch_open_hops"
        for sample in family.samples
    }
    assert labels == {name, "x" * (metrics.MAX_NAME - 1) + "…"}


def test_cascades_beyond_the_bound_are_counted_as_unread_and_open_ones_are_read_first(scraped, monkeypatch):
    monkeypatch.setattr(metrics, "MAX_CASCADES", 3)
    scraped.tell(*(end(trace(), HOP, at=NOW) for _ in range(5)))
    scraped.tell(*(opened(trace(), HOP, at=NOW, sampled=NOW) for _ in range(2)))
    found = scraped.scrape()
    assert some(found["hopwatch_cascades"]) == {"in_flight": 2, "settled": 1}
    assert found["hopwatch_cascades_unread"] == {"": 4}
    assert len(scraped.metrics._facts) == 3


def test_a_scrape_that_has_no_time_leaves_the_rest_for_the_next_one_and_says_how_much(scraped, monkeypatch):
    scraped.tell(*(end(trace(), HOP, at=NOW) for _ in range(250)))
    spent = [0]

    def slow():
        spent[0] += 1
        return spent[0] * metrics.BUDGET / 120

    scraped.metrics._monotonic = slow
    seen = []
    for _ in range(20):
        scraped.metrics._until = 0
        found = parsed(scraped.metrics.answer(OPENMETRICS)[0])
        done = found["hopwatch_cascades"]["settled"]
        assert done + found["hopwatch_cascades_unread"][""] == 250
        seen.append(done)
        if done == 250:
            break
    assert seen == sorted(seen)
    assert seen[0] < 250
    assert seen[-1] == 250


def test_scrapes_within_a_second_get_the_same_answer_and_measure_once(scraped, monkeypatch):
    asked = []
    watched = scraped.store.watched
    monkeypatch.setattr(scraped.store, "watched", lambda *args: (asked.append(1), watched(*args))[1])
    scraped.ticks = 10.0
    together = [threading.Thread(target=scraped.metrics.answer, args=(OPENMETRICS,)) for _ in range(8)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join(60)
    scraped.ticks = 10.9
    scraped.metrics.answer(OPENMETRICS)
    assert len(asked) == 1
    scraped.ticks = 11.1
    scraped.metrics.answer("")
    assert len(asked) == 2


# The real collector --------------------------------------------------------------------------------------------


@pytest.mark.processes
def test_the_collector_answers_in_the_format_that_is_asked_for(tmp_path):
    with collector(tmp_path / "hops.sqlite") as running:
        running.post(protobuf(end(trace(), HOP), heartbeat(WORKER)))
        for accept, kind, parse in (
            (OPENMETRICS, "application/openmetrics-text; version=1.0.0", text_string_to_metric_families),
            ("text/plain", "text/plain; version=0.0.4", text_parser),
            ("*/*", "text/plain; version=0.0.4", text_parser),
        ):
            status, headers, body = running.request("GET", "/metrics", headers={"accept": accept})
            assert (status, headers["content-type"].startswith(kind)) == (200, True), headers
            found = parsed(body, parse)
            assert some(found["hopwatch_cascades"]) == {"settled": 1}
            assert found["process_cpu_seconds_total"][""] > 0
            assert some(found["hopwatch_otlp_requests_total"]) == {"http,taken,traces": 1}
        assert running.request("POST", "/metrics")[0] == 405
        # A request that cannot be read is counted; the answer is kept for a second.
        running.post(b"\xff\xff")
        until = time.monotonic() + 60
        while True:
            found = parsed(running.request("GET", "/metrics")[2], text_parser)
            if found["hopwatch_otlp_requests_total"]["http,malformed,traces"] == 1:
                break
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.processes
def test_promtool_finds_nothing_to_say_about_the_metrics(tmp_path):
    promtool = needs("promtool")
    with collector(tmp_path / "hops.sqlite") as running:
        running.post(protobuf(opened(trace(), HOP), heartbeat(WORKER)))
        _, _, body = running.request("GET", "/metrics")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=body, capture_output=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_no_name_is_that_of_a_metric_of_the_agents():
    ours = {value for name, value in vars(names).items() if name.startswith("COLLECTOR_")}
    theirs = {value.replace(".", "_") for name, value in vars(names).items() if name.startswith("METRIC_")}
    assert not ours & theirs
