"""Does the collector tell a page what has changed, all of it, once, and from where it was? Over real sockets."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from telling import PLANNER, SECOND, WORKER, collector, end, heartbeat, opened, protobuf, trace

from hopwatch import attributes as names
from hopwatch.collector.live import MAX_PAGES, Feed
from hopwatch.collector.pages import KINDS, parse_trace_url

ROOT = "1111111111111111"
CHILD = "2222222222222222"
PAGE = Path(__file__).parents[2] / "src" / "hopwatch" / "collector" / "page"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with collector(tmp_path_factory.mktemp("store") / "hops.sqlite") as it:
        yield it


class Listener:
    """What a browser's EventSource is, with a deadline for everything."""

    def __init__(self, port, query="", last=None):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.connection.request("GET", f"/api/live{query}", headers={"last-event-id": last} if last else {})
        self.answer = self.connection.getresponse()
        self.id = ""

    def next(self):
        """The next event: its name and what it says."""
        name, data = "", None
        while True:
            line = self.answer.readline()
            assert line, "the stream has ended"
            text = line.decode().rstrip("\n")
            if not text and data is not None:
                return name, data
            key, _, value = text.partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                data = json.loads(value)
            elif key == "id":
                self.id = value

    def until(self, wanted, name=None):
        """The first event of that name that is as wanted, and all that came before it."""
        before = []
        for _ in range(200):
            event = self.next()
            if (name is None or event[0] == name) and wanted(event[1]):
                return event[1], before
            before.append(event)
        pytest.fail(f"{before[-3:]}")

    def close(self):
        self.answer.close()
        self.connection.close()


@contextmanager
def listening(running, query="", last=None):
    listener = Listener(running.port, query, last)
    try:
        yield listener
    finally:
        listener.close()


def has(cascade, verdict):
    return lambda data: any(
        row["cascade"] == cascade and row["verdict"] == verdict for row in data.get("cascades", ())
    )


def told_in(events, cascade):
    """Whether the overview said already that a cascade is settled: it may be looked at a moment before the cascade is."""
    return any(name == "overview" and has(cascade, "settled")(data) for name, data in events)


# The feed ------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=20), max_size=60), st.integers(-5, 70), st.integers(0, 200))
def test_a_feed_gives_all_that_came_after_a_number_or_says_that_it_cannot(events, number, room):
    feed = Feed(room)
    for event in events:
        feed.add(event)
    found = feed.after(number)
    if found is None:
        lost = sum(map(len, events[max(0, number) :])) > room
        assert number < 0 or number > len(events) or lost
    else:
        assert found == events[number:]
    assert feed.after(feed.number) == []


# The stream ----------------------------------------------------------------------------------------------------


def test_a_page_is_told_everything_at_first_and_then_only_what_changes(running):
    cascade = trace()
    running.post(protobuf(opened(cascade, ROOT, kind="request")))
    with listening(running, f"?cascade={cascade}") as page:
        assert page.answer.headers["content-type"].startswith("text/event-stream")
        assert page.answer.headers["cache-control"] == "no-store"
        one, _ = page.until(lambda data: data["whole"], "cascade")
        assert (one["known"], one["verdict"], [hop["id"] for hop in one["hops"]]) == (
            True,
            "in_flight",
            [ROOT],
        )
        every, _ = page.until(lambda data: data["whole"], "overview")
        assert has(cascade, "in_flight")(every)
        assert any(agent["instance"] == WORKER for agent in every["agents"])
        alive, _ = page.until(lambda _: True, "alive")
        assert set(alive) == {"now"}
        running.post(
            protobuf(end(cascade, CHILD, parent=ROOT), end(cascade, ROOT, kind="request", children=1))
        )
        told, before = page.until(lambda data: data.get("verdict") == "settled", "cascade")
        assert not told["whole"]
        assert {hop["id"] for hop in told["hops"]} == {ROOT, CHILD}
        told_in(before, cascade) or page.until(has(cascade, "settled"), "overview")


