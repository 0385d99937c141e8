"""How do the agents of the storm talk? A user asks a planner, which hands on to a worker and waits for its push."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from pathlib import Path

import httpx
import uvicorn
from a2a.client import ClientConfig, ClientFactory
from a2a.helpers import new_task_from_user_message, new_text_message, new_text_part
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import (
    BasePushNotificationSender,
    InMemoryPushNotificationConfigStore,
    InMemoryTaskStore,
    TaskUpdater,
)
from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    Role,
    SendMessageConfiguration,
    SendMessageRequest,
)
from starlette.applications import Starlette

import hopwatch

sys.path.insert(0, str(Path(hopwatch.__file__).parent / "demo" / "agents"))
from plain import Inbox, delegate

HOST = "127.0.0.1"


def card(name, port):
    return AgentCard(
        name=name,
        description=f"{name} of the storm",
        version="1",
        supported_interfaces=[
            AgentInterface(url=f"http://{HOST}:{port}/", protocol_binding="JSONRPC", protocol_version="1.0")
        ],
        capabilities=AgentCapabilities(streaming=False, push_notifications=True),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="work", name="work", description="works", tags=["storm"])],
    )


class Executor(AgentExecutor):
    """Does the work that the message names, and has the next agent do some of it."""

    def __init__(self, program, here, to, inbox):
        self.program = program
        self.here = here
        self.to = to
        self.inbox = inbox

    async def execute(self, context, event_queue):
        work = f"{context.get_user_input()}.{self.program.role[0]}"
        hop = hopwatch.current()
        if hop is not None:
            self.program.roots[work.partition(".")[0]] = hop.cascade
        self.program.begin(work)
        await self.program.piece(work, lambda _: self.run(work, context, event_queue))

    async def run(self, work, context, event_queue):
        task = context.current_task or new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        if self.to:
            path, pushed = self.inbox.expect()
            self.program.step()
            await delegate(self.to, work, self.here + path)
            self.program.step()
            await pushed
        else:
            await self.program.body(f"{work}.w")
        await updater.add_artifact([new_text_part("done")])
        self.program.step()
        await updater.complete()

    async def cancel(self, context, event_queue):
        raise NotImplementedError


async def serve(program, port, to=""):
    """Serve until somebody says that it is enough; SIGUSR1 says that there is nothing to do any more."""
    loop = asyncio.get_running_loop()
    program.begin_in(loop)
    if program.victim:
        loop.add_signal_handler(signal.SIGUSR1, lambda: program.leaving or program.way_out())
    inbox = Inbox()
    async with httpx.AsyncClient(timeout=60) as http:
        configs = InMemoryPushNotificationConfigStore()
        handler = DefaultRequestHandler(
            agent_executor=Executor(program, f"http://{HOST}:{port}", to, inbox),
            task_store=InMemoryTaskStore(),
            agent_card=card(program.role, port),
            push_config_store=configs,
            push_sender=BasePushNotificationSender(http, configs),
        )
        app = Starlette(
            routes=[
                *inbox.routes(),
                *create_agent_card_routes(card(program.role, port)),
                *create_jsonrpc_routes(handler, "/"),
            ]
        )
        config = uvicorn.Config(
            app, host=HOST, port=int(port), log_level="warning", timeout_graceful_shutdown=1
        )
        await uvicorn.Server(config).serve()


async def user(program, planner, worker):
    """Ask the planner, among other work, once both agents answer."""
    until = time.monotonic() + 100
    async with httpx.AsyncClient(timeout=60) as http:
        for port in (planner, worker):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    await http.get(f"http://{HOST}:{port}/.well-known/agent-card.json")
                    break
                if time.monotonic() > until:
                    sys.exit(8)
                await asyncio.sleep(0.05)

    async def ask(work):
        program.begin(work)

        async def asking(_):
            async with httpx.AsyncClient(timeout=60) as http:
                client = ClientFactory(
                    ClientConfig(httpx_client=http, streaming=False, supported_protocol_bindings=["JSONRPC"])
                ).create(card("planner", planner))
                request = SendMessageRequest(
                    message=new_text_message(work, role=Role.ROLE_USER),
                    configuration=SendMessageConfiguration(return_immediately=False),
                )
                async for _ in client.send_message(request):
                    pass

        await program.piece(work, asking)

    program.send = ask
    await program.main(1)
