"""Is the cascade that a test started over, in this process and in all others? The object behind the fixture `cascade`."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from hopwatch import process as hopwatch_process
from hopwatch.ledger import Note
from hopwatch.testing.leftovers import NOBODY, whose
from hopwatch.tokens import VARIABLE, TokenError, bearer, put_into, read_token
from hopwatch.verdict import FINAL, NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from hopwatch.ledger import Entry

TIMEOUT: Final = 10.0
"""Seconds that is waited for a verdict by default."""
_START_WITHIN: Final = 60.0
_ANSWER_WITHIN: Final = 10.0
"""Seconds that a look may take, even one for which a test has less: its time is about the cascade, not about a busy machine."""
_STOP_WITHIN: Final = 10.0


class SetUpError(RuntimeError):
    """The collector or the exporter cannot be set up; the message says why and what to do."""


@dataclass(frozen=True)
class Seen:
    """What the collector said of a cascade.

    Attributes:
        verdict: `settled`, `in_flight`, `waiting`, `stalled`, `stranded`, `broken`, `silent` or `unknown`.
        reason: one sentence for a person.
        cascade: the collector's object, as `GET /api/cascades/{id}` has it: `hops`, `frontier`, `missing` and the rest.
    """

    verdict: str
    reason: str
    cascade: dict[str, Any]

    @property
    def picture(self) -> str:
        """The tree of hops, as `hopwatch show` prints it."""
        from hopwatch.cli import picture  # noqa: PLC0415 - rich is slow to import

        return "\n".join(picture.lines(self.cascade))


class Connection:
    """The collector that is asked, and the exporter and instrumentation of this process; one for all tests of a run.

    Args:
        url: of a collector that runs; by default one is started, in this process and on a free port.
        token_file: a file with the token that the collector at `url` wants, if it wants one.

    Raises:
        SetUpError: something that is needed is not installed, or the collector does not start.
    """

    def __init__(self, url: str | None = None, token_file: str | None = None) -> None:
        self._undo = contextlib.ExitStack()
        self.token_file = token_file if url else None
        try:
            self.token = read_token(self.token_file) if self.token_file else None
            self.url = url.strip().rstrip("/") if url else self._start_collector()
            self._export()
            self._instrument()
        except TokenError as error:
            raise SetUpError(f"{VARIABLE}: {error}") from None
        except ModuleNotFoundError as error:
            self._undo.close()
            raise SetUpError(
                f"the fixture `cascade` needs {error.name}, which is not installed. Remedy: pip install 'hopwatch[collector,otlp]'"
            ) from None
        except BaseException:
            self._undo.close()
            raise

    def close(self) -> None:
        """Undo everything, the newest first."""
        self._undo.close()

    def flush(self) -> None:
        """Send what this process has recorded."""
        self._processor.force_flush(5_000)

    def _start_collector(self) -> str:
        from hopwatch.collector.serve import Collector  # noqa: PLC0415 - heavy, and only on demand

        collector = Collector(port=0, grpc_port=0, store=":memory:")
        ready = threading.Event()
        failures: list[BaseException] = []

        def serve() -> None:
            try:
                collector.run(ready.set)
            except BaseException as error:  # noqa: BLE001 - told by who waits for it
                failures.append(error)
            finally:
                ready.set()

        thread = _thread("hopwatch-collector", serve)

        def stop() -> None:
            collector.stop()
            thread.join(_STOP_WITHIN)

        self._undo.callback(stop)
        if not ready.wait(_START_WITHIN) or failures:
            raise SetUpError(
                f"the collector of the fixture `cascade` does not start: {failures or 'it took too long'}"
            )
        return collector.url

    def _export(self) -> None:
        import requests  # noqa: PLC0415 - comes with the exporter
        from opentelemetry import trace  # noqa: PLC0415 - no test pays for it that does not use the fixture
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON  # noqa: PLC0415

        provider = trace.get_tracer_provider()
        if not isinstance(provider, TracerProvider):
            resource = Resource.create()
            if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
                resource = resource.merge(Resource({SERVICE_NAME: "pytest"}))
            provider = TracerProvider(sampler=ALWAYS_ON, resource=resource)
            trace.set_tracer_provider(provider)
        session = requests.Session()
        # A proxy that the environment names is for the world outside, never for this machine.
        session.trust_env = urlsplit(self.url).hostname not in ("localhost", "127.0.0.1", "::1")
        self._undo.callback(session.close)
        headers = {"authorization": bearer(self.token)} if self.token is not None else None
        exporter = OTLPSpanExporter(f"{self.url}/v1/traces", headers=headers, timeout=5, session=session)
        self._processor = BatchSpanProcessor(exporter)
        provider.add_span_processor(self._processor)
        self._undo.callback(self._processor.shutdown)

    def _instrument(self) -> None:
        from hopwatch.instrumentation.a2a import A2AInstrumentor  # noqa: PLC0415
        from hopwatch.instrumentation.acp import ACPInstrumentor  # noqa: PLC0415
        from hopwatch.instrumentation.asyncio import AsyncioInstrumentor  # noqa: PLC0415

        for kind in (AsyncioInstrumentor, A2AInstrumentor, ACPInstrumentor):
            one = kind()
            if not one.is_instrumented_by_opentelemetry:
                one.instrument()
                self._undo.callback(one.uninstrument)


_entered: ContextVar[tuple[Any, ...]] = ContextVar("hopwatch_test_cascade", default=())


class Cascade:
    """A declared root that a test's work belongs to, and the way to wait for the end of it.

    It is current in the test's function by itself. Elsewhere, as in another fixture, `with cascade:` or
    `async with cascade:` makes it current for a block.

    Args:
        name: what the root is called.
        connection: where it is told, and who is asked.

    Attributes:
        id: the cascade's id: 32 hex digits.
        url: the collector.

    Raises:
        SetUpError: there is no room in the ledger of this process.
    """

    def __init__(self, name: str, connection: Connection) -> None:
        from hopwatch.telemetry import begin  # noqa: PLC0415

        self._connection = connection
        self.url = connection.url
        # In an empty context: a span that happens to be current is no part of this cascade.
        entry = Context().run(begin, hopwatch_process.here(), "task", name, None)
        if entry is None:
            raise SetUpError("the ledger of this process is full; HOPWATCH_CAPACITY says how much it holds")
        self._entry: Entry = entry
        self.id = entry.cascade

    def __enter__(self) -> Self:
        from hopwatch.telemetry import within  # noqa: PLC0415

        block = within(self._entry)
        block.__enter__()
        _entered.set((*_entered.get(), block))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        blocks = _entered.get()
        if blocks:
            _entered.set(blocks[:-1])
            blocks[-1].__exit__(None, None, None)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def environment(self, name: str | None = None) -> dict[str, str]:
        """The environment variables by which a child process tells this cascade's collector of its hops.

        Start an agent with `{**os.environ, **cascade.environment("worker")}` and `hopwatch run` or
        `opentelemetry-instrument`.

        Args:
            name: what the agent is called; None leaves that to whoever starts it.
        """
        out = {
            "HOPWATCH_URL": self.url,
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            # These go before the two above, so one from outside would lead elsewhere.
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{self.url}/v1/traces",
            "OTEL_TRACES_SAMPLER": "parentbased_always_on",
            "OTEL_INSTRUMENTATION_A2A_SDK_ENABLED": "false",
        }
        if self._connection.token_file is not None and self._connection.token is not None:
            out[VARIABLE] = self._connection.token_file
            put_into(out, self._connection.token)
            # It goes before the one above, so one from outside would keep the token away.
            out["OTEL_EXPORTER_OTLP_TRACES_HEADERS"] = out["OTEL_EXPORTER_OTLP_HEADERS"]
        if name is not None:
            out["OTEL_SERVICE_NAME"] = name
        return out

    def finish(self) -> None:
        """Say that the test's own part is over; what it still starts is late work of the same cascade.

        The task that calls is the test itself, where the test's function runs it inside the cascade: it is no longer
        counted, for it could not wait for its own end.
        """
        entry = self._entry
        ledger = entry.ledger
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        if task is not None:
            for noted in ledger.below(entry, ledger.capacity):
                if noted.runner is not None and noted.runner() is task:
                    (ledger.promote(noted) if isinstance(noted, Note) else noted).finish()
            for hop in ledger.open_hops():
                if hop.cascade == self.id and hop.runner is not None and hop.runner() is task:
                    hop.finish()
        entry.finish()

    async def settled(self, timeout: float = TIMEOUT) -> Seen:
        """Wait until the cascade is settled, everywhere.

        The test's own part ends with this call (`finish`).

        Args:
            timeout: seconds.

        Returns:
            What the collector said, with the verdict `settled`.

        Raises:
            AssertionError: the verdict is final and another one (stranded, broken), or the time is over. The message has
                the verdict, its reason and the tree of hops.
            hopwatch.cli.client.CollectorError: the collector does not answer.
        """
        __tracebackhide__ = True
        self.finish()
        seen = await self._ask(timeout, ())
        if seen.verdict != "settled":
            how = "will never be settled" if seen.verdict in FINAL else f"is not settled within {timeout:g} s"
            raise AssertionError(f"the cascade {how}\n\n{seen.picture}")
        return seen

    async def verdict(self, *until: str, timeout: float = TIMEOUT) -> Seen:
        """Ask for the verdict.

        Args:
            until: verdicts to wait for; the wait ends with a final verdict, too. The test's own part then ends with this
                call (`finish`). Without any, it is the verdict of this moment, and the test goes on.
            timeout: seconds to wait at most.

        Returns:
            What the collector said last, whatever it is.

        Raises:
            ValueError: `until` names something that is no verdict.
            hopwatch.cli.client.CollectorError: the collector does not answer.
        """
        for each in until:
            if each not in NAMES:
                raise ValueError(f"{each!r} is not a verdict: it is one of {', '.join(NAMES)}")
        if not until:
            return await self._ask(0.0, ())
        self.finish()
        return await self._ask(timeout, until)

    async def _ask(self, timeout: float, until: Collection[str]) -> Seen:
        """Look at the cascade from a thread, for asking blocks."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("the cascade's verdict can be awaited on asyncio's event loops only") from None
        answer: asyncio.Future[Seen] = loop.create_future()
        stop = threading.Event()

        def tell(seen: Seen | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            elif seen is not None:
                answer.set_result(seen)

        def look() -> None:
            found: tuple[Seen | None, BaseException | None]
            try:
                found = self._look(timeout, until, stop), None
            except BaseException as error:  # noqa: BLE001 - raised by who waits
                found = None, error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(tell, *found)

        _thread("hopwatch-verdict", look)
        try:
            return await answer
        finally:
            stop.set()

    def _look(self, timeout: float, until: Collection[str], stop: threading.Event) -> Seen | None:
        from hopwatch.cli.client import Collector  # noqa: PLC0415 - httpx is slow to import
        from hopwatch.cli.watch import watch  # noqa: PLC0415

        with Collector(self.url, self._connection.token) as collector:

            def ask(wanted: str, longest: float) -> dict[str, Any]:
                self._connection.flush()
                return collector.cascade(wanted, max(longest, _ANSWER_WITHIN))

            for sight in watch(ask, self.id, timeout=timeout, until=until, sleep=stop.wait):  # type: ignore[arg-type]
                if sight.final:
                    return Seen(sight.cascade["verdict"], str(sight.cascade.get("reason", "")), sight.cascade)
                if stop.is_set():
                    break
        return None


def _thread(name: str, target: Callable[[], None]) -> threading.Thread:
    """Start a thread of ours: no work of any cascade, and none of a test's."""

    def begin() -> None:
        context = Context()
        context.run(whose.set, NOBODY)
        context.run(target)

    thread = threading.Thread(target=begin, name=name, daemon=True)
    hop = hopwatch_process.current.set(None)
    try:
        thread.start()
    finally:
        hopwatch_process.current.reset(hop)
    return thread


@contextlib.contextmanager
def opened(name: str, connection: Connection) -> Iterator[Cascade]:
    """A cascade for one test; at the end of the block the test's own part is over in any case."""
    it = Cascade(name, connection)
    try:
        yield it
    finally:
        it.finish()
