"""Whatever calls do, at any time: one probe is sent in ten seconds at most, and a breaker is never closed to probes for good."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.policies.breaker import Breaker, Permit
from tests.policies.test_breaker import Verdict, give_back

_VERDICTS: list[Verdict] = ["succeeded", "failed", "abandoned"]


class Calls(RuleBasedStateMachine):
    """Calls are sent and end in any order, at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker = Breaker(0.0)
        self.out: list[Permit] = []
        self.probe_until: float | None = None  # when the last one stands in nobody's way, if it has not ended by then

    @rule(seconds=st.floats(0, 6))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def enter(self) -> None:
        could = self.breaker.lets_through(self.now)
        permit = self.breaker.enter(self.now)
        assert (permit is not None) == could
        if permit == "probe":
            assert self.probe_until is None or self.now >= self.probe_until
            self.probe_until = self.now + 10.0
        if permit is not None:
            self.out.append(permit)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), verdict=st.sampled_from(_VERDICTS))
    def end(self, data: st.DataObject, verdict: Verdict) -> None:
        permit = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        before = self.breaker.state
        give_back(self.breaker, verdict, permit, self.now)
        if permit == "probe":
            self.probe_until = None
        if before != "closed" and permit == "call":
            assert self.breaker.state == before

    @rule()
    def fails_in_a_row(self) -> None:
        while self.breaker.state == "closed":
            assert self.breaker.enter(self.now) == "call"
            self.breaker.failed("call", "503", self.now, alone=False)

    @invariant()
    def while_a_probe_is_waited_for_no_other_is_sent(self) -> None:
        if self.probe_until is not None and self.now < self.probe_until and self.breaker.state != "closed":
            assert not self.breaker.lets_through(self.now)

    @invariant()
    def it_is_never_closed_to_probes_for_good(self) -> None:
        assert self.breaker.lets_through(self.now + 5.0) or "probe" in self.out
        assert self.breaker.lets_through(self.now + 10.0)


Calls.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
TestOneProbeAtATime = Calls.TestCase


@given(st.lists(st.tuples(st.sampled_from(_VERDICTS), st.booleans()), max_size=60))
def test_a_breaker_that_is_asked_once_in_five_seconds_always_lets_one_through(
    calls: list[tuple[Verdict, bool]],
) -> None:
    breaker = Breaker(0.0)
    for n, (verdict, alone) in enumerate(calls):
        permit = breaker.enter(n * 5.0)
        assert permit is not None
        give_back(breaker, verdict, permit, n * 5.0, alone=alone)
