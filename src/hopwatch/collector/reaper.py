"""Which processes of this host died with work open? The collector looks into the folder of their black boxes itself.

What it finds goes into the store directly, as if the process had told of it: a hop that was open is abandoned.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from hopwatch.attributes import PROCESS_KILLED
from hopwatch.collector.batch import Batch
from hopwatch.reaping import SPAN_NAME, reap, say_once
from hopwatch.records import Shutdown, abandoned_attributes, read_hop
from hopwatch.state_folder import FolderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hopwatch.blackbox import Box
    from hopwatch.collector.store import Store

EVERY: Final = 0.5
"""Seconds between two looks."""
COMMIT_WITHIN: Final = 30.0
"""Seconds that the store may take."""
_log: Final = logging.getLogger("hopwatch.collector")


class Reaper:
    """A thread that looks for dead processes until it is stopped.

    Args:
        store: what takes the records.
        folder: of the black boxes.
        clock: Unix nanoseconds.
    """

    def __init__(self, store: Store, folder: str, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._folder = folder
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hopwatch-reaper", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; returns when what was found has been stored."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(COMMIT_WITHIN + 1)

    def look(self) -> None:
        """Look once.

        Raises:
            FolderError: the folder cannot be trusted.
        """
        found = reap(self._folder, self._deliver)
        for box in found.boxes:
            _log.warning(
                "process %d of %s ended with %d hops open: %s", box.pid, box.agent, len(box.hops), box.reason
            )
        for box, why in found.undelivered:
            say_once(f"what was open in process {box.pid} of {box.agent} could not be stored: {why}")

    def _run(self) -> None:
        while not self._stop.wait(EVERY):
            try:
                self.look()
            except FolderError as error:
                say_once(str(error))
            except Exception:  # noqa: BLE001 - the collector goes on, and the box is still there
                _log.exception("the black boxes in %s could not be looked at", self._folder)

    def _deliver(self, box: Box) -> None:
        now = self._clock()
        # No sign of life: the process is none of the batch's senders.
        batch = Batch(arrived=now)
        for hop in box.hops:
            batch.hops.append(
                read_hop(
                    abandoned_attributes(hop, box.instance, box.reason),
                    agent=box.agent,
                    cascade=hop.cascade,
                    span=secrets.token_hex(8),
                    parent_span=hop.id,
                    name=SPAN_NAME,
                    start=now,
                    end=now,
                    arrived=now,
                )
            )
            batch.hops[-1].started = min(hop.started, now)
        kinds = Counter(hop.kind for hop in box.hops)
        batch.shutdowns.append(
            Shutdown(
                box.instance, box.agent, box.pid, now, box.leaving or PROCESS_KILLED, dict(kinds), found=True
            )
        )
        refused = self._store.write(batch).result(timeout=COMMIT_WITHIN)
        if refused.count:  # it is counted on its cascade, which cannot become settled
            _log.warning("of a process that died: %s", refused.sentence())
