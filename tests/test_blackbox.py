"""Is what was open when a process died told of, once, and is nothing else ever trusted?"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import textwrap
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exported import fresh
from hopwatch import attributes as names
from hopwatch import blackbox, process, reaping, records
from hopwatch.blackbox import HEADER, SLOT, BlackBox, BoxError, OpenHop
from hopwatch.ledger import Ledger
from hopwatch.state_folder import FolderError
from hopwatch.telemetry import begin
from hopwatch.verdict import judge

pytestmark = pytest.mark.timeout(300)
CASCADE = "c" * 32


@pytest.fixture
def folder(tmp_path, monkeypatch):
    made = tmp_path / "boxes"
    monkeypatch.setenv("HOPWATCH_BLACKBOX", str(made))
    return made


@pytest.fixture(autouse=True)
def nothing_fails():
    process.failures.clear()
    yield
    assert process.failures == {}


class Recording:
    recording = True


class Boxed:
    """A ledger whose observer only writes the box."""

    def __init__(self, folder, agent="worker", instance="a" * 16):
        self.box = BlackBox(str(folder), instance, lambda: agent)
        self.ledger = Ledger(self)
        self._count = 0

    def opened(self, entry):
        self._count += 1
        entry.id = f"{self._count:016x}"
        entry.cascade = entry.cascade or CASCADE
        entry.parent_id = entry.parent.id if entry.parent is not None else ""
        entry.span = Recording()
        self.box.write(entry)

    def closed(self, entry):
        self.box.erase(entry)

    def late(self, parent):
        pass

    def open(self, kind="execution", name="work", parent=None, **attributes):
        return self.ledger.open(
            kind, name, parent, prepare=lambda entry: entry.__setattr__("attributes", attributes)
        )

    def bytes(self):
        # Not by its path: closing any descriptor of the file drops the lock.
        return bytes(self.box._map)

    def read(self):
        return blackbox.parse(self.bytes(), Path("own.box"))

    def told(self):
        return [hop.name for hop in self.read().hops]


def dead(folder, *hops, agent="worker", before="", after="os._exit(0)"):
    """A process that leaves a box with hops of these names; returns where it is."""
    code = f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_blackbox import Boxed
        {before}
        boxed = Boxed({str(folder)!r}, agent={agent!r}, instance=os.urandom(8).hex())
        for name in {hops!r}:
            boxed.open(name=name)
        print(boxed.box.path, flush=True)
        {after}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def in_files(folder):
    return sorted(path.name for path in folder.glob("*.box")) if folder.exists() else []


def eventually(holds, within=60.0):
    """Wait until something holds."""
    until = time.monotonic() + within
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def said_by_us(caplog):
    """What hopwatch has logged: what another test has left pending may be collected just now, and asyncio says so."""
    return [record.getMessage() for record in caplog.records if record.name == "hopwatch"]


def reaped(folder, **more):
    """What a look at the folder delivers."""
    delivered = []
    found = reaping.reap(str(folder), delivered.append, **more)
    assert found.boxes == delivered
    return found


# What a box says -----------------------------------------------------------------------------------------------


def test_a_box_tells_of_the_hops_that_are_open_and_of_their_process(folder):
    boxed = Boxed(folder)
    root = boxed.open("request", "SendMessage")
    boxed.open("execution", "Executor.execute", root)
    boxed.open("send", "gone", root).finish()
    told = boxed.read()
    assert (told.agent, told.pid, told.instance, told.boot) == (
        "worker",
        os.getpid(),
        "a" * 16,
        blackbox.boot_id(),
    )
    assert (told.leaving, told.torn, told.unplaced, told.reason) == (None, 0, 0, "process_killed")
    began = [hop.started for hop in told.hops]
    assert told.hops == (
        OpenHop(CASCADE, f"{1:016x}", None, False, "request", "SendMessage", began[0], None),
        OpenHop(CASCADE, f"{2:016x}", f"{1:016x}", False, "execution", "Executor.execute", began[1], None),
    )


def test_the_hops_of_a_real_process_are_written_and_erased_and_a_marker_tells_what_became_of_them(folder):
    here = fresh()
    here.telemetry._started, here.telemetry._idle = True, False
    parent = begin(here, "request", "POST /", None)
    assert here.box.path.parent == folder
    parent.kind, parent.name = "webhook", "process /push"
    parent.set(names.A2A_TASK_ID, "task-1")
    parent.started -= 10**9
    here.telemetry._tick(here)
    (hop,) = blackbox.parse(bytes(here.box._map), here.box.path).hops
    assert (hop.kind, hop.name, hop.task_id, hop.id, hop.cascade) == (
        "webhook", "process /push", "task-1", parent.id, parent.cascade,
    )  # fmt: skip
    parent.finish()
    assert blackbox.parse(bytes(here.box._map), here.box.path).hops == ()
    assert here.box.empty


def test_there_is_no_file_before_the_first_hop_and_none_where_it_is_switched_off(folder, monkeypatch):
    here = fresh()
    assert here.box.path is None
    assert not folder.exists()
    monkeypatch.setenv("HOPWATCH_BLACKBOX", "OFF")
    assert fresh().box is None


def test_a_path_that_is_none_is_told_of_and_the_default_holds(tmp_path):
    settings_ = process.read_settings({"HOPWATCH_BLACKBOX": "boxes", "XDG_STATE_HOME": str(tmp_path)})
    assert settings_.blackbox == f"{tmp_path}/hopwatch"
    (problem,) = settings_.problems
    assert problem.startswith("HOPWATCH_BLACKBOX is 'boxes'; it is the absolute path of a folder, or off")


@pytest.mark.parametrize(
    "name", ["ü" * 300, "\udc80 lone", "two\x1flines\n", "", "🙂" * 100, "x" * 300], ids=range(6)
)
def test_any_name_fits_and_stays_readable(folder, name):
    boxed = Boxed(folder)
    entry = boxed.open(name=name, **{names.A2A_TASK_ID: "t" * 36})
    wanted = process.encodable(name)
    for _ in range(2):
        (hop,) = boxed.read().hops
        assert wanted.startswith(hop.name)
        assert hop.name == wanted or len(hop.name.encode()) > 60
        boxed.box.rewrite(entry)
    assert hop.task_id == "t" * 36


@pytest.mark.parametrize("task", ["t" * 65, "a\x1fb", 7])
def test_a_task_id_that_does_not_fit_is_left_out(folder, task):
    boxed = Boxed(folder)
    boxed.box.rewrite(boxed.open(**{names.A2A_TASK_ID: task}))
    (hop,) = boxed.read().hops
    assert (hop.task_id, hop.name) == (None, "work")


def test_a_hop_that_a_message_brought_says_so(folder):
    here = fresh()
    here.telemetry._started, here.telemetry._idle = True, False
    from hopwatch.telemetry import Carrier

    hop = begin(here, "request", "SendMessage", None, carrier=Carrier("d" * 32, "e" * 16, None))
    for _ in range(2):
        (told,) = blackbox.parse(bytes(here.box._map), here.box.path).hops
        assert (told.cascade, told.parent, told.remote) == ("d" * 32, "e" * 16, True)
        here.box.rewrite(hop)
    hop.finish()


def test_a_box_grows_and_what_does_not_fit_is_counted(folder, monkeypatch, caplog):
    monkeypatch.setattr(blackbox, "MAX_SLOTS", 4 * blackbox.FIRST_SLOTS)
    boxed = Boxed(folder)
    hops = [boxed.open(name=f"hop {number}") for number in range(515)]
    told = boxed.read()
    assert (len(told.hops), told.unplaced) == (512, 3)
    assert told.reason == "process_killed; 3 more hops were open that did not fit into its black box"
    (said,) = said_by_us(caplog)
    assert said.startswith("hopwatch: the black box is full: 512 hops are open;")
    assert not boxed.box.empty
    hops[514].finish()
    hops[0].finish()
    boxed.open(name="fits again")
    assert (len(boxed.read().hops), boxed.read().unplaced) == (512, 2)
    for hop in boxed.ledger.open_hops():
        hop.finish()
    assert boxed.box.empty
    assert (boxed.read().hops, boxed.read().unplaced) == ((), 0)


def test_how_a_process_leaves_is_told_and_can_be_taken_back(folder):
    boxed = Boxed(folder)
    boxed.box.leaving("execv")  # before there is a file: nothing is open
    boxed.open()
    boxed.box.leaving("execv " + "ü" * 80)
    assert boxed.read().leaving == "execv " + "ü" * 28
    assert boxed.read().reason.startswith("execv")
    boxed.box.leaving(None)
    assert boxed.read().reason == "process_killed"


def test_what_opens_after_the_end_has_begun_comes_and_goes_and_what_was_open_then_stays(folder):
    boxed = Boxed(folder)
    before = boxed.open()
    boxed.box.seal("pending at shutdown: exit")
    before.finish("abandoned")
    for _ in range(10 * blackbox.FIRST_SLOTS):
        boxed.open().finish()
    after = boxed.open()
    assert {each.id for each in boxed.read().hops} == {before.id, after.id}
    assert len(boxed.bytes()) == HEADER + blackbox.FIRST_SLOTS * SLOT
    after.finish()
    assert [each.id for each in boxed.read().hops] == [before.id]


def test_a_box_is_small_private_and_gone_when_it_is_removed(folder):
    boxed = Boxed(folder)
    boxed.open()
    found = boxed.box.path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_size == HEADER + blackbox.FIRST_SLOTS * SLOT <= 64 * 1024
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not os.get_inheritable(boxed.box._file)
    boxed.box.remove()
    assert in_files(folder) == []
    boxed.open().finish()  # nobody hears of it, and nothing fails
    boxed.box.remove()
    assert in_files(folder) == []


def test_a_box_of_somebody_else_in_its_place_is_not_removed(folder):
    boxed = Boxed(folder)
    boxed.open()
    path = boxed.box.path
    path.rename(folder / "mine.txt")
    path.write_text("another's")
    boxed.box.remove()
    assert path.read_text() == "another's"


# Death at any moment -------------------------------------------------------------------------------------------


def torn_states(before, after, at):
    """What the file may hold if the process dies between the two: a slot is cleared, then filled; then another is freed."""
    changed = [
        start
        for start in range(HEADER, len(after), SLOT)
        if before[start : start + SLOT] != after[start : start + SLOT]
    ]
    for start in sorted(changed, key=lambda start: after[start + SLOT - 1] == 0):
        old, new = before[start : start + SLOT], after[start : start + SLOT]
        zeros = bytes(SLOT)
        if new[-1]:
            for count in at:
                yield before[:start] + zeros[:count] + old[count:] + before[start + SLOT :]
                yield before[:start] + new[:count] + zeros[count:] + before[start + SLOT :]
        before = before[:start] + new + before[start + SLOT :]


def identities(data):
    told = blackbox.parse(data, Path("own.box"))
    assert told.torn == 0
    return {hop.id for hop in told.hops}


def test_a_process_that_dies_at_any_byte_of_a_write_leaves_whole_slots_or_free_ones(folder):
    boxed = Boxed(folder)
    first = boxed.open(name="first")
    boxed.open(name="second")
    first.finish()
    before = boxed.bytes()
    boxed.open(name="third, over the slot of the first")
    after = boxed.bytes()
    seen = {frozenset(identities(state)) for state in torn_states(before, after, range(SLOT))}
    assert seen == {frozenset(identities(before))}  # the last byte makes it whole
    assert identities(after) == identities(before) | {f"{3:016x}"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["open", "open", "close", "rewrite"]), st.integers(0, 10**6), st.text(max_size=120)),
        min_size=1, max_size=25,
    ),
    at=st.lists(st.integers(0, SLOT - 1), min_size=1, max_size=4),
)  # fmt: skip
def test_whatever_a_process_was_doing_its_box_tells_of_what_was_open(tmp_path_factory, steps, at):
    boxed = Boxed(tmp_path_factory.mktemp("boxes"), instance="b" * 16)
    opened = [boxed.open()]
    for step, choice, name in steps:
        before = boxed.bytes()
        entry = opened[choice % len(opened)] if opened else None
        if step == "open" or entry is None:
            opened.append(boxed.open(name=name))
        elif step == "close":
            opened.remove(entry)
            entry.finish()
        else:
            entry.name = name
            boxed.box.rewrite(entry)
        after = boxed.bytes()
        assert identities(after) == {each.id for each in opened}
        assert {hop.id: hop.name for hop in boxed.read().hops}.keys() == {each.id for each in opened}
        for state in torn_states(before, after, at):
            assert (
                identities(before) & identities(after)
                <= identities(state)
                <= identities(before) | identities(after)
            )
    boxed.box.remove()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_box_with_any_bytes_changed_is_refused_or_tells_of_nothing_that_was_not_there(
    tmp_path_factory, data
):
    boxed = Boxed(tmp_path_factory.mktemp("boxes"), instance="b" * 16)
    for name in ("one", "two", "three"):
        boxed.open(name=name)
    real = set(boxed.read().hops)
    raw = bytearray(boxed.bytes()[: HEADER + 4 * SLOT] + bytes(SLOT * (blackbox.FIRST_SLOTS - 4)))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, HEADER + 4 * SLOT - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))])
    with contextlib.suppress(BoxError):
        assert set(blackbox.parse(cut, Path("own.box")).hops) <= real
    boxed.box.remove()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000))
def test_bytes_that_are_no_box_are_refused(raw):
    with pytest.raises(BoxError):
        blackbox.parse(raw, Path("own.box"))


# What is not to be trusted -------------------------------------------------------------------------------------


def with_header(path, **changes):
    """Change fields of a box's header, and make its checksum right again."""
    raw = bytearray(path.read_bytes())
    for field, value in changes.items():
        offset, form = {"version": (8, "<H"), "slot": (10, "<H"), "instance": (24, "16s"), "boot": (40, "36s"), "agent": (77, "8s"),
                        "slots": (288, "<I")}[field]  # fmt: skip
        struct.pack_into(form, raw, offset, value)
    struct.pack_into("<I", raw, 252, zlib.crc32(raw[:252]))
    path.write_bytes(raw)


