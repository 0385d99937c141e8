"""What was open when a process died? One small mapped file a process, kept current while hops open and close.

A process that is killed, crashes or calls `os._exit` runs no code of ours at its end. What it had written into a mapped file
is there all the same: the pages are the kernel's. So each open hop has a slot in the process's *black box*, written when it
opens and freed when it closes, and whoever finds the box without its owner reports what is in it (`hopwatch.reaping`).

A slot is either free or whole, whatever instruction the process dies at: its last byte, which says that it is in use, is
written last. A POSIX lock is held for as long as the process lives. It is not shared with forked children, unlike `flock`'s, and it
is lost as soon as *any* descriptor of the file is closed in the process. So a mapping, which has a descriptor of its own, is
never closed while the box is in use, and the process never opens its own box again.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import stat
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zlib import adler32, crc32

from hopwatch import attributes as names
from hopwatch.process import encodable, failed, logger
from hopwatch.state_folder import FolderError, checked

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable

    from hopwatch.ledger import Entry

POSSIBLE: Final = fcntl is not None
SUFFIX: Final = ".box"
UNFINISHED: Final = ".new"
"""Suffix of a box that is being made: it gets its own name once it is locked and whole."""
MAGIC: Final = b"HOPWATCH"
FORMAT: Final = 1
HEADER: Final = 512
SLOT: Final = 256
"""Bytes of a slot. It divides a page, so that no slot stands on two of them."""
FIRST_SLOTS: Final = 128
GROWTH: Final = 4
MAX_SLOTS: Final = FIRST_SLOTS * GROWTH**4
"""32,768 open hops, 8 MiB. What does not fit is counted."""
MAX_SIZE: Final = HEADER + MAX_SLOTS * SLOT

# The header. What never changes, with its checksum: magic, format, bytes of a slot, pid, started, instance, boot id, length of
# the agent's name, name.
_FIXED: Final = struct.Struct("<8sHHIQ16s36sB175s")
_CHECKSUM_AT: Final = _FIXED.size
# What changes: slots, hops that did not fit, and why the process leaves on purpose (its length is written last).
_SLOTS_AT: Final = 288
_UNPLACED_AT: Final = 292
_LEAVING_AT: Final = 296
_LEAVING: Final = 63
_LEAVING_LENGTH_AT: Final = _LEAVING_AT + _LEAVING
_U32: Final = struct.Struct("<I")

# A slot: text, its checksum, its length, and 1 while the hop is open. struct packs in the order of the fields.
_TEXT: Final = 248
_SLOT: Final = struct.Struct(f"<{_TEXT}sIHxB")
_STATE: Final = SLOT - 1
_pack: Final = _SLOT.pack_into
_SEPARATOR: Final = "\x1f"
_LONGEST_TASK: Final = 64
_HEX: Final = re.compile(r"[0-9a-f]+")
_NO_CASCADE: Final = "0" * 32
_NO_HOP: Final = "0" * 16

_owned: set[tuple[int, int]] = set()
"""Device and inode of the boxes of this process: whoever looks for dead ones must not even open them."""


class BoxError(ValueError):
    """A file is not a black box that can be trusted; the message says why."""


# Writing -------------------------------------------------------------------------------------------------------


class BlackBox:
    """The black box of this process. Its file is made when the first visible hop opens.

    All methods may be called from any thread, and from a signal handler or a finalizer. None raises.

    Args:
        folder: where it is kept.
        instance: 16 hex digits that this process drew.
        agent: gives the name of the agent; is asked when the file is made.
    """

    def __init__(self, folder: str, instance: str, agent: Callable[[], str]) -> None:
        self.folder = folder
        self.path: Path | None = None
        """Where it is; None until the first hop, once it is removed, and where it cannot be made."""
        self.agent = ""
        """What the process called itself when the box was made."""
        self._instance = instance
        self._name_of = agent
        self._pid = os.getpid()
        self._free: list[int] = []
        """Where free slots begin, the lowest at the end: few pages are touched."""
        self._placed: dict[Entry, int] = {}
        self._unplaced: set[int] = set()
        """Ids of the open entries that did not fit."""
        self._map: Any = None
        self._maps: list[Any] = []
        """Every mapping there was: closing one would close its descriptor, and so drop the lock."""
        self._file = -1
        self._key: tuple[int, int] | None = None
        self._full = False
        self._growing = False
        self._sealed: frozenset[Entry] = frozenset()
        """What was open when the end of the process began, and stays written."""
        self._missing = 0
        """How many did not fit then."""
        self._lock = threading.RLock()

    def write(self, entry: Entry) -> None:
        """Say that a visible hop is open. One whose span is not recorded is left out: nobody will hear of it."""
        try:
            if not entry.span.recording:
                return
            try:
                slot = self._free.pop()
            except IndexError:
                more = self._more(entry)
                if more is None:
                    return
                slot = more
            parent = entry.parent
            # As `_text_of` writes it, which is slower.
            if parent is None:
                said = f"{entry.cascade}{entry.id}{entry.parent_id}\x1f{entry.started}\x1fr\x1f{entry.kind}\x1f\x1f{entry.name}"
            else:
                said = f"{entry.cascade}{entry.id}{parent.id}\x1f{entry.started}\x1f\x1f{entry.kind}\x1f\x1f{entry.name}"
            text = said.encode() if said.isascii() else encodable(said).encode()
            if len(text) > _TEXT:
                text = _cut(text)
            _pack(self._map, slot, text, adler32(text), len(text), 1)
            self._placed[entry] = slot
        except Exception:  # noqa: BLE001 - nothing of ours reaches the application
            failed("blackbox.write")

    def erase(self, entry: Entry) -> None:
        """Say that a hop has closed."""
        if self._sealed and entry in self._sealed:
            return
        try:
            slot = self._placed.pop(entry, None)
            if slot is None:
                if self._unplaced:
                    self._count(entry, unplaced=False)
                return
            self._map[slot + _STATE] = 0
            self._free.append(slot)
        except Exception:  # noqa: BLE001
            failed("blackbox.erase")

    def rewrite(self, entry: Entry) -> None:
        """Say what an open hop has become, for its kind and name, and its A2A task, may be known only later."""
        try:
            with self._lock:
                before = self._placed.get(entry)
                if before is None or not self._free:
                    return
                # The new slot first, so that the hop is never in none.
                slot = self._free.pop()
                text = _text_of(entry)
                _pack(self._map, slot, text, adler32(text), len(text), 1)
                if self._placed.pop(entry, None) is None:  # closed meanwhile, by another thread
                    self._map[slot + _STATE] = 0
                    self._free.append(slot)
                    return
                self._placed[entry] = slot
                self._map[before + _STATE] = 0
                self._free.append(before)
                if entry.closed:  # by another thread, which found it in neither place
                    self.erase(entry)
        except Exception:  # noqa: BLE001
            failed("blackbox.rewrite")

    def leaving(self, reason: str | None) -> None:
        """Say how the process ends on purpose, as "execv", for its hops may have to be found in the box; None takes it back."""
        try:
            if self._map is None:
                return
            self._map[_LEAVING_LENGTH_AT] = 0
            text = encodable(reason or "").encode()[:_LEAVING].decode(errors="ignore").encode()
            self._map[_LEAVING_AT : _LEAVING_AT + len(text)] = text
            self._map[_LEAVING_LENGTH_AT] = len(text)
        except Exception:  # noqa: BLE001
            failed("blackbox.leaving")

    def seal(self, reason: str) -> None:
        """Leave what is open now as it is, for the process ends and tells of it: the box does so if that does not get through.

        What opens later, in a process that goes on after all, comes and goes as ever.
        """
        self.leaving(reason)
        try:
            with self._lock:
                self._sealed = frozenset(self._placed)
                self._missing = len(self._unplaced)
        except Exception:  # noqa: BLE001
            failed("blackbox.seal")

    def remove(self) -> None:
        """Remove the file: the process ends, and everything that was pending has been reported.

        What opens later is not in any box.
        """
        try:
            with self._lock:
                path, self.path = self.path, None
                self._full = True
                if path is None or os.getpid() != self._pid:
                    return
                with contextlib.suppress(FileNotFoundError):
                    if _key_of(path.lstat()) == self._key:
                        path.unlink()
        except Exception:  # noqa: BLE001
            failed("blackbox.remove")

    @property
    def empty(self) -> bool:
        """Whether no hop is open in it, nor beside it."""
        return not self._placed and not self._unplaced

    def let_go(self) -> None:
        """Let go of the file in a forked child: it stays the parent's, and so does the lock."""
        try:
            self.path = None
            self._full = True
            self._free = []
            self._placed = {}
            self._map = None
            for each in self._maps:
                each.close()
            self._maps = []
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
            _owned.clear()
        except Exception:  # noqa: BLE001
            failed("blackbox.let_go")

    # Room ----------------------------------------------------------------------------------------------------

    def _more(self, entry: Entry) -> int | None:
        """A free slot after all, from a file that is made or grows now; None, and counted, where there is none."""
        with self._lock:
            if not self._free and not self._full and not self._growing:
                self._growing = True  # a signal handler may come back here in the middle of it
                try:
                    if self._map is None:
                        self._make()
                    else:
                        self._grow()
                except (OSError, ValueError) as error:
                    self._full = True
                    logger.warning(
                        "hopwatch: %s; hops that are open when this process is killed may not be told of.",
                        error,
                    )
                finally:
                    self._growing = False
            try:
                return self._free.pop()
            except IndexError:
                self._count(entry, unplaced=True)
                return None

    def _make(self) -> None:
        folder = checked(self.folder, make=True)
        if folder is None:
            raise FolderError(f"the folder {self.folder} could not be made")
        self.agent = self._name_of()
        name = f"{file_prefix(self.agent)}{self._pid}-{self._instance}"
        unfinished = folder / f"{name}{UNFINISHED}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(unfinished, flags, 0o600)
        try:
            lock(file)
            size = HEADER + FIRST_SLOTS * SLOT
            _take_room(file, 0, size)
            head = bytearray(HEADER)
            head[:_CHECKSUM_AT] = _header(self._pid, self._instance, self.agent)
            _U32.pack_into(head, _CHECKSUM_AT, crc32(head[:_CHECKSUM_AT]))
            _U32.pack_into(head, _SLOTS_AT, FIRST_SLOTS)
            mapped = mmap.mmap(file, size)
            mapped[:HEADER] = bytes(head)
            key = _key_of(os.fstat(file))
            _owned.add(key)
            unfinished.rename(folder / f"{name}{SUFFIX}")
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            os.close(file)
            raise
        self._file, self._key = file, key
        self._maps.append(mapped)
        self._map = mapped
        self.path = folder / f"{name}{SUFFIX}"
        self._free.extend(_slots(0, FIRST_SLOTS))

    def _grow(self) -> None:
        slots = (len(self._map) - HEADER) // SLOT
        more = min(slots * GROWTH, MAX_SLOTS)
        if more <= slots:
            raise BoxError(f"the black box is full: {slots} hops are open")
        size = HEADER + more * SLOT
        _take_room(self._file, len(self._map), size)
        mapped = mmap.mmap(self._file, size)
        self._maps.append(mapped)
        _U32.pack_into(mapped, _SLOTS_AT, more)
        self._map = mapped  # before the slots: whoever takes one finds a mapping that reaches it
        self._free.extend(_slots(slots, more))

    def _count(self, entry: Entry, *, unplaced: bool) -> None:
        with self._lock:
            if unplaced:
                self._unplaced.add(id(entry))
            else:
                self._unplaced.discard(id(entry))
            if self._map is not None:
                _U32.pack_into(self._map, _UNPLACED_AT, max(self._missing, len(self._unplaced)))


