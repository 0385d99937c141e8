"""How much longer does a program take to end with hopwatch, when nothing is pending?

A program with one cascade, and a collector that answers, run bare and instrumented in turn; taken is the time from the end
of `asyncio.run` to the end of the process. Besides, what the part of hopwatch alone takes (`atexit`, within the process).
"""

import http.server
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from variants import LAUNCHER

RUNS = 50
PROGRAM = """
import asyncio, atexit, contextlib, os, sys, time
if sys.argv[1] == "hopwatch":
    from hopwatch import cascade, exits
    inner = exits._at_exit
    def timed():
        began = time.perf_counter()
        inner()
        os.write(1, b"%.6f\\n" % (time.perf_counter() - began))
    exits._at_exit = timed
else:
    from opentelemetry import trace
    cascade = trace.get_tracer("bare").start_as_current_span

async def main():
    with cascade("root"):
        await asyncio.gather(*(asyncio.sleep(0.01) for _ in range(10)))

asyncio.run(main())
os.write(1, b"%.6f\\n" % time.time())
"""


class Collector(http.server.BaseHTTPRequestHandler):
    """Answers each request at once."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def one(path, which, url):
    """Run it once; returns the seconds from the end of main to the end of the process, and those within hopwatch."""
    told = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "asyncio,httpx,starlette"
        + ("" if which == "hopwatch" else ",hopwatch_asyncio,hopwatch_a2a"),
    }
    done = subprocess.run(
        [*LAUNCHER, str(path), which], env={**os.environ, **told}, stdout=subprocess.PIPE, check=True
    )
    ended = time.time()
    numbers = [float(line) for line in done.stdout.split()]
    return ended - numbers[0], numbers[1] if len(numbers) > 1 else 0.0


def main():
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.py"
        path.write_text(PROGRAM)
        took = {"bare": [], "hopwatch": []}
        within = []
        for _ in range(runs):
            for which, times in took.items():
                whole, part = one(path, which, url)
                times.append(whole * 1000)
                if which == "hopwatch":
                    within.append(part * 1000)
    server.shutdown()
    print(f"From the end of asyncio.run to the end of the process, nothing pending, {runs} runs each (ms)")
    print(f"{'':34}{'median':>8}{'worst':>8}")
    rows = {
        "OpenTelemetry alone": took["bare"],
        "with hopwatch": took["hopwatch"],
        "of it, hopwatch at exit": within,
    }
    for title, times in rows.items():
        print(f"{title:34}{statistics.median(times):8.1f}{max(times):8.1f}")
    added = statistics.median(took["hopwatch"]) - statistics.median(took["bare"])
    print(f"{'added (median of the one less that of the other)':50}{added:.1f}")


if __name__ == "__main__":
    main()
