"""How is a hop told of that the application's sampler drops? By a tracer like the application's, whose sampler keeps everything.

Imported only with HOPWATCH_SAMPLING=all, for it needs OpenTelemetry's SDK.
"""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import id_generator, sampling

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext


class Given(id_generator.IdGenerator):
    """Gives the next span of a thread the ids of another one, and all others what the application's generator says."""

    def __init__(self, own: Any) -> None:
        self._own = own
        self.next = threading.local()

    def generate_trace_id(self) -> int:
        """Give the trace id for a span that has no parent."""
        context = getattr(self.next, "context", None)
        return int(self._own.generate_trace_id() if context is None else context.trace_id)

    def generate_span_id(self) -> int:
        """Give the span id, which every span asks for once, before any processor hears of it."""
        context = getattr(self.next, "context", None)
        if context is None:
            return int(self._own.generate_span_id())
        self.next.context = None
        return int(context.span_id)

    def is_trace_id_random(self) -> bool:
        """Tell whether its trace ids are random, as the application's generator does (SDK 1.40 and later)."""
        return bool(getattr(self._own, "is_trace_id_random", bool)())


def keeping_all(tracer: Any) -> Any:
    """Make a tracer that hands every span to the same processors, whatever the sampler says.

    Args:
        tracer: the application's, maybe in a wrapper.

    Returns:
        The tracer; None where no sampler is known that could be left out: an SDK of another make, or none yet.
    """
    for _ in range(4):
        if hasattr(tracer, "sampler") and hasattr(tracer, "id_generator"):
            break
        # The interface's own proxy, and Logfire's (5.2).
        tracer = getattr(tracer, "_tracer", None) or getattr(tracer, "tracer", None)
    else:
        return None
    if tracer is None:
        return None
    always = copy.copy(tracer)
    always.sampler = sampling.ALWAYS_ON
    always.id_generator = Given(tracer.id_generator)
    return always


def start_as(always: Any, dropped: SpanContext, name: str, **more: Any) -> Any:
    """Start a span that has the ids of one that was dropped.

    Args:
        always: what `keeping_all` has made.
        dropped: the context of that one.
        name: as `start_span` has it, as all that follows.
        more: the same.

    Returns:
        The span.
    """
    given = always.id_generator
    given.next.context = dropped
    try:
        return always.start_span(name, **more)
    finally:
        given.next.context = None
