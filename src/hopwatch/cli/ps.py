"""What do the processes of this user do right now? They are asked by their sockets, and what they say is drawn as a tree."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hopwatch import inspect_socket, state_folder
from hopwatch.cli.text import count, moment, plain, span

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import RenderableType

PATIENCE: Final = 2.0
"""Seconds that a process has for its answer."""
LONGEST: Final = 8 * 1024 * 1024
MOST_ASKED: Final = 200
ALIKE: Final = 3
"""How many tasks are shown that do the same at the same line; the others are counted."""
MOST_PARTS: Final = 8


class PsError(Exception):
    """Why a process cannot be shown, and what to do."""


@dataclass(frozen=True)
class Found:
    """A process that may be asked.

    Attributes:
        pid: its id, as it sees it.
        path: its socket.
        owner: user id that has to be at the other end.
    """

    pid: int
    path: Path
    owner: int


# Asking ------------------------------------------------------------------------------------------------------------


def found_in(folder: Path, owner: int | None = None) -> list[Found]:
    """The processes that have a socket in a folder; what dead ones left there is removed.

    Args:
        folder: which need not exist.
        owner: whose folder it has to be; by default this user's.

    Raises:
        PsError: the folder is not safe.
    """
    owner = os.geteuid() if owner is None else owner
    try:
        if state_folder.checked(folder, owner=owner) is None:
            return []
    except state_folder.FolderError as error:
        raise PsError(str(error)) from None
    inspect_socket.sweep(folder)
    out = []
    for path in sorted(folder.glob("*.sock")):
        match = inspect_socket.FILE.fullmatch(path.name)
        if match is not None and path.suffix == ".sock":
            out.append(Found(int(match[1]), path, owner))
    return out


def process(pid: int) -> Found:
    """The process of this id.

    Raises:
        PsError: there is none, or it has no socket.
    """
    folder, _ = state_folder.named()
    looked = []
    if folder is not None:
        looked.append(Path(folder))
        for each in found_in(Path(folder)):
            if each.pid == pid:
                return each
    # It may have been started with another folder than ours.
    theirs = _folder_of(pid)
    if theirs is not None and theirs[0] not in looked:
        looked.append(theirs[0])
        for each in found_in(*theirs):
            if each.pid == pid:
                return each
    if inspect_socket.start_of(pid) is None:
        raise PsError(f"there is no process {pid}.")
    where = " and ".join(str(each) for each in looked) or "any folder"
    raise PsError(
        f"process {pid} cannot be asked: it has no socket in {where}. Either it was not started with hopwatch (start it "
        "with `hopwatch run` or opentelemetry-instrument), or it is another user's, or "
        f"{state_folder.VARIABLE} is off or another folder there."
    )


def _folder_of(pid: int) -> tuple[Path, int] | None:
    """The folder that another process was started with, and its user; None where that cannot be read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
        owner = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None
    pairs = (each.partition(b"=") for each in raw.split(b"\0"))
    folder, _ = state_folder.named({os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs})
    return (Path(folder), owner) if folder is not None else None


def ask(found: Found, what: str, patience: float = PATIENCE) -> dict[str, Any]:
    """Ask a process.

    Args:
        found: the process.
        what: `brief` or `all`.
        patience: seconds that it has.

    Raises:
        PsError: it does not answer, or not with what can be read.
    """
    until = time.monotonic() + patience
    data = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(patience)
            _connect(connection, found.path, until)
            if inspect_socket.peer_of(connection) not in (None, found.owner):
                raise PsError(f"the socket {found.path} is served by another user")
            connection.sendall(what.encode() + b"\n")
            while len(data) <= LONGEST:
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError  # noqa: TRY301
                connection.settimeout(left)
                piece = connection.recv(65536)
                if not piece:
                    break
                data += piece
    except (
        TimeoutError,
        BlockingIOError,
    ):  # the second: so many wait for it that there is no room for one more
        raise PsError(
            f"process {found.pid} does not answer within {patience:g} s{_why(found.pid)}."
        ) from None
    except OSError as error:
        raise PsError(
            f"process {found.pid} does not answer: {error.strerror or error}{_why(found.pid)}."
        ) from None
    try:
        told = json.loads(data)
    except ValueError:
        said = "nothing" if not data else "what cannot be read"
        raise PsError(f"process {found.pid} answered {said}{_why(found.pid)}.") from None
    if not isinstance(told, dict) or "error" in told:
        raise PsError(
            f"process {found.pid} refused: {plain(told.get('error') if isinstance(told, dict) else told)}."
        )
    return told


