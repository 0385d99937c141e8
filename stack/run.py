"""How does the stack run without containers? Starts what can be had of it, says what is missing, and stops it at Ctrl-C.

    make stack                        or: python stack/run.py [--folder DIR] [--free-ports] [--no-install]

The processes and their configuration files are those of docker-compose.yml: hopwatch, the OpenTelemetry Collector, Prometheus,
Alertmanager and the webhook. Everything listens on loopback only. Grafana, Tempo and Jaeger need containers.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import make_secrets
import programs

from hopwatch.demo.run import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE: Final = Path(__file__).resolve().parent
ALERTS: Final = HERE.parent / "dashboards" / "alerts"
LOOPBACK: Final = "127.0.0.1"
WEBHOOK: Final = 9095
"""As alertmanager.yml has it."""
PORTS: Final = {
    "HOPWATCH_PORT": 4318,
    "HOPWATCH_GRPC_PORT": 4317,
    "OTELCOL_HTTP_PORT": 14318,
    "OTELCOL_GRPC_PORT": 14317,
    "OTELCOL_HEALTH_PORT": 13133,
    "OTELCOL_METRICS_PORT": 18888,
    "PROMETHEUS_PORT": 9090,
    "ALERTMANAGER_PORT": 9093,
    "ALERTS_PORT": WEBHOOK,
}
"""Environment variables and their defaults; those that docker-compose.yml publishes are called as there."""
READY_WITHIN: Final = 120.0
BUILT_WITHIN: Final = 1800.0
STOPS_WITHIN: Final = 10.0
"""Seconds."""
_DEATH_SIGNAL: Final = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


class StackError(Exception):
    """The stack cannot be run; the message says why and what to do."""


class StoppedError(Exception):
    """Somebody wants it to end before it has begun."""


@dataclass
class Part:
    """One process of the stack.

    Attributes:
        name: what it is called, in the list and as a log.
        command: how it is started.
        health: an address that answers 200 when it is ready.
        about: its line in the list.
        environment: what it gets beside ours.
        folder: where it runs.
    """

    name: str
    command: list[str]
    health: str
    about: str
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None


def say(text: str = "") -> None:
    """Print at once: who waits for a line may read us through a pipe."""
    print(text, flush=True)


def _die_with_us() -> None:
    """Have the kernel end a child when we are killed, for then nobody else does. Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)


