"""Is this task work, or a service loop that lives as long as its owner?

Doubt counts as work: a task that is not known here holds its cascade open until it ends. Declared are the loops of
the SDK and of common libraries (the table), what `HOPWATCH_SERVICE_LOOPS` names, and what the application marks with
`hopwatch.service`.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import CodeType

KNOWN: Final = (
    # a2a-sdk 1.3.0: parked between requests; what they do for a request is accounted for by its events.
    "a2a.server.agent_execution.active_task:ActiveTask._run_producer",
    "a2a.server.agent_execution.active_task:ActiveTask._run_consumer",
    "a2a.server.agent_execution.active_task:ActiveTask._release_when_idle",
    "a2a.server.agent_execution.active_task_registry:ActiveTaskRegistry._remove_task",
    "a2a.server.events.event_queue_v2:EventQueueSource._dispatch_loop",
    "a2a.server.cluster.database_event_stream:*",
    # Servers and clients: polling, pings, pools.
    "uvicorn.*:*.serve",
    "uvicorn.*:*.main_loop",
    "uvicorn.lifespan.*:*",
    "hypercorn.*:*_lifespan*",
    "grpc.*:*poll*",
    "grpc.*:_actor*",
    "aiohttp.*:*_close_wait*",
    "aiosqlite.*:*",
    "anyio._backends._asyncio:WorkerThread.*",
    "asyncio.*:*.serve_forever",
    "concurrent.futures.thread:_worker",
    "concurrent.futures.process:*",
    "opentelemetry.*:*",
    "sentry_sdk.*:*",
    "hopwatch.*:Telemetry._*",
    "redis.asyncio.*:*listen*",
)
"""Patterns of `module:qualname`, as `fnmatch` has them."""

_declared: set[CodeType] = set()
_patterns: tuple[str, ...] = KNOWN
_judged: dict[int, tuple[CodeType, bool]] = {}
MAX_JUDGED: Final = 8192
"""Functions whose answer is remembered; programs that make code as they go must not fill the memory."""


def configure(patterns: tuple[str, ...]) -> None:
    """Add the patterns of `HOPWATCH_SERVICE_LOOPS` to the table."""
    global _patterns  # noqa: PLW0603
    _patterns = (*KNOWN, *patterns)
    _judged.clear()


def declare(code: CodeType) -> None:
    """Mark the function of this code object as a service loop."""
    _declared.add(code)
    _judged.clear()


def is_service(code: Any, module: Any, qualname: str, *, shared: bool = False) -> bool:
    """Whether a coroutine or thread function with this code is a service loop.

    Args:
        code: its code object. The answer is remembered by its identity, for the hash of a code object is worked out
            anew each time, from all of it.
        module: the name of its module.
        qualname: its qualified name.
        shared: many functions have this code (they stand behind one wrapper), so that the answer is not remembered.
    """
    known = _judged.get(id(code))
    if known is not None and not shared:
        return known[1]
    name = f"{module}:{qualname}"
    answer = code in _declared or any(fnmatchcase(name, pattern) for pattern in _patterns)
    if not shared and len(_judged) < MAX_JUDGED:
        _judged[id(code)] = (code, answer)  # the code is kept: its id belongs to nothing else then
    return answer


judged = _judged.get
"""The remembered answer by the id of a code object, as `(code, is a service loop)`, or None: the short path."""
