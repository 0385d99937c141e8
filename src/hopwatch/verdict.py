"""Is it over? What the records of one cascade prove, as a pure function of them.

The rules are those of docs/design.md, "Verdicts". Nothing here reads a clock or a store: whoever asks brings the
hops, what is known of the agents and of the A2A tasks, and the time. Records may come in any order, twice, late or
never. What is missing may delay `settled`; it never brings it about.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from hopwatch import across
from hopwatch.attributes import (
    A2A_METHOD_NAME,
    COMPLETED,
    HOP_UNCOUNTED,
    HTTP_REFUSALS,
    HTTP_STATUS_CODE,
    INTERRUPTED_STATES,
    JSONRPC,
    PEER_OTHERS,
    RPC_METHOD,
    RPC_REFUSALS,
    RPC_STATUS_CODE,
    RPC_SYSTEM,
    TERMINAL_STATES,
    UNFINISHED_STATES,
)
from hopwatch.records import newer_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hopwatch.records import Hop

Name = Literal["settled", "in_flight", "waiting", "stalled", "stranded", "broken", "silent", "unknown"]
NAMES: Final[tuple[Name, ...]] = (
    "settled", "in_flight", "waiting", "stalled", "stranded", "broken", "silent", "unknown",
)  # fmt: skip
FINAL: Final[frozenset[Name]] = frozenset({"settled", "stranded", "broken"})
"""Verdicts that waiting longer does not change (only late work would, and it is flagged)."""

ONLY_LOOKS: Final = frozenset({"GetTask", "SubscribeToTask"})
"""Methods by which somebody looks at a task without giving it work."""
SECOND: Final = 1_000_000_000
SILENT_AFTER: Final = 16 * SECOND
"""Three heartbeats of 5 s, and the time that one may be on its way."""
ON_ITS_WAY: Final = 5 * SECOND
"""How long a record that was promised may take: an agent flushes within 1.5 s, and networks are networks."""
SKEW_THAT_COUNTS: Final = 2 * SECOND
"""Two clocks that differ by less are taken as one, for a clock's offset is only known to within a record's journey."""


@dataclass(slots=True)
class Agent:
    """What is known of one process. Times are Unix nanoseconds."""

    instance: str
    name: str
    pid: int = 0
    heard: int = 0
    """When anything last came from it, by the collector's clock."""
    open: int = 0
    dropped: int = 0
    sampled: int = 0
    """Since when each of its open hops has been looked at, by its own clock."""
    skew: int = 0
    """What to add to a time of its clock to get the collector's."""
    ended: int = 0
    """When it said that it ends, by its own clock; 0 where it has not said so, or has been heard of since."""
    way: str = ""
    """How it ended then."""
    pending: dict[str, int] = field(default_factory=dict)
    """How much was pending then, by kind."""


@dataclass(slots=True)
class Missing:
    """One thing that was promised or lost, so that the accounting is not complete."""

    what: Literal[
        "parent",
        "children",
        "remote",
        "delivery",
        "sampled",
        "dropped",
        "uncounted",
        "rejected",
        "cycle",
        "opaque",
    ]
    hop: str
    """The hop that tells of it."""
    id: str | None
    """The hop that is missing, where its id is known."""
    sentence: str
    since: int = 0
    """When the promise came, by the collector's clock; 0 where waiting does not help."""


@dataclass(slots=True)
class Verdict:
    """What the records prove."""

    verdict: Name
    reason: str
    frontier: list[str] = field(default_factory=list)
    """Ids of the open hops with no open hop below them."""
    missing: list[Missing] = field(default_factory=list)
    opaque: list[str] = field(default_factory=list)
    """Peers that hopwatch cannot see into; a `settled` is up to them."""
    deadlocks: list[dict[str, Any]] = field(default_factory=list)
    """Circles of hops that wait for one another by way of messages: `words`, `agents`, `edges`, and `until` where a timer undoes it."""

    @property
    def final(self) -> bool:
        """Whether waiting longer will not change it."""
        return self.verdict in FINAL


