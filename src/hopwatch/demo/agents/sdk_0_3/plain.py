"""How does an A2A agent of the demo work on a2a-sdk 0.3? Nothing but a2a-sdk, Starlette and uvicorn: no line of hopwatch."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import uuid

import httpx
import uvicorn
from a2a.client import ClientConfig, ClientFactory
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.apps import A2ARESTFastAPIApplication, A2AStarletteApplication
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.tasks import (
    BasePushNotificationSender,
    InMemoryPushNotificationConfigStore,
    InMemoryTaskStore,
    TaskUpdater,
)
from a2a.types import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    Message,
    Part,
    PushNotificationConfig,
    Role,
    TextPart,
)
from a2a.utils import new_task as new_task_from_user_message
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

__all__ = [
    "Delegating",
    "Inbox",
    "arguments",
    "delegate",
    "new_task_from_user_message",
    "new_text_part",
    "serve",
]


def new_text_part(text: str) -> Part:
    """A part of an artifact."""
    return Part(root=TextPart(text=text))


def arguments() -> argparse.Namespace:
    """What an agent is started with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True, help="where it listens, on loopback")
    parser.add_argument("--to", default="", help="URL of the agent that it hands work to")
    parser.add_argument("--fault", default="none")
    parser.add_argument("--slow", default="", help="host:port of a server that takes its time")
    parser.add_argument("--count", type=int, default=1, help="of the user: how many messages")
    parser.add_argument("--at-once", type=int, default=1, help="of the user: how many of them at a time")
    parser.add_argument("--binding", default="JSONRPC", help="how it hands work on: JSONRPC or HTTP+JSON")
    parser.add_argument("--grpc-port", type=int, default=0, help="for the agents of a2a-sdk 1.x alone")
    return parser.parse_args()


class Inbox:
    """Pushes that are waited for: one future for each piece of work that was handed on."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self._waiting: dict[str, asyncio.Future[str]] = {}

    def expect(self) -> tuple[str, asyncio.Future[str]]:
        """A path for a webhook, and a future of the final state that is pushed there."""
        key = uuid.uuid4().hex
        self._waiting[key] = asyncio.get_running_loop().create_future()
        return f"/webhook/{key}", self._waiting[key]

    async def webhook(self, request: Request) -> Response:
        """Take a push: 0.3 sends the whole task."""
        body = json.loads(await request.body())
        if self.refuses:
            return JSONResponse({"error": "no room for pushes today"}, status_code=503)
        future = self._waiting.get(request.path_params["key"])
        state = body.get("status", {}).get("state")
        if future is not None and not future.done() and state in ("completed", "failed"):
            future.set_result(f"TASK_STATE_{state.upper()}")
        return JSONResponse({})

    def routes(self) -> list[Route]:
        """The webhook's route."""
        return [Route("/webhook/{key}", self.webhook, methods=["POST"])]


def card_of(name: str, url: str, binding: str) -> AgentCard:
    """The card of an agent that serves both bindings."""
    urls = {"JSONRPC": f"{url}/", "HTTP+JSON": f"{url}/rest"}
    return AgentCard(
        name=name,
        description=f"{name} of the demo",
        version="1",
        url=urls[binding],
        preferred_transport=binding,
        additional_interfaces=[AgentInterface(url=each, transport=kind) for kind, each in urls.items()],
        capabilities=AgentCapabilities(streaming=True, push_notifications=True),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="work", name="work", description="works", tags=["demo"])],
    )


async def delegate(url: str, text: str, webhook: str, *, binding: str = "JSONRPC") -> str:
    """Hand a piece of work to an agent without waiting for it; what becomes of it is pushed to `webhook`.

    Returns:
        The id of the agent's task.
    """
    async with httpx.AsyncClient(timeout=60) as http:
        config = ClientConfig(
            httpx_client=http,
            streaming=False,
            polling=True,
            supported_transports=[binding],
            push_notification_configs=[PushNotificationConfig(id="caller", url=webhook)],
        )
        client = ClientFactory(config).create(card_of("peer", url, binding))
        message = Message(role=Role.user, parts=[new_text_part(text)], message_id=uuid.uuid4().hex)
        task = ""
        async for answer in client.send_message(message):
            if isinstance(answer, tuple):
                task = answer[0].id
        return task


class Delegating(AgentExecutor):
    """Hands its work to the next agent and waits until that one has pushed the end of it."""

    def __init__(self, to: str, here: str, inbox: Inbox, *, binding: str = "JSONRPC") -> None:
        self.to = to
        self.here = here
        self.inbox = inbox
        self.binding = binding

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Run one task."""
        task = context.current_task or new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        path, pushed = self.inbox.expect()
        await delegate(self.to, context.get_user_input(), self.here + path, binding=self.binding)
        state = await pushed
        if state != "TASK_STATE_COMPLETED":
            await updater.failed()
            return
        await updater.add_artifact([new_text_part("done below")])
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Give a task up."""
        await TaskUpdater(event_queue, context.task_id or "", context.context_id or "").cancel()


def serve(name: str, port: int, executor: AgentExecutor, inbox: Inbox, **_: int) -> None:
    """Serve an agent on loopback until it is told to stop: by SIGUSR1 in order, by SIGTERM or SIGINT as uvicorn does.

    What else the agents hand on is for those of a2a-sdk 1.x.
    """
    card = card_of(name, f"http://127.0.0.1:{port}", "JSONRPC")

    async def run() -> None:
        """Serve."""
        async with httpx.AsyncClient(timeout=10) as http:
            configs = InMemoryPushNotificationConfigStore()
            handler = DefaultRequestHandler(
                agent_executor=executor,
                task_store=InMemoryTaskStore(),
                push_config_store=configs,
                push_sender=BasePushNotificationSender(http, configs),
            )
            app = A2AStarletteApplication(agent_card=card, http_handler=handler).build(routes=inbox.routes())
            app.mount("/rest", A2ARESTFastAPIApplication(agent_card=card, http_handler=handler).build())
            server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
            # Asked to end by this signal, it returns from `main`; of SIGTERM and SIGINT uvicorn dies in the end.
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGUSR1, setattr, server, "should_exit", True
            )
            await server.serve()

    asyncio.run(run())
