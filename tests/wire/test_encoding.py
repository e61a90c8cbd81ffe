"""Compressed replies unfold in pieces of bounded size."""

import gzip
import zlib
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.wire.encoding import Inflater
from tests.wire.cuts import PLACES, bytewise, pieces

PIECE = 256 * 1024
BOMB_SIZE = 64 * 1024**2


def inflated(parts: Iterable[bytes]) -> Iterator[bytes]:
    inflater = Inflater()
    for part in parts:
        yield from inflater.feed(part)


@given(st.binary(max_size=3000), st.integers(1, 40), st.sampled_from(["gzip", "zlib"]), PLACES)
def test_what_was_compressed_comes_out_however_it_is_cut(
    data: bytes, times: int, coding: str, places: list[int]
) -> None:
    packed = gzip.compress(data * times) if coding == "gzip" else zlib.compress(data * times)
    assert b"".join(inflated(pieces(packed, places))) == data * times


def test_a_byte_at_a_time_is_enough() -> None:
    assert b"".join(inflated(bytewise(gzip.compress(b"water " * 100)))) == b"water " * 100


@pytest.mark.parametrize("places", [[], [1, 500, 999]])
def test_a_bomb_unfolds_in_small_pieces_and_nothing_is_lost(places: list[int]) -> None:
    bomb = gzip.compress(bytes(BOMB_SIZE))
    sizes = [len(piece) for piece in inflated(pieces(bomb, places))]
    assert max(sizes) <= PIECE
    assert min(sizes) > 0
    assert sum(sizes) == BOMB_SIZE


def test_a_bomb_is_unfolded_only_as_far_as_it_is_read() -> None:
    read = inflated([gzip.compress(bytes(BOMB_SIZE)), b"garbage that nobody reaches"])
    assert len(next(read)) <= PIECE


@pytest.mark.parametrize("data", [b"this is not gzip", b"\x1f\x8bnot really", b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 9])
def test_garbage_is_a_zlib_error(data: bytes) -> None:
    with pytest.raises(zlib.error):
        list(inflated([data]))


def test_a_checksum_that_is_wrong_is_a_zlib_error() -> None:
    packed = bytearray(gzip.compress(b"water"))
    packed[-8] ^= 0xFF
    with pytest.raises(zlib.error):
        list(inflated([bytes(packed)]))


def test_several_gzip_members_are_one_text() -> None:
    assert b"".join(inflated([gzip.compress(b"water ") + gzip.compress(b"rises")])) == b"water rises"
