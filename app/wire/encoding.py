"""Content codings of replies. A gateway asks for none, but some upstreams compress all the same."""

import zlib
from collections.abc import Iterator

_PIECE = 256 * 1024


class Inflater:
    """Decodes `gzip` and `deflate` (RFC 9110 section 8.4) in pieces of bounded size: a bomb never unfolds in memory."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields: The decoded pieces, each of at most 256 KiB.

        Raises:
            zlib.error: Not what the header said.
        """
        while data:
            if self._zlib.eof:  # a text may be several members (RFC 1952 section 2.2)
                self._zlib = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
            piece = self._zlib.decompress(data, _PIECE)
            if piece:
                yield piece
            data = self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail

    @property
    def finished(self) -> bool:
        """Whether the text came to its own end."""
        return self._zlib.eof
