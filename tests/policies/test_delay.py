"""Waiting inside an upstream is found in the time that answering does not explain; long answers are not waiting."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.policies.delay import DelayGauge, Line

_BASE = 0.2
_SLOPE = 0.01


def play(gauge: DelayGauge, count: int, *, wait: float = 0.0, mean: float = 100.0, seed: int = 0) -> None:
    """Whole replies of an upstream that needs 200 ms, and 10 ms a token, give or take five in a hundred."""
    rng = random.Random(seed)
    for _ in range(count):
        tokens = max(1.0, rng.expovariate(1 / mean))
        gauge.see((_BASE + _SLOPE * tokens) * rng.uniform(0.95, 1.05) + wait, tokens)


def warm(now: float = 0.0) -> DelayGauge:
    gauge = DelayGauge(now)
    for n in range(5):
        play(gauge, 100, seed=n)
        gauge.wait(now)
    return gauge


def test_a_straight_line_is_found_again() -> None:
    line = Line()
    for tokens in range(1, 200):
        line.add(tokens, 0.3 + 0.02 * tokens)
    assert line.slope == pytest.approx(0.02)


def test_a_line_through_nothing_or_one_point_is_level() -> None:
    line = Line()
    assert (line.slope, line.mean) == (0.0, 0.0)
    for _ in range(9):
        line.add(5.0, 1.0)
    assert line.slope == 0.0
    assert line.mean == pytest.approx(5.0)


def test_a_line_never_falls() -> None:
    line = Line()
    for tokens in range(50):
        line.add(tokens, 10.0 - 0.1 * tokens)
    assert line.slope == 0.0


def test_a_line_forgets_what_was_long_ago() -> None:
    line = Line()
    for slope in (0.1, 0.02):
        for n in range(4000):
            line.add(n % 100, slope * (n % 100))
    assert line.slope == pytest.approx(0.02, rel=0.02)


def test_nothing_can_be_told_before_there_are_enough_calls() -> None:
    gauge = DelayGauge(0.0)
    play(gauge, 7)
    assert gauge.wait(0.0) is None  # too few in this round: they are kept for the next
    play(gauge, 1)
    assert gauge.wait(0.0) is None  # the line is not trusted yet
    play(gauge, 51)
    assert gauge.wait(0.0) is None
    play(gauge, 8)
    assert gauge.wait(0.0) is not None


@pytest.mark.parametrize("wait", [0.2, 0.5, 2.0])
def test_a_wait_that_is_added_to_every_answer_is_found(wait: float) -> None:
    gauge = warm()
    play(gauge, 100, wait=wait, seed=77)
    assert gauge.wait(1.0) == pytest.approx(wait, rel=0.35)


def test_a_wait_that_has_gone_is_seen_to_have_gone() -> None:
    gauge = warm()
    play(gauge, 100, wait=0.5, seed=77)
    assert gauge.wait(1.0)
    play(gauge, 100, seed=78)
    assert (gauge.wait(2.0) or 0.0) < 0.1


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([200.0, 400.0, 1000.0]))
def test_a_run_of_long_answers_is_no_wait(seed: int, mean: float) -> None:
    gauge = warm()
    play(gauge, 100, mean=mean, seed=seed)
    found = gauge.wait(1.0)
    assert found is not None
    assert found < 0.05 * _SLOPE * mean + 0.05


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_an_upstream_that_goes_on_as_before_makes_nobody_wait(seed: int) -> None:
    gauge = warm()
    play(gauge, 100, seed=seed)
    assert (gauge.wait(1.0) or 0.0) < 0.1


def test_a_streams_time_to_its_first_token_is_taken_as_it_is() -> None:
    gauge = DelayGauge(0.0)
    for _ in range(100):
        gauge.see(0.3, 0.0)
    assert gauge.wait(0.0) == 0.0
    for _ in range(20):
        gauge.see(0.8, 0.0)
    assert gauge.wait(1.0) == pytest.approx(0.5)


def test_a_difference_that_may_be_chance_is_no_wait() -> None:
    gauge = DelayGauge(0.0)
    for n in range(100):
        gauge.see(0.3 + 0.2 * (n % 2), 0.0)
    gauge.wait(0.0)
    for n in range(10):
        gauge.see(0.32 + 0.2 * (n % 2), 0.0)
    assert gauge.wait(1.0) == 0.0


def test_a_round_is_judged_by_its_own_calls() -> None:
    gauge = DelayGauge(0.0)
    for seconds, expected in ((0.3, 0.0), (0.9, 0.6), (0.3, 0.0)):
        for _ in range(100):
            gauge.see(seconds, 0.0)
        assert gauge.wait(1.0) == pytest.approx(expected)


def test_a_base_is_believed_for_three_minutes() -> None:
    gauge = DelayGauge(0.0)
    waits = []
    for n in range(20):
        for _ in range(100):
            gauge.see(0.8 if n else 0.3, 0.0)
        waits.append(gauge.wait(n * 15.0))
    assert waits[1:12] == [pytest.approx(0.5)] * 11
    assert waits[13:] == [0.0] * 7


def test_after_a_new_beginning_what_is_now_is_the_base() -> None:
    gauge = DelayGauge(0.0)
    for seconds in (0.3, 0.8):
        for _ in range(100):
            gauge.see(seconds, 0.0)
        gauge.wait(1.0)
    gauge.rebase()
    for seconds, expected in ((0.8, 0.0), (1.0, 0.2)):
        for _ in range(100):
            gauge.see(seconds, 0.0)
        assert gauge.wait(2.0) == pytest.approx(expected)


def test_a_base_is_judged_by_todays_line_so_that_its_learning_is_no_wait() -> None:
    """First the longer answers take longer by far, then no longer at all; a usual one takes as long as ever."""
    gauge = DelayGauge(0.0)
    for _ in range(100):
        gauge.see(1.0, 100.0)
        gauge.see(3.0, 200.0)
    assert gauge.wait(0.0) == 0.0
    slope, usual = gauge._line.slope, gauge._bases[0][0]
    for n in range(1, 11):
        for _ in range(50):
            gauge.see(usual, 100.0)
            gauge.see(usual, 200.0)
        assert (gauge.wait(float(n)) or 0.0) < 0.1
    assert slope == pytest.approx(0.02)
    assert gauge._line.slope < 0.01  # with the base's own, more than a second would look like a wait


@given(
    st.lists(
        st.tuples(st.lists(st.tuples(st.floats(0, 600), st.floats(0, 1e5)), max_size=40), st.floats(-1e6, 1e6)),
        max_size=10,
    )
)
def test_a_wait_is_never_less_than_nothing_and_always_a_number(
    rounds: list[tuple[list[tuple[float, float]], float]],
) -> None:
    gauge = DelayGauge(0.0)
    for calls, now in rounds:
        for seconds, tokens in calls:
            gauge.see(seconds, tokens)
        found = gauge.wait(now)
        assert found is None or 0.0 <= found < math.inf
