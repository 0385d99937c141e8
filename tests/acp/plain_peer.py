"""Who is at the other end that knows nothing of hopwatch? One that speaks JSON-RPC a line at a time, as another language would."""

import asyncio
import json

from any_acp import hang_up


class PlainPeer:
    """The other end of a connection. `wire` has each message that came, as it came.

    Args:
        writer: to the side that is tested.
        reader: from it.
        answer: makes the result of a request from it; None leaves all of them unanswered. An exception is an error.
    """

    def __init__(self, writer, reader, answer=lambda _: {}):
        self.writer = writer
        self.reader = reader
        self.answer = answer
        self.wire = []
        self.came = asyncio.Event()
        self.last = 1000
        self.task = asyncio.create_task(self._read())

    async def _read(self):
        while line := await self.reader.readline():
            message = json.loads(line)
            self.wire.append(message)
            self.came.set()
            if "method" in message and "id" in message and self.answer is not None:
                try:
                    said = {"result": self.answer(message)}
                except Exception as error:
                    said = {"error": {"code": -32000, "message": str(error)}}
                self.send({"id": message["id"], **said})

    def send(self, message):
        self.writer.write((json.dumps({"jsonrpc": "2.0", **message}) + "\n").encode())

    async def ask(self, method, params=None):
        """Ask the side that is tested; its answer, as it came."""
        self.last += 1
        number = self.last
        self.send({"id": number, "method": method, "params": params})
        return await self.until(lambda each: each.get("id") == number and "method" not in each)

    async def until(self, wanted):
        async def look():
            while True:
                for each in self.wire:
                    if wanted(each):
                        return each
                self.came.clear()
                await self.came.wait()

        return await asyncio.wait_for(look(), 60)

    async def close(self):
        self.task.cancel()
        await asyncio.wait([self.task])
        await hang_up(self.writer)