def lock(file: int) -> None:
    """Take the lock of a box.

    Raises:
        OSError: its process lives, or somebody else is at it.
    """
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def file_prefix(agent: str) -> str:
    """How the name of a file begins that is a box of this agent: of its name what is harmless in one."""
    return (re.sub(r"[^A-Za-z0-9._-]", "_", agent)[:48].lstrip(".") or "agent") + "-"


def _text_of(entry: Entry) -> bytes:
    """What a slot says of a hop: whose it is, when it began, whether a message brought it, what it is."""
    task = (entry.attributes or {}).get(names.A2A_TASK_ID, "")
    if not isinstance(task, str) or len(task) > _LONGEST_TASK or _SEPARATOR in task:
        task = ""
    ids = f"{entry.cascade}{entry.id}{entry.parent_id}"
    brought = "r" if entry.remote else ""
    said = _SEPARATOR.join((ids, str(entry.started), brought, entry.kind, task, entry.name))
    return _cut(encodable(said).encode())


def _slots(first: int, end: int) -> range:
    """Where the slots begin, the lowest at the end."""
    return range(HEADER + (end - 1) * SLOT, HEADER + first * SLOT - 1, -SLOT)


def _take_room(file: int, start: int, end: int) -> None:
    # Room first: a page of a file with holes that the disk has no room for would end the process by SIGBUS.
    take = getattr(os, "posix_fallocate", None)
    if take is not None:
        with contextlib.suppress(
            OSError
        ):  # not on every file system; what there is no room for is told below
            take(file, start, end - start)
            return
    while start < end:
        start += os.pwrite(file, bytes(min(end - start, 1 << 16)), start)


