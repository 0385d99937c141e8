"""Where does a process leave what others of the same user may look at? One folder, which nobody else can write to."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hopwatch.process import logger

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE: Final = "HOPWATCH_BLACKBOX"
_told: set[str] = set()


class FolderRefusedError(Exception):
    """The folder is not one that only this user can write to; the text says why, and what to do."""


def wanted(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder that the environment names, whether it exists or not.

    Args:
        environment: of this process, or of another one that is asked about.

    Returns:
        `HOPWATCH_BLACKBOX`, else `hopwatch` in `XDG_STATE_HOME` or `~/.local/state`. None where the variable is `off`, or
        where nobody knows a home folder.
    """
    named = environment.get(VARIABLE, "").strip()
    if named.lower() == "off":
        return None
    if named:
        # As the process meant it that was started there; `~` is left to the shell.
        return Path(named) if os.path.isabs(named) else None  # noqa: PTH117 - before it is a path
    state = environment.get("XDG_STATE_HOME", "")
    if os.path.isabs(state):  # noqa: PTH117
        return Path(state) / "hopwatch"
    home = environment.get("HOME", "") if environment is not os.environ else os.path.expanduser("~")  # noqa: PTH111
    return Path(home) / ".local" / "state" / "hopwatch" if os.path.isabs(home) else None  # noqa: PTH117


def checked(folder: Path, owner: int | None = None) -> None:
    """See that a folder is safe to use.

    Args:
        folder: which has to exist.
        owner: user id that it has to belong to; by default this process's.

    Raises:
        FolderRefusedError: it is a symlink, no folder, somebody else's, or others may write to it.
        OSError: it cannot be looked at.
    """
    found = folder.lstat()
    owner = os.geteuid() if owner is None else owner
    if stat.S_ISLNK(found.st_mode):
        problem = "is a symlink"
    elif not stat.S_ISDIR(found.st_mode):
        problem = "is not a folder"
    elif found.st_uid != owner:
        problem = f"belongs to user {found.st_uid}, not to {owner}"
    elif found.st_mode & 0o022:
        problem = f"can be written to by others (mode {stat.S_IMODE(found.st_mode):04o})"
    else:
        return
    raise FolderRefusedError(f"{folder} {problem}; name another folder in {VARIABLE}, or off")


def state_folder() -> Path | None:
    """This process's folder, made with mode 0700 where it does not exist.

    Returns:
        None where it is switched off, cannot be made, or is refused. The log says so, once for each folder.
    """
    folder = None
    try:
        folder = wanted()
        if folder is None or not hasattr(os, "geteuid"):
            named = os.environ.get(VARIABLE, "").strip()
            if named and named.lower() != "off":
                raise FolderRefusedError(f"{VARIABLE} is {named!r}, which is no absolute path")  # noqa: TRY301
            return None
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        checked(folder)
    except (OSError, FolderRefusedError) as error:
        if str(folder) not in _told:
            _told.add(str(folder))
            logger.warning("hopwatch: nothing can be left for others to look at: %s.", error)
        return None
    return folder
