"""Which request of ours does this HTTP request belong to? Served by an application of ASGI, and acknowledged.

A request is seen where the server calls the application (uvicorn, hypercorn), whatever that is made with, and under any
other server where Starlette or FastAPI is called. Whoever sees it first has it.

A request that carries a hop of ours becomes a hop: a webhook, unless the A2A SDK says that it is one of its own
requests. A request that carries none stays untouched, unless the SDK takes it: then it is a root.
"""

from __future__ import annotations

import contextlib
import functools
from asyncio import CancelledError, current_task
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, SpanContext, TraceFlags

from hopwatch import attributes as names
from hopwatch import hop_waits, propagation
from hopwatch import process as hopwatch_process
from hopwatch.process import current, failed
from hopwatch.telemetry import HopSpan, begin

if TYPE_CHECKING:
    from hopwatch.instrumentation import Patches
    from hopwatch.ledger import Entry, Kind
    from hopwatch.telemetry import Carrier


_READ: Final = frozenset({b"traceparent", b"tracestate", names.PROXY_ATTEMPT_HEADER.encode()})


class Exchange:
    """One HTTP request that is being served."""

    __slots__ = (
        "__weakref__",
        "answered",
        "before",
        "carrier",
        "entry",
        "headers",
        "over",
        "path",
        "raw",
        "status",
        "token",
    )

    def __init__(self, scope: Any) -> None:
        self.raw: Any = scope["headers"]
        """Which list of headers it was read from: an application within another one is called with the same.

        It is kept until the request is over, for nothing else says that a list is the same: ids are used again.
        """
        self.headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _READ
        }
        attempt = self.headers.pop(names.PROXY_ATTEMPT_HEADER, "")
        self.before = propagation.attempts_before("", attempt) if attempt else 0
        """How often the message was sent before, as gRPC's core or a proxy says: nobody tells the sender."""
        self.carrier: Carrier | None = propagation.incoming(self.headers)
        if self.carrier is not None and self.carrier.mark == names.TRANSPORT_MARK:
            # How a message of the Agent Client Protocol goes over HTTP, or how the answers come: the message itself carries its hop.
            self.carrier = None
        self.path: str = scope.get("path", "")
        self.entry: Entry | None = None
        self.status = 0
        self.answered = False
        """Whether the last of the response has been given to the server: a request that begins now is another one."""
        self.over = False
        """Whether the response is out: what begins later is no part of this request."""
        self.token: Any = None

    def open(self, kind: Kind, name: str, attributes: dict[str, Any]) -> Entry | None:
        """Open the hop of this request and make it the current one; the end of the request ends it."""
        around = None
        if self.carrier is None:
            # The caller's own trace, unless a span of it is current already: the SDK's own spans (1.3.0) begin a new one.
            around = propagation.plain_context(self.headers)
            if around is not None and _trace_of(around) == _trace_of(None):
                around = None
        return self._begin(kind, name, attributes, carrier=self.carrier, around=around)

    def _begin(
        self,
        kind: Kind,
        name: str,
        attributes: dict[str, Any],
        *,
        parent: Entry | None = None,
        carrier: Carrier | None,
        around: Any,
    ) -> Entry | None:
        """Begin the hop, with a link to who sent what is served, and make it the current one.

        Args:
            kind: as `begin` has it, as the next two.
            name: the same.
            attributes: the same.
            parent: the hop of this process that it belongs below, if there is one.
            carrier: or the one of another process.
            around: the OpenTelemetry context that it begins in, where that is not the current one.
        """
        task = current_task()
        links = []
        if self.carrier is not None:
            sender = SpanContext(
                int(self.carrier.cascade, 16),
                int(self.carrier.hop, 16),
                is_remote=True,
                trace_flags=TraceFlags(1),
            )
            links.append(Link(sender))
        token = otel_context.attach(around) if around is not None else None
        entry = begin(
            hopwatch_process.here(),
            kind,
            name,
            parent,
            carrier=carrier,
            attributes=attributes,
            runner=ref(task) if task is not None else None,
            links=links,
        )
        if token is not None:
            otel_context.detach(token)
        self.entry = entry
        if entry is not None:
            entry.instance_of = ref(self)
            current.set(entry)
            if isinstance(entry.span, HopSpan):
                otel_context.attach(entry.span.around())
        return entry

    def close(self, error: BaseException | None) -> None:
        """End the hop as the response, or the lack of one, says."""
        self.answered = self.over = True
        self.raw = None
        entry = self.entry
        if entry is None:
            return
        if self.status >= 300:
            entry.set(names.HTTP_STATUS_CODE, self.status)
        if isinstance(error, CancelledError):
            entry.finish("cancelled", "the server gave it up, or the caller went away")
        elif error is not None:
            entry.finish("failed", type(error).__name__)
        elif self.status >= 400:
            entry.finish("failed", f"answered {self.status}")
        else:
            entry.finish()

    def acknowledge(self, message: Any) -> Any:
        """Acknowledge the request in the start of its response.

        Args:
            message: the start of the response; it and its headers are the application's, which may send them again.

        Returns:
            The message to send in its place; the same where there is nothing to say.
        """
        self.status = message.get("status", 0)
        if self.entry is None and self.carrier is None:
            return message
        value = propagation.acknowledgement(self.entry, self.carrier.cascade if self.carrier else "").encode()
        headers = list(message.get("headers") or ())
        if not any(name.lower() == b"traceresponse" for name, _ in headers):
            headers.append((names.TRACERESPONSE_HEADER.encode(), value))
        headers.append((names.ACKNOWLEDGEMENT_HEADER.encode(), value))
        if self.before:
            headers.append((names.ATTEMPTS_HEADER.encode(), str(self.before).encode()))
        return {**message, "headers": headers}


