"""What happens in each run of the storm? Everything that is random is drawn here, from one seed."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass

ALIVE = ("return", "exception", "sys_exit", "keyboard", "sigint", "loop_close", "swallow", "execv", "sigterm")
"""Ways out at whose beginning Python runs: what is pending is told by the process itself."""
KILLED = ("sigterm_twice", "sigkill", "os_exit", "abort", "segfault", "stop_kill")
"""Ways out of which no code of the process tells, or of which it may not."""
ONWARDS = ("clean", "gc", "fork_exit", "fork_kill")
"""What is no way out: the program goes on to its end, but for what was lost on the way."""
WAYS = (*ONWARDS, *ALIVE, *KILLED)
OF_SERVERS = tuple(way for way in WAYS if way not in ("return", "exception", "loop_close", "swallow"))
"""The ways out of a process that serves; the others are of who owns the main function."""
ROLES = ("worker", "planner", "user")


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        number: which one, from 0.
        seed: of the programs' own work.
        way: the way out; one of `WAYS`.
        victim: which process takes it: `alone`, or one of `ROLES` where agents talk to one another.
        loop: `asyncio` or `uvloop`.
        step: at which of the victim's steps (a line of its diary) it does so; at its end if there are fewer.
        jitter: seconds that go by in another thread between the step and a signal or crash; 0 for none.
        detail: HOPWATCH_DETAIL.
        hangs: whether work may hang for ever.
    """

    number: int
    seed: str
    way: str
    victim: str
    loop: str
    step: int
    jitter: float
    detail: str
    hangs: bool

    def text(self) -> str:
        """As a program gets it."""
        return json.dumps(asdict(self))

    @property
    def roles(self) -> tuple[str, ...]:
        """Its processes."""
        return ("alone",) if self.victim == "alone" else ROLES


def planned(seed: int, runs: int) -> list[Run]:
    """All runs of a storm. Each way out has its turn as often as any other; a quarter of the runs are of agents."""
    draw = random.Random(seed)
    out: list[Run] = []
    ways: list[str] = []
    for number in range(runs):
        if not ways:
            ways = list(WAYS)
            draw.shuffle(ways)
        way = ways.pop()
        agents = number % 4 == 3
        victim = draw.choice(ROLES if way in OF_SERVERS else ("user",)) if agents else "alone"
        lines = {"alone": 50, "user": 30, "planner": 10, "worker": 20}[victim]
        out.append(
            Run(
                number=number,
                seed=f"{seed}/{number}",
                way=way,
                victim=victim,
                loop=draw.choice(("asyncio", "uvloop")),
                step=draw.randint(1, lines),
                jitter=draw.choice((0.0, 0.0, draw.uniform(0, 0.001), draw.uniform(0, 0.3))),
                detail=draw.choice(("hops", "all")),
                hangs=way not in ONWARDS and draw.random() < 0.5,
            )
        )
    return out
