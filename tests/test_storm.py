"""Does any way out, at any moment, make a verdict false? A short storm; `make storm` is the long one."""

import pytest

from storm import truth
from storm.plan import ALIVE, KILLED, ONWARDS, WAYS, Run, planned
from storm.running import storm
from storm.table import table
from ways_out import PATIENT

SEED = 4
ALONE = Run(0, "0/0", "sigkill", "alone", "asyncio", 5, 0.0, "hops", hangs=False)


@pytest.mark.processes
@pytest.mark.timeout(900)
def test_programs_end_in_every_way_and_nothing_that_is_said_of_them_is_false(tmp_path):
    found = storm(tmp_path, planned(SEED, len(WAYS)), jobs=3, **PATIENT)
    assert {done.run.way for done in found} == set(WAYS)
    assert {done.run.loop for done in found} == {"asyncio", "uvloop"}
    assert {role for done in found for role in done.codes} == {"alone", "user", "planner", "worker"}
    assert [done.line() for done in found if done.faults] == []
    # It is about something: work was lost in most runs, and it is not all unknown.
    assert sum(any(work.lost for work in done.diary.work.values()) for done in found) >= 8
    assert sum("broken" in done.verdicts.values() for done in found) >= 8
    assert f"Seed {SEED}, {len(WAYS)} runs: 0 with a fault." in table(found, SEED)


@pytest.mark.processes
@pytest.mark.timeout(600)
def test_work_that_is_hidden_from_hopwatch_is_found_by_the_storm_to_be_called_settled_falsely(tmp_path):
    run = Run(0, "control/1", "return", "alone", "asyncio", 9, 0.0, "hops", hangs=True)
    (done,) = storm(tmp_path, [run], HOPWATCH_SERVICE_LOOPS="__main__:r[0-9]*", **PATIENT)
    assert any("FALSE settled" in each for each in done.faults), done.line()
    assert table([done], SEED).splitlines()[2].startswith("| return | 1 |")
    assert table([done], SEED).splitlines()[2].endswith("| 1 |")


# What the storm takes for true ------------------------------------------------------------------------------------------


def diary_of(tmp_path, *lines):
    path = tmp_path / "run.diary"
    path.write_text("".join(f"{line}\n" for line in ("alone R r0 c0ffee", *lines)))
    return truth.read(path)


def told(verdict, *hops):
    return {
        "verdict": verdict,
        "reason": "so",
        "hops": [
            {
                "kind": "task", "agent": "storm-0-alone", "name": name, "outcome": outcome, "reason": reason,
                "state": "open" if outcome is None else "ended",
            }
            for name, outcome, reason in hops
        ],
    }  # fmt: skip


def test_the_same_seed_gives_the_same_storm_and_each_way_out_its_turn():
    assert planned(1, 200) == planned(1, 200)
    assert planned(1, 200) != planned(2, 200)
    ways = [run.way for run in planned(1, 10 * len(WAYS))]
    assert {way: ways.count(way) for way in WAYS} == dict.fromkeys(WAYS, 10)
    assert set(truth.REASONS) == set(truth.CODES) == set(WAYS)


@pytest.mark.parametrize(
    ("lines", "lost"),
    [
        (["alone S r0.0d", "alone W sigkill"], True),
        (["alone S r0.0d", "alone E r0.0d ok", "alone W sigkill"], False),
        (["alone S r0.0d", "alone E r0.0d failed"], False),
        (["alone S r0.0d", "alone E r0.0d collected"], True),
        (["alone S r0.0d", "alone W return", "alone E r0.0d cancelled"], True),
        (["alone S r0.0d", "user W return", "alone E r0.0d cancelled"], False),
        (["alone S r0.0d", "alone D r0.0d", "alone W return", "alone E r0.0d cancelled"], False),
    ],
)
def test_work_is_lost_that_has_not_come_to_an_end_of_its_own(lines, lost, tmp_path):
    diary = diary_of(tmp_path, *lines)
    assert diary.work["r0.0d"].lost is lost
    assert any("FALSE settled" in each for each in truth.faults(ALONE, diary, "r0", told("settled"))) is lost


@pytest.mark.parametrize(
    ("cascade", "fault"),
    [
        (told("broken", ("r0.0d", "abandoned", "process_killed")), None),
        (told("silent", ("r0.0d", None, None)), "1 were lost by sigkill"),
        (told("unknown"), "1 were lost by sigkill"),
        (told("broken", ("r0.0d", None, None)), "is open, and it is broken"),
        (told("broken", ("r0.0d", "abandoned", "pending at shutdown: SIGINT")), "was abandoned for"),
        (told("broken", ("r0.0d", "finished", None)), "is finished"),
        (told("in_flight", ("r0.0d", None, None)), "for good"),
        (None, "1 were lost by sigkill"),
    ],
    ids=lambda value: None if value is None or isinstance(value, str) else value["verdict"],
)
def test_what_is_said_of_a_killed_process_is_compared_with_its_diary(cascade, fault, tmp_path):
    diary = diary_of(tmp_path, "alone S r0.0d", "alone W sigkill")
    found = truth.faults(ALONE, diary, "r0", cascade)
    assert not any("FALSE" in each for each in found)
    assert found == [] if fault is None else any(fault in each for each in found)


def test_settled_while_work_goes_on_is_false_unless_that_began_late(tmp_path):
    before = diary_of(tmp_path, "alone S r0.0d", "alone S r0.1L")
    assert truth.false_settled(before, before, "r0") == ["r0.0d"]
    after = diary_of(tmp_path, "alone S r0.0d", "alone S r0.1L", "alone E r0.0d ok")
    assert truth.false_settled(before, after, "r0") == []


@pytest.mark.parametrize(
    ("cascade", "fault"),
    [
        (None, None),
        (told("settled", ("r0.0d", "finished", None)), None),
        (told("silent", ("r0.0d", None, None)), None),
        (told("broken", ("r0.0d", None, None)), None),
        (told("stalled", ("r0.0d", None, None)), "is open, and it is stalled"),
        (told("settled", ("r0.0d", "failed", None)), "is failed"),
    ],
    ids=lambda value: None if value is None or isinstance(value, str) else value["verdict"],
)
def test_what_was_over_before_its_process_was_killed_may_have_been_told_of_or_not(cascade, fault, tmp_path):
    diary = diary_of(tmp_path, "alone S r0.0d", "alone E r0.0d ok", "alone W sigkill")
    found = truth.faults(ALONE, diary, "r0", cascade)
    assert found == [] if fault is None else any(fault in each for each in found)


def test_every_way_out_is_of_one_kind():
    assert len(WAYS) == len(set(WAYS)) == len(ONWARDS) + len(ALIVE) + len(KILLED)
