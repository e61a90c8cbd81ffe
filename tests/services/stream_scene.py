"""Streams without HTTP: sources that a test plays by hand, processes that share a database, and one that has its moods."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from app.services.keys import Caller
from app.services.streams.service import Streams
from app.settings import StreamSettings
from app.store.database import Database
from app.store.owners import Owner, leave, renew
from app.upstream.types import Trace
from app.wire.sse import DONE, event
from tests.support import eventually
from tests.wire.event_source import Event, parsed

P = ParamSpec("P")
T = TypeVar("T")
ANNA, BERTA = Caller("anna"), Caller("berta")
CHAT = "/chat/completions"
PATIENCE = 20.0


def chunk(content: str, **more: Any) -> bytes:
    """A chat's event, as it comes from upstream."""
    return event(json.dumps({"choices": [{"index": 0, "delta": {"content": content}}], **more}).encode())


def words(first: int, last: int, size: int = 0) -> bytes:
    """Events that say `1 2 3…`; `size`: bytes more in each."""
    return b"".join(chunk(f"{n} ", pad="x" * size) for n in range(first, last + 1))


class Source:
    """What a stream is made of, played by hand. `closed`: with what it was given back; None: not yet."""

    def __init__(self) -> None:
        self.failed = False
        self.closed: list[BaseException | None] = []
        self.taken = 0
        self.closing: asyncio.Future[None] | None = None  # what its giving back waits for
        self.is_closing = asyncio.Event()
        self.trouble: Exception | None = None  # at its giving back
        self._given: asyncio.Queue[tuple[bytes, bool] | Exception | None] = asyncio.Queue()

    def send(self, *events: bytes) -> None:
        for one in events:
            self._given.put_nowait((one, False))

    def end(self) -> None:
        self.send(DONE)
        self._given.put_nowait(None)

    def fail(self, last: bytes) -> None:
        """Ends in events of which the last one tells of an error."""
        self._given.put_nowait((last, True))
        self._given.put_nowait(None)

    def crash(self, bug: Exception) -> None:
        self._given.put_nowait(bug)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (one := await self._given.get()) is not None:
            if isinstance(one, Exception):
                raise one
            events, self.failed = one
            self.taken += 1
            yield events

    async def aclose(self, failure: BaseException | None = None) -> None:
        self.is_closing.set()
        if self.closing is not None:
            await self.closing
        self.closed.append(failure)
        if self.trouble is not None:
            raise self.trouble


class Moody(Database):
    """A database that can be had, but for some work, some of the time."""

    def __init__(self, inner: Database) -> None:
        self.is_shared = inner.is_shared
        self.tried = 0
        self._inner = inner
        self._moods: dict[str, Callable[[], Exception | None]] = {}
        self._hidden: set[str] = set()

    def refuses(self, work: Callable[..., object], error: Exception, times: int | None = None) -> None:
        """Args: times: None: until `recovers`."""
        count = itertools.count()
        self._moods[work.__name__] = lambda: error if times is None or next(count) < times else None

    def loses_the_answer(self, work: Callable[..., object], error: Exception) -> None:
        """The next time it is done all the same."""
        self.refuses(work, error, 1)
        self._hidden.add(work.__name__)

    def recovers(self) -> None:
        self._moods.clear()

    async def run(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        error = self._moods.get(work.__name__, lambda: None)()
        if error is not None:
            self.tried += 1
            if work.__name__ in self._hidden:
                self._hidden.discard(work.__name__)
                await self._inner.run(work, *args, **kwargs)
            raise error
        return await self._inner.run(work, *args, **kwargs)

    def close(self) -> None:
        """The inner one is somebody else's."""


class Process:
    """One process's streams. `lives` tells the others for how long it is alive."""

    def __init__(self, database: Database, **settings: Any) -> None:
        self.database = database
        self.owner = Owner(database, 60)
        self.streams = Streams(database, self.owner, StreamSettings(**settings))

    async def lives(self, seconds: float) -> None:
        await self.database.run(renew, self.owner.id, seconds)

    async def begin(self, who: Caller = ANNA, *, names: bool = False, url: str = CHAT) -> tuple[str, Source]:
        """Returns: A new stream's id, and what it is made of."""
        made, source = await self.create(who, names=names, url=url)
        return made["id"], source

    async def create(self, who: Caller, *, names: bool = False, url: str = CHAT) -> tuple[dict[str, Any], Source]:
        source = Source()
        return await self.streams.create(who, url, "m", Trace(), lambda: source, names=names), source

    async def read(self, stream_id: str, seen: int = 0) -> list[Event]:
        """Returns: What follows, when the reply is over."""
        async with asyncio.timeout(PATIENCE):
            return parsed(b"".join([piece async for piece in self.pieces(stream_id, seen)]))

    async def pieces(self, stream_id: str, seen: int = 0, hold: float | None = None) -> AsyncIterator[bytes]:
        """As a reply has them."""
        reader = self.streams.reader(await self.streams.find(stream_id, ANNA, None), seen, hold)
        try:
            async for piece in reader:
                yield piece
        finally:
            await reader.aclose()

    async def told(self, stream_id: str) -> dict[str, Any]:
        return await self.streams.snapshot(await self.streams.find(stream_id, ANNA, None))

    async def cancel(self, stream_id: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE):
            return await self.streams.cancel(await self.streams.find(stream_id, ANNA, None))

    async def idle(self) -> None:
        """Returns once nothing runs here, and all ends are written."""
        await eventually(lambda: not self.streams.snapshot_all()["running"], PATIENCE)


@contextlib.asynccontextmanager
async def process(database: Database, **settings: Any) -> AsyncIterator[Process]:
    """A process that is alive for a minute, or until the end of the block."""
    one = Process(database, **settings)
    await one.lives(60)
    await one.streams.start()
    try:
        yield one
    finally:
        async with asyncio.timeout(PATIENCE):
            await one.streams.aclose()
        await database.run(leave, one.owner.id)


def text_of(events: list[Event]) -> str:
    """What a chat's events say."""
    told = [json.loads(one.data) for one in events if one.name == "message"]
    return "".join(one["choices"][0]["delta"]["content"] for one in told)


def said(first: int, last: int) -> str:
    return "".join(f"{n} " for n in range(first, last + 1))


def code_of(events: list[Event]) -> str:
    """The code of the error that they end in."""
    *before, last = events
    assert all(one.name not in {"error", "done"} for one in before)
    assert last.name == "error", last
    found: str = json.loads(last.data)["error"]["code"]
    return found


def is_whole(events: list[Event], last: int, seen: int = 0) -> bool:
    """Whether they are all behind `seen`, each once and in order, and the one that says that this was all."""
    numbers = [int(one.id) for one in events]
    return (
        numbers == list(range(seen + 1, last + 2))
        and events[-1].name == "done"
        and text_of(events) == said(seen + 1, last)
    )
