"""What does a pending asyncio task wait on, and can that move by itself?

A wait is passive (`moves` is False) if only other work can end it: a future that nobody has set, an event, a lock, a
queue. It moves if code runs, a timer, a socket or a thread can end it, or if there is any doubt. The rule: the innermost
frame outside asyncio decides. In the application, the A2A SDK or ACP an asyncio primitive is what it seems; inside any
other library the same primitive may stand for a socket (httpcore waits for its data on an `asyncio.Event`).

Called from a thread that is not the loop's, on tasks that run, finish or are collected meanwhile, so:

- nothing here runs code of the application: no `repr`, no `==`, no attribute that could be a property (`_field`);
- nothing reads `frame.f_locals`: up to Python 3.12 that is a dict which stays on the frame, is the one that the
  application's own `locals()` returned, and keeps deleted locals alive. `gc.get_referents` of a coroutine tells the same
  objects in one step under the GIL and leaves nothing behind; what lacks is the names, and those come from the bytecode;
- a passive verdict is confirmed at the end: every future that it rests on must still be pending and still be what its task
  waits on. So all of it held at one moment, though it was read piece by piece;
- what is returned holds strings and numbers, never an object of the application.

The limits: a future that a library hands to the application to await directly looks like one of the application's own. On
a Python without the GIL nothing here is safe.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
import dis
import functools
import gc
import os
import sys
import sysconfig
import time
import types
import weakref
from collections import deque
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    Holders = asyncio.Task[Any] | Collection[asyncio.Task[Any]] | None
    HolderOf = Callable[[object], Holders]

Kind = Literal[
    "running", "future", "event", "lock", "semaphore", "condition", "barrier", "queue_get", "queue_put", "queue_join",
    "sleep", "socket", "thread", "task", "gather", "wait", "task_group", "call", "unknown",
]  # fmt: skip

FRAMES: Final = 64
"""How many awaitables of one chain are followed."""
TASKS: Final = 128
"""How many tasks one question looks at; beyond it, doubt."""
DEPTH: Final = 32
"""How many tasks that await one another are followed in a row."""
LISTED: Final = 16
"""How many children of a gather, a wait or a group are told of. The others are judged all the same."""
REACHED: Final = 256
"""How many objects are looked at for a deadline that hides behind context managers."""
TIMERS: Final = 1000
"""How many timers a loop may have for them to be searched."""


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

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON, without what is not known."""
        told: dict[str, Any] = {"kind": self.kind, "moves": self.moves, "what": self.what}
        for field in fields(self)[3:]:
            value = getattr(self, field.name)
            if field.name == "of":
                value = [child.as_dict() for child in value]
            elif field.name == "chain":
                value = list(value)
            if value is not None and value != []:
                told[field.name] = value
        return told


def of_task(
    task: asyncio.Task[Any],
    *,
    holder_of: HolderOf | None = None,
    made_in: str | None = None,
) -> Wait:
    """Tell what `task` waits on and whether that can move by itself. From any thread; it never raises.

    Args:
        task: The task. One that has ended or runs right now moves.
        holder_of: Tells which task holds a lock or semaphore, or None if that is not known; for a semaphore it may be a
            list, tuple or set of all who hold it, of whom one that moves is enough. A lock whose holder is not known is
            passive.
        made_in: The file that made the task, if known. It decides for a task that runs asyncio's own coroutine and
            nothing else, such as `create_task(queue.join())` in the A2A SDK, which else would be in doubt.
    """
    try:
        look = _Look(holder_of)
        wait = look.at_task(task, _LIBRARY if made_in is None else _place(made_in))
        return wait if wait.moves else look.confirmed(wait)
    except Exception:  # noqa: BLE001  (a watcher in somebody's production must not be what fails)
        return _UNREADABLE


def glance(task: asyncio.Task[Any]) -> Wait:
    """Tell the little that is cheap about `task`: its own frames and the sort of future. It never raises.

    For finalizers, where a task may be half gone. It looks at no other task, no callback and no timer, so `moves` is
    False only where `of_task` would have to find one of those to say True.
    """
    try:
        future = _waits_for(task)
        if not _pending(future):
            return _RUNNING if not _ended(task) else _ENDED
        frames, lost = _walk(_coroutine(task))
        decisive, tail = _split(frames)
        place = decisive.place if decisive else _LIBRARY
        kind, _ = _primitive(tail)
        if kind is None:
            kind = "task" if _is(future, _TASKS) else "gather" if _is(future, _GATHERING) else "future"
        passive = kind not in _MOVING and place in _PASSIVE and not lost
        return _told(Wait(kind, moves=not passive, what=_PHRASES.get(kind, kind).format("")), task, frames)
    except Exception:  # noqa: BLE001  (as above, and a finalizer has nobody to tell)
        return _UNREADABLE


