"""What can one type? The commands and options of `hopwatch`, and how each ends."""

from __future__ import annotations

import importlib.util
import json as json_format
import math
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from hopwatch.cli.client import DEFAULT_URL, Collector, CollectorError, NotKnown, Refused, checked_url
from hopwatch.collector.options import access_options
from hopwatch.tokens import VARIABLE, TokenError, read_token
from hopwatch.verdict import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from hopwatch.cli.watch import Sight
    from hopwatch.collector.access import Access

    Command = TypeVar("Command", bound=Callable[..., Any])

INTERRUPTED: Final = 130
"""What a shell takes for "ended by Ctrl-C"."""


class _Commands(click.Group):
    """Turns each way in which a command may fail into one sentence and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Refused as error:
            raise click.UsageError(str(error)) from None
        except CollectorError as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


# Kinds of values -----------------------------------------------------------------------------------------------


def _verdict(value: str) -> str:
    spelt = re.sub(r"[-\s]+", "_", value.strip().lower())  # "in flight" and in-flight do for in_flight
    if spelt not in NAMES:
        raise click.BadParameter(f"{value!r} is not a verdict: it is one of {', '.join(NAMES)}.")
    return spelt


def _cascade_id(value: str) -> str:
    text = value.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{1,32}", text):
        raise click.BadParameter(
            f"{value!r} is not a cascade's id: it is 32 hex digits, or the first few of them."
        )
    return text


def _seconds(value: str | float) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 10_000_000:
        raise click.BadParameter(f"{value!r} is not a number of seconds from 0 to 10000000.")
    return seconds


def _duration(value: str) -> float:
    from hopwatch.collector.serve import parse_duration  # noqa: PLC0415 - heavy, and only `serve` needs it

    try:
        return float(parse_duration(value))
    except ValueError as error:
        raise click.BadParameter(
            str(error) or f"{value!r} is not a duration such as 7d, 12h, 30m or 45s."
        ) from None


def _size(value: str) -> int:
    from hopwatch.collector.serve import parse_size  # noqa: PLC0415 - heavy, and only `serve` needs it

    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def _folder(value: str) -> str:
    if value.strip().lower() == "off":
        return "off"
    path = os.path.expanduser(value.strip())  # noqa: PTH111 - pathlib's raises where there is no home
    if not os.path.isabs(path):  # noqa: PTH117
        raise click.BadParameter(f"{value!r} is neither the absolute path of a folder nor off.")
    return path


def _trace_url(value: str) -> str:
    from hopwatch.collector.pages import parse_trace_url  # noqa: PLC0415 - heavy, and only `serve` needs it

    try:
        return parse_trace_url(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def _address(value: str) -> str:
    try:
        return checked_url(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def _token_in(value: str) -> str:
    try:
        return read_token(value)
    except TokenError as error:
        raise click.BadParameter(f"{error}.") from None


def _fault(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from hopwatch.demo.faults import FAULTS  # noqa: PLC0415 - only `demo` needs it

    if value not in FAULTS:
        raise click.BadParameter(f"{value!r} is not one of {', '.join(FAULTS)}.", ctx, param)
    return value


def _url(command: Command) -> Command:
    return click.option(
        "--url",
        type=_address,
        metavar="URL",
        envvar="HOPWATCH_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        help="The collector.",
    )(command)


def _token(command: Command) -> Command:
    return click.option(
        "--token-file",
        "token",
        type=_token_in,
        metavar="FILE",
        envvar=VARIABLE,
        show_envvar=True,
        help="A file with the token that the collector wants, if it wants one.",
    )(command)


def _json(what: str) -> Callable[[Command], Command]:
    return click.option("--json", "as_json", is_flag=True, help=f"Write {what} as JSON.")


_ID: Final = click.argument("wanted", metavar="ID", type=_cascade_id)


# The commands ----------------------------------------------------------------------------------------------------


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="hopwatch", message="hopwatch %(version)s")
def hopwatch() -> None:
    """Say which hop of a cascade of A2A agents is in flight, what it waits on, and when all of it is provably done."""


@hopwatch.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=4318,
    show_default=True,
    help="For OTLP/HTTP and the API.",
)
@click.option(
    "--grpc-port", type=click.IntRange(0, 65535), default=4317, show_default=True, help="For OTLP/gRPC."
)
@click.option("--store", metavar="PATH", help="The file that keeps the hops.")
@click.option(
    "--retain",
    type=_duration,
    metavar="DURATION",
    default="7d",
    show_default=True,
    help="How long a cascade is kept: 7d, 12h, 30m, 45s.",
)
@click.option(
    "--max-size",
    type=_size,
    metavar="SIZE",
    default="2GiB",
    show_default=True,
    help="How large the store may become.",
)
@click.option(
    "--blackbox",
    type=_folder,
    metavar="DIR|off",
    help="Where this host's agents keep their black boxes; by default as theirs.",
)
@access_options
@click.option(
    "--trace-url",
    type=_trace_url,
    metavar="URL",
    envvar="HOPWATCH_TRACE_URL",
    help="Where traces are to be seen, with {trace} and perhaps {span} in it: the page links there.",
)
def serve(
    *,
    host: str,
    port: int,
    grpc_port: int,
    store: str | None,
    retain: float,
    max_size: int,
    blackbox: str | None,
    access: Access,
    trace_url: str | None,
) -> None:
    """Run a collector: OTLP in, verdicts out, and a live page at `/`."""
    from hopwatch.collector.serve import ServeError  # noqa: PLC0415 - heavy, and only this command needs it
    from hopwatch.collector.serve import serve as collect  # noqa: PLC0415

    try:
        collect(
            host=host,
            port=port,
            grpc_port=grpc_port,
            store=store,
            retain=retain,
            max_size=max_size,
            blackbox=_blackbox(blackbox),
            access=access,
            trace_url=trace_url,
        )
    except ServeError as error:
        raise click.ClickException(str(error)) from None


@hopwatch.command()
@click.option(
    "--verdict",
    "verdicts",
    type=_verdict,
    metavar="VERDICT",
    multiple=True,
    help="Only these; may be given several times.",
)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many.")
@_url
@_token
@_json("the list")
def ls(*, verdicts: tuple[str, ...], limit: int, url: str, token: str | None, as_json: bool) -> None:
    """List the latest cascades with their verdicts."""
    from hopwatch.cli import listing  # noqa: PLC0415 - rich is slow to import where JSON is wanted

    with Collector(url, token) as collector:
        rows = collector.cascades(verdicts, limit)
    if as_json:
        _write_json({"cascades": rows})
    elif not rows:
        kind = f" with the verdict {' or '.join(verdicts)}" if verdicts else ""
        click.echo(f"The collector at {url} has no cascade{kind}.", err=True)
    elif in_terminal():
        _console().print(listing.table(rows))
    else:
        click.echo("\n".join(listing.lines(rows)))


@hopwatch.command()
@_url
@_token
@click.pass_context
def top(ctx: click.Context, *, url: str, token: str | None) -> None:
    """Watch cascades and agents live in the terminal, by keyboard: what the collector's page shows. `?` tells the keys."""
    if not _at_a_terminal():
        raise click.UsageError(
            "`hopwatch top` needs a terminal to draw on and to read keys from. `hopwatch ls` lists the same without one."
        )
    try:
        from hopwatch.cli.top.app import Top  # noqa: PLC0415 - Textual takes a third of a second, and only this needs it
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "textual":
            raise
        raise click.ClickException(
            "`hopwatch top` needs textual, which is not installed. Remedy: pip install 'hopwatch[collector]'"
        ) from None
    with Collector(
        url, token
    ) as collector:  # nobody wants a whole screen to be told that there is no collector
        trace_url = collector.trace_url()
    app = Top(url, token, trace_url)
    app.run()
    ctx.exit(app.return_code or 0)


