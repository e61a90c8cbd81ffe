"""Bytes cut anywhere: what every sans-IO reader must not notice."""

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import strategies as st

# Where to cut, in thousandths of the length, so that a place means something whatever is cut.
PLACES = st.lists(st.integers(0, 1000), max_size=12)


def pieces(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Returns: `data` in pieces, some maybe empty; joined they are `data`."""
    ends = [0, *sorted(place * len(data) // 1000 for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


def bytewise(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))]
