"""Which asyncio tasks did a test leave pending, where were they made, and what did they wait on?

Every task that is made while a test is set up or runs is remembered by a weak reference, with the line that made it. At
the end of the test's teardown those are left that are still pending, that a loop's runner had to cancel, or that were
collected while pending.

Whose a task is, goes by its context: what a test's task makes is the test's, and what the task of a fixture of a wider
scope makes is nobody's, in whichever test that happens. What has no such mark (what is made first, in the thread of the
tests) belongs to the test that is being set up or runs.

This is apart from the instrumentation of asyncio, which counts work of cascades only, and exports it. Both may be there.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from hopwatch.process import failed, read_settings, unwatched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType

    from hopwatch.instrumentation import Patches

_getframe = sys._getframe  # noqa: SLF001 - the documented way to a caller that costs 60 ns
_ASYNCIO: Final = os.path.dirname(asyncio.__file__) + os.sep  # noqa: PTH120 - compared with co_filename, a str
_BETWEEN: Final = (
    os.path.dirname(os.path.dirname(__file__)) + f"{os.sep}instrumentation{os.sep}",  # noqa: PTH120
    f"{os.sep}anyio{os.sep}",
    f"{os.sep}opentelemetry{os.sep}",
    f"{os.sep}wrapt{os.sep}",
)
"""Parts of paths of what may stand between `create_task` and the line that meant it."""
_MOST_FRAMES: Final = 24
_OF_ACP: Final = (f"-packages{os.sep}acp{os.sep}", f"{os.sep}instrumentation{os.sep}acp.py")
_SDK: Final = "a2a."
_OF_ITS_LOOPS: Final = (_SDK, "asyncio.", "culsans.")
"""Packages of what the service loops of the A2A SDK make themselves; their queues are culsans' before Python 3.13."""
_PRUNE_AT: Final = 1024
_tools: Final[dict[str, Any]] = {}
"""What is loaded with the first test. Not later: a task may be collected in the middle of any import."""
MOST_SHOWN: Final = 20
"""Tasks that a report tells of one by one."""