def judge(
    hops: Mapping[str, Hop],
    agents: Mapping[str, Agent],
    *,
    now: int,
    tasks: Mapping[tuple[str, str], tuple[str, int]] | None = None,
    elsewhere: Mapping[tuple[str, str], str] | None = None,
    rejected: int = 0,
) -> Verdict:
    """Say what the records of one cascade prove.

    Args:
        hops: by id, each merged from whatever records of it there are.
        agents: by instance.
        now: Unix nanoseconds, the collector's clock.
        tasks: state and its time of A2A tasks by agent and task id, also from other cascades.
        elsewhere: by agent and task id, a cascade of which something is open, and an execution of which has worked on that task.
        rejected: how many records of this cascade were refused as malformed or for lack of room.

    Returns:
        The first row of the table of verdicts that holds.
    """
    if not hops:
        came = (
            f"All {rejected} records of this cascade were refused."
            if rejected
            else "No record of this cascade has come."
        )
        return Verdict("unknown", came)
    tree = _Tree(hops)
    missing, opaque = _missing(tree, rejected, tasks or {})
    opened = [hop for hop in hops.values() if hop.ended is None]
    frontier = tree.frontier(opened)
    found = _Findings(tree, agents, now, opened, frontier, missing, opaque, tasks or {}, elsewhere or {})
    for rule in (_broken, _in_flight, _silent, _stalled, _unknown, _tasks_left):
        verdict = rule(found)
        if verdict is not None:
            verdict.frontier = [hop.id for hop in frontier]
            verdict.missing = missing
            verdict.opaque = opaque
            verdict.deadlocks = [_told(circle, found) for circle in found.circles()]
            return verdict
    where = f" up to {_listed(opaque)}, which hopwatch cannot see into" if opaque else ""
    late = sum(1 for hop in hops.values() if hop.late)
    note = f" {late} of them began late, after the hop that caused them had closed." if late else ""
    reason = f"Settled{where}: {_all(len(hops))} ended, and every hop that was declared was seen.{note}{_went_wrong(hops)}"
    return Verdict("settled", reason, [], [], opaque)


def frontier(hops: Mapping[str, Hop]) -> list[Hop]:
    """The open hops with no open hop anywhere below them, oldest first: where the work stands."""
    return _Tree(hops).frontier([hop for hop in hops.values() if hop.ended is None])


def deadlocks(hops: Iterable[Hop]) -> set[tuple[str, str]]:
    """The deadlocks that open hops tell of: of each the agent and its words."""
    return {
        (hop.agent, words)
        for hop in hops
        if hop.ended is None and (words := _words_of_deadlock(hop)) is not None
    }


@dataclass(slots=True)
class _Findings:
    tree: _Tree
    agents: Mapping[str, Agent]
    now: int
    opened: list[Hop]
    frontier: list[Hop]
    missing: list[Missing]
    opaque: list[str]
    tasks: Mapping[tuple[str, str], tuple[str, int]]
    elsewhere: Mapping[tuple[str, str], str]
    _standstill: across.Standstill | None = None
    _asked: bool = False

    def standstill(self) -> across.Standstill | None:
        """How the open hops wait for one another over process boundaries, where that is all that they do."""
        if not self._asked:
            self._asked = True
            if not self.missing and all(self.alive(hop) for hop in self.opened):
                self._standstill = across.find(
                    self.tree.hops,
                    self.tree.below,
                    self.opened,
                    span_of=lambda hop: (self._skew(hop.instance), self.looked_at(hop)),
                    after=self.last_event(),
                    margin=SKEW_THAT_COUNTS,
                )
        return self._standstill

    def circles(self) -> tuple[tuple[across.Step, ...], ...]:
        """The circles among them."""
        standstill = self.standstill() if self._asked else None
        return standstill.circles if standstill is not None else ()

    def alive(self, hop: Hop) -> bool:
        agent = self.agents.get(hop.instance)
        heard = max(agent.heard if agent else 0, hop.heard)
        return self.now - heard <= SILENT_AFTER

    def on_its_way(self) -> list[Missing]:
        return [each for each in self.missing if each.since and self.now - each.since <= ON_ITS_WAY]

    def _skew(self, instance: str) -> int:
        agent = self.agents.get(instance)
        return agent.skew if agent and abs(agent.skew) > SKEW_THAT_COUNTS else 0

    def last_event(self) -> int:
        """When anything of the cascade last began or ended, by the collector's clock as far as it is known."""
        return max(
            max(hop.started, hop.ended or 0) + self._skew(hop.instance) for hop in self.tree.hops.values()
        )

    def looked_at(self, hop: Hop) -> int:
        """When somebody last looked at what an open hop waits on; its agent's heartbeat says that nothing changed since."""
        agent = self.agents.get(hop.instance)
        return max(hop.sampled, agent.sampled if agent and hop.sampled else 0) + self._skew(hop.instance)


