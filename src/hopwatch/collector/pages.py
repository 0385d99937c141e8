"""What does a browser get at `/`? The files of the live page, and the one setting that they need.

They are read once, at the start: what is served is what was installed, and no path leads anywhere else.
"""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import orjson
from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}
# Goes with the page whatever else is in front of it: it needs nothing from anywhere, and no script of others runs.
_HEADERS: Final = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def parse_trace_url(text: str) -> str:
    """A template of links to traces, for `--trace-url`.

    Args:
        text: an http or https address with `{trace}`, which becomes the 32 hex digits of the trace, and perhaps `{span}`,
            which becomes the 16 of the span. Other braces are left as they are.

    Raises:
        ValueError: it is something else.
    """
    text = text.strip()
    try:
        parts = urlsplit(text)
        well = parts.scheme in ("http", "https") and bool(parts.hostname) and "{" not in parts.netloc
    except ValueError:
        well = False
    if not well or "{trace}" not in text or len(text) > 4_000 or re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ValueError(
            f"{text[:200]!r} is not a template for links to traces; it is an address with {{trace}} in it, "
            "as in http://127.0.0.1:16686/trace/{trace}?uiFind={span}"
        )
    return text


class Pages:
    """The files of the live page.

    Args:
        trace_url: as `parse_trace_url` gives it; None for no links.
    """

    def __init__(self, trace_url: str | None = None) -> None:
        self._files: dict[str, bytes] = {}
        for each in resources.files("hopwatch.collector").joinpath("page").iterdir():
            if any(each.name.endswith(kind) for kind in KINDS):
                self._files[each.name] = each.read_bytes()
        self._files["settings.json"] = orjson.dumps({"trace_url": trace_url})

    def routes(self) -> list[Route]:
        """The page at `/`, all else that it consists of under `/page/`."""
        return [
            Route("/", self._file("index.html"), methods=["GET"]),
            *(Route(f"/page/{name}", self._file(name), methods=["GET"]) for name in self._files),
        ]

    def _file(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        content = self._files[name]
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {**_HEADERS, "etag": tag}
        kind = KINDS[name[name.rindex(".") :]]

        async def answer(request: Request) -> Response:
            known = [
                each.strip().removeprefix("W/")
                for each in request.headers.get("if-none-match", "").split(",")
            ]
            if tag in known:
                return Response(status_code=304, headers=headers)
            return Response(content, headers=headers, media_type=kind)

        return answer
