"""What becomes of a message of the Agent Client Protocol: which hops, what goes over the wire, what is known of the peer?"""

import asyncio
import contextlib
import json
import weakref
from collections import Counter, OrderedDict, defaultdict

import pytest
from acp.connection import Connection
from acp.exceptions import RequestError
from any_acp import V12, Agent, Client, connected, hang_up, hello, raw, say, streams, text
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as otel_context
from plain_peer import PlainPeer

import acp
import hopwatch
from exported import cascades, fresh, only_cascade, others, tree, verdict
from hopwatch import attributes as names
from hopwatch import process, propagation
from hopwatch.instrumentation import acp as instrumentation
from hopwatch.instrumentation import acp_links, asgi
from ticking import collect

pytestmark = pytest.mark.usefixtures("acp_instrumented", "empty")
TRACE_KEYS = {"traceparent", "tracestate", "baggage"}


def run(main):
    asyncio.run(asyncio.wait_for(main(), 60))


def named(hops, name, kind="send"):
    (found,) = [hop for hop in hops.values() if (hop.name, hop.kind) == (name, kind)]
    return found


async def until(look):
    """Wait until what is in this process is as a test wants it."""
    while not look():
        await asyncio.sleep(0.01)


async def all_closed():
    await until(lambda: not process.here().ledger.open_hops())


@contextlib.asynccontextmanager
async def alone(peer_answers=lambda _: {}, client=None):
    """A client's side of a connection, and a peer that knows nothing of hopwatch."""
    here, there = await streams()
    peer = PlainPeer(*there, peer_answers)
    connection = acp.connect_to_agent(client or Client(), *here)
    try:
        yield connection, peer
        await all_closed()
    finally:
        await connection.close()
        await peer.close()
        await hang_up(here[0])


@contextlib.asynccontextmanager
async def asked(agent):
    """One who asks an agent, and knows nothing of hopwatch."""
    here, there = await streams()
    running = asyncio.create_task(acp.run_agent(agent, *here))
    peer = PlainPeer(*there)
    try:
        yield peer
        await all_closed()
    finally:
        await peer.close()
        await asyncio.wait([running])
        await agent.connection.close()
        await hang_up(here[0])


# Hops ------------------------------------------------------------------------------------------------------------------


@pytest.mark.row("acp", "requests and notifications both ways, over a socket", "agent-client-protocol")
def test_a_prompt_with_updates_and_a_question_back_is_one_cascade_of_two_hops_a_message():
    async def work(agent, session, words):
        await say(agent, session, "I begin")
        found = await agent.connection.read_text_file(path="/notes", session_id=session)
        await say(agent, session, found.content)

    agent, client = Agent(work), Client()

    async def main():
        async with connected(agent, client) as connection:
            with hopwatch.cascade("root"):
                session = await hello(connection)
                answer = await connection.prompt(prompt=[text("go")], session_id=session)
            assert answer.stop_reason == "end_turn"
            await all_closed()

    run(main)
    assert client.seen == [("I begin", {}), "/notes", ("what stands in /notes", {})]
    assert agent.seen == ["initialize", ("go", {})]
    hops = only_cascade()
    message = ("send", [("request", [])])
    assert tree(hops) == [("task", [message, message, ("send", [("request", [message, message, message])])])]
    said = verdict(hops)
    assert (said.verdict, said.opaque) == ("settled", [])
    prompt = named(hops, "session/prompt")
    assert prompt.peer == "instrumented"
    assert prompt.peer_hop == named(hops, "session/prompt", "request").id
    assert prompt.attributes == {
        "rpc.system.name": "jsonrpc",
        "rpc.method": "session/prompt",
        "gen_ai.conversation.id": "s-1",
        "server.address": "worker",
    }


def test_a_request_outside_of_a_cascade_is_a_cascade_of_its_own_and_another_one_another():
    async def main():
        async with connected(Agent()) as connection:
            await hello(connection)
            await all_closed()

    run(main)
    assert [tree(hops) for hops in cascades().values()] == [[("send", [("request", [])])]] * 2


