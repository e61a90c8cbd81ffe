"""The admission point of one upstream: `policies/limiter.py` decides, this waits, wakes and gives back.

A limiter per model family, since upstreams count their limits so; one bound on connections over all of them.
"""

import asyncio
import math
import time
from collections.abc import Mapping

from app.errors import QueueFullError, RateLimitError
from app.policies.lanes import Lane, Ticket
from app.policies.limiter import Limiter
from app.policies.limits import Limits
from app.policies.pool import Pool
from app.policies.quota import QuotaReader
from app.policies.retry import retry_after_of
from app.upstream.family import Families, Family

_SOONEST_SECONDS = 0.001
_LONGEST_WAIT = 3600.0
_MARGIN = 1.6  # an estimate is not a promise, and who is let in to be late takes another one's place
_TOO_LATE = "this upstream's limits leave no place before the call's deadline"


class Slot:
    """The right to have one call in flight. Released exactly once, however often `release` is called."""

    __slots__ = ("_admission", "_held", "_size", "_ticket", "family")

    def __init__(self, admission: "Admission", family: Family, ticket: Ticket, size: int) -> None:
        self._admission = admission
        self.family = family
        self._ticket = ticket
        self._size = size
        self._held = True

    def answered(self, headers: Mapping[str, str], usage: tuple[int, int] | None, *, whole: bool) -> None:
        """The upstream has begun to answer. Args: usage: Of a whole reply, tokens in and out; None: unknown."""
        now, limiter = self._admission.time(), self.family.limiter
        # an answer's length explains its time; where there is none (embeddings), the prompt's does
        tokens = None if usage is None else float(usage[1] or usage[0])
        limit = limiter.concurrency.limit
        limiter.first_byte(self._ticket, now, tokens=tokens, whole=whole)
        if "x-ratelimit-remaining-requests" in headers or "x-ratelimit-remaining-tokens" in headers:
            quotas = self._admission.quotas
            limiter.told(self._ticket, quotas.read(headers, "requests"), quotas.read(headers, "tokens"), now)
        if limiter.concurrency.limit > limit:
            self._admission.let_go()

    def let_in(self) -> None:
        """The upstream answered with an error that is no refusal."""
        self.family.limiter.let_in(self._ticket)

    def refused(self, status: int, headers: Mapping[str, str]) -> None:
        """The upstream had too much. Args: status: What it said; 504: nothing."""
        quotas = self._admission.quotas
        self.family.limiter.refused(
            self._ticket,
            self._admission.time(),
            counted=status == 429,
            retry_after=retry_after_of(headers, time.time()),
            requests=quotas.read(headers, "requests"),
            tokens=quotas.read(headers, "tokens"),
        )

    def release(self, *, answered: bool = True, complete: bool = True, usage: tuple[int, int] | None = None) -> None:
        """Args:
        answered: False: the upstream refused the call or never saw it; what it reserved is given back.
        complete: False: it was cut short.
        usage: Tokens in and out; None: unknown.
        """
        if not self._held:
            return
        self._held = False
        used = None
        if usage is not None:
            used = float(sum(usage))
            self.family.estimate.learn(self._size, *usage)
        now = self._admission.time()
        self.family.limiter.ended(self._ticket, now, used=used, answered=answered, complete=complete)
        self._admission.left(self._ticket.lane)


