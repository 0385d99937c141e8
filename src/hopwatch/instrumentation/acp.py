"""How is the Agent Client Protocol's SDK instrumented? Messages sent and served over a connection (agent-client-protocol 0.8.1 to 0.12.1).

| hop | seam |
|---|---|
| send | `Connection.send_request`, `send_notification` |
| request | `Connection._run_request`, `_run_notification`; for a connection that is older than the instrumentation `MessageRouter.__call__` |

What goes over the wire is in `acp_wire`, what is known of a connection and of its loops in `acp_links`. Which release has which
seam is in the table of `acp_seams`. One that a release lacks is left out, and `missing` names it.
"""

from __future__ import annotations

import functools
from asyncio import CancelledError, current_task
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from opentelemetry import context as otel_context
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.trace import INVALID_SPAN, set_span_in_context

from hopwatch import attributes as names
from hopwatch import hop_waits, orphans, propagation
from hopwatch import process as hopwatch_process
from hopwatch.instrumentation import Patches, acp_links, acp_seams, acp_wire, asgi, http_client, named, queues
from hopwatch.process import current, encodable, failed, reason_of
from hopwatch.telemetry import begin, within

if TYPE_CHECKING:
    from collections.abc import Collection

    from hopwatch.instrumentation.acp_links import Connected
    from hopwatch.ledger import Entry
    from hopwatch.telemetry import Carrier

UNANSWERED: Final = "nobody answers a notification"
UNJOINED: Final = "it carried no hop, so what the peer does for it is a cascade of its own"
missing: list[str] = []
"""Seams that the installed release does not have."""


# Messages sent ---------------------------------------------------------------------------------------------------


class Message:
    """One message that is sent, and what became of it; as a target it says to whom."""

    __slots__ = ("__weakref__", "acknowledged", "answered", "code", "connected", "id", "injected", "key", "method", "notifies", "session", "silent", "told", "unavailable")  # fmt: skip

    def __init__(self, connected: Connected, method: str, *, notifies: bool) -> None:
        self.connected = connected
        self.method = method
        self.notifies = notifies
        self.id: Any = None
        """Under which number the peer will answer."""
        self.session: str | None = None
        self.injected = False
        """Whether it carries the hop that sends it."""
        self.silent = False
        """Whether it carries none because that is switched off."""
        self.unavailable = False
        """Whether the connection was closed already."""
        self.answered = False
        self.acknowledged = False
        self.code: Any = None
        """The code of the error that the peer answered with."""
        self.told: list[Any] | None = None
        """As `http_client.asks` has it."""
        self.key = 0

    def receiver(self) -> tuple[str | None, str | None]:
        """What the peer calls itself, and where it is; None for what is not known."""
        return self.connected.name, self.connected.where

    def begins(self, entry: Entry, number: Any) -> None:
        """Say that the message is about to go out, and that the running task will await the answer."""
        self.id = number
        connected = self.connected
        connected.opened(self, entry)
        task = current_task()
        if task is not None and not self.notifies:
            self.told = [entry, 0, 1]
            self.key = id(task)
            http_client._attempts[self.key] = (ref(task), self.told)  # noqa: SLF001 - it answers for every binding

    def answer(self, entry: Entry, message: dict[str, Any]) -> None:
        """Note what the peer's answer says."""
        self.answered = True
        self.asks_no_more()
        header = acp_wire.acknowledgement_in(message)
        if header is not None:
            propagation.acknowledged(entry, header)
            self.acknowledged = (entry.attributes or {}).get(names.PEER) == "instrumented"
        error = message.get("error")
        if "result" not in message and isinstance(error, dict):
            self.code = error.get("code", -32603)
        if self.method == "initialize":
            self.connected.is_called(message.get("result"), "agentInfo")

    def asks_no_more(self) -> None:
        """Say that the answer is there, or will not come."""
        if self.key:
            http_client._attempts.pop(self.key, None)  # noqa: SLF001
            self.key = 0
            self.told = None

    def end(self, entry: Entry, error: BaseException | None, *, went_out: bool) -> None:
        """End the hop, and say what is known of the peer."""
        self.asks_no_more()
        connected = self.connected
        connected.ended(self, entry)
        connected.describe(entry)
        if self.acknowledged:
            connected.peer = "instrumented"
        elif error is not None and not went_out:
            entry.set(names.PEER, "refused")
        elif not self.answered and not (self.notifies and error is None):
            entry.set(names.PEER, "unknown")
        elif connected.peer == "instrumented":
            # If it carried this one, its hop will come, and names this one as its parent. Nobody has said which it is.
            entry.set(names.PEER, "unknown")
            if not self.injected:
                entry.reason = UNJOINED
            else:
                entry.reason = UNANSWERED if self.notifies else "it was answered without an acknowledgement"
        elif self.answered:
            if self.injected:
                connected.peer = "opaque"
            entry.set(names.PEER, "opaque")
        elif self.silent or connected.peer == "opaque" or connected.brings_nothing:
            entry.set(names.PEER, "opaque")
        else:
            entry.set(names.PEER, "unknown")
            entry.reason = UNANSWERED
        if self.code is not None:
            entry.set(names.RPC_STATUS_CODE, _shown(self.code))
        if error is None:
            entry.finish()
        elif isinstance(error, GeneratorExit):
            entry.finish("abandoned", "its coroutine was closed while it was pending")
        elif isinstance(error, CancelledError):
            entry.finish("cancelled")
        else:
            entry.set(names.ERROR_TYPE, type(error).__name__)
            entry.finish("failed", reason_of(error))


