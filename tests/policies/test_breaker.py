"""A breaker opens on failures in a row or on their share, and one probe at a time decides when it closes."""

from typing import Literal

import pytest

from app.policies.breaker import Breaker, Permit, State

Verdict = Literal["succeeded", "failed", "abandoned"]


def give_back(breaker: Breaker, verdict: Verdict, permit: Permit, now: float, *, alone: bool = False) -> None:
    if verdict == "succeeded":
        breaker.succeeded(permit, now)
    elif verdict == "failed":
        breaker.failed(permit, "503", now, alone=alone)
    else:
        breaker.abandoned(permit)


def fail(breaker: Breaker, times: int, now: float = 0.0, *, alone: bool = False) -> None:
    for _ in range(times):
        breaker.failed("call", "503", now, alone=alone)


def opened() -> Breaker:
    """Opened at 0.0, for one second."""
    breaker = Breaker(0.0)
    fail(breaker, 5)
    assert breaker.state == "open"
    return breaker


def half_open() -> Breaker:
    """Its probe was sent at 1.0."""
    breaker = opened()
    assert breaker.enter(1.0) == "probe"
    return breaker


# the table


@pytest.mark.parametrize(
    ("begins", "verdict", "permit", "ends"),
    [
        ("closed", "succeeded", "call", "closed"),
        ("closed", "failed", "call", "closed"),  # the first of several
        ("closed", "abandoned", "call", "closed"),
        ("open", "succeeded", "call", "open"),
        ("open", "failed", "call", "open"),
        ("open", "abandoned", "call", "open"),
        ("half_open", "succeeded", "call", "half_open"),
        ("half_open", "failed", "call", "half_open"),
        ("half_open", "abandoned", "call", "half_open"),
        ("half_open", "succeeded", "probe", "closed"),
        ("half_open", "failed", "probe", "open"),
        ("half_open", "abandoned", "probe", "half_open"),
    ],
)
def test_the_table_of_transitions(begins: State, verdict: Verdict, permit: Permit, ends: State) -> None:
    breaker = {"closed": lambda: Breaker(0.0), "open": opened, "half_open": half_open}[begins]()
    assert breaker.state == begins
    give_back(breaker, verdict, permit, 1.1)
    assert breaker.state == ends


# opening


def test_failures_in_a_row_open_it() -> None:
    breaker = Breaker(0.0)
    fail(breaker, 4)
    assert breaker.state == "closed"
    fail(breaker, 1)
    assert (breaker.state, breaker.opened, breaker.open_until) == ("open", 1, 1.0)
    assert breaker.reason == "5 failures in a row, the last one 503"


def test_failures_in_a_row_do_not_open_it_where_nobody_else_could_answer() -> None:
    breaker = Breaker(0.0)
    fail(breaker, 39, alone=True)
    assert breaker.state == "closed"
    fail(breaker, 1, alone=True)
    assert breaker.reason == "40 failures in a row, the last one 503"


def test_one_success_begins_the_row_anew() -> None:
    breaker = Breaker(0.0)
    for _ in range(3):
        fail(breaker, 4)
        breaker.succeeded("call", 0.0)
    assert breaker.state == "closed"


@pytest.mark.parametrize(("alone", "calls", "failures"), [(False, 20, 10), (True, 40, 36)])
def test_a_share_of_failures_opens_it(*, alone: bool, calls: int, failures: int) -> None:
    """Failures spread out, so that few are in a row."""
    breaker = Breaker(0.0)
    for n in range(calls):
        assert breaker.state == "closed"
        well = n % 10 == 0 if alone else n % 2 == 0
        give_back(breaker, "succeeded" if well else "failed", "call", n * 0.1, alone=alone)
    assert breaker.state == "open"
    assert breaker.reason == f"{failures} of {calls} calls failed, the last one with 503"


@pytest.mark.parametrize(("alone", "well"), [(False, {1, 3, 5, 7, 8}), (True, {1, 5})])
def test_a_share_below_it_does_not_open_it(*, alone: bool, well: set[int]) -> None:
    breaker = Breaker(0.0)
    for n in range(900):
        give_back(breaker, "succeeded" if n % 9 in well else "failed", "call", n * 0.01, alone=alone)
    assert breaker.state == "closed"


def test_too_few_calls_tell_no_share() -> None:
    breaker = Breaker(0.0)
    for n in range(18):
        give_back(breaker, "failed" if n % 2 else "succeeded", "call", 0.0)
    fail(breaker, 1)
    assert breaker.opened == 0
    fail(breaker, 1)
    assert breaker.opened == 1


