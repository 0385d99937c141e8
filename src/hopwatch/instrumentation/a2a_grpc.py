"""Did the message arrive, and who took it? The calls of a send, by the gRPC binding of the A2A SDK (grpc.aio of grpcio 1.66 to 1.85).

| what | seam |
|---|---|
| metadata out | `UnaryUnaryMultiCallable.__call__`, `UnaryStreamMultiCallable.__call__`: before the interceptors of the application's channel |
| attempts, answers | `UnaryUnaryCall.__init__`, `UnaryStreamCall.__init__`: after them, so that one which tries again is seen |
| whom it goes to | `Channel.__init__` |

Out go the same two headers as over HTTP, as metadata. What comes back is metadata too (`a2a_grpc_server`).
"""

from __future__ import annotations

import sys
from asyncio import current_task
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

from hopwatch import attributes as names
from hopwatch import hop_waits, propagation
from hopwatch.instrumentation import a2a_seams, http_client
from hopwatch.ledger import Note
from hopwatch.process import current, failed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hopwatch.instrumentation import Patches
    from hopwatch.ledger import Entry

SERVICE: Final = b"A2AService/"
"""What stands in the path of each of A2A's methods: `/lf.a2a.v1.A2AService/SendMessage`, in the older protocol `/a2a.v1.`."""
CHANGED: Final = frozenset({"traceparent", "tracestate"})
"""Metadata of ours, instead of what the application may have there."""
_attempted: ContextVar[Entry | None] = ContextVar("hopwatch_grpc_call", default=None)
"""The send whose call is being made, for the interceptors that make it."""


class Channel:
    """What was said when a channel was made."""

    __slots__ = ("governed", "host", "port")

    def __init__(self, target: str, options: Iterable[tuple[str, Any]]) -> None:
        self.host, self.port = address_of(target)
        self.governed = target.startswith("xds:") or any(
            any(word in str(value) for word in ("retryPolicy", "hedgingPolicy", "timeout"))
            if name == "grpc.service_config"
            else (name == "grpc.service_config_disable_resolution" and not value)
            for name, value in options
        )
        """Whether a service config may try a call again, or give it up, and nobody here is told."""


_channels: WeakKeyDictionary[Any, Channel] = WeakKeyDictionary()
_wrapped: set[str] = set()
"""What of grpc.aio has been wrapped; all of it, as a rule."""
_sent: WeakValueDictionary[str, Entry] = WeakValueDictionary()
"""By its hop, each send whose call is being made, for code that makes it in another context, as an interceptor's worker does."""
_BEGINS_WORK: Final = (b"/SendMessage", b"/SendStreamingMessage")


class _Seen:
    """What has been seen so far, to be compared at the end of a send with what was seen at its beginning."""

    strays = 0
    """How many messages went out that no send could be found for."""
    rounds = 0
    """How often the seams were wrapped, or put back."""


def address_of(target: str) -> tuple[str, int]:
    """Whom a channel's target names, as host and port; port 0 where it has none.

    Args:
        target: as gRPC has it: `host:port`, `dns:///host:port`, `ipv4:1.2.3.4:50051`, `[::1]:50051`, `unix:/path`.
    """
    scheme, found, rest = target.partition(":")
    if found and scheme in ("unix", "unix-abstract"):
        return rest, 0
    if found and scheme in ("dns", "ipv4", "ipv6", "xds", "passthrough", "vsock"):
        target = rest.rpartition("/")[2]
    host, found, port = target.split(",")[0].rpartition(":")
    if not found or not port.isdecimal() or host.endswith(":"):
        return target.strip("[]"), 0
    return host.strip("[]"), int(port)