def test_a_handler_that_raises_is_answered_with_an_error_which_is_what_both_hops_say():
    async def main():
        async with connected(Agent()) as connection:
            with hopwatch.cascade("root"), pytest.raises(RequestError, match="Internal error") as raised:
                await raw(connection, "_fail", {"a": 1})
            assert raised.value.code == -32603
            await all_closed()

    run(main)
    hops = only_cascade()
    send, request = named(hops, "_fail"), named(hops, "_fail", "request")
    assert (send.outcome, send.attributes["rpc.response.status_code"]) == ("failed", "-32603")
    assert (request.outcome, request.reason, request.attributes["error.type"]) == (
        "failed",
        "answered -32603",
        "ValueError",
    )
    assert verdict(hops).verdict == "settled"


def test_a_notification_whose_handler_raises_has_failed_though_nobody_is_told():
    async def fails(session, words):
        raise LookupError(words)

    async def work(agent, session, words):
        await say(agent, session, words)

    async def main():
        async with connected(Agent(work), Client(fails)) as connection:
            with hopwatch.cascade("root"):
                await connection.prompt(prompt=[text("go")], session_id="s-1")
            await all_closed()

    run(main)
    update = named(only_cascade(), "session/update", "request")
    assert (update.outcome, update.reason) == ("failed", "LookupError")


def test_what_a_handler_started_and_nobody_awaited_keeps_its_hop_open():
    going = []

    async def work(agent, session, words):
        going.append(asyncio.create_task(asyncio.Event().wait()))

    async def main():
        async with connected(Agent(work)) as connection:
            with hopwatch.cascade("root"):
                await connection.prompt(prompt=[text("go")], session_id="s-1")
            await until(lambda: len(process.here().ledger.open_hops()) == 1)
            (hop,) = process.here().ledger.open_hops()
            assert (hop.kind, hop.name) == ("request", "session/prompt")
            going[0].cancel()
            await all_closed()

    run(main)
    assert verdict(only_cascade()).verdict == "settled"


def test_a_request_that_is_given_up_is_cancelled_and_the_agent_is_still_counted():
    begun, gate = asyncio.Event(), asyncio.Event()

    async def work(agent, session, words):
        begun.set()
        await gate.wait()

    async def main():
        async with connected(Agent(work)) as connection:
            with hopwatch.cascade("root"):
                asking = asyncio.create_task(connection.prompt(prompt=[text("go")], session_id="s-1"))
                await begun.wait()
                asking.cancel()
                await asyncio.wait([asking])
            assert asking.cancelled()
            (hop,) = process.here().ledger.open_hops()
            assert (hop.kind, hop.name) == ("request", "session/prompt")
            gate.set()
            await all_closed()

    run(main)
    hops = only_cascade()
    send = named(hops, "session/prompt")
    assert (send.outcome, send.peer) == ("cancelled", "unknown")
    assert verdict(hops).verdict == "settled"


def test_a_connection_that_was_made_inside_a_span_does_not_make_that_the_parent_of_all_that_comes():
    async def main():
        with trace.get_tracer("app").start_as_current_span("startup") as span:
            async with asked(Agent()) as peer:
                answer = await peer.ask("initialize", {"protocolVersion": 1})
                assert answer["result"]["agentInfo"]["name"] == "worker"
        return f"{span.get_span_context().trace_id:032x}"

    startup = asyncio.run(main())
    assert [tree(hops) for hops in cascades().values()] == [[("request", [])]]
    assert startup not in cascades()
    # The library's own span is below ours.
    (own,) = [span for span in others() if span.name == "acp.request"]
    (hops,) = cascades().values()
    (hop,) = hops.values()
    assert f"{own.parent.span_id:016x}" == hop.id


# Over the wire ---------------------------------------------------------------------------------------------------------


