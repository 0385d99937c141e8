"""What is known of a connection of the Agent Client Protocol: its peer, its owner, and the loops that outlive that?

A connection has service loops: one that reads, one that writes, and before 0.12 one that dispatches. Its owner is the task that listens, or
the one that made it where it listens by itself. Up to 0.10.1 `run_agent` leaves the loops when it ends, and so does whoever never calls `close`.
"""

from __future__ import annotations

import os
import sys
import time
from asyncio import current_task
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from hopwatch import attributes as names
from hopwatch import process as hopwatch_process
from hopwatch.instrumentation import acp_wire, service, tasks
from hopwatch.orphans import Orphan, tell
from hopwatch.process import encodable, failed

if TYPE_CHECKING:
    from hopwatch.ledger import Entry

SECOND: Final = 1_000_000_000
SOON: Final = SECOND // 4
"""Nanoseconds after the end of reading until which nothing is told: whoever closes properly does it then."""
LATE: Final = 10 * SECOND
"""The same where the owner, or another task of the application, may close it yet: the owner is still there, or it read to the end."""
MAX_WATCHED: Final = 10_000
"""Connections that are looked at because nobody reads from them; more than that are not told of one by one."""
PROMPT: Final = "session/prompt"
_LOOPS: Final = ("acp.Sender.loop", "acp.Dispatcher.loop", "acp.Connection.receive")


class Owner:
    """The task that owns a connection: who it is, for it may be gone when that is asked."""

    __slots__ = ("name", "task", "what")

    def __init__(self) -> None:
        task = current_task()
        self.task: Any = ref(task) if task is not None else None
        self.name = encodable(str(task.get_name())[:200]) if task is not None else ""
        # By its own name, whatever instrumentations have wrapped around it.
        self.what = service.judge(task.get_coro())[1][:200] if task is not None else ""

    def alive(self) -> bool:
        """Whether it may close the connection yet."""
        task = self.task() if self.task is not None else None
        return task is not None and not task.done()

    def asked_to_cancel(self) -> bool:
        """Whether somebody asked it to cancel; the SDK's loop of reading swallows that. Not known before Python 3.11."""
        task = self.task() if self.task is not None else None
        return sys.version_info >= (3, 11) and task is not None and task.cancelling() > 0

    @property
    def words(self) -> str:
        """Who it is."""
        what = f" ({self.what})" if self.what else ""
        return f"task '{self.name}'{what}" if self.name else "whoever made it"


class Loop:
    """One service loop of a connection that nobody reads from any more; the done callback of its task."""

    __slots__ = ("ended", "name", "task")

    def __init__(self, task: Any) -> None:
        self.name = str(task.get_name())
        self.task = ref(task)
        self.ended = False

    def __call__(self, _: Any) -> None:
        """Note that it has ended in order."""
        self.ended = True


tasks.hidden += (Loop,)


