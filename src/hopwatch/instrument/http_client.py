"""Did the message arrive, and who took it? The one HTTP request of a send or a push, through httpx."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from hopwatch import attributes as names
from hopwatch import propagation
from hopwatch.process import failed

if TYPE_CHECKING:
    from hopwatch.instrument import Patches
    from hopwatch.ledger import Entry

outgoing: ContextVar[Entry | None] = ContextVar("hopwatch_outgoing", default=None)
"""The send or push whose HTTP request comes next; the first request takes it."""

NOT_DELIVERED = frozenset(
    {
        "ConnectError",
        "ConnectTimeout",
        "PoolTimeout",
        "UnsupportedProtocol",
        "ProxyError",
        "InvalidURL",
        "LocalProtocolError",
    }
)
"""Names of httpx's exceptions that are raised before anything has reached the other side."""


def _sending(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    entry = outgoing.get()
    if entry is None:
        return wrapped(*args, **kwargs)
    return _send(wrapped, entry, args, kwargs)


async def _send(wrapped: Any, entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    outgoing.set(None)
    try:
        request = args[0] if args else kwargs["request"]
        for name, value in propagation.outgoing(entry).items():
            request.headers[name] = value
        url = request.url
        entry.set(names.SERVER_ADDRESS, url.host)
        entry.set(names.SERVER_PORT, url.port or {"http": 80, "https": 443}.get(url.scheme, 0))
    except Exception:  # noqa: BLE001
        failed("http.request")
    try:
        response = await wrapped(*args, **kwargs)
    except BaseException as error:
        kind = type(error).__name__
        entry.set(names.PEER, "refused" if kind in NOT_DELIVERED else "unknown")
        entry.set(names.ERROR_TYPE, kind)
        entry.reason = f"{kind}: {error}"[:200]
        raise
    try:
        propagation.acknowledged(entry, response.headers.get(names.ACKNOWLEDGEMENT_HEADER))
        if response.status_code >= 400:
            entry.set(names.HTTP_STATUS_CODE, response.status_code)
            entry.reason = f"{entry.attributes[names.SERVER_ADDRESS]}:{entry.attributes[names.SERVER_PORT]} answered {response.status_code}"  # type: ignore[index]
            entry.set(names.ERROR_TYPE, str(response.status_code))
    except Exception:  # noqa: BLE001
        failed("http.response")
    return response


def instrument(patches: Patches, module: Any) -> None:
    """Wrap `httpx.AsyncClient.send`, through which every request of a client goes."""
    patches.wrap(module.AsyncClient, "send", _sending)