def test_what_goes_out_carries_the_hop_at_the_root_of_meta_and_what_the_application_wrote_there_stays():
    async def main():
        async with alone() as (connection, peer):
            with hopwatch.cascade("root"):
                await raw(connection, "_a", {"x": 1})
                await raw(connection, "_b", {"_meta": {"mine": [1]}})
                await raw(connection, "_c", {"_meta": {"traceparent": "its own", "tracestate": "v=1"}})
                await raw(connection, "_d", {"_meta": {"baggage": "its=own"}})
                for untouched in (None, [1], {"_meta": {}}, {"_meta": None}, {"_meta": {"tracestate": 7}}):
                    await raw(connection, "_same", untouched)
            return peer.wire, acp_links.of(connection._conn).mark

    wire, mark = asyncio.run(main())
    assert len(mark) == 8
    sends = {hop.name: hop for hop in only_cascade().values() if hop.name != "_same"}
    at = {each["method"]: each["params"] for each in wire}
    entry = {
        name: f"hopwatch={hop.cascade}-{hop.id}-{mark}" for name, hop in sends.items()
    }  # what a receiver looks for
    ours = {
        name: {"traceparent": f"00-{hop.cascade}-{hop.id}-01", "tracestate": entry[name]}
        for name, hop in sends.items()
    }
    ours = {
        name: {**each, "traceparent": at[name]["_meta"].get("traceparent", "")}
        if at.get(name, {}).get("_meta", {}).get("traceparent", "")[:53] == each["traceparent"][:53]
        else each
        for name, each in ours.items()
    }
    assert at["_a"] == {"x": 1, "_meta": ours["_a"]}
    assert at["_b"] == {"_meta": {"mine": [1], **ours["_b"]}}
    assert at["_c"] == {"_meta": {"traceparent": "its own", "tracestate": f"{entry['_c']},v=1"}}
    assert at["_d"] == {"_meta": {"baggage": "its=own", "tracestate": entry["_d"]}}
    same = [each["params"] for each in wire if each["method"] == "_same"]
    assert same == [None, [1], {"_meta": {}}, {"_meta": None}, {"_meta": {"tracestate": 7}}]


@pytest.mark.parametrize(
    "params",
    [
        {"x": 1},
        {"_meta": {"mine": [1]}},
        {"_meta": {"traceparent": "its own", "tracestate": "v=1, w=2"}},
        {"_meta": {"traceparent": "its own"}},
        {"_meta": {"baggage": "its=own", "k": None}},
        {"_meta": {"tracestate": "only=state"}},
        {"_meta": {}},
        {"_meta": None},
        {},
    ],
    ids=json.dumps,
)
def test_a_handler_gets_what_the_sender_wrote_and_nothing_of_ours(params):
    agent = Agent()
    before = json.dumps(params)

    async def main():
        async with connected(agent) as connection:
            with hopwatch.cascade("root"):
                answer = await raw(connection, "_tool", params)
                await raw(connection, "_note", params, notify=True)
                # The connection keeps their order, so the notification has come before this.
                await raw(connection, "_tool", params)
            await all_closed()
        return answer

    assert asyncio.run(main()) == {"method": "tool", "params": params}
    assert agent.seen == [("tool", params), ("note", params), ("tool", params)]
    assert json.dumps(params) == before
    joined = "_meta" not in params or bool(params["_meta"])
    assert sorted(len(hops) for hops in cascades().values()) == ([7] if joined else [1, 1, 1, 4])
    # What could carry no hop was done by a peer that may have hopwatch, and in a cascade of its own.
    (root,) = [hops for hops in cascades().values() if len(hops) > 1]
    assert verdict(root).verdict == ("settled" if joined else "unknown")


def test_a_handler_without_keyword_arguments_serves_a_message_that_carries_a_hop_and_gets_the_other_keys():
    class Strict(Agent):
        async def prompt(self, prompt, session_id, mine=None, message_id=None):
            self.seen.append((prompt[0].text, mine))
            return await super().prompt(prompt, session_id)

    agent = Strict()

    async def main():
        async with connected(agent) as connection:
            with hopwatch.cascade("root"):
                await connection.prompt(prompt=[text("go")], session_id="s-1", mine="wrote it")
            await all_closed()

    run(main)
    assert agent.seen[0] == ("go", "wrote it")
    assert verdict(only_cascade()).verdict == "settled"


def test_an_answer_names_its_hop_only_to_who_carried_one_and_never_inside_the_result():
    async def main():
        async with asked(Agent()) as peer:
            plain = await peer.ask("_tool", {"a": 1})
            carried = {
                "tracestate": f"hopwatch={'a' * 32}-{'b' * 16}",
                "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
            }
            joined = await peer.ask("_tool", {"a": 1, "_meta": carried})
            failed = await peer.ask("_fail", {"_meta": carried})
        return plain, joined, failed

    plain, joined, failed = asyncio.run(main())
    result = {"method": "tool", "params": {"a": 1}}
    assert {key: plain[key] for key in plain if key != "id"} == {"jsonrpc": "2.0", "result": result}
    assert {*joined} == {"jsonrpc", "id", "result", "_meta"}
    assert joined["result"] == result
    served = {hop.id: hop for hop in cascades()["a" * 32].values()}
    for answer in (joined, failed):
        _, cascade, hop, _ = answer["_meta"]["hopwatch-hop"].split("-")
        assert (cascade, served[hop].parent, served[hop].remote) == ("a" * 32, "b" * 16, True)
    assert failed["error"]["code"] == -32603


