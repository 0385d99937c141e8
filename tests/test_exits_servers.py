"""A server is told to end while it works: what becomes of its requests, of its streams and of its workers?

The servers are real, and get a real signal. Each runs bare and with hopwatch and must end in the same way.
"""

import contextlib
import http.client
import socket
import subprocess
import sys
import time

import pytest

from collector.telling import collector
from hopwatch.demo.run import free_ports
from ways_out import PRELUDE, SIGINT, SIGTERM, agents_called, cascades_of, play, started, until_ready

pytestmark = [pytest.mark.processes, pytest.mark.timeout(400)]
TERM = "pending at shutdown: SIGTERM"

APP = (
    PRELUDE
    + """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

async def work():
    await asyncio.sleep(60)

async def answer(request):
    with cascade("answered"):
        kept.append(asyncio.create_task(work()))
    return PlainTextResponse(str(os.getpid()))

async def who(request):
    return PlainTextResponse(str(os.getpid()))

async def stream(request):
    async def lines():
        with cascade("stream"):
            yield b"first\\n"
            await forever()
    return StreamingResponse(lines())

app = Starlette(routes=[Route("/", answer), Route("/stream", stream), Route("/who", who)])
"""
)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with collector(tmp_path_factory.mktemp("servers") / "store.sqlite") as found:
        found.url = f"http://127.0.0.1:{found.port}"
        yield found


def ask(port, path="/", *, whole=True, within=60):
    """Ask once the server answers; returns the first line, and the connection where not all is read."""
    until = time.monotonic() + within
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", path, headers={"connection": "close"})
            answer = connection.getresponse()
            break
        except OSError:
            connection.close()
            assert time.monotonic() < until
            time.sleep(0.05)
    line = answer.readline().decode().strip()
    if whole:
        connection.close()
        return line
    return line, connection


def serve_and_end(path, loop, port, *, stream, url=None, sends=SIGTERM, workers=1, **how):
    """Start the server, ask it for something, send it a signal; returns its exit code, its name and its errors."""
    with contextlib.ExitStack() as stack, started(path, loop, url=url, **how) as process:
        # gunicorn loses a signal for a worker that it has just forked, with or without hopwatch: all of them shall serve.
        until = time.monotonic() + 100
        there = set()
        while len(there) < workers:
            assert time.monotonic() < until, there
            there.add(ask(port, "/who"))
        assert ask(port)
        if stream:
            line, connection = ask(port, "/stream", whole=False)
            stack.callback(connection.close)
            assert line == "first"
        process.send_signal(sends)
        _, err = process.communicate(timeout=100)
        return process.returncode, process.agent, err


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("stream", "graceful"),
    [(False, None), (True, 1)],
    ids=["graceful without a timeout", "a stream is open and the time for it is limited"],
)
def test_uvicorn_ends_by_sigterm_with_its_own_exit_code_and_all_is_told(
    loop, stream, graceful, running, tmp_path
):
    path = tmp_path / "server.py"
    (port,) = free_ports(1)
    path.write_text(
        APP
        + f"\nimport uvicorn\nuvicorn.run(app, port={port}, log_level='error', loop={loop!r}, timeout_graceful_shutdown={graceful})\n"
    )
    bare = serve_and_end(path, loop, port, stream=stream, hopwatched=False)
    code, agent, err = serve_and_end(path, loop, port, stream=stream, url=running.url)
    assert code == bare[0] == -SIGTERM, (err, bare)
    cascades = cascades_of(running, agent, count=2 if stream else 1)
    assert {cascade["verdict"] for cascade in cascades} <= {"broken", "settled"}
    hops = {hop["name"]: hop for cascade in cascades for hop in cascade["hops"]}
    assert hops["work"]["outcome"] == "abandoned"
    assert hops["work"]["reason"].startswith(TERM)
    if stream:
        assert hops["stream"]["outcome"] in ("cancelled", "abandoned")
    (process,) = agents_called(running, agent)
    assert process["ended"]["how"] == "SIGTERM"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_uvicorn_ends_by_ctrl_c_and_all_is_told(loop, running, tmp_path):
    path = tmp_path / "server.py"
    (port,) = free_ports(1)
    path.write_text(
        APP + f"\nimport uvicorn\nuvicorn.run(app, port={port}, log_level='error', loop={loop!r})\n"
    )
    bare = serve_and_end(path, loop, port, stream=False, sends=SIGINT, hopwatched=False)
    code, agent, err = serve_and_end(path, loop, port, stream=False, sends=SIGINT, url=running.url)
    assert code == bare[0], err
    (cascade,) = cascades_of(running, agent)
    assert cascade["verdict"] == "broken"
    (work,) = [hop for hop in cascade["hops"] if hop["name"] == "work"]
    assert work["reason"].startswith("pending at shutdown")
    (process,) = agents_called(running, agent)
    assert process["ended"]["pending"] == {"task": 1}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_hypercorn_ends_by_sigterm_and_all_is_told(loop, running, tmp_path):
    pytest.importorskip("hypercorn", reason="hypercorn is not installed; ci: may be skipped")
    path = tmp_path / "server.py"
    (port,) = free_ports(1)
    path.write_text(
        APP
        + f"""
from hypercorn.config import Config
from hypercorn.run import run as hypercorn_run
config = Config()
config.bind = ["127.0.0.1:{port}"]
config.worker_class = {loop!r}
config.workers = 0
config.loglevel = "ERROR"
config.graceful_timeout = 1
config.application_path = "server:app"
sys.path.insert(0, {str(tmp_path)!r})
if __name__ == "__main__":
    hypercorn_run(config)
"""
    )
    bare = serve_and_end(path, loop, port, stream=False, hopwatched=False)
    code, agent, err = serve_and_end(path, loop, port, stream=False, url=running.url)
    assert code == bare[0], err
    (cascade,) = cascades_of(running, agent)
    assert cascade["verdict"] == "broken"


