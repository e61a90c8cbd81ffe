"""What comes in: bodies with a bound in size and time, and the news that the client has gone."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Self, TypeVar

from fastapi import Request
from starlette.types import Receive

from app.errors import BodyTooLargeError, ClientHungUpError, InvalidRequestError, SlowRequestError

T = TypeVar("T")
LONGEST_TIMEOUT = 86_400.0


async def read_body(request: Request, limit: int, patience: float) -> bytes:
    """Reads the whole body.

    Args:
        limit: Bytes.
        patience: Seconds between two pieces.
    Raises:
        BodyTooLargeError, SlowRequestError, ClientHungUpError: As they say.
    """
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)
    pieces: list[bytes] = []
    size = 0
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
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
        more = message.get("more_body", False)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {limit} bytes (max_body_bytes)")


async def until_gone(receive: Receive) -> None:
    """Returns once the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


class HangUpWatch:
    """Tells whether the client went away.

    Args: gone: Returns once it has: `until_gone(receive)`, while nobody else reads `receive`.
    """

    def __init__(self, gone: Coroutine[Any, Any, None]) -> None:
        self._coroutine = gone

    async def __aenter__(self) -> Self:
        self._gone = asyncio.create_task(self._coroutine, name="hang-up watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._gone.cancel()
        await asyncio.wait({self._gone})

    async def wait(self, task: "asyncio.Task[Any]", patience: float | None = None) -> None:
        """Waits until the task is done, for `patience` seconds at most.

        Raises: ClientHungUpError: The client went first; the task is cancelled and over.
        """
        try:
            await asyncio.wait({task, self._gone}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _end(task)
            raise
        if self._gone.done() and not task.done():
            await _end(task)
            raise ClientHungUpError("the client hung up")


async def _end(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await asyncio.wait({task})


async def unless_hung_up(gone: Coroutine[Any, Any, None], work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end, or cancels it when the client hangs up.

    Raises: ClientHungUpError: It did.
    """
    task = asyncio.create_task(work, name="call")
    async with HangUpWatch(gone) as watch:
        await watch.wait(task)
    return task.result()


def timeout_of(request: Request) -> float | None:
    """Reads `x-sluicegate-timeout` (seconds).

    Raises: InvalidRequestError: Not a positive number.
    """
    text = request.headers.get("x-sluicegate-timeout")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_TIMEOUT:
        message = f"must be a number of seconds above 0 and at most {LONGEST_TIMEOUT:g}"
        raise InvalidRequestError(message, param="x-sluicegate-timeout")
    return seconds


def check_priority(request: Request) -> None:
    """Raises: InvalidRequestError: `x-sluicegate-priority` is neither `interactive` nor `batch`."""
    if request.headers.get("x-sluicegate-priority", "interactive") not in {"interactive", "batch"}:
        raise InvalidRequestError("must be interactive or batch", param="x-sluicegate-priority")


class StreamedBody:
    """A body read piece by piece while the reply already goes out."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = asyncio.Event()
        self._hung_up = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._hung_up = True
                break
            more = message.get("more_body", False)
            if piece := message.get("body", b""):
                yield piece
        self._ended.set()

    async def gone(self) -> None:
        """Returns once the client has hung up, during the body or after it."""
        await self._ended.wait()
        if not self._hung_up:
            await until_gone(self._receive)
