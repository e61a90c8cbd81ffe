"""Lines and their places in a file, sans I/O: what `jsonl.LineReader` does not tell, for parts of it are read again."""

from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"


class Scanned(NamedTuple):
    """A line that is not blank.

    Attributes:
        start, stop: Its bytes in the file, the line feed included.
        number: Its number, from 1, as an editor shows it: blank lines count.
        text: Without the white space around it; None: longer than allowed.
    """

    start: int
    stop: int
    number: int
    text: bytes | None


class LineScanner:
    """Cuts a file into lines, however its bytes arrive. Blank lines are skipped, a byte-order mark is dropped.

    Args:
        longest: Bytes of the longest line that is kept.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._start = 0  # of the unfinished line
        self._number = 1
        self._held: list[bytes] = []  # its pieces: joined once, not for every piece
        self._held_bytes = 0
        self._first = True

    def feed(self, data: bytes) -> list[Scanned]:
        """Returns: The lines that `data` completes."""
        if self._first:
            data = self._take_held() + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._hold(data)
                return []
            data = self._drop_mark(data)
        head, feed, rest = data.partition(b"\n")
        if not feed:
            self._hold(head)
            return []
        found = self._end(head, 1)
        *lines, rest = rest.split(b"\n")
        self._lines(lines, found)
        self._hold(rest)
        return found

    def close(self) -> list[Scanned]:
        """Returns: The last line, if it has no line feed."""
        return self._end(b"", 0)

    def _drop_mark(self, data: bytes) -> bytes:
        self._first = False
        if not data.startswith(_BOM):
            return data
        self._start = len(_BOM)
        return data[len(_BOM) :]

    def _lines(self, lines: list[bytes], found: list[Scanned]) -> None:
        start, number, longest = self._start, self._number, self._longest
        for line in lines:
            stop = start + len(line) + 1
            if len(line) > longest and _too_long(line, longest):
                found.append(Scanned(start, stop, number, None))
            elif text := line.strip():
                found.append(Scanned(start, stop, number, text))
            start = stop
            number += 1
        self._start, self._number = start, number

    def _end(self, tail: bytes, feed: int) -> list[Scanned]:
        """The unfinished line ends with `tail` and `feed` line feeds."""
        length = self._held_bytes + len(tail)
        start, stop, number = self._start, self._start + length + feed, self._number
        line = self._take_held() + tail
        self._start, self._number = stop, number + 1
        if len(line) < length or _too_long(line, self._longest):
            return [Scanned(start, stop, number, None)]
        line = line.strip()
        return [Scanned(start, stop, number, line)] if line else []

    def _hold(self, data: bytes) -> None:
        self._held_bytes += len(data)
        if self._held_bytes > self._longest + 1 + len(_BOM):  # a carriage return, a mark: they do not count
            self._held.clear()
        elif data:
            self._held.append(data)

    def _take_held(self) -> bytes:
        held = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        return held


def _too_long(line: bytes, longest: int) -> bool:
    return len(line.removesuffix(b"\r")) > longest


def split(data: bytes) -> list[bytes]:
    """Args: data: Whole lines of a file, from its start or from a line's.

    Returns: Those that are not blank, as `LineScanner` gives them.
    """
    return [text for line in data.removeprefix(_BOM).split(b"\n") if (text := line.strip())]