@functools.lru_cache(maxsize=4096)
def is_application(filename: str) -> bool:
    """Tell whether a file is the application's: neither the standard library's nor an installed package's.

    Packages named in `HOPWATCH_APPLICATION` (comma separated) and `hopwatch.demo` are the application's wherever they
    lie. Cached: the variable is read once for each file.
    """
    path = filename.replace("\\", "/")
    if "/hopwatch/demo/" in path:
        return True
    if path.startswith((_HOPWATCH, "<frozen ")):
        return False
    package = _package(path)
    if package is None:
        return not path.startswith(_STDLIB)
    names = (name.strip() for name in os.environ.get("HOPWATCH_APPLICATION", "").split(","))
    return any(name and f"{package}.".startswith(f"{name}.") for name in names)


# --- whose code a frame is -----------------------------------------------------------------------------------------

_ASYNCIO, _CLEAR, _APPLICATION, _SDK, _LIBRARY = range(5)
_PASSIVE: Final = frozenset({_APPLICATION, _SDK})

_STDLIB: Final = tuple(
    {
        f"{spelled.replace(chr(92), '/').rstrip('/')}/"
        for name in ("stdlib", "platstdlib")
        if (path := sysconfig.get_paths().get(name))
        for spelled in (path, os.path.realpath(path))
    }
    | {f"{os.path.dirname(os.path.dirname(asyncio.__file__))}/".replace("\\", "/")}  # noqa: PTH120
)
_HOPWATCH: Final = f"{os.path.dirname(os.path.abspath(__file__))}/".replace("\\", "/")  # noqa: PTH100, PTH120


def _package(path: str) -> str | None:
    """Return the dotted name of an installed module, None for a file that is not installed."""
    for folder in ("/site-packages/", "/dist-packages/"):
        _, found, inside = path.rpartition(folder)
        if found:
            return inside.removesuffix(".py").replace("/", ".")
    return None


@functools.lru_cache(maxsize=4096)
def _place(filename: str) -> int:
    """Tell how far a frame of this file decides what a primitive below it means."""
    if is_application(filename):
        return _APPLICATION
    path = filename.replace("\\", "/")
    if path.startswith(_HOPWATCH):
        return _CLEAR  # our own wrappers stand for what they wrap
    package = _package(path)
    if package is None:
        inside = next((path[len(root) :] for root in _STDLIB if path.startswith(root)), "")
        if inside.startswith("asyncio/"):
            return _ASYNCIO
        # An exit stack or `asynccontextmanager` awaits for whoever wrote what is in it.
        return _CLEAR if inside in {"contextlib.py", "types.py", "functools.py"} else _LIBRARY
    first = package.partition(".")[0]
    if first in {"culsans", "aiologic"}:
        return _ASYNCIO  # a2a-sdk 1.x has its queues from culsans, which is built on aiologic, before Python 3.13
    return _SDK if first in {"a2a", "acp"} else _LIBRARY


# --- reading objects without running their code --------------------------------------------------------------------

_mro = type.__dict__["__mro__"].__get__
_namespace = type.__dict__["__dict__"].__get__
_type_name = type.__dict__["__name__"].__get__

_PY_FUTURE: Final[Any] = getattr(asyncio.futures, "_PyFuture", asyncio.Future)
_PY_TASK: Final[Any] = getattr(asyncio.tasks, "_PyTask", asyncio.Task)
_FUTURES: Final = (asyncio.Future, _PY_FUTURE)
_TASKS: Final = (asyncio.Task, _PY_TASK)
_GATHERING: Final[Any] = (getattr(asyncio.tasks, "_GatheringFuture", ()),)
_TIMEOUT: Final[Any] = getattr(asyncio, "Timeout", None)  # 3.11
_TASK_GROUP: Final[Any] = getattr(asyncio, "TaskGroup", ())  # 3.11


def _module(cls: type) -> str:
    name = type.__dict__["__module__"].__get__(cls)  # uvloop's classes do not have it in their namespace
    return name if type(name) is str else ""


def _is(thing: object, classes: Any) -> bool:
    # `isinstance` would ask a proxy for its `__class__`, which is code.
    return issubclass(type(thing), classes)


def _field(thing: object, name: str) -> Any:
    """Return an attribute that is stored, None for one that is missing or would have to be computed."""
    for cls in _mro(type(thing)):
        namespace = _namespace(cls)
        if name in namespace:
            found = namespace[name]
            if type(found) not in _SLOTS and any("__get__" in _namespace(base) for base in _mro(type(found))):
                return None
            break
    try:
        # Past `__getattr__`, and to nothing but a slot or the object's own dict.
        return object.__getattribute__(thing, name)
    except AttributeError:
        return None


_SLOTS: Final = frozenset({types.GetSetDescriptorType, types.MemberDescriptorType})


# asyncio's tasks in C keep these where no subclass can hide them.
_C_TASK: Final = {name: asyncio.Task.__dict__.get(name) for name in ("_fut_waiter", "_coro")}
_C_STATE: Final[Any] = asyncio.Future.__dict__.get("_state")


def _waits_for(task: object) -> Any:
    slot: Any = _C_TASK["_fut_waiter"]
    return (
        slot.__get__(task)
        if type(slot) in _SLOTS and _is(task, asyncio.Task)
        else _field(task, "_fut_waiter")
    )


def _coroutine(task: object) -> Any:
    slot: Any = _C_TASK["_coro"]
    return slot.__get__(task) if type(slot) in _SLOTS and _is(task, asyncio.Task) else _field(task, "_coro")


