"""When do agents that wait for each other's answers stand still, and when is there any doubt? Hops written by hand."""

import math

import pytest

from hopwatch.records import Hop
from hopwatch.verdict import SECOND, SILENT_AFTER, Agent, judge

NOW = 1_000_000 * SECOND
BEGAN = NOW - 60 * SECOND
SINCE = (NOW - 50 * SECOND) / SECOND
A, B = "a" * 16, "b" * 16


def ident(number):
    return f"{number:016x}"


def hop(number, parent, kind, agent, waits, *, moves, **more):
    return Hop(
        "c" * 32,
        ident(number),
        agent * 16,
        agent,
        kind,
        f"{kind} {number}",
        parent=ident(parent) if parent else None,
        started=BEGAN,
        arrived=BEGAN,
        heard=BEGAN,
        sampled=BEGAN + SECOND,
        moves=moves,
        waits={"since": SINCE, **waits},
        **more,
    )


def at(line):
    return {"file": "work.py", "line": line}


def asking(number, **more):
    return {"kind": "socket", "what": "data from b:80", "asks": [ident(number)], **at(number), **more}


def serving():
    return {"kind": "queue_get", "what": "an item from queue `q`", "owes": True}


def ring():
    """Agent a asks b while it holds a lock; b asks a; and a's second execution wants that lock."""
    lock = {
        "kind": "lock",
        "what": "lock `desk` held by task 'T'",
        "asks": [ident(3)],
        "holder_hop": ident(2),
    }
    made = [
        hop(1, 0, "request", "a", serving(), moves=False),
        hop(2, 1, "execution", "a", asking(3), moves=True),
        hop(3, 2, "send", "a", asking(3), moves=True, peer_name="b:80"),
        hop(4, 3, "request", "b", serving(), moves=False, remote=True),
        hop(5, 4, "execution", "b", asking(6), moves=True),
        hop(6, 5, "send", "b", asking(6), moves=True, peer_name="a:80"),
        hop(7, 6, "request", "a", serving(), moves=False, remote=True),
        hop(8, 7, "execution", "a", {**lock, **at(8)}, moves=True),
    ]
    return dict(enumerate(made, 1))


def alive(**sampled):
    return {
        name * 16: Agent(name * 16, name, heard=NOW - SECOND, sampled=sampled.get(name, NOW - SECOND))
        for name in "ab"
    }


def verdict(hops, agents=None, now=NOW):
    return judge({each.id: each for each in hops.values()}, agents or alive(), now=now)


def test_two_agents_that_wait_for_each_other_stall_and_each_step_is_told_once():
    found = verdict(ring())
    assert found.verdict == "stalled"
    assert found.reason == (
        "Nothing moves by itself any more. Deadlock over a and b: "
        "execution of a (execution 2) waits for the answer of b to its send 3 to b:80 at work.py:3; "
        "request of b (request 4) waits for execution of b (execution 5); "
        "execution of b (execution 5) waits for the answer of a to its send 6 to a:80 at work.py:6; "
        "request of a (request 7) waits for execution of a (execution 8); "
        "execution of a (execution 8) waits for lock `desk` held by task 'T', "
        "which works for execution of a (execution 2) at work.py:8."
    )
    assert found.frontier == [ident(8)]
    (told,) = found.deadlocks
    assert told["agents"] == ["a", "b"]
    assert [(edge["hop"], edge["kind"], edge["held_by"]) for edge in told["edges"]] == [
        (ident(2), "answer", ident(4)),
        (ident(4), "execution", ident(5)),
        (ident(5), "answer", ident(7)),
        (ident(7), "execution", ident(8)),
        (ident(8), "lock", ident(2)),
    ]
    assert not found.final


def says(number, **more):
    def change(hops):
        for key, value in more.items():
            if value is None:
                hops[number].waits.pop(key)
            else:
                hops[number].waits[key] = value

    return change


def has(number, **more):
    def change(hops):
        for key, value in more.items():
            setattr(hops[number], key, value)

    return change


def without(*numbers):
    def change(hops):
        for number in numbers:
            del hops[number]

    return change


def another_arrival(hops):
    hops[9] = hop(9, 3, "request", "b", serving(), moves=False, remote=True)


def ends_later(hops):
    hops[9] = hop(9, 1, "task", "a", {}, moves=None, ended=NOW - 2 * SECOND, outcome="finished")


@pytest.mark.parametrize(
    "doubt",
    [
        pytest.param(says(3, asks=None), id="a send that waits for something else than its answer"),
        pytest.param(says(2, asks=None), id="an execution whose socket is another one"),
        pytest.param(says(2, asks=[ident(3), ident(99)]), id="a message of another cascade"),
        pytest.param(says(2, asks=[ident(2)]), id="asks for what is no message"),
        pytest.param(says(4, owes=None), id="a request whose answer is on its way"),
        pytest.param(has(4, ended=BEGAN + SECOND, outcome="finished"), id="a request that has ended"),
        pytest.param(has(3, ended=BEGAN + SECOND, outcome="failed"), id="a send that has ended"),
        pytest.param(without(4, 5, 6, 7, 8), id="a message that has not arrived"),
        pytest.param(without(7, 8), id="a second message that has not arrived"),
        pytest.param(another_arrival, id="a message that arrived twice"),
        pytest.param(has(3, attempts=2), id="a message that was sent twice"),
        pytest.param(has(4, remote=False), id="a request that no message brought"),
        pytest.param(says(7, since=None), id="an agent that does not say since when"),
        pytest.param(says(7, since=NOW / SECOND - 2), id="a wait that is younger than the clocks are sure"),
        pytest.param(says(7, since=NOW / SECOND), id="a wait that began after others were looked at"),
        pytest.param(has(5, moves=None, waits=None), id="a hop that nobody has looked at"),
        pytest.param(ends_later, id="work that ended just before"),
        pytest.param(says(4, since=math.nan), id="no number"),
        pytest.param(says(4, since=True), id="true is no number"),
        pytest.param(says(4, since="1"), id="a text is no number"),
        pytest.param(says(2, asks="0000000000000003"), id="a text is no list"),
        pytest.param(says(2, asks=[3]), id="a number is no hop"),
        pytest.param(says(4, owes=1), id="one is not true"),
    ],
)
def test_any_doubt_keeps_it_in_flight(doubt):
    hops = ring()
    doubt(hops)
    found = verdict(hops)
    assert (found.verdict, found.deadlocks) == ("in_flight", [])


