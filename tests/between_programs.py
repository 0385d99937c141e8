"""Which processes stand between agents and a verdict? The OpenTelemetry Collector with a recipe, and collectors of ours."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from hopwatch.demo.run import (
    AGENTS,
    Cast,
    agent_environment,
    free_ports,
    launcher,
    slow_server,
    start_agents,
)

RECIPES = Path(__file__).parent.parent / "stack" / "otelcol"
PATIENCE = 240.0
"""Seconds that anything may take on a busy machine."""


def needs_otelcol():
    """The path of the OpenTelemetry Collector; the test is skipped, by name, where there is none."""
    named = os.environ.get("HOPWATCH_OTELCOL")
    if not named or not Path(named).is_file():
        pytest.skip(
            "HOPWATCH_OTELCOL names no OpenTelemetry Collector; stack/otelcol/build builds one and prints its path"
        )
    return named


def recipes():
    """The recipes, by name."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem != "builder")


def until(look, what, say=lambda: "", every=0.05):
    """What `look` returns as soon as that is true; `say` tells how it stands where it never is."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {PATIENCE:g} s. {say()}")
        time.sleep(every)


class Otelcol:
    """The OpenTelemetry Collector with a recipe, always at the same ports and with the same storage."""

    def __init__(self, cast, recipe, *more, name="otelcol", **environment):
        self.program = needs_otelcol()
        self.cast = cast
        self.name = name
        self.recipe = recipe
        self.more = more
        grpc, http, health, own = free_ports(4)
        self.url = f"http://127.0.0.1:{http}"
        self._health = f"http://127.0.0.1:{health}/"
        self._own = f"http://127.0.0.1:{own}/metrics"
        self.environment = {
            "OTELCOL_GRPC_PORT": str(grpc),
            "OTELCOL_HTTP_PORT": str(http),
            "OTELCOL_HEALTH_PORT": str(health),
            "OTELCOL_METRICS_PORT": str(own),
            "OTELCOL_STORAGE": str(cast.folder / f"{name}-storage"),
            **environment,
        }
        self.process = None

    def start(self, **environment):
        """Start it, and wait until it takes telemetry; with other settings if there are some."""
        configs = [f"--config={RECIPES / self.recipe}.yaml", *(f"--config={each}" for each in self.more)]
        self.process = self.cast.start(
            self.name, [self.program, *configs], {**self.environment, **environment}
        )
        until(
            self._ready, f"the OpenTelemetry Collector ({self.recipe})", lambda: self.cast.tail(self.name, 30)
        )
        return self

    def _ready(self):
        assert self.process.poll() is None, self.cast.tail(self.name, 30)
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(self._health, timeout=5).status_code == 200
        return False

    def stop(self):
        """Ask it to end, and wait for that."""
        self.process.terminate()
        assert self.process.wait(PATIENCE) == 0, self.cast.tail(self.name, 30)

    def kill(self):
        """Take it away."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def counted(self, metric):
        """The sum of one of its own metrics; its name without `otelcol_` and `_total`."""
        found = 0.0
        for line in httpx.get(self._own, timeout=30).text.splitlines():
            name, _, rest = line.partition("{")
            if name.removesuffix("_total") == f"otelcol_{metric}":
                found += float(rest.rpartition("} ")[2])
        return found


