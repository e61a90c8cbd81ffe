"""How far a fan-out may run ahead of whoever takes its results: in items, and in bytes held for them."""

import asyncio

_AHEAD = 1024  # items that may wait for an earlier one's turn, or for a slow reader, beside those in flight
_MOST_BYTES = 64 * 1024**2


class Window:
    """Args:
    concurrency: Items in flight at once.
    most_bytes: What may be held for items and results that have not been taken; one item always fits.
    """

    def __init__(self, concurrency: int, most_bytes: int = _MOST_BYTES) -> None:
        self.places = concurrency + _AHEAD
        self._free = asyncio.Semaphore(self.places)
        self._most = most_bytes
        self._held = 0
        self._room = asyncio.Event()
        self._room.set()

    async def enter(self, size: int) -> None:
        """Waits for a place for an item of `size` bytes."""
        await self._free.acquire()
        await self._room.wait()
        self._hold(size)

    def swap(self, item: int, result: int) -> None:
        """The item is done: its bytes go, its result's come."""
        self._hold(result - item)

    def leave(self, result: int) -> None:
        """The result of `result` bytes has been taken."""
        self._hold(-result)
        self._free.release()

    def _hold(self, change: int) -> None:
        self._held += change
        if self._held < self._most:
            self._room.set()
        else:
            self._room.clear()
