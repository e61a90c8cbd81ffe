"""One streamed call: from the first-chunk gate to `[DONE]` or to the one error event that stands in its place."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import msgspec

from app.errors import GatewayError, InternalError, UpstreamError, UpstreamMalformedError, envelope
from app.upstream.call import CallStack
from app.upstream.types import Call, Reply
from app.wire.jsonl import one_line
from app.wire.sse import PING, event

log = logging.getLogger("sluicegate")


class StreamRelay:
    """Owns the call's task and its reply until `aclose`.

    Args:
        on_error: Told of the error that the client is told in an event.

    Attributes:
        failed: The events that were yielded last end in that error event.
    """

    def __init__(self, stack: CallStack, call: Call, on_error: Callable[[GatewayError], None]) -> None:
        self.failed = False
        self._on_error = on_error
        self.task = asyncio.create_task(stack.call(call), name=f"stream {call.path}")
        self._late = False

    def reply(self) -> Reply | None:
        """The gate: what the upstream answered, or None if it has not yet: headers must go out now.

        Raises:
            GatewayError: There was no usable reply.
        """
        if self.task.done():
            return self.task.result()
        self._late = True
        return None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._late:
            yield PING
        try:
            reply = await self.task
            if reply.events is None:
                self._fail(UpstreamError(f"the upstream answered {reply.status} after the headers had gone out"))
                yield event(_error_data(reply.body))
                return
            async for events in reply.events:
                if reply.events.reader.error is not None:  # it is among them, in the upstream's own words
                    self._fail(UpstreamError("the upstream ended its stream with an error event"))
                yield events
        except GatewayError as error:
            self._fail(error)
            yield event(error.envelope())
        except Exception:
            log.exception("bug in a stream")
            self.failed = True
            yield event(InternalError("an internal error; the service's log has it").envelope())

    def _fail(self, error: GatewayError) -> None:
        self.failed = True
        self._on_error(error)

    async def aclose(self, failure: BaseException | None = None) -> None:
        """Cancels what still runs and gives everything back. May be called twice."""
        if not self.task.done():
            self.task.cancel()
            await asyncio.wait({self.task})
        if not self.task.cancelled() and self.task.exception() is None:
            await self.task.result().aclose(failure)


def _error_data(body: bytes) -> bytes:
    """An error reply as one event's data, for clients to which a 200 has already gone out."""
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
        body.decode()  # msgspec does not look into what it passes on
        if "error" in msgspec.json.decode(body, type=dict[str, msgspec.Raw]):
            return one_line(body)
    kind = UpstreamMalformedError
    return envelope("the upstream answered with something other than a stream", kind.type, None, kind.code)
