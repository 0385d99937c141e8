"""Is all of it the same with the SDK's database stores, and what is said where the database is slow, locked or gone?"""

import asyncio
import contextlib
import sqlite3
from functools import partial

import any_release
import asyncpg
import pytest
import test_engines
from any_release import RELEASE, agent, client, complete, task_of
from databases import engine_of, postgresql, programs_of_postgresql, stores_in
from sqlalchemy import text
from test_engines import engines, hop, over, run, until

import hopwatch
from exported import cascades, fresh, only_cascade, tree, verdict
from hopwatch.instrumentation import a2a_results
from ticking import collect

pytestmark = [
    pytest.mark.timeout(400),  # the first one has a database server made
    pytest.mark.usefixtures("a2a_instrumented", "empty", "collected"),
    # Who is cancelled in the middle of a statement may leave its connection to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

WHERE = "stores of a2a-sdk"
databases = pytest.mark.parametrize(
    "kind",
    [
        pytest.param("sqlite", marks=pytest.mark.row(WHERE, "SQLite", "a2a-sdk", "sqlalchemy", "aiosqlite")),
        pytest.param(
            "postgresql",
            marks=[
                pytest.mark.row(WHERE, "PostgreSQL", "a2a-sdk", "sqlalchemy", "asyncpg"),
                pytest.mark.skipif(programs_of_postgresql() is None, reason="PostgreSQL is not installed"),
                pytest.mark.one_python,
            ],
        ),
    ],
)
STORIES = [
    (test_engines.test_a_blocking_message_is_a_send_a_request_and_an_execution, {"binding": "JSONRPC"}),
    (test_engines.test_a_streamed_message_is_the_same_three_hops, {"binding": "JSONRPC"}),
    (
        test_engines.test_what_is_answered_at_once_is_three_hops_however_long_it_takes_and_each_push_two,
        {"binding": "JSONRPC"},
    ),
    (test_engines.test_work_that_hangs_holds_its_execution_and_nothing_of_it_moves, {"now": False}),
    (test_engines.test_an_execution_that_raises_has_failed, {"unread": 0}),
    (test_engines.test_a_task_that_is_cancelled_leaves_nothing_behind, {"binding": "JSONRPC"}),
    (test_engines.test_a_subscriber_who_reads_to_the_end_is_two_hops_of_its_own, {"binding": "JSONRPC"}),
]


@pytest.fixture
def collected():
    """What a test leaves to the garbage collector is collected at its end."""
    yield
    collect()


@pytest.fixture(scope="module")
def server():
    with postgresql() as url:
        yield url


@pytest.fixture
def database(kind, request, tmp_path):
    """The URL of a database of this kind."""
    if kind == "sqlite":
        path = tmp_path / "tasks.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # who reads keeps nobody from writing
        return f"sqlite+aiosqlite:///{path}"
    return request.getfixturevalue("server")


@pytest.fixture
def stored(database, monkeypatch):
    """Have agents use the SDK's database stores."""

    def choose(*, patient=True, **options):
        monkeypatch.setenv("HOPWATCH_REVEAL_AFTER", "3600" if patient else "1")  # a database may be slow
        fresh()
        monkeypatch.setattr(any_release, "stores", partial(stores_in, database, **options))

    return choose


@contextlib.asynccontextmanager
async def locked(database, *, and_cut=False):
    """Somebody else keeps tasks from being written; and, where PostgreSQL is asked to, cuts the connection of who waits for that."""
    if database.startswith("sqlite"):
        connection = sqlite3.connect(database.partition("///")[2], timeout=0, isolation_level=None)
        try:
            while not connection.in_transaction:
                # Whoever writes at this moment needs the loop to come to its end.
                with contextlib.suppress(sqlite3.OperationalError):
                    connection.execute("BEGIN IMMEDIATE")
                await asyncio.sleep(0.01)
            yield
        finally:
            connection.close()
        return
    url = database.replace("+asyncpg", "")
    connection = await asyncpg.connect(url)
    cutting = asyncio.create_task(_cut_who_waits(url)) if and_cut else None
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE tasks IN SHARE MODE")
            yield
    finally:
        if cutting is not None:
            cutting.cancel()
            await asyncio.wait([cutting])
        await connection.close()


async def _cut_who_waits(url):
    connection = await asyncpg.connect(url)
    try:
        while True:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type = 'Lock'"
            )
            await asyncio.sleep(0.02)
    finally:
        await connection.close()


def waits_of(told):
    """A wait, and all that it is for."""
    yield told
    for each in told.get("of", ()):
        yield from waits_of(each)


def on_the_database(database):
    """What of it the pending hops wait for."""
    peer, what = (None, "SQLite, in thread") if database.startswith("sqlite") else ("PGSQL", "PostgreSQL at ")
    return [
        wait
        for each in hopwatch.pending()
        for wait in waits_of(each.waits_on or {})
        if wait["what"].startswith(what) and (peer is None or peer in wait["peer"])
    ]


