"""What leaves a process, and when? Markers, heartbeats, ends, and exporters that misbehave."""

import json
import os
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import pytest

from exported import exporter, fresh, ours
from hopwatch import attributes as names
from hopwatch import propagation, telemetry
from hopwatch.process import read_settings
from hopwatch.telemetry import SECOND, begin, within

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def process():
    made = fresh(reveal_after=1.0)
    # The test looks itself, when it wants to.
    made.telemetry._started = True
    made.telemetry._idle = False
    return made


def look(process, hop, age):
    """Have the ticker look when a hop is of this age in seconds, however long the test has taken to come here."""
    clock = SimpleNamespace(**{**vars(time), "time_ns": lambda: hop.started + int(age * SECOND)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telemetry, "time", clock)
        # A round that takes longer than a tick may is told of by a heartbeat more, once it is through.
        patch.setattr(telemetry, "SAMPLING_BUDGET", 60 * SECOND)
        process.telemetry._tick(process)


def open_hop(process, kind="execution", name="work", parent=None, **more):
    return begin(process, kind, name, parent, **more)


def records(record):
    return [
        span for span in exporter.get_finished_spans() if (span.attributes or {}).get(names.RECORD) == record
    ]


def run(code, *, env=None, timeout=240):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=timeout, check=False, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_a_hop_that_ends_within_a_tick_costs_one_span_and_no_heartbeat(process):
    hop = open_hop(process)
    hop.finish()
    look(process, hop, 0.2)
    (span,) = exporter.get_finished_spans()
    assert span.attributes == {
        names.RECORD: names.RECORD_END,
        names.INSTANCE: process.instance,
        names.HOP_KIND: "execution",
    }


def test_an_open_hop_is_marked_after_a_quarter_of_a_second_a_second_and_ten(process):
    hop = open_hop(process)
    look(process, hop, 0)
    assert records("open") == []
    for age, count in ((0.3, 1), (0.4, 1), (1.1, 2), (6.1, 2), (11.1, 3)):
        look(process, hop, age)
        assert len(records("open")) == count
    marker = records("open")[0]
    assert marker.start_time == marker.end_time
    assert f"{marker.parent.span_id:016x}" == hop.id
    assert f"{marker.context.span_id:016x}" != hop.id
    assert f"{marker.context.trace_id:032x}" == hop.cascade
    assert marker.attributes[names.HOP_NAME] == "work"
    hop.finish()


def test_a_heartbeat_tells_how_many_hops_are_open_in_a_trace_of_the_process_that_samplers_keep(process):
    hops = [open_hop(process) for _ in range(3)]
    look(process, hops[0], 1)
    look(process, hops[0], 5)  # not again before 5 s
    (beat,) = records("heartbeat")
    assert beat.attributes[names.HEARTBEAT_OPEN] == 3
    assert beat.attributes[names.HEARTBEAT_DROPPED] == 0
    assert beat.attributes[names.HEARTBEAT_SAMPLED] > 0
    assert beat.context.trace_id & 0xFFFFFFFFFFFFFFFF == 1
    for hop in hops:
        hop.finish()


def test_a_hop_that_closes_later_than_its_work_ends_when_its_work_did(process):
    hop = open_hop(process)
    task = process.ledger.open("task", "rest", hop)
    hop.finish()
    done = hop.done
    assert ours() == []
    task.finish()
    (span,) = ours()
    assert span.end_time == done


def test_what_outlasts_the_threshold_is_revealed_with_its_true_start(process):
    hop = open_hop(process)
    task = process.ledger.open("task", "slow", hop)
    look(process, task, 0.9)
    assert not task.visible
    look(process, task, 1.1)
    assert task.visible
    task.finish()
    hop.finish()
    spans = {span.name: span for span in records("end")}
    assert spans["slow"].start_time == task.started
    assert spans["work"].attributes[names.HOP_CHILDREN] == 1


def test_a_failed_hop_is_an_error_with_its_reason_and_a_cancelled_one_is_not(process):
    open_hop(process, name="bad").finish("failed", "ValueError: no")
    open_hop(process, name="gone").finish("cancelled")
    spans = {span.name: span for span in ours()}
    assert (spans["bad"].status.status_code.name, spans["bad"].status.description) == (
        "ERROR",
        "ValueError: no",
    )
    assert spans["gone"].status.status_code.name == "UNSET"
    assert spans["gone"].attributes[names.HOP_OUTCOME] == "cancelled"


def test_spans_of_others_inside_a_hop_are_below_it_and_hand_on_its_tracestate(process):
    from opentelemetry import trace

    hop = open_hop(process)
    with within(hop), trace.get_tracer("application").start_as_current_span("mine") as span:
        state = span.get_span_context().trace_state
        assert state.get(names.TRACESTATE_KEY) == f"{hop.cascade}-{hop.id}"
        assert f"{span.parent.span_id:016x}" == hop.id
    hop.finish()


def test_a_vendors_tracestate_is_kept_beside_ours(process):
    from opentelemetry import trace
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

    around = SpanContext(
        5, 6, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("vendor", "x")])
    )
    with trace.use_span(NonRecordingSpan(around)):
        hop = open_hop(process)
    assert hop.cascade == f"{5:032x}"
    assert propagation.outgoing(hop)["tracestate"] == f"hopwatch={hop.cascade}-{hop.id},vendor=x"
    hop.finish()


