"""Where does a process leave what others of the same user may look at? One folder, which nobody else can write to."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE: Final = "HOPWATCH_BLACKBOX"


class FolderError(ValueError):
    """The folder cannot be used, or is not one that only this user can write to; the text says why, and what to do."""


def named(environment: Mapping[str, str] = os.environ) -> tuple[str | None, str | None]:
    """The folder that an environment names, whether it exists or not.

    Args:
        environment: of this process, or of another one that is asked about.

    Returns:
        The folder: `HOPWATCH_BLACKBOX`, else `hopwatch` in `XDG_STATE_HOME` or `~/.local/state`; None where the variable is
        `off`, or where nobody knows a home folder. And what is wrong with the variable, if it is: the default holds then.
    """
    said = environment.get(VARIABLE, "").strip()
    problem = None
    if said.lower() == "off":
        return None, None
    if said:
        path = _at_home(said, environment)
        if os.path.isabs(path):  # noqa: PTH117 - it is a text here
            return path, None
        problem = f"{VARIABLE} is {said!r}; it is the absolute path of a folder, or off. The default is used"
    state = environment.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # noqa: PTH117
        state = _at_home("~/.local/state", environment)
    return (os.path.join(state, "hopwatch") if os.path.isabs(state) else None), problem  # noqa: PTH117, PTH118


def _at_home(path: str, environment: Mapping[str, str]) -> str:
    home = environment.get("HOME", "")
    if home and (path == "~" or path.startswith("~/")):  # of that environment, which may be another user's
        return home.rstrip("/") + path[1:]
    return os.path.expanduser(path)  # noqa: PTH111 - pathlib's raises where there is no home


def checked(folder: str | Path, *, owner: int | None = None, make: bool = False) -> Path | None:
    """The folder, if it is one that only its owner can have put something into.

    Args:
        folder: its path.
        owner: user id that it has to belong to; by default this process's.
        make: whether to make it, with mode 0700, and those above it, where it does not exist.

    Returns:
        The path; None where it does not exist.

    Raises:
        FolderError: it is a symbolic link, no folder, another user's, writable by others, or cannot be used.
    """
    path = Path(folder)
    owner = os.geteuid() if owner is None else owner
    try:
        if make:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700, parents=True)
        found = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FolderError(f"the folder {folder} cannot be used: {error.strerror or error}") from None
    another = f"name another one in {VARIABLE}"
    if not stat.S_ISDIR(found.st_mode):
        raise FolderError(f"{folder} is not a folder, or is a symbolic link; {another}")
    if found.st_uid != owner:
        raise FolderError(f"the folder {folder} belongs to user {found.st_uid}, not to {owner}; {another}")
    if found.st_mode & 0o022:
        mode = f"mode {stat.S_IMODE(found.st_mode):04o}"
        raise FolderError(
            f"the folder {folder} can be written to by others ({mode}); `chmod go-w` it, if it is yours alone, or {another}"
        )
    return path
