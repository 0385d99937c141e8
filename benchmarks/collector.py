"""How fast is the collector? Records a second over OTLP/HTTP into SQLite, its memory, and the time of a verdict.

    python benchmarks/collector.py [--requests 200] [--connections 4] [--json]

The collector runs as a process of its own, and so does the sender, whose bodies are made beforehand.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces

from hopwatch import attributes as names
from hopwatch.collector import otlp
from hopwatch.collector.store.sqlite import SqliteStore
from hopwatch.verdict import judge

SPANS = 512
HOPS_A_CASCADE = 64
LARGE = 10_000
SECOND = 1_000_000_000


def span(
    into: Any, trace: bytes, number: int, parent: int | None, children: int, at: int, instance: str
) -> None:
    """One record of an ended hop, with 10 attributes beside ours."""
    new = into.spans.add(
        trace_id=trace,
        span_id=number.to_bytes(8, "big"),
        parent_span_id=b"" if parent is None else parent.to_bytes(8, "big"),
        name="execution worker",
        kind=2,
        start_time_unix_nano=at,
        end_time_unix_nano=at + 20_000_000,
    )

    def put(key: str, value: Any) -> None:
        pair = new.attributes.add(key=key)
        if isinstance(value, int):
            pair.value.int_value = value
        else:
            pair.value.string_value = value

    put(names.A2A_METHOD_NAME, "SendMessage")
    put(names.A2A_TASK_ID, f"task-{trace.hex()[:12]}-{number // 5}")
    put(names.A2A_TASK_STATE, "TASK_STATE_COMPLETED")
    put(names.A2A_MESSAGE_ID, f"message-{number}")
    put(names.GEN_AI_CONVERSATION_ID, trace.hex())
    put(names.CODE_FILE_PATH, "/srv/agents/worker/executor.py")
    put(names.CODE_LINE_NUMBER, 42)
    put(names.CODE_FUNCTION_NAME, "WorkerExecutor.execute")
    put(names.RECORD, names.RECORD_END)
    put(names.INSTANCE, instance)
    put(names.HOP_KIND, "execution")
    put(names.HOP_CHILDREN, children)
    put(names.HOP_OUTCOME, "finished")
    if parent is not None:
        put(names.HOP_PARENT, parent.to_bytes(8, "big").hex())


def request(cascades: list[tuple[bytes, int, int]], now: int, total: int) -> bytes:
    """A request with the hops from..to of each of the cascades, each a tree with four children a hop."""
    out = traces.ExportTraceServiceRequest()
    resource = out.resource_spans.add()
    pair = resource.resource.attributes.add(key=names.SERVICE_NAME)
    pair.value.string_value = "worker"
    scope = resource.scope_spans.add()
    scope.scope.name = names.SCOPE
    for trace, first, last in cascades:
        for number in range(first, last):
            parent = None if number == 1 else (number - 2) // 4 + 1
            children = max(0, min(total, number * 4 + 1) - (number * 4 - 2) + 1)
            span(scope, trace, number, parent, children, now - SECOND + number * 1000, "0123456789abcdef")
    return bytes(out.SerializeToString())


def _send(port: int, bodies: list[bytes], connections: int, pipe: Any) -> None:
    errors: list[str] = []

    def work(mine: list[bytes]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for body in mine:
            connection.request("POST", "/v1/traces", body, {"content-type": "application/x-protobuf"})
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != 200 or said:
                errors.append(f"{answer.status} {said[:200]!r}")
        connection.close()

    pipe.recv()
    threads = [threading.Thread(target=work, args=(bodies[n::connections],)) for n in range(connections)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send((time.perf_counter() - begun, errors[:3]))


@contextlib.contextmanager
def collector(store: Path):
    """The real collector, as a process of its own."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "hopwatch.collector",
            "--port",
            "0",
            "--grpc-port",
            "0",
            "--store",
            str(store),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+) .*grpc 127\.0\.0\.1:(\d+)", line)
        if found is None:
            raise SystemExit(f"the collector did not start: {line!r}")
        yield process, int(found[1]), int(found[2])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        process.stdout.close()


