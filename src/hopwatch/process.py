"""What does this process account with? The one ledger, the current hop, and the guard around every hook.

Everything that hopwatch does inside somebody else's program goes through here: a hook that fails is counted and
logged once, and never raises into the application.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hopwatch import state_folder
from hopwatch.ledger import CAPACITY, Entry, Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from hopwatch.telemetry import Telemetry

logger = logging.getLogger("hopwatch")
# Without a handler of its own, logging's last resort would print to the application's stderr.
logger.addHandler(logging.NullHandler())

current: ContextVar[Entry | None] = ContextVar("hopwatch_hop", default=None)
"""The hop that the running code works for: always a visible entry, which may have closed already."""

machinery: ContextVar[bool] = ContextVar("hopwatch_machinery", default=False)
"""True in the SDK's own loops, which hand items on: the current hop follows the item there, spans are nobody's there."""

unwatched: ContextVar[bool] = ContextVar("hopwatch_unwatched", default=False)
"""True inside `with hopwatch.service():` and for what is started there: no test is blamed for leaving it."""

failures: dict[str, int] = {}
"""How often each hook failed."""

MAX_FAILURE_KINDS: Final = 256


def failed(hook: str) -> None:
    """Count an exception in a hook of ours, inside an `except` block; log the first of each kind."""
    count = failures.get(hook, 0)
    if count == 0 and len(failures) >= MAX_FAILURE_KINDS:
        return
    failures[hook] = count + 1
    if count == 0:
        logger.warning(
            "hopwatch: hook %s failed; what it watches is not accounted for. Reported once.",
            hook,
            exc_info=True,  # noqa: LOG014 - called inside an `except` block
        )


LIBRARIES: Final = {
    "hopwatch_asyncio": "asyncio",
    "hopwatch_a2a": "a2a.types",
    "hopwatch_acp": "acp.connection",
}
"""The instrumentations of ours, and for each a module that is loaded wherever what it counts is used."""

in_place: set[str] = set()
"""Those of them that have put all their hooks in place."""


def uncounted() -> str:
    """Name, with commas between them, the instrumentations that are not in place here though their library is loaded.

    What the library does is not counted then, so nothing that is done here can be called over.
    """
    if len(in_place) == len(LIBRARIES):
        return ""
    return ",".join(
        name for name, module in LIBRARIES.items() if name not in in_place and module in sys.modules
    )


def main_interpreter() -> bool:
    """Whether this is the interpreter that Python began with, and no sub-interpreter inside the same process."""
    global _is_main  # noqa: PLW0603 - it never changes
    if _is_main is None:
        try:
            _is_main = _ask_whether_main()
        except Exception:  # noqa: BLE001 - another implementation, which then has no sub-interpreters
            _is_main = True
    return _is_main


def _ask_whether_main() -> bool:
    import _thread  # noqa: PLC0415

    # The standard library asks so itself from 3.12 on; `concurrent.interpreters`, which is public, came with 3.14.
    asked = getattr(_thread, "_is_main_interpreter", None)
    if asked is not None:
        return bool(asked())
    import _xxsubinterpreters as interpreters  # type: ignore[import-not-found]  # noqa: PLC0415

    return bool(interpreters.get_current() == interpreters.get_main())


_is_main: bool | None = None
_refused = False


def refused_here() -> bool:
    """Whether hopwatch keeps out of this interpreter, as it does of every sub-interpreter; the first time it is logged.

    Signals, `atexit`, the black box's lock and OpenTelemetry's exporters are the process's, or need threads that a
    sub-interpreter may not start. So only the main interpreter is accounted for.
    """
    global _refused  # noqa: PLW0603 - once is enough
    if main_interpreter():
        return False
    if not _refused:
        _refused = True
        logger.warning(
            "hopwatch: this is a sub-interpreter, and hopwatch instruments the main interpreter only. The program goes on, and "
            "what runs here is not accounted for."
        )
    return True


def reason_of(error: BaseException) -> str:
    """An exception in a few words: its own `__str__` may raise, and may give what no exporter can encode.

    Of the URLs in it passwords, queries and fragments are left out: httpx 0.28 quotes the whole URL of a request that was
    refused, and a2a-sdk 1.3.0 hands that on. What SQLAlchemy adds is left out: the statement, and its parameters, which are data.
    """
    try:
        text = f"{type(error).__name__}: {error}".partition("\n[SQL: ")[0]
    except Exception:  # noqa: BLE001 - it is the application's code
        text = type(error).__name__
    return encodable(without_url_secrets(text[:4_000])[:200])


_URL: Final = re.compile(r"(?<=://)(?:[^\s/?#'\"<>]*@)?([^\s?#'\"<>]*)(?:[?#][^\s'\"<>]*)?")


def without_url_secrets(text: str) -> str:
    """The text, with neither user and password nor query and fragment in any URL."""
    return _URL.sub(r"\1", text) if "://" in text else text


def encodable(text: str) -> str:
    """The text without lone surrogates: one of them makes an exporter lose its whole batch."""
    return text.encode("utf-8", "replace").decode()


class Settings(NamedTuple):
    """What the environment says. A bad value is told of by `hopwatch doctor` and in the log, and the default holds."""

    detail: str = "hops"
    reveal_after: float = 1.0
    """Seconds after which a task, an event or a wait for a lock becomes visible."""
    capacity: int = CAPACITY
    service_loops: tuple[str, ...] = ()
    blackbox: str | None = None
    """The folder of the black box; None where it is switched off, or the user has no home."""
    shutdown_timeout: float = 3.0
    """Seconds that the end of the process may be held up for the reports of what was pending."""
    signals: bool = True
    """Whether a SIGTERM that would end the process at once is reported first."""
    drain: float = 0.0
    """Seconds that `asyncio.run` waits, before it cancels what is left, for what is left to end by itself."""
    acp_inject: bool = True
    """Whether messages of the Agent Client Protocol carry the hop that sends them."""
    report: str = ""
    """File that says at the end of the process what was pending."""
    sampling: str = "follow"
    """Whether hops of traces that the application's sampler drops are told of: `follow` for no, `all` for yes."""
    problems: tuple[str, ...] = ()


