"""Which instrumentations are compared? One table for the benchmarks that start real agents."""

from __future__ import annotations

import os
import sys
from pathlib import Path

LAUNCHER = [str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable]
OURS = "hopwatch_asyncio,hopwatch_a2a"


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def environment(name: str, endpoint: str, **more: str) -> dict[str, str]:
    """What every instrumented process is told."""
    return {
        "OTEL_SERVICE_NAME": name,
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_INSTRUMENTATION_A2A_SDK_ENABLED": "false",
        **more,
    }


def variants(
    names: list[str], contrib: tuple[str, ...] = ("httpx", "starlette", "asyncio")
) -> dict[str, tuple[list[str], dict[str, str] | None]]:
    """By title: the command that starts Python, and what is added to the environment (None: not instrumented).

    `contrib` are the names of the other instrumentations that are compared.
    """
    import importlib.metadata

    others = sorted(
        {point.name for point in importlib.metadata.entry_points(group="opentelemetry_instrumentor")}
        - {"hopwatch_asyncio", "hopwatch_a2a"}
    )
    every = {
        "bare": ([sys.executable], {"OTEL_INSTRUMENTATION_A2A_SDK_ENABLED": "false"}),
        "bare, as installed": ([sys.executable], None),
        "three plain spans": (
            [*LAUNCHER, str(Path(__file__).with_name("three_spans.py"))],
            {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join([*others, OURS])},
        ),
        "hopwatch": (LAUNCHER, {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(others)}),
        "a2a-sdk's own": (
            LAUNCHER,
            {
                "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join([*others, OURS]),
                "OTEL_INSTRUMENTATION_A2A_SDK_ENABLED": "true",
            },
        ),
        f"contrib {' + '.join(contrib)}": (
            LAUNCHER,
            {
                "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(
                    [*(each for each in others if each not in contrib), OURS]
                )
            },
        ),
    }
    return {title: every[title] for title in every if not names or title in names}
