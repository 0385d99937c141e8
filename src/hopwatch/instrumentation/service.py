"""Is this task work, or a service loop that lives as long as its owner?

Doubt counts as work: a task that is not known here holds its cascade open until it ends. Declared are the loops of
the SDK and of common libraries (the table), what `HOPWATCH_SERVICE_LOOPS` names, and what the application marks with
`hopwatch.service`.
"""

from __future__ import annotations

import gc
import inspect
import sys
from fnmatch import fnmatchcase
from types import CellType, CodeType, FrameType
from typing import Any, Final

from hopwatch.process import failed

KNOWN: Final = (
    # a2a-sdk 1.3.0: parked between requests; what they do for a request is accounted for by its events.
    "a2a.server.agent_execution.active_task:ActiveTask._run_producer",
    "a2a.server.agent_execution.active_task:ActiveTask._run_consumer",
    "a2a.server.agent_execution.active_task:ActiveTask._release_when_idle",
    "a2a.server.agent_execution.active_task_registry:ActiveTaskRegistry._remove_task",
    "a2a.server.events.event_queue_v2:EventQueueSource._dispatch_loop",
    "a2a.server.cluster.database_event_stream:*",
    # The engine of 0.3, and of the legacy handler of 1.x: it awaits the execution, and ends with it.
    "a2a.server.request_handlers.default_request_handler:*._cleanup_producer",
    # agent-client-protocol 0.8 to 0.12: what lives as long as a connection. Its messages have tasks of their own, or are told of by their hops.
    "acp.connection:Connection._receive_loop",
    "acp.connection:Connection.main_loop",
    "acp.agent.connection:AgentSideConnection.listen",
    "acp.core:run_agent",
    "acp.task.sender:MessageSender._loop",
    "acp.task.dispatcher:DefaultMessageDispatcher._run",
    "acp.http.server:ConnectionState._pump",
    "acp.http.client:_HttpStreamTransport._consume_stream",
    "acp.ws.server:_pump_outbound",
    "websockets.asyncio.connection:Connection.keepalive",
    # Servers and clients: polling, pings, pools.
    "uvicorn.*:*.serve",
    "uvicorn.*:*.main_loop",
    "uvicorn.lifespan.*:*",
    # A request over a connection that was used before. Its task is made in the context of the request before it where that one
    # resumed reading (python/cpython#140947), or was answered only now; what the new one is, its own headers say.
    "uvicorn.protocols.*:*.run_asgi",
    "sse_starlette.*:_shutdown_watcher",
    "hypercorn.*:*_lifespan*",
    "grpc.*:*poll*",
    "grpc._server:_serve",
    "grpc.*:_actor*",
    "aiohttp.*:*_close_wait*",
    "aiohttp.web_protocol:RequestHandler.start",
    "aiosqlite.core:_connection_worker_thread",
    "aiosqlite.core:Connection.run",
    "anyio._backends._asyncio:WorkerThread.*",
    "asyncio.*:*.serve_forever",
    # Up to 3.11 a thread waits for each child process; from 3.12 on none does. What a child process does is not counted.
    "asyncio.unix_events:ThreadedChildWatcher._do_waitpid",
    "concurrent.futures.thread:_worker",
    "concurrent.futures.process:*",
    "multiprocessing.queues:Queue._feed",
    # Not all of these packages: their decorators and instrumentations make coroutines of the application's own.
    "opentelemetry.sdk.*:*",
    "opentelemetry.exporter.*:*",
    "sentry_sdk.*:*._target",
    "sentry_sdk.*:*._thread",
    "sentry_sdk.*:*._flush_loop",
    "sentry_sdk.profiler.*:*.run",
    "hopwatch.*:Telemetry._*",
    "redis.asyncio.*:*listen*",
    # MCP, with 1.30.0 and 2.3.0: what lives as long as a client's session. Who calls a tool waits for the answer in its own task.
    "mcp.client.stdio:stdio_client.<locals>.stdout_reader",
    "mcp.client.stdio:stdio_client.<locals>.stdin_writer",
    "mcp.client.sse:sse_client.<locals>.sse_reader",
    "mcp.client.sse:sse_client.<locals>.post_writer",
    "mcp.client.streamable_http:StreamableHTTPTransport.post_writer",
    "mcp.client.streamable_http:StreamableHTTPTransport.handle_get_stream",
    "mcp.shared.session:BaseSession._receive_loop",
    "mcp.shared.jsonrpc_dispatcher:JSONRPCDispatcher.run",
    # LiteLLM 1.106.2 (tried by hand, for what it needs conflicts with the constraints here): it hands logging to tasks of its own.
    "litellm.litellm_core_utils.logging_worker:LoggingWorker._worker_loop",
)
"""Patterns of `module:qualname`, as `fnmatch` has them."""

