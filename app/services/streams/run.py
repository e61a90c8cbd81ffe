"""One running stream: what its source gives goes into its channel, until it ends, is ended, or the server must go."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any, Protocol

from app.errors import DrainingError, GatewayError, InternalError, StreamCancelledError, StreamTooLargeError
from app.services.streams.channel import Channel, End
from app.services.streams.journal import Journal
from app.upstream.types import Trace
from app.wire.streams import without_error

log = logging.getLogger("sluicegate")


class Source(Protocol):
    """What a stream is made of: whole events, framed; the last one is `[DONE]`, an error or a fan-out's summary.

    Attributes: failed: The events that were yielded last end in an error event.
    """

    failed: bool

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self, failure: BaseException | None = None) -> None: ...


class Run:
    """Args:
    trace: Of the call that it is; a fan-out's stays empty.
    most: Bytes of events.
    """

    def __init__(self, channel: Channel, source: Source, journal: Journal, trace: Trace, most: int) -> None:
        self.channel = channel
        self._source = source
        self._journal = journal
        self._trace = trace
        self._most = most
        self._began = time.monotonic()
        self._first: float | None = None
        self._over: float | None = None
        self._stopped: GatewayError | None = None
        self._is_ending = False
        self._task = asyncio.create_task(self._run(), name=f"stream {channel.number}")

    async def stop(self, reason: GatewayError) -> None:
        """Ends it, upstream too, and waits for that. Does nothing to one that has ended."""
        if self._stopped is None and not self._is_ending:
            self._stopped = reason
            self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        failure: BaseException | None = None
        error: bytes | None = None
        try:
            error = await self._relayed()
        except asyncio.CancelledError as cancelled:
            failure = cancelled
            error = (self._stopped or DrainingError("the server is shutting down")).envelope()
        except GatewayError as broken:
            failure, error = broken, broken.envelope()
        except Exception as bug:
            log.exception("bug in a stream")
            failure, error = bug, InternalError("an internal error; the service's log has it").envelope()
        self._is_ending = True
        try:
            await self._source.aclose(failure)
        except Exception:
            log.exception("bug at the end of a stream")
        finally:
            self._finish(error)

    async def _relayed(self) -> bytes | None:
        """Returns: The envelope of the error that the source ended in; None: it ended well."""
        channel, journal, source = self.channel, self._journal, self._source
        error = None
        async for events in source:
            if source.failed:
                events, error = without_error(events)  # noqa: PLW2901 - the rest of the same
            channel.add(events)
            journal.note(channel)
            if self._first is None and channel.last:
                self._first = time.monotonic()
            if channel.unlogged >= journal.share:
                await channel.room(journal.share)
            if channel.bytes > self._most:
                raise StreamTooLargeError(f"the stream's events exceed {self._most} bytes (streams.max_stream_bytes)")
        return error

    def _finish(self, error: bytes | None) -> None:
        status = "completed" if error is None else "failed"
        if error is not None and isinstance(self._stopped, StreamCancelledError):
            status = "cancelled"
        self._over = time.monotonic()
        self.channel.finish(End(status, error))
        self._journal.end(self.channel, self.timing())

    def timing(self) -> dict[str, Any]:
        """Returns: JSON-ready; milliseconds since the stream was asked for."""
        first = None if self._first is None else round(1000 * (self._first - self._began), 1)
        return {
            "queue_ms": round(self._trace.queue_ms, 1),
            "first_event_ms": first,
            "total_ms": round(1000 * ((self._over or time.monotonic()) - self._began), 1),
            "attempts": self._trace.attempts,
            "upstream": self._trace.upstream,
        }
