"""Whatever calls do, in any order and at any time: the limiter counts right and nobody is let go twice or forgotten."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.policies.lanes import Lane, Ticket
from app.policies.limiter import Limiter
from app.policies.limits import Limits
from app.policies.quota import Quota
from tests.policies.test_limiter import fixed

_SAID = st.none() | st.builds(
    Quota, st.none() | st.floats(1, 3000), st.none() | st.floats(0, 3000), st.none() | st.floats(0.001, 86_400)
)
_LANES: list[Lane] = ["interactive", "batch"]


class Calls(RuleBasedStateMachine):
    """Calls ask, hang up, are answered, refused, or fail, in any order and at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.limiter = fixed(1)
        self.waiting: list[Ticket] = []
        self.flying: list[Ticket] = []
        self.gone: Counter[int] = Counter()
        self.all: list[Ticket] = []

    @initialize(
        adaptive=st.booleans(),
        most=st.integers(1, 60),
        requests=st.none() | st.floats(1, 3000),
        tokens=st.none() | st.floats(1, 30_000),
    )
    def begin(self, *, adaptive: bool, most: int, requests: float | None, tokens: float | None) -> None:
        self.most = most
        self.limiter = Limiter(Limits("adaptive" if adaptive else "fixed", most, requests, tokens), 0.0)

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        count=st.integers(1, 8),
        lane=st.sampled_from(_LANES),
        caller=st.sampled_from("abc"),
        tokens=st.floats(1, 500),
        room=st.booleans(),
        within=st.just(float("inf")) | st.floats(0, 60),
        patient=st.booleans(),
    )
    def ask(
        self, *, count: int, lane: Lane, caller: str, tokens: float, room: bool, within: float, patient: bool
    ) -> None:
        for _ in range(count):
            ticket = Ticket(caller=caller, lane=lane, tokens=tokens, deadline=self.now + within, patient=patient)
            self.all.append(ticket)
            if self.limiter.enter(ticket, self.now, room=room):
                assert room
                assert not any(one.lane in {"interactive", lane} for one in self.waiting)
                self._let_go(ticket)
            else:
                self.waiting.append(ticket)
                assert self.limiter.wait_for(ticket, self.now) >= 0.0

    @rule(room=st.integers(0, 20), kept=st.integers(0, 20))
    def admit_fewer_of_batch(self, room: int, kept: int) -> None:
        batch = 0
        for ticket in self.limiter.admit(self.now, room, room - kept):
            self.waiting.remove(ticket)
            if ticket.sent_at is None:
                self._give_up(ticket)
            else:
                batch += ticket.lane == "batch"
                self._let_go(ticket)
        assert batch <= max(0, room - kept)

    @rule(room=st.integers(0, 20))
    def admit(self, room: int) -> None:
        before = self.limiter.opens_in(self.now)
        count = hopeless = 0
        for ticket in self.limiter.admit(self.now, room):
            if ticket.lane == "batch":
                assert not any(one.lane == "interactive" for one in self.waiting)
            self.waiting.remove(ticket)
            if ticket.sent_at is None:
                hopeless += 1
                self._give_up(ticket)
            else:
                count += 1
                self._let_go(ticket)
        assert count <= room
        assert room == 0 or (count + hopeless > 0) == (before is not None and before <= 0.0)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        ticket = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.limiter.withdraw(ticket, self.now)
        self.gone[id(ticket)] += 1

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), used=st.none() | st.floats(0, 5000), whole=st.booleans(), complete=st.booleans(), said=_SAID)
    def answer(
        self, *, data: st.DataObject, used: float | None, whole: bool, complete: bool, said: Quota | None
    ) -> None:
        ticket = self._pick(data)
        self.limiter.told(ticket, said, said, self.now)
        self.limiter.first_byte(ticket, self.now, tokens=used, whole=whole)
        known = self.limiter.held_seconds
        self.limiter.ended(ticket, self.now, used=used, answered=True, complete=complete)
        assert complete or self.limiter.held_seconds == known

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.limiter.ended(self._pick(data), self.now, used=None, answered=False)

    @precondition(lambda self: self.flying)
    @rule(
        data=st.data(),
        retry_after=st.none() | st.floats(0, 1e6),
        left=st.sampled_from([None, 0.0]),
        counted=st.booleans(),
    )
    def refuse(self, *, data: st.DataObject, retry_after: float | None, left: float | None, counted: bool) -> None:
        ticket = self._pick(data)
        said = None if left is None else Quota(100, left, 1.0)
        self.limiter.refused(ticket, self.now, counted=counted, retry_after=retry_after, requests=said)
        self.limiter.ended(ticket, self.now, used=None, answered=False)
        assert self.limiter.pause.until <= self.now + 60

    def _let_go(self, ticket: Ticket) -> None:
        assert ticket.sent_at == self.now
        self.gone[id(ticket)] += 1
        self.flying.append(ticket)
        assert len(self.flying) <= self.limiter.concurrency.limit
        assert ticket.requests_mark is not None
        assert ticket.requests_mark.company == len(self.flying) == self.limiter.in_flight

    def _give_up(self, ticket: Ticket) -> None:
        assert not ticket.patient
        assert ticket.deadline < self.now + (self.limiter.held_seconds or 0.0)
        assert ticket.requests_mark is None
        self.gone[id(ticket)] += 1

    def _pick(self, data: st.DataObject) -> Ticket:
        return self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))

    @invariant()
    def it_counts_what_there_is(self) -> None:
        limiter = self.limiter
        assert limiter.in_flight == len(self.flying)
        assert limiter.waiting == len(self.waiting)
        for lane in _LANES:
            assert limiter.flying[lane] == sum(ticket.lane == lane for ticket in self.flying)
        assert 1 <= limiter.concurrency.limit <= self.most
        assert 0 <= limiter.reserve <= limiter.concurrency.limit // 2

    @invariant()
    def nobody_is_let_go_twice_or_after_it_was_withdrawn(self) -> None:
        assert all(count == 1 for count in self.gone.values())

    def teardown(self) -> None:
        """All end, and those who wait are let go in time: nothing stays behind."""
        rounds = 0
        while self.flying or self.waiting:
            for ticket in self.flying:
                self.limiter.ended(ticket, self.now, used=ticket.tokens, answered=True)
            self.flying.clear()
            self.now += (self.limiter.opens_in(self.now) or 0.0) + 0.001
            self.admit(10_000)
            rounds += 1
            assert rounds < 5000, "somebody waits for ever"
        self.it_counts_what_there_is()
        assert (self.limiter.in_flight, self.limiter.waiting) == (0, 0)
        assert all(self.gone[id(ticket)] == 1 for ticket in self.all)


Calls.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestEveryTicketIsLetGoOnceOrWithdrawn = Calls.TestCase
