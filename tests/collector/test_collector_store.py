"""Does the store keep what it was told? In process: merging, restarts, bounds, liveness, files that are not ours."""

from __future__ import annotations

import dataclasses
import sqlite3
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from telling import PLANNER, SECOND, WORKER, end, foreign, heartbeat, opened, protobuf, trace

from hopwatch import attributes as names
from hopwatch.collector import otlp
from hopwatch.collector.batch import Batch, Sender
from hopwatch.collector.judged import Judge
from hopwatch.collector.store import AmbiguousCascadeError, StoreBusyError, StoreError, UnknownCascadeError
from hopwatch.collector.store import cascade as memory
from hopwatch.collector.store.sqlite import SqliteStore

HOP = "1111111111111111"
ROOT = "2222222222222222"
NOW = time.time_ns() // SECOND * SECOND


@pytest.fixture
def store():
    made = SqliteStore(":memory:")
    yield made
    made.close()


def tell(store, *spans, now=None, **resource):
    batch = otlp.read_traces(protobuf(*spans, **resource), json=False, now=now or time.time_ns())
    assert not batch.refused.count, batch.refused.sentence()
    return store.write(batch).result(60)


def verdict(store, cascade):
    return Judge(store).verdict(store.snapshot(cascade))


def story():
    """The records that one hop makes in its life."""
    cascade = "ab" * 16
    task = {names.A2A_TASK_ID: "t1"}
    return [
        opened(cascade, HOP, at=NOW, sampled=NOW + SECOND, parent=ROOT, waits={"what": "a"}, moves=False, **task),
        opened(cascade, HOP, at=NOW, sampled=NOW + 2 * SECOND, parent=ROOT, waits={"what": "b"}, **task, **{names.A2A_TASK_STATE: "TASK_STATE_WORKING", names.HOP_CHILDREN: 1}),
        end(cascade, HOP, at=NOW, parent=ROOT, children=2, **task, **{names.A2A_TASK_STATE: "TASK_STATE_COMPLETED", names.CODE_LINE_NUMBER: 3}),
        {**opened(cascade, HOP, at=NOW, sampled=NOW + 3 * SECOND, parent=ROOT, **task), "says": {
            names.RECORD: names.RECORD_LATE, names.INSTANCE: WORKER, names.HOP_KIND: "execution", names.HOP_NAME: "execution it",
            names.HOP_STARTED: NOW, names.HOP_CHILDREN: 2, names.HOP_LATE_CHILDREN: 1, names.HOP_PARENT: ROOT, **task}},
        {**end(cascade, HOP, at=NOW, parent=ROOT, children=1, outcome="abandoned"), "end": NOW + 9 * SECOND},
    ]  # fmt: skip


def told_in(order):
    store = SqliteStore(":memory:")
    try:
        for group in order:
            tell(store, *group, now=NOW + 10 * SECOND)
        snapshot = store.snapshot("ab" * 16)
        row = dataclasses.replace(snapshot.row, version=0)
        return dataclasses.asdict(snapshot.hops[HOP]), dataclasses.asdict(row), snapshot.tasks
    finally:
        store.close()


RECORDS = story()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(range(len(RECORDS))), max_size=6).flatmap(
        lambda twice: st.permutations([*range(len(RECORDS)), *twice])
    ),
    st.integers(1, 4),
)
def test_records_of_a_hop_in_any_order_and_twice_give_the_same_row(order, size):
    groups = [[RECORDS[n] for n in order[at : at + size]] for at in range(0, len(order), size)]
    assert told_in(groups) == told_in([RECORDS])


