"""How do the collector's tests speak? OTLP requests with records of ours, and a real collector to send them to."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from hopwatch import attributes as names

SECOND = 1_000_000_000
PROTOBUF = "application/x-protobuf"
JSON = "application/json"
WORKER = "aaaaaaaaaaaaaaaa"
PLANNER = "bbbbbbbbbbbbbbbb"


def trace() -> str:
    return os.urandom(16).hex()


def end(
    cascade,
    hop,
    *,
    at=None,
    instance=WORKER,
    parent=None,
    children=0,
    kind="execution",
    outcome="finished",
    **more,
):
    """The record of a hop that has ended, as a dict of what its span says."""
    at = at or time.time_ns()
    says = {
        names.RECORD: names.RECORD_END,
        names.INSTANCE: instance,
        names.HOP_KIND: kind,
        names.HOP_CHILDREN: children,
        names.HOP_OUTCOME: outcome,
    }
    if parent:
        says[names.HOP_PARENT] = parent
    says.update(more)
    return {
        "trace": cascade,
        "span": hop,
        "parent": parent or "",
        "name": f"{kind} it",
        "start": at,
        "end": at + SECOND // 100,
        "says": says,
    }


def opened(
    cascade,
    hop,
    *,
    at=None,
    instance=WORKER,
    parent=None,
    kind="execution",
    waits=None,
    moves=True,
    sampled=None,
    **more,
):
    """A marker of an open hop."""
    at = at or time.time_ns()
    sampled = sampled or at
    says = {
        names.RECORD: names.RECORD_OPEN,
        names.INSTANCE: instance,
        names.HOP_KIND: kind,
        names.HOP_NAME: f"{kind} it",
        names.HOP_STARTED: at,
        names.HOP_CHILDREN: 0,
        names.HOP_MOVES: moves,
    }
    if waits is not None:
        says[names.HOP_WAITS] = json.dumps(waits)
    if parent:
        says[names.HOP_PARENT] = parent
    says.update(more)
    return {
        "trace": cascade,
        "span": os.urandom(8).hex(),
        "parent": hop,
        "name": "open",
        "start": sampled,
        "end": sampled,
        "says": says,
    }


def heartbeat(instance=WORKER, *, at=None, pid=4711, **more):
    at = at or time.time_ns()
    says = {
        names.RECORD: names.RECORD_HEARTBEAT,
        names.INSTANCE: instance,
        names.PROCESS_PID: pid,
        names.HEARTBEAT_OPEN: 1,
        **more,
    }
    return {
        "trace": trace(),
        "span": os.urandom(8).hex(),
        "parent": "",
        "name": "heartbeat",
        "start": at,
        "end": at,
        "says": says,
    }


def foreign(cascade=None):
    at = time.time_ns()
    return {
        "trace": cascade or trace(),
        "span": os.urandom(8).hex(),
        "parent": "",
        "name": "GET /",
        "start": at,
        "end": at,
        "says": {"http.route": "/"},
    }


def protobuf(*spans, service="worker", service_instance=None, scope=names.SCOPE) -> bytes:
    request = ExportTraceServiceRequest()
    into = request.resource_spans.add()
    for key, value in ((names.SERVICE_NAME, service), (names.SERVICE_INSTANCE_ID, service_instance)):
        if value is not None:
            into.resource.attributes.add(key=key).value.string_value = value
    scoped = into.scope_spans.add()
    scoped.scope.name = scope
    for span in spans:
        new = scoped.spans.add(
            trace_id=bytes.fromhex(span["trace"]),
            span_id=bytes.fromhex(span["span"]),
            parent_span_id=bytes.fromhex(span["parent"]),
            name=span["name"],
            start_time_unix_nano=span["start"],
            end_time_unix_nano=span["end"],
        )
        for key, value in span["says"].items():
            pair = new.attributes.add(key=key)
            if isinstance(value, bool):
                pair.value.bool_value = value
            elif isinstance(value, int):
                pair.value.int_value = value
            elif isinstance(value, float):
                pair.value.double_value = value
            elif isinstance(value, str):
                pair.value.string_value = value
            else:
                pair.value.array_value.values.add().string_value = "x"
    return request.SerializeToString()


def as_json(*spans, service="worker", numbers=str) -> bytes:
    """The same as OTLP/JSON; 64-bit numbers as texts, or as what `numbers` makes of them."""

    def value(it: Any) -> dict[str, Any]:
        if isinstance(it, bool):
            return {"boolValue": it}
        if isinstance(it, int):
            return {"intValue": numbers(it)}
        if isinstance(it, float):
            return {"doubleValue": it}
        return {"stringValue": it} if isinstance(it, str) else {"arrayValue": {"values": []}}

    def attributes(says: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"key": key, "value": value(it)} for key, it in says.items()]

    return json.dumps(
        {
            "resourceSpans": [
                {
                    "resource": {"attributes": attributes({names.SERVICE_NAME: service})},
                    "scopeSpans": [
                        {
                            "scope": {"name": names.SCOPE},
                            "spans": [
                                {
                                    "traceId": span["trace"],
                                    "spanId": span["span"],
                                    "parentSpanId": span["parent"],
                                    "name": span["name"],
                                    "kind": 1,
                                    "startTimeUnixNano": numbers(span["start"]),
                                    "endTimeUnixNano": numbers(span["end"]),
                                    "attributes": attributes(span["says"]),
                                }
                                for span in spans
                            ],
                        }
                    ],
                }
            ]
        }
    ).encode()


class Running:
    """A collector process and how to speak to it."""

    def __init__(self, process: subprocess.Popen[str], line: str) -> None:
        self.process = process
        self.line = line
        found = re.fullmatch(
            r"hopwatch collector: https?://127\.0\.0\.1:(\d+) \(OTLP/HTTP and API\), grpc 127\.0\.0\.1:(\d+), store (.*)\n",
            line,
        )
        assert found, line
        self.port, self.grpc_port = int(found[1]), int(found[2])

    def request(self, method: str, path: str, body=None, headers=None) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def post(
        self, body: bytes, *, kind=PROTOBUF, path="/v1/traces", **headers
    ) -> tuple[int, dict[str, str], bytes]:
        return self.request(
            "POST",
            path,
            body,
            {"content-type": kind, **{key.replace("_", "-"): value for key, value in headers.items()}},
        )

    def get(self, path: str) -> Any:
        status, _, body = self.request("GET", path)
        assert status == 200, (status, body)
        return json.loads(body)

    def error(self, path: str, method: str = "GET") -> tuple[int, str]:
        status, _, body = self.request(method, path)
        said = json.loads(body)
        assert list(said) == ["error"]
        return status, said["error"]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def collector(store, *options: str):
    """A real collector on free ports; it is stopped at the end."""
    command = [
        sys.executable,
        "-m",
        "hopwatch.collector",
        "--port",
        "0",
        "--grpc-port",
        "0",
        "--store",
        str(store),
        *(() if "--blackbox" in options else ("--blackbox", "off")),
        *options,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Running(process, process.stdout.readline())
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
