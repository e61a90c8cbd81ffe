"""Streams that outlive their readers: made, found again, told about, ended."""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Any

import msgspec

from app.errors import (
    DrainingError,
    GatewayError,
    NotFoundError,
    QueueFullError,
    ServerLostError,
    StreamCancelledError,
)
from app.services.keys import Caller
from app.services.streams.channel import Channel
from app.services.streams.journal import Journal
from app.services.streams.keeper import Keeper
from app.services.streams.reader import Pacer, Reader, end_of
from app.services.streams.run import Run, Source
from app.settings import StreamSettings
from app.store import streams
from app.store.database import Database
from app.store.owners import Owner
from app.store.streams import Stream
from app.upstream.types import Trace
from app.wire.results import new_id
from app.wire.stream_text import said
from app.wire.streams import payloads_of

_FULL_SECONDS = 1.0
_CANCELLED = "the stream was cancelled"


class Streams:
    """Args: owner: This process; its streams end with it."""

    def __init__(self, database: Database, owner: Owner, settings: StreamSettings) -> None:
        self._database = database
        self._settings = settings
        self._journal = Journal(database, owner.id, self._ended, self._lost)
        self._pacer = Pacer()
        self._runs: dict[int, Run] = {}
        self._starting = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._keeper = Keeper(database, settings, lambda: self._journal.shards, self._cancel_later)
        self._stops: set[asyncio.Task[None]] = set()

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
        if len(self._runs) + self._starting >= self._settings.max_running:
            told = f"{self._settings.max_running} streams run here already (streams.max_running)"
            raise QueueFullError(told, retry_after=_FULL_SECONDS)
        token = secrets.token_urlsafe(24)
        new = streams.New(new_id("stream_"), who.name, who.holder, _digest(token), url, model)
        self._starting += 1
        try:
            shard, start = await self._journal.place()
            try:
                made = await self._database.run(streams.create, new, shard, start, self._settings.ttl)
            except BaseException:
                self._journal.leave(shard)
                raise
        finally:
            self._starting -= 1
        channel = Channel(made.number, shard, start, names=names)
        most, ttl = self._settings.max_stream_bytes, self._settings.ttl
        self._runs[made.number] = Run(channel, make(), self._journal, trace, most, ttl)
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

    def _ended(self, number: int) -> None:
        self._runs.pop(number, None)
        if not self._runs:
            self._idle.set()

    def _lost(self, shard: int) -> None:
        error = ServerLostError("this server was silent for too long, and its streams were given up")
        for run in self._runs.values():
            if run.channel.shard == shard:
                self._stop_later(run, error)

    def _cancel_later(self, number: int) -> None:
        if number in self._runs:
            self._stop_later(self._runs[number], StreamCancelledError(_CANCELLED))

    def _stop_later(self, run: Run, reason: GatewayError) -> None:
        task = asyncio.create_task(run.stop(reason), name="stream stop")
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)

    async def find(self, stream_id: str, who: Caller | None, token: str | None) -> Stream:
        """Args:
            who: Finds his own; a key also those of its browser tokens.
            token: Or the stream's.
        Raises: NotFoundError: There is none, or it is somebody else's.
        """
        row = await self._database.run(streams.find, stream_id)
        if row is not None:
            if token is not None and hmac.compare_digest(_digest(token), row.token):
                return row
            if who is not None and who.name == row.owner and who.holder in {"", row.holder}:
                return row
        raise NotFoundError(f"there is no stream {stream_id!r}, or it is not yours")

    def has_more(self, stream: Stream, seen: int) -> bool:
        """Whether there is, or can be, anything behind the event `seen`."""
        end = end_of(stream)
        return end is None or seen < end

    def reader(self, stream: Stream, seen: int, hold: float | None = None) -> Reader:
        """As `Reader`."""
        return Reader(self._database, self._pacer, self._channel(stream), stream, seen, hold)

    def _channel(self, stream: Stream) -> Channel | None:
        run = self._runs.get(stream.number)
        return None if run is None else run.channel

    async def snapshot(self, stream: Stream) -> dict[str, Any]:
        """Returns: The object, with the text and the usage so far."""
        pieces = [events async for events in self.reader(stream, 0).pieces(follow=False)]
        found = await asyncio.to_thread(lambda: said(payloads_of(b"".join(pieces))))
        return {**self.told(stream), "text": found.text, "usage": found.usage}

    def told(self, stream: Stream) -> dict[str, Any]:
        """Returns: The object as it is right now."""
        status, events, error, timing = stream.status, stream.events, stream.error, stream.timing
        if (run := self._runs.get(stream.number)) is not None:
            events, timing = run.channel.last, run.timing()
            if run.channel.end is not None:
                status, error = run.channel.end
        if status == streams.RUNS and stream.cancelling:
            status = "cancelling"
        return {
            "id": stream.id,
            "object": "stream",
            "status": status,
            "url": f"/v1{stream.url}",
            "model": stream.model,
            "created_at": int(stream.created_at),
            "ended_at": None if stream.ended_at is None else int(stream.ended_at),
            "expires_at": int(stream.expires_at),
            "events": events,
            "error": None if error is None else msgspec.json.decode(error)["error"],
            "timing": timing,
            "events_url": f"/v1/streams/{stream.id}/events",
        }

    async def cancel(self, stream: Stream) -> dict[str, Any]:
        """Ends it, upstream too; what has ended stays as it is. Returns: The object.

        Raises: StorageError: It runs elsewhere, and cannot be reached.
        """
        if (run := self._runs.get(stream.number)) is not None:
            await run.stop(StreamCancelledError(_CANCELLED))
            return self.told(stream)
        await self._database.run(streams.cancel, stream.number)
        found = await self._database.run(streams.find, stream.id)
        return self.told(found or stream)

    async def idle(self) -> None:
        """Returns once no stream runs here."""
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
        await asyncio.gather(*self._stops)
        await self._journal.aclose()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
