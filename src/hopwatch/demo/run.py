"""Does hopwatch give the right verdict on real agents? Starts them, plants a fault, and watches."""

from __future__ import annotations

import contextlib
import errno
import json as jsonlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from hopwatch.demo import subscriber
from hopwatch.demo.faults import FAULTS, Cascade, Ending, Fault, unix_time, worker_reads
from hopwatch.verdict import FINAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AGENTS = Path(__file__).parent / "agents"
LOOPBACK = "127.0.0.1"
SLOW_FOR = 15.0
"""Seconds that the slow server takes."""
LEAKS_FOR = 6.0
"""Seconds for which the verdict of a leak is watched: longer than a record may be on its way."""
HOLDS_FOR = 600.0
"""Seconds that it takes where nobody waits for its answer: longer than any run."""
PATIENCE = 10.0
"""How many times longer than due the demo waits before it gives up: the machine may be busy."""
STARTS_WITHIN = 120.0
"""Seconds that the user may take until the collector knows of its cascade, and the agents until they serve their cards."""
COMES_WITHIN = 60.0
"""Seconds for what comes at once where the machine is not busy."""
BINDINGS = {"jsonrpc": "JSONRPC", "rest": "HTTP+JSON", "grpc": "GRPC"}
"""What A2A calls the bindings that one can choose."""
STAYS = frozenset({*FINAL, "stalled"})
"""Verdicts that nothing takes back here: what is planted is not undone."""
NOWHERE = f"http://{LOOPBACK}:9"
"""A port where nothing listens: telemetry that is sent there is lost."""


class DemoError(RuntimeError):
    """The demo itself could not be run; the message says what to do."""


@dataclass
class Outcome:
    """What came of it."""

    fault: str
    expected: str
    verdict: str | None = None
    binding: str = "jsonrpc"
    problem: str | None = None
    after: float | None = None
    """Seconds from the start of the cascade to the verdict."""
    lag: float | None = None
    """Seconds from the end of the last hop to the moment at which the collector told of it."""
    prompt: float | None = None
    """Seconds from what was planted (the signal, or the close of the cycle) to the verdict."""
    ended: dict[str, Any] | None = None
    """How the worker ended: `agent`, `exit_code`, and what the collector's agents say of it, `how` and `pending`."""
    history: list[tuple[float, str]] = field(default_factory=list)
    """Each change of the verdict, with the seconds since the start."""
    cascade: Cascade | None = None
    url: str | None = None
    """Where this run's collector is, while it runs."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "fault": self.fault,
            "binding": self.binding,
            "expected": self.expected,
            "verdict": self.verdict,
            "ok": self.problem is None,
            "problem": self.problem,
            "after_s": self.after,
            "lag_s": self.lag,
            "prompt_s": self.prompt,
            "ended": self.ended,
            "history": [{"at_s": at, "verdict": verdict} for at, verdict in self.history],
            "cascade": self.cascade,
        }


def surroundings() -> dict[str, str]:
    """The environment, without what is meant for other agents than those of the demo.

    Settings of OpenTelemetry and of hopwatch would change what it shows, or send it to a collector that is somebody's; which
    instrumentations to leave alone stays as it is said. No proxy is asked for what is on this machine.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
        or (not name.startswith(("OTEL_", "HOPWATCH_")) and not name.lower().endswith("_proxy"))
    }
    return {**kept, "NO_PROXY": "*"}


