"""The log of streams, on both databases: what is repeated or late writes nothing twice, and nobody's end is forgotten."""

import asyncio
import contextlib
import json
import random

import pytest
from sqlalchemy import Connection, func, select, update

from app.store import stream_log, stream_sweep, streams
from app.store.database import Database
from app.store.owners import renew
from app.store.stream_log import End, Page, Record
from app.store.tables import shards as shard_table
from app.store.tables import stream_log as log_table
from app.store.tables import streams as table
from app.wire.sse import payloads
from app.wire.streams import ending, numbered

TTL = 60.0
DEAD = -1.0  # seconds of a lease


async def opened(database: Database, owner: str = "one", lease: float = 60) -> int:
    """Returns: A shard of this process."""
    await database.run(renew, owner, lease)
    return await database.run(streams.open_shard, owner)


async def created(database: Database, name: str, shard: int, start: int = 1, ttl: float = TTL) -> int:
    """Returns: A running stream's number."""
    new = streams.New(name, "anna", "", b"t" * 32, "/chat/completions", "m")
    return (await database.run(streams.create, new, shard, start, ttl)).number


def events(first: int, last: int, name: str = "") -> bytes:
    """Events with these numbers, as they are written down."""
    sent = b"".join(b'data: {"of":"%b","n":%d}\n\n' % (name.encode(), n) for n in range(first, last + 1))
    return numbered(sent, first - 1, names=False)[0]


def end(number: int, shard: int, stop: int, last: int, **fields: object) -> End:
    usual = {"status": "completed", "error": None, "timing": {"total_ms": 1.5}, "ttl": TTL}
    return End(number, shard, stop, last, **{**usual, **fields})  # type: ignore[arg-type]


async def append(database: Database, records: list[Record], ends: list[End] | None = None) -> set[int]:
    return await database.run(stream_log.append, records, ends or [])


async def row(database: Database, name: str) -> streams.Stream | None:
    return await database.run(streams.find, name)


async def found(database: Database, name: str) -> streams.Stream:
    one = await row(database, name)
    assert one is not None
    return one


async def pages(database: Database, number: int, position: int = 1, seen: int = 0, most: int = 1 << 20) -> list[Page]:
    """As a reader goes through the log."""
    read = []
    while True:
        page = await database.run(stream_log.read, number, position, seen, most)
        assert page.position >= position - 1
        read.append(page)
        position = page.position + 1
        if not page.more:
            return read


def joined(read: list[Page]) -> bytes:
    return b"".join(part for page in read for _, part in page.parts)


def running(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).where(table.c.status == streams.RUNS)).scalar_one())


def logged(connection: Connection) -> list[tuple[int, int]]:
    """Shard and position of every record there is."""
    found = select(log_table.c.shard, log_table.c.position).order_by(log_table.c.shard, log_table.c.position)
    return [(shard, position) for shard, position in connection.execute(found)]


def known_shards(connection: Connection) -> set[int]:
    return set(connection.scalars(select(shard_table.c.number)))


def ages(connection: Connection, name: str, seconds: float) -> None:
    changed = {"expires_at": table.c.expires_at - seconds}
    connection.execute(update(table).where(table.c.id == name).values(changed))


# --- writing and reading ---


async def test_each_stream_of_a_shard_reads_its_own_events_and_no_neighbours_wherever_it_goes_on(
    database: Database,
) -> None:
    draw = random.Random(5)
    shard, other = await opened(database), await opened(database)
    names = ["a", "b", "c"]
    numbers = {name: await created(database, name, shard, start=1) for name in names}
    late = await created(database, "late", shard, start=150)
    stranger = await created(database, "stranger", other)
    last = dict.fromkeys(names, 0)
    places: dict[str, list[tuple[int, int]]] = {name: [] for name in names}  # after this event, at this position
    records = []
    for position in range(1, 161):
        parts = []
        for name in draw.sample(names, draw.randint(1, 3)):
            more = draw.randint(1, 3)
            places[name].append((last[name], position))
            parts.append((numbers[name], last[name] + more, events(last[name] + 1, last[name] + more, name)))
            last[name] += more
        if position >= 150:
            parts.append((late, position - 149, events(position - 149, position - 149, "late")))
        records.append(Record(shard, position, parts))
    mine = Record(other, 1, [(stranger, 2, events(1, 2, "stranger"))])
    assert await append(database, [*records, mine]) == set()
    for name in names:
        for seen, position in [(0, 1), (0, 0), *draw.sample(places[name], 12), (last[name], 160), (last[name], 161)]:
            for most in (1, 3000, 1 << 20):
                read = await pages(database, numbers[name], position, seen, most)
                got = [json.loads(data)["n"] for data in payloads(joined(read))]
                assert got[-(last[name] - seen) :] == list(range(seen + 1, last[name] + 1))
                assert all(reached > seen for page in read for reached, _ in page.parts)
                assert {json.loads(data)["of"] for data in payloads(joined(read))} <= {name}
                assert len(read) > 1 or most > 1 or position > 90
    assert joined(await pages(database, late)) == events(1, 11, "late")
    assert joined(await pages(database, stranger)) == events(1, 2, "stranger")


