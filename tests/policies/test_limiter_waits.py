"""How long a call will wait, by all that is known; and who is told in time that there is no hope."""

import pytest

from app.policies.lanes import Ticket
from app.policies.limiter import Limiter
from tests.policies.test_limiter import asked, end, fixed, let_go


def test_time_alone_opens_nothing_while_every_place_is_taken_or_nobody_waits() -> None:
    limiter = fixed(1, requests=60)
    assert limiter.opens_in(0.0) is None
    first, _ = asked(limiter, 2)
    assert limiter.opens_in(0.0) is None
    end(limiter, first, now=1.0)
    assert limiter.opens_in(1.0) == 0.0


def test_after_the_time_it_said_somebody_is_let_go() -> None:
    limiter = fixed(10, requests=6)
    asked(limiter, 8)
    opens = limiter.opens_in(0.0) or 0.0
    assert opens == pytest.approx(10.0)
    assert let_go(limiter, opens * 0.99) == []
    assert len(let_go(limiter, opens)) == 1


def wait_of(limiter: Limiter, ticket: Ticket, now: float) -> float:
    """Joins its lane, asks how long it will take, and leaves again."""
    limiter.enter(ticket, now, room=False)
    wait = limiter.wait_for(ticket, now)
    limiter.withdraw(ticket, now)
    return wait


def answered(limiter: Limiter, held: float) -> float:
    """Two hundred calls that took `held` each. Returns: When they were over."""
    now = 0.0
    for _ in range(200):
        (ticket,) = asked(limiter, 1, now)
        now += held
        end(limiter, ticket, now=now)
    return now


def test_a_call_that_finds_a_place_waits_for_its_answer_only() -> None:
    limiter = fixed(10)
    assert wait_of(limiter, Ticket(), 0.0) == 0.0
    now = answered(limiter, 2.0)
    assert wait_of(limiter, Ticket(), now) == pytest.approx(2.0)


def test_a_call_behind_others_waits_for_them_to_be_answered() -> None:
    limiter = fixed(10)
    now = answered(limiter, 2.0)
    asked(limiter, 10 + 19, now)
    assert wait_of(limiter, Ticket(), now) == pytest.approx(20 * 2.0 / 10 + 2.0)


def test_an_interactive_call_does_not_wait_for_batch_calls() -> None:
    limiter = fixed(10)
    now = answered(limiter, 2.0)
    asked(limiter, 10, now)
    asked(limiter, 500, now, lane="batch")
    assert wait_of(limiter, Ticket(), now) == pytest.approx(2.2)
    assert wait_of(limiter, Ticket(lane="batch"), now) == pytest.approx(501 * 0.2 + 2.0)


def test_a_pause_and_an_empty_quota_are_waited_for() -> None:
    limiter = fixed(100, requests=60)
    asked(limiter, 60)
    assert wait_of(limiter, Ticket(), 0.0) == pytest.approx(1.0)
    asked(limiter, 4)
    assert wait_of(limiter, Ticket(), 0.0) == pytest.approx(5.0)
    limiter.pause.until = 30.0
    assert wait_of(limiter, Ticket(), 0.0) == pytest.approx(30.0)
    tokens = fixed(100, tokens=600)
    asked(tokens, 6, tokens=100)
    asked(tokens, 2, tokens=100)
    assert wait_of(tokens, Ticket(tokens=50), 0.0) == pytest.approx(25.0)


@pytest.mark.parametrize("unit", ["requests", "tokens"])
def test_ten_minutes_of_work_ahead_are_ten_minutes_of_waiting(unit: str) -> None:
    limiter = fixed(100, **{unit: 60.0})
    asked(limiter, 60 + 600, lane="batch")
    assert wait_of(limiter, Ticket(lane="batch"), 0.0) == pytest.approx(601.0, rel=0.01)


# what is learnt of how long a call takes


def test_a_call_that_was_cut_short_says_nothing_of_how_long_calls_take() -> None:
    limiter = fixed(10)
    cut, whole = asked(limiter, 2)
    limiter.ended(cut, 5.0, used=None, answered=True, complete=False)
    assert limiter.held_seconds is None
    limiter.ended(whole, 7.0, used=None, answered=True)
    assert limiter.held_seconds == 7.0
    for ticket in asked(limiter, 5, 10.0):
        limiter.ended(ticket, 10.001, used=None, answered=True, complete=False)
    assert limiter.held_seconds == 7.0


def test_nor_does_a_call_that_was_not_answered() -> None:
    limiter = fixed(10)
    (ticket,) = asked(limiter, 1)
    limiter.ended(ticket, 0.1, used=None, answered=False)
    assert limiter.held_seconds is None


def test_what_a_cut_call_used_is_settled_all_the_same() -> None:
    limiter = fixed(10, tokens=6000)
    (ticket,) = asked(limiter, 1, tokens=1000)
    limiter.ended(ticket, 0.0, used=400.0, answered=True, complete=False)
    assert limiter.tokens.level == pytest.approx(5600)
    assert limiter.in_flight == 0


# no hope


def waiting_until(limiter: Limiter, *deadlines: float, patient: bool = False) -> list[Ticket]:
    tickets = [Ticket(deadline=deadline, patient=patient, caller=str(deadline)) for deadline in deadlines]
    for ticket in tickets:
        limiter.enter(ticket, 0.0, room=False)
    return tickets


def test_who_could_not_be_answered_in_time_is_told_so_and_takes_no_place() -> None:
    limiter = fixed(1, requests=60)
    limiter.held_seconds = 4.0
    hopeless, hopeful = waiting_until(limiter, 2.9, 3.1)
    assert let_go(limiter, 0.0, room=1) == [hopeless, hopeful]
    assert (hopeless.sent_at, hopeful.sent_at) == (None, 0.0)
    assert (limiter.in_flight, limiter.waiting, limiter.flying["interactive"]) == (1, 0, 1)
    assert limiter.requests.level == 59


def test_all_who_are_hopeless_are_told_so_although_there_is_room_for_one() -> None:
    limiter = fixed(1)
    limiter.held_seconds = 4.0
    tickets = waiting_until(limiter, *(n / 100 for n in range(50)))
    assert let_go(limiter, 1.0, room=1) == tickets
    assert {ticket.sent_at for ticket in tickets} == {None}
    assert limiter.waiting == limiter.in_flight == 0


def test_three_quarters_of_the_usual_time_are_hope_enough() -> None:
    limiter = fixed(10)
    limiter.held_seconds = 4.0
    just, not_quite = waiting_until(limiter, 8.0, 7.999)
    let_go(limiter, 5.0)
    assert (just.sent_at, not_quite.sent_at) == (5.0, None)


def test_while_nothing_is_known_only_a_deadline_that_has_passed_is_hopeless() -> None:
    limiter = fixed(10)
    late, in_time = waiting_until(limiter, 4.9, 5.0)
    let_go(limiter, 5.0)
    assert (late.sent_at, in_time.sent_at) == (None, 5.0)


def test_the_patient_are_sent_however_late_it_is() -> None:
    limiter = fixed(10)
    limiter.held_seconds = 4.0
    (ticket,) = waiting_until(limiter, 1.0, patient=True)
    assert let_go(limiter, 50.0) == [ticket]
    assert ticket.sent_at == 50.0


def test_the_hopeless_are_not_expected_again() -> None:
    limiter = fixed(10)
    limiter.held_seconds = 4.0
    waiting_until(limiter, *(n / 100 for n in range(8)))
    let_go(limiter, 1.0)
    asked(limiter, 1, 70.0, lane="batch")
    assert limiter.reserve == 0
