"""How is the A2A SDK instrumented? Messages sent, requests served, executions, pushes (a2a-sdk 0.3.22 to 1.3.0).

| hop | seam |
|---|---|
| send | `send_message`, `send_message_streaming`, `subscribe`, `get_task`, `cancel_task` of the JSON-RPC, REST and gRPC transports |
| request | `on_message_send` and its like of the request handlers, within an HTTP request (`asgi`) or a call of gRPC (`a2a_grpc_server`) |
| execution | `AgentExecutor.execute` of the class of the executor that a handler is given |
| push | `BasePushNotificationSender._dispatch_notification` |

Which release has which seam is in the table of `a2a_seams`; what stands for it is here. An execution is over when the SDK has stored
its last event, not when `execute` returns. A seam that a release lacks is left out, and `missing` names it.
"""

from __future__ import annotations

import functools
import gc
import itertools
from asyncio import CancelledError, current_task
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from weakref import WeakSet, ref

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.trace import Link

from hopwatch import attributes as names
from hopwatch import process as hopwatch_process
from hopwatch.instrumentation import (
    Patches,
    a2a_events,
    a2a_grpc,
    a2a_grpc_server,
    a2a_results,
    a2a_seams,
    a2a_streams,
    aiohttp_server,
    asgi,
    http_client,
    named,
)
from hopwatch.process import current, failed, reason_of
from hopwatch.telemetry import HopSpan, begin, within

if TYPE_CHECKING:
    from collections.abc import Collection

    from hopwatch.ledger import Entry

MAX_EXECUTIONS: Final = 10_000
"""Latest execution by A2A task id, for links and states: the oldest that are over are forgotten, and of twice as many any."""
LOOKED_THROUGH: Final = 64
"""Among how many of the oldest one that is over is looked for."""

METHODS: Final = {
    "send_message": "SendMessage",
    "send_message_streaming": "SendStreamingMessage",
    "subscribe": "SubscribeToTask",
    "resubscribe": "SubscribeToTask",
    "get_task": "GetTask",
    "cancel_task": "CancelTask",
    "on_message_send": "SendMessage",
    "on_message_send_stream": "SendStreamingMessage",
    "on_subscribe_to_task": "SubscribeToTask",
    "on_resubscribe_to_task": "SubscribeToTask",
    "on_get_task": "GetTask",
    "on_cancel_task": "CancelTask",
}
"""A2A's method names by the SDK's."""
STREAMS: Final = frozenset(
    {
        "send_message_streaming",
        "subscribe",
        "resubscribe",
        "on_message_send_stream",
        "on_subscribe_to_task",
        "on_resubscribe_to_task",
    }
)
ONLY_WITHIN: Final = frozenset({"GetTask"})
"""Asking for a task is a hop where a cascade asks; somebody who polls from outside starts no cascade each time."""

_states: dict[Any, str] = {}
"""Names of A2A's task states by their numbers, or by the enumeration of 0.3."""
missing: list[str] = []
"""Seams that the installed release does not have."""


class _Latest:
    """The latest execution of a task.

    It is kept while its task is in a state that is not terminal: who moves the task later, when nothing of the execution is left, has to
    be told of for the cascade of the execution.
    """

    __slots__ = ("context", "entry", "kept")

    def __init__(self, entry: Entry) -> None:
        self.entry = ref(entry)
        self.context = entry.span.context if isinstance(entry.span, HopSpan) else None
        self.kept: Entry | None = None

    @property
    def over(self) -> bool:
        """Whether nothing is open of it, so that it may be forgotten before others."""
        entry = self.entry()
        return entry is None or entry.closed


_executions: OrderedDict[str, _Latest] = OrderedDict()


def _lost(hook: str) -> None:
    """Count a failure of a hook inside an `except` block, and what it should have opened as dropped: never settled."""
    failed(hook)
    hop = current.get()
    if hop is not None:
        hop.ledger.lose(hop)


def _runner() -> Any:
    task = current_task()
    return ref(task) if task is not None else None


