"""Who gets an answer from a real collector? Its two ports, with and without token and TLS, as agents, readers and browsers use them."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import ssl
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc
import httpx
import pytest
from guarded import certificate, token_file
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from telling import JSON, PROTOBUF, as_json, collector, end, protobuf, trace

from hopwatch import attributes as names
from hopwatch.collector import connections, guard, receiver
from hopwatch.collector.access import Access
from hopwatch.collector.serve import Collector
from hopwatch.collector.store import StoreBusyError

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

HOP = "1111111111111111"
SIGNALS = [
    (TraceServiceStub, ExportTraceServiceRequest),
    (LogsServiceStub, ExportLogsServiceRequest),
    (MetricsServiceStub, ExportMetricsServiceRequest),
]
READS = ["/api/cascades", "/api/cascades/abc", "/api/hops", "/api/agents", "/", "/nowhere"]


@pytest.fixture(scope="module")
def token(tmp_path_factory):
    return token_file(tmp_path_factory.mktemp("token"))


@pytest.fixture(scope="module")
def running(tmp_path_factory, token):
    """A collector with a token and a name of its own."""
    with collector(
        tmp_path_factory.mktemp("store") / "hops.sqlite",
        "--token-file",
        token[0],
        "--allow-host",
        "Hops.Example",
    ) as it:
        yield it


@pytest.fixture(scope="module")
def open_to_all(tmp_path_factory):
    """A collector as it is by default."""
    with collector(tmp_path_factory.mktemp("store") / "hops.sqlite") as it:
        yield it


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def basic(token, user="anybody"):
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()}


def a_span():
    kept = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({names.SERVICE_NAME: "planner"}))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    provider.get_tracer(names.SCOPE).start_span("execution", attributes=end(trace(), HOP)["says"]).end()
    provider.shutdown()
    (span,) = kept.get_finished_spans()
    return span, f"{span.context.trace_id:032x}"


# The token -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", READS)
def test_nothing_is_read_without_the_token_not_even_whether_it_is_there(running, token, path):
    for headers in (
        {},
        {"authorization": token[1]},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {token[1]}x"},
        {"authorization": f"Bearer {token[1][:-1]}"},
        {"authorization": f"Digest {token[1]}"},
        {"authorization": "Basic ???"},
        basic(token[1] + "x"),
        basic("", user=token[1]),
    ):
        status, said, body = running.request("GET", path, headers=headers)
        assert status == 401
        assert 'realm="hopwatch"' in said["www-authenticate"]
        assert json.loads(body) == {"error": "this needs the collector's token: Authorization: Bearer ..."}, (
            headers
        )
    for headers in (bearer(token[1]), {"authorization": f"bearer  {token[1]} "}, basic(token[1])):
        status, _, _ = running.request("GET", path, headers=headers)
        assert status in (200, 404)


def test_two_authorizations_are_none(running, token):
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as sock:
        sock.sendall(
            f"GET /api/agents HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token[1]}\r\n"
            "authorization: Bearer none\r\n\r\n".encode()
        )
        assert sock.recv(100).startswith(b"HTTP/1.1 401 ")


def test_without_the_token_one_learns_that_it_lives_and_no_more(running, token):
    assert json.loads(running.request("GET", "/healthz")[2]) == {"status": "ok"}
    known = json.loads(running.request("GET", "/healthz", headers=bearer(token[1]))[2])
    assert set(known) == {"status", "cascades", "bytes", "pending"}


@pytest.mark.parametrize("path", ["/v1/traces", "/v1/logs", "/v1/metrics"])
@pytest.mark.parametrize("kind", [PROTOBUF, JSON, "text/plain"])
def test_nothing_is_written_over_http_without_the_token(running, token, path, kind):
    cascade = trace()
    body = protobuf(end(cascade, HOP)) if kind == PROTOBUF else as_json(end(cascade, HOP))
    status, headers, answer = running.post(body, kind=kind, path=path)
    assert status == 401
    assert headers["www-authenticate"] == 'Bearer realm="hopwatch"'  # no browser shall ask for it here
    if kind == PROTOBUF:
        assert headers["content-type"] == PROTOBUF
        assert answer[:3] == b"\x08\x10\x12"  # google.rpc.Status: UNAUTHENTICATED, then the message
    else:
        assert json.loads(answer)["code"] == 16
    status, _, _ = running.request("GET", f"/api/cascades/{cascade}", headers=bearer(token[1]))
    assert status == 404


@pytest.mark.parametrize(("stub", "request_of"), SIGNALS, ids=["traces", "logs", "metrics"])
def test_nothing_is_written_over_grpc_without_the_token(running, token, stub, request_of):
    with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel:
        for metadata in (
            (),
            (("authorization", token[1]),),
            (("authorization", f"Bearer {token[1]}x"),),
            (("authorization", basic(token[1])["authorization"]),),
            (("authorization", f"Bearer {token[1]}"), ("authorization", "Bearer none")),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                stub(channel).Export(request_of(), metadata=metadata, timeout=60)
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert token[1] not in raised.value.details()
        stub(channel).Export(request_of(), metadata=(("authorization", f"Bearer {token[1]}"),), timeout=60)


@pytest.mark.parametrize("exporter", [HttpExporter, GrpcExporter], ids=["http", "grpc"])
def test_the_stock_exporters_bring_it_by_their_variable(running, token, exporter, monkeypatch):
    if exporter is HttpExporter:
        endpoint = {"endpoint": f"http://127.0.0.1:{running.port}/v1/traces"}
    else:
        endpoint = {"endpoint": f"http://127.0.0.1:{running.grpc_port}", "insecure": True}
    for variable, result in (
        ("", SpanExportResult.FAILURE),
        (f"authorization=Bearer%20{token[1]}", SpanExportResult.SUCCESS),
    ):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", variable)
        span, cascade = a_span()
        sender = exporter(**endpoint, timeout=60)
        assert sender.export([span]) is result
        sender.shutdown()
        status, _, _ = running.request("GET", f"/api/cascades/{cascade}", headers=bearer(token[1]))
        assert status == (200 if result is SpanExportResult.SUCCESS else 404)


# Names and sites -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:4318", 200),
        ("localhost:9", 200),
        ("LOCALHOST.", 200),
        ("[::1]:4318", 200),
        ("hops.example", 200),
        ("HOPS.example:443", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("a.hops.example", 421),
        ("192.0.2.7", 421),
        ("0.0.0.0", 421),
        ("[2001:db8::1]", 421),
        ("127.0.0.1@evil.example", 421),
        ("localhost:80:80", 421),
        ("", 421),
        (" ", 421),
    ],
)
def test_it_answers_to_its_own_names_alone_so_that_no_other_name_can_be_bent_to_it(
    running, token, host, status
):
    for method, path in (("GET", "/healthz"), ("POST", "/v1/traces")):
        headers = {"host": host, "content-type": JSON, **bearer(token[1])}
        got, _, body = running.request(method, path, b"{}" if method == "POST" else None, headers)
        assert got == status, body
        if status == 421:
            assert "--allow-host NAME" in json.loads(body)["error"]


@pytest.mark.parametrize("lines", ["", "host: localhost\r\nhost: localhost\r\n"], ids=["none", "two"])
def test_a_request_with_no_name_or_with_two_is_refused(running, lines):
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as sock:
        sock.sendall(f"GET /healthz HTTP/1.1\r\n{lines}\r\n".encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 400 ")


def test_what_a_browser_sends_for_another_site_is_refused_and_nothing_is_written(open_to_all):
    here = f"http://127.0.0.1:{open_to_all.port}"
    page = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    cascade = trace()
    for headers, status in (
        ({"origin": here}, 200),
        ({"origin": here.upper()}, 200),
        ({"origin": here.replace("http:", "https:")}, 200),  # TLS may end at a proxy
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        (page, 200),  # somebody follows a link
        ({"origin": "http://evil.example"}, 403),
        ({"origin": f"http://localhost:{open_to_all.port}"}, 403),
        ({"origin": f"http://127.0.0.1:{open_to_all.port + 1}"}, 403),
        ({"origin": "http://127.0.0.1"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),  # another port of the same host
        ({**page, "sec-fetch-dest": "iframe"}, 403),
        ({**page, "sec-fetch-mode": "no-cors"}, 403),
    ):
        got, said, _ = open_to_all.request("GET", "/api/cascades", headers=headers)
        assert got == status, headers
        assert not [name for name in said if name.startswith("access-control")]
        if status == 403 or headers is page:
            got, _, _ = open_to_all.post(protobuf(end(cascade, HOP)), **headers)
            assert got == 403
    assert open_to_all.request("GET", f"/api/cascades/{cascade}")[0] == 404
    preflight = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    got, said, _ = open_to_all.request("OPTIONS", "/v1/traces", headers=preflight)
    assert got == 403
    assert not [name for name in said if name.startswith("access-control")]


@pytest.mark.parametrize("path", [*READS, "/healthz", "/v1/traces"])
def test_every_answer_tells_browsers_to_be_careful(running, open_to_all, token, path):
    for one, headers in (
        (open_to_all, {}),
        (open_to_all, {"host": "evil.example"}),
        (running, {}),
        (running, bearer(token[1])),
    ):
        _, said, _ = one.request("GET", path, headers=headers)
        assert {name: said.get(name) for name in ("x-content-type-options", "referrer-policy", "x-frame-options")} == {
            "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "x-frame-options": "DENY",
        }  # fmt: skip
        assert "frame-ancestors 'none'" in said["content-security-policy"]
        assert "unsafe" not in said["content-security-policy"]
        assert "access-control-allow-origin" not in said
        assert "server" not in said


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "path", ["/api/cascades", "/api/cascades/abc", "/api/hops", "/api/agents", "/healthz"]
)
def test_the_api_only_reads(running, token, method, path):
    assert running.request(method, path, b"", bearer(token[1]))[0] == 405


# TLS -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*TLSVersion.* is deprecated:DeprecationWarning")
def test_with_a_certificate_both_ports_speak_tls_alone(tmp_path, token, monkeypatch):
    pair = certificate(tmp_path)
    options = ("--tls-cert", pair.cert, "--tls-key", pair.key, "--token-file", token[0])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{token[1]}")
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # requests takes them before what it is given
        monkeypatch.delenv(variable, raising=False)
    with collector(tmp_path / "hops.sqlite", *options) as it:
        assert it.line.startswith(f"hopwatch collector: https://127.0.0.1:{it.port} ")
        url = f"https://localhost:{it.port}"
        trusting = ssl.create_default_context(cafile=pair.cert)
        for sender in (
            HttpExporter(endpoint=f"{url}/v1/traces", certificate_file=pair.cert, timeout=60),
            GrpcExporter(
                endpoint=f"https://127.0.0.1:{it.grpc_port}",
                credentials=grpc.ssl_channel_credentials(Path(pair.cert).read_bytes()),
                timeout=60,
            ),
        ):
            span, cascade = a_span()
            assert sender.export([span]) is SpanExportResult.SUCCESS
            sender.shutdown()
            with httpx.Client(
                verify=trusting, headers=bearer(token[1]), timeout=60, trust_env=False
            ) as reader:
                assert reader.get(f"{url}/api/cascades/{cascade}").json()["verdict"] == "settled"
        with httpx.Client(timeout=60, trust_env=False) as stranger:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                stranger.get(url)
            with pytest.raises(httpx.HTTPError):
                stranger.get(url.replace("https", "http"))
        with (
            grpc.insecure_channel(f"127.0.0.1:{it.grpc_port}") as channel,
            pytest.raises(grpc.RpcError) as raised,
        ):
            TraceServiceStub(channel).Export(ExportTraceServiceRequest(), timeout=60)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        for port in (it.port, it.grpc_port):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as sock, pytest.raises(OSError):
                old.wrap_socket(sock, server_hostname="localhost")


# Too much ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def within(**access):
    """A collector in this process, whose limits a test may lower."""
    one = Collector(port=0, grpc_port=0, store=":memory:", access=Access(**access))
    ready = threading.Event()
    thread = threading.Thread(target=one.run, args=(ready.set,), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield one
    finally:
        one.stop()
        thread.join(60)


def receive_all(sock):
    got = b""
    with contextlib.suppress(ConnectionError):
        while part := sock.recv(65536):
            got += part
    return got


def test_a_connection_that_does_not_say_what_it_wants_is_hung_up_on_and_others_are_answered(monkeypatch):
    monkeypatch.setattr(connections, "HEADERS_WITHIN", 0.5)
    with within() as one, contextlib.ExitStack() as stack:

        def connect(beginning):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", one.port), timeout=60))
            sock.sendall(beginning)
            return sock

        def answer(to):
            """The beginning of what is answered: on a busy machine headers may come so late that they find nobody there."""
            until = time.monotonic() + 60
            while True:
                with contextlib.suppress(ConnectionError):
                    sock = connect(to)
                    if said := sock.recv(4096):
                        return sock, said
                assert time.monotonic() < until

        silent = connect(b"")
        slow = connect(b"GET /healthz HTTP/1.1\r\nhost: loc")
        answered, said = answer(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 200 ")
        refused, said = answer(b"POST /v1/traces HTTP/1.1\r\nhost: evil\r\ncontent-length: 100\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 421 ")
        for sock, more in (
            (answered, b"\r\n"),  # which is no request
            (refused, b"x"),  # the rest of the body never comes
        ):
            with contextlib.suppress(ConnectionError):
                sock.sendall(more)
        for sock in (silent, slow, answered, refused):
            assert b"HTTP/1.1" not in receive_all(sock)  # returns when the other side has hung up
        assert httpx.get(f"{one.url}/healthz", timeout=60, trust_env=False).status_code == 200


def test_a_request_that_is_being_answered_may_take_its_time(monkeypatch):
    monkeypatch.setattr(connections, "HEADERS_WITHIN", 0.2)
    body = protobuf(end(trace(), HOP))

    def answer(port):
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", port), timeout=60) as sock,
        ):
            head = f"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-type: {PROTOBUF}\r\ncontent-length: {len(body)}\r\n\r\n"
            sock.sendall(head.encode() + body[:10])
            sock.settimeout(0.6)
            try:
                return sock.recv(1)
            except TimeoutError:  # neither an answer nor the end: three times the time for headers
                sock.settimeout(60)
                sock.sendall(body[10:])
                return sock.recv(4096)
        return b""

    with within() as one:
        until = time.monotonic() + 60
        while not (said := answer(one.port)):  # on a busy machine the headers themselves may come too late
            assert time.monotonic() < until
        assert said.startswith(b"HTTP/1.1 200 ")


def test_headers_without_end_are_refused(open_to_all):
    with socket.create_connection(("127.0.0.1", open_to_all.port), timeout=60) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: ")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 64 * 1024 * 1024:
                sent += sock.send(b"x" * 65536)
        assert sent < 16 * 1024 * 1024
    assert open_to_all.get("/healthz")["status"] == "ok"


def test_readers_beyond_the_limit_are_asked_to_come_back_and_agents_get_through(monkeypatch):
    monkeypatch.setattr(guard, "MAX_READS", 2)
    inside, go_on = threading.Semaphore(0), threading.Event()
    with within() as one:
        store = one._store
        monkeypatch.setattr(
            store, "agents", lambda: (inside.release(), go_on.wait(60), [])[2]
        )  # a reader that takes long
        with futures.ThreadPoolExecutor(2) as pool:
            held = [
                pool.submit(httpx.get, f"{one.url}/api/agents", timeout=60, trust_env=False) for _ in range(2)
            ]
            try:
                for _ in held:
                    assert inside.acquire(timeout=60)
                refused = httpx.get(f"{one.url}/api/cascades", timeout=60, trust_env=False)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
                cascade = trace()
                told = httpx.post(
                    f"{one.url}/v1/traces",
                    content=protobuf(end(cascade, HOP)),
                    headers={"content-type": PROTOBUF},
                    timeout=60,
                    trust_env=False,
                )
                assert told.status_code == 200
            finally:
                go_on.set()
            assert [each.result().status_code for each in held] == [200, 200]
        assert (
            httpx.get(f"{one.url}/api/cascades/{cascade}", timeout=60, trust_env=False).json()["verdict"]
            == "settled"
        )


def test_grpc_calls_beyond_the_limit_are_asked_to_come_back_and_none_is_lost_that_was_taken(monkeypatch):
    monkeypatch.setattr(receiver, "MAX_CALLS", 4)
    inside, go_on = threading.Semaphore(0), threading.Event()
    with within() as one:
        write = one._store.write

        def slowly(batch):
            inside.release()
            assert go_on.wait(60)
            return write(batch)

        monkeypatch.setattr(one._store, "write", slowly)
        cascades = [trace() for _ in range(5)]
        requests = [ExportTraceServiceRequest.FromString(protobuf(end(each, HOP))) for each in cascades]
        with grpc.insecure_channel(f"127.0.0.1:{one.grpc_port}") as channel:
            stub = TraceServiceStub(channel)
            taken = [stub.Export.future(each, timeout=60) for each in requests[:4]]
            for _ in range(receiver.READERS):
                assert inside.acquire(timeout=60)
            until = time.monotonic() + 60
            while one._grpc._pool.pending < 4:
                assert time.monotonic() < until
                time.sleep(0.01)
            beyond = stub.Export.future(requests[4], timeout=60)
            while one._grpc._pool.pending < 5 and not beyond.done():  # it has been judged as soon as it waits
                assert time.monotonic() < until
                time.sleep(0.01)
            go_on.set()
            with pytest.raises(grpc.RpcError) as raised:
                beyond.result()
            assert (
                raised.value.code() is grpc.StatusCode.UNAVAILABLE
            )  # after which every exporter tries again
            for each in taken:
                each.result()
            stub.Export(requests[4], timeout=60)
        for cascade in cascades:
            assert (
                httpx.get(f"{one.url}/api/cascades/{cascade}", timeout=60, trust_env=False).json()["verdict"]
                == "settled"
            )


@pytest.mark.parametrize("exporter", [HttpExporter, GrpcExporter], ids=["http", "grpc"])
def test_a_stock_exporter_that_was_asked_to_come_back_does_and_nothing_is_lost(exporter, monkeypatch):
    with within() as one:
        write, asked = one._store.write, []

        def busy_at_first(batch):
            asked.append(batch)
            if len(asked) == 1:
                raise StoreBusyError("too much waits to be written")
            return write(batch)

        monkeypatch.setattr(one._store, "write", busy_at_first)
        if exporter is HttpExporter:
            sender = HttpExporter(endpoint=f"{one.url}/v1/traces", timeout=60)
        else:
            sender = GrpcExporter(endpoint=f"http://127.0.0.1:{one.grpc_port}", insecure=True, timeout=60)
        span, cascade = a_span()
        assert sender.export([span]) is SpanExportResult.SUCCESS
        sender.shutdown()
        assert len(asked) == 2
        assert (
            httpx.get(f"{one.url}/api/cascades/{cascade}", timeout=60, trust_env=False).json()["verdict"]
            == "settled"
        )


def test_the_token_is_in_no_output_of_the_collector(tmp_path, token, capfd):
    with collector(tmp_path / "hops.sqlite", "--token-file", token[0]) as it:
        for headers in (
            bearer(token[1]),
            bearer(token[1] + "x"),
            basic(token[1]),
            {**bearer(token[1]), "host": "x"},
        ):
            it.request("GET", "/api/cascades", headers=headers)
            it.request("GET", f"/{token[1]}", headers=headers)
        it.stop()
    told = "".join(capfd.readouterr()) + it.line
    assert token[1] not in told
    assert not re.search("(?i)bearer", told)
    for path in tmp_path.iterdir():
        assert token[1].encode() not in path.read_bytes()