def _linked(path):
    target = path.with_name("target")
    path.rename(target)
    path.symlink_to(target)


def _pipe(path):
    path.unlink()
    os.mkfifo(path, 0o600)


HOSTILE = {
    "empty": (lambda path: path.write_bytes(b""), "is not a black box"),
    "foreign": (lambda path: path.write_bytes(b"SQLite format 3" * 5000), "is not a black box"),
    "a header alone that breaks off": (lambda path: os.truncate(path, 200), "breaks off: it has 200 bytes"),
    "slots that break off": (lambda path: os.truncate(path, HEADER + 5 * SLOT), "says that it has 128 slots"),
    "a damaged header": (
        lambda path: path.write_bytes(path.read_bytes().replace(b"worker", b"planet", 1)),
        "damaged",
    ),
    "another format": (lambda path: with_header(path, version=2), "has format 2"),
    "other slots": (lambda path: with_header(path, slot=1), "has format 1"),
    "four billion slots": (
        lambda path: with_header(path, slots=2**32 - 1),
        "says that it has 4294967295 slots",
    ),
    "no slots": (lambda path: with_header(path, slots=0), "says that it has 0 slots"),
    "an instance that is none": (
        lambda path: with_header(path, instance=b"../../etc/passwd"),
        "names no process",
    ),
    "an instance that is no text": (
        lambda path: with_header(path, instance=b"\xff" * 16),
        "text that is none",
    ),
    "an agent that is no text": (lambda path: with_header(path, agent=b"\xff\xfe" * 4), "text that is none"),
    "a gigabyte": (lambda path: os.truncate(path, 2**30), "a box has at most"),
    "a link": (_linked, "is not a regular file"),
    "a pipe": (_pipe, "is not a regular file"),
    "a second name": (lambda path: os.link(path, path.with_name("other")), "has another name"),
    "writable by others": (lambda path: path.chmod(0o622), "can be written by other users"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_box_that_cannot_be_trusted_is_told_of_and_set_aside(folder, caplog, what):
    change, why = HOSTILE[what]
    path = dead(folder, "work")
    change(path)
    with pytest.raises(BoxError, match=why):
        blackbox.read(path)
    found = reaped(folder)
    assert [name for name, _ in found.set_aside] == [path.name]
    assert why in found.set_aside[0][1]
    assert found.boxes == []
    assert in_files(folder) == []
    kept = folder / "set-aside" / path.name
    assert os.path.lexists(kept)
    assert "set aside" in caplog.text
    if what == "a link":
        assert (folder / "target").stat().st_size > HEADER  # it was not followed
    assert reaped(folder).set_aside == []


def test_a_slot_that_is_torn_is_passed_over_and_counted(folder):
    path = dead(folder, "one", "two", "three")
    raw = bytearray(path.read_bytes())
    raw[HEADER + SLOT + 60] ^= 1
    path.write_bytes(raw)
    (box,) = reaped(folder).boxes
    assert ([hop.name for hop in box.hops], box.torn) == (["one", "three"], 1)
    assert box.reason == "process_killed; 1 slots of its black box cannot be read"


def slot(text, state=1, length=None):
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<248sIHxB", raw, zlib.adler32(raw), len(raw) if length is None else length, state)


@pytest.mark.parametrize(
    "raw",
    [
        slot("no separators"),
        slot(f"{'c' * 32}{'1' * 16}\x1f5\x1f\x1fgossip\x1f\x1fname"),
        slot(f"{'0' * 32}{'1' * 16}\x1f5\x1f\x1ftask\x1f\x1fname"),
        slot(f"{'c' * 32}{'0' * 16}\x1f5\x1f\x1ftask\x1f\x1fname"),
        slot(f"{'C' * 32}{'1' * 16}\x1f5\x1f\x1ftask\x1f\x1fname"),
        slot(f"{'c' * 32}{'1' * 16}{'1' * 16}\x1f5\x1f\x1ftask\x1f\x1fname"),
        slot(f"{'c' * 32}{'1' * 17}\x1f5\x1f\x1ftask\x1f\x1fname"),
        slot(f"{'c' * 32}{'1' * 16}\x1f-5\x1f\x1ftask\x1f\x1fname"),
        slot(f"{'c' * 32}{'1' * 16}\x1f0\x1f\x1ftask\x1f\x1fname"),
        slot(f"{'c' * 32}{'1' * 16}\x1f{2**63}\x1f\x1ftask\x1f\x1fname"),
        slot(f"{'c' * 32}{'1' * 16}\x1f٣\x1f\x1ftask\x1f\x1fname"),
        slot(b"\xff" * 100),
        slot("x", length=60_000),
        slot(f"{'c' * 32}{'1' * 16}\x1f5\x1f\x1ftask\x1f\x1fname", state=2),
    ],
)
def test_a_slot_that_this_process_cannot_have_written_is_not_believed(folder, raw):
    boxed = Boxed(folder)
    boxed.open(name="real")
    data = bytearray(boxed.bytes())
    data[HEADER + SLOT : HEADER + 2 * SLOT] = raw
    told = blackbox.parse(bytes(data), Path("own.box"))
    assert ([hop.name for hop in told.hops], told.torn) == (["real"], 1)


def test_only_so_many_files_are_kept_aside(folder):
    folder.mkdir(mode=0o700)
    for number in range(reaping.MAX_SET_ASIDE + 5):
        (folder / f"{number}.box").write_bytes(b"?")
    assert len(reaped(folder).set_aside) == reaping.MAX_SET_ASIDE + 5
    assert len(list((folder / "set-aside").iterdir())) == reaping.MAX_SET_ASIDE


def test_a_folder_among_the_boxes_is_left_where_it_is(folder):
    (folder / "strange.box").mkdir(parents=True)
    folder.chmod(0o700)
    assert reaped(folder).set_aside == []
    assert (folder / "strange.box").is_dir()


@pytest.mark.parametrize("kind", ["link", "writable", "file", "unreachable"])
def test_a_folder_that_others_could_have_filled_is_refused_with_one_remark_and_the_program_goes_on(
    tmp_path, caplog, kind
):
    place = tmp_path / "boxes"
    if kind == "link":
        (tmp_path / "real").mkdir()
        place.symlink_to(tmp_path / "real")
    elif kind == "writable":
        place.mkdir()
        place.chmod(0o777)
    elif kind == "file":
        place.write_text("")
    else:
        (tmp_path / "file").write_text("")
        place = tmp_path / "file" / "boxes"
    boxed = Boxed(place)
    for _ in range(3):
        boxed.open().finish()
    boxed.box.leaving("execv")
    boxed.box.remove()
    assert boxed.box.path is None
    (said,) = said_by_us(caplog)
    assert "boxes" in said
    with pytest.raises(FolderError):
        reaped(place)


def test_a_folder_that_does_not_exist_holds_no_dead(tmp_path):
    assert reaped(tmp_path / "nothing") == reaping.Reaped()


# Reaping -------------------------------------------------------------------------------------------------------


def test_what_was_open_in_a_dead_process_is_delivered_once_and_its_box_is_gone(folder):
    dead(folder, "one", "two")
    (box,) = reaped(folder).boxes
    assert [hop.name for hop in box.hops] == ["one", "two"]
    assert in_files(folder) == []
    assert reaped(folder) == reaping.Reaped()


def test_a_box_with_nothing_open_is_cleared_away_in_silence(folder):
    dead(folder, "one", after="[hop.finish() for hop in boxed.ledger.open_hops()]; os._exit(0)")
    assert reaped(folder) == reaping.Reaped()
    assert in_files(folder) == []


def test_a_delivery_that_fails_leaves_the_box_for_the_next_one(folder):
    path = dead(folder, "one")

    def deliver(_):
        raise OSError("no route")

    found = reaping.reap(str(folder), deliver)
    assert [(box.path, why) for box, why in found.undelivered] == [(path, "no route")]
    assert len(reaped(folder).boxes) == 1


def test_a_box_of_another_agent_is_left_to_its_own(folder):
    dead(folder, "one", agent="planner")
    assert reaped(folder, agent="worker").boxes == []
    assert len(reaped(folder, agent="planner").boxes) == 1


def test_a_process_does_not_take_its_own_box_for_a_dead_one_and_keeps_its_lock(folder):
    boxed = Boxed(folder)
    for _ in range(3 * blackbox.FIRST_SLOTS):  # it has grown
        boxed.open()
    for _ in range(3):
        assert reaped(folder) == reaping.Reaped()
    assert reaped_elsewhere(folder) == []
    with pytest.raises(BoxError, match="own box"):
        blackbox.read(boxed.box.path)
    assert reaped_elsewhere(folder) == []
    boxed.box.remove()


def reaped_elsewhere(folder, reapers=1):
    """What other processes find there, that look at the same moment: the instances that each delivered."""
    code = f"""
        import sys
        from hopwatch.reaping import reap
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(3):
            reap({str(folder)!r}, lambda box: print(box.instance, flush=True))
    """
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(reapers)
    ]
    for each in started:
        each.stdout.readline()
    for each in started:
        each.stdin.write("go\n")
        each.stdin.flush()
    return [line for each in started for line in each.communicate(timeout=60)[0].split()]


def test_several_reapers_at_once_deliver_each_box_once(folder):
    many = f"""
        boxes = [Boxed({str(folder)!r}, instance=f"{{number:016x}}") for number in range(60)]
        for each in boxes:
            each.open()
        os._exit(0)
    """
    code = f"import os, sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_blackbox import Boxed\n"
    subprocess.run([sys.executable, "-c", code + textwrap.dedent(many)], check=True, timeout=60)
    assert len(in_files(folder)) == 60
    assert sorted(reaped_elsewhere(folder, reapers=4)) == [f"{number:016x}" for number in range(60)]
    assert in_files(folder) == []


def test_a_box_that_was_never_finished_goes_after_a_minute(folder):
    folder.mkdir(mode=0o700)
    for name, age in (("old.new", 61), ("young.new", 5)):
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (time.time() - age,) * 2)
    reaped(folder)
    assert [path.name for path in folder.iterdir()] == ["young.new"]


