"""What does the black box cost a visible hop? Its slot written and freed again, against a bare span of the SDK, in one run.

    python benchmarks/blackbox.py [--rounds 15] [--count 20000]

Prints the best of the rounds, and the ratio to a raw span of the OpenTelemetry SDK that is started and ended.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import tempfile
import time

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

trace.set_tracer_provider(TracerProvider())
os.environ["HOPWATCH_BLACKBOX"] = folder = tempfile.mkdtemp(prefix="hopwatch-benchmark-")

from hopwatch import process  # noqa: E402
from hopwatch.telemetry import begin  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--count", type=int, default=20_000)
    options = parser.parse_args()
    here = process.here()
    root = begin(here, "request", "SendMessage", None)
    child = begin(here, "execution", "EchoExecutor.execute", root)
    write, erase, tracer = here.box.write, here.box.erase, trace.get_tracer("benchmark")

    def slot(entry):
        def work(count):
            began = time.perf_counter_ns()
            for _ in range(count):
                write(entry)
                erase(entry)
            return (time.perf_counter_ns() - began) / count

        return work

    def span(count):
        count //= 10
        began = time.perf_counter_ns()
        for _ in range(count):
            tracer.start_span("EchoExecutor.execute").end()
        return (time.perf_counter_ns() - began) / count

    cases = {"span of the SDK": span, "box: hop below another": slot(child), "box: root": slot(root)}
    erase(root)
    erase(child)
    best = dict.fromkeys(cases, float("inf"))
    gc.disable()
    for _ in range(options.rounds):
        for name, case in cases.items():
            best[name] = min(best[name], case(options.count))
    gc.enable()
    for name, each in best.items():
        print(f"{name:<24} {each:>8.0f} ns  {each / best['span of the SDK']:.3f}")
    child.finish()
    root.finish()
    shutil.rmtree(folder, ignore_errors=True)


main()
