"""What does one span say of a hop? Written from an entry and read back into a record, both here.

A hop is told of by several spans: markers while it is open, its own span when it has closed, corrections when a
child came late. Each is read into a `Hop`, and `Hop.merge` puts any number of them together, in any order and
with duplicates, to the same result.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from hopwatch import attributes as names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hopwatch.blackbox import OpenHop
    from hopwatch.ledger import Entry

Value = str | bool | int | float


class RecordError(ValueError):
    """A span claims to be a record of ours and is not one; the message names the attribute and the value."""


@dataclass(slots=True)
class Hop:
    """What is known of one hop. Times are Unix nanoseconds of the clock of its agent, unless said otherwise."""

    cascade: str
    """32 hex digits: the trace id."""
    id: str
    """16 hex digits: the id of its span."""
    instance: str
    agent: str
    kind: str
    name: str
    parent: str | None = None
    started: int = 0
    ended: int | None = None
    """When its own work was over; None while no record has told of its end."""
    outcome: str | None = None
    reason: str | None = None
    children: int = 0
    late_children: int = 0
    late: bool = False
    remote: bool = False
    """Whether a message brought it, so that `parent` does not count it among its children."""
    dropped: int = 0
    peer: str | None = None
    peer_hop: str | None = None
    peer_sampled: bool | None = None
    attempts: int = 0
    """How often a message may have reached somebody, where that was more than once."""
    peer_name: str | None = None
    """`host:port` of the one that a send or a push called."""
    task_id: str | None = None
    task_state: str | None = None
    task_at: int = 0
    """When the task was known to be in that state."""
    location: str | None = None
    """`file:line function`: of an execution where it is defined, of a task where it was made."""
    waits: dict[str, Any] | None = None
    moves: bool | None = None
    """Whether what it waits on may move by itself; None where nobody has looked."""
    sampled: int = 0
    """When somebody looked."""
    arrived: int = 0
    """When its first record came, by the collector's clock."""
    heard: int = 0
    """When its newest record came, by the collector's clock."""
    attributes: dict[str, Value] = field(default_factory=dict)

    def merge(self, other: Hop) -> None:
        """Take in what another record says of the same hop."""
        prevails = other._rank() > self._rank()
        if prevails:
            self.kind = other.kind
            self.name = other.name
        if other.attributes:
            first, last = (self, other) if prevails else (other, self)
            self.attributes = {**first.attributes, **last.attributes}
        if other.ended is not None and (self.ended is None or other._end() < self._end()):
            self.ended = other.ended
            self.outcome = other.outcome
            self.reason = other.reason
        if other.started and (not self.started or other.started < self.started):
            self.started = other.started
        self.parent = self.parent or other.parent
        self.children = max(self.children, other.children)
        self.late_children = max(self.late_children, other.late_children)
        self.dropped = max(self.dropped, other.dropped)
        self.late = self.late or other.late
        self.remote = self.remote or other.remote
        # A marker tells what was known between two tries of a message; the end tells what came of it.
        self.peer = (other.peer or self.peer) if prevails else (self.peer or other.peer)
        self.peer_hop = (other.peer_hop or self.peer_hop) if prevails else (self.peer_hop or other.peer_hop)
        self.attempts = max(self.attempts, other.attempts)
        self.peer_name = self.peer_name or other.peer_name
        if other.peer_sampled is not None:
            self.peer_sampled = (
                other.peer_sampled if self.peer_sampled is None else self.peer_sampled and other.peer_sampled
            )
        self.task_id = self.task_id or other.task_id
        if other.task_state and newer_state(self.task_state, self.task_at, other.task_state, other.task_at):
            self.task_state, self.task_at = other.task_state, other.task_at
        self.location = self.location or other.location
        if other.sampled > self.sampled:
            self.sampled, self.waits, self.moves = other.sampled, other.waits, other.moves
        self.arrived = min(self.arrived, other.arrived) if self.arrived else other.arrived
        self.heard = max(self.heard, other.heard)

    def _end(self) -> tuple[bool, int, str]:
        # A process that was killed may have exported the true end just before: what it says itself goes first.
        return (self.outcome == "abandoned", self.ended or 0, self.outcome or "")

    def _rank(self) -> tuple[int, int, int]:
        # Whose name and attributes count where two records differ: the end's, else the newest marker's.
        if self.ended is None:
            return (0, 0, self.sampled)
        return (1, self.outcome != "abandoned", -self.ended)