def _lost(hook: str) -> None:
    """Count a failure of a hook inside an `except` block, and what it should have opened as dropped: never settled."""
    failed(hook)
    hop = current.get()
    if hop is not None:
        hop.ledger.lose(hop)


def _shown(value: Any) -> str:
    """What a message says, as a record may carry it: whoever sent it may have put anything there."""
    return encodable(str(value)[:200])


def _open_send(
    connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, notifies: bool
) -> tuple[Entry | None, tuple[Any, ...], dict[str, Any]]:
    """Open the hop of a message; returns it, and what the message is now sent with."""
    entry = None
    try:
        method = args[0] if args else kwargs["method"]
        params = args[1] if len(args) > 1 else kwargs.get("params")
        name = _shown(method)
        connected = acp_links.of(connection)
        message = Message(connected, name, notifies=notifies)
        attributes: dict[str, Any] = {names.RPC_SYSTEM: names.JSONRPC, names.RPC_METHOD: name}
        message.session = acp_wire.session_in(params)
        if message.session is not None:
            attributes[names.GEN_AI_CONVERSATION_ID] = message.session
        task = current_task()
        process = hopwatch_process.here()
        entry = begin(
            process,
            "send",
            name,
            current.get(),
            attributes=attributes,
            runner=ref(task) if task is not None else None,
        )
        if entry is None:
            return None, args, kwargs
        entry.instance_of = message
        connected.describe(entry)
        message.silent = not process.settings.acp_inject
        if not message.silent and connected.takes_keys:
            carrying = acp_wire.carrying(params, entry, connected.mark)
            if carrying is not None:
                message.injected = True
                if len(args) > 1:
                    args = (args[0], carrying, *args[2:])
                else:
                    kwargs = {**kwargs, "params": carrying}
        message.unavailable = any(getattr(connection, name, False) for name in ("_closed", "_disconnected"))
        message.begins(entry, getattr(connection, "_next_request_id", None))
    except Exception:  # noqa: BLE001
        _lost("acp.send")
    return entry, args, kwargs