# What the record means -----------------------------------------------------------------------------------------


def abandoned(hop, *, at=50, instance="a" * 16, parent=None):
    told = OpenHop(CASCADE, hop, parent, False, "execution", "work", 10, None)
    return records.read_hop(
        records.abandoned_attributes(told, instance, "process_killed"), agent="worker", cascade=CASCADE, span="f" * 16,
        parent_span=hop, name="hopwatch.abandoned", start=at, end=at, arrived=at,
    )  # fmt: skip


def ended(hop, *, at=20, parent=None, children=0):
    says = {
        names.RECORD: "end",
        names.INSTANCE: "a" * 16,
        names.HOP_KIND: "execution",
        names.HOP_CHILDREN: children,
    }
    if parent:
        says[names.HOP_PARENT] = parent
    return records.read_hop(
        says,
        agent="worker",
        cascade=CASCADE,
        span=hop,
        parent_span="",
        name="work",
        start=10,
        end=at,
        arrived=at,
    )


def merged(*told):
    hop, *others = told
    for other in others:
        hop.merge(other)
    return hop


def test_the_record_of_a_dead_process_reads_back_as_an_abandoned_hop():
    hop = abandoned("1" * 16, parent="2" * 16)
    assert (hop.id, hop.parent, hop.instance, hop.kind, hop.name) == (
        "1" * 16,
        "2" * 16,
        "a" * 16,
        "execution",
        "work",
    )
    assert (hop.started, hop.ended, hop.outcome, hop.reason) == (10, 50, "abandoned", "process_killed")


