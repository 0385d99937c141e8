"""However hopwatch is put in front of a program, and whenever: is a message the same three hops, and is it settled?

Two real programs, one of which asks the other, and a real collector. They are started by `opentelemetry-instrument`, by `hopwatch run`, or as they are and
then call `hopwatch.instrument()`; before the libraries are imported and after it.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from collector.telling import collector
from ways_out import PATIENT

pytestmark = [pytest.mark.processes, pytest.mark.timeout(480)]

BIN = Path(sys.executable).parent
LIBRARIES = "httpx, starlette.applications, uvicorn, a2a.client, a2a.server.request_handlers"
STARTS = """
import os, sys

how, when = os.environ["HOW"], os.environ["WHEN"]

def begin(moment):
    if moment != when or how not in ("instrument(url)", "instrument()"):
        return
    there = "a2a.server.request_handlers" in sys.modules
    assert there == (when != "before"), sorted(sys.modules)
    import hopwatch
    for _ in range(2):  # a second time changes nothing
        hopwatch.instrument(*([os.environ["COLLECTOR"]] if how == "instrument(url)" else []))
        own_sdk()

def own_sdk():
    # What an application does that sets up OpenTelemetry itself, here once hopwatch is there.
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    if how == "instrument()" and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(os.environ["COLLECTOR"] + "/v1/traces")))
        trace.set_tracer_provider(provider)

if how in ("opentelemetry-instrument", "hopwatch run"):
    assert ("a2a.server.request_handlers" in sys.modules) == (when == "after"), (when, sorted(sys.modules))
begin("before")

import asyncio, socket
import httpx, uvicorn
from a2a.client import ClientConfig, ClientFactory
from a2a.helpers import new_task_from_user_message, new_text_message
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, Role, SendMessageRequest
from starlette.applications import Starlette

begin("after")

