"""Does each row of the table of verdicts hold, and only where it must? Hops written by hand, one story a row."""

import pytest

from hopwatch import attributes as names
from hopwatch.records import Hop
from hopwatch.verdict import ON_ITS_WAY, SECOND, SILENT_AFTER, Agent, judge

NOW = 1_000_000 * SECOND
LONG_AGO = NOW - 600 * SECOND


def hop(number, parent=None, *, kind="execution", agent="a", ended=True, age=600, **more):
    """A hop that began `age` seconds ago; its record came at once."""
    started = NOW - age * SECOND
    defaults = {
        "instance": agent * 16,
        "name": f"{kind} {number}",
        "started": started,
        "ended": started + SECOND if ended else None,
        "outcome": "finished" if ended else None,
        "arrived": LONG_AGO,
        "heard": LONG_AGO,
    }
    return Hop(
        cascade="c" * 32,
        id=ident(number),
        agent=agent,
        kind=kind,
        parent=ident(parent) if parent else None,
        **{**defaults, **more},
    )


def ident(number):
    return f"{number:016x}"


def alive(*agents, sampled=NOW, **more):
    return {
        agent * 16: Agent(agent * 16, agent, heard=NOW - SECOND, sampled=sampled, **more) for agent in agents
    }


def verdict(*hops, agents=None, tasks=None, rejected=0, now=NOW):
    return judge({each.id: each for each in hops}, agents or {}, now=now, tasks=tasks, rejected=rejected)


def waiting(**more):
    return {
        "kind": "future",
        "what": "a future `answer` that nobody has set",
        "file": "work.py",
        "line": 7,
        "moves": False,
        **more,
    }


def test_nothing_is_known_of_a_cascade_without_records():
    assert verdict().verdict == "unknown"


def test_all_ended_all_seen_is_settled():
    found = verdict(hop(1, children=1), hop(2, 1))
    assert found.verdict == "settled"
    assert found.final


def test_an_open_hop_of_an_agent_that_lives_is_in_flight_and_at_the_frontier():
    found = verdict(
        hop(1, ended=False, children=1), hop(2, 1, ended=False, agent="b"), agents=alive("a", "b")
    )
    assert found.verdict == "in_flight"
    assert found.frontier == [ident(2)]


def test_the_frontier_is_below_hops_that_have_ended():
    found = verdict(
        hop(1, ended=False, children=1),
        hop(2, 1, kind="send", children=1),
        hop(3, 2, ended=False),
        agents=alive("a"),
    )
    assert found.frontier == [ident(3)]


def test_an_open_hop_of_an_agent_that_is_not_heard_of_is_silent():
    found = verdict(hop(1, ended=False))
    assert found.verdict == "silent"
    assert "a has not been heard of for 600 s" in found.reason


def test_a_hop_that_moves_elsewhere_keeps_it_in_flight_though_one_agent_is_silent():
    found = verdict(hop(1, ended=False, children=1), hop(2, 1, ended=False, agent="b"), agents=alive("b"))
    assert found.verdict == "in_flight"
    assert "a has not been heard of" in found.reason


def test_passive_everywhere_is_stalled_and_says_where():
    found = verdict(hop(1, ended=False, moves=False, sampled=NOW, waits=waiting()), agents=alive("a"))
    assert found.verdict == "stalled"
    assert "a future `answer` that nobody has set at work.py:7" in found.reason
    assert not found.final


def test_what_failed_last_is_told_with_a_stall():
    found = verdict(
        hop(1, ended=False, moves=False, sampled=NOW, waits=waiting(), children=1),
        hop(2, 1, kind="push", outcome="failed", reason="x:1 answered 503", peer="refused", peer_name="x:1"),
        agents=alive("a"),
    )
    assert found.verdict == "stalled"
    assert "x:1 answered 503" in found.reason


@pytest.mark.parametrize(
    "late",
    [
        {"sampled": NOW - 599 * SECOND - 1},  # looked at before the last event
        {"moves": True, "sampled": NOW},
        {"moves": None},
    ],
)
def test_a_look_that_is_older_than_the_last_event_or_in_doubt_is_no_stall(late):
    found = verdict(
        hop(1, ended=False, children=1, **{"moves": False, **late}), hop(2, 1), agents=alive("a", sampled=0)
    )
    assert found.verdict == "in_flight"


def test_a_heartbeat_says_that_nothing_changed_since_an_older_look():
    one = hop(1, ended=False, moves=False, sampled=NOW - 599 * SECOND - 1, waits=waiting(), children=1)
    assert verdict(one, hop(2, 1), agents=alive("a", sampled=NOW)).verdict == "stalled"