def _end(entry: Entry | None, error: BaseException | None, *, stream: bool = False) -> None:
    if entry is None:
        return
    try:
        if isinstance(entry.instance_of, a2a_grpc.Message):
            entry.instance_of.end(entry)
        if entry.kind in ("send", "push") and names.PEER not in (entry.attributes or {}):
            # It went out in a way that nobody saw, or, where it failed, not at all.
            entry.set(names.PEER, "unknown" if error is None else "refused")
        if error is None or (stream and isinstance(error, GeneratorExit)):
            entry.finish()  # who takes the first answer of a stream and leaves is no failure
        elif isinstance(error, GeneratorExit):
            entry.finish("abandoned", "its coroutine was closed while it was pending")
        elif isinstance(error, CancelledError):
            entry.finish("cancelled", entry.reason)
        else:
            entry.set(names.ERROR_TYPE, type(error).__name__)
            entry.finish("failed", entry.reason or reason_of(error))
    except Exception:  # noqa: BLE001
        failed("a2a.end")
        entry.finish("failed", type(error).__name__)


# Messages sent ---------------------------------------------------------------------------------------------------


def _open_send(method: str, request: Any, transport: Any) -> Entry | None:
    try:
        name = METHODS[method]
        parent = current.get()
        if parent is None and name in ONLY_WITHIN:
            return None
        attributes: dict[str, Any] = {names.A2A_METHOD_NAME: name}
        if method in STREAMS:
            attributes[names.STREAMING] = True
        _describe_message(attributes, request)
        entry = begin(hopwatch_process.here(), "send", name, parent, attributes=attributes, runner=_runner())
        client = getattr(transport, "httpx_client", None)
        if entry is not None and client is not None:
            entry.instance_of = http_client.Target(client, None, transport)
        elif entry is not None and getattr(transport, "channel", None) is not None:
            entry.instance_of = a2a_grpc.Message(transport)
    except Exception:  # noqa: BLE001
        _lost("a2a.send")
        return None
    return entry


def _describe_message(attributes: dict[str, Any], request: Any) -> None:
    message = getattr(request, "message", None)
    if message is not None:
        for attribute, field in (
            (names.A2A_MESSAGE_ID, "message_id"),
            (names.A2A_TASK_ID, "task_id"),
            (names.GEN_AI_CONVERSATION_ID, "context_id"),
        ):
            value = getattr(message, field, "")
            if value:
                attributes[attribute] = value
        references = list(getattr(message, "reference_task_ids", None) or ())
        if references:
            attributes[names.A2A_REFERENCE_TASK_IDS] = references
        configuration = getattr(request, "configuration", None)
        if configuration is not None:
            attributes[names.BLOCKING] = (
                not getattr(configuration, "return_immediately", False)
                and getattr(configuration, "blocking", None) is not False  # 0.3
            )
    elif getattr(request, "id", ""):
        attributes[names.A2A_TASK_ID] = request.id
    if getattr(request, "tenant", ""):
        attributes[names.A2A_TENANT] = request.tenant


def _note_task(entry: Entry | None, answer: Any) -> None:
    """Put the A2A task that an answer or event tells of on the hop."""
    if entry is None:
        return
    try:
        kind = type(answer).__name__
        if kind in ("SendMessageResponse", "StreamResponse"):
            for field in ("task", "status_update", "artifact_update"):
                if field in answer.DESCRIPTOR.fields_by_name and answer.HasField(field):
                    answer = getattr(answer, field)
                    kind = type(answer).__name__
                    break
            else:
                return
        if kind == "Task":
            entry.set(names.A2A_TASK_ID, answer.id)
            entry.set(names.A2A_TASK_STATE, _state(answer.status.state))
        elif kind == "TaskStatusUpdateEvent":
            entry.set(names.A2A_TASK_ID, answer.task_id)
            entry.set(names.A2A_TASK_STATE, _state(answer.status.state))
        elif kind == "TaskArtifactUpdateEvent":
            entry.set(names.A2A_TASK_ID, answer.task_id)
        else:
            return
        if getattr(answer, "context_id", ""):
            entry.set(names.GEN_AI_CONVERSATION_ID, answer.context_id)
    except Exception:  # noqa: BLE001
        failed("a2a.task")


