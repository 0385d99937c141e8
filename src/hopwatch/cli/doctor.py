"""What is wrong here? The instrumentation, the exporter and the collector, as this environment would have them.

It looks, and changes nothing: no instrumentor is loaded and no library is imported that it asks about. What an agent
would do is read from the metadata of what is installed and from the environment, by the rules of the stock launcher
`opentelemetry-instrument` and of the Python SDK.
"""

from __future__ import annotations

import contextlib
import platform
import re
import socket
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined] # typeshed lacks it

from rich.table import Table
from rich.text import Text

from hopwatch.cli.client import Collector, CollectorError, Unauthorized, is_loopback
from hopwatch.cli.text import plain
from hopwatch.tokens import sent_by_exporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.console import RenderableType

    from hopwatch.instrumentation.a2a_seams import Seam

Level = Literal["ok", "note", "warning", "problem"]

LONGEST_CONNECT: Final = 2.0
"""Seconds that a port may take to answer."""
_STYLES: Final[dict[Level, str]] = {
    "ok": "green",
    "note": "dim",
    "warning": "bold yellow",
    "problem": "bold red",
}
_GROUP: Final = "opentelemetry_instrumentor"
_ATTRIBUTES: Final = 32
"""As many attributes as a hop's record may have (docs/limits.md)."""
_OURS: Final = ("hopwatch_asyncio", "hopwatch_a2a", "hopwatch_acp")
_HOPS: Final = {
    "send": "sends",
    "request": "requests",
    "execution": "executions",
    "push": "pushes",
    "loop": "connections that nobody closes",
}
_LISTED: Final = 8
"""How many methods are named that a library lacks."""
_LIBRARIES: Final = ("starlette", "fastapi", "httpx", "uvloop")
_EXPORTERS: Final = {
    "grpc": ("opentelemetry-exporter-otlp-proto-grpc", 4317),
    "http/protobuf": ("opentelemetry-exporter-otlp-proto-http", 4318),
}
_ALWAYS: Final = ("always_on", "parentbased_always_on")
_NEVER: Final = ("always_off", "parentbased_always_off")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str
    """What was looked at, in a word or two."""
    text: str
    remedy: str | None = None
    """What to do; there for every warning and problem."""

    def as_dict(self) -> dict[str, str | None]:
        """The finding for JSON."""
        return {"level": self.level, "subject": self.subject, "text": self.text, "remedy": self.remedy}


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, without importing it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def examine(
    environment: Mapping[str, str],
    url: str,
    token: str | None = None,
    *,
    version: Callable[[str], str | None] = installed_version,
    connect: Callable[[str, int], str | None] | None = None,
    source: Callable[[], Path | None] | None = None,
) -> list[Finding]:
    """Look at everything.

    Args:
        environment: the variables that an agent would have.
        url: the collector that the other commands would ask.
        token: what they would bring.
        version: of an installed distribution, or None.
        source: tells where the sources of a2a-sdk lie; by default those that this Python would import.
        connect: tries a host and a port; None if somebody listens there, else why not.

    Returns:
        What was found, in the order in which a hop's record travels: library, instrumentation, SDK, what a process
        leaves on this host, exporter, collector.
    """
    connect = connect or _connect
    out = [
        Finding(
            "ok",
            "hopwatch",
            f"hopwatch {version('hopwatch') or '(not installed)'} on Python {platform.python_version()}",
        )
    ]
    out.extend(_libraries(version, source or _sdk_folder))
    out.extend(_instrumentors(environment))
    out.extend(_settings(environment))
    out.extend(_sdk(environment, version))
    out.extend(_identity(environment))
    out.extend(_sampler(environment))
    out.extend(_limits(environment))
    out.extend(_own_spans(environment, version))
    out.extend(_folder(environment))
    collector = _asked(url, token)
    out.append(collector)
    out.extend(_exporter(environment, version, connect, url, token, reached=collector.level == "ok"))
    return out


# What is there ---------------------------------------------------------------------------------------------------


def _sdk_folder() -> Path | None:
    from hopwatch.instrumentation import a2a_seams  # noqa: PLC0415 - as below

    return a2a_seams.folder()


def _acp_folder() -> Path | None:
    from hopwatch.instrumentation import acp_seams  # noqa: PLC0415 - as below

    return acp_seams.folder()


