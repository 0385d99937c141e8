"""What of the A2A SDK is wrapped, from which release to which, and what of it does an installed release not have?

The table says nothing of how: that is `a2a`'s business. It is read without importing the SDK, so `hopwatch doctor` can tell what is
missing from the sources of the release that is installed.
"""

from __future__ import annotations

import functools
import re
from importlib import metadata, util
from pathlib import Path
from typing import Final, NamedTuple

DISTRIBUTION: Final = "a2a-sdk"
Release = tuple[int, ...]

FIRST: Final[Release] = (0, 3, 22)
"""The oldest release that is tested."""
TESTED: Final = ("0.3.22", "0.3.26", "1.0.0", "1.1.5", "1.2.3", "1.3.0")
"""The releases that `make matrix` runs the stories of `tests/sdk` with."""
V1: Final[Release] = (1,)
ENDLESS: Final[Release] = (1 << 30,)


class Seam(NamedTuple):
    """One method of the SDK that is wrapped.

    Attributes:
        hop: which hop needs it: `send`, `request`, `execution` or `push`.
        module: where it is.
        owner: the class that has it.
        name: its own name.
        use: what stands for it (`a2a.A2AInstrumentor._seam`).
        since: the first release that has it.
        before: the first release that does not have it any more.
    """

    hop: str
    module: str
    owner: str
    name: str
    use: str
    since: Release = FIRST
    before: Release = ENDLESS

    def is_due(self, release: Release) -> bool:
        """Whether a release ought to have it; one that is newer than all that are known ought to have what the newest has."""
        # One that is older than all that are tested is wrapped as far as it goes.
        return not release or ((self.since == FIRST or self.since <= release) and release < self.before)

    def __str__(self) -> str:
        return f"{self.module}.{self.owner}.{self.name}"


def _transport(
    module: str, owner: str, subscribe: str, since: Release = FIRST, before: Release = ENDLESS
) -> tuple[Seam, ...]:
    return (
        *(
            Seam("send", module, owner, name, "send", since, before)
            for name in ("send_message", "get_task", "cancel_task")
        ),
        *(
            Seam("send", module, owner, name, "stream", since, before)
            for name in ("send_message_streaming", subscribe)
        ),
    )


def _handler(
    module: str, owner: str, subscribe: str, since: Release = FIRST, before: Release = ENDLESS
) -> tuple[Seam, ...]:
    return (
        Seam("execution", module, owner, "__init__", "handler", since, before),
        *(
            Seam("request", module, owner, name, "serve", since, before)
            for name in ("on_message_send", "on_get_task", "on_cancel_task")
        ),
        *(
            Seam("request", module, owner, name, "serve_stream", since, before)
            for name in ("on_message_send_stream", subscribe)
        ),
    )


def _grpc_handler(
    module: str, owner: str, subscribe: str, since: Release = FIRST, before: Release = ENDLESS
) -> tuple[Seam, ...]:
    return tuple(
        Seam("request", module, owner, name, "grpc", since, before)
        for name in ("SendMessage", "SendStreamingMessage", subscribe, "GetTask", "CancelTask")
    )


_CLIENT: Final = "a2a.client.transports"
_COMPAT: Final = "a2a.compat.v0_3"
_HANDLERS: Final = "a2a.server.request_handlers"
_EVENTS: Final = "a2a.server.events"
_GRPC: Final = f"{_HANDLERS}.grpc_handler"
_ACTIVE: Final = "a2a.server.agent_execution.active_task"


def _results_queue(owner: str, since: Release = FIRST, before: Release = ENDLESS) -> tuple[Seam, ...]:
    return tuple(
        Seam("execution", f"{_EVENTS}.event_queue", owner, name, f"results_{use}", since, before)
        for name, use in (
            ("__init__", "queue"),
            ("enqueue_event", "enqueue"),
            ("task_done", "task_done"),
            ("close", "close"),
        )
    )


