"""Two agents ask each other, and neither can answer: is it seen? Real agents, the stock launcher, a real collector.

What an agent does is in the message: the URLs at which to ask on, one after the other, each agent taking the first.
"""

import contextlib
import http.client
import json
import time

import pytest

from collector.telling import collector
from ways_out import PRELUDE, started, until_ready

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

AGENT = (
    PRELUDE
    + """
import socket
import grpc, httpx, uvicorn
from a2a.client import ClientConfig, ClientFactory
from a2a.helpers import new_task_from_user_message, new_text_message
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.request_handlers.grpc_handler import GrpcHandler
from a2a.server.routes import create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, Role, SendMessageRequest
from a2a.types.a2a_pb2_grpc import add_A2AServiceServicer_to_server
from starlette.applications import Starlette

holds, timeout = sys.argv[1], float(sys.argv[2]) or None
binding = os.environ.get("BINDING", "JSONRPC")

def by_grpc(url):
    # Where the agent of this URL takes gRPC: a socket beside this program, called by its port.
    return f"unix:{os.path.dirname(os.path.abspath(__file__))}/{url.rstrip('/').rpartition(':')[2]}"

def card_of(url):
    where = by_grpc(url) if binding == "GRPC" else url
    return AgentCard(
        name="agent",
        supported_interfaces=[AgentInterface(url=where, protocol_binding=binding, protocol_version="1.0")],
        capabilities=AgentCapabilities(streaming=False),
    )

async def ask(text, task):
    url, *further = text.split()
    async with httpx.AsyncClient(timeout=timeout) as http:
        config = ClientConfig(
            httpx_client=http, grpc_channel_factory=grpc.aio.insecure_channel, streaming=False,
            supported_protocol_bindings=[binding],
        )
        client = ClientFactory(config).create(card_of(url))
        message = new_text_message(" ".join(further) or "nothing", role=Role.ROLE_USER)
        if holds == "callers-task":
            message.task_id, message.context_id = task
        elif holds == "task":
            message.parts[0].text += f" task={task[0]},{task[1]}"
        async for answer in client.send_message(SendMessageRequest(message=message)):
            pass

class Executor(AgentExecutor):
    def __init__(self):
        self.desk = asyncio.Lock()

    async def execute(self, context, queue):
        task = context.current_task or new_task_from_user_message(context.message)
        if context.current_task is None:
            await queue.enqueue_event(task)
        updater = TaskUpdater(queue, task.id, task.context_id)
        await updater.start_work()
        words = context.get_user_input().split()
        urls = [word for word in words if word.startswith("http")]
        told = [word[5:].split(",") for word in words if word.startswith("task=")]
        if "slow" in words and not urls:
            await asyncio.sleep(9)
        elif holds == "lock":
            async with self.desk:
                await self.go_on(urls, words, task, told)
        else:
            await self.go_on(urls, words, task, told)
        await updater.complete()

    async def go_on(self, urls, words, task, told):
        if urls:
            rest = [*urls, *(["slow"] if "slow" in words else [])]
            await ask(" ".join(rest), told[0] if told else (task.id, task.context_id))

    async def cancel(self, context, queue):
        pass

async def main():
    sock = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}/"
    handler = DefaultRequestHandler(agent_executor=Executor(), task_store=InMemoryTaskStore(), agent_card=card_of(url))
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=create_jsonrpc_routes(handler, "/")), log_level="error"))
    if binding == "GRPC":
        taking = grpc.aio.server()
        add_A2AServiceServicer_to_server(GrpcHandler(handler), taking)
        taking.add_insecure_port(by_grpc(url))
        await taking.start()
    print(url, flush=True)
    ready()
    await server.serve(sockets=[sock])

run(main())
"""
)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with collector(tmp_path_factory.mktemp("across") / "store.sqlite") as found:
        found.url = f"http://127.0.0.1:{found.port}"
        yield found


@contextlib.contextmanager
def agents(running, tmp_path, *kinds, loop="asyncio", timeout=0, **more):
    """Agents that listen, each with what it holds while it asks on. Yields their URLs and their names."""
    program = tmp_path / "agent.py"
    program.write_text(AGENT)
    more = {
        "HOPWATCH_REVEAL_AFTER": "1",
        **more,
    }  # an item that nobody takes has to become a hop that does not move
    with contextlib.ExitStack() as stack:
        found = [
            stack.enter_context(started(program, loop, kind, str(timeout), url=running.url, **more))
            for kind in kinds
        ]
        urls = [until_ready(each).split()[0] for each in found]
        yield urls, [each.agent for each in found]


@contextlib.contextmanager
def asked(url, text):
    """Somebody who has asked an agent, and waits for its answer."""
    message = {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": text}]}
    body = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": message}}
    connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=200)
    connection.request(
        "POST", "/", json.dumps(body), {"content-type": "application/json", "a2a-version": "1.0"}
    )
    try:
        yield connection
    finally:
        connection.close()


