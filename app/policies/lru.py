"""What is kept for a while in bounded memory: least recently used goes first, nothing outlives its time."""

from collections import OrderedDict
from typing import Generic, TypeVar

V = TypeVar("V")
ENTRY_BYTES = 1024  # what an entry costs beside its own bytes; so the number of entries is bounded, too


class LruStore(Generic[V]):
    """Values by key, bounded by bytes and by age. The clock is handed in.

    Args:
        most_bytes: In all, each entry's `ENTRY_BYTES` included.
        ttl: Seconds after which a value is no longer given out.
    """

    def __init__(self, most_bytes: int, ttl: float) -> None:
        self.held = 0
        self._most = most_bytes
        self._ttl = ttl
        self._entries: OrderedDict[bytes, tuple[V, int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def largest(self) -> int:
        """The most bytes that one value may have: a quarter of all, so that none drives out most others."""
        return self._most // 4 - ENTRY_BYTES

    def get(self, key: bytes, now: float) -> V | None:
        """Returns: What was put under this key less than `ttl` seconds before `now`; None: nothing is left of it."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, _, until = entry
        if now >= until:
            self.drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: bytes, value: V, size: int, now: float) -> bool:
        """Keeps a value in place of the key's former one; the least recently used make room.

        Args:
            size: The value's bytes.
            now: Seconds, on the clock that `get` is asked by.
        Returns:
            Whether it is kept: it is not if it is larger than `largest`.
        """
        self.drop(key)
        if size > self.largest:
            return False
        size += ENTRY_BYTES
        while self.held + size > self._most:
            self.drop(next(iter(self._entries)))
        self._entries[key] = value, size, now + self._ttl
        self.held += size
        return True

    def drop(self, key: bytes) -> None:
        """Forgets the key's value, if there is one."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.held -= entry[1]
