"""What do these bytes say? OTLP requests, as protobuf or JSON, read into the records that hops are made of.

Protobuf is read by the generated classes. JSON is read by an own path: OTLP's ids are hex digits and its 64-bit
numbers may be strings, which protobuf's own JSON reader gets wrong, and slowly.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from hopwatch import attributes as names
from hopwatch.collector.batch import Batch, Sender
from hopwatch.records import MAX_TEXT, RecordError, read_heartbeat, read_hop, read_shutdown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

DAY: Final = 86_400 * 1_000_000_000
MAX_ATTRIBUTES: Final = 256
"""Attributes of one record; the SDKs' own limit is 128."""
MAX_NAMES: Final = 16_384
"""Characters of the names of a record's attributes, together."""
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16


class Malformed(ValueError):  # noqa: N818 - said of the bytes, and the message says how
    """The bytes are not the OTLP request that they claim to be."""


class Span(NamedTuple):
    """What a span of ours says, wherever it came from. An id that cannot be is the empty text."""

    trace: str
    span: str
    parent: str
    name: str
    start: int
    end: int
    attributes: Mapping[str, Any]


class Unreadable:
    """Stands for a value that is neither text, number nor flag: it is refused where one of those is needed."""

    def __repr__(self) -> str:
        return "<neither text, number nor flag>"


_UNREADABLE: Final = Unreadable()


_CUT: Final = "hopwatch.cut"
"""Marks the attributes of a span of which the sender dropped some."""


# Requests ------------------------------------------------------------------------------------------------------


def read_traces(body: bytes, *, json: bool, now: int) -> Batch:
    """Read an ExportTraceServiceRequest.

    Raises:
        Malformed: the whole of it cannot be read.
    """
    if json:
        return _batch(_json_resource_spans(_json_request(body)), now)
    return traces_of(_protobuf(ExportTraceServiceRequest, body), now=now)


def read_logs(body: bytes, *, json: bool, now: int) -> Batch:
    """Read an ExportLogsServiceRequest for the signs of life in it.

    Raises:
        Malformed: the whole of it cannot be read.
    """
    if json:
        return _signs(_json_resources(_json_request(body), "resourceLogs"), now)
    return logs_of(_protobuf(ExportLogsServiceRequest, body), now=now)


def read_metrics(body: bytes, *, json: bool, now: int) -> Batch:
    """Read an ExportMetricsServiceRequest for the signs of life in it.

    Raises:
        Malformed: the whole of it cannot be read.
    """
    if json:
        return _signs(_json_resources(_json_request(body), "resourceMetrics"), now)
    return metrics_of(_protobuf(ExportMetricsServiceRequest, body), now=now)


def traces_of(request: Any, *, now: int) -> Batch:
    """What a decoded ExportTraceServiceRequest says."""
    return _batch(_protobuf_resource_spans(request), now)


def logs_of(request: Any, *, now: int) -> Batch:
    """What a decoded ExportLogsServiceRequest says."""
    return _signs((_protobuf_sender(each.resource) for each in request.resource_logs), now)


def metrics_of(request: Any, *, now: int) -> Batch:
    """What a decoded ExportMetricsServiceRequest says."""
    return _signs((_protobuf_sender(each.resource) for each in request.resource_metrics), now)


def _batch(resources: Iterable[tuple[Sender, int, Iterable[Span]]], now: int) -> Batch:
    batch = Batch(arrived=now)
    for sender, ignored, spans in resources:
        batch.ignored += ignored
        told_by_others = 0
        count = 0
        for span in spans:
            count += 1
            if span.attributes.get(names.RECORD) == names.RECORD_ABANDONED:
                told_by_others += 1
            try:
                _take(batch, sender, span)
            except RecordError as error:
                batch.refused.add(str(error))
                if span.trace and span.attributes.get(names.RECORD) != names.RECORD_HEARTBEAT:
                    batch.refused_of[span.trace] += 1
        # What somebody else tells of a process that died is no sign of its life.
        if ignored or not count or told_by_others < count:
            batch.signs.add(sender)
    return batch


def _signs(senders: Iterable[Sender], now: int) -> Batch:
    return Batch(arrived=now, signs=set(senders))


