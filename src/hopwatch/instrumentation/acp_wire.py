"""What of ours stands in a message of the Agent Client Protocol, and how is it put there and taken out again?

Out: the protocol's own keys for tracing, `traceparent`, `tracestate` and `baggage`, at the root of `_meta` in `params`. In: they are taken
out before the message is routed, for the SDK hands every key of `_meta` to the handler as a keyword argument. What the application wrote
stays as it wrote it: where it brings any of these keys itself, only our entry is put in front of its `tracestate`. Back: `_meta` beside
the answer's `result` or `error`, never inside them, and only for a sender that carried its hop.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from hopwatch import attributes as names
from hopwatch import propagation
from hopwatch.process import encodable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hopwatch.ledger import Entry
    from hopwatch.telemetry import Carrier

_PARENT, _STATE, _BAGGAGE = names.META_TRACE_KEYS
_ABSENT: Final = object()


def _marked(state: str, entry: Entry, mark: str) -> str:
    """A tracestate whose entry of ours, the first one, names the connection as well."""
    _, comma, rest = state.partition(",")
    return f"{names.TRACESTATE_KEY}={entry.cascade}-{entry.id}-{mark}{comma}{rest}"


def _is_copied_as_written(mapping: dict[Any, Any]) -> bool:
    """Whether a plain copy of a dict is written as it is itself: a class of the application's own may say otherwise."""
    kind = type(mapping)
    return kind in (dict, OrderedDict) or (
        kind.items is dict.items and kind.keys is dict.keys and kind.__iter__ is dict.__iter__
    )


def carrying(params: Any, entry: Entry, mark: str) -> dict[str, Any] | None:
    """The params with the hop that sends them and the `mark` of its connection, in a new dict; None for params that must go out as they are.

    Those that are no object have no place for it. An empty `_meta`, or one that is no object, could not be given back as it was.
    """
    if not isinstance(params, dict) or not _is_copied_as_written(params):
        return None
    meta = params.get(names.META_KEY, _ABSENT)
    ours = propagation.outgoing(entry)
    if not ours:
        return None
    ours[_STATE] = _marked(ours[_STATE], entry, mark)
    if meta is _ABSENT:
        return {**params, names.META_KEY: {**ours, **_baggage_of_context()}}
    if not isinstance(meta, dict) or not meta or not _is_copied_as_written(meta):
        return None
    if not any(key in meta for key in names.META_TRACE_KEYS):
        return {**params, names.META_KEY: {**meta, **ours, **_baggage_of_context()}}
    state = meta.get(_STATE, _ABSENT)
    member = _marked("", entry, mark)
    if state is _ABSENT:
        return {**params, names.META_KEY: {**meta, _STATE: member}}
    if not isinstance(state, str) or not state:
        return None
    return {**params, names.META_KEY: {**meta, _STATE: f"{member},{state}"}}


def taken_from(message: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A message without what `carrying` put into it, and what it carries.

    The message itself is left alone, for whoever sent it in this process has it, too. What another instrumentation carries is
    read, and stays.
    """
    params = message.get("params")
    meta = params.get(names.META_KEY) if isinstance(params, dict) else None
    if not isinstance(meta, dict):
        return message, {}
    found = {key: meta[key] for key in names.META_TRACE_KEYS if isinstance(meta.get(key), str)}
    carried = propagation.hop_in_tracestate(found[_STATE]) if _STATE in found else None
    if carried is None:
        return message, found
    cascade, hop, _mark = carried
    left = dict(meta)
    if found.get(_PARENT, "")[:53] == f"00-{cascade}-{hop}-":
        for key in names.META_TRACE_KEYS:
            left.pop(key, None)
    else:
        # The application brought keys of its own: ours is the first entry of its tracestate.
        first, _, rest = found[_STATE].partition(",")
        if propagation.hop_in_tracestate(first) is not None:
            if rest:
                left[_STATE] = rest
            else:
                left.pop(_STATE)
    inside: dict[str, Any] = params  # type: ignore[assignment]
    cleaned = {key: value for key, value in inside.items() if key != names.META_KEY or left}
    if left:
        cleaned[names.META_KEY] = left
    return {**message, "params": cleaned}, found


def carries(message: dict[str, Any], mark: str) -> bool:
    """Whether a message carries the hop that sent it; one that came back over the connection of this `mark` did not."""
    params = message.get("params")
    meta = params.get(names.META_KEY) if isinstance(params, dict) else None
    state = meta.get(_STATE) if isinstance(meta, dict) else None
    carried = propagation.hop_in_tracestate(state) if isinstance(state, str) else None
    return carried is not None and carried[2] != mark


def is_senders_own(found: Mapping[str, str], carrier: Carrier) -> bool:
    """Whether the hop that a message carries sent it. Another instrumentation may hand a hop on, below a span of its own."""
    return found.get(_PARENT, "")[:53] == f"00-{carrier.cascade}-{carrier.hop}-"


def acknowledging(payload: dict[str, Any], value: str) -> dict[str, Any]:
    """An answer that names the hop that served it, in a new dict."""
    return {**payload, names.META_KEY: {names.ACKNOWLEDGEMENT_HEADER: value}}


def acknowledgement_in(message: dict[str, Any]) -> str | None:
    """What an answer says of the hop that served it."""
    meta = message.get(names.META_KEY)
    value = meta.get(names.ACKNOWLEDGEMENT_HEADER) if isinstance(meta, dict) else None
    return value if isinstance(value, str) else None


def session_in(params: Any) -> str | None:
    """The session that a message is about."""
    session = params.get("sessionId") if isinstance(params, dict) else None
    return encodable(session[:200]) if isinstance(session, str) and session else None


def _propagates_baggage() -> bool:
    from opentelemetry import propagate  # noqa: PLC0415 - it reads the environment when it is imported

    return _BAGGAGE in propagate.get_global_textmap().fields


def _baggage_of_context() -> dict[str, str]:
    from opentelemetry import baggage  # noqa: PLC0415

    carrier: dict[str, str] = {}
    if baggage.get_all() and _propagates_baggage():
        from opentelemetry.baggage.propagation import W3CBaggagePropagator  # noqa: PLC0415

        W3CBaggagePropagator().inject(carrier)
    return carrier


def baggage_from(found: dict[str, str], context: Any) -> Any:
    """The context with the baggage that a message carries."""
    if _BAGGAGE not in found or not _propagates_baggage():
        return context
    from opentelemetry.baggage.propagation import W3CBaggagePropagator  # noqa: PLC0415

    return W3CBaggagePropagator().extract(found, context)
