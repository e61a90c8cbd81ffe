"""A reply's body under the call's clocks. It owns the call's slot and connection and gives both back exactly once."""

import asyncio
import zlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Self

from app.errors import (
    DeadlineError,
    FirstTokenTimeoutError,
    GatewayError,
    IdleTimeoutError,
    UpstreamCutError,
    UpstreamError,
    UpstreamMalformedError,
)
from app.upstream.transport import RawReply
from app.wire.encoding import Inflater
from app.wire.sse import EarlyEndError, EventReader

_AFTER_THE_LAST_SECONDS = 1.0
_SHORTEST_TAIL = len(b"data: [DONE]\n\n")


class Body:
    """Args:
    raw: The reply.
    deadline: On the event loop's clock; for the whole call.
    idle_timeout: Seconds between two pieces.
    on_end: Called once when the body is given back, with the error that ended it or None.
    """

    def __init__(
        self,
        raw: RawReply,
        *,
        deadline: float,
        idle_timeout: float,
        on_end: Callable[[BaseException | None], None],
    ) -> None:
        self._raw = raw
        self._deadline = deadline
        self._idle_timeout = idle_timeout
        self._on_end = on_end
        self._open = True
        self._failure: BaseException | None = None
        self._time = asyncio.get_running_loop().time
        coding = raw.headers.get("content-encoding", "identity").lower()
        if coding not in {"identity", "gzip", "deflate", ""}:
            raise UpstreamMalformedError(f"the upstream used the content coding {coding!r}, which nobody asked for")
        self._inflater = Inflater() if coding in {"gzip", "deflate"} else None
        self._pieces: Iterator[bytes] = iter(())

    def piece(self, patience: float, late: type[DeadlineError]) -> Coroutine[Any, Any, bytes]:
        """Waits for the next bytes; b"" at the end.

        Args:
            patience: Seconds to wait, if the deadline allows.
            late: What to raise after that.
        """
        if self._inflater is None:
            return self._wire_bytes(patience, late)
        return self._inflated(self._inflater, patience, late)

    async def _inflated(self, inflater: Inflater, patience: float, late: type[DeadlineError]) -> bytes:
        try:
            while not (data := next(self._pieces, b"")):
                wire = await self._wire_bytes(patience, late)
                if not wire:
                    if not inflater.finished:
                        raise self._failed(UpstreamCutError("the upstream's compressed reply is not whole"))
                    return b""
                self._pieces = inflater.feed(wire)
            await asyncio.sleep(0)  # a bomb may be many pieces: others get their turn between them
        except zlib.error:
            told = "the upstream's reply is not the gzip that it says it is"
            raise self._failed(UpstreamMalformedError(told)) from None
        return data

    async def _wire_bytes(self, patience: float, late: type[DeadlineError]) -> bytes:
        when = self._time() + patience
        if when >= self._deadline:
            when, late = self._deadline, DeadlineError
        try:
            return await self._raw.read(when)
        except TimeoutError:
            raise self._failed(late(SENTENCES[late])) from None
        except UpstreamCutError as error:
            raise self._failed(error) from error.__cause__

    def _failed(self, failure: GatewayError) -> GatewayError:
        """Notes what `on_end` will be told. Returns: It, to be raised."""
        self._failure = failure
        return failure

    async def whole(self, limit: int) -> bytes:
        """Reads everything.

        Raises:
            UpstreamMalformedError: More than `limit` bytes.
        """
        pieces, size = [], 0
        while data := await self.piece(float("inf"), DeadlineError):
            pieces.append(data)
            size += len(data)
            if size > limit:
                raise UpstreamMalformedError(f"the upstream's reply is larger than {limit} bytes (max_reply_bytes)")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        data = await self.piece(self._idle_timeout, IdleTimeoutError)
        if not data:
            raise StopAsyncIteration
        return data

    async def aclose(self, failure: BaseException | None = None) -> None:
        """Gives the connection and the slot back. Later calls do nothing."""
        if self._open:
            self._open = False
            self._raw.close()
            self._on_end(failure or self._failure)


SENTENCES = {
    DeadlineError: "the call's deadline passed",
    FirstTokenTimeoutError: "the upstream took too long to send the first chunk",
    IdleTimeoutError: "the upstream fell silent in the middle of its stream",
}


class Events(Body):
    """The body of a streamed reply: whole, valid events, and an error where the stream would have to lie."""

    def __init__(
        self,
        raw: RawReply,
        *,
        terminals: frozenset[str],
        deadline: float,
        idle_timeout: float,
        on_end: Callable[[BaseException | None], None],
    ) -> None:
        super().__init__(raw, deadline=deadline, idle_timeout=idle_timeout, on_end=on_end)
        self.reader = EventReader(terminals)
        self._first = b""
        self.tail = b""  # the last events but the end marker: a stream's usage is in them

    async def open(self, patience: float) -> None:
        """The first-chunk gate: waits for a valid event, and keeps it.

        Raises:
            GatewayError: There will be none; nothing has been sent to the client.
        """
        until = self._time() + patience
        while not self.reader.started and not self.reader.ended:
            self._first = await self._events(max(0.0, until - self._time()), FirstTokenTimeoutError)
        if not self.reader.started:
            self._check()

    async def __anext__(self) -> bytes:
        if events := self._first:
            self._first = b""
            self.tail = events
            return events
        while not self.reader.ended:
            if events := await self._events(self._idle_timeout, IdleTimeoutError):
                if len(events) > _SHORTEST_TAIL:
                    self.tail = events
                return events
        self._check()
        raise StopAsyncIteration

    async def _events(self, patience: float, late: type[DeadlineError]) -> bytes:
        if self.reader.complete:  # all has been said; what follows is at most `[DONE]`
            patience = min(patience, _AFTER_THE_LAST_SECONDS)
        try:
            data = await self.piece(patience, late)
        except (UpstreamCutError, UpstreamMalformedError, IdleTimeoutError):
            if not self.reader.complete:
                raise
            self._failure = None
            data = b""
        return self.reader.feed(data) if data else self.reader.close()

    def _check(self) -> None:
        """Notes how the stream ended.

        Raises: UpstreamCutError, UpstreamMalformedError: With a flaw; what came before it is out.
        """
        if self.reader.error is not None:
            self._failure = UpstreamError("the upstream ended its stream with an error event")
        if self.reader.flaw is not None:
            kind = UpstreamCutError if isinstance(self.reader.flaw, EarlyEndError) else UpstreamMalformedError
            raise self._failed(kind(f"the upstream's stream broke: {self.reader.flaw}"))

    async def aclose(self, failure: BaseException | None = None) -> None:
        try:
            if self._open and self.reader.done and failure is None and not self._raw.at_end:
                await self._raw.drain()
        finally:
            await super().aclose(failure)