def _state(future: object) -> object:
    if type(_C_STATE) in _SLOTS and _is(future, asyncio.Future):
        return _C_STATE.__get__(future)
    return _field(future, "_state") if _is(future, _FUTURES) else None


def _pending(future: object) -> bool:
    """Tell whether this is a future of asyncio that nobody has set. Others cannot be judged."""
    return _state(future) == "PENDING"


def _ended(task: object) -> bool:
    return _state(task) in ("FINISHED", "CANCELLED")


def _task_name(task: object) -> str | None:
    # The name of a C task has no slot that Python sees; the unbound method reads it and is asyncio's own.
    name = asyncio.Task.get_name(task) if _is(task, asyncio.Task) else _field(task, "_name")  # type: ignore[arg-type]
    return str.__str__(name)[:200] if _is(name, str) else None


_PLAIN: Final = frozenset(
    {
        str, bytes, int, float, bool, type(None), dict, type, types.ModuleType, types.FunctionType, types.CodeType,
        types.CoroutineType, types.FrameType, types.BuiltinFunctionType, types.CellType,
    }
)  # fmt: skip


def _raw(awaitable: object) -> list[Any]:
    found = gc.get_referents(awaitable)
    if sys.version_info < (3, 11):  # there a coroutine refers to its frame, and the frame to its locals
        found = next((gc.get_referents(thing) for thing in found if type(thing) is types.FrameType), found)
    return found


def _referents(awaitable: object) -> list[Any]:
    """Return what a suspended coroutine or generator refers to, its locals, then its stack, but for plain values."""
    found = []
    for thing in _raw(awaitable):
        cls = type(thing)
        if cls is types.CellType:
            thing = _content(thing)  # noqa: PLW2901
            cls = type(thing)
        if cls not in _PLAIN:
            found.append(thing)
    return found


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def _callbacks(future: object) -> Iterator[Any]:
    """Yield who is called when a future is done; at most 32 of them, for futures have had 70,066."""
    for thing in gc.get_referents(future):
        if type(thing) is list:
            for entry in thing[:32]:
                if type(entry) is tuple and entry:
                    yield entry[0]
        elif type(thing) is dict:  # asyncio's futures in pure Python
            entries = thing.get("_callbacks")
            if type(entries) is list:
                yield from (entry[0] for entry in entries[:32] if type(entry) is tuple and entry)
        else:
            yield thing


def _cells(function: object) -> list[Any]:
    return (
        [_content(cell) for cell in function.__closure__ or ()]
        if type(function) is types.FunctionType
        else []
    )


# --- the await chain -----------------------------------------------------------------------------------------------


class _Frame(NamedTuple):
    file: str
    line: int
    function: str
    name: str
    place: int
    awaitable: Any


# These stand between a frame and what it awaits and have no attribute that tells what.
_THROUGH: Final = frozenset(
    {"coroutine_wrapper", "async_generator_asend", "async_generator_athrow", "anext_awaitable"}
)
_PREFIXES: Final = {types.CoroutineType: "cr", types.GeneratorType: "gi", types.AsyncGeneratorType: "ag"}


def _is_cython(cls: type) -> bool:
    # Coroutines of Cython (grpc.aio, uvloop) have a type for each module; what they share is this slot.
    return any(type(_namespace(base).get("cr_await")) in _SLOTS for base in _mro(cls))


def _continues(cls: type) -> bool:
    return cls in _PREFIXES or _type_name(cls) in _THROUGH or _is_cython(cls)


def _walk(awaitable: Any) -> tuple[list[_Frame], bool]:
    """Follow a chain of awaitables inwards. Return its frames, and whether it was lost before its end."""
    frames: list[_Frame] = []
    for _ in range(2 * FRAMES):
        cls = type(awaitable)
        following: Any
        if cls is types.CoroutineType:
            frame, following = awaitable.cr_frame, awaitable.cr_await
        elif cls is types.GeneratorType:
            frame, following = awaitable.gi_frame, awaitable.gi_yieldfrom
        elif cls is types.AsyncGeneratorType:
            frame, following = awaitable.ag_frame, awaitable.ag_await
        elif _type_name(cls) == "FutureIter" or _is(awaitable, _FUTURES):
            return frames, False
        elif _type_name(cls) in _THROUGH:
            awaitable = next(
                (thing for thing in gc.get_referents(awaitable) if _continues(type(thing))), None
            )
            if awaitable is None:
                return frames, True
            continue
        elif _is_cython(cls):
            code, following = _field(awaitable, "cr_code"), _field(awaitable, "cr_await")
            file = code.co_filename if type(code) is types.CodeType else "cython"
            name = code.co_name if type(code) is types.CodeType else "coroutine"
            frames.append(_Frame(file, 0, name, name, _LIBRARY, awaitable))
            frame = None
        else:
            return frames, True
        if frame is not None:
            if len(frames) == FRAMES:
                return frames, True
            code = frame.f_code
            file = code.co_filename
            frames.append(
                _Frame(
                    file, frame.f_lineno or 0, awaitable.__qualname__, code.co_name, _place(file), awaitable
                )
            )
        elif following is None and not frames and cls is types.CoroutineType:
            # In a cyclic collection the coroutine is closed before its task is reported destroyed: what is left is
            # where it was written.
            code = awaitable.cr_code
            file = code.co_filename
            frames.append(
                _Frame(
                    file, code.co_firstlineno, awaitable.__qualname__, code.co_name, _place(file), awaitable
                )
            )
            return frames, True
        if following is None:
            # A generator may yield the future itself. A coroutine that waits always awaits something: if it does not
            # tell what, it was caught between two steps.
            return frames, cls is not types.GeneratorType
        awaitable = following
    return frames, True


