"""What all places for blobs have in common: keys, pieces, and work that must not be left half done."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol, TypeVar

T = TypeVar("T")
PIECE = 256 * 1024
_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


class BlobMissingError(Exception):
    """There is no blob under this key."""


class Writer(Protocol):
    """A blob in the making. `size`: bytes so far."""

    size: int

    async def write(self, data: bytes) -> None: ...

    async def touch(self) -> None:
        """Tells the sweep that it is still being made, although nothing is written."""


def checked(key: str) -> str:
    """Returns: The key, which is surely one of ours and no path."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no blob's key")
    return key


async def unbroken(work: Awaitable[T]) -> T:
    """Awaits `work` to its end, even if cancelled meanwhile: what comes after it must not run beside it."""
    task = asyncio.ensure_future(work)
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at: its failure matters no more
        raise cancelled
    return task.result()


Read = Callable[[str, int, int], Awaitable[bytes]]


async def sliced(read: Read, size: int, key: str, start: int, stop: int | None) -> AsyncGenerator[bytes, None]:
    """Reads `size` bytes at a time, so that nothing stays open for as long as a slow reader likes."""
    while stop is None or start < stop:
        end = start + size if stop is None else min(start + size, stop)
        data = await read(key, start, end)
        for place in range(0, len(data), PIECE):
            yield data[place : place + PIECE]
        if len(data) < end - start:
            return
        start = end


class Gathering:
    """The part that writers share: small pieces are gathered until they are worth a trip."""

    def __init__(
        self, put: Callable[[bytes], Awaitable[object]], touch: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        self.size = 0
        self._put = put
        self._touch = touch
        self._held: list[bytes] = []
        self._held_bytes = 0

    async def write(self, data: bytes) -> None:
        self.size += len(data)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes >= PIECE:
            await self.flush()

    async def touch(self) -> None:
        if self._touch is not None:
            await self._touch()

    async def flush(self) -> None:
        data, self._held, self._held_bytes = b"".join(self._held), [], 0
        await self._put(data)