def _trace_of(context: Any) -> int:
    return trace.get_current_span(context).get_span_context().trace_id


serving: ContextVar[Exchange | None] = ContextVar("hopwatch_exchange", default=None)
"""The HTTP request that the running code serves."""


def exchange_of(scope: Any) -> Exchange | None:
    """The exchange that begins with this request; None where it is part of the one that is being served."""
    outer = serving.get()
    inside = outer is not None and not outer.answered
    if inside and outer is not None and outer.raw is scope["headers"]:
        return None
    exchange = Exchange(scope)
    # An application mounted in another one is served within the same request. The next request of a connection may be
    # served in the context of the one before it, too (python/cpython#140947).
    if (
        inside
        and outer is not None
        and (outer.carrier.hop if outer.carrier else "") == (exchange.carrier.hop if exchange.carrier else "")
    ):
        return None
    return exchange


async def _call(call: Any, scope: Any, receive: Any, send: Any, *more: Any, apart: bool = False) -> Any:
    """Call an application, or what hands on to it, within the exchange that begins with that.

    Args:
        call: the application.
        scope: as in ASGI, as the next two.
        receive: the same.
        send: the same.
        more: what the application is called with besides.
        apart: whether what `send` does is the server's own business, and none of the request's.

    Returns:
        What the application returns: uvicorn closes the connection of one that returns anything.
    """
    exchange = None
    if scope["type"] == "http":
        try:
            exchange = exchange_of(scope)
        except Exception:  # noqa: BLE001
            failed("asgi.request")
    if exchange is None:
        return await call(scope, receive, send, *more)
    begun = exchange

    async def acknowledging(message: Any) -> Any:
        if message["type"] == "http.response.start":
            try:
                message = begun.acknowledge(message)
            except Exception:  # noqa: BLE001
                failed("asgi.acknowledge")
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            begun.answered = True
        if not apart:
            return await send(message)
        hop = current.set(None)
        try:
            return await send(message)
        finally:
            with contextlib.suppress(
                ValueError
            ):  # a coroutine that was collected is closed in another context
                current.reset(hop)

    return await serve(exchange, scope, lambda: call(scope, receive, acknowledging, *more))


