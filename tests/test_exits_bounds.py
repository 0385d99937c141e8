"""How long is a process held up at its end, what does it write, and whom does it leave alone?"""

import contextlib
import json
import signal
import socket
import subprocess
import sys

import pytest

from collector.telling import collector
from ways_out import PRELUDE, SIGTERM, agents_called, cascades_of, play, started, until_ready

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

LEAVES_ONE = """
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(forever()))
        await asyncio.sleep(0.01)
run(main())
"""
LEAVES_NOTHING = """
async def main():
    with cascade("root"):
        await asyncio.sleep(0.01)
run(main())
"""
OWN_PROVIDER = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor

class Exporter(SpanExporter):
    def export(self, spans):
        if hangs:
            time.sleep(60)
        with open(sys.argv[1], "a") as file:
            for span in spans:
                file.write(f"{span.name} {span.attributes.get('hopwatch.hop.outcome', 'finished')}\\n")
        return SpanExportResult.SUCCESS
    def force_flush(self, timeout_millis=0):
        return True

def provide():
    trace.set_tracer_provider(provider := TracerProvider(shutdown_on_exit=not hangs))
    provider.add_span_processor(BatchSpanProcessor(Exporter()))

hangs = False
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with collector(tmp_path_factory.mktemp("bounds") / "store.sqlite") as found:
        found.url = f"http://127.0.0.1:{found.port}"
        yield found


def written(folder, source):
    path = folder / "program.py"
    path.write_text(PRELUDE + source)
    return path


@pytest.mark.parametrize(
    ("program", "timeout", "least", "most"),
    # The exporter hangs for a minute. A machine that is busy takes its time over the rest.
    [(LEAVES_ONE, "1", 0.9, 20), (LEAVES_NOTHING, "30", 0, 20), (LEAVES_ONE, "0", 0, 20)],
    ids=["something was pending", "nothing was pending", "no time at all"],
)
def test_an_exporter_that_hangs_holds_the_end_up_no_longer_than_it_may(
    program, timeout, least, most, tmp_path
):
    path = written(
        tmp_path,
        # What is registered first runs last: after hopwatch's own.
        "atexit.register(lambda: print('held up', time.monotonic() - kept[-1]))\n"
        + OWN_PROVIDER
        + "hangs = True\nprovide()\nAsyncioInstrumentor().instrument()\n"
        + program
        + "kept.append(time.monotonic())\n",
    )
    ended = play(path, "asyncio", str(tmp_path / "spans"), launcher=False, HOPWATCH_SHUTDOWN_TIMEOUT=timeout)
    assert ended.code == 0, ended.err
    held_up = float(ended.out.split("held up ")[1])
    assert least <= held_up <= most


def test_a_collector_that_cannot_be_reached_holds_sigterm_up_no_longer_than_it_may(tmp_path):
    path = written(
        tmp_path,
        """
async def main():
    with cascade("root"):
        ready()
        await forever()
run(main())
""",
    )
    with socket.socket() as deaf:  # it takes connections and never answers
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(16)
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        ended = play(path, "asyncio", sends=SIGTERM, url=url, HOPWATCH_SHUTDOWN_TIMEOUT="0.5")
    assert ended.code == -SIGTERM
    assert ended.seconds < 40  # the exporter alone would wait for 60 s


def test_a_provider_that_the_application_makes_after_the_first_hop_gets_the_report_before_its_shutdown(
    tmp_path,
):
    path = written(
        tmp_path,
        OWN_PROVIDER
        + """
AsyncioInstrumentor().instrument()
async def first():
    with cascade("first"):
        await asyncio.sleep(0.01)
run(first())
provide()
"""
        + LEAVES_ONE.replace(
            "run(main())", "loop = new_event_loop()\nloop.run_until_complete(main())\nloop.close()"
        ),
    )
    spans = tmp_path / "spans"
    ended = play(path, "asyncio", str(spans), launcher=False)
    assert ended.code == 0, ended.err
    assert sorted(spans.read_text().splitlines()) == [
        "forever abandoned",
        "hopwatch.shutdown finished",
        "root finished",
    ]


