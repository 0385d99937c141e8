"""What has changed? Listens to the collector's server-sent events, says when it cannot, and goes on from where it was."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any, Final

import httpx
import orjson

from hopwatch.cli.client import checked_url, settings
from hopwatch.cli.text import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hopwatch.cli.top.known import Known

QUIET: Final = 12.0
"""Seconds without a word after which the connection counts as lost: the collector says something every 5 s."""
PATIENCE: Final = 10.0
"""Seconds that it may take to connect."""
MOST_BYTES: Final = 512 * 1024 * 1024
"""What one event may take. A cascade of 100,000 hops takes a tenth of that."""
SLOWEST: Final = 5.0
"""Seconds between two attempts, at most."""


class EventError(Exception):
    """What came is no stream of a hopwatch collector."""


class Events:
    """Bytes of a stream as events: their names, data and ids. Comments and what is not asked for go by."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._searched = 0
        self._name = ""
        self._data: bytes | None = None
        self._id = ""

    def feed(self, part: bytes) -> Iterator[tuple[str, bytes, str]]:
        """The events that are whole with this part: name, data, and the latest id.

        Raises:
            EventError: one is larger than any that a collector tells.
        """
        self._kept += part
        begin = 0
        while (end := self._kept.find(b"\n", max(begin, self._searched))) >= 0:
            line = bytes(self._kept[begin:end])
            begin = end + 1
            if line:
                self._read(line)
            elif self._data is not None:
                yield self._name, self._data, self._id
                self._name, self._data = "", None
        del self._kept[:begin]
        self._searched = len(self._kept)  # a line of many parts is not searched from its beginning each time
        if self._searched > MOST_BYTES:
            raise EventError("an event is too large")

    def _read(self, line: bytes) -> None:
        key, _, value = line.partition(b": ")
        if key == b"event":
            self._name = value.decode("utf-8", "replace")
        elif key == b"data":
            self._data = value
        elif key == b"id":
            self._id = value.decode("ascii", "replace")


class Stream:
    """The collector's stream for as long as it is listened to.

    Args:
        url: the collector.
        token: what it wants of everybody, if it does.
        known: is told of everything.
        changed: is called after each event, and when the connection is lost; with "overview", "cascade" or "link".

    Raises:
        ValueError: the url is none.
        Unreachable: `SSL_CERT_FILE` or `SSL_CERT_DIR` cannot be read.
    """

    def __init__(self, url: str, token: str | None, known: Known, changed: Callable[[str], None]) -> None:
        self.url = checked_url(url)
        self._known = known
        self._changed = changed
        self._options = settings(self.url, token)
        self._wanted: str | None = None
        self._last = ""
        self._attempt = 0
        self._listening: asyncio.Task[None] | None = None

    def watch(self, cascade: str | None) -> None:
        """Listen to a cascade beside the overview, or to the overview alone (None)."""
        if cascade == self._wanted:
            return
        self._wanted = cascade
        # The overview goes on; the cascade is told from its beginning.
        self._last = re.sub(r"\.\d*$", ".", self._last)
        self._known.watch()
        self._attempt = 0
        if self._listening is not None:
            self._listening.cancel()

    async def run(self) -> None:
        """Listen until the task is cancelled. Whatever goes wrong is told and tried again."""
        timeout = httpx.Timeout(PATIENCE, read=QUIET)
        async with httpx.AsyncClient(**self._options, timeout=timeout, follow_redirects=False) as http:
            while True:
                self._listening = asyncio.ensure_future(self._listen(http))
                try:
                    await asyncio.wait({self._listening})
                finally:
                    if not self._listening.done():  # we are cancelled, and it with us
                        self._listening.cancel()
                        with contextlib.suppress(asyncio.CancelledError):
                            await self._listening
                if self._listening.cancelled():  # another cascade is wanted
                    continue
                self._known.lose(_why(self._listening.exception()))
                self._changed("link")
                pause = min(SLOWEST, 0.5 * 2**self._attempt)
                self._attempt = min(self._attempt + 1, 5)
                self._listening = asyncio.ensure_future(asyncio.sleep(pause))
                await asyncio.wait({self._listening})  # `watch` cuts it short

    async def search(self, verdicts: list[str]) -> list[dict[str, Any]]:
        """Cascades with these verdicts, also older ones than the stream tells of; nothing where that fails."""
        timeout = httpx.Timeout(PATIENCE)
        try:
            async with httpx.AsyncClient(**self._options, timeout=timeout, follow_redirects=False) as http:
                asked: dict[str, list[str] | int] = {"verdict": verdicts, "limit": 1_000}
                answer = await http.get(f"{self.url}/api/cascades", params=asked)
                rows = orjson.loads(answer.content)["cascades"] if answer.is_success else []
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return []
        return [row for row in rows if isinstance(row, dict) and isinstance(row.get("cascade"), str)]

    async def _listen(self, http: httpx.AsyncClient) -> None:
        wanted = self._wanted
        asked = {"cascade": wanted} if wanted is not None else {}
        headers = {"accept": "text/event-stream"}
        if self._last:
            headers["last-event-id"] = self._last
        async with http.stream("GET", f"{self.url}/api/live", params=asked, headers=headers) as answer:
            if answer.status_code == 503:
                raise EventError("the collector takes no further page just now")
            if answer.status_code == 401:
                raise EventError("the collector wants another token")
            if not answer.is_success or "event-stream" not in answer.headers.get("content-type", ""):
                raise EventError(f"it answers with status {answer.status_code}, and not as a collector does")
            events = Events()
            async for part in answer.aiter_bytes():
                for name, data, number in events.feed(part):
                    self._take(name, data, number, wanted)

    def _take(self, name: str, data: bytes, number: str, wanted: str | None) -> None:
        try:
            self._known.take(name, orjson.loads(data), wanted)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._last = ""  # half of an event would be a wrong picture: have everything told anew
            raise EventError(f"it told something that cannot be read ({plain(error, 80)})") from error
        if name == "alive":
            self._last = number
            self._attempt = 0
        self._changed("link" if name == "alive" else name)


def _why(error: BaseException | None) -> str:
    if error is None or isinstance(error, httpx.RemoteProtocolError):
        return "the collector ended it"
    if isinstance(error, httpx.TimeoutException):
        return "the collector says nothing"
    if isinstance(error, EventError):
        return str(error)
    if isinstance(error, (httpx.HTTPError, OSError)):
        return plain(error, 120) or type(error).__name__
    raise error
