"""Requests and tokens a minute: reserved before sending, settled by what was used, followed by what replies say."""

import pytest

from app.policies.lanes import Ticket
from app.policies.limiter import Limiter
from app.policies.limits import Limits
from app.policies.quota import Quota
from tests.policies.test_limiter import asked, fixed, let_go, sent


def test_requests_a_minute_are_let_go_and_then_one_a_second() -> None:
    limiter = fixed(1000, requests=60)
    assert len(sent(asked(limiter, 70))) == 60
    assert limiter.opens_in(0.0) == pytest.approx(1.0)
    assert len(let_go(limiter, 3.0)) == 3


def test_tokens_are_reserved_before_sending() -> None:
    limiter = fixed(1000, tokens=6000)
    assert len(sent(asked(limiter, 10, tokens=1000))) == 6
    assert limiter.opens_in(0.0) == pytest.approx(10.0)


def test_tokens_are_settled_by_what_was_used() -> None:
    limiter = fixed(1000, tokens=6000)
    first, *_ = asked(limiter, 6, tokens=1000)
    limiter.ended(first, 0.0, used=400, answered=True)
    assert limiter.tokens.level == pytest.approx(600)
    dear = Ticket(tokens=100)
    assert limiter.enter(dear, 0.0)
    limiter.ended(dear, 0.0, used=300, answered=True)
    assert limiter.tokens.level == pytest.approx(300)


def test_what_was_used_may_be_unknown_and_then_the_guess_stands() -> None:
    limiter = fixed(1000, requests=60, tokens=6000)
    (ticket,) = asked(limiter, 1, tokens=1000)
    limiter.ended(ticket, 0.0, used=None, answered=True)
    assert (limiter.tokens.level, limiter.requests.level) == (5000, 59)


@pytest.mark.parametrize("used", [None, 700.0])
def test_a_call_that_was_not_answered_is_refunded(used: float | None) -> None:
    limiter = fixed(1000, requests=60, tokens=6000)
    (ticket,) = asked(limiter, 1, tokens=1000)
    limiter.ended(ticket, 0.0, used=used, answered=False)
    assert (limiter.tokens.level, limiter.requests.level) == (6000, 60)


def test_what_replies_say_is_followed() -> None:
    limiter = Limiter(Limits(), 0.0)
    (ticket,) = asked(limiter, 1, tokens=10)
    limiter.told(ticket, Quota(60, 5, 55.0), Quota(6000, 5990, 0.1), 0.0)
    assert (limiter.requests.level, limiter.tokens.level) == (5, 5990)
    assert len(sent(asked(limiter, 20))) == 5


def test_a_call_dearer_than_a_whole_minute_goes_when_the_bucket_is_full() -> None:
    limiter = fixed(10, tokens=600)
    asked(limiter, 1, tokens=60)
    (dear,) = asked(limiter, 1, tokens=5000)
    assert limiter.opens_in(0.0) == pytest.approx(6.0)
    assert let_go(limiter, 6.01) == [dear]