def test_gunicorn_workers_tell_of_their_own(running, tmp_path):
    pytest.importorskip("gunicorn", reason="gunicorn is not installed; ci: may be skipped")
    pytest.importorskip("uvicorn_worker", reason="uvicorn-worker is not installed; ci: may be skipped")
    path = tmp_path / "server.py"
    (port,) = free_ports(1)
    path.write_text(
        APP
        + f"""
from gunicorn.app.wsgiapp import WSGIApplication
sys.argv = ["gunicorn", "-k", "uvicorn_worker.UvicornWorker", "-w", "2", "-t", "200", "-b", "127.0.0.1:{port}", "--log-level", "error", "server:app"]
sys.path.insert(0, {str(tmp_path)!r})
if __name__ == "__main__":
    WSGIApplication("").run()
"""
    )
    bare = serve_and_end(path, "asyncio", port, stream=False, workers=2, hopwatched=False)
    code, agent, err = serve_and_end(path, "asyncio", port, stream=False, workers=2, url=running.url)
    assert code == bare[0], err
    (cascade,) = cascades_of(running, agent)
    assert cascade["verdict"] == "broken"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_grpc_server_that_gets_sigterm_tells_of_the_call_it_served(loop, running, tmp_path):
    grpc = pytest.importorskip("grpc")
    path = tmp_path / "server.py"
    (port,) = free_ports(1)
    path.write_text(
        PRELUDE
        + f"""
import grpc

async def call(request, context):
    with cascade("call"):
        ready()
        await forever()

async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {{
        "C": grpc.unary_unary_rpc_method_handler(call)}}),))
    server.add_insecure_port("127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()

run(main())
"""
    )
    ended = []
    for url in (None, running.url):
        with started(path, loop, url=url, hopwatched=url is not None) as process:
            channel = grpc.insecure_channel(f"127.0.0.1:{port}")
            answer = channel.unary_unary("/a.B/C").future(b"", wait_for_ready=True, timeout=100)
            until_ready(process)
            process.send_signal(SIGTERM)
            _, err = process.communicate(timeout=100)
            with contextlib.suppress(grpc.RpcError):
                answer.result()
            channel.close()
            ended.append((process.returncode, process.agent, err))
    assert ended[0][0] == ended[1][0] == -SIGTERM, ended
    (cascade,) = cascades_of(running, ended[1][1])
    assert cascade["verdict"] == "broken"
    assert {hop["name"]: hop["reason"][: len(TERM)] for hop in cascade["hops"]} == {"call": TERM}


def test_each_worker_of_uvicorn_tells_of_its_own(running, tmp_path):
    path = tmp_path / "workers_app.py"
    path.write_text(
        APP
        + """
if __name__ == "__main__":
    import uvicorn
    uvicorn.run("workers_app:app", port=int(sys.argv[1]), log_level="error", workers=2, timeout_worker_healthcheck=100)
"""
    )
    (port,) = free_ports(1)
    with started(path, "asyncio", str(port), url=running.url) as process:
        agent = process.agent
        pids = set()
        until = time.monotonic() + 100
        while len(pids) < 2 and time.monotonic() < until:
            pids.add(int(ask(port)))
        process.send_signal(SIGTERM)
        _, err = process.communicate(timeout=100)
    assert len(pids) == 2
    assert process.returncode in (0, -SIGTERM), err
    for cascade in cascades_of(running, agent, count=2):
        assert cascade["verdict"] == "broken"
        assert all(hop["reason"].startswith(TERM) for hop in cascade["hops"] if hop["name"] == "work")
    found = {each["pid"]: each for each in agents_called(running, agent)}
    assert set(found) == pids
    assert all(each["ended"]["pending"]["task"] >= 1 for each in found.values())


# Children ----------------------------------------------------------------------------------------------------------