class _Tree:
    """The hops with their children, safe from cycles among parents."""

    def __init__(self, hops: Mapping[str, Hop]) -> None:
        self.hops = hops
        self.below: dict[str, list[Hop]] = {}
        self.roots: list[Hop] = []
        for hop in hops.values():
            if hop.parent is None:
                self.roots.append(hop)
            else:
                self.below.setdefault(hop.parent, []).append(hop)

    def frontier(self, opened: list[Hop]) -> list[Hop]:
        """The open hops with no open hop anywhere below them, oldest first."""
        covered: set[str] = set()
        for hop in opened:
            seen = {hop.id}
            parent = hop.parent
            while parent is not None and parent not in covered and parent not in seen:
                covered.add(parent)
                seen.add(parent)
                above = self.hops.get(parent)
                parent = above.parent if above is not None else None
        return sorted((hop for hop in opened if hop.id not in covered), key=lambda hop: (hop.started, hop.id))

    def above(self, hop: Hop) -> Iterable[Hop]:
        """The hops above one, the nearest first; at most 64."""
        at = self.hops.get(hop.parent or "")
        for _ in range(64):
            if at is None:
                return
            yield at
            at = self.hops.get(at.parent or "")

    def in_cycles(self) -> list[Hop]:
        """Hops that no root and no missing parent leads to: their parents go round in a circle."""
        reached: set[str] = set()
        todo = [hop for hop in self.hops.values() if hop.parent is None or hop.parent not in self.hops]
        while todo:
            hop = todo.pop()
            if hop.id not in reached:
                reached.add(hop.id)
                todo.extend(self.below.get(hop.id, ()))
        return [hop for hop in self.hops.values() if hop.id not in reached]


def _keep_newer(
    states: dict[tuple[str, str], tuple[str, int]],
    key: tuple[str, str],
    state: tuple[str, int],
    tasks: Mapping[tuple[str, str], tuple[str, int]],
) -> None:
    """Keep of a task the state that says most: the one in `states`, the one that is known from elsewhere (`tasks`), or this one."""
    known = states.get(key) or tasks.get(key)
    states[key] = state if known is None or newer_state(*known, *state) else known


def _went_wrong(hops: Mapping[str, Hop]) -> str:
    """What a reader of "settled", which says over and not successful, wants to know next; empty where all went well."""
    out = ""
    failed = sorted(
        (hop for hop in hops.values() if hop.outcome == "failed"), key=lambda hop: (hop.ended or 0, hop.id)
    )
    if failed:
        first = failed[0]
        why = f": {first.reason}" if first.reason else ""
        out += f" {len(failed)} of them failed, first {describe(first)}{why.rstrip('.')}."
    cancelled = sum(1 for hop in hops.values() if hop.outcome == "cancelled")
    if cancelled:
        out += f" {cancelled} of them {'was' if cancelled == 1 else 'were'} cancelled."
    states: dict[tuple[str, str], tuple[str, int]] = {}
    for hop in hops.values():
        if hop.kind == "execution" and hop.task_id and hop.task_state:
            _keep_newer(states, (hop.agent, hop.task_id), (hop.task_state, hop.task_at), {})
    ends = Counter(_state(state) for state, _ in states.values() if state != COMPLETED)
    if ends:
        told = _listed([f"{count} {state}" for state, count in sorted(ends.items())])
        out += f" A2A tasks that ended otherwise than completed: {told}."
    return out


