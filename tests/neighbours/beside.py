"""What do others tell of the same cascade, without hopwatch and with it, instrumented before it and after it? Run as a program.

`python beside.py httpx starlette ...` prints, as JSON, what each of three runs of one story told: without hopwatch, with hopwatch
instrumented first, and with hopwatch instrumented last.
"""

import asyncio
import contextlib
import http.server
import json
import logging
import os
import re
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import aiohttp
import fastapi
import httpx
import requests
import starlette.applications
import urllib3
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes
from a2a.server.tasks import (
    BasePushNotificationSender,
    InMemoryPushNotificationConfigStore,
    InMemoryTaskStore,
)
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from starlette.responses import JSONResponse
from starlette.routing import Route

logger = logging.getLogger("story")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
VOLATILE = {"thread.id", "thread.name", "code.line.number", "code.lineno", "net.peer.port", "client.port"}
"""Attributes that differ from run to run by themselves."""


class Contrib:
    """Instrumentors of OpenTelemetry's own, all that are named; switched on and off again."""

    def __init__(self, *which):
        from importlib.metadata import entry_points

        found = {each.name: each for each in entry_points(group="opentelemetry_instrumentor")}
        self.which = [found[name].load()() for name in which if name != "asgi"]
        self.asgi = "asgi" in which

    def on(self):
        for each in self.which:
            each.instrument()

    def off(self):
        for each in reversed(self.which):
            each.uninstrument()

    def around(self, app):
        """The application, in what is put around it by hand."""
        if not self.asgi:
            return app
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        return OpenTelemetryMiddleware(app)


class Logfire(Contrib):
    """Logfire's own configuration and instrumentations, as its documentation has them."""

    def __init__(self):
        super().__init__("httpx", "fastapi", "starlette", "requests")

    def on(self):
        import logfire

        logfire.instrument_httpx()
        logfire.instrument_requests()

    def around(self, app):
        import logfire

        if isinstance(app, fastapi.FastAPI):
            logfire.instrument_fastapi(app)
        else:
            logfire.instrument_starlette(app)
        return app


class Nobody(Contrib):
    """Nobody that is switched on and off: what there is is there from the start."""

    def __init__(self):
        super().__init__()


# The story -------------------------------------------------------------------------------------------------------