class Connected:
    """What is known of one connection; of the connection itself nothing is kept."""

    __slots__ = (
        "__weakref__", "asked", "at", "closing", "coming", "cut_off", "how", "loops", "mark", "name", "owner", "peer", "plain", "port", "reading", "told", "traces", "where", "works",
    )  # fmt: skip

    def __init__(self, connection: Any) -> None:
        self.peer: str | None = None
        """`instrumented` or `opaque`, as far as its answers and messages have shown."""
        self.mark = os.urandom(4).hex()
        """Goes out with each message: what comes with it is not the peer's own, which only hands on what it was sent."""
        self.plain = 0
        """How many requests of it carried no hop."""
        self.traces = False
        """Whether any of them carried keys for tracing all the same."""
        self.name: str | None = None
        """What it calls itself."""
        self.asked: dict[Any, tuple[Any, Entry]] = {}
        """The requests that await its answer, by their number."""
        self.coming: dict[int, tuple[Any, Entry]] = {}
        """Messages that have come and are not served yet, by their id: the message, and what keeps the hop open that caused it."""
        self.works: dict[str, dict[str, Entry]] = {}
        """By session the requests about it that await their answers, by their hops, the newest last."""
        self.owner: Owner | None = None
        self.reading: bool | None = None
        """Whether anybody reads what comes; None where that began before the instrumentation."""
        self.closing = False
        self.at = 0
        """When nobody read any more, in Unix nanoseconds."""
        self.how = ""
        self.cut_off = False
        """Whether its owner was cancelled while it read: nobody goes on to close it."""
        self.loops: list[Loop] = []
        self.told = False
        self.where, self.port = _address_of(connection)

    # The peer

    @property
    def brings_nothing(self) -> bool:
        """Whether the peer asks without saying for which hop: nothing of ours is there, or it is told to carry nothing."""
        return self.plain > 0 and self.peer is None

    @property
    def takes_keys(self) -> bool:
        """Whether the peer may be sent keys for tracing. A handler in Python without hopwatch may take none: who asks without any gets none."""
        return not self.brings_nothing or self.traces

    def is_called(self, says: Any, key: str) -> None:
        """Note what the peer calls itself when a connection begins."""
        info = says.get(key) if isinstance(says, dict) else None
        name = info.get("name") if isinstance(info, dict) else None
        if isinstance(name, str) and name:
            self.name = encodable(name[:200])

    def describe(self, entry: Entry) -> None:
        """Say on the hop of a message to whom it goes."""
        if self.port:
            entry.set(names.SERVER_ADDRESS, self.where)
            entry.set(names.SERVER_PORT, self.port)
        else:
            entry.set(names.SERVER_ADDRESS, self.name or self.where)

    def opened(self, message: Any, entry: Entry) -> None:
        """Note a message that goes out."""
        if not message.notifies and isinstance(message.id, (int, str)):
            self.asked[message.id] = (message, entry)
            if message.session is not None:
                self.works.setdefault(message.session, {})[entry.id] = entry

    def ended(self, message: Any, entry: Entry) -> None:
        """Note that nobody awaits its answer any more."""
        about = self.works.get(message.session)
        if about is not None:
            about.pop(entry.id, None)
            if not about:
                del self.works[message.session]
        if not message.notifies and isinstance(message.id, (int, str)):
            found = self.asked.get(message.id)
            if found is not None and found[0] is message:
                del self.asked[message.id]

    def working_on(self, session: str | None) -> Entry | None:
        """The request of ours about a session that the peer works on: the newest prompt, or else the newest of the others."""
        newest = None
        for entry in reversed(self.works.get(session, {}).values()) if session is not None else ():
            if entry.done is None and entry.name == PROMPT:
                return entry
            if entry.done is None and newest is None:
                newest = entry
        return newest

    def sent(self, hop: str) -> Entry | None:
        """The request of ours that awaits its answer, by its hop."""
        return next((entry for _, entry in self.asked.values() if entry.id == hop), None)

    def came(self, message: dict[str, Any]) -> Entry | None:
        """Note a message that will wait in a queue. One that carries a hop has its cause elsewhere."""
        cause = self.working_on(acp_wire.session_in(message.get("params")))
        if cause is None or self.closing or acp_wire.carries(message, self.mark):
            return None
        entry = cause.ledger.open("task", "a message that has come", cause)
        if entry is not None:
            entry.quiet = True
            self.coming[id(message)] = (message, entry)
        return entry

    def taken(self, message: dict[str, Any]) -> Entry | None:
        """What has stood for a message since it came, now that it is served."""
        found = self.coming.pop(id(message), None)
        return found[1] if found is not None else None

    def _drop_coming(self) -> None:
        while self.coming:
            self.coming.popitem()[1][1].finish("cancelled", "its connection was closed")

    def closes(self) -> None:
        """Somebody closes it."""
        self.closing = True
        self._drop_coming()

    # Its owner

    def begins(self, owner: Owner) -> None:
        """Somebody reads from it."""
        self.owner, self.reading, self.at = owner, True, 0

    def left(self, connection: Any) -> None:
        """Nobody reads from it any more."""
        self.reading = False
        if self.closing or getattr(connection, "_closed", False):
            return
        self.at = time.time_ns()
        owner = self.owner
        asked = owner is not None and owner.asked_to_cancel()
        self.how = "was asked to cancel" if asked else "has read to the end"
        self.cut_off = asked or (sys.version_info < (3, 11) and not _is_at_end(connection))
        supervisor = getattr(connection, "_tasks", None)
        me = current_task()
        for task in list(getattr(supervisor, "_tasks", ())):
            if task is not me and not task.done() and str(task.get_name()).startswith(_LOOPS):
                loop = Loop(task)
                task.add_done_callback(loop)
                self.loops.append(loop)
        self.loops.sort(key=lambda loop: loop.name)
        if self.loops and len(_watched) < MAX_WATCHED:
            _watched[id(self)] = self
            hopwatch_process.here().telemetry.look()

    def is_lost(self) -> bool:
        """Whether one of its loops can be ended by nobody any more: it was collected while pending, or its event loop is closed."""
        for loop in self.loops:
            task = None if loop.ended else loop.task()
            if not loop.ended and (task is None or (not task.done() and task.get_loop().is_closed())):
                return True
        return False

    def left_over(self) -> list[Orphan]:
        """Its loops that nobody will ever end; with those that have been collected while pending."""
        if self.closing or self.owner is None or not self.at:
            return []
        alive = self.owner.alive()
        if (alive or not (self.cut_off or self.is_lost())) and time.time_ns() - self.at < LATE:
            return []
        ended = "has left it" if alive else "has ended"
        words = (
            f"Nobody will close the connection to {self.name or self.where}: {self.owner.words}, which owned it, {self.how} and {ended}"
            if self.how == "was asked to cancel"
            else f"Nobody will close the connection to {self.name or self.where}: {self.owner.words}, which owned it, {ended}"
        )
        out = []
        for loop in self.loops:
            task = loop.task()
            if not loop.ended and not (task is not None and task.done()):
                out.append(Orphan(loop.name, words, self.at, task))
        return out


