"""Slots: in order, never too many, given back exactly once."""

from hypothesis import given
from hypothesis import strategies as st

from app.simulator.service import Service, Turn


def served(turns: list[Turn]) -> list[bool]:
    return [turn.served.done() for turn in turns]


async def test_slots_are_taken_first_come_first_served() -> None:
    service = Service()
    turns = [service.enter("m", 2) for _ in range(5)]
    assert served(turns) == [True, True, False, False, False]
    turns[1].leave()
    assert served(turns) == [True, True, True, False, False]
    turns[3].leave()  # its caller hung up
    turns[0].leave()
    assert served(turns) == [True, True, True, False, True]
    assert (service.in_flight("m"), service.peaks) == (2, {"m": 2})


async def test_a_slot_is_given_back_once_however_often_it_is_left() -> None:
    service = Service()
    first, second, third = (service.enter("m", 1) for _ in range(3))
    first.leave()
    first.leave()
    assert served([second, third]) == [True, False]


async def test_models_do_not_share_and_none_is_remembered_without_calls() -> None:
    service = Service()
    turns = [service.enter("one", 1), service.enter("two", 1), *(service.enter("free", None) for _ in range(9))]
    assert all(served(turns))
    assert service.peaks == {"one": 1, "two": 1, "free": 9}
    for turn in turns:
        turn.leave()
    assert (service._models, service.in_flight("free")) == ({}, 0)


async def test_peaks_begin_again_at_what_is_in_service() -> None:
    service = Service()
    turns = [service.enter("m", 3) for _ in range(4)]
    turns[0].leave()
    turns[1].leave()
    service.reset()
    assert service.peaks == {"m": 2}


@given(st.integers(0, 4), st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=80))
async def test_whoever_comes_and_goes_no_slot_is_lost_or_given_twice(slots: int, steps: list[int | None]) -> None:
    service = Service()
    inside: list[Turn] = []
    for step in steps:
        if step is None:
            inside.append(service.enter("m", slots))
        elif inside:
            inside.pop(step % len(inside)).leave()
        assert served(inside) == [place < slots for place in range(len(inside))]
        assert service.in_flight("m") == len(inside)
