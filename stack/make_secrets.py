"""Where do the stack's token and passwords come from? Makes each where there is none yet: make_secrets.py FOLDER NAME...

Only the standard library: it runs in a container before anything else, and for `make stack`. It prints no secret.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Final

MODE: Final = 0o640
"""For the owner, and for those who are put into the owner's group: Prometheus, Grafana, the OpenTelemetry Collector."""


def make(folder: Path, name: str) -> bool:
    """Make a secret, whole or not at all.

    Args:
        folder: exists, and is writable.
        name: of the file.

    Returns:
        Whether there was none.
    """
    path = folder / name
    if path.exists():
        return False
    # Nobody who can write to the folder can have put a link there.
    unfinished = folder / f".{name}.{secrets.token_hex(8)}"
    opened = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(opened, "w", encoding="ascii") as file:
        # Not digits alone: a YAML reader that is given the bare word must not take it for a number.
        file.write(f"hopwatch-{secrets.token_hex(32)}")
        os.fchmod(file.fileno(), MODE)
    unfinished.rename(path)
    return True


def main(folder: str, *names: str) -> int:
    """Make those that are missing, and say which."""
    for name in names:
        made = make(Path(folder), name)
        print(f"{Path(folder) / name}: {'made' if made else 'there already'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
