"""A limit is found by asking: fast growth, one cut a round trip, a ceiling that is remembered and tested by one."""

import pytest

from app.policies.concurrency import START, AdaptiveLimit, FixedLimit, Round


def well(limit: AdaptiveLimit, *, pressed: bool = True, wanted: bool = True) -> Round:
    return Round(float(limit.limit), None, pressed, wanted)


def at_ceiling(ceiling: int, now: float = 0.0, most: int = 2048) -> AdaptiveLimit:
    """Grown until it was refused at one more than `ceiling`."""
    limit = AdaptiveLimit(most)
    while limit.limit <= ceiling:
        limit.ended(well(limit), now)
    limit.refused(now, ceiling + 1, now)
    limit.ended(well(limit), now)  # the rest of that round
    assert limit.limit == limit.ceiling == ceiling
    return limit


# slow start


def test_it_begins_with_a_start_or_with_less_where_less_is_allowed() -> None:
    assert AdaptiveLimit(2048).limit == START
    assert AdaptiveLimit(3).limit == 3


def test_while_no_ceiling_is_known_each_round_trip_lets_half_as_many_more_in() -> None:
    limit, seen = AdaptiveLimit(2048), []
    for _ in range(4):
        limit.ended(well(limit), 0.0)
        seen.append(limit.limit)
    assert seen == [49, 74, 112, 169]
    for _ in range(20):
        limit.ended(well(limit), 0.0)
    assert limit.limit == 2048


def test_it_does_not_grow_when_nobody_wants_more() -> None:
    limit = AdaptiveLimit(2048)
    limit.ended(well(limit, pressed=False, wanted=False), 0.0)
    assert limit.limit == START


def test_it_is_settled_once_it_knows_a_ceiling_or_may_not_grow() -> None:
    assert not AdaptiveLimit(2048).settled
    assert AdaptiveLimit(START).settled
    assert at_ceiling(40).settled
    assert FixedLimit(4).settled


# refusals


def test_the_first_refusal_tells_how_many_were_too_many() -> None:
    limit = AdaptiveLimit(2048)
    limit.refused(1.0, 21, 1.5)
    assert limit.limit == limit.ceiling == 20


def test_refusals_of_calls_sent_before_a_cut_tell_of_the_same_excess() -> None:
    limit = AdaptiveLimit(2048)
    limit.refused(1.0, 21, 1.5)
    for company in (20, 15, 2):
        limit.refused(1.4, company, 1.6)
    limit.refused(1.5, 2, 1.7)
    assert limit.limit == 20


def test_a_second_refusal_in_a_row_cuts_to_seventy_in_a_hundred() -> None:
    limit = AdaptiveLimit(2048)
    limit.refused(1.0, 31, 1.5)
    limit.refused(1.6, 21, 2.0)
    assert limit.limit == limit.ceiling == 21
    limit.refused(2.1, 21, 2.5)
    assert limit.limit == 14


def test_each_further_refusal_of_the_instant_that_was_measured_takes_one_more_off() -> None:
    limit = AdaptiveLimit(2048)
    for now in (1.5, 1.6, 1.7, 9.0):
        limit.refused(1.0, 32, now)
    assert limit.limit == limit.ceiling == 28
    for _ in range(40):
        limit.refused(1.0, 32, 9.0)
    assert limit.limit == limit.ceiling == 1


def test_a_cut_of_thirty_in_a_hundred_measured_nothing_and_its_instant_takes_nothing_more_off() -> None:
    limit = AdaptiveLimit(2048)
    limit.refused(1.0, 31, 1.5)
    for _ in range(5):
        limit.refused(1.6, 21, 2.0)
    assert limit.limit == 21
    limit.refused(1.0, 31, 2.5)  # nor does one of the instant before
    assert limit.limit == 21


@pytest.mark.parametrize(("company", "found"), [(0, 22), (1, 22), (16, 22), (17, 16), (32, 31), (33, 32)])
def test_a_refusal_far_below_the_limit_or_without_a_count_is_no_measure(company: int, found: int) -> None:
    """One stray 503 while nobody else is in flight does not take the limit down to nothing."""
    limit = AdaptiveLimit(2048)
    limit.refused(1.0, company, 1.5)
    assert limit.limit == limit.ceiling == found


def test_after_a_round_that_went_well_a_refusal_is_a_first_one_again() -> None:
    limit = AdaptiveLimit(2048)
    limit.refused(1.0, 31, 1.5)
    limit.ended(well(limit), 1.8)
    limit.refused(1.9, 21, 2.0)
    assert limit.limit == 20


