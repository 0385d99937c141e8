"""How many instructions does accounting take? Counted by valgrind, so that a busy machine gives the same figures as an idle one.

    python benchmarks/instructions.py [--case task|lock|queue|message ...]

Each variant runs twice in processes of its own, with few and with many repeats; the difference is what one takes. Of a message client and server are
in one process, and spans are encoded and thrown away. Needs valgrind (a package of the system); about a minute a case.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import asyncio_hooks

HOOKS = {
    "task": asyncio_hooks.tasks,
    "lock": asyncio_hooks.locks,
    "queue": asyncio_hooks.queues,
}
VARIANTS = {
    "task": ("bare", "a done callback that does nothing", "outside a hop", "inside a hop"),
    "lock": ("bare", "outside a hop", "inside a hop"),
    "queue": ("bare", "outside a hop", "inside a hop"),
    "message": ("bare", "bare, as installed", "three plain spans", "hopwatch"),
}
REPEATS = {"task": (2_000, 6_000), "lock": (5_000, 20_000), "queue": (2_000, 8_000), "message": (30, 90)}


def provide():
    """Set up the SDK with an exporter that encodes what it is given and throws it away."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans):
            encode_spans(spans).SerializeToString()
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    trace.set_tracer_provider(provider)


async def hook(case, variant, count):
    """Repeat what a hook is in, bare, outside or inside a cascade."""
    if variant == "inside a hop":
        from hopwatch import cascade

        with cascade("benchmark"):
            await HOOKS[case](count)
    elif variant.startswith("a done callback"):
        for _ in range(count):
            task = asyncio.create_task(asyncio_hooks.nothing())
            task.add_done_callback(id)
            await task
    else:
        await HOOKS[case](count)


async def messages(count):
    """Send blocking messages to an agent in this process, over JSON-RPC on loopback."""
    import socket

    import httpx
    import uvicorn
    from a2a.client import ClientConfig, ClientFactory
    from a2a.helpers import new_text_message
    from a2a.server.request_handlers import DefaultRequestHandler
    from a2a.server.routes import create_jsonrpc_routes
    from a2a.server.tasks import InMemoryTaskStore
    from a2a.types.a2a_pb2 import Role, SendMessageRequest
    from messages_agent import Executor, card_of
    from starlette.applications import Starlette

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        card = card_of(listening.getsockname()[1])
        handler = DefaultRequestHandler(
            agent_executor=Executor(), task_store=InMemoryTaskStore(), agent_card=card
        )
        application = Starlette(routes=create_jsonrpc_routes(handler, "/"))
        server = uvicorn.Server(uvicorn.Config(application, log_level="warning"))
        serving = asyncio.create_task(server.serve([listening]))
        while not server.started:  # noqa: ASYNC110 - it has no event for it
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient(timeout=60) as http:
            peer = ClientFactory(ClientConfig(httpx_client=http, streaming=False)).create(card)
            for number in range(count):
                request = SendMessageRequest(message=new_text_message(f"do {number}", role=Role.ROLE_USER))
                async for _ in peer.send_message(request):
                    pass
        server.should_exit = True
        await serving


def run(case, variant, count):
    """Repeat one variant of one case in this process."""
    if not variant.startswith(("bare", "a done callback")):
        provide()
    hopwatched = variant in ("outside a hop", "inside a hop", "hopwatch")
    if variant == "three plain spans":
        from three_spans import span_everything

        span_everything()
    if hopwatched:
        from hopwatch.instrumentation.asyncio import AsyncioInstrumentor

        AsyncioInstrumentor().instrument()
    if case == "message" and hopwatched:
        from hopwatch.instrumentation.a2a import A2AInstrumentor

        A2AInstrumentor().instrument()
    gc.collect()
    gc.disable()
    asyncio.run(messages(count) if case == "message" else hook(case, variant, count))


def counted(case, variant, count):
    """The instructions that a whole process takes for so many repeats."""
    environment = {**os.environ, "PYTHONHASHSEED": "0", "HOPWATCH_BLACKBOX": "off"}
    environment.pop("OTEL_INSTRUMENTATION_A2A_SDK_ENABLED", None)
    if variant != "bare, as installed":
        environment["OTEL_INSTRUMENTATION_A2A_SDK_ENABLED"] = "false"
    done = subprocess.run(
        ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null",
         sys.executable, __file__, "--run", case, variant, str(count)],
        env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if found is None or done.returncode:
        sys.exit(f"{case}, {variant}: {done.stderr[-2000:]}")
    return int(found[1].replace(",", ""))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", choices=VARIANTS)
    parser.add_argument("--run", nargs=3, metavar=("CASE", "VARIANT", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        case, variant, count = options.run
        run(case, variant, int(count))
        return
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed: it is a package of the system, as in apt-get install valgrind")
    print(
        f"Python {sys.version.split()[0]}: instructions, and ratio to bare\n\n| | | instructions | |\n|---|---|---|---|"
    )
    for case in options.case or VARIANTS:
        few, many = REPEATS[case]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [
                (variant, *(pool.submit(counted, case, variant, count) for count in (few, many)))
                for variant in VARIANTS[case]
            ]
            taken = {variant: (more.result() - less.result()) / (many - few) for variant, less, more in jobs}
        for variant, each in taken.items():
            print(f"| {case} | {variant} | {each:,.0f} | {each / taken['bare']:.2f} x |", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