@pytest.mark.parametrize(
    "state",
    ["", "hopwatch=", "hopwatch=zz", "hopwatch=" + "a" * 32, f"hopwatch={'0' * 32}-{'a' * 16}", f"hopwatch={'A' * 32}-{'a' * 16}", "other=hopwatch", "hopwatch=" + "-" * 300],
)  # fmt: skip
def test_a_tracestate_that_is_not_ours_or_malformed_carries_no_hop(state):
    assert propagation.incoming({"tracestate": state}) is None


def test_a_push_says_so_in_its_tracestate(process):
    push = open_hop(process, kind="push")
    carrier = propagation.incoming(propagation.outgoing(push))
    assert (carrier.cascade, carrier.hop, carrier.push) == (push.cascade, push.id, True)
    push.finish()


def test_an_acknowledgement_is_taken_only_for_its_own_cascade(process):
    mine, other = open_hop(process, kind="send"), open_hop(process, kind="send")
    taken = open_hop(process, kind="request", parent=mine)
    propagation.acknowledged(mine, propagation.acknowledgement(taken, mine.cascade))
    propagation.acknowledged(other, propagation.acknowledgement(taken, mine.cascade))
    assert mine.attributes[names.PEER_HOP] == taken.id
    assert other.attributes[names.PEER] == "opaque"
    for junk in (None, "", "00-xx", "00-" + "a" * 32 + "-zzzzzzzzzzzzzzzz-01", "1-2-3-4-5"):
        propagation.acknowledged(other, junk)
        assert other.attributes[names.PEER] == "opaque"
    for hop in (taken, mine, other):
        hop.finish()


def test_of_several_acknowledgements_in_one_answer_each_hop_must_come(process):
    sent = open_hop(process, kind="send")
    gateway, worker = (open_hop(process, kind="request", parent=sent) for _ in range(2))
    given = [propagation.acknowledgement(each, sent.cascade) for each in (worker, gateway)]
    propagation.acknowledged(sent, ", ".join([*given, "00-somebody-else's-01"]))
    assert sent.attributes[names.PEER] == "instrumented"
    assert sent.attributes[names.PEER_HOP] == worker.id
    assert sent.attributes[names.PEER_OTHERS] == gateway.id
    # One that had no room to account for it is not made good by the other.
    full = open_hop(process, kind="send")
    propagation.acknowledged(
        full,
        f"{propagation.acknowledgement(None, full.cascade)}, {'00-' + full.cascade + '-' + 'a' * 16 + '-01'}",
    )
    assert full.attributes[names.PEER] == "instrumented"
    assert names.PEER_HOP not in full.attributes
    for hop in (gateway, worker, sent, full):
        hop.finish()


