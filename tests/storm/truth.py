"""Is what was said of a run true? Its diary against the collector's hops and verdicts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from storm.plan import KILLED, ONWARDS

RUNNER = "pending at shutdown: cancelled by asyncio.run at its end"
CLOSED = "pending at shutdown: its event loop was closed"
EXITED = "pending at shutdown: the interpreter exited"
INT = "pending at shutdown: SIGINT"
TERM = "pending at shutdown: SIGTERM"
EXECV = "pending at shutdown: the process was replaced by another program (execv)"
DESTROYED = "the task was destroyed while pending"
COLLECTED = "the queue that held it was collected"
KILLED_BY = "process_killed"
REASONS = {
    "clean": (),
    "gc": (DESTROYED,),
    "fork_exit": (KILLED_BY,),
    "fork_kill": (KILLED_BY,),
    "return": (RUNNER, EXITED, CLOSED, DESTROYED, COLLECTED),
    "exception": (RUNNER, EXITED, CLOSED, DESTROYED, COLLECTED),
    "sys_exit": (RUNNER, EXITED, CLOSED, DESTROYED, COLLECTED),
    "keyboard": (RUNNER, INT, CLOSED, DESTROYED, COLLECTED),
    "sigint": (INT, RUNNER, EXITED, CLOSED, DESTROYED, COLLECTED),
    "loop_close": (CLOSED, EXITED, DESTROYED, COLLECTED),
    "swallow": (RUNNER, EXITED, CLOSED, DESTROYED, COLLECTED),
    "execv": (EXECV, "execv"),
    "sigterm": (TERM,),
    "sigterm_twice": (TERM, KILLED_BY),
    "sigkill": (KILLED_BY,),
    "os_exit": (KILLED_BY,),
    "abort": (KILLED_BY,),
    "segfault": (KILLED_BY,),
    "stop_kill": (KILLED_BY,),
}
"""How the reasons of what was abandoned may begin, by the way out of the process."""
SERVERS = ("worker", "planner")
OF_A_STOPPED_SERVER = (TERM, RUNNER, CLOSED, DESTROYED, EXITED, COLLECTED)
CODES = {
    "clean": 0, "gc": 0, "fork_exit": 0, "fork_kill": 0, "return": 0, "loop_close": 0, "swallow": 0, "execv": 0,
    "exception": 1, "sys_exit": 3, "keyboard": -2, "sigint": -2, "sigterm": -15, "sigterm_twice": -15,
    "sigkill": -9, "stop_kill": -9, "os_exit": 5, "abort": -6, "segfault": -11,
}  # fmt: skip
"""The exit code of a program without hopwatch."""
ENDED = ("settled", "broken", "unknown", "silent", "stranded")
"""Verdicts that may stand for good once every process has ended."""


@dataclass
class Work:
    """One piece of work, as the diary has it."""

    name: str
    role: str
    ended: str | None = None
    after: bool = False
    """It ended after the way out of its process had begun."""
    asked: bool = False
    """Somebody cancelled it, or what it was part of, on purpose."""

    @property
    def late(self):
        """It, or what it is part of, began when nobody could know of it before."""
        return "L" in self.name

    @property
    def lost(self):
        """It did not come to an end of its own."""
        if self.ended == "cancelled":
            return self.after and not self.asked
        return self.ended in (None, "collected")


@dataclass
class Diary:
    """What a run's diary says."""

    cascades: dict[str, str] = field(default_factory=dict)
    """Ids, by the names of their roots."""
    work: dict[str, Work] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    """The ways out that have begun, by role."""
    ways: dict[str, set[str]] = field(default_factory=dict)
    """The same, and those that began after them: who takes long to end by itself is ended by a signal."""

    def of(self, root):
        """The work of one cascade."""
        return [each for each in self.work.values() if each.name.split(".")[0] == root]

    @property
    def open(self):
        return [each for each in self.work.values() if each.ended is None]


def read(path):
    """Read a diary as it stands."""
    diary = Diary()
    asked = set()
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return diary
    for line in lines:
        role, what, *words = line.split(" ")
        if what == "R":
            diary.cascades[words[0]] = words[1]
        elif what == "S":
            diary.work[words[0]] = Work(words[0], role)
        elif what == "D":
            asked.add(words[0])
        elif what == "E":
            work = diary.work[words[0]]
            work.ended, work.after = words[1], role in diary.left
        elif what == "W":
            diary.left.setdefault(role, words[0])
            diary.ways.setdefault(role, set()).add(words[0])
            if words[1:]:
                diary.work[words[1]].after = True
    for work in diary.work.values():
        work.asked = any(work.name.startswith(each) for each in asked)
    return diary


