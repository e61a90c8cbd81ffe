"""A bit for each line of a batch's slice: which were sent, which are done. Small: stored at every commit."""

from collections.abc import Iterator


class Bits:
    """A bitmap over the lines of a slice, all zero at first.

    Attributes:
        lines: How many bits.
        count: How many of them are set.
    """

    __slots__ = ("_data", "count", "lines")

    def __init__(self, lines: int) -> None:
        self._data = bytearray((lines + 7) // 8)
        self.lines = lines
        self.count = 0

    @classmethod
    def of(cls, data: bytes, lines: int) -> "Bits":
        """Args: data: What `bytes` gave; what it lacks is zero, what lies behind the last line is dropped."""
        bits = cls(lines)
        number = int.from_bytes(data, "little") & _ones(lines)
        bits._data[:] = number.to_bytes(len(bits._data), "little")
        bits.count = number.bit_count()
        return bits

    def __getitem__(self, place: int) -> bool:
        self._check(place)
        return bool(self._data[place >> 3] >> (place & 7) & 1)

    def set(self, place: int) -> None:
        if not self[place]:
            self._data[place >> 3] |= 1 << (place & 7)
            self.count += 1

    def clear(self, place: int) -> None:
        if self[place]:
            self._data[place >> 3] &= ~(1 << (place & 7))
            self.count -= 1

    def bytes(self) -> bytes:
        return bytes(self._data)

    def missing(self) -> Iterator[int]:
        """Returns: The places that are not set now, in order; what is set later on does not matter."""
        return _places(_ones(self.lines) & ~self._number())

    def minus(self, other: "Bits") -> list[int]:
        """Returns: The places that are set here and not in `other`, in order."""
        return list(_places(self._number() & ~int.from_bytes(other.bytes(), "little")))

    def _number(self) -> int:
        return int.from_bytes(self._data, "little")

    def _check(self, place: int) -> None:
        if not 0 <= place < self.lines:
            msg = f"no line {place} among {self.lines}"
            raise IndexError(msg)


def _ones(lines: int) -> int:
    return (1 << lines) - 1


def _places(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest
