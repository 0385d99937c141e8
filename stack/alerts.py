"""Who gets the alerts? A webhook for Alertmanager that prints a line for each: alerts.py --port 9095.

It stands for your chat bridge or pager, so that the committed alertmanager.yml leads somewhere. Loopback only, and only
the standard library.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

LARGEST: Final = 4 * 1024 * 1024
"""Bytes of one message."""


def line(alert: dict[str, Any]) -> str:
    """An alert in one line: its state, name, severity, collector, summary and runbook."""
    labels, notes = alert.get("labels", {}), alert.get("annotations", {})
    words = (
        alert.get("status", "?"), labels.get("alertname", "?"), f"({labels.get('severity', '?')})",
        f"at {labels.get('instance', '?')}:", notes.get("summary", ""), notes.get("runbook_url", ""),
    )  # fmt: skip
    text = " ".join(str(word) for word in words)
    # Names of agents come from telemetry: they must not drive the terminal of whoever reads this.
    return "".join(each if each.isprintable() else "?" for each in text)


class Webhook(BaseHTTPRequestHandler):
    """Takes what Alertmanager posts; anything else is asked whether it lives."""

    timeout = 30

    def do_GET(self) -> None:
        """Say that it lives."""
        self._answer(200)

    def do_POST(self) -> None:
        """Take alerts."""
        size = self.headers.get("content-length", "")
        if not size.isdecimal() or int(size) > LARGEST:
            self._answer(400)
            return
        try:
            lines = [line(each) for each in json.loads(self.rfile.read(int(size)))["alerts"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            self._answer(400)
            return
        for each in lines:
            print(each, flush=True)
        self._answer(200)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - as the standard library calls it
        """Say nothing of requests: what they bring is what counts."""


def main() -> int:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="Print each alert that Alertmanager posts, in a line.")
    parser.add_argument("--port", type=int, default=9095)
    server = ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Webhook)
    server.daemon_threads = True
    for number in (signal.SIGINT, signal.SIGTERM):
        # shutdown() waits for serve_forever to return, which runs in this very thread.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
    server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