def _state(state: Any) -> str:
    name = _states.get(state)
    if name is None:
        value = getattr(state, "value", None)
        if isinstance(value, str):  # 0.3 has an enumeration, whose words 1.x has made into names
            name = "UNSPECIFIED" if value == "unknown" else value.upper().replace("-", "_")
            name = f"TASK_STATE_{name}"
        else:
            from a2a.types.a2a_pb2 import TaskState  # noqa: PLC0415 - only where the SDK is loaded already

            name = str(TaskState.Name(state))
        _states[state] = name
    return name


def _sending(method: str) -> Any:
    async def send(wrapped: Any, transport: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entry = _open_send(method, args[0] if args else kwargs.get("request"), transport)
        error: BaseException | None = None
        try:
            with within(entry, http_client.outgoing):
                answer = await wrapped(*args, **kwargs)
            _note_task(entry, answer)
        except BaseException as raised:
            error = raised
            raise
        finally:
            _end(entry, error)
            error = None  # its traceback holds this frame: nobody shall need a collection of cycles
        return answer

    return send


def _ended_without_a_word(entry: Entry | None) -> None:
    """A stream ended in order, before its first event: a peer that hopwatch cannot see into may have taken the message, or died of it."""
    if entry is not None and (entry.attributes or {}).get(names.PEER) == "opaque":
        entry.set(names.PEER, "unknown")
        entry.reason = "its stream ended without an event"


def _streaming(method: str) -> Any:
    async def stream(wrapped: Any, transport: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entry = _open_send(method, args[0] if args else kwargs.get("request"), transport)
        error: BaseException | None = None
        events = wrapped(*args, **kwargs)
        first = True
        try:
            while True:
                with within(entry, http_client.outgoing if first else None):
                    try:
                        event = await events.__anext__()
                    except StopAsyncIteration:
                        if first:
                            _ended_without_a_word(entry)
                        return
                if first:
                    first = False
                    a2a_grpc.streams(entry)
                _note_task(entry, event)
                yield event
        except BaseException as raised:
            error = raised
            raise
        finally:
            try:
                with within(entry):
                    await events.aclose()
            finally:
                _end(entry, error, stream=True)
                error = None

    return stream


# Requests served -------------------------------------------------------------------------------------------------


def _open_request(method: str, request: Any) -> Entry | None:
    """Say that the HTTP request that is being served is an A2A request; open its hop if no hop of ours sent it."""
    try:
        exchange = asgi.serving.get()
        name = METHODS[method]
        if exchange is None or exchange.over:
            return None
        entry = exchange.entry
        attributes: dict[str, Any] = {names.A2A_METHOD_NAME: name}
        if method in STREAMS:
            attributes[names.STREAMING] = True
        _describe_message(attributes, request)
        if entry is None:
            if exchange.carrier is not None or name in ONLY_WITHIN:
                return None  # the ledger was full, or somebody polls
            return exchange.open("request", name, attributes)
        entry.kind, entry.name = "request", name
        entry.attributes = attributes
    except Exception:  # noqa: BLE001
        _lost("a2a.request")
        return None
    return entry


def _serving(method: str) -> Any:
    async def serve(wrapped: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entry = _open_request(method, args[0] if args else kwargs.get("params"))
        try:
            answer = await wrapped(*args, **kwargs)
        except Exception as error:
            # The SDK answers an error with 200; the hop says what it was.
            if entry is not None:
                entry.set(names.ERROR_TYPE, type(error).__name__)
            raise
        _note_task(entry, answer)
        return answer

    return lambda wrapped, _instance, args, kwargs: serve(wrapped, args, kwargs)


def _serving_stream(method: str) -> Any:
    async def serve(wrapped: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entry = _open_request(method, args[0] if args else kwargs.get("params"))
        events = wrapped(*args, **kwargs)
        try:
            async for event in events:
                _note_task(entry, event)
                yield event
        finally:
            await events.aclose()

    return lambda wrapped, _instance, args, kwargs: serve(wrapped, args, kwargs)


# Executions ------------------------------------------------------------------------------------------------------


def _open_execution(executor: Any, context: Any, queue: Any) -> Entry | None:
    entry = None
    try:
        parent = current.get()
        task = current_task()
        if (
            parent is not None
            and parent.kind == "execution"
            and parent.runner is not None
            and parent.runner() is task
        ):
            return None  # an executor that calls its base class's execute
        task_id = getattr(context, "task_id", None)
        attributes: dict[str, Any] = {}
        if task_id:
            attributes[names.A2A_TASK_ID] = task_id
        if getattr(context, "context_id", None):
            attributes[names.GEN_AI_CONVERSATION_ID] = context.context_id
        message_id = getattr(getattr(context, "message", None), "message_id", "")
        if message_id:
            attributes[names.A2A_MESSAGE_ID] = message_id
        found: Any = type(executor).execute
        function: Any = getattr(found, "__wrapped__", found)
        code = getattr(function, "__code__", None)
        if code is not None:
            attributes[names.CODE_FUNCTION_NAME] = getattr(function, "__qualname__", code.co_name)
            attributes[names.CODE_FILE_PATH] = code.co_filename
            attributes[names.CODE_LINE_NUMBER] = code.co_firstlineno
        links = []
        before = _executions.get(task_id) if task_id else None
        if before is not None and before.context is not None:
            links.append(Link(before.context))
        entry = begin(
            hopwatch_process.here(),
            "execution",
            f"{type(executor).__name__}.execute",
            parent,
            attributes=attributes,
            runner=ref(task) if task is not None else None,
            links=links,
        )
        if entry is None:
            return None
        if task_id:
            _executions[task_id] = _Latest(entry)
            _executions.move_to_end(task_id)
            if len(_executions) > MAX_EXECUTIONS:
                oldest = [*itertools.islice(_executions, LOOKED_THROUGH)]
                gone = next((each for each in oldest if _executions[each].over), None)
                if gone is not None or len(_executions) > 2 * MAX_EXECUTIONS:
                    del _executions[gone or oldest[0]]
        _take_over(entry, parent, task, queue)
        events = a2a_events.of(queue)
        if events is not None:
            events.latest = ref(entry)
            completion = entry.ledger.open("event", "the SDK's processing of the last event", entry)
            if completion is not None:
                completion.quiet = True
                task = events.consumer()
                completion.runner = ref(task) if task is not None else None
                left, events.completion = events.completion, completion
                if left is not None:
                    left.finish("cancelled")
    except Exception:  # noqa: BLE001
        _lost("a2a.execution")
    return entry


def _take_over(entry: Entry, parent: Entry | None, task: Any, queue: Any) -> None:
    """Count the task that runs the execution, and the request that the producer took, on the execution itself.

    Otherwise the request's hop would stay open as long as the execution does.
    """
    if parent is None or parent.ledger is not entry.ledger:
        return
    for below in entry.ledger.below(parent, 64):
        if below.runner is not None and below.runner() is task:
            entry.ledger.move(below, entry)
    results = a2a_results.of(queue)
    if results is not None and a2a_results.runs(task, "._run_event_stream"):
        results.producer, results.execution = ref(task), ref(entry)
        current.set(entry)  # it closes the queue afterwards, and ends with that
    events = a2a_events.of(queue)
    if events is not None:
        a2a_events.take_over(events, entry, parent)


async def _execute(wrapped: Any, executor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    context = args[0] if args else kwargs.get("context")
    queue = args[1] if len(args) > 1 else kwargs.get("event_queue")
    entry = _open_execution(executor, context, queue)
    error: BaseException | None = None
    try:
        with within(entry):
            return await wrapped(*args, **kwargs)
    except BaseException as raised:
        error = raised
        raise
    finally:
        _end(entry, error)
        error = None


def _executing(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return named(_execute(wrapped, instance, args, kwargs), wrapped)


def _saving(original: Any) -> Any:
    @functools.wraps(original)
    async def _save_task(self: Any, task: Any) -> Any:
        result = await original(self, task)
        try:
            latest = _executions.get(task.id)
            entry = latest.entry() if latest is not None else None
            if latest is not None and entry is not None:
                state = _state(task.status.state)
                latest.kept = None if state in names.TERMINAL_STATES else entry
                if (entry.attributes or {}).get(names.A2A_TASK_STATE) != state:
                    entry.set(names.A2A_TASK_STATE, state)
                    if entry.closed:  # its record has said something else, or may have
                        entry.ledger.observer.late(entry)
        except Exception:  # noqa: BLE001
            failed("a2a.save")
        return result

    return _save_task


# Pushes ----------------------------------------------------------------------------------------------------------


async def _dispatch(wrapped: Any, sender: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    entry = _open_push(getattr(sender, "_client", None), args, kwargs)
    error: BaseException | None = None
    delivered = None
    try:
        with within(entry, http_client.outgoing):
            delivered = await wrapped(*args, **kwargs)
    except BaseException as raised:
        error = raised
        raise
    finally:
        if entry is not None and error is None and delivered is False:
            # The SDK logs what went wrong and swallows it; its bool is all it tells.
            if names.PEER not in (entry.attributes or {}):
                entry.set(names.PEER, "refused")
            entry.finish("failed", entry.reason or "the SDK did not send it")
        else:
            _end(entry, error)
        error = None
    return delivered


def _open_push(client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry | None:
    entry = None
    try:
        event: Any
        info: Any
        event, info, task_id = (
            args[index] if len(args) > index else kwargs.get(name)
            for index, name in enumerate(("event", "push_info", "task_id"))
        )
        if event is None:
            event = kwargs.get("task")  # 0.3
        url = urlsplit(info.url)
        attributes: dict[str, Any] = {
            names.MESSAGING_SYSTEM: "a2a",
            names.MESSAGING_OPERATION_NAME: "push",
            names.MESSAGING_OPERATION_TYPE: "send",
            names.MESSAGING_DESTINATION_NAME: url.path or "/",
            names.SERVER_ADDRESS: url.hostname or "",
            names.SERVER_PORT: url.port or {"http": 80, "https": 443}.get(url.scheme, 0),
        }
        entry = begin(
            hopwatch_process.here(),
            "push",
            f"send {url.path or '/'}",
            current.get(),
            attributes=attributes,
            runner=_runner(),
        )
        _note_task(entry, event)
        if entry is not None:
            if task_id:
                entry.set(names.A2A_TASK_ID, task_id)
            if not url.netloc and not str(getattr(client, "base_url", "")):
                # 1.0 pushes to an empty URL where a message names no webhook: that reaches nobody.
                entry.set(names.PEER, "refused")
            if client is not None:
                entry.instance_of = http_client.Target(client, info.url)
    except Exception:  # noqa: BLE001
        _lost("a2a.push")
    return entry


# The instrumentor ------------------------------------------------------------------------------------------------


_WRAPPERS: Final = {**a2a_events.WRAPPERS, **a2a_results.WRAPPERS, **a2a_streams.WRAPPERS}


class A2AInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Makes hops of what the A2A SDK sends, serves, executes and pushes, and of the webhooks that take its pushes.

    Nothing is imported: each module of the SDK, Starlette and httpx is instrumented when the application imports it.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: an agent without the SDK may still receive pushes."""
        return ()

    def _instrument(self, **_: Any) -> None:
        self._patches = Patches("hopwatch_a2a")
        self._executors: WeakSet[Any] = WeakSet()
        self._calls_grpc = False
        del missing[:]
        if hopwatch_process.refused_here():
            return
        try:
            asgi.instrument(self._patches)
            aiohttp_server.instrument(self._patches)
            for name, hook in (
                ("httpx", lambda module: http_client.instrument(self._patches, module)),
                ("a2a.client.transports.grpc", self._calling_grpc),
                ("a2a.compat.v0_3.grpc_transport", self._calling_grpc),
                (
                    "a2a.server.request_handlers.grpc_handler",
                    lambda module: a2a_grpc_server.serve_others(self._patches, module.GrpcHandler),
                ),
                (
                    "a2a.compat.v0_3.grpc_handler",
                    lambda module: a2a_grpc_server.serve_others(self._patches, module.CompatGrpcHandler),
                ),
            ):
                self._patches.when_imported(name, hook)
            self._handlers: list[type] | None = []
            for name in a2a_seams.modules():
                self._patches.when_imported(name, functools.partial(self._module, name))
            self._made_before(self._handlers)
            self._handlers = None
            self._patches.complete()
        except Exception:  # noqa: BLE001 - the launcher would switch every instrumentation off
            failed("a2a.instrument")

    def _uninstrument(self, **_: Any) -> None:
        self._patches.undo()
        try:
            a2a_events.forget()
            a2a_results.forget()
            a2a_streams.forget()
            a2a_grpc.forget()
            _executions.clear()
        except Exception:  # noqa: BLE001
            failed("a2a.uninstrument")

    def _calling_grpc(self, _: Any) -> None:
        if not self._calls_grpc:
            self._calls_grpc = True
            missing.extend(a2a_grpc.instrument(self._patches))

    def _module(self, name: str, module: Any) -> None:
        """Wrap what the table has of one module of the SDK."""
        release = a2a_seams.installed()
        for seam in a2a_seams.SEAMS:
            if seam.module != name or not seam.is_due(release):
                continue
            try:
                owner = getattr(module, seam.owner, None)
                if owner is not None and self._seam(seam, owner):
                    continue
            except Exception:  # noqa: BLE001 - the others are worth having without it
                failed("a2a.seam")
            missing.append(str(seam))
            self._patches.lack()

    def _seam(self, seam: a2a_seams.Seam, owner: Any) -> bool:
        """Put in its place what stands for a seam; returns whether this release has it."""
        patches, name = self._patches, seam.name
        wrappers: dict[str, Any] = {
            "send": _sending,
            "stream": _streaming,
            "serve": _serving,
            "serve_stream": _serving_stream,
        }
        if seam.use in wrappers:
            return patches.wrap(owner, name, wrappers[seam.use](name))
        if seam.use == "handler":
            if self._handlers is not None:  # its module was there before us
                self._handlers.append(owner)
            return patches.wrap(owner, name, self._made_handler)
        if seam.use == "grpc":
            return a2a_grpc_server.serve(patches, owner, name)
        if seam.use == "push":
            return patches.wrap(owner, name, _dispatch)
        if seam.use == "save":
            return patches.replace(owner, name, _saving)
        if seam.use == "results_queue":
            a2a_results.instrument_queue(patches, owner)
            return patches.wrap(owner, name, a2a_results.making)
        if seam.use == "active_task":
            return patches.wrap(owner, name, _made_active_task)
        if seam.use == "events_enqueue":
            a2a_events.instrument_queue(patches, owner)
        elif seam.use == "streams_tap":
            a2a_streams.instrument(patches, owner)
        return patches.replace(owner, name, _WRAPPERS[seam.use])

    def _made_handler(
        self, wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        result = wrapped(*args, **kwargs)
        try:
            self._executor(instance.agent_executor)
        except Exception:  # noqa: BLE001
            failed("a2a.handler")
            self._patches.lack()
        return result

    def _made_before(self, classes: list[type]) -> None:
        """The executors of handlers that the application made before it was instrumented."""
        found: set[type] = set()
        while classes:
            found.update(classes)
            lower: list[type] = []
            for each in classes:
                lower.extend(each.__subclasses__())
            classes = lower
        for handler in gc.get_referrers(*found) if found else ():
            if type(handler) in found:
                try:
                    executor = getattr(handler, "agent_executor", None)
                    if executor is not None:  # one that is being made just now has none yet
                        self._executor(executor)
                except Exception:  # noqa: BLE001
                    failed("a2a.handler")
                    self._patches.lack()

    def _executor(self, executor: Any) -> None:
        if "execute" in getattr(executor, "__dict__", {}):  # decorated where it was made, say
            self._patches.wrap_own(executor, "execute", _executing)
            return
        # `execute` is abstract: what can be wrapped is the class of the executor that the application brings.
        owner = type(executor)
        if not hasattr(owner, "execute"):
            # A proxy, which hands on what it is asked for: the class of the one that does the work.
            owner = type(getattr(executor.execute, "__self__", executor))
        if owner not in self._executors:
            self._executors.add(owner)
            if not self._patches.wrap(owner, "execute", _executing):
                missing.append(f"{owner.__module__}.{owner.__qualname__}.execute")
                self._patches.lack()


def _made_active_task(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = wrapped(*args, **kwargs)
    try:
        a2a_events.watch(instance)
    except Exception:  # noqa: BLE001
        failed("a2a.active_task")
    return result
