"""In which ways can the demo's work get lost, and what must hopwatch say of each?"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from hopwatch.process import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Cascade = dict[str, Any]
"""The object of `GET /api/cascades/{id}`."""


SHOWN_AFTER = Settings().reveal_after
"""Seconds after which a task or an item is told of that is otherwise a matter of its process alone (HOPWATCH_REVEAL_AFTER)."""


@dataclass(frozen=True)
class Ending:
    """How the worker must have ended.

    Attributes:
        exit_code: its own, as without hopwatch; the number of a signal with a minus where it died of one.
        how: what `GET /api/agents` must say of its end.
        pending: what must be in the summary of what was pending: how much, by kind.
    """

    exit_code: int
    how: str
    pending: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        about: what is planted, in a few words.
        verdict: the verdict that it must give.
        within: seconds after the start of the cascade within which that verdict is due.
        names: says what is wrong with the hops that the verdict names, or None where they are the right ones.
        before: verdicts that may be seen before. `unknown` is true of every cascade for as long as a process stands still that
            has something to tell of it.
        strike: what is sent to the worker, and when: as soon as the cascade is like that.
        closes: when what is wrong has come about, in Unix seconds, where no signal brings it about.
        prompt: seconds after that, or after the signal, within which the verdict is due; None where `within` is all.
        ending: how the worker must have ended; None where it must not.
    """

    about: str
    verdict: str
    within: float
    names: Callable[[Cascade], str | None]
    before: frozenset[str] = frozenset({"in_flight", "unknown"})
    strike: tuple[signal.Signals, Callable[[Cascade], bool]] | None = None
    closes: Callable[[Cascade], float | None] | None = None
    prompt: float | None = None
    ending: Ending | None = None


