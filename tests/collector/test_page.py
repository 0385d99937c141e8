"""Does the live page, in a real Chromium, show what the collector knows, and nothing that it does not know?"""

from __future__ import annotations

import re
import time

import pytest
from browsing import (
    EVIL,
    LONG,
    TURNED,
    alive,
    beat,
    chromium,
    looking,
    tell,
    tell_cascade,
    tell_deadlock,
    tell_many,
)
from telling import PLANNER, SECOND, WORKER, collector, end, heartbeat, opened, trace

from hopwatch import attributes as names
from hopwatch.demo.run import free_ports
from waiting import until

pytestmark = [pytest.mark.one_python, pytest.mark.processes, pytest.mark.timeout(480)]

OTHER = "1234567890abcdef"


@pytest.fixture(scope="module")
def browser():
    with chromium() as it:
        yield it


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with collector(
        tmp_path_factory.mktemp("store") / "hops.sqlite",
        "--trace-url",
        "https://traces.example/trace/{trace}?span={span}",
    ) as it:
        # Of this one nobody hears again: by the time that its test comes, it may be silent already.
        it.silent = trace()
        begun = time.time_ns() - SECOND
        asleep = opened(it.silent, "5" * 16, instance=OTHER, kind="request", at=begun)
        tell(it, [asleep, heartbeat(OTHER, at=begun)], "sleeper")
        with alive(it, worker=WORKER, planner=PLANNER):
            yield it


@pytest.fixture
def page(browser, running):
    with looking(browser, running) as it:
        yield it


def bar(page, look):
    return page.locator(f"g.hop[data-look={look}]")


# The list ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verdict", ["settled", "in_flight", "waiting", "stalled", "stranded", "broken", "unknown"]
)
def test_a_cascade_is_listed_and_drawn_with_its_verdict(page, running, verdict):
    it = page.open()
    it.wait_for_selector("#link[data-link=live]")
    cascade = tell_cascade(running, verdict)
    beat(running, WORKER, "worker")
    row = it.locator(f"li.cascade:has(a[href='#/cascade/{cascade}'])")
    row.locator(f".badge[data-verdict={verdict}]").wait_for()
    known = running.get(f"/api/cascades/{cascade}")
    assert known["verdict"] == verdict
    until(lambda: known["reason"][:60] in row.locator(".reason").inner_text())
    assert "planner, worker" in row.locator(".agents").inner_text()
    row.locator("a").click()
    it.locator(f"h1 .badge[data-verdict={verdict}]").wait_for()
    lanes = it.locator("svg.picture text.lane-name").all_text_contents()
    assert [lane.split(",")[0] for lane in lanes[:2]] == ["planner", "worker"]
    assert it.locator("svg.picture .arrow[data-kind=send]").count() == 1
    look = {"in_flight": "lit", "stalled": "lit", "broken": "abandoned", "unknown": "absent"}.get(
        verdict, "finished"
    )
    assert bar(it, look).count() >= 1
    beside = {
        "in_flight": "a future `answer` that nobody has set at worker.py:42",
        "stalled": "a future `answer` that nobody has set at worker.py:42",
        "broken": "process_killed: the worker was killed",
        "unknown": "declared has not come",
    }.get(verdict)
    if beside is not None:
        assert beside in bar(it, look).last.text_content()
    if verdict == "unknown":
        assert "declared has not come" in it.locator("section.missing").inner_text()


def test_a_hop_of_a_process_that_is_silent_stops_growing_and_says_since_when(page, running):
    it = page.open(f"#/cascade/{running.silent}")
    it.locator("h1 .badge[data-verdict=silent]").wait_for()
    assert "has not been heard of since" in bar(it, "stale").text_content()
    solid = bar(it, "stale").locator(".bar")
    tail = bar(it, "stale").locator(".tail")
    assert float(tail.get_attribute("width")) > float(solid.get_attribute("width"))
    it.goto(f"{page.url}/#/agents")
    row = it.locator("tr[data-state=silent]", has_text="sleeper")
    row.wait_for()
    assert it.locator("tbody tr").first.get_attribute("data-state") == "silent"