def resident(pid: int) -> float:
    """MB of memory that a process has resident."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ingest(port: int, bodies: list[bytes], connections: int) -> float:
    """Seconds that sending takes, in a process of its own."""
    here, there = get_context("spawn").Pipe()
    sender = get_context("spawn").Process(target=_send, args=(port, bodies, connections, there))
    sender.start()
    here.send("go")
    seconds, errors = here.recv()
    sender.join()
    if errors:
        raise SystemExit(f"the collector refused: {errors}")
    return seconds


def get(port: int, path: str) -> tuple[float, Any]:
    """One question to the API: milliseconds, and the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    begun = time.perf_counter()
    connection.request("GET", path)
    body = connection.getresponse().read()
    took = (time.perf_counter() - begun) * 1000
    connection.close()
    return took, json.loads(body)


def judged(bodies: list[bytes], trace: str) -> float:
    """Milliseconds of `judge` alone."""
    store = SqliteStore(":memory:")
    for body in bodies:
        store.write(otlp.read_traces(body, json=False, now=time.time_ns())).result()
    snapshot = store.snapshot(trace)
    times = []
    for _ in range(15):
        begun = time.perf_counter()
        judge(snapshot.hops, snapshot.agents, now=time.time_ns(), tasks=snapshot.tasks)
        times.append((time.perf_counter() - begun) * 1000)
    store.close()
    return statistics.median(times)


def main() -> None:
    """Measure, and print."""
    options = argparse.ArgumentParser()
    options.add_argument("--requests", type=int, default=200)
    options.add_argument("--connections", type=int, default=4)
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    count = min(chosen.requests, 2_000)
    now = time.time_ns()
    bodies = []
    for _ in range(count):
        cascades = [(os.urandom(16), 1, HOPS_A_CASCADE + 1) for _ in range(SPANS // HOPS_A_CASCADE)]
        bodies.append(request(cascades, now, HOPS_A_CASCADE))
    trace = os.urandom(16)
    large = [request([(trace, n, min(n + SPANS, LARGE + 1))], now, LARGE) for n in range(1, LARGE + 1, SPANS)]
    figures: dict[str, float] = {"body_kb": round(len(bodies[0]) / 1000)}
    with (
        tempfile.TemporaryDirectory() as room,
        collector(Path(room) / "hopwatch.sqlite") as (process, port, _),
    ):
        ingest(port, bodies[:4], 1)  # imports, caches
        figures["rss_before_mb"] = round(resident(process.pid))
        used = cpu(process.pid)
        seconds = ingest(port, bodies[4:], chosen.connections)
        records = (count - 4) * SPANS
        figures["records"] = records
        figures["records_per_s"] = round(records / seconds)
        figures["cpu_us_per_record"] = round((cpu(process.pid) - used) / records * 1e6, 1)
        figures["rss_after_mb"] = round(resident(process.pid))
        figures["store_bytes_per_record"] = round(get(port, "/healthz")[1]["bytes"] / (count * SPANS))
        ingest(port, large, 1)
        answers = [get(port, f"/api/cascades/{trace.hex()}") for _ in range(9)]
        verdict = answers[0][1]
        if verdict["verdict"] != "settled" or len(verdict["hops"]) != LARGE:
            raise SystemExit(f"{verdict['verdict']}: {verdict['reason']}")
        figures["show_10000_hops_ms"] = round(statistics.median(took for took, _ in answers), 1)
        figures["list_first_ms"] = round(get(port, "/api/cascades?verdict=broken&limit=50")[0], 1)
        figures["list_again_ms"] = round(get(port, "/api/cascades?verdict=broken&limit=50")[0], 1)
        figures["list_newest_ms"] = round(get(port, "/api/cascades?limit=50")[0], 1)
    figures["judge_10000_hops_ms"] = round(judged(large, trace.hex()), 1)
    if chosen.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:26} {value:>12,}")


if __name__ == "__main__":
    main()
