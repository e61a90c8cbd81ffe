"""A bucket follows the upstream's own: corrected by what replies say, in whatever order they come."""

from itertools import accumulate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.policies.bucket import Bucket
from app.policies.quota import Quota

# what replies say


def test_a_reply_corrects_it_less_what_was_sent_since_plus_what_ran_in() -> None:
    bucket = Bucket(60, 0.0)
    mark = bucket.take(1, 0.0)
    bucket.take(10, 1.0)
    bucket.sync(Quota(60, 40, None), mark, 2.0)
    assert bucket.level == pytest.approx(40 - 10 + 2.0)


def test_what_was_sent_before_the_replys_call_is_in_its_figure_already() -> None:
    bucket = Bucket(60, 0.0)
    bucket.take(30, 0.0)
    mark = bucket.take(1, 0.5)
    bucket.sync(Quota(60, 29, None), mark, 0.5)
    assert bucket.level == pytest.approx(29)


def test_what_a_reply_says_beyond_the_capacity_is_not_believed() -> None:
    bucket = Bucket(60, 0.0)
    bucket.take(60, 0.0)
    bucket.sync(Quota(60, 1e12, None), bucket.take(1, 0.1), 0.1)
    assert bucket.level == 60


def test_a_reply_to_an_older_call_than_the_last_one_believed_changes_nothing() -> None:
    bucket = Bucket(60, 0.0)
    older, newer = bucket.take(1, 0.0), bucket.take(1, 1.0)
    bucket.sync(Quota(60, 10, None), newer, 1.5)
    before = bucket.level
    bucket.sync(Quota(60, 59, None), older, 1.5)
    assert bucket.level == before


def test_a_reply_without_a_remainder_leaves_the_level_alone() -> None:
    bucket = Bucket(60, 0.0)
    mark = bucket.take(10, 0.0)
    bucket.sync(Quota(60, None, 12.0), mark, 0.0)
    assert bucket.level == 50


def test_a_limit_that_is_not_known_is_learnt_from_the_first_reply_and_followed_when_it_changes() -> None:
    bucket = Bucket(None, 0.0)
    mark = bucket.take(1, 0.0)
    bucket.sync(Quota(120, 100, None), mark, 1.0)
    assert (bucket.limit, bucket.rate) == (120, 2.0)
    assert bucket.level == pytest.approx(102)
    bucket.sync(Quota(60, 59, None), bucket.take(1, 2.0), 2.0)
    assert (bucket.limit, bucket.rate, bucket.level) == (60, 1.0, 59)


def test_what_was_sent_before_a_limit_was_known_counts_against_it() -> None:
    bucket = Bucket(None, 0.0)
    mark = bucket.take(1, 0.0)
    bucket.take(30, 0.5)
    bucket.sync(Quota(60, 59, None), mark, 1.0)
    assert bucket.level == pytest.approx(59 + 1 - 30)


def test_a_limit_that_was_configured_is_not_replaced() -> None:
    bucket = Bucket(60, 0.0)
    bucket.sync(Quota(6000, 5999, None), bucket.take(1, 0.0), 0.0)
    assert (bucket.limit, bucket.rate, bucket.level) == (60, 1.0, 60)


def test_an_older_reply_does_not_bring_an_old_limit_back() -> None:
    bucket = Bucket(None, 0.0)
    older, newer = bucket.take(1, 0.0), bucket.take(1, 1.0)
    bucket.sync(Quota(600, 500, None), newer, 1.5)
    bucket.sync(Quota(60, 59, None), older, 1.6)
    assert bucket.limit == 600


def test_a_days_limit_fills_up_by_its_reset_once_much_is_missing() -> None:
    bucket = Bucket(None, 0.0)
    bucket.sync(Quota(200, 40, 86_400.0), bucket.take(1, 0.0), 0.0)
    assert bucket.rate == pytest.approx(160 / 86_400)
    assert bucket.wait(80, 0.0) == pytest.approx(40 / (160 / 86_400))


@pytest.mark.parametrize("said", [Quota(200, 150, 86_400.0), Quota(200, 40, 48.0), Quota(200, 40, None)])
def test_a_short_reset_or_a_bucket_that_is_nearly_full_tells_nothing_of_the_rate(said: Quota) -> None:
    bucket = Bucket(None, 0.0)
    bucket.sync(said, bucket.take(1, 0.0), 0.0)
    assert bucket.rate == pytest.approx(200 / 60)


def test_a_days_limit_is_unlearnt_when_a_reply_names_a_short_reset() -> None:
    bucket = Bucket(None, 0.0)
    bucket.sync(Quota(200, 40, 86_400.0), bucket.take(1, 0.0), 0.0)
    bucket.sync(Quota(200, 39, 48.3), bucket.take(1, 1.0), 1.0)
    assert bucket.rate == pytest.approx(200 / 60)
    assert bucket.net_rate > 0.0


# instants


_ORDER = st.permutations(range(6))
_AMOUNTS = st.lists(st.floats(1, 200), min_size=6, max_size=6)