def _libraries(
    version: Callable[[str], str | None],
    source: Callable[[], Path | None],
    acp_source: Callable[[], Path | None] = _acp_folder,
) -> Iterator[Finding]:
    yield from _a2a_sdk(version("a2a-sdk"), source)
    yield from _acp(version("agent-client-protocol"), acp_source)
    for library in _LIBRARIES:
        found = version(library)
        yield Finding(
            "ok" if found else "note",
            library,
            f"{library} {plain(found)}" if found else f"{library} is not installed",
        )


def _a2a_sdk(sdk: str | None, source: Callable[[], Path | None]) -> Iterator[Finding]:
    from hopwatch.instrumentation import a2a_seams  # noqa: PLC0415 - the agent's side: only its table is needed

    tested = ", ".join(a2a_seams.TESTED)
    if sdk is None:
        yield Finding(
            "warning", "a2a-sdk", "a2a-sdk is not installed in this Python, so no agent of it can be instrumented",
            "run `hopwatch doctor` with the Python that runs your agents, or install a2a-sdk there",
        )  # fmt: skip
        return
    release = a2a_seams.release_of(sdk)
    if not (0, 3) <= release < (2,):
        yield Finding(
            "problem" if release < (0, 3) else "warning", "a2a-sdk",
            f"a2a-sdk {plain(sdk)} is {'too old' if release < (0, 3) else 'newer than all that is known'}: tested are {tested}",
            "install a2a-sdk 0.3.22 or later, for example: pip install 'a2a-sdk>=1.3,<2'",
        )  # fmt: skip
    elif sdk in a2a_seams.TESTED:
        yield Finding("ok", "a2a-sdk", f"a2a-sdk {sdk}, a version that is tested")
    else:
        yield Finding(
            "note", "a2a-sdk", f"a2a-sdk {plain(sdk)} is supported, and not tested: tested are {tested}"
        )
    where = source()
    lacking = a2a_seams.missing(where, release) if where is not None else []
    due = sum(seam.is_due(release) for seam in a2a_seams.SEAMS)
    yield from _seams("a2a-sdk", sdk, lacking, due, tested)
    calls = a2a_seams.folder("grpc")
    lacking = a2a_seams.missing(calls, (), a2a_seams.CALLS) if calls is not None else []
    if lacking:
        yield Finding(
            "warning", "grpcio's seams",
            f"this release of grpcio lacks {', '.join(map(str, lacking))}, which hopwatch wraps: of a message that goes out by gRPC"
            " it is not known who took it",
            "use a release of grpcio from 1.66 on that is tested, or a newer hopwatch",
        )  # fmt: skip


def _acp(installed: str | None, source: Callable[[], Path | None]) -> Iterator[Finding]:
    from hopwatch.instrumentation import a2a_seams, acp_seams  # noqa: PLC0415 - as above

    name, tested = acp_seams.DISTRIBUTION, ", ".join(acp_seams.TESTED)
    if installed is None:
        yield Finding("note", name, f"{name} is not installed")
        return
    release = a2a_seams.release_of(installed)
    if installed in acp_seams.TESTED:
        yield Finding("ok", name, f"{name} {installed}, a version that is tested")
    elif acp_seams.FIRST <= release < (1,):
        yield Finding(
            "note", name, f"{name} {plain(installed)} is supported, and not tested: tested are {tested}"
        )
    else:
        age = "older than all that is tested" if release < acp_seams.FIRST else "newer than all that is known"
        yield Finding(
            "warning", name, f"{name} {plain(installed)} is {age}: tested are {tested}",
            f"pip install '{name}>=0.8.1,<1'",
        )  # fmt: skip
    yield Finding(
        "note", f"{name}'s children",
        "an agent that is started by spawn_agent_process gets none of OTEL_* and HOPWATCH_* from its environment",
        "hand them on yourself, with env=: docs/api.md, Agent Client Protocol",
    )  # fmt: skip
    where = source()
    lacking = acp_seams.missing(where, release) if where is not None else []
    yield from _seams(name, installed, lacking, sum(seam.is_due(release) for seam in acp_seams.SEAMS), tested)


