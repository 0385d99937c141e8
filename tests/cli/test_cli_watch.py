"""When does waiting end? With a clock that the test moves."""

from __future__ import annotations

import pytest
from canned_cascades import ID, cascade

from hopwatch.cli.client import NotKnown, Unreachable
from hopwatch.cli.watch import LEAST_ANSWER, PATIENCE, watch


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        assert seconds >= 0
        self.now += seconds


def seen(answers, **options):
    clock, asked = Clock(), []

    def ask(wanted, longest):
        asked.append((wanted, longest))
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer = answer(clock)
        if isinstance(answer, Exception):
            raise answer
        return answer

    options.setdefault("timeout", 60)
    sights = watch(ask, options.pop("wanted", ID), clock=clock, sleep=clock.sleep, **options)
    return sights, clock, asked


def test_there_is_one_look_even_without_any_time():
    sights, _, asked = seen([cascade("stalled")], timeout=0)
    assert [(each.code, each.final) for each in sights] == [(12, True)]
    assert len(asked) == 1


def test_the_last_look_is_at_the_end_of_the_time():
    sights, clock, _ = seen([cascade("in_flight")], timeout=1.1)
    looks = list(sights)
    assert clock.now == pytest.approx(1.1)
    assert [each.final for each in looks] == [False] * 6 + [True]


def test_a_prefix_is_pinned_to_the_first_cascade_that_it_meant():
    sights, _, asked = seen([cascade("in_flight"), cascade("settled")], wanted="0a")
    list(sights)
    assert [each for each, _ in asked] == ["0a", ID]


def test_a_cascade_that_is_slow_to_judge_is_asked_for_less_often():
    def slow(clock):
        clock.now += 2.0
        return cascade("in_flight")

    sights, clock, asked = seen([slow], timeout=21)
    list(sights)
    assert len(asked) == 4  # at 0, 10, 20 and the end
    assert clock.now == 24


def test_no_answer_may_take_much_longer_than_the_time_that_is_left():
    sights, _, asked = seen([cascade("in_flight")], timeout=0.5)
    list(sights)
    assert max(longest for _, longest in asked) == LEAST_ANSWER


def test_a_collector_that_goes_away_for_good_is_a_failure_long_before_the_timeout():
    sights, clock, _ = seen([cascade("in_flight"), Unreachable("gone")], timeout=3600)
    with pytest.raises(Unreachable, match="gone"):
        list(sights)
    assert PATIENCE <= clock.now < PATIENCE + 2


def test_a_collector_that_is_away_at_the_end_of_the_time_is_a_failure():
    sights, clock, _ = seen([cascade("in_flight"), Unreachable("gone")], timeout=1)
    with pytest.raises(Unreachable, match="gone"):
        list(sights)
    assert clock.now == pytest.approx(1)


def test_nothing_known_is_unknown_and_not_final_before_the_time_is_over():
    sights, _, _ = seen([NotKnown("none"), NotKnown("none"), cascade("settled")])
    assert [(each.cascade["verdict"], each.known, each.final) for each in sights] == [
        ("unknown", False, False),
        ("unknown", False, False),
        ("settled", True, True),
    ]


def test_a_verdict_from_a_newer_collector_is_waited_on_and_then_unknown():
    sights, _, _ = seen([cascade("purple")], timeout=0)
    assert [each.code for each in sights] == [16]
