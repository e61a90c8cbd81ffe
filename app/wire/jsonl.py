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
        self._rest = b""
        self._first = True
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """Returns: The lines that `data` completes; None stands for one that was too long."""
        data = self._rest + data
        if self._first:
            if _BOM.startswith(data):
                self._rest = data
                return []
            self._first = False
            data = data.removeprefix(_BOM)
        *lines, self._rest = data.split(b"\n")
        found: list[bytes | None] = []
        for line in lines:
            found += [] if self._skipping else self._line(line)
            self._skipping = False
        if self._skipping:
            self._rest = b""
        elif self._too_long(self._rest):
            self._rest, self._skipping = b"", True
            found.append(None)
        return found

    def close(self) -> list[bytes | None]:
        """Returns: The last line, if it has no line feed."""
        rest, self._rest = self._rest, b""
        return self._line(rest.removeprefix(_BOM) if self._first else rest)

    def _too_long(self, line: bytes) -> bool:
        return len(line.removesuffix(b"\r")) > self._longest

    def _line(self, line: bytes) -> list[bytes | None]:
        if self._too_long(line):
            return [None]
        line = line.strip()
        return [line] if line else []
