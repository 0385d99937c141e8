"""What becomes of a collector's nonsense before `hopwatch top` shows anything of it? No screen is needed for that."""

import math

import pytest

from hopwatch.cli.top.known import Known
from hopwatch.cli.top.study import studied

NOW = "2026-11-21T20:00:00.000000Z"
CASCADE = "a" * 32


def hop(identity, **more):
    return {"id": identity, "kind": "task", "instance": "i", "state": "open", "started": NOW, **more}


def told(hops, **more):
    known = Known()
    known.take("cascade", {"whole": True, "hops": hops, "agents": [], "frontier": [], **more}, CASCADE)
    return known


@pytest.mark.parametrize("said", ["3", [1], {"a": 1}])
def test_a_number_of_open_hops_that_is_none_is_refused(said):
    with pytest.raises(TypeError, match=r"agent\.open"):
        Known().take(
            "overview", {"whole": True, "cascades": [], "agents": [{"instance": "i", "open": said}]}, None
        )


def test_an_id_that_is_no_text_is_refused():
    with pytest.raises(TypeError, match=r"hop\.id"):
        told([hop("1" * 16), hop(2)])


def test_clocks_that_are_further_apart_than_any_are_taken_for_right():
    known = told([hop("1" * 16), hop("2" * 16, instance="j")], skews={"i": 1.7e308, "j": -1.7e308})
    study = studied(known.cascade)
    assert all(math.isfinite(fact.begun) and not fact.skew for fact in study.facts.values())