class Admission:
    """Args:
    name: The upstream's.
    limits: What is known of each family's.
    most: Calls in flight at once, over all families.
    max_queue: Calls that may wait; the next one is refused.
    """

    def __init__(self, name: str, limits: Limits, most: int, max_queue: int) -> None:
        self.time = asyncio.get_running_loop().time
        self.families = Families(name, limits, self.time)
        self.quotas = QuotaReader()
        self.pool = Pool(most, self.time())
        self.max_queue = max_queue
        self._granted: dict[Ticket, asyncio.Future[None]] = {}
        self._patient = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def most(self) -> int:
        return self.pool.most

    @property
    def in_flight(self) -> int:
        return self.pool.in_flight

    @property
    def peak(self) -> int:
        return self.pool.peak

    @property
    def waiting(self) -> int:
        return sum(self.pool.waiting.values())

    def family(self, model: str | None) -> Family:
        """Args: model: The upstream's name of it; None: the call names none."""
        return self.families.of(model)

    async def enter(
        self, ticket: Ticket, model: str | None, size: int, most_output: int | None, longest: float = math.inf
    ) -> Slot:
        """Waits for a slot.

        Args:
            ticket: Its tokens are filled in here.
            model: The upstream's name of it; None: the call names none.
            size: Bytes of the request.
            most_output: Tokens that the answer may have; None: not said.
            longest: Seconds that it may wait, since another target is left.
        Raises:
            QueueFullError: Too many wait already; holds the wait after which a place is likely.
            RateLimitError: It would wait until after its deadline, or for too long; holds that wait.
        """
        family = self.family(model)
        now = self.time()
        ticket.tokens = family.estimate.of(size, most_output)
        if family.limiter.enter(ticket, now, room=self.pool.room(ticket.lane) > 0):
            self.pool.went(ticket.lane, now)
        else:
            await self._wait(ticket, family.limiter, now, longest)
        return Slot(self, family, ticket, size)

    def left(self, lane: Lane) -> None:
        """Called by `Slot.release` only."""
        self.pool.came_back(lane, self.time())
        if self._granted:
            self.let_go()

    def headroom(self, model: str | None) -> float:
        """Returns: The free share of what a model's calls may have in flight; less than 0: calls wait."""
        limiter = self.family(model).limiter
        if self.time() < limiter.pause.until:
            return -1.0 - limiter.waiting
        limit = min(limiter.concurrency.limit, self.most)
        return (min(limit - limiter.in_flight, self.pool.free) - limiter.waiting) / limit

    async def _wait(self, ticket: Ticket, limiter: Limiter, now: float, longest: float) -> None:
        try:
            self._check(ticket, limiter, now, longest)
        except BaseException:
            limiter.withdraw(ticket, now)
            raise
        granted = self._granted[ticket] = asyncio.get_running_loop().create_future()
        self.pool.waits(ticket.lane, 1, now)
        self._patient += ticket.patient
        self._set_timer(now)
        try:
            await granted
        except asyncio.CancelledError:
            self._give_up(ticket, limiter)
            raise

    def _waits_no_more(self, ticket: Ticket, now: float) -> "asyncio.Future[None]":
        self.pool.waits(ticket.lane, -1, now)
        self._patient -= ticket.patient
        return self._granted.pop(ticket)

    def _give_up(self, ticket: Ticket, limiter: Limiter) -> None:
        now = self.time()
        if ticket.sent_at is not None:  # let go in the same moment
            limiter.ended(ticket, now, used=None, answered=False)
            self.pool.came_back(ticket.lane, now)
        elif ticket in self._granted:  # else it was just told that it is too late
            self._waits_no_more(ticket, now)
            limiter.withdraw(ticket, now)
        self.let_go()

    def _check(self, ticket: Ticket, limiter: Limiter, now: float, longest: float) -> None:
        held = limiter.held_seconds or 0.0
        wait = max(limiter.wait_for(ticket, now), self.pool.wait_for(ticket.lane, held) + held, _SOONEST_SECONDS)
        if wait - held > longest:
            raise RateLimitError(f"it would take about {wait:.1f} s here, and another target is left", retry_after=wait)
        if ticket.patient:
            return
        impatient, told = self.waiting - self._patient, min(wait, _LONGEST_WAIT)
        if impatient >= self.max_queue:
            raise QueueFullError(f"{impatient} calls are waiting already", retry_after=max(1.0, told))
        if now + _MARGIN * wait > ticket.deadline:
            raise RateLimitError(f"{_TOO_LATE}: it would take about {wait:.1f} s", retry_after=told)

    def let_go(self) -> None:
        """Wakes those whose turn has come."""
        now = self.time()
        families = [family for family in self.families.known.values() if family.limiter.waiting]
        if len(families) > 1:  # interactive first across families, too, and then whoever has least
            families.sort(key=lambda one: (not one.limiter.lanes["interactive"].count, one.limiter.in_flight))
        for family in families:
            for ticket in family.limiter.admit(now, self.pool.free, self.pool.room("batch")):
                granted = self._waits_no_more(ticket, now)
                if ticket.sent_at is not None:
                    self.pool.went(ticket.lane, now)
                    if not granted.done():
                        granted.set_result(None)
                elif not granted.done():
                    granted.set_exception(RateLimitError(_TOO_LATE, retry_after=family.limiter.held_seconds))
        self._set_timer(now)

    def _set_timer(self, now: float) -> None:
        """Time alone opens some limits: whoever waits for that is woken by a timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._granted or self.pool.free <= 0:
            return
        limiters = (family.limiter for family in self.families.known.values() if family.limiter.waiting)
        batch = self.pool.room("batch") > 0
        opens = [wait for limiter in limiters if (wait := limiter.opens_in(now, batch=batch)) is not None]
        if opens:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(min(opens), _SOONEST_SECONDS), self.let_go)

    def close(self) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()
