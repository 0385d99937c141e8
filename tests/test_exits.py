"""Whatever ends a process, is what was pending told of, and does the program end as it would have without us?

Each program is run bare and with hopwatch, on asyncio's loop and on uvloop's, and must look the same to its user. What it
left pending must be at a real collector then, with the verdict that follows.
"""

import pytest

from collector.telling import collector
from ways_out import PRELUDE, SIGINT, SIGTERM, agents_called, cascades_of, play

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]
LOOPS = ["asyncio", "uvloop"]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with collector(tmp_path_factory.mktemp("ways-out") / "store.sqlite") as found:
        found.url = f"http://127.0.0.1:{found.port}"
        yield found


class Row:
    """One way out.

    Args:
        program: the source, after the prelude.
        lost: name and reason (its beginning) of each hop that must be abandoned.
        way: how the process must say that it ended.
        code: the exit code.
        sends: the signal that it gets when it is ready.
    """

    def __init__(self, name, program, lost=(), *, way="exit", code=0, sends=None, outcomes=None):
        self.name = name
        self.program = program
        self.lost = dict(lost)
        self.way = way
        self.code = code
        self.sends = sends
        self.outcomes = outcomes or {}


RUNNER = "pending at shutdown: cancelled by asyncio.run at its end"
CLOSED = "pending at shutdown: its event loop was closed"
EXITED = "pending at shutdown: the interpreter exited"
TERM = "pending at shutdown: SIGTERM"
INT = "pending at shutdown: SIGINT"
DESTROYED = "the task was destroyed while pending"

