"""Upstreams of the virtual world: what they let in, what they refuse, and what they say of their limits."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from app.policies.quota import Quota
from tests.bench.virtual.world import Call, Clock

_REFUSAL_SECONDS = 0.05  # a 429 comes back fast


@dataclass(frozen=True, slots=True)
class Reply:
    """What comes back beside the answer; `ok` False: a 429."""

    ok: bool
    requests: Quota | None = None
    tokens: Quota | None = None
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """From `at` on, there are `share` of the nominal slots; `others` units a second are taken by another client."""

    at: float
    share: float = 1.0
    others: float = 0.0


Listener = Callable[[Call, Reply], None]


class Slots:
    """`count` calls at once; the others wait in a queue (`queue`), or are refused. It says nothing of its limit.

    Args: steps: How capacity changes; calls that are being worked on when it falls are finished.
    """

    def __init__(self, clock: Clock, count: int, *, queue: bool, steps: tuple[Step, ...] = ()) -> None:
        self.clock = clock
        self.nominal = self.count = count
        self.steps = steps
        self.busy = 0
        self._queue: deque[tuple[Call, Listener, Listener]] | None = deque() if queue else None
        for step in steps:
            clock.at(step.at, lambda step=step: self._set(self.count_at(step.at)))  # type: ignore[misc]

    def count_at(self, when: float) -> int:
        share = 1.0
        for step in self.steps:
            share = step.share if step.at <= when else share
        return round(self.nominal * share)

    def send(self, call: Call, on_first: Listener, on_end: Listener) -> None:
        if self._queue is not None:
            self._queue.append((call, on_first, on_end))
            self._serve()
        elif self.busy < self.count:
            self._work(call, on_first, on_end)
        else:
            self.clock.at(self.clock.now + _REFUSAL_SECONDS, lambda: on_end(call, Reply(ok=False)))

    def _set(self, count: int) -> None:
        self.count = count
        self._serve()

    def _serve(self) -> None:
        while self._queue and self.busy < self.count:
            self._work(*self._queue.popleft())

    def _work(self, call: Call, on_first: Listener, on_end: Listener) -> None:
        self.busy += 1
        answered = Reply(ok=True)

        def end() -> None:
            self.busy -= 1
            self._serve()
            on_end(call, answered)

        self.clock.at(self.clock.now + call.first, lambda: on_first(call, answered))
        self.clock.at(self.clock.now + call.seconds, end)


class Metered:
    """A quota of requests or tokens a minute, in a bucket that refills all the time, told in every reply's headers.

    Args: start: What is in the bucket at first.
    """

    def __init__(
        self, clock: Clock, per_minute: float, *, start: float, tokens: bool, steps: tuple[Step, ...] = ()
    ) -> None:
        self.clock = clock
        self.limit, self.level = per_minute, start
        self.rate = per_minute / 60
        self.steps = steps
        self._others = 0.0
        self._at = 0.0
        self._tokens = tokens
        for step in steps:
            clock.at(step.at, lambda step=step: self._set(step))  # type: ignore[misc]

    def cost(self, call: Call) -> float:
        return call.tokens if self._tokens else 1.0

    def left(self) -> float:
        """Returns: What is in the bucket now."""
        passed, self._at = self.clock.now - self._at, self.clock.now
        self.level = min(self.limit, max(0.0, self.level + passed * (self.rate - self._others)))
        return self.level

    def gain(self, since: float, until: float) -> float:
        """Returns: What runs into the bucket between two moments, were it never full."""
        return sum(seconds * (self.rate - others) for seconds, others in self._stretches(since, until))

    def _stretches(self, since: float, until: float) -> Iterator[tuple[float, float]]:
        others = 0.0
        for step in self.steps:
            if step.at > since:
                end = min(step.at, until)
                yield end - since, others
                since = end
            others = step.others
        yield until - since, others

    def send(self, call: Call, on_first: Listener, on_end: Listener) -> None:
        left, cost = self.left(), self.cost(call)
        ok = left >= cost
        self.level -= cost if ok else 0.0
        said = Quota(self.limit, float(int(self.level)), (self.limit - self.level) / self.rate)
        wait = None if ok else max(1.0, round((cost - left) / self.rate))
        reply = Reply(ok, None if self._tokens else said, said if self._tokens else None, wait)
        if ok:
            self.clock.at(self.clock.now + call.first, lambda: on_first(call, reply))
        self.clock.at(self.clock.now + (call.seconds if ok else _REFUSAL_SECONDS), lambda: on_end(call, reply))

    def _set(self, step: Step) -> None:
        self.left()
        self._others = step.others


Upstream = Slots | Metered
