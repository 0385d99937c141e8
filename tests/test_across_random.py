"""Does it ever call agents stuck that are not, or miss that they are? Random agents, simulated, with a model that knows.

Executions in several processes work, take locks, wait for events and send one another messages, with clocks that differ and
records that take their time. Their processes look at them as `hopwatch.telemetry` does: piece by piece, at any moment. The model
knows what can still move.
"""

import random
from dataclasses import dataclass, field

from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from hopwatch.records import Hop
from hopwatch.verdict import SECOND, SKEW_THAT_COUNTS, Agent, judge

MS = 1_000_000
START = 1_000_000 * SECOND
LOCKS, EVENTS = 1, 2


@dataclass
class Run:
    """An execution, with the request that brought it, and the send that brought that."""

    process: int
    program: list
    execution: Hop
    request: Hop
    caller: "Run | None"
    send: Hop | None
    doing: tuple = ("ready",)
    futures: int = 0
    """How often it has begun to wait: each time for another future."""

    def goes(self, *doing):
        self.doing = doing
        self.futures += 1


@dataclass
class Looked:
    """What a process remembers of its looks at a hop."""

    told: dict | None = None
    moves: bool | None = None
    rests_on: frozenset = frozenset()
    since: float = 0.0
    at: int = 0


@dataclass
class Process:
    """One process: its clock, what it has looked at, and what it has sent that has not arrived."""

    clock: int
    """By how much it is wrong, in nanoseconds."""
    looks: dict = field(default_factory=dict)
    outbox: list = field(default_factory=list)


