"""Where are the programs of the stack, and how are they got without root? Prometheus, Alertmanager, the OpenTelemetry Collector."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

OTHER_NAMES: Final = {"alertmanager": ("prometheus-alertmanager",), "otelcol": ("otelcol-contrib",)}
"""Debian's, and the distribution's."""
FOLDER: Final = "HOPWATCH_PROMETHEUS"
"""Names a folder with Prometheus's programs, or the root of a small Debian that has them."""
COLLECTOR: Final = "HOPWATCH_OTELCOL"
"""Names the OpenTelemetry Collector's program."""
PACKAGES: Final = ("prometheus", "prometheus-alertmanager")
OLDEST: Final = (2, 42)
"""Of Prometheus: rules that go on firing came with it."""


def find(program: str, more: Sequence[str] = ()) -> str | None:
    """The path of a program; None where it is not installed.

    Args:
        program: `prometheus`, `promtool`, `alertmanager`, `amtool` or `otelcol`.
        more: folders, and roots of small Debians, to look into after the one that HOPWATCH_PROMETHEUS names.
    """
    if program == "otelcol" and os.environ.get(COLLECTOR):
        return shutil.which(os.environ[COLLECTOR])
    places: list[str | None] = []
    for folder in (os.environ.get(FOLDER), *more):
        if folder:
            places += [folder, str(Path(folder, "usr/bin"))]
    places.append(None)
    for name in (program, *OTHER_NAMES.get(program, ())):
        for place in places:
            found: str | None = shutil.which(name, path=place)
            if found is not None:
                return found
    return None


def command(path: str) -> list[str]:
    """How a program is started.

    Debian's Alertmanager reads its templates from /usr/share. Where it is in a root of its own, it gets that root's, in
    a mount namespace of its own: nothing of this machine changes.
    """
    root = Path(path).parent.parent.parent
    if (
        "alertmanager" not in Path(path).name
        or not Path(root, "usr/share/prometheus/alertmanager").is_dir()
        or root == Path("/")
    ):
        return [path]
    with_its_templates = 'mount --rbind "$1/usr/share" /usr/share && shift && exec "$@"'
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *as_root, "--mount", "sh", "-c", with_its_templates, "sh", str(root), path]


def may_start(path: str) -> bool:
    """Whether this machine lets us have the namespace that `command` asks for, if it asks for one."""
    words = command(path)
    if words[0] != "unshare":
        return True
    if shutil.which("unshare") is None:
        return False
    tried = [*words[: words.index("sh")], "true"]
    return subprocess.run(tried, capture_output=True, timeout=30, check=False).returncode == 0  # noqa: S603


def says(path: str, *options: str) -> str:
    """What a program prints and does not go on after, such as its version."""
    done = subprocess.run([path, *options], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    return done.stdout + done.stderr


def too_old(prometheus: str) -> str | None:
    """Its version, where that is one that cannot read our rules."""
    found = re.search(r"version (\d+)\.(\d+)\S*", says(prometheus, "--version"))
    if found is not None and (int(found[1]), int(found[2])) < OLDEST:
        return found[0]
    return None


def takes_otlp(prometheus: str) -> bool:
    """Whether it can be sent metrics by OTLP: Prometheus 3 can, and Debian's is built without."""
    return "web.enable-otlp-receiver" in says(prometheus, "--help")


def install_prometheus(folder: Path) -> list[list[str]]:
    """The commands that put Debian's Prometheus and Alertmanager into a folder, as any user; none where there is no apt-get.

    The packages are unpacked and not installed: nothing of this machine changes.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return []
    unpack = f'apt-get download {" ".join(PACKAGES)} && for each in *.deb; do dpkg-deb -x "$each" . || exit 1; done; rm -f ./*.deb'
    return [["sh", "-c", f'mkdir -p "$1" && cd "$1" && {unpack}', "sh", str(folder)]]


def build_collector(here: Path) -> list[str] | None:
    """The command that builds the OpenTelemetry Collector where that is not done yet, and prints its path; None without Go."""
    builder = here / "otelcol" / "build"
    return [str(builder)] if shutil.which("go") is not None and builder.exists() else None