HOP_FIELDS: Final = tuple(each.name for each in fields(Hop))


@dataclass(slots=True)
class Heartbeat:
    """What a process says of itself every few seconds while any hop of it is open."""

    instance: str
    agent: str
    pid: int
    at: int
    open: int
    dropped: int
    sampled: int
    """Since when each open hop has been looked at; 0 where that is not known."""


@dataclass(slots=True)
class Shutdown:
    """What a process says of its own end, or its black box."""

    instance: str
    agent: str
    pid: int
    at: int
    way: str
    """How it ended: `exit`, `SIGTERM` and the like."""
    pending: dict[str, int]
    """How much was pending then, by kind."""
    found: bool = False
    """Whether somebody else says so, who found the process's black box."""


def newer_state(known: str | None, known_at: int, state: str, at: int) -> bool:
    """Whether an A2A task's `state` at `at` says more than `known` at `known_at`: a terminal state is for ever."""
    if known is None:
        return True
    if (known in names.TERMINAL_STATES) != (state in names.TERMINAL_STATES):
        return state in names.TERMINAL_STATES
    return (at, state) > (known_at, known)


# Writing -------------------------------------------------------------------------------------------------------


def line_of(origin: tuple[Any, int]) -> int:
    """The line of an instruction, by its code object and offset."""
    code, offset = origin
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return int(line)
    return int(code.co_firstlineno)


def set_location(entry: Entry) -> None:
    """Put where an entry was made into its attributes."""
    if entry.origin is None:
        return
    code = entry.origin[0]
    entry.set(names.CODE_FILE_PATH, code.co_filename)
    entry.set(names.CODE_LINE_NUMBER, line_of(entry.origin))
    entry.set(names.CODE_FUNCTION_NAME, getattr(code, "co_qualname", code.co_name))


def end_attributes(entry: Entry, instance: str) -> dict[str, Value]:
    """The attributes of the span of a hop that has closed."""
    out = _common(entry, instance, names.RECORD_END)
    # Each attribute costs the application some microseconds: what goes without saying is left out.
    if entry.outcome != "finished":
        out[names.HOP_OUTCOME] = entry.outcome or "finished"
    if entry.reason:
        out[names.HOP_REASON] = entry.reason
    return out


def open_attributes(
    entry: Entry, instance: str, waits: Mapping[str, Any] | None, *, moves: bool
) -> dict[str, Value]:
    """The attributes of a marker: the hop is open, and this is what it waits on."""
    out = _common(entry, instance, names.RECORD_OPEN)
    out[names.HOP_NAME] = entry.name
    out[names.HOP_STARTED] = entry.started
    out[names.HOP_MOVES] = moves
    if entry.done is not None and out.get(names.A2A_TASK_STATE) not in names.TERMINAL_STATES:
        # The end says when this was, before what is looked at now: of two states that are not terminal its own must prevail.
        out.pop(names.A2A_TASK_STATE, None)
    if waits is not None:
        out[names.HOP_WAITS] = waits_text(waits)
    return out


def late_attributes(entry: Entry, instance: str) -> dict[str, Value]:
    """The attributes of a correction: a hop that had closed got another child, or lost one."""
    out = _common(entry, instance, names.RECORD_LATE)
    out[names.HOP_NAME] = entry.name
    out[names.HOP_STARTED] = entry.started
    return out


def abandoned_attributes(hop: OpenHop, instance: str, reason: str) -> dict[str, Value]:
    """The attributes of what somebody else tells of a hop that was open when its process ended.

    Args:
        hop: what the process's black box says of it.
        instance: of the process that ended, not of the one that tells.
        reason: why it was abandoned.
    """
    out: dict[str, Value] = {
        names.RECORD: names.RECORD_ABANDONED,
        names.INSTANCE: instance,
        names.HOP_KIND: hop.kind,
        names.HOP_NAME: hop.name,
        names.HOP_STARTED: hop.started,
        names.HOP_REASON: reason,
    }
    if hop.parent:
        out[names.HOP_PARENT] = hop.parent
    if hop.remote:
        out[names.HOP_REMOTE] = True
    if hop.task_id:
        out[names.A2A_TASK_ID] = hop.task_id
    return out


