"""What does the collector do with what no agent of ours would send? In process, on requests as bytes."""

from __future__ import annotations

import gzip
import json
import os
import time
import tracemalloc

import orjson
import pytest
from telling import PLANNER, SECOND, WORKER, as_json, end, foreign, heartbeat, opened, protobuf

from hopwatch import attributes as names
from hopwatch.collector import otlp
from hopwatch.collector.judged import Judge
from hopwatch.collector.receiver import TooLong, inflate, status_bytes
from hopwatch.collector.serve import default_store, parse_duration, parse_size
from hopwatch.collector.store.sqlite import SqliteStore

DAY = 86_400 * SECOND
HOP = "1111111111111111"
ROOT = "2222222222222222"


def read(*spans, json_=False, **resource):
    body = as_json(*spans) if json_ else protobuf(*spans, **resource)
    return otlp.read_traces(body, json=json_, now=time.time_ns())


def changed(told, /, **parts):
    return {**told, **parts}


def saying(span, **says):
    return {**span, "says": {**span["says"], **says}}


C = "c" * 32
BAD = {
    "trace id of 8 bytes": (changed(end(C, HOP), trace="cc" * 8), "trace id", False),
    "trace id of zeros": (changed(end(C, HOP), trace="0" * 32), "trace id", False),
    "no trace id": (changed(end(C, HOP), trace=""), "trace id", False),
    "span id of 4 bytes": (changed(end(C, HOP), span="11" * 4), "span id", True),
    "span id of zeros": (changed(end(C, HOP), span="0" * 16), "span id", True),
    "marker of no hop": (changed(opened(C, HOP), parent=""), "parent span", True),
    "marker of a hop of zeros": (changed(opened(C, HOP), parent="0" * 16), "parent span", True),
    "ends before it starts": (changed(end(C, HOP), end=1), "ends before it starts", True),
    "no times": (changed(end(C, HOP), start=0, end=0), "times are missing", True),
    "far future": (end(C, HOP, at=time.time_ns() + DAY + 3600 * SECOND), "future", True),
    "end of time": (changed(end(C, HOP), end=2**63 - 1), "future", True),
    "started in the far future": (saying(opened(C, HOP), **{names.HOP_STARTED: 2**62}), "future", True),
    "never started": (saying(opened(C, HOP), **{names.HOP_STARTED: 0}), names.HOP_STARTED, True),
    "kind is a number": (saying(end(C, HOP), **{names.HOP_KIND: 7}), names.HOP_KIND, True),
    "unknown kind": (saying(end(C, HOP), **{names.HOP_KIND: "dance"}), "'dance'", True),
    "record is an array": (saying(end(C, HOP), **{names.RECORD: ["end"]}), names.RECORD, True),
    "unknown record": (saying(end(C, HOP), **{names.RECORD: "maybe"}), "'maybe'", True),
    "children is a text": (saying(end(C, HOP), **{names.HOP_CHILDREN: "2"}), names.HOP_CHILDREN, True),
    "children below zero": (saying(end(C, HOP), **{names.HOP_CHILDREN: -1}), names.HOP_CHILDREN, True),
    "children is a fraction": (saying(end(C, HOP), **{names.HOP_CHILDREN: 1.5}), names.HOP_CHILDREN, True),
    "instance of the wrong length": (end(C, HOP, instance="abc"), names.INSTANCE, True),
    "parent is itself": (end(C, HOP, parent=HOP), "the hop itself", True),
    "waits is no text": (saying(opened(C, HOP), **{names.HOP_WAITS: 5}), names.HOP_WAITS, True),
    "waits is too deep": (saying(opened(C, HOP), **{names.HOP_WAITS: '{"a":' * 400 + "1" + "}" * 400}), names.HOP_WAITS, True),
    "waits holds half a character": (saying(opened(C, HOP), **{names.HOP_WAITS: '{"a":"\\ud800"}'}), names.HOP_WAITS, True),
    "waits holds a huge number": (saying(opened(C, HOP), **{names.HOP_WAITS: '{"a":' + "9" * 99 + "}"}), names.HOP_WAITS, True),
    "too many attributes": (end(C, HOP, **{f"a{n}": 1 for n in range(300)}), "256 attributes", True),
    "endless names": (end(C, HOP, **{"a" * 20_000: 1}), "16384 characters", True),
    "heartbeat of nobody": (heartbeat("?"), names.INSTANCE, False),
    "heartbeat of the future": (heartbeat(**{names.HEARTBEAT_SAMPLED: 2**62}), names.HEARTBEAT_SAMPLED, False),
}  # fmt: skip