def _header(pid: int, instance: str, agent: str) -> bytes:
    text = encodable(agent).encode()[:175].decode(errors="ignore").encode()
    return _FIXED.pack(
        MAGIC, FORMAT, SLOT, pid, time.time_ns(), instance.encode(), boot_id().encode(), len(text), text
    )


def boot_id() -> str:
    """What the kernel calls its run since it was started; empty where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:36]
    except (OSError, ValueError):
        return ""


def _cut(text: bytes) -> bytes:
    """As much as fits of a slot's text: the name is its last part. It stays valid UTF-8."""
    return text[:_TEXT].decode(errors="ignore").encode()


def _key_of(found: os.stat_result) -> tuple[int, int]:
    return (found.st_dev, found.st_ino)


# Reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenHop:
    """A hop that was open when its process died. What each is, is told in `hopwatch.records.Hop`."""

    cascade: str
    id: str
    parent: str | None
    remote: bool
    kind: str
    name: str
    started: int
    task_id: str | None


@dataclass(frozen=True)
class Box:
    """What a black box says.

    Attributes:
        path: where it was read.
        agent: `service.name` of the process.
        pid: its process id.
        instance: 16 hex digits that it drew for itself.
        started: when it made the box, in Unix nanoseconds.
        boot: the kernel's boot id then; empty where there is none.
        leaving: how the process said that it would end; None where it said nothing.
        hops: what was open, oldest first.
        torn: slots that cannot be read.
        unplaced: how many more hops were open that did not fit.
    """

    path: Path
    agent: str
    pid: int
    instance: str
    started: int
    boot: str
    leaving: str | None
    hops: tuple[OpenHop, ...]
    torn: int
    unplaced: int

    @property
    def reason(self) -> str:
        """Why its hops were abandoned, in a few words."""
        reason = self.leaving or names.PROCESS_KILLED
        if self.unplaced:
            more = "hop was" if self.unplaced == 1 else "hops were"
            reason += f"; {self.unplaced} more {more} open that did not fit into its black box"
        if self.torn:
            reason += f"; {self.torn} slots of its black box cannot be read"
        return reason