CHILD = """
import multiprocessing

async def child():
    with cascade("child"):
        kept.append(asyncio.create_task(forever()))
        await asyncio.sleep(0.01)

def of_child():
    run(child())

async def parent():
    with cascade("root"):
        start()
        await asyncio.sleep(0.01)

"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_of_multiprocessing_tells_of_its_own_and_not_of_its_parents(method, running, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        PRELUDE
        + CHILD
        + f"""
if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    async def before():
        with cascade("root"):
            kept.append(asyncio.get_running_loop().create_task(forever()))
            await asyncio.sleep(0.01)
    loop = new_event_loop()
    loop.run_until_complete(before())
    process = context.Process(target=of_child)
    process.start()
    process.join()
    print(process.exitcode)
"""
    )
    bare = play(path, "asyncio", hopwatched=False)
    ours = play(path, "asyncio", url=running.url)
    assert ours.seen() == bare.seen()
    cascades = cascades_of(running, ours.name, count=2)
    assert {cascade["verdict"] for cascade in cascades} == {"broken"}
    reasons = {}
    for cascade in cascades:
        names = {hop["name"] for hop in cascade["hops"]}
        (lost,) = [hop for hop in cascade["hops"] if hop["outcome"] == "abandoned"]
        reasons["child" if "child" in names else "parent"] = lost["reason"].split(";")[0]
        assert len({hop["instance"] for hop in cascade["hops"]}) == 1
    assert reasons == {
        "child": "pending at shutdown: cancelled by asyncio.run at its end",
        "parent": "pending at shutdown: the interpreter exited",
    }
    assert len(agents_called(running, ours.name)) == 2


def test_a_child_that_multiprocessing_terminates_tells_of_its_own(running, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        PRELUDE
        + """
import multiprocessing
context = multiprocessing.get_context("fork")

async def child(event):
    with cascade("child"):
        event.set()
        await forever()

def of_child(event):
    run(child(event))

if __name__ == "__main__":
    async def parent():
        with cascade("root"):
            pass
    run(parent())
    event = context.Event()
    process = context.Process(target=of_child, args=(event,))
    process.start()
    event.wait(60)
    process.terminate()
    process.join(60)
    print(process.exitcode)
"""
    )
    bare = play(path, "asyncio", hopwatched=False)
    ours = play(path, "asyncio", url=running.url)
    assert ours.seen() == bare.seen()
    assert ours.out == f"{-SIGTERM}\n"
    found = {
        cascade["hops"][0]["name"]: cascade["verdict"] for cascade in cascades_of(running, ours.name, count=2)
    }
    assert found == {"root": "settled", "child": "broken"}


def test_a_child_that_is_terminated_as_soon_as_it_is_forked_ends(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        PRELUDE
        + """
ended = []
for _ in range(30):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    ended.append(os.waitpid(child, 0)[1])
print(set(ended) == {int(signal.SIGTERM)})
"""
    )
    assert play(path, "asyncio", OTEL_TRACES_EXPORTER="none", OTEL_LOGS_EXPORTER="none").out == "True\n"


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(
            "sys.exit(7)",
            marks=pytest.mark.skipif(
                sys.version_info >= (3, 14),
                reason="a bare program hangs there: a forked child's loop is not the running one; ci: may be skipped",
            ),
        ),
        "os._exit(7)",
    ],
)
def test_a_forked_child_does_not_end_what_its_parent_has_open(end, running, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        PRELUDE
        + f"""
async def main():
    with cascade("root"):
        task = asyncio.create_task(asyncio.sleep(0.5))
        await asyncio.sleep(0.01)
        child = os.fork()
        if child == 0:
            {end}
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status))
        await task
run(main())
"""
    )
    bare = play(path, "asyncio", hopwatched=False)
    ours = play(path, "asyncio", url=running.url)
    assert (ours.code, ours.out) == (bare.code, bare.out) == (0, "7\n")
    (cascade,) = cascades_of(running, ours.name)
    assert cascade["verdict"] == "settled", cascade["reason"]


def test_two_sigterms_end_a_process_at_once_though_its_exporter_hangs(tmp_path):
    path = tmp_path / "program.py"
    with socket.socket() as deaf:  # takes connections and never answers
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(16)
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        path.write_text(
            PRELUDE
            + """
async def main():
    with cascade("root"):
        ready()
        await forever()
run(main())
"""
        )
        with started(
            path, "asyncio", url=url, HOPWATCH_SHUTDOWN_TIMEOUT="200", OTEL_EXPORTER_OTLP_TIMEOUT="200"
        ) as process:
            until_ready(process)
            began = time.monotonic()
            # Two that come while it stands still are one for it: so one after the other until it has ended.
            while process.poll() is None:
                process.send_signal(SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.5)
                assert time.monotonic() - began < 100
            assert process.returncode == -SIGTERM
