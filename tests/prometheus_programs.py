"""Where are Prometheus's programs? On the path, or in the folder that HOPWATCH_PROMETHEUS names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

OTHER_NAMES = {"alertmanager": ("prometheus-alertmanager",)}
"""Debian's."""


def find(program: str) -> str | None:
    """The path of `prometheus`, `promtool`, `alertmanager` or `amtool`; None where it is not installed."""
    folder = os.environ.get("HOPWATCH_PROMETHEUS")
    for name in (program, *OTHER_NAMES.get(program, ())):
        for place in (folder, *((str(Path(folder, "usr/bin")),) if folder else ()), None):
            found = shutil.which(name, path=place)
            if found is not None:
                return found
    return None


def needs(program: str) -> str:
    """The same; the test is skipped, by name, where it is not installed."""
    found = find(program)
    if found is None:
        pytest.skip(
            f"Prometheus is not installed: {program} is neither on the path nor under HOPWATCH_PROMETHEUS"
        )
    return found