IN_CYTHON: Final = frozenset(
    {
        "AioServer._server_main_loop",
        "AioServer._request_call",
        "AioServer._request_registered_call",
    }
)
"""Those of grpc.aio, which is written in Cython: its coroutines tell neither their module nor, by their code, their name."""

_declared: dict[int, CodeType] = {}
_patterns: tuple[str, ...] = ()
"""Those of `HOPWATCH_SERVICE_LOOPS`."""
_answers: dict[tuple[int, str], tuple[CodeType, bool]] = {}
work: Final[dict[int, Any]] = {}
"""What runs functions that are known to be work, by the id of their code object: the code, or their name before Python 3.11."""
MAX_JUDGED: Final = 8192
"""Functions whose answer is remembered; programs that make code as they go must not fill the memory."""


def configure(patterns: tuple[str, ...]) -> None:
    """Take the patterns of `HOPWATCH_SERVICE_LOOPS` besides the table."""
    global _patterns  # noqa: PLW0603
    _patterns = patterns
    forget()


def declare(code: CodeType) -> None:
    """Mark the function of this code object as a service loop."""
    # By identity: two functions in different files may have code objects that are equal.
    _declared[id(code)] = code
    forget()


def forget() -> None:
    """Judge every function anew."""
    work.clear()
    _answers.clear()
    behind.clear()


behind: Final[dict[tuple[int, str], tuple[Any, bool]]] = {}
"""By the code of a wrapper and the name that it goes by: the code, and whether a service loop stands behind it."""


def is_service(code: Any, module: Any, qualname: str) -> bool:
    """Whether a coroutine or thread function with this code is a service loop.

    Args:
        code: its code object. The answer is remembered by its identity and the name, for the hash of a code object is
            worked out anew each time, from all of it, and functions behind one decorator share one code object.
        module: the name of its module.
        qualname: its qualified name.
    """
    known = _answers.get((id(code), qualname))
    if known is not None:
        return known[1]
    name = f"{module}:{qualname}"
    # What a decorator makes goes by the name of what it decorates, and stands in the decorator's module: that is no loop of
    # that module. Who wraps a loop is seen through by whoever asks.
    itself = not isinstance(code, CodeType) or own_name(code, qualname) or _of_cython(code)
    patterns = (*KNOWN, *_patterns) if itself else _patterns
    answer = id(code) in _declared or any(fnmatchcase(name, pattern) for pattern in patterns)
    # What is remembered is kept, so that its id belongs to nothing else; an object of the application must not be.
    if isinstance(code, CodeType) and len(_answers) < MAX_JUDGED:
        _answers[id(code), qualname] = (code, answer)
        if not answer and own_name(code, qualname):
            work[id(code)] = code if _NAMED else qualname
    return answer


_NAMED: Final = sys.version_info >= (3, 11)
"""Whether code objects know their qualified name."""


def _of_cython(code: CodeType) -> bool:
    """Whether Cython made the function: its code is nobody else's, and knows its bare name only (as of grpcio 1.85)."""
    return code.co_filename.endswith((".pyx", ".pxi"))


def own_name(code: CodeType, qualname: str) -> bool:
    """Whether a function goes by the name that its code was written under, so that no other one shares that code."""
    if _NAMED:
        return bool(code.co_qualname == qualname)  # type: ignore[attr-defined,unused-ignore]
    return code.co_name == qualname.rpartition(".")[2]


