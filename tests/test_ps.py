"""Can a running process be asked what it does, whatever state it is in, and does asking harm nobody? Real processes."""

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from hopwatch import inspect_socket, state_folder
from hopwatch.cli import ps
from waiting import until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

INSTRUMENTED = """
import asyncio, os, socket, sys, threading, time
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
AsyncioInstrumentor().instrument()
import hopwatch

def ready():
    print("ready", flush=True)
"""

HANGS = """
async def inner():
    answer = asyncio.get_running_loop().create_future()
    ready()
    await answer  # here

async def main():
    with hopwatch.cascade("nightly"):
        await asyncio.gather(asyncio.create_task(inner(), name="asks"), asyncio.sleep(600))

asyncio.run(main())
"""

IDLE = """
async def main():
    asyncio.get_running_loop().call_soon(ready)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    found = tmp_path / "box"
    monkeypatch.setenv(state_folder.VARIABLE, str(found))
    return found


@pytest.fixture
def start(folder):
    """Start programs that are instrumented, each until it says that it is ready; end every one of them."""
    with contextlib.ExitStack() as stack:

        def run(program, *arguments, lines=1, **environment):
            process = subprocess.Popen(
                [sys.executable, "-c", INSTRUMENTED + program, *arguments],
                stdout=subprocess.PIPE,
                stdin=subprocess.PIPE,
                text=True,
                env={**os.environ, "OTEL_SERVICE_NAME": "desk", **environment},
            )
            stack.callback(end, process)
            process.lines = [process.stdout.readline().strip() for _ in range(lines)]
            return process

        yield run


def end(process):
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
        process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()


def sockets(folder):
    return list(folder.glob("*.sock")) if folder.exists() else []


def socket_of(folder, pid):
    return until(lambda: [each for each in sockets(folder) if each.name.startswith(f"{pid}-")])[0]


def hopwatch(*arguments, until_said=None):
    """What the command line says; or, with a pattern, what it says once that is part of it.

    A process on a busy machine may not come to its answer within the two seconds that it has, nor to all of it.
    """
    end_at = time.monotonic() + 60
    while True:
        done = _hopwatch(arguments)
        if until_said is None or (done.returncode == 0 and re.search(until_said, done.stdout, re.MULTILINE)):
            return done
        assert time.monotonic() < end_at, done


def _hopwatch(arguments):
    return subprocess.run(
        [sys.executable, "-m", "hopwatch", "ps", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def asked(folder, pid, what="all", *, wanted=None):
    """What a process answers, once it tells what is wanted: by default, of each task what it waits for."""
    socket_of(folder, pid)
    end_at = time.monotonic() + 60
    while True:
        try:
            told = ps.ask(ps.process(pid), what)
        except ps.PsError as error:  # it did not come to that within two seconds
            told = error
        else:
            if wanted(told) if wanted is not None else what == "brief" or all_looked_at(told):
                return told
        assert time.monotonic() < end_at, told
        time.sleep(0.05)


def all_looked_at(document):
    return all(task["waits_on"] is not None for task in every_task(document))


def at_rest(document):
    return all(loop["state"] == "waits for events" for loop in document["loops"]) and all_looked_at(document)


def every_task(document):
    waiting = [task for loop in document["loops"] for task in loop["tasks"]]
    while waiting:
        task = waiting.pop()
        yield task
        waiting.extend(task.get("awaits", []))


# What is told ------------------------------------------------------------------------------------------------------


def test_a_program_that_hangs_is_told_with_the_line_at_which_it_hangs_and_who_waits_for_it(start, folder):
    process = start(HANGS)
    document = asked(folder, process.pid, wanted=at_rest)
    assert (document["agent"], document["pid"]) == ("desk", process.pid)
    (loop,) = document["loops"]
    assert loop["state"] == "waits for events"
    (main,) = loop["tasks"]
    assert main["coroutine"] == "main"
    assert main["waits_on"]["kind"] == "gather"
    hanging, sleeping = main["awaits"]
    assert hanging["name"] == "asks"
    assert hanging["waits_on"]["what"] == "a future `answer` that nobody has set"
    assert hanging["waits_on"]["moves"] is False
    line = 1 + (INSTRUMENTED + HANGS).splitlines().index("    await answer  # here")
    assert hanging["waits_on"]["line"] == line
    assert "main" in hanging["made_at"]
    assert sleeping["waits_on"]["until"] > time.time()
    (hop,) = document["hops"]
    assert (hop["name"], hop["kind"], hop["done"]) == ("nightly", "task", False)
    assert main["hop"] == hop["id"]
    assert document["left_out"] == {}
    assert document["counts"]["failures"] == {}


def test_the_command_line_shows_the_same_as_plain_lines_and_as_json(start, folder):
    process = start(HANGS)
    asked(folder, process.pid, wanted=at_rest)
    listed = hopwatch(until_said=" desk ")
    heading, line = listed.stdout.splitlines()
    assert heading.split() == ["pid", "agent", "hops", "tasks", "oldest", "command"]
    pid, agent, hops, tasks = line.split()[:4]
    assert (pid, agent, tasks) == (str(process.pid), "desk", "3")
    assert int(hops) in (1, 2, 3)  # tasks that have lasted for a second are hops of their own
    shown = hopwatch(
        process.pid,
        until_said=r"^    task Task-1 main: .*\n(.*\n)*?      task asks inner: a future `answer` that nobody has set at <string>:\d+ inner",
    )
    assert "\x1b" not in shown.stdout
    assert json.loads(hopwatch(process.pid, "--json", until_said="{").stdout)["pid"] == process.pid
    assert json.loads(hopwatch("--json").stdout)["processes"][0]["pid"] == process.pid


def deadlocked(document, tasks=2):
    """Whether it tells of the deadlock of so many tasks; they come to it after they have said that they are ready."""
    return [each["tasks"] for each in document["deadlocks"]] == [tasks] and all_looked_at(document)


def test_a_deadlock_is_told_with_both_locks_and_both_holders(start, folder):
    process = start("""
