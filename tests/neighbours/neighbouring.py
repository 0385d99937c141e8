"""What do the tests of this folder need that the others do not, and how is it left out where it is not installed?"""

import contextlib
import json
import os
import subprocess
import sys
import time
from importlib import util
from pathlib import Path

import httpx
import pytest

HERE = Path(__file__).parent
NEEDED = ("aiohttp", "elasticotel", "logfire", "requests", "sentry_sdk", "urllib3")
LACKING = [name for name in NEEDED if util.find_spec(name) is None]
marks = [
    pytest.mark.processes,
    pytest.mark.one_python,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        bool(LACKING),
        reason=f"{', '.join(LACKING)} not installed here; `make neighbours` runs it (ci: may be skipped)",
    ),
]


def environment(**more):
    """The environment of a program that is given nothing of OpenTelemetry's but this."""
    base = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "HOPWATCH_SAMPLING"))
    }
    # Where the machine is busy, what takes more than a second would be told of as hops besides.
    return {
        **base, "OTEL_INSTRUMENTATION_A2A_SDK_ENABLED": "false", "HOPWATCH_REVEAL_AFTER": "600", **more,
    }  # fmt: skip


def run(program, *arguments, launcher=(), timeout=280, **more):
    """Run a program of this folder, and give what it printed."""
    done = subprocess.run(
        [*launcher, sys.executable, str(HERE / program), *arguments],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


LAUNCHER = str(Path(sys.executable).with_name("opentelemetry-instrument"))


def only(folder, distribution):
    """A PYTHONPATH by which no distro is found but that of `distribution`: the launcher takes the first that it finds."""
    for name in {"opentelemetry_distro", "elastic_opentelemetry"} - {distribution}:
        about = folder / f"{name}-0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0\n"
        )
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


@contextlib.contextmanager
def agents(collector, folder, **each):
    """Agents that run under OpenTelemetry's launcher and tell a collector. Yields their addresses, and of which distro each is, by name."""
    started = {}
    common = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "HOPWATCH_BLACKBOX": "off",
        "PYTHONPATH": folder,
    }
    try:
        for name, more in each.items():
            started[name] = subprocess.Popen(
                [LAUNCHER, sys.executable, str(HERE / "agent.py")],
                env=environment(**common, OTEL_SERVICE_NAME=name, **more),
                stdout=subprocess.PIPE,
                text=True,
            )
        said = {name: process.stdout.readline().split() for name, process in started.items()}
        yield {name: (line[0], line[2] if len(line) > 2 else "") for name, line in said.items()}
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def send(url, *path):
    """Send an agent a message that shall go through others. Gives the cascade, and whether the agent's sampler keeps it."""
    message = {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": " ".join([*path, "end"])}]}
    body = {"jsonrpc": "2.0", "id": "1", "method": "SendMessage", "params": {"message": message}}
    answer = httpx.post(url, json=body, headers={"A2A-Version": "1.0"}, timeout=90)
    assert "error" not in answer.json(), answer.text
    _, cascade, _, flags = answer.headers["hopwatch-hop"].split("-")
    return cascade, int(flags, 16) & 1


def judged(collector, cascade, wanted, holds=lambda _: True):
    """What the collector says of a cascade once it says what is wanted; it must never say that it is settled otherwise.

    A verdict that others come before, such as unknown, may be said before all of it is told: `holds` says when it is.
    """
    until = time.monotonic() + 120
    while True:
        status, _, body = collector.request("GET", f"/api/cascades/{cascade}")
        if status == 200:
            found = json.loads(body)
            if found["verdict"] == wanted and holds(found):
                return found
            assert found["verdict"] != "settled", found
        assert time.monotonic() < until, (status, body)
        time.sleep(0.05)
