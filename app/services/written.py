"""A fan-out's run as bytes: what its events look like on the way out is up to the reply's form."""

from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from app.services.fanout import Fanout
from app.wire.results import Result
from app.wire.sse import event


class Written:
    """Args:
    write: Gives an event its form: of its name (`result`, `chunk`, `summary`) and its JSON.
    close: Gives back what the items come from.

    Attributes:
        failed: Never: an item's failure is a result.
    """

    failed = False

    def __init__(
        self, run: Fanout, write: Callable[[str, bytes], bytes], close: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._run = run
        self._write = write
        self._close = close

    async def __aiter__(self) -> AsyncIterator[bytes]:
        run = self._run
        async for one in run:
            yield (self._write("result", one.line()) if isinstance(one, Result) else self._write("chunk", one.data))
        summary = {"object": "fanout.summary", **run.summary.fields(run.wall_ms)}
        yield self._write("summary", msgspec.json.encode(summary))

    async def aclose(self, failure: BaseException | None = None) -> None:
        await self._run.aclose(failure)
        if self._close is not None:
            await self._close()


def as_event(name: str, data: bytes) -> bytes:
    """Returns: A server-sent event."""
    return event(data, name)


def as_line(_name: str, data: bytes) -> bytes:
    """Returns: A line of NDJSON."""
    return data + b"\n"