def heartbeat_attributes(
    instance: str, pid: int, opened: int, dropped: int, sampled: int
) -> dict[str, Value]:
    """The attributes of a heartbeat."""
    return {
        names.RECORD: names.RECORD_HEARTBEAT,
        names.INSTANCE: instance,
        names.PROCESS_PID: pid,
        names.HEARTBEAT_OPEN: opened,
        names.HEARTBEAT_DROPPED: dropped,
        names.HEARTBEAT_SAMPLED: sampled,
    }


def gone_attributes(
    entry: Entry, instance: str, waits: Mapping[str, Any] | None, reason: str
) -> dict[str, Value]:
    """The attributes of a report that an open hop will be cut off: its end, unless its process tells of another one."""
    out = _common(entry, instance, names.RECORD_GONE)
    out[names.HOP_NAME] = entry.name
    out[names.HOP_STARTED] = entry.started
    out[names.HOP_REASON] = reason
    if waits is not None:
        out[names.HOP_WAITS] = waits_text(waits)
    return out


def waits_text(waits: Mapping[str, Any]) -> str:
    """What is waited on, as a record carries it; without its parts where it would be too long for one."""
    text = json.dumps(waits, ensure_ascii=False, separators=(",", ":"))
    if len(text) > MAX_WAITS:
        return json.dumps({key: value for key, value in waits.items() if key not in ("of", "chain")})
    # A task may have any name: with a lone surrogate in it, an exporter would lose its whole batch.
    return text.encode("utf-8", "replace").decode()


def shutdown_attributes(instance: str, pid: int, way: str, pending: Mapping[str, int]) -> dict[str, Value]:
    """The attributes of the record of a process's end."""
    out: dict[str, Value] = {
        names.RECORD: names.RECORD_SHUTDOWN,
        names.INSTANCE: instance,
        names.PROCESS_PID: pid,
        names.SHUTDOWN_WAY: way,
        names.SHUTDOWN_PENDING: sum(pending.values()),
    }
    for kind, count in pending.items():
        out[f"{names.SHUTDOWN_PENDING}.{kind}"] = count
    return out


def _common(entry: Entry, instance: str, record: str) -> dict[str, Value]:
    out: dict[str, Value] = dict(entry.attributes) if entry.attributes else {}
    out[names.RECORD] = record
    out[names.INSTANCE] = instance
    out[names.HOP_KIND] = entry.kind
    if entry.children:
        out[names.HOP_CHILDREN] = entry.children
    if entry.parent_id:
        out[names.HOP_PARENT] = entry.parent_id
    if entry.late_children:
        out[names.HOP_LATE_CHILDREN] = entry.late_children
    if entry.late:
        out[names.HOP_LATE] = True
    if entry.remote:
        out[names.HOP_REMOTE] = True
    if entry.dropped:
        out[names.HOP_DROPPED] = entry.dropped
    return out


# Reading -------------------------------------------------------------------------------------------------------

_OWN: Final = frozenset(
    {
        names.RECORD, names.INSTANCE, names.HOP_KIND, names.HOP_NAME, names.HOP_PARENT, names.HOP_STARTED,
        names.HOP_CHILDREN, names.HOP_LATE_CHILDREN, names.HOP_LATE, names.HOP_REMOTE, names.HOP_OUTCOME, names.HOP_REASON,
        names.HOP_DROPPED, names.HOP_WAITS, names.HOP_MOVES, names.PEER, names.PEER_HOP, names.PEER_SAMPLED,
    }
)  # fmt: skip
_HEX: Final = frozenset("0123456789abcdef")
MAX_WAITS: Final = 65_536
"""Characters of the JSON that says what a hop waits on."""
_PLAIN: Final = frozenset({str, bool, int, float})
MAX_TEXT: Final = 4096
"""Characters of a text that a record may carry; a longer one is cut, and says so."""