def test_what_is_told_twice_counts_once_and_a_true_end_goes_before_whoever_comes_first():
    one = "1" * 16
    twice = merged(abandoned(one, at=50), abandoned(one, at=40))
    assert twice == merged(abandoned(one, at=40), abandoned(one, at=50))
    assert (twice.ended, twice.outcome) == (40, "abandoned")
    for told in (
        [ended(one), abandoned(one)],
        [abandoned(one), ended(one)],
        [abandoned(one), ended(one), abandoned(one)],
    ):
        hop = merged(*told)
        assert (hop.ended, hop.outcome, hop.reason) == (20, "finished", None)


@given(
    st.lists(st.sampled_from(["nothing", "end", "abandoned", "both"]), min_size=1, max_size=6), st.booleans()
)
def test_a_hop_that_only_its_box_tells_of_makes_the_cascade_broken_and_never_settled(kinds, declared):
    root = "f" * 16
    hops = {root: ended(root, children=len(kinds) if declared else 0)}
    for number, kind in enumerate(kinds, 1):
        hop = f"{number:016x}"
        told = []
        if kind in ("end", "both"):
            told.append(ended(hop, parent=root))
        if kind in ("abandoned", "both"):
            told.append(abandoned(hop, parent=root))
        if told:
            hops[hop] = merged(*told)
    verdict = judge(hops, {}, now=10**12)
    if "abandoned" in kinds:
        assert verdict.verdict == "broken"
        assert "process_killed" in verdict.reason
    elif "nothing" in kinds and declared:
        assert verdict.verdict == "unknown"


