"""Is a record read as it was written, and refused where it cannot be one?"""

import pytest

from hopwatch import attributes as names
from hopwatch.ledger import Ledger
from hopwatch.records import (
    MAX_WAITS,
    RecordError,
    end_attributes,
    open_attributes,
    read_heartbeat,
    read_hop,
    read_shutdown,
    shutdown_attributes,
)

GOOD = {names.RECORD: "end", names.INSTANCE: "a" * 16, names.HOP_KIND: "execution"}


def read(attributes, *, start=1, end=5, parent=""):
    return read_hop(
        attributes,
        agent="a",
        cascade="c" * 32,
        span="1" * 16,
        parent_span=parent,
        name="n",
        start=start,
        end=end,
        arrived=9,
    )


def test_what_goes_without_saying_is_left_out_and_read_as_such():
    hop = read(GOOD)
    assert (hop.outcome, hop.children, hop.late, hop.remote, hop.ended) == ("finished", 0, False, False, 5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({names.HOP_KIND: "dance"}, "'dance'"),
        ({names.HOP_KIND: None}, names.HOP_KIND),
        ({names.INSTANCE: "short"}, "'short'"),
        ({names.INSTANCE: "A" * 16}, names.INSTANCE),
        ({names.RECORD: "rumour"}, "'rumour'"),
        ({names.HOP_PARENT: 7}, names.HOP_PARENT),
        ({names.HOP_PARENT: "1" * 16}, "the hop itself"),
        ({names.HOP_CHILDREN: -1}, "-1"),
        ({names.HOP_CHILDREN: "2"}, "'2'"),
        ({names.HOP_CHILDREN: True}, "True"),
        ({names.HOP_CHILDREN: 2**63}, names.HOP_CHILDREN),
        ({names.HOP_LATE: "yes"}, "'yes'"),
        ({names.HOP_OUTCOME: "vanished"}, "'vanished'"),
        ({names.HOP_REASON: 5}, names.HOP_REASON),
        ({names.PEER: "friendly"}, "'friendly'"),
        ({names.PEER_HOP: "x" * 16}, names.PEER_HOP),
        ({names.A2A_TASK_ID: 5}, names.A2A_TASK_ID),
    ],
)
def test_a_record_that_cannot_be_is_refused_with_the_value_and_what_is_allowed(change, named):
    with pytest.raises(RecordError, match=r".") as refused:
        read({**GOOD, **change})
    assert named in str(refused.value)


def test_a_marker_needs_the_hop_that_it_tells_of():
    marker = {**GOOD, names.RECORD: "open", names.HOP_STARTED: 1}
    with pytest.raises(RecordError, match="parent span"):
        read(marker)
    assert read(marker, parent="2" * 16).id == "2" * 16


@pytest.mark.parametrize("first", [0, 1])
def test_the_state_that_was_stored_last_counts_whichever_record_comes_first(first):
    """A store may be slow: an execution is looked at after its own work is over, and before its last event is stored."""

    ledger = Ledger(Nobody())
    ran = ledger.open("execution", "work", None)
    ran.set(names.A2A_TASK_ID, "t")
    ran.set(names.A2A_TASK_STATE, "TASK_STATE_WORKING")
    ledger.hold(ran)
    ran.finish()
    marker = open_attributes(ran, "a" * 16, None, moves=True)
    ran.set(names.A2A_TASK_STATE, "TASK_STATE_INPUT_REQUIRED")
    ledger.unhold(ran)
    end = end_attributes(ran, "a" * 16)
    told = [
        read(marker, start=ran.done + 1_000, end=ran.done + 1_000, parent="1" * 16),
        read(end, start=ran.started, end=ran.done),
    ]
    hop = told.pop(first)
    hop.merge(told.pop())
    assert (hop.task_state, hop.outcome) == ("TASK_STATE_INPUT_REQUIRED", "finished")


def test_a_description_that_was_cut_on_its_way_does_not_lose_the_marker():
    marker = {
        **GOOD,
        names.RECORD: "open",
        names.HOP_STARTED: 1,
        names.HOP_MOVES: False,
        names.HOP_WAITS: '{"kind": "fut',
    }
    hop = read(marker, parent="2" * 16)
    assert hop.moves is False
    assert "cut" in hop.waits["what"]


