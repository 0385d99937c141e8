"""How does a cascade look? Also one that is hostile, circular or huge."""

from __future__ import annotations

import io
import random
import time
import unicodedata
from datetime import datetime, timezone

import pytest
from canned_cascades import BEGAN, ID, cascade, hop, row
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hopwatch.cli import listing
from hopwatch.cli.picture import MOST_HOPS, headline, lines, tree
from hopwatch.cli.text import LONGEST, moment, plain, span

NOW = datetime(2026, 11, 21, 9, 0, 10, tzinfo=timezone.utc)

LEFT = {
    "kind": "lock",
    "what": "lock `a` held by task 'right'",
    "file": "w.py",
    "line": 50,
    "task": "left",
    "holder": "right",
}
RIGHT = {"kind": "lock", "what": "lock `b`", "file": "w.py", "line": 60, "task": "right", "holder": "left"}
DEADLOCK = {
    "kind": "gather", "what": "2 tasks (gather)", "file": "w.py", "line": 42, "function": "execute", "moves": False,
    "chain": ["w.py:30 run", "w.py:42 execute"], "of": [LEFT, RIGHT],
}  # fmt: skip


def drawn(renderable, width=100, *, color=None, encoding="utf-8"):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    console = Console(
        file=out,
        width=width,
        force_terminal=color is not None,
        color_system=color,
        markup=False,
        legacy_windows=False,
    )
    console.print(renderable)
    out.flush()
    return out.buffer.getvalue().decode(encoding)


def picture(cascade, **options):
    return lines(cascade, now=NOW, **options), drawn(tree(cascade, now=NOW, **options)).splitlines()


def chain(count, *, state="open"):
    return [hop(f"h{i:05}", f"h{i - 1:05}" if i else None, "execution", state=state) for i in range(count)]


def test_a_stalled_cascade_in_a_pipe():
    found = cascade(
        "stalled",
        [
            hop("s1", None, "send", agent="user", name="SendMessage", state="open", peer="instrumented", peer_name="127.0.0.1:1"),
            hop("e1", "s1", "execution", name="Worker.execute", state="open", task_state="TASK_STATE_WORKING", waits_on=DEADLOCK, location="w.py:12 Worker.execute"),
            hop("p1", "e1", "push", name="POST", peer_name="127.0.0.1:2"),
            hop("w1", "p1", "webhook", agent="user"),
            hop("p2", "e1", "push", name="POST", peer_name="127.0.0.1:2"),
            hop("w2", "p2", "webhook", agent="user"),
            hop("p3", "e1", "push", name="POST", peer="refused", peer_name="127.0.0.1:2", outcome="failed", reason="503 Service Unavailable"),
        ],
        opaque=["elsewhere:80"],
        missing=[{"what": "children", "hop": "e1", "id": None, "sentence": "1 hop never came"}],
    )  # fmt: skip
    assert lines(found, now=NOW) == [
        f"cascade {ID}",
        "verdict stalled",
        "reason This one is stalled.",
        "time began 2026-11-21T09:00:00.000000Z, open for 10.0 s",
        "agent worker alive, pid 7",
        "agent user",
        "total 7 hops, 2 open, 1 at the frontier",
        "  send user SendMessage to 127.0.0.1:1: open 10.0 s [s1]",
        "    execution worker Worker.execute: open 10.0 s, task working, frontier [e1]",
        "      at w.py:12 Worker.execute",
        "      waits for 2 tasks (gather) at w.py:42 in execute",
        "      by way of w.py:30 run, w.py:42 execute",
        "        left: lock `a` held by task 'right' at w.py:50",
        "        right: lock `b` at w.py:60, held by left",
        "      2 pushes worker to user, 2 webhooks: finished 1.5 s",
        "      push worker POST to 127.0.0.1:2 (refused): failed 1.5 s [p3]",
        "        503 Service Unavailable",
        "missing 1 hop never came",
        "opaque elsewhere:80",
    ]


