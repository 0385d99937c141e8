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


def command(program: str) -> list[str]:
    """How it is started; the test is skipped where it is not installed.

    Debian's Alertmanager reads its templates from /usr/share. Where it is in a root of its own, it gets that root's, in
    a mount namespace of its own: nothing of this machine changes.
    """
    path = needs(program)
    root = Path(path).parent.parent.parent
    if (
        program != "alertmanager"
        or not Path(root, "usr/share/prometheus/alertmanager").is_dir()
        or root == Path("/")
    ):
        return [path]
    with_its_templates = 'mount --rbind "$1/usr/share" /usr/share && shift && exec "$@"'
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *as_root, "--mount", "sh", "-c", with_its_templates, "sh", str(root), path]


def needs(program: str) -> str:
    """The same; the test is skipped, by name, where it is not installed."""
    found = find(program)
    if found is None:
        pytest.skip(
            f"Prometheus is not installed: {program} is neither on the path nor under HOPWATCH_PROMETHEUS"
        )
    return found
