"""Is a message three hops also between the two protocols, 0.3 and 1.0, in both directions?

Within one release by the SDK's own layer (`compat/v0_3`), and between two real releases where `HOPWATCH_OTHER_SDK` names the Python of
an environment with the other one.
"""

import os
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from any_release import BINDINGS, ENGINES, OLD, agent, client
from test_engines import MESSAGE, hop, left_behind_of_stream, over, patient, rather_patient, run

from exported import only_cascade, tree, verdict
from hopwatch.demo.run import Cast, agent_environment, launcher, start_collector

PROGRAM = Path(__file__).with_name("two_releases.py")
OTHER = os.environ.get("HOPWATCH_OTHER_SDK", "")


pytestmark = pytest.mark.usefixtures("a2a_instrumented", "empty")
__all__ = ["patient", "rather_patient"]


@pytest.mark.usefixtures("rather_patient")
@pytest.mark.skipif(OLD, reason="ci: may be skipped: 0.3 speaks its own protocol alone")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("streaming", [False, True], ids=["blocking", "streamed"])
def test_a_client_that_speaks_the_older_protocol_to_a_newer_server_is_accounted_for_as_any_other(
    engine, binding, streaming
):
    async def story():
        async with (
            agent(engine=engine, binding=binding, compat=True) as there,
            client(there.url, binding=binding, version="0.3", streaming=streaming) as peer,
        ):
            await peer.send()
            if await over(left_behind_of_stream(engine, binding) if streaming else None):
                return
        hops = only_cascade()
        assert tree(hops) == MESSAGE
        assert hop(hops, "send").task_state == hop(hops, "execution").task_state == "TASK_STATE_COMPLETED"
        assert verdict(hops).verdict == "settled"

    run(story)


@pytest.mark.processes
@pytest.mark.timeout(400)
@pytest.mark.skipif(
    not OTHER, reason="ci: may be skipped: HOPWATCH_OTHER_SDK names no environment with another release"
)
@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("how", ["blocking", "streamed"])
@pytest.mark.parametrize("asker", ["other", "this"])
def test_two_releases_understand_each_other_and_their_cascade_settles_over_both(
    asker, binding, how, tmp_path
):
    here, there = launcher(), [str(Path(OTHER).with_name("opentelemetry-instrument")), OTHER]
    serving, asking = (here, there) if asker == "other" else (there, here)
    left = serving is here and how == "streamed" and left_behind_of_stream(ENGINES[0], binding)
    # What a busy machine holds up is no hop besides; what the SDK leaves behind is known by how long it takes.
    shown = {} if left else {"HOPWATCH_REVEAL_AFTER": "3600"}
    cast = Cast(tmp_path)
    try:
        url = start_collector(cast)

        def start(name, command, *arguments):
            environment = {**os.environ, **agent_environment(name, url), **shown, "HOPWATCH_BLACKBOX": "off"}
            with (tmp_path / f"{name}.log").open("w") as log:
                found = subprocess.Popen(
                    [*command, str(PROGRAM), *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=environment,
                )
            cast.processes[name] = found
            return found

        agent_process = start("agent", serving, "serve", binding)
        where = agent_process.stdout.readline().strip()
        assert where, (tmp_path / "agent.log").read_text()
        asked = start("asker", asking, "ask", where, binding, how)
        answer = asked.stdout.readline()
        assert answer, (tmp_path / "asker.log").read_text()
        assert asked.wait(120) == 0, (tmp_path / "asker.log").read_text()
        wanted = {"settled", "stalled"} if left else {"settled"}
        until = time.monotonic() + 120
        seen = {}
        with httpx.Client(base_url=url, timeout=20) as collector:
            while seen.get("verdict") not in wanted:
                assert time.monotonic() < until, seen
                for each in collector.get("/api/cascades").raise_for_status().json()["cascades"]:
                    seen = collector.get(f"/api/cascades/{each['cascade']}").raise_for_status().json()
                time.sleep(0.1)
        told = sorted((each["agent"], each["kind"]) for each in seen["hops"])
        assert [each for each in told if each != ("agent", "event")] == [
            ("agent", "execution"),
            ("agent", "request"),
            ("asker", "send"),
        ]
    finally:
        for each in cast.processes.values():
            if each.stdin is not None:
                each.stdin.close()
        cast.end()