def test_settings_that_cannot_be_used_are_told_of_and_the_defaults_hold():
    settings = read_settings(
        {"HOPWATCH_DETAIL": "loud", "HOPWATCH_REVEAL_AFTER": "soon", "HOPWATCH_CAPACITY": "-3"}
    )
    assert (settings.detail, settings.reveal_after, settings.capacity) == ("hops", 1.0, 100_000)
    assert len(settings.problems) == 3
    assert "'loud'" in settings.problems[0]
    assert read_settings({"HOPWATCH_DETAIL": " ALL "}).detail == "all"
    settings = read_settings({"HOPWATCH_SAMPLING": "some"})
    assert (settings.sampling, len(settings.problems)) == ("follow", 1)
    assert read_settings({"HOPWATCH_SAMPLING": " ALL "}).sampling == "all"


def test_a_variable_whose_name_is_nearly_one_of_ours_is_told_of_and_no_other():
    settings = read_settings({"HOPWATCH_DETIAL": "all", "HOPWATCH_SERVICE_LOOP": "a:b", "HOPWATCH_MINE": "1"})
    assert settings.problems == (
        "HOPWATCH_DETIAL is none of hopwatch's settings, but HOPWATCH_DETAIL is",
        "HOPWATCH_SERVICE_LOOP is none of hopwatch's settings, but HOPWATCH_SERVICE_LOOPS is",
    )
    # What Kubernetes gives each pod beside a service of the name `hopwatch`.
    of_a_service = (
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_HTTP",
        "PORT",
        "PORT_4318_TCP",
        "PORT_4318_TCP_PROTO",
    )
    assert read_settings({f"HOPWATCH_{name}": "1" for name in of_a_service}).problems == ()


def test_a_pattern_that_no_service_loop_can_match_is_told_of_and_the_others_hold():
    settings = read_settings({"HOPWATCH_SERVICE_LOOPS": "refresh, shop:refresh, *refresh"})
    assert settings.problems == (
        "HOPWATCH_SERVICE_LOOPS has 'refresh', which is no function's whole name; a pattern is module:qualname, such as *:refresh",
    )
    assert settings.service_loops == ("refresh", "shop:refresh", "*refresh")


SETUP = """
import json, os, sys, threading, time
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from hopwatch.process import here, failures
from hopwatch.telemetry import begin
"""


def test_an_exporter_that_hangs_hangs_neither_the_agent_nor_the_ticker():
    done = run(
        SETUP
        + """
reached, release = threading.Event(), threading.Event()
class Hanging(SpanExporter):
    def export(self, spans):
        reached.set()
        release.wait()
        return SpanExportResult.SUCCESS
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(BatchSpanProcessor(Hanging()))
trace.set_tracer_provider(provider)
process = here()
hop = begin(process, "execution", "open", None)
begin(process, "execution", "short", None).finish()
assert reached.wait(60), "nothing was flushed"
for _ in range(5000):
    begin(process, "execution", "work", hop).finish()
# The flusher hangs; the ticker goes on.
until = time.monotonic() + 60
while hop.span.markers < 2 and time.monotonic() < until:
    time.sleep(0.02)
print(json.dumps([hop.span.markers >= 2, len(process.ledger), failures]), flush=True)
os._exit(0)
"""
    )
    assert json.loads(done.stdout) == [True, 1, {}]


def test_an_exporter_that_fails_harms_nobody():
    done = run(
        SETUP
        + """
class Failing(SpanExporter):
    def export(self, spans):
        raise OSError("the disk is full")
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(Failing()))
trace.set_tracer_provider(provider)
process = here()
for _ in range(10):
    begin(process, "execution", "work", None).finish()
print(len(process.ledger), flush=True)
os._exit(0)
"""
    )
    assert done.stdout.strip() == "0"