@pytest.mark.parametrize(("later", "state"), [(10.0, "open"), (19.9, "open"), (20.0, "closed"), (500.0, "closed")])
def test_a_share_is_of_this_window_and_the_one_before(later: float, state: State) -> None:
    breaker = Breaker(0.0)
    for n in range(18):
        give_back(breaker, "failed" if n % 2 else "succeeded", "call", 1.0)
    breaker.succeeded("call", later)
    fail(breaker, 3, later)
    assert breaker.state == state


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_a_clock_that_jumps_begins_a_new_window(jump: float) -> None:
    breaker = Breaker(0.0)
    for n in range(18):
        give_back(breaker, "failed" if n % 2 else "succeeded", "call", 1.0)
    breaker.succeeded("call", jump)
    fail(breaker, 3, jump)
    assert breaker.state == "closed"


# open


def test_while_it_is_open_nothing_is_sent() -> None:
    breaker = opened()
    assert [breaker.enter(now) for now in (0.0, 0.5, 0.999)] == [None] * 3
    assert not breaker.lets_through(0.999)
    assert breaker.lets_through(1.0)


def test_asking_whether_a_call_could_be_sent_spends_nothing() -> None:
    breaker = opened()
    assert all(breaker.lets_through(1.0) for _ in range(5))
    assert breaker.state == "open"
    assert breaker.enter(1.0) == "probe"
    assert not breaker.lets_through(1.0)


def test_late_answers_to_calls_from_before_it_opened_neither_close_it_nor_hold_it_open_longer() -> None:
    breaker = opened()
    for now in (0.1, 1.5, 9.0):
        breaker.succeeded("call", now)
        breaker.failed("call", "503", now, alone=False)
    assert (breaker.state, breaker.open_until, breaker.opened) == ("open", 1.0, 1)


# half open


def test_one_probe_is_sent_and_no_more_within_ten_seconds() -> None:
    breaker = half_open()
    assert [breaker.enter(now) for now in (1.0, 2.0, 10.9)] == [None] * 3


def test_a_probe_that_hangs_stands_in_nobodys_way_after_ten_seconds_and_neither_does_the_next() -> None:
    breaker = half_open()
    for now in (11.0, 21.0, 31.0):
        assert breaker.enter(now - 0.1) is None
        assert breaker.lets_through(now)
        assert breaker.enter(now) == "probe"
        assert not breaker.lets_through(now)
    breaker.succeeded("probe", 31.5)  # whichever of them is answered first
    assert breaker.state == "closed"
    breaker.failed("probe", "504", 40.0)  # and those that hung are calls by then
    assert breaker.state == "closed"


def test_a_hung_probe_that_fails_after_all_opens_it_and_the_other_ones_answer_closes_it() -> None:
    breaker = half_open()
    assert breaker.enter(11.0) == "probe"
    breaker.failed("probe", "504", 11.5)
    assert (breaker.state, breaker.open_until) == ("open", 13.5)
    breaker.succeeded("probe", 12.0)
    assert breaker.state == "closed"


def test_a_probe_that_goes_well_closes_it_and_all_is_forgotten() -> None:
    breaker = half_open()
    breaker.succeeded("probe", 1.2)
    assert (breaker.state, breaker.reason) == ("closed", "")
    assert [breaker.enter(1.2) for _ in range(3)] == ["call"] * 3
    fail(breaker, 4, 1.3)
    assert breaker.state == "closed"
    fail(breaker, 1, 1.3)
    assert breaker.open_until == pytest.approx(2.3)


def test_closing_forgets_the_share_too() -> None:
    breaker = Breaker(0.0)
    for n in range(20):
        give_back(breaker, "failed" if n % 2 else "succeeded", "call", 0.0)
    breaker.enter(1.0)
    breaker.succeeded("probe", 1.0)
    fail(breaker, 4, 1.0)
    assert breaker.state == "closed"


def test_each_probe_that_fails_doubles_the_time_up_to_five_seconds() -> None:
    breaker, waits = opened(), []
    for _ in range(5):
        now = breaker.open_until
        assert breaker.enter(now - 0.01) is None
        assert breaker.enter(now) == "probe"
        breaker.failed("probe", "500", now)
        waits.append(breaker.open_until - now)
    assert waits == [2.0, 4.0, 5.0, 5.0, 5.0]
    assert (breaker.reason, breaker.opened) == ("500", 6)


def test_after_it_closed_the_first_time_open_is_short_again() -> None:
    breaker = half_open()
    breaker.failed("probe", "500", 1.0)
    breaker.enter(3.0)
    breaker.succeeded("probe", 3.0)
    fail(breaker, 5, 4.0)
    assert breaker.open_until == 5.0


def test_a_probe_that_was_abandoned_frees_the_next_one_at_once() -> None:
    breaker = half_open()
    breaker.abandoned("probe")
    assert breaker.state == "half_open"
    assert breaker.enter(1.0) == "probe"
    assert breaker.enter(1.0) is None


def test_a_call_that_was_abandoned_frees_no_probe() -> None:
    breaker = half_open()
    breaker.abandoned("call")
    assert breaker.enter(2.0) is None
