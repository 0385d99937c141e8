"""Which databases can the SDK's stores be tried with here? A file of SQLite, and a PostgreSQL server of our own.

The server is a real one, in a temporary folder and on a Unix socket in it: nothing else can reach it.
"""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from a2a.server.tasks import DatabasePushNotificationConfigStore, DatabaseTaskStore
from sqlalchemy.ext.asyncio import create_async_engine

PLACES = ("usr/lib/postgresql/*/bin/initdb", "usr/pgsql-*/bin/initdb")
"""Where systems keep what is not on the path."""


def programs_of_postgresql():
    """The folder with `initdb` and `postgres`; None where there is none."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    found = [each for pattern in PLACES for each in sorted(Path("/").glob(pattern))]
    return found[-1].parent if found else None


@contextlib.contextmanager
def postgresql():
    """A server that nobody else can reach; its URL for SQLAlchemy."""
    programs = programs_of_postgresql()
    folder = Path(tempfile.mkdtemp(prefix="hopwatch-pg-"))
    whose = {}
    if os.geteuid() == 0:  # which it refuses to run as
        user = next(each for each in ("postgres", "nobody") if _is_known(each))
        shutil.chown(folder, user)
        whose = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    name = whose.get("user") or pwd.getpwuid(os.geteuid()).pw_name
    quiet = {"cwd": folder, "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, **whose}
    data = folder / "data"
    try:
        made = subprocess.run(
            [programs / "initdb", "--no-sync", "--auth=trust", "--username", name, "--pgdata", data],
            stdout=subprocess.PIPE, text=True, check=False, timeout=200, **quiet,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [
                    *(programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses="),
                    *("-c", "fsync=off", "-c", "max_connections=40", "-c", "shared_buffers=16MB"),
                ],
                stdout=log, **quiet,
            )  # fmt: skip
        try:
            said = None
            for _ in range(600):
                said = subprocess.run(
                    [programs / "pg_isready", "-q", "-t", "1", "-h", folder, "-d", "postgres"], check=False
                ).returncode
                if said == 0 or server.poll() is not None:
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(0.1)
            assert said == 0, (folder / "log").read_text()
            yield f"postgresql+asyncpg://{name}@/postgres?host={folder}"
        finally:
            server.send_signal(2)  # SIGINT: end the sessions, and then
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_known(user):
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def engine_of(url, *, patience=20.0, **options):
    """An engine; `patience` is how long SQLite waits for a lock, in seconds."""
    if url.startswith("sqlite"):
        options = {"connect_args": {"timeout": patience}, **options}
    return create_async_engine(url, **options)


@contextlib.asynccontextmanager
async def stores_in(url, **options):
    """The SDK's two stores over one engine."""
    engine = engine_of(url, **options)
    try:
        tasks, configs = DatabaseTaskStore(engine), DatabasePushNotificationConfigStore(engine)
        for store in (
            tasks,
            configs,
        ):  # else the first messages, where they come at once, make the tables twice
            await store.initialize()
        yield tasks, configs
    finally:
        await engine.dispose()
