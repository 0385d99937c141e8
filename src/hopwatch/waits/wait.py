"""What is said of a wait: its kind, the name that the source gives to what is awaited, who is at the other end?"""

from __future__ import annotations

import dis
import types
import weakref
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from hopwatch.waits.chain import Frame
    from hopwatch.waits.facts import Job, Queue, Send

Kind = Literal[
    "running", "future", "event", "lock", "semaphore", "condition", "barrier", "queue_get", "queue_put", "queue_join",
    "sleep", "timer", "socket", "thread", "task", "gather", "wait", "task_group", "call", "unknown",
]  # fmt: skip


class Across(NamedTuple):
    """What only instrumentation knows of the hops that tasks work for. Each function may be called from any thread.

    Attributes:
        asks: The id of the send or push whose answer a task awaits in its first attempt; None for any other task.
        hop_of: The id of the hop that a task works for, None where that is not known.
        is_read: Whether anybody still reads from a connection over which messages and their answers go; None where that is not known.
    """

    asks: Callable[[object], str | None]
    hop_of: Callable[[object], str | None]
    is_read: Callable[[object], bool | None] | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """What one task waits on, as far as it can be known from outside.

    Attributes:
        kind: What sort of wait it is.
        moves: False if only other work could end it; True if it can end by itself, or if that is in doubt.
        what: What it waits on, as a phrase for a person.
        file: File of the innermost frame of the application.
        line: Line of that frame.
        function: Qualified name of that frame's function.
        task: Name of the task that waits.
        until: When a timer ends the wait, in Unix seconds.
        peer: `host:port` at the other end of a socket.
        holder: Name of the task that holds the lock.
        of: The waits of the tasks and futures that this one waits for.
        chain: `file:line function` of every frame, outermost first.
        asks: Ids of sends and pushes. It moves only if one of them is answered, or the time of `expires` comes; empty
            where it does not move, or where anything else could end it.
        expires: When a timer ends any of what `asks` rests on, in Unix seconds.
        holder_hop: Id of the hop that the task works for which holds the lock.
        holders: Names of all tasks that hold the lock or semaphore, as far as they are known; at most 16.
        seconds: How long the sleep lasts from its beginning.
        queue: The queue at which it waits.
        job: What the thread does that it waits for.
        send: The message that is under way.
    """

    kind: Kind
    moves: bool
    what: str
    file: str | None = None
    line: int | None = None
    function: str | None = None
    task: str | None = None
    until: float | None = None
    peer: str | None = None
    holder: str | None = None
    of: tuple[Wait, ...] = ()
    chain: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    expires: float | None = None
    holder_hop: str | None = None
    holders: tuple[str, ...] = ()
    seconds: float | None = None
    queue: Queue | None = None
    job: Job | None = None
    send: Send | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON, without what is not known."""
        told: dict[str, Any] = {"kind": self.kind, "moves": self.moves, "what": self.what}
        for name in _OPTIONAL:
            value = getattr(self, name)
            if value is None or value == ():
                continue
            if name == "of":
                value = [child.as_dict() for child in value]
            elif name in ("chain", "asks", "holders"):
                value = list(value)
            elif name in ("queue", "job", "send"):
                value = value.as_dict()
            told[name] = value
        return told


_OPTIONAL: Final = tuple(field.name for field in fields(Wait))[3:]
MOVING: Final = frozenset({"running", "sleep", "timer", "socket", "thread", "call", "unknown"})

PHRASES: Final[dict[str, str]] = {
    "future": "a future{} that nobody has set",
    "event": "event{}, which nobody has set",
    "lock": "lock{}",
    "semaphore": "semaphore{}",
    "condition": "condition{} to be notified",
    "barrier": "others at barrier{}",
    "queue_get": "an item from queue{}",
    "queue_put": "room in queue{}",
    "queue_join": "queue{} to be worked off",
    "sleep": "asyncio.sleep",
    "timer": "a timer",
    "socket": "a socket",
    "thread": "a thread",
    "task": "a task",
    "gather": "tasks (gather)",
    "wait": "tasks (wait)",
    "task_group": "a task group's tasks",
    "call": "a gRPC call",
}
RUNNING: Final = Wait("running", moves=True, what="running, or about to")
ENDED: Final = Wait("running", moves=True, what="over already")
UNREADABLE: Final = Wait("unknown", moves=True, what="something that could not be read")
# What the application calls on a primitive of each kind, to find what it calls the primitive.
_VERBS: Final[dict[str, frozenset[str]]] = {
    "lock": frozenset({"acquire"}),
    "semaphore": frozenset({"acquire"}),
    "event": frozenset({"wait"}),
    "condition": frozenset({"wait", "wait_for"}),
    "barrier": frozenset({"wait"}),
    "queue_get": frozenset({"get"}),
    "queue_put": frozenset({"put"}),
    "queue_join": frozenset({"join"}),
}

_SILENT_OPCODES: Final = frozenset(
    {"CACHE", "NOP", "EXTENDED_ARG", "PRECALL", "PUSH_NULL", "RESUME", "NOT_TAKEN", "KW_NAMES"}
)
_words_known: dict[tuple[int, int, str], tuple[weakref.ref[types.CodeType], str | None]] = {}


def words_for(frame: Frame, kind: str) -> str | None:
    """Return the words by which the source of `frame` names what it awaits, such as `self.stock`.

    From the bytecode: the frame is suspended at that very expression, so no value need be looked at.
    """
    awaitable = frame.awaitable
    cls = type(awaitable)
    if cls is types.CoroutineType:
        seen = awaitable.cr_frame
    elif cls is types.GeneratorType:
        seen = awaitable.gi_frame
    else:
        seen = awaitable.ag_frame if cls is types.AsyncGeneratorType else None
    if seen is None:
        return None
    code, at = seen.f_code, seen.f_lasti
    key = (id(code), at, kind)
    known = _words_known.get(key)
    if known is not None and known[0]() is code:
        return known[1]
    try:
        words = _read_words(code, at, _VERBS.get(kind, frozenset()))
    except Exception:  # noqa: BLE001  (bytecode changes with every Python; a name is not worth an answer)
        words = None
    if len(_words_known) >= 1024:
        _words_known.clear()
    _words_known[key] = (weakref.ref(code), words)
    return words


def _read_words(code: types.CodeType, at: int, verbs: frozenset[str]) -> str | None:
    read = [step for step in dis.get_instructions(code) if step.opname not in _SILENT_OPCODES]
    index = max((i for i, step in enumerate(read) if step.offset <= at), default=-1)
    while index >= 0 and read[index].opname not in {"GET_AWAITABLE", "GET_ANEXT", "GET_YIELD_FROM_ITER"}:
        index -= 1
    if index < 1 or read[index].opname != "GET_AWAITABLE":
        return None  # `async for`, or a generator
    index -= 1
    if read[index].opname == "BEFORE_ASYNC_WITH":
        return _expression(read, index - 1)
    if any(
        step.opname == "LOAD_SPECIAL" for step in read[max(index - 2, 0) : index + 1]
    ):  # `async with` from 3.14
        while read[index].opname in {"CALL", "SWAP", "COPY", "LOAD_SPECIAL"}:
            index -= 1
        return _expression(read, index)
    if not verbs:
        return _expression(read, index)
    for step in range(index, max(index - 32, 0), -1):
        name = read[step].opname
        if name in {"LOAD_ATTR", "LOAD_METHOD"} and read[step].argval in verbs:
            return _expression(read, step - 1)
        if name in {"POP_TOP", "END_SEND", "YIELD_FROM", "GET_AWAITABLE"} or (
            name.startswith("STORE_") and "LOAD" not in name
        ):
            return None
    return None


def _expression(read: list[dis.Instruction], index: int) -> str | None:
    """Return the dotted name that ends at an instruction, None for any other expression."""
    parts: list[str] = []
    while index >= 0:
        name, value = read[index].opname, read[index].argval
        if name in {"LOAD_ATTR", "LOAD_METHOD"}:
            parts.append(value)
        elif "LOAD_FAST" in name or name in {"LOAD_GLOBAL", "LOAD_DEREF", "LOAD_NAME", "LOAD_CLASSDEREF"}:
            parts.append(value[-1] if type(value) is tuple else value)
            return ".".join(reversed(parts)) if len(parts) <= 6 else None
        else:
            return None
        index -= 1
    return None