@pytest.mark.parametrize("json_", [False, True], ids=["protobuf", "json"])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_refused_and_counted_and_the_rest_of_the_batch_goes_on(case, json_):
    span, says, counted = BAD[case]
    batch = read(end(C, ROOT), span, foreign(), heartbeat(PLANNER), json_=json_)
    assert batch.refused.count == 1
    assert says in batch.refused.sentence()
    assert [hop.id for hop in batch.hops] == [ROOT]
    assert [beat.instance for beat in batch.heartbeats] == [PLANNER]
    assert batch.ignored == 1
    assert dict(batch.refused_of) == ({C: 1} if counted else {})


@pytest.mark.parametrize("case", [case for case, (_, _, counted) in BAD.items() if counted])
def test_a_cascade_of_which_a_record_was_refused_does_not_settle(case):
    span, _, _ = BAD[case]
    store = SqliteStore(":memory:")
    try:
        store.write(read(span, end(C, ROOT))).result(60)
        assert Judge(store).verdict(store.snapshot(C)).verdict == "unknown"
    finally:
        store.close()


@pytest.mark.parametrize("numbers", [str, int])
def test_json_and_protobuf_say_the_same(numbers):
    at = time.time_ns()
    spans = [
        end(
            C,
            ROOT,
            at=at,
            children=1,
            **{names.CODE_LINE_NUMBER: 7, "ratio": 0.5, "flag": True, "empty": "", "zero": 0},
        ),
        opened(C, HOP, at=at, parent=ROOT, waits={"what": "a future"}),
        heartbeat(at=at),
        foreign(),
    ]
    now = time.time_ns()
    read_json = otlp.read_traces(as_json(*spans, numbers=numbers), json=True, now=now)
    read_protobuf = otlp.read_traces(protobuf(*spans), json=False, now=now)
    assert read_json == read_protobuf
    assert read_json.hops[0].attributes == {
        names.CODE_LINE_NUMBER: 7,
        "ratio": 0.5,
        "flag": True,
        "empty": "",
        "zero": 0,
    }


def test_ids_in_upper_case_are_the_same_ids():
    batch = read({**end(C, ROOT), "trace": C.upper(), "span": "AB" * 8}, json_=True)
    assert (batch.hops[0].cascade, batch.hops[0].id) == (C, "ab" * 8)


def test_spans_of_others_are_ignored_whatever_their_scope():
    batch = otlp.read_traces(
        protobuf(foreign(), end(C, ROOT), scope="another library"), json=False, now=time.time_ns()
    )
    assert (batch.ignored, len(batch.hops), batch.refused.count) == (1, 1, 0)
    batch = otlp.read_traces(protobuf(foreign()), json=False, now=time.time_ns())
    assert (batch.ignored, batch.refused.count) == (1, 0)


def test_numbers_that_json_lacks_are_kept_as_texts():
    batch = read(end(C, ROOT, a=float("nan"), b=float("inf")))
    assert batch.hops[0].attributes == {"a": "nan", "b": "inf"}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"1", b'"x"', b'{"resourceSpans":1}', b'{"resourceSpans":[1]}', b'{"resourceSpans":[{"scopeSpans":{}}]}',
     b'{"resourceSpans":[{"resource":[]}]}', b'{"resourceSpans":[{"scopeSpans":[{"spans":["x"]}]}]}', b"\xff\xfe", b"[" * 5000],
)  # fmt: skip
def test_what_is_no_otlp_json_is_malformed(body):
    with pytest.raises(otlp.Malformed):
        otlp.read_traces(body, json=True, now=1)


@pytest.mark.parametrize(
    "body", [b"\xff", b"hello", b"\x0a\xff\xff\xff\xff\x0f", protobuf(end(C, ROOT))[:-3]]
)
@pytest.mark.parametrize("read_it", [otlp.read_traces, otlp.read_logs, otlp.read_metrics])
def test_what_is_no_protobuf_is_malformed(body, read_it):
    with pytest.raises(otlp.Malformed):
        read_it(body, json=False, now=1)