def unix_time(text: str) -> float:
    """A time of the API in Unix seconds."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _hops(cascade: Cascade, **wanted: Any) -> list[dict[str, Any]]:
    return [hop for hop in cascade["hops"] if all(hop.get(key) == value for key, value in wanted.items())]


def _at_frontier(cascade: Cascade, **wanted: Any) -> list[dict[str, Any]]:
    return [hop for hop in _hops(cascade, **wanted) if hop["id"] in cascade["frontier"]]


def _above(cascade: Cascade, hop: dict[str, Any]) -> Iterable[dict[str, Any]]:
    by_id = {each["id"]: each for each in cascade["hops"]}
    for _ in range(len(by_id)):
        parent = by_id.get(hop["parent"] or "")
        if parent is None:
            return
        yield parent
        hop = parent


def _at_rest(cascade: Cascade) -> bool:
    """Whether nothing goes on between the agents: each waits in its execution, and the worker has pushed all that it has to at first.

    Who is struck before that takes more with it than its own work, or leaves somebody with half an answer.
    """
    opened = _hops(cascade, state="open")
    pushed = [hop for hop in _hops(cascade, kind="push", agent="worker") if hop["ended"]]
    return not cascade["missing"] and len(pushed) >= 2 and all(hop["kind"] == "execution" for hop in opened)


def worker_sleeps(cascade: Cascade) -> bool:
    """Whether it is known that the worker sleeps in the middle of its work, and that everybody else waits for it."""
    for hop in _hops(cascade, kind="execution", agent="worker"):
        return (hop["waits_on"] or {}).get("kind") == "sleep" and _at_rest(cascade)
    return False


def worker_reads(cascade: Cascade) -> bool:
    """Whether it is known that the worker is in the middle of its work: it waits for the slow server."""
    for hop in _hops(cascade, kind="execution", agent="worker"):
        waits = hop["waits_on"] or {}
        return waits.get("kind") == "socket" and bool(waits.get("peer"))
    return False


def worker_alone_reads(cascade: Cascade) -> bool:
    """The same, and that everybody else waits for it."""
    return worker_reads(cascade) and _at_rest(cascade)


def only_a_task_is_left(cascade: Cascade) -> bool:
    """Whether all is over but a task of the worker."""
    left = _hops(cascade, state="open")
    known = bool(left) and not cascade["missing"]
    return known and all((hop["kind"], hop["agent"]) == ("task", "worker") for hop in left)


def _everything_ended(cascade: Cascade) -> str | None:
    left = [hop for hop in cascade["hops"] if hop["state"] != "ended"]
    if left:
        return f"{len(left)} hops have not ended"
    agents = {hop["agent"] for hop in cascade["hops"]}
    if agents != {"user", "frontdesk", "planner", "worker"}:
        return f"the cascade goes over {sorted(agents)}, not over the four processes"
    messages, posts = len(_hops(cascade, kind="execution")), len(_hops(cascade, kind="push"))
    most = 3 * messages + 2 * posts
    count = sum(not _took_long(hop) for hop in cascade["hops"])
    return f"{count} hops are more than {most}" if count > most else None


def _took_long(hop: dict[str, Any]) -> bool:
    """Whether it is a task or an item that is only shown because it took so long: on a machine that is busy any may."""
    return (
        hop["kind"] in ("task", "event")
        and unix_time(hop["ended"]) - unix_time(hop["started"]) >= SHOWN_AFTER
    )


def _worker_awaits_a_future(cascade: Cascade) -> str | None:
    for hop in _at_frontier(cascade, kind="execution", agent="worker"):
        waits = hop["waits_on"] or {}
        if (
            waits.get("kind") == "future"
            and str(waits.get("file", "")).endswith("worker.py")
            and waits.get("line")
        ):
            return None
        return f"the worker's execution waits on {waits}"
    return "the worker's execution is not at the frontier"


def _two_locks(cascade: Cascade) -> str | None:
    tasks = _at_frontier(cascade, kind="task", agent="worker")
    if len(tasks) != 2:
        return f"{len(tasks)} tasks of the worker are at the frontier, not 2"
    for hop in tasks:
        waits = hop["waits_on"] or {}
        if waits.get("kind") != "lock" or not waits.get("holder"):
            return f"{hop['name']} waits on {waits}, which names no lock with its holder"
        if not any(
            each["kind"] == "execution" and each["agent"] == "worker" for each in _above(cascade, hop)
        ):
            return f"{hop['name']} is not part of the worker's execution"
    holders = {(hop["waits_on"] or {})["holder"] for hop in tasks}
    if holders != {"reserve", "charge"}:
        return f"the locks are held by {sorted(holders)}"
    edges = [
        "'charge' holds lock `account`, wants lock `stock` at ",
        "'reserve' holds lock `stock`, wants lock `account` at ",
    ]
    missing = [edge for edge in edges if edge not in cascade["reason"]]
    return f"the reason does not say {missing}" if missing else None


def _both_tasks_began(cascade: Cascade) -> float | None:
    """When the cycle closed: each of the two tasks takes its second lock as soon as both hold one, right after their start."""
    tasks = [
        hop
        for hop in _hops(cascade, kind="task", agent="worker")
        if hop["name"].endswith(("reserve", "charge"))
    ]
    return max((unix_time(hop["started"]) for hop in tasks), default=None)


def _refused_push(cascade: Cascade) -> str | None:
    pushes = _hops(cascade, kind="push", agent="worker", outcome="failed")
    if not any("503" in (hop["reason"] or "") for hop in pushes):
        return "no push of the worker failed with 503"
    waiting = _at_frontier(cascade, kind="execution", agent="planner")
    if not waiting:
        return "the planner's execution is not at the frontier"
    waits = waiting[0]["waits_on"] or {}
    if not waits.get("file") or not waits.get("line"):
        return f"the planner's execution waits on {waits}, which names no line"
    return None if "503" in cascade["reason"] else "the reason does not tell of the 503"


def _socket(cascade: Cascade) -> str | None:
    return _everything_ended(cascade)


def _destroyed_task(cascade: Cascade) -> str | None:
    lost = _hops(cascade, kind="task", agent="worker", outcome="abandoned")
    if len(lost) != 1:
        return f"{len(lost)} tasks of the worker were abandoned, not 1"
    if "worker.py" not in (lost[0]["location"] or ""):
        return f"the task was made at {lost[0]['location']}"
    reason = lost[0]["reason"] or ""
    return None if "awaited" in reason and "future" in reason else f"the reason is {reason!r}"


def _cut_off(cascade: Cascade, kind: str, reason: str, place: str) -> str | None:
    """What is wrong with the one hop of the worker that was cut off, if anything is."""
    lost = _hops(cascade, outcome="abandoned")
    if any(hop["agent"] != "worker" for hop in lost):
        return "hops of others than the worker were abandoned"
    hops = [hop for hop in lost if hop["kind"] == kind]
    if len(hops) != 1:
        return f"{len(hops)} hops of the kind {kind} were abandoned, not 1"
    (hop,) = hops
    if not re.fullmatch(reason, hop["reason"] or ""):
        return f"the reason is {hop['reason']!r}"
    if not re.search(place, hop["location"] or ""):
        return f"the place is {hop['location']}"
    named = (
        f"{kind.capitalize()} of worker ({hop['name']}) was abandoned: {hop['reason']}; ",
        f" at {hop['location']}",
    )
    lacking = [each for each in named if each not in cascade["reason"]]
    return f"the reason of the verdict does not say {lacking}" if lacking else None


def _cut_off_by_sigterm(cascade: Cascade) -> str | None:
    reason = r"pending at shutdown: SIGTERM; it awaited data from 127\.0\.0\.1:\d+ at \S+worker\.py:\d+"
    return _cut_off(cascade, "execution", reason, r"worker\.py:\d+ Worker\.execute$")


def _killed(cascade: Cascade) -> str | None:
    return _cut_off(cascade, "execution", "process_killed", r"worker\.py:\d+ Worker\.execute$")


def _left_behind(cascade: Cascade) -> str | None:
    if any(hop["state"] == "open" for hop in cascade["hops"]):
        return "something is open still"
    reason = r"pending at shutdown: cancelled by asyncio\.run at its end; it awaited asyncio\.sleep\(600\) until \S+ at \S+worker\.py:\d+"
    # Code objects know their class from Python 3.11.
    return _cut_off(cascade, "task", reason, r"worker\.py:\d+ (Worker\.)?execute$")


def _silent_worker(cascade: Cascade) -> str | None:
    return (
        None if "worker has not been heard of" in cascade["reason"] else "the reason does not name the worker"
    )


def _promised_hop(cascade: Cascade) -> str | None:
    sends = {hop["id"] for hop in _hops(cascade, kind="send", agent="planner")}
    for missing in cascade["missing"]:
        if missing["what"] == "remote" and missing["hop"] in sends and missing["id"]:
            return None
    return f"missing is {cascade['missing']}: the hop that the planner's send was promised is not among it"


def _undelivered(cascade: Cascade) -> str | None:
    executions = {hop["agent"]: hop for hop in _hops(cascade, kind="execution")}
    worker = executions.get("worker")
    if worker is None or worker["task_state"] != "TASK_STATE_COMPLETED":
        return "the worker's task is not completed"
    if any(hop["state"] == "open" for agent, hop in executions.items() if agent != "worker"):
        return "another agent than the worker has not ended its work"
    late = [hop["name"] for hop in _hops(cascade, late=True)]
    if late:
        return f"late are {late}, and nothing is"
    if not any(
        hop is worker or worker in _above(cascade, hop) for hop in _at_frontier(cascade, agent="worker")
    ):
        return "the worker's execution, or what it started, is not at the frontier"
    wanted = ("SubscribeToTask", "undelivered event", "from queue 0x", f"'producer:{worker['task_id']}'")
    lacking = [each for each in wanted if each not in cascade["reason"]]
    return f"the reason lacks {', '.join(lacking)}" if lacking else None


def _late_work(cascade: Cascade) -> str | None:
    left = _everything_ended(cascade)
    if left and "more than" not in left:
        return left
    late = _hops(cascade, agent="worker", kind="task", late=True)
    if len(late) != 1 or "one_more" not in late[0]["name"]:
        return (
            f"late are {[hop['name'] for hop in _hops(cascade, late=True)]}, not the one task of the worker"
        )
    sends = _hops(cascade, kind="send", agent="worker")
    if len(sends) != 1 or sends[0]["started"] < late[0]["started"]:
        return f"the late task has sent {len(sends)} messages, not 1"
    return None if "began late" in cascade["reason"] else "the reason does not tell of the late work"


FAULTS: dict[str, Fault] = {
    "none": Fault("nothing", "settled", 30.0, _everything_ended),
    "hang": Fault("the worker awaits a future that nobody sets", "stalled", 8.0, _worker_awaits_a_future),
    "drop-push": Fault("the planner's webhook answers the worker with 503", "stalled", 8.0, _refused_push),
    "deadlock": Fault(
        "two tasks of the worker take two locks in opposite order",
        "stalled",
        4.0,
        _two_locks,
        closes=_both_tasks_began,
        prompt=2.0,
    ),
    "slow": Fault("the worker waits 15 s for a slow server", "settled", 40.0, _socket),
    "gc": Fault(
        "the worker's work sits in a task that nobody keeps, and is collected", "broken", 8.0, _destroyed_task
    ),
    "term": Fault(
        "the worker gets SIGTERM in the middle of its work",
        "broken",
        8.0,
        _cut_off_by_sigterm,
        strike=(signal.SIGTERM, worker_alone_reads),
        prompt=2.0,
        ending=Ending(-signal.SIGTERM, "SIGTERM", {"execution": 1}),
    ),
    "kill": Fault(
        "the worker gets SIGKILL in the middle of its work",
        "broken",
        8.0,
        _killed,
        strike=(signal.SIGKILL, worker_alone_reads),
        prompt=2.0,
        ending=Ending(-signal.SIGKILL, "process_killed", {"execution": 1}),
    ),
    "pending": Fault(
        "the worker answers, and is asked to end while a task of it is pending",
        "broken",
        8.0,
        _left_behind,
        strike=(signal.SIGUSR1, only_a_task_is_left),
        prompt=2.0,
        ending=Ending(0, "exit", {"task": 1}),
    ),
    "silent": Fault(
        "the worker is stopped with SIGSTOP",
        "silent",
        20.0,
        _silent_worker,
        strike=(signal.SIGSTOP, worker_sleeps),
    ),
    "leak": Fault(
        "a subscriber to the worker's task stops reading and does not hang up",
        "in_flight",
        12.0,
        _undelivered,
    ),
    "late": Fault(
        "2 s after its answer the worker starts a task that sends one more message",
        "settled",
        30.0,
        _late_work,
    ),
    "lost": Fault("the worker's telemetry never leaves it", "unknown", 20.0, _promised_hop),
}
