"""Does `hopwatch top` show what the collector knows, and nothing that it does not know? By keys, before a real collector."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager, suppress
from fcntl import ioctl

import pytest
from browsing import EVIL, LONG, TURNED, alive, tell, tell_cascade, tell_deadlock, tell_many
from hypothesis import given
from hypothesis import strategies as st
from sitting import DEADLINE, sit
from telling import PLANNER, SECOND, WORKER, collector, end, heartbeat, opened, trace

from hopwatch import attributes as names
from hopwatch.cli.top.lines import lane_lines, tree_lines
from hopwatch.cli.top.scale import Moments, Scale
from hopwatch.cli.top.stream import Events
from hopwatch.demo.run import free_ports

pytestmark = [pytest.mark.one_python, pytest.mark.processes, pytest.mark.timeout(480)]

MARKUP = "[bold red]taken[/] [@click=app.end]here[/] [/nothing] \\[x] [link=file:///etc]l[/link]"
CONTROL = "\x1b[2J\x1b]0;taken\x07\r\nnew line\tand\x9b31m\x00"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "hops.sqlite"
    with collector(store) as it, alive(it, worker=WORKER, planner=PLANNER):
        yield it


def work_of(cascade):
    """The id of the execution of a cascade that `tell_cascade` told of."""
    return f"{int(cascade[:16], 16) ^ 1:016x}"


def settle(running, cascade):
    done = end(
        cascade, work_of(cascade), parent=cascade[16:], **{names.A2A_TASK_STATE: "TASK_STATE_COMPLETED"}
    )
    tell(running, [done])


# The list ------------------------------------------------------------------------------------------------------


def test_cascades_are_listed_with_their_verdicts_ages_agents_and_what_is_open(running):
    told = {}
    for verdict in ("settled", "in_flight", "waiting", "stalled", "stranded", "broken", "unknown"):
        told[verdict] = tell_cascade(running, verdict, agent="lister")

    async def story(top):
        await top.see("live")
        for verdict, cascade in told.items():
            row = await top.see(cascade[:8], verdict.replace("_", " "))
            assert "planner, lister" in row
            assert (" 1/3 " in row) is (verdict in ("in_flight", "stalled"))
            assert " s" in row
        await top.until(lambda: top.app.screen.rows.go_to(told["stalled"]))
        await top.until(
            lambda: "a future `answer` that nobody has set at /srv" in " ".join(top.text().split())
        )  # the whole reason, below

    sit(running, story)


def test_agents_that_its_line_has_no_room_for_are_named_beneath_the_list(running):
    long = "the-agent-of-another-department"
    cascade = tell_cascade(running, "settled", agent=long)

    async def story(top):
        row = await top.see(cascade[:8], "settled")
        assert long not in row
        await top.until(lambda: top.app.screen.rows.go_to(cascade))
        await top.see(cascade, "planner", long)

    sit(running, story, size=(150, 36))


def test_the_list_is_filtered_by_verdict_agent_and_words_and_ordered_by_the_oldest_open(running):
    now = time.time_ns()
    older = tell_cascade(running, "in_flight", agent="sorter", name="first", at=now - 300 * SECOND)
    newer = tell_cascade(running, "in_flight", agent="sorter", name="second", at=now - 100 * SECOND)
    over = tell_cascade(running, "settled", agent="sorter", at=now - 50 * SECOND)

    async def story(top):
        def listed():
            return [row["cascade"] for row in top.app.screen.rows.content]

        await top.until(lambda: {older, newer, over} <= set(listed()))
        await top.press("a")
        names_ = top.app.screen._names
        for _ in range(names_.index("sorter")):
            await top.press("down")
        await top.press("enter")
        await top.until(lambda: listed() == [over, newer, older])
        await top.see("of the agent sorter")
        await top.press("o")
        await top.until(lambda: listed() == [older, newer, over])
        await top.press("1")
        await top.until(lambda: listed() == [older, newer])
        await top.press("slash", *"SECOND")
        await top.until(lambda: listed() == [newer])
        await top.press("q")  # is a letter here
        await top.until(lambda: listed() == [])
        await top.press("backspace", "enter", "escape")
        await top.until(lambda: {older, newer, over} <= set(listed()))

    sit(running, story)


def test_with_a_verdict_chosen_older_cascades_are_asked_for_too(running):
    asked = []
    cascade = tell_cascade(running, "broken", agent="searched")

    async def story(top):
        await top.see("live")
        search = top.app.stream.search

        async def listening(verdicts):
            asked.extend(await search(verdicts))
            return asked

        top.app.stream.search = listening
        await top.press("4")
        await top.until(lambda: asked)

    sit(running, story)
    assert cascade in {row["cascade"] for row in asked}
    assert {row["verdict"] for row in asked} == {"broken"}


# One cascade ---------------------------------------------------------------------------------------------------


def test_enter_opens_a_cascade_as_lanes_with_the_frontier_lit_and_its_reason_then_the_hop_then_its_cause(
    running,
):
    cascade = tell_cascade(running, "stalled", agent="opener")

    async def story(top):
        await top.open(cascade)
        await top.see("STALLED", cascade, "3 hops, 1 open, 1 at the frontier")
        await top.see("● execution work", "█")
        await top.see("↳ at worker.py:42: waits for a future `answer` that nobody has set")
        order = [
            top.rows().index(await top.see(lane))
            for lane in ("planner, pid 4711, alive", "opener, pid 4711, alive")
        ]
        assert order == sorted(order)
        await top.see("✓ send send it to 127.0.0.1:9000", "━", "200 ms")
        await top.press("enter")
        for words in (
            ("execution of opener: work",),
            ("at the frontier, open for",),
            ("At: /srv/worker.py:42 in work",),
            ("Task: Task-12",),
            ("/srv/worker.py:31 execute",),
            (f"A2A task: task {cascade[:4]}",),
            ("Task's state: working",),
            ("opener, pid 4711, alive",),
            ("a2a.task.state: TASK_STATE_WORKING",),
            (f"Id: {work_of(cascade)}",),
        ):
            await top.see(*words)
        await top.press("p")  # to what caused it: the details follow
        await top.see("request of opener: request it")
        await top.see("Caused: 1 hop")
        await top.press("escape")
        await top.gone("Await chain")
        await top.press("escape")
        await top.see("Cascades", "live")

    sit(running, story)


def test_the_tree_has_each_hop_beneath_the_one_that_caused_it(running):
    cascade = tell_cascade(running, "stalled", agent="climber")

    async def story(top):
        await top.open(cascade)
        await top.press("t")
        send = await top.see("✓ send send it", "planner", "finished 200 ms")
        request = await top.see("✓ request request it", "climber", "finished 130 ms")
        work = await top.see("● execution work", "at the frontier, open")
        depths = [len(row) - len(row.lstrip()) for row in (send, request, work)]
        assert depths == [depths[0], depths[0] + 2, depths[0] + 4]
        rows = top.rows()
        assert (
            "↳ at worker.py:42: waits for a future `answer` that nobody has set" in rows[rows.index(work) + 1]
        )

    sit(running, story)


def test_what_never_finished_and_what_is_not_known_are_shown_as_such(running):
    at = time.time_ns() - 60 * SECOND
    unknown, broken = (
        tell_cascade(running, verdict, agent="loser", at=at) for verdict in ("unknown", "broken")
    )

    async def story(top):
        for cascade, verdict, lines in (
            (broken, "BROKEN", (("✖ execution", "━"), ("↳ process_killed: the worker was killed",))),
            (unknown, "UNKNOWN", (("not seen: promised or declared, and",), ("? ", "declared has not come"))),
        ):
            await top.open(cascade)
            await top.see(verdict, cascade)
            for words in lines:
                await top.see(*words)
            await top.press("t")
            await top.gone("━")
            for words in lines:
                await top.see(*(each for each in words if each != "━"))
            await top.press("escape")
            await top.see("Cascades", "live")

    sit(running, story)


def test_a_deadlock_is_told_as_the_cycle_that_it_is(running):
    cascade = tell_deadlock(running)

    async def story(top):
        await top.open(cascade)
        await top.see("Deadlock: in worker: charge ─(lock `stock`)→ reserve ─(lock `account`)→ charge")
        await top.press("enter")
        await top.see("Held by: reserve")
        await top.see("charge wants lock `stock`, held by reserve at")
        await top.see("reserve wants lock `account`, held by charge at")

    sit(running, story, size=(160, 44))


def test_only_what_has_not_ended_well_can_be_shown_and_hops_can_be_searched(running):
    cascade = tell_cascade(running, "stalled", agent="seeker")

    async def story(top):
        await top.open(cascade)
        await top.see("✓ send")
        await top.press("u")
        await top.gone("✓ send")
        await top.see("● execution work")
        await top.press("u", "slash", *"request", "enter")
        await top.see("✓ request")
        await top.gone("● execution")
        await top.press("escape")
        await top.see("● execution")

    sit(running, story)


def test_in_a_narrow_terminal_the_details_take_the_place_of_the_picture(running):
    cascade = tell_cascade(running, "stalled", agent="narrow")

    async def story(top):
        await top.open(cascade)
        await top.see("● execution work")
        await top.press("enter")
        await top.see("At: /srv/worker.py:42 in work")
        assert top.row("✓ send") is None
        await top.press("escape")
        await top.see("✓ send")

    sit(running, story, size=(60, 24))


def test_a_cascade_of_one_hop_is_a_picture_too(running):
    cascade = trace()
    tell(running, [end(cascade, "8" * 16, kind="request")], "single")

    async def story(top):
        await top.open(cascade)
        await top.see("SETTLED", "1 hop")
        await top.see("✓ request", "━")

    sit(running, story)


# Agents --------------------------------------------------------------------------------------------------------


def test_agents_are_listed_with_how_they_are_and_lead_to_their_cascades(running):
    cascade, walker = trace(), "7" * 16
    tell(running, [opened(cascade, "3" * 16, kind="request", instance=walker)], "walker")
    gone = trace()
    bye = heartbeat("9" * 16, pid=815)
    bye["says"] |= {
        names.RECORD: names.RECORD_SHUTDOWN,
        names.SHUTDOWN_WAY: "SIGTERM",
        names.SHUTDOWN_PENDING: 1,
        f"{names.SHUTDOWN_PENDING}.task": 1,
    }
    tell(running, [end(gone, "9" * 16, instance="9" * 16, kind="request"), bye], "leaver")

    async def story(top):
        await top.see("live")
        await top.press("g")
        await top.see("● alive", "walker", "pid 4711", walker)
        await top.see("■ ended", "leaver", "pid 815", "by SIGTERM", "1 \u00d7 task pending")
        await top.until(lambda: top.app.screen.rows.go_to(walker))
        await top.press("enter")
        await top.see("of the agent walker")
        await top.see(cascade[:8], "in flight")

    with alive(running, walker=walker):
        sit(running, story, size=(170, 36))


# Live ----------------------------------------------------------------------------------------------------------


def test_what_happens_at_the_collector_is_on_the_screen_without_a_key(running):
    cascade = tell_cascade(running, "in_flight", agent="mover")

    async def story(top):
        await top.see(cascade[:8], "in flight", " 1/3 ")
        await top.open(cascade)
        await top.see("IN FLIGHT", "1 open")
        settle(running, cascade)
        await top.see("SETTLED", cascade)
        await top.see("✓ execution")
        await top.press("escape")
        await top.see(cascade[:8], "settled")

    sit(running, story)


def test_a_bar_of_an_open_hop_grows_and_its_age_goes_on(running):
    cascade = trace()
    tell(running, [opened(cascade, "6" * 16, kind="request", at=time.time_ns() - 2 * SECOND)], "grower")

    async def story(top):
        await top.open(cascade)
        first = await top.see("open for", "1 hop")
        await top.until(lambda: top.row("open for", "1 hop") not in (None, first))

    sit(running, story)


def test_details_that_are_being_read_stay_where_they_are_while_their_hop_changes(running):
    cascade = tell_cascade(running, "stalled", agent="reader")

    async def story(top):
        await top.open(cascade)
        await top.see("● execution work")
        await top.press("enter")
        await top.see("Waits on")
        await top.press("tab", "end")
        panel = top.app.screen.query_one("#panel")
        await top.until(lambda: panel.scroll_offset.y == panel.max_scroll_y > 0)
        seen = top.app.known.changes
        tell(
            running, [end(cascade, "1" * 16, parent=cascade[16:], instance="4" * 16, kind="task")], "newcomer"
        )
        await top.until(lambda: top.app.known.changes > seen and len(top.app.screen.study.facts) == 4)
        await top.pilot.pause(1.0)  # durations in it go on, too
        assert panel.scroll_offset.y > 0
        assert top.app.focused is panel

    sit(running, story, size=(110, 14))


@pytest.mark.parametrize("size", [(1, 1), (12, 4), (500, 120)])
def test_no_size_of_the_terminal_is_too_small_or_too_large(running, size):
    cascade = tell_cascade(running, "stalled", agent="sizer")

    async def story(top):
        await top.until(lambda: cascade in top.app.known.cascades)
        await top.until(lambda: top.app.screen.rows.go_to(cascade))
        await top.press("enter")
        await top.until(lambda: getattr(top.app.screen, "study", None))
        await top.press(
            "enter", "t", "u", "f", "p", "escape", "z", "g", "down", "escape", "question_mark", "escape"
        )
        await top.press("escape")
        await top.until(lambda: hasattr(top.app.screen, "verdicts"))  # the list

    sit(running, story, size=size)


def test_a_cascade_that_is_not_known_is_shown_as_soon_as_it_comes(running):
    cascade = trace()

    async def story(top):
        from hopwatch.cli.top.cascade import CascadeView

        await top.see("live")
        top.app.push_screen(CascadeView(cascade))
        await top.see("No record of this cascade has come")
        tell_cascade(running, "settled", cascade=cascade, agent="comer")
        await top.see("SETTLED", cascade)

    sit(running, story)


def test_a_collector_that_goes_is_told_of_and_one_that_comes_back_is_caught_up_with(tmp_path):
    store = tmp_path / "hops.sqlite"
    (port,) = free_ports(1)
    with collector(store, "--port", str(port)) as first:
        cascade = tell_cascade(first, "in_flight")

        async def story(top):
            with alive(first, worker=WORKER):
                await top.open(cascade)
                await top.see("IN FLIGHT", "open for")
            assert first.stop() == 0  # whoever looks on does not hold it up
            await top.see("✖ Connection lost at", "What you see is of then")
            over = time.monotonic() + DEADLINE
            while True:  # nobody knows whether it is still open: its age stands still from the next look on
                said, at = top.row("open for"), top.app.known.now()
                await asyncio.sleep(1.2)
                await top.pilot.pause()
                assert top.app.known.now() == at
                if top.row("open for") == said:
                    break
                assert time.monotonic() < over
            with collector(store, "--port", str(port)) as second:
                await top.see("● live")
                settle(second, cascade)
                await top.see("SETTLED", cascade)

        sit(first, story)


class Wire:
    """A way to the collector that can be cut."""

    def __init__(self, port):
        self._to = port
        self._open = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = "http://{}:{}".format(*self._listening.getsockname())
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to))
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one, other):
        with suppress(OSError):
            while part := one.recv(65_536):
                other.sendall(part)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut(self):
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._listening.close()
        self.cut()
        for each in self._open:
            each.close()


def test_after_a_cut_it_goes_on_from_where_it_was_and_is_told_nothing_twice(running):
    wire = Wire(running.port)
    cascade = tell_cascade(running, "in_flight", agent="cut")
    wholes = []

    async def story(top):
        take = top.app.known.take

        def listening(event, data, watched):
            if data.get("whole"):
                wholes.append(event)
            take(event, data, watched)

        await top.open(cascade)
        await top.see("IN FLIGHT")
        top.app.known.take = listening
        wire.cut()
        await top.see("Connection lost at")
        settle(running, cascade)  # while nobody listens
        await top.see("● live")
        await top.see("SETTLED", cascade)

    try:
        sit(wire.url, story)
    finally:
        wire.close()
    assert wholes == []


# What may come in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [EVIL, MARKUP, CONTROL, TURNED, LONG],
    ids=["html", "markup", "control", "right-to-left", "100 KB"],
)
def test_hostile_names_are_shown_as_text(running, name):
    full, name = name, name[:3_000]  # what it waits on may have 64 KiB, all in all
    waits = {"kind": "future", "moves": True, "what": name, "file": name, "line": name, "holder": name, "task": name,
             "chain": [name, name], "of": [{"kind": name, "what": name, "moves": True}],
             "deadlock": {"words": name, "edges": [{"task": name, "wants": name, "held_by": name, "at": name}]}}  # fmt: skip
    cascade = trace()
    marker = opened(cascade, "7" * 16, kind="request", waits=waits, **{"evil": full, names.A2A_TASK_ID: full})
    marker["says"][names.HOP_NAME] = full
    tell(running, [marker], full)

    async def story(top):
        await top.open(cascade)
        await top.see("● request")
        assert top.harmless()
        await top.press("enter")
        await top.see("Waits on")
        assert top.harmless()
        details = top.app.screen.query_one("#details").visual
        assert len(str(details)) < 40_000
        if full == MARKUP:
            await top.see("[bold red]taken[/]")
        if full == CONTROL:
            await top.see("\\x1b[2J\\x1b]0;taken\\x07")
        if full == TURNED:
            await top.see("\\u202egnp.exe")
        await top.press("t")
        await top.see("● request")
        assert top.harmless()
        await top.press("g")
        await top.see("Agents", "live")
        assert top.harmless()
        await top.press("escape", "escape", "escape")
        await top.see("Cascades", "live")
        await top.until(lambda: top.app.screen.rows.go_to(cascade))
        assert top.harmless()
        await top.press("a")
        await top.see("all agents")
        assert top.harmless()

    sit(running, story, size=(200, 60))


@given(
    st.lists(st.tuples(st.sampled_from(["overview", "alive"]), st.text("ab \\[", max_size=9)), max_size=20),
    st.integers(1, 50),
)
def test_events_are_the_same_however_the_stream_is_cut(told, size):
    import orjson

    stream = b"retry: 1000\n\n" + b"".join(
        b"event: %s\ndata: %s\nid: %d\n\n" % (name.encode(), orjson.dumps(data), number)
        for number, (name, data) in enumerate(told)
    )
    events = Events()
    found = [each for at in range(0, len(stream), size) for each in events.feed(stream[at : at + size])]
    assert found == [(name, orjson.dumps(data), str(number)) for number, (name, data) in enumerate(told)]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.floats(0, 1e6), st.booleans())
def test_a_scale_keeps_the_order_of_moments_and_stays_on_the_line(events, more, shorten):
    moments = Moments(events)
    scale = Scale(moments, moments.end + more, shorten=shorten)
    places = [scale.place(at) for at in sorted([*events, moments.end + more])]
    assert places == sorted(places)
    assert all(0 <= each <= 1 + 1e-9 for each in places)
    axis = scale.axis(60)
    assert len(axis) == 60
    assert ("⫽" in axis) is any(part.short for part in scale._parts)  # what is not to scale is said


# Large ---------------------------------------------------------------------------------------------------------


def test_a_cascade_of_10000_hops_is_drawn_in_few_lines_and_only_those_that_are_seen(running, capsys):
    cascade = tell_many(running, 10_000)

    async def story(top):
        await top.see("live")
        await top.until(lambda: cascade in top.app.known.cascades)
        await top.until(lambda: top.app.screen.rows.go_to(cascade))
        began = time.monotonic()
        await top.press("enter")
        await top.see("● task fetch 0")
        took = time.monotonic() - began
        view = top.app.screen
        assert len(view.lines.content) < 250
        frames = []
        for _ in range(20):
            at = time.perf_counter()
            view.tick()
            await top.pilot.pause()
            frames.append(time.perf_counter() - at)
        frames.sort()
        everything = [line for line in view.lines.content if line.kind == "group"]
        assert sum(len(line.facts) for line in everything) > 9_900
        # Of the largest group each hop is shown, beneath it: thousands of lines, of which a screen is drawn.
        largest = max(everything, key=lambda line: len(line.facts))
        for line in everything:
            view.expanded.add(line.key)
        view.lay_out()
        assert len(view.lines.content) > 10_000
        await top.pilot.pause()
        before = view.lines.drawn
        await top.press("end")
        await top.pilot.pause()
        # Again with each tick meanwhile, and never all of them.
        assert view.lines.drawn - before < 100 * view.lines.size.height < len(view.lines.content)
        assert view.lines.chosen is [line for line in view.lines.content if line.key][-1]
        with capsys.disabled():
            print(
                f"\n10,000 hops: on the screen after {took:.2f} s, a frame {frames[10] * 1000:.0f} ms (median),"
                f" {frames[18] * 1000:.0f} ms (worst but one of 20), worked out in {view.drawn_in * 1000:.0f} ms"
            )
        study = view.study
        for make in (lane_lines, tree_lines):
            lines = make(study)
            shown = [fact.id for line in lines if line.kind in ("hop", "group") for fact in line.facts]
            assert sorted(shown) == sorted(study.facts)  # each hop once, whichever way it is drawn
        assert len(tree_lines(study)) < 250
        assert largest.facts

    sit(running, story)


# The command ---------------------------------------------------------------------------------------------------


class Terminal:
    """The command before a terminal of 30 lines and 100 columns, as a person has it: for its input, output and errors."""

    def __init__(self, *words, **variables):
        self._ours, theirs = pty.openpty()
        self.before = termios.tcgetattr(theirs)
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        left_out = ("HOPWATCH_", "OTEL_", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hopwatch", "top", *words],
            env={**kept, "TERM": "xterm-256color", **variables}, stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        self._theirs = theirs
        self.text = ""

    def read(self, until=None):
        """Read up to a text, or to the end of the process."""
        over = time.monotonic() + DEADLINE
        while until is None or until not in self.text:
            assert time.monotonic() < over, self.text[-3000:]
            if not select.select([self._ours], [], [], 0.1)[0]:
                if self.process.poll() is not None:
                    break
                continue
            self.text += os.read(self._ours, 65_536).decode(errors="replace")
        return self.text

    def type(self, keys):
        os.write(self._ours, keys)

    def end(self):
        self.read()
        return self.process.wait(60)

    @property
    def restored(self):
        """Whether the terminal is as it was: its modes, its screen and its cursor."""
        modes = termios.tcgetattr(self._theirs)[:4] == self.before[:4]
        screen = self.text.rfind("\x1b[?1049l") > self.text.rfind("\x1b[?1049h") >= 0
        return modes and screen and self.text.rfind("\x1b[?25h") > self.text.rfind("\x1b[?25l")

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self._ours)
        os.close(self._theirs)


@contextmanager
def terminal(*words, **variables):
    one = Terminal(*words, **variables)
    try:
        yield one
    finally:
        one.close()


@pytest.mark.parametrize(("how", "code"), [("q", 0), ("ctrl-c", 130), ("sigterm", 143)])
def test_in_a_real_terminal_it_shows_cascades_and_gives_the_terminal_back(running, how, code):
    cascade = tell_cascade(running, "settled", agent="teller")
    with terminal("--url", f"http://127.0.0.1:{running.port}") as it:
        it.read(until=cascade[:8])
        it.type(b"?")
        it.read(until="to the frontier")
        it.type(b"q")
        if how == "q":
            it.type(b"q")
        elif how == "ctrl-c":
            it.type(b"\x03")
        else:
            it.process.send_signal(signal.SIGTERM)
        assert it.end() == code
        assert it.restored


def test_without_a_terminal_it_names_the_command_that_needs_none(running):
    done = subprocess.run(
        [sys.executable, "-m", "hopwatch", "top", "--url", f"http://127.0.0.1:{running.port}"],
        capture_output=True, text=True, timeout=240, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "`hopwatch ls`" in done.stderr


def test_where_no_collector_is_it_says_so_on_a_screen_that_it_never_touched():
    (port,) = free_ports(1)
    with terminal("--url", f"http://127.0.0.1:{port}") as it:
        assert it.end() == 1
        assert "No collector can be reached at" in it.text
        assert "\x1b[?1049h" not in it.text


def test_a_token_opens_the_stream_and_without_it_the_command_says_what_is_wanted(tmp_path):
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("0123456789abcdef0123\n")
    with collector(tmp_path / "hops.sqlite", "--token-file", str(token)) as guarded:
        url = f"http://127.0.0.1:{guarded.port}"
        with terminal("--url", url) as it:
            assert it.end() == 1
            assert "wants a token" in it.text
        with terminal("--url", url, "--token-file", str(token)) as it:
            it.read(until="No cascade has come yet")
            it.type(b"q")
            assert it.end() == 0


def test_without_textual_it_says_what_to_install(running, tmp_path):
    (tmp_path / "textual.py").write_text("raise ModuleNotFoundError('No module', name='textual')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with terminal("--url", f"http://127.0.0.1:{running.port}", PYTHONPATH=path) as it:
        assert it.end() == 1
        assert "pip install 'hopwatch[collector]'" in it.text


def test_no_other_command_loads_textual():
    script = "import sys, hopwatch.cli.commands; sys.exit('textual' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=240, check=False).returncode == 0
