"""Replies that go out while they come in.

`EventSourceResponse` of sse-starlette carries them. It is extended in this one place, where it stands in the way of a
promise of ours:
  * its ping goes out even while data flows: here only after silence;
  * its `send_timeout` makes a cancel scope for every chunk: here one watch per stream, with the same effect;
  * at shutdown it cuts the stream: here the drain says when it ends, and it ends in an error event;
  * it consumes `receive` while a request's body may still be coming in: here the reader of the body can take its place;
  * it leaves the giving back of what feeds it to a generator's `finally`, which may never run: here it is `aclose`d.
"""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol, cast

import anyio
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from app.errors import ClientHungUpError, GatewayError
from app.http.context import CallRecord, Gateway
from app.wire.sse import PING, event

EVENT_STREAM = "text/event-stream; charset=utf-8"
NDJSON = "application/x-ndjson"
# a compressing proxy would hold pieces back until it has enough of them; buffering is switched off by sse-starlette
_AS_IT_COMES = {"cache-control": "no-store, no-transform"}
_AT_ONCE = struct.pack("ii", 1, 0)
_FAREWELL_SECONDS = 1.0  # less than the drain waits for last words
PIECE = 256 * 1024  # of a whole body: what is larger goes out in several, so that a reader who does not read is noticed


class ReplyCutError(Exception):
    """The reply stays unfinished on purpose: the connection's end tells the client that it is not whole."""


class Source(Protocol):
    """What feeds a live reply: pieces of bytes, and resources to give back."""

    def __aiter__(self) -> Any: ...

    async def aclose(self, failure: BaseException | None = None) -> None: ...


class LiveResponse(EventSourceResponse):
    """Args:
    source: Yields what is to be sent, each piece at once.
    record: For the access log: a hang-up is a 499.
    gone: Awaits the client's hang-up, where something else reads `receive`.
    resumable: At the end of the drain it has a moment to end by itself, and is else left open: its reader comes back.
    """

    def __init__(
        self,
        source: Source,
        *,
        gateway: Gateway,
        record: CallRecord,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str = EVENT_STREAM,
        gone: Callable[[], Awaitable[None]] | None = None,
        resumable: bool = False,
    ) -> None:
        settings = gateway.settings
        trickles = media_type.startswith(("text/event-stream", NDJSON))
        super().__init__(
            source,
            status,
            {**(headers or {}), **(_AS_IT_COMES if trickles else {})},
            media_type,
            ping=0,  # the watch pings, and only breaks silence
            sep="\n",
            send_timeout=settings.send_timeout,
        )
        self._source = source
        self._record = record
        self._gone = gone
        self._resumable = resumable
        self._is_events = media_type.startswith("text/event-stream")
        self._drain = gateway.drain
        self._silence = settings.ping_interval
        self._patience = settings.send_timeout
        self._stop = anyio.CancelScope()
        self._last_sent = time.monotonic()
        self._sending_since: float | None = None
        # until the last byte is out, whatever ends the response is the client's going
        self._failure: BaseException | None = ClientHungUpError("the client hung up")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
            if isinstance(self._failure, ClientHungUpError):
                self._record.status = self._failure.status
        except GatewayError as error:  # in the middle of a body that has no way to say so
            self._failure = error
            self._record.error = error.code or error.type
            raise ReplyCutError from error
        except SendTimeoutError:
            self._failure = ClientHungUpError("the client does not read")
            _abort(receive)
            raise
        except BaseException as error:
            self._failure = error
            raise
        finally:
            await self._source.aclose(self._failure)

    async def _stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with self._stop:
            async for piece in self.body_iterator:
                await self._send(cast("bytes", piece))
        self._failure = None
        if self._stop.cancelled_caught and not self._resumable:
            draining = self._drain.error()
            self._record.error = draining.code or draining.type
            if not self._is_events:
                raise draining
            self._failure = draining
            await self._send(event(draining.envelope()))
        self.active = False
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, piece: bytes) -> None:
        """Sends a piece past everything that only looks at a reply's beginning and end."""
        self._last_sent = self._sending_since = time.monotonic()
        self._record.bytes_out += len(piece)
        await self._record.send({"type": "http.response.body", "body": piece, "more_body": True})
        self._sending_since = None

    async def _listen_for_disconnect(self, receive: Receive) -> None:
        if self._gone is not None:
            await self._gone()
            return
        while (await receive())["type"] != "http.disconnect":
            pass  # nor does it end with the stream: the last piece may take its time, and must not be cancelled
        self.active = False

    async def _listen_for_exit_signal_with_grace(self) -> None:
        """The watch: breaks silence, drops a reader that does not read, and ends the stream when the drain is over."""
        while not self._drain.over.is_set():
            wait = await self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._drain.over.wait()
        if self._resumable:
            await anyio.sleep(_FAREWELL_SECONDS)
        self._stop.cancel()
        await anyio.sleep_forever()  # the stream ends itself now, with its error event

    async def _look(self) -> float:
        """Does what is due now. Returns: Seconds after which something can be due again.

        Raises: SendTimeoutError: The reader does not read.
        """
        now = time.monotonic()
        if self._sending_since is not None:
            left = self._sending_since + self._patience - now
            if left <= 0:
                raise SendTimeoutError
            return left
        if self._is_events and self.active and now >= self._last_sent + self._silence:
            self._last_sent = now
            await self._send_with_timeout(
                self._record.send, {"type": "http.response.body", "body": PING, "more_body": True}
            )
        return min(self._last_sent + self._silence - now if self._is_events else self._patience, self._patience)


class Pieces:
    """A large whole body as a live reply's source."""

    def __init__(self, body: bytes) -> None:
        self._body = memoryview(body)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), PIECE):
            yield bytes(self._body[start : start + PIECE])

    async def aclose(self, failure: BaseException | None = None) -> None:
        pass


def _abort(receive: Receive) -> None:
    """Drops the connection of a reader that does not read: closing it would wait for him, with all that is unsent.

    ASGI has no word for this; uvicorn's transport is reached through its bound `receive`, if it is there.
    """
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is not None:
        # else the kernel keeps what is unsent for as long as the reader stays connected
        with contextlib.suppress(AttributeError, OSError):  # it may just have been closed
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        transport.abort()
