"""How is an agent started with everything set up, and was anything pending when it ended? `hopwatch run`.

The stock launcher `opentelemetry-instrument` does the work, in this process: it prepares the environment and replaces
the process by the program. With `--gate` that happens in a child, and this process stays to pass on signals, to read
what the child reported at its end, and to end the same way. Only the standard library and the launcher are needed, so
that it runs where an agent runs, without the extra `collector`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from hopwatch.cli.text import count, plain
from hopwatch.tokens import VARIABLE, TokenError, put_into, read_token

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping, Sequence

PENDING: Final = 17
"""The exit code of `--gate` where something was pending, or where nobody can say."""
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
DEFAULT_URL: Final = "http://127.0.0.1:4318"
LARGEST_REPORT: Final = 16 * 1024 * 1024
"""Bytes of a report that are read; a larger one is no report."""
MOST_SHOWN: Final = 100
"""Pending things that are printed; the number of all is always told."""
_FORWARDED: Final = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGALRM")
    if hasattr(signal, name)
)
_FROM_THE_KERNEL: Final = 0x80
"""`si_code` of a signal that a terminal sent: to all of its foreground process group, the program among them."""
_SERVERS: Final = frozenset({"uvicorn", "hypercorn", "gunicorn", "granian", "daphne"})
"""Programs that run `module:application`; the module is a better name for an agent than theirs."""
_PYTHON: Final = re.compile(r"(python|pypy)[0-9.]*t?(\.exe)?")
"""What interpreters are called."""
_NOT_THERE: Final = 3
"""What a Python ends with that is asked for hopwatch and has none."""
_SAY_NOTHING: Final = frozenset({"main", "app", "server", "asgi", "wsgi"})
"""Names that the scripts and modules of many agents have; their folder's is a better one."""
_SAY_NOTHING_EITHER: Final = frozenset({*_SAY_NOTHING, "src", "code", "workspace", "usr", "home", "tmp", ""})
"""Folders' names that are no better."""
_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy")
ANSWERS_WITHIN: Final = 0.5
"""Seconds that a collector has to take a connection, before the user is told that none answers."""
_WITH_VALUE: Final = frozenset({"-W", "-X", "--check-hash-based-pycs"})
"""Options of Python that take the next argument as their value."""
_EXPORTERS: Final = {
    "grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "http/protobuf": "opentelemetry-exporter-otlp-proto-http",
}


