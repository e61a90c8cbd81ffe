"""How long a first byte usually takes, and when it is overdue."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.policies.patience import Patience


def after(seconds: list[float]) -> Patience:
    patience = Patience()
    for one in seconds:
        patience.see(one)
    return patience


def test_before_twenty_calls_nothing_is_usual_and_nothing_is_overdue() -> None:
    patience = after([0.1] * 19)
    assert patience.p95 is None
    assert patience.overdue is None
    patience.see(0.1)
    assert patience.overdue == 1.0


def test_nineteen_in_twenty_are_faster() -> None:
    assert after([n / 100 for n in range(1, 101)]).p95 == pytest.approx(0.96)
    assert after([0.1] * 96 + [9.0] * 4).p95 == 0.1
    assert after([0.1] * 90 + [9.0] * 10).p95 == 9.0


def test_the_order_they_came_in_is_nothing() -> None:
    seconds = [n / 100 for n in range(1, 101)]
    assert after(seconds[::-1]).p95 == after(seconds).p95


def test_it_is_looked_at_every_twenty_calls() -> None:
    patience = after([0.1] * 20)
    assert patience.p95 == 0.1
    for _ in range(19):
        patience.see(5.0)
    assert patience.p95 == 0.1
    patience.see(5.0)
    assert patience.p95 == 5.0


def test_nobody_looks_until_somebody_asks() -> None:
    patience = after([0.1] * 500)
    assert patience._p95 is None
    assert patience.p95 == patience._p95 == 0.1


def test_what_was_more_than_five_hundred_calls_ago_is_forgotten() -> None:
    assert after([30.0] * 500 + [0.1] * 500).p95 == 0.1
    assert after([30.0] * 500 + [0.1] * 470).p95 == 30.0


@pytest.mark.parametrize(
    ("usual", "overdue"), [(0.001, 1.0), (0.25, 1.0), (0.5, 2.0), (2.0, 8.0), (7.5, 30.0), (100.0, 400.0)]
)
def test_four_times_the_usual_is_overdue_and_never_less_than_a_second(usual: float, overdue: float) -> None:
    assert after([usual] * 20).overdue == overdue


@pytest.mark.parametrize("usual", [0.001, 0.4, 50.0])
def test_a_second_target_may_be_asked_after_half_as_long_again_as_usual(usual: float) -> None:
    patience = after([usual] * 20)
    assert patience.hedge == pytest.approx(1.5 * usual)


def test_before_anything_is_usual_no_second_target_is_asked() -> None:
    assert after([0.1] * 19).hedge is None


def test_healthy_calls_that_miss_the_percentile_by_a_hair_are_not_hedged() -> None:
    seconds = [0.2 + n / 1000 for n in range(100)]
    hedge = after(seconds).hedge
    assert hedge is not None
    assert not [one for one in seconds if one > hedge]


@given(st.lists(st.floats(0, 1e6), max_size=600))
def test_what_is_usual_has_been_seen_and_overdue_is_well_beyond_it(seconds: list[float]) -> None:
    patience = after(seconds)
    assert (patience.p95 is None) == (len(seconds) < 20)
    assert patience.p95 is None or patience.p95 in seconds[-500:]
    if patience.p95 is None:
        assert patience.overdue is None
    else:
        assert patience.overdue == max(1.0, 4 * patience.p95)
