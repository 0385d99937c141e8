"""Who subscribes to a task's stream and then stops reading, without hanging up? A client that hopwatch knows nothing of."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL: Final = 4096
"""Bytes that the subscriber's side takes without being read, or about that."""


@contextlib.contextmanager
def stalled(address: str, task: str) -> Iterator[None]:
    """Subscribe to a task of an agent, take the beginning of the answer, and read no more while the block lasts.

    Args:
        address: `host:port` of the agent.
        task: the task's id.

    Raises:
        OSError: the agent does not answer.
    """
    host, _, port = address.rpartition(":")
    body = json.dumps(
        {"jsonrpc": "2.0", "id": "1", "method": "SubscribeToTask", "params": {"id": task}}
    ).encode()
    head = (
        f"POST / HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nA2A-Version: 1.0\r\n"
        f"Accept: text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        connection.settimeout(60)
        connection.connect((host, int(port)))
        connection.sendall(head + body)
        answer = b""
        while b"data:" not in answer:
            piece = connection.recv(512)
            if not piece or len(answer) > 8 * SMALL:
                raise OSError(f"{address} did not answer with a stream: {answer[:200]!r}")
            answer += piece
        yield