def test_the_report_names_all_that_was_pending_and_the_last_way_out(running, tmp_path):
    report = tmp_path / "report.json"
    path = written(
        tmp_path,
        """
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(forever()))
        await asyncio.sleep(0.01)
run(main())
async def second():
    with cascade("second"):
        ready()
        await forever()
run(second())
""",
    )
    ended = play(path, "asyncio", url=running.url, sends=SIGTERM, HOPWATCH_REPORT=str(report))
    assert ended.code == -SIGTERM
    told = json.loads(report.read_text())
    assert list(told) == ["ended", "pid", "agent", "instance", "pending"]
    assert (told["ended"], told["agent"]) == ("SIGTERM", ended.name)
    assert [each["name"] for each in told["pending"]] == ["forever", "second"]
    assert list(told["pending"][0]) == ["kind", "name", "id", "cascade", "location", "waits_on", "reason"]
    assert told["pending"][0]["waits_on"]["kind"] == "future"
    assert told["pending"][0]["location"].startswith(f"{path}:")
    (agent,) = agents_called(running, ended.name)
    assert agent["instance"] == told["instance"]
    assert agent["ended"]["pending"] == {"task": 2}
    assert sorted(tmp_path.iterdir()) == sorted([path, report])


def test_a_program_without_any_hop_reports_that_nothing_was_pending(tmp_path):
    report = tmp_path / "report.json"
    path = written(tmp_path, "print('no hop')\n")
    ended = play(
        path, "asyncio", OTEL_TRACES_EXPORTER="none", OTEL_LOGS_EXPORTER="none", HOPWATCH_REPORT=str(report)
    )
    assert (ended.code, ended.out) == (0, "no hop\n")
    told = json.loads(report.read_text())
    assert (told["ended"], told["pending"]) == ("exit", [])


def test_a_report_that_cannot_be_written_disturbs_nobody(tmp_path):
    path = written(tmp_path, LEAVES_NOTHING)
    ended = play(
        path,
        "asyncio",
        OTEL_TRACES_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
        HOPWATCH_REPORT=str(tmp_path / "no" / "such"),
    )
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize("signals", ["off", "on"])
def test_signals_are_left_alone_where_somebody_says_so(signals, tmp_path):
    path = written(
        tmp_path,
        """
import _signal
before = _signal.getsignal(signal.SIGTERM)
async def main():
    with cascade("root"):
        print(before == _signal.SIG_DFL, _signal.getsignal(signal.SIGTERM) == _signal.SIG_DFL, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
run(main())
""",
    )
    ended = play(
        path, "asyncio", OTEL_TRACES_EXPORTER="none", OTEL_LOGS_EXPORTER="none", HOPWATCH_SIGNALS=signals
    )
    assert ended.out == {"off": "True True True\n", "on": "False False True\n"}[signals]


def test_uninstrument_gives_the_signal_back(tmp_path):
    path = written(
        tmp_path,
        """
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
import _signal
before = _signal.getsignal(signal.SIGTERM), signal.getsignal, os.execv, asyncio.runners._cancel_all_tasks, asyncio.BaseEventLoop.close
AsyncioInstrumentor().instrument()
assert _signal.getsignal(signal.SIGTERM) is not before[0]
assert os.execv is not before[2]
AsyncioInstrumentor().uninstrument()
after = _signal.getsignal(signal.SIGTERM), signal.getsignal, os.execv, asyncio.runners._cancel_all_tasks, asyncio.BaseEventLoop.close
print(after == before)
""",
    )
    assert play(path, "asyncio", launcher=False).out == "True\n"


def test_very_many_pending_tasks_are_told_of_within_the_bound_and_never_settled(running, tmp_path):
    path = written(
        tmp_path,
        """
async def main():
    with cascade("root"):
        kept.extend(asyncio.create_task(forever()) for _ in range(5_000))
        await asyncio.sleep(0.05)
    ready()
    await forever()
run(main())
""",
    )
    # A machine that is busy needs more than the usual 3 s for all of them.
    ended = play(path, "asyncio", url=running.url, sends=SIGTERM, HOPWATCH_SHUTDOWN_TIMEOUT="30")
    assert ended.code == -SIGTERM
    assert ended.err == ""
    assert ended.seconds < 60
    (cascade,) = cascades_of(running, ended.name)
    assert cascade["verdict"] == "broken"
    lost = [hop for hop in cascade["hops"] if hop["outcome"] == "abandoned"]
    assert 500 <= len(lost) <= 5_000