def test_records_are_exported_within_a_second_and_a_half_though_the_batch_delay_is_five():
    done = run(
        SETUP
        + """
arrived = threading.Event()
class Telling(SpanExporter):
    def export(self, spans):
        arrived.set()
        return SpanExportResult.SUCCESS
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(BatchSpanProcessor(Telling(), schedule_delay_millis=3_600_000))
trace.set_tracer_provider(provider)
begin(here(), "execution", "work", None).finish()
# The batch processor alone would come in an hour: whatever comes was asked for by the ticker.
print(arrived.wait(120), flush=True)
os._exit(0)
"""
    )
    assert done.stdout.strip() == "True"


def test_a_trace_that_the_sampler_drops_is_acknowledged_as_such_and_never_told_of():
    done = run(
        SETUP
        + """
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from hopwatch import propagation
class Telling(SpanExporter):
    def export(self, spans):
        print("exported", [span.name for span in spans])
        return SpanExportResult.SUCCESS
provider = TracerProvider(sampler=ALWAYS_OFF)
provider.add_span_processor(SimpleSpanProcessor(Telling()))
trace.set_tracer_provider(provider)
hop = begin(here(), "request", "ask", None)
print(propagation.acknowledgement(hop, hop.cascade)[-3:], len(hop.id), len(hop.cascade))
child = begin(here(), "execution", "run", hop)
print(child.cascade == hop.cascade, child.parent_id == hop.id, child.id != hop.id)
child.finish(); hop.finish()
print(len(here().ledger))
"""
    )
    assert done.stdout.split("\n")[:3] == ["-00 16 32", "True True True", "0"]


@pytest.mark.parametrize("sampler", ["ParentBased(ALWAYS_OFF)", "RecordsOnly()"])
def test_the_records_of_a_dropped_trace_go_out_if_that_is_asked_for_and_nothing_else_of_it_does(sampler):
    done = run(
        SETUP
        + """
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, ParentBased, Sampler, SamplingResult
from hopwatch import propagation
from hopwatch.telemetry import within

class Keeping(SpanExporter):
    spans = []
    def export(self, spans):
        self.spans.extend(spans)
        return SpanExportResult.SUCCESS

class RecordsOnly(Sampler):
    def should_sample(self, *_, **__):
        return SamplingResult(Decision.RECORD_ONLY)
    def get_description(self):
        return ""

provider = TracerProvider(sampler=SAMPLER)
provider.add_span_processor(BatchSpanProcessor(Keeping()))
trace.set_tracer_provider(provider)
hop = begin(here(), "request", "ask", None)
headers = propagation.outgoing(hop)
with within(hop):
    with trace.get_tracer("app").start_as_current_span("the application's own") as own:
        kept = own.get_span_context().trace_flags & 1
child = begin(here(), "execution", "run", hop)
here().telemetry._sample(child, child.span, time.time_ns())
here().telemetry._mark(child, child.span)
here().telemetry.late(hop)
here().telemetry.tell_own("hopwatch.heartbeat", {"hopwatch.record": "heartbeat"})
answer = propagation.acknowledgement(hop, hop.cascade)
child.finish(); hop.finish()
provider.force_flush()
spans = Keeping.spans
by_id = {f"{span.context.span_id:016x}": span for span in spans}
print(json.dumps({
    "names": sorted({span.name for span in spans}),  # where it is slow, there are markers and heartbeats besides
    "cascades": len({span.context.trace_id for span in spans if span.name != "hopwatch.heartbeat"}),
    "ids": [f"{by_id[hop.id].context.trace_id:032x}" == hop.cascade, child.id in by_id, by_id[hop.id].parent is None],
    "parent": f"{by_id[child.id].parent.span_id:016x}" == hop.id,
    "out": [int(headers["traceparent"][-2:], 16) & 1, headers["tracestate"] == f"hopwatch={hop.cascade}-{hop.id}", kept],
    "answer": int(answer[-2:], 16) & 1,
    "failures": failures,
}))
""".replace("SAMPLER", sampler),
        env={**os.environ, "HOPWATCH_SAMPLING": "all", "HOPWATCH_BLACKBOX": "off"},
    )
    assert json.loads(done.stdout) == {
        "names": ["ask", "hopwatch.heartbeat", "hopwatch.late", "hopwatch.open", "run"],
        "cascades": 1,
        "ids": [True, True, True],
        "parent": True,
        "out": [0, True, 0],
        "answer": 1,
        "failures": {},
    }


