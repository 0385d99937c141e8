"""How can somebody ask a running process what it does? By a Unix socket that only its own user may open.

One daemon thread sleeps in `accept` and answers one client at a time. Nothing is built before somebody asks. The file is
named after the process, so that what dead processes left behind is known as such and removed.

The host program may do anything to us: fork, close every descriptor, replace itself, end at any moment. So the thread is
gone while a fork happens (Python warns of forks of programs with threads, and what is not there cannot be inherited), and
a descriptor is used or closed only if it still is the socket that we made: its number may be somebody else's by now.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import socket
import struct
import threading
import time
import zlib
from typing import TYPE_CHECKING, Final

from hopwatch.process import current, failed, logger
from hopwatch.state_folder import VARIABLE, FolderError, checked, named

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONGEST_REQUEST: Final = 1024
LONGEST_ANSWER: Final = 4 * 1024 * 1024
DEADLINE: Final = 2.0
"""Seconds that one client has, from its connection to the last byte of its answer."""
SETTLING: Final = 0.1
"""Seconds that a forked child is left alone first: many of them become another program, or end, at once."""
MOST_SWEPT: Final = 1000
LONGEST_PATH: Final = 100
"""Bytes of a path that every system takes for a socket (Linux 107, others less)."""
FILE: Final = re.compile(r"(\d{1,10})-([0-9a-f]{1,16})-([0-9a-f]{8})\.sock(?:\.new)?")
"""Process id, its start, and where that process id means anything."""


def place() -> str:
    """8 hex digits: the host and the process namespace, for a folder may be shared by containers or hosts."""
    try:
        inside = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        inside = ""
    return f"{zlib.crc32(f'{socket.gethostname()} {inside}'.encode()):08x}"


def start_of(pid: int) -> str | None:
    """When a process started, in hex digits that no other process of that id has; 0 where the system does not say.

    Returns:
        None where there is no such process.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return f"{int(file.read().rpartition(b')')[2].split()[19]):x}"
    except (OSError, ValueError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "0"


def is_left_behind(name: str) -> bool:
    """Whether a file of this name belongs to a process that is no more; False in doubt."""
    match = FILE.fullmatch(name)
    if match is None or match[3] != place():
        return False
    started = start_of(int(match[1]))
    return started is None or started != match[2]


def sweep(folder: Path) -> None:
    """Remove what dead processes of this host left behind."""
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for number, each in enumerate(found):
            if number >= MOST_SWEPT:
                return
            if is_left_behind(each.name):
                with contextlib.suppress(OSError):
                    os.unlink(each.path)  # noqa: PTH108


@contextlib.contextmanager
def address_of(path: Path) -> Iterator[str]:
    """A path to bind or connect to: the same one, or a short way to it, for a socket's path is limited to 107 bytes."""
    if len(os.fsencode(path)) <= LONGEST_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def peer_of(connection: socket.socket) -> int | None:
    """The user id at the other end; None where the system does not say."""
    if hasattr(socket, "SO_PEERCRED"):
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", found)[1])
    if hasattr(socket, "LOCAL_PEERCRED"):  # macOS, the BSDs: version and user id come first
        return int(struct.unpack("2I", connection.getsockopt(0, socket.LOCAL_PEERCRED, 76)[:8])[1])
    return None


_told: set[str] = set()


def _folder() -> Path | None:
    """This process's folder, made where it does not exist; None where there can be none. The log says so, once."""
    folder, _ = named()
    if folder is None:
        return None
    try:
        return checked(folder, make=True)
    except FolderError as error:
        if folder not in _told:
            _told.add(folder)
            logger.warning("hopwatch: nothing can be left for others to look at: %s.", error)
        return None


class _Serving:
    """A socket and the thread that serves it, until it is told to end or finds its socket gone."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._stop = threading.Event()
        self._over = False
        self._listener: socket.socket | None = None
        self._inode: tuple[int, int] | None = None
        self._file: tuple[Path, int] | None = None
        self._connection: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Serve, by a new thread."""
        if self._over or (self._thread is not None and self._thread.is_alive()):
            return
        self._stop.clear()
        thread = threading.Thread(target=self._run, name="hopwatch-ps", daemon=True)
        token = current.set(None)  # whoever forks or instruments inside a hop: this thread is not its work
        try:
            thread.start()
        finally:
            current.reset(token)
        self._thread = thread

    def pause(self) -> None:
        """Have the thread end and keep the socket; if the thread is busy with a client, it ends soon after."""
        self._stop.set()
        if self._file is not None:
            try:
                with (
                    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client,
                    address_of(self._file[0]) as own,
                ):
                    client.setblocking(False)
                    client.connect(own)  # wakes accept
            except BlockingIOError:
                pass  # so many clients wait that the thread is awake
            except OSError:
                self._shut()  # the file is gone
        self._join()

    def end(self) -> None:
        """Have the thread end, and take the socket away."""
        self._over = True
        self._stop.set()
        self._shut()
        self._join()
        thread = self._thread
        if thread is None or not thread.is_alive():
            self._close()
        self._remove()

    def forget(self) -> None:
        """In a forked child: close what is the parent's."""
        self._over = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._close()

    def _shut(self) -> None:
        listener = self._listener
        if listener is not None and self._is_ours(listener):
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept, for good

    def _join(self) -> None:
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        thread.join(0.2)
        # Python counts the threads that the system has, and the system takes a moment to forget one that has ended.
        for _ in range(100):
            if thread.is_alive() or not os.path.exists(f"/proc/self/task/{thread.native_id}"):  # noqa: PTH110
                return
            time.sleep(0.00001)

    def _remove(self) -> None:
        """Remove the socket's file, unless it is somebody else's by now."""
        if self._file is None:
            return
        path, inode = self._file
        self._file = None
        with contextlib.suppress(OSError):
            if path.lstat().st_ino == inode:
                path.unlink()

    def _is_ours(self, listener: socket.socket) -> bool:
        """Whether the descriptor's number still stands for our socket: the program may have closed it, and reused it."""
        try:
            found = os.fstat(listener.fileno())
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._inode

    def _run(self) -> None:
        try:
            if self._listener is None:
                if self._delay and self._stop.wait(self._delay):
                    return
                folder = _folder()
                if folder is None or not self._open(folder):
                    return
                sweep(folder)
            self._serve()
        except Exception:  # noqa: BLE001 - a thread of ours prints nothing
            failed("ps.socket")
        finally:
            if self._over or not self._stop.is_set():
                self._close()

    def _open(self, folder: Path) -> bool:
        path = folder / f"{os.getpid()}-{start_of(os.getpid())}-{place()}.sock"
        fresh = path.with_name(path.name + ".new")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        found = os.fstat(listener.fileno())
        self._inode = (found.st_dev, found.st_ino)
        self._listener = listener
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        try:
            with address_of(fresh) as address:
                listener.bind(address)
        except OSError as error:  # no /proc, and a folder whose name is too long
            logger.warning(
                "hopwatch: `hopwatch ps` cannot ask this process: no socket in %s: %s.", folder, error
            )
            return False
        fresh.chmod(0o600)
        listener.listen(8)
        # Only now can it be found, so whoever finds it is answered.
        self._file = (path, fresh.lstat().st_ino)
        fresh.rename(path)
        return True

    def _serve(self) -> None:
        listener = self._listener
        while listener is not None and not self._stop.is_set() and self._is_ours(listener):
            try:
                connection, _ = listener.accept()
            except OSError:
                if not self._is_ours(listener) or self._over:
                    return
                if self._stop.is_set():
                    self._close()  # it was shut down, and is of no more use
                    return
                time.sleep(0.05)  # no descriptors left, say: try again, and do not spin
                continue
            if self._stop.is_set():
                connection.close()
                return
            self._connection = connection
            try:
                _answer(connection)
            except OSError:
                pass  # the client went away, or was too slow
            except Exception:  # noqa: BLE001
                failed("ps.answer")
            finally:
                self._connection = None
                _hang_up(connection)

    def _close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is None:
            return
        if self._is_ours(listener):
            listener.close()
        else:
            listener.detach()  # the number is not ours any more: whoever has it now keeps it


def _hang_up(connection: socket.socket) -> None:
    # A child that was forked meanwhile has a copy, with which the client would wait for the end for ever.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _answer(connection: socket.socket) -> None:
    until = time.monotonic() + DEADLINE
    if peer_of(connection) not in (None, os.geteuid(), 0):
        return
    request = b""
    while b"\n" not in request:
        _not_later_than(connection, until)
        piece = connection.recv(LONGEST_REQUEST + 1 - len(request))
        if not piece:
            return
        request += piece
        if len(request) > LONGEST_REQUEST:
            _send(connection, until, _error(f"a request has at most {LONGEST_REQUEST} bytes"))
            return
    _send(connection, until, answer(request.partition(b"\n")[0]))


def _not_later_than(connection: socket.socket, until: float) -> None:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)