def test_keys_of_tracing_that_another_instrumentation_sent_are_the_parent_and_reach_the_handler_as_without_us():
    agent = Agent()
    carried = {"traceparent": f"00-{'c' * 32}-{'d' * 16}-01"}

    async def main():
        async with asked(agent) as peer:
            await peer.ask("_tool", {"_meta": carried})

    run(main)
    assert agent.seen == [("tool", {"_meta": carried})]
    (hop,) = cascades()["c" * 32].values()
    assert hop.parent is None  # no hop of ours sent it: it is a root, in that trace


def test_baggage_goes_with_a_message_and_is_there_for_its_handler():
    found = []

    async def work(agent, session, words):
        found.append(dict(baggage.get_all()))

    async def main():
        async with connected(Agent(work)) as connection:
            with hopwatch.cascade("root"):
                token = otel_context.attach(baggage.set_baggage("tenant", "acme"))
                await connection.prompt(prompt=[text("go")], session_id="s-1")
                otel_context.detach(token)
            await connection.prompt(prompt=[text("go")], session_id="s-1")

    run(main)
    assert found == [{"tenant": "acme"}, {}]


def test_nothing_goes_out_where_that_is_switched_off_and_the_verdict_is_up_to_the_peer(monkeypatch):
    monkeypatch.setenv("HOPWATCH_ACP_INJECT", "false")
    fresh()

    async def main():
        async with connected(Agent()) as connection:
            with hopwatch.cascade("root"):
                await raw(connection, "_note", {"a": 1}, notify=True)
                await hello(connection)
            await all_closed()

    run(main)
    (root,) = [hops for hops in cascades().values() if len(hops) > 1]
    assert tree(root) == [("task", [("send", []), ("send", []), ("send", [])])]
    said = verdict(root)
    assert said.verdict == "settled"
    # What it calls itself is known from the first answer on.
    assert said.opaque == ["stdio", "worker"]