_WRAPPERS: Final = {
    # opentelemetry-instrumentation-asyncio (0.66b1) puts every coroutine into one of its own.
    "opentelemetry.instrumentation.asyncio": "coro",
    # a2a-sdk 1.3.0 does so with its own telemetry, also where that is switched off.
    "a2a.utils.telemetry": "func",
    "hopwatch.instrumentation.a2a": "wrapped",
    "hopwatch.instrumentation.a2a_events": "original",
    "hopwatch.instrumentation.a2a_results": "original",
    "hopwatch.instrumentation.acp": "wrapped",
}
"""Modules whose coroutines stand for another one, and the local variable that holds it."""
_ANYIO_HANDLES: Final = "anyio._core._tasks"
"""Where anyio (4.16) has the coroutine that runs what its task groups are given: without looking behind it all of them had one name."""


def judge(coro: Any) -> tuple[bool, str]:
    """Whether a coroutine is a service loop, and its name: looked for behind what others, and we, wrap around it."""
    name = getattr(coro, "__qualname__", None) or type(coro).__name__
    try:
        for _ in range(4):
            code = getattr(coro, "cr_code", None)
            if code is None:
                return False, name
            name = coro.__qualname__
            if name in IN_CYTHON and "/_cygrpc/" in code.co_filename:
                return True, name
            # Many functions share the code of what is wrapped around them; the wrapper's name is theirs.
            known = behind.get((id(code), name))
            if known is not None:
                return known[1], name
            frame = coro.cr_frame
            if frame is None:  # it has ended, or is being collected
                answered = _answers.get((id(code), name))
                return answered is not None and answered[1], name
            inner = _within(coro, frame)
            if inner is None:
                module = frame.f_globals.get("__name__", "")
                return is_service(code, module, name) or _is_decorated_service(coro, code, name), name
            if not hasattr(inner, "cr_frame"):
                answer = is_service(inspect.unwrap(inner).__code__, inner.__module__, inner.__qualname__)
                if len(behind) < MAX_JUDGED:
                    behind[id(code), name] = (code, answer)
                return answer, name
            coro = inner
    except Exception:  # noqa: BLE001
        failed("service")
    return False, name


def pattern(coro: Any) -> str:
    """`module:qualname` of the function behind a coroutine, as `HOPWATCH_SERVICE_LOOPS` names it; empty where Python does not tell."""
    try:
        for _ in range(4):
            frame = getattr(coro, "cr_frame", None)
            if frame is None:
                break
            inner = _within(coro, frame)
            if inner is None:
                return f"{frame.f_globals.get('__name__', '')}:{coro.__qualname__}"
            if not hasattr(inner, "cr_frame"):
                return f"{inner.__module__}:{inner.__qualname__}"
            coro = inner
    except Exception:  # noqa: BLE001
        failed("service")
    return ""


def _within(coro: Any, frame: Any) -> Any:
    """The coroutine that this one was wrapped around, or the function that it is about to call; None where it is no wrapper."""
    module = frame.f_globals.get("__name__", "")
    if module == _ANYIO_HANDLES:
        return _handled(coro)
    wrapped = _WRAPPERS.get(module)
    return frame.f_locals.get(wrapped) if wrapped is not None else None


def _locals(coro: Any) -> list[Any]:
    """What the frame of a coroutine refers to. Not `f_locals`, which up to Python 3.12 keeps what is in it alive as long as the frame."""
    found = gc.get_referents(coro)
    if sys.version_info < (3, 11):
        found = gc.get_referents(*(each for each in found if isinstance(each, FrameType)))
    return found


def _handled(coro: Any) -> Any:
    """The coroutine that the application gave to a task group of anyio (4.16), which runs it by a handle."""
    for each in _locals(coro):
        if type(each).__module__ == _ANYIO_HANDLES:
            return getattr(each, "_coro", None)
    return None


def _is_decorated_service(coro: Any, code: Any, name: str) -> bool:
    """Whether a decorator's coroutine, which goes by the name of what it decorates, closes over a service loop.

    The answer is not remembered where it is yes: all that the decorator is put around shares its code.
    """
    if own_name(code, name):
        return False
    for each in _locals(coro):
        value = each.cell_contents if isinstance(each, CellType) else each
        if getattr(value, "__qualname__", None) == name and callable(value):
            inner = getattr(inspect.unwrap(value), "__code__", None)
            if inner is not None and is_service(inner, value.__module__, name):
                return True
    return False
