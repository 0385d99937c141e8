"""How does a program end, bare and with hopwatch? Starts small real programs both ways and compares what can be seen."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

LAUNCHER = str(Path(sys.executable).with_name("opentelemetry-instrument"))
PRELUDE = """
import asyncio, atexit, contextlib, gc, os, signal, sys, threading, time
hopwatched = bool(os.environ.get("HOPWATCHED"))
if hopwatched:
    from hopwatch import cascade
    if "PATIENT" in os.environ:
        from hopwatch import exits
        exits.NOTHING_PENDING = 60.0
else:
    cascade = contextlib.nullcontext
if os.environ["LOOP"] == "uvloop":
    import uvloop
    run, new_event_loop = uvloop.run, uvloop.new_event_loop
else:
    run, new_event_loop = asyncio.run, asyncio.new_event_loop

kept = []

async def forever():
    await asyncio.get_running_loop().create_future()

def ready():
    print("ready", flush=True)

"""
PATIENT = {
    "PATIENT": "1",
    "HOPWATCH_SHUTDOWN_TIMEOUT": "60",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
    "HOPWATCH_REVEAL_AFTER": "600",
}
"""How long a program holds up its own end for the collector. By default it is 3 s, and 0.2 s where nothing is pending, and then what
was not told is lost: on a busy machine a collector takes longer. Nor does what such a machine holds up for a second become a hop."""
_numbers = itertools.count()


class Ended:
    """How one run of a program ended."""

    def __init__(self, code, out, err, seconds, name):
        self.code = code
        self.out = out
        self.err = err
        self.seconds = seconds
        """From the signal, or from its start, to its end."""
        self.name = name
        """The agent's."""

    def seen(self):
        """What a user sees of it: exit code, output, and its errors without the frames, which our wrappers may be among."""
        lines = [line for line in self.err.splitlines() if line and not line.startswith((" ", "task: <"))]
        return self.code, self.out, lines


def environment(loop, *, url=None, hopwatched=True, **more):
    """The environment of a program; its telemetry goes to the collector at `url`."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key == "HOPWATCH_BLACKBOX" or not key.startswith(("HOPWATCH", "OTEL_", "PYTEST", "COVERAGE"))
    }
    name = f"agent{next(_numbers)}"
    told = {
        "LOOP": loop,
        "PYTHONWARNINGS": "ignore",
        "OTEL_SERVICE_NAME": name,
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "asyncio,httpx,starlette,fastapi,asgi,grpc_client,grpc_server,grpc_aio_client,grpc_aio_server",
    }
    if url is not None:
        told["OTEL_EXPORTER_OTLP_ENDPOINT"] = url
    if hopwatched:
        told["HOPWATCHED"] = "1"
    return {**kept, **told, **more}, name


@contextlib.contextmanager
def started(path, loop, *words, url=None, hopwatched=True, launcher=True, **more):
    """A program that has been started, with patience for its collector; killed at the end if it has not ended."""
    more = {**(PATIENT if url is not None else {}), **more}
    env, name = environment(loop, url=url, hopwatched=hopwatched, **more)
    command = [*([LAUNCHER] if hopwatched and launcher else []), sys.executable, str(path), *words]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        process.agent = name
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def until_ready(process):
    """Read the program's output up to the line `ready`."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "ready\n":
            return "".join(lines)
    raise AssertionError((process.wait(10), "".join(lines), process.stderr.read()))


def play(path, loop, *words, sends=None, act=None, timeout=90, **how):
    """Run a program to its end.

    Args:
        sends: the signal that it gets once it says `ready`.
        act: or what is done then, with the process.
    """
    began = time.monotonic()
    with started(path, loop, *words, **how) as process:
        before = ""
        if sends is not None or act is not None:
            before = until_ready(process)
            if act is not None:
                act(process)
            began = time.monotonic()
            if sends is not None:
                process.send_signal(sends)
        out, err = process.communicate(timeout=timeout)
        return Ended(process.returncode, before + out, err, time.monotonic() - began, process.agent)


def cascades_of(running, agent, *, count=1, within=60):
    """The cascades of an agent, once there are `count` of them and none is in flight."""
    until = time.monotonic() + within
    while True:
        rows = [row for row in running.get("/api/cascades?limit=1000")["cascades"] if agent in row["agents"]]
        if len(rows) >= count and all(row["verdict"] != "in_flight" for row in rows):
            return [running.get(f"/api/cascades/{row['cascade']}") for row in rows]
        assert time.monotonic() < until, rows
        time.sleep(0.05)


def agents_called(running, name, *, state="ended", within=60):
    """The processes of that name, once each of them is in that state."""
    until = time.monotonic() + within
    while True:
        found = [agent for agent in running.get("/api/agents")["agents"] if agent["name"] == name]
        if found and all(agent["state"] == state for agent in found):
            return found
        assert time.monotonic() < until, found
        time.sleep(0.05)


SIGTERM, SIGINT = signal.SIGTERM, signal.SIGINT