def test_filters_by_verdict_agent_and_text_and_orders_by_the_oldest_open(page, running):
    now = time.time_ns()
    older = tell_cascade(running, "in_flight", agent="filtered", name="first", at=now - 300 * SECOND)
    newer = tell_cascade(running, "in_flight", agent="filtered", name="second", at=now - 100 * SECOND)
    over = tell_cascade(running, "settled", agent="filtered", at=now - 50 * SECOND)
    it = page.open("#/?agent=filtered")

    def listed():
        # All in one look: one by one the last may be gone before its turn.
        return it.locator("li.cascade > a").evaluate_all(
            "links => links.map((each) => each.getAttribute('href').slice(-32))"
        )

    until(lambda: listed() == [over, newer, older])
    it.get_by_label("Order").select_option("open")
    until(lambda: listed() == [older, newer, over])
    it.get_by_role("checkbox", name="in flight").check()
    until(lambda: listed() == [older, newer])
    it.get_by_label("Text").fill("second nowhere")
    until(lambda: listed() == [])
    it.get_by_label("Text").fill("SECOND")
    until(lambda: listed() == [newer])
    it.reload()  # what was chosen stands in the address
    until(lambda: listed() == [newer])
    assert it.get_by_label("Agent").input_value() == "filtered"


# One cascade ---------------------------------------------------------------------------------------------------


def test_a_bar_grows_while_its_hop_runs_and_stands_when_it_ends(page, running):
    cascade = trace()
    begun = time.time_ns() - SECOND
    tell(running, [opened(cascade, "6" * 16, kind="request", at=begun)])
    it = page.open(f"#/cascade/{cascade}")
    times = it.locator(".times")

    def age():
        found = re.search(r"open for (\d+) s", times.inner_text())
        return int(found[1]) if found else 0

    first = until(age)
    until(lambda: age() > first)
    tell(running, [{**end(cascade, "6" * 16, kind="request", at=begun), "end": begun + 2 * SECOND}])
    it.locator("h1 .badge[data-verdict=settled]").wait_for()
    assert "took 2.0 s" in times.inner_text()
    assert bar(it, "finished").count() == 1
    assert "settled" in it.locator("#announcer").inner_text()


def test_the_side_panel_tells_what_a_hop_waits_on_and_where_its_trace_is(page, running):
    cascade = tell_cascade(running, "stalled")
    beat(running, WORKER, "worker")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    it = page.open(f"#/cascade/{cascade}")
    bar(it, "lit").click()
    panel = it.get_by_role("complementary")
    panel.wait_for()
    said = panel.inner_text()
    for part in (
        "execution work", "a future `answer` that nobody has set", "/srv/worker.py:42", "Task-12", "working",
        f"task {cascade[:4]}", "worker, pid 4711, alive",
    ):  # fmt: skip
        assert part in said, said
    panel.get_by_text("Await chain, 2 frames").click()
    assert panel.locator(".chain li").all_inner_texts() == [
        "/srv/worker.py:31 execute",
        "/srv/worker.py:42 work",
    ]
    hop = it.url.rpartition("/")[2]
    assert (
        panel.locator("a.trace").get_attribute("href") == f"https://traces.example/trace/{cascade}?span={hop}"
    )
    panel.get_by_role("button", name="Copy the hop's id").click()
    until(lambda: it.evaluate("navigator.clipboard.readText()") == hop)
    panel.get_by_text("request of worker").click()
    until(lambda: "request it" in it.locator("#panel-title").inner_text())


def test_a_deadlock_is_drawn_as_the_cycle_that_it_is(page, running):
    it = page.open(f"#/cascade/{tell_deadlock(running)}")
    figure = it.locator(".deadlocks figure")
    figure.wait_for()
    assert figure.locator("rect.task").count() == 2
    assert figure.locator("path.wait").count() == 2
    assert it.locator(".deadlocks figure").count() == 1
    words = figure.locator("li").all_inner_texts()
    assert words[0] == "charge wants lock `stock`, held by reserve at worker.py:62 charge"
    ring = figure.get_by_role("img").get_attribute("aria-label")
    assert "reserve wants lock `account`, held by charge" in ring


def test_a_cascade_that_is_not_known_is_shown_as_soon_as_it_comes(page, running):
    cascade = trace()
    it = page.open(f"#/cascade/{cascade}")
    it.get_by_text("No record of this cascade has come").wait_for()
    tell_cascade(running, "settled", cascade=cascade)
    it.locator("h1 .badge[data-verdict=settled]").wait_for()


