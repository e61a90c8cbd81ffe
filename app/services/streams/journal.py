"""What writes streams down: all that is new of all of them, in one transaction every few dozen milliseconds."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from app.services.streams.channel import Channel
from app.settings import StreamSettings
from app.store import stream_log, streams
from app.store.database import Database
from app.store.stream_log import End, Part, Record
from app.store.stubborn import Stubborn

log = logging.getLogger("sluicegate")
_EVERY_SECONDS = 0.04
_LAST_SECONDS = 3.0  # for what is left at the end of the process
_MOST_SHARDS = 32  # that take streams: about as many rows are added by a commit
_SHARD_BYTES = 8 * 1024**2
_RECORD_BYTES = 256 * 1024  # and one part more: who reads one stream's events has its neighbours' in hand for a moment
_MEMORY_BYTES = 64 * 1024**2  # for the events of all streams
_LEAST_SHARE, _MOST_SHARE = 16 * 1024, 256 * 1024


@dataclass(slots=True)
class _Shard:
    """Attributes: position: The last one that was given out; running: Streams; bytes: Of all its records."""

    position: int = 0
    running: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Commit:
    records: list[Record] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    parts: list[tuple[Channel, Part, int]] = field(default_factory=list)  # and where


class Journal:
    """Args:
    runner: Who holds its shards (owners.id).
    on_ended: Told of each stream whose end is written, or never will be.
    on_lost: Told of each shard that another process has closed: this one was silent for too long.
    """

    def __init__(
        self,
        database: Database,
        runner: str,
        settings: StreamSettings,
        on_ended: Callable[[int], None],
        on_lost: Callable[[int], None],
    ) -> None:
        self._database = database
        self._stubborn = Stubborn(database, "streams")
        self._runner = runner
        self._settings = settings
        self._on_ended = on_ended
        self._on_lost = on_lost
        self._shards: dict[int, _Shard] = {}
        self._over: list[int] = []  # full shards without any stream: to be closed
        self._opening = asyncio.Lock()
        self._running = 0
        self._fresh: dict[int, Channel] = {}
        self._ends: list[tuple[Channel, dict[str, Any]]] = []
        self._work = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self.commit_ms = 0.0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="stream log")

    @property
    def shards(self) -> list[int]:
        """Those that this process holds."""
        return list(self._shards)

    @property
    def share(self) -> int:
        """Bytes of one stream's events that may stay in memory, and that the log may lag behind."""
        return min(max(_MEMORY_BYTES // max(self._running, 1), _LEAST_SHARE), _MOST_SHARE)

    async def place(self) -> tuple[int, int]:
        """Finds a place for one more stream. Returns: A shard; the first position there that can hold its events.

        Raises: StorageError: It cannot be had.
        """
        async with self._opening:
            taking = [number for number, shard in self._shards.items() if not self._is_full(shard)]
            number = min(taking, key=lambda one: self._shards[one].running, default=None)
            if number is None or (self._shards[number].running and len(taking) < _MOST_SHARDS):
                number = await self._database.run(streams.open_shard, self._runner)
                self._shards[number] = _Shard()
        shard = self._shards[number]
        shard.running += 1
        self._running += 1
        return number, shard.position + 1

    def _is_full(self, shard: _Shard) -> bool:
        """Whether it takes no more streams. One that runs for long keeps the log of all that came after it in there."""
        return shard.bytes >= min(_SHARD_BYTES, self._settings.max_bytes // (2 * _MOST_SHARDS))

    def leave(self, number: int) -> None:
        """Gives a place back."""
        self._running -= 1
        if number in self._shards:
            self._shards[number].running -= 1

    def note(self, channel: Channel) -> None:
        """It has something new."""
        self._fresh[channel.number] = channel
        self._work.set()

    def end(self, channel: Channel, timing: dict[str, Any]) -> None:
        """It has ended."""
        self._ends.append((channel, timing))
        self._work.set()

    async def _run(self) -> None:
        began = -_EVERY_SECONDS
        while not (self._closing and not self._fresh and not self._ends):
            await self._work.wait()
            self._work.clear()
            await asyncio.sleep(began + _EVERY_SECONDS - time.monotonic())
            began = time.monotonic()
            await self._commit(self._gathered())
            self.commit_ms += (1000 * (time.monotonic() - began) - self.commit_ms) / 8

    def _gathered(self) -> _Commit:
        """Returns: All that is new, with its places in the log."""
        found = _Commit()
        filling: dict[int, Record] = {}  # by shard
        sizes: dict[int, int] = {}
        fresh, self._fresh = self._fresh, {}
        for channel in fresh.values():
            if (shard := self._shards.get(channel.shard)) is None:  # lost while it was being made
                self._on_lost(channel.shard)
                continue
            while (part := channel.take()) is not None:
                if sizes.get(channel.shard, _RECORD_BYTES) >= _RECORD_BYTES:
                    shard.position += 1
                    filling[channel.shard], sizes[channel.shard] = Record(channel.shard, shard.position, []), 0
                    found.records.append(filling[channel.shard])
                filling[channel.shard].parts.append(part)
                sizes[channel.shard] += len(part[2])
                shard.bytes += len(part[2])
                found.parts.append((channel, part, shard.position))
        ends, self._ends = self._ends, []
        found.ends = [self._end(*one) for one in ends]
        return found

    def _end(self, channel: Channel, timing: dict[str, Any]) -> End:
        assert channel.end is not None  # noqa: S101 - it says so by coming here
        status, error = channel.end
        shard = self._shards.get(channel.shard, _Shard())
        told = None if error is None else error.decode()
        return End(
            channel.number, channel.shard, shard.position, channel.last, status, told, timing, self._settings.ttl
        )

    async def _commit(self, work: _Commit) -> None:
        if not (work.records or work.ends):
            return
        try:
            lost = await self._stubborn.run(stream_log.append, work.records, work.ends, self._over)
        except Exception:
            log.exception("bug while streams are written")
            touched = {record.shard for record in work.records} | {end.shard for end in work.ends}
            lost = await self._give_up(touched)
        keep = self.share
        for channel, part, position in work.parts:
            channel.logged(part, position, keep)
        for end in work.ends:
            self.leave(end.shard)
            self._on_ended(end.number)
        for shard in lost:
            self.forget(shard)
        self._over = [number for number, shard in self._shards.items() if self._is_full(shard) and not shard.running]
        for number in self._over:
            del self._shards[number]

    async def _give_up(self, shards: set[int]) -> set[int]:
        """Ends all streams of these shards: what is in the storage stays, and says that the rest is missing."""
        try:
            await self._stubborn.run(streams.give_up, shards, self._settings.ttl)
        except Exception:
            log.exception("bug while streams are given up")
        return shards

    def forget(self, number: int) -> None:
        """Another process has closed this shard."""
        if self._shards.pop(number, None) is not None:
            self._on_lost(number)

    async def aclose(self) -> None:
        """Writes what is left, if the storage lets it."""
        self._closing = True
        self._work.set()
        if self._task is not None:
            _, late = await asyncio.wait({self._task}, timeout=_LAST_SECONDS)
            for task in late:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