@hopwatch.command()
@_ID
@_url
@_token
@_json("the cascade")
def show(*, wanted: str, url: str, token: str | None, as_json: bool) -> None:
    """Show one cascade: its verdict, its hops, and what each open one waits on.

    ID is a cascade's id, or as much of its beginning as no other cascade has.
    """
    with Collector(url, token) as collector:
        try:
            cascade = collector.cascade(wanted)
        except NotKnown as error:
            sentence = str(error).rstrip(".")
            raise click.ClickException(
                f"{sentence}. `hopwatch ls` lists what the collector at {url} knows."
            ) from None
    if as_json:
        _write_json(cascade)
    else:
        _write_cascade(cascade)


@hopwatch.command()
@_ID
@click.option(
    "--timeout",
    type=_seconds,
    metavar="SECONDS",
    default=60.0,
    show_default=True,
    help="Seconds to wait at most.",
)
@click.option(
    "--until",
    type=_verdict,
    metavar="VERDICT",
    multiple=True,
    help="End on this verdict too; may be given several times.",
)
@click.option(
    "--strict", is_flag=True, help="Settled up to a peer that is not instrumented counts as unknown."
)
@_url
@_token
@_json("the final cascade")
@click.pass_context
def wait(
    ctx: click.Context,
    *,
    wanted: str,
    timeout: float,
    until: tuple[str, ...],
    strict: bool,
    url: str,
    token: str | None,
    as_json: bool,
) -> None:
    """Wait until a cascade is over, and tell by the exit code how.

    ID is a cascade's id, or as much of its beginning as no other cascade has.

    Ends as soon as the verdict is final: 0 settled, 13 stranded, 14 broken. Ends at the timeout with 10 in_flight,
    11 waiting, 12 stalled, 15 silent, 16 unknown.
    """
    from hopwatch.cli.watch import watch  # noqa: PLC0415 - only this command needs it

    with Collector(url, token) as collector:
        sights = watch(collector.cascade, wanted, timeout=timeout, until=until, strict=strict)
        if as_json:
            last = _last(sights)
            _write_json(last.cascade)
        elif in_terminal():
            last = _watch_in_terminal(sights)
        else:
            last = _watch_in_pipe(sights)
    if not last.known:
        click.echo(
            f"The collector at {url} has not heard of a cascade {wanted} within {timeout:g} s.", err=True
        )
    ctx.exit(last.code)