def test_a_terminal_gets_the_verdict_the_glyphs_and_the_guides():
    found = cascade("broken", [
        hop("a", None, "execution", state="open"),
        hop("b", "a", outcome="abandoned", reason="collected", location="w.py:1 start", waits_on=LEFT),
        hop("c", "a", outcome="cancelled"),
        hop("d", "c"),
    ])  # fmt: skip
    text = drawn(tree(found, now=NOW)).splitlines()
    assert text[0].startswith(" BROKEN ")
    assert [each.rstrip() for each in text[4:]] == [
        "● execution worker work  open 10.0 s, frontier",
        "├╴✖ task worker work  abandoned 1.5 s",
        "│   collected",
        "│   made at w.py:1 start",
        "│   waited for lock `a` held by task 'right' at w.py:50",
        "└╴⊘ task worker work  cancelled 1.5 s",
        "  └╴✓ task worker work  finished 1.5 s",
    ]


def test_colour_is_for_terminals_that_have_it_and_ascii_for_those_without_unicode():
    found = cascade("settled", [hop("a"), hop("b", "a")])
    assert "\x1b[" in drawn(tree(found, now=NOW), color="standard")
    assert "\x1b[" not in drawn(tree(found, now=NOW))
    assert drawn(tree(found, now=NOW), encoding="ascii").splitlines()[-1].startswith("`-+ task")


@pytest.mark.parametrize("hops", [[], [hop("a")]])
def test_few_hops_are_a_small_picture(hops):
    plainly, drawn_ = picture(cascade("settled", hops))
    assert len(plainly) == 6 + len(hops)
    assert len(drawn_) == 4 + len(hops)


def test_a_narrow_terminal_wraps_and_loses_nothing():
    found = cascade("in_flight", [*chain(30), hop("x", "h00029", state="open", waits_on=DEADLOCK)])
    text = drawn(tree(found, now=NOW), width=40)
    assert "".join(text.replace("│", "").split()).count("lock`") == 2


def test_ten_thousand_siblings_are_cut_and_the_frontier_stays():
    hops = [hop("root", None, "execution", state="open"), *(hop(f"n{i:05}", "root") for i in range(9_998))]
    hops.append(hop("zlast", "root", state="open", name="the one"))
    random.Random(1).shuffle(hops)
    began = time.perf_counter()
    plainly, drawn_ = picture(cascade("in_flight", hops, frontier=["zlast"]))
    assert time.perf_counter() - began < 30
    for text in (plainly, drawn_):
        assert len(text) < MOST_HOPS + 20
        assert any("the one" in each and "frontier" in each for each in text)
        assert any("... and 9,800 more" in each for each in text)
        assert any("200 of 10,000 hops are shown" in each for each in text)


def test_a_frontier_of_ten_thousand_is_cut_too():
    hops = [hop("root", None, state="open"), *(hop(f"n{i:05}", "root", state="open") for i in range(9_999))]
    plainly, _ = picture(cascade("in_flight", hops, frontier=[each["id"] for each in hops[1:]]))
    assert len(plainly) < MOST_HOPS + 20
    assert "total 10,000 hops, 10,000 open, 9,999 at the frontier" in plainly


def test_a_chain_of_ten_thousand_shows_its_beginning_and_its_end():
    plainly, drawn_ = picture(cascade("in_flight", chain(10_000)))
    assert any("[h00000]" in each for each in plainly)
    assert any("[h09999]" in each and "frontier" in each for each in plainly)
    assert any("... 9,800 hops between" in each for each in plainly)
    assert max(map(len, drawn_)) <= 100


def test_what_failed_is_shown_before_what_went_well():
    hops = [hop("root"), *(hop(f"n{i:03}", "root") for i in range(300))]
    hops[290] |= {"outcome": "failed", "reason": "out of luck"}
    plainly, _ = picture(cascade("settled", hops), limit=10)
    assert any("out of luck" in each for each in plainly)


def test_many_pushes_between_the_same_two_take_one_line():
    hops = [hop("e", None, "execution")]
    for i in range(3000):
        hops += [hop(f"p{i}", "e", "push"), hop(f"w{i}", f"p{i}", "webhook", agent="planner")]
    plainly, _ = picture(cascade("settled", hops))
    assert plainly[-1] == "    3000 pushes worker to planner, 3,000 webhooks: finished 1.5 s"


def test_a_webhook_that_goes_on_working_is_not_folded_away():
    hops = [hop("p", None, "push"), hop("w", "p", "webhook"), hop("t", "w", name="follow-up")]
    plainly, _ = picture(cascade("settled", hops))
    assert [each.split(":")[0].strip() for each in plainly[-3:]] == [
        "push worker work",
        "webhook worker work",
        "task worker follow-up",
    ]


