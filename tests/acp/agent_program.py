"""An agent as its user writes it: over its own stdio, or (`agent_program.py web`) as an ASGI application under uvicorn. What it does is what it is asked."""

import asyncio
import os
import sys

from any_acp import Agent, say

import acp


async def work(agent, session, words):
    if words == "go":
        await say(agent, session, "I begin")
        found = await agent.connection.read_text_file(path="/notes", session_id=session)
        await say(agent, session, found.content)
    elif words == "hang":
        await asyncio.Event().wait()
    elif words == "die":
        os._exit(3)


def over_the_web():
    import uvicorn
    from acp.http.asgi import create_asgi_app

    async def main():
        app = create_asgi_app(lambda connection: _connected(Agent(work), connection))
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, log_level="error", ws="websockets-sansio", timeout_keep_alive=120
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)
        await serving

    asyncio.run(main())


def _connected(agent, connection):
    agent.connection = connection
    return agent


if __name__ == "__main__":
    if sys.argv[1:] == ["web"]:
        over_the_web()
    else:
        asyncio.run(acp.run_agent(Agent(work)))
