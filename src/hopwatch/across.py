"""Do the open hops of a cascade only wait for one another, over process boundaries? And do they go round in a circle?

A send waits for a socket, and a socket may move at any moment: seen from its process it is never stalled. Seen from both
sides it may be. If the send awaits nothing but the answer to its message, and the request that took the message has not
begun to answer and cannot go on, then no answer comes. So what a hop waits on is told with `asks`: the sends whose
answers alone could end it. Nothing moves by itself if

- every open hop is passive or asks, and each send that is asked for has brought exactly one hop, which is open and owes
  its answer;
- no timer is pending on any of it;
- all of it held at one moment. Each hop says since when it rests on the very same futures, and until when somebody
  looked. Where all these spans of time share a moment, no hop was on its way to move while another was looked at, for
  whoever moves gets another future. What was sent before that moment had arrived, and no answer had begun.

From such a state only somebody outside can bring anything on: a person, another cascade, or a gateway between the two that
gives up. That it is a circle, and not only a stall, is said where each step is known: a send, the request that it
brought, the execution of that request (or the one that has the request's A2A task), and a lock's holder.

Pure: nothing here reads a clock or a store.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hopwatch.records import Hop

SECOND: Final = 1_000_000_000
MAX_OPEN: Final = 2_000
"""Open hops of one cascade that are looked at; with more nothing is said."""
MAX_CIRCLES: Final = 3
MAX_STEPS: Final = 32
"""Steps of a circle that are told."""
APART: Final = 1_000_000
"""Nanoseconds by which times must differ that were rounded on their way."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a circle: a hop, and the one that it waits for."""

    hop: Hop
    to: Hop
    kind: str
    """`answer` (of the request that its send brought), `execution` (of a request), `task` (the A2A task is being worked on)
    or `lock`."""


@dataclass(frozen=True, slots=True)
class Standstill:
    """The open hops of a cascade wait for one another.

    Attributes:
        until: when a timer undoes it, in Unix seconds by the clock of its agent; None where none is pending.
        circles: who waits for whom round and round, by way of at least one message; shortest first.
    """

    until: float | None
    circles: tuple[tuple[Step, ...], ...]


def find(
    hops: Mapping[str, Hop],
    below: Mapping[str, Sequence[Hop]],
    opened: Sequence[Hop],
    *,
    span_of: Callable[[Hop], tuple[int, int]],
    after: int,
    margin: int,
) -> Standstill | None:
    """Say whether the open hops of a cascade wait for one another, and for nothing else.

    Args:
        hops: by id.
        below: by id, the hops whose parent it is.
        opened: the hops that have not ended.
        span_of: how far to correct the times of a hop's process, and when somebody last looked at it, by one clock for
            all: nanoseconds.
        after: when anything of the cascade last began or ended, by the same clock.
        margin: by how many nanoseconds the clocks of two processes may differ all the same.

    Returns:
        What holds them up, or None where any of them may move by itself, or that cannot be told.
    """
    if not opened or len(opened) > MAX_OPEN:
        return None
    first, last = after, 2**63
    times: list[float] = []
    asking = False
    for hop in opened:
        waits = hop.waits or {}
        since = _number(waits.get("since"))
        if since is None or not _rests(hop, waits, hops, below):
            return None
        asking = asking or hop.moves is not False
        correction, looked = span_of(hop)
        first = max(first, int(since * SECOND) + correction)
        last = min(last, looked)
        until = _number(waits.get("expires")) if hop.moves is not False else None
        if until is not None:
            times.append(until)
    if not asking or last - first < APART:
        return None
    if last - first < margin and any(hop.instance != opened[0].instance for hop in hops.values()):
        return None
    return Standstill(min(times, default=None), _circles(hops, below, opened))


def request_of(send: Hop, below: Mapping[str, Sequence[Hop]]) -> Hop | None:
    """Return the one hop that a message brought, where it is open and has not begun to answer; None for any doubt."""
    if send.kind not in ("send", "push") or send.ended is not None or send.attempts > 1:
        return None
    brought = [hop for hop in below.get(send.id, ()) if hop.remote]
    if len(brought) != 1:
        return None
    hop = brought[0]
    owes = hop.ended is None and (hop.waits or {}).get("owes") is True
    return hop if owes else None


def _rests(
    hop: Hop, waits: Mapping[str, Any], hops: Mapping[str, Hop], below: Mapping[str, Sequence[Hop]]
) -> bool:
    """Whether a hop is passive, or can only be moved by the answers of others that are open."""
    if hop.moves is False:
        return True
    asks = _asks(waits)
    if not asks:
        return False
    return all(ask in hops and request_of(hops[ask], below) is not None for ask in asks)


def _asks(waits: Mapping[str, Any]) -> list[str]:
    asks = waits.get("asks")
    return asks if isinstance(asks, list) and all(isinstance(each, str) for each in asks) else []


def _number(value: object) -> float | None:
    """Return a time in Unix seconds, None where it is none: records come from anybody."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 4e9:
        return None
    return float(value)


# Circles ---------------------------------------------------------------------------------------------------------


def _circles(
    hops: Mapping[str, Hop], below: Mapping[str, Sequence[Hop]], opened: Sequence[Hop]
) -> tuple[tuple[Step, ...], ...]:
    steps = {hop.id: _steps(hop, hops, below, opened) for hop in opened}
    found: list[tuple[Step, ...]] = []
    told: set[str] = set()
    for hop in sorted(opened, key=lambda each: (each.started, each.id)):
        # A circle that leads through no message is its own process's to tell.
        if hop.id in told or not any(step.kind == "answer" for step in steps[hop.id]):
            continue
        circle = _shortest(hop, steps)
        if circle is not None:
            told.update(step.hop.id for step in circle)
            found.append(circle)
    found.sort(key=len)
    return tuple(found[:MAX_CIRCLES])


def _steps(
    hop: Hop, hops: Mapping[str, Hop], below: Mapping[str, Sequence[Hop]], opened: Sequence[Hop]
) -> list[Step]:
    waits = hop.waits or {}
    if hop.moves is not False:
        holder = hops.get(str(waits.get("holder_hop")))
        if waits.get("kind") == "lock" and holder is not None and holder.ended is None:
            return [Step(hop, holder, "lock")]
        # A send is told as a step of the one that waits for it.
        requests = [request_of(hops[ask], below) for ask in _asks(waits) if ask in hops and ask != hop.id]
        return [Step(hop, request, "answer") for request in requests if request is not None]
    if hop.kind != "request":
        return []
    own = [each for each in below.get(hop.id, ()) if each.kind == "execution" and not each.remote]
    if own:
        return [Step(hop, each, "execution") for each in own if each.ended is None]
    # The SDK runs the requests of one A2A task one after the other.
    return [
        Step(hop, each, "task")
        for each in opened
        if hop.task_id
        and each.kind == "execution"
        and each.task_id == hop.task_id
        and each.instance == hop.instance
    ]


def _shortest(start: Hop, steps: Mapping[str, list[Step]]) -> tuple[Step, ...] | None:
    """Return the shortest way from a hop back to itself."""
    came: dict[str, Step] = {}
    todo = deque([start])
    while todo:
        hop = todo.popleft()
        for step in steps.get(hop.id, ()):
            if step.to.id in came:
                continue
            came[step.to.id] = step
            if step.to.id == start.id:
                way = [step]
                while way[-1].hop.id != start.id:
                    way.append(came[way[-1].hop.id])
                return tuple(reversed(way))
            todo.append(step.to)
    return None