def _seams(name: str, installed: str, lacking: Sequence[Seam], due: int, tested: str) -> Iterator[Finding]:
    if not lacking:
        return
    hops = ", ".join(dict.fromkeys(_HOPS[seam.hop] for seam in lacking))
    yield Finding(
        "warning", f"{name}'s seams",
        f"{name} {plain(installed)} lacks {len(lacking)} of the {due} methods"
        f" that hopwatch wraps, so {hops} are accounted for in part: {', '.join(map(str, lacking[:_LISTED]))}"
        + (" ..." if len(lacking) > _LISTED else ""),
        f"use a release that is tested ({tested}), or a newer hopwatch",
    )  # fmt: skip


def _instrumentors(environment: Mapping[str, str]) -> Iterator[Finding]:
    try:
        points = metadata.distribution("hopwatch").entry_points
        there = {point.name for point in points if point.group == _GROUP}
    except metadata.PackageNotFoundError:
        there = set()
    text = environment.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "")
    disabled = {each.strip() for each in text.split(",")}
    for name in _OURS:
        if name not in there:
            yield Finding(
                "problem", name, f"the launcher cannot find {name}: hopwatch's metadata has no such entry in {_GROUP}",
                "install hopwatch again with pip; a folder of sources on PYTHONPATH alone has no entry points",
            )  # fmt: skip
        elif name in disabled or "*" in disabled:
            yield Finding(
                "problem", name, f"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS={plain(text)} disables {name}",
                f"take {name if name in disabled else '*'} out of OTEL_PYTHON_DISABLED_INSTRUMENTATIONS",
            )  # fmt: skip
        else:
            yield Finding("ok", name, f"{name} is found by the launcher")


def _settings(environment: Mapping[str, str]) -> Iterator[Finding]:
    from hopwatch.process import read_settings  # noqa: PLC0415 - the agent's side: only its rules for values are needed

    settings = read_settings(environment)
    for problem in settings.problems:
        sentence = plain(problem)
        yield Finding(
            "problem",
            "settings",
            sentence,
            f"set {sentence.split(' ', 1)[0]} to an allowed value, or unset it",
        )
    if not settings.problems:
        given = sorted(key for key in environment if key.startswith("HOPWATCH_") and key != "HOPWATCH_URL")
        values = ", ".join(f"{key}={plain(environment[key])}" for key in given)
        yield Finding("ok", "settings", f"detail is {settings.detail}" + (f" ({values})" if values else ""))


def _sdk(environment: Mapping[str, str], version: Callable[[str], str | None]) -> Iterator[Finding]:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield Finding(
            "problem", "sdk", "OTEL_SDK_DISABLED=true turns all telemetry off", "unset OTEL_SDK_DISABLED"
        )
    distro = version("opentelemetry-distro")
    if distro is None:
        yield Finding(
            "problem", "distro",
            "opentelemetry-distro is not installed, so `opentelemetry-instrument` would set up no SDK and no exporter",
            "pip install 'hopwatch[otlp]' (an application that sets up the SDK in its own code does without)",
        )  # fmt: skip
    else:
        yield Finding("ok", "distro", f"opentelemetry-distro {plain(distro)}")
    propagators = environment.get("OTEL_PROPAGATORS", "").strip()
    if propagators and "tracecontext" not in {each.strip().lower() for each in propagators.split(",")}:
        yield Finding(
            "warning", "propagators",
            f"OTEL_PROPAGATORS={plain(propagators)} leaves out tracecontext, by which agents know that they work for one cascade",
            "add tracecontext to OTEL_PROPAGATORS, or unset it",
        )  # fmt: skip


def _identity(environment: Mapping[str, str]) -> Iterator[Finding]:
    name = environment.get("OTEL_SERVICE_NAME", "").strip()
    if not name:
        resource = environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
        match = re.search(r"(?:^|,)\s*service\.name\s*=\s*([^,]+)", resource)
        name = match[1].strip() if match else ""
    if name:
        yield Finding("ok", "service name", f"this agent is called {plain(name)}")
    else:
        yield Finding(
            "warning", "service name", "OTEL_SERVICE_NAME is not set: every agent would be called unknown_service",
            "set OTEL_SERVICE_NAME to the agent's name, a different one for each agent",
        )  # fmt: skip


