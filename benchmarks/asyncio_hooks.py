"""What does accounting cost asyncio? Tasks, locks and queues, bare and instrumented, in one run, interleaved.

    python benchmarks/asyncio_hooks.py [--rounds 15] [--count 2000]

Each variant runs in processes of its own, which are instrumented before anything else is made, as the launcher does it. Prints
the best of all rounds, and its ratio to the bare one of the same run. "Outside" is with no current hop, "inside" within a cascade. The
peer is opentelemetry-instrumentation-asyncio, where installed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import subprocess
import sys
import time

REPEATS = 40
"""How often a process measures; the best counts, for everything else that the machine does only adds."""


async def nothing():
    return None


async def tasks(count):
    make = asyncio.create_task
    began = time.perf_counter_ns()
    for _ in range(count):
        await make(nothing())
    return (time.perf_counter_ns() - began) / count


async def locks(count):
    lock = asyncio.Lock()
    began = time.perf_counter_ns()
    for _ in range(count):
        await lock.acquire()
        lock.release()
    return (time.perf_counter_ns() - began) / count


async def queues(count):
    queue = asyncio.Queue()
    began = time.perf_counter_ns()
    for _ in range(count):
        await queue.put(count)
        await queue.get()
        queue.task_done()
    return (time.perf_counter_ns() - began) / count


CASES = {
    "task: create + await": tasks,
    "lock: acquire + release": locks,
    "queue: put + get + task_done": queues,
}
VARIANTS = ["bare", "outside a hop", "inside a hop"]
if importlib.util.find_spec("opentelemetry.instrumentation.asyncio"):
    VARIANTS.append("contrib asyncio")


def measure(case, variant, count):
    """The best of some repeats in this process, in nanoseconds."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider())
    if variant == "contrib asyncio":
        from opentelemetry.instrumentation.asyncio import AsyncioInstrumentor

        AsyncioInstrumentor().instrument()
    elif variant != "bare":
        from hopwatch.instrumentation.asyncio import AsyncioInstrumentor

        AsyncioInstrumentor().instrument()

    async def best():
        return min([await case(count) for _ in range(REPEATS)])

    async def main():
        if variant != "inside a hop":
            return await best()
        from hopwatch import cascade

        with cascade("benchmark"):
            return await best()

    gc.collect()
    gc.disable()
    return asyncio.run(main())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        case, variant = options.measure
        print(measure(CASES[case], variant, options.count))
        return
    best = {}
    for _ in range(options.rounds):
        for title in CASES:
            for variant in VARIANTS:
                done = subprocess.run(
                    [sys.executable, __file__, "--count", str(options.count), "--measure", title, variant],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                took = float(done.stdout)
                best[title, variant] = min(best.get((title, variant), took), took)
    print(
        f"Python {sys.version.split()[0]}, best of {options.rounds} processes of {REPEATS} x {options.count}, ns and ratio to bare"
    )
    for title in CASES:
        bare = best[title, "bare"]
        for variant in VARIANTS:
            took = best[title, variant]
            print(f"{title:32} {variant:18} {took:8.0f} ns  {took / bare:5.2f} x")


if __name__ == "__main__":
    main()
