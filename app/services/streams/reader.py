"""Who reads a stream: from the memory of the process that runs it, else from the log, on from where he was cut."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable

from app.services.streams.channel import Channel
from app.store import stream_log
from app.store.database import Database
from app.store.stream_log import Page
from app.store.streams import RUNS, Stream
from app.wire.streams import BEYOND, RETRY, beyond, ending, number_of, tagged

_PIECE = 64 * 1024
_POLL_SECONDS = 0.2
_POLLS_A_SECOND = 500


def end_of(row: Stream) -> int | None:
    """Returns: The number of the event that ends a stream; None: it goes on.

    Of one whose server died nobody knows how many events were sent that its log does not have: its end is beyond them.
    """
    if row.status == RUNS:
        return None
    return BEYOND if row.events is None else int(row.events) + 1


class Pacer:
    """How often those who read streams that run elsewhere look for more: all together not too often.

    Attributes: is_over: They are to be read elsewhere, too: this server drains.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._waiting = 0

    async def pause(self, news: "asyncio.Future[None]") -> None:
        """Waits, or until somebody resolves `news`."""
        self._waiting += 1
        try:
            async with asyncio.timeout(max(_POLL_SECONDS, self._waiting / _POLLS_A_SECOND)):
                await news
        except TimeoutError:
            pass
        finally:
            self._waiting -= 1


class Reader:
    """One stream, as the source of a live reply.

    Args:
        pacer: Shared by all readers.
        channel: None: it runs elsewhere, or has ended.
        row: As it stands in the storage.
        seen: The number of the last event that the reader has.
        hold: Seconds after which the reply ends, even if the stream does not.

    Attributes:
        seen: Likewise, brought up to date.
        turn: Had while it has events in hand: readers of one connection share it.
    """

    def __init__(
        self,
        database: Database,
        pacer: Pacer,
        channel: Channel | None,
        row: Stream,
        seen: int,
        hold: float | None = None,
    ) -> None:
        self.seen = seen
        self._database = database
        self._pacer = pacer
        self._channel = channel
        self._row = row
        self._news: asyncio.Future[None] | None = None
        self._is_over = False
        self.turn: contextlib.AbstractAsyncContextManager[object] = contextlib.nullcontext()
        self._alarm = None if hold is None else asyncio.get_running_loop().call_later(hold, self._ring)

    def _ring(self) -> None:
        self._is_over = True
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield RETRY
        async for events in self.pieces():
            yield events

    def pieces(self, *, follow: bool = True) -> AsyncGenerator[bytes, None]:
        """Yields: Events, the one that ends the stream last; nothing, if the reader has that already.

        Args: follow: Wait for what is still to come.
        Raises: StorageError: The log cannot be read.
        """
        return self._stored(follow=follow) if self._channel is None else self._live(self._channel, follow=follow)

    async def _live(self, channel: Channel, *, follow: bool) -> AsyncGenerator[bytes, None]:
        position = None
        while True:
            if channel.last > self.seen:
                async with self.turn:
                    found = channel.after(self.seen, _PIECE)
                    if found is None:
                        page = await self._page(position or channel.position_of(self.seen))
                        position = page.position + 1
                        if not page.parts and not page.more:
                            return  # the log never got it, or has it no more: who asks again is told so
                        for events in self._joined(page.parts):
                            yield events
                        del page  # who waits for more must not hold what has been sent
                    else:
                        position = None
                        self.seen = found[0]
                        yield found[1]
                        del found
            elif channel.end is not None:
                if self.seen == channel.last:
                    yield ending(channel.last + 1, channel.end.error)
                return
            elif not follow:
                return
            else:
                self._news = asyncio.get_running_loop().create_future()
                await channel.more(self._news)
            if self._is_over:
                return

    async def _stored(self, *, follow: bool) -> AsyncGenerator[bytes, None]:
        position = int(self._row.start)
        while True:
            async with self.turn:
                page = await self._page(position)
                position = page.position + 1
                for events in self._joined(page.parts):
                    yield events
                page = page._replace(parts=[])
            if page.row is None:
                return  # swept away meanwhile: who asks again is told so
            if page.more and not self._is_over:
                continue
            end = end_of(page.row)
            if not page.more and end is not None and self.seen < end:
                yield ending(end, None if page.row.error is None else page.row.error.encode())
            if end is not None or self._is_over or self._pacer.is_over or not follow:
                return
            self._news = asyncio.get_running_loop().create_future()
            await self._pacer.pause(self._news)

    async def _page(self, position: int) -> Page:
        return await self._database.run(stream_log.read, self._row.number, position, self.seen, _PIECE)

    def _joined(self, parts: Iterable[tuple[int, bytes]]) -> Iterable[bytes]:
        """Yields: Their events, in pieces of a bounded size."""
        held: list[bytes] = []
        size = 0
        for last, part in parts:
            events = beyond(part, self.seen) if number_of(part) <= self.seen else part
            self.seen = last
            held.append(events)
            size += len(events)
            if size >= _PIECE:
                yield b"".join(held)
                held, size = [], 0
        if held:
            yield b"".join(held)

    async def aclose(self, failure: BaseException | None = None) -> None:  # noqa: ARG002 - a Source's signature
        """Ends the hold."""
        if self._alarm is not None:
            self._alarm.cancel()


class Merged:
    """Several streams over one connection, as the source of a live reply.

    Args: readers: With their streams' ids. A task for each waits for its events; one at a time has some in hand.
    """

    def __init__(self, readers: list[tuple[str, Reader]]) -> None:
        self._readers = readers
        turn = asyncio.Lock()
        for _, reader in readers:
            reader.turn = turn
        self._ready: asyncio.Queue[tuple[int, bytes | BaseException | None]] = asyncio.Queue(1)
        self._pumps: list[asyncio.Task[None]] = []

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield RETRY
        positions = [reader.seen for _, reader in self._readers]
        for place, (stream, reader) in enumerate(self._readers):
            self._pumps.append(asyncio.create_task(self._pump(place, reader), name=f"reader of {stream}"))
        going_on = len(self._pumps)
        while going_on:
            place, found = await self._ready.get()
            if found is None:
                going_on -= 1
            elif isinstance(found, BaseException):
                raise found
            else:  # numbered here and not by the pump: a position must not be told before its event
                yield tagged(found, self._readers[place][0], positions, place)

    async def _pump(self, place: int, reader: Reader) -> None:
        last: BaseException | None = None
        try:
            async for events in reader.pieces():
                await self._ready.put((place, events))
        except Exception as error:  # noqa: BLE001 - it is raised again, where the events are read
            last = error
        await self._ready.put((place, last))

    async def aclose(self, failure: BaseException | None = None) -> None:
        """Ends the tasks."""
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for _, reader in self._readers:
            await reader.aclose(failure)
