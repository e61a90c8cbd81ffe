"""Whatever comes, goes and hangs up: a fair queue holds what was put into it, and lets nobody go twice."""

from collections import Counter, deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.policies.lanes import FairQueue, Ticket

_SIZE = st.floats(1, 5000)


class Model(RuleBasedStateMachine):
    """Against the simplest thing that could hold tickets: one list for each caller."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue()
        self.waiting: dict[str, deque[Ticket]] = {}
        self.gone: list[Ticket] = []

    @rule(caller=st.sampled_from("abcd"), tokens=_SIZE)
    def put(self, caller: str, tokens: float) -> None:
        ticket = Ticket(caller=caller, tokens=tokens)
        self.queue.put(ticket)
        self.waiting.setdefault(caller, deque()).append(ticket)

    @precondition(lambda self: self.waiting)
    @rule(looks=st.integers(0, 3))
    def pop(self, looks: int) -> None:
        seen = [self.queue.peek() for _ in range(looks)]
        ticket = self.queue.pop()
        assert all(one is ticket for one in seen)
        assert self.waiting[ticket.caller][0] is ticket
        self._gone(ticket)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from([one for line in self.waiting.values() for one in line]))
        self.queue.remove(ticket)
        self._gone(ticket)

    @precondition(lambda self: self.gone)
    @rule(data=st.data(), difference=st.floats(-3000, 3000))
    def settle(self, data: st.DataObject, difference: float) -> None:
        self.queue.settle(data.draw(st.sampled_from(self.gone)), difference)

    def _gone(self, ticket: Ticket) -> None:
        self.waiting[ticket.caller].remove(ticket)
        if not self.waiting[ticket.caller]:
            del self.waiting[ticket.caller]
        assert not any(one is ticket for one in self.gone)
        self.gone.append(ticket)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        expected = [ticket for line in self.waiting.values() for ticket in line]
        assert Counter(map(id, self.queue)) == Counter(map(id, expected))
        assert len(self.queue) == self.queue.count == len(expected)
        assert self.queue.tokens == pytest.approx(sum(ticket.tokens for ticket in expected), abs=1e-6)


TestNothingIsLostOrDoubled = Model.TestCase
