"""Does hopwatch go with who else watches? The same cascade beside each of them, without hopwatch, instrumented first, and instrumented last.

Whatever others tell is told with hopwatch as without: no span of theirs is lost, changed or moved; and the hops are the same beside anybody.
"""

import json
from collections import Counter

import pytest
from neighbouring import LAUNCHER, agents, judged, marks, only, run, send

from collector.telling import collector

pytestmark = marks

PUSH = ["push", [["webhook", []]]]
HOPS = ["send", [["request", [["execution", [["send", [["request", [["execution", [PUSH] * 4]]]]]]]]]]]
"""A user's message to one agent, which asks another one, which pushes to it."""

CONTRIB = {
    "httpx": "httpx",
    "starlette": "starlette",
    "fastapi": "fastapi",
    "asgi": "asgi",
    "asyncio": "asyncio",
    "threading": "threading",
    "logging": "logging",
    "aiohttp-client": "aiohttp-client",
    "requests": "requests",
    "urllib3": "urllib3",
    "grpc_aio_client": "grpc",
}
EVERYBODY = (*CONTRIB, "grpc_aio_server")


def row(which, *names, packages, **environment):
    return pytest.param(names, environment, id=which, marks=pytest.mark.row("neighbours", which, *packages))


def of_contrib(*names):
    return [f"opentelemetry-instrumentation-{CONTRIB[name]}" for name in names]


def moved(before, after):
    """Spans that had one of others above them, and have another one now. What was a root may be part of a larger trace now."""
    lost = Counter((span, above) for span, above in before if above) - Counter(
        (span, above) for span, above in after
    )
    return list(lost)


@pytest.mark.parametrize(
    ("names", "environment"),
    [
        *(
            row(f"OpenTelemetry's instrumentation of {package}", name, packages=of_contrib(name))
            for name, package in CONTRIB.items()
            if name != "grpc_aio_client"  # which has stories of its own in tests/test_grpc.py
        ),
        row("all of these together", *EVERYBODY, packages=of_contrib(*CONTRIB)),
        row("a2a-sdk's own telemetry", "none", packages=["a2a-sdk"], OTEL_INSTRUMENTATION_A2A_SDK_ENABLED="true"),
        row(
            "a2a-sdk's own telemetry and all of OpenTelemetry's instrumentations together", *EVERYBODY,
            packages=["a2a-sdk", *of_contrib(*CONTRIB)], OTEL_INSTRUMENTATION_A2A_SDK_ENABLED="true",
        ),
        row("Logfire", "logfire", packages=["logfire"]),
        row("Sentry, with traces", "sentry", packages=["sentry-sdk"]),
    ],
)  # fmt: skip
def test_others_tell_the_same_and_the_hops_are_the_same_beside_them(names, environment):
    same(json.loads(run("beside.py", *names, **environment)))


def same(told):
    without = told["without"]
    assert (without["trees"], without["failures"]) == ([], {})
    assert without["theirs"] or without["sentry"]  # whoever is beside us tells something
    for order in ("before", "after"):
        beside = told[order]
        assert beside["trees"] == [[HOPS]]
        assert [verdict for verdict, _ in beside["verdicts"]] == ["settled"]
        assert (beside["late"], beside["failures"], beside["ids"]) == ([], {}, True)
        assert Counter(span for span, _ in beside["theirs"]) == Counter(span for span, _ in without["theirs"])
        # The SDK's own loops work for the hop of the event that they have, and so do their spans.
        assert [
            span
            for span, _ in moved(without["theirs"], beside["theirs"])
            if not span.startswith("a2a-python-sdk")
        ] == []
        assert beside["sentry"] == without["sentry"]


ELASTIC = {
    "OTEL_TRACES_EXPORTER": "none",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
    "OTEL_PYTHON_ASYNCIO_COROUTINE_NAMES_TO_TRACE": "work",
}


@pytest.mark.row("neighbours", "Elastic's distro, with all instrumentations", "elastic-opentelemetry")
def test_beside_another_vendors_distro_others_tell_the_same_and_the_hops_are_the_same(tmp_path):
    path = only(tmp_path, "elastic_opentelemetry")
    told = json.loads(run("beside.py", "launched", launcher=[LAUNCHER], PYTHONPATH=path, **ELASTIC))
    assert told["distro"] == "elastic"
    same(told)


@pytest.mark.row("neighbours", "Elastic's distro, agents and a collector", "elastic-opentelemetry")
def test_agents_that_another_vendors_distro_launches_tell_the_collector(tmp_path):
    path = only(tmp_path, "elastic_opentelemetry")
    with collector(tmp_path / "store.sqlite") as found, agents(found, path, one={}, other={}) as started:
        (one, first), (other, second) = started["one"], started["other"]
        assert (first, second) == ("elastic", "elastic")
        cascade, _ = send(one, other)
        said = judged(found, cascade, "settled")
    assert sorted((hop["agent"], hop["kind"]) for hop in said["hops"]) == [
        ("one", "execution"),
        ("one", "request"),
        ("one", "send"),
        ("other", "execution"),
        ("other", "request"),
    ]


@pytest.mark.parametrize(
    ("names", "carried"),
    [(("none",), [0, 0, 0, 0]), (("requests", "urllib3", "aiohttp-client", "httpx"), [1, 1, 1, 1])],
    ids=["alone", "with the instrumentation of each client"],
)
def test_a_request_that_the_application_makes_itself_carries_what_others_put_there_and_nothing_of_ours_besides(
    names, carried
):
    told = json.loads(run("beside.py", *names))
    for order in ("without", "before", "after"):
        assert [int("traceparent" in heads) for heads in told[order]["headers"]] == carried
        # Others hand on the tracestate of the span that is current, which is the hop's.
        assert [int("tracestate" in heads) for heads in told[order]["headers"]] == (
            [0] * 4 if order == "without" else carried
        )
