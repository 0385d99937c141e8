"""Who answers the messages of `a2a_messages.py`? An agent without work, with each engine of a2a-sdk, over each binding, in one process.

    python benchmarks/messages_agent.py PORT GRPC_PORT LEGACY_GRPC_PORT

Over HTTP the newer engine is at `/` and `/rest`, and the legacy one at `/legacy/` and `/legacy/rest`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

import grpc
import uvicorn
from a2a.helpers import new_task_from_user_message
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler, LegacyRequestHandler
from a2a.server.request_handlers.grpc_handler import GrpcHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Part
from a2a.types.a2a_pb2_grpc import add_A2AServiceServicer_to_server
from starlette.applications import Starlette
from starlette.routing import Mount


class Executor(AgentExecutor):
    """Four events, as the agents of the demo have them."""

    async def execute(self, context, event_queue) -> None:
        task = context.current_task or new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        await updater.add_artifact([Part(text="worked")])
        await updater.complete()

    async def cancel(self, context, event_queue) -> None:
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


def card_of(port: int) -> AgentCard:
    """What the agent says of itself."""
    return AgentCard(
        name="worker",
        version="1",
        description="answers",
        supported_interfaces=[
            AgentInterface(
                url=f"http://127.0.0.1:{port}/", protocol_binding="JSONRPC", protocol_version="1.0"
            )
        ],
        capabilities=AgentCapabilities(streaming=True),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="work", name="work", description="works", tags=["benchmark"])],
    )


async def main(port: int, grpc_port: int, legacy_grpc_port: int) -> None:
    card = card_of(port)
    executor = Executor()
    routes = create_agent_card_routes(card)
    servers = []
    # The legacy one first, for the routes of REST take any first part of a path for a tenant.
    for made, prefix, taken in (
        (LegacyRequestHandler, "/legacy", legacy_grpc_port),
        (DefaultRequestHandler, "", grpc_port),
    ):
        handler = made(agent_executor=executor, task_store=InMemoryTaskStore(), agent_card=card)
        mine = create_jsonrpc_routes(handler, "/") + create_rest_routes(handler, path_prefix="/rest")
        routes += [Mount(prefix, routes=mine)] if prefix else mine
        server = grpc.aio.server()
        add_A2AServiceServicer_to_server(GrpcHandler(handler), server)
        server.add_insecure_port(f"127.0.0.1:{taken}")
        await server.start()
        servers.append(server)
    http = uvicorn.Config(Starlette(routes=routes), host="127.0.0.1", port=port, log_level="warning")
    with contextlib.suppress(asyncio.CancelledError):
        await uvicorn.Server(http).serve()
    for server in servers:
        await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