class Message(http_client.Target):
    """A send that goes by gRPC, and what became of its calls. None of httpx's requests is it.

    What it says of the peer stands as soon as it is said, for a marker may carry it: an acknowledgement when it comes, and
    all else when the send ends.
    """

    __slots__ = (
        "answered", "before", "begun", "called", "channel", "key", "rounds", "seen", "status", "strays", "streams", "told",
    )  # fmt: skip

    def __init__(self, transport: Any) -> None:
        # Not `Target.__init__`: it wants httpx's client, and `is_meant` says no to every one of them.
        self._client: Any = type(None)
        self._url = None
        try:
            self._transport = ref(transport)
        except TypeError:  # somebody else's transport, with slots
            self._transport = None
        kind = type(getattr(transport, "channel", None))
        self.seen = kind.__module__ == "grpc.aio._channel" and len(_wrapped) == len(a2a_seams.CALLS)
        """Whether no call can be made that is not noted here."""
        self.rounds = _Seen.rounds
        self.strays = _Seen.strays
        self.called = False
        """Whether the stub was called. A call of gRPC need not come of it: interceptors make that, when and where they like."""
        self.begun = 0
        """How many calls were made: more than one where an interceptor tries again."""
        self.before = 0
        """How often gRPC's core, or a proxy, tried besides, as far as the receiver tells."""
        self.answered = False
        """Whether somebody answered, with an acknowledgement or without."""
        self.streams = False
        """Whether the first event of a stream has come."""
        self.status = ""
        """The status of the newest call that has ended."""
        self.channel: Channel | None = None
        self.key = 0
        self.told: list[Any] | None = None
        """As `http_client.asks` has it."""

    def ask(self, entry: Entry) -> None:
        """Say that the running task awaits the answer, and that nothing else ends its wait."""
        task = current_task()
        if task is None:
            return
        self.told = [entry, 0, 0]
        self.key = id(task)
        http_client._attempts[self.key] = (ref(task), self.told)  # noqa: SLF001 - it answers for both bindings

    def asks_no_more(self) -> None:
        """Say that the answer has begun, or will not come."""
        if self.key:
            http_client._attempts.pop(self.key, None)  # noqa: SLF001
            self.key = 0

    def end(self, entry: Entry) -> None:
        """Say what is known of the peer, now that the send is over."""
        self.asks_no_more()
        if self.status not in ("", "OK"):
            entry.set(names.RPC_STATUS_CODE, self.status)
        # Nobody knows whose they were. They may be this one's, by an interceptor that has a call made elsewhere.
        strays = _Seen.strays - self.strays
        reached = self.begun + self.before + strays
        if reached > 1:
            entry.set(names.PEER_ATTEMPTS, reached)
        if names.PEER in (entry.attributes or {}):
            return
        if self.streams and self.status != "OK":
            # It was left, or cut: who acknowledges does it at the end. No error is a refusal after that.
            self.answered = False
        every = not strays and self.rounds == _Seen.rounds
        if self.seen and every and not self.called and not self.begun:
            return  # what was never called is judged as over any binding
        # Never "refused": that gRPC could not connect may be what somebody at the other end says, of a third.
        entry.set(names.PEER, "opaque" if self.answered and every else "unknown")