def test_what_is_missing_keeps_it_from_being_stalled():
    hops = ring()
    hops[5].children = 2
    found = verdict(hops)
    assert (found.verdict, found.deadlocks) == ("in_flight", [])


def test_looks_that_share_no_moment_prove_nothing_however_late_one_of_them_is():
    hops = ring()
    for number in (4, 5, 6):
        hops[number].waits["since"] = NOW / SECOND - 10
    assert verdict(hops, alive(a=NOW - 11 * SECOND)).verdict == "in_flight"
    assert verdict(hops, alive(a=NOW - 9 * SECOND)).verdict == "in_flight"  # two clocks are not that sure
    assert verdict(hops, alive(a=NOW - 7 * SECOND)).verdict == "stalled"


def test_a_clock_that_is_hours_wrong_is_put_right():
    hops = ring()
    behind = 3600 * SECOND
    for number in (4, 5, 6):
        hops[number].waits["since"] -= behind / SECOND
        hops[number].started -= behind
        hops[number].sampled -= behind
    agents = alive(b=NOW - SECOND - behind)
    assert verdict(hops, agents).verdict == "in_flight"
    agents[B].skew = behind
    assert verdict(hops, agents).verdict == "stalled"


def test_a_timer_on_any_of_it_keeps_it_in_flight_and_the_circle_is_told_with_when_it_ends():
    hops = ring()
    hops[5].waits["expires"] = NOW / SECOND + 10
    hops[8].waits["expires"] = NOW / SECOND + 30
    found = verdict(hops)
    assert found.verdict == "in_flight"
    (told,) = found.deadlocks
    assert told["until"] == NOW / SECOND + 10
    assert "Deadlock over a and b, which a timeout at 13:46:50 UTC may undo: " in found.reason


def test_an_agent_that_is_not_heard_of_is_no_part_of_a_proof():
    agents = alive()
    agents[B].heard = NOW - SILENT_AFTER - 1
    found = verdict(ring(), agents)
    assert (found.verdict, found.deadlocks) == ("in_flight", [])
    assert "b has not been heard of" in found.reason


def test_who_asks_and_is_not_answered_for_a_future_that_nobody_sets_stalls_without_a_circle():
    hops = ring()
    for number in (6, 7, 8):
        del hops[number]
    future = {"kind": "future", "what": "a future `answer` that nobody has set", "since": SINCE, **at(5)}
    hops[5].waits, hops[5].moves = future, False
    found = verdict(hops)
    assert (found.verdict, found.deadlocks) == ("stalled", [])
    assert (
        "Execution of b (execution 5) is open, waiting for a future `answer` that nobody has set at work.py:5"
        in (found.reason)
    )


def test_a_request_for_the_task_that_asks_waits_for_its_turn():
    hops = ring()
    del hops[8]
    hops[2].task_id = hops[7].task_id = "t1"
    found = verdict(hops)
    assert found.verdict == "stalled"
    assert (
        "request of a (request 7) waits for its turn at task t1, which execution of a (execution 2) works on"
        in (found.reason)
    )


def test_a_request_for_a_task_of_the_same_name_at_another_agent_closes_no_circle():
    hops = ring()
    del hops[8]
    hops[5].task_id = hops[7].task_id = "t1"
    found = verdict(hops)
    assert (found.verdict, found.deadlocks) == ("stalled", [])


def test_who_waits_for_a_semaphore_closes_the_circle_by_the_answers_that_its_holders_wait_for():
    hops = ring()
    hops[8].waits.update(kind="semaphore", what="semaphore `slots` held by tasks 'T'")
    found = verdict(hops)
    assert len(found.deadlocks) == 1
    assert (
        "execution of a (execution 8) waits for semaphore `slots` held by tasks 'T' at work.py:8, "
        "and so for the answer of b to send 3 of a to b:80" in found.reason
    )


def test_an_agent_that_asks_itself_is_told_too_with_hops_of_one_name_apart():
    hops = ring()
    for each in hops.values():
        each.agent, each.instance, each.name = "a", A, each.kind
    found = verdict(hops)
    assert found.verdict == "stalled"
    assert "Deadlock over a: execution of a (execution) [00000000] waits for the answer of a" in found.reason


def test_what_moves_elsewhere_in_the_cascade_may_still_undo_it():
    hops = ring()
    hops[9] = hop(9, 2, "task", "a", {"kind": "sleep", "what": "asyncio.sleep"}, moves=True)
    found = verdict(hops)
    assert (found.verdict, found.deadlocks) == ("in_flight", [])
