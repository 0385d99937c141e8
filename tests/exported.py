"""What did this process export? Spans in memory, read back into hops as the collector does."""

import os
import time

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from hopwatch import attributes as names
from hopwatch import process, records
from hopwatch.verdict import ON_ITS_WAY, judge

over = set()
"""The instances of the processes of earlier tests."""


class Exporter(InMemorySpanExporter):
    """Keeps what is told while a test runs, but for what the process of an earlier test still tells: that is not its story."""

    def export(self, spans):
        return super().export(
            [span for span in spans if (span.attributes or {}).get(names.INSTANCE) not in over]
        )


exporter = Exporter()
if not isinstance(trace.get_tracer_provider(), TracerProvider):
    trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))


def fresh(*, reveal_after=30.0):
    """Begin with an empty ledger and nothing exported.

    What is invisible stays so for half a minute, if the environment does not say otherwise: on a machine that is busy anything
    may last the second after which it is told of, and would be one more hop.
    """
    end_process()
    process.failures.clear()
    exporter.clear()
    here = process.here()
    if "HOPWATCH_REVEAL_AFTER" not in os.environ:
        here.settings = here.settings._replace(reveal_after=reveal_after)
    return here


def end_process():
    """End the process of a test that is over: its ticker looks no more, and what it tells later is told to nobody."""
    before, process._process = process._process, None
    if before is None:
        return
    over.add(before.instance)
    telemetry = before.telemetry
    telemetry._process = lambda: None  # the ticker ends; it may have begun to look
    telemetry._tick = lambda _: False
    if telemetry.ticking.acquire(timeout=30):
        telemetry.ticking.release()


def ours():
    """The spans of hops: no heartbeats, which have a trace of their own."""
    kinds = (names.RECORD_END, names.RECORD_OPEN, names.RECORD_LATE)
    return [
        span for span in exporter.get_finished_spans() if (span.attributes or {}).get(names.RECORD) in kinds
    ]


def ends():
    """Those of hops that have ended, without markers of what was open meanwhile."""
    return [span for span in ours() if span.attributes[names.RECORD] == names.RECORD_END]


def others():
    return [span for span in exporter.get_finished_spans() if not (span.attributes or {}).get(names.RECORD)]


def cascades():
    """By cascade, the hops by their ids."""
    out = {}
    for span in ours():
        hop = records.read_hop(
            dict(span.attributes),
            agent="here",
            cascade=f"{span.context.trace_id:032x}",
            span=f"{span.context.span_id:016x}",
            parent_span=f"{span.parent.span_id:016x}" if span.parent else "",
            name=span.name,
            start=span.start_time,
            end=span.end_time,
            arrived=1,
        )
        hops = out.setdefault(hop.cascade, {})
        if hop.id in hops:
            hops[hop.id].merge(hop)
        else:
            hops[hop.id] = hop
    return out


def only_cascade():
    found = cascades()
    assert len(found) == 1, found
    return next(iter(found.values()))


def verdict(hops):
    return judge(hops, {}, now=time.time_ns() + 2 * ON_ITS_WAY)


def tree(hops, parent=None):
    """The kinds of the hops as nested lists, in order of their start."""
    below = sorted((hop for hop in hops.values() if hop.parent == parent), key=lambda hop: hop.started)
    return [(hop.kind, tree(hops, hop.id)) for hop in below]