def test_a_swallowed_cancellation_at_the_end_is_on_the_hop(running, tmp_path):
    path = written(
        tmp_path,
        """
async def stubborn():
    try:
        await forever()
    except asyncio.CancelledError:
        pass
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(stubborn()))
        await asyncio.sleep(0.01)
run(main())
""",
    )
    ended = play(path, "asyncio", url=running.url)
    (cascade,) = cascades_of(running, ended.name)
    told = {hop["name"]: (hop["outcome"], hop["attributes"]) for hop in cascade["hops"]}
    if sys.version_info >= (3, 11):
        outcome, attributes = told["stubborn"]
        assert (outcome, attributes["hopwatch.hop.swallowed_cancellation"]) == ("finished", True)
    else:
        assert set(told) == {"root"}


def test_a_task_that_outlives_its_cancellation_is_told_of_once(running, tmp_path):
    if sys.version_info < (3, 11):
        pytest.skip("Task.cancelling came with Python 3.11; ci: may be skipped")
    path = written(
        tmp_path,
        """
from hopwatch import attributes, process
def told():
    hops = process.here().ledger.open_hops()
    return any(hop.name == "stubborn" and attributes.OUTLIVED in (hop.attributes or ()) for hop in hops)
async def stubborn():
    try:
        await forever()
    except asyncio.CancelledError:
        until = time.monotonic() + 60
        while not told() and time.monotonic() < until:
            await asyncio.sleep(0.05)
async def main():
    with cascade("root"):
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0.2)
        task.cancel()
        await task
run(main())
""",
    )
    ended = play(path, "asyncio", url=running.url, HOPWATCH_REVEAL_AFTER="0.1")
    (cascade,) = cascades_of(running, ended.name)
    (hop,) = [hop for hop in cascade["hops"] if hop["name"] == "stubborn"]
    assert hop["outcome"] == "finished"
    assert hop["attributes"]["hopwatch.hop.outlived_cancellation"] is True
    assert hop["attributes"]["hopwatch.hop.swallowed_cancellation"] is True
    assert cascade["verdict"] == "settled"


def test_a_drain_at_the_end_of_the_runner_lets_what_is_left_finish(running, tmp_path):
    path = written(
        tmp_path,
        """
async def late():
    await asyncio.sleep(0.1)
async def work():
    await asyncio.sleep(float(sys.argv[1]))
    kept.append(asyncio.create_task(late()))
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(work()))
        await asyncio.sleep(0.01)
run(main())
""",
    )
    ended = play(
        path, "asyncio", "0.2", url=running.url, HOPWATCH_DRAIN="120"
    )  # it does not take as long as that
    (cascade,) = cascades_of(running, ended.name)
    assert cascade["verdict"] == "settled", cascade["reason"]
    ended = play(path, "asyncio", "600", url=running.url, HOPWATCH_DRAIN="0.05")
    (cascade,) = cascades_of(running, ended.name)
    assert cascade["verdict"] == "broken"


def test_ctrl_c_ends_a_drain_and_the_program(running, tmp_path):
    path = written(
        tmp_path,
        """
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(forever()))
        await asyncio.sleep(0.01)
    asyncio.get_running_loop().call_later(0.3, ready)
run(main())
""",
    )
    with started(path, "asyncio", url=running.url, HOPWATCH_DRAIN="200") as process:
        until_ready(process)
        process.send_signal(2)
        process.communicate(timeout=100)
    assert process.returncode == -2
    (cascade,) = cascades_of(running, process.agent)
    assert cascade["verdict"] == "broken"


def test_ctrl_c_while_the_report_is_under_way_gives_it_up_without_a_word(tmp_path):
    path = written(
        tmp_path,
        OWN_PROVIDER
        + "hangs = True\nprovide()\nAsyncioInstrumentor().instrument()\n"
        + LEAVES_ONE
        + "atexit.register(ready)\n",  # runs first, and hopwatch's own next
    )
    with started(
        path, "asyncio", str(tmp_path / "spans"), launcher=False, HOPWATCH_SHUTDOWN_TIMEOUT="200"
    ) as process:
        until_ready(process)
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        said = process.stderr.read()
    assert "_at_exit" not in said, said