def test_a_hop_that_is_told_of_against_the_sampler_leaves_nothing_behind_for_the_collector_of_cycles():
    done = run(
        SETUP
        + """
import gc
from opentelemetry.sdk.trace import IdGenerator, Span, Tracer
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
trace.set_tracer_provider(TracerProvider(sampler=ALWAYS_OFF))
def hop():
    begin(here(), "request", "ask", None).finish()
def alive():
    tracers = sum(isinstance(each, (Tracer, IdGenerator)) for each in gc.get_objects())
    return [len(IdGenerator.__subclasses__()), tracers]
hop()
# The ticker waits meanwhile: else it may have a hop at hand, or tell of one that takes long, which makes a tracer.
with here().telemetry.ticking:
    gc.collect()
    gc.disable()
    before = alive()
    for _ in range(100):
        hop()
    after = alive()
    # What ended lately waits for the ticker, to be counted.
    here().telemetry._ended.clear()
    print(json.dumps([after == before, sum(isinstance(each, Span) for each in gc.get_objects()), failures]))
os._exit(0)
""",
        env={**os.environ, "HOPWATCH_SAMPLING": "all", "HOPWATCH_BLACKBOX": "off"},
    )
    assert json.loads(done.stdout) == [True, 0, {}]


def test_a_sampler_that_only_records_has_each_hop_once_with_what_the_application_says_of_it():
    done = run(
        SETUP
        + """
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from hopwatch.telemetry import within

class Told(SpanProcessor):
    told = []
    def on_start(self, span, parent_context=None):
        self.told.append(("start", span.name, span.context.span_id, {}))
    def on_end(self, span):
        said = {key: value for key, value in span.attributes.items() if key == "own"}
        self.told.append(("end", span.name, span.context.span_id, said))

class Keeping(SpanExporter):
    names = []
    def export(self, spans):
        self.names.extend(span.name for span in spans)
        return SpanExportResult.SUCCESS

class RecordsOnly(Sampler):
    def should_sample(self, *_, **__):
        return SamplingResult(Decision.RECORD_ONLY)
    def get_description(self):
        return ""

provider = TracerProvider(sampler=RecordsOnly())
provider.add_span_processor(Told())
provider.add_span_processor(BatchSpanProcessor(Keeping()))
trace.set_tracer_provider(provider)
hop = begin(here(), "request", "ask", None)
with within(hop):
    now = trace.get_current_span()
    now.set_attribute("own", "kept")
    during = [now.is_recording(), now.get_span_context().trace_flags & 1]
hop.finish()
provider.force_flush()
told = [(when, span == int(hop.id, 16), said) for when, name, span, said in Told.told if name == "ask"]
print(json.dumps({
    "told": told,
    "during": during,
    "after": [now.is_recording(), now.get_span_context().trace_flags & 1],
    "exported": [name for name in Keeping.names if name == "ask"],
    "failures": failures,
}))
""",
        env={**os.environ, "HOPWATCH_SAMPLING": "all", "HOPWATCH_BLACKBOX": "off"},
    )
    assert json.loads(done.stdout) == {
        "told": [["start", True, {}], ["end", True, {"own": "kept"}]],
        "during": [True, 0],
        "after": [False, 0],
        "exported": ["ask"],
        "failures": {},
    }


