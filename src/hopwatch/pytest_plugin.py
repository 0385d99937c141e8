"""Did a test leave asyncio tasks pending, and is the cascade that it started over? The pytest plugin.

pytest loads it by its entry point `hopwatch`. It is switched off by `--hopwatch=off`, by `hopwatch = off` in the ini file,
or by `-p no:hopwatch`. Loading it imports neither OpenTelemetry nor anything of a collector.
"""

from __future__ import annotations

import functools
import inspect
import os
from typing import TYPE_CHECKING, Any, Final

import pytest

from hopwatch.testing.leftovers import Made, Run, Watch, report

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from hopwatch.testing.cascade import Cascade

MARKER: Final = "leaves_pending"
_SECTION: Final = "hopwatch: asyncio tasks left pending"
_sections: Final = pytest.StashKey[list[tuple[str, str]]]()
_connection: Final = pytest.StashKey[Any]()
_cascade: Final = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--hopwatch` and the ini option of the same name."""
    parser.getgroup("hopwatch").addoption(
        "--hopwatch",
        choices=("on", "off"),
        default=None,
        help="whether a test fails that leaves asyncio tasks pending (default: on)",
    )
    parser.addini(
        "hopwatch", "whether a test fails that leaves asyncio tasks pending: on or off", default="on"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and the watch if it is on."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(reason): the test is expected to leave asyncio tasks pending, and fails if it does not.",
    )
    chosen = config.getoption("hopwatch")
    if chosen is None:
        chosen = str(config.getini("hopwatch")).strip().lower()
        if chosen not in ("on", "off"):
            raise pytest.UsageError(f"the ini option hopwatch is {chosen!r}; it is on or off")
    if chosen == "on":
        config.pluginmanager.register(_Leftovers(config), "hopwatch-leftovers")


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what tests have started on demand: the collector of the fixture `cascade`."""
    connection = config.stash.get(_connection, None)
    if connection is not None:
        del config.stash[_connection]
        connection.close()


@pytest.fixture
def cascade(request: pytest.FixtureRequest) -> Iterator[Cascade]:
    """A declared root that the test's work belongs to: `await cascade.settled()` waits until all of it is over.

    The collector is the one that HOPWATCH_URL names, or one that is started for this run of pytest.
    """
    from hopwatch.testing.cascade import Connection, SetUpError, opened  # noqa: PLC0415 - heavy, and only on demand

    stash = request.config.stash
    try:
        if _connection not in stash:
            stash[_connection] = Connection(
                os.environ.get("HOPWATCH_URL"), os.environ.get("HOPWATCH_TOKEN_FILE")
            )
        with opened(request.node.nodeid, stash[_connection]) as it:
            request.node.stash[_cascade] = it
            yield it
    except SetUpError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse a marker without a reason, before anything is set up for the test."""
    try:
        _reason(item)
    except ValueError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Make the test's cascade the current one in its function."""
    it = item.stash.get(_cascade, None)
    if it is None:
        return (yield)
    function: Any = getattr(item, "obj", None)
    if not inspect.iscoroutinefunction(function):
        with it:
            return (yield)
    if hasattr(function, "hypothesis"):  # its plugin runs something else than this: `async with cascade`
        return (yield)

    # Inside the coroutine: the task that runs it is the framework's, and in anyio older than the fixture.
    @functools.wraps(function)
    async def inside(*args: Any, **kwargs: Any) -> Any:
        """The test's function, with its cascade as the current one."""
        with it:
            return await function(*args, **kwargs)

    item.obj = inside  # type: ignore[attr-defined]
    try:
        return (yield)
    finally:
        item.obj = function  # type: ignore[attr-defined]


class _Leftovers:
    """The hooks that watch each test from its set-up to the end of its teardown."""

    def __init__(self, config: pytest.Config) -> None:
        self._root = str(config.rootpath)
        self._watch = Watch()
        self._test: Run | None = None
        self._failed = False
        """Whether the test has a failure of its own, which stays the one that is told."""
        self._ran = False
        self._expected: str | None = None

    def pytest_unconfigure(self) -> None:
        self._watch.remove()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._failed = self._ran = False
        item.stash[_sections] = []
        try:
            self._expected = _reason(item)
        except ValueError:  # told by the other hook, which fails the test as everything does that sets it up
            self._expected = None
        self._test = self._watch.begin(item.nodeid)
        try:
            return (yield)
        except BaseException:
            self._failed = True
            raise

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        if fixturedef.scope == "function":
            return (yield)
        with self._watch.wide():
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        try:
            result = yield
        except pytest.skip.Exception:
            raise
        except BaseException:
            self._failed = self._ran = True
            self._say(item, self._known(), "")
            raise
        self._ran = True
        # An expected failure must not swallow this one: then the teardown tells of it.
        if item.get_closest_marker("xfail") is None:
            left = self._known()
            if left:
                self._failed = True
                pytest.fail(self._tell(left), pytrace=False)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._watch.stop_counting()
        try:
            result = yield
        except BaseException:
            self._failed = True
            self._end(item)
            raise
        self._end(item)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, Any]:
        made = yield
        if item.stash.get(_sections, None):
            made.sections.extend(item.stash[_sections])
            item.stash[_sections] = []
        return made

    def _known(self) -> list[Made]:
        """What is certain when the test's function has ended; nothing where it is expected."""
        if self._test is None or self._expected is not None:
            return []
        return self._watch.known(self._test)

    def _end(self, item: pytest.Item) -> None:
        test, self._test = self._test, None
        if test is None:
            return
        left = self._watch.end(test)
        reason = self._expected
        if reason is not None:
            if not left and self._ran and not self._failed:
                pytest.fail(
                    f"this test left no asyncio task pending, though it is marked {MARKER}({reason!r}). Take the mark away.",
                    pytrace=False,
                )
            return
        left = [made for made in left if not made.told]
        if left and self._failed:
            self._say(
                item, left, " at teardown"
            )  # pytest shows such a section with the failure only if it says so
        elif left:
            pytest.fail(self._tell(left), pytrace=False)

    def _say(self, item: pytest.Item, left: list[Made], when: str) -> None:
        """Add a section to the report of a test that fails for another reason."""
        if left:
            item.stash[_sections].append((_SECTION + when, self._tell(left)))

    def _tell(self, left: list[Made]) -> str:
        for made in left:
            made.told = True
        return report(left, self._root)


def _reason(item: pytest.Item) -> str | None:
    """The reason that the marker gives; None where the test is not marked.

    Raises:
        ValueError: it gives none.
    """
    marker = item.get_closest_marker(MARKER)
    if marker is None:
        return None
    given = [*marker.args, *marker.kwargs.values()]
    known = set(marker.kwargs) <= {"reason"}
    if len(given) != 1 or not known or not isinstance(given[0], str) or not given[0].strip():
        raise ValueError(
            f"{MARKER} needs a reason, and nothing else: @pytest.mark.{MARKER}('why the task outlives the test')"
        )
    return given[0]
