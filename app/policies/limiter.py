"""The admission point's decision: who may be sent now, to one model family of one upstream under one credential.

Three limits bound it: calls in flight, requests a minute, tokens a minute. Two lanes share what they leave:
`interactive` goes strictly first, `batch` takes what is left, less a reserve for the interactive calls that are likely
to come. Pure: the clock is handed in, and nothing here waits. Source of the scavenger lane: RFC 6817 (LEDBAT).
"""

from collections.abc import Iterator

from app.policies.bucket import Bucket
from app.policies.concurrency import AdaptiveLimit, FixedLimit
from app.policies.demand import Demand
from app.policies.lanes import FairQueue, Lane, Ticket
from app.policies.limits import Limits
from app.policies.pause import Pause
from app.policies.quota import Quota
from app.policies.rounds import Rounds

_LEARNING = 0.1
_HOPELESS = 0.75  # of the usual time


class Limiter:
    """Args:
    limits: What is known beforehand.
    now: Seconds, on any clock that the caller goes on with.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        fixed = limits.concurrency == "fixed"
        self.concurrency = FixedLimit(limits.in_flight) if fixed else AdaptiveLimit(limits.in_flight)
        self.requests = Bucket(limits.requests, now)
        self.tokens = Bucket(limits.tokens, now)
        self.lanes: dict[Lane, FairQueue] = {"interactive": FairQueue(), "batch": FairQueue()}
        self.flying: dict[Lane, int] = {"interactive": 0, "batch": 0}
        self.in_flight = 0
        self.pause = Pause()
        self.held_seconds: float | None = None
        self._demand = Demand(now)
        self._usual_tokens = 1.0  # of an interactive call
        self._mean_tokens = 1.0  # of any call
        self._rounds = Rounds(self.concurrency, now)

    @property
    def waiting(self) -> int:
        return self.lanes["interactive"].count + self.lanes["batch"].count

    @property
    def reserve(self) -> int:
        """Places that batch calls leave free beyond those that interactive calls have taken."""
        return self._demand.kept_free(self.concurrency.limit, self.flying["interactive"])

    def is_idle(self, now: float) -> bool:
        """Whether nothing is under way, waits or is used up."""
        used = any(bucket.wait(bucket.limit or 0.0, now) for bucket in (self.requests, self.tokens))
        return not (self.in_flight or self.waiting or used or now < self.pause.until)

    # asking

    def enter(self, ticket: Ticket, now: float, *, room: bool = True) -> bool:
        """Args: room: There is a place for it beyond this limiter.

        Returns: Whether the ticket is let go at once; else it waits in its lane.
        """
        interactive = ticket.lane == "interactive"
        self._mean_tokens += _LEARNING * (ticket.tokens - self._mean_tokens)
        if interactive:
            self._usual_tokens += _LEARNING * (ticket.tokens - self._usual_tokens)
        lanes = self.lanes
        is_next = not lanes["interactive"].count and (interactive or not lanes["batch"].count)
        if is_next and room and self._has_place(ticket) and self._opens_in(ticket, now) <= 0.0:
            self._send(ticket, now)
            return True
        lanes[ticket.lane].put(ticket)
        self._see_demand(now)
        return False

    def withdraw(self, ticket: Ticket, now: float) -> None:
        """The ticket waits no longer."""
        self.lanes[ticket.lane].remove(ticket)
        self._see_demand(now)

    def admit(self, now: float, room: int, batch_room: int | None = None) -> Iterator[Ticket]:
        """Yields: Those who are let go now, the next one's turn first.

        One that comes with `sent_at` None has waited too long: it could not be answered before its deadline.

        Args: room, batch_room: Places beyond this limiter, for all and for batch calls.
        """
        batch_room = room if batch_room is None else batch_room
        while (ticket := self._next(now)) is not None and (room if ticket.lane == "interactive" else batch_room) > 0:
            self.lanes[ticket.lane].pop()
            if ticket.patient or now + _HOPELESS * (self.held_seconds or 0.0) <= ticket.deadline:
                room, batch_room = room - 1, batch_room - 1
                self._send(ticket, now)
            else:
                self._see_demand(now)
            yield ticket

    def opens_in(self, now: float, *, batch: bool = True) -> float | None:
        """Args: batch: There is a place for a batch call beyond this limiter.

        Returns: Seconds until time alone lets the next one go; None: somebody must leave first, or nobody waits.
        """
        ticket = self._head()
        if ticket is None or (ticket.lane == "batch" and not batch) or not self._has_place(ticket):
            return None
        return self._opens_in(ticket, now)

    def wait_for(self, ticket: Ticket, now: float) -> float:
        """Returns: Seconds until a ticket that has just joined its lane will be answered, by all that is known."""
        lanes = self.lanes
        ahead, tokens = lanes["interactive"].count, lanes["interactive"].tokens
        if ticket.lane == "batch":
            ahead, tokens = ahead + lanes["batch"].count, tokens + lanes["batch"].tokens
        held = self.held_seconds or 0.0
        place = max(0, ahead + self.in_flight - self.concurrency.limit) * held / self.concurrency.limit
        quota = max(self.requests.wait_for_all(ahead, now), self.tokens.wait_for_all(tokens, now))
        return max(place, quota, self.pause.until - now) + held

    # what comes back

    def first_byte(self, ticket: Ticket, now: float, *, tokens: float | None, whole: bool) -> None:
        """The upstream has begun to answer, with anything but a refusal.

        Args:
            tokens: Of a whole reply: what its time goes with; None: unknown.
            whole: The reply came whole; else this is a stream's first token.
        """
        self.let_in(ticket)
        if ticket.sent_at is not None:
            metered = self.requests.limit is not None or self.tokens.limit is not None
            self._rounds.answered(ticket.sent_at, now, tokens=tokens, whole=whole, metered=metered)

    def let_in(self, ticket: Ticket) -> None:
        """Whatever became of the call: the upstream did not have too much when it was sent."""
        if ticket.sent_at is not None:
            self.pause.let_in(ticket.sent_at)

    def told(
        self, ticket: Ticket, requests: Quota | None, tokens: Quota | None, now: float, *, refused: bool = False
    ) -> None:
        """The reply's headers said what is left."""
        if requests is not None and ticket.requests_mark is not None:
            self.requests.sync(requests, ticket.requests_mark, now, refused=refused)
        if tokens is not None and ticket.tokens_mark is not None:
            self.tokens.sync(tokens, ticket.tokens_mark, now, refused=refused)

    def refused(
        self,
        ticket: Ticket,
        now: float,
        *,
        counted: bool = True,
        retry_after: float | None = None,
        requests: Quota | None = None,
        tokens: Quota | None = None,
    ) -> None:
        """The upstream had too much, of calls at once or of a quota: its headers say which. Still call `ended`.

        Args: counted: It has counted (429); else it is just not able (503, silence).
        """
        sent_at = ticket.sent_at if ticket.sent_at is not None else now
        of_requests, of_tokens = _short_of(requests, 1.0), _short_of(tokens, 2 * ticket.tokens)
        of_quota = of_requests or of_tokens
        mark = ticket.requests_mark
        self.told(ticket, requests, tokens, now, refused=of_quota)
        if of_quota:  # what is left has been told since this call was refused: it has nothing to give back
            ticket.requests_mark = None if requests is not None else mark
            ticket.tokens_mark = None if tokens is not None else ticket.tokens_mark
        if mark is not None and not of_quota:
            self._rounds.refused(mark.at, mark.company if counted else 0, now)
        # a bucket whose limit is known tells better when to go on; and tokens may be too few for this call only
        is_known = (self.requests if of_requests else self.tokens).limit is not None
        for_all = not is_known and (of_requests or (of_tokens and _short_of(tokens, 2 * self._mean_tokens)))
        self.pause.refused(sent_at, now, retry_after, for_all=for_all)

    def ended(self, ticket: Ticket, now: float, *, used: float | None, answered: bool, complete: bool = True) -> None:
        """A call is over and its place is free.

        Args:
            used: Tokens that it took by the reply's `usage`; None: unknown.
            answered: False: the upstream refused it or never saw it: what it reserved is given back.
            complete: False: it was cut short, and says nothing of how long a call takes.
        """
        self._rounds.moved(self.in_flight, now)
        self.in_flight -= 1
        self.flying[ticket.lane] -= 1
        if not answered:
            used = 0.0
            if ticket.requests_mark is not None:
                self.requests.give_back(1.0, ticket.requests_mark)
        elif complete and ticket.sent_at is not None:
            held = now - ticket.sent_at
            before = held if self.held_seconds is None else self.held_seconds
            self.held_seconds = before + _LEARNING * (held - before)
        if used is not None and ticket.tokens_mark is not None:
            self.tokens.give_back(ticket.tokens - used, ticket.tokens_mark)
            self.lanes[ticket.lane].settle(ticket, ticket.tokens - used)
        self._see_demand(now)

    # inside

    def _see_demand(self, now: float) -> None:
        self._demand.see(self.flying["interactive"] + self.lanes["interactive"].count, now)

    def _head(self) -> Ticket | None:
        for lane in self.lanes.values():
            if lane.count:
                return lane.peek()
        return None

    def _next(self, now: float) -> Ticket | None:
        ticket = self._head()
        if ticket is None or not self._has_place(ticket) or self._opens_in(ticket, now) > 0.0:
            return None
        return ticket

    def _has_place(self, ticket: Ticket) -> bool:
        limit = self.concurrency.limit
        if self.in_flight >= limit:
            self._rounds.blocked(at_limit=True)
            return False
        if ticket.lane == "interactive" or self.concurrency.probing or self.in_flight < limit - self.reserve:
            return True
        self._rounds.blocked(at_limit=False)
        return False

    def _opens_in(self, ticket: Ticket, now: float) -> float:
        keep = self._demand.reserve if ticket.lane == "batch" else 0
        return max(
            self.pause.until - now,
            self.requests.wait(1.0, now, keep),
            self.tokens.wait(ticket.tokens, now, keep * self._usual_tokens),
        )

    def _send(self, ticket: Ticket, now: float) -> None:
        self._rounds.moved(self.in_flight, now)
        self.in_flight += 1
        self.flying[ticket.lane] += 1
        ticket.sent_at = now
        ticket.requests_mark = self.requests.take(1.0, now)
        ticket.requests_mark.company = self.in_flight
        ticket.tokens_mark = self.tokens.take(ticket.tokens, now)
        self._see_demand(now)


def _short_of(quota: Quota | None, amount: float) -> bool:
    return quota is not None and quota.remaining is not None and quota.remaining < amount