def test_a_declared_child_that_never_came_is_no_stall_but_unknown():
    found = verdict(hop(1, ended=False, moves=False, sampled=NOW, children=1), agents=alive("a"))
    assert found.verdict == "unknown"


def test_a_clock_that_is_hours_wrong_does_not_make_a_look_seem_new():
    behind = 3600 * SECOND
    # The event at b is the newest of all, though its clock, an hour behind, says otherwise.
    event = hop(
        2, 1, agent="b", kind="request", remote=True, started=NOW - SECOND - behind, ended=NOW - behind
    )
    sampled = NOW - 2 * SECOND
    agents = {**alive("a", sampled=sampled), **alive("b", skew=behind)}
    found = verdict(hop(1, ended=False, moves=False, sampled=sampled), event, agents=agents)
    assert found.verdict == "in_flight"


def test_of_a_hop_that_is_cut_off_together_with_the_task_that_runs_it_the_hop_is_named_and_where_it_is_defined():
    cut = {"outcome": "abandoned", "reason": "pending at shutdown: SIGTERM; it awaited data"}
    task = hop(3, 2, kind="task", age=601, location="sdk.py:690 run", **cut)
    found = verdict(
        hop(1, children=1, outcome="abandoned", reason=cut["reason"], agent="b"),
        hop(2, 1, remote=True, location="work.py:3 Worker.execute", **cut),
        task,
    )
    assert found.reason == (
        "Execution of a (execution 2) was abandoned: pending at shutdown: SIGTERM; it awaited data; "
        "defined at work.py:3 Worker.execute; 2 more were abandoned."
    )


def test_of_what_is_cut_off_the_innermost_is_named_where_it_waited_for_something_else_than_the_hop_above():
    above = hop(
        2, outcome="abandoned", reason="it awaited 'T'", location="work.py:3 Worker.execute", children=1
    )
    task = hop(
        3, 2, kind="task", age=601, location="work.py:9 run", outcome="abandoned", reason="it awaited data"
    )
    assert verdict(above, task).reason == (
        "Task of a (task 3) was abandoned: it awaited data; made at work.py:9 run; 1 more was abandoned."
    )


def test_an_abandoned_hop_breaks_it_for_good_and_names_what_else_is_open():
    lost = hop(
        2, 1, kind="task", outcome="abandoned", reason="destroyed while pending", location="work.py:3 run"
    )
    found = verdict(hop(1, ended=False, children=1, moves=True), lost, agents=alive("a"))
    assert found.verdict == "broken"
    assert "destroyed while pending" in found.reason
    assert "work.py:3" in found.reason
    assert "Still open: execution of a" in found.reason
    assert found.final


def test_a_parent_that_was_never_heard_of_is_unknown():
    found = verdict(hop(2, 1))
    assert found.verdict == "unknown"
    assert found.missing[0].what == "parent"


def test_what_was_promised_lately_is_on_its_way_and_later_unknown():
    sent = hop(1, kind="send", peer="instrumented", peer_hop=ident(9), heard=NOW - SECOND, peer_name="b:80")
    assert verdict(sent).verdict == "in_flight"
    later = verdict(sent, now=NOW + ON_ITS_WAY)
    assert later.verdict == "unknown"
    assert f"was promised hop {ident(9)} by b:80" in later.reason
    assert later.missing[0].id == ident(9)


def test_a_remote_hop_is_no_local_child_even_in_the_same_process():
    found = verdict(
        hop(1, kind="send", children=1, peer="instrumented", peer_hop=ident(2)), hop(2, 1, remote=True)
    )
    assert found.verdict == "unknown"
    assert found.missing[0].what == "children"


def test_a_delivery_nobody_knows_of_is_unknown_unless_the_other_side_was_seen():
    sent = hop(1, kind="send", outcome="failed", peer="unknown")
    assert verdict(sent).verdict == "unknown"
    assert verdict(sent, hop(2, 1, agent="b", kind="request", remote=True)).verdict == "settled"


def test_a_message_that_was_refused_has_no_child():
    assert verdict(hop(1, kind="send", outcome="failed", peer="refused")).verdict == "settled"


def test_a_peer_whose_sampler_drops_the_trace_is_named():
    found = verdict(
        hop(1, kind="send", peer="instrumented", peer_hop=ident(2), peer_sampled=False, peer_name="b:80")
    )
    assert found.verdict == "unknown"
    assert "b:80 does not record this trace (its sampler drops it" in found.reason