def _all(count: int) -> str:
    return "its only hop has" if count == 1 else f"all {count} hops have"


def _missing(
    tree: _Tree, rejected: int, tasks: Mapping[tuple[str, str], tuple[str, int]]
) -> tuple[list[Missing], list[str]]:
    out: list[Missing] = []
    opaque: list[str] = []
    hops = tree.hops
    taken = taken_unanswered(hops)
    told: dict[tuple[str, str], tuple[str, int]] = {}
    for hop in hops.values():  # what calls learnt of the tasks of peers that hopwatch cannot see into
        if hop.kind == "send" and hop.peer == "opaque" and hop.peer_name and hop.task_id and hop.task_state:
            key = (hop.peer_name, hop.task_id)
            _keep_newer(told, key, (hop.task_state, hop.task_at), tasks)
    for hop in hops.values():
        below = tree.below.get(hop.id, ())
        if hop.parent is not None and hop.parent not in hops:
            out.append(
                Missing(
                    "parent",
                    hop.id,
                    hop.parent,
                    f"the parent of {describe(hop)} has not been heard of",
                    hop.heard,
                )
            )
        # An agent may send to itself: what counts as declared is not the process, but how the child came about.
        here = [child for child in below if not child.remote]
        late = sum(1 for child in here if child.late)
        lost = max(0, hop.children - (len(here) - late)) + max(0, hop.late_children - late)
        if lost:
            plural, verb = ("hop", "has") if lost == 1 else ("hops", "have")
            out.append(
                Missing(
                    "children",
                    hop.id,
                    None,
                    f"{lost} {plural} that {describe(hop)} declared {verb} not come",
                    hop.heard,
                )
            )
        owed = [each for each in (hop.peer_hop, *_others(hop)) if each is not None and each not in hops]
        if owed:
            if hop.peer_sampled is False:
                sentence = f"{hop.peer_name or 'the peer'} does not record this trace (its sampler drops it, or it has no OpenTelemetry SDK set up), so what {describe(hop)} handed to it is not known"
                out.append(Missing("sampled", hop.id, owed[0], sentence))
            else:
                sentence = f"{describe(hop)} was promised hop {owed[0]} by {hop.peer_name or 'its peer'}, and it has not come"
                out.append(Missing("remote", hop.id, owed[0], sentence, hop.heard))
        elif hop.peer == "instrumented" and hop.peer_hop is None:
            out.append(
                Missing("dropped", hop.id, None, f"the peer of {describe(hop)} had no room to account for it")
            )
        elif hop.peer == "unknown" and hop.id not in taken:
            sentence = f"nobody knows whether {describe(hop)} reached {hop.peer_name or 'its peer'}: {hop.reason or 'no answer came'}"
            # One that went out in order, and that nobody answers, is in general about to be told of by whoever took it.
            since = hop.heard if hop.outcome == "finished" else 0
            out.append(Missing("delivery", hop.id, None, sentence, since))
        elif hop.peer == "opaque":
            name = hop.peer_name or hop.name
            if name not in opaque:
                opaque.append(name)
            state = told.get((name, hop.task_id), (None, 0))[0] if hop.task_id else None
            status = hop.attributes.get(HTTP_STATUS_CODE)
            refused = status in HTTP_REFUSALS or (hop.attributes.get(RPC_STATUS_CODE) in RPC_REFUSALS)
            # An error in JSON-RPC is an answer as any other: the peer is done with the message.
            refused = refused or (
                hop.attributes.get(RPC_SYSTEM) == JSONRPC and RPC_STATUS_CODE in hop.attributes
            )
            if (
                hop.kind == "send"
                and hop.outcome in ("failed", "cancelled")
                and not refused
                and state not in TERMINAL_STATES
            ):
                sentence = f"{name} gave no answer to {describe(hop)}, though it may have taken it"
                out.append(Missing("delivery", hop.id, None, sentence))
                continue
            if hop.kind == "send" and hop.task_id and state not in TERMINAL_STATES:
                sentence = (
                    f"{name} is not instrumented, and its task {hop.task_id} was last seen {_state(state)}"
                )
                out.append(Missing("opaque", hop.id, None, sentence))
        arrived = sum(1 for child in below if child.remote) if hop.attempts > 1 else 0
        if hop.attempts > max(1, arrived):
            sentence = f"{describe(hop)} may have reached somebody {hop.attempts} times, and {arrived} of that is known"
            out.append(Missing("delivery", hop.id, None, sentence, hop.heard))
        if hop.dropped:
            out.append(
                Missing(
                    "dropped",
                    hop.id,
                    None,
                    f"{hop.dropped} entries below {describe(hop)} did not fit into the ledger of {hop.agent}",
                )
            )
    out.extend(_uncounted(hops))
    if rejected:
        out.append(Missing("rejected", "", None, f"{rejected} records of this cascade were refused"))
    circle = tree.in_cycles()
    if circle:
        out.append(
            Missing(
                "cycle",
                circle[0].id,
                None,
                f"the parents of {len(circle)} hops go round in a circle, {describe(circle[0])} among them",
            )
        )
    # What was promised by its id says more than what only left a gap.
    out.sort(key=lambda each: _ORDER.index(each.what))
    return out, opaque