def test_a_parent_that_is_not_seen_has_a_heading():
    plainly, drawn_ = picture(cascade("unknown", [hop("a"), hop("b", "gone"), hop("c", "b")]))
    assert plainly[-3:] == [
        "  parent not seen",
        "    task worker work: finished 1.5 s [b]",
        "      task worker work: finished 1.5 s [c]",
    ]
    assert drawn_[-3].startswith("? parent not seen")


def test_parents_in_a_circle_end_somewhere():
    hops = [hop("a", "c"), hop("b", "a"), hop("c", "b"), hop("d", "d"), hop("e", "c")]
    plainly, _ = picture(cascade("unknown", hops))
    assert "  parents that go round in a circle" in plainly
    assert sorted(each[-2] for each in plainly if each.endswith("]")) == ["a", "b", "c", "d", "e"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 30), st.one_of(st.none(), st.integers(0, 35)), st.sampled_from(["task", "push", "webhook"]),
            st.sampled_from(["open", "ended"]), st.sampled_from(["finished", "failed", "abandoned", None]),
        ),
        max_size=40,
    ),
    st.integers(1, 12),
    st.sets(st.integers(0, 35)),
)  # fmt: skip
def test_any_parents_and_any_limit_give_a_picture_that_accounts_for_every_hop(shapes, limit, frontier):
    hops = [
        hop(f"{i:02}", None if parent is None else f"{parent:02}", kind, state=state, outcome=outcome)
        for i, parent, kind, state, outcome in shapes
    ]
    found = cascade("unknown", hops, frontier=[f"{each:02}" for each in frontier])
    whole = lines(found, now=NOW)
    assert not any("..." in each for each in whole)
    ids = {each["id"] for each in hops}
    shown = {each[-3:-1] for each in whole if each.endswith("]")}
    folded = sum(
        _counted(each) for each in whole if "pushes" in each or ("push" in each and "webhook" in each)
    )
    assert len(shown) + folded == len(ids)
    cut = lines(found, now=NOW, limit=limit)
    assert sum(1 for each in cut if each.endswith("]")) <= limit
    drawn(tree(found, now=NOW, limit=limit))


def _counted(line):
    """Hops on a line of pushes that is not told of by an id of its own."""
    words = line.split()
    pushes = int(words[0]) if words[1] == "pushes" else 0
    hooks = (
        int(words[words.index(next(each for each in words if each.startswith("webhook"))) - 1])
        if "webhook" in line
        else 0
    )
    return pushes + hooks


EVIL = "\x1b[2J\x1b]0;owned\x07[red]name[/red]\u202egnp.exe\u2066\u200b\r\n\u2028\x9b31m\ud800" + "A" * 5000


def test_hostile_text_is_shown_as_text():
    waits = {"what": EVIL, "file": EVIL, "line": EVIL, "function": EVIL, "task": EVIL, "holder": EVIL, "peer": EVIL,
             "chain": [EVIL, EVIL], "of": [{"what": EVIL, "of": [{"of": [{"of": [{"of": []}]}]}]}] * 50}  # fmt: skip
    evil = hop(EVIL, EVIL + "x", EVIL, agent=EVIL, name=EVIL, state="open", reason=EVIL, location=EVIL,
               waits_on=waits, peer_name=EVIL, task_state=EVIL, peer="opaque")  # fmt: skip
    found = cascade(EVIL, [evil], id=EVIL, reason=EVIL, opaque=[EVIL] * 50, missing=[{"sentence": EVIL}] * 50,
                    agents=[{"name": EVIL, "state": "silent", "pid": EVIL, "heard": EVIL}])  # fmt: skip
    plainly, drawn_ = picture(found)
    for line in [*plainly, *drawn_, headline(found), *listing.lines([row(EVIL, EVIL, agents=[EVIL])])]:
        assert not {unicodedata.category(each) for each in line} & {"Cc", "Cf", "Cs", "Zl", "Zp"}, line
    for text in ("\n".join(plainly), "\n".join(drawn_)):
        assert "[red]name[/red]" in text.replace("\n", "")
    assert len(plainly) < 80
    assert max(map(len, plainly)) < 8 * LONGEST


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"hops": None, "agents": 3, "missing": "x", "frontier": {"a": 1}, "opaque": 0},
        {
            "hops": [
                None,
                3,
                {},
                {"id": 5},
                {"id": "a"},
                {"id": "a"},
                {"id": "b", "parent": 7, "started": [], "waits_on": []},
            ]
        },
        {
            "hops": [{"id": "a", "state": "open", "waits_on": {"of": [1, {}], "chain": 3, "file": 7}}],
            "frontier": [{}, "a"],
        },
        {"started": "2026", "ended": "0000-99-99T99:99:99Z", "agents": [None, {}]},
    ],
)
def test_an_object_of_another_shape_is_still_drawn(broken):
    picture(broken)
    headline(broken)


