"""Which processes of this host died with work open? Found in their black boxes, and told to a collector by hand."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import httpx

from hopwatch import attributes as names
from hopwatch.cli.client import connection
from hopwatch.cli.text import count, plain, span
from hopwatch.reaping import SPAN_NAME, Reaped, UndeliveredError, reap
from hopwatch.records import abandoned_attributes
from hopwatch.tokens import VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hopwatch.blackbox import Box, OpenHop

AT_ONCE: Final = 5_000
"""Records of one request; a collector takes 16 MiB."""


def find(folder: str, url: str, token: str | None = None) -> Reaped:
    """Send what is in the boxes of dead processes to a collector, and remove those that it took.

    Args:
        folder: where the boxes are.
        url: of the collector, or of anything else that takes OTLP over HTTP.
        token: what it wants of everybody, if it does.

    Raises:
        FolderError: the folder cannot be trusted.
        Unreachable: `SSL_CERT_FILE` or `SSL_CERT_DIR` cannot be read.
    """
    with connection(url, token) as http:
        return reap(folder, _sending(http, url))


def _sending(http: httpx.Client, url: str) -> Callable[[Box], None]:
    def deliver(box: Box) -> None:
        for start in range(0, len(box.hops), AT_ONCE):
            body = encoded(box, box.hops[start : start + AT_ONCE])
            try:
                answer = http.post(
                    f"{url}/v1/traces", content=body, headers={"content-type": "application/x-protobuf"}
                )
            except httpx.HTTPError as error:
                raise UndeliveredError(
                    f"no collector can be reached at {url} ({plain(error) or type(error).__name__})"
                ) from None
            if answer.status_code == 401:
                raise UndeliveredError(
                    f"the collector at {url} wants its token: use --token-file or {VARIABLE}"
                )
            if not answer.is_success:
                raise UndeliveredError(f"the collector at {url} answered with status {answer.status_code}")

    return deliver


def encoded(box: Box, hops: tuple[OpenHop, ...]) -> bytes:
    """An OTLP request that tells of hops of a box."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: PLC0415 - slow to import
        ExportTraceServiceRequest,
    )

    request = ExportTraceServiceRequest()
    into = request.resource_spans.add()
    into.resource.attributes.add(key=names.SERVICE_NAME).value.string_value = box.agent
    scoped = into.scope_spans.add()
    scoped.scope.name = names.SCOPE
    now = time.time_ns()
    for hop in hops:
        new = scoped.spans.add(
            trace_id=bytes.fromhex(hop.cascade),
            span_id=secrets.token_bytes(8),
            parent_span_id=bytes.fromhex(hop.id),
            name=SPAN_NAME,
            start_time_unix_nano=now,
            end_time_unix_nano=now,
        )
        for key, value in abandoned_attributes(hop, box.instance, box.reason).items():
            told = new.attributes.add(key=key).value
            if isinstance(value, bool):
                told.bool_value = value
            elif isinstance(value, int):
                told.int_value = value
            else:
                told.string_value = str(value)
    body: bytes = request.SerializeToString()
    return body


def as_dict(found: Reaped) -> dict[str, Any]:
    """What was found, for JSON."""
    return {
        "delivered": [_box(box) for box in found.boxes],
        "undelivered": [{**_box(box), "problem": why} for box, why in found.undelivered],
        "set_aside": [{"file": name, "problem": why} for name, why in found.set_aside],
    }


def _box(box: Box) -> dict[str, Any]:
    return {
        "agent": box.agent,
        "pid": box.pid,
        "instance": box.instance,
        "reason": box.reason,
        "torn": box.torn,
        "unplaced": box.unplaced,
        "hops": [
            {
                "cascade": hop.cascade,
                "hop": hop.id,
                "kind": hop.kind,
                "name": hop.name,
                "task_id": hop.task_id,
            }
            for hop in box.hops
        ],
    }


def lines(found: Reaped, folder: str) -> Iterator[str]:
    """What was found, one line a process and one a hop."""
    dead = [*((box, "") for box in found.boxes), *found.undelivered]
    yield f"{count(len(dead), 'process', 'processes')} that died with work open in {plain(folder)}"
    now = time.time_ns()
    for box, why in dead:
        yield (
            f"{plain(box.agent)}  pid {box.pid}  {count(len(box.hops), 'hop')} open  {plain(box.reason)}  "
            + (f"not delivered: {plain(why)}" if why else "delivered")
        )
        for hop in box.hops:
            age = span(max(0, now - hop.started) / 1e9)
            task = f"  task {plain(hop.task_id)}" if hop.task_id else ""
            yield f"  {hop.cascade}  {hop.kind:<9}  {plain(hop.name)}  began {age} ago{task}"
    for name, why in found.set_aside:
        yield f"{plain(name)}  set aside: {plain(why)}"
