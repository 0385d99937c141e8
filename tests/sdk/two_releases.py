"""Does an agent of one release understand a client of another? One of the two, as a process: `serve`, or `ask URL BINDING HOW`."""

import asyncio
import sys

from any_release import agent, client, task_of


async def serve(binding):
    async with agent(binding=binding, compat=True) as there:
        print(there.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def ask(url, binding, how):
    async with client(url, binding=binding, version="0.3", streaming=how == "streamed") as peer:
        answers = await peer.send()
    states = [task_of(each)[1] for each in answers if _tells_of_a_task(each)]
    print(len(answers), states[-1:], flush=True)


def _tells_of_a_task(answer):
    return isinstance(answer, tuple) or (hasattr(answer, "HasField") and answer.HasField("task"))


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