def test_a_message_that_nobody_answers_has_arrived_as_soon_as_who_took_it_tells_of_it(running):
    cascade = trace()
    sent = end(cascade, ROOT, kind="send", **{names.PEER: "unknown"})
    taken = end(cascade, CHILD, kind="request", parent=ROOT, instance=PLANNER, **{names.HOP_REMOTE: True})
    running.post(protobuf(sent))
    with listening(running, f"?cascade={cascade}") as page:
        everything, _ = page.until(lambda data: data["whole"], "cascade")
        assert [hop["peer"] for hop in everything["hops"]] == ["unknown"]
        running.post(protobuf(taken))
        told, _ = page.until(lambda data: data.get("verdict") == "settled", "cascade")
        assert {hop["id"]: hop["peer"] for hop in told["hops"]} == {ROOT: "instrumented", CHILD: None}
    assert running.get(f"/api/cascades/{cascade}")["hops"][0]["peer"] == "instrumented"


def test_a_change_is_told_in_less_than_a_second(running, capsys):
    cascade, lags = trace(), []
    running.post(protobuf(opened(cascade, ROOT, kind="request")))
    with listening(running, f"?cascade={cascade}") as page:
        page.until(lambda data: data["whole"], "cascade")
        for number in range(40):
            hop = f"{number + 16:016x}"
            began = time.monotonic()
            running.post(protobuf(end(cascade, hop, parent=ROOT)))
            page.until(lambda data, hop=hop: any(each["id"] == hop for each in data["hops"]), "cascade")
            lags.append(time.monotonic() - began)
    lags.sort()
    with capsys.disabled():
        print(f"\na change was told after {lags[20] * 1000:.0f} ms (median), {lags[37] * 1000:.0f} ms (p95)")
    assert len(lags) == 40


def test_who_comes_back_gets_what_it_missed_and_nothing_twice(running):
    cascade, other = trace(), trace()
    running.post(protobuf(opened(cascade, ROOT, kind="request")))
    with listening(running, f"?cascade={cascade}") as page:
        page.until(lambda data: data["whole"], "cascade")
        page.until(lambda _: True, "alive")
        last = page.id
    with listening(running) as witness:
        running.post(protobuf(end(cascade, CHILD, parent=ROOT)))
        running.post(protobuf(end(other, ROOT, kind="request")))
        witness.until(has(other, "settled"), "overview")
    with listening(running, f"?cascade={cascade}", last) as page:
        told, before = page.until(lambda data: any(each["id"] == CHILD for each in data["hops"]), "cascade")
        assert not told["whole"]
        _, more = (None, []) if told_in(before, other) else page.until(has(other, "settled"), "overview")
        assert not any(data.get("whole") for _, data in before + more)


@pytest.mark.parametrize("last", ["ffffffff.1.1", "nonsense", "../..", "00000000.99999999999999999.1"])
def test_an_id_that_is_not_known_gets_everything(running, last):
    with listening(running, "?after=" + last) as page:
        every, _ = page.until(lambda _: True, "overview")
        assert every["whole"]


def test_the_oldest_open_cascade_is_told_however_many_newer_ones_there_are(tmp_path):
    with collector(tmp_path / "hops.sqlite") as running:
        old = trace()
        running.post(protobuf(opened(old, ROOT, kind="request", at=time.time_ns() - 3600 * SECOND)))
        running.post(protobuf(*(end(trace(), ROOT, kind="request") for _ in range(600))))
        with listening(running) as page:
            every, _ = page.until(lambda data: data["whole"], "overview")
            assert len(every["cascades"]) == 501
            # Not even if another one has all of the oldest hops.
            many = opened(trace(), ROOT, kind="request", at=time.time_ns() - 7200 * SECOND)
            running.post(protobuf(*({**many, "parent": f"{number + 1:016x}"} for number in range(1_100))))
            running.post(protobuf(*(end(trace(), ROOT, kind="request") for _ in range(600))))
        with listening(running) as page:
            every, _ = page.until(lambda data: data["whole"], "overview")
            assert old in {row["cascade"] for row in every["cascades"]}


def test_a_verdict_that_time_alone_changes_is_told(running):
    cascade = trace()
    with listening(running) as page:
        page.until(lambda data: data["whole"], "overview")
        running.post(protobuf(end(cascade, ROOT, kind="request", children=1)))
        # It is in flight for 5 s, which a collector that stands still may not see.
        page.until(has(cascade, "unknown"), "overview")  # without a record


def test_streams_are_bounded_and_forgotten_when_the_page_goes(tmp_path):
    with collector(tmp_path / "hops.sqlite") as running:  # where no page of another story is still known
        assert_streams_are_bounded(running)


