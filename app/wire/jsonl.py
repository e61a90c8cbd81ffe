"""Lines of JSON (NDJSON), sans I/O: bytes cut anywhere go in, lines come out."""

_BOM = b"\xef\xbb\xbf"


def one_line(text: bytes) -> bytes:
    """Returns: JSON text without line breaks. Inside its strings there are none: they would have to be escaped."""
    return text.replace(b"\n", b" ").replace(b"\r", b" ")


class LineReader:
    """Cuts a stream of bytes into lines. Blank lines are skipped, a byte-order mark is dropped.

    Args:
        longest: Bytes of the longest line that is kept; of a longer one only a mark remains.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._held: list[bytes] = []  # the pieces of an unfinished line: joined once, not for every piece
        self._held_bytes = 0
        self._first = True
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """Returns: The lines that `data` completes; None stands for one that was too long."""
        if self._first:
            data = b"".join(self._held) + data
            self._held, self._held_bytes = [], 0
            if _BOM.startswith(data):
                self._hold(data)
                return []
            self._first = False
            data = data.removeprefix(_BOM)
        head, feed, rest = data.partition(b"\n")
        if not feed:
            return self._hold(data)
        found = [] if self._skipping else self._line(b"".join([*self._held, head]))
        self._held, self._held_bytes, self._skipping = [], 0, False
        *lines, rest = rest.split(b"\n")
        for line in lines:
            found += self._line(line)
        return found + self._hold(rest)

    def close(self) -> list[bytes | None]:
        """Returns: The last line, if it has no line feed."""
        rest, self._held = b"".join(self._held), []
        return self._line(rest.removeprefix(_BOM) if self._first else rest)

    def _hold(self, data: bytes) -> list[bytes | None]:
        if self._skipping or not data:
            return []
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes <= self._longest + 1:  # a carriage return may belong to the line's end
            return []
        line = b"".join(self._held)
        if not self._too_long(line):
            return []
        self._held, self._held_bytes, self._skipping = [], 0, True
        return [None]

    def _too_long(self, line: bytes) -> bool:
        return len(line.removesuffix(b"\r")) > self._longest

    def _line(self, line: bytes) -> list[bytes | None]:
        if self._too_long(line):
            return [None]
        line = line.strip()
        return [line] if line else []