def _split(frames: list[_Frame]) -> tuple[_Frame | None, list[_Frame]]:
    """Return the innermost frame outside asyncio, and the frames of asyncio below it."""
    for index in range(len(frames) - 1, -1, -1):
        if frames[index].place > _CLEAR:
            return frames[index], frames[index + 1 :]
    return None, frames


# --- the primitives ------------------------------------------------------------------------------------------------

_MOVING: Final = frozenset({"running", "sleep", "socket", "thread", "call", "unknown"})

_PHRASES: Final[dict[str, str]] = {
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
    "socket": "a socket",
    "thread": "a thread",
    "task": "a task",
    "gather": "tasks (gather)",
    "wait": "tasks (wait)",
    "task_group": "a task group's tasks",
    "call": "a gRPC call",
}

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

_LOCKS: Final[tuple[tuple[Any, Kind], ...]] = (
    (asyncio.Lock, "lock"),
    (asyncio.Semaphore, "semaphore"),
    (asyncio.Condition, "condition"),
    (asyncio.Event, "event"),
    (getattr(asyncio, "Barrier", ()), "barrier"),  # 3.11
)
_QUEUE_VERBS: Final[dict[str, Kind]] = {
    "get": "queue_get",
    "peek": "queue_get",
    "put": "queue_put",
    "join": "queue_join",
}
_AIOLOGIC: Final[dict[str, Kind]] = {
    "_locks.py": "lock",
    "_semaphores.py": "semaphore",
    "_limiters.py": "semaphore",
    "_conditions.py": "condition",
    "_events.py": "event",
    "_barriers.py": "barrier",
}
# Files of asyncio in which a bare future is set by a transport, a process or the loop itself.
_TRANSPORTS: Final = frozenset(
    {
        "streams.py", "base_events.py", "selector_events.py", "proactor_events.py", "sslproto.py", "subprocess.py",
        "base_subprocess.py", "unix_events.py", "windows_events.py", "base_futures.py", "protocols.py", "sock.py",
    }
)  # fmt: skip


def _own(frame: _Frame, cls: Any) -> Any:
    """Return what a frame of a known method has as `self`: its first local of that class."""
    return next((thing for thing in _referents(frame.awaitable) if _is(thing, cls)), None)


def _primitive(tail: list[_Frame]) -> tuple[Kind | None, _Frame | None]:
    """Tell which primitive the frames of asyncio in `tail` belong to, and in which of them it is."""
    kind: Kind | None = None
    at: _Frame | None = None
    for frame in tail:
        folder, _, file = frame.file.replace("\\", "/").rpartition("/")
        name = frame.name
        if frame.place != _ASYNCIO:
            continue
        if "/culsans" in folder:
            verb = name.removeprefix("async_")
            return _QUEUE_VERBS.get(verb, "unknown"), frame
        if "/aiologic" in folder:
            if file == "_queues.py":
                return _QUEUE_VERBS.get(name.rpartition("_")[2], "unknown"), frame
            return _AIOLOGIC.get(file, "unknown"), frame
        if file in _TRANSPORTS:
            return "socket", frame
        if file == "queues.py":
            return _QUEUE_VERBS.get(name, "unknown"), frame
        if file == "threads.py":
            kind, at = "thread", frame
        elif file == "taskgroups.py":
            kind, at = "task_group", frame
        elif file == "tasks.py":
            if name == "_wait_for_one":
                return "wait", frame  # as_completed: a queue below it, but filled by its own callbacks
            if name in {"sleep", "_wait"}:
                kind, at = ("sleep" if name == "sleep" else "wait"), frame
        elif file == "locks.py" and name != "__aenter__":
            # A barrier waits on its condition, and a condition, once notified, on its lock: the outer is what the
            # application knows of the one, the inner of the other. Names as in 3.10 to 3.14.
            owner = frame.function.partition(".")[0]
            if owner == "Barrier":
                return "barrier", frame
            for cls, sort in _LOCKS:
                if cls and owner == cls.__name__:
                    kind, at = sort, frame
            if kind is None and owner in {"BoundedSemaphore", "_ContextManagerMixin"}:
                kind, at = "semaphore", frame
    return kind, at


# --- what the source calls it --------------------------------------------------------------------------------------

_SILENT_OPCODES: Final = frozenset(
    {"CACHE", "NOP", "EXTENDED_ARG", "PRECALL", "PUSH_NULL", "RESUME", "NOT_TAKEN", "KW_NAMES"}
)
_words_known: dict[tuple[int, int, str], tuple[weakref.ref[types.CodeType], str | None]] = {}


