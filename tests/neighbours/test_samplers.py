"""What becomes of a cascade whose agents have different samplers? Real agents under OpenTelemetry's launcher, and a real collector."""

import pytest
from neighbouring import agents, judged, marks, only, send

from collector.telling import collector

pytestmark = marks

NEVER = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
HALF = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
ALWAYS = {"OTEL_TRACES_SAMPLER": "always_on"}
OFF = {"OTEL_TRACES_SAMPLER": "always_off"}
TOLD = {"HOPWATCH_SAMPLING": "all"}


def row(which):
    return pytest.mark.row("samplers", which, "opentelemetry-sdk")


@pytest.fixture(scope="module")
def cast(tmp_path_factory):
    """A collector, and agents that go by the name of their sampler."""
    folder = only(tmp_path_factory.mktemp("distro"), "opentelemetry_distro")
    with (
        collector(tmp_path_factory.mktemp("samplers") / "store.sqlite") as found,
        agents(
            found, folder, never=NEVER, half=HALF, always=ALWAYS, off=OFF, usual={}, never_told={**NEVER, **TOLD},
            off_told={**OFF, **TOLD},
        ) as urls,
    ):  # fmt: skip
        yield found, {name: url for name, (url, _) in urls.items()}


def kinds(cascade):
    return sorted((hop["agent"], hop["kind"]) for hop in cascade["hops"])


def of(agent, *, sends):
    return [(agent, "execution"), (agent, "request"), *([(agent, "send")] if sends else [])]


@row("the usual one on one agent, always_on on the other")
def test_a_cascade_that_every_sampler_keeps_is_told_whole(cast):
    found, urls = cast
    cascade, kept = send(urls["usual"], urls["always"])
    said = judged(found, cascade, "settled")
    assert kept
    assert kinds(said) == sorted([*of("usual", sends=True), *of("always", sends=False)])


@row("always_off on the agent that is asked")
def test_what_an_agent_does_whose_sampler_drops_it_is_unknown_and_the_agent_is_named(cast):
    found, urls = cast
    said = judged(
        found, send(urls["usual"], urls["off"])[0], "unknown",
        lambda said: kinds(said) == of("usual", sends=True) and "does not record this trace" in said["reason"],
    )  # fmt: skip
    assert "does not record this trace (its sampler drops it" in said["reason"]
    assert urls["off"].rpartition("//")[2].rstrip("/") in said["reason"]


@row("parentbased_traceidratio 0 on the agent that asks, always_on on the one that is asked")
def test_where_only_the_agent_that_is_asked_keeps_the_trace_nothing_is_settled(cast):
    found, urls = cast
    cascade, kept = send(urls["never"], urls["always"])
    assert not kept
    judged(found, cascade, "unknown", lambda said: kinds(said) == of("always", sends=False))


@row("parentbased_traceidratio 0.5 on the agent that asks, always_on on the one that is asked")
def test_half_of_the_cascades_are_settled_and_of_the_others_it_is_said_that_something_is_missing(cast):
    found, urls = cast
    for cascade, kept in [send(urls["half"], urls["always"]) for _ in range(8)]:
        judged(found, cascade, "settled" if kept else "unknown")


@row("parentbased_traceidratio 0.5 on the agent that asks, the usual one on the one that is asked")
def test_a_cascade_that_the_first_agent_drops_is_not_heard_of_and_the_others_are_told_whole(cast):
    found, urls = cast
    sent = [send(urls["half"], urls["usual"]) for _ in range(8)]
    for cascade, kept in sent:
        if kept:
            judged(found, cascade, "settled")
    judged(found, send(urls["usual"], urls["usual"])[0], "settled")  # all that came before it has come
    dropped = [cascade for cascade, kept in sent if not kept]
    assert [found.request("GET", f"/api/cascades/{cascade}")[0] for cascade in dropped] == [404] * len(
        dropped
    )


@row("parentbased_traceidratio 0 and always_off, with HOPWATCH_SAMPLING=all")
def test_with_hopwatch_told_to_tell_all_no_hop_is_lost_whatever_the_samplers_say(cast):
    found, urls = cast
    for path in (
        ("never_told", "always"), ("usual", "off_told"), ("never_told", "off_told"), ("off_told", "never_told"),
    ):  # fmt: skip
        first, second = path
        cascade, told = send(urls[first], urls[second])
        said = judged(found, cascade, "settled")
        assert told, path
        assert kinds(said) == sorted([*of(first, sends=True), *of(second, sends=False)])