def card_of(url):
    return AgentCard(
        name="agent",
        supported_interfaces=[AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0")],
        capabilities=AgentCapabilities(streaming=False),
    )
"""
SERVES = (
    STARTS
    + """
class Executor(AgentExecutor):
    async def execute(self, context, queue):
        task = new_task_from_user_message(context.message)
        await queue.enqueue_event(task)
        updater = TaskUpdater(queue, task.id, task.context_id)
        await updater.start_work()
        await asyncio.create_task(asyncio.sleep(0.01))
        await updater.complete()

    async def cancel(self, context, queue):
        pass

sock = socket.create_server(("127.0.0.1", 0))
url = f"http://127.0.0.1:{sock.getsockname()[1]}/"
handler = DefaultRequestHandler(agent_executor=Executor(), task_store=InMemoryTaskStore(), agent_card=card_of(url))
app = Starlette(routes=create_jsonrpc_routes(handler, "/"))
begin("last")
print(url, flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[sock])
"""
)
ASKS = (
    STARTS
    + """
async def main():
    async with httpx.AsyncClient(timeout=60) as http:
        config = ClientConfig(httpx_client=http, streaming=False, supported_protocol_bindings=["JSONRPC"])
        client = ClientFactory(config).create(card_of(sys.argv[1]))
        begin("last")
        message = new_text_message("do it", role=Role.ROLE_USER)
        async for answer in client.send_message(SendMessageRequest(message=message)):
            print(answer.task.status.state, flush=True)

asyncio.run(main())
"""
)
EARLY = """
def imports():
    import {libraries}
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with collector(tmp_path_factory.mktemp("programs") / "store.sqlite") as found:
        found.url = f"http://127.0.0.1:{found.port}"
        yield found


def command(how, program, running):
    if how == "opentelemetry-instrument":
        return [str(BIN / how), sys.executable, str(program)]
    if how == "hopwatch run":
        return [
            sys.executable,
            "-m",
            "hopwatch",
            "run",
            "--url",
            running.url,
            "--",
            sys.executable,
            str(program),
        ]
    return [sys.executable, str(program)]


def environment(how, when, running, folder):
    """Nothing but what the way needs: what others have in the environment is no part of the story."""
    told = {
        key: value
        for key, value in os.environ.items()
        if key == "HOPWATCH_BLACKBOX" or not key.startswith(("HOPWATCH", "OTEL_", "PYTEST"))
    }
    told |= {"HOW": how, "WHEN": when, "COLLECTOR": running.url}
    # On a busy machine any task may take the second after which it is told of as a hop besides, and the collector as long as it likes.
    told |= PATIENT
    # Contrib's own import what they instrument.
    told["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] = (
        "asyncio,httpx,starlette,fastapi,asgi,grpc_client,grpc_server,grpc_aio_client,grpc_aio_server"
    )
    if how == "opentelemetry-instrument":
        told["OTEL_EXPORTER_OTLP_PROTOCOL"] = "http/protobuf"
        told["OTEL_EXPORTER_OTLP_ENDPOINT"] = running.url
    if how in ("opentelemetry-instrument", "instrument()"):
        told["OTEL_SERVICE_NAME"] = folder.name
    if when == "after" and how in ("opentelemetry-instrument", "hopwatch run"):
        # The launcher has hooks that run before all instrumentors: here one that imports the libraries.
        early = folder / "early"
        (early / "early-1.dist-info").mkdir(parents=True, exist_ok=True)
        (early / "early.py").write_text(EARLY.format(libraries=LIBRARIES))
        (early / "early-1.dist-info" / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: early\nVersion: 1\n"
        )
        (early / "early-1.dist-info" / "entry_points.txt").write_text(
            "[opentelemetry_pre_instrument]\nearly = early:imports\n"
        )
        told["PYTHONPATH"] = os.pathsep.join(filter(None, [str(early), os.environ.get("PYTHONPATH", "")]))
    return told


@contextlib.contextmanager
def started(how, when, running, folder, name, text, *words):
    folder.mkdir(exist_ok=True)
    program = folder / f"{name}.py"
    program.write_text(text)
    with subprocess.Popen(
        [*command(how, program, running), *words],
        env=environment(how, when, running, folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def known(running):
    return {row["cascade"] for row in running.get("/api/cascades?limit=1000")["cascades"]}


def told_of(running, before, *, within=120):
    """The cascade that was not there before, once its verdict is final: on a slow machine it may be silent for a while."""
    until = time.monotonic() + within
    while True:
        rows = [
            row for row in running.get("/api/cascades?limit=1000")["cascades"] if row["cascade"] not in before
        ]
        if rows and rows[0]["verdict"] in ("settled", "stranded", "broken"):
            return running.get(f"/api/cascades/{rows[0]['cascade']}")
        assert time.monotonic() < until, [running.get(f"/api/cascades/{row['cascade']}") for row in rows]
        time.sleep(0.05)


WAYS = [
    *((how, when) for how in ("opentelemetry-instrument", "hopwatch run") for when in ("before", "after")),
    *((how, when) for how in ("instrument(url)", "instrument()") for when in ("before", "after", "last")),
]


@pytest.mark.parametrize(
    ("how", "when"),
    [
        pytest.param(
            how,
            when,
            marks=pytest.mark.row(
                "programs",
                {
                    "opentelemetry-instrument": "`opentelemetry-instrument`",
                    "hopwatch run": "`hopwatch run`",
                    "instrument(url)": "`hopwatch.instrument(url)`",
                    "instrument()": "`hopwatch.instrument()`, the SDK set up by the program itself",
                }[how]
                + {
                    "before": ", before the libraries are imported",
                    "after": ", after the libraries are imported",
                    "last": ", when its handler, application and client are made",
                }[when],
                "a2a-sdk",
                *(
                    ["opentelemetry-distro"]
                    if how in ("opentelemetry-instrument", "hopwatch run")
                    else ["opentelemetry-sdk"]
                ),
            ),
        )
        for how, when in WAYS
    ],
)
def test_a_message_is_three_hops_and_settled_however_hopwatch_was_put_in_front(running, tmp_path, how, when):
    before = known(running)
    with started(how, when, running, tmp_path / "desk", "desk", SERVES) as desk:
        url = desk.stdout.readline().strip()
        assert url, desk.stderr.read()
        with started(how, when, running, tmp_path / "user", "user", ASKS, url) as user:
            out, err = user.communicate(timeout=200)
        assert (user.returncode, out) == (0, "3\n"), err
        cascade = told_of(running, before)
        agents = sorted(agent["name"] for agent in cascade["agents"])
        assert (cascade["verdict"], agents) == ("settled", ["desk", "user"]), cascade
        hops = {hop["kind"]: hop for hop in cascade["hops"]}
        assert sorted(hop["kind"] for hop in cascade["hops"]) == ["execution", "request", "send"], cascade
        assert [hops[kind]["agent"] for kind in ("send", "request", "execution")] == ["user", "desk", "desk"]
        assert [hops[kind]["parent"] for kind in ("request", "execution")] == [
            hops["send"]["id"],
            hops["request"]["id"],
        ]
        desk.terminate()
        desk.communicate(timeout=120)
