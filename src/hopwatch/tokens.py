"""Which token lets one speak to a collector? Read from a file, and made into what a request carries.

Only the standard library is needed: `hopwatch run` reads it where an agent runs.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

VARIABLE: Final = "HOPWATCH_TOKEN_FILE"
"""Names the file for whoever asks a collector."""
SHORTEST: Final = 16
LONGEST: Final = 1_024
_HEADERS: Final = "OTEL_EXPORTER_OTLP_HEADERS"
_HEADERS_OF_A_SIGNAL: Final = tuple(
    f"OTEL_EXPORTER_OTLP_{signal}_HEADERS" for signal in ("TRACES", "METRICS", "LOGS")
)


class TokenError(ValueError):
    """The file gives no token that may be used; the message names it, and says what to do. It never has the token."""


def read_private(path: str, what: str, longest: int) -> bytes:
    """Read a file that holds a secret.

    Args:
        path: of a regular file, or of a link to one (as container platforms mount secrets).
        what: what the file is, for the message: `the token file`.
        longest: bytes that it may have.

    Raises:
        TokenError: it cannot be read, is no regular file, is too long, belongs to another user, may be read by all,
            or may be changed by its group. The owner's group may read it.
    """
    try:
        # A pipe that nobody writes to must not hold us up.
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise TokenError(f"{what} {path!r} cannot be read: {why}") from None
    try:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode):
            raise TokenError(f"{what} {path!r} is not a regular file")
        if os.geteuid() != 0 and found.st_uid not in (os.geteuid(), 0):
            raise TokenError(
                f"{what} {path!r} belongs to another user, who can read and change it: make a copy of your own"
            )
        if found.st_mode & 0o027:
            mode = stat.S_IMODE(found.st_mode)
            raise TokenError(
                f"{what} {path!r} has mode {mode:04o}, so that others can read or change it: chmod 600 it"
            )
        content = b""
        while len(content) <= longest and (more := os.read(opened, longest + 1 - len(content))):
            content += more
    except OSError as error:
        raise TokenError(f"{what} {path!r} cannot be read: {error.strerror}") from None
    finally:
        os.close(opened)
    if len(content) > longest:
        raise TokenError(f"{what} {path!r} is longer than {longest} bytes")
    return content


def read_token(path: str) -> str:
    """The token in a file: its one line, without the newline.

    Raises:
        TokenError: as of `read_private`; or it is no single word of 16 to 1,024 letters, digits and `-._~+/=`.
    """
    content = read_private(path, "the token file", LONGEST + 2)
    word = content.removesuffix(b"\n").removesuffix(b"\r")
    remedy = "make one with: openssl rand -hex 32"
    if len(word) < SHORTEST:
        raise TokenError(
            f"the token in {path!r} has {len(word)} characters, and {SHORTEST} are the least: {remedy}"
        )
    if len(word) > LONGEST or not re.fullmatch(rb"[A-Za-z0-9._~+/=-]+", word):
        raise TokenError(
            f"the token in {path!r} is not one line of at most {LONGEST} letters, digits and -._~+/=: {remedy}"
        )
    return word.decode("ascii")


def bearer(token: str) -> str:
    """The value of the header `authorization`."""
    return f"Bearer {token}"


def digest(token: str | bytes) -> bytes:
    """What is compared instead of the token: always equally long, so that the time tells nothing of its length."""
    return hashlib.sha256(token.encode() if isinstance(token, str) else token).digest()


def same(given: bytes, wanted: bytes) -> bool:
    """Whether a token that somebody gave is the one that `wanted` is the `digest` of, in constant time."""
    return hmac.compare_digest(digest(given), wanted)


# What an exporter sends ------------------------------------------------------------------------------------------


def put_into(environment: MutableMapping[str, str], token: str) -> None:
    """Have OTLP exporters send the token. A variable that already has an `authorization` stays as it is.

    Args:
        environment: is changed: `OTEL_EXPORTER_OTLP_HEADERS`, and those of single signals where they are set, for
            exporters then read these instead.
        token: the token.
    """
    ours = f"authorization={quote(bearer(token), safe='')}"
    for name in (_HEADERS, *_HEADERS_OF_A_SIGNAL):
        given = environment.get(name, "").strip()
        if (given or name == _HEADERS) and "authorization" not in headers_of(given):
            environment[name] = f"{given.rstrip(',')},{ours}" if given else ours


def headers_of(text: str) -> dict[str, str]:
    """What a variable such as `OTEL_EXPORTER_OTLP_HEADERS` says: names in lower case, and values."""
    found: dict[str, str] = {}
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if equals and name.strip():
            found[unquote(name).strip().lower()] = unquote(value).strip()
    return found


def sent_by_exporter(environment: Mapping[str, str]) -> str | None:
    """The bearer token that the exporter of traces would send; None where it sends none."""
    text = environment.get(_HEADERS_OF_A_SIGNAL[0], "").strip() or environment.get(_HEADERS, "")
    scheme, _, token = headers_of(text).get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
