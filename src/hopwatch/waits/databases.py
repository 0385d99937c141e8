"""Which database does a task wait for? By the frames of aiosqlite and asyncpg, whose futures tell nothing themselves.

SQLAlchemy's asyncio engines run their own code in greenlets and await these libraries for it: the chain leads through.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from hopwatch.waits.objects import field_of, is_a, module_of, referents, type_name
from hopwatch.waits.wait import Wait

if TYPE_CHECKING:
    from hopwatch.waits.chain import Frame
    from hopwatch.waits.threads import Threads


def is_one(frame: Frame | None) -> bool:
    """Tell whether a frame, the innermost one outside asyncio, awaits the answer of a database."""
    if frame is None:
        return False
    # asyncpg's protocol is Cython: the name of its file is as it was when it was compiled.
    return frame.file.startswith("asyncpg/") or frame.file.replace("\\", "/").endswith("/aiosqlite/core.py")


def wait_of(frames: list[Frame], threads: Threads) -> Wait:
    """Judge a chain whose innermost frame is that of a database's library. It moves: a server or a thread answers.

    Args:
        frames: The frames of the chain, outermost first.
        threads: What the threads of this process do.
    """
    things = [thing for frame in frames[-4:] for thing in referents(frame.awaitable)]
    if frames[-1].file.startswith("asyncpg/"):
        peer = next((peer for thing in things if (peer := _address(thing))), None)
        return Wait("socket", moves=True, what=f"PostgreSQL{f' at {peer}' if peer else ''}", peer=peer)
    connection: Any = next((thing for thing in things if _is(thing, "aiosqlite.core", "Connection")), None)
    # Below 0.22 the connection is the thread itself.
    thread: Any = connection if is_a(connection, threading.Thread) else field_of(connection, "_thread")
    if not is_a(thread, threading.Thread):
        return Wait("thread", moves=True, what="SQLite, in a thread of aiosqlite")
    job = threads.standing(thread)
    return Wait("thread", moves=True, what=f"SQLite, {job.words}", job=job)


def _is(thing: object, module: str, name: str) -> bool:
    return type_name(type(thing)) == name and module_of(type(thing)) == module


def _address(thing: object) -> str | None:
    """The server's address as asyncpg's connection has it, or what holds one: a statement, or the pool's proxy."""
    for _ in range(3):
        if _is(thing, "asyncpg.connection", "Connection"):
            address: Any = field_of(thing, "_addr")
            if type(address) is tuple and len(address) == 2:
                return f"{address[0]}:{address[1]}"
            return address if type(address) is str and address else None
        if not module_of(type(thing)).startswith("asyncpg."):
            return None
        inner = field_of(thing, "_connection")
        thing = inner if inner is not None else field_of(thing, "_con")
    return None