def _others(hop: Hop) -> list[str]:
    """The hops beside the first that the answer to a message acknowledged."""
    told = hop.attributes.get(PEER_OTHERS)
    return told.split(",") if isinstance(told, str) and told else []


def _uncounted(hops: Mapping[str, Hop]) -> Iterable[Missing]:
    """What agents do not count, for an instrumentation is not in place there: each agent once."""
    told: dict[tuple[str, str], Hop] = {}
    for hop in hops.values():
        lacking = hop.attributes.get(HOP_UNCOUNTED)
        if lacking:
            told.setdefault((hop.agent, str(lacking)), hop)
    for (agent, lacking), hop in told.items():
        names = lacking.split(",")
        what = _listed([_COUNTS.get(name, "what it instruments") for name in names])
        verb = "is" if len(names) == 1 else "are"
        sentence = f"{agent} does not count {what}, for {_listed(names)} {verb} not in place there"
        yield Missing("uncounted", hop.id, None, sentence)


_COUNTS: Final = {
    "hopwatch_asyncio": "tasks and queues of asyncio",
    "hopwatch_a2a": "messages of A2A",
    "hopwatch_acp": "messages of the Agent Client Protocol",
}
"""What each instrumentation counts, for a reader."""


def taken_unanswered(hops: Mapping[str, Hop]) -> set[str]:
    """Messages that nobody answered, as a notification, and that a hop of whoever took them tells of: their ids."""
    return {
        sent.id
        for child in hops.values()
        if child.remote
        and child.parent is not None
        and (sent := hops.get(child.parent)) is not None
        and sent.peer == "unknown"
        and _took(child, sent)
    }


def _took(child: Hop, hop: Hop) -> bool:
    """Whether `child` is the hop by which the peer took what `hop` sent.

    A peer that hopwatch cannot see into may hand on what it was sent: then others' hops are below this one, too. A message of the
    Agent Client Protocol is taken by a hop of the same method.
    """
    if not child.remote:
        return False
    method = hop.attributes.get(RPC_METHOD) if hop.attributes.get(RPC_SYSTEM) == JSONRPC else None
    if method is None or child.attributes.get(RPC_METHOD) == method:
        return True
    # Of a hop that somebody else tells of, since its process died, only the name is known.
    return child.outcome == "abandoned" and RPC_METHOD not in child.attributes and child.name == hop.name


_ORDER: Final = (
    "remote",
    "delivery",
    "sampled",
    "opaque",
    "dropped",
    "uncounted",
    "rejected",
    "children",
    "parent",
    "cycle",
)


