"""Those who compete: each decides when a job's call may be sent. Here stands what people do without a gateway.

Their interactive calls go straight out, as they do in practice. A refused call waits as the SDK does, and keeps its
place in the semaphore meanwhile, since the SDK retries inside it. The jobs take turns call by call, which is kinder
than a semaphore is: that would serve whoever came first.
"""

import math
import random
from collections import deque
from collections.abc import Iterator

from app.policies.bucket import Bucket
from app.policies.retry import RetryPolicy
from tests.bench.virtual.upstreams import Metered, Reply, Slots, Upstream
from tests.bench.virtual.world import Call

_RETRY = RetryPolicy(max_attempts=10**9)
_LONGEST_RUN = 5  # tries after which backoff grows no more
_SHARE = 0.25


class Contender:
    """What the race asks of everybody."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self._luck = random.Random(1)

    @property
    def now(self) -> float:
        return self.upstream.clock.now

    def offer(self, call: Call) -> None:
        """A call has come."""
        raise NotImplementedError

    def offer_all(self, jobs: list[Call]) -> None:
        """The jobs have come, all at once."""
        for call in jobs:
            self.offer(call)

    def again(self, call: Call) -> None:
        """A refused call has waited long enough."""
        self.offer(call)

    def pump(self) -> Iterator[Call]:
        """Yields: What is to be sent now."""
        raise NotImplementedError

    def opens_in(self) -> float | None:
        """Returns: Seconds until time alone lets a call go; None: something else must happen first."""
        return None

    def first(self, call: Call, reply: Reply) -> None:
        """The first token has come."""

    def ended(self, call: Call, reply: Reply) -> float | None:
        """The answer is whole, or the call was refused. Returns: Seconds until a refused call comes `again`."""
        if reply.ok:
            return None
        tries = min(call.refusals, _LONGEST_RUN)
        return _RETRY.wait(tries, retry_after=reply.retry_after, remaining=math.inf, draw=self._luck.random)


class Semaphore(Contender):
    """At most `limit` calls of the jobs at once."""

    def __init__(self, upstream: Upstream, limit: float) -> None:
        super().__init__(upstream)
        self.limit = limit
        self.flying = 0
        self._at_once: deque[Call] = deque()
        self._lines: dict[str, deque[Call]] = {}

    def offer(self, call: Call) -> None:
        if call.batch:
            self._lines.setdefault(call.caller, deque()).append(call)
        else:
            self._at_once.append(call)

    def again(self, call: Call) -> None:
        self._at_once.append(call)

    def pump(self) -> Iterator[Call]:
        while self._at_once:
            yield self._at_once.popleft()
        while self._lines and self.may_send(self._head()):
            call = self._pop()
            self.flying += 1
            self.sending(call)
            yield call

    def may_send(self, call: Call) -> bool:
        return self.flying < self.limit

    def sending(self, call: Call) -> None:
        """A job's call goes out for the first time."""

    def ended(self, call: Call, reply: Reply) -> float | None:
        self.flying -= call.batch and reply.ok
        return super().ended(call, reply)

    def _head(self) -> Call:
        return next(iter(self._lines.values()))[0]

    def _pop(self) -> Call:
        caller = next(iter(self._lines))
        line = self._lines.pop(caller)
        call = line.popleft()
        if line:
            self._lines[caller] = line  # to the end of the round
        return call


class Aimd(Semaphore):
    """A semaphore that grows by one a round trip and is halved by a refusal, once a round trip; and nothing else."""

    def __init__(self, upstream: Upstream) -> None:
        super().__init__(upstream, 32.0)
        self._cut_at = -1.0

    def ended(self, call: Call, reply: Reply) -> float | None:
        if reply.ok:
            self.limit += 1 / self.limit
        elif call.sent > self._cut_at:
            self.limit, self._cut_at = max(1.0, self.limit / 2), self.now
        return super().ended(call, reply)


class Share(Semaphore):
    """The jobs may have a quarter of what the operator believes the upstream to have: of its slots, or of its rate."""

    def __init__(self, upstream: Upstream) -> None:
        super().__init__(upstream, upstream.nominal * _SHARE if isinstance(upstream, Slots) else math.inf)
        self._quota = Bucket(upstream.limit * _SHARE if isinstance(upstream, Metered) else None, self.now)
        if isinstance(upstream, Metered):
            self._quota.level = upstream.level * _SHARE

    def may_send(self, call: Call) -> bool:
        return super().may_send(call) and self._quota.wait(self._cost(call), self.now) <= 0.0

    def sending(self, call: Call) -> None:
        self._quota.take(self._cost(call), self.now)

    def opens_in(self) -> float | None:
        if not self._lines or not super().may_send(self._head()):
            return None
        return self._quota.wait(self._cost(self._head()), self.now)

    def _cost(self, call: Call) -> float:
        return self.upstream.cost(call) if isinstance(self.upstream, Metered) else 1.0
