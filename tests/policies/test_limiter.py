"""The admission point: who may be sent now, within calls in flight, requests and tokens; interactive first."""

from collections import Counter

from app.policies.lanes import Lane, Ticket
from app.policies.limiter import Limiter
from app.policies.limits import Limits


def fixed(in_flight: int, requests: float | None = None, tokens: float | None = None) -> Limiter:
    return Limiter(Limits("fixed", in_flight, requests, tokens), 0.0)


def asked(
    limiter: Limiter, count: int, now: float = 0.0, lane: Lane = "interactive", tokens: float = 1.0
) -> list[Ticket]:
    """Returns: All that asked; those with a `sent_at` were let go at once."""
    tickets = [Ticket(lane=lane, tokens=tokens) for _ in range(count)]
    for ticket in tickets:
        assert limiter.enter(ticket, now) == (ticket.sent_at is not None)
    return tickets


def sent(tickets: list[Ticket]) -> list[Ticket]:
    return [ticket for ticket in tickets if ticket.sent_at is not None]


def let_go(limiter: Limiter, now: float, room: int = 10_000) -> list[Ticket]:
    return list(limiter.admit(now, room))


def end(limiter: Limiter, *tickets: Ticket, now: float) -> None:
    for ticket in tickets:
        limiter.ended(ticket, now, used=ticket.tokens, answered=True)


def busy_minute(limiter: Limiter, peak: int) -> float:
    """A minute in each of whose seconds `peak` interactive calls are in flight at once. Returns: Its end."""
    for second in range(60):
        end(limiter, *asked(limiter, peak, second + 0.25), now=second + 0.5)
    end(limiter, *asked(limiter, 1, 60.5), now=60.5)
    return 60.5


# calls in flight


def test_as_many_as_the_limit_are_let_go_and_the_others_wait() -> None:
    limiter = fixed(3)
    tickets = asked(limiter, 5)
    assert [ticket.sent_at for ticket in tickets] == [0.0, 0.0, 0.0, None, None]
    assert (limiter.in_flight, limiter.waiting) == (3, 2)
    assert [ticket.requests_mark.company for ticket in tickets[:3] if ticket.requests_mark] == [3, 3, 3]


def test_a_mark_holds_the_company_after_its_instant() -> None:
    limiter = fixed(10)
    first, second = asked(limiter, 2, 0.0)
    (third,) = asked(limiter, 1, 0.5)
    companies = [ticket.requests_mark.company for ticket in (first, second, third) if ticket.requests_mark]
    assert companies == [2, 2, 3]


def test_who_leaves_lets_the_next_one_go() -> None:
    limiter = fixed(1)
    first, second, third = asked(limiter, 3)
    assert let_go(limiter, 1.0) == []
    end(limiter, first, now=2.0)
    assert let_go(limiter, 2.0) == [second]
    assert (second.sent_at, third.sent_at) == (2.0, None)


def test_room_beyond_the_limiter_bounds_it_too() -> None:
    limiter = fixed(5)
    ticket = Ticket()
    assert not limiter.enter(ticket, 0.0, room=False)
    asked(limiter, 2)
    assert let_go(limiter, 0.0, room=0) == []
    assert let_go(limiter, 0.0, room=1) == [ticket]
    assert len(let_go(limiter, 0.0)) == 2


def test_nobody_overtakes_those_who_wait_in_the_same_lane() -> None:
    limiter = fixed(5)
    waiting = Ticket()
    limiter.enter(waiting, 0.0, room=False)
    late = Ticket()
    assert not limiter.enter(late, 0.0)
    assert let_go(limiter, 0.0) == [waiting, late]


def test_who_is_only_looked_at_is_not_sent() -> None:
    limiter = fixed(5)
    waiting = [Ticket(), Ticket()]
    for ticket in waiting:
        limiter.enter(ticket, 0.0, room=False)
    assert next(limiter.admit(0.0, 9)) is waiting[0]
    assert (limiter.in_flight, limiter.waiting, waiting[1].sent_at) == (1, 1, None)


def test_who_hangs_up_leaves_the_queue() -> None:
    limiter = fixed(1)
    first, second, third = asked(limiter, 3)
    limiter.withdraw(second, 0.5)
    end(limiter, first, now=1.0)
    assert let_go(limiter, 1.0) == [third]
    assert (limiter.waiting, second.sent_at) == (0, None)


# lanes


