"""Leases: work of the living is theirs, work of the dead is free; on both databases, by the database's clock."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, String, cast, select, text

from app.errors import StorageError
from app.store.clock import now
from app.store.database import Database
from app.store.owners import Owner, is_free, leave, renew
from app.store.tables import owners
from tests.postgres import Postgres
from tests.support import eventually

LEASE = 0.6


@pytest.fixture
def owner(database: Database) -> Iterator[Owner]:
    started = Owner(database, LEASE)
    started.start()
    yield started
    started.stop()


def free(connection: Connection, holder: str | None) -> bool:
    return bool(connection.execute(select(is_free(cast(holder, String)))).scalar_one())


def until(connection: Connection, holder: str) -> float:
    found: float = connection.execute(select(owners.c.until).where(owners.c.id == holder)).scalar_one()
    return found


async def test_what_nobody_or_a_stranger_holds_is_free(database: Database, owner: Owner) -> None:
    assert await database.run(free, None)
    assert await database.run(free, "nobody")


async def test_work_of_the_living_is_not_free_however_long_it_takes(database: Database, owner: Owner) -> None:
    before = await database.run(until, owner.id)

    async def is_renewed() -> bool:
        assert not await database.run(free, owner.id)
        return await database.run(until, owner.id) > before + 2 * LEASE

    await eventually(is_renewed)


async def test_work_of_the_silent_is_free_after_its_lease(database: Database) -> None:
    await database.run(renew, "silent", 0.2)
    assert not await database.run(free, "silent")
    await eventually(lambda: database.run(free, "silent"))
    await database.run(renew, "silent", 60)
    assert not await database.run(free, "silent")


async def test_who_stops_frees_at_once_what_he_held(database: Database) -> None:
    stopping = Owner(database, 3600)
    stopping.start()
    assert not await database.run(free, stopping.id)
    stopping.stop()
    assert await database.run(free, stopping.id)


async def test_a_start_frees_what_a_killed_one_held_only_where_no_other_can_live(database: Database) -> None:
    await database.run(renew, "killed", 3600)
    started = Owner(database, LEASE)
    started.start()
    assert await database.run(free, "killed") is not database.is_shared
    started.stop()


async def test_a_blocked_event_loop_costs_no_lease(database: Database, owner: Owner) -> None:
    before = await database.run(until, owner.id)
    time.sleep(2 * LEASE)
    assert database.run_here(until, owner.id) > before + LEASE
    assert not database.run_here(free, owner.id)


async def test_a_heartbeat_outlives_a_database_without_its_tables(
    database: Database, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE owners RENAME TO away"))

    def mended(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE away RENAME TO owners"))

    await database.run(broken)
    await eventually(lambda: "could not be renewed" in caplog.text)
    await database.run(mended)

    async def is_renewed() -> bool:
        return not await database.run(free, owner.id)

    await eventually(is_renewed)


async def test_who_has_been_gone_for_a_day_is_forgotten(database: Database) -> None:
    await database.run(renew, "long gone", -90_000)
    await database.run(renew, "just gone", -1)
    await database.run(leave, "another")
    assert await database.run(lambda connection: connection.execute(select(owners.c.id)).scalars().all()) == [
        "just gone"
    ]


async def test_the_clock_is_the_time_and_goes_on_within_a_transaction(database: Database) -> None:
    def looked_at_twice(connection: Connection) -> tuple[float, float]:
        first = float(connection.execute(select(now())).scalar_one())
        time.sleep(0.05)
        return first, float(connection.execute(select(now())).scalar_one())

    first, second = await database.run(looked_at_twice)
    assert 0.02 < second - first < 5
    assert abs(first - time.time()) < 5


async def test_an_owners_name_is_its_own_and_fits(database: Database) -> None:
    names = {Owner(database, 1).id for _ in range(10)}
    assert len(names) == 10
    assert all(str(os.getpid()) in name and len(name) <= 64 for name in names)


async def test_a_database_that_comes_back_is_told_at_once_that_the_owner_lives(
    lonely_postgres: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(lonely_postgres.fresh(), tmp_path)
    owner = Owner(database, 1)
    owner.start()
    await asyncio.to_thread(lonely_postgres.stop)
    with pytest.raises(StorageError):
        await database.run(until, owner.id)
    await eventually(lambda: "could not be renewed" in caplog.text)
    await asyncio.to_thread(lonely_postgres.start)

    async def is_renewed() -> bool:
        try:
            return not await database.run(free, owner.id)
        except StorageError:
            return False

    await eventually(is_renewed)
    owner.stop()
    assert await database.run(free, owner.id)
    database.close()


async def test_a_stop_during_an_outage_says_how_long_the_rest_must_wait(
    lonely_postgres: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(lonely_postgres.fresh(), tmp_path)
    owner = Owner(database, 3600)
    owner.start()
    await asyncio.to_thread(lonely_postgres.stop)
    owner.stop()
    assert "free only after 3600 seconds" in caplog.text
    database.close()


async def test_who_is_frozen_within_a_transaction_keeps_its_locks_for_seconds_only(database: Database) -> None:
    if not database.is_shared:
        return  # SQLite has one process, and one transaction at a time
    await database.run(renew, "frozen", 60)
    held, thawed = threading.Event(), threading.Event()

    def freeze(connection: Connection) -> None:
        renew(connection, "frozen", 60)
        held.set()
        thawed.wait(60)
        renew(connection, "frozen", 60)

    frozen = asyncio.create_task(database.run(freeze))
    await eventually(held.is_set)
    await database.run(renew, "frozen", 3600)  # waits for the lock, which goes with the idle session
    thawed.set()
    with pytest.raises(StorageError):
        await frozen