@pytest.mark.skipif(not V12, reason="transports are there from 0.12 on; ci: may be skipped")
def test_the_http_requests_by_which_a_message_is_sent_are_no_messages_themselves():
    from acp._transport import memory_transport_pair

    requests = []

    class OverHttp:
        """Sends as an instrumented HTTP client does: with what is current as headers."""

        def __init__(self, inner):
            self.receive, self.close, self.inner = inner.receive, inner.close, inner

        async def send(self, message):
            headers = {}
            propagate.inject(headers)
            requests.append((headers, message))
            await self.inner.send(message)

    async def main():
        ours, theirs = memory_transport_pair()
        running = asyncio.create_task(acp.run_agent(Agent(), theirs))
        connection = acp.connect_to_agent(Client(), OverHttp(ours))
        with hopwatch.cascade("root"):
            await raw(connection, "_tool", {"a": 1})
        await connection.close()
        await asyncio.wait([running])
        await all_closed()

    run(main)
    assert verdict(only_cascade()).verdict == "settled"
    ((headers, message),) = requests
    assert propagation.incoming(headers).hop == propagation.incoming(message["params"]["_meta"]).hop
    scope = {"type": "http", "path": "/", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    assert asgi.Exchange(scope).carrier is None
    # A peer that does HTTP for it, and hands on what the message carried, is another matter.
    meta = message["params"]["_meta"]
    scope["headers"] = [(key.encode(), meta[key].encode()) for key in ("traceparent", "tracestate")]
    assert asgi.Exchange(scope).carrier is not None


# Peers -----------------------------------------------------------------------------------------------------------------


def test_a_cascade_is_settled_up_to_a_peer_that_answers_without_an_acknowledgement():
    async def main():
        async with alone(
            lambda message: {"protocolVersion": 1, "agentInfo": {"name": "otheragent", "version": "1"}}
        ) as (connection, _peer):
            with hopwatch.cascade("root"):
                await connection.initialize(protocol_version=1)
                await raw(connection, "_note", {}, notify=True)

    run(main)
    said = verdict(only_cascade())
    assert (said.verdict, said.opaque) == ("settled", ["otheragent"])
    assert "up to otheragent, which hopwatch cannot see into" in said.reason


def test_an_error_of_a_peer_that_hopwatch_cannot_see_into_is_an_answer():
    def refuses(message):
        raise ValueError("no")

    async def main():
        async with alone(refuses) as (connection, _peer):
            with hopwatch.cascade("root"), pytest.raises(RequestError):
                await raw(connection, "_tool", {})

    run(main)
    said = verdict(only_cascade())
    assert (said.verdict, said.opaque) == ("settled", ["stdio"])


def test_nobody_knows_what_became_of_a_message_whose_connection_was_closed_before_the_answer():
    async def main():
        async with alone(None) as (connection, peer):
            with hopwatch.cascade("root"):
                asking = asyncio.create_task(raw(connection, "_tool", {}))
                await peer.until(lambda each: each["method"] == "_tool")
                await connection.close()
                await asyncio.wait([asking])
            assert isinstance(asking.exception(), ConnectionError)

    run(main)
    hops = only_cascade()
    assert named(hops, "_tool").peer == "unknown"
    assert verdict(hops).verdict == "unknown"


def test_a_notification_to_a_peer_of_which_nothing_is_known_is_on_its_way_and_then_unknown():
    async def main():
        async with alone() as (connection, _peer):
            with hopwatch.cascade("root"):
                await raw(connection, "_note", {}, notify=True)

    run(main)
    hops = only_cascade()
    from hopwatch.verdict import judge

    assert judge(hops, {}, now=hops[named(hops, "_note").id].heard + 1).verdict == "in_flight"
    said = verdict(hops)
    assert said.verdict == "unknown"
    assert "nobody answers a notification" in said.reason


def test_what_an_agent_sends_to_a_client_that_carries_nothing_is_settled_up_to_it():
    async def work(agent, session, words):
        await say(agent, session, "one")

    async def main():
        async with asked(Agent(work)) as peer:
            await peer.ask("session/prompt", {"sessionId": "s-1", "prompt": [{"type": "text", "text": "go"}]})
            # A client in Python may have handlers that take no more than they name.
            (update,) = [each for each in peer.wire if each.get("method") == "session/update"]
            assert "_meta" not in update["params"]

    run(main)
    hops = only_cascade()
    assert tree(hops) == [("request", [("send", [])])]
    assert (verdict(hops).verdict, verdict(hops).opaque) == ("settled", ["stdio"])


def test_a_client_that_carries_keys_of_another_instrumentation_is_sent_some():
    async def work(agent, session, words):
        await say(agent, session, "one")

    async def main():
        async with asked(Agent(work)) as peer:
            prompt = {"sessionId": "s-1", "prompt": [{"type": "text", "text": "go"}]}
            await peer.ask(
                "session/prompt", {**prompt, "_meta": {"traceparent": f"00-{'c' * 32}-{'d' * 16}-01"}}
            )
            (update,) = [each for each in peer.wire if each.get("method") == "session/update"]
            assert update["params"]["_meta"]["traceparent"].startswith(f"00-{'c' * 32}-")

    run(main)
    assert verdict(cascades()["c" * 32]).opaque == ["stdio"]


def test_what_a_peer_that_carries_nothing_asks_while_it_works_on_a_prompt_belongs_to_that_prompt():
    client = Client()

    async def main():
        async with alone(None, client) as (connection, peer):
            with hopwatch.cascade("root"):
                asking = asyncio.create_task(connection.prompt(prompt=[text("go")], session_id="s-9"))
                prompt = await peer.until(lambda each: each.get("method") == "session/prompt")
                await peer.ask("fs/read_text_file", {"sessionId": "s-9", "path": "/x"})
                await peer.ask("fs/read_text_file", {"sessionId": "another", "path": "/y"})
                peer.send({"id": prompt["id"], "result": {"stopReason": "end_turn"}})
                await asking

    run(main)
    assert client.seen == ["/x", "/y"]
    trees = sorted((tree(hops) for hops in cascades().values()), key=str)
    assert trees == [[("request", [])], [("task", [("send", [("request", [])])])]]


class Shouting(dict):
    def items(self):
        return [(key, str(value).upper()) for key, value in super().items()]


@pytest.mark.parametrize("params", [{"_meta": {}, "a": 1}, None, [1], {"_meta": {"tracestate": 5}}, Shouting(a="b")], ids=str)  # fmt: skip
@pytest.mark.parametrize("notify", [False, True])
def test_a_message_to_an_instrumented_peer_that_can_carry_no_hop_settles_nothing(params, notify):
    async def main():
        here, there = await streams()
        gate, came = asyncio.Event(), []

        async def serve(method, params, is_notification):
            came.append(params)
            if is_notification:
                await gate.wait()
            return {}

        agent, client = Connection(serve, *there), Connection(serve, *here)
        with hopwatch.cascade("root"):
            await client.send_request("initialize", {"protocolVersion": 1})
            send = client.send_notification if notify else client.send_request
            await send("_n", params)
            await until(lambda: len(came) == 2)
        gate.set()
        await all_closed()
        for connection, writer in ((client, here[0]), (agent, there[0])):
            await connection.close()
            await hang_up(writer)
        return came[1]

    came = asyncio.run(asyncio.wait_for(main(), 60))
    assert came == ({"a": "B"} if isinstance(params, Shouting) else params)
    (root,) = [hops for hops in cascades().values() if len(hops) > 1]
    said = verdict(root)
    assert (said.verdict, said.opaque) == ("unknown", [])
    assert "it carried no hop" in said.reason


@pytest.mark.parametrize("kind", [OrderedDict, lambda **given: defaultdict(list, **given), Counter, type("Mine", (dict,), {})])  # fmt: skip
def test_params_of_a_kind_of_dict_carry_their_hop_as_a_dict_does(kind):
    agent = Agent()

    async def main():
        async with connected(agent) as connection:
            with hopwatch.cascade("root"):
                await raw(connection, "_tool", kind(b=1, a=2))
            await all_closed()

    run(main)
    assert [*agent.seen[0][1].items()] == [("b", 1), ("a", 2)]
    assert tree(only_cascade()) == [("task", [("send", [("request", [])])])]


def test_a_connection_of_a_class_that_cannot_be_hashed_serves_what_was_written_and_its_hop_is_known():
    class Mine(Connection):  # noqa: PLW1641 - that is the story
        def __eq__(self, other):
            return True

    seen = []

    async def serve(method, params, is_notification):
        seen.append(params)
        return {}

    async def main():
        here, there = await streams()
        agent, client = Mine(serve, *there), Mine(serve, *here)
        with hopwatch.cascade("root"):
            await client.send_request("_x", {"a": 1})
        await all_closed()
        for connection, writer in ((client, here[0]), (agent, there[0])):
            await connection.close()
            await hang_up(writer)
        return weakref.ref(agent)

    known = asyncio.run(asyncio.wait_for(main(), 60))
    assert seen == [{"a": 1}]
    assert tree(only_cascade()) == [("task", [("send", [("request", [])])])]
    collect()
    assert known() is None
    assert process.failures == {}


def test_nothing_is_kept_of_connections_that_are_gone():
    async def main():
        for _ in range(3):
            async with connected(Agent()) as connection:
                await hello(connection)
        await all_closed()

    collect()
    before = len(acp_links._connections)
    run(main)
    collect()
    assert len(acp_links._connections) <= before


@pytest.mark.parametrize("which", ["before", "after"])
def test_what_a_peer_asks_belongs_to_the_prompt_though_another_request_of_the_session_has_come_in_between(
    which,
):
    gate, begun = asyncio.Event(), asyncio.Event()

    class Slow(Client):
        async def ext_method(self, method, params):
            begun.set()
            await gate.wait()
            return {}

    async def main():
        async with alone(None, Slow()) as (connection, peer):
            with hopwatch.cascade("root"):
                asking = asyncio.create_task(connection.prompt(prompt=[text("go")], session_id="s-9"))
                prompt = await peer.until(lambda each: each.get("method") == "session/prompt")
                mode = asyncio.create_task(connection.set_session_mode(mode_id="x", session_id="s-9"))
                set_mode = await peer.until(lambda each: each.get("method") == "session/set_mode")
                if which == "before":
                    peer.send({"id": set_mode["id"], "result": {}})
                    await mode
                asked = asyncio.create_task(peer.ask("_work", {"sessionId": "s-9"}))
                await begun.wait()
                if which == "after":
                    peer.send({"id": set_mode["id"], "result": {}})
                    await mode
                peer.send({"id": prompt["id"], "result": {"stopReason": "end_turn"}})
                await asking
            assert {hop.name for hop in process.here().ledger.open_hops()} >= {"_work"}
            known = acp_links.of(connection._conn)
            assert (known.works, known.asked) == ({}, {})
            gate.set()
            await asked

    run(main)
    hops = only_cascade()
    assert tree(hops) == [("task", [("send", [("request", [])]), ("send", [])])]
    assert hops[named(hops, "_work", "request").parent].name == "session/prompt"


UPDATE = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "I work"}}


