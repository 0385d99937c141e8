"""May this request be answered? What is asked of every request before anything of it is read.

By what name the collector is called (a page of another site that has its own name lead here is refused), from which
site a browser sends it, whether the token is there, and whether others are not enough already.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc
import orjson

from hopwatch.collector.access import Access, allowed_hosts
from hopwatch.collector.status import status_bytes
from hopwatch.tokens import digest, same

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_READS: Final = 256
"""Requests of readers at once, live pages among them. Half of all connections, so that agents always get through."""
STRANGER: Final = "hopwatch.stranger"
"""Is true in the scope of a request that had to bring the token and did not: it may learn that we live, and no more."""
_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", _POLICY),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""Go with each answer that does not bring them itself."""

# google.rpc.Code
_INVALID: Final = 3
_DENIED: Final = 7
_UNAVAILABLE: Final = 14
_UNAUTHENTICATED: Final = 16


class Refusal(NamedTuple):
    """An answer instead of an answer."""

    status: int
    code: int
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Guard:
    """An ASGI application in front of another one.

    Args:
        app: what answers the requests that may be answered.
        host: the address or name that is listened at, as it was given.
        address: the same as an address.
        access: what a request has to bring.
    """

    def __init__(self, app: App, host: str, address: str, access: Access) -> None:
        self._app = app
        self._hosts = allowed_hosts(host, address, access)
        self._anywhere = ipaddress.ip_address(address).is_unspecified
        self._token = None if access.token is None else digest(access.token)
        self._reading = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have it answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                there = {name.lower() for name, _ in headers}
                headers += [each for each in SECURITY_HEADERS if each[0] not in there]
                message = {**message, "headers": headers}
            await send(message)

        otlp = scope["path"].startswith("/v1/")
        refusal = self._judge(scope, otlp)
        if refusal is None and not otlp and self._reading >= MAX_READS:
            refusal = Refusal(
                503, _UNAVAILABLE, "too many are reading at the same time", ((b"retry-after", b"1"),)
            )
        if refusal is not None:
            await _answer(refusal, scope, otlp, sending)
            return
        if otlp:
            await self._app(scope, receive, sending)
            return
        self._reading += 1
        try:
            await self._app(scope, receive, sending)
        finally:
            self._reading -= 1

    def _judge(self, scope: Scope, otlp: bool) -> Refusal | None:
        given: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            given.setdefault(name, []).append(value)
        hosts = given.get(b"host", [])
        if len(hosts) != 1:
            return Refusal(
                400,
                _INVALID,
                f"the request has {len(hosts) or 'no'} Host header{'s' * bool(hosts)}; it is one",
            )
        host = hosts[0].decode("latin-1")
        if not self._is_ours(host):
            return Refusal(
                421,
                _INVALID,
                f"this collector is not called {host[:100]!r}; start it with --allow-host NAME if it is to be",
            )
        site = _other_site(scope, host, given)
        if site is not None:
            return Refusal(403, _DENIED, f"a browser sends this for another site ({site[:100]!r})")
        if self._token is None or self._brings_token(given.get(b"authorization", [])):
            return None
        if scope["path"] == "/healthz":
            scope[STRANGER] = True
            return None
        challenges = [(b"www-authenticate", b'Bearer realm="hopwatch"')]
        if not otlp:  # so that a browser asks for it
            challenges.append((b"www-authenticate", b'Basic realm="hopwatch", charset="UTF-8"'))
        return Refusal(
            401,
            _UNAUTHENTICATED,
            "this needs the collector's token: Authorization: Bearer ...",
            tuple(challenges),
        )

    def _is_ours(self, host: str) -> bool:
        """Whether it is one of the collector's names, with whatever port: that may have been forwarded."""
        found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]@/\s]+))(?::[0-9]{0,5})?", host)
        if found is None:
            return False
        name = found[1] or found[2].lower().removesuffix(".")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return found[1] is None and name in self._hosts
        # Nobody can have an address lead elsewhere, as a name can be.
        return address.is_loopback or self._anywhere or str(address) in self._hosts

    def _brings_token(self, given: list[bytes]) -> bool:
        if self._token is None or len(given) != 1:
            return False
        scheme, _, said = given[0].partition(b" ")
        said = said.strip()
        if scheme.lower() == b"basic":  # what a browser sends: any name, and the token as the password
            try:
                said = base64.b64decode(said, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != b"bearer":
            return False
        return same(said, self._token)


def _other_site(scope: Scope, host: str, given: dict[bytes, list[bytes]]) -> str | None:
    """The site for which a browser sends a request, if it is not the collector's own; None otherwise."""
    own = {f"{scope['scheme']}://{host}".lower(), f"https://{host}".lower()}  # TLS may end before us
    for origin in given.get(b"origin", ()):
        if origin.decode("latin-1").lower() not in own:
            return origin.decode("latin-1")
    fetched = given.get(b"sec-fetch-site", [b"none"])[-1]
    if fetched in (b"same-origin", b"none"):
        return None
    followed = given.get(b"sec-fetch-mode") == [b"navigate"] and given.get(b"sec-fetch-dest") == [b"document"]
    if followed and scope["method"] in (
        "GET",
        "HEAD",
    ):  # somebody follows a link, and the other site sees nothing
        return None
    return fetched.decode("latin-1")


async def _answer(refusal: Refusal, scope: Scope, otlp: bool, send: Send) -> None:
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    kind, body = b"application/json", {"error": refusal.message}
    content = orjson.dumps({**body, "code": refusal.code, "message": refusal.message} if otlp else body)
    if otlp and kinds and kinds[0].partition(b";")[0].strip().lower() == b"application/x-protobuf":
        kind, content = b"application/x-protobuf", status_bytes(refusal.code, refusal.message)
    headers = [
        (b"content-type", kind),
        (b"content-length", b"%d" % len(content)),
        (b"cache-control", b"no-store"),
        *refusal.headers,
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


# gRPC ----------------------------------------------------------------------------------------------------------


class GrpcGuard(grpc.ServerInterceptor):  # type: ignore[misc]
    """Asks the same of calls. No browser can make one, so there are no names and sites to look at.

    Args:
        access: what a call has to bring.
        full: whether so many calls wait already that this one had better come again.
    """

    def __init__(self, access: Access, full: Callable[[], bool]) -> None:
        self._token = None if access.token is None else digest(access.token)
        self._full = full
        # As streams of requests: a message that nobody asks for is not read.
        self._unauthenticated = grpc.stream_unary_rpc_method_handler(
            lambda _, context: context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "this needs the collector's token: authorization: Bearer ..."
            )
        )
        self._unavailable = grpc.stream_unary_rpc_method_handler(
            lambda _, context: context.abort(
                grpc.StatusCode.UNAVAILABLE, "too many requests are being received"
            )
        )

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Hand a call on, or give one that refuses it."""
        if self._token is not None and not self._brings_token(details.invocation_metadata):
            return self._unauthenticated
        if self._full():
            return self._unavailable
        return continuation(details)

    def _brings_token(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        given = [value for name, value in metadata if name == "authorization"]
        if self._token is None or len(given) != 1:
            return False
        said = given[0].encode("latin-1", "replace") if isinstance(given[0], str) else given[0]
        scheme, _, token = said.partition(b" ")
        return scheme.lower() == b"bearer" and same(token.strip(), self._token)