ROWS = [
    Row("asyncio.run ends with a task pending", """
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(forever()))
        await asyncio.sleep(0.01)
run(main())
""", {"forever": RUNNER}, outcomes={"root": "finished"}),
    Row("asyncio.run ends, and a task refuses to be cancelled and finishes", """
async def stubborn():
    try:
        await forever()
    except asyncio.CancelledError:
        await asyncio.sleep(0.01)
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(stubborn()))
        await asyncio.sleep(0.01)
run(main())
""", outcomes={"root": "finished"}),
    Row("asyncio.run ends, and a task fails when it is cancelled", """
async def sore():
    try:
        await forever()
    except asyncio.CancelledError:
        raise ValueError("sore") from None
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(sore()))
        await asyncio.sleep(0.01)
run(main())
""", {"sore": RUNNER}),
    Row("asyncio.run ends with an inner cascade pending in a task", """
async def work():
    with cascade("inner"):
        await forever()
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(work()))
        await asyncio.sleep(0.01)
run(main())
""", {"inner": RUNNER, "work": RUNNER}),
    Row("asyncio.run ends while a worker that no request started works on an item", """
async def work(queue):
    while True:
        await queue.get()
        await asyncio.sleep(60)
        queue.task_done()
async def main():
    queue = asyncio.Queue()
    kept.append(asyncio.create_task(work(queue)))
    await asyncio.sleep(0.01)
    with cascade("root"):
        queue.put_nowait(1)
    await asyncio.sleep(0.05)
run(main())
""", {"event in a queue": RUNNER}),
    Row("asyncio.run ends with an item in a queue that nobody takes", """
async def main():
    queue = asyncio.Queue()
    kept.append(queue)
    with cascade("root"):
        queue.put_nowait(1)
run(main())
""", {"an item in a queue": EXITED}),
    Row("Runner.close with a task pending", """
import sys
if sys.version_info < (3, 11):
    async def main():
        with cascade("root"):
            kept.append(asyncio.create_task(forever()))
            await asyncio.sleep(0.01)
    run(main())
else:
    async def main():
        with cascade("root"):
            kept.append(asyncio.create_task(forever()))
            await asyncio.sleep(0.01)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
        print("still here")
""", {"forever": RUNNER}),
    Row("loop.close() with a task pending", """
async def main():
    with cascade("root"):
        kept.append(asyncio.get_running_loop().create_task(forever()))
        await asyncio.sleep(0.01)
loop = new_event_loop()
loop.run_until_complete(main())
loop.close()
""", {"forever": CLOSED}),
    Row("loop.close() with a timer of the application pending", """
async def main():
    with cascade("root"):
        asyncio.get_running_loop().call_later(60, ready)
loop = new_event_loop()
loop.run_until_complete(main())
loop.close()
""", {"timer ready": CLOSED}),
    Row("run_until_complete leaves a task, and nobody closes the loop", """
async def main():
    with cascade("root"):
        kept.append(asyncio.get_running_loop().create_task(forever()))
        await asyncio.sleep(0.01)
loop = new_event_loop()
loop.run_until_complete(main())
""", {"forever": EXITED}),
    Row("a task ends as its loop stops, and nobody closes the loop", """
async def quick():
    print("quick ended")
async def main():
    with cascade("root"):
        asyncio.create_task(quick())
loop = new_event_loop()
loop.run_until_complete(main())
""", outcomes={"root": "finished"}),
    Row("a task ends as the loop of a thread stops, and nobody closes the loop", """
async def quick():
    print("quick ended")
async def job():
    asyncio.create_task(quick())
def work():
    kept.append(new_event_loop())  # asyncio's own complains of a socket in some orders in which it may be collected
    kept[0].run_until_complete(job())
async def main():
    with cascade("root"):
        await asyncio.to_thread(work)
run(main())
""", outcomes={"root": "finished"}),
    Row("a task has ended, and the thread of its loop comes no further", """
stuck = threading.Event()
async def quick():
    asyncio.get_running_loop().call_soon(stuck.wait)  # before the callbacks of this task, and for ever
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(quick()))
    await forever()
thread = threading.Thread(target=lambda: run(main()), daemon=True)
thread.start()
while not (kept and kept[0].done()):
    time.sleep(0.001)
""", outcomes={"root": "finished"}),
    Row("a pending task is collected", """
async def main():
    with cascade("root"):
        asyncio.create_task(forever())
        await asyncio.sleep(0.01)
        gc.collect()
run(main())
""", {"forever": DESTROYED}),
    Row("a pending task is collected in another thread", """
async def main():
    with cascade("root"):
        asyncio.create_task(forever())
        await asyncio.sleep(0.01)
        thread = threading.Thread(target=gc.collect)
        thread.start()
        thread.join()
run(main())
""", {"forever": DESTROYED}),
    Row("a pending task is collected, and the application has an exception handler of its own", """
async def main():
    asyncio.get_running_loop().set_exception_handler(lambda _, context: print(context["message"]))
    with cascade("root"):
        asyncio.create_task(forever())
        await asyncio.sleep(0.01)
        gc.collect()
run(main())
""", {"forever": DESTROYED}),
    Row("a pending task is collected when the interpreter shuts down", """
async def main():
    with cascade("root"):
        asyncio.get_running_loop().create_task(forever())
        await asyncio.sleep(0.01)
gc.disable()
loop = new_event_loop()
loop.set_exception_handler(lambda _, context: print(context["message"]))
loop.run_until_complete(main())
""", {"forever": EXITED}),
    Row("SIGTERM", """
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(forever()))
        await asyncio.sleep(0.01)
        ready()
        await asyncio.sleep(60)
run(main())
""", {"forever": TERM, "root": TERM}, way="SIGTERM", code=-SIGTERM, sends=SIGTERM),
    Row("SIGTERM that comes twice, as from `timeout`, which sends it to its child and to the child's group", """
from opentelemetry import trace
provider = trace.get_tracer_provider()
flush = getattr(provider, "force_flush", None)
def flush_and_be_told_again(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    return flush(*args)
provider.force_flush = flush_and_be_told_again
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(forever()))
        await asyncio.sleep(0.01)
        ready()
        await asyncio.sleep(60)
run(main())
""", {"forever": TERM, "root": TERM}, way="SIGTERM", code=-SIGTERM, sends=SIGTERM),
    Row("SIGTERM while all is done", """
async def main():
    with cascade("root"):
        await asyncio.sleep(0.01)
    ready()
    await asyncio.sleep(60)
run(main())
""", way="SIGTERM", code=-SIGTERM, sends=SIGTERM, outcomes={"root": "finished"}),
    Row("SIGTERM to a program that sleeps outside any loop", """
async def main():
    with cascade("root"):
        kept.append(asyncio.get_running_loop().create_task(forever()))
        await asyncio.sleep(0.01)
loop = new_event_loop()
loop.run_until_complete(main())
ready()
time.sleep(60)
""", {"forever": TERM}, way="SIGTERM", code=-SIGTERM, sends=SIGTERM),
    Row("SIGTERM to a program whose loop runs in a thread", """
async def main():
    with cascade("root"):
        ready()
        await forever()
thread = threading.Thread(target=lambda: new_event_loop().run_until_complete(main()), daemon=True)
thread.start()
thread.join()
""", {"root": TERM}, way="SIGTERM", code=-SIGTERM, sends=SIGTERM),
    Row("SIGTERM in the middle of an import", """
with cascade("root"):
    pass
folder = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(folder, "slow_to_import.py"), "w") as file:
    file.write("import time\\nprint('ready', flush=True)\\ntime.sleep(60)\\n")
sys.path.insert(0, folder)
import slow_to_import
""", way="SIGTERM", code=-SIGTERM, sends=SIGTERM, outcomes={"root": "finished"}),
    Row("SIGTERM with a handler that the application has set", """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(forever()))
    await asyncio.sleep(0.01)
    ready()
    await asyncio.sleep(60)
run(main())
""", {"forever": RUNNER}, code=5, sends=SIGTERM),
    Row("SIGTERM with a handler that puts the default back and raises the signal again", """
def end(number, _):
    print("cleaned up", flush=True)
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
signal.signal(signal.SIGTERM, end)
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(forever()))
        await asyncio.sleep(0.01)
        ready()
        await forever()
run(main())
""", {"forever": TERM, "root": TERM}, way="SIGTERM", code=-SIGTERM, sends=SIGTERM),
    Row("SIGTERM with a handler that calls the one before it", """
before = signal.signal(signal.SIGTERM, lambda *_: before(*_) if callable(before) else sys.exit(7))
print(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, before)
async def main():
    with cascade("root"):
        pass
    ready()
    await forever()
run(main())
""", code=7, sends=SIGTERM),
    Row("a task behind a decorator of OpenTelemetry is pending", """
from opentelemetry import trace
@trace.get_tracer("app").start_as_current_span("decorated")
async def decorated():
    await asyncio.sleep(60)
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(decorated()))
        await asyncio.sleep(0.01)
run(main())
""", {"decorated": RUNNER}, outcomes={"root": "finished"}),
    Row("SIGTERM with loop.add_signal_handler, which ends the program in order", """
async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with cascade("root"):
        kept.append(asyncio.create_task(forever()))
        await asyncio.sleep(0.01)
        ready()
        await stop.wait()
        print("in order")
run(main())
""", {"forever": RUNNER}, sends=SIGTERM, outcomes={"root": "finished"}),
    Row("SIGTERM after loop.add_signal_handler was taken back", """
async def main():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, print)
    loop.remove_signal_handler(signal.SIGTERM)
    with cascade("first"):
        pass
loop = new_event_loop()
loop.run_until_complete(main())
loop.close()
async def second():
    with cascade("root"):
        ready()
        await forever()
run(second())
""", {"root": TERM}, way="SIGTERM", code=-SIGTERM, sends=SIGTERM),
    Row("SIGTERM that is ignored", """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
async def main():
    with cascade("root"):
        ready()
        await asyncio.sleep(0.3)
        print("did not mind")
run(main())
""", sends=SIGTERM, outcomes={"root": "finished"}),
    Row("Ctrl-C", """
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(forever()))
        await asyncio.sleep(0.01)
        ready()
        await asyncio.sleep(60)
run(main())
""", {"forever": "pending at shutdown", "root": "pending at shutdown"}, way="SIGINT", code=-SIGINT, sends=SIGINT),
    Row("Ctrl-C outside any loop", """
async def main():
    with cascade("root"):
        kept.append(asyncio.get_running_loop().create_task(forever()))
        await asyncio.sleep(0.01)
loop = new_event_loop()
loop.run_until_complete(main())
ready()
time.sleep(60)
""", {"forever": INT}, way="SIGINT", code=-SIGINT, sends=SIGINT),
    Row("sys.exit in a task", """
async def quit():
    await asyncio.sleep(0.01)
    sys.exit(3)
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(quit()))
        await asyncio.sleep(60)
run(main())
""", {"root": RUNNER}, code=3),
    Row("sys.exit in main", """
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(forever()))
        await asyncio.sleep(0.01)
        sys.exit(3)
run(main())
""", {"forever": RUNNER}, code=3, outcomes={"root": "failed"}),
    Row("an exception out of main", """
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(forever()))
        await asyncio.sleep(0.01)
        raise ValueError("out of main")
run(main())
""", {"forever": RUNNER}, way="exception", code=1, outcomes={"root": "failed"}),
    Row("KeyboardInterrupt in a task", """
async def interrupt():
    await asyncio.sleep(0.01)
    raise KeyboardInterrupt
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(interrupt()))
        await asyncio.sleep(60)
run(main())
""", {"root": RUNNER}, way="SIGINT", code=-SIGINT),
    Row("SystemExit in a callback", """
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(forever()))
        asyncio.get_running_loop().call_later(0.05, sys.exit, 4)
        await asyncio.sleep(60)
run(main())
""", {"forever": RUNNER, "root": RUNNER}, code=4),
    Row("os.execv", """
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(forever()))
        await asyncio.sleep(0.01)
        os.execv(sys.executable, [sys.executable, "-S", "-c", "print('another program'); raise SystemExit(6)"])
run(main())
""", {"forever": "pending at shutdown: the process was replaced", "root": "pending at shutdown: the process was replaced"}, way="execv", code=6),
    Row("os.execv just after a thread has ended", """
async def main():
    with cascade("root"):
        thread = threading.Thread(target=int)
        thread.start()
    thread.join()
    os.execv(sys.executable, [sys.executable, "-S", "-c", ""])
run(main())
""", outcomes={"root": "finished"}, way="execv"),
    Row("os.execv that fails", """
async def main():
    with cascade("root"):
        task = asyncio.create_task(asyncio.sleep(0.05))
        try:
            os.execvp("/nowhere/at/all", ["x"])
        except OSError as error:
            print(type(error).__name__)
        open(kept[0], "w").write("this is no program")
        os.chmod(kept[0], 0o700)
        try:
            os.execve(kept[0], [kept[0]], {})
        except OSError as error:
            print(type(error).__name__, error.errno)
        await task
import tempfile
with tempfile.TemporaryDirectory() as folder:
    kept.append(folder + "/program")
    run(main())
""", outcomes={"root": "finished"}),
    Row("SIGTERM while a thread of anyio works on, whose waiter has given up", """
import anyio.to_thread
began = threading.Event()
def work():
    began.set()
    time.sleep(60)
async def give_up(scope):
    while not began.is_set():
        await asyncio.sleep(0.001)
    scope.cancel()
async def main():
    with cascade("root"), anyio.CancelScope() as scope:
        kept.append(asyncio.create_task(give_up(scope)))
        await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
    ready()
    await asyncio.sleep(60)
run(main())
""", {"job work": TERM}, way="SIGTERM", code=-SIGTERM, sends=SIGTERM, outcomes={"root": "finished"}),
    Row("a daemon thread works on", """
async def main():
    with cascade("root"):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
run(main())
""", {"thread sleep": EXITED}),
    Row("nothing is pending", """
async def main():
    with cascade("root"):
        await asyncio.gather(*(asyncio.sleep(0.01) for _ in range(3)))
run(main())
print("the end")
""", outcomes={"root": "finished"}),
    Row("a service loop is pending, which is no work", """
if hopwatched:
    import hopwatch
    forever = hopwatch.service(forever)
async def main():
    with cascade("root"):
        kept.append(asyncio.create_task(forever()))
        await asyncio.sleep(0.01)
run(main())
""", outcomes={"root": "finished"}),
]  # fmt: skip


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_program_ends_as_it_would_and_tells_what_was_pending(row, loop, running, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PRELUDE + row.program)
    bare = play(path, loop, sends=row.sends, hopwatched=False)
    ours = play(path, loop, sends=row.sends, url=running.url)
    assert ours.seen() == bare.seen()
    assert ours.code == row.code
    found = cascades_of(running, ours.name)
    hops = {hop["name"]: hop for cascade in found for hop in cascade["hops"]}
    lost = {name: hop["reason"] for name, hop in hops.items() if hop["outcome"] == "abandoned"}
    assert lost.keys() == row.lost.keys()
    for name, reason in row.lost.items():
        assert lost[name].startswith(reason), lost
    assert {name: hops[name]["outcome"] for name in row.outcomes} == row.outcomes
    (last,) = [each for each in found if "root" in {hop["name"] for hop in each["hops"]}]
    assert last["verdict"] == ("broken" if row.lost else "settled"), last["reason"]
    if "forever" in lost:
        assert hops["forever"]["location"].startswith(f"{path}:")
        assert "it awaited a future that nobody has set" in lost["forever"]
        assert f"{path}:" in lost["forever"]
    if row.name != "os.execv that fails":
        (agent,) = agents_called(running, ours.name)
        told = {
            kind: sum(
                1
                for hop in hops.values()
                if hop["name"] in lost and hop["kind"] == kind and DESTROYED not in lost[hop["name"]]
            )
            for kind in ("task", "event")
        }
        assert agent["ended"]["how"] == row.way
        assert agent["ended"]["pending"] == {kind: count for kind, count in told.items() if count}