def _connect(connection: socket.socket, path: Path, until: float) -> None:
    while True:
        try:
            with inspect_socket.address_of(path) as address:
                connection.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            # While a process forks it has no socket for some milliseconds.
            if time.monotonic() > until - PATIENCE + 0.3:
                raise
            time.sleep(0.05)
        else:
            return


def _why(pid: int) -> str:
    try:
        state = re.search(
            r"^State:\s+(\w)", Path(f"/proc/{pid}/status").read_text("ascii", "replace"), re.MULTILINE
        )
    except OSError:
        return ": it is not there any more" if inspect_socket.start_of(pid) is None else ""
    if state is not None and state[1] in "Tt":
        return ": it is stopped (SIGSTOP, or a debugger)"
    if state is not None and state[1] in "ZX":
        return ": it has ended"
    return ""


def everybody() -> list[tuple[Found, dict[str, Any] | str]]:
    """All processes of this user that may be asked, each with a few numbers or with why it did not answer.

    Raises:
        PsError: the folder is not safe.
    """
    folder, _ = state_folder.named()
    if folder is None:
        raise PsError(
            f"{state_folder.VARIABLE} is off, or this user has no home: there is no folder to look into."
        )
    found = found_in(Path(folder))[:MOST_ASKED]
    if not found:
        return []

    def asked(each: Found) -> dict[str, Any] | str:
        try:
            return ask(each, "brief")
        except PsError as error:
            return str(error)

    with ThreadPoolExecutor(min(16, len(found))) as pool:
        return list(zip(found, pool.map(asked, found), strict=True))


def as_object(found: Found, told: dict[str, Any] | str) -> dict[str, Any]:
    """One process of the list for `--json`."""
    return {"pid": found.pid, "error": told} if isinstance(told, str) else told


# The list ----------------------------------------------------------------------------------------------------------

_COLUMNS: Final = ("pid", "agent", "hops", "tasks", "oldest", "command")


def _cells(found: Found, told: Mapping[str, Any] | str) -> tuple[str, ...]:
    if isinstance(told, str):
        return (str(found.pid), "-", "-", "-", "-", plain(told))
    oldest = moment(told.get("oldest"))
    age = span((datetime.now(timezone.utc) - oldest).total_seconds()) if oldest is not None else "-"
    return (
        plain(told.get("pid")),
        plain(told.get("agent")),
        plain(told.get("hops")),
        plain(told.get("tasks")),
        age,
        plain(told.get("command")),
    )