_connections: dict[int, tuple[Any, Connected]] = {}
"""By a connection's id a weak reference to it, and what is known of it. It need not be one that can be hashed, nor compared."""
_watched: dict[int, Connected] = {}
"""Connections that nobody reads from, and that nobody has closed."""


def of(connection: Any) -> Connected:
    """What is known of a connection."""
    key = id(connection)
    found = _connections.get(key)
    if found is not None and found[0]() is connection:
        return found[1]
    known = Connected(connection)

    def collected(reference: Any, connections: dict[int, tuple[Any, Connected]] = _connections) -> None:
        if connections.get(key, (None,))[0] is reference:
            connections.pop(key, None)

    _connections[key] = (ref(connection, collected), known)
    return known


def is_read(connection: Any) -> bool | None:
    """Whether anybody reads from a connection; None where that is not known."""
    found = _connections.get(id(connection))
    return found[1].reading if found is not None and found[0]() is connection else None


def orphaned() -> list[Orphan]:
    """The pending service loops of connections whose owner has ended."""
    return [loop for each in list(_watched.values()) for loop in each.left_over() if loop.task is not None]


def undecided() -> bool:
    """Whether some connection has been left, and it is not known yet whether somebody will close it."""
    return any(not each.told for each in list(_watched.values()))


def look(now: int) -> None:
    """Tell of what has been left, once. Called by the ticker."""
    for key, each in list(_watched.items()):
        try:
            if each.closing or all(loop.ended for loop in each.loops):
                del _watched[key]
                continue
            if now - each.at < SOON:
                continue
            loops = each.left_over()
            if loops and not each.told:
                each.told = True
                tell(loops)
            if each.told and all(loop.ended or loop.task() is None for loop in each.loops):
                del _watched[key]
        except Exception:  # noqa: BLE001
            _watched.pop(key, None)
            failed("acp.look")


def forget() -> None:
    """Forget what is known of connections."""
    _watched.clear()


def _is_at_end(connection: Any) -> bool:
    """Whether all that the peer sent has been read: where the SDK swallows a cancellation, and nobody else tells of it."""
    reader = getattr(connection, "_reader", None)
    at_eof = getattr(reader, "at_eof", None)
    return at_eof is None or bool(at_eof())


def _address_of(connection: Any) -> tuple[str, int]:
    """Where the peer is, and its port; 0 for one that has none."""
    try:
        transport = getattr(connection, "_transport", None)
        socket = getattr(getattr(transport, "_ws", None), "remote_address", None)
        url = getattr(transport, "_url", None)
        if isinstance(url, str):
            from urllib.parse import urlsplit  # noqa: PLC0415

            parts = urlsplit(url)
            return parts.hostname or "http", parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
        writer = getattr(connection, "_writer", None) or getattr(
            getattr(transport, "_sender", None), "_writer", None
        )
        if socket is None and writer is not None:
            process: Any = getattr(getattr(writer, "_protocol", None), "_transport", None)
            number = process.get_pid() if hasattr(process, "get_pid") else None
            if number:
                return f"process {number}", 0
            socket = writer.get_extra_info("peername")
        if isinstance(socket, (tuple, list)) and len(socket) >= 2:
            return str(socket[0]), int(socket[1])
    except Exception:  # noqa: BLE001 - a transport of the application's own
        failed("acp.address")
        return "the other side", 0
    return ("stdio", 0) if writer is not None else ("the other side", 0)


def _in_child() -> None:
    _watched.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
