"""Which frames stand between a task and what it waits for, whose code are they, and which primitive do they belong to?"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import sysconfig
import threading
import types
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hopwatch.waits.objects import (
    FUTURES,
    field_of,
    is_a,
    is_chain_link,
    is_slot,
    mro,
    namespace_of,
    referents,
    type_name,
)

if TYPE_CHECKING:
    from hopwatch.waits.wait import Kind

FRAMES: Final = 64
"""How many awaitables of one chain are followed."""
_SENDERS: Final = frozenset({"send", "stream", "_dispatch"})


ASYNCIO, CLEAR, APPLICATION, SDK, LIBRARY = range(5)
PASSIVE: Final = frozenset({APPLICATION, SDK})

_STDLIB: Final = tuple(
    {
        f"{spelled.replace(chr(92), '/').rstrip('/')}/"
        for name in ("stdlib", "platstdlib")
        if (path := sysconfig.get_paths().get(name))
        for spelled in (path, os.path.realpath(path))
    }
    | {f"{os.path.dirname(os.path.dirname(asyncio.__file__))}/".replace("\\", "/")}  # noqa: PTH120
)
_HOPWATCH: Final = f"{os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}/".replace("\\", "/")  # noqa: PTH100, PTH120


def package_of(path: str) -> str | None:
    """Return the dotted name of an installed module, None for a file that is not installed."""
    for folder in ("/site-packages/", "/dist-packages/"):
        _, found, inside = path.rpartition(folder)
        if found:
            return inside.removesuffix(".py").replace("/", ".")
    return None


@functools.lru_cache(maxsize=4096)
def place_of(filename: str) -> int:
    """Tell how far a frame of this file decides what a primitive below it means."""
    if is_application(filename):
        return APPLICATION
    path = filename.replace("\\", "/")
    if path.startswith(_HOPWATCH):
        return CLEAR  # our own wrappers stand for what they wrap
    package = package_of(path)
    if package is None:
        inside = next((path[len(root) :] for root in _STDLIB if path.startswith(root)), "")
        if inside.startswith("asyncio/"):
            return ASYNCIO
        # An exit stack or `asynccontextmanager` awaits for whoever wrote what is in it.
        return CLEAR if inside in {"contextlib.py", "types.py", "functools.py"} else LIBRARY
    first = package.partition(".")[0]
    if first in {"culsans", "aiologic"}:
        return (
            ASYNCIO  # a2a-sdk 1.x has its queues from culsans, which is built on aiologic, before Python 3.13
        )
    return SDK if first in {"a2a", "acp"} else LIBRARY


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
    package = package_of(path)
    if package is None:
        return not path.startswith(_STDLIB)
    names = (name.strip() for name in os.environ.get("HOPWATCH_APPLICATION", "").split(","))
    return any(name and f"{package}.".startswith(f"{name}.") for name in names)


# What stands between two frames of those who await one another, and is neither's doing.
_MACHINERY: Final = ("/hopwatch/instrumentation/", "/opentelemetry/instrumentation/", "/wrapt/")


@functools.lru_cache(maxsize=4096)
def _is_told(filename: str) -> bool:
    path = filename.replace("\\", "/")
    return not (any(folder in path for folder in _MACHINERY) or path.endswith("/a2a/utils/telemetry.py"))


class Frame(NamedTuple):
    """One step of a chain: where it stands, what it is called, whose it is.

    Attributes:
        file: File of its code.
        line: Line at which it waits.
        function: Qualified name of its function.
        name: Name of its code, which nobody can set.
        place: How far it decides what a primitive below it means.
        awaitable: The coroutine or generator.
        closed: Its coroutine has been closed, so that `line` is where it was written.
    """

    file: str
    line: int
    function: str
    name: str
    place: int
    awaitable: Any
    closed: bool = False


def told(frames: list[Frame]) -> tuple[str, ...]:
    """Return the chain as people read it: without instrumentation, which judges nothing and hides who calls whom."""
    return tuple([f"{frame.file}:{frame.line} {frame.function}" for frame in frames if _is_told(frame.file)])


# These stand between a frame and what it awaits and have no attribute that tells what.
_THROUGH: Final = frozenset(
    {"coroutine_wrapper", "async_generator_asend", "async_generator_athrow", "anext_awaitable"}
)


def _is_cython(cls: type) -> bool:
    # Coroutines of Cython (grpc.aio, uvloop) have a type for each module; what they share is this slot.
    return any(is_slot(namespace_of(base).get("cr_await")) for base in mro(cls))


def _continues(cls: type) -> bool:
    return is_chain_link(cls) or type_name(cls) in _THROUGH or _is_cython(cls)


def walk(awaitable: Any) -> tuple[list[Frame], bool]:
    """Follow a chain of awaitables inwards. Return its frames, and whether it was lost before its end."""
    frames: list[Frame] = []
    for _ in range(2 * FRAMES):
        cls = type(awaitable)
        following: Any
        if cls is types.CoroutineType:
            frame, following = awaitable.cr_frame, awaitable.cr_await
        elif cls is types.GeneratorType:
            frame, following = awaitable.gi_frame, awaitable.gi_yieldfrom
        elif cls is types.AsyncGeneratorType:
            frame, following = awaitable.ag_frame, awaitable.ag_await
        elif type_name(cls) == "FutureIter" or is_a(awaitable, FUTURES):
            return frames, False
        elif type_name(cls) in _THROUGH:
            awaitable = next(
                (thing for thing in gc.get_referents(awaitable) if _continues(type(thing))), None
            )
            if awaitable is None:
                return frames, True
            continue
        elif _is_cython(cls):
            code, following = field_of(awaitable, "cr_code"), field_of(awaitable, "cr_await")
            file = code.co_filename if type(code) is types.CodeType else "cython"
            name = code.co_name if type(code) is types.CodeType else "coroutine"
            frames.append(Frame(file, 0, name, name, LIBRARY, awaitable))
            frame = None
        else:
            return frames, True
        if frame is not None:
            if len(frames) == FRAMES:
                return frames, True
            code = frame.f_code
            file = code.co_filename
            frames.append(
                Frame(
                    file, frame.f_lineno or 0, awaitable.__qualname__, code.co_name, place_of(file), awaitable
                )
            )
        elif following is None and not frames and cls is types.CoroutineType:
            # In a cyclic collection the coroutine is closed before its task is reported destroyed: what is left is
            # where it was written.
            code = awaitable.cr_code
            file = code.co_filename
            frames.append(
                Frame(
                    file,
                    code.co_firstlineno,
                    awaitable.__qualname__,
                    code.co_name,
                    place_of(file),
                    awaitable,
                    closed=True,
                )
            )
            return frames, True
        if following is None:
            # A generator may yield the future itself. A coroutine that waits always awaits something: if it does not
            # tell what, it was caught between two steps.
            return frames, cls is not types.GeneratorType
        awaitable = following
    return frames, True


def split(frames: list[Frame]) -> tuple[Frame | None, list[Frame]]:
    """Return the innermost frame outside asyncio, and the frames of asyncio below it."""
    for index in range(len(frames) - 1, -1, -1):
        if frames[index].place > CLEAR:
            return frames[index], frames[index + 1 :]
    return None, frames


LOCKS: Final[tuple[tuple[Any, Kind], ...]] = (
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


def own(frame: Frame, cls: Any) -> Any:
    """Return what a frame of a known method has as `self`: its first local of that class."""
    return next((thing for thing in referents(frame.awaitable) if is_a(thing, cls)), None)


def own_named(frame: Frame, name: str) -> Any:
    """Return what a frame of a method of an SDK has as `self`, by the name of its class, for nothing is imported here."""
    return next((thing for thing in referents(frame.awaitable) if type_name(type(thing)) == name), None)


def is_anyio_group(frame: Frame) -> bool:
    """Tell whether this frame waits for the tasks of anyio's task group."""
    return frame.function == "TaskGroup.__aexit__" and frame.file.replace("\\", "/").endswith(
        "/anyio/_backends/_asyncio.py"
    )