class Cast:
    """The processes of one run: every one of them is ended at the end, and no other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.addresses: dict[str, str] = {}
        """Where agents take HTTP."""

    def start(
        self, name: str, command: list[str], environment: dict[str, str] | None = None, *, piped: bool = False
    ) -> subprocess.Popen[str]:
        """Start a process; what it prints goes into a file of the folder."""
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(  # noqa: S603 - our own programs
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else log,
                stderr=log,
                # Black boxes of this run are this run's collector's, and nobody else's.
                env={
                    **surroundings(),
                    "HOPWATCH_BLACKBOX": str(self.folder / "blackbox"),
                    **(environment or {}),
                },
                text=True,
            )
        self.processes[name] = process
        return process

    def end(self) -> None:
        """End them, the youngest first: kindly, and after 5 s not so."""
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                    process.terminate()
        until = time.monotonic() + 5
        for process in self.processes.values():
            try:
                process.wait(max(0.05, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def tail(self, name: str, lines: int = 12) -> str:
        """The last lines that a process printed."""
        path = self.folder / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


_claims: list[int] = []
"""File descriptors of the names of the ports that this process has chosen; the oldest go first."""


def _claimed(port: int) -> bool:
    """Whether nobody else is about to listen on a port: who chooses one holds a name until its process ends."""
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0hopwatch-port-{port}")
    except OSError as error:
        name.close()
        return error.errno != errno.EADDRINUSE  # where there are no such names, nobody has one
    _claims.append(name.detach())
    if len(_claims) > 256:
        os.close(_claims.pop(0))
    return True


def free_ports(count: int) -> list[int]:
    """Ports of loopback that are free right now, and below those that the kernel gives to outgoing connections.

    One of those may be taken before the program that it is for has come to listen there; nor is one given that another process
    has got from here.
    """
    try:
        given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        given = 32_768
    choose = random.SystemRandom()
    with contextlib.ExitStack() as stack:
        found: list[socket.socket] = []
        for tries in range(100 * count):
            tried = stack.enter_context(socket.socket())
            port = choose.randrange(15_000, given) if given > 20_000 and tries < 50 * count else 0
            with contextlib.suppress(OSError):
                tried.bind((LOOPBACK, port))
                if not port or _claimed(port):
                    found.append(tried)
            if len(found) == count:
                break
        return [each.getsockname()[1] for each in found]


def launcher(python: str = sys.executable) -> list[str]:
    """The stock launcher of OpenTelemetry that belongs to a Python."""
    beside = Path(python).with_name("opentelemetry-instrument")
    found = str(beside) if beside.exists() else shutil.which("opentelemetry-instrument")
    if found is None:
        raise DemoError("opentelemetry-instrument is not installed here; install hopwatch[demo]")
    return [found, python]


def players(sdk: str | None) -> list[str]:
    """What an agent of the demo is started with, before the name of its program: on the a2a-sdk that is installed, or another one.

    Raises:
        DemoError: the other one cannot be had.
    """
    if sdk is None:
        return launcher()
    from hopwatch.demo import older  # noqa: PLC0415 - seldom needed

    try:
        python = older.python_with(older.RELEASES[sdk])
    except older.NoEnvironmentError as error:
        raise DemoError(str(error)) from None
    return [*launcher(str(python)), str(AGENTS / f"sdk_{sdk.replace('.', '_')}" / "play.py")]


def program(run: list[str], name: str) -> str:
    """The program of an agent, as `run` wants it."""
    return f"{name}.py" if run[-1].endswith("play.py") else str(AGENTS / f"{name}.py")


def agent_environment(name: str, endpoint: str) -> dict[str, str]:
    """What an agent of the demo is told: where its telemetry goes, and its name. Nothing of it is hopwatch's own."""
    return {
        "OTEL_SERVICE_NAME": name,
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        # The SDK's own telemetry is some 30 spans a message, none of which is needed here.
        "OTEL_INSTRUMENTATION_A2A_SDK_ENABLED": "false",
    }


def start_collector(cast: Cast) -> str:
    """Start a collector on free ports.

    Returns:
        Its URL.
    """
    process = cast.start(
        "collector",
        [
            sys.executable,
            "-m",
            "hopwatch",
            "serve",
            "--port",
            "0",
            "--grpc-port",
            "0",
            "--store",
            str(cast.folder / "hops.sqlite"),
        ],
        piped=True,
    )
    assert process.stdout is not None  # noqa: S101 - it was asked for
    line = process.stdout.readline()
    for word in line.replace(",", " ").split():
        if word.startswith("http://"):
            return word
    raise DemoError(f"the collector did not start: {line.strip() or cast.tail('collector')}")