def test_a_time_is_told_once():
    waits = {"kind": "sleep", "what": "asyncio.sleep(600) until 09:00:05Z", "until": 1795251605.5}
    plainly, _ = picture(cascade("in_flight", [hop("a", state="open", waits_on=waits)]))
    assert sum(line.count("09:00:05") for line in plainly) == 1


@pytest.mark.parametrize(("state", "outcome", "said"), [("open", None, ""), ("ended", "abandoned", "was ")])
def test_who_runs_is_not_said_to_wait(state, outcome, said):
    waits = {"kind": "running", "what": "running, or about to", "file": "w.py", "line": 7}
    plainly, _ = picture(cascade("in_flight", [hop("a", state=state, outcome=outcome, waits_on=waits)]))
    assert [line.strip() for line in plainly if "running" in line] == [
        f"{said}running, or about to at w.py:7"
    ]


@pytest.mark.parametrize(
    ("until", "shown"),
    [(1795251605.5, ", until 09:00:05 UTC"), (1e300, ""), (float("nan"), ""), ("soon", ""), (True, "")],
)
def test_a_timer_tells_when_it_ends(until, shown):
    waits = {"kind": "sleep", "what": "a timer", "until": until, "chain": [f"w.py:{i} f" for i in range(7)]}
    plainly, _ = picture(cascade("in_flight", [hop("a", state="open", waits_on=waits)]))
    assert plainly[-2].strip() == f"waits for a timer{shown}"
    assert plainly[-1].strip() == "by way of 2 more, w.py:2 f, w.py:3 f, w.py:4 f, w.py:5 f, w.py:6 f"


def test_a_cascade_whose_end_is_not_known_is_not_called_open():
    plainly, _ = picture(cascade("unknown", [hop("a")], ended=None))
    assert f"time began {BEGAN}" in plainly


def test_a_clock_that_is_ahead_gives_no_negative_time():
    plainly, _ = picture(
        cascade("in_flight", [hop("a", state="open", started="2027-01-01T00:00:00.000000Z")])
    )
    assert plainly[-1].endswith("open 0.0 ms, frontier [a]")


@given(st.text(max_size=400), st.integers(1, 250))
def test_plain_text_is_one_harmless_line_of_at_most_the_length(text, longest):
    shown = plain(text, longest)
    assert len(shown) <= longest
    assert shown == plain(shown, longest)
    assert not {unicodedata.category(each) for each in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0 ms"), (0.0004, "0.4 ms"), (0.12, "120 ms"), (0.9996, "1.0 s"), (59.94, "59.9 s"), (59.96, "1 min"),
        (200, "3 min 20 s"), (7500, "2 h 5 min"), (350_000, "4 d 1 h"),
    ],
)  # fmt: skip
def test_a_time_is_told_as_a_person_would(seconds, shown):
    assert span(seconds) == shown


@pytest.mark.parametrize("text", [None, 3, "", "yesterday", "2026-11-21", "2026-11-21T09:00:00", "9" * 100])
def test_what_is_no_time_is_none(text):
    assert moment(text) is None


def test_a_list_in_a_terminal_has_prefixes_that_tell_the_cascades_apart():
    rows = [row("settled", "a" * 31 + "1"), row("stalled", "a" * 31 + "2", ended=None, open=3)]
    text = drawn(listing.table(rows, now=NOW), width=160)
    assert "a" * 31 + "1" in text
    assert "10.0 s ago" in text
    assert "3/14" in text