def _take(batch: Batch, sender: Sender, span: Span) -> None:
    trace, identity, parent, name, start, end, attributes = span
    now = batch.arrived
    if not trace:
        raise RecordError("the trace id is not 16 bytes, or all zero")
    if not identity:
        raise RecordError("the span id is not 8 bytes, or all zero")
    if not 0 < start <= end:
        raise RecordError("the span's times are missing, or it ends before it starts")
    latest = now + DAY
    if end > latest:
        raise RecordError("the span ends more than a day in the collector's future")
    if _CUT in attributes or names.RECORD not in attributes:
        # An attribute that is absent has a meaning: one that was dropped must not be taken for it.
        raise RecordError(
            "the sender dropped attributes of the span: raise OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT there"
        )
    if len(attributes) > MAX_ATTRIBUTES:
        raise RecordError(f"the span has more than {MAX_ATTRIBUTES} attributes")
    if len("".join(attributes)) > MAX_NAMES:
        raise RecordError(
            f"the names of the span's attributes are longer than {MAX_NAMES} characters together"
        )
    if attributes[names.RECORD] == names.RECORD_HEARTBEAT:
        beat = read_heartbeat(attributes, agent=sender.service, at=start)
        if beat.sampled > latest:
            raise RecordError(f"{names.HEARTBEAT_SAMPLED} is more than a day in the collector's future")
        batch.heartbeats.append(beat)
        batch.senders[beat.instance] = sender
        return
    if attributes[names.RECORD] == names.RECORD_SHUTDOWN:
        shutdown = read_shutdown(attributes, agent=sender.service, at=start)
        batch.shutdowns.append(shutdown)
        batch.senders[shutdown.instance] = sender
        return
    hop = read_hop(
        attributes,
        agent=sender.service,
        cascade=trace,
        span=identity,
        parent_span=parent,
        name=name if len(name) <= MAX_TEXT else name[:MAX_TEXT],
        start=start,
        end=end,
        arrived=now,
    )
    if not 0 < hop.started <= latest:
        raise RecordError(
            f"{names.HOP_STARTED} is {hop.started}; it is a time, at most a day in the collector's future"
        )
    if hop.waits is not None:
        try:
            orjson.dumps(hop.waits)
        except orjson.JSONEncodeError:
            raise RecordError(
                f"{names.HOP_WAITS} nests too deeply, or holds a number or text that JSON cannot carry"
            ) from None
    batch.hops.append(hop)
    if attributes[names.RECORD] != names.RECORD_ABANDONED:
        batch.senders[hop.instance] = sender


# Protobuf ------------------------------------------------------------------------------------------------------


def _protobuf(kind: Any, body: bytes) -> Any:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise Malformed(f"the body is not an {kind.DESCRIPTOR.name}: {error}") from None


def _protobuf_resource_spans(request: Any) -> Iterator[tuple[Sender, int, Iterable[Span]]]:
    for each in request.resource_spans:
        ours: list[Span] = []
        count = 0
        for scope in each.scope_spans:
            foreign = scope.scope.name != names.SCOPE
            for span in scope.spans:
                count += 1
                pairs = span.attributes
                if foreign and not any(pair.key == names.RECORD for pair in pairs):
                    continue
                attributes: dict[str, Any] = {}
                for pair in pairs:
                    value = pair.value
                    # Most are texts: asking which of the kinds it is would cost more than looking.
                    attributes[pair.key] = value.string_value or _protobuf_value(value)
                if span.dropped_attributes_count:
                    attributes[_CUT] = True
                elif names.RECORD not in attributes:
                    continue
                if foreign and names.RECORD not in attributes:
                    continue
                ours.append(
                    Span(
                        _trace_id(span.trace_id),
                        _span_id(span.span_id),
                        _span_id(span.parent_span_id),
                        span.name,
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        attributes,
                    )
                )
        yield _protobuf_sender(each.resource), count - len(ours), ours


def _protobuf_sender(resource: Any) -> Sender:
    found: dict[str, Any] = {}
    for pair in resource.attributes:
        if pair.key in (names.SERVICE_NAME, names.SERVICE_INSTANCE_ID):
            found[pair.key] = _protobuf_value(pair.value)
    return _sender(found)


def _protobuf_value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value
    if kind == "int_value":
        return value.int_value
    if kind == "bool_value":
        return value.bool_value
    if kind == "double_value":
        return _number(value.double_value)
    return _UNREADABLE


def _trace_id(value: bytes) -> str:
    text = value.hex()
    return text if len(text) == 32 and text != _NO_TRACE else ""


