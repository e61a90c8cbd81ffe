"""What batch work leaves free: the interactive calls at once that a second's peak has lately reached."""

from hypothesis import given
from hypothesis import strategies as st

from app.policies.demand import Demand


def after(peaks: list[int], start: float = 0.0) -> Demand:
    """One second each: that many come, and go again."""
    demand = Demand(start)
    for second, peak in enumerate(peaks):
        demand.see(peak, start + second + 0.25)
        demand.see(0, start + second + 0.5)
    demand.see(0, start + len(peaks) + 0.25)
    return demand


def test_who_has_seen_nothing_expects_nothing() -> None:
    assert Demand(0.0).reserve == 0
    assert after([0] * 90).reserve == 0


def test_steady_peaks_are_expected_again() -> None:
    assert after([7] * 60).reserve == 7


def test_a_peak_counts_although_all_had_gone_by_the_end_of_its_second() -> None:
    assert after([0] * 50 + [5] * 10).reserve == 5


def test_one_second_in_twenty_may_have_been_higher() -> None:
    assert after([3] * 57 + [100] * 3).reserve == 3
    assert after([3] * 56 + [100] * 4).reserve == 100


def test_a_minute_without_any_is_enough_to_forget() -> None:
    demand = after([9] * 60)
    for second in range(60, 117):
        demand.see(0, second + 0.5)
    assert demand.reserve == 9
    for second in range(117, 122):
        demand.see(0, second + 0.5)
    assert demand.reserve == 0


def test_the_reserve_does_not_change_within_a_second() -> None:
    demand = after([2] * 60)
    assert {demand.see(count, 60.1 + count / 1000) for count in range(50)} == {2}


def test_calls_that_stay_count_in_every_second_although_nothing_happens() -> None:
    demand = Demand(0.0)
    demand.see(4, 0.5)
    assert demand.see(4, 30.0) == 4
    gone = Demand(0.0)
    gone.see(4, 0.5)
    gone.see(0, 0.6)
    assert gone.see(0, 30.0) == 0


def test_calls_that_reach_into_the_next_second_count_in_it_too() -> None:
    demand = Demand(0.0)
    for second in range(0, 60, 2):
        demand.see(4, second + 0.5)
        demand.see(0, second + 1.5)
    assert sum(peak == 4 for peak in demand._peaks) >= 58


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(-1e9, 1e9)), max_size=80))
def test_whatever_the_clock_does_no_more_is_expected_than_was_ever_seen(seen: list[tuple[int, float]]) -> None:
    demand, most = Demand(0.0), 0
    for count, now in seen:
        most = max(most, count)
        assert 0 <= demand.see(count, now) <= most


def test_a_clock_that_jumps_back_goes_on_from_there() -> None:
    demand = after([5] * 60, start=1000.0)
    for second in range(60):
        demand.see(0, second + 0.5)
    assert demand.see(0, 61.0) == 0