# Processes that share, fork and replace themselves -------------------------------------------------------------

AGENT = """
    import asyncio, ctypes, os, resource, signal, sys
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    provider = TracerProvider(resource=Resource.create({"service.name": os.environ["AGENT"]}))
    if "ENDPOINT" in os.environ:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(os.environ["ENDPOINT"] + "/v1/traces")))
    trace.set_tracer_provider(provider)
    import hopwatch
    from hopwatch import process
    from hopwatch.instrumentation.asyncio import AsyncioInstrumentor
    AsyncioInstrumentor().instrument()
    if "UVLOOP" in os.environ:
        import uvloop
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

    def box():
        return process.here().box

    async def main():
        with hopwatch.cascade("nightly") as cascade:
            print(cascade.id, flush=True)
            loop = asyncio.get_running_loop()
            word = loop.create_future()
            loop.add_reader(sys.stdin.fileno(), lambda: word.done() or word.set_result(sys.stdin.readline()))
            await word
            WAY_OUT

    if __name__ == "__main__":
        asyncio.run(main())
"""


class Agent:
    """A process with one hop open: its cascade is known, and a word on its input makes it go on."""

    def __init__(self, folder, end="pass", *, name="worker", endpoint=None, uvloop=False, **more):
        end = textwrap.indent(textwrap.dedent(end), " " * 8).strip()
        code = textwrap.dedent(AGENT).replace("WAY_OUT", end)
        extra = {**more, **({"ENDPOINT": endpoint} if endpoint else {})}
        extra |= {"UVLOOP": "1"} if uvloop else {}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "HOPWATCH_BLACKBOX": str(folder), "AGENT": name, **extra},
        )  # fmt: skip
        self.cascade = self.process.stdout.readline().strip()

    def __enter__(self):
        if len(self.cascade) != 32:
            self.__exit__()
            raise AssertionError("the agent did not start")
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(60)
        self.process.stdin.close()
        self.process.stdout.close()

    def go(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def line(self):
        return self.process.stdout.readline().strip()

    def kill(self):
        self.process.kill()
        self.process.wait(60)


pytest_processes = pytest.mark.processes


@pytest_processes
def test_a_process_that_lives_or_is_stopped_is_not_reaped_and_one_that_was_killed_is(folder):
    with Agent(folder) as agent:
        assert reaped(folder) == reaping.Reaped()
        assert blackbox.read(next(folder.glob("worker-*.box"))).pid == agent.process.pid
        agent.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, agent.process.pid, os.WSTOPPED | os.WNOWAIT)
        assert reaped(folder) == reaping.Reaped()
        agent.process.send_signal(signal.SIGCONT)
        agent.kill()
        (box,) = reaped(folder).boxes
        assert [(hop.cascade, hop.kind, hop.name) for hop in box.hops] == [(agent.cascade, "task", "nightly")]


