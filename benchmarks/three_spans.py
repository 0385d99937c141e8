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


def main() -> None:
    from a2a.client.transports.grpc import GrpcTransport
    from a2a.client.transports.jsonrpc import JsonRpcTransport
    from a2a.client.transports.rest import RestTransport
    from a2a.server.request_handlers.default_request_handler_v2 import DefaultRequestHandlerV2

    for transport in (JsonRpcTransport, RestTransport, GrpcTransport):
        transport.send_message = spanned("send", trace.SpanKind.CLIENT, transport.send_message)
    DefaultRequestHandlerV2.on_message_send = spanned(
        "request", trace.SpanKind.SERVER, DefaultRequestHandlerV2.on_message_send
    )
    made = DefaultRequestHandlerV2.__init__

    @functools.wraps(made)
    def with_executor(self: object, *args: object, **kwargs: object) -> None:
        made(self, *args, **kwargs)
        owner = type(self.agent_executor)
        owner.execute = spanned("execution", trace.SpanKind.INTERNAL, owner.execute)

    DefaultRequestHandlerV2.__init__ = with_executor
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