def _words(frame: _Frame, kind: str) -> str | None:
    """Return the words by which the source of `frame` names what it awaits, such as `self.stock`.

    From the bytecode: the frame is suspended at that very expression, so no value need be looked at.
    """
    awaitable = frame.awaitable
    prefix = _PREFIXES.get(type(awaitable))
    seen = getattr(awaitable, f"{prefix}_frame") if prefix else None
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


# --- timers --------------------------------------------------------------------------------------------------------


def _when(handle: object) -> float | None:
    """Return when a timer of the loop will fire, on the loop's clock; None if it is no timer or will not."""
    cls = type(handle)
    if cls is asyncio.TimerHandle:
        # Not in the heap any more: it has fired. `wait_for` keeps its handle while it waits for what it cancelled.
        return None if handle._cancelled or not handle._scheduled else handle._when  # type: ignore[attr-defined]  # noqa: SLF001
    if _type_name(cls) == "TimerHandle" and _module(cls) == "uvloop.loop":
        return None if handle.cancelled() else handle.when()  # type: ignore[attr-defined]
    return None


def _deadline(thing: object, task: object) -> float | None:
    """Return when this object cancels `task`, on the loop's clock; None if it does not."""
    cls = type(thing)
    if cls is _TIMEOUT:  # its timer is dropped when it fires and when the block is left
        timer, owner, when = "_timeout_handler", "_task", "_when"
    elif _type_name(cls) == "CancelScope" and _module(cls) == "anyio._backends._asyncio":
        timer, owner, when = "_timeout_handle", "_host_task", "_deadline"
    elif _type_name(cls) == "Timeout" and _module(cls) == "async_timeout":
        timer, owner, when = "_timeout_handler", "_task", "_deadline"
    else:
        return None
    if _field(thing, owner) is not task or _field(thing, timer) is None:
        return None
    found = _field(thing, when)
    return float(found) if type(found) in (int, float) else None


_TIMERS_BY_NAME: Final = frozenset({"TimerHandle", "CancelScope", "Timeout"})


def _unix(when: float) -> float | None:
    # The clock of asyncio's and uvloop's loops is `time.monotonic`; a loop with another would have to be asked, and
    # that is code of the application.
    left = when - time.monotonic()
    return time.time() + left if -3600 < left < 1e9 else None


def _clock(until: float | None) -> str:
    return f" until {time.strftime('%H:%M:%S', time.gmtime(until))}Z" if until is not None else ""


def _timer_in(frames: list[_Frame], locals_: list[list[Any]], task: object) -> float | None:
    """Return the first deadline that the frames of a chain keep in their locals or on their stack."""
    first: float | None = None
    for index, frame in enumerate(frames):
        if (
            frame.name == "wait_for"
            and index + 1 < len(frames)
            and frames[index + 1].name == "_cancel_and_wait"
        ):
            continue  # 3.10 and 3.11: its time is over. uvloop's handle does not tell that it has fired
        for thing in locals_[index]:
            if type(thing) is types.MethodType:
                thing = thing.__self__  # a context manager's `__aexit__`, waiting on the stack  # noqa: PLW2901
            if _type_name(type(thing)) in _TIMERS_BY_NAME:
                when = _when(thing)
                if when is None:
                    when = _deadline(thing, task)
                if when is not None and (first is None or when < first):
                    first = when
    return first


_NOT_ENTERED: Final = (
    type, types.ModuleType, types.CodeType, types.BuiltinFunctionType, str, bytes, int, float, type(None),
    asyncio.AbstractEventLoop, *_FUTURES,
)  # fmt: skip


def _is_manager(cls: type) -> bool:
    return any("__exit__" in space or "__aexit__" in space for space in map(_namespace, _mro(cls)))


def _inside_of(thing: object) -> list[Any]:
    return _raw(thing) if type(thing) in _PREFIXES else gc.get_referents(thing)


def _hidden_timer(locals_: list[list[Any]], task: object) -> float | None:
    """Return a deadline that lies behind the context managers of a chain.

    `async with limited():` leaves on the stack an `__aexit__` whose object has a generator whose stack has the timeout;
    an exit stack has a deque of them. What is found is sure: a timeout knows its task.
    """
    waiting: deque[tuple[Any, int]] = deque()
    for things in locals_:
        for thing in things:
            # A bound `__aexit__`; from 3.14 the object itself.
            manager = thing.__self__ if type(thing) is types.MethodType else thing
            if _is_manager(type(manager)):
                waiting.append((manager, 0))
    seen: set[int] = set()
    while waiting and len(seen) < REACHED:
        thing, depth = waiting.popleft()
        if id(thing) in seen or _is(thing, _NOT_ENTERED):
            continue
        seen.add(id(thing))
        when = _deadline(thing, task)
        if when is not None:
            return when
        if depth < 12 and not (type(thing) is dict and len(thing) > 64):
            inside = _cells(thing) if type(thing) is types.FunctionType else _inside_of(thing)
            waiting.extend((found, depth + 1) for found in inside[:64])
    return None


