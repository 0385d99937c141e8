"""How does telemetry come in? OTLP over HTTP and gRPC, with a bound on everything that a sender may do.

A request is answered when what it says is committed. Bodies are unpacked and read in threads, never on the event
loop; unpacking stops at the limit, so that a small body that unpacks to a large one costs nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time
import zlib
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import anyio
import grpc
import orjson
from anyio.to_thread import run_sync
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from hopwatch.collector import otlp
from hopwatch.collector.access import Access
from hopwatch.collector.guard import GrpcGuard
from hopwatch.collector.status import status_bytes
from hopwatch.collector.store import StoreBusyError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from hopwatch.collector.batch import Batch, Refusals
    from hopwatch.collector.store import Store
    from hopwatch.collector.traffic import Result, Traffic

Signal = Literal["traces", "logs", "metrics"]

MAX_BODY: Final = 16 * 1024 * 1024
"""Bytes of a request, packed and unpacked."""
MAX_IN_FLIGHT: Final = 8 * MAX_BODY
"""Bytes of all requests that are being received or read; more are asked to come back."""
BODY_TIMEOUT: Final = 30.0
"""Seconds that a sender may take for one body."""
STEP: Final = 64 * 1024
GRPC_THREADS: Final = 4
MAX_CALLS: Final = 64
"""gRPC calls at once; more are asked to come back."""
READERS: Final = 2
"""Threads that unpack and read bodies; more of them would only wait for each other."""

# google.rpc.Code
_INVALID: Final = 3
_UNAVAILABLE: Final = 14
_INTERNAL: Final = 13


class TooLong(ValueError):  # noqa: N818 - said of the body
    """The body is longer than what is taken."""


class Refused(Exception):  # noqa: N818 - not a failure of ours
    """A request that gets an error for an answer."""

    def __init__(
        self, status: int, message: str, code: int = _INVALID, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}


_READ: Final[dict[Signal, Callable[..., Batch]]] = {
    "traces": otlp.read_traces,
    "logs": otlp.read_logs,
    "metrics": otlp.read_metrics,
}
_PARTS: Final[dict[Signal, tuple[Any, str, str]]] = {
    "traces": (trace_service_pb2.ExportTraceServiceResponse, "rejected_spans", "rejectedSpans"),
    "logs": (logs_service_pb2.ExportLogsServiceResponse, "rejected_log_records", "rejectedLogRecords"),
    "metrics": (
        metrics_service_pb2.ExportMetricsServiceResponse,
        "rejected_data_points",
        "rejectedDataPoints",
    ),
}


def inflate(packed: bytes, limit: int = MAX_BODY) -> bytes:
    """Unpack gzip, in bounded steps.

    Raises:
        TooLong: it unpacks to more than `limit`.
        otlp.Malformed: it is not gzip, or breaks off.
    """
    out = bytearray()
    rest = packed
    while rest:
        unpacker = zlib.decompressobj(wbits=31)
        try:
            while rest and not unpacker.eof:
                out += unpacker.decompress(rest, STEP)
                if len(out) > limit:
                    raise TooLong(f"the body unpacks to more than {limit} bytes")
                rest = unpacker.unconsumed_tail
        except zlib.error as error:
            raise otlp.Malformed(f"the body is not gzip: {error}") from None
        if not unpacker.eof:
            raise otlp.Malformed("the body is not gzip: it breaks off")
        rest = unpacker.unused_data  # gzip files may be one behind the other
    return bytes(out)


# HTTP ----------------------------------------------------------------------------------------------------------


class HttpReceiver:
    """OTLP over HTTP.

    Args:
        store: what takes the records.
        max_body: bytes of a request, packed and unpacked.
        clock: Unix nanoseconds.
        traffic: what counts them; nobody by default.
    """

    def __init__(
        self,
        store: Store,
        *,
        max_body: int = MAX_BODY,
        clock: Callable[[], int] = time.time_ns,
        traffic: Traffic | None = None,
    ) -> None:
        self._store = store
        self._traffic = traffic
        self._max_body = max_body
        self._clock = clock
        self._in_flight = 0
        self._readers: anyio.CapacityLimiter | None = None

    def routes(self) -> list[Route]:
        """Where each signal is sent."""
        return [Route(f"/v1/{signal}", self._endpoint(signal), methods=["POST"]) for signal in _READ]

    def _endpoint(self, signal: Signal) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            try:
                return await self._receive(signal, request, kind)
            except Refused as error:
                refused = error
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it
            except asyncio.CancelledError:
                # uvicorn cancels what a stop has no more time for, and would answer 500: no OTLP sender tries again after that.
                refused = Refused(503, "the collector is stopping", _UNAVAILABLE, {"retry-after": "1"})
            if self._traffic is not None:
                self._traffic.refused("http", signal, _result(refused.code))
            return _error(refused, kind)

        return endpoint

    async def _receive(self, signal: Signal, request: Request, kind: str) -> Response:
        if kind not in ("application/x-protobuf", "application/json"):
            raise Refused(
                415, f"the content type is {kind[:80]!r}; it is application/x-protobuf or application/json"
            )
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", ""):
            raise Refused(
                415,
                f"the content encoding is {encoding[:80]!r}; it is identity or gzip",
                headers={"accept-encoding": "gzip, identity"},
            )
        length = request.headers.get("content-length")
        if length is not None and length.isdecimal() and int(length) > self._max_body:
            raise self._too_long()
        taken = [0]
        try:
            body = await self._body(request, taken)
            if self._readers is None:
                self._readers = anyio.CapacityLimiter(READERS)
            json = kind == "application/json"
            batch = await run_sync(self._read, signal, body, json, encoding == "gzip", limiter=self._readers)
            del body
            if self._traffic is not None:
                self._traffic.arriving(batch)
            stored = await asyncio.wrap_future(self._store.write(batch))
        except StoreBusyError as error:
            raise Refused(503, str(error), _UNAVAILABLE, {"retry-after": "1"}) from None
        except StoreError as error:
            raise Refused(500, str(error), _INTERNAL) from None
        finally:
            self._in_flight -= taken[0]
        if self._traffic is not None:
            self._traffic.taken("http", signal, batch, stored)
        count, message = _told(batch, stored)
        if json:
            part = {_PARTS[signal][2]: str(count), "errorMessage": message}
            return Response(orjson.dumps({"partialSuccess": part} if count else {}), media_type=kind)
        return Response(_response(signal, count, message).SerializeToString(), media_type=kind)

    async def _body(self, request: Request, taken: list[int]) -> bytes:
        parts = bytearray()
        try:
            with anyio.fail_after(BODY_TIMEOUT):
                async for part in request.stream():
                    if len(parts) + len(part) > self._max_body:
                        raise self._too_long()
                    self._in_flight += len(part)
                    taken[0] += len(part)
                    if self._in_flight > MAX_IN_FLIGHT:
                        raise Refused(
                            503, "too many requests are being received", _UNAVAILABLE, {"retry-after": "1"}
                        )
                    parts += part
        except TimeoutError:
            raise Refused(408, f"the body took longer than {BODY_TIMEOUT:g} s") from None
        return bytes(parts)

    def _read(self, signal: Signal, body: bytes, json: bool, packed: bool) -> Batch:
        try:
            if packed:
                body = inflate(body, self._max_body)
            return _READ[signal](body, json=json, now=self._clock())
        except otlp.Malformed as error:
            raise Refused(400, str(error)) from None
        except TooLong as error:
            raise Refused(413, str(error)) from None

    def _too_long(self) -> Refused:
        return Refused(
            413, f"the body is longer than {self._max_body} bytes", headers={"connection": "close"}
        )


def _result(code: int) -> Result:
    return "busy" if code == _UNAVAILABLE else "failed" if code == _INTERNAL else "malformed"


def _told(batch: Batch, stored: Refusals) -> tuple[int, str]:
    for reason, count in stored.reasons.items():
        batch.refused.add(reason, count)
    return batch.refused.count, batch.refused.sentence()


def _response(signal: Signal, count: int, message: str) -> Any:
    kind, name, _ = _PARTS[signal]
    response = kind()
    if count:
        setattr(response.partial_success, name, count)
        response.partial_success.error_message = message
    return response


def _error(refused: Refused, kind: str) -> Response:
    if kind == "application/x-protobuf":
        return Response(status_bytes(refused.code, refused.message), refused.status, refused.headers, kind)
    # OTLP wants google.rpc.Status, our readers `error`: one object is both.
    content = {"error": refused.message, "code": refused.code, "message": refused.message}
    return Response(orjson.dumps(content), refused.status, refused.headers, "application/json")


# gRPC ----------------------------------------------------------------------------------------------------------


class _Pool(futures.ThreadPoolExecutor):
    """Threads that know how many calls they have before them."""

    pending = 0

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        future = super().submit(*args, **kwargs)
        with self._counting:
            self.pending += 1
        future.add_done_callback(self._done)
        return future

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._counting = threading.Lock()
        super().__init__(*args, **kwargs)

    def _done(self, _: Any) -> None:
        with self._counting:
            self.pending -= 1


class GrpcReceiver:
    """OTLP over gRPC, with a small pool of threads of its own.

    Args:
        store: what takes the records.
        access: what a call has to bring, and the certificate to show.
        max_body: bytes of a message, unpacked.
        clock: Unix nanoseconds.
        traffic: what counts them; nobody by default.
    """

    def __init__(
        self,
        store: Store,
        access: Access | None = None,
        *,
        max_body: int = MAX_BODY,
        clock: Callable[[], int] = time.time_ns,
        traffic: Traffic | None = None,
    ) -> None:
        self._store = store
        self._traffic = traffic
        self._clock = clock
        self._access = access or Access()
        self._pool = _Pool(GRPC_THREADS, thread_name_prefix="hopwatch-grpc")
        self._server = grpc.server(
            self._pool,
            interceptors=[GrpcGuard(self._access, lambda: self._pool.pending >= MAX_CALLS)],
            options=[
                ("grpc.max_receive_message_length", max_body),
                (
                    "grpc.so_reuseport",
                    0,
                ),  # or a second collector would share the port, and half of the records
            ],
            compression=grpc.Compression.NoCompression,
            # Beyond this gRPC itself refuses, with a code after which not every exporter tries again.
            maximum_concurrent_rpcs=4 * MAX_CALLS,
        )
        self._reading = threading.Semaphore(READERS)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self._service("traces"), self._server)
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server(self._service("logs"), self._server)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(self._service("metrics"), self._server)

    def listen(self, host: str, port: int) -> int:
        """Bind, start, and say which port it is.

        Raises:
            RuntimeError: the port is taken, or the certificate cannot be read.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        tls = self._access.tls
        if tls is None:
            bound = int(self._server.add_insecure_port(address))
        else:
            try:
                pair = Path(tls.key).read_bytes(), Path(tls.cert).read_bytes()
            except OSError as error:
                raise RuntimeError(str(error)) from None
            bound = int(self._server.add_secure_port(address, grpc.ssl_server_credentials([pair])))
        if bound == 0:
            raise RuntimeError(f"cannot listen at {address}")
        self._server.start()
        return bound

    def stop(self, grace: float = 1.0) -> None:
        """Take no more, let what runs end within `grace` seconds."""
        self._server.stop(grace).wait(grace + 1.0)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _service(self, signal: Signal) -> Any:
        read: Callable[..., Batch] = {
            "traces": otlp.traces_of,
            "logs": otlp.logs_of,
            "metrics": otlp.metrics_of,
        }[signal]

        def export(request: Any, context: Any) -> Any:
            try:
                with self._reading:
                    batch = read(request, now=self._clock())
                if self._traffic is not None:
                    self._traffic.arriving(batch)
                stored = self._store.write(batch).result(timeout=60)
            except StoreBusyError as error:
                if self._traffic is not None:
                    self._traffic.refused("grpc", signal, "busy")
                context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            except (StoreError, futures.TimeoutError) as error:
                if self._traffic is not None:
                    self._traffic.refused("grpc", signal, "failed")
                context.abort(grpc.StatusCode.INTERNAL, str(error) or "the store did not answer")
            if self._traffic is not None:
                self._traffic.taken("grpc", signal, batch, stored)
            return _response(signal, *_told(batch, stored))

        class Servicer:
            """The generated code asks for an object with this one method."""

            Export = staticmethod(export)

        return Servicer()
