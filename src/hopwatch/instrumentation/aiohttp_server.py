"""Which request of ours does this HTTP request belong to, where aiohttp serves it? Webhooks; the A2A SDK itself serves by ASGI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hopwatch.instrumentation import asgi
from hopwatch.process import failed

if TYPE_CHECKING:
    from hopwatch.instrumentation import Patches


def _handling(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    exchange = None
    try:
        request = args[0]
        scope = {
            "headers": [(name.lower(), value) for name, value in request.raw_headers],
            "method": request.method,
            "path": request.path,
        }
        exchange = asgi.exchange_of(scope)
    except Exception:  # noqa: BLE001
        failed("aiohttp.request")
    if exchange is None:
        return wrapped(*args, **kwargs)
    exchange.raw = None  # that list is nobody else's
    return asgi.serve(exchange, scope, lambda: wrapped(*args, **kwargs))


async def _prepare(wrapped: Any, response: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = await wrapped(*args, **kwargs)
    try:
        exchange = asgi.serving.get()
        if exchange is not None and not exchange.status:
            ours = exchange.acknowledge({"status": response.status}).get("headers")
            if ours:
                # They may be an object of the application's, which it answers with again.
                headers = response.headers.copy()
                for name, value in ours:
                    headers.setdefault(name.decode(), value.decode())
                response._headers = headers  # noqa: SLF001
    except Exception:  # noqa: BLE001
        failed("aiohttp.acknowledge")
    return result


def _preparing(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _prepare(wrapped, instance, args, kwargs)


def instrument(patches: Patches) -> None:
    """Wrap the handling of a request, and the moment at which a response gets its headers (aiohttp 3.9 to 3.14)."""
    patches.when_imported(
        "aiohttp.web_protocol",
        lambda module: patches.wrap(module.RequestHandler, "_handle_request", _handling),
    )
    patches.when_imported(
        "aiohttp.web_response",
        lambda module: patches.wrap(module.StreamResponse, "_prepare_headers", _preparing),
    )