_VARIABLES: Final = (
    "DETAIL", "REVEAL_AFTER", "CAPACITY", "SERVICE_LOOPS", "APPLICATION", "BLACKBOX", "SHUTDOWN_TIMEOUT", "SIGNALS", "DRAIN",
    "ACP_INJECT", "REPORT", "SAMPLING", "URL", "TOKEN_FILE",
)  # fmt: skip
"""What follows `HOPWATCH_` in the name of each variable that a program or a command may be given."""
_OF_KUBERNETES: Final = re.compile(r"(SERVICE_HOST|(SERVICE_)?PORT(_.*)?)")
"""What a pod is told of a service that somebody called `hopwatch`."""


def _misspelt(environment: Any) -> list[str]:
    """A sentence for each variable whose name is nearly one of ours."""
    given = [key[9:] for key in environment if key.startswith("HOPWATCH_")]
    others = [key for key in given if key not in _VARIABLES and not _OF_KUBERNETES.fullmatch(key)]
    if not others:
        return []
    from difflib import get_close_matches  # noqa: PLC0415 - seldom needed

    meant = {key: get_close_matches(key, _VARIABLES, 1, 0.8) for key in sorted(others)}
    return [
        f"HOPWATCH_{key} is none of hopwatch's settings, but HOPWATCH_{found[0]} is"
        for key, found in meant.items()
        if found
    ]


