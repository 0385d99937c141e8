"""How does a plain agent work that hands on what it is asked? `python agent.py` serves one on a free port and prints its address.

A message's text is the agents that it shall go through, and `end`. No line of hopwatch.
"""

import asyncio
import os

import httpx
import uvicorn
from a2a.client import ClientConfig, ClientFactory
from a2a.helpers import new_task_from_user_message, new_text_message
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, Role, SendMessageRequest
from opentelemetry import trace
from starlette.applications import Starlette


def card_of(url):
    return AgentCard(
        name="agent",
        version="1",
        description="an agent",
        supported_interfaces=[AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0")],
        capabilities=AgentCapabilities(),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
    )


class Executor(AgentExecutor):
    """Asks the next agent, and is done when that one is."""

    async def execute(self, context, event_queue):
        task = new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        url, _, rest = context.get_user_input().partition(" ")
        if url != "end":
            async with httpx.AsyncClient(timeout=60) as http:
                peer = ClientFactory(ClientConfig(httpx_client=http, streaming=False)).create(card_of(url))
                message = new_text_message(rest, role=Role.ROLE_USER)
                async for _ in peer.send_message(SendMessageRequest(message=message)):
                    pass
        await updater.complete()

    async def cancel(self, context, event_queue):
        raise NotImplementedError


async def main():
    handler = DefaultRequestHandler(
        agent_executor=Executor(), task_store=InMemoryTaskStore(), agent_card=card_of("http://127.0.0.1:1/")
    )
    app = Starlette(routes=create_jsonrpc_routes(handler, "/"))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    resource = getattr(trace.get_tracer_provider(), "resource", None)
    distro = resource.attributes.get("telemetry.distro.name", "") if resource is not None else ""
    print(
        f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/ {os.getpid()} {distro}",
        flush=True,
    )
    await serving


asyncio.run(main())
