"""The six upstreams of the bench, and all who compete on them."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.virtual.contenders import Aimd, Contender, Semaphore, Share
from tests.bench.virtual.oracle import Oracle
from tests.bench.virtual.ours import Ours
from tests.bench.virtual.upstreams import Metered, Slots, Step, Upstream
from tests.bench.virtual.world import JOBS, Call, Clock

ITEMS = 10_000  # of each job, in the bench as it is meant
_REQUESTS, _TOKENS, _SLOTS = 6000, 1_500_000, 200


@dataclass(frozen=True, slots=True)
class Scenario:
    """Attributes:
    build: Makes the upstream. With fewer items than ITEMS all its times, and what is in its bucket at first, shrink by
        the same share, so that it still means the same.
    rate: Jobs' calls a second that it lasts for, roughly: people come for twice as long as the jobs would take.
    """

    title: str
    build: Callable[[Clock, float], Upstream]
    rate: float
    heavy: bool = False

    def people_until(self, items: int) -> float:
        return 2 * len(JOBS) * items / self.rate


def _requests(clock: Clock, share: float) -> Upstream:
    return Metered(clock, _REQUESTS, start=_REQUESTS * share, tokens=False)


def _tokens(clock: Clock, share: float) -> Upstream:
    return Metered(clock, _TOKENS, start=_TOKENS * share, tokens=True)


def _queue(clock: Clock, share: float) -> Upstream:
    return Slots(clock, _SLOTS, queue=True)


def _halved(clock: Clock, share: float) -> Upstream:
    return Slots(clock, _SLOTS, queue=False, steps=(Step(80 * share, share=0.5), Step(200 * share, share=1.0)))


def _other_client(clock: Clock, share: float) -> Upstream:
    half = Step(60 * share, others=_REQUESTS / 60 / 2)
    return Metered(clock, _REQUESTS, start=_REQUESTS * share, tokens=False, steps=(half,))


SCENARIOS = {
    "a": Scenario("6,000 requests a minute, told in headers", _requests, rate=100),
    "b": Scenario("1.5 million tokens a minute, told in headers", _tokens, rate=100),
    "c": Scenario("200 slots and a queue, never a 429", _queue, rate=130),
    "d": Scenario("200 slots, 429 above; 100 from 80 s to 200 s", _halved, rate=130),
    "e": Scenario("as (a); from 60 s on another client takes half", _other_client, rate=60),
    "f": Scenario("as (c), with heavy-tailed answers", _queue, rate=100, heavy=True),
}


def _semaphore(limit: int) -> Callable[[Upstream, list[Call]], Contender]:
    return lambda upstream, people: Semaphore(upstream, limit)


ORACLE, SORTING_ORACLE, OURS = "oracle", "oracle, longest first", "ours"
CONTENDERS: dict[str, Callable[[Upstream, list[Call]], Contender]] = {
    **{f"fixed {limit}": _semaphore(limit) for limit in (4, 10, 32, 100, 150, 200)},
    "AIMD alone": lambda upstream, people: Aimd(upstream),
    "static 25 %": lambda upstream, people: Share(upstream),
    SORTING_ORACLE: lambda upstream, people: Oracle(upstream, people, longest_first=True),
    ORACLE: Oracle,
    OURS: lambda upstream, people: Ours(upstream),
}