def _wakes(handle: Any, wanted: set[int]) -> bool:
    """Tell whether a callback of the loop acts on one of these objects, as far as one step shows."""
    if type(handle) not in (asyncio.Handle, asyncio.TimerHandle) or handle._cancelled:  # noqa: SLF001
        return False
    callback, args = handle._callback, handle._args  # noqa: SLF001
    if type(callback) is functools.partial:
        args = (*callback.args, *(args or ()))
        callback = callback.func
    acted_on = [callback.__self__] if _is(callback, _BOUND) else _cells(callback)
    if args:
        acted_on.extend(args[:8])
    for thing in acted_on:
        if id(thing) in wanted:
            return True
        if _is(thing, _BOUND) and id(thing.__self__) in wanted:
            return True
        if type(thing) is _TIMEOUT and id(_field(thing, "_task")) in wanted:
            return True
    return False


_BOUND: Final = (types.MethodType, types.BuiltinMethodType)


# --- sockets -------------------------------------------------------------------------------------------------------


def _peer(frames: Iterable[_Frame]) -> str | None:
    """Return `host:port` of the first socket that a stream or transport among the locals of `frames` has."""
    for frame in frames:
        for thing in _referents(frame.awaitable):
            transport = thing
            if (
                _is(thing, (asyncio.StreamReader, asyncio.StreamWriter))
                or _type_name(type(thing)) == "SocketStream"
            ):
                transport = _field(thing, "_transport")
            module = _module(type(transport))
            if not _is(transport, asyncio.BaseTransport) and module != "uvloop.loop":
                continue
            if not module.startswith(("asyncio.", "uvloop.")):
                continue
            try:
                name = transport.get_extra_info("peername")
            except Exception:  # noqa: BLE001, S112  (uvloop raises where the transport has been closed)
                continue
            if type(name) is tuple and len(name) >= 2:
                host = f"[{name[0]}]" if ":" in str(name[0]) else name[0]
                return f"{host}:{name[1]}"
            if type(name) is str and name:
                return name
    return None


# --- the answer ----------------------------------------------------------------------------------------------------

_RUNNING: Final = Wait("running", moves=True, what="nothing: it runs or is about to")
_ENDED: Final = Wait("running", moves=True, what="nothing: it has ended")
_UNREADABLE: Final = Wait("unknown", moves=True, what="something that could not be read")


def _told(wait: Wait, task: object, frames: list[_Frame]) -> Wait:
    """Add whose wait it is and where."""
    file, line, function = wait.file, wait.line, wait.function
    if file is None:
        for frame in reversed(frames):
            if frame.place == _APPLICATION:
                file, line, function = frame.file, frame.line, frame.function
                break
    chain = (*[f"{frame.file}:{frame.line} {frame.function}" for frame in frames], *wait.chain)
    name = _task_name(task)
    return Wait(
        wait.kind,
        wait.moves,
        wait.what,
        file,
        line,
        function,
        name,
        wait.until,
        wait.peer,
        wait.holder,
        wait.of,
        chain,
    )


