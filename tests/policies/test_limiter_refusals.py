"""What a refusal means: too many at once, or a quota that is used up; and what is found out by them."""

import pytest

from app.policies.lanes import Ticket
from app.policies.limiter import Limiter
from app.policies.limits import Limits
from app.policies.quota import Quota
from tests.policies.test_limiter import asked, end, fixed, let_go, sent


def refuse(limiter: Limiter, ticket: Ticket, now: float, **said: Quota | float | bool | None) -> None:
    limiter.refused(ticket, now, **said)  # type: ignore[arg-type]
    limiter.ended(ticket, now, used=None, answered=False)


def test_refused_by_quota_everybody_pauses_until_retry_after() -> None:
    limiter = Limiter(Limits(), 0.0)
    (ticket,) = asked(limiter, 1)
    refuse(limiter, ticket, 0.5, retry_after=7.0, requests=Quota(None, 0, 7.0))
    assert limiter.concurrency.limit == 32
    waiting = asked(limiter, 2, 1.0)
    assert sent(waiting) == []
    assert (limiter.opens_in(1.0) or 0.0) >= 6.5
    assert let_go(limiter, 7.4) == []


@pytest.mark.parametrize(("left", "paused"), [(50.0, True), (499.0, False)])
def test_refused_for_too_few_tokens_others_pause_only_if_another_usual_call_would_not_fit(
    left: float, *, paused: bool
) -> None:
    limiter = Limiter(Limits(), 0.0)
    (ticket,) = asked(limiter, 1, tokens=500)  # a usual call has 51 by now
    refuse(limiter, ticket, 0.5, retry_after=7.0, requests=Quota(60, 50, 10.0), tokens=Quota(None, left, 50.0))
    assert limiter.concurrency.limit == 32
    assert limiter.pause.until == (7.5 if paused else float("-inf"))


def test_one_callers_prompt_that_the_quota_never_takes_does_not_hold_the_others_up() -> None:
    limiter = Limiter(Limits(), 0.0)
    said = Quota(30_000, 29_000, 2.0)
    (small,) = asked(limiter, 1, tokens=100)
    limiter.told(small, None, said, 0.1)
    end(limiter, small, now=0.1)
    (large,) = asked(limiter, 1, 0.2, tokens=20_000)
    refuse(limiter, large, 0.5, retry_after=20.0, tokens=said)
    assert limiter.concurrency.limit == 32
    assert len(sent(asked(limiter, 1, 5.0, tokens=100))) == 1


def test_refused_for_requests_with_no_word_of_tokens_everybody_pauses() -> None:
    limiter = Limiter(Limits(), 0.0)
    (ticket,) = asked(limiter, 1)
    refuse(limiter, ticket, 0.5, retry_after=7.0, requests=Quota(None, 0, 7.0))
    assert limiter.pause.until == 7.5


def test_refused_for_requests_everybody_pauses_however_many_tokens_are_left() -> None:
    """As OpenAI says it: both limits in every reply, and no other call would fit into the requests that are left."""
    limiter = Limiter(Limits(), 0.0)
    (ticket,) = asked(limiter, 1)
    refuse(limiter, ticket, 0.5, retry_after=7.0, requests=Quota(None, 0, 7.0), tokens=Quota(150_000, 149_984, 0.01))
    assert limiter.pause.until == 7.5


def test_where_the_limit_is_known_its_bucket_tells_when_to_go_on() -> None:
    limiter = Limiter(Limits(), 0.0)
    (ticket,) = asked(limiter, 1)
    refuse(limiter, ticket, 0.5, retry_after=7.0, requests=Quota(60, 0, 60.0))
    assert limiter.pause.until < 0.5
    assert sent(asked(limiter, 1, 0.6)) == []
    assert limiter.opens_in(0.6) == pytest.approx(0.4, abs=0.2)


def test_a_pause_is_never_longer_than_a_minute_and_never_made_shorter() -> None:
    limiter = Limiter(Limits(), 0.0)
    first, second = asked(limiter, 2)
    refuse(limiter, first, 0.5, retry_after=86_400.0, requests=Quota(None, 0, 7.0))
    assert limiter.pause.until == 60.5
    refuse(limiter, second, 0.6, retry_after=1.0, requests=Quota(None, 0, 7.0))
    assert limiter.pause.until == 60.5


def test_refused_for_calls_at_once_the_limit_is_cut_and_nobody_pauses() -> None:
    limiter = Limiter(Limits(), 0.0)
    tickets = asked(limiter, 21)
    refuse(limiter, tickets[-1], 0.5, retry_after=7.0)
    assert limiter.concurrency.limit == 20
    assert limiter.pause.until <= 0.5


def test_refused_again_afterwards_it_was_not_only_calls_at_once() -> None:
    limiter = Limiter(Limits(), 0.0)
    end(limiter, *asked(limiter, 19), now=0.1)
    (first,) = asked(limiter, 1, 0.2)
    refuse(limiter, first, 0.5, retry_after=7.0)
    (second,) = asked(limiter, 1, 0.6)
    refuse(limiter, second, 0.9, retry_after=7.0)
    assert limiter.pause.until == pytest.approx(7.9)


def test_an_answer_in_between_ends_the_row() -> None:
    limiter = Limiter(Limits(), 0.0)
    (first,) = asked(limiter, 1, 0.0)
    refuse(limiter, first, 0.5, retry_after=7.0)
    (well,) = asked(limiter, 1, 0.6)
    limiter.first_byte(well, 0.8, tokens=None, whole=True)
    end(limiter, well, now=0.8)
    (second,) = asked(limiter, 1, 0.9)
    refuse(limiter, second, 1.0, retry_after=7.0)
    assert limiter.pause.until <= 1.0


def test_what_was_not_counted_is_no_measure_of_calls_at_once() -> None:
    limiter = Limiter(Limits(), 0.0)
    tickets = asked(limiter, 31)
    refuse(limiter, tickets[-1], 0.5, counted=False)
    assert limiter.concurrency.limit == 22


def test_a_burst_of_one_instant_finds_the_capacity_whoever_of_it_is_refused_first() -> None:
    limiter = Limiter(Limits(), 0.0)
    tickets = [asked(limiter, 1, n * 1e-4)[0] for n in range(32)]
    for ticket in [*tickets[3:10], *tickets[20:25]]:  # new connections overtake each other: twenty got in
        refuse(limiter, ticket, 0.05)
    assert limiter.concurrency.limit == 20


def test_who_is_not_able_twice_is_left_alone_until_retry_after() -> None:
    limiter = Limiter(Limits(), 0.0)
    (first,) = asked(limiter, 1, 0.2)
    refuse(limiter, first, 0.5, retry_after=7.0, counted=False)
    assert limiter.pause.until <= 0.5
    (second,) = asked(limiter, 1, 0.6)
    refuse(limiter, second, 0.9, retry_after=7.0, counted=False)
    assert limiter.pause.until == pytest.approx(7.9)


def test_a_fixed_limit_is_not_cut() -> None:
    limiter = fixed(5)
    tickets = asked(limiter, 5)
    refuse(limiter, tickets[-1], 0.5)
    assert limiter.concurrency.limit == 5


def test_headers_with_quota_left_do_not_make_it_a_matter_of_quota() -> None:
    limiter = Limiter(Limits(), 0.0)
    tickets = asked(limiter, 21)
    refuse(limiter, tickets[-1], 0.5, retry_after=7.0, requests=Quota(600, 500, 10.0))
    assert limiter.concurrency.limit == 20
    assert limiter.pause.until <= 0.5


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