async def serve(exchange: Exchange, scope: Any, answer: Any) -> Any:
    """Run what answers a request with its hop as the current one.

    Args:
        exchange: the request.
        scope: what ASGI says of it: `method` and `path` are read.
        answer: a function without arguments, whose coroutine answers it.

    Returns:
        What that coroutine returns.
    """
    outer = serving.set(exchange)
    hop = current.set(None)
    around = otel_context.attach(otel_context.get_current())
    error: BaseException | None = None
    try:
        if exchange.carrier is not None:
            try:
                if exchange.carrier.push:
                    exchange.open("webhook", f"process {exchange.path}", _webhook_attributes(scope))
                else:
                    # Unless the SDK says in a moment that it is one of its own requests.
                    entry = exchange.open("request", f"{scope.get('method', '')} {exchange.path}", {})
                    if entry is not None:
                        entry.kind = "webhook"
            except Exception:  # noqa: BLE001
                failed("asgi.open")
        return await answer()
    except BaseException as raised:
        error = raised
        raise
    finally:
        try:
            exchange.close(error)
            if (
                serving.get() is exchange
            ):  # otherwise it is closed in another context, where nothing of ours is set
                otel_context.detach(around)
                current.reset(hop)
                serving.reset(outer)
        except Exception:  # noqa: BLE001
            failed("asgi.close")
        error = None  # its traceback holds this frame: nobody shall need a collection of cycles


def owes_answer(entry: Entry) -> bool:
    """Tell whether nothing of the answer to a request has been handed to the server so far."""
    exchange = entry.instance_of() if entry.instance_of is not None else None
    return isinstance(exchange, Exchange) and not exchange.status and not exchange.over


def _webhook_attributes(scope: Any) -> dict[str, Any]:
    return {
        names.MESSAGING_SYSTEM: "a2a",
        names.MESSAGING_OPERATION_NAME: "push",
        names.MESSAGING_OPERATION_TYPE: "process",
        names.MESSAGING_DESTINATION_NAME: scope.get("path", ""),
    }


# Where requests are seen -------------------------------------------------------------------------------------------


def _calling(original: Any) -> Any:
    @functools.wraps(original)
    async def __call__(self: Any, scope: Any, receive: Any, send: Any, *more: Any) -> Any:  # noqa: N807 - it stands for the application's own
        return await _call(functools.partial(original, self), scope, receive, send, *more)

    return __call__


def _calling_apart(original: Any) -> Any:
    """Stand for hypercorn's call of an application.

    Its `send` (0.18) runs the server's own code in the task of the request: there it puts what nobody takes any more into the
    queue of that request, and makes the task that waits for the connection's next one.
    """

    @functools.wraps(original)
    async def __call__(self: Any, scope: Any, receive: Any, send: Any, *more: Any) -> Any:  # noqa: N807 - it stands for the server's own
        return await _call(functools.partial(original, self), scope, receive, send, *more, apart=True)

    return __call__


def _running(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Have uvicorn run one request; the coroutine stays its own, by whose name it is known."""
    if len(args) != 1 or kwargs:
        return wrapped(*args, **kwargs)
    app = args[0]

    async def called(scope: Any, receive: Any, send: Any) -> Any:
        return await _call(app, scope, receive, send)

    return wrapped(called)


def _beginning_span(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Have the middleware of OpenTelemetry begin its span as it would without us.

    It makes one of another kind (INTERNAL), below the span that is current, where it finds one: that is how it knows that somebody
    else serves this request already. Ours is none of a server's, so it is out of sight for that moment.
    """
    try:
        exchange = serving.get()
        entry = exchange.entry if exchange is not None and not exchange.over else None
        if (
            entry is not None
            and isinstance(entry.span, HopSpan)
            and trace.get_current_span() is entry.span.span
        ):
            # What it attaches it detaches; what is attached here goes with the request.
            otel_context.attach(trace.set_span_in_context(trace.INVALID_SPAN, otel_context.get_current()))
    except Exception:  # noqa: BLE001
        failed("asgi.contrib")
    return wrapped(*args, **kwargs)


def instrument(patches: Patches) -> None:
    """Wrap the servers' calls of applications, and `starlette.applications.Starlette`, which FastAPI inherits from."""
    hop_waits.owes_answer = owes_answer
    for name, hook in (
        ("starlette.applications", lambda module: patches.replace(module.Starlette, "__call__", _calling)),
        (
            "hypercorn.app_wrappers",
            lambda module: patches.replace(module.ASGIWrapper, "__call__", _calling_apart),
        ),
        *(
            (
                f"uvicorn.protocols.http.{parser}_impl",
                lambda module: patches.wrap(module.RequestResponseCycle, "run_asgi", _running),
            )
            for parser in ("h11", "httptools")
        ),
        (
            "opentelemetry.instrumentation.asgi",
            lambda module: patches.wrap(module, "_start_internal_or_server_span", _beginning_span),
        ),
    ):
        patches.when_imported(name, hook)
