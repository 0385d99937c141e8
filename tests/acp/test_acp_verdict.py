"""May a message that nobody answers, or that was answered with an error, ever settle a cascade too early?"""

import time

from hypothesis import given
from hypothesis import strategies as st

from hopwatch.records import Hop
from hopwatch.verdict import ON_ITS_WAY, judge

NOW = time.time_ns()
CASCADE = "c" * 32


def hop(number, parent=None, **more):
    given = {
        "cascade": CASCADE, "id": f"{number:016x}", "instance": "a" * 16, "agent": "editor", "kind": "send", "name": "session/update",
        "started": NOW, "ended": NOW + 1, "outcome": "finished", "heard": NOW, "parent": parent,
    }  # fmt: skip
    return Hop(**{**given, **more})


def of(*hops, now=NOW):
    return judge({each.id: each for each in hops}, {}, now=now)


@given(
    st.sampled_from(["finished", "failed", "cancelled"]),
    st.sampled_from(["instrumented", "opaque", "unknown", "refused"]),
    st.sampled_from(["jsonrpc", "grpc", None]),
    st.sampled_from([None, "-32603", "-32601"]),
    st.booleans(),
    st.integers(0, 3 * ON_ITS_WAY),
)
def test_a_message_is_settled_only_if_it_was_refused_answered_or_its_hop_has_come(
    outcome, peer, system, code, came, later
):
    says = {
        key: value
        for key, value in (("rpc.system.name", system), ("rpc.response.status_code", code))
        if value
    }
    send = hop(1, outcome=outcome, peer=peer, attributes=says)
    hops = [send]
    if peer == "instrumented":
        send.peer_hop = f"{2:016x}"
    if came:
        hops.append(hop(2, send.id, kind="request", agent="worker", remote=True))
    said = of(*hops, now=NOW + later)
    answered = outcome == "finished" or (system == "jsonrpc" and code is not None)
    over = {
        "instrumented": came,
        "unknown": came,
        "refused": True,
        "opaque": answered,
    }[peer]
    assert (said.verdict == "settled") == over, said
    if not over and peer == "unknown":
        on_its_way = outcome == "finished" and later <= ON_ITS_WAY
        assert said.verdict == ("in_flight" if on_its_way else "unknown")
    assert (said.opaque != []) == (peer == "opaque")


def test_a_hop_of_another_method_is_not_how_the_peer_took_a_message():
    asked = {"rpc.system.name": "jsonrpc", "rpc.method": "session/prompt"}
    send = hop(1, outcome="cancelled", peer="unknown", attributes=asked)
    for method, expected in (("session/prompt", "settled"), ("session/update", "unknown"), (None, "unknown")):
        attributes = {"rpc.system.name": "jsonrpc", "rpc.method": method} if method else {}
        took = hop(2, send.id, kind="request", agent="worker", remote=True, attributes=attributes)
        assert of(send, took, now=NOW + 3 * ON_ITS_WAY).verdict == expected


def test_the_hop_of_a_peer_that_died_is_how_it_took_the_message_though_only_its_name_is_known():
    asked = {"rpc.system.name": "jsonrpc", "rpc.method": "session/prompt"}
    send = hop(1, name="session/prompt", outcome="cancelled", peer="unknown", attributes=asked)
    for name, missing in (("session/prompt", []), ("GET /", ["delivery"])):
        took = hop(2, send.id, kind="request", name=name, agent="worker", remote=True, outcome="abandoned")
        said = of(send, took, now=NOW + 3 * ON_ITS_WAY)
        assert (said.verdict, [each.what for each in said.missing]) == ("broken", missing)
