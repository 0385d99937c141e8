"""Is this task work, or a service loop that lives as long as its owner?

Doubt counts as work: a task that is not known here holds its cascade open until it ends. Declared are the loops of
the SDK and of common libraries (the table), what `HOPWATCH_SERVICE_LOOPS` names, and what the application marks with
`hopwatch.service`.
"""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from types import CodeType
from typing import Any, Final

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
