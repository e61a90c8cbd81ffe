"""A bucket lets through what its capacity and the clock allow, and is never opened by a jump of the clock."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.policies.bucket import Bucket
from app.policies.quota import Quota

_LEVEL = 1e-3  # what rounding may add over some hundred steps
_INSTANT = st.floats(-1e9, 1e9)
_AMOUNT = st.floats(0, 5000)


def drained(limit: float = 60.0, now: float = 0.0) -> Bucket:
    bucket = Bucket(limit, now)
    bucket.take(limit, now)
    return bucket


def test_a_new_bucket_is_full_and_lets_its_whole_capacity_through_at_once() -> None:
    bucket = Bucket(60, 0.0)
    assert bucket.wait(60, 0.0) == 0.0
    bucket.take(60, 0.0)
    assert bucket.wait(1, 0.0) == pytest.approx(1.0)
    assert bucket.wait(5, 0.0) == pytest.approx(5.0)


def test_it_fills_up_by_a_sixtieth_of_its_limit_a_second_and_not_beyond_it() -> None:
    bucket = drained(120)
    assert bucket.wait(20, 10.0) == 0.0
    assert bucket.level == pytest.approx(20)
    assert bucket.wait(120, 59.0) == pytest.approx(1.0)
    bucket.wait(1, 5000.0)
    assert bucket.level == 120


def test_after_the_wait_it_asked_for_there_is_enough() -> None:
    bucket = drained(100)
    wait = bucket.wait(37, 0.0)
    assert bucket.wait(37, wait - 0.1) == pytest.approx(0.1)
    assert bucket.wait(37, wait) == 0.0


def test_asking_takes_nothing() -> None:
    bucket = Bucket(60, 0.0)
    assert [bucket.wait(60, 0.0) for _ in range(3)] == [0.0] * 3


def test_without_a_limit_nothing_waits() -> None:
    bucket = Bucket(None, 0.0)
    bucket.take(1e9, 0.0)
    assert bucket.wait(1e9, 0.0) == 0.0
    assert bucket.limit is None


def test_what_is_to_be_kept_is_left_but_never_more_than_half_the_capacity() -> None:
    bucket = Bucket(60, 0.0)
    bucket.take(50, 0.0)
    assert bucket.wait(5, 0.0, keep=5) == 0.0
    assert bucket.wait(6, 0.0, keep=5) == pytest.approx(1.0)
    full = Bucket(60, 0.0)
    full.take(15, 0.0)
    assert full.wait(15, 0.0, keep=1000) == 0.0
    full.wait(1, 60.0)
    full.take(30, 60.0)
    assert full.wait(1, 60.0, keep=1000) > 0.0


def test_a_request_bigger_than_the_capacity_passes_when_the_bucket_is_full_and_is_paid_for_afterwards() -> None:
    bucket = Bucket(60, 0.0)
    bucket.take(1, 0.0)
    assert bucket.wait(90, 0.0) == pytest.approx(1.0)
    assert bucket.wait(90, 1.0) == 0.0
    bucket.take(90, 1.0)
    assert bucket.wait(1, 1.0) == pytest.approx(31.0)


@given(
    st.floats(1, 1e5),
    st.lists(st.tuples(st.floats(0, 40), st.floats(0, 1)), min_size=1, max_size=60),
    st.floats(0, 0.5),
)
def test_over_any_window_no_more_than_capacity_and_refill_is_let_through(
    limit: float, asks: list[tuple[float, float]], keep: float
) -> None:
    bucket, now, sent = Bucket(limit, 0.0), 0.0, []
    for gap, share in asks:
        now += gap
        amount = share * limit
        while (wait := bucket.wait(amount, now, keep * limit)) > 0.0:
            now += wait
        bucket.take(amount, now)
        sent.append((now, amount))
    for first in range(len(sent)):
        for last in range(first, len(sent)):
            window = sent[last][0] - sent[first][0]
            total = sum(amount for _, amount in sent[first : last + 1])
            assert total <= limit + limit / 60 * window + _LEVEL * (1 + limit * 1e-3)


@given(st.floats(0, 60), st.floats(0, 6000))
def test_the_wait_for_all_knows_no_capacity(taken: float, amount: float) -> None:
    bucket = Bucket(60, 0.0)
    bucket.take(taken, 0.0)
    wait = bucket.wait_for_all(amount, 0.0)
    assert wait == pytest.approx(max(0.0, amount - (60 - taken)))
    assert wait >= bucket.wait(amount, 0.0) - _LEVEL
    assert bucket.level == 60 - taken


def test_without_a_limit_nobody_waits_for_all_either() -> None:
    assert Bucket(None, 0.0).wait_for_all(1e9, 5.0) == 0.0


def test_calls_within_ten_milliseconds_share_one_instant() -> None:
    bucket = Bucket(60, 0.0)
    bucket.take(4, 0.0)
    first, second = bucket.take(1, 5.0), bucket.take(2, 5.009)
    assert first is second
    assert (first.at, first.before, first.after) == (5.0, 4, 7)
    later = bucket.take(3, 5.02)
    assert (first.after, later.after) == (7, 10)


def test_whoever_was_sent_within_a_second_before_may_be_heard_after_it() -> None:
    bucket = Bucket(60, 0.0)
    befores = [bucket.take(1, now).before for now in (0.5, 1.0, 1.5, 2.25, 9.0)]
    assert befores == [0, 0, 0, 2, 4]


def test_a_clock_that_jumps_back_ends_the_instant() -> None:
    bucket = Bucket(60, 0.0)
    first, second = bucket.take(1, 5.0), bucket.take(1, 4.999)
    assert first is not second
    assert (first.after, second.before, second.at) == (1, 1, 4.999)


# clocks that jump


@given(st.lists(st.tuples(_INSTANT, _AMOUNT), max_size=40))
def test_a_clock_that_jumps_anywhere_neither_opens_it_beyond_capacity_nor_drains_it(
    jumps: list[tuple[float, float]],
) -> None:
    bucket = Bucket(1000, 0.0)
    for now, amount in jumps:
        before = bucket.level
        wait = bucket.wait(1, now)
        assert before <= bucket.level <= 1000
        assert 0.0 <= wait < math.inf
        bucket.take(amount, now)
        assert bucket.level == pytest.approx(min(1000, bucket.level + amount) - amount)


@given(st.lists(st.tuples(_INSTANT, _INSTANT, st.floats(0, 1e9), st.none() | st.floats(1e-9, 1e9)), max_size=30))
def test_no_reply_at_any_time_opens_it_beyond_capacity(
    replies: list[tuple[float, float, float, float | None]],
) -> None:
    bucket = Bucket(1000, 0.0)
    for sent_at, now, left, reset in replies:
        bucket.sync(Quota(1000, left, reset), bucket.take(1, sent_at), now)
        assert bucket.level <= 1000
        assert 0.0 <= bucket.wait(1, now) < math.inf
        assert bucket.others >= 0.0


def test_a_clock_that_jumps_back_goes_on_filling_from_there() -> None:
    bucket = drained(60, 1000.0)
    assert bucket.wait(10, 0.0) == pytest.approx(10.0)
    assert bucket.wait(10, 5.0) == pytest.approx(5.0)
    assert bucket.wait(10, 10.0) == 0.0