# What may come in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [EVIL, TURNED, LONG], ids=["markup", "right-to-left", "100 KB"])
def test_hostile_names_are_shown_as_text(page, running, name):
    full, name = name, name[:3_000]  # what it waits on may have 64 KiB, all in all
    waits = {"kind": "future", "moves": True, "what": name, "file": name, "line": name, "holder": name, "task": name,
             "chain": [name, name], "of": [{"kind": name, "what": name, "moves": True}],
             "deadlock": {"words": name, "edges": [{"task": name, "wants": name, "held_by": name, "at": name}]}}  # fmt: skip
    cascade = trace()
    name = full
    marker = opened(cascade, "7" * 16, kind="request", waits=waits, **{"evil": name, names.A2A_TASK_ID: name})
    marker["says"][names.HOP_NAME] = name
    tell(running, [marker], name)
    it = page.open("#/")
    it.locator(f"a[href='#/cascade/{cascade}']").wait_for()
    it.screenshot()
    it.goto(f"{page.url}/#/cascade/{cascade}/hop/{'7' * 16}")
    it.locator(".panel .details").wait_for()
    it.goto(f"{page.url}/#/agents")
    it.locator("tbody tr").first.wait_for()
    it.goto(f"{page.url}/#/cascade/{cascade}/hop/{'7' * 16}")
    panel = it.locator(".panel .details")
    panel.wait_for()
    assert it.title() == f"Cascade {cascade[:8]} - hopwatch"
    assert it.locator("main img, main script").count() == 0
    assert it.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shown = panel.inner_text()
    if name == EVIL:
        assert "<script>" in shown
    elif name == TURNED:
        assert "\\u202egnp.exe" in shown
        assert "\u202e" not in it.locator("main").inner_text()
    assert len(it.locator("main").inner_text()) < 400_000


# Live ----------------------------------------------------------------------------------------------------------


def test_a_page_that_loses_the_collector_says_so_and_catches_up(browser, tmp_path):
    store = tmp_path / "hops.sqlite"
    (port,) = free_ports(1)
    with collector(store, "--port", str(port)) as first:
        cascade = tell_cascade(first, "in_flight")
        with looking(browser, first) as watched:
            with alive(first, worker=WORKER):
                it = watched.open(f"#/cascade/{cascade}")
                it.locator("h1 .badge[data-verdict=in_flight]").wait_for()
            assert first.stop() == 0  # an open page does not hold it up
            it.locator("#link[data-link=lost]").wait_for()
            assert "Connection lost at" in it.locator("#link").inner_text()

            def stands_still():
                said = it.locator(".times").inner_text()
                time.sleep(1.2)
                return it.locator(".times").inner_text() == said

            # Nobody knows whether it is still open: from the next look on its age does.
            until(stands_still)
            with collector(store, "--port", str(port)) as second:
                it.locator("#link[data-link=live]").wait_for()
                work = f"{int(cascade[:16], 16) ^ 1:016x}"
                tell(
                    second,
                    [
                        end(
                            cascade,
                            work,
                            parent=cascade[16:],
                            **{names.A2A_TASK_STATE: "TASK_STATE_COMPLETED"},
                        )
                    ],
                )
                it.locator("h1 .badge[data-verdict=settled]").wait_for()
                watched.wrong = [each for each in watched.wrong if "Failed to load" not in each]


# For everybody -------------------------------------------------------------------------------------------------