async def take(first, second, both):
    async with first:
        both.append(1)
        while len(both) < 2:
            await asyncio.sleep(0)
        async with second:
            pass

async def main():
    with hopwatch.cascade("stocktaking"):
        stock, account, both = asyncio.Lock(), asyncio.Lock(), []
        asyncio.get_running_loop().call_later(0.1, ready)
        await asyncio.gather(
            asyncio.create_task(take(stock, account, both), name="reserve"),
            asyncio.create_task(take(account, stock, both), name="charge"),
        )

asyncio.run(main())
""")
    document = asked(folder, process.pid, wanted=deadlocked)
    tasks = {task["name"]: task["waits_on"] for task in every_task(document)}
    assert (tasks["reserve"]["kind"], tasks["reserve"]["holder"]) == ("lock", "charge")
    assert (tasks["charge"]["kind"], tasks["charge"]["holder"]) == ("lock", "reserve")
    assert tasks["charge"]["what"].endswith("a cycle")


TWO_LOCKS = """
async def take(first, second, both):
    async with first:
        both.append(1)
        while len(both) < 2:
            await asyncio.sleep(0)
        async with second:  # here
            pass

async def main():
    with hopwatch.cascade("stocktaking"):
        stock, account, both = asyncio.Lock(), asyncio.Lock(), []
        asyncio.get_running_loop().call_later(0.1, ready)
        await asyncio.gather(
            asyncio.create_task(take(stock, account, both), name="reserve"),
            asyncio.create_task(take(account, stock, both), name="charge"),
        )

asyncio.run(main())
"""

TEARDOWN = """
async def child(lock):
    async with lock:  # needs it
        pass

async def aclose(lock):
    async with lock:
        await asyncio.gather(  # here
            asyncio.create_task(child(lock), name="flush"), asyncio.create_task(child(lock), name="notify")
        )