def list_lines(rows: Sequence[tuple[Found, dict[str, Any] | str]]) -> list[str]:
    """The list for a pipe: a heading, and a line a process."""
    cells = [_COLUMNS, *(_cells(*row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_COLUMNS) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in cells
    ]


def list_table(rows: Sequence[tuple[Found, dict[str, Any] | str]]) -> RenderableType:
    """The list for a terminal."""
    from rich.table import Table  # noqa: PLC0415 - slow to import, and JSON and pipes do without
    from rich.text import Text  # noqa: PLC0415

    out = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in _COLUMNS:
        out.add_column(name, justify="right" if name in ("pid", "hops", "tasks", "oldest") else "left")
    for row in rows:
        cells = _cells(*row)
        style = "red" if isinstance(row[1], str) else ""
        out.add_row(*(Text(cell, style) for cell in cells))
    return out


# The tree ----------------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """One line of the tree: what it says, how it looks, what stands below it."""

    text: str
    style: str = ""
    below: list[Node] = field(default_factory=list)


def tree(document: Mapping[str, Any]) -> Node:
    """What a process said, as lines of a tree; every text in it is harmless."""
    counts = _object(document.get("counts"))
    top = Node(f"process {plain(document.get('pid'))} {plain(document.get('agent'))}", "bold")
    about = f"{plain(document.get('command'))} (Python {plain(document.get('python'))})"
    top.below.append(Node(about, "dim"))
    facts = [
        count(_number(counts.get("hops")), "open hop"),
        count(_number(counts.get("tasks")), "task"),
        count(_number(counts.get("threads")), "thread"),
    ]
    if _number(counts.get("dropped")):
        facts.append(f"{_number(counts.get('dropped')):,} dropped, for its ledger was full")
    top.below.append(Node(", ".join(facts)))
    for hook, number in _object(counts.get("failures")).items():
        top.below.append(
            Node(f"hook {plain(hook)} of hopwatch failed {count(_number(number), 'time')}", "red")
        )
    for each in _objects(document.get("deadlocks")):
        top.below.append(_deadlock(each))
    for each in _objects(document.get("orphans")):
        words = f"service loop '{plain(each.get('name'))}' goes on though its owner has ended"
        since = f", since {plain(each.get('since'))}"
        top.below.append(Node(words + since, "yellow", [Node(plain(each.get("owner")), "dim")]))
    for loop in _objects(document.get("loops")):
        top.below.append(_loop(loop))
    left = _object(document.get("left_out"))
    if left.get("tasks"):
        kinds = ", ".join(
            f"{_number(number):,} {plain(name)}"
            for name, number in list(_object(left.get("of")).items())[:MOST_PARTS]
        )
        top.below.append(Node(f"{count(_number(left['tasks']), 'task')} more not shown: {kinds}", "yellow"))
    hops = _objects(document.get("hops"))
    if hops:
        top.below.append(Node("hops", "bold", [_hop(hop) for hop in hops]))
    if left.get("hops"):
        top.below.append(Node(f"{count(_number(left['hops']), 'hop')} more not shown", "yellow"))
    threads = [each for each in _objects(document.get("threads")) if not each.get("ours")]
    if threads:
        top.below.append(Node("threads", "bold", [_thread(each) for each in threads]))
    if left.get("threads"):
        top.below.append(Node(f"{count(_number(left['threads']), 'thread')} more not shown", "yellow"))
    return top


def _deadlock(deadlock: Mapping[str, Any]) -> Node:
    """A cycle of tasks, an edge a line: each waits for the one of the next line."""
    edges = _objects(deadlock.get("edges"))
    size = _number(deadlock.get("tasks")) or len(edges)
    out = Node(f"deadlock of {count(size, 'task')}: none of them can ever go on", "bold red")
    out.below.extend(Node(plain(edge.get("words")), "red") for edge in edges)
    if size > len(edges):
        out.below.append(Node(f"and {size - len(edges):,} more", "red"))
    hops = [plain(each) for each in deadlock.get("hops") or [] if isinstance(each, str)]
    if hops:
        more = f" and {len(hops) - MOST_PARTS} more" if len(hops) > MOST_PARTS else ""
        out.below.append(Node(f"for hop {', '.join(hops[:MOST_PARTS])}{more}", "dim"))
    return out


def _loop(loop: Mapping[str, Any]) -> Node:
    state = plain(loop.get("state"))
    name = plain(loop.get("loop")).rpartition(".")[2]
    running = f" with task {plain(loop.get('running'))}" if loop.get("running") else ""
    if state != "busy":
        out = Node(f"loop {name}: {state}", "bold cyan")
    elif loop.get("blocked"):
        out = Node(f"loop {name}: blocked{running} at {plain(loop.get('at'))}", "bold red")
        frames = [plain(each) for each in loop.get("stack") or [] if isinstance(each, str)]
        out.below.append(Node("stack", "red", [Node(each, "dim") for each in frames]))
    else:
        out = Node(
            f"loop {name}: busy{running}" + (f" at {plain(loop.get('at'))}" if loop.get("at") else ""),
            "bold cyan",
        )
    out.below.extend(_tasks(_objects(loop.get("tasks"))))
    return out


def _tasks(tasks: list[dict[str, Any]]) -> Iterator[Node]:
    alike: dict[tuple[Any, ...], int] = {}
    for task in tasks:
        wait = _object(task.get("waits_on"))
        if not task.get("awaits"):
            key = (
                plain(task.get("coroutine")), plain(task.get("state")), plain(wait.get("kind")),
                plain(wait.get("file")), plain(wait.get("line")), bool(wait.get("holder")),
            )  # fmt: skip
            alike[key] = alike.get(key, 0) + 1
            if alike[key] > ALIKE:
                continue
        yield _task(task, wait)
    for key, number in alike.items():
        if number > ALIKE:
            at = f" at {key[3]}:{key[4]}" if key[3] else ""
            yield Node(f"and {number - ALIKE:,} more like it: {key[0]} ({key[2] or key[1]}){at}", "dim")


def _task(task: Mapping[str, Any], wait: Mapping[str, Any]) -> Node:
    state = plain(task.get("state"))
    what = f"{plain(wait.get('what'))}{_lasts(wait)}" if state == "waiting" else state
    at = _place(wait)
    text = f"task {plain(task.get('name'))} {plain(task.get('coroutine'))}: {what or 'not looked at'}"
    passive = wait.get("moves") is False
    out = Node(text + (f" at {at}" if at else ""), "yellow" if passive else "")
    chain = [plain(each) for each in wait.get("chain") or [] if isinstance(each, str)]
    above = chain[: chain.index(at)] if at in chain else []
    if above:
        shown = above if len(above) <= MOST_PARTS else [*above[:4], f"({len(above) - 7} more)", *above[-3:]]
        out.below.append(Node("called from " + ", ".join(shown), "dim"))
    if task.get("made_at"):
        out.below.append(Node(f"made at {plain(task.get('made_at'))}", "dim"))
    queue = _object(task.get("queue"))
    if queue:
        out.below.append(Node(_queue(queue), "dim"))
    if task.get("hop"):
        since = moment(task.get("since"))
        age = f", {span((datetime.now(timezone.utc) - since).total_seconds())}" if since is not None else ""
        out.below.append(Node(f"for hop {plain(task.get('hop'))}{age}", "dim"))
    out.below.extend(_tasks(_objects(task.get("awaits"))))
    return out


def _queue(queue: Mapping[str, Any]) -> str:
    text = f"queue {plain(queue.get('queue'))}: {plain(queue.get('depth'))} inside"
    if queue.get("maxsize"):
        text += f" of {plain(queue.get('maxsize'))}"
    if queue.get("unfinished"):
        text += f", {plain(queue.get('unfinished'))} without task_done"
    taken = [plain(each) for each in queue.get("taken_by") or [] if isinstance(each, str)]
    return text + (f", taken by {', '.join(taken)}" if taken else "")


def _hop(hop: Mapping[str, Any]) -> Node:
    wait = _object(hop.get("waits_on"))
    age = hop.get("age")
    lasted = span(float(age)) if isinstance(age, (int, float)) else "?"
    text = f"{plain(hop.get('kind'))} {plain(hop.get('name'))}: open for {lasted}"
    if hop.get("late"):
        text += ", late"
    if hop.get("done"):
        text += ", its own work is over"
    out = Node(f"{text} [{plain(hop.get('id'))}, cascade {plain(hop.get('cascade'))}]")
    if wait.get("what"):
        at = _place(wait)
        passive = wait.get("moves") is False
        out.below.append(
            Node(
                f"waits on {plain(wait.get('what'))}{_lasts(wait)}" + (f" at {at}" if at else ""),
                "yellow" if passive else "dim",
            )
        )
    counted = [
        text
        for number, text in (
            (_number(hop.get("children")), "hops opened below it"),
            (_number(hop.get("counted")), "tasks, items and waits counted on it"),
            (_number(hop.get("items")), "items in queues"),
            (_number(hop.get("dropped")), "dropped"),
        )
        if number
        for text in (f"{number:,} {text}",)
    ]
    if counted:
        out.below.append(Node(", ".join(counted), "dim"))
    out.below.extend(_hop(each) for each in _objects(hop.get("below")))
    return out


def _thread(thread: Mapping[str, Any]) -> Node:
    name = thread.get("name")
    return Node(
        f"{plain(name) if name is not None else plain(thread.get('thread'))}: at {plain(thread.get('at'))}"
    )


def _lasts(wait: Mapping[str, Any]) -> str:
    """How long a wait lasts still, and how long a message has been under way."""
    parts = []
    age, left = _object(wait.get("send")).get("age"), wait.get("left")
    if isinstance(age, (int, float)):
        parts.append(f"sent {span(float(age))} ago")
    if isinstance(left, (int, float)):
        parts.append(f"{span(float(left))} left")
    return f" ({', '.join(parts)})" if parts else ""


def _place(wait: Mapping[str, Any]) -> str:
    if not wait.get("file"):
        return ""
    return f"{plain(wait.get('file'))}:{plain(wait.get('line'))} {plain(wait.get('function'))}".rstrip()


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def tree_lines(node: Node, depth: int = 0) -> list[str]:
    """The tree for a pipe: a fact a line, two spaces a level."""
    out = ["  " * depth + node.text]
    for each in node.below:
        out.extend(tree_lines(each, depth + 1))
    return out


def drawn(node: Node) -> RenderableType:
    """The tree for a terminal."""
    from rich.text import Text  # noqa: PLC0415 - slow to import, and JSON and pipes do without
    from rich.tree import Tree  # noqa: PLC0415

    def add(to: Tree, each: Node) -> None:
        branch = to.add(Text(each.text, each.style))
        for child in each.below:
            add(branch, child)

    top = Tree(Text(node.text, node.style), guide_style="dim")
    for each in node.below:
        add(top, each)
    return top