def test_everything_can_be_reached_by_keyboard_alone(page, running):
    cascade = tell_cascade(running, "stalled", agent="keyboard")
    beat(running, WORKER, "worker")
    it = page.open("#/?agent=keyboard")
    it.locator(f"a[href='#/cascade/{cascade}']").wait_for()
    press = it.keyboard.press

    def focused():
        return it.evaluate(
            "document.activeElement.getAttribute('href') || document.activeElement.dataset.bar || document.activeElement.id || document.activeElement.tagName"
        )

    def tab_to(wanted):
        for _ in range(40):
            press("Tab")
            if wanted(focused()):
                return
        pytest.fail(f"{focused()} is where the tabulator leads")

    press("Tab")
    assert focused() == "#main"  # the way past the header
    tab_to(lambda at: at == f"#/cascade/{cascade}")
    press("Enter")
    it.locator("g.hop").first.wait_for()
    work = f"{int(cascade[:16], 16) ^ 1:016x}"
    tab_to(lambda at: at == work)  # the frontier comes first
    press("Home")
    assert focused() == cascade[:16]
    press("ArrowDown")
    assert focused() == cascade[16:]
    press("ArrowRight")
    assert focused() == work
    press("Enter")
    until(lambda: focused() == "panel-title")
    assert it.url.endswith(f"/hop/{work}")
    tell_cascade(
        running, "stalled", cascade=cascade, agent="keyboard"
    )  # a change does not take the focus away
    press("Tab")
    press("Escape")
    until(lambda: focused() == work)
    assert it.locator(".panel").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(browser, running, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    cascades = {
        verdict: tell_cascade(running, verdict)
        for verdict in ("settled", "in_flight", "stalled", "broken", "unknown")
    }
    locked = tell_deadlock(running)
    with looking(browser, running, color_scheme=scheme, reduced_motion="reduce") as watched:
        watched.page.set_viewport_size({"width": width, "height": 900})
        stalled = cascades["stalled"]
        for where, sign in (
            ("#/", "li.cascade"),
            ("#/agents", "tbody tr"),
            (f"#/cascade/{stalled}/hop/{int(stalled[:16], 16) ^ 1:016x}", ".details"),
            (f"#/cascade/{cascades['broken']}", "g.hop"),
            (f"#/cascade/{cascades['unknown']}", "g.hop"),
            (f"#/cascade/{locked}", ".ring"),
        ):
            it = watched.open(where)
            it.locator(sign).first.wait_for()
            it.locator("summary", has_text="What the bars mean").click() if sign == "g.hop" else None
            found = Axe().run(it).response["violations"]
            serious = [
                (each["id"], node["html"][:200], node["failureSummary"][:300])
                for each in found
                if each["impact"] in ("serious", "critical")
                for node in each["nodes"][:3]
            ]
            assert serious == [], where
            assert it.evaluate("document.documentElement.scrollWidth <= innerWidth"), where


# Large ---------------------------------------------------------------------------------------------------------


def test_a_cascade_of_10000_hops_is_drawn_in_few_bars_and_listed_in_parts(page, running, capsys):
    cascade = tell_many(running, 10_000)
    began = time.monotonic()
    it = page.open(f"#/cascade/{cascade}")
    it.locator("g.hop").first.wait_for()
    took = time.monotonic() - began
    facts = it.evaluate(
        """async () => {
            const frames = [];
            let last = performance.now();
            while (frames.length < 60) {
                const at = await new Promise(requestAnimationFrame);
                frames.push(at - last);
                last = at;
            }
            frames.sort((a, b) => a - b);
            return {nodes: document.querySelectorAll("*").length, bars: document.querySelectorAll("g.hop").length,
                    median: frames[30], worst: frames[58]};
        }"""
    )
    with capsys.disabled():
        print(
            f"\n10,000 hops: on the screen after {took:.2f} s, {facts['nodes']} elements, {facts['bars']} bars,"
            f" a frame {facts['median']:.0f} ms (median), {facts['worst']:.0f} ms (worst but one of 60)"
        )
    assert facts["bars"] <= 130
    assert facts["nodes"] < 4_000
    assert it.get_by_text("hops that are alike are drawn as one").count() == 1
    it.get_by_label("only what did not end well, or has not ended").check()
    assert "50 hops of 10,000" in it.locator(".outline .summary").inner_text()
    bar(it, "finished").last.click()
    it.locator(".members a").first.wait_for()


def test_all_of_10000_hops_can_be_listed_and_a_change_touches_only_its_own_row(page, running, capsys):
    cascade = tell_many(running, 10_000)
    it = page.open(f"#/cascade/{cascade}")
    more = it.locator(".outline button.more")
    more.wait_for()
    for _ in range(7):  # each time as many again
        more.click()
    assert it.evaluate("document.querySelectorAll('.hops-list li').length") == 10_000
    assert more.is_hidden()
    # Asked for in the page itself: with so many elements a locator's look would be longer than what is measured.
    it.evaluate(
        """async () => {
            for (const each of document.querySelectorAll(".hops-list li")) each.seen = true;
            window.row = document.querySelector("a[data-hop='0000000000000001']").closest("li");
            window.row.querySelector("a").focus();
            window.frames_ = [];
            let last = await new Promise(requestAnimationFrame);
            const next = (at) => { window.frames_.push(at - last); last = at; requestAnimationFrame(next); };
            requestAnimationFrame(next);
        }"""
    )
    assert it.evaluate("window.row.dataset.look") == "lit"
    tell(running, [end(cascade, "0000000000000001", parent="e" * 16, kind="task")])
    until(lambda: it.evaluate("window.row.dataset.look === 'finished'"))
    longest = it.evaluate("Math.max(...window.frames_)")
    with capsys.disabled():
        print(f"\n10,000 hops in the list: with a change the longest frame was {longest:.0f} ms")
    kept = "[...document.querySelectorAll('.hops-list li')].filter((each) => each.seen && each.isConnected).length"
    assert it.evaluate(kept) == 10_000
    assert it.evaluate("document.activeElement.dataset.hop") == "0000000000000001"  # and it keeps the focus


def test_a_cascade_of_one_hop_is_a_picture_too(page, running):
    cascade = trace()
    tell(running, [end(cascade, "8" * 16, kind="request")])
    it = page.open(f"#/cascade/{cascade}")
    bar(it, "finished").wait_for()
    assert "1 hop." in it.locator(".times").inner_text()
