"""Which releases of the libraries run hopwatch's stories, on which Python? An environment for each, and the tables from what came of it.

    make matrix                                    all of it, and docs/compatibility.md anew
    make matrix MATRIX="-t thin"                   what CI runs: three releases on this Python, and nothing is written
    make matrix MATRIX="-s a2a-sdk-1.1.5-py3.12"   one of it; `.venv/bin/nox --list` names all
    make matrix MATRIX="-s tables"                 the tables from what the last runs left, without running anything

Nox is run with the Python of the tests' environment, which has hopwatch, and keeps the others in `.nox`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

import pythons
import tables

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.tags = ["matrix"]

HERE = "{}.{}".format(*sys.version_info)
PYTEST = ("pytest", "pytest-timeout", "pytest-xdist")
NEEDS = {
    "a2a-sdk": ("a2a-sdk[grpc,http-server,postgresql,sqlite]", "uvloop", *PYTEST),
    "agent-client-protocol": ("agent-client-protocol", "httpx[http2]", "hypothesis", "websockets", *PYTEST),
}
"""What an environment has besides hopwatch; the first is the library."""
WITHOUT_DATABASES = "--ignore=tests/sdk/test_stores.py"
"""They take half of the time, and `make test` has them with the newest release."""
_older: dict[str, str] = {}
"""By version of Python, the one of the environment whose agents those of another release speak with."""


def install(session: nox.Session, library: str, release: str) -> None:
    """Install a release of a library beside hopwatch; the rest is as pinned."""
    pins = Path(session.create_tmp()) / "constraints.txt"
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins.write_text("\n".join(line for line in lines if not line.startswith(f"{library}==")))
    first, *others = NEEDS[library]
    session.install("-q", "-c", str(pins), f"{first}=={release}", *others, "-e", f"{ROOT}[collector,otlp]")


def new_report(name: str) -> Path:
    """Where a session is about to leave its report; what an earlier run left there is gone."""
    report = tables.report(name)
    report.parent.mkdir(exist_ok=True)
    report.unlink(missing_ok=True)
    return report


def with_older(where: str, version: str, python: str) -> None:
    """Add the session that makes the environment of the older release."""

    def make(session: nox.Session) -> None:
        """Make the environment with the older engine whose agents those of another release speak with."""
        install(session, "a2a-sdk", tables.OLDER)
        _older[version] = str(Path(session.bin) / "python")

    nox.session(make, name=f"older-{where}", python=python, default=False)


def with_stories(run: tables.Run, where: str, python: str, tag: str, *options: str) -> None:
    """Add the session that runs the stories with one release of a library on one Python."""
    name = f"{run.library}-{run.release}-{where}"
    # Agents of each release of a2a-sdk are tried together with those of the older one.
    with_another = run.library == "a2a-sdk" and run.release != tables.OLDER

    def play(session: nox.Session) -> None:
        """Run the stories with this release, on this Python."""
        report = new_report(name)
        install(session, run.library, run.release)
        session.run(
            *("pytest", "-q", "-n", "2", "--maxfail", "20", "--timeout", "180", "-W", "default"),
            *("-p", "no:cacheprovider", f"--junitxml={report}", tables.STORIES[run.library].folder, *options),
            env={"HOPWATCH_OTHER_SDK": _older[run.python]} if with_another else {},
            silent=True,
        )

    requires = [f"older-{where}"] if with_another else []
    nox.session(play, name=name, python=python, tags=[tag], requires=requires)


def with_rows(name: str, extra: str, *options: str) -> None:
    """Add a session that runs the tests that stand for a row of what else hopwatch was run with."""

    def play(session: nox.Session) -> None:
        """Run the tests that stand for a row of what else hopwatch was run with."""
        report = new_report(name)
        session.install("-q", "-c", "constraints.txt", "-e", f".[{extra}]")
        session.run(
            *("pytest", "-q", "-m", "row", "-n", "3", "--dist", "worksteal", "-p", "no:cacheprovider"),
            *(f"--junitxml={report}", *options),
            silent=True,
        )

    nox.session(play, name=name, python=found[tables.MAIN], tags=["matrix"])


found = {version: pythons.where(version) or version for version in (tables.MAIN, *tables.OTHERS)}
"""Where each Python is; nox leaves out what is to run on one that is not here, and says so."""
for version, python in found.items():
    with_older(f"py{version}", version, python)
for each in tables.PLAN:
    with_stories(each, f"py{each.python}", found[each.python], "matrix")

with_older("here", HERE, sys.executable)
for library, release, options in (
    ("a2a-sdk", tables.OLDER, [WITHOUT_DATABASES]),
    ("a2a-sdk", "1.0.0", [WITHOUT_DATABASES]),
    ("agent-client-protocol", "0.8.1", []),
):
    with_stories(tables.Run(library, release, HERE), "here", sys.executable, "thin", *options)

with_rows("rows", "test", "--ignore=tests/neighbours", "tests")
# Some of them act as soon as they are installed.
with_rows("rows-neighbours", "neighbours", "tests/neighbours")


@nox.session(name="tables", python=False, tags=["matrix"])
def write(session: nox.Session) -> None:
    """Write the tables of docs/compatibility.md from what the runs left."""
    session.run(sys.executable, "tests/tables.py")