def read_hop(
    attributes: Mapping[str, Any],
    *,
    agent: str,
    cascade: str,
    span: str,
    parent_span: str,
    name: str,
    start: int,
    end: int,
    arrived: int = 0,
) -> Hop:
    """Read the record of a hop from a span.

    Args:
        attributes: the span's. Values are str, bool, int, float, or anything else, which is refused where it matters.
        agent: `service.name` of the resource.
        cascade: trace id, 32 hex digits.
        span: the span's id, 16 hex digits.
        parent_span: the id of its parent, 16 hex digits or empty.
        name: the span's.
        start: Unix nanoseconds.
        end: Unix nanoseconds.
        arrived: Unix nanoseconds of the collector's clock.

    Raises:
        RecordError: an attribute of ours is missing, has the wrong type or a value that cannot be.
    """
    get = attributes.get
    record = get(names.RECORD)
    kind = get(names.HOP_KIND)
    if kind not in names.KINDS:
        raise RecordError(f"{names.HOP_KIND} is {_shown(kind)}; it is one of {', '.join(names.KINDS)}")
    hop = Hop(
        cascade=cascade,
        id=span,
        instance=_identifier(get(names.INSTANCE), names.INSTANCE),
        agent=agent,
        kind=kind,
        name=name,
        started=start,
        arrived=arrived,
        heard=arrived,
    )
    if record == names.RECORD_END:
        hop.ended = end
        hop.waits = _waits(get(names.HOP_WAITS))
        hop.outcome = get(names.HOP_OUTCOME, "finished")
        if hop.outcome not in names.OUTCOMES:
            raise RecordError(
                f"{names.HOP_OUTCOME} is {_shown(hop.outcome)}; it is one of {', '.join(names.OUTCOMES)}"
            )
    elif record in (names.RECORD_OPEN, names.RECORD_LATE, names.RECORD_ABANDONED, names.RECORD_GONE):
        hop.id = parent_span
        if len(parent_span) != 16:
            raise RecordError(
                f"a record {record!r} needs the hop that it tells of as its parent span, and has none"
            )
        hop.name = _text(get(names.HOP_NAME, name), names.HOP_NAME)
        hop.started = _count(get(names.HOP_STARTED), names.HOP_STARTED)
        if record == names.RECORD_OPEN:
            hop.sampled = start
            hop.moves = _flag(get(names.HOP_MOVES, True), names.HOP_MOVES)
            hop.waits = _waits(get(names.HOP_WAITS))
        elif record != names.RECORD_LATE:
            hop.ended, hop.outcome = end, "abandoned"
            hop.waits = _waits(get(names.HOP_WAITS))
    else:
        raise RecordError(
            f"{names.RECORD} is {_shown(record)}; it is one of end, open, late, abandoned, gone, heartbeat, shutdown"
        )
    if (value := get(names.HOP_PARENT)) is not None:
        hop.parent = _identifier(value, names.HOP_PARENT)
        if hop.parent == hop.id:
            raise RecordError(f"{names.HOP_PARENT} is {value!r}, the hop itself")
    hop.children = _count(get(names.HOP_CHILDREN, 0), names.HOP_CHILDREN)
    hop.late_children = _count(get(names.HOP_LATE_CHILDREN, 0), names.HOP_LATE_CHILDREN)
    hop.dropped = _count(get(names.HOP_DROPPED, 0), names.HOP_DROPPED)
    hop.late = _flag(get(names.HOP_LATE, False), names.HOP_LATE)
    hop.remote = _flag(get(names.HOP_REMOTE, False), names.HOP_REMOTE)
    if (value := get(names.HOP_REASON)) is not None:
        hop.reason = _text(value, names.HOP_REASON)
    if (value := get(names.PEER)) is not None:
        if value not in names.PEERS:
            raise RecordError(f"{names.PEER} is {_shown(value)}; it is one of {', '.join(names.PEERS)}")
        hop.peer = value
    if (value := get(names.PEER_HOP)) is not None:
        hop.peer_hop = _identifier(value, names.PEER_HOP)
    hop.attempts = _count(get(names.PEER_ATTEMPTS, 0), names.PEER_ATTEMPTS)
    if (value := get(names.PEER_SAMPLED)) is not None:
        hop.peer_sampled = _flag(value, names.PEER_SAMPLED)
    if (value := get(names.SERVER_ADDRESS)) is not None:
        port = get(names.SERVER_PORT)
        hop.peer_name = (
            f"{_text(value, names.SERVER_ADDRESS)}:{port}"
            if port is not None
            else _text(value, names.SERVER_ADDRESS)
        )
    if (value := get(names.A2A_TASK_ID)) is not None:
        hop.task_id = _text(value, names.A2A_TASK_ID)
    if (value := get(names.A2A_TASK_STATE)) is not None:
        hop.task_state = _text(value, names.A2A_TASK_STATE)
        # An execution's state is the last one that was stored while it was open. What a request or a send tells is a
        # snapshot from some time after its start, and a push tells of an event that may have been overtaken.
        hop.task_at = (
            0
            if kind == "push"
            else (hop.ended or hop.sampled or start)
            if kind == "execution"
            else hop.started
        )
    if (value := get(names.CODE_FILE_PATH)) is not None:
        hop.location = f"{_text(value, names.CODE_FILE_PATH)}:{get(names.CODE_LINE_NUMBER, 0)}"
        if (value := get(names.CODE_FUNCTION_NAME)) is not None:
            hop.location += f" {_text(value, names.CODE_FUNCTION_NAME)}"
    hop.attributes = {
        key: value if type(value) is not str or len(value) <= MAX_TEXT else value[:MAX_TEXT]
        for key, value in attributes.items()
        if key not in _OWN and type(value) in _PLAIN
    }
    return hop


