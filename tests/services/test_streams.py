"""A stream runs on whatever its readers, the storage or other processes do: it loses nothing, and its end is told."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Iterable

import pytest
from sqlalchemy import Connection, func, select, update

from app.errors import (
    DrainingError,
    NotFoundError,
    QueueFullError,
    StorageError,
    StorageFullError,
)
from app.services.keys import Caller
from app.services.streams import journal, reader, service
from app.services.streams.reader import Merged
from app.services.streams.run import Run
from app.store import stream_log, stream_sweep, streams, stubborn
from app.store.database import Database
from app.store.tables import stream_log as stream_log_table
from app.store.tables import streams as table
from app.wire import stream_text
from app.wire.sse import event
from app.wire.stream_text import Said
from tests.services.stream_scene import (
    ANNA,
    BERTA,
    PATIENCE,
    Moody,
    Process,
    chunk,
    code_of,
    is_whole,
    process,
    said,
    text_of,
    words,
)
from tests.support import eventually
from tests.wire.event_source import Event, parsed

NO_ROOM = StorageFullError("there is no room left for the database")
AWAY = StorageError("the database cannot be reached")
FAT = 20_000  # bytes of an event: a dozen of them are a stream's share of memory


@pytest.fixture
async def here(database: Database) -> AsyncIterator[Process]:
    async with process(database) as one:
        yield one


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is away is asked again soon."""
    monkeypatch.setattr(stubborn, "_AGAIN_SECONDS", 0.01)


@pytest.fixture
def cramped(monkeypatch: pytest.MonkeyPatch) -> None:
    """All streams in one shard, little memory for each, and small pages of the log."""
    monkeypatch.setattr(journal, "_MOST_SHARDS", 1)
    monkeypatch.setattr(journal, "_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(stream_log, "_ROWS", 2)
    monkeypatch.setattr(journal, "_LEAST_SHARE", 2000)
    monkeypatch.setattr(journal, "_MOST_SHARE", 2000)
    monkeypatch.setattr(stream_log, "_LOOKED_AT_BYTES", 4000)
    monkeypatch.setattr(reader, "_PIECE", 1000)


def only_run(one: Process) -> Run:
    (run,) = one.streams._runs.values()
    return run


def row_of(connection: Connection, stream_id: str) -> streams.Stream | None:
    return connection.execute(select(table).where(table.c.id == stream_id)).first()


def still_running(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).where(table.c.status == streams.RUNS)).scalar_one())


def expire(connection: Connection, stream_id: str) -> None:
    connection.execute(update(table).where(table.c.id == stream_id).values(expires_at=0))


async def whole(one: Process, last: int = 6) -> str:
    """Returns: The id of a stream that has ended, and of which all is written."""
    stream_id, source = await one.begin()
    source.send(words(1, last))
    source.end()
    await one.idle()
    return stream_id


# --- readers ---


async def test_a_stream_runs_without_a_reader_and_is_read_from_any_of_its_events_afterwards(here: Process) -> None:
    stream_id = await whole(here)
    for seen in range(7):
        assert is_whole(await here.read(stream_id, seen), 6, seen)
    assert await here.read(stream_id, 7) == []
    row = await here.streams.find(stream_id, ANNA, None)
    assert [here.streams.has_more(row, seen) for seen in (0, 6, 7, 8)] == [True, True, False, False]