def _calling(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    entry = http_client.outgoing.get()
    if entry is None:
        return wrapped(*args, **kwargs)
    token = None
    try:
        message = entry.instance_of
        if isinstance(message, Message) and SERVICE in _bytes(instance._method):  # noqa: SLF001
            http_client.outgoing.set(None)
            message.called = True
            message.seen, seen = False, message.seen  # unless all goes well here
            _sent[entry.id] = entry
            kwargs = {**kwargs, "metadata": _read_once(kwargs.get("metadata"))}
            if not isinstance(kwargs["metadata"], Iterator):
                kwargs["metadata"] = _with_ours(kwargs["metadata"], entry)
                _describe(entry, message, instance, kwargs.get("timeout"))
                token = _attempted.set(entry)
                message.seen = seen
    except Exception:  # noqa: BLE001
        failed("grpc.call")
    if token is None:
        return wrapped(*args, **kwargs)
    try:
        call = wrapped(*args, **kwargs)
    finally:
        _attempted.reset(token)
    try:
        interceptors = getattr(call, "_interceptors_task", None)
        if interceptors is not None:
            _keep_quiet(entry, interceptors)
    except Exception:  # noqa: BLE001
        failed("grpc.interceptors")
    return call


def _describe(entry: Entry, message: Message, callable_: Any, timeout: Any) -> None:
    """Say whom a call goes to, and that the running task awaits its answer if nothing else may end that."""
    channel = message.channel = _channels.get(callable_._references[0])  # noqa: SLF001
    if channel is not None:
        entry.set(names.SERVER_ADDRESS, channel.host)
        if channel.port:
            entry.set(names.SERVER_PORT, channel.port)
    entry.set(names.RPC_SYSTEM, "grpc")
    if (
        timeout is None
        and channel is not None
        and not channel.governed
        and not _may_interfere(callable_._interceptors)  # noqa: SLF001
    ):
        message.ask(entry)


def _may_interfere(interceptors: Any) -> bool:
    """Whether interceptors may end a wait, or try again after a while: OpenTelemetry's own do not."""
    return any(
        not type(each).__module__.startswith("opentelemetry.instrumentation.grpc")
        for each in interceptors or ()
    )


def _keep_quiet(entry: Entry, task: Any) -> None:
    """The task in which a channel's interceptors run counts on the send, and tells nothing that the send does not."""
    for noted in entry.ledger.below(entry, 64):
        if noted.runner is not None and noted.runner() is task:
            found = entry.ledger.promote(noted) if isinstance(noted, Note) else noted
            found.quiet = True
            return


def _bytes(method: Any) -> bytes:
    return method if isinstance(method, bytes) else str(method).encode()


def _read_once(metadata: Any) -> Any:
    """The application's metadata, in a form that may be read again, as an iterator may not; an iterator that fails where its own does."""
    if metadata is None or isinstance(metadata, (list, tuple, _metadata())):
        return metadata
    kept: list[Any] = []
    try:
        kept.extend(metadata)
    except Exception as error:  # noqa: BLE001 - it is the application's own, and it shall meet it where it would without us
        return _replayed(kept, error)
    return kept


def _replayed(kept: list[Any], error: Exception) -> Iterator[Any]:
    yield from kept
    raise error


def _metadata() -> Any:
    """The class that grpc.aio, which has been imported, has for metadata."""
    return sys.modules["grpc.aio"].Metadata


def _with_ours(metadata: Any, entry: Entry) -> Any:
    """The application's metadata and our two headers, in a collection of the same kind."""
    kept = [item for item in metadata or () if item[0] not in CHANGED]
    kept.extend(propagation.outgoing(entry).items())
    if isinstance(metadata, _metadata()):
        return type(metadata)(*kept)
    return tuple(kept) if isinstance(metadata, tuple) else kept


def _made(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call has been made: an attempt. Its callback must not keep it, for a call that is dropped is cancelled."""
    entry = None
    try:
        method = _bytes(args[6] if len(args) > 6 else kwargs.get("method"))
        if SERVICE in method:
            entry = _whose(args[2] if len(args) > 2 else kwargs.get("metadata"))
            if entry is None and method.endswith(_BEGINS_WORK):
                _Seen.strays += 1
    except Exception:  # noqa: BLE001
        _Seen.strays += 1
        failed("grpc.made")
    if entry is None:
        return wrapped(*args, **kwargs)
    # The tasks that a call makes for itself do nothing but what the send waits for, and it tells that.
    hop = current.set(None)
    try:
        result = wrapped(*args, **kwargs)
    finally:
        current.reset(hop)
    message: Message = entry.instance_of
    message.begun += 1
    try:
        if message.told is not None:
            deadline = args[1] if len(args) > 1 else kwargs.get("deadline")
            message.told[2] += 1 if deadline is None else 2
        instance._cython_call.add_done_callback(partial(_over, entry, ref(instance)))  # noqa: SLF001
    except Exception:  # noqa: BLE001
        failed("grpc.attempt")
    return result


def _whose(metadata: Any) -> Entry | None:
    """The send that a call is made for: as its metadata says, or else its context; None where that is over, or unknown.

    The context is not always the call's own: who makes calls for others may have been started within another send.
    """
    entry = None
    if not isinstance(metadata, Iterator):  # which could be read only once
        for key, value in metadata or ():
            found = propagation.hop_in_tracestate(str(value)) if key == "tracestate" else None
            if found is not None:
                entry = _sent.get(found[1])
                break
    if entry is None:
        entry = _attempted.get()
    return entry if entry is not None and entry.done is None else None


def _over(entry: Entry, reference: Any) -> None:
    """A call has ended: note what is known of who took it."""
    try:
        call, message = reference(), entry.instance_of
        if call is None or entry.done is not None or not isinstance(message, Message):
            return
        if message.told is not None:
            message.told[1] += 1
        status = message.status = str(_now(call.code()).name)
        metadata = [*_now(call.initial_metadata()), *_now(call.trailing_metadata())]
        if _acknowledged(entry, message, metadata):
            return
        once = message.channel is not None and not message.channel.governed
        if status == "OK" or (status in names.RPC_ANSWERS and once):
            message.answered = True
    except Exception:  # noqa: BLE001
        failed("grpc.answer")


def _acknowledged(entry: Entry, message: Message, metadata: Iterable[tuple[str, Any]]) -> bool:
    header, before = None, ""
    for name, value in metadata:
        if name == names.ACKNOWLEDGEMENT_HEADER:
            header = value
        elif name == names.ATTEMPTS_HEADER:
            before = str(value)
    if header is None:
        return False
    propagation.acknowledged(entry, str(header))
    message.answered = True
    # The core or a proxy tried before, and nobody here was told. What came of it only those know who got it.
    message.before = max(message.before, propagation.number(before))
    return True


def _now(answer: Any) -> Any:
    """The result of a coroutine that has nothing to wait for: what grpc.aio says of a call that is over.

    Raises:
        RuntimeError: it would have to wait.
    """
    try:
        answer.send(None)
    except StopIteration as done:
        return done.value
    answer.close()
    raise RuntimeError("the call is not over, so this would have to wait")


def streams(entry: Entry | None) -> None:
    """Say that the first event of the stream that a send asked for has come. Who sent it is known at the end."""
    message = entry.instance_of if entry is not None else None
    if isinstance(message, Message):
        message.streams = True
        message.asks_no_more()


def _channel_made(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = wrapped(*args, **kwargs)
    try:
        target = args[0] if args else kwargs["target"]
        options = args[1] if len(args) > 1 else kwargs.get("options")
        _channels[instance] = Channel(str(target), tuple(options or ()))
    except Exception:  # noqa: BLE001
        failed("grpc.channel")
    return result


_USES: Final = {"channel": _channel_made, "calling": _calling, "made": _made}
"""What stands for each seam, by its `use` in the table of `a2a_seams`."""


def instrument(patches: Patches) -> list[str]:
    """Wrap what makes calls in grpc.aio, which has been imported.

    Returns:
        The names of what this release does not have.
    """
    hop_waits.asks = http_client.asks
    missing = []
    forget()
    for seam in a2a_seams.CALLS:
        found = getattr(sys.modules.get(seam.module), seam.owner, None)
        if found is not None and patches.wrap(found, seam.name, _USES[seam.use]):
            _wrapped.add(str(seam))
        else:
            missing.append(str(seam))
    return missing


def forget() -> None:
    """Say that the seams are not wrapped, or not yet: a send that began before cannot know of every call."""
    _wrapped.clear()
    _Seen.rounds += 1
