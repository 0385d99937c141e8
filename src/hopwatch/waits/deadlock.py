"""What is told of tasks none of which can ever go on? A deadlock, its edges, and the words for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from hopwatch.waits.chain import APPLICATION, CLEAR, Frame, split, walk
from hopwatch.waits.objects import coroutine_of, is_pending, task_name, waits_for
from hopwatch.waits.wait import words_for

if TYPE_CHECKING:
    import weakref

TOLD: Final = 16
"""How many edges of a deadlock are told."""

Kind = Literal["task", "gather", "task_group", "wait", "lock", "semaphore", "queue_put", "queue_join"]


@dataclass(frozen=True, slots=True)
class Edge:
    """One task of a deadlock: what it wants, who would have to give it, and where it waits."""

    task: str
    kind: Kind
    wants: str
    held_by: tuple[str, ...]
    holds: tuple[str, ...]
    at: str | None
    words: str

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON, without what there is none of."""
        told: dict[str, Any] = {
            "task": self.task,
            "kind": self.kind,
            "wants": self.wants,
            "held_by": [*self.held_by],
        }
        if self.holds:
            told["holds"] = [*self.holds]
        if self.at:
            told["at"] = self.at
        return told


@dataclass(frozen=True, slots=True)
class Deadlock:
    """Tasks none of which can go on unless another of them does.

    Attributes:
        edges: One for each of them, in the order in which they wait for one another; at most 16.
        size: How many there are.
        behind: Weak references to other tasks that cannot go on because of them, as far as they were looked at.
        waits: Weak references to each task and to the future that it waits for.
    """

    edges: tuple[Edge, ...]
    size: int
    behind: tuple[weakref.ref[Any], ...] = field(repr=False)
    waits: tuple[tuple[weakref.ref[Any], weakref.ref[Any]], ...] = field(repr=False)

    @property
    def words(self) -> str:
        """All of it in one sentence without an end."""
        more = f"; and {self.size - len(self.edges)} more" if self.size > len(self.edges) else ""
        return "; ".join(edge.words for edge in self.edges) + more

    def holds(self) -> bool:
        """Tell whether each task still waits for what it was found to wait for."""
        for task, future in self.waits:
            waiting = task()
            if waiting is None or not is_pending(wanted := future()) or waits_for(waiting) is not wanted:
                return False
        return True

    def same_as(self, other: Deadlock) -> bool:
        """Tell whether another look found the very same waits."""
        return {*map(_pair, self.waits)} == {*map(_pair, other.waits)} and self.holds()

    def tasks(self) -> list[Any]:
        """Return its tasks, as far as they are there."""
        return [task for reference, _ in self.waits if (task := reference()) is not None]

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        told: dict[str, Any] = {"words": self.words, "edges": [edge.as_dict() for edge in self.edges]}
        if self.size > len(self.edges):
            told["tasks"] = self.size
        return told


def _pair(wait: tuple[weakref.ref[Any], weakref.ref[Any]]) -> tuple[int, int]:
    return id(wait[0]()), id(wait[1]())


@dataclass(slots=True)
class Need:
    """What has to come from others. `of` has tasks and other needs."""

    every: bool
    """Whether one that does not come is enough to hold it up; otherwise all of them have to fail to come."""
    of: list[Any]


@dataclass(slots=True)
class Node:
    """One task that waits, and what it needs to go on."""

    task: Any
    future: Any
    kind: Kind
    need: Need
    owner: Any = None
    """The lock, semaphore or queue."""
    frames: list[Frame] | None = None


def tasks_in(need: Need) -> list[Any]:
    """Return every task of a need."""
    out: list[Any] = []
    for one in need.of:
        if type(one) is Need:
            out.extend(tasks_in(one))
        else:
            out.append(one)
    return out


def holds_up(need: Need, stuck: set[int]) -> bool:
    """Tell whether a need cannot be met where these tasks, by `id`, cannot go on."""
    held = (holds_up(one, stuck) if type(one) is Need else id(one) in stuck for one in need.of)
    return any(held) if need.every else bool(need.of) and all(held)


_NOUNS: Final = {"lock": "lock", "semaphore": "semaphore", "queue_put": "queue", "queue_join": "queue"}


def labels_of(nodes: list[Node]) -> dict[int, str]:
    """Return what each lock and queue is called by those who wait for it; with its address where two have one name."""
    words: dict[int, str | None] = {}
    for node in nodes:
        if node.owner is not None and words.get(id(node.owner)) is None:
            decisive, _ = split(node.frames or [])
            words[id(node.owner)] = words_for(decisive, node.kind) if decisive is not None else None
    known = list(words.values())
    out: dict[int, str] = {}
    for node in nodes:
        key = id(node.owner)
        if node.owner is not None and key not in out:
            name = words[key]
            noun = _NOUNS[node.kind]
            if name is None:
                out[key] = f"{noun} 0x{key:x}"
            else:
                out[key] = f"{noun} `{name}`" + (f" (0x{key:x})" if known.count(name) > 1 else "")
    return out


def edge_of(node: Node, labels: dict[int, str], holds: tuple[str, ...], stuck: set[int]) -> Edge:
    """Return what is told of one task of a deadlock. `labels` are of `labels_of`, `stuck` is every task of it by `id`."""
    name = task_name(node.task) or "a task"
    others = [task for task in tasks_in(node.need) if id(task) in stuck]
    if node.kind == "queue_join" and type(node.need.of[0]) is Need:
        others = [task for task in node.need.of[0].of if id(task) in stuck]
    who = tuple(f"{task_name(task)}" for task in others[:TOLD])
    at = _where(node)
    label = labels.get(id(node.owner), "")
    said = _listing(who) if others else ""
    many = len(others) > 1
    itself = len(others) == 1 and others[0] is node.task
    if node.kind in ("lock", "semaphore"):
        wants = label
        who_has_it = f", which {'it' if itself else said} {'hold' if many else 'holds'}{' itself' * itself}"
        verb = "wants"
    elif node.kind == "queue_put":
        wants = f"room in {label}"
        who_has_it = f", from which only {'it itself' if itself else said} could take"
        verb = "wants"
    elif node.kind == "queue_join":
        wants = f"{label} to be worked off"
        who_has_it = (
            f", from which {'it' if itself else said} took an item{' itself' * itself} without task_done"
        )
        verb = "waits for"
    else:
        sort = {"gather": " (gather)", "task_group": " (task group)", "wait": " (wait)"}.get(node.kind, "")
        wants = f"task{'s' * many} {said}{sort}"
        who_has_it = ""
        verb = "waits for"
    mine = f"holds {' and '.join(holds)}, " if holds else ""
    where = f" at {at}" if at else ""
    return Edge(name, node.kind, wants, who, holds, at, f"'{name}' {mine}{verb} {wants}{where}{who_has_it}")


def _listing(names: tuple[str, ...]) -> str:
    quoted = [f"'{name}'" for name in names[:4]]
    if len(names) > 4:
        quoted.append(f"{len(names) - 4} more")
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else "".join(quoted)


def _where(node: Node) -> str | None:
    frames = node.frames if node.frames is not None else walk(coroutine_of(node.task))[0]
    node.frames = frames
    found = next((frame for frame in reversed(frames) if frame.place == APPLICATION), None)
    found = found or next((frame for frame in reversed(frames) if frame.place > CLEAR), None)
    return f"{found.file}:{found.line}" if found is not None else None