def _span_id(value: bytes) -> str:
    text = value.hex()
    return text if len(text) == 16 and text != _NO_SPAN else ""


def _sender(found: Mapping[str, Any]) -> Sender:
    service = found.get(names.SERVICE_NAME)
    instance = found.get(names.SERVICE_INSTANCE_ID)
    return Sender(
        service[:MAX_TEXT] if isinstance(service, str) and service else "unknown_service",
        instance[:MAX_TEXT] if isinstance(instance, str) and instance else None,
    )


def _number(value: float) -> Any:
    # JSON has no such numbers; as a text they are still seen.
    return value if math.isfinite(value) else str(value)


# JSON ----------------------------------------------------------------------------------------------------------


def _json_request(body: bytes) -> Mapping[str, Any]:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"the body is not JSON: {error}") from None
    return _object(request, "the body")


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Malformed(f"{what} is not a JSON object")
    return value


def _objects(value: Any, what: str) -> Iterator[Mapping[str, Any]]:
    if value is None:
        return
    if not isinstance(value, list):
        raise Malformed(f"{what} is not a JSON array")
    for each in value:
        yield _object(each, f"an element of {what}")


def _json_resources(request: Mapping[str, Any], key: str) -> Iterator[Sender]:
    for each in _objects(request.get(key), key):
        yield _json_sender(each)


def _json_sender(resource_signals: Mapping[str, Any]) -> Sender:
    resource = _object(resource_signals.get("resource"), "resource")
    return _sender(_json_attributes(resource.get("attributes")))


def _json_resource_spans(request: Mapping[str, Any]) -> Iterator[tuple[Sender, int, Iterable[Span]]]:
    for each in _objects(request.get("resourceSpans"), "resourceSpans"):
        ours: list[Span] = []
        count = 0
        for scope in _objects(each.get("scopeSpans"), "scopeSpans"):
            foreign = _object(scope.get("scope"), "scope").get("name") != names.SCOPE
            for span in _objects(scope.get("spans"), "spans"):
                count += 1
                pairs = span.get("attributes")
                cut = bool(_integer(span.get("droppedAttributesCount")))
                told = isinstance(pairs, list) and any(
                    isinstance(pair, dict) and pair.get("key") == names.RECORD for pair in pairs
                )
                if told or (cut and not foreign):
                    read = _json_span(span)
                    ours.append(read._replace(attributes={**read.attributes, _CUT: True}) if cut else read)
        yield _json_sender(each), count - len(ours), ours


def _json_span(span: Mapping[str, Any]) -> Span:
    name = span.get("name")
    return Span(
        _trace_id(_hex(span.get("traceId"))),
        _span_id(_hex(span.get("spanId"))),
        _span_id(_hex(span.get("parentSpanId"))),
        name if isinstance(name, str) else "",
        _integer(span.get("startTimeUnixNano")) or 0,
        _integer(span.get("endTimeUnixNano")) or 0,
        _json_attributes(span.get("attributes")),
    )


def _json_attributes(pairs: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in _objects(pairs, "attributes"):
        key = pair.get("key")
        if isinstance(key, str):
            found[key] = _json_value(pair.get("value"))
    return found


def _json_value(value: Any) -> Any:
    if not isinstance(value, dict) or len(value) != 1:
        return _UNREADABLE
    ((kind, inner),) = value.items()
    if (kind == "stringValue" and isinstance(inner, str)) or (
        kind == "boolValue" and isinstance(inner, bool)
    ):
        return inner
    if kind == "intValue":
        whole = _integer(inner)
        return _UNREADABLE if whole is None else whole
    if kind == "doubleValue":
        if isinstance(inner, str):  # protobuf's JSON writes NaN and Infinity so
            try:
                return _number(float(inner))
            except ValueError:
                return _UNREADABLE
        if isinstance(inner, (int, float)) and not isinstance(inner, bool):
            return _number(float(inner))
    return _UNREADABLE


def _integer(value: Any) -> int | None:
    """A 64-bit number, given as a number or as a text of digits."""
    if isinstance(value, str):
        if len(value) > 20 or not value.removeprefix("-").isdecimal() or not value.isascii():
            return None
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if -(2**63) <= value < 2**63 else None


def _hex(value: Any) -> bytes:
    try:
        return bytes.fromhex(value)
    except (TypeError, ValueError):
        return b""
