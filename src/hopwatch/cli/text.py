"""What of a text that somebody else wrote may go to a terminal?

Names, reasons and places come out of telemetry, and anybody may send telemetry. They are shown as text: nothing in
them moves the cursor, turns the direction of writing, hides itself or starts a new line.
"""

from __future__ import annotations

import unicodedata
from datetime import datetime, timezone
from typing import Final

LONGEST: Final = 200
"""Characters of one text that are shown; what is longer is cut, and the cut is seen."""

# Control, format (direction, zero width, tags), surrogate, private use, unassigned; line and paragraph separators.
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def plain(value: object, longest: int = LONGEST) -> str:
    """Show any value as one line of harmless text.

    Args:
        value: whatever came; None is shown as nothing.
        longest: characters of the result.

    Returns:
        The text with every character that cannot be seen written as its escape, cut at `longest`.
    """
    if value is None:
        return ""
    text = value if isinstance(value, str) else str(value)
    if len(text) <= longest and text.isascii() and text.isprintable():
        return text
    out: list[str] = []
    length = 0
    for character in text:
        shown = _escaped(character)
        if length + len(shown) > longest:
            while out and length > longest - 1:
                length -= len(out.pop())
            return "".join(out) + "…"
        out.append(shown)
        length += len(shown)
    return "".join(out)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _UNSEEN:
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def moment(value: object) -> datetime | None:
    """Read an RFC 3339 time; None for what is not one."""
    if not isinstance(value, str) or len(value) > 40:
        return None
    try:
        # Python 3.10's fromisoformat does not know Z.
        read = datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith(("Z", "z")) else value)
    except ValueError:
        return None
    return read if read.tzinfo is not None else None


def clock(value: object) -> str:
    """Unix seconds as a time of day; nothing for what is not one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    try:
        return datetime.fromtimestamp(value, tz=timezone.utc).strftime("%H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return ""


def span(seconds: float) -> str:
    """A length of time as a person would say it: `0.4 ms`, `120 ms`, `12.3 s`, `3 min 20 s`, `2 h 5 min`, `4 d 1 h`."""
    if seconds < 0.01:
        return f"{max(0.0, seconds) * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, length, smaller, part in (
        ("d", 86_400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def count(number: int, one: str, more: str | None = None) -> str:
    """A number with its word: `1 hop`, `1,200 hops`."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"