def _broken(found: _Findings) -> Verdict | None:
    lost = sorted(
        (hop for hop in found.tree.hops.values() if hop.outcome == "abandoned"),
        key=lambda hop: hop.ended or 0,
    )
    if not lost:
        return None
    first = lost[0]
    for _ in lost:
        above = found.tree.hops.get(first.parent or "")
        if above is None or (above.outcome, above.reason, above.instance) != (
            "abandoned",
            first.reason,
            first.instance,
        ):
            break
        first = above  # the hop that the task runs, say: it tells the same, and whose it is
    reason = f"{_sentence(describe(first))} was abandoned: {first.reason or 'no reason was given'}"
    if first.location:
        reason += f"; {'defined' if first.kind == 'execution' else 'made'} at {first.location}"
    if len(lost) > 1:
        reason += f"; {len(lost) - 1} more {'was' if len(lost) == 2 else 'were'} abandoned"
    if found.opened:
        reason += f". Still open: {_listed([describe(hop) for hop in found.frontier])}"
    return Verdict("broken", reason + ".")


def _in_flight(found: _Findings) -> Verdict | None:
    last = found.last_event()
    moving = [
        hop
        for hop in found.opened
        if found.alive(hop) and (hop.moves is not False or found.looked_at(hop) <= last)
    ]
    coming = found.on_its_way()
    if not moving and not coming:
        return None
    standstill = found.standstill() if moving else None
    if standstill is not None and standstill.until is None:
        return None
    if not moving:
        return Verdict("in_flight", f"A record is on its way: {coming[0].sentence} yet.")
    shown = [hop for hop in found.frontier if hop in moving] or moving
    reason = f"{_sentence(describe(shown[0]))} is open{_waiting(shown[0])}"
    if len(found.frontier) > 1:
        reason += f"; {len(found.frontier)} hops are at the frontier"
    silent = sorted({hop.agent for hop in found.opened if not found.alive(hop)})
    if silent:
        reason += f"; {_listed(silent)} has not been heard of"
    locked = [*_circles(found), *_deadlocks(found)]
    return Verdict("in_flight", reason + "." + "".join(f" {_sentence(each)}." for each in locked))


def _silent(found: _Findings) -> Verdict | None:
    silent = [hop for hop in found.frontier if not found.alive(hop)] or [
        hop for hop in found.opened if not found.alive(hop)
    ]
    if not silent:
        return None
    first = silent[0]
    agent = found.agents.get(first.instance)
    heard = max(agent.heard if agent else 0, first.heard)
    ago = (found.now - heard) // SECOND
    reason = f"{first.agent} has not been heard of for {ago} s (last at {_clock(heard)}), and {describe(first)} of it is open"
    return Verdict("silent", reason + ".")


def _stalled(found: _Findings) -> Verdict | None:
    if not found.opened or found.missing:
        return None
    locked = _deadlocks(found)
    inside = {step.hop.id for circle in found.circles() for step in circle}
    told = [
        hop for hop in found.frontier if hop.id not in inside and not (locked and _words_of_deadlock(hop))
    ]
    parts = [_sentence(each) for each in (*_circles(found), *locked)]
    held_up = [describe(hop) for hop in found.frontier if hop not in told and hop.id not in inside]
    if held_up:
        parts.append(f"It holds up {_listed(held_up)}")
    if told:
        parts.append("; ".join(f"{_sentence(describe(hop))} is open{_waiting(hop)}" for hop in told[:4]))
    reason = ". ".join(parts)
    runs = _executions_above(found)
    if runs:
        reason += f". It happens in {_listed(runs)}"
    failed = [hop for hop in found.tree.hops.values() if hop.outcome == "failed" and hop.ended]
    if failed:
        last = max(failed, key=lambda hop: hop.ended or 0)
        reason += f". Before that, {describe(last)} failed{f' ({last.reason})' if last.reason else ''}"
    return Verdict("stalled", f"Nothing moves by itself any more. {reason}.")


def _words_of_deadlock(hop: Hop) -> str | None:
    told = (hop.waits or {}).get("deadlock")
    words = told.get("words") if isinstance(told, dict) else None
    return words if isinstance(words, str) and words else None


