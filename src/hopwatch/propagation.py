"""Who caused this message, and did the other side take it? What goes over the wire, in and out.

Out: `traceparent`, and in `tracestate` an entry `hopwatch=<cascade>-<hop>` (a push adds `-push`, a message of the Agent Client
Protocol a mark of its connection), which other
instrumentations hand on as it is. Back: `traceresponse` with the receiver's hop, as the W3C draft "Trace Context Level 2" has it, and the same
value under a name of our own, for other instrumentations answer with `traceresponse` as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from hopwatch import attributes as names
from hopwatch.telemetry import Carrier, HopSpan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hopwatch.ledger import Entry

_w3c = TraceContextTextMapPropagator()
_HEX = frozenset("0123456789abcdef")


def outgoing(entry: Entry) -> dict[str, str]:
    """The headers that a message of this hop carries."""
    hop = entry.span
    if not isinstance(hop, HopSpan):
        return {}
    context = hop.context
    return {
        "traceparent": f"00-{entry.cascade}-{entry.id}-{int(context.trace_flags):02x}",
        "tracestate": context.trace_state.to_header(),
    }


def hop_in_tracestate(header: str) -> tuple[str, str, str] | None:
    """The cascade and hop that a `tracestate` header carries, and the mark behind them (`push`, say); None where it carries none."""
    for member in header.split(","):
        key, _, value = member.strip().partition("=")
        if key == names.TRACESTATE_KEY:
            cascade, _, rest = value.partition("-")
            hop, _, mark = rest.partition("-")
            if (
                len(cascade) == 32
                and len(hop) == 16
                and _HEX.issuperset(cascade)
                and _HEX.issuperset(hop)
                and int(hop, 16)
                and int(cascade, 16)
            ):
                return cascade, hop, mark
    return None


def incoming(headers: Mapping[str, str]) -> Carrier | None:
    """What a message's headers (lower-case names) say of the hop that sent it; None where no hop of ours did."""
    state = headers.get("tracestate")
    found = hop_in_tracestate(state) if state and names.TRACESTATE_KEY in state else None
    if found is None:
        return None
    cascade, hop, mark = found
    return Carrier(cascade, hop, _context(headers, state or ""), mark=mark)


def _context(headers: Mapping[str, str], state: str) -> Any:
    """The OpenTelemetry context that a message carries, as the W3C propagator would read it."""
    parent = headers.get("traceparent", "")
    version, _, rest = parent.partition("-")
    # The usual form, which a process of ours writes; the propagator takes several times as long.
    if version == "00" and len(rest) == 52 and "," not in state and rest[32] == rest[49] == "-":
        trace_id, span_id, flags = rest[:32], rest[33:49], rest[50:]
        if _HEX.issuperset(trace_id) and _HEX.issuperset(span_id) and _HEX.issuperset(flags):
            key, _, value = state.strip().partition("=")
            context = SpanContext(
                int(trace_id, 16),
                int(span_id, 16),
                is_remote=True,
                trace_flags=TraceFlags(int(flags, 16)),
                trace_state=TraceState([(key, value)]),
            )
            if context.is_valid:
                return set_span_in_context(NonRecordingSpan(context), otel_context.Context())
    return _w3c.extract(headers, otel_context.Context())


def plain_context(headers: Mapping[str, str]) -> Any:
    """The OpenTelemetry context of a message that no hop of ours sent; None where it carries none."""
    return _w3c.extract(headers, otel_context.get_current()) if "traceparent" in headers else None


def acknowledgement(entry: Entry | None, cascade: str) -> str:
    """The value of the acknowledgement: the receiving hop, or zeros where the receiver had no room to account for it."""
    if entry is None:
        return f"00-{cascade}-{'0' * 16}-00"
    hop = entry.span
    flags = 0
    if isinstance(hop, HopSpan) and hop.record is not None:
        # What counts is whether records of it come: with HOPWATCH_SAMPLING=all they do, whatever the sampler says.
        flags = int(hop.record.get_span_context().trace_flags) | hop.lifted
    return f"00-{entry.cascade}-{entry.id}-{flags:02x}"


def attempts_before(by_grpc: str, by_proxy: str) -> int:
    """How often a message was sent before this time, without a word to the sender; 0 for never, and for what is no such number.

    Args:
        by_grpc: how often gRPC's core says that it tried before; empty for not at all.
        by_proxy: the how manieth attempt a proxy says this is.
    """
    return number(by_grpc) + max(0, number(by_proxy) - 1)


def number(header: str) -> int:
    """A number that somebody else sent, at most 1000; 0 for what is none."""
    return min(int(header), 1000) if 0 < len(header) <= 9 and header.isascii() and header.isdecimal() else 0


def acknowledged(entry: Entry, header: str | None) -> None:
    """Record on a send or push what its peer answered: instrumented with its hop, or opaque.

    A gateway that is instrumented itself, and hands on what it is asked and what it is answered, makes one header of several
    acknowledgements, with commas between them: all of their hops must come.
    """
    found = []
    for each in header.split(",") if header else ():
        parts = each.strip().split("-")
        if (
            len(parts) == 4
            and parts[1] == entry.cascade
            and len(parts[2]) == 16
            and _HEX.issuperset(parts[2])
        ):
            found.append((parts[2], parts[3]))
    if not found:
        entry.set(names.PEER, "opaque")
        return
    entry.set(names.PEER, "instrumented")
    if all(int(hop, 16) for hop, _ in found):
        entry.set(names.PEER_HOP, found[0][0])
    if not all(flags[-1:] in tuple("13579bdf") for _, flags in found):
        entry.set(names.PEER_SAMPLED, False)
    if len(found) > 1:
        entry.set(names.PEER_OTHERS, ",".join(hop for hop, _ in found[1:]))