def false_settled(before, after, root):
    """What had begun before somebody said `settled` and has not ended after it; late work may yet be told of."""
    return [
        each.name
        for each in before.of(root)
        if not each.late and (each.name not in after.work or after.work[each.name].ended is None)
    ]


def faults(run, diary, root, cascade):
    """What is not true of what was said at last of a cascade: sentences; none if all is.

    Args:
        run: the plan.
        diary: what happened.
        root: the cascade's.
        cascade: the collector's object; None where it never heard of it.
    """
    out = []
    works = diary.of(root)
    lost = [each for each in works if each.lost]
    way = diary.left.get(run.victim)
    verdict = cascade["verdict"] if cascade is not None else None
    if verdict == "settled" and lost:
        out.append(f"FALSE settled: lost {[each.name for each in lost][:5]}")
    if run.way == "clean" and not lost and verdict != "settled":
        out.append(f"all was over, and it is {verdict}: {cascade and cascade['reason']}")
    if lost and verdict != "broken":
        names = [each.name for each in lost][:5]
        out.append(
            f"{len(lost)} were lost by {way} ({names}), and it is {verdict}: {cascade and cascade['reason']}"
        )
    if cascade is None:
        return out if way in KILLED else [*out, f"never heard of, after {way}"]
    if verdict not in ENDED:
        out.append(f"it is {verdict} for good: {cascade['reason']}")
    for hop in cascade["hops"]:
        told = f"{hop['kind']} {hop['name']} of {hop['agent']}"
        role = role_of(hop["agent"])
        work = diary.work.get(re.sub(r"^(job|thread|timer) ", "", hop["name"]))
        if hop["state"] == "open":
            # What had closed in a process that was killed, but was not sent yet, is in nobody's hands: see docs/limits.md.
            unsent = verdict == "broken" and diary.left.get(role) in KILLED and not (work and work.lost)
            if verdict not in ("unknown", "silent") and not unsent:
                out.append(f"{told} is open, and it is {verdict}")
            continue
        allowed = allowed_reasons(run, diary, role)
        if hop["outcome"] == "abandoned" and not (hop["reason"] or "").startswith(allowed):
            out.append(f"{told} was abandoned for {hop['reason']!r}, and left by {diary.left.get(role)}")
        if work is None:
            continue
        if work.lost:
            # Who cannot tell of its cancellation but by ending (a server's own, at its signal) is cancelled by it.
            may = ("abandoned", "failed", "cancelled") if work.ended == "cancelled" else ("abandoned",)
            if work.ended is None and hop["name"].startswith("job ") and work.role in diary.left:
                may = ("abandoned", "cancelled")  # its turn never came, and who awaited it was cut off
        elif work.after:
            may = ("finished", "failed", "cancelled", "abandoned")
        elif work.ended == "ok":
            may = ("finished", "abandoned")
        else:
            may = (work.ended, "abandoned")
        if hop["outcome"] not in may:
            out.append(f"{told} is {hop['outcome']} ({hop['reason']}), and its work: {work.ended}")
        running = "it was running" in (
            hop["reason"] or ""
        )  # behind the last line of its work, in another thread
        if hop["outcome"] == "abandoned" and not (work.lost or work.after or running) and way not in KILLED:
            out.append(
                f"{told} was abandoned ({hop['reason']}) though its work came to its end: {work.ended}"
            )
    return out


def role_of(agent):
    """The role of the process that calls itself so: `storm-17-worker`."""
    return agent.rpartition("-")[2]


def allowed_reasons(run, diary, role):
    """How the reason of what a process abandoned may begin."""
    out = tuple(reason for way in diary.ways.get(role, ()) for reason in REASONS[way])
    if role in SERVERS:
        # Servers are ended by a signal, which uvicorn handles: what is left then its runner cancels.
        out = (*out, *OF_A_STOPPED_SERVER)
    return out


def wrong_code(run, diary, codes):
    """The exit code of the process that left, if it is not what it would be without hopwatch."""
    way = diary.left.get(run.victim)
    code = codes.get(run.victim)
    if way is None or (run.victim in SERVERS and (way in ONWARDS or code == -15)):
        return None  # a server goes on until it is told to end; uvicorn need not end by what a task raises
    return None if code == CODES[way] else f"{run.victim} ended by {way} with {code}, not {CODES[way]}"
