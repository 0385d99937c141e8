"""Does `hopwatch run` start a program as it would be by itself, and tell what was pending when it ended?"""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hopwatch.cli import run

RUN = [sys.executable, "-m", "hopwatch", "run"]
QUIET = {f"OTEL_{each}_EXPORTER": "none" for each in ("TRACES", "METRICS", "LOGS")}
# Most programs here write the report themselves, and hopwatch's own would come after it.
BY_ITSELF = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "hopwatch_asyncio,hopwatch_a2a"}
WATCHED = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ""}
ENDED = [{"ended": "exit", "pid": 1, "agent": "a", "instance": "0" * 16, "pending": []}]
LEFT = {
    "kind": "task",
    "name": "write_later",
    "id": "b" * 16,
    "cascade": "a" * 32,
    "location": "/shop/agent.py:12 serve",
    "waits_on": {
        "kind": "future",
        "what": "a future `stock` that nobody has set",
        "file": "/shop/agent.py",
        "line": 7,
    },
    "reason": "pending at shutdown",
}


def environment(**more):
    kept = {
        key: value
        for key, value in os.environ.items()
        if key == "HOPWATCH_BLACKBOX" or not key.startswith(("OTEL_", "HOPWATCH_"))
    }
    return {**kept, **QUIET, **BY_ITSELF, **more}


@pytest.fixture
def program(tmp_path):
    """Write a program; the beginning of it can leave a report, as a process does at its end."""

    def write(text, name="agent.py"):
        path = tmp_path / name
        path.write_text(
            textwrap.dedent("""
                import json, os, signal, sys, time

                def report(*pending):
                    with open(os.environ["HOPWATCH_REPORT"], "w") as file:
                        json.dump({"ended": "exit", "pid": os.getpid(), "pending": list(pending)}, file)
            """)
            + textwrap.dedent(text)
        )
        return str(path)

    return write


def ran(*arguments, **more):
    return subprocess.run(
        [*RUN, *arguments], capture_output=True, text=True, timeout=240, check=False, env=environment(**more)
    )


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("python worker.py", "worker"),
        ("/usr/bin/python3.12 -u -W error -X dev agents/worker.py --port 1", "worker"),
        ("python -m shop.worker --port 1", "shop.worker"),
        ("python -mshop.worker", "shop.worker"),
        ("python -c pass", "python"),
        ("python", "python"),
        ("python agents/planner/__main__.py", "planner"),
        ("uvicorn --host ::1 shop.worker:app --port 1", "shop.worker"),
        ("python -m uvicorn worker:app", "worker"),
        ("uvicorn", "uvicorn"),
        ("./worker", "worker"),
        ("worker.py", "worker"),
        ("python agents/planner/main.py", "planner"),
        ("python agents/planner/app/main.py", "main"),
        ("agents/planner/server.py", "planner"),
        ("uvicorn shop.main:app", "shop.main"),
    ],
)
def test_an_agent_is_called_after_its_script_or_module(command, name):
    assert run.service_name(command.split()) == name


def test_the_defaults_say_what_the_environment_does_not():
    found = {}
    run.set_defaults(found, ["python", "worker.py"])
    assert found == {
        "OTEL_SERVICE_NAME": "worker",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318",
        "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "2",
        "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "2",
        "OTEL_INSTRUMENTATION_A2A_SDK_ENABLED": "false",
    }


