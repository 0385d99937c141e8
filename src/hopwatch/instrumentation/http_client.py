"""Did the message arrive, and who took it? The one HTTP request of a send or a push, through httpx."""

from __future__ import annotations

from asyncio import current_task
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit
from weakref import ref

from hopwatch import attributes as names
from hopwatch import hop_waits, propagation
from hopwatch.process import failed, reason_of

if TYPE_CHECKING:
    from hopwatch.instrumentation import Patches
    from hopwatch.ledger import Entry

outgoing: ContextVar[Entry | None] = ContextVar("hopwatch_outgoing", default=None)
"""The send or push whose HTTP request comes next."""

EXTENSION = "hopwatch"
"""Key in a request's `extensions`, which httpx hands on to redirects, retries and the transport."""

_attempts: dict[int, tuple[Any, list[Any]]] = {}
"""By the id of the task that is in the middle of one: a weak reference to it, and what is known of the message's attempts."""

NOT_DELIVERED = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "ProxyError", "InvalidURL", "LocalProtocolError"}
)  # fmt: skip
"""Names of httpx's exceptions that are raised before anything has reached the other side."""
TRIED_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which clients that have patience make the request once more."""


class Target:
    """Which request is meant: the client that a send or push uses, and its URL where that is known.

    A push's URL may be probed first, and a client may fetch a token first: those requests are none of the message's.
    """

    __slots__ = ("_client", "_transport", "_url", "told")

    def __init__(self, client: Any, url: str | None, transport: Any = None) -> None:
        self._client = ref(client)
        self._url = url
        self.told: list[Any] | None = None
        """Of the requests made so far: the entry, how often the message may have arrived, and how often it was begun to be sent."""
        try:
            self._transport = ref(transport) if transport is not None else None
        except TypeError:  # somebody else's transport, with slots
            self._transport = None

    def is_meant(self, client: Any, request: Any, message: str) -> bool:
        """Whether this request is the message, which has an id unless it is about a task."""
        if client is not self._client():
            return False
        if self._url is not None:
            return bool(request.method == "POST" and request.url == type(request.url)(self._url))
        url = self._known().get("url")
        if not isinstance(url, str) or "://" not in url or str(request.url).startswith(url.rstrip("/")):
            return True
        # Somebody may send the message elsewhere than its transport says: then its id is in it.
        return bool(message) and message.encode() in getattr(request, "content", b"")

    def _known(self) -> dict[str, Any]:
        """What the transport has: past properties, for somebody else's subclass of a transport of the SDK may have some."""
        known: dict[str, Any] = getattr(
            self._transport() if self._transport is not None else None, "__dict__", {}
        )
        return known

    def receiver(self) -> tuple[str | None, str | None]:
        """The name that the agent card of the receiver gives it, and its URL; None for what is not known."""
        known = self._known()
        card, url = known.get("agent_card"), self._url or known.get("url")
        name = getattr(card, "name", None) if type(card).__name__ == "AgentCard" else None
        return (
            name[:200] if isinstance(name, str) and name else None,
            without_secrets(url) if isinstance(url, str) and url else None,
        )


