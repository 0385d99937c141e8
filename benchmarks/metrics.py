"""What does a scrape of /metrics cost the collector? By the number of cascades in its window, the first one and later ones.

python benchmarks/metrics.py [--cascades 5000] [--hops 20]
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "collector"))

from telling import end, heartbeat, opened, protobuf, trace

from hopwatch.collector import otlp
from hopwatch.collector.judged import Judge
from hopwatch.collector.metrics import Metrics
from hopwatch.collector.store.sqlite import SqliteStore
from hopwatch.collector.traffic import Traffic


def tell(store, cascades, hops, still_open):
    """Cascades of so many hops; every `still_open`th has its last one open."""
    for number in range(cascades):
        cascade = trace()
        root = os.urandom(8).hex()
        below = [os.urandom(8).hex() for _ in range(hops - 1)]
        spans = [end(cascade, hop, parent=root, instance="a" * 16) for hop in below]
        spans.append(
            opened(cascade, root) if number % still_open == 0 else end(cascade, root, children=len(below))
        )
        batch = otlp.read_traces(protobuf(*spans, heartbeat()), json=False, now=time.time_ns())
        store.write(batch).result(30)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cascades", type=int, default=5_000)
    options.add_argument("--hops", type=int, default=20)
    given = options.parse_args()
    store = SqliteStore(":memory:")
    tell(store, given.cascades, given.hops, 10)
    metrics = Metrics(store, Judge(store), Traffic())
    taken = []
    body = b""
    for _ in range(400):
        metrics._until = 0.0
        began = time.process_time()
        body, _ = metrics.answer("")
        taken.append(time.process_time() - began)
        if b"hopwatch_cascades_unread 0.0" in body:
            break
    print(f"{given.cascades} cascades of {given.hops} hops: {len(taken)} scrapes until all were read, "
          f"each at most {max(taken) * 1000:.0f} ms")  # fmt: skip
    again = []
    for _ in range(20):
        metrics._until = 0.0
        began = time.process_time()
        metrics.answer("")
        again.append(time.process_time() - began)
    print(f"then a scrape takes {statistics.median(again) * 1000:.1f} ms, and has {len(body)} bytes")
    store.close()


if __name__ == "__main__":
    main()