SEAMS: Final[tuple[Seam, ...]] = (
    # Messages sent.
    *_transport(f"{_CLIENT}.jsonrpc", "JsonRpcTransport", "resubscribe", before=V1),
    *_transport(f"{_CLIENT}.jsonrpc", "JsonRpcTransport", "subscribe", V1),
    *_transport(f"{_CLIENT}.rest", "RestTransport", "resubscribe", before=V1),
    *_transport(f"{_CLIENT}.rest", "RestTransport", "subscribe", V1),
    *_transport(f"{_COMPAT}.jsonrpc_transport", "CompatJsonRpcTransport", "subscribe", V1),
    *_transport(f"{_COMPAT}.rest_transport", "CompatRestTransport", "subscribe", V1),
    *_transport(f"{_CLIENT}.grpc", "GrpcTransport", "resubscribe", before=V1),
    *_transport(f"{_CLIENT}.grpc", "GrpcTransport", "subscribe", V1),
    *_transport(f"{_COMPAT}.grpc_transport", "CompatGrpcTransport", "subscribe", V1),
    # Requests served, and by whom.
    *_handler(f"{_HANDLERS}.default_request_handler", "DefaultRequestHandler", "on_resubscribe_to_task", before=V1),
    *_handler(f"{_HANDLERS}.default_request_handler", "LegacyRequestHandler", "on_subscribe_to_task", V1),
    *_handler(f"{_HANDLERS}.default_request_handler_v2", "DefaultRequestHandlerV2", "on_subscribe_to_task", V1),
    *_grpc_handler(_GRPC, "GrpcHandler", "TaskSubscription", before=V1),
    *_grpc_handler(_GRPC, "GrpcHandler", "SubscribeToTask", V1),
    *_grpc_handler(f"{_COMPAT}.grpc_handler", "CompatGrpcHandler", "TaskSubscription", V1),
    # Which events of an execution have been stored: the engine of 0.3, and of the legacy handler of 1.x.
    *_results_queue("EventQueue", before=V1),
    *_results_queue("EventQueueLegacy", V1),
    Seam("execution", f"{_EVENTS}.event_consumer", "EventConsumer", "consume_all", "results_consume"),
    # The same for the engine of 1.x.
    Seam("execution", _ACTIVE, "ActiveTask", "__init__", "active_task", V1),
    Seam("execution", _ACTIVE, "ActiveTask", "_run_consumer", "events_consumer", V1),
    Seam("execution", _ACTIVE, "EventConsumer", "_process_event", "events_process", (1, 1)),
    Seam("execution", f"{_EVENTS}.event_queue_v2", "EventQueueSource", "enqueue_event", "events_enqueue", V1),
    Seam("execution", f"{_EVENTS}.event_queue_v2", "EventQueueSource", "dequeue_event", "events_dequeue", V1, (1, 1)),
    Seam("execution", f"{_EVENTS}.event_queue_v2", "EventQueueSource", "task_done", "events_task_done", V1, (1, 1)),
    Seam("execution", f"{_EVENTS}.event_queue_v2", "EventQueueSource", "tap", "streams_tap", V1),
    Seam("execution", f"{_EVENTS}.event_queue_v2", "EventQueueSink", "close", "streams_leave", V1),
    # The state of a task.
    Seam("execution", "a2a.server.tasks.task_manager", "TaskManager", "_save_task", "save"),
    # Pushes.
    Seam("push", "a2a.server.tasks.base_push_notification_sender", "BasePushNotificationSender", "_dispatch_notification", "push"),
)  # fmt: skip

CALLS: Final[tuple[Seam, ...]] = (
    Seam("send", "grpc.aio._channel", "Channel", "__init__", "channel"),
    Seam("send", "grpc.aio._channel", "UnaryUnaryMultiCallable", "__call__", "calling"),
    Seam("send", "grpc.aio._channel", "UnaryStreamMultiCallable", "__call__", "calling"),
    Seam("send", "grpc.aio._call", "UnaryUnaryCall", "__init__", "made"),
    Seam("send", "grpc.aio._call", "UnaryStreamCall", "__init__", "made"),
)
"""What of grpcio is wrapped, in every release of it (`a2a_grpc`)."""


def modules() -> list[str]:
    """The modules that have any of it, each once."""
    return list(dict.fromkeys(seam.module for seam in SEAMS))


def release_of(version: str | None) -> Release:
    """The numbers at the beginning of a version: (1, 3, 0) of `1.3.0rc1`; empty where there are none."""
    found = re.match(r"\d+(?:\.\d+)*", version or "")
    return tuple(int(each) for each in found[0].split(".")) if found else ()


@functools.lru_cache(maxsize=1)
def installed() -> Release:
    """The release that this Python has; empty where that is not known, and then every seam is looked for."""
    try:
        return release_of(metadata.version(DISTRIBUTION))
    except Exception:  # noqa: BLE001 - broken metadata is no reason to instrument nothing
        return ()


def folder(package: str = "a2a") -> Path | None:
    """Where the sources lie that this Python would import; None where there are none. Nothing is imported.

    Args:
        package: the SDK's, or `grpc`.
    """
    found = util.find_spec(package)
    places = list(found.submodule_search_locations or ()) if found is not None else []
    return Path(places[0]).parent if places else None


def missing(folder: Path, release: Release, seams: tuple[Seam, ...] = SEAMS) -> list[Seam]:
    """The seams that a release ought to have and has not, read from its sources.

    Args:
        folder: where the package lies.
        release: its release; empty if each of the seams is due.
        seams: those of the SDK, or `CALLS`; those of another library lie beside the library's own folder.
    """
    out: list[Seam] = []
    trees: dict[str, dict[str, set[str]]] = {}
    for seam in seams:
        if not seam.is_due(release):
            continue
        if seam.module not in trees:
            trees[seam.module] = _classes(folder.joinpath(*seam.module.split(".")).with_suffix(".py"))
        if seam.name not in trees[seam.module].get(seam.owner, ()):
            out.append(seam)
    return out


def _classes(path: Path) -> dict[str, set[str]]:
    """The methods of each class of a file; nothing where it cannot be read."""
    import ast  # noqa: PLC0415 - an instrumented application needs none

    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return {}
    return {
        node.name: {
            each.name for each in node.body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