def _deadlocks(found: _Findings) -> list[str]:
    """The deadlocks that open hops tell of, each once, with all of its edges."""
    said: dict[str, None] = {}
    for hop in found.opened:
        words = _words_of_deadlock(hop)
        if words is not None:
            said.setdefault(f"deadlock in {hop.agent}: {words}")
    return list(said)[:3]


def _circles(found: _Findings) -> list[str]:
    """The circles that lead through messages, with all of their steps."""
    out = []
    for circle in found.circles():
        told = _told(circle, found)
        until = told.get("until")
        undone = f", which a timeout at {_clock(int(until * SECOND))} may undo" if until is not None else ""
        out.append(f"deadlock over {_listed(told['agents'])}{undone}: {told['words']}")
    return out


def _told(circle: tuple[across.Step, ...], found: _Findings) -> dict[str, Any]:
    shown = circle[: across.MAX_STEPS]
    alike = Counter(describe(step.hop) for step in circle)

    def name(hop: Hop) -> str:
        words = describe(hop)
        return f"{words} [{hop.id[:8]}]" if alike[words] > 1 else words

    edges = []
    words = []
    for step in shown:
        hop, to = step.hop, step.to
        waits = hop.waits or {}
        at = f"{waits['file']}:{waits['line']}" if waits.get("file") and "line" in waits else ""
        where = f" at {at}" if at else ""
        what = str(waits.get("what") or "something")
        if step.kind == "answer":
            send = found.tree.hops[to.parent or ""]
            mine = any(each is hop for each in found.tree.above(send))
            whose = f"its {send.name}" if mine else f"{send.name} of {send.agent}"
            wants = f"the answer of {to.agent} to {whose}{f' to {send.peer_name}' if send.peer_name else ''}"
            said = f"waits for {wants}{where}" if mine else f"waits for {what}{where}, and so for {wants}"
        elif step.kind == "lock":
            wants = what
            said = f"waits for {what}, which works for {name(to)}{where}"
        elif step.kind == "task":
            wants = f"its turn at task {hop.task_id}"
            said = f"waits for {wants}, which {name(to)} works on"
        else:
            wants = name(to)
            said = f"waits for {wants}"
        words.append(f"{name(hop)} {said}")
        edge = {"hop": hop.id, "agent": hop.agent, "kind": step.kind, "wants": wants, "held_by": to.id}
        edges.append({**edge, "at": at} if at else edge)
    if len(circle) > len(shown):
        words.append(f"and {len(circle) - len(shown)} more")
    told: dict[str, Any] = {
        "words": "; ".join(words),
        "agents": list(dict.fromkeys(step.hop.agent for step in circle)),
        "edges": edges,
    }
    standstill = found.standstill()
    if standstill is not None and standstill.until is not None:
        told["until"] = standstill.until
    return told


def _executions_above(found: _Findings) -> list[str]:
    """The executions that the frontier is part of, where the frontier itself is something smaller."""
    out: list[str] = []
    for hop in found.frontier:
        at: Hop | None = hop
        for _ in range(64):
            if at is None or at.kind == "execution":
                break
            at = found.tree.hops.get(at.parent) if at.parent else None
        if at is not None and at is not hop and at.kind == "execution" and describe(at) not in out:
            out.append(describe(at))
    return out


def _unknown(found: _Findings) -> Verdict | None:
    if found.missing:
        first = found.missing[0]
        more = f"; {len(found.missing) - 1} more things are missing" if len(found.missing) > 1 else ""
        still = f". Open: {_listed([describe(hop) for hop in found.frontier])}" if found.opened else ""
        return Verdict("unknown", f"The accounting is incomplete: {first.sentence}{more}{still}.")
    if not found.tree.roots:
        return Verdict("unknown", "The accounting is incomplete: no hop without a parent has been seen.")
    return None


