"""What may an application say to hopwatch? The public names, nothing else.

An application needs none of them: the launcher `opentelemetry-instrument` finds the instrumentors by itself.
"""

from hopwatch.api import Hop, Pending, cascade, current, drain, pending, service

__all__ = ["Hop", "Pending", "__version__", "cascade", "current", "drain", "pending", "service"]

__version__ = "0.1.0"