def start_agents(
    cast: Cast,
    fault: str,
    endpoint: str,
    slow: str,
    *,
    extra: dict[str, str] | None = None,
    binding: str = "JSONRPC",
    run: list[str] | None = None,
) -> tuple[str, int]:
    """Start worker, planner and frontdesk, and wait until each serves its card.

    Returns:
        Where the frontdesk takes messages, and a free port for the user.
    """
    worker, planner, frontdesk, user, *others = free_ports(7)
    by_grpc = dict(zip((worker, planner, frontdesk), others, strict=True)) if binding == "GRPC" else {}

    def reached(port: int) -> str:
        return f"{LOOPBACK}:{by_grpc[port]}" if by_grpc else f"http://{LOOPBACK}:{port}"

    run = run or launcher()
    plan = (
        # With `late` the worker sends another message, to the planner.
        (
            "worker",
            worker,
            reached(planner) if fault == "late" else "",
            NOWHERE if fault == "lost" else endpoint,
        ),
        ("planner", planner, reached(worker), endpoint),
        ("frontdesk", frontdesk, reached(planner), endpoint),
    )
    for name, port, to, where in plan:
        command = [
            *run,
            program(run, name),
            "--port",
            str(port),
            "--fault",
            fault,
            "--slow",
            slow,
            "--to",
            to,
            "--binding",
            binding,
            *(("--grpc-port", str(by_grpc[port])) if by_grpc else ()),
        ]
        cast.addresses[name] = f"{LOOPBACK}:{port}"
        cast.start(name, command, {**agent_environment(name, where), **(extra or {})})
    until = time.monotonic() + STARTS_WITHIN
    for name, port, _, _ in plan:
        wait_for_card(cast, name, port, until)
    return reached(frontdesk), user


def wait_for_card(cast: Cast, name: str, port: int, until: float) -> None:
    """Wait until an agent serves its card."""
    while True:
        try:
            httpx.get(
                f"http://{LOOPBACK}:{port}/.well-known/agent-card.json", timeout=5, trust_env=False
            ).raise_for_status()
        except httpx.HTTPError:
            if cast.processes[name].poll() is not None or time.monotonic() > until:
                raise DemoError(f"{name} did not start:\n{cast.tail(name)}") from None
            time.sleep(0.05)
        else:
            return


@contextlib.contextmanager
def slow_server(seconds: float, early: threading.Event | None = None) -> Iterator[str]:
    """A server that answers each connection with a line after `seconds`, or as soon as `early` is set."""
    listening = socket.create_server((LOOPBACK, 0))
    stop = early or threading.Event()

    def answer(connection: socket.socket) -> None:
        stop.wait(seconds)
        with contextlib.suppress(OSError), connection:
            connection.sendall(b"done\n")

    def accept() -> None:
        for _ in range(1000):
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield "{}:{}".format(*listening.getsockname())
    finally:
        stop.set()
        listening.close()


class Watch:
    """What the collector says of the one cascade of this run, polled."""

    def __init__(self, url: str, outcome: Outcome, show: Callable[[Cascade, Outcome], None]) -> None:
        self.outcome = outcome
        self._client = httpx.Client(base_url=url, timeout=COMES_WITHIN, trust_env=False)
        self._show = show
        self._began = time.monotonic()

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def look(self) -> Cascade | None:
        """The cascade as it stands, or None while the collector knows of none."""
        cascade = self.outcome.cascade
        if cascade is None:
            known = (
                self._client.get("/api/cascades", params={"limit": 1}).raise_for_status().json()["cascades"]
            )
            if not known:
                return None
            identifier = known[0]["cascade"]
        else:
            identifier = cascade["cascade"]
        seen: Cascade = self._client.get(f"/api/cascades/{identifier}").raise_for_status().json()
        self.outcome.cascade = cascade = seen
        self.outcome.verdict = cascade["verdict"]
        if not self.outcome.history or self.outcome.history[-1][1] != cascade["verdict"]:
            self.outcome.history.append((round(time.monotonic() - self._began, 2), cascade["verdict"]))
        self._show(seen, self.outcome)
        return seen

    def worker_ended(self) -> dict[str, Any] | None:
        """What the collector's agents say of the worker's end; None where they tell of none for as long as one waits."""
        end = time.monotonic() + COMES_WITHIN
        while True:
            agents = self._client.get("/api/agents").raise_for_status().json()["agents"]
            ended: dict[str, Any] | None = next(each["ended"] for each in agents if each["name"] == "worker")
            if ended is not None or time.monotonic() > end:
                return ended
            time.sleep(0.05)

    def until(self, wanted: Callable[[Cascade], bool], seconds: float) -> Cascade:
        """Look until the cascade is as wanted, at most so long."""
        end = time.monotonic() + seconds
        while True:
            cascade = self.look()
            if cascade is not None and wanted(cascade):
                return cascade
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.05)


