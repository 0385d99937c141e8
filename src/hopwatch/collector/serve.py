"""How does the collector run? One process: uvicorn for OTLP/HTTP and the API, grpcio for OTLP/gRPC, one store."""

from __future__ import annotations

import contextlib
import errno
import gc
import ipaddress
import os
import re
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from hopwatch.collector.access import Access, address_of, check, warnings
from hopwatch.collector.api import Api, on_failure, on_http_error
from hopwatch.collector.connections import BoundedHttp
from hopwatch.collector.guard import Guard
from hopwatch.collector.judged import Judge
from hopwatch.collector.live import Live, Observed
from hopwatch.collector.metrics import Metrics
from hopwatch.collector.pages import Pages
from hopwatch.collector.reaper import Reaper
from hopwatch.collector.receiver import GrpcReceiver, HttpReceiver
from hopwatch.collector.store import StoreError
from hopwatch.collector.store.sqlite import SqliteStore
from hopwatch.collector.traffic import Traffic
from hopwatch.process import read_settings
from hopwatch.state_folder import FolderError, checked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from starlette.routing import Route

    from hopwatch.collector.store import Store

HOST: Final = "127.0.0.1"
PORT: Final = 4318
GRPC_PORT: Final = 4317
RETAIN: Final = "7d"
MAX_SIZE: Final = 2 * 1024**3
STOP_WITHIN: Final = 3
"""Seconds that requests under way get when the collector stops."""
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_SIZES: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


class ServeError(RuntimeError):
    """The collector cannot start; the message says why and what to do."""


def parse_duration(text: str) -> float:
    """Seconds from `7d`, `12h`, `30m` or `45s`.

    Raises:
        ValueError: it is something else.
    """
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd])", text.strip())
    if found is None or not float(found[1]):
        raise ValueError(
            f"{text!r} is not a duration; it is a number above 0 and a unit: 45s, 30m, 12h or 7d"
        )
    seconds = float(found[1]) * _UNITS[found[2]]
    if seconds > 36_500 * 86_400:
        raise ValueError(f"{text!r} is too long a duration; it is at most 36500d")
    return seconds


def parse_size(text: str) -> int:
    """Bytes from `500M`, `2G` or a plain number; at least 1 MiB.

    Raises:
        ValueError: it is something else.
    """
    found = re.fullmatch(r"([0-9]{1,15})([KMG]?)(?:i?B)?", text.strip())
    size = int(found[1]) * _SIZES[found[2]] if found is not None else 0
    if not 1024**2 <= size < 2**62:
        raise ValueError(f"{text!r} is not a size; it is a number of bytes from 1M up, as in 500M or 2G")
    return size


def parse_blackbox(text: str | None) -> str | None:
    """The folder of black boxes that an option names; None is where the agents of this environment put theirs.

    Returns:
        The folder, or None for `off`.

    Raises:
        ValueError: it is no absolute path.
    """
    if text is None:
        return read_settings().blackbox
    if text.strip().lower() == "off":
        return None
    path = os.path.expanduser(text.strip())  # noqa: PTH111 - pathlib's raises where there is no home
    if not os.path.isabs(path):  # noqa: PTH117
        raise ValueError(f"{text!r} is neither the absolute path of a folder nor off")
    return path