def heard(limit: float, amounts: list[float], order: list[int]) -> list[float]:
    """An upstream with a full bucket hears calls in that order. Returns: What it tells each of them is left."""
    left = accumulate((amounts[n] for n in order), lambda level, amount: level - amount, initial=limit)
    return [said for _, said in sorted(zip(order, list(left)[1:], strict=True))]


@given(_AMOUNTS, _ORDER, _ORDER, st.floats(0, 0.009), st.floats(0.05, 30))
def test_replies_of_one_instant_in_any_order_leave_our_own_account_as_it_is(
    amounts: list[float], arrivals: list[int], answers: list[int], spread: float, latency: float
) -> None:
    bucket, account = Bucket(2000, 0.0), Bucket(2000, 0.0)
    marks = []
    for n, amount in enumerate(amounts):
        marks.append(bucket.take(amount, 100.0 + n * spread / 6))
        account.take(amount, 100.0 + n * spread / 6)
    said = heard(2000, amounts, arrivals)
    for n, call in enumerate(answers):
        now = 100.0 + latency + n * 0.001
        bucket.sync(Quota(2000, said[call], None), marks[call], now)
        account.wait(1, now)
        assert bucket.level == pytest.approx(account.level, abs=0.01 * 2000 / 60)


@given(_AMOUNTS, _ORDER, _ORDER, st.floats(0, 1500))
def test_what_somebody_else_took_is_found_within_one_instant_whatever_the_order(
    amounts: list[float], arrivals: list[int], answers: list[int], theirs: float
) -> None:
    """The last to be heard tells the truth; the others would have it higher by what was not heard yet, never lower."""
    bucket = Bucket(3000, 0.0)
    marks = [bucket.take(amount, 0.0) for amount in amounts]
    said = heard(3000 - theirs, amounts, arrivals)
    own, truth = bucket.level, 3000 - theirs - sum(amounts)
    for call in answers:
        bucket.sync(Quota(3000, said[call], None), marks[call], 0.0)
        assert truth - 1e-6 <= bucket.level <= own + 1e-6
    assert bucket.level <= truth + sum(amounts) - amounts[arrivals[-1]] + 1e-6


@given(_AMOUNTS, _ORDER, _ORDER)
@example([100.0] * 6, list(range(6)), list(range(6)))
def test_alone_nobody_else_is_thought_to_take_anything_in_whatever_order_replies_come(
    amounts: list[float], arrivals: list[int], answers: list[int]
) -> None:
    bucket = Bucket(2000, 0.0)
    marks = [bucket.take(amount, 0.0) for amount in amounts]
    said = heard(2000, amounts, arrivals)
    for call in answers:
        bucket.sync(Quota(2000, said[call], None), marks[call], 0.5)
    left = 2000 - sum(amounts) + 2.0 * bucket.rate - 1.0
    bucket.sync(Quota(2000, min(1999.0, left), None), bucket.take(1.0, 2.0), 2.0)
    assert bucket.others == pytest.approx(0.0, abs=1e-6)


# refunds


def test_what_was_not_used_comes_back_and_what_was_used_beyond_is_taken() -> None:
    bucket = Bucket(60, 0.0)
    mark = bucket.take(20, 0.0)
    bucket.give_back(15, mark)
    assert bucket.level == pytest.approx(55)
    bucket.give_back(-10, mark)
    assert bucket.level == pytest.approx(45)


def test_a_refund_never_fills_beyond_the_capacity() -> None:
    bucket = Bucket(60, 0.0)
    mark = bucket.take(20, 0.0)
    bucket.wait(1, 60.0)
    bucket.give_back(20, mark)
    assert bucket.level == 60


def test_a_refund_that_a_reply_has_in_already_is_not_given_twice() -> None:
    bucket = Bucket(60, 0.0)
    mark = bucket.take(20, 0.0)
    bucket.sync(Quota(60, 59, None), bucket.take(1, 1.0), 1.0)
    told = bucket.level
    assert 58 <= told <= 59
    bucket.give_back(20, mark)
    assert bucket.level == told


def test_a_call_sent_after_the_one_a_reply_is_believed_of_is_still_refunded() -> None:
    bucket = Bucket(60, 0.0)
    early = bucket.take(1, 0.0)
    late = bucket.take(20, 1.0)
    bucket.sync(Quota(60, 40, None), early, 1.0)
    bucket.give_back(20, late)
    assert bucket.level == pytest.approx(41)


def test_a_call_sent_and_refunded_before_the_reply_came_is_not_taken_off_it() -> None:
    bucket = Bucket(60, 0.0)
    early = bucket.take(1, 0.0)
    bucket.give_back(20, bucket.take(20, 0.5))
    bucket.sync(Quota(60, 40, None), early, 0.5)
    assert bucket.level == pytest.approx(40.5)


def test_a_refund_of_what_was_sent_earlier_is_not_added_to_what_a_reply_says() -> None:
    bucket = Bucket(60, 0.0)
    failed = bucket.take(10, 0.0)
    answered = bucket.take(1, 1.0)
    bucket.give_back(10, failed)
    bucket.sync(Quota(60, 5, None), answered, 1.0)
    assert bucket.level == pytest.approx(5)