async def main():
    asyncio.get_running_loop().call_later(0.1, ready)
    await asyncio.create_task(aclose(asyncio.Lock()), name="aclose")

asyncio.run(main())
"""


def line_in(program, text="# here"):
    return 1 + next(
        number for number, line in enumerate((INSTRUMENTED + program).splitlines()) if line.endswith(text)
    )


def test_two_locks_in_opposite_order_are_a_deadlock_with_each_edge_in_words(start, folder):
    process = start(TWO_LOCKS)
    (deadlock,) = asked(folder, process.pid, wanted=deadlocked)["deadlocks"]
    at = f"<string>:{line_in(TWO_LOCKS)}"
    edges = {edge["task"]: edge for edge in deadlock["edges"]}
    assert {name: (edge["kind"], edge["held_by"], edge["at"]) for name, edge in edges.items()} == {
        "reserve": ("lock", ["charge"], at),
        "charge": ("lock", ["reserve"], at),
    }
    assert edges["reserve"]["wants"] == edges["charge"]["holds"][0]
    assert edges["charge"]["wants"] == edges["reserve"]["holds"][0]
    assert edges["charge"]["words"] in deadlock["words"]
    assert deadlock["tasks"] == 2
    assert len(deadlock["hops"]) >= 1
    shown = hopwatch(process.pid, until_said="deadlock of 2 tasks")
    lines = shown.stdout.splitlines()
    first = lines.index("  deadlock of 2 tasks: none of them can ever go on")
    assert re.fullmatch(
        rf"    'charge' holds lock `second` \(\w+\), wants lock `second` \(\w+\) at {at}, which 'reserve' holds",
        lines[first + 1],
    )
    assert lines[first + 2].startswith("    'reserve' holds lock `second` ")
    told = json.loads(hopwatch(process.pid, "--json", until_said='"deadlocks": *\\[\\s*{').stdout)
    assert [each["tasks"] for each in told["deadlocks"]] == [2]


def test_a_gather_under_a_lock_that_its_children_need_is_a_deadlock_also_outside_of_any_cascade(
    start, folder
):
    process = start(TEARDOWN)
    document = asked(folder, process.pid, wanted=lambda told: deadlocked(told, 3))
    (deadlock,) = document["deadlocks"]
    assert deadlock["words"] == (
        f"'aclose' holds lock `lock`, waits for tasks 'flush' and 'notify' (gather) at <string>:{line_in(TEARDOWN)}; "
        f"'flush' wants lock `lock` at <string>:{line_in(TEARDOWN, '# needs it')}, which 'aclose' holds; "
        f"'notify' wants lock `lock` at <string>:{line_in(TEARDOWN, '# needs it')}, which 'aclose' holds"
    )
    assert (deadlock["tasks"], deadlock["hops"]) == (3, [])
    assert "  deadlock of 3 tasks: none of them can ever go on\n    'aclose' holds lock `lock`, " in (
        hopwatch(process.pid, until_said="deadlock of 3 tasks").stdout
    )
    assert document["counts"]["failures"] == {}


def test_a_program_without_a_deadlock_has_none(start, folder):
    process = start(HANGS)
    assert asked(folder, process.pid)["deadlocks"] == []
    shown = hopwatch(
        process.pid, until_said=r"asyncio\.sleep\(600\) until [\d:TZ-]+ \((9 min|10 min)[^)]* left\)"
    ).stdout
    assert "deadlock" not in shown


def test_a_consumer_that_hangs_is_told_with_the_queue_its_depth_and_who_took_from_it(start, folder):
    process = start("""
async def consume(queue):
    while True:
        await queue.get()
        await asyncio.Event().wait()
        queue.task_done()

async def main():
    with hopwatch.cascade("mail"):
        queue = asyncio.Queue(maxsize=2)
        consumer = asyncio.create_task(consume(queue), name="postman")
        for number in range(3):
            await queue.put(number)
        asyncio.get_running_loop().call_soon(ready)
        await queue.put(3)

