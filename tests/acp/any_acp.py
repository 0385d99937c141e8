"""How does a test write an ACP agent and a client without knowing which release of agent-client-protocol it runs with?

Agents and clients as their users write them, connected over real sockets or pipes: nothing of hopwatch is in here.
"""

import asyncio
import contextlib
import socket
from importlib import metadata

import acp
from acp import schema

RELEASE = tuple(int(part) for part in metadata.version("agent-client-protocol").split(".")[:3])
V12 = RELEASE >= (0, 12)
"""From here on there are transports, WebSocket among them, and no dispatcher."""
CLOSES = RELEASE >= (0, 11)
"""From here on `run_agent` closes its connection when it is cancelled."""
SERVICE_LOOPS = ["acp.Sender.loop"] if V12 else ["acp.Dispatcher.loop", "acp.Sender.loop"]
"""What a connection has besides the loop that reads."""


def text(words):
    return acp.text_block(words)


class Agent:
    """Answers as an agent does; `work(agent, session, words)` is what a prompt asks for. No handler takes more than it names."""

    def __init__(self, work=None, name="worker"):
        self.work = work
        self.name = name
        self.connection = None
        self.seen = []

    def on_connect(self, connection):
        self.connection = connection

    async def initialize(self, protocol_version, client_capabilities=None, client_info=None):
        self.seen.append("initialize")
        return schema.InitializeResponse(
            protocol_version=protocol_version, agent_info=schema.Implementation(name=self.name, version="1")
        )

    async def new_session(self, cwd, mcp_servers=None, **rest):
        # 0.12 has one more parameter that 0.8 does not know; nothing of ours may be among them.
        assert not {*rest} & {"traceparent", "tracestate", "baggage"}, rest
        return schema.NewSessionResponse(session_id="s-1")

    async def prompt(self, prompt, session_id, **rest):
        words = prompt[0].text
        self.seen.append((words, {key: value for key, value in rest.items() if value is not None}))
        if self.work is not None:
            await self.work(self, session_id, words)
        return schema.PromptResponse(stop_reason="end_turn")

    async def cancel(self, session_id, **rest):
        self.seen.append(("cancel", rest))

    async def ext_method(self, method, params):
        self.seen.append((method, params))
        if method == "fail":
            raise ValueError("the tool broke")
        return {"method": method, "params": params}

    async def ext_notification(self, method, params):
        self.seen.append((method, params))


class Client:
    """One who asks; `update(session, words)` is what it does with each message of the agent."""

    def __init__(self, update=None, read=None):
        self.update = update
        self.read = read
        self.connection = None
        self.seen = []

    def on_connect(self, connection):
        self.connection = connection

    async def session_update(self, session_id, update, **rest):
        self.seen.append((update.content.text, rest))
        if self.update is not None:
            await self.update(session_id, update.content.text)

    async def read_text_file(self, path, session_id, limit=None, line=None):
        self.seen.append(path)
        content = await self.read(path) if self.read is not None else f"what stands in {path}"
        return schema.ReadTextFileResponse(content=content)

    async def request_permission(self, options, session_id, tool_call, **rest):
        raise NotImplementedError

    async def ext_method(self, method, params):
        return {"method": method, "params": params}

    async def ext_notification(self, method, params):
        self.seen.append((method, params))


async def streams():
    """Two pairs of (writer, reader), connected with each other."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    other_reader, other_writer = await asyncio.open_connection(sock=theirs)
    return (writer, reader), (other_writer, other_reader)


async def hang_up(*writers):
    """Close ends of connections, and wait until they are: nothing is left for the garbage collector to complain of."""
    for writer in writers:
        writer.close()
    for writer in writers:
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def raw(connection, method, params=None, *, notify=False):
    """Send what the SDK has no method for, and hand over what comes back as it is."""
    inner = connection._conn
    return await (inner.send_notification(method, params) if notify else inner.send_request(method, params))


@contextlib.asynccontextmanager
async def connected(agent, client=None, **more):
    """A client's side of a connection to an agent that `run_agent` runs in this process."""
    client = client or Client()
    here, there = await streams()
    running = asyncio.create_task(acp.run_agent(agent, *there, **more), name="run-agent")
    connection = acp.connect_to_agent(client, *here)
    try:
        yield connection
    finally:
        await connection.close()
        await hang_up(here[0])
        await asyncio.wait([running], timeout=30)
        await agent.connection.close()
        await hang_up(there[0])


async def hello(connection):
    """What each connection begins with; the session's id."""
    await connection.initialize(protocol_version=acp.PROTOCOL_VERSION)
    return (await connection.new_session(cwd="/", mcp_servers=[])).session_id


def say(agent, session, words):
    """Have an agent send a message to its client, as a notification."""
    return agent.connection.session_update(session_id=session, update=acp.update_agent_message_text(words))
