"""What a worker sends next: just ahead of what upstreams take off, and never behind somebody else's trouble."""

from app.services.batches.desk import Desk
from app.services.batches.holding import Parcel
from tests.services.batch_scene import batch, lines, taken


def reach(parcels: list[Parcel]) -> None:
    """These parcels have got their slots."""
    for parcel in parcels:
        parcel.trace.attempted()


def numbers(parcels: list[Parcel]) -> set[int]:
    return {parcel.slice.key[0] for parcel in parcels}


def test_it_starts_with_a_few_and_waits_until_they_are_taken_off() -> None:
    desk = Desk(0.0)
    desk.take(taken(batch(), lines(250))[0])
    first = desk.next(0.0)
    assert 0 < len(first) <= 32
    assert desk.next(0.02) == []
    reach(first)
    assert len(desk.next(0.04)) >= len(first)


def test_it_keeps_further_ahead_of_upstreams_that_take_more_off() -> None:
    desk, now, sent = Desk(0.0), 0.0, []
    for number in range(40):
        desk.take(taken(batch(), lines(250), number=number)[0])
    for _ in range(30):
        parcels = desk.next(now)
        sent.append(len(parcels))
        reach(parcels)
        now += 0.015
    assert max(sent) > 4 * sent[0]


def test_what_is_launched_is_marked_as_sent_before_it_flies() -> None:
    desk = Desk(0.0)
    held, _ = taken(batch(), lines(3))
    desk.take(held)
    desk.next(0.0)
    change = held.change()
    assert (change.sent_count, change.done_count, change.finished) == (3, 0, False)


def test_a_batch_whose_calls_get_no_slot_holds_up_nobody_elses() -> None:
    desk = Desk(0.0)
    desk.take(taken(batch(1), lines(250))[0])
    stuck = desk.next(0.0)
    assert numbers(stuck) == {1}
    desk.take(taken(batch(2), lines(250))[0])
    assert desk.next(1.0) == []
    later = desk.next(5.0)
    assert numbers(later) == {2}
    assert desk.stuck == {1}
    reach(stuck)
    reach(later)
    assert 1 in numbers(desk.next(5.1))


def test_slices_of_higher_priority_go_first() -> None:
    desk = Desk(0.0)
    desk.take(taken(batch(1), lines(5))[0])
    desk.take(taken(batch(2, priority=7), lines(5))[0])
    order = [parcel.slice.key[0] for parcel in desk.next(0.0)]
    assert order == [2] * 5 + [1] * 5


def test_what_failed_comes_back_when_its_time_has_come() -> None:
    desk = Desk(0.0)
    desk.take(taken(batch(), lines(1))[0])
    (parcel,) = desk.next(0.0)
    desk.landed(parcel)
    desk.later([parcel], 3.0)
    assert desk.next_due() == 3.0
    assert desk.next(2.9) == []
    assert desk.next(3.1) == [parcel]


def test_what_failed_does_not_come_back_into_a_slice_that_was_claimed_anew() -> None:
    desk = Desk(0.0)
    desk.take(taken(batch(), lines(1))[0])
    (parcel,) = desk.next(0.0)
    desk.landed(parcel)
    desk.later([parcel], 1.0)
    desk.drop(parcel.slice.key)
    again, _ = taken(batch(), lines(1))
    desk.take(again)
    assert [one.slice for one in desk.next(2.0)] == [again]


def test_a_batch_that_leaves_sends_nothing_and_its_slices_go_when_they_have_landed() -> None:
    desk = Desk(0.0)
    held, _ = taken(batch(), lines(250))
    desk.take(held)
    flying = desk.next(0.0)
    assert set(desk.leave(1)) == set(flying)
    held.change()
    reach(flying)
    assert desk.next(0.1) == []
    assert list(desk.done()) == []
    for parcel in flying:
        assert not desk.may_fly(parcel)
        desk.landed(parcel)
    assert list(desk.done()) == [held.key]
    desk.drop(held.key)
    assert desk.leaving == set()


def test_a_closing_desk_takes_nothing_in_and_lets_untouched_slices_go_at_once() -> None:
    desk = Desk(0.0)
    desk.take(taken(batch(1), lines(5))[0])
    desk.close()
    desk.take(taken(batch(2), lines(5))[0])
    assert desk.wanted() == 0
    assert desk.next(0.0) == []
    assert list(desk.done()) == [(1, 0), (2, 0)]


def test_slices_are_wanted_when_little_is_left_and_not_when_there_is_much() -> None:
    desk = Desk(0.0)
    assert 0 < desk.wanted() < 256
    desk.take(taken(batch(), lines(250))[0])
    assert desk.wanted() == 0


def test_bytes_in_hand_are_bounded() -> None:
    desk = Desk(0.0)
    number = 0
    while desk.wanted():
        desk.take(taken(batch(), lines(1, user="x" * 9_000_000), number=number)[0])
        number += 1
    assert number < 10


def test_a_slice_is_over_only_when_its_results_are_written() -> None:
    desk = Desk(0.0)
    held, _ = taken(batch(), lines(1))
    desk.take(held)
    (parcel,) = desk.next(0.0)
    held.change()
    held.done(parcel.entries[0], ok=True, fields=b"")
    desk.landed(parcel)
    assert list(desk.done()) == []
    assert held.change().finished
    assert list(desk.done()) == [held.key]


def test_calls_that_are_refused_again_and_again_bring_no_more_with_them() -> None:
    """An upstream that answers 429 takes nothing off: its calls wait in the stack, to be tried again."""
    desk, now = Desk(0.0), 0.0
    for number in range(100):
        desk.take(taken(batch(1), lines(250), number=number)[0])
    for _ in range(2_000):
        for parcel in desk.next(now):
            parcel.trace.attempted()
            parcel.trace.refused()
        now += 0.015
    assert len(desk.flying) < 64
    desk.take(taken(batch(2), lines(3))[0])
    assert numbers(desk.next(now)) == {2}


def test_a_few_calls_that_back_off_do_not_stop_the_others() -> None:
    desk, now, slow = Desk(0.0), 0.0, set[Parcel]()
    for number in range(40):
        desk.take(taken(batch(1), lines(250), number=number)[0])
    for turn in range(400):
        for place, parcel in enumerate(desk.next(now)):
            parcel.trace.attempted()
            if place == 0 and turn % 20 == 0 and len(slow) < 8:
                parcel.trace.refused()
                slow.add(parcel)
        now += 0.015
    assert len(desk.flying) > 1_000
    assert desk.stuck == set()


def test_a_batch_with_a_slices_worth_of_lines_to_be_sent_again_sends_no_new_ones() -> None:
    desk, now = Desk(0.0), 0.0
    for number in range(40):
        desk.take(taken(batch(1), lines(250), number=number)[0])
    for _ in range(200):
        for parcel in desk.next(now):
            parcel.trace.attempted()
            desk.landed(parcel)
            desk.later([parcel], now + 1_000)
        now += 0.015
    assert len(desk.next(now)) == 0
    desk.take(taken(batch(2), lines(3))[0])
    assert numbers(desk.next(now)) == {2}
    for key in [key for key in desk.held if key[0] == 1]:
        desk.drop(key)
    assert desk.next_due() > 1_000_000
