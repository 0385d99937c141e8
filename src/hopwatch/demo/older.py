"""Where does the demo run on a2a-sdk 0.3? In an environment of its own, made on first use and kept in the user's cache folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

import hopwatch

RELEASES: Final = {"0.3": "0.3.26"}
"""What `--sdk` may name, and the release that it stands for."""
_BESIDE: Final = (
    "opentelemetry-api", "opentelemetry-sdk", "opentelemetry-instrumentation", "opentelemetry-distro", "opentelemetry-exporter-otlp",
    "opentelemetry-semantic-conventions", "wrapt", "typing-extensions", "starlette", "uvicorn", "httpx", "protobuf",
)  # fmt: skip
"""What is installed in the same versions as here: hopwatch's own needs, and what the agents of the demo are made of."""
PATIENCE: Final = 600.0


class NoEnvironmentError(RuntimeError):
    """The environment cannot be made; the message says why and what to do."""


def folder_of(release: str) -> Path:
    """The folder of the environment with this release of a2a-sdk, for this Python."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache"
    return root / "hopwatch" / f"demo-a2a-sdk-{release}-python{sys.version_info[0]}.{sys.version_info[1]}"


def python_with(release: str) -> Path:
    """The Python of an environment with this release of a2a-sdk, which is made where there is none.

    Raises:
        NoEnvironmentError: it cannot be made: there is no package index, or no room.
    """
    folder = folder_of(release)
    python = folder / "bin" / "python"
    wanted = "\n".join(_wanted(release))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with Path(f"{folder}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two demos at once make one environment
            made = folder / "made-with"
            if not made.exists() or made.read_text() != wanted or not python.exists():
                shutil.rmtree(folder, ignore_errors=True)
                _make(folder, python, wanted.splitlines())
                made.write_text(wanted)
            _put_hopwatch_into(folder)
    except OSError as error:
        raise NoEnvironmentError(
            f"the environment for a2a-sdk {release} cannot be made in {folder}: {error}"
        ) from None
    return python


def _wanted(release: str) -> list[str]:
    """What is installed, as pip has it."""
    found = [f"a2a-sdk[http-server]=={release}"]
    for name in _BESIDE:
        try:
            found.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _make(folder: Path, python: Path, wanted: list[str]) -> None:
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
    ):
        try:
            done = subprocess.run(  # noqa: S603 - our own interpreter
                command,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            reason = f"it took more than {PATIENCE:.0f} s"
        else:
            if done.returncode == 0:
                continue
            lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            reason = lines[-1] if lines else f"{command[2]} ended with {done.returncode}"
        shutil.rmtree(folder, ignore_errors=True)
        raise NoEnvironmentError(
            f"{wanted[0]} could not be installed into {folder}: {reason}. The first run needs a package index that pip can reach; "
            "pip's own settings say which (PIP_INDEX_URL). Later runs need none."
        )


def _put_hopwatch_into(folder: Path) -> None:
    """Have the environment use the hopwatch that runs, and find its instrumentors: a link to the package, and its metadata."""
    (there,) = folder.glob("lib/python*/site-packages")
    link = there / "hopwatch"
    package = Path(hopwatch.__file__).parent
    if not link.is_symlink() or link.readlink() != package:
        link.unlink(missing_ok=True)
        link.symlink_to(package)
    found = metadata.distribution("hopwatch")
    ours = there / f"hopwatch-{found.version}.dist-info"
    says = {name: found.read_text(name) or "" for name in ("METADATA", "entry_points.txt")}
    kept = [*there.glob("hopwatch-*.dist-info")]
    # Agents of another demo may be starting from it just now, and would find no instrumentor while it is away.
    if kept == [ours] and all(
        (ours / name).is_file() and (ours / name).read_text("utf-8") == says[name] for name in says
    ):
        return
    for old in kept:
        shutil.rmtree(old)
    ours.mkdir()
    for name, text in says.items():
        (ours / name).write_text(text, "utf-8")