def default_store() -> Path:
    """The store's file where none is named: of this user, under the XDG state directory."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "hopwatch" / "hopwatch.sqlite"


class Collector:
    """A collector that can be started and stopped within a process.

    Args:
        host: the address to listen at.
        port: for OTLP/HTTP and the API; 0 takes any free one.
        grpc_port: for OTLP/gRPC; 0 takes any free one.
        store: the store's file, or `:memory:`; None is `default_store()`.
        retain: seconds that a cascade is kept after its last record.
        max_size: bytes that the store may grow to.
        blackbox: the folder of the black boxes of this host's agents, which this collector alone looks into; None for none.
        access: what a request has to bring; None is `Access()`, which asks for nothing and allows loopback alone.
        trace_url: where a trace is to be seen, with `{trace}` and perhaps `{span}` in it; None for no links.

    Raises:
        ServeError: a port is taken, the host is no address of this machine, may be reached from elsewhere and access does
            not allow that, or the store or the folder cannot be used.
    """

    def __init__(
        self,
        host: str = HOST,
        port: int = PORT,
        grpc_port: int = GRPC_PORT,
        *,
        store: str | Path | None = None,
        retain: float = 7 * 86_400,
        max_size: int = MAX_SIZE,
        blackbox: str | None = None,
        access: Access | None = None,
        trace_url: str | None = None,
    ) -> None:
        self.host = host
        self.access = access or Access()
        try:
            self.address = address_of(host)
            check(host, self.address, self.access)
        except OSError as error:
            raise ServeError(_cannot(host, port, error)) from None
        except ValueError as error:
            raise ServeError(str(error)) from None
        if blackbox is not None:
            try:
                checked(blackbox)
            except FolderError as error:
                raise ServeError(f"{error}; or use --blackbox") from None
        location = default_store() if store is None else store
        # Sockets first: a port that is taken shall not leave a new store behind.
        self._socket = _bind(self.address, port)
        try:
            self._store: Store = SqliteStore(location, retain=retain, max_bytes=max_size)
        except StoreError as error:
            self._socket.close()
            raise ServeError(str(error)) from None
        self.location = str(location)
        self.port = int(self._socket.getsockname()[1])
        judge = Judge(self._store)
        live = Live(self._store, judge)
        self._store = Observed(self._store, live.changed)
        traffic = Traffic()
        self._grpc = GrpcReceiver(self._store, self.access, traffic=traffic)
        try:
            self.grpc_port = self._grpc.listen(self.address, grpc_port)
        except RuntimeError:
            self._grpc.stop(0)
            self._socket.close()
            self._store.close()
            raise ServeError(_taken(host, grpc_port, "--grpc-port")) from None
        self._reaper = Reaper(self._store, blackbox) if blackbox is not None else None
        self._server = _Server(
            uvicorn.Config(
                Guard(
                    application(self._store, traffic, judge, [*live.routes(), *Pages(trace_url).routes()]),
                    host,
                    self.address,
                    self.access,
                ),
                http=BoundedHttp,
                ssl_certfile=self.access.tls.cert if self.access.tls else None,
                ssl_keyfile=self.access.tls.key if self.access.tls else None,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                proxy_headers=False,  # nothing depends on what a proxy says, and anybody may say it
                ws="none",
                timeout_keep_alive=30,
                timeout_graceful_shutdown=STOP_WITHIN,
                limit_concurrency=512,
            )
        )
        self._server.leaving = live.close

    @property
    def url(self) -> str:
        """Where it is reached over HTTP."""
        return f"http{'s' if self.access.tls else ''}://{_shown_host(self.host)}:{self.port}"

    @property
    def ready_line(self) -> str:
        """What is printed when it is ready."""
        return (
            f"hopwatch collector: {self.url} (OTLP/HTTP and API), "
            f"grpc {_shown_host(self.host)}:{self.grpc_port}, store {self.location}"
        )

    def run(self, ready: Callable[[], None] | None = None) -> None:
        """Serve until `stop`, SIGINT or SIGTERM; `ready` is called when requests are answered."""
        self._server.ready = ready
        if self._reaper is not None:
            self._reaper.start()
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._grpc.stop()
            if self._reaper is not None:
                self._reaper.stop()
            self._store.close()
            self._socket.close()

    def stop(self) -> None:
        """Make `run` return. May be called from any thread."""
        self._server.should_exit = True


def serve(
    host: str = HOST,
    port: int = PORT,
    grpc_port: int = GRPC_PORT,
    store: str | Path | None = None,
    retain: float = 7 * 86_400,
    max_size: int = MAX_SIZE,
    blackbox: str | None = None,
    access: Access | None = None,
    *,
    trace_url: str | None = None,
) -> None:
    """Run a collector until SIGINT or SIGTERM. One line on stdout says when it is ready, and where.

    Raises:
        ServeError: as of `Collector`.
    """
    collector = Collector(
        host, port, grpc_port, store=store, retain=retain, max_size=max_size, blackbox=blackbox, access=access,
        trace_url=trace_url,
    )  # fmt: skip
    for warning in warnings(host, collector.address, collector.access):
        sys.stderr.write(f"Warning: {warning}.\n")
    # Hops are many, live long and hold no cycles: looking through all of them often is time lost.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    collector.run(ready=lambda: print(collector.ready_line, flush=True))  # noqa: T201 - this is its output


def application(
    store: Store, traffic: Traffic | None = None, judge: Judge | None = None, more: Sequence[Route] = ()
) -> Starlette:
    """The HTTP side, over any store.

    Args:
        store: what takes the records, and is asked.
        traffic: what counts the requests; other receivers may count with it.
        judge: who gives the verdicts.
        more: further routes.
    """
    traffic = traffic or Traffic()
    judge = judge or Judge(store)
    handlers: dict[Any, Any] = {HTTPException: on_http_error, Exception: on_failure}
    routes = [
        *HttpReceiver(store, traffic=traffic).routes(),
        *Api(store, judge).routes(),
        *Metrics(store, judge, traffic).routes(),
        *more,
    ]
    return Starlette(routes=routes, exception_handlers=handlers)


class _Server(uvicorn.Server):
    """uvicorn, which tells when it is ready, and after a signal returns instead of dying by it."""

    ready: Callable[[], None] | None = None
    leaving: Callable[[], None] | None = None
    """Ends what would go on for ever: without it a stop would wait until such requests are cancelled."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.leaving is not None:
            self.leaving()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self.ready is not None:
            self.ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again after the shutdown, and the process would end by it: not with 0.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(256)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise ServeError(_taken(host, port, "--port")) from None
        raise ServeError(_cannot(host, port, error)) from None
    return bound


def _cannot(host: str, port: int, error: OSError) -> str:
    return f"cannot listen at {_shown_host(host)}:{port}: {error.strerror or error}; see --host and --port"


def _taken(host: str, port: int, option: str) -> str:
    return f"cannot listen at {_shown_host(host)}:{port}: the port is taken; choose another one with {option}"


def _shown_host(host: str) -> str:
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).version == 6:
            return f"[{host}]"
    return host
