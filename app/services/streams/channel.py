"""One stream that runs here: its newest events, who waits for more of them, and what the log does not have yet.

There is no queue for a reader: he has a position, and takes what is behind it in one piece. Who lags takes bigger
pieces; who lags too far finds them in the log.
"""

import asyncio
from bisect import bisect_right
from collections import deque
from typing import NamedTuple

from app.store.stream_log import Part
from app.wire.streams import beyond, number_of, numbered

_PART_BYTES = 64 * 1024  # a reader of the log has one in hand at least
_MARK_BYTES = 64 * 1024  # of events between two places in the log that are remembered


class End(NamedTuple):
    """How it ended. Attributes: error: The envelope; None: well."""

    status: str
    error: bytes | None


class Channel:
    """Args:
    number: The stream's, in the storage.
    shard: Whose log takes its events.
    start: The first position there that can hold some.
    names: Whether events keep their names.

    Attributes:
        last: The number of the newest event.
        bytes: Of all its events.
        unlogged: Bytes that the log does not have yet.
        end: None: it goes on.
    """

    def __init__(self, number: int, shard: int, start: int, *, names: bool) -> None:
        self.number = number
        self.shard = shard
        self.last = 0
        self.bytes = 0
        self.end: End | None = None
        self._names = names
        self._kept: deque[tuple[int, bytes]] = deque()  # the number of the last event in each, events
        self._kept_bytes = 0
        self._logged = 0
        self.unlogged = 0
        self._fresh: deque[tuple[int, bytes]] = deque()  # likewise, what the log has not been given
        self._readers: set[asyncio.Future[None]] = set()
        self._room: asyncio.Future[None] | None = None
        self._marks = [(0, start)]  # behind this event the log goes on at this position
        self._marked = 0  # bytes up to the last mark

    def add(self, events: bytes) -> None:
        """Args: events: Whole ones as they came, framed."""
        text, self.last = numbered(events, self.last, names=self._names)
        if text:
            self._kept.append((self.last, text))
            self._fresh.append((self.last, text))
            self._kept_bytes += len(text)
            self.unlogged += len(text)
            self.bytes += len(text)
            self._wake()

    def finish(self, end: End) -> None:
        """Nothing follows."""
        self.end = end
        self._wake()

    def _wake(self) -> None:
        if self._readers:
            readers, self._readers = self._readers, set()
            for reader in readers:
                if not reader.done():
                    reader.set_result(None)

    def after(self, seen: int, most: int) -> tuple[int, bytes] | None:
        """Args:
            seen: The number of the last event that the reader has.
            most: Bytes, about.
        Returns: What follows, and the number of its last event: empty, if nothing does; None: only the log has it.
        """
        if seen >= self.last:
            return seen, b""
        found: list[tuple[int, bytes]] = []
        for group in reversed(self._kept):
            if group[0] <= seen:
                break
            found.append(group)
        if not found or (first := number_of(found[-1][1])) > seen + 1:
            return None
        if first <= seen:
            found[-1] = (found[-1][0], beyond(found[-1][1], seen))
        pieces: list[bytes] = []
        reached, size = seen, 0
        while found and size < most:
            reached, events = found.pop()
            pieces.append(events)
            size += len(events)
        return reached, b"".join(pieces)

    async def more(self, reader: "asyncio.Future[None]") -> None:
        """Waits until there is more than there was, or the end; or until somebody else resolves `reader`."""
        self._readers.add(reader)
        try:
            await reader
        finally:
            self._readers.discard(reader)

    def take(self) -> Part | None:
        """Returns: What the log has not been given yet, or the first piece of it; None: nothing."""
        if not self._fresh:
            return None
        pieces: list[bytes] = []
        last, size = 0, 0
        while self._fresh and size < _PART_BYTES:
            last, events = self._fresh.popleft()
            pieces.append(events)
            size += len(events)
        return self.number, last, b"".join(pieces)

    def logged(self, part: Part, position: int, keep: int) -> None:
        """The log has it.

        Args:
            position: Where.
            keep: Bytes of events that stay in memory, about.
        """
        _, self._logged, events = part
        self.unlogged -= len(events)
        if self._room is not None:
            self._room.set_result(None)
            self._room = None
        written = self.bytes - self.unlogged
        if written >= self._marked + _MARK_BYTES:
            self._marks.append((self._logged, position))  # there may be more of it at the same one
            self._marked = written
        while self._kept and self._kept_bytes > keep and self._kept[0][0] <= self._logged:
            self._kept_bytes -= len(self._kept.popleft()[1])

    async def room(self, most: int) -> None:
        """Waits until the log lags less than `most` bytes behind."""
        while self.unlogged >= most:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)

    def position_of(self, seen: int) -> int:
        """Returns: A position of the log at which nothing behind the event `seen` has been passed over."""
        return self._marks[bisect_right(self._marks, (seen, 1 << 62)) - 1][1]