def test_a_full_ledger_is_unknown():
    assert verdict(hop(1, dropped=3)).verdict == "unknown"


def test_an_agent_that_does_not_count_its_tasks_is_never_settled_and_is_named_once():
    lacking = {"attributes": {names.HOP_UNCOUNTED: "hopwatch_asyncio"}}
    found = verdict(hop(1, children=2, **lacking), hop(2, 1, **lacking), hop(3, 1, **lacking))
    assert found.verdict == "unknown"
    assert [each.what for each in found.missing] == ["uncounted"]
    assert found.reason == (
        "The accounting is incomplete: a does not count tasks and queues of asyncio, for hopwatch_asyncio is not in place there."
    )


def test_an_open_hop_of_an_agent_that_does_not_count_its_tasks_is_no_stall():
    lacking = {names.HOP_UNCOUNTED: "hopwatch_asyncio,hopwatch_a2a"}
    still = hop(1, ended=False, waits=waiting(), moves=False, sampled=NOW - SECOND, attributes=lacking)
    found = verdict(still, agents=alive("a"))
    assert found.verdict == "unknown"
    assert (
        "tasks and queues of asyncio and messages of A2A, for hopwatch_asyncio and hopwatch_a2a are not in place"
        in found.reason
    )


def test_settled_says_what_failed_for_it_does_not_mean_successful():
    found = verdict(
        hop(1, children=2),
        hop(2, 1, kind="push", outcome="failed", reason="503", peer="refused", peer_name="b:80"),
        hop(
            3,
            1,
            agent="b",
            outcome="failed",
            reason="ValueError: no.",
            task_id="t",
            task_state="TASK_STATE_FAILED",
        ),
        hop(4, 1, agent="b", remote=True, outcome="cancelled", task_id="u", task_state="TASK_STATE_WORKING"),
        hop(5, 1, agent="b", remote=True, task_id="u", task_state="TASK_STATE_CANCELED", age=599),
        hop(6, 1, agent="b", remote=True, task_id="v", task_state="TASK_STATE_COMPLETED"),
    )
    assert found.reason == (
        "Settled: all 6 hops have ended, and every hop that was declared was seen. 2 of them failed, first push of a to b:80: 503. "
        "1 of them was cancelled. A2A tasks that ended otherwise than completed: 1 canceled and 1 failed."
    )
    assert found.verdict == "settled"


def test_a_late_child_that_was_corrected_for_and_not_seen_is_unknown():
    assert verdict(hop(1, late_children=1)).verdict == "unknown"
    assert verdict(hop(1, late_children=1), hop(2, 1, late=True)).verdict == "settled"


def test_a_late_child_does_not_stand_in_for_a_lost_one():
    assert verdict(hop(1, children=1), hop(2, 1, late=True)).verdict == "unknown"


def test_refused_records_are_unknown():
    assert verdict(hop(1), rejected=1).verdict == "unknown"


def test_parents_in_a_circle_are_unknown_and_end():
    found = verdict(hop(1, 2), hop(2, 3), hop(3, 1))
    assert found.verdict == "unknown"
    both = verdict(hop(9), hop(1, 2, ended=False), hop(2, 1, ended=False))
    assert both.verdict in ("silent", "unknown")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("TASK_STATE_COMPLETED", "settled"),
        ("TASK_STATE_FAILED", "settled"),
        ("TASK_STATE_CANCELED", "settled"),
        ("TASK_STATE_REJECTED", "settled"),
        ("TASK_STATE_INPUT_REQUIRED", "waiting"),
        ("TASK_STATE_AUTH_REQUIRED", "waiting"),
        ("TASK_STATE_WORKING", "stranded"),
        ("TASK_STATE_SUBMITTED", "stranded"),
    ],
)
def test_the_state_of_the_last_task_decides_when_nothing_is_open(state, expected):
    assert verdict(hop(1, task_id="t", task_state=state, task_at=5)).verdict == expected


@pytest.mark.parametrize("method", ["GetTask", "SubscribeToTask"])
def test_a_task_that_was_only_looked_at_is_not_stranded_for_that(method):
    seen = {"task_id": "t", "task_state": "TASK_STATE_WORKING", "task_at": 5}
    looked = hop(1, kind="request", attributes={"a2a.method.name": method}, **seen)
    assert verdict(looked).verdict == "settled"
    assert verdict(looked, hop(2, 1, **seen)).verdict != "settled"  # its own work is