def handed_on(message, *, span=True):
    """What a peer that traces puts into its own message for one that it was sent."""
    meta = message["params"]["_meta"]
    parent = f"{meta['traceparent'][:36]}{'ab' * 8}-01" if span else meta["traceparent"]
    return {"traceparent": parent, "tracestate": meta["tracestate"]}


@pytest.mark.parametrize("span", [True, False], ids=["below a span of its own", "as it was"])
def test_a_peer_that_hands_our_own_hop_back_has_not_told_that_it_took_what_was_given_up(span):
    client = Client()

    async def main():
        async with alone(None, client) as (connection, peer):
            with hopwatch.cascade("root"):
                asking = asyncio.create_task(connection.prompt(prompt=[text("go")], session_id="s-9"))
                prompt = await peer.until(lambda each: each.get("method") == "session/prompt")
                meta = handed_on(prompt, span=span)
                peer.send(
                    {
                        "method": "session/update",
                        "params": {"sessionId": "s-9", "update": UPDATE, "_meta": meta},
                    }
                )
                answer = await peer.ask("_tool", {"a": 1, "_meta": meta})
                await until(lambda: client.seen)
                asking.cancel()
                await asyncio.wait([asking])
                late = await peer.ask("_late", {"a": 1, "_meta": meta})
            assert "_meta" not in answer
            assert "_meta" not in late

    run(main)
    hops = only_cascade()
    assert tree(hops) == [("task", [("send", [("request", [])] * 3)])]
    assert {hop.name: hop.remote for hop in hops.values() if hop.kind == "request"} == {
        "session/update": False, "_tool": False, "_late": True,
    }  # fmt: skip
    said = verdict(hops)
    assert said.verdict == "unknown"
    assert "nobody knows whether" in said.reason


