"""The line reader: the same lines however the bytes are cut."""

from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.wire.jsonl import LineReader
from tests.wire.cuts import PLACES, bytewise, pieces

BOM = b"\xef\xbb\xbf"
_SHREDS = st.lists(
    st.sampled_from([b"\n", b"\r\n", b"\r", b" ", b"a", b"abcd", b"abcde", b"0123456789", BOM, "é".encode()]),
    max_size=14,
).map(b"".join)


def lines(parts: Iterable[bytes], longest: int) -> list[bytes | None]:
    reader = LineReader(longest)
    return [line for part in parts for line in reader.feed(part)] + reader.close()


@given(_SHREDS, PLACES)
def test_lines_that_are_short_enough_are_the_same_whole_or_cut(data: bytes, places: list[int]) -> None:
    whole = lines([data], 10_000)
    assert lines(pieces(data, places), 10_000) == whole
    assert lines(bytewise(data), 10_000) == whole


@given(_SHREDS, PLACES)
@example(b"abcd\r\n", [])
@example(b"      \n", [])
@example(b"abcd" + b" " * 9 + b"\n", [])
@example(b"abcde\n" + BOM + b"a\n", [])
def test_what_is_too_long_is_too_long_whole_or_cut(data: bytes, places: list[int]) -> None:
    whole = lines([data], 4)
    assert lines(pieces(data, places), 4) == whole
    assert lines(bytewise(data), 4) == whole


@given(st.lists(st.binary(min_size=1, max_size=9).map(bytes.hex), max_size=6), st.sampled_from(["\n", "\r\n"]), PLACES)
def test_every_line_arrives_once_in_order_and_without_its_end(
    sent: list[str], line_end: str, places: list[int]
) -> None:
    data = line_end.join(sent).encode()
    assert lines(pieces(data, places), 10_000) == [line.encode() for line in sent]


@given(_SHREDS, PLACES)
def test_no_line_that_comes_out_is_blank_or_longer_than_allowed(data: bytes, places: list[int]) -> None:
    for line in lines(pieces(data, places), 4):
        assert line is None or 0 < len(line) <= 4


def test_a_line_is_handed_out_as_soon_as_it_is_complete() -> None:
    reader = LineReader(100)
    assert reader.feed(b"{}") == []
    assert reader.feed(b"\n[") == [b"{}"]
    assert reader.feed(b"]") == []
    assert reader.close() == [b"[]"]
    assert reader.close() == []


@pytest.mark.parametrize("cut", [False, True])
def test_a_line_that_is_too_long_leaves_one_mark_and_the_next_ones_are_read(cut: bool) -> None:
    data = b"ab\n" + b"x" * 50 + b"\ncd\n"
    assert lines(bytewise(data) if cut else [data], 10) == [b"ab", None, b"cd"]


def test_a_last_line_that_is_too_long_leaves_one_mark() -> None:
    assert lines([b"x" * 11], 10) == [None]
    assert lines(bytewise(b"x" * 50), 10) == [None]


def test_a_line_that_is_too_long_is_not_kept_in_memory() -> None:
    reader = LineReader(10)
    marks = [line for _ in range(100) for line in reader.feed(b"x" * 1000)]
    assert marks == [None]
    assert reader._held == []


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_line_of_just_the_length_that_is_allowed_passes(line_end: bytes) -> None:
    assert lines([b"x" * 10 + line_end], 10) == [b"x" * 10]
    assert lines(bytewise(b"x" * 10 + line_end), 10) == [b"x" * 10]


@pytest.mark.parametrize("cut", [False, True])
def test_a_byte_order_mark_is_dropped_at_the_start_only(cut: bool) -> None:
    data = BOM + b"{}\n" + BOM + b"{}\n"
    assert lines(bytewise(data) if cut else [data], 100) == [b"{}", BOM + b"{}"]


def test_blank_lines_are_skipped() -> None:
    assert lines([b"\n \r\n\t\n{}\n\n"], 100) == [b"{}"]
