"""What does a pending asyncio task wait on, and can that move by itself?

A wait is passive (`moves` is False) if only other work can end it: a future that nobody has set, an event, a lock, a
queue. It moves if code runs, a timer, a socket or a thread can end it, or if there is any doubt. The rule: the innermost
frame outside asyncio decides. In the application, the A2A SDK or ACP an asyncio primitive is what it seems; inside any
other library the same primitive may stand for a socket (httpcore waits for its data on an `asyncio.Event`).

Called from a thread that is not the loop's, on tasks that run, finish or are collected meanwhile, so:

- nothing here runs code of the application: no `repr`, no `==`, no attribute that could be a property (`objects.py`);
- nothing reads `frame.f_locals` (but for one frame of the standard library, see `threads.py`): up to Python 3.12 that is a dict which stays on the frame, is the one that the
  application's own `locals()` returned, and keeps deleted locals alive. `gc.get_referents` of a coroutine tells the same
  objects in one step under the GIL and leaves nothing behind; what lacks is the names, and those come from the bytecode;
- a passive verdict is confirmed at the end: every future that it rests on must still be pending and still be what its task
  waits on. So all of it held at one moment, though it was read piece by piece;
- what is returned holds strings and numbers, never an object of the application.

The limits: a future that a library hands to the application to await directly looks like one of the application's own. On
a Python without the GIL nothing here is safe.
"""

from hopwatch.waits.chain import is_application
from hopwatch.waits.deadlock import Deadlock
from hopwatch.waits.facts import Job, Queue, Send
from hopwatch.waits.graph import Free, Known
from hopwatch.waits.graph import find as deadlocks
from hopwatch.waits.judging import asked, glance, of_task
from hopwatch.waits.timers import Timers, clock, when_of, with_times
from hopwatch.waits.wait import Across, Wait

__all__ = [
    "Across", "Deadlock", "Free", "Job", "Known", "Queue", "Send", "Timers", "Wait", "asked", "clock", "deadlocks", "glance",
    "is_application", "of_task", "when_of", "with_times",
]  # fmt: skip
