"""How does a2a-sdk itself lose work? An agent, and who asks it, in one process: it plays one failure, and stays until its input ends."""

import asyncio
import gc
import sys

from any_release import ENGINES, OLD, RELEASE, agent, client, complete, task_of, types
from starlette.responses import JSONResponse
from starlette.routing import Route


async def taken(_):
    return JSONResponse({})


WEBHOOK = Route("/hook", taken, methods=["POST"])


async def until_told():
    """Wait until the test has seen enough."""
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)


class Sender:
    """Pushes as an application may do it: it waits for an answer that only it knows of."""

    async def send_notification(self, *_):
        task = asyncio.current_task()
        if task.get_coro().__qualname__.endswith("._continue_consuming"):
            asyncio.get_running_loop().call_later(8, gc.collect)
            await asyncio.get_running_loop().create_future()


async def forgotten():
    """A message is answered at once, and what reads on has a push to send."""
    gc.disable()  # it is the one below that collects it, after somebody has looked at it
    go_on = asyncio.Event()

    async def work(updater):
        await go_on.wait()
        await complete(updater)

    async with agent(work, engine=ENGINES[-1]) as there, client(there.url) as peer:
        there.handler._push_sender = Sender()
        await peer.send(now=True)
        go_on.set()
        await until_told()


async def stalls(read_on):
    """Somebody subscribes to a task, and takes the last events, or does not."""
    gc.disable()  # nothing refers to a producer that is stuck: sooner or later it would be collected
    subscribed = asyncio.Event()

    async def work(updater):
        await updater.start_work()
        await subscribed.wait()
        await complete(updater)

    async with agent(work) as there, client(there.url) as peer:
        (answer,) = await peer.send(now=True)

        async def subscribe():
            from a2a.server.context import ServerCallContext

            wanted = types.SubscribeToTaskRequest(id=task_of(answer)[0])
            async for _ in there.handler.on_subscribe_to_task(wanted, ServerCallContext()):
                subscribed.set()
                if not read_on:
                    await asyncio.get_running_loop().create_future()

        import hopwatch

        with hopwatch.service():
            tail = asyncio.create_task(subscribe(), name="tail")
        await until_told()
        tail.cancel()


STORIES = {
    "forgotten": forgotten,
    "stalls": lambda: stalls(read_on=False),
    "reads": lambda: stalls(read_on=True),
}

if __name__ == "__main__":
    assert RELEASE
    assert OLD or sys.argv[1] in STORIES
    asyncio.run(STORIES[sys.argv[1]]())