def assert_streams_are_bounded(running):
    sockets = []

    def ask():
        one = socket.create_connection(("127.0.0.1", running.port), timeout=60)
        one.sendall(b"GET /api/live HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        sockets.append(one)
        return one.recv(12)[9:]

    try:
        assert [ask() for _ in range(MAX_PAGES)] == [b"200"] * MAX_PAGES
        assert ask() == b"503"
    finally:
        for one in sockets:
            one.close()
    until = time.monotonic() + 60
    while True:  # the collector learns of it within a moment
        with listening(running) as page:
            if page.answer.status == 200:
                break
        assert time.monotonic() < until
    assert running.error("/api/live?cascade=nonsense")[0] == 400


def test_50_pages_cost_little(tmp_path, capsys):
    with collector(tmp_path / "hops.sqlite") as running:
        for _ in range(100):
            running.post(protobuf(opened(trace(), ROOT, kind="request"), heartbeat()))
        pages = [Listener(running.port) for _ in range(50)]
        try:
            for page in pages:
                page.until(lambda data: data["whole"], "overview")
            stat = Path(f"/proc/{running.process.pid}/stat")

            def used():
                fields = stat.read_text().rpartition(")")[2].split()
                return (int(fields[11]) + int(fields[12])) / 100

            began, before = time.monotonic(), used()
            while time.monotonic() - began < 6:  # a cascade moves twice a second
                cascade = trace()
                running.post(protobuf(end(cascade, ROOT, kind="request"), heartbeat()))
                for page in pages:
                    page.until(has(cascade, "settled"), "overview")
                time.sleep(0.5)
            share = (used() - before) / (time.monotonic() - began)
        finally:
            for page in pages:
                page.close()
    with capsys.disabled():
        print(f"\n50 pages, two changes a second: {share:.1%} of a core")
    assert share < 1


# Files ---------------------------------------------------------------------------------------------------------


def test_the_page_is_served_whole_with_right_types_and_asks_again_whether_it_changed(running):
    status, headers, body = running.request("GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"/page/main.js" in body
    for file in PAGE.iterdir():
        status, headers, body = running.request("GET", f"/page/{file.name}")
        assert (status, body) == (200, file.read_bytes())
        assert headers["content-type"] == KINDS[file.suffix]
        assert headers["cache-control"] == "no-cache"
        assert "unsafe" not in headers["content-security-policy"]
        again = running.request(
            "GET", f"/page/{file.name}", headers={"if-none-match": f'W/"x", {headers["etag"]}'}
        )
        assert (again[0], again[2]) == (304, b"")
    assert running.get("/page/settings.json") == {"trace_url": None}
    assert running.error("/page/../serve.py")[0] == 404
    assert running.error("/page/%2e%2e/serve.py")[0] == 404


def test_nothing_of_the_page_leads_to_another_host_or_reads_text_as_markup():
    for file in PAGE.iterdir():
        text = file.read_text()
        for each in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "DOMParser",
            "srcdoc",
        ):
            assert each not in text, (file.name, each)
        for line in text.replace("http://www.w3.org/2000/svg", "").splitlines():
            assert not re.search(r"https?://", line), (file.name, line)
    index = (PAGE / "index.html").read_text()
    assert not re.search(r"style=|\son[a-z]+=", index)


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:16686/trace/{trace}?uiFind={span}",
        'https://grafana.example/explore?panes={"a":{"queries":[{"query":"{trace}"}]}}',
    ],
)
def test_a_template_for_links_is_taken(text):
    assert parse_trace_url(f" {text} ") == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{trace}",
        "javascript:alert({trace})",
        "http://x/",
        "http://{trace}/",
        "ftp://x/{trace}",
        "http://x/ {trace}",
        "http://[/{trace}",
    ],
)
def test_a_template_that_leads_nowhere_is_refused(text):
    with pytest.raises(ValueError, match="is not a template for links to traces"):
        parse_trace_url(text)


@pytest.mark.timeout(480)
def test_the_wheel_has_the_page(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=Path(__file__).parents[2], check=True, capture_output=True, timeout=420,
    )  # fmt: skip
    (wheel,) = tmp_path.iterdir()
    there = set(zipfile.ZipFile(wheel).namelist())
    assert {f"hopwatch/collector/page/{file.name}" for file in PAGE.iterdir()} <= there
