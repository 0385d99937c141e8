"""What of the Agent Client Protocol's SDK is wrapped, from which release to which, and what does an installed release not have?

As `a2a_seams` is for the A2A SDK: the table says nothing of how, and is read without importing the library.
"""

from __future__ import annotations

import functools
from importlib import metadata, util
from pathlib import Path
from typing import Final

from hopwatch.instrumentation import a2a_seams
from hopwatch.instrumentation.a2a_seams import Release, Seam, release_of

DISTRIBUTION: Final = "agent-client-protocol"

FIRST: Final[Release] = (0, 8, 1)
"""The oldest release that is tested."""
TESTED: Final = ("0.8.1", "0.10.1", "0.11.1", "0.12.1")
"""The releases that `make matrix` runs the stories of `tests/acp` with."""
V12: Final[Release] = (0, 12)
"""From here on a connection has transports, and makes a task for each message itself; before, a dispatcher did."""


SEAMS: Final[tuple[Seam, ...]] = (
    # Messages sent, and what comes back.
    Seam("send", "acp.connection", "Connection", "send_request", "ask"),
    Seam("send", "acp.connection", "Connection", "send_notification", "notify"),
    Seam("send", "acp.connection", "Connection", "_handle_response", "answer"),
    # Messages served. Before 0.12 a connection binds the first two when it is made.
    Seam("request", "acp.connection", "Connection", "_run_request", "serve"),
    Seam("request", "acp.connection", "Connection", "_run_notification", "serve_notification"),
    # Where a message has come, and stands in the dispatcher's queue.
    Seam("request", "acp.connection", "Connection", "_process_message", "process", before=V12),
    Seam("request", "acp.router", "MessageRouter", "__call__", "route"),
    # Where the answer stands before it goes out.
    Seam("request", "acp.task.sender", "MessageSender", "send", "respond", before=V12),
    Seam("request", "acp.connection", "Connection", "_execute_request", "execute", V12),
    # Who owns a connection, and whether anybody still does.
    Seam("loop", "acp.connection", "Connection", "_receive_loop", "receive"),
    Seam("loop", "acp.connection", "Connection", "close", "close"),
    Seam("loop", "acp.task.sender", "MessageSender", "__init__", "sender"),
)


def modules() -> list[str]:
    """The modules that have any of it, each once."""
    return list(dict.fromkeys(seam.module for seam in SEAMS))


@functools.lru_cache(maxsize=1)
def installed() -> Release:
    """The release that this Python has; empty where that is not known, and then every seam is looked for."""
    try:
        return release_of(metadata.version(DISTRIBUTION))
    except Exception:  # noqa: BLE001 - broken metadata is no reason to instrument nothing
        return ()


def folder() -> Path | None:
    """Where the sources of the SDK lie that this Python would import; None where there are none. Nothing is imported."""
    found = util.find_spec("acp")
    places = list(found.submodule_search_locations or ()) if found is not None else []
    return Path(places[0]).parent if places else None


def missing(folder: Path, release: Release) -> list[Seam]:
    """The seams that a release ought to have and has not, read from its sources.

    Args:
        folder: where the package `acp` lies.
        release: its release.
    """
    return a2a_seams.missing(folder, release, SEAMS)
