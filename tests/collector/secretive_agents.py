"""Where may a user's secrets be? An agent, and a user who puts one into every place that has room for it.

Run with the folder of the demo's agents on the path. `SALT` is in every secret, so that one look finds all of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys

import httpx
import uvicorn
from a2a.client import ClientConfig, ClientFactory
from a2a.client.errors import A2AClientError
from a2a.helpers import new_data_part, new_task_from_user_message, new_text_message, new_text_part
from a2a.server.agent_execution import AgentExecutor
from a2a.server.tasks import TaskUpdater
from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AuthenticationInfo,
    Role,
    SendMessageConfiguration,
    SendMessageRequest,
    TaskPushNotificationConfig,
)
from plain import Inbox, serve
from starlette.applications import Starlette

HANG = "hang"


def secret(place):
    return f"{place}{os.environ['SALT']}"


class Worker(AgentExecutor):
    async def execute(self, context, event_queue):
        task = context.current_task or new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work(updater.new_agent_message([new_text_part(secret("status"))]))
        text = context.get_user_input()
        headers = context.call_context.state["headers"]
        logging.getLogger("worker").warning("asked %s with %s", text, headers)
        print(json.dumps({"text": text, "headers": headers}), flush=True)
        await updater.add_artifact([new_text_part(secret("artifact")), new_data_part({"k": secret("data")})])
        await self.charge(secret("argument"), hangs=text.endswith(HANG))
        await updater.complete(updater.new_agent_message([new_text_part(secret("done"))]))

    async def charge(self, card, *, hangs):
        number = [card, secret("local")]
        if hangs:
            answer = asyncio.get_running_loop().create_future()
            await answer
        return number

    async def cancel(self, context, event_queue):
        raise NotImplementedError


async def ask(agent, text, webhook, path="/"):
    headers = {"x-api-key": secret("header"), "cookie": f"session={secret('cookie')}"}
    async with httpx.AsyncClient(timeout=60, headers=headers) as http:
        url = f"http://{secret('user')}:{secret('password')}@{agent}{path}?key={secret('query')}"
        card = AgentCard(
            name="peer",
            supported_interfaces=[
                AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0")
            ],
            capabilities=AgentCapabilities(streaming=False, push_notifications=True),
        )
        config = ClientConfig(
            httpx_client=http, streaming=False, polling=True, supported_protocol_bindings=["JSONRPC"]
        )
        request = SendMessageRequest(
            message=new_text_message(text, role=Role.ROLE_USER),
            configuration=SendMessageConfiguration(
                return_immediately=True,
                task_push_notification_config=TaskPushNotificationConfig(
                    id="caller",
                    url=webhook,
                    token=secret("pushtoken"),
                    authentication=AuthenticationInfo(scheme="Bearer", credentials=secret("credentials")),
                ),
            ),
        )
        request.message.metadata.update({"trace": secret("metadata")})
        request.metadata.update({"trace": secret("requestmetadata")})
        async for _ in ClientFactory(config).create(card).send_message(request):
            pass


async def user(port, agent):
    inbox = Inbox()
    app = Starlette(routes=list(inbox.routes()))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:  # httpx quotes the whole URL, and the SDK hands that on
        await ask(agent, secret("text"), "http://127.0.0.1:9/", "/nowhere")
    except A2AClientError as error:
        print(f"refused: {error}", flush=True)
    for how in ("end", HANG):
        path, pushed = inbox.expect()
        place = f"http://{secret('hookuser')}:{secret('hookpassword')}@127.0.0.1:{port}{path}?signature={secret('signature')}"
        await ask(agent, f"{secret('text')} {how}", place)
        await pushed
    await serving


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        serve("worker", int(sys.argv[2]), Worker(), Inbox())
    else:
        asyncio.run(user(int(sys.argv[2]), sys.argv[3]))
