"""One contender on one upstream, from the first call to the last."""

import math
from dataclasses import dataclass, field

from tests.bench.virtual.contenders import Contender
from tests.bench.virtual.scenarios import CONTENDERS, ITEMS, SCENARIOS
from tests.bench.virtual.upstreams import Reply, Slots, Step
from tests.bench.virtual.world import JOBS, Call, Clock, Draw

_SOONEST = 1e-3  # seconds: a wait that rounds to nothing must not stop the clock
_SAMPLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Person:
    """One interactive call, seconds from its arrival to its first and to its last token."""

    arrived: float
    first: float
    last: float


@dataclass(slots=True)
class Outcome:
    """What a race has shown.

    Attributes:
        makespan: Seconds to the last answer of the jobs.
        calls: All of them; each succeeded in the end.
        refusals: When the upstream said 429.
        jain: Index of the tokens that were served to the three callers while all of them still had calls to send.
        load: (time, slots at work, slots there are), twice a second; empty where an upstream has no slots.
    """

    makespan: float
    calls: int
    refusals: list[float]
    people: list[Person]
    jain: float
    steps: tuple[Step, ...] = ()
    load: list[tuple[float, int, int]] = field(default_factory=list)


def race(scenario: str, contender: str, items: int = ITEMS, seed: int = 1, *, jobs: bool = True) -> Outcome:
    """Args:
        items: Of each of the three jobs.
        jobs: False: the same people on the same upstream, without the jobs.
    Raises:
        RuntimeError: It came to a standstill.
    """
    return _Race(scenario, contender, items, seed, jobs=jobs).run()


class _Race:
    def __init__(self, scenario: str, contender: str, items: int, seed: int, *, jobs: bool) -> None:
        plan = SCENARIOS[scenario]
        self.clock = Clock()
        self.upstream = plan.build(self.clock, items / ITEMS)
        self.people = Draw(2 * seed, heavy=plan.heavy).people(plan.people_until(items))
        self.jobs = Draw(2 * seed + 1, heavy=plan.heavy).jobs(items if jobs else 0)
        self.who: Contender = CONTENDERS[contender](self.upstream, self.people)
        self.refusals: list[float] = []
        self.load: list[tuple[float, int, int]] = []
        self._left = len(self.jobs) + len(self.people)
        self._wakes_at = math.inf

    def run(self) -> Outcome:
        for call in self.people:
            self.clock.at(call.arrived, lambda call=call: self._offer(call))  # type: ignore[misc]
        self.clock.at(0.0, self._start)
        self.clock.at(0.0, self._sample)
        while self._left:
            if not self.clock.step():
                raise RuntimeError(f"{self._left} calls are left, and nothing will ever happen again")
        return Outcome(
            makespan=max((call.done for call in self.jobs), default=0.0),
            calls=len(self.jobs) + len(self.people),
            refusals=self.refusals,
            people=[Person(one.arrived, one.answered - one.arrived, one.done - one.arrived) for one in self.people],
            jain=_jain(self.jobs),
            steps=self.upstream.steps,
            load=self.load,
        )

    def _start(self) -> None:
        self.who.offer_all(self.jobs)
        self._send()

    def _offer(self, call: Call) -> None:
        self.who.offer(call)
        self._send()

    def _again(self, call: Call) -> None:
        self.who.again(call)
        self._send()

    def _send(self) -> None:
        for call in self.who.pump():
            call.sent = self.clock.now
            self.upstream.send(call, self._first, self._ended)
        wait = self.who.opens_in()
        if wait is None:
            return
        when = self.clock.now + max(wait, _SOONEST)
        if when < self._wakes_at or self._wakes_at <= self.clock.now:
            self._wakes_at = when
            self.clock.at(when, lambda: self._wake(when))

    def _wake(self, when: float) -> None:
        if when == self._wakes_at:  # else an earlier moment has taken its place
            self._wakes_at = math.inf
            self._send()

    def _first(self, call: Call, reply: Reply) -> None:
        call.answered = self.clock.now
        self.who.first(call, reply)
        self._send()

    def _ended(self, call: Call, reply: Reply) -> None:
        if reply.ok:
            self._left -= 1
            call.done = self.clock.now
        else:
            call.refusals += 1
            self.refusals.append(self.clock.now)
        wait = self.who.ended(call, reply)
        if wait is not None:
            self.clock.at(self.clock.now + wait, lambda: self._again(call))
        self._send()

    def _sample(self) -> None:
        if isinstance(self.upstream, Slots):
            self.load.append((self.clock.now, self.upstream.busy, self.upstream.count))
            self.clock.at(self.clock.now + _SAMPLE_SECONDS, self._sample)


def _jain(jobs: list[Call]) -> float:
    """Source: R. Jain, D. Chiu, W. Hawe, "A Quantitative Measure of Fairness and Discrimination", DEC-TR-301, 1984."""
    if not jobs:
        return 1.0
    until = min(max(call.sent for call in jobs if call.caller == name) for name in JOBS)
    served = [sum(call.tokens for call in jobs if call.caller == name and call.done <= until) for name in JOBS]
    return sum(served) ** 2 / (len(served) * sum(tokens * tokens for tokens in served))