class RunError(Exception):
    """The program cannot be started; the message says why and what to do."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


# The environment -------------------------------------------------------------------------------------------------


def service_name(command: Sequence[str]) -> str:
    """What an agent is called that is started by this command: its script, its module, or its program.

    Args:
        command: as `["python", "-m", "shop.worker"]` (`shop.worker`), `["python", "worker.py"]` (`worker`),
            `["uvicorn", "worker:app"]` (`worker`), or `["python", "worker/main.py"]` (`worker`, for `main` would say nothing).
    """
    named, folder = _script(command)
    if named in _SAY_NOTHING and (better := folder.resolve().name).lower() not in _SAY_NOTHING_EITHER:
        return better
    return named


def _script(command: Sequence[str]) -> tuple[str, Path]:
    """What a command runs, and the folder in which that is looked for."""
    here = Path()
    program = os.path.basename(command[0])  # noqa: PTH119 - compared as text
    rest = list(command[1:])
    if _PYTHON.fullmatch(program):
        while rest:
            given = rest.pop(0)
            if given == "-m" and rest:
                program = rest.pop(0)
                break
            if given.startswith("-m") and len(given) > 2:
                program = given[2:]
                break
            if given.startswith("-c"):
                return program, here
            if given in _WITH_VALUE and rest:
                rest.pop(0)
            elif given != "-" and not given.startswith("-"):
                path = Path(given)
                name = path.parent.resolve().name if path.name == "__main__.py" else path.stem
                return name or program, path.parent
        else:
            return program, here
    if program.partition(".")[0] in _SERVERS:
        for given in rest:
            module, colon, _ = given.partition(":")
            if colon and re.fullmatch(r"[A-Za-z_][\w.]*", module):
                return module, here
    return program.removesuffix(".py").removesuffix(".__main__"), Path(command[0]).parent


def set_defaults(
    environment: MutableMapping[str, str],
    command: Sequence[str],
    url: str | None = None,
    token: str | None = None,
) -> str | None:
    """Put what an agent needs into its environment, where that says nothing yet.

    Args:
        environment: is changed.
        command: the program and its arguments.
        url: the collector, if one was named; it then replaces what the environment says of OTLP.
        token: what the collector wants, if it was named. Otherwise that in the file that `HOPWATCH_TOKEN_FILE` names
            is sent, but only where it is us who say where telemetry goes: nobody else shall get it.

    Returns:
        The collector's address, where it is us who say where telemetry goes.

    Raises:
        TokenError: the file that `HOPWATCH_TOKEN_FILE` names cannot be used.
    """
    named = re.search(
        r"(?:^|,)\s*service\.name\s*=\s*[^\s,]", environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    )
    if not environment.get("OTEL_SERVICE_NAME", "").strip() and named is None:
        environment["OTEL_SERVICE_NAME"] = service_name(command)
    if url is not None:
        for part in ("TRACES_", "METRICS_", "LOGS_", ""):
            environment.pop(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT", None)
            environment.pop(f"OTEL_EXPORTER_OTLP_{part}PROTOCOL", None)
    for part in ("TRACES", "METRICS", "LOGS"):
        _default(environment, f"OTEL_{part}_EXPORTER", "otlp")
    # An address without a protocol is one for gRPC, Python's default: so both are chosen together, or neither.
    says = {
        key
        for key in environment
        if re.fullmatch(r"OTEL_EXPORTER_OTLP_(TRACES_|METRICS_|LOGS_)?(ENDPOINT|PROTOCOL)", key)
        and environment[key].strip()
    }
    if not says:
        environment["OTEL_EXPORTER_OTLP_PROTOCOL"] = "http/protobuf"
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = (
            url or environment.get("HOPWATCH_URL", "").strip() or DEFAULT_URL
        ).rstrip("/")
        authorities = environment.get("SSL_CERT_FILE", "").strip()
        if authorities and environment["OTEL_EXPORTER_OTLP_ENDPOINT"].startswith("https://"):
            _default(environment, "OTEL_EXPORTER_OTLP_CERTIFICATE", authorities)
        # The collector needs neither metrics nor logs: they shall not hold up the program's end for long where it is not there.
        if not environment.get("OTEL_EXPORTER_OTLP_TIMEOUT", "").strip():
            _default(environment, "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "2")
            _default(environment, "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "2")
        file = environment.get(VARIABLE, "").strip()
        if token is None and file:
            token = read_token(file)
    if token is not None:
        put_into(environment, token)
    _default(environment, "OTEL_INSTRUMENTATION_A2A_SDK_ENABLED", "false")
    return None if says else environment["OTEL_EXPORTER_OTLP_ENDPOINT"]


def _default(environment: MutableMapping[str, str], name: str, value: str) -> None:
    if not environment.get(name, "").strip():
        environment[name] = value


def find(command: Sequence[str]) -> str:
    """The file that a command runs, as a shell finds it.

    Raises:
        RunError: there is none (127), or it cannot be executed (126).
    """
    name = command[0]
    found = shutil.which(name)
    if found is not None:
        return found
    if os.sep in name and Path(name).exists():
        raise RunError(
            f"{plain(name)} cannot be executed. Start it with its interpreter, as in `hopwatch run -- python {plain(name)}`.",
            NOT_EXECUTABLE,
        )
    beside = shutil.which(name, path=os.path.dirname(sys.executable))  # noqa: PTH120 - as given to a shell
    if beside is not None:
        raise RunError(
            f"there is no command {plain(name)!r} on the path. There is {plain(beside)}: activate its environment, or name it so.",
            NOT_FOUND,
        )
    raise RunError(
        f"there is no command {plain(name)!r}. What is run is a program with its arguments, as in `hopwatch run -- python agent.py`.",
        NOT_FOUND,
    )


def check_installed(environment: Mapping[str, str], program: str) -> None:
    """Look whether launcher and exporter are there, if the program runs in this Python's environment; and whether another Python has hopwatch.

    Raises:
        RunError: one of them is missing. The message names the extra that brings it, or the Python that has hopwatch.
    """
    if os.path.dirname(os.path.abspath(program)) != os.path.dirname(os.path.abspath(sys.executable)):  # noqa: PTH100, PTH120 - links stay as they are
        _check_other(program)
        return  # its packages are not those that can be seen from here
    needed = ["opentelemetry-instrumentation", "opentelemetry-distro"]
    chosen = {each.strip() for each in environment.get("OTEL_TRACES_EXPORTER", "").split(",")}
    if "otlp" in chosen:
        protocol = (
            environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "").strip()
            or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip()
            or "grpc"
        )
        if protocol in _EXPORTERS:
            needed.append(_EXPORTERS[protocol])
    for distribution in needed:
        try:
            metadata.version(distribution)
        except metadata.PackageNotFoundError:
            raise RunError(
                f"{distribution} is not installed, and without it nothing would be told of the program. "
                "Remedy: pip install 'hopwatch[otlp]'",
                1,
            ) from None


def _check_other(program: str) -> None:
    """Ask a Python that is not this one's environment whether it has hopwatch: without, the program would run and nobody see it."""
    if not _PYTHON.fullmatch(os.path.basename(program)):  # noqa: PTH119 - compared as text
        return
    asks = f"import importlib.util, sys; sys.exit({_NOT_THERE} if importlib.util.find_spec('hopwatch') is None else 0)"
    try:
        answer = subprocess.run(  # noqa: S603 - what the user wants run, which is asked a question first
            [program, "-c", asks], capture_output=True, stdin=subprocess.DEVNULL, timeout=20, check=False
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        return  # then it says itself what is wrong with it
    if answer == _NOT_THERE:
        raise RunError(
            f"{plain(program)} has no hopwatch, so nothing would be told of the program. Activate the environment that has it, "
            f"or name its Python: {plain(sys.executable)}",
            1,
        )


# The program -----------------------------------------------------------------------------------------------------


def become(command: Sequence[str]) -> NoReturn:
    """Replace this process by the program, as `opentelemetry-instrument` does."""
    from opentelemetry.instrumentation.auto_instrumentation import run as launch  # noqa: PLC0415 - slow to import

    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and what is ignored stays so in the program
        with contextlib.suppress(AttributeError):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    sys.argv = ["opentelemetry-instrument", *command]
    try:
        launch()
    except OSError as error:
        code = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
        raise RunError(f"{plain(command[0])} cannot be run: {error.strerror or error}.", code) from None
    raise AssertionError("the launcher has replaced this process")


def supervise(command: Sequence[str]) -> tuple[int, int]:
    """Run the program as a child in the same process group and terminal, and pass signals on to it.

    Returns:
        Its process id, and what `os.waitpid` says of its end.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGCHLD)}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the child's status away
    watched = {*_FORWARDED, signal.SIGCHLD}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for each, handler in before.items():
                ours = handler is signal.default_int_handler
                signal.signal(each, signal.SIG_DFL if ours or handler is None else handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            become(command)
        except RunError as error:
            code = error.code
            _say(str(error))
        except BaseException as error:  # noqa: BLE001 - a forked child never returns into its parent's code
            _say(f"the launcher failed: {plain(repr(error))}")
        finally:
            sys.stderr.flush()
            os._exit(code)
    try:
        while True:
            number, sent = _next_signal(watched)
            if number != signal.SIGCHLD:
                if sent:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, number)
                continue
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended == child:
                return child, status
    finally:
        # What came for a child that is gone is dropped: the way in which it ended is what counts.
        pending = signal.sigpending() & set(_FORWARDED)
        for _ in pending:
            signal.sigwait(pending)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _next_signal(watched: set[signal.Signals]) -> tuple[int, bool]:
    """The next signal, and whether it is for us to pass on: what a terminal sends the program gets itself."""
    wait = getattr(signal, "sigwaitinfo", None)
    if wait is None:  # not on macOS
        number = signal.sigwait(watched)
        return number, not (number in (signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH) and os.isatty(0))
    info = wait(watched)
    return info.si_signo, info.si_code != _FROM_THE_KERNEL


def end_like(status: int) -> NoReturn:
    """End this process as the child ended: with its exit code, or by the same signal."""
    if os.WIFSIGNALED(status):
        import resource  # noqa: PLC0415 - only here

        number = os.WTERMSIG(status)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
        sys.exit(128 + number)  # a signal that does not end anything
    sys.exit(os.WEXITSTATUS(status))


# What was pending ------------------------------------------------------------------------------------------------


def read_report(path: Path) -> dict[str, Any] | None:
    """What the program reported at its end, or None where it left no report that can be read."""
    try:
        if path.stat().st_size > LARGEST_REPORT:
            return None
        report = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(report, dict) or not isinstance(report.get("pending"), list):
        return None
    if not all(isinstance(each, dict) for each in report["pending"]):
        return None
    return report


def reports_of_children(path: Path) -> Iterator[Path]:
    """The reports of processes that the program forked: the same name, with a dot and their process id behind it."""
    with contextlib.suppress(OSError):
        for found in path.parent.iterdir():
            if re.fullmatch(re.escape(path.name) + r"\.[0-9]+", found.name):
                yield found


def read_all(path: Path) -> dict[str, Any] | None:
    """The program's report, with what its forked children reported; None where it left none itself."""
    report = read_report(path)
    if report is not None:
        for found in sorted(reports_of_children(path)):
            of_child = read_report(found)
            report["pending"].extend(of_child["pending"] if of_child is not None else ())
    return report


def lines(report: Mapping[str, Any] | None, command: Sequence[str], how: str) -> Iterator[str]:
    """The report for a person, line by line.

    Args:
        report: as `read_report` has it; None where there is none.
        command: the program.
        how: how it ended.
    """
    program = plain(" ".join(command), 80)
    if report is None:
        yield f"hopwatch: unknown: no report. {program} {how}, and left no account of what was pending."
        yield (
            "  Either it was killed, or hopwatch did not run in it: `hopwatch doctor`, with its Python and environment, says why."
        )
        return
    pending = report["pending"]
    number = f"{len(pending):,} thing{'s were' if len(pending) != 1 else ' was'}"
    ended = f", by way of {plain(report['ended'])}" if report.get("ended") else ""
    yield f"hopwatch: {number} pending when {program} ended (it {how}{ended})."
    for each in pending[:MOST_SHOWN]:
        yield f"  {plain(each.get('kind')) or 'work'} {plain(each.get('name')) or 'without a name'}"
        if each.get("location"):
            yield f"    made at {plain(each['location'])}"
        waits = _waited_on(each.get("waits_on"))
        if waits:
            yield f"    waited for {waits}"
        if each.get("reason"):
            yield f"    {plain(each['reason'])}"
        if each.get("cascade"):
            hop = f", hop {plain(each['id'])}" if each.get("id") else ""
            yield f"    of the cascade {plain(each['cascade'])}{hop}"
    if len(pending) > MOST_SHOWN:
        yield f"  ... and {len(pending) - MOST_SHOWN:,} more"


def _waited_on(waits: object) -> str:
    if not isinstance(waits, dict):
        return plain(waits)
    text = plain(waits.get("what")) or plain(waits.get("kind"))
    if waits.get("file"):
        text += f" at {plain(waits['file'])}:{plain(waits.get('line'))}"
        text += f" in {plain(waits['function'])}" if waits.get("function") else ""
    return text


def left_by_the_dead(pid: int, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What the black box of a process tells that died without a word, in the form of a report.

    The box is only read: whoever reaps it (a collector on this host, the next process, `hopwatch reap`) exports it. So
    it stays in the folder where they look.
    """
    try:
        from hopwatch import blackbox  # noqa: PLC0415
        from hopwatch.process import read_settings  # noqa: PLC0415

        folder = read_settings(environment).blackbox
        if folder is None:
            return None
        boxes = [blackbox.read(path) for path in Path(folder).glob(f"*-{pid}-*.box")]
    except Exception:  # noqa: BLE001 - a box that cannot be read leaves us where we were: not knowing
        return None
    if not boxes:
        return None
    box = max(
        boxes, key=lambda each: int(each.started)
    )  # an older one is that of a process that had this id before
    pending = [
        {"kind": hop.kind, "name": hop.name, "id": hop.id, "cascade": hop.cascade, "reason": box.reason}
        for hop in box.hops
    ]
    if box.torn or box.unplaced:
        more = count(box.torn + box.unplaced, "more hop")
        pending.append({"kind": "work", "name": more, "reason": box.reason})
    return {
        "ended": box.leaving or "killed", "pid": pid, "agent": box.agent, "instance": box.instance, "pending": pending
    }  # fmt: skip


# The command -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """`hopwatch run`: never returns."""
    options = _parser().parse_args(sys.argv[2:] if arguments is None else list(arguments))
    command: list[str] = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command or not command[0]:
        _parser().error(
            "no command is given. Write the program behind the options: hopwatch run -- python agent.py"
        )
    try:
        try:
            _address(options.url or os.environ.get("HOPWATCH_URL", "").strip() or DEFAULT_URL)
        except argparse.ArgumentTypeError as error:
            raise RunError(f"HOPWATCH_URL: {error}.", 2) from None
        try:
            collector = set_defaults(os.environ, command, options.url, options.token)
        except TokenError as error:
            raise RunError(f"{VARIABLE}: {error}.", 2) from None
        check_installed(os.environ, find(command))
        _tell_of_settings()
        if collector is not None and "otlp" in os.environ["OTEL_TRACES_EXPORTER"]:
            _tell_if_nobody_answers(collector)
        if options.drain is not None:
            os.environ["HOPWATCH_DRAIN"] = f"{options.drain:g}"
        if not options.gate and options.report is None:
            become(command)
        _watch(command, options.report, gate=options.gate)
    except RunError as error:
        _say(str(error))
        sys.exit(error.code)


def _tell_of_settings() -> None:
    """Say which settings cannot be used. The program's log may be set up only after hopwatch has read them."""
    from hopwatch.process import read_settings  # noqa: PLC0415 - slow to import

    for problem in read_settings().problems:
        sys.stderr.write(f"hopwatch: {plain(problem)}.\n")


def _tell_if_nobody_answers(collector: str) -> None:
    """Say so if no collector takes a connection: whoever starts a first agent may have forgotten to start one."""
    from urllib.parse import urlsplit  # noqa: PLC0415 - slow to import

    address = urlsplit(collector)
    if any(os.environ.get(name) for proxy in _PROXIES for name in (proxy, proxy.upper())):
        return  # the exporter may go another way
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), ANSWERS_WITHIN).close()
    except OSError as error:
        why = plain(error.strerror or str(error))
        sys.stderr.write(
            f"hopwatch: no collector answers at {plain(collector)} ({why}). The program runs all the same; as long as there is none, nothing is "
            "known of it, its exporters say so, and its end takes some seconds more. Remedy: start `hopwatch serve`, or name the collector by --url.\n"
        )