async def test_a_commit_that_is_repeated_writes_once(database: Database) -> None:
    shard = await opened(database)
    number = await created(database, "a", shard)
    for _ in range(3):  # the answer to the first was lost, and to the second
        records = [Record(shard, place, [(number, place, events(place, place))]) for place in (1, 2)]
        assert await append(database, records, [end(number, shard, 2, 2)]) == set()
    assert joined(await pages(database, number)) == events(1, 2)
    stream = await found(database, "a")
    assert (stream.status, stream.events, stream.stop, stream.error) == ("completed", 2, 2, None)
    assert stream.timing == {"total_ms": 1.5}
    assert stream.ended_at >= stream.created_at


async def test_an_end_that_is_repeated_does_not_make_a_stream_live_longer(database: Database) -> None:
    shard = await opened(database)
    number = await created(database, "a", shard)
    await append(database, [], [end(number, shard, 0, 0, ttl=30.0)])
    before = await found(database, "a")
    await append(database, [], [end(number, shard, 0, 0, status="failed", ttl=90.0)])
    assert await found(database, "a") == before


async def test_what_follows_a_streams_end_in_its_shard_is_not_read_for_it(database: Database) -> None:
    shard = await opened(database)
    number, neighbour = await created(database, "a", shard), await created(database, "b", shard)
    await append(database, [Record(shard, 1, [(number, 1, events(1, 1))])], [end(number, shard, 1, 1)])
    await append(database, [Record(shard, n, [(neighbour, n - 1, events(n - 1, n - 1))]) for n in range(2, 300)])
    (page,) = await pages(database, number, most=1)
    assert (page.position, joined([page])) == (1, events(1, 1))


async def test_a_stream_that_is_gone_has_no_page(database: Database) -> None:
    assert await database.run(stream_log.read, 99, 1, 0, 1000) == Page(None, [], 1, more=False)


# --- whose it is ---


async def test_a_closed_shard_takes_nothing_and_the_others_take_theirs(database: Database) -> None:
    dead, shard = await opened(database, "gone", DEAD), await opened(database)
    lost, number = await created(database, "lost", dead), await created(database, "a", shard)
    assert await append(database, [Record(dead, 1, [(lost, 1, events(1, 1))])]) == set()  # nobody has closed it yet
    assert await database.run(streams.close_dead, TTL) == 1
    records = [Record(dead, 2, [(lost, 2, events(2, 2))]), Record(shard, 1, [(number, 1, events(1, 1))])]
    for _ in range(2):
        ends = [end(lost, dead, 2, 2), end(number, shard, 1, 1)]
        assert await append(database, records, ends) == {dead}
    assert joined(await pages(database, lost)) == events(1, 1)
    assert joined(await pages(database, number)) == events(1, 1)
    assert (await found(database, "lost")).status == "failed"
    assert (await found(database, "a")).status == "completed"


async def test_the_streams_of_a_process_that_died_fail_and_no_others(database: Database) -> None:
    dead, empty, shard = [await opened(database, name) for name in ("gone", "gone", "one")]
    numbers = {name: await created(database, name, dead, start) for name, start in (("a", 1), ("done", 1), ("b", 3))}
    await created(database, "silent", empty, 5)
    other = await created(database, "other", shard)
    await append(
        database,
        [
            Record(dead, 1, [(numbers["a"], 2, events(1, 2)), (numbers["done"], 1, events(1, 1))]),
            Record(dead, 2, [(numbers["a"], 3, events(3, 3))]),
            Record(shard, 1, [(other, 1, events(1, 1))]),
        ],
        [end(numbers["done"], dead, 2, 1)],
    )
    assert await database.run(streams.close_dead, TTL) == 0
    await database.run(renew, "gone", DEAD)
    assert await database.run(streams.close_dead, TTL) == 3
    assert await database.run(streams.close_dead, TTL) == 0
    for name, stop in (("a", 2), ("b", 2), ("silent", 4)):
        stream = await found(database, name)
        assert (stream.status, stream.events, stream.stop) == ("failed", None, stop)
        assert json.loads(stream.error)["error"]["code"] == "server_lost"
        assert 0 < stream.expires_at - stream.ended_at <= TTL + 1
        ending(1, stream.error.encode())
    assert joined(await pages(database, numbers["a"])) == events(1, 3)
    assert (await found(database, "done")).status == "completed"
    assert (await found(database, "other")).status == streams.RUNS
    await append(database, [Record(shard, 2, [(other, 2, events(2, 2))])])
    assert joined(await pages(database, other)) == events(1, 2)