def play(
    fault: str,
    show: Callable[[Cascade, Outcome], None],
    *,
    hold: Callable[[str], None] | None = None,
    folder: Path,
    binding: str = "jsonrpc",
    sdk: str | None = None,
) -> Outcome:
    """Run the demo with one fault.

    Args:
        fault: a key of `FAULTS`.
        show: is called with the cascade and what is known so far, at every look.
        hold: is called with the collector's URL at the end, before the processes are ended.
        folder: for logs and the store.
        binding: a key of `BINDINGS`: how the agents hand work to one another.
        sdk: the older a2a-sdk that the agents run on, a key of `older.RELEASES`; by default the one that is installed.

    Raises:
        DemoError: something did not start.
    """
    run = players(sdk)
    planted = FAULTS[fault]
    outcome = Outcome(fault, planted.verdict, binding=binding)
    cast = Cast(folder)
    early = threading.Event()
    try:
        with slow_server(HOLDS_FOR, early) as slow:
            endpoint = outcome.url = start_collector(cast)
            spoken = BINDINGS[binding]
            frontdesk, port = start_agents(cast, fault, endpoint, slow, binding=spoken, run=run)
            watch = Watch(endpoint, outcome, show)
            try:
                cast.start(
                    "user",
                    [
                        *run,
                        program(run, "user"),
                        *("--port", str(port), "--to", frontdesk, "--binding", spoken),
                    ],
                    agent_environment("user", endpoint),
                )
                if fault == "leak":
                    with subscriber.stalled(cast.addresses["worker"], _task_of_worker(watch)):
                        early.set()
                        _watch(watch, planted, cast, fault, outcome, early)
                    _hung_up(watch, planted, outcome)
                else:
                    _watch(watch, planted, cast, fault, outcome, early)
            finally:
                watch.close()
            if hold is not None:
                hold(endpoint)
    finally:
        cast.end()
    return outcome


def _watch(
    watch: Watch, planted: Fault, cast: Cast, fault: str, outcome: Outcome, early: threading.Event
) -> None:
    patience = planted.within * PATIENCE
    struck = None
    try:
        watch.until(lambda _: True, STARTS_WITHIN)  # the user's own start is no part of what is due
        if planted.strike is not None:
            what, ready = planted.strike
            watch.until(ready, patience)
            cast.processes["worker"].send_signal(what)
            struck = time.time()
        elif fault == "slow":
            watch.until(worker_reads, patience)
            # It counts from here: on a busy machine all of it may have gone by before anybody knew what the worker waits on.
            answer = threading.Timer(SLOW_FOR, early.set)
            answer.daemon = True
            answer.start()
        cascade = watch.until(
            lambda each: each["verdict"] == planted.verdict and planted.names(each) is None, patience
        )
    except TimeoutError:
        seen = outcome.cascade
        outcome.problem = (
            "no cascade came"
            if seen is None
            else (
                planted.names(seen) or ""
                if seen["verdict"] == planted.verdict
                else f"the verdict is {seen['verdict']}, not {planted.verdict}"
            )
        )
        return
    now = time.time()
    outcome.after = round(now - unix_time(cascade["started"]), 2)
    if planted.closes is not None:
        struck = planted.closes(cascade)
    outcome.prompt = round(now - struck, 2) if struck is not None else None
    ends = [unix_time(hop["ended"]) for hop in cascade["hops"] if hop["ended"]]
    outcome.lag = round(time.time() - max(ends), 2) if ends else None
    before = [verdict for _, verdict in outcome.history if verdict != planted.verdict]
    if not planted.before.issuperset(before):
        outcome.problem = f"before {planted.verdict} the verdict was {', '.join(before)}"
    said = [verdict for _, verdict in outcome.history]
    if planted.verdict in STAYS and said.count(planted.verdict) > 1:
        outcome.problem = f"{planted.verdict} had been said before, and was taken back"
    if planted.ending is not None and outcome.problem is None:
        outcome.problem = _ended(watch, planted.ending, cast, outcome)
    if fault == "leak" and outcome.problem is None:
        with contextlib.suppress(TimeoutError):
            watch.until(lambda each: each["verdict"] != planted.verdict, LEAKS_FOR)
            outcome.problem = f"after a while the verdict is {outcome.verdict}, not {planted.verdict}"
    if fault == "silent" and outcome.problem is None:
        cast.processes["worker"].send_signal(signal.SIGCONT)
        try:
            watch.until(lambda each: each["verdict"] == "in_flight", COMES_WITHIN)
        except TimeoutError:
            outcome.problem = f"after SIGCONT the verdict is {outcome.verdict}, not in_flight"
        # What was asked for has been seen; the verdict that counts is the one before the worker went on.
        outcome.verdict = planted.verdict
    if planted.prompt is not None and not (outcome.prompt or 0) <= planted.prompt and outcome.problem is None:
        outcome.problem = f"{planted.verdict} came after {outcome.prompt} s, not within {planted.prompt} s"