def test_a_span_that_somebody_wraps_still_hands_on_its_hop():
    done = run(
        SETUP
        + """
from opentelemetry.trace import Span, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from hopwatch.telemetry import within

class Wrapped(Span):
    # As another vendor's tracer gives them: it holds the real one where nobody knows.
    def __init__(self, span):
        self.held_in = {"place": span}
    def __getattribute__(self, name):
        if name in ("held_in", "__class__", "__dict__"):
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "held_in")["place"], name)
    end = get_span_context = set_attributes = set_attribute = add_event = update_name = None
    is_recording = set_status = record_exception = None

Wrapped.__abstractmethods__ = frozenset()

class Wrapping(Tracer):
    def __init__(self, tracer):
        self.inner = tracer
    def start_span(self, *args, **kwargs):
        return Wrapped(self.inner.start_span(*args, **kwargs))
    def start_as_current_span(self, *args, **kwargs):
        raise NotImplementedError

class Keeping(SpanExporter):
    names = []
    def export(self, spans):
        self.names.extend(span.name for span in spans)
        return SpanExportResult.SUCCESS

class Provider(TracerProvider):
    def get_tracer(self, *args, **kwargs):
        return Wrapping(super().get_tracer(*args, **kwargs))

provider = Provider()
provider.add_span_processor(SimpleSpanProcessor(Keeping()))
trace.set_tracer_provider(provider)
hop = begin(here(), "request", "ask", None)
headers = {}
with within(hop):
    TraceContextTextMapPropagator().inject(headers)
hop.finish()
print(headers["tracestate"] == f"hopwatch={hop.cascade}-{hop.id}", headers["traceparent"][-19:-3] == hop.id)
print(Keeping.names.count("ask"), failures)
""",
        env={**os.environ, "HOPWATCH_BLACKBOX": "off"},
    )
    assert done.stdout.split("\n")[:2] == ["True True", "1 {}"]


def test_without_an_sdk_the_ledger_still_counts():
    done = run(
        """
        import hopwatch
        with hopwatch.cascade("one") as one:
            inside = hopwatch.current()
            with hopwatch.cascade("two") as two:
                print(one.id == two.id, inside.id != hopwatch.current().id, len(hopwatch.pending()))
        print(len(hopwatch.pending()))
        """
    )
    assert done.stdout.split("\n")[:2] == ["True True 2", "0"]


def test_a_forked_child_has_a_ledger_of_its_own_and_does_not_report_its_parents_hops():
    done = run(
        SETUP
        + """
import warnings
warnings.simplefilter("ignore")  # Python 3.12 warns of a fork beside threads, which ours are
class Telling(SpanExporter):
    def export(self, spans):
        for span in spans:
            if span.attributes["hopwatch.record"] != "heartbeat":
                print(os.getpid() == parent, span.name, span.attributes.get("hopwatch.hop.remote", False), flush=True)
        return SpanExportResult.SUCCESS
parent = os.getpid()
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(Telling()))
trace.set_tracer_provider(provider)
hop = begin(here(), "execution", "before", None)
instance = here().instance
child = os.fork()
if child == 0:
    assert here().instance != instance
    assert len(here().ledger) == 0
    begin(here(), "send", "in the child", hop).finish()
    hop.finish()  # its stack unwinds through what the parent is in the middle of, as sys.exit does
    hop.ledger.open("task", "after that", hop).finish("failed")
    os._exit(0)
_, status = os.waitpid(child, 0)
hop.finish()
print(status, flush=True)
os._exit(0)
"""
    )
    assert done.stdout.split("\n")[:3] == ["False in the child True", "True before False", "0"]


def test_importing_hopwatch_and_its_instrumentors_loads_nothing_of_the_application():
    done = run(
        """
        import sys
        from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
        from hopwatch.instrumentation.a2a import A2AInstrumentor
        AsyncioInstrumentor().instrument()
        A2AInstrumentor().instrument()
        print([name for name in ("a2a", "starlette", "httpx", "grpc", "uvicorn", "click", "rich", "sqlite3", "orjson", "google.protobuf") if name in sys.modules])
        """
    )
    assert done.stdout.strip() == "[]"


def test_the_ticker_sleeps_while_nothing_is_open(process):
    process.telemetry._started = False
    process.telemetry._idle = True
    hop = open_hop(process)
    assert not process.telemetry._idle
    hop.finish()
    until = time.monotonic() + 60
    while not process.telemetry._idle and time.monotonic() < until:
        time.sleep(0.02)
    assert process.telemetry._idle
