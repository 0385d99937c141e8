"""Is a cascade settled that opened a session of MCP which lives as long as the program? A real client and a real server."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from importlib import util

import pytest

import hopwatch
from waiting import until

if not (LACKING := util.find_spec("mcp") is None):
    from mcp import ClientSession, StdioServerParameters
    from mcp.client import streamable_http
    from mcp.client.sse import sse_client
    from mcp.client.stdio import stdio_client

pytestmark = [
    pytest.mark.processes,
    pytest.mark.one_python,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        LACKING, reason="mcp not installed here; `make neighbours` runs it (ci: may be skipped)"
    ),
]
TOOLS = """
import sys
try:
    from mcp.server.fastmcp import FastMCP as Server
except ImportError:
    from mcp.server import MCPServer as Server

def add(a: int, b: int) -> int:
    return a + b

transport, port = sys.argv[1], int(sys.argv[2])
try:
    server = Server("tools", host="127.0.0.1", port=port)
    where = {}
except TypeError:  # 2.x is told of the port later
    server, where = Server("tools"), {"host": "127.0.0.1", "port": port}
server.tool()(add)
server.run(transport, **(where if transport != "stdio" else {}))
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def tools(path, transport):
    """A context manager of an MCP client's streams, to a server in a process of its own."""
    script = path / "tools.py"
    script.write_text(TOOLS)
    if transport == "stdio":
        yield lambda: stdio_client(
            StdioServerParameters(command=sys.executable, args=[str(script), "stdio", "0"])
        )
        return
    port = free_port()
    with (
        (path / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, str(script), transport, str(port)], stdout=log, stderr=log
        ) as server,
    ):
        try:

            def answers():
                assert server.poll() is None, (path / "log").read_text()
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    return True

            until(answers)
            if transport == "sse":
                yield lambda: sse_client(f"http://127.0.0.1:{port}/sse")
            else:
                client = getattr(streamable_http, "streamable_http_client", None)
                client = client or streamable_http.streamablehttp_client
                yield lambda: client(f"http://127.0.0.1:{port}/mcp")
        finally:
            server.kill()


async def closed(watched, name):
    """Wait until a hop is closed; what hangs is told before the test is over by its deadline."""
    over = time.monotonic() + 40
    while name in watched.open():
        assert time.monotonic() < over, [(each.name, each.location) for each in hopwatch.pending()]
        watched.tick()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "transport",
    [
        pytest.param(
            each, marks=pytest.mark.row("neighbours", f"a session of MCP over {each}, kept for good", "mcp")
        )
        for each in ("stdio", "sse", "streamable-http")
    ],
)
def test_a_cascade_is_settled_that_opened_a_session_of_mcp_which_is_kept(watched, run, tmp_path, transport):
    with tools(tmp_path, transport) as connect:

        async def main():
            async with contextlib.AsyncExitStack() as stack:
                with hopwatch.cascade("first"):
                    read, write, *_ = await stack.enter_async_context(connect())
                    session = await stack.enter_async_context(ClientSession(read, write))
                    await session.initialize()
                    answer = await session.call_tool("add", {"a": 1, "b": 2})
                    assert "3" in str(answer.content)
                await closed(watched, "first")
                with hopwatch.cascade("second"):
                    await session.call_tool("add", {"a": 1, "b": 2})
                await closed(watched, "second")
                assert hopwatch.pending() == []

        run(main, root=None)
    assert watched.told()["first"] == watched.told()["second"] == "finished"
    assert watched.settled()
