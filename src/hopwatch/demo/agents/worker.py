"""Who does the work? An agent at the end of the cascade, with the faults that real agents have."""

from __future__ import annotations

import asyncio
import gc

from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.tasks import TaskUpdater
from plain import (
    Inbox,
    arguments,
    delegate,
    new_task_from_user_message,
    new_text_part,
    serve,
)

LARGE = 8 * 1024 * 1024
"""More characters than the buffers take that lie between an agent and a subscriber that does not read (Linux: 4 MiB at most)."""
AFTERWARDS = "one more thing"


class Worker(AgentExecutor):
    """Works, in the way that the fault wants it."""

    def __init__(
        self, fault: str, slow: str, to: str, here: str, inbox: Inbox, *, binding: str = "JSONRPC"
    ) -> None:
        self.fault = fault
        self.slow = slow
        self.to = to
        self.here = here
        self.inbox = inbox
        self.binding = binding
        self.kept: set[asyncio.Task[None]] = set()

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Run one task."""
        task = context.current_task or new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        if self.fault == "gc":
            # The bug: nobody keeps the task. It lives until something collects garbage.
            asyncio.create_task(self.work_forgotten(updater))  # noqa: RUF006
            asyncio.get_running_loop().call_later(0.4, gc.collect)
            return
        await self.work()
        if self.fault == "late" and context.get_user_input() != AFTERWARDS:
            self.keep(asyncio.create_task(self.afterwards(), name="afterwards"))
        elif self.fault == "pending":
            self.keep(asyncio.create_task(self.tidy_up(), name="tidy up"))
        await updater.add_artifact([new_text_part("worked" if self.fault != "leak" else "w" * LARGE)])
        await updater.complete()

    async def work(self) -> None:
        """Do what there is to do."""
        if self.fault == "hang":
            answer = asyncio.get_running_loop().create_future()
            await answer  # nobody will ever set it
        elif self.fault == "deadlock":
            await self.reserve_and_charge()
        elif self.fault in ("slow", "leak", "term", "kill"):
            host, _, port = self.slow.partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            await reader.readline()
            writer.close()
            await writer.wait_closed()
        elif self.fault == "silent":
            await asyncio.sleep(600)

    async def reserve_and_charge(self) -> None:
        """Take two locks in opposite order, which works until it does not."""
        stock, account = asyncio.Lock(), asyncio.Lock()
        both_hold_one = asyncio.Barrier(2) if hasattr(asyncio, "Barrier") else None

        async def reserve() -> None:
            """Take the stock, then the account."""
            async with stock:
                await (both_hold_one.wait() if both_hold_one else asyncio.sleep(0.05))
                async with account:
                    pass

        async def charge() -> None:
            """Take the account, then the stock."""
            async with account:
                await (both_hold_one.wait() if both_hold_one else asyncio.sleep(0.05))
                async with stock:
                    pass

        await asyncio.gather(
            asyncio.create_task(reserve(), name="reserve"), asyncio.create_task(charge(), name="charge")
        )

    def keep(self, task: asyncio.Task[None]) -> None:
        """Keep a task until it is done, as asyncio's documentation advises."""
        self.kept.add(task)
        task.add_done_callback(self.kept.discard)

    async def afterwards(self) -> None:
        """Go on for a while when the answer is out, and then start something else."""
        await asyncio.sleep(2)
        self.keep(asyncio.create_task(self.one_more(), name="one more"))

    async def one_more(self) -> None:
        """Send another message, and wait for what comes of it."""
        path, pushed = self.inbox.expect()
        await delegate(self.to, AFTERWARDS, self.here + path, binding=self.binding)
        await pushed

    async def tidy_up(self) -> None:
        """Do what the answer need not wait for, at leisure."""
        await asyncio.sleep(600)

    async def work_forgotten(self, updater: TaskUpdater) -> None:
        """Wait for an answer that only this task itself knows of."""
        answer = asyncio.get_running_loop().create_future()
        await answer
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Give a task up."""
        await TaskUpdater(event_queue, context.task_id or "", context.context_id or "").cancel()


if __name__ == "__main__":
    options = arguments()
    inbox = Inbox()
    here = f"http://127.0.0.1:{options.port}"
    executor = Worker(options.fault, options.slow, options.to, here, inbox, binding=options.binding)
    serve("worker", options.port, executor, inbox, grpc_port=options.grpc_port)
