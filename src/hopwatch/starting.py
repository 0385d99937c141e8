"""How does a program put hopwatch in front of itself, without a launcher? `hopwatch.instrument()`."""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module
from typing import Any, Final

from hopwatch.process import failed, logger, refused_here

INSTRUMENTORS: Final = {
    "hopwatch_asyncio": "hopwatch.instrumentation.asyncio:AsyncioInstrumentor",
    "hopwatch_a2a": "hopwatch.instrumentation.a2a:A2AInstrumentor",
    "hopwatch_acp": "hopwatch.instrumentation.acp:ACPInstrumentor",
}
"""As the launcher finds them by their entry points; a program that was frozen into one file has no such metadata."""
_exports_to: str | None = None
"""The collector that this process was told of here."""


def instrument(url: str | None, service_name: str | None) -> None:
    """Do what `hopwatch.instrument` promises."""
    if url is not None and not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", url):
        raise ValueError(f"the collector's address is a URL such as http://127.0.0.1:4318, not {url!r}")
    if url is not None and re.search(r"/v1/(traces|metrics|logs)/?$", url):
        raise ValueError(
            f"the collector's address ends before /v1, as http://127.0.0.1:4318 does; it is {url!r}"
        )
    if service_name is not None and (not isinstance(service_name, str) or not service_name.strip()):
        raise ValueError(f"a service's name is a text of at least one character, not {service_name!r}")
    if refused_here():
        return
    if url is not None:
        _export_to(url.rstrip("/"), service_name)
    for place in _wanted():
        try:
            module, _, attribute = place.partition(":")
            instrumentor = getattr(import_module(module), attribute)()
            # It would warn of a second time, which is none of the application's faults.
            if not instrumentor.is_instrumented_by_opentelemetry:
                instrumentor.instrument()
        except Exception:  # noqa: BLE001 - the application goes on without it
            failed("instrument")


def _wanted() -> list[str]:
    """Where the instrumentors are that the environment does not disable, as the launcher understands it."""
    text = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "")
    disabled = {each.strip() for each in text.split(",")}
    return [place for name, place in INSTRUMENTORS.items() if not disabled & {name, "*"}]


def _export_to(url: str, service_name: str | None) -> None:
    """Set up the SDK with exporters to a collector, unless somebody has set it up already."""
    global _exports_to  # noqa: PLW0603 - a process has one SDK
    from opentelemetry import trace  # noqa: PLC0415 - only here

    if _exports_to == url:
        return
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        logger.warning(
            "hopwatch: this program has an OpenTelemetry SDK already, so its records go where that sends them, and not to %s.",
            url,
        )
        return
    headers = _headers()
    _exports_to = url
    try:
        from opentelemetry import _logs, metrics  # noqa: PLC0415 - slow to import
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk._logs import LoggerProvider  # noqa: PLC0415
        from opentelemetry.sdk._logs.export import BatchLogRecordProcessor  # noqa: PLC0415
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ModuleNotFoundError as error:
        _exports_to = None
        raise ModuleNotFoundError(
            f"{error.name} is not installed, and without it nothing can be sent to {url}. Remedy: pip install 'hopwatch[otlp]'",
            name=error.name,
        ) from None
    resource = _resource(service_name)
    spans = TracerProvider(resource=resource)
    spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces", headers=headers)))
    trace.set_tracer_provider(spans)
    logs = LoggerProvider(resource=resource)
    logs.add_log_record_processor(
        BatchLogRecordProcessor(OTLPLogExporter(f"{url}/v1/logs", headers=headers, timeout=_patience("LOGS")))
    )
    _logs.set_logger_provider(logs)
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(f"{url}/v1/metrics", headers=headers, timeout=_patience("METRICS"))
    )
    metrics.set_meter_provider(MeterProvider([reader], resource=resource))


def _patience(signal: str) -> float | None:
    """How long the exporter of metrics or logs tries, in seconds; None for what the environment says.

    The collector needs neither: they shall not hold up the program's end for long where it is not there.
    """
    said = (f"OTEL_EXPORTER_OTLP_{signal}_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
    return None if any(os.environ.get(name, "").strip() for name in said) else 2.0


def _headers() -> dict[str, str]:
    from hopwatch.tokens import VARIABLE, bearer, read_token  # noqa: PLC0415 - only here

    file = os.environ.get(VARIABLE, "").strip()
    return {"authorization": bearer(read_token(file))} if file else {}


def _resource(service_name: str | None) -> Any:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415 - slow to import

    from hopwatch.cli.run import service_name as name_of  # noqa: PLC0415

    # What is given here goes before the environment, which the SDK reads by itself.
    found = Resource.create({SERVICE_NAME: service_name.strip()} if service_name is not None else {})
    if str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        found = found.merge(Resource({SERVICE_NAME: name_of(sys.orig_argv)}))
    return found