def owned(path: Path) -> bool:
    """Whether a file is a box of this very process, which must not be opened a second time."""
    try:
        return _key_of(path.lstat()) in _owned
    except OSError:
        return False


def opened(path: Path, *, write: bool = False) -> int:
    """Open a file that may be a box, following no link and waiting for nobody.

    Returns:
        Its descriptor.

    Raises:
        BoxError: it is not a regular file of this user alone, or is this process's own box.
        OSError: it is gone, or cannot be opened just now.
    """
    try:
        # Before it is opened: opening a device or a pipe does something, and closing our own box drops its lock.
        _check(path.lstat(), path)
        file = os.open(
            path, (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV):
            raise  # it is gone, or there is no descriptor left: nothing is wrong with the file
        raise BoxError(f"{path.name} cannot be opened: {error.strerror or error}") from None
    try:
        _check(os.fstat(file), path)
    except BaseException:
        os.close(file)
        raise
    return file


def _check(found: os.stat_result, path: Path) -> None:
    if _key_of(found) in _owned:
        raise BoxError(f"{path.name} is this process's own box")
    if not stat.S_ISREG(found.st_mode):
        raise BoxError(f"{path.name} is not a regular file")
    if found.st_uid != os.geteuid():
        raise BoxError(f"{path.name} belongs to another user")
    if found.st_nlink > 1:
        raise BoxError(f"{path.name} has another name, too")
    if found.st_mode & 0o022:
        raise BoxError(f"{path.name} can be written by other users")


def read(path: str | Path) -> Box:
    """Read a black box, dead or alive.

    Raises:
        BoxError: it cannot be trusted.
        OSError: it is gone, or cannot be read just now.
    """
    path = Path(path)
    file = opened(path)
    try:
        return read_open(file, path)
    finally:
        os.close(file)


def read_open(file: int, path: Path) -> Box:
    """Read a black box that `opened` has opened.

    Raises:
        BoxError: it cannot be trusted.
        OSError: it cannot be read just now.
    """
    size = os.fstat(file).st_size
    if size > MAX_SIZE:
        raise BoxError(f"{path.name} has {size} bytes; a box has at most {MAX_SIZE}")
    return parse(os.pread(file, size, 0), path)


def parse(data: bytes, path: Path) -> Box:
    """What the bytes of a box say.

    Raises:
        BoxError: they are not a whole box of a format that is known.
    """
    if not data.startswith(MAGIC):
        raise BoxError(f"{path.name} is not a black box")
    if len(data) < HEADER:
        raise BoxError(f"{path.name} breaks off: it has {len(data)} bytes")
    _, version, slot, pid, started, instance, boot, length, agent = _FIXED.unpack_from(data)
    if version != FORMAT or slot != SLOT:
        raise BoxError(f"{path.name} has format {version}; this hopwatch reads format {FORMAT}")
    if _U32.unpack_from(data, _CHECKSUM_AT)[0] != crc32(data[:_CHECKSUM_AT]):
        raise BoxError(f"{path.name} has a header that is damaged")
    slots = _U32.unpack_from(data, _SLOTS_AT)[0]
    if not FIRST_SLOTS <= slots <= MAX_SLOTS:
        raise BoxError(f"{path.name} says that it has {slots} slots")
    if len(data) < HEADER + slots * SLOT:
        raise BoxError(f"{path.name} breaks off: it has {len(data)} bytes and says that it has {slots} slots")
    try:
        name, drawn, booted = agent[:length].decode(), instance.decode("ascii"), boot.rstrip(b"\0").decode()
    except ValueError:
        raise BoxError(f"{path.name} has a header with text that is none") from None
    if len(drawn) != 16 or not _HEX.fullmatch(drawn):
        raise BoxError(f"{path.name} names no process")
    hops: dict[tuple[str, str], OpenHop] = {}
    torn = 0
    for at in range(HEADER, HEADER + slots * SLOT, SLOT):
        if data[at + _STATE] == 0:
            continue
        hop = _read_slot(data, at)
        if hop is None:
            torn += 1
        else:
            hops[hop.cascade, hop.id] = hop  # while a slot is written anew, its hop is in two
    leaving = data[_LEAVING_AT : _LEAVING_AT + min(data[_LEAVING_LENGTH_AT], _LEAVING)].decode(
        errors="ignore"
    )
    return Box(
        path, name or "unknown_service", pid, drawn, started, booted, leaving or None,
        tuple(sorted(hops.values(), key=lambda hop: (hop.started, hop.id))), torn,
        _U32.unpack_from(data, _UNPLACED_AT)[0],
    )  # fmt: skip


def _read_slot(data: bytes, at: int) -> OpenHop | None:
    """The hop of a slot in use; None where it is not one that this process can have written."""
    text, checksum, length, state = _SLOT.unpack_from(data, at)
    if state != 1 or length > _TEXT:
        return None
    text = text[:length]
    if adler32(text) != checksum:
        return None
    try:
        ids, began, brought, kind, task, name = text.decode().split(_SEPARATOR, 5)
    except ValueError:
        return None
    cascade, hop, parent = ids[:32], ids[32:48], ids[48:]
    if len(ids) not in (48, 64) or not _HEX.fullmatch(ids) or kind not in names.KINDS or hop == parent:
        return None
    if not began.isdecimal() or not began.isascii() or len(began) > 19:
        return None
    started = int(began)
    if cascade == _NO_CASCADE or hop == _NO_HOP or not 0 < started < 2**63:
        return None
    parent = "" if parent == _NO_HOP else parent
    return OpenHop(cascade, hop, parent or None, bool(parent and brought), kind, name, started, task or None)