def _sending(*, notifies: bool) -> Any:
    async def send(wrapped: Any, connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entry, args, kwargs = _open_send(connection, args, kwargs, notifies=notifies)
        if entry is None:
            return await wrapped(*args, **kwargs)
        error: BaseException | None = None
        try:
            with within(entry):
                return await wrapped(*args, **kwargs)
        except BaseException as raised:
            error = raised
            raise
        finally:
            _end_send(entry, error)
            error = None  # its traceback holds this frame: nobody shall need a collection of cycles

    return send


def _end_send(entry: Entry, error: BaseException | None) -> None:
    try:
        message = entry.instance_of
        if not isinstance(message, Message):
            entry.set(names.PEER, "unknown")
            entry.finish("failed", "a hook of hopwatch failed")
            return
        # A connection that is closed says so at once, from 0.10 on.
        message.end(entry, error, went_out=not (message.unavailable and isinstance(error, ConnectionError)))
    except Exception:  # noqa: BLE001
        failed("acp.end")
        entry.set(names.PEER, "unknown")
        entry.finish("failed", type(error).__name__)


def _answered(wrapped: Any, connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`_handle_response`, which is a coroutine before 0.12: the answer to a request of ours has come."""
    try:
        message = args[0] if args else kwargs["message"]
        asked = acp_links.of(connection).asked
        number = message.get("id")
        found = asked.get(number) if isinstance(number, (int, str)) else None
        if found is not None and found[1].done is None:
            found[0].answer(found[1], message)
    except Exception:  # noqa: BLE001
        failed("acp.answer")
    return wrapped(*args, **kwargs)


# Messages served -------------------------------------------------------------------------------------------------

_serving: ContextVar[Served | None] = ContextVar("hopwatch_acp_served", default=None)
"""The message that the running code serves."""


class Served(asgi.Exchange):
    """One message that is being served; as a block, what runs inside serves it."""

    __slots__ = ("_around", "_hop", "_http", "_outer", "came", "code", "connected", "echo", "error", "id", "message", "notifies", "session")  # fmt: skip

    def __init__(self, connected: Connected | None, message: dict[str, Any], *, notifies: bool) -> None:
        stripped, found = acp_wire.taken_from(message)
        self.headers = found
        self.before = 0
        self.carrier = propagation.incoming(found)
        self.echo: Carrier | None = None
        """Which hop of ours the message was sent for, as a peer without hopwatch handed it on."""
        self.path = str(message.get("method"))
        self.entry = None
        self.answered = self.over = False
        self.token = None
        self.message = stripped
        """The message as it was written by whoever sent it."""
        self.id = message.get("id")
        self.notifies = notifies
        self.status = 1 if notifies else 0  # nobody owes an answer to a notification
        self.session = acp_wire.session_in(message.get("params"))
        self.code: Any = None
        """The code of the error that it was answered with."""
        self.error: BaseException | None = None
        """What its handler raised; kept no longer than that runs."""
        self.connected = connected
        self.came = connected.taken(message) if connected is not None else None
        """What has stood for it since it came; it keeps the hop open that caused it."""
        if connected is not None:
            if self.carrier is not None and self.carrier.mark == connected.mark:
                # The peer hands on what we sent to it, as tracing does: nothing of ours need be there.
                self.carrier, self.echo = None, self.carrier
            if self.carrier is not None:
                if acp_wire.is_senders_own(found, self.carrier):
                    connected.peer = "instrumented"
            elif not notifies:
                connected.plain += 1
                connected.traces = connected.traces or bool(found)
            if self.path == "initialize":
                connected.is_called(message.get("params"), "clientInfo")

    def __enter__(self) -> None:
        try:
            self._outer = _serving.set(self)
            self._http = asgi.serving.set(None)
            self._hop = current.set(None)
            # The task of a message has the context in which its connection was made, and is nobody's there.
            base = set_span_in_context(INVALID_SPAN)
            self._around = otel_context.attach(acp_wire.baggage_from(self.headers, base))
            self._open()
        except Exception:  # noqa: BLE001
            _lost("acp.serve")
        finally:
            came, self.came = self.came, None
            if came is not None:
                came.finish()

    def _open(self) -> None:
        name = _shown(self.path)
        attributes: dict[str, Any] = {names.RPC_SYSTEM: names.JSONRPC, names.RPC_METHOD: name}
        if self.session is not None:
            attributes[names.GEN_AI_CONVERSATION_ID] = self.session
        parent = around = None
        carrier = self.carrier
        if carrier is None:
            # A peer that carries nothing: what it asks while it works on a prompt of ours is part of that.
            parent = self._caused_here()
            if parent is None and self.echo is not None:
                # That has ended: what comes of it belongs below it all the same. It is not how the peer took it.
                carrier = self.echo
                del attributes[names.RPC_METHOD]
            elif parent is None:
                around = propagation.plain_context(self.headers)
        self._begin("request", name, attributes, parent=parent, carrier=carrier, around=around)

    def _caused_here(self) -> Entry | None:
        if self.connected is None:
            return None
        if self.came is not None:
            return self.came.parent
        sent = self.connected.sent(self.echo.hop) if self.echo is not None else None
        return sent if sent is not None and sent.done is None else self.connected.working_on(self.session)

    def __exit__(self, *_: object) -> None:
        # In another context (a coroutine that was collected is closed in one) nothing of ours is set.
        if _serving.get() is not self:
            return
        try:
            otel_context.detach(self._around)
            current.reset(self._hop)
            asgi.serving.reset(self._http)
            _serving.reset(self._outer)
        except Exception:  # noqa: BLE001 - as where it is stepped in another context than it was entered in
            failed("acp.serve")

    def acknowledged(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The answer, with the acknowledgement for a sender that carried its hop."""
        self.status = 1
        error = payload.get("error")
        if isinstance(error, dict):
            self.code = error.get("code", -32603)
        if self.carrier is None:
            return payload
        value = propagation.acknowledgement(self.entry, self.carrier.cascade)
        return acp_wire.acknowledging(payload, value)

    def close(self, error: BaseException | None) -> None:
        """End the hop as the answer, or the lack of one, says."""
        self.answered = self.over = True
        raised, self.error = self.error, None
        entry = self.entry
        if entry is None:
            return
        if isinstance(error, (CancelledError, GeneratorExit)):
            entry.finish("cancelled", "its connection was closed")
            return
        if self.code is not None:
            entry.set(names.RPC_STATUS_CODE, _shown(self.code))
        if raised is not None or error is not None:
            entry.set(names.ERROR_TYPE, type(raised or error).__name__)
        if self.code is not None:
            entry.finish("failed", f"answered {_shown(self.code)}")
        elif raised is not None or error is not None:
            entry.finish("failed", type(raised or error).__name__)
        else:
            entry.finish()


def _begin_serving(
    connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, notifies: bool
) -> Served | None:
    try:
        message = args[0] if args else kwargs["message"]
        return Served(acp_links.of(connection), message, notifies=notifies)
    except Exception:  # noqa: BLE001
        failed("acp.request")
        return None


def _end_serving(served: Served, error: BaseException | None) -> None:
    try:
        served.close(error)
    except Exception:  # noqa: BLE001
        failed("acp.close")
        if served.entry is not None:
            served.entry.finish("failed", type(error).__name__)


def _serving_with(*, notifies: bool) -> Any:
    async def serve(wrapped: Any, connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        served = _begin_serving(connection, args, kwargs, notifies=notifies)
        if served is None:
            return await wrapped(*args, **kwargs)
        error: BaseException | None = None
        try:
            with served:
                return await (wrapped(served.message, *args[1:]) if args else wrapped(message=served.message))
        except BaseException as raised:
            error = raised
            raise
        finally:
            _end_serving(served, error)
            error = None

    def serving(wrapped: Any, connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return named(serve(wrapped, connection, args, kwargs), wrapped)

    return serving


async def _route(wrapped: Any, _router: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`MessageRouter.__call__`: here it is known what a handler raised, which is answered with, or swallowed, further out."""
    served = _serving.get()
    if served is not None and not served.over and args and args[0] == served.path:
        try:
            return await wrapped(*args, **kwargs)
        except Exception as raised:
            served.error = raised
            raise
    return await _route_late(wrapped, args, kwargs)


async def _route_late(wrapped: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A connection that was there before the instrumentation serves a message: what the message carries is taken out here."""
    served = None
    try:
        if len(args) == 3 and not kwargs:
            method, params, notifies = args
            late = Served(None, {"method": method, "params": params}, notifies=bool(notifies))
            if late.carrier is not None:
                served, args = late, (method, late.message["params"], notifies)
    except Exception:  # noqa: BLE001
        failed("acp.route")
    if served is None:
        return await wrapped(*args, **kwargs)
    error: BaseException | None = None
    try:
        with served:
            return await wrapped(*args, **kwargs)
    except BaseException as raised:
        error = raised
        raise
    finally:
        _end_serving(served, error)
        error = None


async def _execute(wrapped: Any, _connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`_execute_request` of 0.12, which makes the answer."""
    payload = await wrapped(*args, **kwargs)
    try:
        served = _serving.get()
        if served is not None and isinstance(payload, dict) and payload.get("id") == served.id:
            return served.acknowledged(payload)
    except Exception:  # noqa: BLE001
        failed("acp.acknowledge")
    return payload


def _responding(wrapped: Any, _sender: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`MessageSender.send` before 0.12, where the answer goes out."""
    try:
        served = _serving.get()
        payload = args[0] if args else kwargs.get("payload")
        if (
            served is not None
            and not served.notifies
            and isinstance(payload, dict)
            and "method" not in payload
            and payload.get("id") == served.id
        ):
            payload = served.acknowledged(payload)
            args, kwargs = ((payload, *args[1:]), kwargs) if args else (args, {**kwargs, "payload": payload})
    except Exception:  # noqa: BLE001
        failed("acp.acknowledge")
    return wrapped(*args, **kwargs)


async def _processing(wrapped: Any, connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`_process_message` before 0.12: whoever caused a message is known when it comes, and not when the dispatcher comes to it."""
    came = None
    try:
        message = args[0] if args else kwargs["message"]
        if isinstance(message, dict) and "method" in message:
            came = acp_links.of(connection).came(message)
    except Exception:  # noqa: BLE001
        failed("acp.came")
    try:
        return await wrapped(*args, **kwargs)
    except BaseException:
        if came is not None:
            came.finish("cancelled", "its connection was closed")
        raise


# The connection and its loops ------------------------------------------------------------------------------------


def _receiving(wrapped: Any, connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`_receive_loop`, called by whoever owns the connection: in a task of its own, or by `main_loop` for as long as it lasts."""
    try:
        owner = acp_links.Owner()
    except Exception:  # noqa: BLE001
        failed("acp.receive")
        return wrapped(*args, **kwargs)
    return named(_receive(wrapped, connection, owner, args, kwargs), wrapped)


async def _receive(
    wrapped: Any, connection: Any, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    try:
        acp_links.of(connection).begins(owner)
    except Exception:  # noqa: BLE001
        failed("acp.receive")
    try:
        return await wrapped(*args, **kwargs)
    finally:
        try:
            acp_links.of(connection).left(connection)
        except Exception:  # noqa: BLE001
            failed("acp.left")


def _closing(wrapped: Any, connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        acp_links.of(connection).closes()
    except Exception:  # noqa: BLE001
        failed("acp.closing")
    return wrapped(*args, **kwargs)


def _made_sender(wrapped: Any, sender: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = wrapped(*args, **kwargs)
    try:
        # Whoever puts a message there awaits that it is written: its own hop says all that there is to say.
        queues.ignore(sender._queue)  # noqa: SLF001
    except Exception:  # noqa: BLE001
        failed("acp.sender")
    return result


# The instrumentor ------------------------------------------------------------------------------------------------

_WRAPPERS: Final[dict[str, Any]] = {
    "ask": _sending(notifies=False),
    "notify": _sending(notifies=True),
    "answer": _answered,
    "serve": _serving_with(notifies=False),
    "serve_notification": _serving_with(notifies=True),
    "process": _processing,
    "route": _route,
    "respond": _responding,
    "execute": _execute,
    "receive": _receiving,
    "close": _closing,
    "sender": _made_sender,
}


class ACPInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Makes hops of what agents and clients of the Agent Client Protocol send and serve, and tells of connections that nobody closed.

    Nothing is imported: each module of the SDK is instrumented when the application imports it.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: what is not there is never wrapped."""
        return ()

    def _instrument(self, **_: Any) -> None:
        self._patches = Patches("hopwatch_acp")
        del missing[:]
        if hopwatch_process.refused_here():
            return
        try:
            hop_waits.asks = http_client.asks
            hop_waits.owes_answer = asgi.owes_answer
            hop_waits.is_read = acp_links.is_read
            if acp_links.orphaned not in orphans.sources:
                orphans.sources.append(acp_links.orphaned)
            if acp_links.undecided not in hopwatch_process.keeps_looking:
                hopwatch_process.keeps_looking.append(acp_links.undecided)
            hopwatch_process.on_tick(acp_links.look)
            for name in acp_seams.modules():
                self._patches.when_imported(name, functools.partial(self._module, name))
            self._patches.complete()
        except Exception:  # noqa: BLE001 - the launcher would switch every instrumentation off
            failed("acp.instrument")

    def _uninstrument(self, **_: Any) -> None:
        self._patches.undo()
        try:
            acp_links.forget()
        except Exception:  # noqa: BLE001
            failed("acp.uninstrument")

    def _module(self, name: str, module: Any) -> None:
        """Wrap what the table has of one module of the SDK."""
        release = acp_seams.installed()
        for seam in acp_seams.SEAMS:
            if seam.module != name or not seam.is_due(release):
                continue
            try:
                owner = getattr(module, seam.owner, None)
                if owner is not None and self._patches.wrap(owner, seam.name, _WRAPPERS[seam.use]):
                    continue
            except Exception:  # noqa: BLE001 - the others are worth having without it
                failed("acp.seam")
            missing.append(str(seam))
            self._patches.lack()