class World:
    """Agents that work, and a collector that hears of them."""

    def __init__(self, clocks, chance):
        self.chance = chance
        self.now = START
        self.processes = [Process(clock) for clock in clocks]
        self.runs = []
        self.holders = {}
        self.queues = {}
        self.set = set()
        self.answered = set()
        self.transit = []
        """(when, what happens then)."""
        self.hops = {}
        self.known = {}
        self.agents = {}
        self.numbers = 0
        self.timers = {}
        self.timed_out = False

    def hop(self, process, kind, parent, *, remote=False):
        self.numbers += 1
        name = "abcdef"[process]
        clock = self.now + self.processes[process].clock
        made = Hop("c" * 32, f"{self.numbers:016x}", name * 16, name, kind, kind, started=clock)
        made.parent, made.remote = (parent.id if parent else None), remote
        self.hops[made.id] = made
        if parent and not remote:
            parent.children += 1
        return made

    def arrive(self, process, program, caller=None, send=None, *, blocking=True):
        request = self.hop(process, "request", send, remote=send is not None)
        execution = self.hop(process, "execution", request)
        run = Run(process, list(program), execution, request, caller, send)
        self.runs.append(run)
        if not blocking:
            self.answer(run)

    def answer(self, run):
        """Answer the request of an execution; its hop ends a little later."""
        if run.request.id in self.answered:
            return
        self.answered.add(run.request.id)
        self.later(lambda: self.end(run.request))
        if run.caller is not None:
            self.later(lambda: self.go_on(run.caller, run.send))

    def end(self, hop):
        process = self.processes["abcdef".index(hop.agent)]
        hop.ended, hop.outcome = self.now + process.clock, "finished"
        process.looks.pop(hop.id, None)
        self.tell(process, hop)

    # What happens ------------------------------------------------------------------------------------------------

    def pass_time(self, ns):
        until = self.now + ns
        while due := [each for each in self.transit if each[0] <= until]:
            first = min(due, key=lambda each: each[0])
            self.transit.remove(first)
            self.now = max(self.now, first[0])
            first[1]()
        self.now = until

    def later(self, what):
        self.transit.append((self.now + self.chance.choice((1, 50, 3000)) * MS, what))

    def step(self, run):
        """Do the next thing of an execution."""
        self.now += MS
        if not run.program:
            self.runs.remove(run)
            self.end(run.execution)
            self.answer(run)
            return
        what, *more = run.program.pop(0)
        if what == "work":
            run.goes("working")
            self.later(lambda: run.goes("ready"))
        elif what == "take":
            lock = (run.process, more[0])
            if lock in self.holders:
                run.goes("lock", lock)
                self.queues.setdefault(lock, []).append(run)
            else:
                self.holders[lock] = run
        elif what == "release":
            lock = (run.process, more[0])
            del self.holders[lock]
            if waiting := self.queues.get(lock):
                self.holders[lock] = waiting.pop(0)
                self.holders[lock].goes("ready")
        elif what == "wait" and more[0] not in self.set:
            run.goes("event", more[0])
        elif what == "set":
            self.set.add(more[0])
            for each in self.runs:
                if each.doing == ("event", more[0]):
                    each.goes("ready")
        elif what == "send":
            to, program, timeout, blocking = more
            send = self.hop(run.process, "send", run.execution)
            until = self.now + timeout * SECOND if timeout else None
            run.goes("send", send, until)
            self.later(lambda: self.arrive(to, program, run, send, blocking=blocking))
            if until is not None:
                self.timers[send.id] = (until, lambda: self.time_out(run, send))
                self.transit.append(self.timers[send.id])

    def go_on(self, run, send):
        """The answer has come, or the time for it is over."""
        if run.doing[:2] == ("send", send):
            timer = self.timers.pop(send.id, None)
            self.transit = [each for each in self.transit if each is not timer]
            self.end(send)
            run.goes("ready")

    def time_out(self, run, send):
        self.timed_out = True
        self.go_on(run, send)

    def stuck(self):
        """Whether nothing can ever happen any more."""
        return not self.transit and all(run.doing[0] in ("lock", "event", "send") for run in self.runs)

    def circle(self):
        """Whether executions wait for one another round and round, by way of a message."""
        for first in self.runs:
            run, seen = first, []
            while run is not None and run not in seen:
                seen.append(run)
                if run.doing[0] == "lock":
                    run = self.holders[run.doing[1]]
                elif run.doing[0] == "send":
                    run = next((each for each in self.runs if each.send is run.doing[1]), None)
                else:
                    run = None
            if run is not None and any(each.doing[0] == "send" for each in seen[seen.index(run) :]):
                return True
        return False

    # What is told of it --------------------------------------------------------------------------------------------

    def waits(self, run, seen=()):
        """What an execution waits on: whether it moves, the sends that alone could end it, when, and the futures."""
        rests_on = {(run.execution.id, run.futures)}
        if run.doing[0] in ("ready", "working"):
            return True, [], None, set()
        if run.doing[0] == "event" or run in seen:
            return False, [], None, rests_on
        if run.doing[0] == "send":
            send, until = run.doing[1:]
            expires = None if until is None else (until + self.processes[run.process].clock) / SECOND
            return True, [send.id], expires, rests_on
        moves, asks, expires, more = self.waits(self.holders[run.doing[1]], (*seen, run))
        return moves, asks, expires, rests_on | more

    def look(self, hop):
        self.now += MS
        process = self.processes["abcdef".index(hop.agent)]
        looked = process.looks.setdefault(hop.id, Looked())
        clock = self.now + process.clock
        told = {}
        if hop.kind == "request":
            moves, asks, expires, rests_on = False, [], None, {hop.id}
            if hop.id not in self.answered:
                told["owes"] = True
        else:
            run = next(
                each for each in self.runs if hop in (each.execution, each.doing[1:2] and each.doing[1])
            )
            moves, asks, expires, rests_on = self.waits(run)
            if run.doing[0] == "lock" and hop is run.execution:
                told.update(kind="lock", what="lock", holder_hop=self.holders[run.doing[1]].execution.id)
        if asks:
            told["asks"] = asks
            if expires is not None:
                told["expires"] = expires
        if looked.rests_on != rests_on:
            looked.since = clock / SECOND
        if asks or not moves:
            told["since"] = looked.since
        before = (looked.told, looked.moves)
        looked.told, looked.moves, looked.rests_on, looked.at = told, moves, frozenset(rests_on), clock
        if (told, moves) != before:
            hop.waits, hop.moves, hop.sampled = told, moves, clock
            self.tell(process, hop)

    def tell(self, process, hop):
        process.outbox.append(Hop(**{name: getattr(hop, name) for name in Hop.__slots__}))

    def beat(self, number):
        process = self.processes[number]
        sampled = min((look.at for look in process.looks.values()), default=0)
        process.outbox.append(sampled)

    def deliver(self, number, count):
        name = "abcdef"[number]
        agent = self.agents.setdefault(name * 16, Agent(name * 16, name))
        outbox = self.processes[number].outbox
        for record in outbox[:count]:
            if isinstance(record, int):
                agent.sampled = record
                continue
            record.heard = record.arrived = self.now
            if record.id in self.known:
                self.known[record.id].merge(record)
            else:
                self.known[record.id] = record
        del outbox[:count]

    def verdict(self):
        for agent in self.agents.values():
            agent.heard = self.now  # nobody is silent
        return judge(self.known, self.agents, now=self.now)

    def open(self):
        return [hop for hop in self.hops.values() if hop.ended is None]


