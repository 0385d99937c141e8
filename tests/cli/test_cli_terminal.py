"""What does a person with a terminal see? A real process behind a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios

import pytest
from canned_cascades import ID, cascade, command, environment, hop, row

FLYING = cascade("in_flight", [hop(f"{i:04}", f"{i - 1:04}" if i else None, state="open") for i in range(60)])
HIDE, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Terminal:
    """A command whose standard output is a terminal of 24 lines and 80 columns."""

    def __init__(self, *words, **variables):
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        variables = {"TERM": "xterm", **variables}
        kept = {
            key: value
            for key, value in environment().items()
            if key not in ("COLUMNS", "LINES", "FORCE_COLOR")
        }
        self.process = subprocess.Popen(
            command(*words), env={**kept, **variables}, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE
        )
        os.close(theirs)
        self.text = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        os.close(self._ours)

    def read(self, until=None):
        """Read up to a text, or to the end of the process."""
        while until is None or until not in self.text:
            try:
                part = os.read(self._ours, 65_536)
            except OSError:  # EIO: the last one that had the terminal open is gone
                break
            if not part:
                break
            self.text += part.decode(errors="replace")
        return self.text

    def end(self):
        self.read()
        return self.process.wait(60)


def test_wait_draws_a_live_tree_and_leaves_the_whole_one(collector):
    collector.say(
        FLYING,
        FLYING,
        cascade("settled", [{**each, "state": "ended", "outcome": "finished"} for each in FLYING["hops"]]),
    )
    with Terminal("wait", ID, "--url", collector.url) as terminal:
        assert terminal.end() == 0
        live, _, last = terminal.text.partition("SETTLED")
        assert HIDE in live
        assert SHOW_CURSOR in terminal.text
        assert " IN FLIGHT " in live
        assert "frontier" in live  # though the tree is higher than the screen
        assert "\x1b[1A" in live  # drawn over, not one below the other
        assert last.count("✓") == 60


def test_ctrl_c_ends_the_waiting_and_gives_the_cursor_back(collector):
    collector.say(FLYING)
    with Terminal("wait", ID, "--url", collector.url) as terminal:
        terminal.read(until="frontier")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
        assert terminal.text.rindex(SHOW_CURSOR) > terminal.text.rindex(HIDE)


COLOURS = re.compile(r"\x1b\[[0-9;]*(?<![0-9])(?:3[0-7]|9[0-7])m")


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_is_honoured(collector, variables, coloured):
    collector.say(FLYING)
    with Terminal("show", ID, "--url", collector.url, **variables) as terminal:
        assert terminal.end() == 0
        assert bool(COLOURS.search(terminal.text)) is coloured
        assert "└╴" in terminal.text


def test_a_dumb_terminal_gets_plain_lines(collector):
    collector.say(FLYING)
    with Terminal("show", ID, "--url", collector.url, TERM="dumb") as terminal:
        assert terminal.end() == 0
        assert "\x1b" not in terminal.text
        assert terminal.text.startswith(f"cascade {ID}")


def test_ls_is_a_table(collector):
    collector.rows = [row(), row("stalled", "b" * 32, open=3)]
    with Terminal("ls", "--url", collector.url) as terminal:
        assert terminal.end() == 0
        first, *_ = terminal.text.splitlines()
        assert "verdict" in first
        assert "3/14" in terminal.text


def test_doctor_is_a_table(collector):
    with Terminal("doctor", "--url", collector.url, OTEL_TRACES_EXPORTER="none") as terminal:
        assert terminal.end() == 1
        assert "OTEL_TRACES_EXPORTER=none" in terminal.text
        assert "remedy" in terminal.text