def test_a_peer_that_hands_our_own_hop_back_is_opaque_once_it_has_answered():
    client = Client()

    async def main():
        async with alone(None, client) as (connection, peer):
            with hopwatch.cascade("root"):
                asking = asyncio.create_task(connection.prompt(prompt=[text("go")], session_id="s-9"))
                prompt = await peer.until(lambda each: each.get("method") == "session/prompt")
                params = {"sessionId": "s-9", "update": UPDATE, "_meta": handed_on(prompt)}
                peer.send({"method": "session/update", "params": params})
                peer.send({"id": prompt["id"], "result": {"stopReason": "end_turn"}})
                await asking
                peer.send({"method": "session/update", "params": params})
                await until(lambda: len(client.seen) == 2)

    run(main)
    said = verdict(only_cascade())
    assert (said.verdict, said.opaque) == ("settled", ["stdio"])


def test_a_hop_of_another_that_a_peer_hands_on_does_not_make_the_peer_instrumented():
    async def work(agent, session, words):
        await say(agent, session, "one")

    meta = {"tracestate": f"hopwatch={'a' * 32}-{'b' * 16}", "traceparent": f"00-{'a' * 32}-{'c' * 16}-01"}

    async def main():
        agent = Agent(work)
        async with asked(agent) as peer:
            prompt = {"sessionId": "s-1", "prompt": [{"type": "text", "text": "go"}], "_meta": meta}
            await peer.ask("session/prompt", prompt)
            assert acp_links.of(agent.connection._conn).peer is None

    run(main)
    assert verdict(cascades()["a" * 32]).verdict == "unknown"


def test_nothing_reached_a_peer_whose_connection_was_closed_before():
    async def main():
        async with alone() as (connection, _peer):
            await connection.close()
            with hopwatch.cascade("root"), pytest.raises(ConnectionError):
                await raw(connection, "_tool", {})

    from any_acp import RELEASE

    if RELEASE < (0, 10):
        pytest.skip("0.8.1 takes a message that nobody will ever write; ci: may be skipped")
    run(main)
    hops = only_cascade()
    assert named(hops, "_tool").peer == "refused"
    assert verdict(hops).verdict == "settled"