def programs(processes, depth):
    """What an execution does, one thing after the other."""
    lock = st.integers(0, LOCKS - 1)
    steps = st.one_of(
        st.just([("work",)]),
        st.integers(0, EVENTS - 1).map(lambda number: [("set", number)]),
        st.integers(0, EVENTS - 1).map(lambda number: [("wait", number)]),
    )
    if depth:
        below = programs(processes, depth - 1)
        sends = st.tuples(
            st.just("send"),
            st.integers(0, processes - 1),
            below,
            st.sampled_from((0, 0, 0, 20)),
            st.sampled_from((True, True, False)),
        )
        inside = st.one_of(sends.map(lambda each: [each]), steps)
        taken = st.tuples(lock, inside).map(lambda each: [("take", each[0]), *each[1], ("release", each[0])])
        steps = st.one_of(sends.map(lambda each: [each]), taken, taken, steps)
    else:
        steps = st.one_of(lock.map(lambda number: [("take", number), ("work",), ("release", number)]), steps)
    return st.lists(steps, min_size=1, max_size=3).map(lambda found: [one for each in found for one in each])


def roots(processes):
    """What the first execution does: often it sends while it holds a lock."""
    plain = programs(processes, 3)
    below = programs(processes, 2)
    held = st.tuples(st.integers(1, processes - 1), below, st.sampled_from((0, 0, 20))).map(
        lambda each: [("take", 0), ("send", *each, True), ("release", 0)]
    )
    return st.one_of(held, plain)


def judged(world):
    """Hear what the collector says, and let the model check it."""
    found = world.verdict()
    asking = any(hop.ended is None and hop.moves is not False for hop in world.known.values())
    if found.verdict == "stalled" and asking:
        assert world.stuck(), found.reason
        assert bool(found.deadlocks) == world.circle(), found.reason
    if found.verdict == "in_flight" and found.deadlocks:
        # What a timer may still undo, or has undone already: but for timers, nothing moves.
        assert all("until" in each for each in found.deadlocks)
        assert world.timed_out or world.circle(), found.reason
        assert world.timed_out or all(run.doing[0] in ("lock", "event", "send") for run in world.runs)
    return found


def play(world, chance, steps):
    for _ in range(steps):
        choice = chance.random()
        ready = [run for run in world.runs if run.doing == ("ready",)]
        if choice < 0.4 and ready:
            world.step(chance.choice(ready))
        elif choice < 0.65 and world.open():
            world.look(chance.choice(world.open()))
        elif choice < 0.75:
            world.beat(chance.randrange(len(world.processes)))
        elif choice < 0.9:
            world.deliver(chance.randrange(len(world.processes)), chance.randrange(1, 12))
            judged(world)
        else:
            world.pass_time(chance.choice((1, 100, 1000, 4000)) * MS)


def look_at_everything(world):
    for number in range(len(world.processes)):
        for hop in world.open():
            if hop.agent == "abcdef"[number]:
                world.look(hop)
        world.beat(number)
        world.deliver(number, 10_000)


def asks_itself(timeout, blocking):
    """Send to an agent that sends to itself while it holds a lock that the second message needs."""
    inner = ("send", 1, [("take", 0), ("work",), ("release", 0)], 0, True)
    return ("send", 1, [("take", 0), inner, ("release", 0)], timeout, blocking)


@given(
    st.integers(2, 3).flatmap(lambda count: st.tuples(st.just(count), roots(count))),
    st.lists(st.integers(-900, 900), min_size=3, max_size=3),
    st.integers(0, 2**32),
)
@example((2, [asks_itself(20, False)]), [0, 0, 0], 0)  # the timer of a send that has been answered
@example(
    (2, [asks_itself(20, True)]), [0, 0, 0], 0
)  # a timer that has gone off, which the collector has not heard of
@settings(max_examples=200, deadline=None)
def test_agents_are_called_stuck_only_if_they_are_and_always_once_they_have_been_looked_at_twice(
    made, clocks, seed
):
    count, program = made
    chance = random.Random(seed)
    world = World([clock * MS for clock in clocks[:count]], chance)
    world.arrive(0, program)
    play(world, chance, 150)
    for _ in range(400):  # let it come to its end, or to where it sticks
        ready = [run for run in world.runs if run.doing == ("ready",)]
        if ready:
            world.step(chance.choice(ready))
        elif world.transit:
            world.pass_time(min(when for when, _ in world.transit) - world.now)
        else:
            break
    assert world.stuck()
    look_at_everything(world)
    judged(world)
    world.pass_time(2 * SKEW_THAT_COUNTS)
    look_at_everything(world)
    found = judged(world)
    assert found.verdict == ("stalled" if world.runs else "settled"), found.reason
    kind = "circle" if world.circle() else "stuck" if world.runs else "ended"
    event(kind)