def _sampler(environment: Mapping[str, str]) -> Iterator[Finding]:
    sampler = environment.get("OTEL_TRACES_SAMPLER", "").strip()
    name = sampler.lower()
    if not name or name in _ALWAYS:
        yield Finding(
            "ok", "sampler", f"every trace is recorded ({name or 'parentbased_always_on, the default'})"
        )
        return
    if environment.get("HOPWATCH_SAMPLING", "").strip().lower() == "all":
        yield Finding(
            "ok", "sampler", f"OTEL_TRACES_SAMPLER={plain(sampler)} holds for others; HOPWATCH_SAMPLING=all tells of every hop"
        )  # fmt: skip
        return
    lost = (
        "records nothing"
        if name in _NEVER
        else "may drop traces; the verdict on a cascade that it drops is unknown"
    )
    yield Finding(
        "problem" if name in _NEVER else "warning", "sampler", f"OTEL_TRACES_SAMPLER={plain(sampler)} {lost}",
        "set HOPWATCH_SAMPLING=all, which leaves other spans to the sampler; or unset OTEL_TRACES_SAMPLER",
    )  # fmt: skip


def _limits(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Limits by which the SDK drops or cuts what a hop's span says."""
    for name in ("OTEL_ATTRIBUTE_COUNT_LIMIT", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"):
        text = environment.get(name, "").strip()
        if text.isdecimal() and int(text) < _ATTRIBUTES:
            yield Finding(
                "problem", "span limits", f"{name}={plain(text)}: the SDK drops attributes of hops, and their cascades stay unknown",
                f"unset it, or set at least {_ATTRIBUTES}",
            )  # fmt: skip
    for name in ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT"):
        text = environment.get(name, "").strip()
        if text.isdecimal():
            yield Finding(
                "problem", "span limits", f"{name}={plain(text)}: the SDK cuts attributes of hops, and their cascades may stay unknown",
                "unset it",
            )  # fmt: skip


def _own_spans(environment: Mapping[str, str], version: Callable[[str], str | None]) -> Iterator[Finding]:
    # Any value but true turns them off; it is read when the SDK is imported.
    if version("a2a-sdk") is None:
        return
    if environment.get("OTEL_INSTRUMENTATION_A2A_SDK_ENABLED", "true").strip().lower() == "true":
        yield Finding(
            "note", "a2a-sdk's spans", "the SDK makes about 32 spans a message itself; hopwatch does not need them",
            "to save them: OTEL_INSTRUMENTATION_A2A_SDK_ENABLED=false",
        )  # fmt: skip


def _folder(environment: Mapping[str, str]) -> Iterator[Finding]:
    from hopwatch.cli import left  # noqa: PLC0415 - it needs this module

    yield from left.boxes(environment)
    yield from left.sockets(environment)


# Where it goes ---------------------------------------------------------------------------------------------------


def _asked(url: str, token: str | None) -> Finding:
    try:
        with Collector(url, token) as collector:
            collector.cascades(limit=1)
    except CollectorError as error:
        sentence, _, remedy = str(error).partition(". ")
        return Finding(
            "problem",
            "collector",
            sentence.rstrip("."),
            (remedy or "start one with `hopwatch serve`").rstrip("."),
        )
    return Finding("ok", "collector", f"a hopwatch collector answers at {plain(url)}")


def _exporter(
    environment: Mapping[str, str],
    version: Callable[[str], str | None],
    connect: Callable[[str, int], str | None],
    url: str,
    token: str | None,
    *,
    reached: bool,
) -> Iterator[Finding]:
    text = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if not text and version("opentelemetry-distro") is None:
        yield Finding(
            "problem", "exporter", "nothing selects an exporter: OTEL_TRACES_EXPORTER is not set, and there is no distro to set it",
            "pip install 'hopwatch[otlp]'; its distro selects OTLP",
        )  # fmt: skip
        return
    chosen = [each.strip() for each in (text or "otlp").split(",")]
    otlp = [each for each in chosen if each in ("otlp", "otlp_proto_grpc", "otlp_proto_http")]
    known = {point.name for point in metadata.entry_points(group="opentelemetry_traces_exporter")}
    for each in chosen:
        if each not in otlp and each not in known and text.lower() != "none":
            yield Finding(
                "problem", "exporter", f"OTEL_TRACES_EXPORTER names {plain(each)!r}, and no such exporter is installed",
                f"it is one of {', '.join(sorted({'otlp', 'none', *known}))}",
            )  # fmt: skip
    if not otlp:
        yield Finding(
            "problem" if chosen in (["none"], ["console"]) else "warning", "exporter",
            f"OTEL_TRACES_EXPORTER={plain(text)}: no OTLP exporter is selected, so no record reaches a collector by itself",
            "set OTEL_TRACES_EXPORTER=otlp, or unset it",
        )  # fmt: skip
        return
    protocol = _protocol(environment, otlp[0])
    if protocol not in _EXPORTERS:
        yield Finding(
            "problem", "exporter", f"the OTLP protocol {plain(protocol)!r} is none that the Python SDK has",
            f"set OTEL_EXPORTER_OTLP_PROTOCOL to {' or '.join(_EXPORTERS)}",
        )  # fmt: skip
        return
    package, port = _EXPORTERS[protocol]
    if version(package) is None:
        yield Finding(
            "problem", "exporter", f"OTLP by {protocol} is selected, and {package} is not installed",
            "pip install 'hopwatch[otlp]'",
        )  # fmt: skip
        return
    endpoint, variable = _endpoint(environment, protocol, port)
    yield Finding("ok", "exporter", f"OTLP by {protocol} to {plain(endpoint)} ({variable or 'the default'})")
    if protocol == "http/protobuf":
        yield from _proxy(environment, endpoint)
    yield from _endpoint_reached(
        endpoint, variable=variable, protocol=protocol, port=port, connect=connect, url=url, reached=reached,
        token=token, sent=sent_by_exporter(environment),
    )  # fmt: skip


def _protocol(environment: Mapping[str, str], exporter: str) -> str:
    if exporter != "otlp":  # the exporter's own name goes before the variables
        return "grpc" if exporter == "otlp_proto_grpc" else "http/protobuf"
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if environment.get(name):
            return environment[name].strip()
    return "grpc"  # the Python distro's own default; OpenTelemetry's is http/protobuf


def _endpoint(environment: Mapping[str, str], protocol: str, port: int) -> tuple[str, str | None]:
    """The address that records go to, and the variable that names it."""
    name = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    if environment.get(name, "").strip():
        return environment[name].strip(), name
    name = "OTEL_EXPORTER_OTLP_ENDPOINT"
    path = "/v1/traces" if protocol == "http/protobuf" else ""
    if environment.get(name, "").strip():
        return environment[name].strip().removesuffix("/") + path, name
    return f"http://localhost:{port}{path}", None


def _proxy(environment: Mapping[str, str], endpoint: str) -> Iterator[Finding]:
    """The proxy through which requests, by which the exporter sends, goes to an address on this machine."""
    try:
        parts = urlsplit(endpoint)
        host = parts.hostname
    except ValueError:
        return
    if not is_loopback(host):
        return  # whether a proxy is the way to another machine, nobody can know from here
    besides = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if proxy_bypass_environment(host or "", {"no": besides}):
        return
    for name in (f"{parts.scheme}_proxy", f"{parts.scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"):
        if environment.get(name, "").strip():
            yield Finding(
                "problem", "endpoint", f"the exporter goes to {plain(host)} through the proxy that {name} names",
                f"set NO_PROXY={plain(host)}",
            )  # fmt: skip
            return


def _endpoint_reached(
    endpoint: str,
    *,
    variable: str | None,
    protocol: str,
    port: int,
    connect: Callable[[str, int], str | None],
    url: str,
    reached: bool,
    token: str | None,
    sent: str | None,
) -> Iterator[Finding]:
    shown = plain(endpoint)
    named = variable or "OTEL_EXPORTER_OTLP_ENDPOINT"
    if "://" not in endpoint:
        yield Finding(
            "problem", "endpoint", f"{named} is {shown}, without a scheme: "
            + ("gRPC would then speak TLS" if protocol == "grpc" else "the HTTP exporter cannot use it"),
            f"write http://{shown}",
        )  # fmt: skip
        return
    try:
        parts = urlsplit(endpoint)
        host, at = parts.hostname, parts.port
    except ValueError:
        host, at, parts = None, None, urlsplit("http://")
    if not host or parts.scheme not in ("http", "https"):
        yield Finding(
            "problem",
            "endpoint",
            f"{named} is {shown}, which is no address",
            f"write http://localhost:{port}",
        )
        return
    at = at or (443 if parts.scheme == "https" else 80 if protocol == "http/protobuf" else port)
    wrong = {other: which for which, (_, other) in _EXPORTERS.items() if which != protocol}.get(at)
    if wrong:
        yield Finding(
            "problem", "endpoint", f"port {at} is by custom for {wrong}, and the exporter speaks {protocol}",
            f"set OTEL_EXPORTER_OTLP_PROTOCOL={wrong}, or use port {port}",
        )  # fmt: skip
    if (
        variable == "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
        and protocol == "http/protobuf"
        and parts.path in ("", "/")
    ):
        yield Finding(
            "problem", "endpoint", f"{variable} is {shown}, and is taken as it is: without the path /v1/traces",
            f"write {shown.rstrip('/')}/v1/traces, or use OTEL_EXPORTER_OTLP_ENDPOINT={shown.rstrip('/')}",
        )  # fmt: skip
    why = connect(host, at)
    if why is not None:
        yield Finding(
            "problem", "endpoint", f"nothing can be reached at {plain(host)}:{at}, where the exporter sends to ({plain(why)})",
            "start a collector with `hopwatch serve`, or name the one that runs with OTEL_EXPORTER_OTLP_ENDPOINT",
        )  # fmt: skip
        return
    ours = urlsplit(url).hostname
    same = reached and (host == ours or (is_loopback(host) and is_loopback(ours)))
    refused = same and protocol == "grpc" and token is not None and sent != token
    if protocol == "http/protobuf":
        try:
            # With what the exporter sends there anyway, never with another token.
            if _is_hopwatch(f"{parts.scheme}://{parts.netloc}", sent):
                yield Finding("ok", "endpoint", f"a hopwatch collector answers at {plain(host)}:{at}")
                return
        except Unauthorized:
            refused = True
    if refused:
        yield Finding(
            "problem", "endpoint", f"the collector at {plain(host)}:{at} wants its token, and the exporter sends "
            + ("another one" if sent else "none"),
            "start agents with `hopwatch run --token-file FILE`, or set OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20TOKEN",
        )  # fmt: skip
        return
    if protocol == "grpc" and same:
        yield Finding(
            "ok", "endpoint", f"somebody listens at {plain(host)}:{at}, on the host of the collector"
        )
    else:
        yield Finding(
            "note", "endpoint", f"somebody listens at {plain(host)}:{at}; whether that is hopwatch cannot be told",
            "if it is another collector, let it forward traces to hopwatch",
        )  # fmt: skip


def _is_hopwatch(url: str, token: str | None) -> bool:
    try:
        with Collector(url, token) as collector:
            collector.cascades(limit=1)
    except Unauthorized:
        raise
    except (CollectorError, ValueError):
        return False
    return True


def _connect(host: str, port: int) -> str | None:
    try:
        with contextlib.closing(socket.create_connection((host, port), timeout=LONGEST_CONNECT)):
            return None
    except (OSError, UnicodeError) as error:
        return plain(error) or type(error).__name__


def _major(version: str) -> int | None:
    match = re.match(r"(\d{1,6})(?:\.|$|[a-z])", version)
    return int(match[1]) if match else None


# How it looks ----------------------------------------------------------------------------------------------------


def lines(findings: Sequence[Finding]) -> list[str]:
    """The findings as plain lines: one each, and one for its remedy."""
    out: list[str] = []
    for each in findings:
        out.append(f"{each.level}: {each.subject}: {each.text}")
        if each.remedy:
            out.append(f"  remedy: {each.remedy}")
    out.append(_summary(findings))
    return out


def table(findings: Sequence[Finding]) -> RenderableType:
    """The findings for a terminal."""
    out = Table.grid(padding=(0, 1))
    for column in ("level", "subject"):
        out.add_column(column, no_wrap=True)
    out.add_column("text", overflow="fold")
    for each in findings:
        style = _STYLES[each.level]
        text = Text(each.text)
        if each.remedy:
            text.append(f"\nremedy: {each.remedy}", "bold" if each.level in ("warning", "problem") else "dim")
        out.add_row(Text(each.level, style), Text(each.subject, style if each.level != "ok" else ""), text)
    summary = _summary(findings)
    grave = any(each.level == "problem" for each in findings)
    out.add_row(Text(""), Text(""), Text(summary, "bold red" if grave else "bold green"))
    return out


def _summary(findings: Sequence[Finding]) -> str:
    problems = sum(1 for each in findings if each.level == "problem")
    warnings = sum(1 for each in findings if each.level == "warning")
    told = f"{problems or 'no'} {'problem' if problems == 1 else 'problems'}"
    if warnings:
        told += f", {warnings} {'warning' if warnings == 1 else 'warnings'}"
    return told