@hopwatch.command(
    "run",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Run an agent with everything set up: hopwatch run -- python agent.py.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run_agent(*, arguments: tuple[str, ...]) -> None:
    """Run an agent with everything set up. `hopwatch.cli` hands this on before it comes here."""
    from hopwatch.cli.run import main as launch  # noqa: PLC0415 - only this command needs it

    launch(arguments)


@hopwatch.command()
@click.argument("pid", required=False, type=click.IntRange(1, 2**31 - 1))
@click.option(
    "--watch",
    "every",
    type=_seconds,
    metavar="SECONDS",
    help="Ask again every so many seconds, until Ctrl-C.",
)
@_json("what the process, or each of them, said")
def ps(*, pid: int | None, every: float | None, as_json: bool) -> None:
    """Ask running processes of this user what they do: open hops, tasks, and what each waits on, as a tree.

    Without PID it lists the processes that can be asked. They need no preparation beyond hopwatch itself.
    """
    from hopwatch.cli import ps as asking  # noqa: PLC0415 - only this command needs it

    while True:
        try:
            if pid is None:
                rows = asking.everybody()
            else:
                document = asking.ask(asking.process(pid), "all")
        except asking.PsError as error:
            raise click.ClickException(str(error)) from None
        if every is not None and in_terminal():
            click.clear()
        if pid is not None:
            if as_json:
                _write_json(document)
            elif in_terminal():
                _console().print(asking.drawn(asking.tree(document)))
            else:
                click.echo("\n".join(asking.tree_lines(asking.tree(document))))
        elif as_json:
            _write_json({"processes": [asking.as_object(*row) for row in rows]})
        elif not rows:
            click.echo("No process of this user can be asked: none was started with hopwatch.", err=True)
        elif in_terminal():
            _console().print(asking.list_table(rows))
        else:
            click.echo("\n".join(asking.list_lines(rows)))
        if every is None:
            return
        time.sleep(max(0.1, every))


@hopwatch.command()
@click.option("--fault", default="none", show_default=True, callback=_fault, help="What goes wrong in it.")
@click.option(
    "--binding",
    type=click.Choice(("jsonrpc", "rest", "grpc")),
    default="jsonrpc",
    show_default=True,
    help="How the agents hand work to one another.",
)
@click.option(
    "--sdk",
    type=click.Choice(["0.3"]),
    help="Run the agents on a2a-sdk 0.3 (0.3.26), in an environment of their own that is made on first use.",
)
@click.option("--hold", is_flag=True, help="Leave agents and collector running until Ctrl-C.")
@_json("what was planted, what came of it, and the cascade")
@click.pass_context
def demo(ctx: click.Context, *, fault: str, binding: str, sdk: str | None, hold: bool, as_json: bool) -> None:
    """Run three real agents that hand work to each other, with a fault if one is wanted, and watch them."""
    from hopwatch.demo.run import main as demonstrate  # noqa: PLC0415 - only this command needs it

    if sdk is not None and fault == "leak":
        raise click.UsageError("the fault leak is one of the engine of a2a-sdk 1.x; leave --sdk out.")
    if sdk is not None and binding == "grpc":
        raise click.UsageError("the agents on a2a-sdk 0.3 do not speak gRPC; leave --sdk out.")
    if importlib.util.find_spec("a2a") is None:
        raise click.ClickException(
            "the demo's agents need a2a-sdk, which is not installed. Remedy: pip install 'hopwatch[demo]', or `make demo` in a checkout"
        )
    ctx.exit(demonstrate(fault=fault, json=as_json, hold=hold, sdk=sdk, binding=binding))


@hopwatch.command()
@_url
@_token
@_json("what was found")
@click.pass_context
def doctor(ctx: click.Context, *, url: str, token: str | None, as_json: bool) -> None:
    """Look at what is instrumented here, where telemetry goes, and what stands in its way.

    Looks at the Python and the environment that it runs with: run it as your agents are run. Ends with 0 if there
    is no problem, else with 1.
    """
    from hopwatch.cli import doctor as surgery  # noqa: PLC0415 - only this command needs it

    findings = surgery.examine(os.environ, url, token)
    healthy = not any(each.level == "problem" for each in findings)
    if as_json:
        _write_json({"ok": healthy, "findings": [each.as_dict() for each in findings]})
    elif in_terminal():
        _console().print(surgery.table(findings))
    else:
        click.echo("\n".join(surgery.lines(findings)))
    ctx.exit(0 if healthy else 1)


@hopwatch.command("reap")
@click.option(
    "--folder",
    type=_folder,
    metavar="DIR",
    help="Where the black boxes are; by default where agents put them.",
)
@_url
@_token
@_json("what was found")
@click.pass_context
def reap_dead(ctx: click.Context, *, folder: str | None, url: str, token: str | None, as_json: bool) -> None:
    """Tell a collector what was open in processes of this host that died.

    A collector on the same host does that by itself, and so does the next process of the same agent. Ends with 0, or
    with 1 if something could not be delivered: it is then still there.
    """
    from hopwatch.cli import dead  # noqa: PLC0415 - only this command needs it
    from hopwatch.state_folder import FolderError  # noqa: PLC0415

    where = _blackbox(folder)
    if where is None:
        raise click.ClickException("Black boxes are switched off here; name a folder with --folder.")
    try:
        found = dead.find(where, url, token)
    except FolderError as error:
        raise click.ClickException(f"{error}.") from None
    if as_json:
        _write_json(dead.as_dict(found))
    else:
        click.echo("\n".join(dead.lines(found, where)))
    ctx.exit(1 if found.undelivered else 0)


def _blackbox(given: str | None) -> str | None:
    """The folder that an option names, or where the agents of this environment put their boxes; None for off."""
    from hopwatch.process import read_settings  # noqa: PLC0415 - the agent's side: only its rules for values are needed

    if given is None:
        return read_settings().blackbox
    return None if given == "off" else given


# What is written -------------------------------------------------------------------------------------------------


def in_terminal() -> bool:
    """Whether a person with a terminal that can draw looks at what is written."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def _at_a_terminal() -> bool:
    """Whether a person sits at both ends. Textual reads standard input and draws on standard error."""
    return in_terminal() and sys.stdin.isatty() and sys.stderr.isatty()


def run() -> None:
    """Run what was typed, and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe of another encoding gets a question mark, not a traceback.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    hopwatch.main(prog_name="hopwatch")


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - slow to import, and JSON and pipes do without

    return Console(highlight=False, markup=False, emoji=False)


def _write_json(value: object) -> None:
    # ASCII only: what telemetry brings stays harmless in a terminal, and any JSON reader gets it back unchanged.
    click.echo(json_format.dumps(value, indent=2, ensure_ascii=True))


def _write_cascade(cascade: dict[str, Any]) -> None:
    from hopwatch.cli import picture  # noqa: PLC0415 - rich is slow to import where JSON is wanted

    if in_terminal():
        _console().print(picture.tree(cascade))
    else:
        click.echo("\n".join(picture.lines(cascade)))


def _last(sights: Iterator[Sight]) -> Sight:
    for sight in sights:
        if sight.final:
            return sight
    raise AssertionError("watching always ends with a final look")


def _watch_in_pipe(sights: Iterator[Sight]) -> Sight:
    """A line whenever the verdict or its reason changes; the last line is the final verdict."""
    from hopwatch.cli.picture import headline  # noqa: PLC0415 - rich is slow to import where JSON is wanted

    said = None
    for sight in sights:
        line = headline(sight.cascade)
        if line != said:
            click.echo(line)  # which flushes: whoever reads the pipe sees it now
            said = line
        if sight.final:
            return sight
    raise AssertionError("watching always ends with a final look")


def _watch_in_terminal(sights: Iterator[Sight]) -> Sight:
    """The tree as it grows, and the whole of it at the end."""
    from rich.live import Live  # noqa: PLC0415 - slow to import, and JSON and pipes do without

    from hopwatch.cli import picture  # noqa: PLC0415

    console = _console()
    last = None
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for sight in sights:
            last = sight
            if sight.final:
                break
            # What does not fit on the screen cannot be drawn over: show what matters most, the frontier.
            live.update(picture.tree(sight.cascade, limit=max(4, (console.height - 8) // 2)), refresh=True)
    if last is None or not last.final:
        raise AssertionError("watching always ends with a final look")
    console.print(picture.tree(last.cascade))
    return last