class _Look:
    """One question and what it has seen so far."""

    def __init__(self, holder_of: HolderOf | None) -> None:
        self.holder_of = holder_of
        self.answers: dict[int, Wait | None] = {}  # None: still being asked, so coming back to it is a cycle
        self.rests_on: list[tuple[object, object]] = []  # (the task, or None; the future)
        self.owners: list[object] = []  # the events, locks and queues that they belong to
        self.cycle = False
        self.root: object = None

    def at_task(self, task: object, place: int, depth: int = 0) -> Wait:
        """Judge a task. `place` decides for frames that are all asyncio's own."""
        if self.root is None:
            self.root = task
        if id(task) in self.answers:
            known = self.answers[id(task)]
            name = _task_name(task)
            if known is not None:
                return Wait(known.kind, known.moves, f"{known.what} (told above)", task=name)
            self.cycle = self.cycle or task is self.root
            return Wait(
                "task", moves=False, what=f"task '{name}', which in turn waits for this: a cycle", task=name
            )
        if depth >= DEPTH or len(self.answers) >= TASKS:
            return Wait("unknown", moves=True, what="more tasks than are looked at", task=_task_name(task))
        self.answers[id(task)] = None
        wait = self._task(task, place, depth)
        self.answers[id(task)] = wait
        return wait

    def _task(self, task: object, place: int, depth: int) -> Wait:
        if not _is(task, _TASKS):
            return Wait("unknown", moves=True, what="a task of a foreign kind")
        future = _waits_for(task)
        if _ended(task):
            return replace(_ENDED, task=_task_name(task))
        frames, lost = _walk(_coroutine(task))
        if future is None or not _pending(future):
            if future is None or _is(future, _FUTURES):
                return _told(_RUNNING, task, frames)
            return _told(Wait("unknown", moves=True, what="a future of a foreign kind"), task, frames)
        if not frames:
            # An eager task (3.12) that has not been started has no coroutine to look at.
            return _told(Wait("unknown", moves=True, what="something that has no frames"), task, frames)
        decisive, tail = _split(frames)
        if decisive is not None:
            place = decisive.place
        self.rests_on.append((task, future))
        wait = self._inner(frames, decisive, tail, future, place=_LIBRARY if lost else place, depth=depth)
        if _waits_for(task) is not future:
            return _told(
                _RUNNING, task, []
            )  # it went on while it was looked at: the frames are of two moments
        locals_ = [_referents(frame.awaitable) for frame in frames]
        when = _timer_in(frames, locals_, task)
        if when is None and not wait.moves:
            when = _hidden_timer(locals_, task)
        return _told(wait if when is None else _bounded(wait, when), task, frames)

    def _inner(
        self,
        frames: list[_Frame],
        decisive: _Frame | None,
        tail: list[_Frame],
        future: object,
        *,
        place: int,
        depth: int,
    ) -> Wait:
        """Judge what the innermost frames await."""
        for frame in reversed(frames):
            if frame.place == _APPLICATION:
                break
            if "/grpc/aio/" in frame.file:
                return Wait("call", moves=True, what=_PHRASES["call"])
        kind, at = _primitive(tail)
        last = frames[-1]
        if kind is None and last.place == _ASYNCIO and last.name in {"wait_for", "_cancel_and_wait"}:
            inner = self._waited_for(last, future, place, depth)
            if inner is not None:
                return inner
        if kind == "socket" or (decisive is not None and _is_socket(decisive)):
            peer = _peer([*tail, decisive] if decisive else tail)
            what = f"data from {peer}" if peer else "a socket"
            if at is not None and at.file.endswith("subprocess.py"):
                what = "a process"
            return Wait("socket", moves=True, what=what, peer=peer)
        if decisive is not None and kind is None and _anyio_group(decisive):
            group = next(
                (t for t in _referents(decisive.awaitable) if _type_name(type(t)) == "TaskGroup"), None
            )
            return self.at_many("task_group", _field(group, "_tasks"), place, depth)
        if at is None or kind == "thread":
            return self.at_future(future, place, depth, decisive if not tail else None)
        if kind == "sleep":
            return Wait("sleep", moves=True, what=_PHRASES["sleep"])
        if kind == "wait":
            return self.at_many(kind, _awaited_set(at, frames), place, depth)
        if kind == "task_group":
            return self.at_many(
                kind, _field(_own(at, _TASK_GROUP), "_tasks") if _TASK_GROUP else None, place, depth
            )
        return self._at_primitive(kind or "unknown", at, decisive, place, depth)

    def _at_primitive(self, kind: Kind, at: _Frame, decisive: _Frame | None, place: int, depth: int) -> Wait:
        classes = (
            asyncio.Queue
            if kind.startswith("queue")
            else tuple(cls for cls, sort in _LOCKS if cls and sort == kind)
        )
        owner = _own(at, classes) if classes else None
        if owner is not None:
            self.owners.append(owner)
        words = _words(decisive, kind) if decisive is not None and place in _PASSIVE else None
        label = f" `{words}`" if words else f" 0x{id(owner):x}" if owner is not None else ""
        what = _PHRASES.get(kind, "something").format(label)
        if place not in _PASSIVE:
            return Wait(kind, moves=True, what=f"{what}{_inside(decisive)}")
        if kind not in ("lock", "semaphore"):
            return Wait(kind, moves=kind in _MOVING, what=what)
        if kind == "lock" and owner is not None and _field(owner, "_locked") is False:
            return Wait(kind, moves=True, what=f"{what}, which is changing hands")
        holders = self._holders(owner)
        if not holders:
            return Wait(kind, moves=False, what=what)
        names = " and ".join(f"'{_task_name(holder)}'" for holder in holders[:3]) + ", ..." * (
            len(holders) > 3
        )
        name, many = _task_name(holders[0]), "s" * (len(holders) > 1)
        alive = [holder for holder in holders if not _ended(holder)]
        if not alive:
            ended = "has ended" if not many else "have ended"
            return Wait(
                kind,
                moves=False,
                what=f"{what}, never released by task{many} {names}, which {ended}",
                holder=name,
            )
        held = tuple(self.at_task(holder, place, depth + 1) for holder in alive[:LISTED])
        moves = any(wait.moves for wait in held) or len(alive) > LISTED
        return Wait(kind, moves=moves, what=f"{what} held by task{many} {names}", holder=name, of=held)

    def _holders(self, owner: object) -> list[Any]:
        found = self.holder_of(owner) if self.holder_of is not None and owner is not None else None
        if found is None:
            return []
        return [*found] if type(found) in (list, tuple, set, frozenset) else [found]

    def _waited_for(self, frame: _Frame, waiter: object, place: int, depth: int) -> Wait | None:
        """Judge what the `wait_for` of 3.10 and 3.11 waits for, in a task of its own, as if it were awaited directly."""
        inner = next((t for t in _referents(frame.awaitable) if _is(t, _FUTURES) and t is not waiter), None)
        if inner is None or waiter is None:
            return None
        if _is(inner, _TASKS):
            return self.at_task(inner, place, depth + 1)
        return self.at_future(inner, place, depth)

    def at_future(self, future: object, place: int, depth: int, frame: _Frame | None = None) -> Wait:
        """Judge a future. `frame` awaits it directly, if any does."""
        if _is(future, _TASKS):
            child = self.at_task(future, place, depth + 1)
            return Wait("task", moves=child.moves, what=f"task '{_task_name(future)}'", of=(child,))
        if not _pending(future):
            return _ENDED if _is(future, _FUTURES) else _UNREADABLE
        self.rests_on.append((None, future))
        if depth >= DEPTH:
            return Wait("unknown", moves=True, what="more futures than are looked at")
        if _is(future, _GATHERING):
            return self.at_many("gather", _field(future, "_children"), place, depth)
        for callback in _callbacks(future):
            if type(callback) is not types.FunctionType:
                continue
            name = callback.__qualname__
            if name == "_chain_future.<locals>._call_check_cancel":
                return Wait("thread", moves=True, what=_PHRASES["thread"])
            if name == "shield.<locals>._outer_done_callback":
                inner = next((t for t in _cells(callback) if _is(t, _FUTURES) and t is not future), None)
                if inner is None:
                    return Wait("unknown", moves=True, what="something shielded")
                wait = self.at_future(inner, place, depth + 1)
                return replace(wait, what=f"{wait.what} (shielded)")
        words = _words(frame, "future") if frame is not None and place in _PASSIVE else None
        what = _PHRASES["future"].format(f" `{words}`" if words else "")
        return Wait(
            "future",
            moves=place not in _PASSIVE,
            what=what if place in _PASSIVE else f"{what}{_inside(frame)}",
        )

    def at_many(self, kind: Kind, awaited: object, place: int, depth: int) -> Wait:
        """Judge a set of tasks and futures, any of which can end the wait or bring its end nearer."""
        if type(awaited) not in (set, frozenset, list, tuple):
            return Wait(kind, moves=True, what=f"{_PHRASES[kind]} that could not be read")
        pending = [one for one in list(awaited) if not _ended(one)]  # type: ignore[call-overload]
        listed: list[Wait] = []
        moves = not pending
        for one in pending:
            if len(listed) >= LISTED and moves:
                break
            wait = (
                self.at_task(one, place, depth + 1)
                if _is(one, _TASKS)
                else self.at_future(one, place, depth + 1)
            )
            moves = moves or wait.moves
            if len(listed) < LISTED:
                listed.append(wait)
        things = "task" if all(_is(one, _TASKS) for one in pending) else "future"
        what = f"{len(pending)} {things}{'s' * (len(pending) != 1)} ({kind.replace('_', ' ')})"
        return Wait(kind, moves=moves, what=what, of=tuple(listed))

    def confirmed(self, wait: Wait) -> Wait:
        """Return a passive answer if it held as a whole, and no timer of the loop is about to end it."""
        for task, future in self.rests_on:
            if not _pending(future) or (task is not None and _waits_for(task) is not future):
                return replace(
                    wait, moves=True, what=f"{wait.what}; something went on while it was looked at"
                )
        wanted = {id(one) for pair in (*self.rests_on, self.owners) for one in pair if one is not None}
        loops = {id(loop): loop for task, _ in self.rests_on if (loop := _field(task, "_loop")) is not None}
        for loop in loops.values():
            for name in ("_ready", "_scheduled"):  # uvloop shows neither
                handles = _field(loop, name)
                if type(handles) not in (list, deque) or len(handles) > TIMERS:
                    continue
                for handle in list(handles):
                    if _wakes(handle, wanted):
                        when = _when(handle)
                        return _bounded(wait, when) if when is not None else replace(wait, moves=True)
        if self.cycle:
            return replace(wait, what=f"{wait.what}: a cycle")
        return wait