async def test_of_all_that_find_a_process_dead_one_closes_its_shards(database: Database) -> None:
    shards = [await opened(database, "gone", DEAD) for _ in range(4)]
    for place in range(12):
        await created(database, f"s{place}", shards[place % 4])
    closed = await asyncio.gather(*(database.run(streams.close_dead, TTL) for _ in range(6)))
    assert sorted(closed) == [0, 0, 0, 0, 0, 12]


async def test_a_stream_that_is_made_while_its_shard_is_closed_does_not_run_for_ever(database: Database) -> None:
    async def make(name: str, shard: int) -> None:
        with contextlib.suppress(Exception):  # to be refused is as good as to be ended
            await created(database, name, shard)

    for turn in range(10):
        shard = await opened(database, "gone", DEAD)
        making = (make(f"s{turn}-{place}", shard) for place in range(5))
        await asyncio.gather(database.run(streams.close_dead, TTL), *making, make(f"t{turn}", shard))
        await make(f"late{turn}", shard)
        await database.run(streams.close_dead, TTL)
        assert await database.run(running) == 0


async def test_a_commit_and_a_closing_at_once_agree_on_where_the_stream_ends(database: Database) -> None:
    for turn in range(10):
        shard = await opened(database, "gone", DEAD)
        number = await created(database, f"s{turn}", shard)
        record = Record(shard, 1, [(number, 1, events(1, 1))])
        lost, _ = await asyncio.gather(append(database, [record]), database.run(streams.close_dead, TTL))
        stream = await found(database, f"s{turn}")
        assert (stream.status, stream.stop) == ("failed", 0 if lost else 1)
        assert joined(await pages(database, number)) == (b"" if lost else events(1, 1))


async def test_only_those_that_run_are_to_be_cancelled_and_only_by_their_holder(database: Database) -> None:
    mine, other = await opened(database), await opened(database, "other")
    numbers = [await created(database, name, shard) for name, shard in (("a", mine), ("b", mine), ("c", other))]
    await append(database, [], [end(numbers[1], mine, 0, 0)])
    for number in numbers:
        await database.run(streams.cancel, number)
    assert await database.run(streams.to_cancel, [mine]) == [numbers[0]]
    assert set(await database.run(streams.to_cancel, [mine, other])) == {numbers[0], numbers[2]}
    assert await database.run(streams.to_cancel, []) == []
    assert [(await found(database, name)).cancelling for name in "abc"] == [True, False, True]


# --- what goes ---


async def test_a_stream_is_found_until_its_time_is_over_and_as_long_as_it_runs(database: Database) -> None:
    shard = await opened(database)
    assert await row(database, "none") is None
    number = await created(database, "a", shard)
    await database.run(ages, "a", TTL + 1)
    assert (await found(database, "a")).number == number
    await append(database, [], [end(number, shard, 0, 0)])
    assert (await found(database, "a")).status == "completed"
    await database.run(ages, "a", TTL + 1)
    assert await row(database, "a") is None


async def ended(database: Database, name: str, shard: int, position: int) -> int:
    """A stream of one event, which stands at this position."""
    number = await created(database, name, shard, position)
    record = Record(shard, position, [(number, 1, events(1, 1))])
    await append(database, [record], [end(number, shard, position, 1)])
    return number


