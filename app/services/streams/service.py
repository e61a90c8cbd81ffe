"""Streams that outlive their readers: made, found again, told about, ended."""

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from app.errors import (
    DrainingError,
    GatewayError,
    NotFoundError,
    QueueFullError,
    ServerLostError,
    StorageError,
    StreamCancelledError,
)
from app.services.keys import Caller
from app.services.streams.channel import Channel
from app.services.streams.journal import Journal
from app.services.streams.keeper import Keeper
from app.services.streams.reader import Pacer, Reader, end_of
from app.services.streams.run import Run, Source
from app.services.streams.telling import stream_object
from app.settings import StreamSettings
from app.store import streams
from app.store.database import Database
from app.store.owners import NotOursError, Owner
from app.store.streams import Stream
from app.store.stubborn import Stubborn
from app.upstream.types import Trace
from app.wire.results import new_id
from app.wire.sse import payloads
from app.wire.stream_text import said

_FULL_SECONDS = 1.0
_MOST_SNAPSHOTS = 2  # at once: each holds a whole stream
_CANCELLED = "the stream was cancelled"
_ID = re.compile(r"stream_[0-9a-f]{24}")
_LONGEST_SHOWN, _LONGEST_MODEL = 100, 256


class Streams:
    """Args: owner: This process; its streams end with it."""

    def __init__(self, database: Database, owner: Owner, settings: StreamSettings) -> None:
        self._database = database
        self._settings = settings
        self._journal = Journal(database, owner.id, settings, self._ended, self._lost)
        self._stubborn = Stubborn(database, "streams")
        self._pacer = Pacer()
        self._snapshots = asyncio.Semaphore(_MOST_SNAPSHOTS)
        self._runs: dict[int, Run] = {}
        self._starting = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._keeper = Keeper(database, settings, lambda: self._journal.shards, self._cancel_later)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises: StorageError: The storage cannot be reached."""
        await self._keeper.start()
        self._journal.start()

    async def create(
        self, who: Caller, url: str, model: str | None, trace: Trace, make: Callable[[], Source], *, names: bool
    ) -> dict[str, Any]:
        """Begins a stream, which from now on depends on nobody.

        Args:
            trace: Of the call that it is.
            make: Starts the call.
            names: Whether its events keep their names.
        Returns: The object, with the token that opens this stream only.
        Raises:
            QueueFullError: Too many run here.
            StorageError: It cannot be kept.
        """
        self.check_room()
        token = secrets.token_urlsafe(24)
        shown = None if model is None else model.replace("\0", "")[:_LONGEST_MODEL]
        new = streams.New(new_id("stream_"), who.name, who.holder, _digest(token), url, shown)
        self._starting += 1
        try:
            shard, start, made = await self._stored(new)
        finally:
            self._starting -= 1
        channel = Channel(made.number, shard, start, names=names)
        self._runs[made.number] = Run(channel, make(), self._journal, trace, self._settings.max_stream_bytes)
        self._idle.clear()
        return {
            "id": new.id,
            "object": "stream",
            "status": streams.RUNS,
            "url": f"/v1{url}",
            "model": model,
            "created_at": int(made.created_at),
            "expires_at": int(made.expires_at),
            "events_url": f"/v1/streams/{new.id}/events",
            "token": token,
        }

    def check_room(self) -> None:
        """Raises: QueueFullError: Too many streams run here."""
        if len(self._runs) + self._starting >= self._settings.max_running:
            told = f"{self._settings.max_running} streams run here already (streams.max_running)"
            raise QueueFullError(told, retry_after=_FULL_SECONDS)

    async def _stored(self, new: streams.New) -> tuple[int, int, streams.Created]:
        """Returns: The shard that will hold its events, the first position there, and what the storage made of it."""
        while True:
            shard, start = await self._journal.place()
            creating = self._database.run(streams.create, new, shard, start, self._settings.ttl)
            made = asyncio.create_task(creating, name="stream create")
            try:
                return shard, start, await asyncio.shield(made)
            except NotOursError:
                self._journal.leave(shard)
                self._journal.forget(shard)
            except BaseException as error:
                self._journal.leave(shard)
                if isinstance(error, StorageError | asyncio.CancelledError):
                    self._later(self._undo(made, new.id), "stream undo")
                raise

    async def _undo(self, making: "asyncio.Task[streams.Created]", stream_id: str) -> None:
        """Nobody was told of it, but it may be there all the same."""
        await asyncio.gather(making, return_exceptions=True)
        await self._stubborn.run(streams.undo, stream_id)

    def _ended(self, number: int) -> None:
        self._runs.pop(number, None)
        if not self._runs:
            self._idle.set()

    def _lost(self, shard: int) -> None:
        error = ServerLostError("this server was silent for too long, and its streams were given up")
        for run in self._runs.values():
            if run.channel.shard == shard:
                self._later(run.stop(error), "stream stop")

    def _cancel_later(self, number: int) -> None:
        if number in self._runs:
            self._later(self._runs[number].stop(StreamCancelledError(_CANCELLED)), "stream stop")

    def _later(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def find(self, stream_id: str, who: Caller | None, token: str | None) -> Stream:
        """Args:
            who: Finds his own; a key also those of its browser tokens.
            token: Or the stream's.
        Raises: NotFoundError: There is none, or it is somebody else's.
        """
        row = await self._database.run(streams.find, stream_id) if _ID.fullmatch(stream_id) else None
        if row is not None:
            if token is not None and hmac.compare_digest(_digest(token), row.token):
                return row
            if who is not None and who.name == row.owner and who.holder in {"", row.holder}:
                return row
        raise NotFoundError(f"there is no stream {stream_id[:_LONGEST_SHOWN]!r}, or it is not yours")

    def has_more(self, stream: Stream, seen: int) -> bool:
        """Whether there is, or can be, anything behind the event `seen`."""
        run = self._runs.get(stream.number)
        end = end_of(stream)
        if run is not None and run.channel.end is not None:
            end = run.channel.last + 1
        return end is None or seen < end

    def reader(self, stream: Stream, seen: int, hold: float | None = None) -> Reader:
        """As `Reader`."""
        run = self._runs.get(stream.number)
        return Reader(self._database, self._pacer, None if run is None else run.channel, stream, seen, hold)

    async def snapshot(self, stream: Stream) -> dict[str, Any]:
        """Returns: The object, with the text and the usage so far."""
        told = await self._told(stream)
        reader = self.reader(stream, 0)
        async with self._snapshots:
            pieces = [events async for events in reader.pieces(follow=False)]
            found = await asyncio.to_thread(lambda: said(payloads(b"".join(pieces))))
        return {**told, "events": reader.seen, "text": found.text, "usage": found.usage}

    async def _told(self, stream: Stream) -> dict[str, Any]:
        """Returns: The object as it is right now."""
        run = self._runs.get(stream.number)
        if run is not None:
            return stream_object(stream, run.channel.end, run.channel.last, run.timing())
        if stream.status == streams.RUNS:  # it may just have ended
            found = await self._database.run(streams.find, stream.id)
            stream = found or stream
        return stream_object(stream, None, stream.events, stream.timing)

    async def cancel(self, stream: Stream) -> dict[str, Any]:
        """Ends it, upstream too; what has ended stays as it is. Returns: The object.

        Raises: StorageError: It runs elsewhere, and cannot be reached.
        """
        if (run := self._runs.get(stream.number)) is not None:
            await run.stop(StreamCancelledError(_CANCELLED))
        else:
            await self._database.run(streams.cancel, stream.number)
        return await self._told(stream)

    async def idle(self) -> None:
        """The server drains: sends those away who read what runs elsewhere. Returns once no stream runs here."""
        self._pacer.is_over = True
        await self._idle.wait()

    async def stop_all(self, reason: GatewayError) -> None:
        """Ends every stream with an error event."""
        await asyncio.gather(*(run.stop(reason) for run in list(self._runs.values())))

    def snapshot_all(self) -> dict[str, Any]:
        """Returns: Figures of this process, JSON-ready."""
        return {
            "running": len(self._runs),
            "max_running": self._settings.max_running,
            "unlogged_bytes": sum(run.channel.unlogged for run in self._runs.values()),
            "commit_ms": round(self._journal.commit_ms, 1),
        }

    async def aclose(self) -> None:
        """Ends what still runs, and writes how."""
        await self._keeper.aclose()
        await self.stop_all(DrainingError("the server is shutting down"))
        await self._journal.aclose()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
