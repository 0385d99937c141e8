"""How do the tests wait for what comes a moment later? They look until it is there."""

import contextlib
import time
from pathlib import Path


def until(found, seconds=60.0):
    """The first thing that is true of what `found` gives."""
    over = time.monotonic() + seconds
    while True:
        value = found()
        if value:
            return value
        assert time.monotonic() < over, found
        time.sleep(0.02)


def lives(pid):
    """Whether a process has not ended."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