def until(running, agent, wanted, *, within=100):
    """The cascade of an agent once `wanted` holds of it, and the verdicts that were seen on the way."""
    end = time.monotonic() + within
    seen = []
    while True:
        rows = [row for row in running.get("/api/cascades")["cascades"] if agent in row["agents"]]
        cascade = running.get(f"/api/cascades/{rows[0]['cascade']}") if rows else None
        if cascade is not None:
            if cascade["verdict"] not in seen:
                seen.append(cascade["verdict"])
            if wanted(cascade):
                return cascade, seen
        assert time.monotonic() < end, cascade
        time.sleep(0.05)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_agent_that_asks_back_while_the_first_one_holds_a_lock_stalls_with_the_whole_circle(
    running, tmp_path, loop
):
    with (
        agents(running, tmp_path, "lock", "nothing", loop=loop) as ((first, second), (alice, bob)),
        asked(first, f"{second} {first}"),
    ):
        cascade, seen = until(running, alice, lambda found: found["verdict"] == "stalled")
    assert seen in (["in_flight", "stalled"], ["stalled"])
    (deadlock,) = cascade["deadlocks"]
    assert deadlock["agents"] == [alice, bob]
    assert [(edge["agent"], edge["kind"]) for edge in deadlock["edges"]] == [
        (alice, "answer"),
        (bob, "execution"),
        (bob, "answer"),
        (alice, "execution"),
        (alice, "lock"),
    ]
    held_by = [edge["held_by"] for edge in deadlock["edges"]]
    assert held_by == [edge["hop"] for edge in (*deadlock["edges"][1:], deadlock["edges"][0])]
    assert all("agent.py:" in edge["at"] for edge in deadlock["edges"] if edge["kind"] != "execution")
    reason = cascade["reason"]
    assert f"Deadlock over {alice} and {bob}: " in reason
    assert f"waits for the answer of {bob} to its SendMessage to 127.0.0.1:" in reason
    assert f"waits for the answer of {alice} to its SendMessage to 127.0.0.1:" in reason
    assert "waits for lock `self.desk` held by task " in reason
    assert reason.count("Deadlock over") == 1


def test_an_agent_that_asks_back_about_the_task_it_was_asked_for_stalls(running, tmp_path):
    with (
        agents(running, tmp_path, "task", "callers-task") as ((first, second), (alice, _)),
        asked(first, f"{second} {first}"),
    ):
        cascade, _ = until(running, alice, lambda found: found["verdict"] == "stalled")
    (deadlock,) = cascade["deadlocks"]
    assert [edge["kind"] for edge in deadlock["edges"]] == ["answer", "execution", "answer", "task"]
    (execution,) = [hop for hop in cascade["hops"] if hop["agent"] == alice and hop["kind"] == "execution"]
    assert (
        f"waits for its turn at task {execution['task_id']}, which execution of {alice}" in cascade["reason"]
    )


def test_agents_that_ask_each_other_over_grpc_stall_with_the_whole_circle(running, tmp_path):
    with (
        agents(running, tmp_path, "lock", "nothing", BINDING="GRPC") as ((first, second), (alice, bob)),
        asked(first, f"{second} {first}"),
    ):
        cascade, seen = until(running, alice, lambda found: found["verdict"] == "stalled")
    assert seen in (["in_flight", "stalled"], ["stalled"])
    (deadlock,) = cascade["deadlocks"]
    assert [(edge["agent"], edge["kind"]) for edge in deadlock["edges"]] == [
        (alice, "answer"),
        (bob, "execution"),
        (bob, "answer"),
        (alice, "execution"),
        (alice, "lock"),
    ]
    port = second.rstrip("/").rpartition(":")[2]
    assert f"waits for the answer of {bob} to its SendMessage to {tmp_path}/{port}" in cascade["reason"]


def test_agents_that_ask_back_and_answer_at_last_never_stall(running, tmp_path):
    with (
        agents(running, tmp_path, "nothing", "nothing") as ((first, second), (alice, _)),
        asked(first, f"{second} {first} {second} slow") as connection,
    ):
        assert connection.getresponse().status == 200
        cascade, seen = until(running, alice, lambda found: found["verdict"] == "settled")
    assert "stalled" not in seen
    assert len([hop for hop in cascade["hops"] if hop["kind"] == "execution"]) == 4


def test_a_circle_that_a_timeout_undoes_is_in_flight_and_told(running, tmp_path):
    with (
        agents(running, tmp_path, "lock", "nothing", timeout=30) as ((first, second), (alice, bob)),
        asked(first, f"{second} {first}"),
    ):
        cascade, seen = until(running, alice, lambda found: found["deadlocks"])
        assert seen == ["in_flight"]
        assert f"Deadlock over {alice} and {bob}, which a timeout at " in cascade["reason"]
        assert cascade["deadlocks"][0]["until"] > time.time() - 60
        _, seen = until(running, alice, lambda found: not found["deadlocks"])
    assert "stalled" not in seen
