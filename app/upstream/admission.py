"""The admission point of one upstream: `policies/limiter.py` decides, this waits, wakes and gives back.

A limiter per model family, since upstreams count their limits so; one bound on connections over all of them.
"""

import asyncio
from collections.abc import Mapping

from app.errors import QueueFullError, RateLimitError
from app.policies.lanes import Ticket
from app.policies.limiter import Limiter, Limits
from app.policies.quota import QuotaReader
from app.policies.retry import retry_after_of
from app.upstream.family import Family, family_of

_MOST_FAMILIES = 64
_OTHERS = "*"  # where there are more: models' names come from clients
_SOONEST_SECONDS = 0.001
_LONGEST_WAIT = 3600.0
_MARGIN = 1.15  # an estimate is not a promise, and who is let in to be late takes another one's place
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
        limiter.first_byte(self._ticket, now, tokens=tokens, whole=whole)
        if "x-ratelimit-remaining-requests" in headers or "x-ratelimit-remaining-tokens" in headers:
            quotas = self._admission.quotas
            limiter.told(self._ticket, quotas.read(headers, "requests"), quotas.read(headers, "tokens"), now)

    def let_in(self) -> None:
        """The upstream answered with an error that is no refusal."""
        self.family.limiter.let_in(self._ticket)

    def refused(self, headers: Mapping[str, str], wall_clock: float) -> None:
        """The upstream had too much. Args: wall_clock: Seconds since the epoch, for a Retry-After that is a date."""
        quotas = self._admission.quotas
        self.family.limiter.refused(
            self._ticket,
            self._admission.time(),
            retry_after=retry_after_of(headers, wall_clock),
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
        self._admission.left()


class Admission:
    """Args:
    name: The upstream's.
    limits: What is known of each family's.
    most: Calls in flight at once, over all families.
    max_queue: Calls that may wait; the next one is refused.
    """

    def __init__(self, name: str, limits: Limits, most: int, max_queue: int) -> None:
        self.name = name
        self.limits = limits
        self.most = most
        self.max_queue = max_queue
        self.in_flight = 0
        self.peak = 0
        self.waiting = 0
        self.families: dict[str, Family] = {}
        self.quotas = QuotaReader()
        self.time = asyncio.get_running_loop().time
        self._names: dict[str, str] = {}
        self._granted: dict[Ticket, asyncio.Future[None]] = {}
        self._patient = 0
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, ticket: Ticket, model: str | None, size: int, most_output: int | None) -> Slot:
        """Waits for a slot.

        Args:
            ticket: Its tokens are filled in here.
            model: The upstream's name of it; None: the call names none.
            size: Bytes of the request.
            most_output: Tokens that the answer may have; None: not said.
        Raises:
            QueueFullError: Too many wait already; holds the wait after which a place is likely.
            RateLimitError: It would wait until after its deadline; holds that wait.
        """
        now, family = self.time(), self.family(model)
        ticket.tokens = family.estimate.of(size, most_output)
        if not family.limiter.enter(ticket, now, room=self.in_flight < self.most):
            await self._wait(ticket, family.limiter, now)
        else:
            self._count()
        return Slot(self, family, ticket, size)

    def left(self) -> None:
        """Called by `Slot.release` only."""
        self.in_flight -= 1
        if self.waiting:
            self._let_go()

    def headroom(self, model: str | None) -> float:
        """Returns: The free share of what a model's calls may have in flight; less than 0: calls wait."""
        limiter = self.family(model).limiter
        limit = min(limiter.concurrency.limit, self.most)
        free = min(limit - limiter.in_flight, self.most - self.in_flight) - limiter.waiting
        return free / limit

    def _count(self) -> None:
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)

    def family(self, model: str | None) -> Family:
        """Args: model: The upstream's name of it; None: the call names none."""
        name = self._names.get(model or "")
        if name is None:
            if len(self._names) > 16 * _MOST_FAMILIES:
                self._names.clear()
            name = self._names[model or ""] = family_of(model or "")
        known = self.families.get(name)
        return known if known is not None else self._new_family(name)

    def _new_family(self, name: str) -> Family:
        if len(self.families) >= _MOST_FAMILIES:
            idle = (one for one, known in self.families.items() if not known.limiter.in_flight + known.limiter.waiting)
            if (first := next(idle, None)) is not None:
                del self.families[first]
            else:
                name = _OTHERS
        if name not in self.families:
            self.families[name] = Family(f"{self.name}/{name}", self.limits, self.time)
        return self.families[name]

    async def _wait(self, ticket: Ticket, limiter: Limiter, now: float) -> None:
        try:
            if not ticket.patient:
                self._check(ticket, limiter, now)
        except BaseException:
            limiter.withdraw(ticket, now)
            raise
        granted = self._granted[ticket] = asyncio.get_running_loop().create_future()
        self.waiting += 1
        self._patient += ticket.patient
        self._set_timer(now)
        try:
            await granted
        except asyncio.CancelledError:
            self._give_up(ticket, limiter)
            raise
        finally:
            self.waiting -= 1
            self._patient -= ticket.patient

    def _give_up(self, ticket: Ticket, limiter: Limiter) -> None:
        if ticket.sent_at is None:
            if self._granted.pop(ticket, None) is not None:  # else it was just told that it is too late
                limiter.withdraw(ticket, self.time())
        else:  # let go in the same moment
            limiter.ended(ticket, self.time(), used=None, answered=False)
            self.in_flight -= 1
        self._let_go()

    def _check(self, ticket: Ticket, limiter: Limiter, now: float) -> None:
        impatient = self.waiting - self._patient
        wait = min(max(limiter.wait_for(ticket, now), _SOONEST_SECONDS), _LONGEST_WAIT)
        if impatient >= self.max_queue:
            raise QueueFullError(f"{impatient} calls are waiting already", retry_after=max(1.0, wait))
        if now + _MARGIN * wait > ticket.deadline:
            raise RateLimitError(f"{_TOO_LATE}: it would take about {wait:.1f} s", retry_after=wait)

    def _let_go(self) -> None:
        """Wakes those whose turn has come."""
        now = self.time()
        families = list(self.families.values())
        if len(families) > 1:  # interactive first across families, too, and then whoever has least
            families.sort(key=lambda one: (not one.limiter.lanes["interactive"].count, one.limiter.in_flight))
        for family in families:
            if family.limiter.waiting:
                for ticket in family.limiter.admit(now, self.most - self.in_flight):
                    granted = self._granted.pop(ticket)
                    if ticket.sent_at is not None:
                        self._count()
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
        if not self.waiting or self.in_flight >= self.most:
            return
        opens = [wait for one in self.families.values() if (wait := one.limiter.opens_in(now)) is not None]
        if opens:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(min(opens), _SOONEST_SECONDS), self._let_go)

    def close(self) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()
