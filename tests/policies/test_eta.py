"""When a batch will be over: a range between the fastest and the slowest horizon."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.policies.eta import estimate

_SPANS = st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 10_000)), max_size=4)


@given(st.integers(0, 10**6), _SPANS)
def test_the_range_is_a_range_and_known_whenever_there_is_a_result(
    remaining: int, spans: list[tuple[int, float]]
) -> None:
    per_second, eta = estimate(remaining, spans)
    known = any(results and seconds for results, seconds in spans)
    assert (per_second > 0) == known
    assert (eta is None) == (remaining > 0 and not known)
    assert eta is None or 0 <= eta[0] <= eta[1]


@given(st.integers(1, 10**6), st.integers(10, 10_000), st.floats(0.1, 10_000))
def test_at_a_steady_speed_the_truth_lies_in_the_range(remaining: int, results: int, seconds: float) -> None:
    _, eta = estimate(remaining, [(results, seconds), (2 * results, 2 * seconds)])
    assert eta is not None
    assert eta[0] <= remaining * seconds / results * (1 + 1e-9)
    assert eta[1] >= remaining * seconds / results * (1 - 1e-9)
    assert eta[1] - eta[0] <= 1.0 + 1e-9 * eta[1]


def test_the_speed_is_that_of_the_shortest_horizon_with_enough_results() -> None:
    assert estimate(1000, [(9, 1.0), (20, 10.0), (600, 60.0)]) == (2.0, (100.0, 500.0))
    assert estimate(1000, [(10, 1.0), (20, 10.0)]) == (10.0, (100.0, 500.0))


def test_few_results_are_better_than_none() -> None:
    assert estimate(10, [(0, 1.0), (1, 10.0), (3, 60.0)]) == (0.05, (200.0, 200.0))


def test_the_range_is_in_whole_seconds_and_the_speed_in_three_digits() -> None:
    assert estimate(1, [(1000, 3.0)]) == (333.0, (0.0, 1.0))
    assert estimate(100, [(10, 70.0)]) == (0.143, (700.0, 700.0))


@pytest.mark.parametrize("spans", [[], [(0, 10.0)], [(5, 0.0)], [(0, 0.0), (0, 60.0)]])
def test_nothing_is_known_without_a_result(spans: list[tuple[int, float]]) -> None:
    assert estimate(10, spans) == (0.0, None)


def test_what_is_over_needs_no_time() -> None:
    assert estimate(0, []) == (0.0, (0.0, 0.0))
    assert estimate(0, [(100, 10.0)]) == (10.0, (0.0, 0.0))
