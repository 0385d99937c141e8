"""What is this process still doing, and for whom? Entries and the rules by which they count.

Pure Python: no OpenTelemetry, no asyncio, no input or output. What a hop looks like outside is the business of
the `Observer` that a ledger is given.

An entry is one unit of work. A visible entry (a hop) can be seen outside the process; an invisible one only
counts. Each invisible entry counts on the visible entry that it was opened under, directly: a chain of tasks
that each make the next one and end holds one entry at a time, not all of them.

Threads: `open`, `finish` and the rest may be called from any thread, and from a signal handler or a finalizer.
The path of an invisible entry takes no lock. It relies on two things only: that adding to and removing from a
set is atomic, and on an order of steps. Who opens puts the entry into the
parent's set and then looks whether the parent has closed; who closes says so and then looks at the set. At least
one of the two sees the other, so an entry that slipped in is either waited for or late, never overlooked.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

Kind = Literal["request", "execution", "send", "push", "webhook", "task", "event", "lock"]
Outcome = Literal["finished", "failed", "cancelled", "abandoned"]

VISIBLE_KINDS = frozenset({"request", "execution", "send", "push", "webhook"})

CAPACITY = 100_000
"""How many entries a ledger holds at once by default; what does not fit is counted, never forgotten."""

DURATIONS_A_TICK = 256
"""How many durations of closed invisible entries wait for the observer's next look; what comes after is not measured."""


class Observer(Protocol):
    """What a ledger tells of its hops. Called on the thread that caused it, so it has to be quick.

    An observer that raises is not the ledger's business: `hopwatch.telemetry` guards itself.
    """

    def opened(self, entry: Entry) -> None:
        """Tell that `entry` is visible from now on; give it its `id` and `cascade`."""

    def closed(self, entry: Entry) -> None:
        """Tell that the visible `entry` closed: its record is complete."""

    def late(self, parent: Entry) -> None:
        """Tell that `parent`, which has closed, got another child: its earlier record is corrected."""


class Entry:
    """One unit of work.

    Times are Unix nanoseconds. `id` (16 hex digits) and `cascade` (32) are set by the observer once the entry is
    visible and stay as they are.

    Attributes:
        parent: the visible entry that this one counts on; None for a root, and once it has closed.
        parent_id: the hop that caused it, in this process or another; empty on a root.
        remote: whether a message brought it: `parent_id` is then not among those that count it as a child.
        done: when its own work was over.
        live: invisible entries below it that have not closed; of a visible entry only.
        adopted: whether the consumer of a queue, which is no task of this hop, has ever worked for it.
        held: how many items that it put into queues have not been worked off, and have no entry of their own.
        quiet: true where another entry tells the same story, so this one counts but is not revealed by its age.
        runner: weak reference to the asyncio task that does the work, where there is one.
        noted: whether a task's note became this entry, which then ends with that task.
        origin: code object and instruction offset of the line that made it.
        instance_of: weak reference to what the entry is about (a queue); never a strong one.
        fate: set where a way out has begun that will cut the entry off: it says what an end other than `finished` then is.
        span: the observer's own.
    """

    __slots__ = (
        "__weakref__",
        "adopted",
        "attributes",
        "cascade",
        "children",
        "closed",
        "done",
        "dropped",
        "fate",
        "held",
        "id",
        "instance_of",
        "kind",
        "late",
        "late_children",
        "ledger",
        "live",
        "name",
        "noted",
        "origin",
        "outcome",
        "parent",
        "parent_id",
        "quiet",
        "reason",
        "remote",
        "runner",
        "span",
        "started",
        "visible",
    )

    def __init__(self, ledger: Ledger, kind: Kind, name: str, parent: Entry | None, started: int) -> None:
        self.ledger = ledger
        self.kind: Kind = kind
        self.name = name
        self.parent = parent
        self.started = started
        self.done: int | None = None
        self.visible = self.closed = self.adopted = self.quiet = self.late = self.remote = self.noted = False
        self.children = self.late_children = self.held = self.dropped = 0
        self.id = self.cascade = self.parent_id = ""
        self.attributes: dict[str, Any] | None = None
        self.live: set[Entry | Note] | None = None
        self.origin: tuple[Any, int] | None = None
        self.outcome: Outcome | None = None
        self.reason: str | None = None
        self.instance_of: Any = None
        self.runner: Any = None
        self.span: Any = None
        self.fate: Callable[[Entry, Outcome, str | None], tuple[Outcome, str | None]] | None = None

    def set(self, key: str, value: Any) -> None:
        """Set an attribute of the hop's record."""
        attributes = self.attributes
        if attributes is None:
            attributes = self.attributes = {}
        attributes[key] = value

    def finish(self, outcome: Outcome = "finished", reason: str | None = None, at: int | None = None) -> None:
        """Say that the entry's own work is over. Only the first call counts.

        Args:
            outcome: how it ended. `abandoned` is for what hopwatch itself ends, with a reason.
            reason: a few words, for every outcome but `finished`.
            at: when, in Unix nanoseconds; now by default.
        """
        if self.done is not None:
            return
        if outcome != "finished" and self.fate is not None:
            outcome, reason = self.fate(self, outcome, reason)
        self.outcome = outcome
        if reason is not None:
            self.reason = reason
        self.done = time.time_ns() if at is None else at
        if self.visible:
            self.ledger.settle(self)
        else:
            self.ledger.release(self)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "done" if self.done is not None else "open"
        return f"<Entry {self.kind} {self.name!r} {self.id or 'invisible'} {state}>"