def _tasks_left(found: _Findings) -> Verdict | None:
    states: dict[tuple[str, str], tuple[str, int]] = {}
    executed = {
        (hop.agent, hop.task_id) for hop in found.tree.hops.values() if hop.kind in ("execution", "push")
    }
    # A task that was only looked at is another cascade's: whoever works on it may go on.
    worked_on = executed | {
        (hop.agent, hop.task_id)
        for hop in found.tree.hops.values()
        if hop.kind == "request" and hop.attributes.get(A2A_METHOD_NAME) not in ONLY_LOOKS
    }
    for hop in found.tree.hops.values():
        if hop.task_id and hop.task_state and hop.kind in ("execution", "request", "push"):
            key = (hop.agent, hop.task_id)
            if key not in worked_on:
                continue
            _keep_newer(states, key, (hop.task_state, hop.task_at), found.tasks)
    interrupted = [key for key, (state, _) in states.items() if state in INTERRUPTED_STATES]
    stuck = [
        key
        for key, (state, _) in states.items()
        if state not in INTERRUPTED_STATES and state not in TERMINAL_STATES
    ]
    if interrupted:
        agent, task = interrupted[0]
        return Verdict(
            "waiting",
            f"Nothing is open; task {task} of {agent} is {_state(states[interrupted[0]][0])} and waits for somebody's message.",
        )
    for agent, task in stuck:
        if (agent, task) in found.elsewhere:
            state = _state(states[agent, task][0])
            by = found.elsewhere[agent, task][:8]
            return Verdict(
                "in_flight",
                f"Nothing of it is open; task {task} of {agent} is {state}, and cascade {by} works on it.",
            )
    # What a request saw on its way is not the task's state if nobody knows who works on it.
    left = [key for key in stuck if key in executed and states[key][0] in UNFINISHED_STATES]
    if left:
        agent, task = left[0]
        state = _state(states[agent, task][0])
        reason = f"Nothing is open, yet task {task} of {agent} is {state}: it will never move again."
        return Verdict("stranded", reason)
    if stuck:
        agent, task = stuck[0]
        state = _state(states[agent, task][0])
        reason = f"The accounting is incomplete: task {task} of {agent} was last seen {state}, and who works on it is not known."
        return Verdict("unknown", reason)
    return None


# Words -----------------------------------------------------------------------------------------------------------


def describe(hop: Hop) -> str:
    """A hop in a few words, as it stands within a sentence: `execution of worker (EchoExecutor.execute)`."""
    if hop.kind in ("send", "push"):
        to = f" to {hop.peer_name}" if hop.peer_name else ""
        return f"{hop.kind} of {hop.agent}{to}"
    return f"{hop.kind} of {hop.agent} ({hop.name})"


def _waiting(hop: Hop) -> str:
    waits: dict[str, Any] = hop.waits or {}
    what = waits.get("what")
    if not isinstance(what, str) or not what:
        return ""
    where = f" at {waits['file']}:{waits['line']}" if waits.get("file") and "line" in waits else ""
    parts = waits.get("of")
    inner = ""
    if isinstance(parts, list) and parts:
        words = [_part(part) for part in parts[:4] if isinstance(part, dict)]
        inner = f" ({'; '.join(word for word in words if word)})"
    return (
        f", {what}{where}{inner}" if waits.get("kind") == "running" else f", waiting for {what}{where}{inner}"
    )


def _part(waits: Mapping[str, Any]) -> str:
    task = f"{waits['task']}: " if waits.get("task") else ""
    where = f" at {waits['file']}:{waits['line']}" if waits.get("file") and "line" in waits else ""
    return f"{task}{waits.get('what', '')}{where}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _state(state: str | None) -> str:
    return (state or "in no state").removeprefix("TASK_STATE_").lower().replace("_", " ")


def _listed(words: Iterable[str]) -> str:
    counted = Counter(words)
    shown = [word if n == 1 else f"{n} x {word}" for word, n in list(counted.items())[:5]]
    if len(counted) > 5:
        shown.append(f"{len(counted) - 5} more")
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def _clock(ns: int) -> str:
    from datetime import datetime, timezone  # noqa: PLC0415 - only where a silence is told of

    return datetime.fromtimestamp(ns / 1e9, tz=timezone.utc).strftime("%H:%M:%S UTC")
