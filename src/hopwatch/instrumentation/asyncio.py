"""How is asyncio instrumented? Tasks, queues, locks, jobs and timers, each by its own module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from hopwatch import exits, inspect_socket
from hopwatch import process as hopwatch_process
from hopwatch.instrumentation import (
    Patches,
    anyio_jobs,
    deadlocks,
    ends,
    jobs,
    locks,
    queue_patches,
    queues,
    service,
    tasks,
    workers,
)
from hopwatch.process import failed

if TYPE_CHECKING:
    from collections.abc import Collection


class AsyncioInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Accounts for the tasks, queues, locks, jobs and timers of cascades.

    `instrument()` and `uninstrument()` as in every OpenTelemetry instrumentor. What runs outside any hop is not
    touched and costs one look at a context variable.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """Nothing beyond the standard library."""
        return ()

    def _instrument(self, **_: Any) -> None:
        self._patches = patches = Patches("hopwatch_asyncio")
        if hopwatch_process.refused_here():
            return
        try:
            process = hopwatch_process.here()
            service.configure(process.settings.service_loops)
            tasks.instrument(patches)
            queue_patches.instrument(patches)
            workers.instrument()
            locks.instrument(patches, timed=process.settings.detail == "all")
            jobs.instrument(patches)
            ends.instrument(patches)
            deadlocks.instrument(patches)
            for name, hook in (
                ("uvloop", self._uvloop),
                ("anyio._backends._asyncio", lambda module: tasks.instrument_anyio(patches, module)),
                ("anyio._backends._asyncio", lambda module: anyio_jobs.instrument(patches, module)),
                ("culsans", lambda module: queue_patches.instrument_culsans(patches, module.Queue)),
                ("concurrent.futures.process", lambda module: jobs.instrument_processes(patches, module)),
            ):
                patches.when_imported(name, hook)
            tasks.renew_hooks()
            patches.complete()
            inspect_socket.open_socket()
        except Exception:  # noqa: BLE001 - the launcher would switch every instrumentation off
            failed("asyncio.instrument")

    def _uninstrument(self, **_: Any) -> None:
        self._patches.undo()
        tasks.renew_hooks()
        inspect_socket.close_socket()
        try:
            queues.forget()
            exits.forget()
            deadlocks.forget()
        except Exception:  # noqa: BLE001
            failed("asyncio.uninstrument")

    def _uvloop(self, module: Any) -> None:
        tasks.instrument_uvloop(self._patches, module.Loop)
        jobs.instrument_uvloop(self._patches, module.Loop)
