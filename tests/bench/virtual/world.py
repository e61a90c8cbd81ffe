"""A world without waiting: events on a virtual clock, and calls whose cost is drawn once, for all who compete."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

SECONDS_A_TOKEN = 0.01
JOBS = {"small": 0.6, "middle": 1.0, "large": 1.4}  # three callers and the size of their items
PEOPLE = "people"
_LONGEST_ANSWER = 4000.0  # tokens, of the heavy-tailed ones
_BURST_GAP_SECONDS = 2.0
_BURST_SIZE = 2.0
_BURST_SECONDS = 0.2


class Clock:
    """Runs what was planned, in its order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._plan: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0  # those planned for the same moment run in the order of planning

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._plan, (when, self._count, what))

    def step(self) -> bool:
        """Runs the next event. Returns: Whether there was one."""
        if not self._plan:
            return False
        self.now, _, what = heapq.heappop(self._plan)
        what()
        return True


@dataclass(slots=True, eq=False)
class Call:
    """One call and what it costs, whoever sends it; the same for every contender.

    Attributes:
        prompt, output: Tokens.
        first: Seconds to the first token once the upstream works on it.
        pace: Seconds a token.
        arrived, sent, answered, done: When; `sent` for the last time, `answered` is the first token.
        refusals: How often the upstream has refused it.
    """

    caller: str
    batch: bool
    prompt: int
    output: int
    first: float
    pace: float
    arrived: float = 0.0
    sent: float = 0.0
    answered: float = 0.0
    done: float = 0.0
    refusals: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt + self.output

    @property
    def seconds(self) -> float:
        """How long the upstream works on it."""
        return self.first + self.output * self.pace


class Draw:
    """Calls, the same ones for the same seed.

    Args: heavy: Answers' lengths have a heavy tail (Pareto, exponent 1.5) instead of a light one (lognormal).
    """

    def __init__(self, seed: int, *, heavy: bool) -> None:
        self._luck = random.Random(seed)
        self._heavy = heavy

    def jobs(self, items: int) -> list[Call]:
        """Returns: Three jobs of `items` calls each, in the order in which they are offered."""
        return [self._call(name, size, batch=True) for _ in range(items) for name, size in JOBS.items()]

    def people(self, until: float) -> list[Call]:
        """Returns: Interactive calls that come in bursts, one a second on average, with their times, in order."""
        found, now = [], 0.0
        while (now := now + self._luck.expovariate(1 / _BURST_GAP_SECONDS)) < until:
            found.append(self._person(now))
            while self._luck.random() > 1 / _BURST_SIZE:
                found.append(self._person(now))
        return sorted(found, key=lambda call: call.arrived)

    def _person(self, burst_at: float) -> Call:
        call = self._call(PEOPLE, 1.0, batch=False)
        call.arrived = burst_at + self._luck.random() * _BURST_SECONDS
        return call

    def _call(self, caller: str, size: float, *, batch: bool) -> Call:
        luck = self._luck
        if self._heavy:
            output = min(_LONGEST_ANSWER, 60 * size * luck.paretovariate(1.5))
        else:
            output = size * luck.lognormvariate(4.8, 0.5)
        return Call(
            caller,
            batch,
            prompt=max(8, int(size * luck.lognormvariate(4.5, 0.4))),
            output=max(1, int(output)),
            first=luck.lognormvariate(-1.4, 0.2),
            pace=SECONDS_A_TOKEN * luck.lognormvariate(0.0, 0.05),
        )