@pytest_processes
@pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
def test_a_process_that_ends_cleanly_leaves_no_box(folder, uvloop):
    with Agent(folder, uvloop=uvloop) as agent:
        assert len(in_files(folder)) == 1
        agent.go()
        assert agent.process.wait(60) == 0
        assert in_files(folder) == []


@pytest_processes
def test_what_is_open_at_the_end_is_left_to_be_found_where_the_report_of_it_does_not_get_through(folder):
    end = "cascade.__exit__ = None; left = hopwatch.cascade('left'); left.__enter__()"
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # it takes connections and never answers
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with Agent(
            folder, end, endpoint=endpoint, HOPWATCH_SHUTDOWN_TIMEOUT="0.3", OTEL_EXPORTER_OTLP_TIMEOUT="1"
        ) as agent:
            agent.go()
            assert agent.process.wait(60) == 0
    (box,) = reaped(folder).boxes
    assert [hop.name for hop in box.hops] == ["left"]
    assert box.reason == "pending at shutdown: the interpreter exited"


@pytest_processes
def test_a_forked_child_has_a_box_of_its_own_and_leaves_its_parents_lock_alone(folder):
    forks = """
        child = os.fork()
        if child == 0:
            inside = hopwatch.cascade('in the child')
            inside.__enter__()
            os._exit(0)
        os.waitpid(child, 0)
        print(child, flush=True)
        await loop.create_future()
    """
    with Agent(folder, forks) as agent:
        agent.go()
        child = int(agent.line())
        (box,) = reaped(folder).boxes  # the child's
        assert (box.pid, [hop.name for hop in box.hops]) == (child, ["in the child"])
        assert reaped(folder) == reaping.Reaped()  # the parent lives, and its lock with it
        agent.kill()
        (box,) = reaped(folder).boxes
        assert (box.pid, [hop.name for hop in box.hops]) == (agent.process.pid, ["nightly"])