asyncio.run(main())
""")
    (main,) = [task for task in every_task(asked(folder, process.pid)) if task["coroutine"] == "main"]
    queue = main["queue"]
    assert queue.pop("queue").startswith("0x")
    assert queue == {"depth": 2, "maxsize": 2, "unfinished": 3, "taken_by": ["postman"]}


@pytest.mark.parametrize("how", ["time.sleep(600)", "\n    while True: pass"])
def test_a_loop_that_is_blocked_answers_and_shows_the_line_at_which_it_blocks(start, folder, how):
    process = start(f"""
def block():
    ready()
    {how}  # here

async def main():
    asyncio.get_running_loop().call_soon(block)
    await asyncio.sleep(600)

asyncio.run(main())
""")

    def blocked(document):
        # It says that it is ready a moment before.
        return [(loop["state"], loop.get("blocked")) for loop in document["loops"]] == [
            ("busy", True)
        ] and document["loops"][0]["at"].endswith(" block")

    document = asked(folder, process.pid, wanted=blocked)
    (loop,) = document["loops"]
    assert re.fullmatch(r"<string>:\d+ block", loop["at"])
    assert loop["stack"][-1] == loop["at"]
    assert hopwatch(process.pid, until_said="blocked at <string>")


def test_a_task_that_blocks_its_loop_is_named(start, folder):
    process = start("""
async def main():
    asyncio.current_task().set_name("miner")
    ready()
    time.sleep(600)

asyncio.run(main())
""")
    document = asked(folder, process.pid)
    assert document["loops"][0]["running"] == "miner"
    assert [task["state"] for task in every_task(document)] == ["running"]


def test_of_five_thousand_tasks_a_thousand_are_told_and_the_others_are_counted(start, folder):
    process = start(
        """
async def waits(event):
    await event.wait()

async def main():
    with hopwatch.cascade("many"):
        event = asyncio.Event()
        tasks = [asyncio.create_task(waits(event)) for _ in range(5000)]
        asyncio.get_running_loop().call_later(0.1, ready)
        await asyncio.gather(*tasks)

asyncio.run(main())
""",
        HOPWATCH_REVEAL_AFTER="3600",  # or some become hops of their own meanwhile
    )
    document = asked(folder, process.pid, wanted=lambda _: True)
    assert document["counts"]["tasks"] == 5001
    assert len(list(every_task(document))) == 1000
    assert document["left_out"]["tasks"] == 4001
    assert document["left_out"]["of"] == {"waits": 4001}
    assert len(json.dumps(document)) < inspect_socket.LONGEST_ANSWER
    shown = hopwatch(process.pid, until_said=r"and 996 more like it: waits \(event\) at <string>:\d+").stdout
    assert "4,001 tasks more not shown: 4,001 waits" in shown
    assert len(shown.splitlines()) < 100_000


def test_a_thousand_tasks_that_await_one_another_in_a_row_are_told(start, folder):
    process = start("""
async def deep(left):
    if left:
        await asyncio.create_task(deep(left - 1))
    else:
        asyncio.get_running_loop().call_soon(ready)
        await asyncio.Event().wait()

asyncio.run(deep(900))
""")
    document = asked(folder, process.pid, wanted=lambda _: True)
    assert len(list(every_task(document))) == 901
    assert hopwatch(process.pid, until_said="task")


def test_loops_in_two_threads_and_what_other_threads_do_are_told(start, folder):
    process = start("""
async def main(name):
    asyncio.current_task().set_name(name)
    await asyncio.sleep(600)

threading.Thread(target=asyncio.run, args=(main("other"),), daemon=True, name="second").start()
threading.Thread(target=time.sleep, args=(600,), daemon=True, name="sleeper").start()

async def first():
    asyncio.get_running_loop().call_later(0.1, ready)
    await main("first")

