"""Lines of JSON (NDJSON), sans I/O: bytes cut anywhere go in, lines come out."""

_BOM = b"\xef\xbb\xbf"


class LineReader:
    """Cuts a stream of bytes into lines. Blank lines are skipped, a byte-order mark is dropped.

    Args:
        longest: Bytes of the longest line that is kept; of a longer one only a mark remains.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._rest = b""
        self._first = True
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """Returns: The lines that `data` completes; None stands for one that was too long."""
        *lines, rest = (self._rest + data).split(b"\n")
        found: list[bytes | None] = []
        for line in lines:
            if self._skipping:
                self._skipping = False
            else:
                found += self._line(line)
        self._rest = b"" if self._skipping else rest
        if len(self._rest) > self._longest:
            self._rest, self._skipping = b"", True
            found.append(None)
        return found

    def close(self) -> list[bytes | None]:
        """Returns: The last line, if it has no line feed."""
        rest, self._rest = self._rest, b""
        return self._line(rest)

    def _line(self, line: bytes) -> list[bytes | None]:
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        line = line.strip()
        if len(line) > self._longest:
            return [None]
        return [line] if line else []