@pytest_processes
def test_a_process_that_replaces_itself_has_ended(folder):
    with Agent(folder, "os.execv('/bin/sh', ['sh', '-c', 'echo replaced; read word'])") as agent:
        agent.go()
        assert agent.line() == "replaced"
        (box,) = reaped(folder).boxes
        assert (box.pid, box.reason) == (agent.process.pid, "execv")


@pytest_processes
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="ci: may be skipped where there is no /proc")
def test_a_process_that_closes_all_its_descriptors_has_lost_its_lock_and_is_not_taken_for_dead(folder):
    with Agent(folder, "os.closerange(3, 4096); print('closed', flush=True); os.read(0, 1)") as agent:
        agent.go()
        assert agent.line() == "closed"
        assert reaped(folder) == reaping.Reaped()
        agent.kill()
        assert len(reaped(folder).boxes) == 1


@pytest_processes
def test_a_process_that_is_killed_while_its_threads_open_and_close_hops_leaves_nothing_torn(folder):
    busy = """
        import threading
        def work(name):
            while True:
                with hopwatch.cascade(name):
                    with hopwatch.cascade("inner " + name):
                        pass
        for number in range(3):
            threading.Thread(target=work, args=(f"thread {number}",), daemon=True).start()
        print("busy", flush=True)
        await loop.create_future()
    """
    for _ in range(5):
        with Agent(folder, busy) as agent:
            agent.go()
            assert agent.line() == "busy"
            agent.kill()
        (box,) = reaped(folder).boxes
        assert (box.torn, box.unplaced) == (0, 0)
        assert 1 <= len(box.hops) <= 7
        assert "nightly" in [hop.name for hop in box.hops]


# With a real collector -----------------------------------------------------------------------------------------

sys.path.insert(0, str(Path(__file__).parent / "collector"))
from telling import collector  # noqa: E402

ENDS = {
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "_exit": ("os._exit(3)", 3),
    "segfault": ("ctypes.string_at(0)", -signal.SIGSEGV),
    "abort": ("os.abort()", -signal.SIGABRT),
}


OPEN = {"in_flight", "stalled"}
BROKEN = {"broken"}


def url(running):
    return f"http://127.0.0.1:{running.port}"


def until(running, cascade, verdict, within=60.0):
    """Wait for one of some verdicts; returns the cascade."""
    began = time.monotonic()
    while True:
        with contextlib.suppress(AssertionError):
            told = running.get(f"/api/cascades/{cascade}")
            if told["verdict"] in verdict:
                return told
        assert time.monotonic() - began < within, f"not {verdict} within {within} s"
        time.sleep(0.02)


@pytest_processes
@pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("way", ENDS)
def test_a_process_that_dies_without_a_word_breaks_its_cascade(folder, tmp_path, way, uvloop):
    code, exit_code = ENDS[way]
    with (
        collector(tmp_path / "hops.sqlite", "--blackbox", str(folder)) as running,
        Agent(folder, code, endpoint=url(running), uvloop=uvloop) as agent,
    ):
        until(running, agent.cascade, OPEN)
        agent.go()
        assert agent.process.wait(60) == exit_code
        told = until(running, agent.cascade, BROKEN)
        assert "process_killed" in told["reason"]
        (hop,) = told["hops"]
        assert (hop["name"], hop["outcome"], hop["reason"], hop["agent"]) == (
            "nightly", "abandoned", "process_killed", "worker",
        )  # fmt: skip
        eventually(lambda: in_files(folder) == [])  # it goes once what was in it is stored
        (found,) = running.get("/api/agents")["agents"]
        assert (found["state"], found["pid"], found["ended"]["how"], found["ended"]["pending"]) == (
            "ended", agent.process.pid, "process_killed", {"task": 1},
        )  # fmt: skip


