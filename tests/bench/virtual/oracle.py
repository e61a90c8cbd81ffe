"""The yardstick: one who sees into the upstream and into the future, and so is never refused and never late.

It knows each interactive call before it comes and what it will cost, and lets a job's call go only if all of those will
still find room. It sends each caller's calls in the order in which they came, as everybody else does. Nobody can be much
faster than this without making people wait, but for one trick: to begin with the longest answers, so that none of them
is left over at the end (`longest_first`). That takes more than sight of the upstream, and is shown apart.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from tests.bench.virtual.contenders import Contender
from tests.bench.virtual.upstreams import Metered, Reply, Slots, Upstream
from tests.bench.virtual.world import JOBS, Call


class _Foresight(Protocol):
    """What is known of one upstream's future."""

    def fits(self, call: Call, now: float) -> bool:
        """Returns: Whether the job's call finds room now, and leaves it for all people to come."""

    def take(self, call: Call, now: float) -> None:
        """The job's call is sent."""

    def opens_in(self, call: Call, now: float) -> float | None:
        """Returns: Seconds until time alone gives it room."""


class Oracle(Contender):
    """Args: people: All the interactive calls that will come, by time of arrival."""

    def __init__(self, upstream: Upstream, people: list[Call], *, longest_first: bool = False) -> None:
        super().__init__(upstream)
        self._longest_first = longest_first
        self._future: _Foresight
        self._future = _Places(upstream, people) if isinstance(upstream, Slots) else _Quota(upstream, people)
        self._people: deque[Call] = deque()
        self._lines: dict[str, deque[Call]] = {name: deque() for name in JOBS}
        self._served = dict.fromkeys(JOBS, 0)  # tokens

    def offer_all(self, jobs: list[Call]) -> None:
        for call in sorted(jobs, key=lambda call: -call.seconds) if self._longest_first else jobs:
            self._lines[call.caller].append(call)

    def offer(self, call: Call) -> None:
        self._people.append(call)

    def pump(self) -> Iterator[Call]:
        while self._people:
            yield self._people.popleft()
        while (call := self._next()) is not None:
            self._served[call.caller] += call.tokens
            self._future.take(call, self.now)
            yield call

    def opens_in(self) -> float | None:
        line = self._next_line()
        return self._future.opens_in(line[0], self.now) if line else None

    def ended(self, call: Call, reply: Reply) -> float | None:
        assert reply.ok, "the oracle was refused"
        return None

    def _next(self) -> Call | None:
        line = self._next_line()
        if not line:
            return None
        if self._future.fits(line[0], self.now):
            return line.popleft()
        if self._longest_first and self._future.fits(line[-1], self.now):  # a short one fills the gap
            return line.pop()
        return None

    def _next_line(self) -> deque[Call] | None:
        """The calls of the caller who has had least."""
        waiting = [name for name, line in self._lines.items() if line]
        return self._lines[min(waiting, key=self._served.__getitem__)] if waiting else None


class _Places:
    """Slots: at each arrival to come, one must be free."""

    def __init__(self, upstream: Slots, people: list[Call]) -> None:
        self._upstream = upstream
        self._arrivals = [call.arrived for call in people]
        self._free = []  # at each arrival, once the call has taken its place
        for place, call in enumerate(people):
            still = sum(other.arrived + other.seconds > call.arrived for other in people[:place])
            self._free.append(upstream.count_at(call.arrived) - still - 1)

    def fits(self, call: Call, now: float) -> bool:
        if self._upstream.busy >= self._upstream.count:
            return False
        return all(self._free[place] > 0 for place in self._during(call, now))

    def take(self, call: Call, now: float) -> None:
        for place in self._during(call, now):
            self._free[place] -= 1

    def opens_in(self, call: Call, now: float) -> float | None:
        return None

    def _during(self, call: Call, now: float) -> range:
        """The arrivals while the call would be worked on."""
        return range(bisect_right(self._arrivals, now), bisect_right(self._arrivals, now + call.seconds))


class _Quota:
    """A bucket: from each arrival to the next it must hold what all of those to come still need."""

    def __init__(self, upstream: Metered, people: list[Call]) -> None:
        self._upstream = upstream
        self._arrivals = [call.arrived for call in people]
        self._needed = [0.0] * (len(people) + 1)  # just before each arrival
        for place in range(len(people) - 1, -1, -1):
            later = self._needed[place + 1]
            if place + 1 < len(people):
                later -= upstream.gain(self._arrivals[place], self._arrivals[place + 1])
            self._needed[place] = upstream.cost(people[place]) + max(0.0, later)

    def fits(self, call: Call, now: float) -> bool:
        return self._missing(call, now) <= 0.0

    def take(self, call: Call, now: float) -> None:
        """The upstream counts it itself."""

    def opens_in(self, call: Call, now: float) -> float | None:
        soon = 0.1
        return max(0.0, self._missing(call, now)) / max(self._upstream.gain(now, now + soon) / soon, 1.0)

    def _missing(self, call: Call, now: float) -> float:
        place = bisect_right(self._arrivals, now)
        keep = 0.0
        if place < len(self._arrivals):
            keep = max(0.0, self._needed[place] - self._upstream.gain(now, self._arrivals[place]))
        return self._upstream.cost(call) + keep - self._upstream.left()
