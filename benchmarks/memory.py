"""Does accounting keep anything? A million tasks in one cascade, and the resident size before and after.

python benchmarks/memory.py [--count 1000000]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

trace.set_tracer_provider(TracerProvider())

import hopwatch  # noqa: E402
from hopwatch.instrumentation.asyncio import AsyncioInstrumentor  # noqa: E402
from hopwatch.process import here  # noqa: E402


def resident() -> int:
    """Bytes of memory that this process holds."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no VmRSS in /proc/self/status")


async def nothing() -> None:
    await asyncio.sleep(0)


async def work(count: int) -> None:
    for _ in range(count // 100):
        await asyncio.gather(*(asyncio.create_task(nothing()) for _ in range(100)))


async def main(count: int) -> None:
    async with hopwatch.cascade("a million tasks"):
        await work(20_000)
        gc.collect()
        before = resident()
        await work(count)
        gc.collect()
        after = resident()
        print(
            f"{count} tasks in one cascade: {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after, {(after - before) / 1e6:+.1f} MB"
        )
        print(f"open entries in the ledger: {len(here().ledger)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    AsyncioInstrumentor().instrument()
    asyncio.run(main(parser.parse_args().count))
