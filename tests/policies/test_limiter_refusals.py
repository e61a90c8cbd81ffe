"""What a refusal means: too many at once, or a quota that is used up; and what is found out by them."""

import pytest

from app.policies.lanes import Ticket
from app.policies.limiter import Limiter, Limits
from app.policies.quota import Quota
from tests.policies.test_limiter import asked, end, fixed, let_go, sent


def refuse(limiter: Limiter, ticket: Ticket, now: float, **said: Quota | float | None) -> None:
    limiter.refused(ticket, now, **said)  # type: ignore[arg-type]
    limiter.ended(ticket, now, used=None, answered=False)


def test_refused_by_quota_everybody_pauses_until_retry_after() -> None:
    limiter = Limiter(Limits(), 0.0)
    (ticket,) = asked(limiter, 1)
    refuse(limiter, ticket, 0.5, retry_after=7.0, requests=Quota(60, 0, 7.0))
    assert limiter.concurrency.limit == 32
    waiting = asked(limiter, 2, 1.0)
    assert sent(waiting) == []
    assert (limiter.opens_in(1.0) or 0.0) >= 6.5
    assert let_go(limiter, 7.4) == []


def test_refused_for_too_few_tokens_is_refused_by_quota_too() -> None:
    limiter = Limiter(Limits(), 0.0)
    (ticket,) = asked(limiter, 1, tokens=500)
    refuse(limiter, ticket, 0.5, retry_after=7.0, requests=Quota(60, 50, 10.0), tokens=Quota(6000, 499, 50.0))
    assert limiter.concurrency.limit == 32
    assert limiter.paused_until == 7.5


def test_a_pause_is_never_longer_than_a_minute_and_never_made_shorter() -> None:
    limiter = Limiter(Limits(), 0.0)
    first, second = asked(limiter, 2)
    refuse(limiter, first, 0.5, retry_after=86_400.0, requests=Quota(60, 0, 7.0))
    assert limiter.paused_until == 60.5
    refuse(limiter, second, 0.6, retry_after=1.0, requests=Quota(60, 0, 7.0))
    assert limiter.paused_until == 60.5


def test_refused_for_calls_at_once_the_limit_is_cut_and_nobody_pauses() -> None:
    limiter = Limiter(Limits(), 0.0)
    tickets = asked(limiter, 21)
    refuse(limiter, tickets[-1], 0.5, retry_after=7.0)
    assert limiter.concurrency.limit == 20
    assert limiter.paused_until <= 0.5


def test_refused_again_afterwards_it_was_not_only_calls_at_once() -> None:
    limiter = Limiter(Limits(), 0.0)
    end(limiter, *asked(limiter, 19), now=0.1)
    (first,) = asked(limiter, 1, 0.2)
    refuse(limiter, first, 0.5, retry_after=7.0)
    (second,) = asked(limiter, 1, 0.6)
    refuse(limiter, second, 0.9, retry_after=7.0)
    assert limiter.paused_until == pytest.approx(7.9)


def test_an_answer_in_between_ends_the_row() -> None:
    limiter = Limiter(Limits(), 0.0)
    (first,) = asked(limiter, 1, 0.0)
    refuse(limiter, first, 0.5, retry_after=7.0)
    (well,) = asked(limiter, 1, 0.6)
    limiter.first_byte(well, 0.8, tokens=None, whole=True)
    end(limiter, well, now=0.8)
    (second,) = asked(limiter, 1, 0.9)
    refuse(limiter, second, 1.0, retry_after=7.0)
    assert limiter.paused_until <= 1.0


def test_a_fixed_limit_is_not_cut() -> None:
    limiter = fixed(5)
    tickets = asked(limiter, 5)
    refuse(limiter, tickets[-1], 0.5)
    assert limiter.concurrency.limit == 5


def test_headers_with_quota_left_do_not_make_it_a_matter_of_quota() -> None:
    limiter = Limiter(Limits(), 0.0)
    tickets = asked(limiter, 11)
    refuse(limiter, tickets[-1], 0.5, retry_after=7.0, requests=Quota(600, 500, 10.0))
    assert limiter.concurrency.limit == 10
    assert limiter.paused_until <= 0.5


# adaptive, through and through


def serve(limiter: Limiter, capacity: int, rounds: int, now: float = 0.0) -> tuple[float, int]:
    """Plays an upstream that has `capacity` places and refuses beyond them. Returns: The time and its refusals."""
    refusals = 0
    for _ in range(rounds):
        flying = let_go(limiter, now) + sent(asked(limiter, max(0, 200 - limiter.waiting), now, lane="batch"))
        now += 0.1
        for n, ticket in enumerate(flying):
            if n >= capacity:
                refusals += 1
                refuse(limiter, ticket, now)
            else:
                limiter.first_byte(ticket, now, tokens=10.0, whole=True)
                end(limiter, ticket, now=now)
    return now, refusals


def test_an_upstream_that_refuses_is_used_to_its_last_place_and_refuses_hardly_ever() -> None:
    limiter = Limiter(Limits(), 0.0)
    now, _ = serve(limiter, 40, 30)
    assert 36 <= limiter.concurrency.limit <= 41
    _, refusals = serve(limiter, 40, 300, now)
    assert refusals <= 0.01 * 300 * 40


def test_capacity_that_has_gone_is_not_asked_for_again_and_again() -> None:
    limiter = Limiter(Limits(), 0.0)
    now, _ = serve(limiter, 40, 30)
    now, _ = serve(limiter, 10, 30, now)
    assert 7 <= limiter.concurrency.limit <= 11
