"""A bridge that runs an agent for each connection, and cancels it when its peer does not say goodbye; what hopwatch says is printed."""

import asyncio
import gc
import sys

from any_acp import Agent, Client, hello, streams

import acp
import hopwatch


async def main():
    gc.disable()  # when it comes by itself nobody knows
    here, there = await streams()
    bridged = asyncio.create_task(acp.run_agent(Agent(name="bridged"), *there), name="bridge-7")
    client = acp.connect_to_agent(Client(), *here)
    await hello(client)
    bridged.cancel()
    await asyncio.wait([bridged])
    for each in hopwatch.pending():
        if each.kind == "service":
            print(f"{each.name}: {each.owner}", flush=True)
    print("told", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    del bridged
    gc.collect()
    print("collected", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main())
