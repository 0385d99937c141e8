"""What may an application say to hopwatch? The public names, nothing else.

An application needs none of them: the launcher `opentelemetry-instrument` finds the instrumentors by itself. One that is
started without it calls `hopwatch.instrument()`.
"""

from hopwatch.api import Hop, Pending, cascade, current, drain, instrument, pending, service

__all__ = ["Hop", "Pending", "__version__", "cascade", "current", "drain", "instrument", "pending", "service"]

__version__ = "0.1.0"
