"""How much comes in? Counters of what the collector's receivers took, refused and passed over, since it started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram

from hopwatch import attributes as names

if TYPE_CHECKING:
    from hopwatch.collector.batch import Batch, Refusals

Protocol = Literal["http", "grpc"]
Signal = Literal["traces", "logs", "metrics"]
Result = Literal["taken", "malformed", "busy", "failed"]

LAG_BUCKETS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
MAX_LAGS: Final = 64
"""Records of one request whose lag is taken; they came together, so more would say the same."""


class Traffic:
    """Counts requests and records. May be used from any thread.

    These are counters of what arrived, twice where a sender sent it twice. What holds now, the store alone tells.

    Args:
        registry: where the counters are to be found.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._records = Counter(
            names.COLLECTOR_RECORDS,
            "Records of hopwatch's that the collector took, by what they tell of.",
            ["record"],
            registry=self.registry,
        )
        self._rejected = Counter(
            names.COLLECTOR_REJECTED,
            "Records of hopwatch's that the collector refused: malformed, contradictory, or beyond a bound. "
            "Their cascades can not become settled.",
            registry=self.registry,
        )
        self._ignored = Counter(
            names.COLLECTOR_IGNORED,
            "Spans of others that came along and were forgotten.",
            registry=self.registry,
        )
        self._requests = Counter(
            names.COLLECTOR_REQUESTS,
            "OTLP requests, by protocol, signal, and what became of them.",
            ["protocol", "signal", "result"],
            registry=self.registry,
        )
        self._lag = Histogram(
            names.COLLECTOR_LAG,
            "From when an agent made a heartbeat or a marker to its arrival, by both clocks.",
            buckets=LAG_BUCKETS,
            registry=self.registry,
        )
        for record in ("hop", "heartbeat", "shutdown"):  # a rate over a series that is not there is no zero
            self._records.labels(record)
        for protocol in ("http", "grpc"):
            for result in ("taken", "malformed", "busy", "failed"):
                self._requests.labels(protocol, "traces", result)

    def arriving(self, batch: Batch) -> None:
        """Take the lag of a batch. To be called before the store has it, for the store merges records in place."""
        arrived = batch.arrived
        made = [beat.at for beat in batch.heartbeats[:MAX_LAGS]]
        made += [hop.sampled for hop in batch.hops[:MAX_LAGS] if hop.ended is None and hop.sampled]
        for at in made:
            self._lag.observe(max(0.0, (arrived - at) / 1e9))

    def taken(self, protocol: Protocol, signal: Signal, batch: Batch, refused_by_store: Refusals) -> None:
        """Count a request that was answered, and its records."""
        self._requests.labels(protocol, signal, "taken").inc()
        hops = len(batch.hops) - refused_by_store.count
        for record, count in (
            ("hop", hops),
            ("heartbeat", len(batch.heartbeats)),
            ("shutdown", len(batch.shutdowns)),
        ):
            if count > 0:
                self._records.labels(record).inc(count)
        refused = batch.refused.count + refused_by_store.count
        if refused:
            self._rejected.inc(refused)
        if batch.ignored:
            self._ignored.inc(batch.ignored)

    def refused(self, protocol: Protocol, signal: Signal, result: Result) -> None:
        """Count a request that got an error for an answer."""
        self._requests.labels(protocol, signal, result).inc()