def _ended(watch: Watch, ending: Ending, cast: Cast, outcome: Outcome) -> str | None:
    """Look how the worker ended; returns what is wrong with that, if anything is."""
    try:
        code = cast.processes["worker"].wait(COMES_WITHIN)
    except subprocess.TimeoutExpired:
        return f"the worker did not end within {COMES_WITHIN:g} s"
    told = watch.worker_ended()
    how, pending = (told["how"], told["pending"]) if told else (None, {})
    outcome.ended = {"agent": "worker", "exit_code": code, "how": how, "pending": pending}
    if code != ending.exit_code:
        return f"the worker ended with {code}, not with {ending.exit_code}"
    if how != ending.how:
        return f"the collector says that the worker ended by {how}, not by {ending.how}"
    if any(pending.get(kind) != count for kind, count in ending.pending.items()):
        return f"the collector says that {pending} was pending, not {ending.pending}"
    return None


def _hung_up(watch: Watch, planted: Fault, outcome: Outcome) -> None:
    """The subscriber has hung up at last: nothing holds the worker's producer any more."""
    leaking = outcome.cascade
    if outcome.problem is None:
        try:
            watch.until(lambda each: each["verdict"] == "settled", COMES_WITHIN)
        except TimeoutError:
            outcome.problem = f"after the subscriber hung up the verdict is {outcome.verdict}, not settled"
        # What counts is what was said of the leak.
        outcome.verdict, outcome.cascade = planted.verdict, leaking


def _task_of_worker(watch: Watch) -> str:
    """The A2A task that the worker is at."""

    def task(cascade: Cascade) -> str | None:
        executions = (
            hop for hop in cascade["hops"] if hop["kind"] == "execution" and hop["agent"] == "worker"
        )
        return next((hop["task_id"] for hop in executions if hop["task_id"]), None)

    try:
        cascade = watch.until(lambda each: bool(task(each)), STARTS_WITHIN)
    except TimeoutError:
        raise DemoError(f"the worker did not begin its work within {STARTS_WITHIN:g} s") from None
    return task(cascade) or ""


def _leave(number: int, _frame: object) -> None:
    """End by a signal as by Ctrl-C: the agents and the collector are ended, too."""
    raise SystemExit(128 + number)


def main(
    fault: str = "none",
    *,
    json: bool = False,
    hold: bool = False,
    sdk: str | None = None,
    binding: str = "jsonrpc",
) -> int:
    """Run the demo and show it.

    Args:
        fault: a key of `FAULTS`.
        json: print what came of it as JSON, and nothing else.
        hold: leave everything running until control-C.
        sdk: a key of `older.RELEASES`, or None for the one that is installed.
        binding: a key of `BINDINGS`.

    Returns:
        0 exactly when the verdict and the hop that it names are the ones that the fault must give; 1 otherwise.
    """
    from hopwatch.demo.stage import Stage  # noqa: PLC0415 - rich is not needed for a run by a test

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _leave)
    folder = Path(tempfile.mkdtemp(prefix="hopwatch-demo-"))
    stage = Stage(fault, FAULTS[fault], quiet=json)
    try:
        with stage:
            outcome = play(
                fault, stage.show, hold=stage.hold if hold else None, folder=folder, binding=binding, sdk=sdk
            )
    except DemoError as error:
        print(f"hopwatch demo: {error}", file=sys.stderr)  # noqa: T201
        print(f"What the processes printed is in {folder}.", file=sys.stderr)  # noqa: T201
        return 1
    except (KeyboardInterrupt, SystemExit) as end:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(end, SystemExit):
            raise
        return 130
    if json:
        print(jsonlib.dumps(outcome.as_dict(), indent=2))  # noqa: T201
    else:
        stage.verdict(outcome)
    if outcome.problem is not None:
        print(f"What the processes printed is in {folder}.", file=sys.stderr)  # noqa: T201
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0
