"""What does a task want of a socket or a process, and who is at the other end?"""

from __future__ import annotations

import asyncio
import gc
import socket
from typing import TYPE_CHECKING, Any, Final

from hopwatch.waits.objects import field_of, is_a, module_of, raw_referents, referents, type_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hopwatch.waits.chain import Frame

# By the name of a function of asyncio, what a task that stands in it wants: with a peer, and without.
_WANTS: Final[dict[str, tuple[str, str]]] = {
    "drain": ("{} to take data", "a socket to take data"),
    "_drain_helper": ("{} to take data", "a socket to take data"),
    "sock_sendall": ("{} to take data", "a socket to take data"),
    "sock_connect": ("a connection to {}", "a connection"),
    "create_connection": ("a connection to {}", "a connection"),
    "sock_accept": ("somebody to connect to {}", "somebody to connect"),
    "wait_closed": ("the connection to {} to be closed", "a connection to be closed"),
    "getaddrinfo": ("the address of {}", "the address of a host"),
    "serve_forever": ("the end of a server", "the end of a server"),
}


def wanted(frames: list[Frame], at: Frame | None) -> tuple[str, str | None]:
    """Return what is wanted of a socket, as a phrase, and `host:port` at the other end, if that can be told.

    Args:
        frames: The frames of asyncio, and the innermost one outside of it.
        at: The one that makes it a socket.
    """
    if at is not None and at.file.endswith("subprocess.py"):
        return _process(frames), None
    peer = peer_of(frames)
    named = next((frame.name for frame in reversed(frames) if frame.name in _WANTS), None)
    if named is None:
        return (f"data from {peer}" if peer else "a socket"), peer
    if named in ("sock_connect", "create_connection"):
        peer = _address(frames) or peer
    if named == "sock_accept":
        here = next((own for each in _sockets(frames) if (own := _host_and_port(each, "getsockname"))), None)
        return (_WANTS[named][0].format(here) if here else _WANTS[named][1]), None
    with_peer, without = _WANTS[named]
    return (with_peer.format(peer) if peer else without), peer


def _process(frames: list[Frame]) -> str:
    for frame in frames:
        for thing in referents(frame.awaitable):
            pid = field_of(thing, "pid") if is_a(thing, asyncio.subprocess.Process) else None
            if type(pid) is int:
                return f"process {pid}"
    return "a process"


def _address(frames: list[Frame]) -> str | None:
    """The address that a connection is made to, from the locals of who makes it."""
    for frame in frames:
        if frame.name != "sock_connect":
            continue
        for thing in raw_referents(frame.awaitable):
            if (
                type(thing) is tuple
                and len(thing) in (2, 4)
                and type(thing[0]) is str
                and type(thing[1]) is int
            ):
                return _joined(thing)
    return None


def _joined(address: tuple[Any, ...]) -> str:
    host = f"[{address[0]}]" if ":" in str(address[0]) else address[0]
    return f"{host}:{address[1]}"


def _sockets(frames: Iterable[Frame]) -> list[Any]:
    """The plain sockets among the locals of frames; those of Cython have theirs in a scope of its own."""
    out: list[Any] = []
    for frame in frames:
        things = raw_referents(frame.awaitable)
        for _ in range(2):
            inner = [t for t in things if module_of(type(t)).startswith(("uvloop", "_cython"))]
            things = things + [each for thing in inner for each in gc.get_referents(thing)]
        out.extend(thing for thing in things if type(thing) is socket.socket)
    return out


def _host_and_port(thing: Any, which: str) -> str | None:
    try:
        # What C has, past any override. It asks the kernel, and does not block.
        address = getattr(socket.SocketType, which)(thing)
    except OSError:  # not connected, or closed
        return None
    if type(address) is tuple and len(address) >= 2:
        return _joined(address)
    return address if type(address) is str and address else None


def peer_of(frames: Iterable[Frame]) -> str | None:
    """Return `host:port` of the first socket that a stream, transport or socket among the locals of `frames` has."""
    for frame in frames:
        for thing in referents(frame.awaitable):
            transport = thing
            if (
                is_a(thing, (asyncio.StreamReader, asyncio.StreamWriter))
                or type_name(type(thing)) == "SocketStream"
            ):
                transport = field_of(thing, "_transport")
            module = module_of(type(transport))
            if not is_a(transport, asyncio.BaseTransport) and module != "uvloop.loop":
                continue
            if not module.startswith(("asyncio.", "uvloop.")):
                continue
            try:
                name = transport.get_extra_info("peername")
            except Exception:  # noqa: BLE001, S112  (uvloop raises where the transport has been closed)
                continue
            if type(name) is tuple and len(name) >= 2:
                return _joined(name)
            if type(name) is str and name:
                return name
    return next((peer for each in _sockets(frames) if (peer := _host_and_port(each, "getpeername"))), None)