def test_a_round_with_a_refusal_in_it_is_none_to_grow_by() -> None:
    limit = AdaptiveLimit(2048)
    limit.refused(1.0, 31, 1.5)
    limit.ended(well(limit), 100.0)
    assert limit.limit == 30
    limit.ended(well(limit), 100.0)
    assert limit.limit == 31


def test_a_refusal_never_raises_the_limit() -> None:
    limit = AdaptiveLimit(2048)
    limit.refused(1.0, 21, 1.5)
    limit.ended(well(limit), 1.6)
    limit.refused(1.7, 500, 1.8)
    assert limit.limit == 20


def test_one_call_is_always_let_in() -> None:
    limit = AdaptiveLimit(2048)
    for n in range(20):
        limit.refused(n + 0.5, 1, n + 1.0)
    assert limit.limit == 1


# the ceiling, tested


def test_a_ceiling_is_kept_until_it_is_time_to_test_it() -> None:
    limit = at_ceiling(50)
    for now in (0.5, 2.0, 3.9):
        limit.ended(well(limit), now)
        assert (limit.limit, limit.probing) == (50, False)
    limit.ended(well(limit), 4.0)
    assert (limit.limit, limit.ceiling, limit.probing) == (51, 50, True)


def test_a_ceiling_is_not_tested_when_nobody_wants_more() -> None:
    limit = at_ceiling(50)
    limit.ended(well(limit, wanted=False), 100.0)
    assert (limit.limit, limit.probing) == (50, False)


def test_each_test_that_goes_well_doubles_the_next_step() -> None:
    limit, seen = at_ceiling(50), []
    for _ in range(6):
        limit.ended(well(limit), 10.0)
        seen.append(limit.limit)
    assert seen == [51, 53, 57, 65, 81, 113]


def test_a_test_that_was_not_put_to_use_is_no_test() -> None:
    limit = at_ceiling(50)
    limit.ended(well(limit), 10.0)
    limit.ended(well(limit, pressed=False), 11.0)
    assert (limit.limit, limit.ceiling, limit.probing) == (51, 50, True)


def test_a_test_that_is_refused_ends_and_the_next_one_is_later_up_to_ten_seconds() -> None:
    limit, now, waits = at_ceiling(50), 0.0, []
    for _ in range(4):
        began = now
        while not limit.probing:
            now += 0.25
            limit.ended(well(limit), now)
        waits.append(now - began)
        assert limit.limit == 51
        limit.refused(now + 0.1, 51, now + 0.25)
        now += 0.25
        assert (limit.limit, limit.probing) == (50, False)
        limit.ended(well(limit), now)
    assert waits == [4.0, 8.0, 10.0, 10.0]


def test_a_refusal_outside_a_test_brings_the_next_test_near_again() -> None:
    limit = at_ceiling(50)
    limit.ended(well(limit), 4.0)
    limit.refused(4.1, 51, 5.0)  # the test failed: eight seconds
    limit.ended(well(limit), 5.0)
    limit.refused(6.0, 31, 7.0)
    limit.ended(well(limit), 7.0)
    limit.ended(well(limit), 10.9)
    assert not limit.probing
    limit.ended(well(limit), 11.0)
    assert limit.probing


def test_capacity_that_comes_back_is_used_within_a_few_round_trips() -> None:
    limit, rounds = at_ceiling(64), 0
    while limit.limit < 0.9 * 128:
        limit.ended(well(limit), 4.0 + rounds)
        rounds += 1
    assert rounds <= 6


def test_a_test_that_has_reached_the_most_is_over() -> None:
    limit = at_ceiling(8, most=10)
    for now in range(5, 60):
        limit.ended(well(limit), float(now))
    assert limit.limit == 10
    assert not limit.probing


@pytest.mark.parametrize("ceiling", [8, 10])
def test_no_test_goes_beyond_the_most(ceiling: int) -> None:
    limit = AdaptiveLimit(10)
    limit.refused(0.0, ceiling + 1, 0.0)
    for now in range(60):
        limit.ended(well(limit), float(now))
        assert limit.limit <= 10
    assert limit.limit == 10


# fixed


def test_a_fixed_limit_is_what_it_is() -> None:
    limit = FixedLimit(7)
    assert not limit.ended(Round(7.0, 5.0, True, True, 2.0), 1.0)
    limit.refused(2.0, 3, 3.0)
    assert (limit.limit, limit.probing, limit.settled) == (7, False, True)


def test_first_tokens_make_room_for_as_many_streams_although_none_has_ended() -> None:
    limit = AdaptiveLimit(2048)
    for _ in range(START):
        limit.streams()
    assert limit.limit == 2 * START
    limit.refused(1.0, limit.limit, 1.1)  # a ceiling: from now on it is only probed
    found = limit.limit
    limit.streams()
    assert limit.limit == found