asyncio.run(first())
""")
    document = asked(folder, process.pid, wanted=lambda told: len(list(every_task(told))) == 2)
    assert sorted(task["name"] for task in every_task(document)) == ["first", "other"]
    assert len(document["loops"]) == 2
    names = {thread["name"] for thread in document["threads"]}
    assert {"MainThread", "second", "sleeper"} <= names


def test_uvloop_is_told_too(start, folder):
    pytest.importorskip("uvloop")
    process = start("import uvloop\nasyncio.set_event_loop_policy(uvloop.EventLoopPolicy())\n" + HANGS)
    what = "a future `answer` that nobody has set"
    asked(
        folder, process.pid, wanted=lambda told: what in [(each["waits_on"] or {}).get("what") for each in every_task(told) if each["name"] == "asks"],
    )  # fmt: skip


# Whoever does not answer -------------------------------------------------------------------------------------------


def test_a_process_that_is_stopped_does_not_answer_and_it_is_said_why(start, folder):
    process, other = start(IDLE), start(IDLE)
    socket_of(folder, process.pid), socket_of(folder, other.pid)
    process.send_signal(signal.SIGSTOP)
    done = hopwatch(process.pid)
    assert done.returncode == 1
    assert f"process {process.pid} does not answer within 2 s: it is stopped" in done.stderr
    listed = hopwatch(until_said=rf"^{other.pid} .*\bdesk\b")
    assert "does not answer" in next(
        line for line in listed.stdout.splitlines() if line.startswith(str(process.pid))
    )
    process.send_signal(signal.SIGCONT)
    assert asked(folder, process.pid)["pid"] == process.pid


def test_no_such_process_and_one_without_hopwatch_are_told_apart(folder):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    done = hopwatch(gone.pid)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"there is no process {gone.pid}" in done.stderr
    plain = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        done = hopwatch(plain.pid)
        assert done.returncode == 1
        assert "opentelemetry-instrument" in done.stderr
    finally:
        plain.communicate(b"\n")
    done = hopwatch()
    assert (done.returncode, done.stdout) == (0, "")
    assert "was started with hopwatch" in done.stderr


def test_a_process_with_another_folder_is_found_by_its_environment(start, folder, tmp_path):
    process = start(IDLE, HOPWATCH_BLACKBOX=str(tmp_path / "elsewhere"))
    assert asked(tmp_path / "elsewhere", process.pid, "brief")["tasks"] == 1


def test_it_can_be_switched_off(start, folder):
    process = start(
        "ready(); print(sorted(each.name for each in threading.enumerate()), flush=True); input()",
        lines=2,
        HOPWATCH_BLACKBOX="off",
    )
    assert process.lines[1] == "['MainThread']"
    assert not folder.exists()
    assert "cannot be asked" in hopwatch(process.pid).stderr


# The socket --------------------------------------------------------------------------------------------------------


def test_only_the_user_may_open_the_folder_and_the_socket_whatever_the_umask(start, folder):
    process = start(
        "os.umask(0)\nasync def go(): pass\nAsyncioInstrumentor().uninstrument()\nAsyncioInstrumentor().instrument()\n"
        + IDLE
    )
    path = socket_of(folder, process.pid)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("how", ["symlink", "writable", "file"])
def test_a_folder_that_others_could_have_prepared_is_refused_and_the_program_runs_on(
    start, folder, tmp_path, how
):
    if how == "symlink":
        (tmp_path / "real").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "real")
    elif how == "writable":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.write_text("")
    process = start(IDLE)
    assert process.lines == ["ready"]
    assert not folder.is_dir() or sockets(folder) == []
    done = hopwatch(process.pid)
    assert done.returncode == 1
    assert state_folder.VARIABLE in done.stderr


def test_a_folder_with_a_long_path_will_do(start, folder, tmp_path):
    long = tmp_path / ("long" * 40)
    process = start(IDLE, HOPWATCH_BLACKBOX=str(long))
    assert asked(long, process.pid, "brief")["pid"] == process.pid


def test_clients_that_hang_flood_or_send_garbage_hurt_nobody(start, folder):
    process = start(IDLE)
    path = socket_of(folder, process.pid)

    def client():
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        connection.connect(str(path))
        return connection

    def garbage():
        with client() as sends:
            sends.sendall(os.urandom(200).replace(b"\n", b"") + b"\n")
            return sends.recv(1000)

    def flood():
        with client() as sends:
            with contextlib.suppress(OSError):
                for _ in range(10_000):
                    sends.sendall(b"x" * 65536)
            try:
                return sends.recv(1000)
            except OSError as error:
                return str(error).encode()

    with client() as hanging:  # says nothing, and is hung up on
        assert hanging.recv(1) == b""
    # Who was given no turn for two seconds is hung up on, too: with nothing.
    assert "brief or all" in json.loads(until(garbage))["error"]
    said = until(flood)
    assert b"at most 1024 bytes" in said or b"reset" in said or b"pipe" in said, said
    with client() as rude:  # asks, and goes away
        rude.sendall(b"all\n")
    with client() as deaf:  # asks, and does not read
        deaf.sendall(b"all\n")
        assert asked(folder, process.pid, "brief")["pid"] == process.pid
    document = asked(folder, process.pid)
    assert document["counts"]["failures"] == {}


def test_a_clean_end_takes_the_socket_away(start, folder):
    process = start("ready(); input()")
    socket_of(folder, process.pid)
    process.communicate("\n", timeout=120)
    assert process.returncode == 0
    assert sockets(folder) == []


def test_uninstrument_takes_the_socket_and_the_thread_away(start, folder):
    process = start("""