@contextlib.contextmanager
def memory_for(process, size):
    """Let a process have no more memory than that, by a control group of the kernel's; skips where none may be made."""
    groups = Path("/sys/fs/cgroup")
    if (groups / "cgroup.controllers").exists():
        group, limit, swap = groups / f"hopwatch-{process.pid}", "memory.max", ("memory.swap.max", 0)
    else:
        group, limit = groups / "memory" / f"hopwatch-{process.pid}", "memory.limit_in_bytes"
        swap = ("memory.memsw.limit_in_bytes", size)
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"ci: may be skipped: no control group can be made here ({error})")
    try:
        try:
            (group / limit).write_text(str(size))
            if (group / swap[0]).exists():
                (group / swap[0]).write_text(str(swap[1]))
            (group / "cgroup.procs").write_text(str(process.pid))
        except OSError as error:
            pytest.skip(f"ci: may be skipped: memory cannot be bounded here ({error})")
        yield
    finally:
        process.kill()
        process.wait(60)
        eventually(lambda: _gone(group))


def _gone(group):
    with contextlib.suppress(OSError):  # the kernel lets go of a dead process in its own time
        group.rmdir()
    return not group.exists()


@pytest_processes
def test_a_process_that_the_kernel_kills_for_want_of_memory_breaks_its_cascade(folder, tmp_path):
    eats = "hoard = []\nwhile len(hoard) < 1_000:\n    hoard.append(bytearray(os.urandom(1 << 20)))"
    with (
        collector(tmp_path / "hops.sqlite", "--blackbox", str(folder)) as running,
        Agent(folder, eats, endpoint=url(running)) as agent,
        memory_for(agent.process, 256 << 20),
    ):
        until(running, agent.cascade, OPEN)
        agent.go()
        assert agent.process.wait(60) == -signal.SIGKILL
        told = until(running, agent.cascade, BROKEN)
        (hop,) = told["hops"]
        assert (hop["outcome"], hop["reason"]) == ("abandoned", "process_killed")


@pytest_processes
def test_a_process_that_died_before_it_told_anything_is_told_of(folder, tmp_path):
    with Agent(folder) as agent:  # its telemetry goes nowhere
        agent.kill()
        with collector(tmp_path / "hops.sqlite", "--blackbox", str(folder)) as running:
            told = until(running, agent.cascade, BROKEN)
            assert [hop["reason"] for hop in told["hops"]] == ["process_killed"]


@pytest_processes
def test_the_next_process_of_the_same_agent_tells_of_the_one_that_died(folder, tmp_path):
    with collector(tmp_path / "hops.sqlite") as running:  # as on another host: it looks into no folder
        with Agent(folder, endpoint=url(running)) as first:
            told = until(running, first.cascade, OPEN)
            first.kill()
        with Agent(folder, endpoint=url(running), name="planner"):
            pass
        with Agent(folder, endpoint=url(running)) as second:
            told = until(running, first.cascade, BROKEN)
            assert "process_killed" in told["reason"]
            (hop,) = told["hops"]
            assert (hop["agent"], hop["name"]) == ("worker", "nightly")
            until(running, second.cascade, OPEN)
            # The box goes once the second process has heard that what was in it is stored.
            (own,) = [path.name for path in folder.glob(f"worker-{second.process.pid}-*.box")]
            eventually(lambda: [name for name in in_files(folder) if name.startswith("worker-")] == [own])
            assert blackbox.read(folder / own).path.name == own


def command(*words):
    done = subprocess.run(
        [sys.executable, "-m", "hopwatch", "reap", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


@pytest_processes
def test_hopwatch_reap_tells_a_collector_by_hand_and_says_what_it_found(folder, tmp_path):
    dead(folder, "one", "two")
    with collector(tmp_path / "hops.sqlite") as running:
        nobody = command("--folder", str(folder), "--url", "http://127.0.0.1:9", "--json")
        assert nobody.returncode == 1
        (left,) = json.loads(nobody.stdout)["undelivered"]
        assert "no collector can be reached" in left["problem"]
        assert len(in_files(folder)) == 1
        done = command("--folder", str(folder), "--url", url(running))
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0] == f"1 process that died with work open in {folder}"
        assert lines[1].startswith("worker  pid ")
        assert lines[1].endswith("2 hops open  process_killed  delivered")
        assert [line.split()[2] for line in lines[2:]] == ["one", "two"]
        until(running, CASCADE, BROKEN)
        again = command("--folder", str(folder), "--url", url(running), "--json")
        assert (again.returncode, json.loads(again.stdout)) == (
            0,
            {"delivered": [], "undelivered": [], "set_aside": []},
        )


def test_hopwatch_reap_refuses_a_folder_that_others_can_write(folder):
    folder.mkdir()
    folder.chmod(0o777)
    done = command("--folder", str(folder))
    assert done.returncode == 1
    assert "can be written to by others" in done.stderr
    assert command("--folder", "boxes").returncode == 2