def _is_socket(frame: _Frame) -> bool:
    file = frame.file.replace("\\", "/")
    return (
        "/anyio/" in file and frame.function.startswith(("SocketStream.", "UNIXSocketStream."))
    ) or file.startswith("uvloop/")


def _anyio_group(frame: _Frame) -> bool:
    return frame.function == "TaskGroup.__aexit__" and frame.file.replace("\\", "/").endswith(
        "/anyio/_backends/_asyncio.py"
    )


def _closed_over(generator: object) -> list[types.CellType]:
    return [thing for thing in _raw(generator) if type(thing) is types.CellType]


def _awaited_set(frame: _Frame, frames: list[_Frame]) -> Any:
    """Return what `asyncio.wait` or `asyncio.as_completed` waits for."""
    if frame.name == "_wait":
        return next(
            (thing for thing in _referents(frame.awaitable) if type(thing) in (set, frozenset, list)), None
        )
    for outer in (frame, *frames):
        for thing in _referents(outer.awaitable):
            if _type_name(type(thing)) == "_AsCompletedIterator":  # 3.13
                return _field(thing, "_todo")
            if type(thing) is types.GeneratorType and thing.__qualname__ == "as_completed":  # until 3.12
                return next((t for t in map(_content, _closed_over(thing)) if type(t) is set), None)
    return None


def _inside(frame: _Frame | None) -> str:
    package = _package(frame.file.replace("\\", "/")) if frame is not None else None
    return f" inside {package.partition('.')[0]}" if package else ""


def _bounded(wait: Wait, when: float) -> Wait:
    """Return a wait that a timer ends at `when`, if nothing ends it before."""
    until = _unix(when)
    if until is not None and wait.until is not None:
        until = min(until, wait.until)
    return replace(wait, moves=True, until=until, what=f"{wait.what}{_clock(until)}")