def is_sending(frame: Frame) -> bool:
    """Tell whether this frame is hopwatch's own, around the sending of a message."""
    return frame.name in _SENDERS and frame.file.replace("\\", "/").endswith(
        ("/hopwatch/instrumentation/a2a.py", "/hopwatch/instrumentation/acp.py")
    )


def worker_of_anyio(frame: Frame) -> threading.Thread | None:
    """Return the thread that does the job which this frame of anyio waits for, if it is that one."""
    if frame.name != "run_sync_in_worker_thread" or not frame.file.replace("\\", "/").endswith(
        "/anyio/_backends/_asyncio.py"
    ):
        return None
    return own(frame, threading.Thread)  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=4096)
def _folder_and_file(filename: str) -> tuple[str, str]:
    folder, _, file = filename.replace("\\", "/").rpartition("/")
    return folder, file


def primitive(tail: list[Frame]) -> tuple[Kind | None, Frame | None]:
    """Tell which primitive the frames of asyncio in `tail` belong to, and in which of them it is."""
    kind: Kind | None = None
    at: Frame | None = None
    for frame in tail:
        if frame.place != ASYNCIO:
            continue
        name = frame.name
        folder, file = _folder_and_file(frame.file)
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
            for cls, sort in LOCKS:
                if cls and owner == cls.__name__:
                    kind, at = sort, frame
            if kind is None and owner in {"BoundedSemaphore", "_ContextManagerMixin"}:
                kind, at = "semaphore", frame
    return kind, at
