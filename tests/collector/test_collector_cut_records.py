"""Is a record from which the sender dropped attributes taken for a whole one? Written by a real SDK with a tight limit."""

import time

import orjson
from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from hopwatch import attributes as names
from hopwatch.collector.otlp import read_traces


def spans(limit):
    exporter = InMemorySpanExporter()
    provider = TracerProvider(
        span_limits=SpanLimits(max_span_attributes=limit),
        resource=Resource({"service.name": "worker"}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    span = provider.get_tracer(names.SCOPE).start_span("send")
    span.set_attributes(
        {
            names.RECORD: "end", names.INSTANCE: "a" * 16, names.HOP_KIND: "send", names.PEER: "instrumented",
            names.PEER_HOP: "b" * 16, "a2a.method.name": "SendMessage",
        }
    )  # fmt: skip
    span.end()
    return encode_spans(exporter.get_finished_spans())


def test_a_whole_record_is_taken():
    batch = read_traces(spans(6).SerializeToString(), json=False, now=time.time_ns())
    assert (len(batch.hops), batch.refused.count) == (1, 0)


def test_a_record_that_lost_an_attribute_is_refused_for_its_cascade_however_many_it_lost():
    for limit in (1, 2, 3, 4, 5):
        request = spans(limit)
        batch = read_traces(request.SerializeToString(), json=False, now=time.time_ns())
        assert (len(batch.hops), batch.refused.count) == (0, 1), limit
        assert len(batch.refused_of) == 1
        assert "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT" in next(iter(batch.refused.reasons))


def test_so_it_is_in_json():
    for limit in (1, 2, 3, 4, 5):
        request = MessageToDict(spans(limit))
        for resource in request["resourceSpans"]:
            for span in resource["scopeSpans"][0]["spans"]:
                span["traceId"], span["spanId"] = "c" * 32, "d" * 16
        batch = read_traces(orjson.dumps(request), json=True, now=time.time_ns())
        assert (len(batch.hops), batch.refused.count) == (0, 1), limit
        assert "c" * 32 in batch.refused_of
