"""What does accounting cost asyncio? Tasks, locks and queues, bare and instrumented, in one run, interleaved.

    python benchmarks/asyncio_hooks.py [--rounds 15] [--count 20000]

Prints the best of the rounds of each variant, and its ratio to the bare one of the same run. Instrumented "outside" is
with no current hop, "inside" within a cascade. The peer is opentelemetry-instrumentation-asyncio, where installed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

trace.set_tracer_provider(TracerProvider())

from hopwatch import cascade  # noqa: E402
from hopwatch.instrument.asyncio import AsyncioInstrumentor  # noqa: E402


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


def run(case, count, *, inside):
    async def main():
        if not inside:
            return await case(count)
        with cascade("benchmark"):
            return await case(count)

    gc.collect()
    gc.disable()
    try:
        return asyncio.run(main())
    finally:
        gc.enable()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--count", type=int, default=20_000)
    options = parser.parse_args()
    ours = AsyncioInstrumentor()
    variants = {"bare": (None, False), "outside a hop": (ours, False), "inside a hop": (ours, True)}
    try:
        from opentelemetry.instrumentation.asyncio import AsyncioInstrumentor as Contrib

        variants["contrib asyncio"] = (Contrib(), False)
    except ImportError:
        pass
    best = {}
    for _ in range(options.rounds):
        for title, case in CASES.items():
            for variant, (instrumentor, inside) in variants.items():
                if instrumentor is not None:
                    instrumentor.instrument()
                try:
                    took = run(case, options.count, inside=inside)
                finally:
                    if instrumentor is not None:
                        instrumentor.uninstrument()
                key = (title, variant)
                best[key] = min(best.get(key, took), took)
    print(
        f"Python {sys.version.split()[0]}, best of {options.rounds} rounds of {options.count}, ns and ratio to bare"
    )
    for title in CASES:
        bare = best[title, "bare"]
        for variant in variants:
            took = best[title, variant]
            print(f"{title:32} {variant:18} {took:8.0f} ns  {took / bare:5.2f} x")


if __name__ == "__main__":
    main()
