"""Which request of ours does this call of gRPC belong to? Served by the SDK's `GrpcHandler`, and acknowledged.

`CompatGrpcHandler`, for agents that speak the older protocol, is served alike. The acknowledgement is trailing metadata, also of a stream.
Initial metadata would tell more and earlier, but it can be sent only once: until the first event has left the outermost interceptor,
the application may send its own, or set the compression.
"""

from __future__ import annotations

import inspect
from asyncio import CancelledError
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context

from hopwatch import attributes as names
from hopwatch import hop_waits, propagation
from hopwatch.instrumentation import asgi
from hopwatch.instrumentation.a2a_grpc import CHANGED
from hopwatch.process import current, failed
from hopwatch.telemetry import HopSpan

if TYPE_CHECKING:
    from hopwatch.instrumentation import Patches
    from hopwatch.ledger import Entry, Kind

STREAMS: Final = frozenset({"SendStreamingMessage", "SubscribeToTask", "TaskSubscription"})
OTHERS: Final = (
    "ListTasks", "GetExtendedAgentCard", "GetAgentCard", "GetTaskPushNotificationConfig", "CreateTaskPushNotificationConfig",
    "ListTaskPushNotificationConfigs", "ListTaskPushNotificationConfig", "DeleteTaskPushNotificationConfig",
)  # fmt: skip
"""Methods of one release or another besides those in the table of `a2a_seams`. They are no hops unless a cascade calls them."""
_NAMES: Final = {
    "TaskSubscription": "SubscribeToTask",
    "GetAgentCard": "GetExtendedAgentCard",
    "ListTaskPushNotificationConfig": "ListTaskPushNotificationConfigs",
}
"""A2A's names of methods by those of the older protocol, where they differ."""

_ATTEMPTS: Final = "grpc-previous-rpc-attempts"
"""Metadata of a call that gRPC's core tries again, by a policy of the channel; only the server gets to see it."""
_OURS: Final = frozenset({names.ACKNOWLEDGEMENT_HEADER, names.ATTEMPTS_HEADER})


class Served(asgi.Exchange):
    """One call of gRPC that is being served; as a block, what runs inside serves it."""

    __slots__ = ("_around", "_context", "_hop", "_outer", "name", "opened")

    def __init__(self, name: str, context: Any) -> None:
        found: dict[str, list[str]] = {}
        for key, value in context.invocation_metadata() or ():
            if key in CHANGED or key in (_ATTEMPTS, names.PROXY_ATTEMPT_HEADER):
                found.setdefault(key, []).append(str(value))
        headers = [(key.encode(), ",".join(values).encode()) for key, values in found.items()]
        super().__init__({"headers": headers, "path": name})
        self.raw = None  # that list is nobody else's
        self.name = name
        self._context = context
        self.before = propagation.attempts_before(
            found.get(_ATTEMPTS, [""])[-1], found.get(names.PROXY_ATTEMPT_HEADER, [""])[-1]
        )
        self.opened = False

    def __enter__(self) -> None:
        try:
            self._enter()
        except Exception:  # noqa: BLE001
            failed("grpc.serve")

    def _enter(self) -> None:
        self._outer = asgi.serving.set(self)
        self._hop = current.set(self.entry)
        span = self.entry.span if self.entry is not None else None
        around = span.around() if isinstance(span, HopSpan) else otel_context.get_current()
        self._around = otel_context.attach(around)
        if not self.opened:
            self.opened = True
            if self.carrier is not None:
                attributes: dict[str, Any] = {names.A2A_METHOD_NAME: self.name}
                if self.name in STREAMS:
                    attributes[names.STREAMING] = True
                self.open("request", self.name, attributes)

    def __exit__(self, *_: object) -> None:
        # In another context (a coroutine that was collected is closed in one) nothing of ours is set.
        if asgi.serving.get() is not self:
            return
        try:
            otel_context.detach(self._around)
            current.reset(self._hop)
            asgi.serving.reset(self._outer)
        except Exception:  # noqa: BLE001 - as where it is stepped in another context than it was entered in
            failed("grpc.serve")

    def open(self, kind: Kind, name: str, attributes: dict[str, Any]) -> Entry | None:
        """Open the hop, and have the end of the call acknowledge it, however it ends."""
        entry = super().open(kind, name, attributes)
        self.acknowledge_at_end()
        return entry

    def _answer(self) -> tuple[tuple[str, str], ...]:
        value = propagation.acknowledgement(self.entry, self.carrier.cascade if self.carrier else "")
        answer = ((names.TRACERESPONSE_HEADER, value), (names.ACKNOWLEDGEMENT_HEADER, value))
        return (*answer, (names.ATTEMPTS_HEADER, str(self.before))) if self.before else answer

    def acknowledge_at_end(self) -> None:
        """Add the acknowledgement to the trailing metadata, beside what the application has there."""
        if self.entry is None and self.carrier is None:
            return
        try:
            there = tuple(self._context.trailing_metadata() or ())
            answer = self._answer()
            # An agent may hand on what it got of another one: that one's hop is not ours.
            kept = [item for item in there if item[0] not in _OURS]
            if len(there) - len(kept) != len(answer) - 1 or answer[1] not in there:
                others = any(key == names.TRACERESPONSE_HEADER for key, _ in kept)
                self._context.set_trailing_metadata((*kept, *answer[others:]))
        except Exception:  # noqa: BLE001
            failed("grpc.acknowledge")

    def close(self, error: BaseException | None) -> None:
        """End the hop as the status of the call, or the lack of one, says."""
        self.answered = self.over = True
        entry = self.entry
        if entry is None:
            return
        entry.set(names.RPC_SYSTEM, "grpc")
        if isinstance(error, (CancelledError, GeneratorExit)):
            entry.finish("cancelled", "the server gave it up, or the caller went away")
            return
        code = getattr(self._context, "code", None)
        status = code() if code is not None else None  # None where the application has set none
        said = getattr(status, "name", "OK")
        if error is not None and said == "OK":
            said = "UNKNOWN"  # what gRPC answers for an exception that it does not know
        if said != "OK":
            entry.set(names.RPC_STATUS_CODE, said)
            unforeseen = said == "UNKNOWN" and error is not None
            entry.finish("failed", type(error).__name__ if unforeseen else f"answered {said}")
        else:
            entry.finish()