def read_heartbeat(attributes: Mapping[str, Any], *, agent: str, at: int) -> Heartbeat:
    """Read a heartbeat from a span.

    Raises:
        RecordError: as of `read_hop`.
    """
    get = attributes.get
    return Heartbeat(
        instance=_identifier(get(names.INSTANCE), names.INSTANCE),
        agent=agent,
        pid=_count(get(names.PROCESS_PID, 0), names.PROCESS_PID),
        at=at,
        open=_count(get(names.HEARTBEAT_OPEN, 0), names.HEARTBEAT_OPEN),
        dropped=_count(get(names.HEARTBEAT_DROPPED, 0), names.HEARTBEAT_DROPPED),
        sampled=_count(get(names.HEARTBEAT_SAMPLED, 0), names.HEARTBEAT_SAMPLED),
    )


def read_shutdown(attributes: Mapping[str, Any], *, agent: str, at: int) -> Shutdown:
    """Read the record of a process's end from a span.

    Raises:
        RecordError: as of `read_hop`.
    """
    get = attributes.get
    return Shutdown(
        instance=_identifier(get(names.INSTANCE), names.INSTANCE),
        agent=agent,
        pid=_count(get(names.PROCESS_PID, 0), names.PROCESS_PID),
        at=at,
        way=_text(get(names.SHUTDOWN_WAY, ""), names.SHUTDOWN_WAY)[:64],
        pending={
            kind: _count(attributes[key], key)
            for kind in names.KINDS
            if (key := f"{names.SHUTDOWN_PENDING}.{kind}") in attributes
        },
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _identifier(value: object, key: str) -> str:
    if not isinstance(value, str) or len(value) != 16 or not _HEX.issuperset(value):
        raise RecordError(f"{key} is {_shown(value)}; it is 16 lower-case hex digits")
    return value


def _count(value: object, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise RecordError(f"{key} is {_shown(value)}; it is a whole number, 0 or more")
    return value


def _flag(value: object, key: str) -> bool:
    if not isinstance(value, bool):
        raise RecordError(f"{key} is {_shown(value)}; it is true or false")
    return value


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise RecordError(f"{key} is {_shown(value)}; it is a text")
    return value if len(value) <= MAX_TEXT else value[: MAX_TEXT - 1] + "…"


def _waits(value: object) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_WAITS:
        raise RecordError(
            f"{names.HOP_WAITS} is {_shown(value)}; it is a JSON object of at most 65,536 characters"
        )
    try:
        waits = json.loads(value)
    except RecursionError:
        raise RecordError(f"{names.HOP_WAITS} is {_shown(value)}; it nests too deeply") from None
    except ValueError:
        # A limit on the length of attributes cuts it; that the hop is open, and whether it moves, is told all the same.
        return {"kind": "unknown", "what": "something whose description was cut on its way", "moves": True}
    if not isinstance(waits, dict):
        raise RecordError(f"{names.HOP_WAITS} is {_shown(value)}; it is a JSON object")
    return waits