def _watch(command: list[str], path: str | None, *, gate: bool) -> NoReturn:
    with contextlib.ExitStack() as stack:
        if path is not None:
            report = Path(path).absolute()
        elif os.environ.get("HOPWATCH_REPORT", "").strip():
            report = Path(os.environ["HOPWATCH_REPORT"].strip()).absolute()
        else:
            report = (
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hopwatch-"))) / "report.json"
            )
        try:
            for old in (
                report,
                *reports_of_children(report),
            ):  # an earlier run's must not be taken for this one's
                old.unlink(missing_ok=True)
            if not os.access(report.parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise RunError(f"no report can be written to {plain(report)}: {error.strerror}.", 2) from None
        os.environ["HOPWATCH_REPORT"] = str(report)
        child, status = supervise(command)
        found = read_all(report)
        if found is None:
            found = left_by_the_dead(child, os.environ)
            if path is not None:  # somebody wants to read it: it says at least that nobody knows
                missing = {"ended": "unknown", "pid": child, "pending": None, "reason": "no report"}
                with contextlib.suppress(OSError):
                    report.write_text(json.dumps(found or missing, indent=2) + "\n", "utf-8")
    if found is not None and not found["pending"]:
        end_like(status)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            how = f"died by {signal.Signals(number).name}"
        except ValueError:
            how = f"died by signal {number}"
    else:
        how = f"ended with {os.WEXITSTATUS(status)}"
    if gate:
        sys.stderr.write("".join(f"{each}\n" for each in lines(found, command, how)))
        sys.stderr.flush()
        sys.exit(PENDING)
    end_like(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hopwatch run",
        usage="hopwatch run [--gate] [--drain SECONDS] [--report FILE] [--url URL] [--token-file FILE] -- COMMAND [ARGUMENT ...]",
        description="Run an agent as opentelemetry-instrument does, with an exporter to the collector. "
        "What the environment says goes before the defaults. The program takes the place of this process.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--gate",
        action="store_true",
        help=f"watch the program: end with {PENDING} if anything was pending at its end, and say what; "
        "otherwise end as it ended",
    )
    parser.add_argument(
        "--drain",
        type=_seconds,
        metavar="SECONDS",
        help="when its event loop ends, let what is pending finish for so long (HOPWATCH_DRAIN)",
    )
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="write what was pending at its end to this file, as JSON (HOPWATCH_REPORT)",
    )
    parser.add_argument(
        "--url", type=_address, help=f"the collector; by default HOPWATCH_URL, or {DEFAULT_URL}"
    )
    parser.add_argument(
        "--token-file",
        dest="token",
        type=_token,
        metavar="FILE",
        help=f"a file with the token that the collector wants, if it wants one; by default {VARIABLE}",
    )
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the program and its arguments"
    )
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 3600")
    return value


def _address(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", text.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not an address such as {DEFAULT_URL}")
    return text.strip().rstrip("/")


def _token(text: str) -> str:
    try:
        return read_token(text)
    except TokenError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _say(sentence: str) -> None:
    sys.stderr.write(f"Error: {sentence}\n")
