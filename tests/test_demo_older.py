"""Does the demo run on a2a-sdk 0.3, in an environment that it makes itself? Where there is no package index, it must say so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.one_python, pytest.mark.processes, pytest.mark.timeout(900)]

CACHE = Path(__file__).parent.parent / ".venv-demo"


def play(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "hopwatch", "demo", "--sdk", "0.3", *arguments],
        capture_output=True,
        text=True,
        timeout=850,
        env={
            **os.environ,
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "asyncio,httpx,starlette,fastapi,asgi",
            "XDG_CACHE_HOME": str(CACHE),
            **environment,
        },
        check=False,
    )


def test_the_same_cascade_settles_on_0_3_with_three_hops_a_message_and_two_a_push():
    done = play("--json")
    outcome = json.loads(done.stdout)
    assert (outcome["verdict"], outcome["problem"]) == ("settled", None), done.stderr[-2000:]
    hops = outcome["cascade"]["hops"]
    # On a busy machine other tasks are told of, too; the demo says so where one of those did not take long.
    hops = [hop for hop in hops if hop["kind"] not in ("task", "event", "lock")]
    kinds = [hop["kind"] for hop in hops]
    assert (kinds.count("send"), kinds.count("request"), kinds.count("execution")) == (3, 3, 3)
    assert kinds.count("push") == kinds.count("webhook") >= 3
    assert len(hops) == 9 + 2 * kinds.count("push")


def test_a_worker_that_hangs_on_0_3_stalls_its_cascade_at_file_and_line():
    outcome = json.loads(play("--fault", "hang", "--json").stdout)
    assert (outcome["verdict"], outcome["problem"]) == ("stalled", None)
    assert "a future `answer` that nobody has set at " in outcome["cascade"]["reason"]
    assert "worker.py:" in outcome["cascade"]["reason"]


def test_without_a_package_index_it_says_what_is_missing_and_leaves_nothing_half_made(tmp_path):
    done = play(
        XDG_CACHE_HOME=str(tmp_path),
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_RETRIES="0",
        PIP_CONFIG_FILE=os.devnull,
    )
    assert done.returncode == 1
    assert "a2a-sdk[http-server]==0.3.26 could not be installed into " in done.stderr
    assert "needs a package index" in done.stderr
    assert "Traceback" not in done.stderr
    assert [each.name for each in (tmp_path / "hopwatch").iterdir() if each.is_dir()] == []


def test_a_fault_of_the_newer_engine_alone_is_refused():
    done = play("--fault", "leak")
    assert done.returncode == 2
    assert "leave --sdk out" in done.stderr
