"""Does the real collector, over real sockets, take what it should and answer what it knows?"""

from __future__ import annotations

import gzip
import json
import re
import signal
import socket
import time

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from telling import (
    JSON,
    PLANNER,
    PROTOBUF,
    WORKER,
    as_json,
    collector,
    end,
    foreign,
    heartbeat,
    opened,
    protobuf,
    trace,
)

from hopwatch import attributes as names
from hopwatch.collector.serve import ServeError, serve

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

HOP = "1111111111111111"
ROOT = "2222222222222222"
MIB = 1024 * 1024
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with collector(tmp_path_factory.mktemp("store") / "hops.sqlite") as it:
        yield it


def verdict(running, cascade):
    return running.get(f"/api/cascades/{cascade}")["verdict"]


# Ways in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["identity", "gzip"])
@pytest.mark.parametrize(
    ("encode", "kind"), [(protobuf, PROTOBUF), (as_json, JSON)], ids=["protobuf", "json"]
)
def test_a_cascade_told_over_http_is_known_when_the_answer_comes(running, encode, kind, packed):
    cascade = trace()
    body = encode(end(cascade, ROOT, children=1, kind="request"), end(cascade, HOP, parent=ROOT), foreign())
    headers = {"content_encoding": "gzip"} if packed else {}
    status, said, answer = running.post(
        gzip.compress(body) if packed else body, kind=f"{kind}; charset=utf-8", **headers
    )
    assert (status, said["content-type"], answer) == (200, kind, b"{}" if kind == JSON else b"")
    assert verdict(running, cascade) == "settled"


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_cascade_told_over_grpc_is_known_when_the_answer_comes(running, compression):
    cascade = trace()
    with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel:
        request = ExportTraceServiceRequest.FromString(
            protobuf(end(cascade, ROOT), end(cascade, HOP, instance="?"))
        )
        answer = TraceServiceStub(channel).Export(request, compression=compression, timeout=60)
        assert answer.partial_success.rejected_spans == 1
        assert names.INSTANCE in answer.partial_success.error_message
        LogsServiceStub(channel).Export(ExportLogsServiceRequest(), timeout=60)
        MetricsServiceStub(channel).Export(ExportMetricsServiceRequest(), timeout=60)
    assert verdict(running, cascade) == "unknown"


def test_the_stock_exporter_and_encoder_are_understood(running):
    resource = Resource({names.SERVICE_NAME: "planner", names.SERVICE_INSTANCE_ID: "p1"})
    exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{running.port}/v1/traces", timeout=60)
    kept = InMemorySpanExporter()
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    says = end(trace(), HOP)["says"]
    provider.get_tracer(names.SCOPE).start_span("execution planner", attributes=says).end()
    (span,) = kept.get_finished_spans()
    cascade = f"{span.context.trace_id:032x}"
    assert exporter.export([span]) is SpanExportResult.SUCCESS
    assert running.post(encode_spans([span]).SerializeToString())[0] == 200
    assert running.get(f"/api/cascades/{cascade}")["hops"][0]["agent"] == "planner"
    exporter.shutdown()
    provider.shutdown()


def test_logs_and_metrics_are_taken_as_signs_of_life(running):
    instance = "d" * 16
    running.post(protobuf(heartbeat(instance), service="logger", service_instance="l1"))

    def heard():
        return next(
            agent["heard"] for agent in running.get("/api/agents")["agents"] if agent["instance"] == instance
        )

    last = heard()
    resource = {
        "attributes": [
            {"key": key, "value": {"stringValue": value}}
            for key, value in (("service.name", "logger"), ("service.instance.id", "l1"))
        ]
    }
    logs = ExportLogsServiceRequest()
    into = logs.resource_logs.add().resource
    for key, value in (("service.name", "logger"), ("service.instance.id", "l1")):
        into.attributes.add(key=key).value.string_value = value
    for path, body, kind in (
        ("/v1/logs", json.dumps({"resourceLogs": [{"resource": resource}]}).encode(), JSON),
        ("/v1/metrics", json.dumps({"resourceMetrics": [{"resource": resource}]}).encode(), JSON),
        ("/v1/logs", logs.SerializeToString(), PROTOBUF),
    ):
        assert running.post(body, path=path, kind=kind)[0] == 200
        assert heard() > last
        last = heard()


# Bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encode", "kind"), [(protobuf, PROTOBUF), (as_json, JSON)], ids=["protobuf", "json"]
)
def test_what_is_refused_of_a_batch_is_said_and_the_rest_is_kept(running, encode, kind):
    cascade = trace()
    body = encode(end(cascade, ROOT), end(cascade, HOP, kind="dance"), end(cascade, HOP, instance=5))
    status, _, answer = running.post(body, kind=kind)
    assert status == 200
    if kind == JSON:
        told = json.loads(answer)["partialSuccess"]
        count, message = int(told["rejectedSpans"]), told["errorMessage"]
    else:
        told = ExportTraceServiceResponse.FromString(answer).partial_success
        count, message = told.rejected_spans, told.error_message
    assert count == 2
    assert message.startswith("2 spans were refused: ")
    assert "'dance'" in message
    shown = running.get(f"/api/cascades/{cascade}")
    assert shown["verdict"] == "unknown"
    assert shown["missing"] == [
        {"what": "rejected", "hop": None, "id": None, "sentence": "2 records of this cascade were refused"}
    ]


BOMB = gzip.compress(bytes(64 * MIB))


@pytest.mark.parametrize(
    ("body", "kind", "encoding", "status", "says"),
    [
        (b"\xff\xff", PROTOBUF, "identity", 400, "ExportTraceServiceRequest"),
        (b"{", JSON, "identity", 400, "JSON"),
        (b"[]", JSON, "identity", 400, "JSON object"),
        (b"no gzip", PROTOBUF, "gzip", 400, "gzip"),
        (BOMB[: len(BOMB) // 9], JSON, "gzip", 400, "breaks off"),
        (BOMB, PROTOBUF, "gzip", 413, "unpacks to more than 16777216"),
        (BOMB, JSON, "gzip", 413, "unpacks to more than 16777216"),
        (b"x", "text/plain", "identity", 415, "application/x-protobuf or application/json"),
        (b"x", "", "identity", 415, "application/x-protobuf or application/json"),
        (b"x", PROTOBUF, "br", 415, "identity or gzip"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/traces", "/v1/logs", "/v1/metrics"])
def test_a_request_that_cannot_be_read_gets_an_error_in_its_own_encoding(
    running, path, body, kind, encoding, status, says
):
    got, headers, answer = running.post(body, kind=kind, path=path, content_encoding=encoding)
    assert got == status
    if kind == PROTOBUF:
        assert headers["content-type"] == PROTOBUF
        assert answer[:3] == b"\x08\x03\x12"  # google.rpc.Status: INVALID_ARGUMENT, then the message
    else:
        assert json.loads(answer)["error"] == json.loads(answer)["message"]
    assert says.replace(
        "Trace", {"/v1/logs": "Logs", "/v1/metrics": "Metrics"}.get(path, "Trace")
    ) in answer.decode(errors="replace")
    assert running.get("/healthz")["status"] == "ok"


def test_a_body_that_is_announced_as_too_long_is_refused_before_it_comes(running):
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as sock:
        sock.sendall(
            b"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 16777217\r\n\r\n"
        )
        assert sock.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_grows_too_long_is_refused(running):
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as sock:
        sock.sendall(
            b"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        part = b"100000\r\n" + bytes(MIB) + b"\r\n"
        try:
            for _ in range(17):
                sock.sendall(part)
        except OSError:
            pass  # it hangs up while we still talk
        assert sock.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_grpc_message_that_is_too_long_is_refused(running):
    with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel:
        request = ExportTraceServiceRequest.FromString(protobuf(end(trace(), ROOT, text="x" * (17 * MIB))))
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            with pytest.raises(grpc.RpcError) as raised:
                TraceServiceStub(channel).Export(request, compression=compression, timeout=60)
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (
            TraceServiceStub(channel).Export(ExportTraceServiceRequest(), timeout=60)
            == ExportTraceServiceResponse()
        )
        assert (
            LogsServiceStub(channel).Export(ExportLogsServiceRequest(), timeout=60)
            == ExportLogsServiceResponse()
        )


# The API -------------------------------------------------------------------------------------------------------


def test_a_cascade_is_told_as_the_contract_says(running):
    cascade = trace()
    at = time.time_ns()
    waits = {"what": "awaiting a future", "file": "worker.py", "line": 42}
    running.post(
        protobuf(
            opened(cascade, HOP, at=at + 5, parent=ROOT, waits=waits, **{names.A2A_TASK_ID: "t", names.A2A_TASK_STATE: "TASK_STATE_WORKING",
                   names.CODE_FILE_PATH: "worker.py", names.CODE_LINE_NUMBER: 7, names.CODE_FUNCTION_NAME: "Executor.execute"}),
            end(cascade, ROOT, at=at, kind="request", children=1),
            heartbeat(),
        )
    )  # fmt: skip
    shown = running.get(f"/api/cascades/{cascade[:20].upper()}")
    assert list(shown) == [
        "cascade",
        "verdict",
        "reason",
        "started",
        "ended",
        "frontier",
        "missing",
        "opaque",
        "deadlocks",
        "agents",
        "hops",
    ]
    assert (shown["cascade"], shown["verdict"], shown["ended"]) == (cascade, "in_flight", None)
    assert (shown["frontier"], shown["missing"], shown["opaque"]) == ([HOP], [], [])
    assert RFC_3339.fullmatch(shown["started"])
    (agent,) = shown["agents"]
    assert RFC_3339.fullmatch(agent.pop("heard"))
    assert agent == {"name": "worker", "instance": WORKER, "pid": 4711, "state": "alive", "ended": None}
    root, hop = (dict(each) for each in shown["hops"])
    assert (root["id"], root["parent"], root["state"], root["outcome"], root["children"]) == (
        ROOT,
        None,
        "ended",
        "finished",
        1,
    )
    assert root["waits_on"] is None
    assert RFC_3339.fullmatch(root["ended"])
    assert RFC_3339.fullmatch(hop.pop("started"))
    assert hop == {
        "id": HOP, "parent": ROOT, "kind": "execution", "name": "execution it", "agent": "worker", "instance": WORKER, "state": "open",
        "outcome": None, "ended": None, "children": 0, "late": False, "waits_on": waits, "task_id": "t", "task_state": "TASK_STATE_WORKING",
        "location": "worker.py:7 Executor.execute", "reason": None, "peer": None, "peer_name": None,
        "attributes": {"a2a.task.id": "t", "a2a.task.state": "TASK_STATE_WORKING", "code.file.path": "worker.py",
                       "code.line.number": 7, "code.function.name": "Executor.execute"},
    }  # fmt: skip
    open_hops = running.get("/api/hops?state=open&limit=1000")["hops"]
    assert [each for each in open_hops if each["cascade"] == cascade] == [
        {"cascade": cascade, **shown["hops"][1]}
    ]
    (row,) = [
        row
        for row in running.get("/api/cascades?verdict=in_flight&verdict=silent")["cascades"]
        if row["cascade"] == cascade
    ]
    assert row == {"cascade": cascade, "verdict": "in_flight", "reason": shown["reason"], "started": shown["started"], "ended": None,
                   "agents": ["worker"], "hops": 2, "open": 1}  # fmt: skip
    assert cascade not in {
        row["cascade"] for row in running.get("/api/cascades?verdict=settled&limit=1000")["cascades"]
    }
    running.post(
        protobuf(
            end(
                cascade,
                HOP,
                at=at + 5,
                parent=ROOT,
                **{names.A2A_TASK_ID: "t", names.A2A_TASK_STATE: "TASK_STATE_COMPLETED"},
            )
        )
    )
    shown = running.get(f"/api/cascades/{cascade}")
    assert shown["verdict"] == "settled"
    assert shown["ended"] == shown["hops"][1]["ended"]
    assert shown["hops"][1]["waits_on"] is None


def test_the_newest_cascade_comes_first_and_a_limit_holds(running):
    cascades = [trace() for _ in range(3)]
    for cascade in cascades:
        running.post(protobuf(end(cascade, ROOT)))
    assert [row["cascade"] for row in running.get("/api/cascades?limit=2")["cascades"]] == cascades[:0:-1]


def test_agents_tell_who_lives_and_what_is_open(running):
    running.post(
        protobuf(
            opened(trace(), HOP, instance=PLANNER),
            heartbeat(PLANNER, **{names.HEARTBEAT_DROPPED: 3}),
            service="planner",
        )
    )
    (agent,) = [agent for agent in running.get("/api/agents")["agents"] if agent["instance"] == PLANNER]
    assert RFC_3339.fullmatch(agent.pop("heard"))
    assert agent == {
        "name": "planner",
        "instance": PLANNER,
        "pid": 4711,
        "state": "alive",
        "open": 1,
        "dropped": 3,
        "ended": None,
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/api/cascades?verdict=done", 400, "verdict is 'done'; it is one of settled, in_flight, "),
        ("GET", "/api/cascades?verdict=settled&verdict=", 400, "verdict is ''"),
        ("GET", "/api/cascades?limit=0", 400, "limit is '0'; it is a whole number from 1 to 1000"),
        ("GET", "/api/cascades?limit=many", 400, "limit is 'many'"),
        ("GET", "/api/cascades/xyz", 400, "32 hex digits"),
        ("GET", "/api/cascades/" + "f" * 33, 400, "32 hex digits"),
        ("GET", "/api/cascades/" + "f" * 32, 404, "no cascade's id begins with ffff"),
        ("GET", "/api/hops?state=ended", 400, "state is 'ended'; it is open"),
        ("GET", "/nowhere", 404, "nothing at /nowhere"),
        ("POST", "/api/cascades", 405, "POST is not allowed"),
        ("GET", "/v1/traces", 405, "GET is not allowed"),
        ("DELETE", "/api/agents", 405, "DELETE is not allowed"),
    ],
)
def test_a_wrong_question_gets_an_error_that_says_what_is_allowed(running, method, path, status, says):
    got, error = running.error(path, method)
    assert got == status
    assert says in error


def test_an_id_that_fits_several_cascades_is_answered_with_all_of_them(running):
    one, two = "abcdef" + trace()[6:], "abcdef" + trace()[6:]
    running.post(protobuf(end(one, ROOT), end(two, ROOT)))
    status, error = running.error("/api/cascades/abcdef")
    assert status == 409
    assert one in error
    assert two in error


# The process ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_collector_that_is_asked_to_stop_ends_with_0_and_the_next_one_knows_all(tmp_path, number):
    cascade = trace()
    store = tmp_path / "new" / "hops.sqlite"
    with collector(store) as first:
        first.post(protobuf(end(cascade, ROOT)))
        assert first.stop(number) == 0
    assert store.parent.stat().st_mode & 0o777 == 0o700
    with collector(store) as second:
        assert verdict(second, cascade) == "settled"


def test_what_a_collector_that_stops_has_no_time_to_receive_is_asked_for_again(tmp_path):
    body = protobuf(end(trace(), HOP))
    with collector(tmp_path / "hops.sqlite") as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=60) as slow:
            slow.sendall(
                b"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-protobuf\r\n"
                b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body)
            )
            assert slow.recv(1000).startswith(b"HTTP/1.1 100 ")  # it waits for the body
            running.process.send_signal(signal.SIGTERM)
            # Not 500: after that no OTLP sender tries again, and what it told would be lost.
            answer = slow.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in answer
        assert running.process.wait(60) == 0


def test_a_collector_that_was_killed_has_lost_nothing_that_it_answered(tmp_path):
    cascade = trace()
    with collector(tmp_path / "hops.sqlite") as first:
        first.post(protobuf(end(cascade, ROOT)))
        first.stop(signal.SIGKILL)
    with collector(tmp_path / "hops.sqlite") as second:
        assert verdict(second, cascade) == "settled"


def test_a_taken_port_says_which_option_to_use(running, tmp_path):
    with pytest.raises(
        ServeError, match=rf"127\.0\.0\.1:{running.port}: the port is taken; choose another one with --port"
    ):
        serve(port=running.port, grpc_port=0, store=tmp_path / "hops.sqlite")
    with pytest.raises(
        ServeError,
        match=rf"127\.0\.0\.1:{running.grpc_port}: the port is taken; choose another one with --grpc-port",
    ):
        serve(port=0, grpc_port=running.grpc_port, store=":memory:")
    assert not (tmp_path / "hops.sqlite").exists()


def test_a_foreign_file_is_refused_before_anything_is_served(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine " * 100)
    with pytest.raises(ServeError, match="is not a SQLite database; it was left as it is"):
        serve(port=0, grpc_port=0, store=path)
    assert path.read_text() == "mine " * 100
