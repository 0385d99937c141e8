"""Does a verdict stay what it is with the OpenTelemetry Collector in between? Real agents, the recipes, and every process
in between restarted, killed, short of memory or repeating itself."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from between_programs import (
    PATIENCE,
    RECIPES,
    Between,
    Hopwatch,
    Otelcol,
    Play,
    at_work,
    needs_otelcol,
    recipes,
    until,
)
from collector.telling import end, foreign, heartbeat, opened, protobuf, trace
from hopwatch.collector.receiver import MAX_BODY, inflate
from hopwatch.demo.run import Cast, agent_environment, launcher

pytestmark = [pytest.mark.one_python, pytest.mark.processes, pytest.mark.timeout(900)]

HOPS = {"send": 3, "request": 3, "execution": 3, "push": 12, "webhook": 12}
"""Of one question to three agents: three a message, two a push, and a2a-sdk 1.3.0 pushes four times a task."""
OVER = {"settled", "stranded", "broken"}


@pytest.fixture
def play(tmp_path):
    needs_otelcol()
    with contextlib.ExitStack() as stack:
        yield Play(tmp_path, stack)


def assert_whole(cascade):
    """Everything has been told, and nothing twice."""
    assert {hop["state"] for hop in cascade["hops"]} == {"ended"}
    assert {hop["agent"] for hop in cascade["hops"]} == {"user", "frontdesk", "planner", "worker"}
    kinds = Counter(hop["kind"] for hop in cascade["hops"])
    # On a busy machine a task, or an item in a queue, may take long enough to be shown.
    assert {kind: kinds[kind] for kind in HOPS} == HOPS


# The recipes -----------------------------------------------------------------------------------------------------


def validated(recipe, **environment):
    return subprocess.run(
        [needs_otelcol(), "validate", f"--config={RECIPES / recipe}.yaml"],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize("recipe", recipes())
def test_a_recipe_is_valid(recipe, tmp_path):
    done = validated(recipe, OTELCOL_STORAGE=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_check_of_a_recipe_finds_an_exporter_that_there_is_not(tmp_path):
    done = validated("everything", OTELCOL_STORAGE=str(tmp_path), OTELCOL_TRACES_TO="[otlp_http/nowhere]")
    assert done.returncode != 0
    assert "otlp_http/nowhere" in done.stderr


# What goes where -------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path):
    """A collector of ours without agents, and a place for more processes."""
    needs_otelcol()
    with contextlib.ExitStack() as stack:
        cast = Cast(tmp_path)
        stack.callback(cast.end)
        yield Hopwatch(cast).start()


def beside(folder):
    """A configuration with a store that is a file, and the file."""
    config, file = folder / "beside.yaml", folder / "store.json"
    config.write_text(f"exporters: {{file/store: {{path: {file}, flush_interval: 50ms}}}}\n")
    return config, file


def names_in(file):
    """Of the spans in a store that is a file."""
    # Behind the last line there may be the beginning of the next one.
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [
        span["name"]
        for line in lines
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def tell(otelcol, *spans):
    """Send spans in one request, which has to be taken."""
    headers = {"content-type": "application/x-protobuf"}
    assert httpx.post(
        f"{otelcol.url}/v1/traces", content=protobuf(*spans), headers=headers, timeout=30
    ).is_success


def hops_of(hopwatch, cascade):
    """The hops that it knows of one cascade: their states by id."""
    with contextlib.suppress(httpx.HTTPStatusError):
        found = hopwatch.get(f"/api/cascades/{cascade}")
        return {hop["id"]: hop["state"] for hop in found["hops"]} if found else {}
    return {}


ONE, TWO = "1" * 16, "2" * 16


def test_hop_records_alone_go_to_hopwatch_and_all_but_markers_and_heartbeats_elsewhere(alone, tmp_path):
    config, file = beside(tmp_path)
    otelcol = Otelcol(
        alone.cast, "hops-only", config, HOPWATCH_URL=alone.url, OTELCOL_REST_TO="[file/store]"
    ).start()
    cascade = trace()
    tell(
        otelcol,
        foreign(cascade),
        heartbeat(),
        end(cascade, ONE, children=1),
        opened(cascade, TWO, parent=ONE),
    )
    until(lambda: hops_of(alone, cascade) == {ONE: "ended", TWO: "open"}, "both hops")
    until(
        lambda: sorted(names_in(file)) == ["GET /", "execution it"],
        "the spans elsewhere",
        lambda: names_in(file),
    )
    received = httpx.get(f"{alone.url}/metrics", timeout=30).text
    assert "\nhopwatch_spans_ignored_total 0.0\n" in received
    until(lambda: alone.heard("worker"), "the heartbeat")


def test_a_tail_sampler_that_has_not_decided_yet_holds_back_no_hop(alone, tmp_path):
    config, file = beside(tmp_path)
    otelcol = Otelcol(
        alone.cast,
        "tail-sampling",
        config,
        HOPWATCH_URL=alone.url,
        OTELCOL_REST_TO="[file/store]",
        OTELCOL_DECISION_WAIT="600s",
    ).start()
    cascade = trace()
    tell(otelcol, foreign(cascade), end(cascade, ONE))
    until(lambda: hops_of(alone, cascade) == {ONE: "ended"}, "the hop")
    assert names_in(file) == []


@pytest.mark.parametrize(("percent", "kept"), [("0", []), ("100", ["GET /", "execution it"])])
def test_what_a_tail_sampler_decides_of_a_trace_is_nothing_to_its_hops(alone, tmp_path, percent, kept):
    config, file = beside(tmp_path)
    otelcol = Otelcol(
        alone.cast,
        "tail-sampling",
        config,
        HOPWATCH_URL=alone.url,
        OTELCOL_REST_TO="[file/store]",
        OTELCOL_DECISION_WAIT="1s",
        OTELCOL_SAMPLED_PERCENT=percent,
    ).start()
    cascade = trace()
    tell(otelcol, foreign(cascade), end(cascade, ONE, children=1), opened(cascade, TWO, parent=ONE))
    until(lambda: otelcol.counted("processor_tail_sampling_global_count_traces_sampled"), "a decision")
    until(lambda: sorted(names_in(file)) == kept, "what was kept", lambda: names_in(file))
    until(lambda: hops_of(alone, cascade) == {ONE: "ended", TWO: "open"}, "both hops")


@pytest.mark.parametrize("recipe", ["everything", "loadbalancing"])
def test_a_collector_that_wants_a_token_gets_it(alone, recipe):
    token = "a token that is long enough for anybody".replace(" ", "-")
    guarded = Hopwatch(alone.cast, "guarded", token=token).start()
    otelcol = Otelcol(
        alone.cast,
        recipe,
        HOPWATCH_TOKEN=token,
        HOPWATCH_URL=guarded.url,
        HOPWATCH_A_URL=guarded.url,
        HOPWATCH_B_URL=guarded.url,
        HOPWATCH_A_GRPC=f"127.0.0.1:{guarded.grpc_port}",
        HOPWATCH_B_GRPC=f"127.0.0.1:{guarded.grpc_port}",
    ).start()
    cascade = trace()
    tell(otelcol, heartbeat(), end(cascade, ONE))
    until(
        lambda: hops_of(guarded, cascade) and guarded.heard("worker"),
        "the hop",
        lambda: alone.cast.tail("otelcol"),
    )


def test_nothing_overtakes_what_our_collector_was_too_busy_to_take(alone):
    with contextlib.ExitStack() as stack:
        busy = Between(alone.url, stack, busy=3)
        otelcol = Otelcol(alone.cast, "everything", HOPWATCH_URL=busy.url).start()
        cascades = [trace() for _ in range(3)]
        for cascade in cascades:
            tell(otelcol, end(cascade, ONE))
            until(lambda: busy.seen, "the first try")
        until(lambda: all(hops_of(alone, cascade) for cascade in cascades), "all hops")
    order = [
        span.trace_id.hex()
        for body in busy.taken
        for resource in ExportTraceServiceRequest.FromString(inflate(body)).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    # What was taken so slowly that it was sent once more is behind itself.
    assert [*dict.fromkeys(order)] == cascades


def test_what_is_together_larger_than_our_collector_takes_comes_in_parts(alone):
    otelcol = Otelcol(alone.cast, "everything", HOPWATCH_URL=alone.url).start()
    cascades = [trace() for _ in range(12)]
    spans = []
    for cascade in cascades:
        large = foreign(cascade)
        large["says"]["text"] = os.urandom(750_000).hex()
        spans += [large, end(cascade, ONE)]
    assert len(protobuf(*spans)) > MAX_BODY
    tell(otelcol, *spans[:12])
    tell(otelcol, *spans[12:])
    until(lambda: all(hops_of(alone, cascade) for cascade in cascades), "all hops")


def test_a_large_span_of_the_application_takes_no_hop_with_it(alone):
    otelcol = Otelcol(alone.cast, "everything", HOPWATCH_URL=alone.url).start()
    cascade = trace()
    large = foreign(cascade)
    large["says"]["text"] = "x" * 5_000_000  # a prompt with an image, say
    tell(otelcol, large, end(cascade, ONE))
    until(lambda: hops_of(alone, cascade), "the hop")


def test_what_reap_finds_of_a_dead_process_comes_through(alone, tmp_path):
    otelcol = Otelcol(alone.cast, "hops-only", HOPWATCH_URL=alone.url, STORE_URL="http://127.0.0.1:9").start()
    program = tmp_path / "program.py"
    program.write_text(
        "import time, hopwatch\nwith hopwatch.cascade('a long job'):\n    time.sleep(3600)\n",
        encoding="utf-8",
    )
    agent = alone.cast.start("agent", [*launcher(), str(program)], agent_environment("agent", otelcol.url))
    (open_one,) = until(alone.cascades, "the cascade", lambda: alone.cast.tail("agent"))
    assert open_one["verdict"] == "in_flight"
    agent.kill()
    agent.wait(60)
    reap = [sys.executable, "-m", "hopwatch", "reap", "--url", otelcol.url]
    folder = str(alone.cast.folder / "blackbox")
    done = subprocess.run(
        [*reap, "--folder", folder], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    until(lambda: [each["verdict"] for each in alone.cascades()] == ["broken"], "broken")
    assert "process_killed" in alone.cascades()[0]["reason"]


# Real agents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["everything", "tail-sampling"])
def test_three_agents_that_do_their_work_settle_though_the_rest_of_it_has_nowhere_to_go(play, recipe):
    otelcol = play.otelcol(recipe, STORE_URL="http://127.0.0.1:9").start()
    play.ask(otelcol.url)
    play.until(at_work, "the worker's work")
    play.let_go()
    assert_whole(play.settled())


def with_a_batch_processor(folder, **settings):
    """A configuration that adds one to everything.yaml, as many have it."""
    config = folder / "batching.yaml"
    config.write_text(
        f"processors: {{batch: {json.dumps(settings)}}}\n"
        "service: {pipelines: {traces: {processors: [memory_limiter, batch]}}}\n"
    )
    return config


def test_with_a_batch_processor_in_between_it_settles_after_a_restart_in_the_middle(play, tmp_path):
    otelcol = play.otelcol("everything", with_a_batch_processor(tmp_path, timeout="1s")).start()
    play.ask(otelcol.url)
    play.until(at_work, "the worker's work")
    otelcol.stop()
    otelcol.start()
    play.let_go()
    assert_whole(play.settled())


def transient(play):
    """Whether an agent has seen that nobody takes its telemetry."""
    return any("Transient error" in play.cast.tail(name, 1000) for name in ("worker", "planner", "frontdesk"))


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_the_opentelemetry_collector_is_restarted_in_the_middle_and_it_settles_when_the_work_is_done(
    play, way
):
    otelcol = play.otelcol().start()
    play.ask(otelcol.url)
    play.until(at_work, "the worker's work")
    getattr(otelcol, way)()
    until(
        lambda: play.look() and transient(play),
        "an agent's failure to export",
        lambda: play.cast.tail("worker"),
    )
    otelcol.start()
    play.let_go()
    assert_whole(play.settled())


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_our_collector_is_away_while_the_work_ends_and_gets_it_all_from_the_queue(play, way):
    otelcol = play.otelcol().start()
    play.ask(otelcol.url)
    play.until(at_work, "the worker's work")
    getattr(play.hopwatch, way)()
    play.let_go()
    assert play.cast.processes["user"].wait(PATIENCE) == 0
    until(lambda: otelcol.counted("exporter_queue_size"), "a record in the queue")
    play.hopwatch.start()
    assert_whole(play.settled())


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_both_are_gone_with_the_whole_end_in_the_queue_and_it_settles_when_they_are_back(play, way):
    otelcol = play.otelcol().start()
    play.ask(otelcol.url)
    play.until(at_work, "the worker's work")
    getattr(play.hopwatch, way)()
    play.let_go()
    assert play.cast.processes["user"].wait(PATIENCE) == 0
    until(lambda: otelcol.counted("receiver_accepted_spans") > sum(HOPS.values()), "the records of the end")
    getattr(otelcol, way)()
    otelcol.start()
    play.hopwatch.start()
    assert_whole(play.settled())


def test_a_process_that_ends_while_nobody_takes_its_telemetry_is_never_called_settled(play):
    otelcol = play.otelcol().start()
    play.ask(otelcol.url, patience=2)
    play.until(at_work, "the worker's work")
    otelcol.kill()
    play.let_go()
    assert play.cast.processes["user"].wait(PATIENCE) == 0
    otelcol.start()
    play.until(lambda cascade: cascade["verdict"] in ("silent", "unknown"), "silent or unknown")
    assert not OVER & {*play.history}


def test_what_a_batch_processor_held_is_lost_with_kill_9_and_then_it_is_unknown(play, tmp_path):
    holding = with_a_batch_processor(tmp_path, timeout="600s", send_batch_size=1_000_000)
    otelcol = play.otelcol("everything", holding).start()
    play.let_go()
    play.ask(otelcol.url, user=play.hopwatch.url)
    assert play.cast.processes["user"].wait(PATIENCE) == 0
    until(lambda: otelcol.counted("receiver_accepted_spans") > sum(HOPS.values()) // 2, "the agents' records")
    otelcol.kill()
    otelcol.start()
    cascade = play.until(lambda cascade: cascade["verdict"] == "unknown", "unknown")
    assert "was promised hop" in cascade["reason"]
    assert {*play.history} <= {"in_flight", "unknown"}


def test_a_memory_limiter_refuses_for_a_while_and_it_settles_when_the_work_is_done(play):
    otelcol = play.otelcol().start()
    play.ask(otelcol.url)
    play.until(at_work, "the worker's work")
    otelcol.stop()
    otelcol.start(OTELCOL_MEMORY_MIB="1", OTELCOL_MEMORY_SPIKE_MIB="0")
    until(lambda: play.look() and otelcol.counted("receiver_refused_spans"), "a refusal")
    otelcol.stop()
    otelcol.start()
    play.let_go()
    assert_whole(play.settled())


def test_a_memory_limiter_refuses_for_good_and_what_it_refused_is_missing(play):
    otelcol = play.otelcol(OTELCOL_MEMORY_MIB="1", OTELCOL_MEMORY_SPIKE_MIB="0").start()
    play.let_go()
    play.ask(otelcol.url, user=play.hopwatch.url)
    assert play.cast.processes["user"].wait(PATIENCE) == 0
    cascade = play.until(lambda cascade: cascade["verdict"] == "unknown", "unknown")
    assert otelcol.counted("receiver_refused_spans")
    assert "was promised hop" in cascade["reason"]
    assert {*play.history} <= {"in_flight", "unknown"}


def test_every_batch_that_is_delivered_twice_counts_once(play):
    with contextlib.ExitStack() as stack:
        lossy = Between(play.hopwatch.url, stack)
        otelcol = play.otelcol(HOPWATCH_URL=lossy.url).start()
        play.ask(otelcol.url)
        play.until(at_work, "the worker's work")
        play.let_go()
        assert_whole(play.settled())
        # Some come a third time, where an answer took longer than who waits for it.
        until(lambda: min([*lossy.seen.values()]) >= 2, "the second delivery of each batch")
        assert_whole(play.settled())


# Two collectors --------------------------------------------------------------------------------------------------

CASCADES = 6


def before_both(cast, recipe, one, other):
    """The OpenTelemetry Collector before two collectors of ours."""
    return Otelcol(
        cast,
        recipe,
        HOPWATCH_A_URL=one.url,
        HOPWATCH_B_URL=other.url,
        HOPWATCH_A_GRPC=f"127.0.0.1:{one.grpc_port}",
        HOPWATCH_B_GRPC=f"127.0.0.1:{other.grpc_port}",
    ).start()


@pytest.mark.parametrize("recipe", ["loadbalancing", "two-halves"])
def test_two_collectors_get_some_of_the_cascades_each_and_all_heartbeats(alone, recipe):
    other = Hopwatch(alone.cast, "other").start()
    otelcol = before_both(alone.cast, recipe, alone, other)
    cascades = {trace() for _ in range(64)}
    tell(otelcol, heartbeat(), foreign(), *(end(cascade, ONE) for cascade in cascades))
    until(lambda: {*alone.verdicts(), *other.verdicts()} == cascades, "all cascades")
    assert not {*alone.verdicts()} & {*other.verdicts()}
    assert alone.verdicts()
    assert other.verdicts()
    until(lambda: alone.heard("worker") and other.heard("worker"), "the heartbeat at both")


@pytest.mark.parametrize("recipe", ["loadbalancing", "two-halves"])
def test_two_collectors_share_the_cascades_and_none_is_split_while_one_of_them_is_killed(play, recipe):
    one, other = both = play.hopwatch, Hopwatch(play.cast, "other").start()
    otelcol = before_both(play.cast, recipe, one, other)
    play.ask(otelcol.url, count=CASCADES)

    def told():
        return sum(at_work(each) for hopwatch in both for each in hopwatch.cascades()) == CASCADES

    until(told, "all cascades", lambda: [hopwatch.verdicts() for hopwatch in both], every=1)
    first, second = ({*hopwatch.verdicts()} for hopwatch in both)
    assert not first & second

    # Whoever has a cascade goes on hearing of all of its processes.
    def heard():
        return [hopwatch.heard(agent) for hopwatch in both for agent in ("worker", "frontdesk")]

    before = until(lambda: all(heard()) and heard(), "a sign of life of each at both", every=0.5)
    until(
        lambda: all(late > early for early, late in zip(before, heard(), strict=True)),
        "a heartbeat of each at both",
        every=0.5,
    )
    assert {verdict for hopwatch in both for verdict in hopwatch.verdicts().values()} == {"in_flight"}

    other.kill()
    play.gate.set()
    assert play.cast.processes["user"].wait(PATIENCE) == 0

    def over(hopwatch, cascades):
        return hopwatch.verdicts() == dict.fromkeys(cascades, "settled")

    if recipe == "two-halves":
        until(lambda: over(one, first), "the end of the first half", one.verdicts, every=0.5)
    other.start()
    until(
        lambda: over(one, first) and over(other, second),
        "the end",
        lambda: [hopwatch.verdicts() for hopwatch in both],
        every=0.5,
    )
    for cascade in one.cascades() + other.cascades():
        assert_whole(cascade)