class Processes:
    """What runs: every one of them is stopped at the end, and no other."""

    def __init__(self, folder: Path) -> None:
        self._logs = folder / "logs"
        self._logs.mkdir(exist_ok=True)
        self._running: dict[str, subprocess.Popen[str]] = {}
        self.stop = threading.Event()

    def start(self, part: Part) -> None:
        """Start one. What it prints goes into a file."""
        with self.log(part.name).open("a") as log:
            self._running[part.name] = self._open(part.command, log, part.environment, part.folder)

    def _open(
        self,
        command: list[str],
        log: IO[str],
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
        out: int | None = None,
    ) -> subprocess.Popen[str]:
        # A session of its own: Ctrl-C is for us, and we say in which order they end.
        return subprocess.Popen(  # noqa: S603 - our own programs
            command,
            stdin=subprocess.DEVNULL,
            stdout=out or log,
            stderr=log,
            env={**os.environ, **(environment or {})},
            cwd=folder,
            text=True,
            start_new_session=True,
            preexec_fn=_die_with_us,  # noqa: PLW1509 - no other thread is there when they are started
        )

    def do(self, name: str, command: list[str], within: float) -> str | None:
        """Run a command to its end.

        Returns:
            What it printed; None where it failed.

        Raises:
            StoppedError: somebody wants to end.
        """
        with self.log(name).open("a") as log:
            process = self._open(command, log, out=subprocess.PIPE)
            until = time.monotonic() + within
            try:
                while time.monotonic() < until:
                    if self.stop.is_set():
                        raise StoppedError
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        out, _ = process.communicate(timeout=0.2)
                        return out if process.returncode == 0 else None
                return None
            finally:
                if process.poll() is None:  # and what it started: it leads a group of its own
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()

    def wait_until_ready(self, parts: list[Part]) -> None:
        """Wait until each answers.

        Raises:
            StackError: one has ended, or does not answer in time.
            StoppedError: somebody wants to end.
        """
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        until = time.monotonic() + READY_WITHIN
        for part in parts:
            while True:
                with contextlib.suppress(OSError), opener.open(part.health, timeout=5) as answer:
                    if answer.status == 200:
                        break
                self.check()
                if time.monotonic() > until:
                    raise StackError(
                        f"{part.name} is not ready after {READY_WITHIN:g} s:\n{self.tail(part.name)}"
                    )
                if self.stop.wait(0.1):
                    raise StoppedError

    def check(self) -> None:
        """See that all of them live.

        Raises:
            StackError: one has ended.
        """
        for name, process in self._running.items():
            if process.poll() is not None:
                raise StackError(f"{name} ended with {process.returncode}:\n{self.tail(name)}")

    def pids(self) -> dict[str, int]:
        """The ids of the processes, by name."""
        return {name: process.pid for name, process in self._running.items()}

    def end(self) -> None:
        """Stop them, the youngest first, so that who is sent something outlives who sends it: kindly, then not so."""
        for process in reversed(self._running.values()):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                process.wait(STOPS_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def log(self, name: str) -> Path:
        """Where a process's output goes."""
        return self._logs / f"{name}.log"

    def tail(self, name: str, lines: int = 12) -> str:
        """The last lines that it printed."""
        path = self.log(name)
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


# What there is ---------------------------------------------------------------------------------------------------


def ports(*, free: bool) -> dict[str, int]:
    """Which ports to use.

    Raises:
        StackError: one is taken, or a variable names none.
    """
    if free:
        return dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    found: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for name, default in PORTS.items():
            given = os.environ.get(name, "").strip() or str(default)
            if not given.isdigit() or not 0 < int(given) < 65536:
                raise StackError(f"{name}={given!r} is not a port; it is a number from 1 to 65535")
            taken = stack.enter_context(socket.socket())
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                taken.bind((LOOPBACK, int(given)))
            except OSError:
                raise StackError(
                    f"port {given} is taken; name another one with {name}, or give --free-ports"
                ) from None
            found[name] = int(taken.getsockname()[1])
    return found


def url(port: int) -> str:
    """An address on loopback."""
    return f"http://{LOOPBACK}:{port}"


def targets(*found: tuple[str, dict[str, str]]) -> str:
    """A file of targets for Prometheus; JSON is YAML."""
    return json.dumps([{"targets": [address], "labels": labels} for address, labels in found])


class Stack:
    """What can be run here, and what cannot.

    Args:
        folder: for stores, secrets, logs and copies of configuration files.
        at: the ports, by the names of `PORTS`.
        install: whether what is missing may be fetched or built.
    """

    def __init__(self, folder: Path, at: dict[str, int], *, install: bool) -> None:
        self.folder = folder
        self.at = at
        self.install = install
        self.processes = Processes(folder)
        self.missing: list[str] = []
        self.parts: list[Part] = []
        self.token = folder / "secrets" / "token"

    def gather(self) -> None:
        """Find, fetch or build the programs, and write down what is started.

        Raises:
            StoppedError: somebody wants to end.
        """
        secrets = self.folder / "secrets"
        secrets.mkdir(mode=0o700, exist_ok=True)
        make_secrets.make(secrets, "token")
        prometheus, alertmanager = self._prometheus_programs()
        collector = self._collector_program()
        # The order in which they are started; they end in the opposite one.
        self.parts = [self._hopwatch()]
        if alertmanager is not None:
            self.parts += [self._alerts(), self._alertmanager(alertmanager)]
        if prometheus is not None:
            self.parts.append(self._prometheus(prometheus))
        if collector is not None:
            to_prometheus = prometheus is not None and programs.takes_otlp(prometheus)
            self.parts.append(self._collector(collector, to_prometheus=to_prometheus))
        if prometheus is not None:
            self._write_targets()

    def _prometheus_programs(self) -> tuple[str | None, str | None]:
        own = self.folder / "programs"
        found = [programs.find(name, [str(own)]) for name in ("prometheus", "alertmanager")]
        if None in found and self.install:
            for command in programs.install_prometheus(own):
                say("Fetches Debian's Prometheus and Alertmanager, without installing them ...")
                if self.processes.do("install-prometheus", command, READY_WITHIN) is None:
                    say(f"  that failed: {self.processes.tail('install-prometheus', 2)}")
            found = [programs.find(name, [str(own)]) for name in ("prometheus", "alertmanager")]
        prometheus, alertmanager = found
        old = programs.too_old(prometheus) if prometheus is not None else None
        if old is not None:
            prometheus = None
            self.missing.append(f"Prometheus: the one here is {old}, and the rules need 2.42 or later")
        elif prometheus is None:
            self.missing.append(
                "Prometheus: put it on the path, or name its folder with HOPWATCH_PROMETHEUS (Debian: apt-get install prometheus)"
            )
        if alertmanager is None:
            self.missing.append("Alertmanager: the same way (Debian: prometheus-alertmanager)")
        elif not programs.may_start(alertmanager):
            alertmanager = None
            self.missing.append(
                "Alertmanager: Debian's reads /usr/share/prometheus, and no namespace may be made here to put it there: install the package prometheus-alertmanager"
            )
        return prometheus, alertmanager

    def _collector_program(self) -> str | None:
        found = programs.find("otelcol")
        command = programs.build_collector(HERE)
        if found is None and command is not None and self.install:
            say(
                "Builds the OpenTelemetry Collector, if that has not been done; the first time takes some minutes ..."
            )
            printed = self.processes.do("build-otelcol", command, BUILT_WITHIN)
            found = printed.strip().splitlines()[-1] if printed and printed.strip() else None
            if found is None:
                say(f"  that failed: {self.processes.tail('build-otelcol', 2)}")
        if found is None:
            self.missing.append(
                "the OpenTelemetry Collector: install Go, with which stack/otelcol/build makes it, or name otelcol-contrib with HOPWATCH_OTELCOL"
            )
        return found

    # The parts -----------------------------------------------------------------------------------------------------

    def _hopwatch(self) -> Part:
        at = url(self.at["HOPWATCH_PORT"])
        return Part(
            "hopwatch",
            [
                sys.executable, "-m", "hopwatch", "serve",
                "--port", str(self.at["HOPWATCH_PORT"]), "--grpc-port", str(self.at["HOPWATCH_GRPC_PORT"]),
                "--token-file", str(self.token), "--store", str(self.folder / "hopwatch.sqlite"),
            ],
            f"{at}/healthz",
            f"{at}   the live page, the API and OTLP; gRPC at {LOOPBACK}:{self.at['HOPWATCH_GRPC_PORT']}",
        )  # fmt: skip

    def _alerts(self) -> Part:
        at = url(self.at["ALERTS_PORT"])
        return Part(
            "alerts",
            [sys.executable, str(HERE / "alerts.py"), "--port", str(self.at["ALERTS_PORT"])],
            at,
            f"{at}   the webhook; a line for each alert in {self.processes.log('alerts')}",
        )

    def _alertmanager(self, program: str) -> Part:
        folder = self.folder / "alertmanager"
        folder.mkdir(exist_ok=True)
        text = (ALERTS / "alertmanager.yml").read_text("utf-8")
        (folder / "alertmanager.yml").write_text(
            text.replace(f"{LOOPBACK}:{WEBHOOK}/", f"{LOOPBACK}:{self.at['ALERTS_PORT']}/"), "utf-8"
        )
        at = url(self.at["ALERTMANAGER_PORT"])
        return Part(
            "alertmanager",
            [
                *programs.command(program), "--config.file=alertmanager.yml", "--storage.path=data",
                "--cluster.listen-address=", f"--web.external-url={at}",
                f"--web.listen-address={LOOPBACK}:{self.at['ALERTMANAGER_PORT']}",
            ],
            f"{at}/-/ready",
            f"{at}   what fires, who is told, and silences",
            folder=folder,
        )  # fmt: skip

    def _prometheus(self, program: str) -> Part:
        folder = self.folder / "prometheus"
        (folder / "targets").mkdir(parents=True, exist_ok=True)
        for source in (HERE / "prometheus" / "prometheus.yml", ALERTS / "hopwatch.yml"):
            (folder / source.name).write_text(source.read_text("utf-8"), "utf-8")
        secrets = folder / "secrets"
        if not secrets.is_symlink():
            secrets.symlink_to(self.folder / "secrets")
        at = url(self.at["PROMETHEUS_PORT"])
        return Part(
            "prometheus",
            [
                *programs.command(program), "--config.file=prometheus.yml", "--storage.tsdb.path=data",
                "--storage.tsdb.retention.time=15d", f"--web.external-url={at}",
                f"--web.listen-address={LOOPBACK}:{self.at['PROMETHEUS_PORT']}", "--enable-feature=exemplar-storage",
                *(["--web.enable-otlp-receiver"] if programs.takes_otlp(program) else []),
            ],
            f"{at}/-/ready",
            f"{at}   metrics and rules",
            folder=folder,
        )  # fmt: skip

    def _collector(self, program: str, *, to_prometheus: bool) -> Part:
        configurations = [HERE / "otelcol" / "everything.yaml"]
        if to_prometheus:
            configurations.append(HERE / "otelcol-to-prometheus.yaml")
        at = url(self.at["OTELCOL_HTTP_PORT"])
        return Part(
            "otelcol",
            [
                *programs.command(program),
                *(f"--config={path}" for path in configurations),
                f"--config=yaml:exporters::otlp_http/hopwatch::headers::authorization: Bearer ${{file:{self.token}}}",
            ],
            url(self.at["OTELCOL_HEALTH_PORT"]),
            f"{at}   the OpenTelemetry Collector, in front of hopwatch: OTLP; gRPC at {LOOPBACK}:{self.at['OTELCOL_GRPC_PORT']}",
            {
                **{name: str(port) for name, port in self.at.items() if name.startswith("OTELCOL_")},
                "OTELCOL_HOST": LOOPBACK,
                "OTELCOL_STORAGE": str(self.folder / "otelcol"),
                # There is no trace store here.
                "OTELCOL_TRACES_TO": "[otlp_http/hopwatch]",
                "HOPWATCH_URL": url(self.at["HOPWATCH_PORT"]),
                "PROMETHEUS_URL": url(self.at["PROMETHEUS_PORT"]),
            },
        )  # fmt: skip

    def _write_targets(self) -> None:
        """Say to Prometheus where everything is; in containers stack/prometheus/targets does."""
        around = {
            "alertmanager": "ALERTMANAGER_PORT",
            "prometheus": "PROMETHEUS_PORT",
            "otelcol": "OTELCOL_METRICS_PORT",
        }
        running = {part.name for part in self.parts}

        def at(name: str) -> str:
            return f"{LOOPBACK}:{self.at[name]}"

        said = {
            "hopwatch": targets((at("HOPWATCH_PORT"), {})),
            "alertmanager": targets(*[(at("ALERTMANAGER_PORT"), {})] if "alertmanager" in running else []),
            "stack": targets(
                *((at(port), {"part": name}) for name, port in around.items() if name in running)
            ),
        }
        for name, text in said.items():
            (self.folder / "prometheus" / "targets" / f"{name}.yml").write_text(text)

    # Running -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Start everything, say where it is, and wait until somebody ends it.

        Raises:
            StackError: something did not start, or ended by itself.
            StoppedError: somebody ended it before it was ready.
        """
        running = self.folder / "running.json"
        try:
            for part in self.parts:
                self.processes.start(part)
            self.processes.wait_until_ready(self.parts)
            told = {"ports": self.at, "token_file": str(self.token), "processes": self.processes.pids()}
            running.write_text(json.dumps(told))
            for line in self.told():
                say(line)
            while not self.processes.stop.wait(0.5):
                self.processes.check()
        finally:
            self.processes.end()
            running.unlink(missing_ok=True)

    def told(self) -> Iterator[str]:
        """What somebody needs to know of it, line by line."""
        width = max(len(part.name) for part in self.parts)
        yield ""
        for part in self.parts:
            yield f"  {part.name:{width}}  {part.about}"
        yield ""
        for each in self.missing:
            yield f"Not run: {each}."
        yield "Not run: Grafana, Tempo, Jaeger. They need containers: docker compose --profile grafana up"
        yield ""
        yield f"The token is in {self.token}; a browser asks for it: any name, and the token as the password."
        beside = Path(sys.executable).with_name("hopwatch")
        hopwatch = str(beside) if shutil.which("hopwatch") is None and beside.exists() else "hopwatch"
        yield "In another shell:"
        yield f"  export HOPWATCH_URL={url(self.at['HOPWATCH_PORT'])} HOPWATCH_TOKEN_FILE={self.token}"
        yield f"  {hopwatch} run -- python your_agent.py"
        yield f"  {hopwatch} ls"
        yield f"Stores and logs are in {self.folder}. Ready; Ctrl-C ends all of it."


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Two at once would write into each other's stores.

    Raises:
        StackError: one runs already.
    """
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StackError(f"it runs already in {folder}; name another folder with --folder") from None
        yield


def default_folder() -> Path:
    """Where it keeps what it keeps: of this user, under the XDG state directory."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "hopwatch-stack"


def main() -> int:
    """Run the stack.

    Returns:
        0 after Ctrl-C or SIGTERM; 1 where it could not be run, or a part of it ended.
    """
    parser = argparse.ArgumentParser(
        description="Run hopwatch with what stands around it, without containers."
    )
    parser.add_argument("--folder", type=Path, default=default_folder(), help="for stores, secrets and logs")
    parser.add_argument("--free-ports", action="store_true", help="take any ports that are free")
    parser.add_argument("--no-install", action="store_true", help="neither fetch nor build what is missing")
    given = parser.parse_args()
    folder: Path = given.folder.resolve()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with alone(folder):
            stack = Stack(folder, ports(free=given.free_ports), install=not given.no_install)

            def stop(*_: Any) -> None:
                stack.processes.stop.set()

            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, stop)
            stack.gather()
            stack.run()
    except StoppedError:
        pass
    except (StackError, OSError) as error:
        print(f"stack: {error}", file=sys.stderr)
        return 1
    say("Everything has ended.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
