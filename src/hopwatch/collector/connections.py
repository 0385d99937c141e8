"""How long may a connection take to say what it wants, and how much may it say? uvicorn has no limit to either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

HEADERS_WITHIN: Final = 15.0
"""Seconds from the beginning of a connection, or of a request on it, to the end of the request's headers."""
MAX_HEADERS: Final = 64 * 1024
"""Bytes of a request's line and headers that may follow the first that was read of them (256 KiB at most)."""
_TOO_LONG: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol, which hangs up on who keeps it waiting.

    uvicorn 0.54 counts a connection that says nothing like any other, for ever: as many of them as
    `limit_concurrency`, and nobody is answered any more.
    """

    _timer: asyncio.TimerHandle | None = None
    _in_headers = True
    _size = 0
    _begun = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came, and look whether the headers are too long."""
        begun = self._begun
        super().data_received(data)
        if self._in_headers and self._begun == begun:  # else it is not known how much of it were headers
            self._size += len(data)
            if self._size > MAX_HEADERS and not self.transport.is_closing():
                self.transport.write(_TOO_LONG)
                self.transport.close()
        if self._idle() and self.timeout_keep_alive_task is None:
            self._wait()  # no request, as empty lines, or the body of one that has got its answer

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_headers = True
        self._size = 0
        self._begun += 1
        self._wait_no_more()
        self._wait()

    def on_headers_complete(self) -> None:
        """It says what it wants."""
        self._in_headers = False
        self._wait_no_more()
        super().on_headers_complete()

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(HEADERS_WITHIN, self._too_late)

    def _wait_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        if self._idle():
            self.transport.close()
        else:  # the request before this one is still being answered
            self._wait()