def test_interactive_goes_strictly_before_batch() -> None:
    limiter = fixed(2)
    running = asked(limiter, 2, lane="batch")
    batch = asked(limiter, 2, lane="batch")
    interactive = asked(limiter, 2)
    end(limiter, *running, now=1.0)
    assert let_go(limiter, 1.0) == interactive
    end(limiter, *interactive, now=2.0)
    assert let_go(limiter, 2.0) == batch


def test_an_interactive_call_passes_batch_calls_that_wait() -> None:
    limiter = fixed(5)
    assert not limiter.enter(Ticket(lane="batch"), 0.0, room=False)
    assert limiter.enter(Ticket(), 0.0)


def test_a_batch_call_does_not_pass_an_interactive_one_that_waits() -> None:
    limiter = fixed(5, tokens=600)
    asked(limiter, 1, tokens=500)
    dear = asked(limiter, 1, tokens=400)
    cheap = asked(limiter, 1, lane="batch")
    assert sent(dear + cheap) == []
    assert let_go(limiter, 1.0) == []
    assert let_go(limiter, 30.1) == dear


def test_batch_may_take_all_when_no_interactive_call_has_been_seen() -> None:
    limiter = fixed(10)
    assert limiter.reserve == 0
    assert len(sent(asked(limiter, 20, lane="batch"))) == 10
    requests = fixed(100, requests=60)
    assert len(sent(asked(requests, 100, lane="batch"))) == 60


def test_batch_leaves_free_what_interactive_calls_have_lately_needed() -> None:
    limiter = fixed(10)
    now = busy_minute(limiter, 4)
    assert limiter.reserve == 4
    assert len(sent(asked(limiter, 20, now, lane="batch"))) == 6
    assert len(sent(asked(limiter, 20, now))) == 4


def test_interactive_calls_in_flight_are_part_of_the_reserve() -> None:
    limiter = fixed(10)
    now = busy_minute(limiter, 4)
    asked(limiter, 3, now)
    assert limiter.reserve == 1
    assert len(sent(asked(limiter, 20, now, lane="batch"))) == 6
    assert limiter.in_flight == 9


def test_the_reserve_is_never_more_than_half_and_one_batch_call_may_always_run() -> None:
    limiter = fixed(10)
    now = busy_minute(limiter, 10)
    assert len(sent(asked(limiter, 20, now, lane="batch"))) == 5
    single = fixed(1)
    now = busy_minute(single, 1)
    assert len(sent(asked(single, 2, now, lane="batch"))) == 1


def test_a_test_of_the_ceiling_may_use_the_reserve() -> None:
    limiter = Limiter(Limits(in_flight=10), 0.0)
    now = busy_minute(limiter, 4)
    limiter.concurrency.probing = True
    assert len(sent(asked(limiter, 20, now, lane="batch"))) == 10


def test_a_reserve_is_left_of_requests_and_tokens_too() -> None:
    requests = fixed(100, requests=60)
    now = busy_minute(requests, 1)
    requests.requests.level = 10.0
    assert len(sent(asked(requests, 20, now, lane="batch"))) == 9
    assert len(sent(asked(requests, 20, now))) == 1
    tokens = fixed(100, tokens=6000)
    for second in range(62):
        end(tokens, *asked(tokens, 1, second + 0.25, tokens=100.0), now=second + 0.5)
    tokens.tokens.level = 1000.0
    assert 8 <= len(sent(asked(tokens, 20, 61.5, lane="batch", tokens=100.0))) <= 9


def test_a_client_that_hung_up_is_not_expected_again() -> None:
    limiter = fixed(10)
    running = asked(limiter, 10, lane="batch")
    for ticket in asked(limiter, 5):
        limiter.withdraw(ticket, 0.5)
    end(limiter, *running, now=70.0)
    assert limiter.reserve == 0


# fairness, through and through


def test_calls_that_never_queued_give_their_caller_no_advantage_over_one_that_waits() -> None:
    limiter = fixed(10)
    early = [Ticket(caller="a", tokens=1000) for _ in range(10)]
    for ticket in early:
        limiter.enter(ticket, 0.0)
    for caller in "ab":
        for _ in range(50):
            limiter.enter(Ticket(caller=caller, tokens=1000), 0.0)
    for ticket in early:
        limiter.ended(ticket, 1.0, used=10, answered=True)
    counts = Counter(ticket.caller for ticket in limiter.admit(1.0, 10))
    assert abs(counts["a"] - counts["b"]) <= 2