def _send(connection: socket.socket, until: float, data: bytes) -> None:
    # sendall counts its timeout over all that it sends.
    _not_later_than(connection, until)
    connection.sendall(data)


def _error(sentence: str) -> bytes:
    return json.dumps({"error": sentence}).encode() + b"\n"


def answer(request: bytes) -> bytes:
    """What is said to one request.

    Args:
        request: a line: `brief` for a few numbers, `all` for everything that is open.
    """
    from hopwatch import snapshot  # noqa: PLC0415 - only when somebody asks

    if request.strip() == b"brief":
        return json.dumps(snapshot.brief()).encode() + b"\n"
    if request.strip() != b"all":
        return _error("a request is the line brief or all")
    most = snapshot.MOST
    while True:
        data = json.dumps(snapshot.take(most)).encode() + b"\n"
        if len(data) <= LONGEST_ANSWER or most <= 1:
            return data if len(data) <= LONGEST_ANSWER else _error("what there is to say is too long")
        most //= 4


_serving: _Serving | None = None


def open_socket() -> None:
    """Let this process be asked, from now until `close_socket` or its end. Never raises, and never waits."""
    _begin(0.0)


def close_socket() -> None:
    """Take the socket away. Never raises."""
    global _serving
    serving, _serving = _serving, None
    if serving is not None:
        try:
            serving.end()
        except Exception:  # noqa: BLE001
            failed("ps.end")


def _begin(delay: float) -> None:
    global _serving  # noqa: PLW0603
    if _serving is not None or not hasattr(socket, "AF_UNIX"):
        return
    try:
        if os.environ.get(VARIABLE, "").strip().lower() == "off":
            return
        _serving = _Serving(delay)
        _serving.start()
    except RuntimeError:  # the interpreter is going down, or the system has no thread left
        _serving = None
    except Exception:  # noqa: BLE001
        _serving = None
        failed("ps.begin")


def _before_fork() -> None:
    # Where the program has threads of its own, ours makes no difference.
    serving = _serving
    if serving is not None and threading.active_count() <= 2:
        try:
            serving.pause()
        except Exception:  # noqa: BLE001
            failed("ps.fork")


def _in_parent() -> None:
    serving = _serving
    if serving is not None:
        try:
            serving.start()
        except RuntimeError:
            pass
        except Exception:  # noqa: BLE001
            failed("ps.fork")


def _in_child() -> None:
    global _serving
    serving, _serving = _serving, None
    if serving is None:
        return
    try:
        serving.forget()
    except Exception:  # noqa: BLE001
        failed("ps.fork")
    _begin(SETTLING)


atexit.register(close_socket)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