def _written(value: float) -> str:
    """A number as one writes it: 10,000,000 and 0.05."""
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def read_settings(environment: Any = os.environ) -> Settings:
    """Read the `HOPWATCH_*` variables.

    Returns:
        The settings, with a sentence in `problems` for each value that could not be used.
    """
    problems = _misspelt(environment)
    detail = environment.get("HOPWATCH_DETAIL", "hops").strip().lower() or "hops"
    if detail not in ("hops", "all"):
        problems.append(f"HOPWATCH_DETAIL is {detail!r}; it is hops or all. hops is used")
        detail = "hops"

    def number(name: str, default: float, least: float, most: float) -> float:
        text = environment.get(name, "").strip()
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            problems.append(
                f"{name} is {text!r}; it is a number from {_written(least)} to {_written(most)}. {_written(default)} is used"
            )
            return default
        return value

    blackbox, problem = state_folder.named(environment)
    if problem is not None:
        problems.append(problem)
    signals = environment.get("HOPWATCH_SIGNALS", "on").strip().lower() or "on"
    if signals not in ("on", "off"):
        problems.append(f"HOPWATCH_SIGNALS is {signals!r}; it is on or off. on is used")
        signals = "on"
    inject = environment.get("HOPWATCH_ACP_INJECT", "true").strip().lower() or "true"
    if inject not in ("true", "false"):
        problems.append(f"HOPWATCH_ACP_INJECT is {inject!r}; it is true or false. true is used")
        inject = "true"

    sampling = environment.get("HOPWATCH_SAMPLING", "follow").strip().lower() or "follow"
    if sampling not in ("follow", "all"):
        problems.append(f"HOPWATCH_SAMPLING is {sampling!r}; it is follow or all. follow is used")
        sampling = "follow"

    loops = tuple(
        each.strip() for each in environment.get("HOPWATCH_SERVICE_LOOPS", "").split(",") if each.strip()
    )
    problems.extend(
        f"HOPWATCH_SERVICE_LOOPS has {each!r}, which is no function's whole name; a pattern is module:qualname, such as *:{each}"
        for each in loops
        if ":" not in each and not {*"*?["} & {*each}
    )
    return Settings(
        detail=detail,
        reveal_after=number("HOPWATCH_REVEAL_AFTER", 1.0, 0.05, 3600.0),
        capacity=int(number("HOPWATCH_CAPACITY", CAPACITY, 16, 10_000_000)),
        service_loops=loops,
        blackbox=blackbox,
        shutdown_timeout=number("HOPWATCH_SHUTDOWN_TIMEOUT", 3.0, 0.0, 600.0),
        signals=signals == "on",
        drain=number("HOPWATCH_DRAIN", 0.0, 0.0, 3600.0),
        acp_inject=inject == "true",
        report=environment.get("HOPWATCH_REPORT", "").strip(),
        sampling=sampling,
        problems=tuple(problems),
    )


class Process:
    """What one process has of hopwatch; a forked child gets all of it anew."""

    def __init__(self, settings: Settings) -> None:
        from hopwatch import blackbox  # noqa: PLC0415 - these themselves need this module
        from hopwatch.telemetry import Telemetry, agent_name  # noqa: PLC0415

        self.settings = settings
        self.instance = secrets.token_hex(8)
        self.pid = os.getpid()
        self.box: blackbox.BlackBox | None = None
        """The process's black box; None where it is switched off or impossible."""
        if settings.blackbox is not None and blackbox.POSSIBLE:
            self.box = blackbox.BlackBox(settings.blackbox, self.instance, agent_name)
        self.telemetry: Telemetry = Telemetry(self)
        self.ledger = Ledger(self.telemetry, capacity=settings.capacity, everything=settings.detail == "all")
        self.each_tick: list[Callable[[int], None]] = list(_each_tick)
        """Called by the ticker with the time (Unix nanoseconds): what has to be looked at now and then."""


keeps_looking: list[Callable[[], bool]] = []
"""Each tells whether the ticker has something to look at though no hop is open."""
_process: Process | None = None
_each_tick: list[Callable[[int], None]] = []


def here() -> Process:
    """The process's own ledger and telemetry, made when first asked for."""
    global _process  # noqa: PLW0603 - one process has one ledger
    if _process is None:
        settings = read_settings()
        for problem in settings.problems:
            logger.warning("hopwatch: %s.", problem)
        _process = Process(settings)
    return _process


def on_tick(look: Callable[[int], None]) -> None:
    """Have the ticker call `look`, with the time in Unix nanoseconds, about every 0.25 s while hops are open."""
    if look not in _each_tick:
        _each_tick.append(look)
        if _process is not None:
            _process.each_tick.append(look)


class _Nobody:
    """Is told of the hops of the parent process in a forked child, whose stack may unwind through them."""

    def opened(self, entry: Entry) -> None:
        entry.id = entry.id or f"{secrets.randbits(64) or 1:016x}"

    def closed(self, entry: Entry) -> None:
        pass

    def late(self, parent: Entry) -> None:
        pass


def _in_child() -> None:
    # The parent's hops stay the parent's: the child neither reports nor ends them.
    global _process  # noqa: PLW0603
    if _process is not None:
        if _process.box is not None:
            _process.box.let_go()
        _process.ledger.observer = _Nobody()
        _process = Process(_process.settings)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
