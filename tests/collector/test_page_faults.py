"""Do the page and the terminal show what becomes of the demo's real agents with each fault? Real runs, a real Chromium.

Nothing of it depends on the Python, so `.ci/run` runs this file once.
"""

from __future__ import annotations

import re
import threading
import time

import pytest
from browsing import chromium, looking
from sitting import sit

from hopwatch.demo.faults import FAULTS, worker_reads
from hopwatch.demo.run import play
from waiting import until

pytestmark = [pytest.mark.one_python, pytest.mark.processes, pytest.mark.timeout(600)]

MESSAGES = 3  # the user's, the frontdesk's and the planner's


@pytest.fixture(scope="module")
def browser():
    with chromium() as it:
        yield it


class Sight:
    """One cascade on the page."""

    def __init__(self, page, url):
        self.page, self.url = page, url

    def bars(self, look, kind=None):
        which = f"[data-kind={kind}]" if kind else ""
        return self.page.locator(f"g.hop[data-look={look}]{which}")

    def notes(self, look, kind=None):
        """What stands beside the bars of that look."""
        return self.bars(look, kind).all_text_contents()

    def lane(self, agent):
        """What is said of an agent's lane."""
        (words,) = [each for each in self.lanes() if each.startswith(agent)]
        return words

    def lanes(self):
        return self.page.locator("svg.picture text.lane-name").all_text_contents()

    def agent(self, name):
        """The row of an agent in the table of agents."""
        self.page.goto(f"{self.url}/#/agents")
        row = self.page.locator("tbody tr", has_text=name)
        row.wait_for()
        return row.inner_text()


def settled(sight):
    assert sight.bars("finished").count() > 10
    assert sight.page.locator("g.hop:not([data-look=finished])").count() == 0
    assert sight.page.locator(".arrow[data-kind=send]").count() == MESSAGES
    assert sight.page.locator(".arrow[data-kind=push]").count() == 4 * MESSAGES


def hangs(sight):
    (note,) = sight.notes("lit")
    assert re.search(r"waits for a future `answer` that nobody has set at worker\.py:\d+", note)
    assert sight.page.locator(".arrow[data-kind=send]").count() == MESSAGES


def push_refused(sight):
    assert any("503" in note for note in sight.notes("failed", "push"))
    assert any("DelegatingAgent" in note or "planner" in note for note in sight.notes("lit", "execution"))


def deadlocked(sight):
    ring = sight.page.locator(".deadlocks figure")
    assert ring.count() == 1
    assert ring.locator("rect.task").count() == 2
    assert ring.locator("path.wait").count() == 2
    said = " ".join(ring.locator("li").all_inner_texts())
    assert all(word in said for word in ("reserve", "charge", "`stock`", "`account`", "worker.py:"))
    assert sight.bars("lit", "task").count() == 2


def slow(sight):
    assert any("waits for data from 127.0.0.1:" in note for note in sight.notes("lit", "execution"))


def collected(sight):
    (note,) = sight.notes("abandoned", "task")
    assert "awaited a future" in note


def silent(sight):
    assert any("has not been heard of since" in note for note in sight.notes("stale"))
    assert "silent: not heard of for 16 s" in sight.lane("worker")
    assert "silent" in sight.agent("worker")


def lost(sight):
    assert sight.bars("absent").count() >= 1
    assert sight.lanes()[-1].startswith("not seen")
    assert "has not come" in sight.page.locator("section.missing").inner_text()
    assert not any(lane.startswith("worker") for lane in sight.lanes())


def terminated(sight):
    (note,) = sight.notes("abandoned", "execution")
    assert "pending at shutdown: SIGTERM; it awaited data from 127.0.0.1:" in note
    assert re.search(r"ended by SIGTERM at .* with 1 . execution", sight.agent("worker"))


def killed(sight):
    (note,) = sight.notes("abandoned", "execution")
    assert "process_killed" in note
    assert "ended by process_killed" in sight.agent("worker")


def left_behind(sight):
    (note,) = sight.notes("abandoned", "task")
    assert "pending at shutdown: cancelled by asyncio.run at its end; it awaited asyncio.sleep(600)" in note
    assert "ended by exit" in sight.agent("worker")


def leaking(sight):
    assert any("undelivered event" in note or "queue 0x" in note for note in sight.notes("lit"))


