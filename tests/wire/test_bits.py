"""Bitmaps over a slice's lines behave as sets of places do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.wire.bits import Bits

_LINES = 21
_PLACES = st.sets(st.integers(0, _LINES - 1))


def bits_of(places: set[int], lines: int = _LINES) -> Bits:
    bits = Bits(lines)
    for place in places:
        bits.set(place)
    return bits


def places_of(bits: Bits) -> set[int]:
    return {place for place in range(bits.lines) if bits[place]}


@given(st.lists(st.tuples(st.booleans(), st.integers(0, _LINES - 1))))
def test_bits_are_a_set_whose_size_is_always_known(steps: list[tuple[bool, int]]) -> None:
    bits, model = Bits(_LINES), set[int]()
    for is_set, place in steps:
        (bits.set if is_set else bits.clear)(place)
        (model.add if is_set else model.discard)(place)
        assert places_of(bits) == model
        assert bits.count == len(model)


@given(_PLACES)
def test_stored_and_read_again_they_are_the_same(places: set[int]) -> None:
    stored = bits_of(places).bytes()
    again = Bits.of(stored, _LINES)
    assert (places_of(again), again.count, again.bytes()) == (places, len(places), stored)


@given(_PLACES)
def test_the_missing_ones_are_all_others_in_order(places: set[int]) -> None:
    assert list(bits_of(places).missing()) == sorted(set(range(_LINES)) - places)


@given(_PLACES, _PLACES)
def test_minus_gives_what_only_the_first_has_in_order(one: set[int], other: set[int]) -> None:
    assert bits_of(one).minus(bits_of(other)) == sorted(one - other)


def test_lines_may_be_set_while_the_missing_ones_are_gone_through() -> None:
    bits = Bits(10)
    for place in bits.missing():
        bits.set(place)
    assert bits.count == 10


@pytest.mark.parametrize(("lines", "size"), [(0, 0), (1, 1), (8, 1), (9, 2), (256, 32)])
def test_they_take_one_byte_for_eight_lines(lines: int, size: int) -> None:
    assert Bits(lines).bytes() == bytes(size)


def test_stray_bits_behind_the_last_line_are_dropped_and_absent_bytes_are_zero() -> None:
    assert Bits.of(b"\xff\xff\xff", 10).bytes() == b"\xff\x03"
    assert Bits.of(b"\xff\xff\xff", 10).count == 10
    assert Bits.of(b"", 10).bytes() == b"\x00\x00"


@pytest.mark.parametrize("place", [-1, 10, 15, 16])
def test_a_line_that_the_slice_does_not_have_is_refused(place: int) -> None:
    bits = Bits(10)
    for touch in (bits.set, bits.clear, bits.__getitem__):
        with pytest.raises(IndexError):
            touch(place)


def test_what_was_read_is_a_copy() -> None:
    bits = Bits(8)
    stored = bits.bytes()
    bits.set(0)
    assert stored == b"\x00"