def test_a_long_reason_is_cut_and_says_so():
    assert read({**GOOD, names.HOP_REASON: "x" * 100_000}).reason.endswith("…")


def test_the_state_that_an_execution_stored_last_goes_before_what_its_request_answered():
    told = {names.A2A_TASK_ID: "t", names.A2A_TASK_STATE: "TASK_STATE_SUBMITTED"}
    ran = read({**GOOD, **told, names.A2A_TASK_STATE: "TASK_STATE_INPUT_REQUIRED"}, start=2, end=5)
    asked = read({**GOOD, **told, names.HOP_KIND: "request"}, start=1, end=50)
    assert ran.task_at > asked.task_at
    assert read({**GOOD, **told, names.HOP_KIND: "push"}).task_at == 0


def test_a_heartbeat_is_read():
    beat = read_heartbeat(
        {names.INSTANCE: "a" * 16, names.PROCESS_PID: 5, names.HEARTBEAT_OPEN: 2}, agent="a", at=3
    )
    assert (beat.pid, beat.open, beat.dropped, beat.sampled, beat.at) == (5, 2, 0, 0, 3)
    with pytest.raises(RecordError):
        read_heartbeat({names.INSTANCE: "a"}, agent="a", at=3)


def test_a_hop_that_its_process_gave_up_is_abandoned_until_its_own_end_comes():
    said = {
        **GOOD,
        names.RECORD: "gone",
        names.HOP_STARTED: 1,
        names.HOP_NAME: "work",
        names.HOP_REASON: "execv",
    }
    gone = read({**said}, start=7, end=7, parent="2" * 16)
    assert (gone.id, gone.ended, gone.outcome, gone.reason) == ("2" * 16, 7, "abandoned", "execv")
    for own_first in (True, False):
        own = read(GOOD, start=1, end=9)
        again = read({**said}, start=7, end=7, parent="1" * 16)
        first, second = (own, again) if own_first else (again, own)
        first.merge(second)
        assert (first.ended, first.outcome, first.reason) == (9, "finished", None)


def test_the_end_of_a_process_is_read_as_it_was_written():
    told = read_shutdown(
        shutdown_attributes("a" * 16, 42, "SIGTERM", {"task": 2, "send": 1}), agent="a", at=5
    )
    assert (told.instance, told.pid, told.at, told.way) == ("a" * 16, 42, 5, "SIGTERM")
    assert told.pending == {"task": 2, "send": 1}
    with pytest.raises(RecordError, match="pending"):
        read_shutdown({names.INSTANCE: "a" * 16, "hopwatch.shutdown.pending.task": -1}, agent="a", at=5)


class Nobody:
    """An observer that is told and does nothing."""

    def opened(self, entry):
        entry.id, entry.cascade = "2" * 16, "c" * 32

    def closed(self, entry):
        pass

    def late(self, parent):
        pass


def written(waits):
    hop = Ledger(Nobody()).open("request", "asks", None)
    return open_attributes(hop, "a" * 16, waits, moves=True)


def test_a_marker_tells_no_more_of_a_wait_than_a_record_may_carry():
    part = {"kind": "sleep", "what": "asyncio.sleep(60)", "moves": True, "chain": ["worker.py:1 work"] * 64}
    waits = {"kind": "gather", "what": "100 tasks (gather)", "moves": True, "of": [part] * 100}
    attributes = written(waits)
    assert len(attributes[names.HOP_WAITS]) <= MAX_WAITS
    assert read(attributes, parent="2" * 16).waits == {
        "kind": "gather",
        "what": "100 tasks (gather)",
        "moves": True,
    }
    short = {**waits, "of": [part]}
    assert read(written(short), parent="2" * 16).waits == short


def test_a_task_whose_name_no_exporter_can_encode_is_told_all_the_same():
    waits = {"kind": "sleep", "what": "asyncio.sleep(60)", "moves": True, "task": "odd \ud800"}
    attributes = written(waits)
    attributes[names.HOP_WAITS].encode()
    assert read(attributes, parent="2" * 16).waits == {**waits, "task": "odd ?"}