@pytest.mark.parametrize(
    "said",
    [
        {"OTEL_SERVICE_NAME": "mine"},
        {"OTEL_RESOURCE_ATTRIBUTES": "a=b,service.name=mine"},
        {"OTEL_TRACES_EXPORTER": "console"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://gateway:4317"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://gateway:4317"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_INSTRUMENTATION_A2A_SDK_ENABLED": "true"},
    ],
)
def test_what_the_environment_says_goes_before_the_defaults(said):
    found = dict(said)
    run.set_defaults(found, ["python", "worker.py"])
    assert said.items() <= found.items()
    by_name = {key for key in said if "OTLP" in key}
    # An address and a protocol that do not belong together would lose every record.
    assert not by_name or by_name == {key for key in found if key.startswith("OTEL_EXPORTER_OTLP")}
    assert ("OTEL_SERVICE_NAME" in found) == ("OTEL_RESOURCE_ATTRIBUTES" not in said)


def test_the_collector_is_the_one_that_is_named_on_the_command_line_or_by_the_environment():
    found = {"HOPWATCH_URL": "http://there:1/"}
    run.set_defaults(found, ["python"])
    assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://there:1"
    found = {"HOPWATCH_URL": "http://there:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://gateway:4317"}
    run.set_defaults(found, ["python"], "http://here:2")
    assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://here:2"
    assert "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" not in found


@pytest.mark.processes
def test_the_program_takes_the_place_of_the_process_instrumented_and_with_its_own_exit_code(program):
    path = program("""
        from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
        print(os.getpid(), AsyncioInstrumentor().is_instrumented_by_opentelemetry, os.environ["OTEL_SERVICE_NAME"], sys.argv[1:])
        sys.exit(5)
    """)
    with subprocess.Popen(
        [*RUN, "--", sys.executable, path, "--gate", "-x"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(**WATCHED),
    ) as process:
        told, _ = process.communicate(timeout=240)
    assert told == f"{process.pid} True agent ['--gate', '-x']\n"
    assert process.returncode == 5


@pytest.mark.processes
def test_it_runs_where_the_command_line_s_own_libraries_are_not_installed(program):
    path = program("print('ran')")
    without = "import sys; sys.modules.update(dict.fromkeys(['click', 'rich', 'httpx'])); from hopwatch.cli import main; main()"
    command = [sys.executable, "-c", without, "run", "--gate", "--", sys.executable, path]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env=environment()
    )
    assert done.stdout == "ran\n", done.stderr


@pytest.mark.processes
def test_an_interrupt_ends_the_program_that_took_the_place(program):
    path = program("print('ready', flush=True); time.sleep(600)")
    with subprocess.Popen(
        [*RUN, "--drain", "3", "--", sys.executable, path],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM


@pytest.mark.processes
def test_a_gate_passes_on_the_exit_code_where_nothing_was_pending(program):
    done = ran(
        "--gate",
        "--drain",
        "2.5",
        "--",
        sys.executable,
        program("report(); print(os.environ['HOPWATCH_DRAIN']); sys.exit(3)"),
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "2.5\n", "")


@pytest.mark.processes
def test_a_gate_names_what_was_pending_and_ends_with_17(program):
    path = program(f"report({LEFT!r})")
    done = ran("--gate", "--", sys.executable, path)
    assert done.returncode == 17
    assert done.stderr.splitlines()[1:] == [
        "  task write_later",
        "    made at /shop/agent.py:12 serve",
        "    waited for a future `stock` that nobody has set at /shop/agent.py:7",
        "    pending at shutdown",
        f"    of the cascade {'a' * 32}, hop {'b' * 16}",
    ]
    assert done.stderr.startswith("hopwatch: 1 thing was pending when ")


@pytest.mark.processes
def test_a_gate_counts_what_forked_children_reported(program):
    path = program(f"""
        report()
        os.environ["HOPWATCH_REPORT"] += ".4711"
        report({LEFT!r})
    """)
    done = ran("--gate", "--", sys.executable, path)
    assert done.returncode == 17
    assert "  task write_later" in done.stderr.splitlines()


@pytest.mark.processes
@pytest.mark.parametrize(
    "how",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "pass",
        "open(os.environ['HOPWATCH_REPORT'], 'w').write('{\"pending\": 3}')",
    ],
)
def test_a_gate_does_not_take_for_fine_what_it_does_not_know(program, how, tmp_path):
    done = ran("--gate", "--", sys.executable, program(how), HOPWATCH_BLACKBOX=str(tmp_path / "boxes"))  # fmt: skip
    assert done.returncode == 17
    assert "unknown: no report" in done.stderr


@pytest.mark.processes
def test_a_program_that_dies_by_a_signal_with_nothing_pending_is_mourned_by_the_same_signal(program):
    done = ran("--gate", "--", sys.executable, program("report(); os.kill(os.getpid(), signal.SIGUSR1)"))
    assert done.returncode == -signal.SIGUSR1


@pytest.mark.processes
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2]
)
def test_a_signal_is_passed_on_once_and_the_program_s_own_handler_decides(program, number):
    path = program("""
        got = []
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2):
            signal.signal(each, lambda number, _: got.append(number))
        print("ready", flush=True)
        while not got:
            signal.sigtimedwait([], 0.05)
        signal.sigtimedwait([], 0.05)
        report()
        print(*got)
        sys.exit(9)
    """)
    with subprocess.Popen(
        [*RUN, "--gate", "--", sys.executable, path], stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        told, _ = process.communicate(timeout=240)
    assert (told, process.returncode) == (f"{int(number)}\n", 9)


@pytest.mark.processes
def test_ctrl_c_in_a_terminal_reaches_the_program_once(program):
    path = program("""
        got = []
        signal.signal(signal.SIGINT, lambda number, _: got.append(number))
        print("ready", flush=True)
        while not got:
            signal.sigtimedwait([], 0.05)
        signal.sigtimedwait([], 0.2)
        report()
        print("got", len(got))
    """)
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [*RUN, "--gate", "--", sys.executable, path], environment())
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        told = b""
        while b"ready" not in told:
            told += screen.read(100)
        os.write(terminal, b"\x03")
        while b"got" not in told or not told.endswith(b"\n"):
            told += screen.read(100)
        _, status = os.waitpid(child, 0)
    assert told.rstrip().endswith(b"got 1")
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.processes
def test_a_report_is_left_in_the_file_that_is_named_and_never_an_old_one(program, tmp_path):
    file = tmp_path / "report.json"
    file.write_text(json.dumps(ENDED[0]))
    done = ran("--report", str(file), "--", sys.executable, program(f"report({LEFT!r}); sys.exit(4)"))
    assert (done.returncode, done.stderr) == (4, "")
    assert json.loads(file.read_text())["pending"] == [LEFT]
    done = ran("--report", str(file), "--", sys.executable, program("os._exit(0)"), HOPWATCH_BLACKBOX=str(tmp_path / "boxes"))  # fmt: skip
    assert done.returncode == 0
    assert json.loads(file.read_text())["pending"] is None


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "no command is given"),
        (["--gate", "--"], 2, "no command is given"),
        (["--drain", "long", "--", "python"], 2, "'long' is not a number of seconds"),
        (["--url", "there", "--", "python"], 2, "'there' is not an address"),
        (["--report", "/nowhere/report.json", "--", sys.executable], 2, "no report can be written"),
        (["--", "no-such-agent"], 127, "no command 'no-such-agent'"),
        (["--gate", "--", "no-such-agent"], 127, "no command 'no-such-agent'"),
        (["--", __file__], 126, "cannot be executed"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_sentence(arguments, code, says):
    done = ran(*arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.processes
def test_a_collector_that_the_environment_names_wrongly_is_refused_too():
    done = ran("--", sys.executable, "-c", "print(1)", HOPWATCH_URL="foo")
    assert (done.returncode, done.stdout) == (2, "")
    assert "HOPWATCH_URL: 'foo' is not an address" in done.stderr


def test_a_missing_exporter_is_named_with_the_extra_that_brings_it(monkeypatch):
    def version(distribution):
        if distribution == "opentelemetry-exporter-otlp-proto-http":
            raise run.metadata.PackageNotFoundError(distribution)
        return "1"

    monkeypatch.setattr(run.metadata, "version", version)
    chosen = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    with pytest.raises(
        run.RunError, match=r"opentelemetry-exporter-otlp-proto-http .* pip install 'hopwatch\[otlp\]'"
    ):
        run.check_installed(chosen, sys.executable)
    run.check_installed({**chosen, "OTEL_TRACES_EXPORTER": "none"}, sys.executable)
    run.check_installed(chosen, "/another/environment/bin/python")


@pytest.mark.processes
def test_a_task_that_the_runner_had_to_cancel_closes_the_gate(program):
    pytest.importorskip("hopwatch.exits")
    path = program("""
        import asyncio, hopwatch

        async def write_later():
            await asyncio.get_running_loop().create_future()

        async def main():
            with hopwatch.cascade("stocktaking"):
                global kept
                kept = asyncio.create_task(write_later())
                await asyncio.sleep(0)

        asyncio.run(main())
    """)
    done = ran("--gate", "--", sys.executable, path, **WATCHED)
    assert done.returncode == 17, done.stderr
    assert "write_later" in done.stderr
    assert f"{path}:" in done.stderr


@pytest.mark.processes
def test_a_program_that_leaves_nothing_passes_the_gate(program):
    pytest.importorskip("hopwatch.exits")
    path = program("""
        import asyncio, hopwatch

        async def main():
            with hopwatch.cascade("stocktaking"):
                await asyncio.create_task(asyncio.sleep(0.01))

        asyncio.run(main())
        sys.exit(6)
    """)
    done = ran("--gate", "--", sys.executable, path, **WATCHED)
    assert (done.returncode, done.stderr) == (6, "")


@pytest.mark.processes
def test_a_task_that_ended_as_its_loop_stopped_passes_the_gate_though_nobody_closes_the_loop(program):
    path = program("""
        import asyncio, hopwatch

        async def quick():
            print("ended")

        async def main():
            with hopwatch.cascade("stocktaking"):
                asyncio.create_task(quick())

        asyncio.new_event_loop().run_until_complete(main())
    """)
    done = ran("--gate", "--", sys.executable, path, **WATCHED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


@pytest.mark.processes
def test_what_a_killed_program_had_open_is_read_from_its_black_box(program, tmp_path):
    pytest.importorskip("hopwatch.blackbox")
    path = program("""
        import hopwatch
        with hopwatch.cascade("stocktaking"):
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = ran("--gate", "--", sys.executable, path, HOPWATCH_BLACKBOX=str(tmp_path / "boxes"), **WATCHED)
    assert done.returncode == 17
    assert "1 thing was pending" in done.stderr, done.stderr
    assert "task stocktaking" in done.stderr


@pytest.fixture
def plain_python(tmp_path):
    """An environment without hopwatch, or anything else."""
    folder = tmp_path / "another"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=100)
    return str(folder / "bin" / "python")


@pytest.mark.processes
def test_a_python_without_hopwatch_is_not_run_unseen(plain_python, program):
    path = f"{Path(plain_python).parent}:{os.environ['PATH']}"
    done = ran("--", "python", program("print('ran')"), PATH=path, PYTHONPATH="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: {plain_python} has no hopwatch, so nothing would be told of the program. Activate the environment that has it, "
        f"or name its Python: {sys.executable}\n"
    )


@pytest.mark.processes
def test_a_command_that_is_beside_hopwatch_and_not_on_the_path_is_named(tmp_path):
    done = ran("--", "hopwatch", "doctor", PATH=str(tmp_path))
    beside = Path(sys.executable).with_name("hopwatch")
    assert done.returncode == 127
    assert f"There is {beside}: activate its environment, or name it so." in done.stderr


@pytest.mark.processes
def test_a_setting_that_cannot_be_used_is_told_before_the_program_begins(program):
    done = ran("--", sys.executable, program("print('ran')"), HOPWATCH_DETAIL="lots")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert done.stderr == "hopwatch: HOPWATCH_DETAIL is 'lots'; it is hops or all. hops is used.\n"


def test_a_program_that_is_called_main_is_called_after_the_folder_that_it_is_started_in(
    tmp_path, monkeypatch
):
    (tmp_path / "planner").mkdir()
    monkeypatch.chdir(tmp_path / "planner")
    assert run.service_name(["uvicorn", "main:app"]) == "planner"
    assert run.service_name(["python", "-m", "main"]) == "planner"
    assert run.service_name(["python", "main.py"]) == "planner"


@pytest.mark.processes
def test_a_collector_that_is_not_there_is_told_of_before_the_program_begins(program, taken_port):
    told = {"OTEL_TRACES_EXPORTER": "otlp"}  # nothing is ever sent: hopwatch's instrumentation is off here
    nobody = f"http://127.0.0.1:{taken_port}"
    done = ran("--url", nobody, "--", sys.executable, program("print('ran')"), **told)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert f"hopwatch: no collector answers at {nobody} (" in done.stderr
    assert "Remedy: start `hopwatch serve`" in done.stderr
    # Where somebody else's settings say where telemetry goes, that is theirs to know.
    done = ran("--", sys.executable, program("print('ran')"), OTEL_EXPORTER_OTLP_ENDPOINT=nobody, **told)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        url = f"http://127.0.0.1:{somebody.getsockname()[1]}"
        done = ran("--url", url, "--", sys.executable, program("print('ran')"), **told)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


@pytest.fixture
def taken_port():
    """A port that is taken, and where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