async def test_what_is_too_old_goes_with_its_part_of_the_log_and_nothing_else(database: Database) -> None:
    shard, other = await opened(database), await opened(database)
    numbers = {name: await ended(database, name, shard, place) for place, name in enumerate("abc", 1)}
    runs = await created(database, "runs", other)
    await append(database, [Record(other, 1, [(runs, 1, events(1, 1))])])
    for name in ("b", "runs"):
        await database.run(ages, name, TTL + 1)
    assert await database.run(stream_sweep.sweep, 100, 1 << 30) == 1
    assert (await pages(database, numbers["b"]))[0].row is None
    for number in (numbers["a"], numbers["c"], runs):
        assert joined(await pages(database, number)) == events(1, 1)
    await database.run(ages, "a", TTL + 1)
    assert await database.run(stream_sweep.sweep, 100, 1 << 30) == 1
    assert await database.run(logged) == [(shard, 3), (other, 1)]
    assert await database.run(known_shards) == {shard, other}
    assert await database.run(stream_sweep.sweep, 100, 1 << 30) == 0


async def test_of_too_many_those_go_that_would_have_gone_first_and_none_that_runs(database: Database) -> None:
    shard = await opened(database)
    runs = [await created(database, f"runs{place}", shard) for place in range(3)]
    for place in range(1, 6):
        await ended(database, f"s{place}", shard, place)
        await database.run(ages, f"s{place}", 50 - 10 * place)  # s5 is the newest already: all the more so
    assert await database.run(stream_sweep.sweep, 5, 1 << 30) == 3
    left = [name for place in range(1, 6) if await row(database, name := f"s{place}")]
    assert left == ["s4", "s5"]
    assert await database.run(stream_sweep.sweep, 0, 1 << 30) == 2
    assert await database.run(stream_sweep.sweep, 0, 1 << 30) == 0
    assert await database.run(running) == len(runs)


async def test_of_too_many_bytes_the_oldest_go_until_it_is_less(database: Database) -> None:
    shard = await opened(database)
    runs = await created(database, "runs", shard, 33)
    for place in range(1, 33):
        await ended(database, f"s{place}", shard, place)
        await database.run(ages, f"s{place}", 50 - place)
    await append(database, [Record(shard, 33, [(runs, 1, events(1, 1))])])
    whole = await database.run(stream_sweep._logged)
    went = 0
    for _ in range(32):
        went += await database.run(stream_sweep.sweep, 100, whole // 2)
    assert 16 <= went <= 20
    assert await database.run(stream_sweep._logged) <= whole // 2
    left = [place for place in range(1, 33) if await row(database, f"s{place}")]
    assert left == list(range(went + 1, 33))
    assert joined(await pages(database, runs)) == events(1, 1)
    for _ in range(32):
        await database.run(stream_sweep.sweep, 100, 0)
    assert joined(await pages(database, runs)) == events(1, 1)
    assert await database.run(logged) == [(shard, 33)]


async def test_closed_shards_go_with_their_last_stream(database: Database) -> None:
    dead, shard = await opened(database, "gone", DEAD), await opened(database)
    number = await created(database, "a", dead)
    await append(database, [Record(dead, 1, [(number, 1, events(1, 1))])])
    await ended(database, "b", shard, 1)
    await database.run(streams.close_dead, TTL)
    await database.run(ages, "b", TTL + 1)
    await database.run(stream_sweep.sweep, 100, 1 << 30)
    assert await database.run(known_shards) == {dead, shard}
    await database.run(ages, "a", TTL + 1)
    await database.run(stream_sweep.sweep, 100, 1 << 30)
    assert await database.run(known_shards) == {shard}
    assert await database.run(logged) == []
    assert await append(database, [Record(dead, 2, [(number, 2, events(2, 2))])]) == {dead}


async def test_a_page_of_them_goes_at_a_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_sweep, "PAGE", 4)
    shard = await opened(database)
    for place in range(1, 11):
        await ended(database, f"s{place}", shard, place)
        await database.run(ages, f"s{place}", TTL + 1)
    assert [await database.run(stream_sweep.sweep, 100, 1 << 30) for _ in range(4)] == [4, 4, 2, 0]
    assert await database.run(logged) == []


async def test_what_no_database_could_keep_is_no_trouble_to_either(database: Database) -> None:
    """PostgreSQL's texts hold no NUL."""
    shard = await opened(database)
    number = await created(database, "a", shard)
    data = numbered(b'data: {"x":"\\u0000"}\n\n', 0, names=False)[0]
    error = '{"error":{"message":"\\u0000"}}'
    await append(
        database, [Record(shard, 1, [(number, 1, data)])], [end(number, shard, 1, 1, status="failed", error=error)]
    )
    assert joined(await pages(database, number)) == data
    assert (await found(database, "a")).error == error
