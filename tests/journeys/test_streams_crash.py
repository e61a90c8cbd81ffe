"""Streams through SIGTERM, kill -9, frozen replicas and a database that goes away: what was said stays, no end is silent."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.bench.torture.replicas import Replica, two
from tests.journeys.streams_support import PATIENCE, Client, Upstream, code_of, numbers, text_of, upstream, words
from tests.postgres import Postgres
from tests.support import eventually, free_port

PORT = free_port()
SETTINGS = {
    "OPENAI_BASE_URL": f"http://127.0.0.1:{PORT}/v1",
    "OPENAI_API_KEY": "sk-upstream",
    "SLUICEGATE_DRAIN_TIMEOUT": "1.5",
    "SLUICEGATE_LEASE": "1",
    "SLUICEGATE_UPSTREAMS__OPENAI__FIRST_TOKEN_TIMEOUT": "30",
    "SLUICEGATE_UPSTREAMS__OPENAI__IDLE_TIMEOUT": "30",
}


@pytest.fixture
async def says() -> AsyncIterator[Upstream]:
    async with upstream(PORT) as one:
        yield one


def held(name: str, count: int = 20) -> str:
    """A model whose words come one by one."""
    return f"{name}-words={count}-held=1"


# --- one process ---


async def test_a_drain_lets_streams_end_and_tells_the_others_live_and_in_the_log(
    says: Upstream, tmp_path: Path
) -> None:
    async with Replica(tmp_path, SETTINGS) as replica, Client(replica.root) as client:
        ends, stays, alone = [await client.create(held(name)) for name in ("ends", "stays", "alone")]
        async with client.reading(ends) as first, client.reading(stays) as second:
            for name in ("ends", "stays", "alone"):
                says.allow(held(name), 3)
            await first.reaches(3)
            await second.reaches(3)
            exit_code = asyncio.create_task(replica.end())
            await eventually(lambda: _drains(client))
            refused = await client.http.post("/v1/streams", json={"url": "/v1/responses", "body": {"model": "m"}})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert int(refused.headers["retry-after"]) > 0
            async with client.reading(stays, 1) as back:  # who was cut meanwhile may come back
                says.allow(held("stays"))
                await back.reaches(4)
                assert (await client.told(ends))["status"] == "in_progress"
                says.allow(held("ends"), 20)
                whole = await first.whole()
                assert (text_of(whole), whole[-1].name) == (words(1, 20), "done")
                for reading, seen in ((second, 0), (back, 1)):
                    got = await reading.whole()
                    assert (numbers(got), code_of(got)) == (list(range(seen + 1, 6)), "draining")
        assert await exit_code == 0
        for name in ("stays", "alone"):
            await asyncio.wait_for(says.gone[held(name)].wait(), PATIENCE)
        await replica.start()
        assert await client.read(ends) == whole
        assert await client.read(stays, 1) == got
        told = await client.told(alone)
        assert (told["status"], told["text"], told["error"]["code"]) == ("failed", words(1, 3), "draining")
        assert "Traceback" not in replica.log()


async def _drains(client: Client) -> bool:
    return (await client.http.get("/readyz")).status_code == 503


async def test_a_second_signal_ends_streams_now_and_with_a_word(says: Upstream, tmp_path: Path) -> None:
    patient = {**SETTINGS, "SLUICEGATE_DRAIN_TIMEOUT": "600"}
    async with Replica(tmp_path, patient) as replica, Client(replica.root) as client:
        made = await client.create(held("two"))
        async with client.reading(made) as one:
            says.allow(held("two"), 2)
            await one.reaches(2)
            replica.process.send_signal(signal.SIGTERM)
            await eventually(lambda: _drains(client))
            await asyncio.sleep(1.1)  # a process group's signal may come twice within a second
            exit_code = asyncio.create_task(replica.end())
            assert (numbers(got := await one.whole()), code_of(got)) == ([1, 2, 3], "draining")
        assert await exit_code == 0


async def test_kill_9_keeps_what_was_written_and_the_stream_ends_in_server_lost(says: Upstream, tmp_path: Path) -> None:
    async with Replica(tmp_path, SETTINGS) as replica, Client(replica.root) as client:
        whole = await client.create("whole-words=20")
        await client.ended(whole)
        made = [await client.create(held(f"killed{place}", 500)) for place in range(5)]
        for place in range(5):
            says.allow(held(f"killed{place}", 500), 100)
        async with contextlib.AsyncExitStack() as readers:
            reading = [await readers.enter_async_context(client.reading(one)) for one in made]
            for reader in reading:
                await reader.reaches(100)
            await client.all_written()
            for place in range(5):
                says.allow(held(f"killed{place}", 500), 100)
            await reading[0].reaches(120)  # of these, some may be lost
            await replica.kill()
        await replica.start()
        for stream, one in zip(made, reading, strict=True):
            seen = one.number
            got = await client.read(stream)
            assert code_of(got) == "server_lost"
            kept = len(got) - 1
            assert kept >= 100
            assert numbers(got[:-1]) == list(range(1, kept + 1))
            assert text_of(got) == words(1, kept)
            assert one.events == got[: min(seen, kept)] + one.events[kept:]
            again = await client.read(stream, seen)  # as its reader comes back
            assert (numbers(again[:-1]), code_of(again)) == (list(range(seen + 1, kept + 1)), "server_lost")
            assert await client.read(stream, int(again[-1].id)) == []
            told = await client.told(stream)
            assert (told["status"], told["text"]) == ("failed", words(1, kept))
        assert text_of(await client.read(whole)) == words(1, 20)
        after = await client.create("after-words=3")
        assert text_of(await client.read(after)) == words(1, 3)


# --- two replicas ---


async def test_two_replicas_read_and_cancel_each_others_streams(
    says: Upstream, postgres_server: Postgres, tmp_path: Path
) -> None:
    env = {**SETTINGS, "SLUICEGATE_DATABASE_URL": postgres_server.fresh()}
    async with (
        two(tmp_path, env) as (first, second),
        Client(first.root) as here,
        Client(second.root) as there,
    ):
        # read from the other one while it runs, from any event
        made = await here.create(held("live"))
        async with there.reading(made) as one, here.reading(made) as own:
            for n in range(1, 8):
                says.allow(held("live"))
                await one.reaches(n)
                async with there.reading(made, n - 1) as late:
                    await late.reaches(n)
            assert text_of(one.events) == words(1, 7)
            assert (await there.told(made))["text"] == words(1, 7)
            says.allow(held("live"), 20)
            assert await one.whole() == await own.whole() == await there.read(made)
            assert text_of(one.events) == words(1, 20)
        # cancelled through the other one
        made = await here.create(held("cancelled"))
        says.allow(held("cancelled"), 2)
        async with there.reading(made) as one:
            await one.reaches(2)
            assert (await there.delete(made))["status"] == "cancelling"
            await asyncio.wait_for(says.gone[held("cancelled")].wait(), PATIENCE)
            assert (text_of(got := await one.whole()), code_of(got)) == (words(1, 2), "cancelled")
        assert (await here.told(made))["status"] == (await there.ended(made))["status"] == "cancelled"
        # many over one connection, wherever they run
        mine, other = await here.create("mine-words=3"), await there.create("other-words=4")
        answer = await there.http.get(f"/v1/streams/events?ids={mine['id']},{other['id']}")
        assert answer.text.count("event: done") == 2
        assert "id: 5.6\n" in answer.text
        # one is frozen: the other gives its streams up; what it says when it wakes up is too late
        made = await first_of(here, says, "frozen")
        async with there.reading(made) as one, here.reading(made) as own:
            await one.reaches(2)
            first.halt()
            assert (text_of(got := await one.whole()), code_of(got)) == (words(1, 2), "server_lost")
            says.allow(held("frozen"), 5)
            first.go_on()
            assert code_of(await own.whole()) == "server_lost"
            await asyncio.wait_for(says.gone[held("frozen")].wait(), PATIENCE)
        assert await there.read(made) == got
        after = await here.create("after-words=3")
        assert text_of(await there.read(after)) == words(1, 3)
        # one is killed
        made = await first_of(here, says, "killed")
        async with there.reading(made) as one:
            await one.reaches(2)
            await first.kill()
            assert (text_of(got := await one.whole()), code_of(got)) == (words(1, 2), "server_lost")
            assert (await there.told(made))["error"]["code"] == "server_lost"
        assert "Traceback" not in first.log() + second.log()


async def first_of(client: Client, says: Upstream, name: str) -> dict[str, str]:
    """Returns: A stream that has said two words of many."""
    made: dict[str, str] = await client.create(held(name))
    says.allow(held(name), 2)
    return made


async def test_a_database_that_goes_away_disturbs_no_reader_and_loses_nothing(
    says: Upstream, lonely_postgres: Postgres, tmp_path: Path
) -> None:
    env = {**SETTINGS, "SLUICEGATE_DATABASE_URL": lonely_postgres.fresh(), "SLUICEGATE_LEASE": "60"}
    async with Replica(tmp_path, env) as replica, Client(replica.root) as client:
        made = await client.create(held("outage"))
        async with client.reading(made) as one:
            says.allow(held("outage"), 3)
            await one.reaches(3)
            await client.all_written()
            await asyncio.to_thread(lonely_postgres.stop)
            says.allow(held("outage"), 7)
            await one.reaches(10)
            refused = await client.http.post("/v1/streams", json={"url": "/v1/responses", "body": {"model": "m"}})
            assert refused.status_code == 503
            assert (await client.status())["unlogged_bytes"] > 0
            says.allow(held("outage"), 20)
            whole = await one.whole()
            assert text_of(whole) == words(1, 20)
            await asyncio.to_thread(lonely_postgres.start)
            await client.all_written()
        assert await client.read(made) == whole
        assert (await client.ended(made))["status"] == "completed"
        assert await replica.end() == 0
