"""When to try again: jitter within bounds, Retry-After a minimum, the deadline never passed."""

import math
from email.utils import formatdate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.policies.retry import RetryPolicy, retry_after_of

_DRAW = st.floats(0, 1, exclude_max=True)
_SECONDS = st.floats(0, 120)
_ATTEMPT = st.integers(1, 9)
_POLICY = st.builds(RetryPolicy, st.just(10), st.floats(0, 60), st.floats(0, 60))
NOW = 1_750_000_000.0


def asked(**headers: str) -> float | None:
    return retry_after_of({name.replace("_", "-"): value for name, value in headers.items()}, NOW)


@given(_POLICY, _ATTEMPT, _DRAW)
def test_jitter_lies_between_nothing_and_the_backoff_that_is_capped(
    policy: RetryPolicy, attempt: int, draw: float
) -> None:
    wait = policy.wait(attempt, retry_after=None, remaining=math.inf, draw=lambda: draw)
    assert wait is not None
    assert 0 <= wait <= min(policy.cap, policy.base * 2 ** (attempt - 1))


@given(_POLICY, _ATTEMPT, _DRAW, _SECONDS)
def test_retry_after_is_a_minimum(policy: RetryPolicy, attempt: int, draw: float, retry_after: float) -> None:
    wait = policy.wait(attempt, retry_after=retry_after, remaining=math.inf, draw=lambda: draw)
    assert wait is not None
    assert retry_after <= wait <= retry_after + policy.cap


@given(_POLICY, _ATTEMPT, _DRAW, st.none() | _SECONDS, st.floats(-10, 100))
def test_a_wait_never_passes_the_deadline(
    policy: RetryPolicy, attempt: int, draw: float, retry_after: float | None, remaining: float
) -> None:
    wait = policy.wait(attempt, retry_after=retry_after, remaining=remaining, draw=lambda: draw)
    assert wait is None or wait < remaining


@given(_POLICY, _ATTEMPT, _DRAW, st.floats(0, 10_000))
def test_a_retry_after_that_is_too_long_is_left_to_the_client(
    policy: RetryPolicy, attempt: int, draw: float, retry_after: float
) -> None:
    wait = policy.wait(attempt, retry_after=retry_after, remaining=math.inf, draw=lambda: draw)
    assert (wait is None) == (retry_after > policy.longest)


@pytest.mark.parametrize(("retry_after", "wait"), [(None, 0.25), (0.0, 0.025), (5.0, None)])
def test_another_target_is_asked_rather_than_waiting_as_long_as_this_one_wants(
    retry_after: float | None, wait: float | None
) -> None:
    found = RetryPolicy().wait(1, retry_after=retry_after, remaining=60, draw=lambda: 0.5, alternative=True)
    assert found == (None if wait is None else pytest.approx(wait))


@given(st.integers(1, 10), _DRAW)
def test_there_are_never_more_attempts_than_allowed(most: int, draw: float) -> None:
    policy = RetryPolicy(max_attempts=most)
    waits = [policy.wait(n, retry_after=None, remaining=math.inf, draw=lambda: draw) for n in range(1, most + 3)]
    assert [wait is not None for wait in waits] == [True] * (most - 1) + [False] * 3


def test_the_backoff_doubles_up_to_its_cap() -> None:
    policy = RetryPolicy(max_attempts=9, base=0.5, cap=3.0)
    waits = [policy.wait(n, retry_after=None, remaining=math.inf, draw=lambda: 1.0) for n in range(1, 6)]
    assert waits == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_wait_that_would_end_at_the_deadline_is_given_up() -> None:
    policy = RetryPolicy()
    assert policy.wait(1, retry_after=5.0, remaining=5.0, draw=lambda: 0.0) is None
    assert policy.wait(1, retry_after=5.0, remaining=5.1, draw=lambda: 0.0) == 5.0


def test_callers_that_were_all_told_the_same_moment_come_back_at_different_ones() -> None:
    policy = RetryPolicy()
    draws = (0.0, 0.5, 0.9)
    assert len({policy.wait(1, retry_after=5.0, remaining=60, draw=lambda d=d: d) for d in draws}) == 3  # type: ignore[misc]


@pytest.mark.parametrize(("text", "seconds"), [("5", 5.0), ("0", 0.0), ("1.5", 1.5), (" 7 ", 7.0), ("-3", 0.0)])
def test_retry_after_is_read_in_seconds_and_is_never_negative(text: str, seconds: float) -> None:
    assert asked(retry_after=text) == seconds


def test_retry_after_ms_is_read_in_milliseconds_and_wins() -> None:
    assert asked(retry_after_ms="1500", retry_after="9") == 1.5


@given(st.integers(-10_000, 10_000))
def test_retry_after_is_read_as_a_date_and_one_that_has_passed_means_now(ahead: int) -> None:
    assert asked(retry_after=formatdate(NOW + ahead, usegmt=True)) == max(0, ahead)


def test_without_the_headers_nothing_is_asked() -> None:
    assert asked() is None
    assert asked(date="Wed, 21 Oct 2015 07:28:00 GMT") is None


@pytest.mark.parametrize(
    "text", ["", "soon", "nan", "inf", "-inf", "1e999", "5 seconds", "\u2075", "Wed", ",", "0 0 0"]
)
def test_garbage_asks_for_nothing(text: str) -> None:
    assert asked(retry_after=text) is None
    assert asked(retry_after_ms=text) is None


@pytest.mark.parametrize("text", ["", "soon", "nan"])
def test_garbage_in_one_header_leaves_the_other_its_say(text: str) -> None:
    assert asked(retry_after_ms=text, retry_after="9") == 9.0


_ODD_DATES = st.tuples(
    st.sampled_from(["", "Wed, ", "Wed,"]),
    st.integers(-1, 40) | st.just(10**20),
    st.sampled_from(["Oct", "oct", "Nope", "13"]),
    st.integers(0, 10_000) | st.just(10**20),
    st.sampled_from(["07:28:00", "25:61:61", "7", "07.28", "::", "07:28:99999999999999999999"]),
    st.sampled_from(["GMT", "", "-0000", "+9999", "EST", "+99999999999999999999", "x"]),
).map(lambda parts: parts[0] + " ".join(map(str, parts[1:])))


@given(_ODD_DATES | st.text(max_size=20))
@example("Wed, 21 Oct 99999999999999999999 07:28:00 GMT")
@example("Wed, 21 Oct 2015 07:28:00 +99999999999999999999")
def test_no_header_an_upstream_may_send_breaks_the_reading(text: str) -> None:
    seconds = asked(retry_after=text)
    assert seconds is None or (math.isfinite(seconds) and seconds >= 0)
