"""How does OTLP over HTTP say in protobuf that something went wrong? A google.rpc.Status."""

from __future__ import annotations


def status_bytes(code: int, message: str) -> bytes:
    """A google.rpc.Status, encoded by hand: its generated class is in a package that nothing else here needs."""
    text = message.encode(errors="replace")[:8_000]
    length = bytearray()
    size = len(text)
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    length.append(size)
    return bytes((0x08, code, 0x12)) + bytes(length) + text