def _begin(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Served | None:
    try:
        return Served(name, args[1] if len(args) > 1 else kwargs["context"])
    except Exception:  # noqa: BLE001
        failed("grpc.request")
        return None


def _end(served: Served, error: BaseException | None) -> None:
    try:
        served.acknowledge_at_end()  # again, where the application has put its own in the place of ours
        served.close(error)
    except Exception:  # noqa: BLE001
        failed("grpc.close")


def _serving(name: str) -> Any:
    async def serve(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        served = _begin(name, args, kwargs)
        if served is None:
            return await wrapped(*args, **kwargs)
        error: BaseException | None = None
        try:
            with served:
                return await wrapped(*args, **kwargs)
        except BaseException as raised:
            error = raised
            raise
        finally:
            _end(served, error)
            error = None  # its traceback holds this frame: nobody shall need a collection of cycles

    return serve


def _serving_stream(name: str) -> Any:
    async def serve(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        served = _begin(name, args, kwargs)
        events = wrapped(*args, **kwargs)
        if served is None:
            async for event in events:
                yield event
            return
        error: BaseException | None = None
        first = True
        try:
            while True:
                with served:
                    try:
                        event = await events.__anext__()
                    except StopAsyncIteration:
                        return
                if first:
                    first = False
                    served.status = 1  # it owes no answer any more
                yield event
        except BaseException as raised:
            error = raised
            raise
        finally:
            try:
                with served:
                    await events.aclose()
            finally:
                _end(served, error)
                error = None

    return serve


def serve(patches: Patches, handler: Any, method: str) -> bool:
    """Wrap one method of one of the SDK's handlers for gRPC, of this protocol or the older one.

    Args:
        patches: keeps what was there.
        handler: the class.
        method: its name there.

    Returns:
        Whether this release has it.
    """
    hop_waits.owes_answer = asgi.owes_answer
    streams = method in STREAMS
    found = getattr(handler, method, None)
    # What the generated servicer has for a method that nobody serves is a plain function, and gRPC calls it in a thread.
    if not (inspect.isasyncgenfunction if streams else inspect.iscoroutinefunction)(found):
        return False
    name = _NAMES.get(method, method)
    return patches.wrap(handler, method, _serving_stream(name) if streams else _serving(name))


def serve_others(patches: Patches, handler: Any) -> None:
    """Wrap what a handler has besides the methods in the table."""
    for method in OTHERS:
        serve(patches, handler, method)
