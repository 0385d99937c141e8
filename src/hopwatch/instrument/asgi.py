"""Which request of ours does this HTTP request belong to? Served by Starlette or FastAPI, and acknowledged.

A request that carries a hop of ours becomes a hop: a webhook, unless the A2A SDK says that it is one of its own
requests. A request that carries none stays untouched, unless the SDK takes it: then it is a root.
"""

from __future__ import annotations

import functools
from asyncio import CancelledError, current_task
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, SpanContext, TraceFlags

from hopwatch import attributes as names
from hopwatch import process as hopwatch_process
from hopwatch import propagation, telemetry
from hopwatch.process import current, failed
from hopwatch.telemetry import HopSpan, begin

if TYPE_CHECKING:
    from hopwatch.instrument import Patches
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
        "status",
        "token",
    )

    def __init__(self, scope: Any) -> None:
        self.headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _READ
        }
        attempt = self.headers.pop(names.PROXY_ATTEMPT_HEADER, "")
        self.before = propagation.attempts_before("", attempt) if attempt else 0
        """How often the message was sent before, as gRPC's core or a proxy says: nobody tells the sender."""
        self.carrier: Carrier | None = propagation.incoming(self.headers)
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
        token = None
        if self.carrier is None:
            # The caller's own trace, unless a span of it is current already: the SDK's own spans (1.3.0) begin a new one.
            around = propagation.plain_context(self.headers)
            if around is not None and _trace_of(around) != _trace_of(None):
                token = otel_context.attach(around)
        entry = begin(
            hopwatch_process.here(),
            kind,
            name,
            None,
            carrier=self.carrier,
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

    def acknowledge(self, message: Any) -> None:
        """Add the acknowledgement to the start of the response."""
        self.status = message.get("status", 0)
        if self.entry is None and self.carrier is None:
            return
        value = propagation.acknowledgement(self.entry, self.carrier.cascade if self.carrier else "").encode()
        headers = list(message.get("headers") or ())
        if not any(name.lower() == b"traceresponse" for name, _ in headers):
            headers.append((names.TRACERESPONSE_HEADER.encode(), value))
        headers.append((names.ACKNOWLEDGEMENT_HEADER.encode(), value))
        if self.before:
            headers.append((names.ATTEMPTS_HEADER.encode(), str(self.before).encode()))
        message["headers"] = headers


def _trace_of(context: Any) -> int:
    return trace.get_current_span(context).get_span_context().trace_id


serving: ContextVar[Exchange | None] = ContextVar("hopwatch_exchange", default=None)
"""The HTTP request that the running code serves."""


def _calling(original: Any) -> Any:
    @functools.wraps(original)
    async def __call__(self: Any, scope: Any, receive: Any, send: Any) -> None:  # noqa: N807 - it stands for the application's own
        exchange = None
        if scope["type"] == "http":
            try:
                outer = serving.get()
                exchange = Exchange(scope)
                # An application mounted in another one is served within the same request. The next request of a connection may be
                # served in the context of the one before it, too (python/cpython#140947).
                if (
                    outer is not None
                    and not outer.answered
                    and (outer.carrier.hop if outer.carrier else "")
                    == (exchange.carrier.hop if exchange.carrier else "")
                ):
                    exchange = None
            except Exception:  # noqa: BLE001
                failed("asgi.request")
                exchange = None
        if exchange is None:
            await original(self, scope, receive, send)
            return
        await _serve(original, self, scope, receive, send, exchange)

    return __call__


async def _serve(original: Any, app: Any, scope: Any, receive: Any, send: Any, exchange: Exchange) -> None:
    async def acknowledging(message: Any) -> None:
        if message["type"] == "http.response.start":
            try:
                exchange.acknowledge(message)
            except Exception:  # noqa: BLE001
                failed("asgi.acknowledge")
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            exchange.answered = True
        await send(message)

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
        await original(app, scope, receive, acknowledging)
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


def instrument(patches: Patches, module: Any) -> None:
    """Wrap `starlette.applications.Starlette`, which FastAPI inherits from."""
    telemetry.owes_answer = owes_answer
    patches.replace(module.Starlette, "__call__", _calling)
