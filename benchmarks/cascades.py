"""What does hopwatch cost a cascade? The demo's agents with no work to do, bare and instrumented, in one run.

    python benchmarks/cascades.py [--rounds 7] [--count 60] [--at-once 4]

Each variant has its own three agents and starts a user a round, in turn. Throughput is cascades a second as the user
sees it; CPU is that of the three agents, from /proc, exporting included. All instrumented variants export to one
collector of hopwatch, which shares the machine.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from variants import cpu, environment, variants

from hopwatch.demo import run as demo


def start(cast: demo.Cast, title: str, command: list[str], extra: dict[str, str] | None, endpoint: str):
    worker, planner, frontdesk, user = demo.free_ports(4)
    plan = (
        ("worker", worker, ""),
        ("planner", planner, f"http://127.0.0.1:{worker}"),
        ("frontdesk", frontdesk, f"http://127.0.0.1:{planner}"),
    )
    for name, port, to in plan:
        told = environment(name, endpoint, **extra) if extra is not None else {}
        cast.start(
            f"{name} {title}",
            [*command, str(demo.AGENTS / f"{name}.py"), "--port", str(port), "--to", to],
            told,
        )
    for name, port, _ in plan:
        demo.wait_for_card(cast, f"{name} {title}", port, time.monotonic() + 60)
    return f"http://127.0.0.1:{frontdesk}", user


def ask(command, extra, endpoint, to, port, count, at_once):
    told = environment("user", endpoint, **extra) if extra is not None else {}
    done = subprocess.run(
        [*command, str(demo.AGENTS / "user.py"), "--port", str(port), "--to", to, "--count", str(count), "--at-once", str(at_once)],
        env={**os.environ, **told}, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    match = re.search(r"answered in ([0-9.]+) s", done.stdout)
    if match is None:
        raise SystemExit(f"the user said nothing of its time: {done.stdout} {done.stderr[-2000:]}")
    return float(match.group(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--variant", action="append", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cast = demo.Cast(Path(folder))
        try:
            endpoint = demo.start_collector(cast)
            table = variants(options.variant)
            running = {
                title: start(cast, title, command, extra, endpoint)
                for title, (command, extra) in table.items()
            }
            rates: dict[str, list[float]] = {title: [] for title in table}
            costs: dict[str, list[float]] = {title: [] for title in table}
            for number in range(options.rounds + 1):
                for title, (command, extra) in table.items():
                    pids = [
                        cast.processes[f"{name} {title}"].pid for name in ("worker", "planner", "frontdesk")
                    ]
                    before = sum(map(cpu, pids))
                    took = ask(command, extra, endpoint, *running[title], options.count, options.at_once)
                    time.sleep(1.5)  # what is exported afterwards belongs to it
                    if number:  # the first round warms up
                        rates[title].append(options.count / took)
                        costs[title].append((sum(map(cpu, pids)) - before) / options.count)
        finally:
            cast.end()
    print(
        f"Python {sys.version.split()[0]}, {options.count} cascades, {options.at_once} at a time, medians of {options.rounds} rounds"
    )
    bare_rate, bare_cost = (statistics.median(each.get("bare") or [float("nan")]) for each in (rates, costs))
    for title in table:
        rate, cost = statistics.median(rates[title]), statistics.median(costs[title])
        print(
            f"{title:36} {rate:6.1f} cascades/s {rate / bare_rate:5.2f} x   {cost * 1000:6.1f} ms agents' CPU {cost / bare_cost:5.2f} x"
        )


if __name__ == "__main__":
    main()