@pytest.mark.parametrize(
    "span",
    [
        {
            "traceId": 1,
            "spanId": None,
            "attributes": [{"key": names.RECORD, "value": {"stringValue": "end"}}],
        },
        {"traceId": "zz" * 16, "attributes": [{"key": names.RECORD}]},
        {
            "traceId": C,
            "spanId": HOP,
            "startTimeUnixNano": "1e9",
            "endTimeUnixNano": True,
            "attributes": [{"key": names.RECORD, "value": {}}],
        },
        {
            "traceId": C,
            "spanId": HOP,
            "startTimeUnixNano": "9" * 5000,
            "attributes": [{"key": names.RECORD, "value": {"intValue": "9" * 5000}}],
        },
        {
            "traceId": C,
            "spanId": HOP,
            "attributes": [{"key": names.RECORD, "value": {"doubleValue": "x"}}, {"key": 5, "value": 5}],
        },
    ],
)
def test_json_of_wrong_types_within_a_span_is_refused_alone(span):
    good = json.loads(as_json(end(C, ROOT)))
    good["resourceSpans"][0]["scopeSpans"][0]["spans"].append(span)
    batch = otlp.read_traces(orjson.dumps(good), json=True, now=time.time_ns())
    assert (len(batch.hops), batch.refused.count) == (1, 1)


def test_cycles_among_parents_do_not_settle():
    store = SqliteStore(":memory:")
    try:
        other = "3333333333333333"
        store.write(
            read(end(C, ROOT), end(C, HOP, parent=other, children=1), end(C, other, parent=HOP, children=1))
        ).result(60)
        found = Judge(store).verdict(store.snapshot(C))
        assert found.verdict == "unknown"
        assert "circle" in found.reason
    finally:
        store.close()


@pytest.mark.timeout(480)
def test_100_000_hops_in_one_cascade_are_kept_up_to_the_bound_and_the_rest_is_counted():
    store = SqliteStore(":memory:")
    try:
        at = time.time_ns()
        for first in range(1, 100_001, 5_000):
            spans = [end(C, f"{n:016x}", at=at) for n in range(first, first + 5_000)]
            refused = store.write(read(*spans)).result(60)
        assert refused.sentence() == "5000 spans were refused: 5000 x the cascade has its 50000 hops already"
        snapshot = store.snapshot(C)
        assert (len(snapshot.hops), snapshot.row.rejected) == (50_000, 50_000)
        assert Judge(store).verdict(snapshot).verdict == "unknown"
    finally:
        store.close()


# Packed bodies -------------------------------------------------------------------------------------------------


def test_a_gzip_bomb_stops_at_the_limit_and_costs_little_memory():
    bomb = gzip.compress(bytes(64 * 1024 * 1024))
    tracemalloc.start()
    try:
        with pytest.raises(TooLong):
            inflate(bomb, 1024 * 1024)
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_gzip_in_several_parts_is_one_body():
    assert inflate(gzip.compress(b"ab") + gzip.compress(b"c" * 200_000)) == b"ab" + b"c" * 200_000
    assert inflate(b"") == b""


@pytest.mark.parametrize(
    "body",
    [b"no gzip", gzip.compress(os.urandom(1000))[:500], gzip.compress(b"a") + b"rest"],
    ids=["no gzip", "cut", "with a rest"],
)
def test_what_is_no_gzip_is_malformed(body):
    with pytest.raises(otlp.Malformed):
        inflate(body)


def test_an_error_for_protobuf_clients_is_a_google_rpc_status():
    status_pb2 = pytest.importorskip("google.rpc.status_pb2")
    for message in ("short", "ä" * 300):
        status = status_pb2.Status.FromString(status_bytes(3, message))
        assert (status.code, status.message) == (3, message)


# Words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("7d", 604_800), ("12h", 43_200), ("30m", 1_800), ("45s", 45), ("1.5h", 5_400)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "7 d", "-1d", "0d", "7w", "1e3s", "nan", "99999999d"])
def test_what_is_no_duration_is_named(text):
    with pytest.raises(ValueError, match="duration") as raised:
        parse_duration(text)
    assert repr(text) in str(raised.value)


def test_sizes():
    assert [parse_size(text) for text in ("2G", "500M", "2GiB", "1048576")] == [
        2 * 1024**3,
        500 * 1024**2,
        2 * 1024**3,
        1024**2,
    ]
    for text in ("", "big", "0", "1K", "-2G", "2T"):
        with pytest.raises(ValueError, match="size"):
            parse_size(text)


def test_the_store_is_of_this_user_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_store() == tmp_path / "hopwatch" / "hopwatch.sqlite"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_store() == tmp_path / ".local" / "state" / "hopwatch" / "hopwatch.sqlite"
    SqliteStore(default_store()).close()
    assert default_store().parent.stat().st_mode & 0o777 == 0o700


def test_who_tells_of_itself_is_the_worker():
    batch = read(heartbeat(), service_instance="one")
    assert batch.senders == {WORKER: ("worker", "one")}