class Note:
    """An invisible entry with nothing but what counting needs: what a task costs that behaves.

    Once it has to be seen, `Ledger.reveal` makes an `Entry` of it. It reads like an entry that is open.
    """

    __slots__ = ("code", "entry", "offset", "parent", "runner", "started", "what")

    kind: Kind = "task"
    quiet = False
    instance_of = None

    parent: Entry
    started: int
    runner: Any
    what: Any
    """Code object of what runs, or its name."""
    code: Any
    """Code object and instruction offset of the line that made it."""
    offset: int
    entry: Entry | None
    """What became of it, once it has been revealed."""

    @property
    def name(self) -> str:
        """What it is called."""
        what = self.what
        return what if isinstance(what, str) else getattr(what, "co_qualname", what.co_name)

    @property
    def visible(self) -> bool:
        """Whether it has become an entry that is visible."""
        return self.entry is not None

    @property
    def done(self) -> int | None:
        """When its work was over; None where it has not become an entry, for a note that is over is forgotten."""
        return self.entry.done if self.entry is not None else None


class Ledger:
    """The tree of entries of one process.

    Args:
        observer: is told of every hop.
        capacity: how many entries may be open at once. One that does not fit is counted as `dropped` on its
            parent and on the ledger, and makes the verdict `unknown`: it is never taken for done.
        everything: every entry is visible from the start (detail `all`).
        clock: Unix nanoseconds.
    """

    def __init__(
        self,
        observer: Observer,
        *,
        capacity: int = CAPACITY,
        everything: bool = False,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.observer = observer
        self.capacity = capacity
        self.everything = everything
        self.clock = clock
        self.dropped = 0
        self.hops: dict[int, Entry] = {}
        """The open visible entries, oldest first. Every invisible one is in the `live` of one of them."""
        self.size = 0
        """How many entries are open, for the bound; exact only while one thread works."""
        self.durations: deque[int | tuple[Kind, int]] = deque(maxlen=2 * DURATIONS_A_TICK)
        """Nanoseconds that tasks took which ended lately, and with their kind those of other invisible entries."""
        self._lock = threading.RLock()

    # Opening -----------------------------------------------------------------------------------------------

    def open(
        self,
        kind: Kind,
        name: str,
        parent: Entry | None,
        *,
        started: int | None = None,
        prepare: Callable[[Entry], None] | None = None,
    ) -> Entry | None:
        """Open an entry under `parent` (a visible entry), or a root.

        Args:
            kind: what it is. Requests, executions, sends, pushes, webhooks and roots are visible at once.
            name: for a reader.
            parent: the hop that it is done for.
            started: Unix nanoseconds; now by default.
            prepare: is called with the entry before the observer is told of it.

        Returns:
            The entry, or None where the ledger is full (which has then been counted).
        """
        if self.full(parent):
            return None
        entry = Entry(self, kind, name, parent, self.clock() if started is None else started)
        if prepare is not None:
            prepare(entry)
        if parent is None or self.everything or kind in VISIBLE_KINDS:
            self.appear(entry)
        else:
            self.count(entry, parent)
        return entry

    def count(self, entry: Entry, parent: Entry) -> None:
        """Count an invisible `entry` on `parent`: the short path, for what is opened a thousand times a second."""
        self.size += 1
        live: Any = parent.live
        live.add(entry)
        if parent.closed:
            self._reveal(entry)

    def full(self, parent: Entry | None) -> bool:
        """Whether there is no room for one more entry; if so, this counts it as dropped under `parent`."""
        if self.size < self.capacity:
            return False
        self._drop(parent)
        return True

    def reveal(self, noted: Entry | Note) -> Entry:
        """Make an invisible entry visible, with its true start: it outlasted a threshold, or its parent, or failed.

        Returns:
            The entry; that of a note is made here.
        """
        entry = self.promote(noted) if isinstance(noted, Note) else noted
        self._reveal(entry)
        return entry

    def promote(self, note: Note) -> Entry:
        """Make an entry of a note, in its place; only once.

        Removing the note from its parent's `live` is one step, and whoever manages it decides: here it becomes an
        entry, and in the task's callback it is over. Where that came first, this is an entry that is over too.
        """
        with self._lock:
            entry = note.entry
            if entry is not None:
                return entry
            parent = note.parent
            entry = Entry(self, note.kind, note.name, parent, note.started)
            entry.runner = note.runner
            entry.noted = True
            entry.origin = (note.code, note.offset)
            live: Any = parent.live
            live.add(entry)  # first, so that the parent is never without either
            try:
                live.remove(note)
            except KeyError:
                entry.outcome = "finished"
                entry.done = self.clock()
                live.discard(entry)
            note.entry = entry
        if entry.done is not None:
            self.settle(parent)
        return entry

    def lose(self, hop: Entry, noted: Entry | Note | None = None) -> None:
        """Give up on something below `hop` that could not be accounted for: counted as dropped, so never settled."""
        live = hop.live
        if noted is not None and live is not None and noted in live:
            live.discard(noted)
            self.size -= 1
        self._drop(hop)
        self.settle(hop)

    def _reveal(self, entry: Entry) -> None:
        with self._lock:
            if entry.visible or (entry.done is not None and entry.outcome not in ("failed", "abandoned")):
                return
            self.size -= 1
            self.appear(entry)
            parent = entry.parent
            if parent is not None and parent.live is not None:
                parent.live.discard(entry)
        if parent is not None:
            self.settle(parent)
        if entry.done is not None:
            self.settle(entry)

    def move(self, entry: Entry | Note, hop: Entry) -> None:
        """Count an invisible entry on another hop of the same cascade: the one whose work it turned out to be."""
        with self._lock:
            before = entry.parent
            if entry.visible or entry.done is not None or before is hop or before is None or hop.closed:
                return
            live: Any = hop.live
            live.add(entry)
            entry.parent = hop
            if before.live is not None:
                before.live.discard(entry)
        if entry.done is not None:  # by another thread, which may have looked for it at the other hop
            live.discard(entry)
            self.settle(hop)
        self.settle(before)

    def appear(self, entry: Entry) -> None:
        """Make an entry visible, and count it on its parent."""
        parent = entry.parent
        with self._lock:
            late = False
            # What other threads may change from now on has to be there.
            entry.live = set()
            if parent is not None:
                # A parent whose record is out cannot be declared on again: the child is late, and a correction follows.
                if parent.closed:
                    late = entry.late = True
                    parent.late_children += 1
                else:
                    parent.children += 1
            entry.visible = True
            self.size += 1
            self.hops[id(entry)] = entry
        self.observer.opened(entry)
        if late and parent is not None:
            self.observer.late(parent)

    def _drop(self, parent: Entry | None) -> None:
        with self._lock:
            self.dropped += 1
            if parent is None:
                return
            parent.dropped += 1
            if not parent.closed:
                return
        self.observer.late(parent)

    # Closing -----------------------------------------------------------------------------------------------

    def release(self, entry: Entry) -> None:
        """Close an invisible entry whose work is over. One that failed or was lost is revealed instead."""
        if entry.outcome == "failed" or entry.outcome == "abandoned":
            self._reveal(entry)
            return
        if entry.visible:  # revealed by another thread in between
            self.settle(entry)
            return
        self.size -= 1
        if len(self.durations) < DURATIONS_A_TICK:
            self.durations.append((entry.kind, (entry.done or 0) - entry.started))
        parent = entry.parent
        if parent is not None and parent.live is not None:
            parent.live.discard(entry)
            if parent.done is not None and not parent.live:
                self.settle(parent)

    def hold(self, hop: Entry) -> bool:
        """Count one item that was put into a queue for `hop`, without an entry of its own.

        Returns:
            False where `hop` has closed: the item then needs an entry, which is late.
        """
        hop.held += 1
        if hop.closed:
            hop.held -= 1
            return False
        return True

    def unhold(self, hop: Entry) -> None:
        """Say that one item that `hold` counted has been worked off, or got an entry of its own."""
        hop.held -= 1
        if hop.done is not None and not hop.held:
            self.settle(hop)

    def settle(self, entry: Entry) -> None:
        """Close a visible entry if its work is over and nothing invisible below it lives."""
        if entry.done is None or entry.closed or entry.live or entry.held or not entry.visible:
            return
        with self._lock:
            if entry.closed or entry.live or entry.held:
                return
            entry.closed = True
            if (
                entry.live or entry.held
            ):  # opened in between, by a thread that may have looked before we said so
                entry.closed = False
                return
            self.hops.pop(id(entry), None)
            self.size -= 1
        self.observer.closed(entry)
        # A chain of hops, each made by the one before, must not keep all of them in memory.
        entry.parent = None

    # Looking -----------------------------------------------------------------------------------------------

    def open_hops(self) -> list[Entry]:
        """The visible entries that are open, oldest first."""
        return list(self.hops.values())

    def overdue(self, before: int) -> list[Entry | Note]:
        """The invisible entries that began before `before` (Unix nanoseconds), oldest first."""
        return sorted(
            (entry for entry in self.invisible() if entry.started < before), key=lambda entry: entry.started
        )

    def invisible(self) -> list[Entry | Note]:
        """The open entries that cannot be seen outside."""
        out: list[Entry | Note] = []
        for hop in self.open_hops():
            if hop.live:
                out.extend(self.below(hop, self.capacity))
        return out

    def below(self, hop: Entry, limit: int) -> list[Entry | Note]:
        """At most `limit` of the invisible entries that live below `hop`."""
        live = hop.live
        if not live:
            return []
        for _ in range(8):
            try:
                return list(itertools.islice(live, limit))
            except RuntimeError:  # another thread added to it meanwhile
                continue
        return []

    def __len__(self) -> int:
        return self.size
