"""What does the collector say? Its JSON API, and in which ways asking may fail."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httpx

from hopwatch.cli.text import plain
from hopwatch.tokens import VARIABLE, bearer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from typing_extensions import Self

DEFAULT_URL: Final = "http://127.0.0.1:4318"
LONGEST_ANSWER: Final = 10.0
"""Seconds that a collector may take for one answer."""


class CollectorError(Exception):
    """The collector gave no answer that could be used; the message is for a person."""


class Unreachable(CollectorError):  # noqa: N818 - read as a sentence: `except Unreachable`
    """Nobody answers there, or what answers is no hopwatch collector, or it fails just now."""


class NotKnown(CollectorError):  # noqa: N818
    """The collector answers, and does not know what was asked for."""


class Unauthorized(CollectorError):  # noqa: N818
    """The collector wants a token, and got none or another one."""


class Refused(CollectorError):  # noqa: N818
    """The collector takes the question for a wrong one."""


def checked_url(url: str) -> str:
    """Bring a collector's address into the form that the rest uses.

    Raises:
        ValueError: it is no http or https address; the message names it and what is allowed.
    """
    wanted = "an address such as http://127.0.0.1:4318"
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise ValueError(f"{plain(url)!r} is not {wanted}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"{plain(url)!r} is not {wanted}: it needs http:// or https:// and a host")
    if parts.query or parts.fragment:
        raise ValueError(f"{plain(url)!r} is not {wanted}: it may have no query and no fragment")
    return url.strip().rstrip("/")


def is_loopback(host: str | None) -> bool:
    """Whether a host is this machine."""
    return host is not None and (host in ("localhost", "::1") or host.startswith("127."))


def settings(url: str, token: str | None = None) -> dict[str, Any]:
    """How httpx has to speak to a collector: what its clients are made with.

    The certificate of an https address is checked by those that come with httpx, or by the file or folder that
    `SSL_CERT_FILE` or `SSL_CERT_DIR` names.

    Args:
        url: the collector; the token goes there and nowhere else.
        token: its token, if it wants one.

    Raises:
        Unreachable: the certificates cannot be read.
    """
    verify: ssl.SSLContext | bool = True
    file, folder = os.environ.get("SSL_CERT_FILE") or None, os.environ.get("SSL_CERT_DIR") or None
    if url.startswith("https://") and (file or folder):
        try:
            verify = ssl.create_default_context(cafile=file, capath=folder)
        except OSError as error:  # ssl's own errors among them
            raise Unreachable(
                f"The certificates in {plain(file or folder)} cannot be read ({plain(error)}). "
                "Set SSL_CERT_FILE to a file with those by which the collector's is checked."
            ) from None
    return {
        "headers": {} if token is None else {"authorization": bearer(token)},
        # A proxy that the environment names is for the world outside, never for this machine.
        "trust_env": not is_loopback(urlsplit(url).hostname),
        "verify": verify,
    }


def connection(url: str, token: str | None = None) -> httpx.Client:
    """What speaks to a collector, as `settings` says.

    Raises:
        Unreachable: the certificates cannot be read.
    """
    return httpx.Client(**settings(url, token), timeout=LONGEST_ANSWER, follow_redirects=False)


class Collector:
    """The API of one collector, as a context manager that holds its connection.

    Args:
        url: where it is.
        token: what it wants of everybody, if it does.

    Raises:
        ValueError: the url is none.
        Unreachable: `SSL_CERT_FILE` or `SSL_CERT_DIR` cannot be read.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = checked_url(url)
        self._has_token = token is not None
        self._http = connection(self.url, token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def cascades(self, verdicts: Iterable[str] = (), limit: int | None = None) -> list[dict[str, Any]]:
        """The latest cascades, newest first, as the collector lists them.

        Raises:
            CollectorError: no answer, or one that cannot be used.
        """
        asked: list[tuple[str, str | int | float | bool | None]] = [("verdict", each) for each in verdicts]
        if limit is not None:
            asked.append(("limit", limit))
        answer = self._get("/api/cascades", asked)
        rows = answer.get("cascades")
        if not isinstance(rows, list):
            raise self._foreign()
        return [row for row in rows if isinstance(row, dict)]

    def cascade(self, wanted: str, longest: float = LONGEST_ANSWER) -> dict[str, Any]:
        """One cascade with its verdict and hops.

        Args:
            wanted: its id, or the beginning of it that no other cascade has.
            longest: seconds to wait for the answer.

        Raises:
            NotKnown: the collector has heard of no such cascade.
            CollectorError: no answer, or one that cannot be used.
        """
        answer = self._get(f"/api/cascades/{wanted}", (), longest)
        if not isinstance(answer.get("verdict"), str) or not isinstance(answer.get("cascade"), str):
            raise self._foreign()
        return answer

    def trace_url(self) -> str | None:
        """Where traces are to be seen, with {trace} and perhaps {span} in it; None where it was not told.

        Raises:
            CollectorError: no answer, or one that cannot be used.
        """
        template = self._get("/page/settings.json", ()).get("trace_url")
        return template if isinstance(template, str) else None

    def _get(
        self,
        path: str,
        asked: Iterable[tuple[str, str | int | float | bool | None]],
        longest: float = LONGEST_ANSWER,
    ) -> dict[str, Any]:
        try:
            answer = self._http.get(self.url + path, params=list(asked), timeout=longest)
        except httpx.TimeoutException:
            raise Unreachable(
                f"The collector at {self.url} took longer than {longest:g} s to answer. "
                "Look whether it is overloaded or stopped, or name another one with --url."
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise Unreachable(
                    f"The certificate of the collector at {self.url} cannot be trusted ({plain(error)}). "
                    "Set SSL_CERT_FILE to a file with the certificate of the authority that signed it."
                ) from None
            raise Unreachable(
                f"No collector can be reached at {self.url} ({plain(error) or type(error).__name__}). "
                "Start one with `hopwatch serve`, or name another one with --url or HOPWATCH_URL."
            ) from None
        try:
            body = answer.json()
        except (ValueError, RecursionError):
            body = None
        if answer.is_success and isinstance(body, dict):
            return body
        said = body.get("error") if isinstance(body, dict) else None
        if answer.status_code >= 500:
            detail = f": {plain(said)}" if said else ""
            raise Unreachable(f"The collector at {self.url} failed with status {answer.status_code}{detail}.")
        if not isinstance(said, str):
            raise self._foreign()
        if answer.status_code == 401:
            what = "takes another token than this one" if self._has_token else "wants a token"
            raise Unauthorized(
                f"The collector at {self.url} {what}. Name the file that has it with --token-file or {VARIABLE}."
            )
        if answer.status_code == 404:
            raise NotKnown(plain(said))
        raise Refused(f"The collector at {self.url} refuses this: {plain(said)}")

    def _foreign(self) -> Unreachable:
        return Unreachable(
            f"What answers at {self.url} is not a hopwatch collector. "
            "Name the collector with --url or HOPWATCH_URL; its HTTP port is 4318 by default."
        )
