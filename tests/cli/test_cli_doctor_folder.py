"""What does `hopwatch doctor` say of the folder of black boxes and sockets? Real processes leave what is in it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from canned_cascades import hopwatch

from hopwatch import reaping
from hopwatch.cli import left
from hopwatch.cli.doctor import examine
from test_blackbox import dead

NOT_TOLD = "what an agent has open when it is killed is not told of"
NOT_ASKED = "no agent can be asked by `hopwatch ps`"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "left"


def environment_of(folder):
    return {"HOPWATCH_BLACKBOX": str(folder), "HOME": "/"}


def told(folder):
    """Of the black boxes: level and text of what was found."""
    return [(each.level, each.text) for each in left.boxes(environment_of(folder))]


def asked(folder):
    """Of the sockets."""
    return [(each.level, each.text) for each in left.sockets(environment_of(folder))]


def everything_in(folder):
    return sorted((str(path.relative_to(folder)), path.lstat().st_mode) for path in folder.rglob("*"))


def test_a_folder_that_is_not_there_yet_is_none_to_worry_about_and_is_not_made(folder):
    assert told(folder) == [("ok", f"the folder {folder} will be made by the first agent")]
    assert asked(folder) == [("ok", f"each agent will have one in {folder}")]
    assert not folder.exists()


def test_what_died_with_hops_open_is_told_of_and_left_where_it_is(folder):
    dead(folder, "a", "b", agent="planner")
    dead(folder, "c")
    before = everything_in(folder)
    healthy, lost = left.boxes(environment_of(folder))
    assert (healthy.level, healthy.text) == ("ok", f"the folder {folder} has no boxes of processes that live")
    pids = {box.agent: box.pid for box in reaping.lying(folder).dead}
    assert (lost.level, lost.text) == (
        "warning",
        "2 processes died with 3 hops open, and nobody has told of it: "
        + ", ".join(
            f"{agent} (process {pids[agent]}, {count} open)"
            for agent, count in (("planner", 2), ("worker", 1))
        ),
    )
    assert "hopwatch reap" in lost.remedy
    assert everything_in(folder) == before
    found = reaping.reap(str(folder), lambda _: None)
    assert sorted(box.agent for box in found.boxes) == ["planner", "worker"]
    assert told(folder) == [(healthy.level, healthy.text)]


def test_of_many_that_died_some_are_named_and_the_rest_counted(folder):
    for number in range(5):
        dead(folder, "a", agent=f"agent{number}")
    (_, text) = told(folder)[1]
    assert text.startswith("5 processes died with 5 hops open")
    assert text.count("(process ") == left.MOST_NAMED
    assert text.endswith(", and 2 more")


def test_what_died_with_nothing_open_is_a_note(folder):
    dead(folder, "a", after="[each.finish() for each in boxed.ledger.open_hops()]; os._exit(0)")
    assert told(folder)[1:] == [("note", "1 process died with nothing open and left a box")]


def test_a_process_that_lives_has_its_box_and_keeps_its_lock(folder):
    program = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from test_blackbox import Boxed
boxed = Boxed({str(folder)!r}, instance=os.urandom(8).hex())
boxed.open(name="work")
print("open", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as one:
        try:
            assert one.stdout.readline() == b"open\n"
            for _ in range(3):
                assert told(folder) == [("ok", f"the folder {folder} has 1 box of processes that live")]
            assert reaping.reap(str(folder), lambda _: None).boxes == []
        finally:
            one.kill()
            one.wait()
    assert [level for level, _ in told(folder)] == ["ok", "warning"]


def test_a_file_that_cannot_be_trusted_is_told_of_before_and_after_it_was_set_aside(folder):
    folder.mkdir(mode=0o700)
    (folder / "worker-1-x.box").write_bytes(b"somebody wrote this \x1b[31m")
    os.mkfifo(folder / "pipe.box")
    _, (level, text) = told(folder)
    assert (level, text) == (
        "warning",
        "2 files cannot be trusted: pipe.box is not a regular file, worker-1-x.box is not a black box",
    )
    reaping.reap(str(folder), lambda _: None)
    assert told(folder)[1:] == [("note", "2 files that could not be trusted were set aside")]
    assert str(folder / "set-aside") in list(left.boxes(environment_of(folder)))[1].remedy


def test_a_name_that_an_agent_gave_itself_comes_without_control_characters(folder):
    dead(folder, "a", agent="\x1b[31mred")
    assert "\x1b" not in told(folder)[1][1]


def test_a_folder_that_others_can_write_to_is_refused_by_both(folder):
    folder.mkdir()
    folder.chmod(0o777)
    problem = f"the folder {folder} can be written to by others (mode 0777)"
    assert told(folder) == [("problem", f"{problem}: {NOT_TOLD}")]
    assert asked(folder) == [("problem", f"{problem}: {NOT_ASKED}")]
    folder.chmod(0o700)
    assert [level for level, _ in told(folder) + asked(folder)] == ["ok", "ok"]


def test_a_link_a_file_and_what_stands_below_a_file_are_refused(folder, tmp_path):
    tmp_path.joinpath("file").touch()
    folder.symlink_to(tmp_path)
    for each in (folder, tmp_path / "file", tmp_path / "file" / "below"):
        assert [level for level, _ in told(each) + asked(each)] == ["problem", "problem"], each


@pytest.mark.parametrize("below", [".", "below"])
def test_a_folder_that_cannot_be_written_to_or_made_is_told_of(tmp_path, monkeypatch, below):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.geteuid() == 0:  # whom no mode keeps from writing
        monkeypatch.setattr(os, "access", lambda *_: False)
    where = locked / below
    how = "written to" if below == "." else f"made in {locked}"
    assert told(where) == [("problem", f"the folder {where} cannot be {how}: {NOT_TOLD}")]
    assert asked(where) == [("problem", f"the folder {where} cannot be {how}: {NOT_ASKED}")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away; ci: may be skipped")
def test_a_folder_of_another_user_is_refused(folder):
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, -1)
    problem = f"the folder {folder} belongs to user 12345, not to 0"
    assert told(folder) == [("problem", f"{problem}: {NOT_TOLD}")]
    assert asked(folder) == [("problem", f"{problem}: {NOT_ASKED}")]


def test_switched_off_is_a_note_and_for_a_path_that_is_none_the_default_holds(folder):
    assert told("off") == [("note", f"HOPWATCH_BLACKBOX=off: {NOT_TOLD}")]
    assert asked("off") == [("note", f"HOPWATCH_BLACKBOX=off: {NOT_ASKED}")]
    environment = {"HOPWATCH_BLACKBOX": "some/where", "XDG_STATE_HOME": str(folder)}
    for each in (*left.boxes(environment), *left.sockets(environment)):
        assert (each.level, f"{folder}/hopwatch" in each.text) == ("ok", True)


def test_a_folder_below_the_home_is_that_of_whoever_has_the_environment(folder):
    environment = {"HOPWATCH_BLACKBOX": "~/boxes", "HOME": str(folder)}
    for each in (*left.boxes(environment), *left.sockets(environment)):
        assert (each.level, f"{folder}/boxes" in each.text) == ("ok", True)


def test_a_user_without_a_home_is_warned(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it does where nobody knows one
    (box,) = left.boxes({})
    (socket,) = left.sockets({})
    assert (box.level, socket.level) == ("warning", "warning")
    assert "no home folder" in box.text


def test_a_socket_that_answers_is_counted_and_one_of_a_dead_process_is_told_apart(folder):
    program = """
