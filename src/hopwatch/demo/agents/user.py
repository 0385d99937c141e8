"""Who asks? A user with a webhook: sends messages, and leaves when the last push has come."""

from __future__ import annotations

import asyncio
import sys
import time

import uvicorn
from plain import Inbox, arguments, delegate
from starlette.applications import Starlette


async def main() -> None:
    """Send, and wait for the pushes."""
    options = arguments()
    inbox = Inbox()
    app = Starlette(routes=list(inbox.routes()))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=options.port, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    gate = asyncio.Semaphore(options.at_once)

    async def ask(number: int) -> None:
        """Ask once, and wait for the answer."""
        async with gate:
            path, pushed = inbox.expect()
            await delegate(
                options.to,
                f"do the thing {number}",
                f"http://127.0.0.1:{options.port}{path}",
                binding=options.binding,
            )
            await pushed

    began = time.perf_counter()
    await asyncio.gather(*(ask(number) for number in range(options.count)))
    print(f"{options.count} answered in {time.perf_counter() - began:.3f} s", flush=True)
    # The pushes' own answers go out before the server stops.
    server.should_exit = True
    await serving


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit(130)
