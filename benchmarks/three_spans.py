"""What do three spans a message cost by themselves? Runs a program with one plain OpenTelemetry span each around send, request and execution.

    opentelemetry-instrument python benchmarks/three_spans.py agent.py [argument ...]

The floor of what any instrumentation can cost that makes three spans a message, each with as many attributes as a hop.
"""

from __future__ import annotations

import functools
import runpy
import sys
from pathlib import Path

from opentelemetry import trace

ATTRIBUTES = {f"benchmark.attribute.{number}": f"value {number}" for number in range(12)}


def spanned(name: str, kind: trace.SpanKind, method: object) -> object:
    """The method, with a span around each call."""
    tracer = trace.get_tracer("three spans")

    @functools.wraps(method)
    async def call(*args: object, **kwargs: object) -> object:
        with tracer.start_as_current_span(name, kind=kind, attributes=ATTRIBUTES):
            return await method(*args, **kwargs)

    return call


def spanning_the_executor(made: object, executors: set[type]) -> object:
    """A handler's `__init__`, after which its executor's `execute` has a span around it; once for each class."""

    @functools.wraps(made)
    def with_executor(self: object, *args: object, **kwargs: object) -> None:
        made(self, *args, **kwargs)
        owner = type(self.agent_executor)
        if owner not in executors:
            executors.add(owner)
            owner.execute = spanned("execution", trace.SpanKind.INTERNAL, owner.execute)

    return with_executor


def span_everything() -> None:
    """Put a span around each send, request and execution of the SDK."""
    from a2a.client.transports.grpc import GrpcTransport
    from a2a.client.transports.jsonrpc import JsonRpcTransport
    from a2a.client.transports.rest import RestTransport
    from a2a.server.request_handlers import DefaultRequestHandler, LegacyRequestHandler

    for transport in (JsonRpcTransport, RestTransport, GrpcTransport):
        transport.send_message = spanned("send", trace.SpanKind.CLIENT, transport.send_message)
    executors: set[type] = set()
    for handler in (DefaultRequestHandler, LegacyRequestHandler):
        handler.on_message_send = spanned("request", trace.SpanKind.SERVER, handler.on_message_send)
        handler.__init__ = spanning_the_executor(handler.__init__, executors)


def main() -> None:
    span_everything()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