def without_secrets(url: str) -> str | None:
    """The URL without user, password, query and fragment, at most 300 characters of it; None where it is none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))[:300]


def _sending(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    entry = outgoing.get()
    request: Any = args[0] if args else kwargs.get("request")
    if entry is None:
        told = getattr(request, "extensions", {}).get(EXTENSION)
        # A client of the application's own may send the same request again.
        return wrapped(*args, **kwargs) if told is None else _send(wrapped, told[0], request, args, kwargs)
    try:
        target = entry.instance_of
        if isinstance(target, Target) and not target.is_meant(
            instance, request, (entry.attributes or {}).get(names.A2A_MESSAGE_ID, "")
        ):
            if names.PEER not in (entry.attributes or {}):
                entry.set(names.PEER, "unknown")  # until the message itself is seen to go out
            return wrapped(*args, **kwargs)
        outgoing.set(None)
        headers = request.headers
        for name, value in propagation.outgoing(entry).items():
            headers[name] = value  # `update` takes five times as long
        told = [entry, 0, 0]
        if isinstance(target, Target):
            told = target.told = target.told or told
        request.extensions[EXTENSION] = told
        url = request.url
        entry.set(names.SERVER_ADDRESS, url.host)
        entry.set(names.SERVER_PORT, url.port or {"http": 80, "https": 443}.get(url.scheme, 0))
    except Exception:  # noqa: BLE001
        failed("http.request")
        return wrapped(*args, **kwargs)
    return _send(wrapped, entry, request, args, kwargs)


async def _send(
    wrapped: Any, entry: Entry, request: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    try:
        response = await wrapped(*args, **kwargs)
    except BaseException as error:
        try:
            kind = type(error).__name__
            _, delivered, begun = request.extensions.get(EXTENSION, (entry, 1, 1))
            # Where no attempt was seen, a transport of the application's own sends requests of its own making.
            refused = kind in NOT_DELIVERED and begun and not delivered
            entry.set(names.PEER, "refused" if refused else "unknown")
            entry.set(names.ERROR_TYPE, kind)
            entry.reason = reason_of(error)
            outgoing.set(entry)  # a client of the application's own may make another request of the message
        except Exception:  # noqa: BLE001
            failed("http.error")
        raise
    try:
        header = response.headers.get(names.ACKNOWLEDGEMENT_HEADER)
        propagation.acknowledged(entry, header)
        before = propagation.number(response.headers.get(names.ATTEMPTS_HEADER, "")) if header else 0
        if before:
            # A proxy sent it before, and nobody here was told.
            here = request.extensions.get(EXTENSION, (entry, 1, 1))[1]
            entry.set(names.PEER_ATTEMPTS, before + max(1, here))
        status = response.status_code
        if status in TRIED_AGAIN:
            outgoing.set(entry)
        if status < 400 and entry.reason is not None:  # of an earlier try
            entry.reason = None
            for name in (names.ERROR_TYPE, names.HTTP_STATUS_CODE):
                (entry.attributes or {}).pop(name, None)
        if status >= 400:
            attributes = entry.attributes or {}
            entry.set(names.HTTP_STATUS_CODE, status)
            entry.set(names.ERROR_TYPE, str(status))
            entry.reason = f"{attributes.get(names.SERVER_ADDRESS)}:{attributes.get(names.SERVER_PORT)} answered {status}"
            if header is None and status in (502, 503, 504):
                entry.set(
                    names.PEER, "unknown"
                )  # a gateway's word: whoever stands behind it may have taken the message
    except Exception:  # noqa: BLE001
        failed("http.response")
    return response


def _attempting(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Count each time that the message may have reached somebody: redirects, authentication, retries."""
    request = args[0] if args else kwargs.get("request")
    told = getattr(request, "extensions", {}).get(EXTENSION)
    return wrapped(*args, **kwargs) if told is None else _attempt(wrapped, told, args, kwargs)


async def _attempt(wrapped: Any, told: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    delivered = True
    key = _begun(told)
    try:
        return await wrapped(*args, **kwargs)
    except BaseException as error:
        delivered = type(error).__name__ not in NOT_DELIVERED
        raise
    finally:
        _attempts.pop(key, None)
        if delivered:
            told[1] += 1
            if told[1] > 1:
                told[0].set(names.PEER_ATTEMPTS, told[1])


def _begun(told: list[Any]) -> int:
    try:
        told[2] += 1
        task = current_task()
        if task is None:
            return 0
        _attempts[id(task)] = (ref(task), told)
        return id(task)
    except Exception:  # noqa: BLE001 - no task runs, or of a kind that takes no reference
        return 0


def asks(task: object) -> str | None:
    """Tell whose answer a task awaits: the id of a message that it sends, in its first and only attempt."""
    reference, told = _attempts.get(id(task), (None, None))
    # Who tries again may wait for the second attempt to arrive, while the first one is still being served.
    if told is None or reference is None or reference() is not task or told[1:] != [0, 1]:
        return None
    entry: Entry = told[0]
    return entry.id


def instrument(patches: Patches, module: Any) -> None:
    """Wrap `httpx.AsyncClient.send`, through which every request goes, and the transport, through which each attempt does."""
    hop_waits.asks = asks
    patches.wrap(module.AsyncClient, "send", _sending)
    patches.wrap(module.AsyncHTTPTransport, "handle_async_request", _attempting)