def late(sight):
    assert sight.page.locator("g.hop:not([data-look=finished])").count() == 0
    sight.page.get_by_label("Text").fill("one_more")
    assert sight.page.locator(".hops-list li", has_text=", late").count() == 1


LOOKS = {
    "none": (settled, "✓ execution"),
    "hang": (hangs, ": waits for a future `answer` that nobody has set"),
    "drop-push": (push_refused, "503"),
    "deadlock": (deadlocked, "Deadlock: in worker: "),
    "slow": (slow, "waits for data from 127.0.0.1:"),
    "gc": (collected, "✖ task"),
    "silent": (silent, "silent: not heard of for 16 s"),
    "lost": (lost, "not seen: promised or declared"),
    "term": (terminated, "↳ pending at shutdown: SIGTERM"),
    "kill": (killed, "↳ process_killed"),
    "pending": (left_behind, "↳ pending at shutdown: cancelled by asyncio.run"),
    "leak": (leaking, "● "),
    "late": (late, "✓ task"),
}
# Where what is to be seen is over when the demo is: it is looked at as soon as the cascade is like that.
MEANWHILE = {
    "slow": lambda cascade: cascade["verdict"] == "in_flight" and worker_reads(cascade),
    "silent": lambda cascade: cascade["verdict"] == "silent",
    "leak": lambda cascade: cascade["verdict"] == "in_flight" and FAULTS["leak"].names(cascade) is None,
}


def on_the_page(browser, url, cascade, verdict, look):
    with looking(browser, url) as watched:
        page = watched.open()
        row = page.locator(f"li.cascade:has(a[href='#/cascade/{cascade}'])")
        row.locator(f".badge[data-verdict={verdict}]").wait_for()
        # Each is there as soon as it has told of itself, which may be after the verdict.
        until(
            lambda: all(
                agent in row.locator(".agents").inner_text() for agent in ("user", "frontdesk", "planner")
            )
        )
        row.locator("a").click()
        page.locator(f"h1 .badge[data-verdict={verdict}]").wait_for()
        page.locator("g.hop").first.wait_for()
        sight = Sight(page, url)
        lanes = ["user", "frontdesk", "planner", *(() if verdict == "unknown" else ("worker",))]
        until(lambda: [lane.split(",")[0] for lane in sight.lanes() if "not seen" not in lane] == lanes)
        # The page comes after the collector by its rhythm: what is to be seen may stand there a moment later than the verdict.
        over = time.monotonic() + 60
        while True:
            try:
                return look(sight)
            except (AssertionError, ValueError):
                if time.monotonic() > over:
                    raise
            time.sleep(0.1)
            sight.page.goto(f"{url}/#/cascade/{cascade}")


def in_the_terminal(url, cascade, verdict, words):
    async def story(top):
        # All of its agents stand beneath the list, in the order in which the collector heard of them; its line has room for some.
        await top.until(lambda: top.app.screen.rows.go_to(cascade))
        await top.see(cascade, verdict.replace("_", " "), "user", "frontdesk", "planner")
        await top.open(cascade)
        await top.see(verdict.replace("_", " ").upper())
        await top.see(words)

    # A thread of its own: that of Playwright has a loop that runs.
    failed = []

    def run():
        try:
            sit(url, story, size=(150, 60))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def test_every_fault_of_the_demo_is_looked_at():
    assert set(LOOKS) == set(FAULTS)


@pytest.mark.parametrize("fault", LOOKS)
def test_the_demo_is_shown_as_it_is(browser, tmp_path, fault):
    look, words = LOOKS[fault]
    ready = MEANWHILE.get(fault)
    looked = []

    cascades = set()

    def see(url, cascade, verdict):
        looked.append(verdict)
        on_the_page(browser, url, cascade, verdict, look)
        in_the_terminal(url, cascade, verdict, words)

    def show(cascade, outcome):
        cascades.add(cascade["cascade"])
        if ready is not None and not looked and ready(cascade):
            see(outcome.url, cascade["cascade"], cascade["verdict"])

    def hold(url):
        if ready is None:
            see(url, *cascades, FAULTS[fault].verdict)

    outcome = play(fault, show, hold=hold, folder=tmp_path)
    # How soon a verdict comes is not asked here.
    assert outcome.problem is None or " came after " in outcome.problem
    assert looked == ["in_flight" if fault == "slow" else FAULTS[fault].verdict]