class Run:
    """One run of one test: the tasks that were made for it.

    Attributes:
        name: its node id.
        made: by the id of the task object, which is the task's as long as that lives; a later task may get it then.
        left: those that were left, in the order in which that became certain.
    """

    __slots__ = ("_prune_at", "_threads", "left", "made", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.made: dict[int, Made] = {}
        self.left: list[Made] = []
        self._threads = frozenset(each.ident for each in threading.enumerate())
        self._prune_at = _PRUNE_AT

    def has(self, thread: int) -> bool:
        """Whether a thread is one that has begun since the test did."""
        return thread not in self._threads

    def note(self, task: Any, frame: Any) -> None:
        """Remember a task that was made for this test."""
        self.made[id(task)] = Made(task, frame)
        if len(self.made) >= self._prune_at:
            # What is over needs no record: a test that makes a million tasks holds as many records as are pending.
            self.made = {key: each for key, each in self.made.items() if not each.over()}
            self._prune_at = max(_PRUNE_AT, 2 * len(self.made))

    def leave(self, made: Made, task: Any, why: str, *, collected: bool = False) -> None:
        """Say that a task was left, unless it has been said, or it is no work."""
        if made.why is None and not _is_no_work(task):
            made.describe(task, why, collected=collected)
            self.left.append(made)


class Made:
    """A task that was made for a test.

    Attributes:
        task: weak reference to it.
        why: why it counts as left; None as long as it does not.
        pattern: what names its function in HOPWATCH_SERVICE_LOOPS; empty for a function of asyncio or anyio, which is many tasks'.
        waits: what it waited on, as `hopwatch.waits.Wait.as_dict` has it.
        told: whether it has been reported.
    """

    __slots__ = ("code", "offset", "pattern", "task", "title", "told", "waits", "why")

    def __init__(self, task: Any, frame: Any) -> None:
        self.task = ref(task)
        self.code: CodeType | None = None
        self.offset = 0
        if frame is not None:
            self.code, self.offset = frame.f_code, frame.f_lasti
        self.title = self.pattern = ""
        self.why: str | None = None
        self.waits: dict[str, Any] | None = None
        self.told = False

    def over(self) -> bool:
        """Whether it has ended, so that nothing more can become of it."""
        task = self.task()
        return task is None or task.done()

    def describe(self, task: Any, why: str, *, collected: bool) -> None:
        """Note what is told of a task that was left, while it is as it was."""
        waits = _tools["waits"]
        try:
            if collected:
                self.waits = waits.glance(task).as_dict()
            else:
                made_in = self.code.co_filename if self.code is not None else None
                self.waits = waits.of_task(task, made_in=made_in).as_dict()
        except Exception:  # noqa: BLE001 - that it was left is true all the same
            failed("leftovers.waits")
        coro = task.get_coro()
        self.title = getattr(coro, "__qualname__", None) or type(coro).__name__
        pattern = _tools["service"].pattern(coro)
        self.pattern = "" if pattern.startswith(("asyncio.", "anyio.")) else pattern
        name = task.get_name()
        if not name.startswith("Task-"):
            self.title += f" (task {name!r})"
        self.why = why

    def place(self, root: str) -> str:
        """File, line and function of who made it; paths below `root` are told from there."""
        if self.code is None:
            return "no line: a callback of the event loop made it"
        name = getattr(self.code, "co_qualname", self.code.co_name)
        return f"{_short(self.code.co_filename, root)}:{_line(self.code, self.offset)} in {name}"

    def lines(self, root: str) -> Iterator[str]:
        """What a report says of it.

        Args:
            root: paths below this folder are told from there.
        """
        yield f"  {self.title}"
        yield f"    made at {self.place(root)}"
        waits = self.waits
        if waits is not None:
            at = ""
            if waits.get("file"):
                at = f", at {_short(str(waits['file']), root)}:{waits.get('line')}"
                at += f" in {waits['function']}" if waits.get("function") else ""
            yield f"    waited on {waits.get('what') or waits.get('kind')}{at}"
        yield f"    {self.why}"


def report(left: list[Made], root: str) -> str:
    """All that was left, for a person."""
    first = left[0]
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    # pytest's summary shows the first line alone.
    out = [f"left pending: {first.title}{more}, made at {first.place(root)}"]
    for made in left[:MOST_SHOWN]:
        out.extend(("", *made.lines(root)))
    if len(left) > MOST_SHOWN:
        out.extend(("", f"  ... and {len(left) - MOST_SHOWN} more"))
    out.extend(("", "Await them, or cancel and await them; or expect it: @pytest.mark.leaves_pending('why')"))
    pattern = next((made.pattern for made in left if made.pattern), None)
    if pattern is not None:
        out.append(
            f"If one lives as long as the program: @hopwatch.service, or HOPWATCH_SERVICE_LOOPS={pattern}"
        )
    return "\n".join(out)


class Nobody:
    """Whose tasks are not looked at: fixtures of a wider scope than a test, and threads of ours."""


NOBODY: Final = Nobody()
whose: ContextVar[Run | Nobody | None] = ContextVar("hopwatch_test", default=None)
"""The test that a context belongs to. Set for what a task starts, and while a fixture of a wider scope is set up."""


class Watch:
    """Remembers the tasks of the test that runs, from `install` to `remove`."""

    def __init__(self) -> None:
        self._patches: Patches | None = None
        self._test: Run | None = None
        self._counting = False
        self._thread = threading.get_ident()
        self._wide_threads: set[int | None] = set()

    # While tests run -----------------------------------------------------------------------------------------

    def begin(self, name: str) -> Run:
        """A test is about to be set up."""
        if self._patches is None:
            self._install()
        self._thread = threading.get_ident()
        self._test = Run(name)
        self._counting = True
        return self._test

    def stop_counting(self) -> None:
        """Its teardown begins: what is made from now on, other than by its tasks, is no longer its own."""
        self._counting = False

    def known(self, test: Run) -> list[Made]:
        """The tasks of which it is certain before the teardown that they were left."""
        for made in list(test.made.values()):
            task = made.task()
            if made.why is None and task is not None and not task.done() and task.get_loop().is_closed():
                test.leave(made, task, "its event loop was closed while it was pending")
        return [made for made in test.left if not made.told]

    def end(self, test: Run) -> list[Made]:
        """The test's teardown is over: all that it left."""
        self.known(test)
        for made in list(test.made.values()):
            task = made.task()
            if made.why is None and task is not None and not task.done() and not _is_ending(task):
                test.leave(made, task, "it was still pending when the test and its fixtures were over")
        test.made = {}
        if self._test is test:
            self._test = None
            self._counting = False
        return test.left

    @contextlib.contextmanager
    def wide(self) -> Iterator[None]:
        """What starts in this block belongs to a fixture of a wider scope than the test."""
        counting, self._counting = self._counting, False
        before = {each.ident for each in threading.enumerate()}
        token = whose.set(NOBODY)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):
                whose.reset(token)
            now = {each.ident for each in threading.enumerate()}
            self._wide_threads = (self._wide_threads & now) | (now - before)
            self._counting = counting

    # The hooks ---------------------------------------------------------------------------------------------------

    def _install(self) -> None:
        from hopwatch import waits  # noqa: PLC0415 - loading the plugin has to be cheap
        from hopwatch.instrumentation import Patches, service  # noqa: PLC0415 - as above

        _tools.update(waits=waits, service=service)
        service.configure(read_settings().service_loops)
        self._patches = patches = Patches()
        patches.replace(asyncio.BaseEventLoop, "create_task", self._creating)
        patches.replace(asyncio.BaseEventLoop, "call_exception_handler", self._handling)

        def uvloop(module: Any) -> None:
            patches.replace(module.Loop, "create_task", self._creating)
            patches.replace(module.Loop, "call_exception_handler", self._handling)
            patches.replace(module, "_cancel_all_tasks", self._cancelling)

        patches.when_imported("uvloop", uvloop)

        def runner(module: Any) -> None:
            patches.replace(module, "_cancel_all_tasks", self._cancelling)

        patches.when_imported("asyncio.runners", runner)
        # These two have a runner of their own on Python 3.10.
        patches.when_imported("anyio._backends._asyncio", runner)
        patches.when_imported("backports.asyncio.runner.runner", runner)

    def remove(self) -> None:
        """Put everything back."""
        if self._patches is not None:
            self._patches.undo()
            self._patches = None

    def _owner(self, context: Any) -> Run | Nobody | None:
        owner = whose.get() if context is None else context.get(whose)
        if owner is not None:
            return owner
        test = self._test
        if test is None or not self._counting:
            return None
        thread = threading.get_ident()
        if thread != self._thread and (thread in self._wide_threads or not test.has(thread)):
            return None
        return test

    def _creating(self, original: Any) -> Any:
        """`create_task` of an event loop."""

        @functools.wraps(original)
        def create_task(loop: Any, coro: Any, **others: Any) -> Any:
            owner: Run | Nobody | None = None
            token = None
            try:
                context = others.get("context")
                owner = self._owner(context)
                if _is_of_a_runner(coro):
                    # It outlives the fixture or test that happened to need it first, and runs all the others.
                    owner, token = None, whose.set(None)
                elif owner is not None:
                    if unwatched.get():
                        owner = NOBODY
                    if context is None:
                        token = whose.set(owner)
            except Exception:  # noqa: BLE001 - nothing of ours reaches the test
                failed("leftovers.owner")
            try:
                task = original(loop, coro, **others)
            finally:
                if token is not None:
                    whose.reset(token)
            if owner is self._test and owner is not None:
                try:
                    site = _call_site(_getframe(1))
                    if not _is_of_the_sdk(loop, coro, site):
                        owner.note(task, site)
                except Exception:  # noqa: BLE001
                    failed("leftovers.note")
            return task

        return create_task

    def _handling(self, original: Any) -> Any:
        """`call_exception_handler` of an event loop: here asyncio tells that a pending task was collected."""

        @functools.wraps(original)
        def call_exception_handler(loop: Any, context: Any) -> Any:
            try:
                task = context.get("task")
                if task is not None and str(context.get("message", "")).startswith("Task was destroyed"):
                    self._collected(task)
            except Exception:  # noqa: BLE001
                failed("leftovers.destroyed")
            return original(loop, context)

        return call_exception_handler

    def _collected(self, task: Any) -> None:
        test = self._test
        made = test.made.get(id(task)) if test is not None else None
        if test is not None and made is not None:
            test.leave(
                made,
                task,
                "it was destroyed while pending, for nothing kept a reference to it",
                collected=True,
            )

    def _cancelling(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`_cancel_all_tasks`, by which a runner ends what its main coroutine left."""

        @functools.wraps(original)
        def _cancel_all_tasks(loop: Any) -> Any:
            try:
                test = self._test
                for made in list(test.made.values()) if test is not None else ():
                    task = made.task()
                    if (
                        test is not None
                        and task is not None
                        and task.get_loop() is loop
                        and not task.done()
                        and not _is_ending(task)
                    ):
                        test.leave(
                            made, task, "it was cancelled by the event loop's runner when that was closed"
                        )
            except Exception:  # noqa: BLE001
                failed("leftovers.cancelled")
            return original(loop)

        return _cancel_all_tasks


# What a task is --------------------------------------------------------------------------------------------------


def _is_of_a_runner(coro: Any) -> bool:
    """Whether this is the loop of anyio's (4.16) test runner, which steps all fixtures and tests of a module."""
    return getattr(coro, "__qualname__", None) == "TestRunner._run_tests_and_fixtures"


def _is_no_work(task: Any) -> bool:
    """Whether a task is a service loop, or asyncio's own closing of an async generator that nobody closed."""
    coro = task.get_coro()
    if type(coro).__name__ == "async_generator_athrow":
        return True
    code = getattr(coro, "cr_code", None)
    # A connection of the Agent Client Protocol is somebody's, who has to close it: its loops are no cascade's work, and left all the same.
    if code is None or any(part in code.co_filename for part in _OF_ACP):
        return False
    return bool(_tools["service"].judge(coro)[0])


def _is_of_the_sdk(loop: Any, coro: Any, site: Any) -> bool:
    """Whether a service loop of the A2A SDK makes this, by a line of its own, of the SDK's own or a queue's functions.

    So it hands its events on, and closes its queues. What it makes of the agent's functions, or these by lines of theirs, is the test's.
    """
    if site is None or not site.f_globals.get("__name__", "").startswith(_SDK):
        return False
    service = _tools["service"]
    maker = asyncio.current_task(loop)
    if maker is None or not service.judge(maker.get_coro())[0]:
        return False
    return str(service.pattern(coro)).startswith(_OF_ITS_LOOPS)


def _is_ending(task: Any) -> bool:
    """Whether somebody has asked it to cancel, and it will hear of that at its next turn."""
    for _ in range(64):
        if getattr(task, "_must_cancel", False):
            return True
        waiter = getattr(task, "_fut_waiter", None)
        if waiter is None:
            return False
        if waiter.cancelled() or getattr(waiter, "_cancel_requested", False):
            return True
        task = waiter
    return False


def _call_site(frame: Any) -> Any:
    """The frame of the line that meant to make a task; None where a callback of the loop made it."""
    first = frame
    for _ in range(_MOST_FRAMES):
        if frame is None:
            break
        code = frame.f_code
        name = code.co_filename
        if not name.startswith(_ASYNCIO):
            if not any(part in name for part in _BETWEEN):
                return frame
        elif code.co_name == "_run" and name.endswith("events.py"):
            return None
        frame = frame.f_back
    return first


def _line(code: CodeType, offset: int) -> int:
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return line
    return code.co_firstlineno


def _short(path: str, root: str) -> str:
    return path[len(root) + 1 :] if path.startswith(root + os.sep) else path