import os, sys, time
from pathlib import Path
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
AsyncioInstrumentor().instrument()
folder = Path(os.environ["HOPWATCH_BLACKBOX"])
until = time.monotonic() + 30
while not list(folder.glob("*.sock")) and time.monotonic() < until:  # a thread makes it
    time.sleep(0.01)
print("ready", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "HOPWATCH_BLACKBOX": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as one:
        try:
            assert one.stdout.readline() == b"ready\n"
            assert asked(folder) == [("ok", f"1 process can be asked by `hopwatch ps` in {folder}")]
        finally:
            one.kill()
            one.wait()
    ((level, text),) = asked(folder)
    assert (level, text) == (
        "ok",
        f"0 processes can be asked by `hopwatch ps` in {folder}; of dead ones there is 1, which the next one removes",
    )


def test_the_command_says_all_of_it_and_every_problem_and_warning_has_a_remedy(folder, collector):
    dead(folder, "a")
    found = examine({"HOPWATCH_BLACKBOX": str(folder)}, collector.url)
    assert [each.subject for each in found if each.subject in ("black box", "socket")] == [
        "black box",
        "black box",
        "socket",
    ]
    done = hopwatch("doctor", "--url", collector.url, HOPWATCH_BLACKBOX=str(folder))
    assert "warning: black box: 1 process died with 1 hop open" in done.stdout
    folder.chmod(0o777)
    done = hopwatch("doctor", "--url", collector.url, HOPWATCH_BLACKBOX=str(folder))
    assert done.returncode == 1
    assert "problem: black box: " in done.stdout
    for environment in (str(folder), "off", "x"):
        found = [*left.boxes(environment_of(environment)), *left.sockets(environment_of(environment))]
        assert all(each.remedy for each in found if each.level != "ok")