class Hopwatch:
    """A collector of ours, always at the same ports and with the same store."""

    def __init__(self, cast, name="hopwatch", *, token=None):
        self.cast = cast
        self.name = name
        self.options = []
        self.headers = {}
        if token is not None:
            file = cast.folder / f"{name}.token"
            file.touch(0o600)
            file.write_text(token, "utf-8")
            self.options = ["--token-file", str(file)]
            self.headers = {"authorization": f"Bearer {token}"}
        self.port, self.grpc_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        """Start it, and wait until it answers."""
        self.process = self.cast.start(
            self.name,
            [
                sys.executable, "-m", "hopwatch", "serve", "--port", str(self.port), "--grpc-port",
                str(self.grpc_port), "--store", str(self.cast.folder / f"{self.name}.sqlite"), "--blackbox", "off",
                *self.options,
            ],
        )  # fmt: skip
        until(lambda: self.get("/api/agents"), "hopwatch serve", lambda: self.cast.tail(self.name))
        return self

    def stop(self):
        """Ask it to end, and wait for that."""
        self.process.terminate()
        assert self.process.wait(PATIENCE) == 0, self.cast.tail(self.name)

    def kill(self):
        """Take it away."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def get(self, path):
        """What it answers; None where nobody does."""
        try:
            return httpx.get(f"{self.url}{path}", headers=self.headers, timeout=30).raise_for_status().json()
        except httpx.TransportError:
            return None

    def verdicts(self):
        """The verdict of each cascade that it knows of; empty where it does not answer."""
        rows = (self.get("/api/cascades?limit=1000") or {"cascades": []})["cascades"]
        return {row["cascade"]: row["verdict"] for row in rows}

    def cascades(self):
        """The same cascades with their hops."""
        found = [self.get(f"/api/cascades/{cascade}") for cascade in self.verdicts()]
        return [each for each in found if each is not None]

    def heard(self, agent):
        """When it last heard of the agent of that name; None where it never did."""
        agents = (self.get("/api/agents") or {"agents": []})["agents"]
        return max((each["heard"] for each in agents if each["name"] == agent), default=None)


class Play:
    """A user, three agents, and what they tell: the worker does not go on before it is let go."""

    def __init__(self, folder, stack):
        self.cast = Cast(folder)
        stack.callback(self.cast.end)
        self.gate = threading.Event()
        self.slow = stack.enter_context(slow_server(3600.0, self.gate))
        self.hopwatch = Hopwatch(self.cast).start()
        self.history = []
        """Each change of the verdict of the first cascade."""

    def otelcol(self, recipe="everything", *more, **environment):
        """An OpenTelemetry Collector before the collector of ours; not started yet."""
        return Otelcol(self.cast, recipe, *more, **{"HOPWATCH_URL": self.hopwatch.url, **environment})

    def ask(self, endpoint, *, count=1, user=None, patience=120):
        """Start the agents, which tell `endpoint`, and the user, who tells it too unless `user` says whom.

        Their exporters try again for `patience` seconds: by default they outlive a restart on a busy machine.
        """
        patient = {"OTEL_EXPORTER_OTLP_TIMEOUT": str(patience)}
        frontdesk, port = start_agents(self.cast, "slow", endpoint, self.slow, extra=patient)
        self.cast.start(
            "user",
            [
                *launcher(), str(AGENTS / "user.py"), "--port", str(port), "--to", frontdesk,
                "--count", str(count), "--at-once", str(count),
            ],
            {**agent_environment("user", user or endpoint), **patient},
        )  # fmt: skip

    def look(self):
        """The one cascade as it stands; None where nobody knows."""
        known = self.hopwatch.cascades()
        if not known:
            return None
        (cascade,) = known
        if not self.history or self.history[-1] != cascade["verdict"]:
            self.history.append(cascade["verdict"])
        return cascade

    def until(self, wanted, what):
        """Look until the cascade is as wanted."""
        seen = {}

        def look():
            cascade = self.look()
            if cascade is None:
                return None
            seen["last"] = cascade
            return cascade if wanted(cascade) else None

        def say():
            last = seen.get("last", {"verdict": None, "reason": "", "hops": []})
            tails = "\n".join(f"--- {name}\n{self.cast.tail(name, 6)}" for name in self.cast.processes)
            return f"{self.history}, {last['verdict']}: {last['reason']} ({len(last['hops'])} hops)\n{tails}"

        return until(look, what, say)

    def let_go(self):
        """The worker may go on; nothing may have been over before."""
        assert not {"settled", "stranded", "broken"} & {*self.history}, self.history
        self.gate.set()

    def settled(self):
        """The cascade, once it is settled."""
        return self.until(lambda cascade: cascade["verdict"] == "settled", "settled")


def at_work(cascade):
    """Whether it has been told that the worker is in the middle of it."""
    return any(
        (hop["waits_on"] or {}).get("kind") == "socket"
        for hop in cascade["hops"]
        if hop["kind"] == "execution" and hop["agent"] == "worker"
    )


class Between:
    """Stands before a collector and hands requests on, with a fault: answers get lost, or the first request finds it busy.

    Args:
        busy: how often the first request is refused and not handed on. With 0 all are handed on, and the first answer to
            each is lost: it looks like a refusal.
    """

    def __init__(self, url, stack, *, busy=0):
        seen = self.seen = {}
        """How often each request came, by its body."""
        taken = self.taken = []
        """The bodies of those that got a good answer, in that order."""
        client = stack.enter_context(httpx.Client(base_url=url, timeout=60))

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                times = seen[body] = seen.get(body, 0) + 1
                refused = times <= (busy or 1) and (not busy or next(iter(seen)) == body)
                status = 503
                if not busy or not refused:
                    kept = {name: self.headers[name] for name in ("content-type", "content-encoding")}
                    status = client.post(self.path, content=body, headers=kept).status_code
                if not refused:
                    taken.append(body)
                self.send_response(503 if refused else status)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