ready(); input()
AsyncioInstrumentor().uninstrument()
until = time.monotonic() + 60
while threading.active_count() > 1 and time.monotonic() < until:  # it ends when it gets a turn
    time.sleep(0.01)
print([each.name for each in threading.enumerate()], flush=True)
input()
""")
    socket_of(folder, process.pid)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline().strip() == "['MainThread']"
    assert sockets(folder) == []


def test_what_a_killed_process_left_is_removed_and_what_lives_is_kept(start, folder):
    killed, alive = start(IDLE), start(IDLE)
    left, kept = socket_of(folder, killed.pid), socket_of(folder, alive.pid)
    asked(folder, alive.pid)  # whoever answers has cleaned up already
    killed.kill()
    killed.wait()
    assert left.exists()
    # The same process id, and another start: somebody else has it by now.
    reused = folder / f"{alive.pid}-1-{inspect_socket.place()}.sock"
    reused.touch()
    elsewhere = folder / f"{killed.pid}-1-00000000.sock"  # of another host or container: nobody here can tell
    elsewhere.touch()
    other = start(IDLE)  # whoever comes next cleans up
    until(lambda: not left.exists() and not reused.exists())
    assert sorted(sockets(folder)) == sorted([kept, elsewhere, socket_of(folder, other.pid)])


# Programs that do not behave as one wishes --------------------------------------------------------------------------


def test_a_forked_child_has_a_socket_of_its_own_and_never_answers_for_its_parent(start, folder):
    process = start("""
child = os.fork()
if child == 0:
    asyncio.run(asyncio.sleep(600))
print(child, flush=True)

async def main():
    asyncio.current_task().set_name("parent's")
    ready()
    await asyncio.sleep(600)

asyncio.run(main())
""")
    child = int(process.lines[0])
    try:
        path = socket_of(folder, child)
        parent = asked(folder, process.pid, wanted=lambda told: list(every_task(told)))
        assert [task["name"] for task in every_task(parent)] == ["parent's"]
        found = asked(folder, child)
        assert found["pid"] == child
        assert found["instance"] != parent["instance"]
        # The parent dies, and nobody answers at its socket, though its child lives.
        address = socket_of(folder, process.pid)
        process.kill()
        process.wait()
        with socket.socket(socket.AF_UNIX) as connection, pytest.raises(ConnectionRefusedError):
            connection.connect(str(address))
        assert path.exists()
        assert asked(folder, child, "brief")["pid"] == child
    finally:
        os.kill(child, signal.SIGKILL)


def test_forking_in_many_threads_at_once_leaves_the_parent_with_one_socket(start, folder):
    process = start(
        """
