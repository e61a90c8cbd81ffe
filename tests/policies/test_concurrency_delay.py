"""A limit is cut by as many calls as wait inside the upstream; where that brings no relief, it was not waiting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.policies.concurrency import START, AdaptiveLimit, Round
from tests.policies.test_concurrency import at_ceiling


def delayed(in_flight: float, queued: float, waited: float = 0.5) -> Round:
    return Round(in_flight, queued, pressed=True, wanted=True, waited=waited)


def test_calls_that_wait_inside_are_taken_off() -> None:
    limit = AdaptiveLimit(2048)
    assert not limit.ended(delayed(30.0, 12.0), 1.0)
    assert limit.limit == limit.ceiling == 18


@pytest.mark.parametrize("queued", [None, 0.0, 1.9, 2.0])
def test_two_calls_that_wait_are_tolerated(queued: float | None) -> None:
    limit = AdaptiveLimit(2048)
    limit.ended(Round(30.0, queued, True, True), 1.0)
    assert limit.limit == 49


def test_three_in_a_hundred_that_wait_are_tolerated() -> None:
    limit = at_ceiling(1000)
    limit.ended(delayed(1000.0, 29.0), 1.0)
    assert limit.limit == 1000
    limit.ended(delayed(1000.0, 31.0), 2.0)
    assert limit.limit == 969


def test_a_cut_for_delay_never_raises_the_limit_and_leaves_one() -> None:
    limit = AdaptiveLimit(2048)
    limit.ended(delayed(500.0, 3.0), 1.0)
    assert limit.limit == START
    limit.ended(delayed(30.0, 400.0), 2.0)
    assert limit.limit == 1


@pytest.mark.parametrize("waited", [0.4, 0.5, 3.0])
def test_fewer_calls_that_wait_as_long_give_the_limit_back_and_the_base_is_learnt_anew(waited: float) -> None:
    """Although fewer of them wait: that follows from there being fewer, and is no relief."""
    limit = at_ceiling(100)
    assert not limit.ended(delayed(100.0, 30.0), 1.0)
    assert limit.limit == 70
    assert limit.ended(delayed(70.0, 21.0, waited), 2.0)
    assert limit.limit == 100


def test_fewer_calls_that_wait_less_are_kept_although_as_many_of_them_do() -> None:
    limit = at_ceiling(100)
    limit.ended(delayed(100.0, 30.0), 1.0)
    assert not limit.ended(delayed(70.0, 30.0, waited=0.39), 2.0)
    assert limit.limit == 40
    assert not limit.ended(delayed(40.0, 0.0, waited=0.0), 3.0)
    assert limit.limit == 40


def test_a_small_cut_is_not_expected_to_bring_relief() -> None:
    limit = at_ceiling(100)
    limit.ended(delayed(100.0, 15.0), 1.0)
    assert limit.limit == 85
    assert not limit.ended(delayed(85.0, 15.0), 2.0)
    assert limit.limit == 70


def test_small_cuts_that_add_up_are_expected_to() -> None:
    limit = at_ceiling(100)
    for now, queued in ((1.0, 15.0), (2.0, 15.0)):
        assert not limit.ended(delayed(float(limit.limit), queued), now)
    assert limit.ended(delayed(70.0, 15.0), 3.0)
    assert limit.limit == 100


def test_after_the_limit_was_given_back_a_new_story_begins() -> None:
    limit = at_ceiling(100)
    limit.ended(delayed(100.0, 30.0), 1.0)
    assert limit.ended(delayed(70.0, 30.0), 2.0)
    assert not limit.ended(delayed(100.0, 30.0), 3.0)
    assert limit.limit == 70


def test_a_limit_that_was_still_being_looked_for_is_looked_for_again_when_it_is_given_back() -> None:
    limit = AdaptiveLimit(2048)
    limit.ended(delayed(32.0, 12.0), 1.0)
    assert limit.ended(delayed(20.0, 8.0), 2.0)
    assert limit.limit == START
    assert not limit.settled


def test_delay_that_has_gone_begins_a_new_story() -> None:
    limit = at_ceiling(100)
    limit.ended(delayed(100.0, 30.0), 1.0)
    limit.ended(delayed(70.0, 0.0, waited=0.0), 2.0)
    assert not limit.ended(delayed(70.0, 30.0), 3.0)
    assert limit.limit == 40


# invariants

_REFUSED = st.tuples(st.just("refused"), st.floats(0, 30), st.integers(0, 5000))
_ENDED = st.builds(
    Round, st.floats(0, 5000), st.none() | st.floats(0, 5000), st.booleans(), st.booleans(), st.floats(0, 60)
)


@given(st.integers(1, 3000), st.lists(st.tuples(_REFUSED | _ENDED, st.floats(-20, 20)), max_size=80))
def test_whatever_happens_the_limit_is_at_least_one_and_never_above_the_most(
    most: int, events: list[tuple[tuple[str, float, int] | Round, float]]
) -> None:
    limit, now = AdaptiveLimit(most), 0.0
    for event, passed in events:
        now += passed
        before = limit.limit
        if isinstance(event, Round):
            limit.ended(event, now)
        else:
            _, ago, company = event
            limit.refused(now - ago, company, now)
            assert limit.limit <= before
        assert 1 <= limit.limit <= most
        assert limit.ceiling is None or 1 <= limit.ceiling <= most


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 64)), min_size=1, max_size=30))
def test_a_whole_window_of_refusals_is_one_cut(refusals: list[tuple[float, int]]) -> None:
    limit = AdaptiveLimit(2048)
    at, first = refusals[0]
    for sent_at, company in refusals:
        limit.refused(sent_at, company, 1.0)
    if 2 * first <= START:
        assert limit.limit == int(0.7 * START)
    else:  # of the first one's instant, each tells of one more
        more = sum(sent_at == at for sent_at, _ in refusals) - 1
        assert limit.limit == max(1, min(first - 1, START) - more)
