"""A bucket learns what other clients take of the same quota, and leaves itself a share whatever they do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.policies.bucket import Bucket
from app.policies.quota import Quota


def other_takes(bucket: Bucket, theirs: float, seconds: int, ours: float = 2.0) -> float:
    """Plays an upstream of 600 a minute which another client takes `theirs` a second from. Returns: its level."""
    level = 600.0
    for now in range(1, seconds + 1):
        level = min(600.0, level + 10 - theirs)
        mark = bucket.take(ours, float(now))
        level -= ours
        bucket.sync(Quota(600, level, None), mark, float(now))
    return level


def test_what_others_take_of_the_same_quota_is_learnt() -> None:
    bucket = Bucket(600, 0.0)
    other_takes(bucket, 9.0, 40)  # with our 2 more than the 10 that run in
    assert bucket.others == pytest.approx(9.0, rel=0.05)
    assert bucket.net_rate == pytest.approx(1.0, abs=0.5)


def test_when_others_have_gone_it_is_forgotten() -> None:
    bucket = Bucket(600, 0.0)
    level = other_takes(bucket, 9.0, 40)
    for now in range(41, 81):
        level = min(600.0, level + 10)
        mark = bucket.take(2.0, float(now))
        level -= 2.0
        bucket.sync(Quota(600, level, None), mark, float(now))
    assert bucket.others < 0.1


def test_replies_within_a_second_teach_nothing_of_others() -> None:
    bucket = Bucket(600, 0.0)
    for n in range(5):
        bucket.sync(Quota(600, 500 - 90 * n, None), bucket.take(1, n * 0.2), n * 0.2)
    assert bucket.others == 0.0


def test_a_refusal_teaches_at_once_what_replies_teach_slowly() -> None:
    gentle, sudden = Bucket(600, 0.0), Bucket(600, 0.0)
    for bucket, refused in ((gentle, False), (sudden, True)):
        bucket.sync(Quota(600, 20, None), bucket.take(1, 0.0), 0.0)
        bucket.sync(Quota(600, 29, None), bucket.take(1, 2.0), 2.0, refused=refused)
    assert sudden.others == pytest.approx((20 + 20 - 1 - 29) / 2)
    assert gentle.others == pytest.approx(0.3 * sudden.others)


def test_others_that_took_everything_do_not_close_it_for_ever() -> None:
    bucket = Bucket(60, 0.0)
    bucket.sync(Quota(60, 30, None), bucket.take(1, 0.0), 0.1)
    bucket.sync(Quota(60, 0, 60.0), bucket.take(1, 2.0), 2.1, refused=True)
    assert bucket.wait(1, 3600.0) == 0.0


def test_a_rate_that_turns_out_slower_than_others_were_thought_to_be_drains_nothing() -> None:
    bucket = Bucket(1000, 0.0)
    for now, left, reset in ((0.0, 900, 5.0), (2.0, 800, 5.0), (4.0, 400, 86_400.0)):
        bucket.sync(Quota(1000, left, reset), bucket.take(1, now), now)
    before = bucket.level
    bucket.wait(1, 1000.0)
    assert bucket.level >= before


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 600), st.booleans()), min_size=1, max_size=20))
def test_a_twentieth_of_the_rate_is_ours_whatever_replies_say(replies: list[tuple[float, float, bool]]) -> None:
    bucket, now = Bucket(600, 0.0), 0.0
    for passed, left, refused in replies:
        now += passed
        bucket.sync(Quota(600, left, None), bucket.take(1, now), now, refused=refused)
        assert 0.0 <= bucket.others <= bucket.rate
        assert bucket.net_rate >= 0.05 * bucket.rate


def test_a_burst_that_used_the_quota_up_is_not_somebody_elses() -> None:
    """Alone, 600 calls at once of 600 a minute; the first reply to come is the first call's, and one is refused later."""
    bucket = Bucket(600, 0.0)
    marks = [bucket.take(1, 0.0) for _ in range(600)]
    for n, mark in enumerate(marks):
        bucket.sync(Quota(600, 599 - n, None), mark, 0.5)
    for _ in range(15):
        mark = bucket.take(1, 1.5)
    bucket.sync(Quota(600, 0, 60.0), mark, 1.6, refused=True)
    assert bucket.others < 1.0
