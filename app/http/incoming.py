"""What comes in: bodies with a bound in size and time, and the news that the client has gone."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, Self, TypeVar, cast

from fastapi import Request
from starlette.types import Receive

from app.errors import BodyTooLargeError, ClientHungUpError, InvalidRequestError, SlowRequestError
from app.http.context import Gateway
from app.http.drain import Drain
from app.policies.lanes import Lane

T = TypeVar("T")
LONGEST_TIMEOUT = 86_400.0
_READ_AHEAD_BYTES = 4 * 1024**2


async def read_body(request: Request, gateway: Gateway) -> bytes:
    """Reads the whole body, within the settings' bounds.

    Raises:
        BodyTooLargeError, SlowRequestError, ClientHungUpError, DrainingError: As they say.
    """
    async with until_the_drain_is_over(gateway.drain):
        return await _whole_body(request, gateway.settings.max_body_bytes, gateway.settings.body_timeout)


@contextlib.asynccontextmanager
async def until_the_drain_is_over(drain: Drain) -> AsyncGenerator[None, None]:
    """The block is cancelled when the drain's patience is at its end.

    Raises: DrainingError: Then.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in a task
    try:
        with drain.cancels(task):
            yield
    except asyncio.CancelledError:
        if drain.over.is_set() and task.uncancel() == 0:
            raise drain.error() from None
        raise


async def pieces_of(request: Request, patience: float) -> AsyncGenerator[bytes, None]:
    """Yields: The body as it comes in.

    Raises: SlowRequestError, ClientHungUpError: As they say.
    """
    more = True
    while more:
        try:
            async with asyncio.timeout(patience):
                message = await request.receive()
        except TimeoutError:
            raise SlowRequestError(f"no byte of the body came for {patience:g} seconds") from None
        if message["type"] == "http.disconnect":
            raise ClientHungUpError("the client hung up while sending its body")
        if piece := message.get("body", b""):
            yield piece
        more = message.get("more_body", False)


async def _whole_body(request: Request, limit: int, patience: float) -> bytes:
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)
    pieces: list[bytes] = []
    size = 0
    async for piece in pieces_of(request, patience):
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {limit} bytes (max_body_bytes)")


async def until_gone(receive: Receive) -> None:
    """Returns once the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


class HangUpWatch:
    """Tells whether the client went away, or the server must.

    Args:
        gone: Returns once the client has gone: `until_gone(receive)`, while nobody else reads `receive`.
        drain: The server's end.
    """

    def __init__(self, gone: Coroutine[Any, Any, None], drain: Drain) -> None:
        self._coroutine = gone
        self._drain = drain

    async def __aenter__(self) -> Self:
        self._gone = asyncio.create_task(self._coroutine, name="hang-up watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        await _end(self._gone)

    async def wait(self, task: "asyncio.Task[Any]", patience: float | None = None) -> None:
        """Waits until the task is done, for `patience` seconds at most.

        Raises:
            ClientHungUpError: The client went first; the task is cancelled and over.
            DrainingError: The server's end came first; likewise.
        """
        try:
            with self._drain.cancels(self._gone):
                await asyncio.wait({task, self._gone}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _end(task)
            raise
        if self._gone.done() and not task.done():
            await _end(task)
            raise self._drain.error() if self._gone.cancelled() else ClientHungUpError("the client hung up")


async def _end(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await asyncio.wait({task})


async def unless_hung_up(gone: Coroutine[Any, Any, None], drain: Drain, work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end, or cancels it when the client hangs up or the server ends.

    Raises: ClientHungUpError, DrainingError: As they say.
    """
    task = asyncio.create_task(work, name="call")
    async with HangUpWatch(gone, drain) as watch:
        await watch.wait(task)
    return task.result()


def timeout_of(request: Request) -> float | None:
    """Reads `x-sluicegate-timeout` (seconds).

    Raises: InvalidRequestError: Not a positive number.
    """
    return seconds_in(request.headers.get("x-sluicegate-timeout"), LONGEST_TIMEOUT, "x-sluicegate-timeout")


def seconds_in(text: str | None, most: float, where: str) -> float | None:
    """Args: where: The parameter's name, for errors.

    Raises: InvalidRequestError: Not a positive number, or above `most`.
    """
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= most:
        raise InvalidRequestError(f"must be a number of seconds above 0 and at most {most:g}", param=where)
    return seconds


def lane_of(request: Request, default: Lane) -> Lane:
    """Reads `x-sluicegate-priority`.

    Raises: InvalidRequestError: Neither `interactive` nor `batch`.
    """
    lane = request.headers.get("x-sluicegate-priority", default)
    if lane not in {"interactive", "batch"}:
        raise InvalidRequestError("must be interactive or batch", param="x-sluicegate-priority")
    return cast("Lane", lane)


def cache_of(request: Request) -> bool | None:
    """Reads `x-sluicegate-cache`.

    Raises: InvalidRequestError: Neither `on` nor `off`.
    """
    text = request.headers.get("x-sluicegate-cache")
    if text is None:
        return None
    if text not in {"on", "off"}:
        raise InvalidRequestError("must be on or off", param="x-sluicegate-cache")
    return text == "on"


class StreamedBody:
    """A body read piece by piece while the reply already goes out.

    One task reads ahead, up to 4 MiB, so that a hang-up is seen even while nobody wants the next piece. Beyond that the
    server itself stops reading the connection, and a hang-up shows as soon as there is room again.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._changed = asyncio.Condition()
        self._whole = False
        self._pump = asyncio.create_task(self._read_ahead(), name="body reader")

    async def _read_ahead(self) -> None:
        while not self._whole:
            message = await self._receive()
            async with self._changed:
                piece = message.get("body", b"")
                self._whole = not message.get("more_body", False)  # a disconnect has none
                if piece:
                    self._pieces.append(piece)
                    self._held += len(piece)
                self._changed.notify_all()
                await self._changed.wait_for(lambda: self._held < _READ_AHEAD_BYTES)
            if message["type"] == "http.disconnect":
                return
        await until_gone(self._receive)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._pieces) or self._whole)
                if not self._pieces:
                    return
                piece = self._pieces.popleft()
                self._held -= len(piece)
                self._changed.notify_all()
            yield piece

    async def gone(self) -> None:
        """Returns once the client has hung up, during the body or after it."""
        await asyncio.wait({self._pump})

    async def aclose(self) -> None:
        """Ends the reading."""
        await _end(self._pump)