import warnings

def forks():
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

warnings.simplefilter("ignore")  # of forks of a program with threads, which are its own here
threads = [threading.Thread(target=forks) for _ in range(4)]
for each in threads: each.start()
for each in threads: each.join()
ready()
asyncio.run(asyncio.sleep(600))
"""
    )
    until(lambda: [each for each in sockets(folder) if each.name.startswith(f"{process.pid}-")])
    document = asked(folder, process.pid)
    assert [each["ours"] for each in document["threads"]].count(True) == 0


def test_a_program_without_threads_may_fork_without_a_warning(start, folder):
    process = start("""
import warnings
warnings.simplefilter("error")
for _ in range(20):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
ready()
input()
""")
    assert process.lines == ["ready"]
    socket_of(folder, process.pid)
    _, _ = process.communicate("\n", timeout=120)
    assert process.returncode == 0


def test_a_program_that_closes_every_descriptor_goes_on_and_what_takes_the_numbers_is_not_touched(
    start, folder
):
    process = start(
        """
input()
os.closerange(3, 200)
# Whatever number our socket had, the program's own sockets have it now.
pairs = [socket.socketpair() for _ in range(40)]
servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(40)]
ready()
input()
clients = [socket.create_connection(server.getsockname()) for server in servers]
for server in servers:
    server.settimeout(60)
    server.accept()  # nobody has taken it away
for one, other in pairs:
    one.sendall(b"x")
    other.settimeout(60)
    assert other.recv(2) == b"x"
began = time.process_time()
time.sleep(0.3)
print("spins" if time.process_time() - began > 0.1 else "quiet", flush=True)
until = time.monotonic() + 60
while threading.active_count() > 1 and time.monotonic() < until:  # it ends when it gets a turn
    time.sleep(0.01)
print([each.name for each in threading.enumerate()], flush=True)
""",
        lines=0,
    )
    path = socket_of(folder, process.pid)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline().strip() == "ready"
    with socket.socket(socket.AF_UNIX) as connection:  # wakes the thread, which finds its socket gone
        connection.settimeout(60)
        with contextlib.suppress(OSError):
            connection.connect(str(path))
            connection.recv(1)
    out, _ = process.communicate("\n", timeout=120)
    assert out.splitlines() == ["quiet", "['MainThread']"]
    assert process.returncode == 0


def test_a_daemon_that_forks_twice_and_closes_every_descriptor_can_be_asked(start, folder, tmp_path):
    pid_file = tmp_path / "pid"
    start(
        """
if os.fork():
    ready()
    input()
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
os.closerange(0, 200)
os.open("/dev/null", os.O_RDWR), os.dup(0), os.dup(0)
with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
asyncio.run(asyncio.sleep(600))
""",
        str(pid_file),
    )
    daemon = int(until(lambda: pid_file.exists() and pid_file.read_text()))
    try:
        assert asked(folder, daemon, wanted=lambda told: told["counts"]["tasks"])["counts"]["tasks"] == 1
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_the_thread_does_not_keep_a_process_alive_and_prints_nothing(start, folder):
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", INSTRUMENTED + "ready()"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready\n", "")


def test_a_name_left_behind_is_told_by_its_process_and_start():
    mine = f"{os.getpid()}-{inspect_socket.start_of(os.getpid())}-{inspect_socket.place()}.sock"
    assert not inspect_socket.is_left_behind(mine)
    assert inspect_socket.is_left_behind(mine.replace("-", "-f", 1))
    assert not inspect_socket.is_left_behind("hopwatch.sqlite")
    assert not inspect_socket.is_left_behind(f"{2**31 - 1}-1-00000000.sock")
    assert inspect_socket.is_left_behind(f"{2**31 - 1}-1-{inspect_socket.place()}.sock")