@engines
@databases
@pytest.mark.parametrize(
    ("story", "given"), STORIES, ids=[story.__name__.removeprefix("test_") for story, _ in STORIES]
)
def test_what_holds_with_tasks_in_memory_holds_with_a_database(story, given, engine, stored):
    left = test_engines.left_behind(engine) is not None
    if left and "raises" in story.__name__:
        pytest.skip(
            "ci: may be skipped: there the consumer may wait for a subscriber that has left, for ever"
        )
    # What some releases leave behind of a subscriber is known by how long it takes.
    stored(patient=not (left and "subscriber" in story.__name__))
    story(engine=engine, **given)


@engines
@databases
def test_messages_that_wait_for_one_connection_each_keep_their_hops(engine, stored):
    stored(pool_size=1, max_overflow=0)
    test_engines.at_once(engine, 6)


@contextlib.asynccontextmanager
async def at_work(database, engine, *, and_cut=False):
    """A message whose task is stored as working, when the database is taken away."""
    go_on = asyncio.Event()

    async def work(updater):
        await updater.start_work()
        await go_on.wait()
        await complete(updater)

    async with agent(work, engine=engine) as there, client(there.url) as peer:
        (answer,) = await peer.send(now=True)
        while task_of(await peer.get_task(task_of(answer)[0]))[1] != "TASK_STATE_WORKING":
            await asyncio.sleep(0.01)
        async with locked(database, and_cut=and_cut):
            go_on.set()
            yield
        if not and_cut:  # a handler that is closed gives up what it is at
            await over()


@engines
@databases
def test_a_database_that_is_slow_is_what_the_execution_waits_for(engine, database, stored):
    stored()

    async def story():
        async with at_work(database, engine):
            await until(lambda: on_the_database(database))
            assert all(each["moves"] for each in on_the_database(database))
            assert [each.kind for each in hopwatch.pending() if each.kind == "execution"]
            assert verdict(only_cascade()).verdict != "settled"
        hops = only_cascade()
        assert hop(hops, "execution").task_state == "TASK_STATE_COMPLETED"
        assert verdict(hops).verdict == "settled"

    run(story)


@engines
@databases
def test_a_store_that_fails_leaves_its_task_stranded_or_its_events_unread_and_says_why(
    engine, database, stored
):
    stored(patience=0.5)
    wrong = "database is locked" if database.startswith("sqlite") else "connection was closed"
    results = engine != "active"

    def told(kind):
        return [each for hops in cascades().values() for each in hops.values() if each.kind == kind]

    def at_rest():
        failed = [each for each in told("task") if each.outcome == "failed"]
        left = [each for each in hopwatch.pending() if each.kind == "execution"]
        return (
            failed
            and told("execution")
            and all(each.waits_on and not each.waits_on["moves"] for each in left)
        )

    async def story():
        async with at_work(database, engine, and_cut=True):
            await until(at_rest)
            if results:  # the SDK does not read on, and what is in its queue stays there
                await until(lambda: "an event whose reader has ended" in str(hopwatch.pending()))
            elif RELEASE >= (1, 2):  # before, the consumer swallows what was wrong, or waits for its producer
                await until(lambda: [each for each in told("event") if wrong in (each.reason or "")])
            assert "TASK_STATE_COMPLETED" not in {each.task_state for each in told("execution")}
            assert verdict(only_cascade()).verdict != "settled"

    run(story)
    assert verdict(only_cascade()).verdict != "settled"
    a2a_results.forget()  # what is collected later is told of in another test


@databases
def test_a_connection_that_is_put_back_into_its_pool_is_no_work_and_belongs_to_nobody(database):
    async def story():
        used = engine_of(database)
        try:
            for name in ("first", "second"):
                with hopwatch.cascade(name):
                    async with used.connect() as connection:
                        assert (await connection.execute(text("select 1"))).scalar_one() == 1
                        assert hopwatch.current().name == name
                assert hopwatch.pending() == []
        finally:
            await used.dispose()
        assert [tree(hops) for hops in cascades().values()] == [[("task", [])]] * 2

    run(story)


@pytest.mark.parametrize("kind", [databases.args[1][1]])
def test_neither_is_one_of_asyncpgs_own_pool(database):
    async def story():
        with hopwatch.cascade("makes it"):
            pool = await asyncpg.create_pool(database.replace("+asyncpg", ""), min_size=1, max_size=2)
        try:
            for name in ("first", "second"):
                with hopwatch.cascade(name):
                    assert await pool.fetchval("select 1") == 1
                    assert hopwatch.current().name == name
                assert hopwatch.pending() == []
        finally:
            await pool.close()
        assert [tree(hops) for hops in cascades().values()] == [[("task", [])]] * 3

    run(story)