class Service(http.server.BaseHTTPRequestHandler):
    """A service that nobody instruments."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.heard.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def service():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.heard = []
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    try:
        yield server
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


async def work():
    logger.warning("working")
    await asyncio.sleep(0)


async def story(beside):
    """A user asks the agent front, which asks services and the agent back, and is pushed to by it."""
    from test_a2a import Executor, answers, card_of, client, complete, request, served

    pushed = asyncio.Queue()
    names = {}

    async def hook(asked):
        pushed.put_nowait(await asked.json())
        return JSONResponse({})

    with service() as plain:
        price = f"http://127.0.0.1:{plain.server_address[1]}/price"

        async def front(updater):
            await updater.start_work()
            await asyncio.create_task(work())
            thread = threading.Thread(target=logger.warning, args=("in a thread",))
            thread.start()
            await asyncio.to_thread(thread.join)
            await asyncio.to_thread(requests.get, price, timeout=60)
            await asyncio.to_thread(urllib3.PoolManager().request, "GET", price)
            async with aiohttp.ClientSession() as session, session.get(price) as answer:
                await answer.read()
            async with httpx.AsyncClient(timeout=60) as http:
                await http.get(price)
            async with client(names["back"], timeout=60) as peer:
                await answers(peer, request(webhook=f"{names['front']}/hook"))
            await updater.complete()

        async with contextlib.AsyncExitStack() as stack:
            for name, does in (("back", complete), ("front", front)):
                http = await stack.enter_async_context(httpx.AsyncClient(timeout=60))
                configs = InMemoryPushNotificationConfigStore()
                handler = DefaultRequestHandler(
                    agent_executor=Executor(does),
                    task_store=InMemoryTaskStore(),
                    agent_card=card_of("http://127.0.0.1:1", "JSONRPC"),
                    push_config_store=configs,
                    push_sender=BasePushNotificationSender(http, configs),
                )
                stack.push_async_callback(handler.aclose)
                routes = [Route("/hook", hook, methods=["POST"]), *create_jsonrpc_routes(handler, "/")]
                if name == "back":
                    app = fastapi.FastAPI()
                    app.router.routes.extend(routes)
                else:
                    app = starlette.applications.Starlette(routes=routes)
                names[name] = await stack.enter_async_context(served(beside.around(app)))
            async with client(names["front"], timeout=60) as peer:
                await answers(peer, request())
            for _ in range(4):
                await asyncio.wait_for(pushed.get(), 60)
                pushed.task_done()
            from test_a2a import over

            await over()
        names["service"] = price.rpartition("/")[0]
        return {url.rpartition(":")[2]: name for name, url in names.items()}, plain.heard


# What was told ---------------------------------------------------------------------------------------------------


def plainly(value, ports):
    """A value without what differs from run to run."""
    text = UUID.sub("UUID", str(value))
    for port, name in ports.items():
        text = text.replace(port, f"<{name}>")
    return text


def theirs(spans, ports):
    """The spans that are not ours: each as words, with the nearest one of theirs above it; ours are looked through."""
    by_id = {span.context.span_id: span for span in spans}

    def words(span):
        says = {
            name: plainly(value, ports)
            for name, value in (span.attributes or {}).items()
            if name not in VOLATILE
        }
        scope = span.instrumentation_scope.name
        events = sorted(event.name for event in span.events)
        return f"{scope} {span.kind.name} {plainly(span.name, ports)} {span.status.status_code.name} {events} {json.dumps(says, sort_keys=True)}"

    told = []
    for span in spans:
        if span.instrumentation_scope.name == "hopwatch":
            continue
        above = span.parent and by_id.get(span.parent.span_id)
        while above is not None and above.instrumentation_scope.name == "hopwatch":
            above = above.parent and by_id.get(above.parent.span_id)
        told.append([words(span), words(above) if above is not None else None])
    return sorted(told, key=str)


def main():
    which = sys.argv[1:]
    if which == ["logfire"]:
        import logfire

        logfire.configure(
            send_to_logfire=False,
            console=False,
            metrics=False,
            inspect_arguments=False,
            distributed_tracing=True,
        )
        beside = Logfire()
    elif which == ["sentry"]:
        beside = sentry()
    elif which == ["launched"]:
        beside = Nobody()  # a distro has switched on everything by now, us too
    else:
        if not isinstance(trace.get_tracer_provider(), TracerProvider):
            trace.set_tracer_provider(TracerProvider())
        beside = Contrib(*which) if which != ["none"] else Nobody()
    import exported
    from hopwatch import process
    from hopwatch.instrumentation.a2a import A2AInstrumentor
    from hopwatch.instrumentation.asyncio import AsyncioInstrumentor

    ours = (AsyncioInstrumentor(), A2AInstrumentor())
    resource = trace.get_tracer_provider().resource
    out = {"distro": resource.attributes.get("telemetry.distro.name", "")}

    def run(name):
        exported.fresh()
        sent.clear()
        ports, heard = asyncio.run(asyncio.wait_for(story(beside), 100))
        trace.get_tracer_provider().force_flush()
        spans = exported.exporter.get_finished_spans()
        found = exported.cascades()
        out[name] = {
            "theirs": theirs(spans, ports),
            "ids": len({span.context.span_id for span in spans}) == len(spans),
            "trees": [exported.tree(hops) for hops in found.values()],
            "verdicts": [[said.verdict, said.reason] for said in map(exported.verdict, found.values())],
            "late": [hop.name for hops in found.values() for hop in hops.values() if hop.late],
            "failures": dict(process.failures),
            "headers": [
                {key: each.count(",") for key, each in heads.items() if key in ("traceparent", "tracestate")}
                for heads in heard
            ],
            "sentry": sorted(plainly(each, ports) for each in sent),
        }

    for each in ours:
        if each.is_instrumented_by_opentelemetry:
            each.uninstrument()
    beside.on()
    run("without")
    beside.off()
    for each in ours:
        each.instrument()
    beside.on()
    run("before")
    for each in ours:
        each.uninstrument()
    for each in ours:
        each.instrument()
    run("after")
    print(json.dumps(out, default=str))


sent = []
"""What Sentry would have sent: the kind and name of each item."""


def sentry():
    """Sentry's SDK with traces, and everything that it switches on by itself; nothing leaves the process."""
    import sentry_sdk
    from sentry_sdk.transport import Transport

    class Keeping(Transport):
        def capture_envelope(self, envelope):
            for item in envelope.items:
                if item.type == "transaction":
                    told = item.payload.json
                    spans = sorted(f"{each.get('op')} {each.get('description')}" for each in told["spans"])
                    sent.append(f"{told['contexts']['trace'].get('op')} {told['transaction']} {spans}")
                else:
                    sent.append(item.type)

    trace.set_tracer_provider(TracerProvider())
    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1", transport=Keeping, traces_sample_rate=1.0, enable_logs=False
    )
    return Nobody()


if __name__ == "__main__":
    os.environ.setdefault("OTEL_PYTHON_ASYNCIO_COROUTINE_NAMES_TO_TRACE", "work")
    main()