def test_a_hop_that_ended_shows_its_own_end_and_not_that_of_who_found_it_dead():
    hop, row, tasks = told_in([RECORDS])
    assert (hop["outcome"], hop["ended"]) == ("finished", NOW + SECOND // 100)
    assert hop["children"] == 2
    assert hop["late_children"] == 1
    assert hop["waits"] == {"what": "b"}
    assert (row["hops"], row["open"]) == (1, 0)
    assert tasks == {("worker", "t1"): ("TASK_STATE_COMPLETED", NOW + SECOND // 100)}


@pytest.mark.parametrize("cache", [1, 10**8])
def test_what_was_told_is_there_after_a_restart(tmp_path, cache):
    path = tmp_path / "hops.sqlite"
    cascades = [trace() for _ in range(5)]
    store = SqliteStore(path, cache_bytes=cache)
    for cascade in cascades:
        tell(store, end(cascade, ROOT, children=1, kind="request"), heartbeat(), now=NOW)
    for cascade in cascades:
        tell(
            store,
            end(
                cascade,
                HOP,
                parent=ROOT,
                **{names.A2A_TASK_ID: "t", names.A2A_TASK_STATE: "TASK_STATE_COMPLETED"},
            ),
            now=NOW,
        )
    before = [store.snapshot(cascade) for cascade in cascades]
    agents = store.agents()
    store.close()
    again = SqliteStore(path, cache_bytes=cache)
    try:
        assert [again.snapshot(cascade) for cascade in cascades] == before
        assert again.agents() == agents
        assert {verdict(again, cascade).verdict for cascade in cascades} == {"settled"}
        assert tell(again, end(trace(), ROOT)).count == 0
        assert len(again.rows(None, 100)) == 6
    finally:
        again.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_record_that_claims_the_hop_of_another_process_is_refused_and_nothing_settles(store):
    cascade = trace()
    tell(store, opened(cascade, ROOT))
    refused = tell(store, end(cascade, ROOT, instance=PLANNER), end(cascade, HOP, parent=ROOT))
    assert refused.sentence() == "1 span was refused: 1 x the record claims a hop of another process"
    snapshot = store.snapshot(cascade)
    assert snapshot.hops[ROOT].ended is None
    assert HOP in snapshot.hops
    tell(store, end(cascade, ROOT, children=1))
    assert verdict(store, cascade).verdict == "unknown"


def test_hops_beyond_the_bound_of_a_cascade_are_refused_and_it_cannot_settle(store, monkeypatch):
    monkeypatch.setattr(memory, "MAX_HOPS", 10)
    cascade = trace()
    refused = tell(store, *(end(cascade, f"{n:016x}") for n in range(1, 14)))
    assert refused.count == 3
    assert store.snapshot(cascade).row.rejected == 3
    assert verdict(store, cascade).verdict == "unknown"
    assert tell(store, end(cascade, f"{1:016x}", children=0)).count == 0


def test_a_task_that_another_cascade_finished_is_finished_in_both(store):
    first, second = trace(), trace()
    task = {names.A2A_TASK_ID: "t1"}
    tell(store, end(first, ROOT, at=NOW, **task, **{names.A2A_TASK_STATE: "TASK_STATE_INPUT_REQUIRED"}))
    judge = Judge(store)
    assert [row.verdict for row in judge.listed(frozenset(), 10)] == ["waiting"]
    assert store.rows(None, 1)[0].verdict == "waiting"  # remembered, for time does not change it
    tell(store, end(second, ROOT, at=NOW + SECOND, **task, **{names.A2A_TASK_STATE: "TASK_STATE_COMPLETED"}))
    assert [row.verdict for row in judge.listed(frozenset(), 10)] == ["settled", "settled"]
    tell(store, end(second, HOP, at=NOW + 2 * SECOND, **task, **{names.A2A_TASK_STATE: "TASK_STATE_WORKING"}))
    assert store.snapshot(first).tasks["worker", "t1"][0] == "TASK_STATE_COMPLETED"


def test_a_task_finished_elsewhere_counts_though_its_first_cascade_is_not_in_memory():
    store = SqliteStore(":memory:", cache_bytes=1)
    try:
        first, second = trace(), trace()
        task = {names.A2A_TASK_ID: "t1"}
        tell(store, end(first, ROOT, at=NOW, **task, **{names.A2A_TASK_STATE: "TASK_STATE_INPUT_REQUIRED"}))
        Judge(store).listed(frozenset(), 10)
        tell(
            store,
            end(second, ROOT, at=NOW + SECOND, **task, **{names.A2A_TASK_STATE: "TASK_STATE_COMPLETED"}),
        )
        assert store.rows(None, 10)[1].verdict is None
        assert verdict(store, first).verdict == "settled"
    finally:
        store.close()


@pytest.mark.parametrize("cache_bytes", [1, 10_000_000])
def test_a_task_on_which_another_cascade_works_is_not_stranded_until_that_one_is_over(cache_bytes):
    store, now = SqliteStore(":memory:", cache_bytes=cache_bytes), [NOW + SECOND]
    try:
        works, noted, looks = trace(), trace(), trace()
        task = {names.A2A_TASK_ID: "t1", names.A2A_TASK_STATE: "TASK_STATE_WORKING"}
        tell(store, opened(works, ROOT, at=NOW, **task), opened(looks, ROOT, at=NOW, kind="request", **task))
        tell(store, end(noted, ROOT, at=NOW, **task))
        judge = Judge(store, clock=lambda: now[0])

        def listed():
            return {row.cascade: row.verdict for row in judge.listed(frozenset(), 10)}[noted]

        assert listed() == "in_flight"
        assert f"cascade {works[:8]} works on it" in judge.verdict(store.snapshot(noted)).reason
        # The end of the other one is no new version of this one; who only looks at the task keeps nobody waiting.
        tell(store, end(works, ROOT, at=NOW, **task))
        now[0] += 2 * SECOND
        assert listed() == "stranded"
    finally:
        store.close()


def test_an_opaque_peer_whose_task_was_seen_completed_gives_settled_up_to_it(store):
    cascade = trace()
    send = end(cascade, ROOT, kind="send", **{
        names.PEER: "opaque", names.SERVER_ADDRESS: "peer", names.SERVER_PORT: 1, names.A2A_TASK_ID: "x",
        names.A2A_TASK_STATE: "TASK_STATE_COMPLETED"})  # fmt: skip
    tell(store, send)
    found = verdict(store, cascade)
    assert (found.verdict, found.opaque) == ("settled", ["peer:1"])


def test_old_cascades_go_and_an_open_one_of_a_living_agent_stays():
    now = [NOW]
    store = SqliteStore(":memory:", retain=60, clock=lambda: now[0])
    try:
        ended, alive, dead = trace(), trace(), trace()
        tell(store, end(ended, ROOT, at=NOW), opened(alive, ROOT, at=NOW), now=NOW)
        tell(store, opened(dead, ROOT, at=NOW, instance=PLANNER), now=NOW)
        now[0] += 61 * SECOND
        young = trace()
        tell(store, heartbeat(at=now[0]), opened(young, ROOT, at=now[0], instance="c" * 16), now=now[0])
        assert store.prune() == 2
        assert {row.cascade for row in store.rows(None, 10)} == {alive, young}
        assert {agent.instance for agent, _ in store.agents()} == {WORKER, "c" * 16}
        with pytest.raises(UnknownCascadeError):
            store.snapshot(ended)
    finally:
        store.close()


def test_a_full_store_lets_the_oldest_cascades_go_first():
    store = SqliteStore(":memory:", max_bytes=1024**2)
    try:
        cascades = [trace() for _ in range(60)]
        for number, cascade in enumerate(cascades):
            tell(
                store,
                *(end(cascade, f"{n:016x}", text="x" * 900) for n in range(1, 40)),
                now=NOW + number,
            )
        store.totals()  # behind the tidying
        left = [row.cascade for row in reversed(store.rows(None, 100))]
        assert 5 < len(left) < 40
        assert left == cascades[-len(left) :]
        assert store.totals().bytes <= 1024**2
    finally:
        store.close()


def test_a_store_full_of_young_open_cascades_turns_records_away_and_keeps_them():
    store = SqliteStore(":memory:", max_bytes=300_000)
    try:
        cascade = trace()
        at = time.time_ns()
        tell(store, *(opened(cascade, f"{n:016x}", text="x" * 4000) for n in range(1, 100)))
        store.totals()
        with pytest.raises(StoreBusyError, match="full"):
            tell(store, end(cascade, f"{1:016x}", at=at))
        assert store.snapshot(cascade).row.open == 99
    finally:
        store.close()


def test_a_write_that_fails_leaves_nothing_half_told(store, monkeypatch):
    cascade = trace()
    tell(store, opened(cascade, ROOT))

    def fail():
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write_agents", fail)
        with pytest.raises(StoreBusyError, match="disk is full"):
            tell(store, end(cascade, ROOT), end(trace(), ROOT))
    assert store.snapshot(cascade).hops[ROOT].ended is None
    assert len(store.rows(None, 10)) == 1
    tell(store, end(cascade, ROOT))
    assert verdict(store, cascade).verdict == "settled"


def test_an_id_may_be_cut_short_as_long_as_it_tells_one_apart(store):
    tell(store, end("aa1" + "0" * 29, ROOT), end("aa2" + "0" * 29, ROOT))
    assert store.snapshot("aa1").row.cascade == "aa1" + "0" * 29
    with pytest.raises(AmbiguousCascadeError) as raised:
        store.snapshot("aa")
    assert raised.value.candidates == ["aa1" + "0" * 29, "aa2" + "0" * 29]
    with pytest.raises(UnknownCascadeError):
        store.snapshot("ab")


# Liveness ------------------------------------------------------------------------------------------------------


def heard(store):
    return {agent.instance: agent.heard for agent, _ in store.agents()}


def sign(store, service, instance, now):
    store.write(Batch(arrived=now, signs={Sender(service, instance)})).result(60)


def test_logs_and_metrics_of_an_agent_are_signs_of_its_life(store):
    tell(store, heartbeat(WORKER), service_instance="one", now=NOW)
    tell(store, heartbeat(PLANNER), service_instance="two", now=NOW)
    sign(store, "worker", "one", NOW + SECOND)
    assert heard(store) == {WORKER: NOW + SECOND, PLANNER: NOW}
    sign(store, "worker", "three", NOW + 2 * SECOND)
    sign(store, "worker", None, NOW + 2 * SECOND)  # of which of the two?
    sign(store, "somebody else", "one", NOW + 2 * SECOND)
    assert heard(store) == {WORKER: NOW + SECOND, PLANNER: NOW}


def test_a_sign_without_an_instance_id_counts_for_the_only_live_one_of_that_name(store):
    tell(store, heartbeat(WORKER), now=NOW)
    tell(store, heartbeat(PLANNER), now=NOW + 60 * SECOND)
    sign(store, "worker", None, NOW + 61 * SECOND)
    assert heard(store) == {WORKER: NOW, PLANNER: NOW + 61 * SECOND}
    tell(store, foreign(), now=NOW + 62 * SECOND, scope="another library")
    assert heard(store)[PLANNER] == NOW + 62 * SECOND


def test_a_clocks_offset_is_that_of_the_least_delayed_heartbeat_lately(store):
    for delay in (9, 7, 8):
        tell(store, heartbeat(at=NOW), now=NOW + delay * SECOND)
    assert [agent.skew for agent, _ in store.agents()] == [7 * SECOND]
    for _ in range(12):
        tell(store, heartbeat(at=NOW), now=NOW + 20 * SECOND)
    assert [agent.skew for agent, _ in store.agents()] == [20 * SECOND]


# Files ---------------------------------------------------------------------------------------------------------


def make_foreign(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE mine(x)")
    db.close()


def make_other_version(path):
    SqliteStore(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def make_damaged(path):
    store = SqliteStore(path)
    tell(store, *(end(trace(), f"{n:016x}") for n in range(1, 200)))
    store.close()
    content = bytearray(path.read_bytes())
    content[12_000:60_000] = b"\xff" * 48_000
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_text("dear diary " * 50), "is not a SQLite database"),
        (lambda path: path.write_bytes(b"SQLite format 3\0"), "is not a SQLite database"),
        (make_foreign, "is a database of another program"),
        (make_other_version, r"another version of hopwatch \(format 99; this one reads 1 to 2\)"),
        (make_damaged, "is damaged"),
    ],
)
def test_a_file_that_is_no_store_of_ours_is_refused_and_left_as_it_is(tmp_path, make, says):
    path = tmp_path / "file"
    make(path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=says) as raised:
        SqliteStore(path)
    assert str(path) in str(raised.value)
    assert "--store" in str(raised.value)
    assert path.read_bytes() == before


def test_a_store_is_one_collectors_at_a_time(tmp_path):
    first = SqliteStore(tmp_path / "hops.sqlite")
    try:
        with pytest.raises(StoreError, match="in use by another collector"):
            SqliteStore(tmp_path / "hops.sqlite")
    finally:
        first.close()


def test_a_directory_is_no_store(tmp_path):
    with pytest.raises(StoreError, match="Is a directory"):
        SqliteStore(tmp_path)


# Verdicts ------------------------------------------------------------------------------------------------------


def test_a_list_judges_what_time_changes_anew_and_the_rest_once(monkeypatch):
    now = [NOW]
    store = SqliteStore(":memory:", clock=lambda: now[0])
    judge = Judge(store, clock=lambda: now[0])
    asked = []
    real = store.snapshot
    monkeypatch.setattr(store, "snapshot", lambda prefix: asked.append(prefix) or real(prefix))
    try:
        over, going, lost = trace(), trace(), trace()
        tell(store, end(over, ROOT, at=NOW), now=NOW)
        tell(store, opened(going, ROOT, at=NOW), now=NOW)
        tell(store, end(lost, ROOT, at=NOW, children=1), now=NOW)

        def listed(*wanted):
            asked.clear()
            return {row.cascade: row.verdict for row in judge.listed(frozenset(wanted), 10)}

        assert listed() == {over: "settled", going: "in_flight", lost: "in_flight"}
        assert set(asked) == {over, going, lost}
        assert listed() == {over: "settled", going: "in_flight", lost: "in_flight"}
        assert asked == []
        now[0] += 6 * SECOND
        assert listed("unknown") == {lost: "unknown"}
        now[0] += 20 * SECOND
        assert listed("silent", "settled") == {over: "settled", going: "silent"}
        tell(store, heartbeat(at=now[0]), now=now[0])
        assert listed("in_flight") == {going: "in_flight"}
        tell(store, end(over, HOP, at=now[0], parent=ROOT, **{names.HOP_LATE: True}), now=now[0])
        assert listed("settled") == {over: "settled"}
        assert "1 of them began late" in store.rows(None, 3)[-1].reason
    finally:
        store.close()


def shutdown(instance=WORKER, *, at, way="SIGTERM", pending=2):
    told = heartbeat(instance, at=at)
    told["says"] = {
        names.RECORD: names.RECORD_SHUTDOWN,
        names.INSTANCE: instance,
        names.PROCESS_PID: 4711,
        names.SHUTDOWN_WAY: way,
        names.SHUTDOWN_PENDING: pending,
        f"{names.SHUTDOWN_PENDING}.task": pending,
    }
    return told


def test_an_agent_that_told_of_its_end_has_ended_also_after_a_restart_until_it_is_heard_of_again(tmp_path):
    path = tmp_path / "hops.sqlite"
    store = SqliteStore(path)
    tell(store, heartbeat(at=NOW), shutdown(at=NOW + 1), heartbeat(at=NOW))
    store.close()
    store = SqliteStore(path)
    ((agent, _),) = store.agents()
    assert (agent.ended, agent.way, agent.pending, agent.open) == (NOW + 1, "SIGTERM", {"task": 2}, 0)
    tell(store, heartbeat(at=NOW + 2))
    ((agent, _),) = store.agents()
    assert (agent.ended, agent.way, agent.pending) == (0, "", {})
    store.close()


def test_a_store_of_the_first_format_is_brought_up_to_date(tmp_path):
    path = tmp_path / "hops.sqlite"
    store = SqliteStore(path)
    tell(store, heartbeat(at=NOW))
    store.close()
    db = sqlite3.connect(path)
    db.executescript(
        "ALTER TABLE agents DROP COLUMN ended; PRAGMA user_version = 1; PRAGMA wal_checkpoint(TRUNCATE);"
    )
    db.close()
    store = SqliteStore(path)
    assert [agent.ended for agent, _ in store.agents()] == [0]
    tell(store, shutdown(at=NOW + 1))
    store.close()
    store = SqliteStore(path)
    assert [agent.way for agent, _ in store.agents()] == ["SIGTERM"]
    store.close()
