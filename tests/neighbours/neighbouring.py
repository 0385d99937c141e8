"""What do the tests of this folder need that the others do not, and how is it left out where it is not installed?"""

import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NEEDED = ("aiohttp", "elasticotel", "logfire", "requests", "sentry_sdk", "urllib3")
LACKING = [name for name in NEEDED if util.find_spec(name) is None]
marks = [
    pytest.mark.processes,
    pytest.mark.one_python,
    pytest.mark.skipif(
        bool(LACKING),
        reason=f"{', '.join(LACKING)} not installed here; `make neighbours` runs it (ci: may be skipped)",
    ),
]


def environment(**more):
    """The environment of a program that is given nothing of OpenTelemetry's but this."""
    base = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "HOPWATCH_SAMPLING"))
    }
    return {**base, "OTEL_INSTRUMENTATION_A2A_SDK_ENABLED": "false", **more}


def run(program, *arguments, timeout=110, **more):
    """Run a program of this folder, and give what it printed."""
    done = subprocess.run(
        [sys.executable, str(HERE / program), *arguments],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
