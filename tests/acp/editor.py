"""A client as its user writes it: `editor.py WORDS URL` or `editor.py WORDS command of the agent`. It ends when its stdin does.

What it is given for its agent by `AGENT_NAME` goes into the agent's environment, for the library hands on next to nothing of its own.
"""

import asyncio
import contextlib
import os
import sys

from any_acp import Client, hello, text

import acp


def environment():
    kept = {
        key: value for key, value in os.environ.items() if key.startswith(("OTEL_", "HOPWATCH_", "PYTHON"))
    }
    return {**kept, "OTEL_SERVICE_NAME": os.environ.get("AGENT_NAME", "agent")}


async def stream(url):
    if url.startswith("ws:"):
        from acp.ws.client import create_websocket_stream

        return await create_websocket_stream(url)
    from acp.http import create_http_stream

    return create_http_stream(url)


@contextlib.asynccontextmanager
async def connected(client, where):
    if where[0].startswith(("ws:", "http:")):
        async with acp.connect_to_agent(client, await stream(where[0])) as connection:
            yield connection
    else:
        async with acp.spawn_agent_process(
            client, *where, env=environment(), transport_kwargs={"stderr": None}
        ) as (connection, _):
            yield connection


async def main(words, *where):
    client = Client()
    async with connected(client, where) as connection:
        session = await hello(connection)
        asking = asyncio.create_task(connection.prompt(prompt=[text(words)], session_id=session))
        ending = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait([asking, ending], return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            for _ in range(3000):  # the last message may be served after the answer
                if words != "go" or asking.exception() or len(client.seen) >= 3:
                    break
                await asyncio.sleep(0.01)
            how = repr(asking.exception()) if asking.exception() else asking.result().stop_reason
            print(how, [each if isinstance(each, str) else each[0] for each in client.seen], flush=True)
        await ending
        asking.cancel()
        await asyncio.wait([asking])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
