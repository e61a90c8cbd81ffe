"""What may be sent twice is paid for by what goes well."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.policies.budget import HedgeBudget, RetryBudget


def spent(budget: RetryBudget | HedgeBudget) -> int:
    """Takes all there is. Returns: How many times."""
    count = 0
    while budget.spend(0.0) if isinstance(budget, RetryBudget) else budget.spend():
        count += 1
        assert count < 10_000
    return count


def test_a_full_budget_pays_for_thirty_five_retries() -> None:
    budget = RetryBudget(0.0)
    assert spent(budget) == 35
    assert budget.left == 10


def test_a_refused_retry_costs_nothing() -> None:
    budget = RetryBudget(0.0)
    spent(budget)
    assert not budget.spend(0.0)
    assert budget.left == 10


def test_fourteen_calls_that_go_well_pay_for_one_retry() -> None:
    budget = RetryBudget(0.0)
    spent(budget)
    budget.left = 0.0
    for _ in range(13):
        budget.succeeded(retried=False)
    assert not budget.spend(0.0)
    budget.succeeded(retried=False)
    assert budget.spend(0.0)


def test_a_retry_that_goes_well_gives_back_what_it_cost() -> None:
    budget = RetryBudget(0.0)
    assert budget.spend(0.0)
    assert budget.left == 486
    budget.succeeded(retried=True)
    assert budget.left == 500


@pytest.mark.parametrize("retried", [True, False])
def test_nothing_is_saved_up_beyond_the_capacity(*, retried: bool) -> None:
    budget = RetryBudget(0.0)
    for _ in range(50):
        budget.succeeded(retried=retried)
    assert budget.left == 500


_EVENTS = st.tuples(st.sampled_from(["retry", "well", "well after a retry"]), st.floats(-5, 20))


@given(st.lists(_EVENTS, max_size=300))
def test_a_budget_is_never_in_debt_nor_above_its_capacity(events: list[tuple[str, float]]) -> None:
    budget, now = RetryBudget(0.0), 0.0
    for event, passed in events:
        now += passed
        if event == "retry":
            before = budget.left
            spent = budget.spend(now)
            assert spent or before < 14
            assert budget.left >= before - 14
        else:
            budget.succeeded(retried=event == "well after a retry")
        assert 0 <= budget.left <= 500


def test_in_a_storm_retries_end_although_calls_go_on() -> None:
    budget = RetryBudget(0.0)
    assert sum(budget.spend(0.0) for _ in range(12_000)) <= 36


def test_time_gives_five_a_second_so_that_an_empty_budget_is_not_empty_for_good() -> None:
    budget = RetryBudget(100.0)
    while budget.spend(100.0):
        pass
    budget.left = 0.0
    assert not budget.spend(102.7)
    assert budget.left == pytest.approx(13.5)
    assert budget.spend(102.9)
    assert not budget.spend(102.9)


def test_no_time_saves_up_more_than_the_capacity_and_a_clock_that_jumps_back_takes_nothing_away() -> None:
    budget = RetryBudget(0.0)
    assert spent(budget) == 35
    assert budget.spend(1e9)
    assert budget.left == 486
    assert budget.spend(5.0)
    assert budget.left == 472


def test_in_a_long_storm_there_are_retries_every_now_and_then() -> None:
    budget = RetryBudget(0.0)
    assert 35 + 60 * 5 / 14 - 1 <= sum(budget.spend(n / 100) for n in range(6000)) <= 36 + 60 * 5 / 14


def test_the_first_call_may_be_hedged() -> None:
    assert spent(HedgeBudget()) == 1


def test_fifty_calls_pay_for_one_hedge() -> None:
    budget = HedgeBudget()
    spent(budget)
    for _ in range(48):
        budget.called()
    assert not budget.spend()
    for _ in range(3):
        budget.called()
    assert budget.spend()


def test_no_more_than_ten_hedges_are_saved_up() -> None:
    budget = HedgeBudget()
    for _ in range(10_000):
        budget.called()
    assert spent(budget) == 10


@given(st.lists(st.booleans(), max_size=600))
def test_hedges_are_never_more_than_two_in_a_hundred_and_the_first(asks: list[bool]) -> None:
    budget, hedges = HedgeBudget(), 0
    for calls, asked in enumerate(asks, start=1):
        budget.called()
        hedges += asked and budget.spend()
        assert hedges <= 1 + 0.02 * calls + 1e-9