def test_a_task_that_another_cascade_works_on_is_in_flight_until_that_one_is_over():
    noted = hop(1, task_id="t", task_state="TASK_STATE_WORKING", task_at=5)
    found = judge({noted.id: noted}, {}, now=NOW, elsewhere={("a", "t"): "d" * 32})
    assert found.verdict == "in_flight"
    assert found.reason == "Nothing of it is open; task t of a is working, and cascade dddddddd works on it."
    assert verdict(noted).verdict == "stranded"


def test_what_a_request_saw_of_a_task_that_nobody_was_seen_to_work_on_is_not_its_end():
    seen = {"task_id": "t", "task_state": "TASK_STATE_SUBMITTED", "task_at": 5}
    asked = hop(1, kind="request", attributes={"a2a.method.name": "SendMessage"}, **seen)
    found = verdict(asked)
    assert found.verdict == "unknown"
    assert "task t of a was last seen submitted, and who works on it is not known" in found.reason
    assert (
        verdict(
            asked, hop(2, 1, task_id="t", remote=True, task_state="TASK_STATE_COMPLETED", task_at=9)
        ).verdict
        == "settled"
    )


@pytest.mark.parametrize("state", ["TASK_STATE_COMPL", "TASK_STATE_INPUT_REQ", "TASK_STATE_PAUSED"])
def test_a_state_that_is_none_of_a2as_is_unknown(state):
    """Cut by a limit of its sender's, or of a version to come."""
    assert verdict(hop(1, task_id="t", task_state=state, task_at=5)).verdict == "unknown"


def test_a_task_that_another_cascade_finished_is_finished_in_both():
    left = hop(1, task_id="t", task_state="TASK_STATE_INPUT_REQUIRED", task_at=5)
    assert verdict(left).verdict == "waiting"
    assert verdict(left, tasks={("a", "t"): ("TASK_STATE_COMPLETED", 9)}).verdict == "settled"


def test_a_terminal_state_is_not_undone_by_a_later_one():
    done = hop(1, task_id="t", task_state="TASK_STATE_COMPLETED", task_at=5, children=1)
    again = hop(2, 1, kind="push", task_id="t", task_state="TASK_STATE_WORKING", task_at=9)
    assert verdict(done, again).verdict == "settled"


def test_what_a_client_last_saw_of_a_peers_task_is_not_the_tasks_state():
    sent = hop(
        1,
        kind="send",
        peer="instrumented",
        peer_hop=ident(2),
        task_id="t",
        task_state="TASK_STATE_SUBMITTED",
        task_at=5,
    )
    ran = hop(2, 1, agent="b", remote=True, task_id="t", task_state="TASK_STATE_COMPLETED", task_at=4)
    assert verdict(sent, ran).verdict == "settled"


def test_a_webhook_without_hopwatch_is_settled_up_to_it():
    found = verdict(hop(1, children=1), hop(2, 1, kind="push", peer="opaque", peer_name="hook:80"))
    assert found.verdict == "settled"
    assert found.opaque == ["hook:80"]
    assert "Settled up to hook:80" in found.reason


def test_an_agent_is_silent_only_after_three_heartbeats():
    one = hop(1, ended=False, moves=True)
    just = {"a" * 16: Agent("a" * 16, "a", heard=NOW - SILENT_AFTER)}
    assert verdict(one, agents=just).verdict == "in_flight"
    assert verdict(one, agents=just, now=NOW + 1).verdict == "silent"


def test_a_message_that_was_delivered_twice_needs_two_arrivals():
    sent = hop(1, kind="send", peer="instrumented", peer_hop=ident(2), attempts=2)
    one = hop(2, 1, agent="b", kind="request", remote=True)
    assert verdict(sent, one).verdict == "unknown"
    assert verdict(sent, one, hop(3, 1, agent="b", kind="request", remote=True)).verdict == "settled"


def test_a_peer_without_hopwatch_that_failed_to_answer_may_be_at_work():
    sent = hop(1, kind="send", peer="opaque", peer_name="b:80", outcome="failed")
    assert verdict(sent).verdict == "unknown"
    sent.attributes = {"http.response.status_code": 401}
    assert verdict(sent).verdict == "settled"
    # With 404 a2a-sdk also answers where an agent that has begun raises `TaskNotFoundError`.
    sent.attributes = {"http.response.status_code": 404}
    assert verdict(sent).verdict == "unknown"
    sent.attributes = {"rpc.response.status_code": "UNIMPLEMENTED"}
    assert verdict(sent).verdict == "settled"
    # As gRPC itself says of a connection that broke.
    sent.attributes = {"rpc.response.status_code": "INTERNAL"}
    assert verdict(sent).verdict == "unknown"
