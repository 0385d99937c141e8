"""Can processes leave what others look at here, and what have dead ones left? The folder of black boxes and sockets.

It is looked at for `hopwatch doctor`: nothing in it is changed, made or removed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hopwatch import blackbox, inspect_socket, reaping, state_folder
from hopwatch.cli.doctor import Finding, Level
from hopwatch.cli.text import plain
from hopwatch.state_folder import FolderError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hopwatch.blackbox import Box

VARIABLE: Final = state_folder.VARIABLE
MOST_NAMED: Final = 3
"""How many dead processes, or files, are named one by one."""
_UNSET: Final = f"unset {VARIABLE}, or set it to the absolute path of a folder that only you can write to"


class _UnusableError(Exception):
    """Nothing can be left in the folder: why, what to do, and how bad that is."""

    def __init__(self, why: str, remedy: str = _UNSET, *, level: Level = "problem") -> None:
        super().__init__(why)
        self.why, self.remedy, self.level = why, remedy, level


def boxes(environment: Mapping[str, str]) -> Iterator[Finding]:
    """What is to be said of the folder of black boxes that an agent with this environment would use."""
    if not blackbox.POSSIBLE:
        yield _not_kept(
            "this system has no POSIX locks", "run agents on Linux, say, or do without", level="note"
        )
        return
    try:
        folder, exists = _folder(environment)
    except _UnusableError as error:
        yield _not_kept(error.why, error.remedy, level=error.level)
        return
    if not exists:
        yield Finding("ok", "black box", f"the folder {plain(str(folder))} will be made by the first agent")
        return
    found = reaping.lying(folder)
    yield Finding(
        "ok",
        "black box",
        f"the folder {plain(str(folder))} has {_boxes(found.alive)} of processes that live",
    )
    yield from _dead(found, plain(str(folder)))


def sockets(environment: Mapping[str, str]) -> Iterator[Finding]:
    """What is to be said of the folder where an agent with this environment would have its socket."""
    try:
        folder, exists = _folder(environment)
    except _UnusableError as error:
        yield _not_asked(error.why, error.remedy, level=error.level)
        return
    if not exists:
        yield Finding("ok", "socket", f"each agent will have one in {plain(str(folder))}")
        return
    there = [each.name for each in folder.glob("*.sock") if inspect_socket.FILE.fullmatch(each.name)]
    left = sum(inspect_socket.is_left_behind(each) for each in there)
    told = f"{_processes(len(there) - left)} can be asked by `hopwatch ps` in {plain(str(folder))}"
    if left:
        told += f"; of dead ones there {'is' if left == 1 else 'are'} {left}, which the next one removes"
    yield Finding("ok", "socket", told)


def _folder(environment: Mapping[str, str]) -> tuple[Path, bool]:
    """The folder that an agent with this environment would use, and whether it exists already."""
    named, _ = state_folder.named(environment)
    if named is None and environment.get(VARIABLE, "").strip().lower() == "off":
        raise _UnusableError(f"{VARIABLE}=off", level="note")
    if named is None:
        raise _UnusableError("this user has no home folder", level="warning")
    try:
        found = state_folder.checked(named)
    except FolderError as error:
        raise _UnusableError(*_refused(error)) from None
    problem = _cannot_write(Path(named))
    if problem is not None:
        raise _UnusableError(problem)
    return Path(named), found is not None


def _dead(found: reaping.Lying, folder: str) -> Iterator[Finding]:
    lost = [box for box in found.dead if box.hops or box.torn or box.unplaced]
    if lost:
        hops = sum(len(box.hops) for box in lost)
        yield Finding(
            "warning",
            "black box",
            f"{_processes(len(lost))} died with {hops} {'hop' if hops == 1 else 'hops'} open, and nobody has told of it: "
            + _named([_box(box) for box in lost]),
            "tell of it with `hopwatch reap`, or run `hopwatch serve` on this host with the same folder",
        )
    empty = len(found.dead) - len(lost)
    if empty:
        yield Finding(
            "note",
            "black box",
            f"{_processes(empty)} died with nothing open and left a box",
            "`hopwatch reap` removes it, and so does a collector on this host",
        )
    if found.untrusted:
        yield Finding(
            "warning",
            "black box",
            f"{_files(len(found.untrusted))} cannot be trusted: {_named(found.untrusted)}",
            f"look who wrote to {folder}; `hopwatch reap` sets them aside, and so does a collector on this host",
        )
    if found.set_aside:
        yield Finding(
            "note",
            "black box",
            f"{_files(found.set_aside)} that could not be trusted {'was' if found.set_aside == 1 else 'were'} set aside",
            f"look at them, and delete {folder}/{reaping.SET_ASIDE}",
        )
    if found.more:
        yield Finding(
            "warning",
            "black box",
            f"{folder} has more than {reaping.MAX_BOXES} files; only so many were looked at",
            "give the boxes a folder of their own",
        )


def _not_kept(why: str, remedy: str = _UNSET, *, level: Level = "problem") -> Finding:
    return Finding(
        level, "black box", f"{plain(why)}: what an agent has open when it is killed is not told of", remedy
    )


def _not_asked(why: str, remedy: str = _UNSET, *, level: Level = "problem") -> Finding:
    return Finding(level, "socket", f"{plain(why)}: no agent can be asked by `hopwatch ps`", remedy)


def _refused(error: Exception) -> tuple[str, str]:
    """What is wrong with a folder, and what to do."""
    what, _, remedy = str(error).partition("; ")
    return what, plain(remedy) or _UNSET


def _cannot_write(folder: Path) -> str | None:
    """Why nothing can be put into a folder that may not be there yet; None where it can."""
    for each in (folder, *folder.parents):
        try:
            each.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"the folder {folder} cannot be used: {error.strerror or error}"
        if not each.is_dir():
            return f"the folder {folder} cannot be made, for {each} is not a folder"
        if os.access(each, os.W_OK | os.X_OK):
            return None
        return f"the folder {folder} cannot be {'written to' if each == folder else f'made in {each}'}"
    return f"the folder {folder} cannot be made"


def _box(box: Box) -> str:
    return f"{plain(box.agent)} (process {box.pid}, {len(box.hops)} open)"


def _named(each: list[str]) -> str:
    more = f", and {len(each) - MOST_NAMED} more" if len(each) > MOST_NAMED else ""
    return ", ".join(plain(one) for one in each[:MOST_NAMED]) + more


def _boxes(count: int) -> str:
    return f"{count or 'no'} {'box' if count == 1 else 'boxes'}"


def _processes(count: int) -> str:
    return f"{count} {'process' if count == 1 else 'processes'}"


def _files(count: int) -> str:
    return f"{count} {'file' if count == 1 else 'files'}"