@pytest.mark.parametrize(
    "noise",
    [
        {"id": [1], "result": {}},
        {"id": 77, "result": {}},
        {"id": 0, "result": {}, "_meta": "x"},
        {"id": 0, "result": {}, "_meta": {"hopwatch-hop": 7}},
        {"id": 0, "result": {}, "_meta": {"hopwatch-hop": "00-x-y-z"}},
        {"id": 0, "result": {}, "_meta": {"hopwatch-hop": f"00-{'f' * 32}-{'e' * 16}-01"}},
    ],
    ids=json.dumps,
)
def test_an_acknowledgement_that_is_none_makes_nobody_instrumented(noise):
    async def main():
        async with alone(None) as (connection, peer):
            with hopwatch.cascade("root"):
                asking = asyncio.create_task(raw(connection, "_tool", {}))
                await peer.until(lambda each: each["method"] == "_tool")
                peer.send(noise)
                if noise["id"] != 0:
                    peer.send({"id": 0, "result": {}})
                # The library itself gives up reading at an id that cannot be looked up.
                await asyncio.wait([asking], timeout=None if noise["id"] != [1] else 0.05)
                await connection.close()
                asking.cancel()
                await asyncio.wait([asking])

    run(main)
    assert named(only_cascade(), "_tool").peer in ("opaque", "unknown")


@pytest.mark.parametrize("meta", [{"tracestate": "hopwatch=x"}, {"tracestate": 3}, {"traceparent": []}, [1], "x", {"tracestate": f"hopwatch={'0' * 32}-{'b' * 16}"}, {"tracestate": f"hopwatch={'a' * 32}-{'b' * 16}", "traceparent": "é"}], ids=str)  # fmt: skip
def test_what_looks_like_a_hop_and_is_none_does_no_harm(meta):
    agent = Agent()

    async def main():
        async with asked(agent) as peer:
            return await peer.ask("_tool", {"_meta": meta})

    answer = asyncio.run(main())
    assert answer["result"]["method"] == "tool"
    assert len(cascades()) == 1


def test_a_method_and_a_session_that_no_exporter_can_encode_are_shown_as_far_as_they_can_be():
    agent = Agent()

    async def main():
        async with asked(agent) as peer:
            await peer.ask("_tool\ud800" + "x" * 1000, {"sessionId": "s\udfff"})

    run(main)
    assert agent.seen == [("tool\ud800" + "x" * 1000, {"sessionId": "s\udfff"})]
    ((hop,),) = [hops.values() for hops in cascades().values()]
    assert hop.name == "_tool?" + "x" * 194
    assert hop.attributes["gen_ai.conversation.id"] == "s?"


def test_all_seams_of_the_release_that_is_installed_were_found():
    assert instrumentation.missing == []
    assert names.ACKNOWLEDGEMENT_HEADER == "hopwatch-hop"


def test_what_came_before_the_answer_belongs_to_the_prompt_though_it_is_served_after_it():
    client = Client()

    async def main():
        async with alone(None, client) as (connection, peer):
            with hopwatch.cascade("root"):
                asking = asyncio.create_task(connection.prompt(prompt=[text("go")], session_id="s-9"))
                prompt = await peer.until(lambda each: each.get("method") == "session/prompt")
                update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "x"}}
                for _ in range(5):
                    peer.send({"method": "session/update", "params": {"sessionId": "s-9", "update": update}})
                peer.send({"id": prompt["id"], "result": {"stopReason": "end_turn"}})
                await asking
            await until(lambda: len(client.seen) == 5)

    run(main)
    hops = only_cascade()
    assert tree(hops) == [("task", [("send", [("request", [])] * 5)])]
    assert not any(hop.late for hop in hops.values())


def test_what_has_come_and_is_never_served_keeps_nothing_open():
    async def main():
        async with alone(None) as (connection, peer):
            with hopwatch.cascade("root"):
                asking = asyncio.create_task(connection.prompt(prompt=[text("go")], session_id="s-9"))
                await peer.until(lambda each: each.get("method") == "session/prompt")
                update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "x"}}
                for _ in range(50):
                    peer.send({"method": "session/update", "params": {"sessionId": "s-9", "update": update}})
                await connection.close()
                await asyncio.wait([asking])

    run(main)
    assert process.here().ledger.size == 0