async def test_readers_that_come_at_any_time_from_anywhere_get_all_that_follows(here: Process) -> None:
    stream_id, source = await here.begin()
    readers: list[tuple[int, asyncio.Task[list[Event]]]] = []
    for n in range(1, 13):
        source.send(words(n, n))
        await asyncio.sleep(0.01 if n % 4 == 0 else 0)
        readers += [(seen, asyncio.create_task(here.read(stream_id, seen))) for seen in (0, n // 2, n)]
    source.end()
    for seen, task in readers:
        assert is_whole(await task, 12, seen), seen
    await here.idle()
    assert source.closed == [None]


async def test_live_and_stored_are_the_same_bytes(here: Process) -> None:
    stream_id, source = await here.begin(names=True)
    source.send(event(b'{"a":1}', "chunk"), b": ping\n\n", event(b'{"a":\n}'.replace(b"\n", b"\ndata: "), "result"))
    live = asyncio.create_task(_bytes(here, stream_id))
    source.end()
    written = await live
    await here.idle()
    assert await _bytes(here, stream_id) == written
    assert [(one.id, one.name) for one in parsed(written)] == [("1", "chunk"), ("2", "result"), ("3", "done")]


async def _bytes(one: Process, stream_id: str) -> bytes:
    return b"".join([piece async for piece in one.pieces(stream_id)])


async def test_a_reader_that_lags_takes_bigger_pieces_and_not_more_of_them(here: Process) -> None:
    stream_id, source = await here.begin()
    pieces = here.pieces(stream_id)
    await anext(pieces)
    source.send(words(1, 1))
    await anext(pieces)
    for n in range(2, 402):
        source.send(words(n, n))
    await eventually(lambda: source.taken == 401)
    piece = await anext(pieces)
    assert len(parsed(piece)) == 400
    await pieces.aclose()  # type: ignore[attr-defined]


async def test_a_reader_falls_out_of_memory_into_the_log_and_comes_back_to_what_is_live(here: Process) -> None:
    stream_id, source = await here.begin()
    pieces = here.pieces(stream_id)
    await anext(pieces)
    for n in range(1, 101):
        source.send(words(n, n, FAT))
    await eventually(lambda: source.taken == 100)
    await eventually(lambda: here.streams.snapshot_all()["unlogged_bytes"] == 0)
    channel = only_run(here).channel
    assert channel._kept_bytes < 20 * FAT
    assert channel.after(0, 1) is None
    got = b""
    while len(parsed(got)) < 100:
        got += await anext(pieces)
    source.send(words(101, 101, FAT))
    got += await anext(pieces)
    source.end()
    async for piece in pieces:
        got += piece
    assert is_whole(parsed(got), 101)


async def test_neighbours_in_the_log_keep_nobody_from_reading_on(here: Process, cramped: None) -> None:
    """A reader of a slow stream passes over pages that hold nothing of it."""
    slow, source = await here.begin()
    neighbours = [await here.begin() for _ in range(3)]
    for n in range(1, 31):
        source.send(words(n, n, 100))
        for _, other in neighbours:
            other.send(words(4 * n - 3, 4 * n, 500))
        await eventually(lambda n=n: source.taken == n and here.streams.snapshot_all()["unlogged_bytes"] == 0)  # type: ignore[misc]
    live = {seen: asyncio.create_task(here.read(slow, seen)) for seen in (0, 1, 7, 13, 29, 30)}
    await eventually(
        lambda: all(len(run.channel._readers) == 6 for run in here.streams._runs.values() if run.channel.last == 30)
    )
    source.end()
    for seen, task in live.items():
        assert is_whole(await task, 30, seen)
    for stream_id, other in neighbours:
        other.end()
        assert is_whole(await here.read(stream_id), 120)


async def test_a_slow_reader_of_a_stream_that_was_swept_away_is_let_go(here: Process, cramped: None) -> None:
    stream_id, source = await here.begin()
    pieces = here.pieces(stream_id)
    await anext(pieces)
    for n in range(1, 31):
        source.send(words(n, n, 500))
    source.end()
    await here.idle()
    await here.database.run(expire, stream_id)
    await here.database.run(stream_sweep.sweep, 100, 1 << 30)
    async with asyncio.timeout(5):
        assert [piece async for piece in pieces] == []
    with pytest.raises(NotFoundError):
        await here.read(stream_id)


async def test_a_hold_ends_the_reply_and_not_the_stream(here: Process, database: Database) -> None:
    stream_id, source = await here.begin()
    source.send(words(1, 2))
    async with process(database) as other:
        for one in (here, other):
            async with asyncio.timeout(PATIENCE):
                got = parsed(b"".join([piece async for piece in one.pieces(stream_id, 0, 0.15)]))
            assert text_of(got) == said(1, 2)
    source.send(words(3, 3))
    source.end()
    assert is_whole(await here.read(stream_id, 2), 3, 2)


async def test_whoever_claims_to_have_what_was_never_sent_is_given_nothing_and_kept_no_longer(here: Process) -> None:
    stream_id, source = await here.begin()
    reading = asyncio.create_task(here.read(stream_id, 1000))
    source.send(words(1, 3))
    source.end()
    assert await reading == []
    await here.idle()
    assert await here.read(stream_id, 1000) == []


# --- many over one connection ---


async def merged(one: Process, ids: list[str], positions: list[int]) -> list[Event]:
    rows = [await one.streams.find(stream_id, ANNA, None) for stream_id in ids]
    readers = [one.streams.reader(row, seen) for row, seen in zip(rows, positions, strict=True)]
    source = Merged(list(zip(ids, readers, strict=True)))
    try:
        async with asyncio.timeout(PATIENCE):
            return parsed(b"".join([piece async for piece in source]))
    finally:
        await source.aclose()


async def test_many_streams_in_one_reply_each_in_its_order_and_an_id_that_tells_of_all(here: Process) -> None:
    given = [await here.begin() for _ in range(3)]
    ids = [stream_id for stream_id, _ in given]
    reading = asyncio.create_task(merged(here, ids, [0, 0, 0]))
    for n in range(1, 9):
        for place, (_, source) in enumerate(given):
            if n % (place + 1) == 0:
                source.send(words(n, n))
        await asyncio.sleep(0.005)
    for _, source in given:
        source.end()
    got = await reading
    positions = [0, 0, 0]
    for one in got:
        told = json.loads(one.data)
        place = ids.index(told["stream"])
        positions[place] += 1
        assert told["seq"] == positions[place]
        assert one.id == ".".join(map(str, positions))
    assert positions == [9, 5, 3]
    assert await merged(here, ids, positions) == []
    for cut in (0, 5, len(got) - 1):
        seen = [int(part) for part in got[cut].id.split(".")]
        rest = [json.loads(one.data) for one in await merged(here, ids, seen)]
        expected = [json.loads(one.data) for one in got]
        for stream_id, known in zip(ids, seen, strict=True):
            mine = [one for one in expected if one["stream"] == stream_id and one["seq"] > known]
            assert [one for one in rest if one["stream"] == stream_id] == mine


async def test_a_stream_that_cannot_be_read_ends_the_reply_of_all(database: Database) -> None:
    moody = Moody(database)
    async with process(moody) as one:
        ids = [await whole(one), (await one.begin())[0]]
        moody.refuses(stream_log.read, AWAY)
        with pytest.raises(StorageError):
            await merged(one, ids, [0, 0])
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("reader of")]
        moody.recovers()


# --- the storage ---


@pytest.mark.parametrize("trouble", [AWAY, NO_ROOM], ids=["away", "full"])
async def test_a_storage_in_trouble_delays_what_is_written_and_neither_loses_nor_piles_up_anything(
    database: Database, impatient: None, trouble: StorageError
) -> None:
    moody = Moody(database)
    async with process(moody) as one:
        stream_id, source = await one.begin()
        reading = asyncio.create_task(one.read(stream_id))
        source.send(words(1, 1))
        await eventually(lambda: only_run(one).channel.unlogged == 0 and source.taken == 1)
        moody.refuses(stream_log.append, trouble)
        for n in range(2, 101):
            source.send(words(n, n, FAT))
        pieces = one.pieces(stream_id)
        got = b""
        async with asyncio.timeout(PATIENCE):
            while len(parsed(got)) < 10:  # who reads live does not notice
                got += await anext(pieces)
        await eventually(lambda: moody.tried > 5)
        channel = only_run(one).channel
        assert source.taken < 40
        assert channel._kept_bytes < 40 * FAT
        moody.recovers()
        source.end()
        await one.idle()
        assert is_whole(await reading, 100)
        assert is_whole(parsed(got + b"".join([piece async for piece in pieces])), 100)
        assert is_whole(await one.read(stream_id), 100)
        assert await database.run(still_running) == 0


async def test_an_answer_of_the_storage_that_is_lost_writes_nothing_twice(database: Database, impatient: None) -> None:
    moody = Moody(database)
    async with process(moody) as one:
        stream_id, source = await one.begin()
        for n in range(1, 6):
            moody.loses_the_answer(stream_log.append, AWAY)
            source.send(words(n, n))
            await eventually(lambda n=n: source.taken == n and only_run(one).channel.unlogged == 0)  # type: ignore[misc]
        moody.loses_the_answer(stream_log.append, AWAY)
        source.end()
        await one.idle()
        assert is_whole(await one.read(stream_id), 5)


async def test_an_end_that_is_not_written_yet_is_an_end(database: Database, impatient: None) -> None:
    moody = Moody(database)
    async with process(moody) as one:
        stream_id, source = await one.begin()
        moody.refuses(stream_log.append, AWAY)
        source.send(words(1, 2))
        source.end()
        assert is_whole(await one.read(stream_id), 2)
        row = await one.streams.find(stream_id, ANNA, None)
        assert [one.streams.has_more(row, seen) for seen in (0, 2, 3)] == [True, True, False]
        assert (await one.told(stream_id))["status"] == "completed"
        moody.recovers()


async def test_a_stream_whose_making_nobody_knows_the_end_of_does_not_run_for_ever(database: Database) -> None:
    moody = Moody(database)
    async with process(moody) as one:
        moody.loses_the_answer(streams.create, AWAY)
        with pytest.raises(StorageError):
            await one.begin()
        await whole(one)
        await eventually(lambda: _nobody_runs(database), 5)


async def _nobody_runs(database: Database) -> bool:
    return await database.run(still_running) == 0


async def test_a_bug_while_streams_are_written_ends_them_in_an_error_and_harms_no_later_one(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    moody = Moody(database)
    async with process(moody) as one:
        running, source = await one.begin()
        source.send(words(1, 3))
        await eventually(lambda: only_run(one).channel.unlogged == 0 and source.taken == 1)
        live = asyncio.create_task(one.read(running))
        ending, last = await one.begin()
        moody.refuses(stream_log.append, RuntimeError("a bug"), 1)
        source.send(words(4, 4))
        last.send(words(1, 1))
        last.end()
        await eventually(lambda: moody.tried == 1)
        source.send(words(5, 5))
        await one.idle()
        got = await live
        assert text_of(got).startswith(said(1, 4))
        code_of(got)
        assert source.closed
        for stream_id in (running, ending):
            assert (await one.told(stream_id))["status"] == "failed"
            assert (await one.read(stream_id))[-1].name == "error"
        assert text_of(await one.read(running)).startswith(said(1, 3))  # that was written before
        assert await database.run(still_running) == 0
        assert is_whole(await one.read(await whole(one)), 6)
    assert "bug while streams are written" in caplog.text


async def test_what_one_upstream_says_stops_no_other_stream(here: Process) -> None:
    """PostgreSQL's texts are UTF-8 without NUL; an upstream's error page need not be."""
    for last in (
        event(b'{"error":{"message":"\xff\xfe"}}'),
        event(b'{"error":{"message":"\\u0000 \\ud83d"}}'),
        event(b'{"type":"error","message":"\\ud83d"}', "error"),
        event(b'{"error":"a text"}'),
        event(b'{"error":{"code":' + b"9" * 5000 + b"}}"),
    ):
        stream_id, source = await here.begin()
        source.send(words(1, 1))
        source.fail(words(2, 2) + last)
        await here.idle()
        got = await here.read(stream_id)
        assert (text_of(got), got[-1].name) == (said(1, 2), "error")
        told = await here.told(stream_id)
        assert (told["status"], told["text"]) == ("failed", said(1, 2))
        json.dumps(told, ensure_ascii=False).encode()
        assert is_whole(await here.read(await whole(here)), 6)


# --- the end ---


async def test_an_end_in_an_error_is_told_live_and_afterwards(here: Process) -> None:
    stream_id, source = await here.begin()
    live = asyncio.create_task(here.read(stream_id))
    source.fail(words(1, 2) + event(b'{"error":{"message":"no","type":"t","param":null,"code":"c"}}'))
    await here.idle()
    for got in (await live, await here.read(stream_id)):
        assert (text_of(got), code_of(got)) == (said(1, 2), "c")
    told = await here.told(stream_id)
    assert (told["status"], told["events"], told["error"]["code"]) == ("failed", 2, "c")
    assert await here.read(stream_id, 3) == []


async def test_a_bug_in_a_source_is_an_error_and_is_logged(here: Process, caplog: pytest.LogCaptureFixture) -> None:
    stream_id, source = await here.begin()
    source.send(words(1, 1))
    source.crash(RuntimeError("a secret of the upstream's"))
    await here.idle()
    got = await here.read(stream_id)
    assert json.loads(got[-1].data)["error"]["type"] == "internal_error"
    assert "secret" not in got[-1].data
    assert "bug in a stream" in caplog.text
    assert isinstance(source.closed[0], RuntimeError)


async def test_a_source_that_cannot_be_given_back_ends_its_stream_all_the_same(here: Process) -> None:
    stream_id, source = await here.begin()
    source.trouble = RuntimeError("a bug")
    source.send(words(1, 2))
    source.end()
    await here.idle()
    got = await here.read(stream_id)
    assert (text_of(got), len(got)) == (said(1, 2), 3)


@pytest.mark.parametrize(
    "phase", ["before the first event", "in the middle", "without room", "closing", "closing badly"]
)
async def test_cancelled_at_any_moment_it_ends_upstream_and_says_so(
    database: Database, impatient: None, phase: str
) -> None:
    moody = Moody(database)
    async with process(moody) as one:
        stream_id, source = await one.begin()
        live = asyncio.create_task(one.read(stream_id))
        if phase == "in the middle":
            source.send(words(1, 3))
            await eventually(lambda: source.taken == 1)
        if phase == "without room":
            moody.refuses(stream_log.append, AWAY)
            for n in range(1, 101):
                source.send(words(n, n, FAT))
            await eventually(lambda: moody.tried > 3)
        if phase.startswith("closing"):
            source.closing = asyncio.get_running_loop().create_future()
            last = b'{"error":{"code":"c","message":"no"}}'
            source.end() if phase == "closing" else source.fail(event(last))
            await source.is_closing.wait()
        cancelling = [asyncio.create_task(one.cancel(stream_id)) for _ in range(2)]
        await asyncio.sleep(0.02)
        if source.closing is not None:
            source.closing.set_result(None)
        for task in cancelling:
            assert (await task)["status"] in {"cancelled", "completed", "failed"}
        moody.recovers()
        await one.idle()
        assert len(source.closed) == 1
        ended = {"closing": "completed"}.get(phase, "cancelled")
        told = await one.told(stream_id)
        assert told["status"] in {ended, "failed" if phase == "closing badly" else ended}
        for got in (await live, await one.read(stream_id)):
            assert [int(each.id) for each in got] == list(range(1, told["events"] + 2))
            assert got[-1].name == ("done" if ended == "completed" else "error")
        if ended == "cancelled" and phase != "closing badly":
            assert code_of(got) == "cancelled"
            assert isinstance(source.closed[0], asyncio.CancelledError)


async def test_what_has_ended_stays_as_it_is_when_it_is_cancelled(here: Process) -> None:
    stream_id = await whole(here)
    assert (await here.cancel(stream_id))["status"] == "completed"
    assert is_whole(await here.read(stream_id), 6)
    other, source = await here.begin()
    assert (await here.cancel(other))["status"] == "cancelled"
    await here.idle()
    assert (await here.cancel(other))["status"] == "cancelled"
    assert len(source.closed) == 1


async def test_too_many_are_refused_until_one_has_ended(database: Database) -> None:
    async with process(database, max_running=2) as one:
        (_, first), _ = await one.begin(), await one.begin()
        with pytest.raises(QueueFullError) as caught:
            await one.begin()
        assert caught.value.retry_after == 1
        first.end()
        await eventually(lambda: one.streams.snapshot_all()["running"] == 1)
        made = await asyncio.gather(*(one.begin() for _ in range(5)), return_exceptions=True)
        assert [type(each) for each in made].count(tuple) == 1
        assert one.streams.snapshot_all()["running"] == 2


async def test_a_place_that_could_not_be_used_is_free_again(database: Database) -> None:
    moody = Moody(database)
    async with process(moody, max_running=1) as one:
        for work in (streams.open_shard, streams.create):
            moody.refuses(work, AWAY)
            with pytest.raises(StorageError):
                await one.begin()
            moody.recovers()
        assert is_whole(await one.read(await whole(one)), 6)


async def test_a_stream_that_says_too_much_ends_in_an_error_and_keeps_what_it_said(database: Database) -> None:
    async with process(database, max_stream_bytes=5 * FAT) as one:
        stream_id, source = await one.begin()
        for n in range(1, 20):
            source.send(words(n, n, FAT))
        await one.idle()
        got = await one.read(stream_id)
        assert (code_of(got), text_of(got)) == ("stream_too_large", said(1, 5))
        assert source.taken == 5
        assert len(source.closed) == 1


async def test_all_are_ended_with_a_word_when_the_server_must_go(database: Database) -> None:
    async with process(database) as one:
        begun = [await one.begin() for _ in range(20)]
        live = [asyncio.create_task(one.read(stream_id)) for stream_id, _ in begun]
        for place, (_, source) in enumerate(begun):
            source.send(words(1, 1 + place % 3))
        await eventually(lambda: all(source.taken for _, source in begun))
        assert not one.streams._idle.is_set()
        await one.streams.stop_all(DrainingError("the server is shutting down"))
        await one.idle()
        assert {code_of(await each) for each in live} == {"draining"}
        assert await database.run(still_running) == 0
    async with process(database) as other:
        for place, (stream_id, source) in enumerate(begun):
            got = await other.read(stream_id)
            assert (code_of(got), text_of(got)) == ("draining", said(1, 1 + place % 3))
            assert len(source.closed) == 1


async def test_a_process_that_ends_writes_how_its_streams_ended(database: Database) -> None:
    async with process(database) as one:
        stream_id, source = await one.begin()
        source.send(words(1, 2))
        await eventually(lambda: source.taken == 1)
    async with process(database) as other:
        got = await other.read(stream_id)
        assert (code_of(got), text_of(got)) == ("draining", said(1, 2))


async def test_a_process_ends_though_the_storage_is_away(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_LAST_SECONDS", 0.2)
    moody = Moody(database)
    async with process(moody) as one:
        _, source = await one.begin()
        moody.refuses(stream_log.append, AWAY)
        source.send(words(1, 2))
        await eventually(lambda: moody.tried > 0)


# --- other processes ---


async def test_another_process_reads_it_while_it_runs_and_to_its_end(here: Process, database: Database) -> None:
    async with process(database) as other:
        stream_id, source = await here.begin()
        reading = {seen: asyncio.create_task(other.read(stream_id, seen)) for seen in (0, 2, 5)}
        for n in range(1, 7):
            source.send(words(n, n))
            await asyncio.sleep(0.03)
        source.end()
        for seen, task in reading.items():
            assert is_whole(await task, 6, seen)


async def test_a_process_that_died_leaves_streams_that_end_in_an_error(database: Database) -> None:
    async with process(database) as dead:
        stream_id, source = await dead.begin()
        source.send(words(1, 3))
        await eventually(lambda: source.taken == 1 and only_run(dead).channel.unlogged == 0)
        async with process(database) as other:
            elsewhere = asyncio.create_task(other.read(stream_id))
            await dead.lives(-1)
            await database.run(streams.close_dead, 60)
            got = await elsewhere
            assert (text_of(got), code_of(got)) == (said(1, 3), "server_lost")
            for seen in (0, 2, 3, 4, 50):  # more may have been read from the memory of the dead than was written
                got = await other.read(stream_id, seen)
                assert (text_of(got), code_of(got)) == (said(seen + 1, 3), "server_lost")
            assert await other.read(stream_id, int(got[-1].id)) == []
            told = await other.told(stream_id)
            assert (told["status"], told["text"], told["error"]["code"]) == ("failed", said(1, 3), "server_lost")
            # and then it wakes up: what it goes on with is not to be had, and its own readers are told so
            here = asyncio.create_task(dead.read(stream_id))
            await dead.lives(60)
            source.send(words(4, 4))
            assert code_of(await here) == "server_lost"
            await dead.idle()
            assert source.closed
            assert text_of(await other.read(stream_id)) == said(1, 3)
            assert is_whole(await other.read(await whole(dead)), 6)


async def test_a_stream_that_is_made_by_a_process_that_was_given_up_runs_or_is_refused_but_is_not_lost(
    database: Database,
) -> None:
    async with process(database) as frozen, process(database) as other:
        await whole(frozen)
        await frozen.lives(-1)
        await database.run(streams.close_dead, 60)
        await frozen.lives(60)
        with contextlib.suppress(StorageError):
            stream_id, source = await frozen.begin()
            source.send(words(1, 6))
            source.end()
            assert (await frozen.read(stream_id))[-1].name in {"done", "error"}
            await frozen.idle()
            assert (await other.read(stream_id))[-1].name in {"done", "error"}
        assert await database.run(still_running) == 0
        assert is_whole(await other.read(await whole(frozen)), 6)


async def test_a_lost_shard_leaves_no_reader_behind(database: Database, cramped: None, impatient: None) -> None:
    """What was not written and has left memory is nowhere: who lags is told so, and does not look for it for ever."""
    async with process(database) as frozen:
        stream_id, source = await frozen.begin()
        pieces = frozen.pieces(stream_id)
        await anext(pieces)
        source.send(words(1, 1))
        await eventually(lambda: source.taken == 1 and only_run(frozen).channel.unlogged == 0)
        await frozen.lives(-1)
        await database.run(streams.close_dead, 60)
        await frozen.lives(60)
        for n in range(2, 32):
            source.send(words(n, n, 500))
        await frozen.idle()
        async with asyncio.timeout(5):
            got = parsed(b"".join([piece async for piece in pieces]))
        again = await frozen.read(stream_id, int(got[-1].id) if got else 0)  # as who is cut off does
        assert code_of(got + again) == "server_lost"
        numbers = [int(one.id) for one in got + again]
        assert numbers == sorted(set(numbers))


async def test_a_shard_that_is_lost_while_a_stream_is_made_in_it_does_not_hang_that_stream(database: Database) -> None:
    moody = Moody(database)
    async with process(moody) as one:
        _, source = await one.begin()
        source.send(words(1, 1))
        inner, made = moody.run, asyncio.Event()

        async def slow(work, *args, **kwargs):  # type: ignore[no-untyped-def]
            done = await inner(work, *args, **kwargs)
            if work is streams.create:
                await made.wait()
            return done

        moody.run = slow  # type: ignore[method-assign]
        journal._MOST_SHARDS, most = 1, journal._MOST_SHARDS
        try:
            making = asyncio.create_task(one.begin())
            await eventually(lambda: _two_run(database))
            await one.lives(-1)
            await database.run(streams.close_dead, 60)
            await one.lives(60)
            source.send(words(2, 2))
            await eventually(lambda: len(source.closed) == 1)
            made.set()
            with contextlib.suppress(StorageError):
                stream_id, late = await making
                for n in range(1, 40):
                    late.send(words(n, n, FAT))
                late.end()
                assert (await one.read(stream_id))[-1].name in {"done", "error"}
            await one.idle()
        finally:
            journal._MOST_SHARDS = most
            made.set()
        assert await database.run(still_running) == 0


async def _two_run(database: Database) -> bool:
    return await database.run(still_running) == 2


async def test_another_process_cancels_it(here: Process, database: Database) -> None:
    if not database.is_shared:
        pytest.skip("one folder, one process")
    async with process(database) as other:
        stream_id, source = await here.begin()
        source.send(words(1, 2))
        elsewhere = asyncio.create_task(other.read(stream_id))
        assert (await other.cancel(stream_id))["status"] == "cancelling"
        assert (await other.told(stream_id))["status"] in {"cancelling", "cancelled"}
        assert code_of(await elsewhere) == "cancelled"
        assert (await other.told(stream_id))["status"] == "cancelled"
        assert len(source.closed) == 1


# --- what is told of it ---


async def test_it_is_found_by_its_owner_its_maker_and_its_token(here: Process) -> None:
    page, other_page = Caller("anna", holder="bt_1"), Caller("anna", holder="bt_2")
    made, _ = await here.create(page)
    keys, _ = await here.create(ANNA)
    for stream, who, token in (
        (made, ANNA, None),
        (made, page, None),
        (made, None, made["token"]),
        (made, BERTA, made["token"]),
        (keys, ANNA, None),
        (keys, None, keys["token"]),
    ):
        assert (await here.streams.find(stream["id"], who, token)).id == stream["id"]
    for stream, who, token in (
        (made, BERTA, None),
        (made, other_page, None),
        (made, None, None),
        (made, None, ""),
        (made, None, keys["token"]),
        (made, None, made["token"] + "x"),
        (keys, page, None),
        (keys, Caller("anna "), None),
    ):
        with pytest.raises(NotFoundError):
            await here.streams.find(stream["id"], who, token)
    row = await here.database.run(row_of, made["id"])
    assert row is not None
    assert made["token"] not in repr(tuple(row))


async def test_a_snapshot_tells_the_text_so_far_and_where_to_go_on(
    here: Process, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(payloads: Iterable[bytes]) -> Said:
        time.sleep(0.01)
        return stream_text.said(payloads)

    monkeypatch.setattr(service, "said", slowly)
    stream_id, source = await here.begin()
    n = 0

    async def go_on() -> None:
        nonlocal n
        while True:  # the next word comes at any moment, also while the snapshot is put together
            n += 1
            source.send(words(n, n))
            await asyncio.sleep(0.001)

    async with process(database) as other:
        writer = asyncio.create_task(go_on())
        for _ in range(10):
            for told in (await here.told(stream_id), await other.told(stream_id)):
                assert (told["status"], told["text"]) == ("in_progress", said(1, told["events"]))
        writer.cancel()
        source.send(chunk("end", usage={"total_tokens": 7}))
        source.end()
        await here.idle()
        for each in (here, other):
            last = await each.told(stream_id)
            assert (last["status"], last["events"], last["usage"]) == ("completed", n + 1, {"total_tokens": 7})
            assert last["text"] == said(1, n) + "end"
            assert last["timing"]["total_ms"] >= last["timing"]["first_event_ms"] >= 0


async def test_a_snapshot_is_whole_though_the_server_drains(here: Process, cramped: None) -> None:
    stream_id, source = await here.begin()
    for n in range(1, 31):
        source.send(words(n, n, 500))
        await eventually(lambda n=n: source.taken == n and here.streams.snapshot_all()["unlogged_bytes"] == 0)  # type: ignore[misc]
    source.end()
    async with asyncio.timeout(PATIENCE):
        await here.streams.idle()
    told = await here.told(stream_id)
    assert (told["status"], told["events"], told["text"]) == ("completed", 30, said(1, 30))


async def test_a_snapshot_of_a_stream_that_is_just_ending_says_so(here: Process) -> None:
    stream_id, source = await here.begin()
    row = await here.streams.find(stream_id, ANNA, None)  # as it is now
    source.send(words(1, 2))
    source.end()
    await here.idle()
    told = await here.streams.snapshot(row)
    assert (told["status"], told["text"], told["events"]) == ("completed", said(1, 2), 2)


async def test_what_is_told_at_the_making_is_what_is_kept(database: Database) -> None:
    async with process(database, ttl=100) as one:
        made, _ = await one.create(ANNA)
        told = await one.told(made["id"])
        for name in ("id", "object", "status", "url", "model", "created_at", "events_url"):
            assert told[name] == made[name]
        assert "token" not in told
        assert made["expires_at"] - made["created_at"] in {99, 100, 101}
        assert (told["text"], told["usage"], told["error"], told["events"]) == ("", None, None, 0)


async def test_what_is_too_old_is_not_there(database: Database) -> None:
    async with process(database) as one:
        stream_id = await whole(one)
        await database.run(expire, stream_id)
        with pytest.raises(NotFoundError):
            await one.read(stream_id)


async def test_streams_that_end_leave_no_task_and_no_memory_behind(here: Process) -> None:
    before = len(asyncio.all_tasks())
    for _ in range(30):
        await whole(here)
        stream_id, _ = await here.begin()
        reading = asyncio.create_task(here.read(stream_id))
        await here.cancel(stream_id)
        await reading
    await here.idle()
    await eventually(lambda: len(asyncio.all_tasks()) == before)
    assert here.streams.snapshot_all() | {"commit_ms": 0} == {
        "running": 0,
        "max_running": 5000,
        "unlogged_bytes": 0,
        "commit_ms": 0,
    }
    assert here.streams._journal._running == 0
    assert all(shard.running == 0 for shard in here.streams._journal._shards.values())


async def test_no_word_of_a_stream_is_in_the_log(
    database: Database, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    moody = Moody(database)
    async with process(moody) as one:
        made, source = await one.create(ANNA)
        source.send(chunk("a secret word"))
        moody.refuses(stream_log.append, RuntimeError("a bug"), 1)
        await one.idle()
    assert "a bug" in caplog.text
    assert "secret" not in caplog.text
    assert made["token"] not in caplog.text


async def test_a_long_stream_does_not_keep_the_log_of_those_that_came_after_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_MOST_SHARDS", 1)
    monkeypatch.setattr(journal, "_SHARD_BYTES", 20_000)
    async with process(database) as one:
        long, endless = await one.begin()
        endless.send(words(1, 1))
        for _ in range(20):
            _, source = await one.begin()
            source.send(words(1, 10, 1000))
            source.end()
            await eventually(lambda: len(one.streams._runs) == 1)
        await database.run(stream_sweep.sweep, 1, 10**9)
        assert await database.run(logged) < 40_000  # of 200,000
        endless.send(words(2, 2))
        endless.end()
        assert is_whole(await one.read(long), 2)


def logged(connection: Connection) -> int:
    return int(connection.execute(select(func.coalesce(func.sum(stream_log_table.c.size), 0))).scalar_one())
