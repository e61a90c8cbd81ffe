"""The way to the database: its schema is the code's, a transaction is whole or nothing, an outage is told and heals."""

import asyncio
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from app.errors import StorageError, StorageFullError
from app.store import database as module
from app.store.database import Database, StorageInUseError
from app.store.migrations import HEAD
from app.store.tables import metadata, owners
from tests.postgres import PASSWORD, Postgres
from tests.support import eventually


def add(connection: Connection, name: str) -> None:
    connection.execute(insert(owners).values(id=name, until=0))


def names(connection: Connection) -> list[str]:
    return list(connection.execute(select(owners.c.id).order_by(owners.c.id)).scalars())


# The schema


async def test_the_migrations_make_exactly_the_tables_of_the_code(database: Database) -> None:
    def differences(connection: Connection) -> Any:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)

    assert await database.run(differences) == []


async def test_a_database_is_opened_again_with_all_that_is_in_it(storage: str | None, tmp_path: Path) -> None:
    for name in ("a", "b"):
        database = Database(storage, tmp_path)
        await database.run(add, name)
        database.close()
    database = Database(storage, tmp_path)
    assert await database.run(names) == ["a", "b"]
    database.close()


async def test_a_database_of_a_newer_version_is_left_alone(storage: str | None, tmp_path: Path) -> None:
    database = Database(storage, tmp_path)
    await database.run(lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    database.close()
    with pytest.raises(StorageError, match=f"newer version of this service .schema 9999, here {HEAD}"):
        Database(storage, tmp_path)


def test_replicas_that_start_together_migrate_once(postgres_server: Postgres, tmp_path: Path) -> None:
    url = postgres_server.fresh()
    opened: list[Database] = []
    threads = [threading.Thread(target=lambda: opened.append(Database(url, tmp_path))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 6
    for database in opened:
        assert database.run_here(names) == []
        database.close()


# Transactions


async def test_what_fails_leaves_nothing(database: Database) -> None:
    def fails(connection: Connection, error: Exception) -> None:
        add(connection, "half")
        raise error

    with pytest.raises(ZeroDivisionError):
        await database.run(fails, ZeroDivisionError())
    assert await database.run(names) == []
    await database.run(add, "whole")
    assert await database.run(names) == ["whole"]


async def test_a_bug_is_not_taken_for_an_outage(database: Database) -> None:
    await database.run(add, "a")
    with pytest.raises(IntegrityError):
        await database.run(add, "a")
    for wrong in ("SELECT * FROM nowhere", "SELECT nothing FROM owners", "no SQL"):
        with pytest.raises(DBAPIError):
            await database.run(lambda connection, wrong=wrong: connection.execute(text(wrong)))  # type: ignore[misc]
    assert await database.run(names) == ["a"]


async def test_a_bugs_trace_tells_nothing_of_the_data(database: Database) -> None:
    await database.run(add, "a prompt")
    with pytest.raises(IntegrityError) as caught:
        await database.run(lambda connection: connection.execute(insert(owners).values(id="a prompt", until=77.125)))
    assert "77.125" not in str(caught.value)


async def test_transactions_side_by_side_lose_nothing(database: Database) -> None:
    def count(connection: Connection) -> None:
        connection.execute(update(owners).values(until=owners.c.until + 1))

    await database.run(add, "a")
    await asyncio.gather(*[database.run(count) for _ in range(100)])
    total = select(func.sum(owners.c.until))
    assert await database.run(lambda connection: connection.execute(total).scalar_one()) == 100


async def test_two_that_block_each_other_both_get_their_turn(postgres_server: Postgres, tmp_path: Path) -> None:
    database = Database(postgres_server.fresh(), tmp_path)
    both_began = threading.Barrier(2)
    tries: list[str] = []

    def touch(connection: Connection, first: str, second: str) -> None:
        is_new = first not in tries
        tries.append(first)
        for name in (first, second):
            connection.execute(update(owners).where(owners.c.id == name).values(until=owners.c.until + 1))
            if is_new and name == first:
                both_began.wait(20)

    for name in ("a", "b"):
        await database.run(add, name)
    await asyncio.gather(database.run(touch, "a", "b"), database.run(touch, "b", "a"))
    assert len(tries) == 3
    total = select(func.sum(owners.c.until))
    assert await database.run(lambda connection: connection.execute(total).scalar_one()) == 4
    database.close()


async def test_a_caller_who_is_cancelled_leaves_the_transaction_whole(database: Database) -> None:
    began, go_on = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        add(connection, "a")
        began.set()
        go_on.wait(20)
        add(connection, "b")

    task = asyncio.create_task(database.run(slow))
    await eventually(began.is_set)
    task.cancel()
    await asyncio.wait({task})
    go_on.set()

    async def is_written() -> bool:
        return await database.run(names) == ["a", "b"]

    await eventually(is_written)


async def test_a_database_that_was_closed_says_so(database: Database) -> None:
    database.close()
    with pytest.raises(StorageError, match="closed"):
        await database.run(names)


# SQLite


def test_a_folder_is_one_processs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.1)
    program = (
        "import sys, pathlib; from app.store.database import Database as D; d = D(None, pathlib.Path(sys.argv[1])); "
    )
    program += "print('open', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    with pytest.raises(StorageInUseError, match="in use by another process"):
        Database(None, tmp_path)
    other.kill()
    other.communicate()
    Database(None, tmp_path).close()


async def test_a_predecessor_that_is_just_ending_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=waits.append))
    first = Database(None, tmp_path)
    opening = asyncio.create_task(asyncio.to_thread(Database, None, tmp_path))
    await eventually(lambda: bool(waits))
    first.close()
    (await opening).close()


async def test_a_full_disk_is_told_apart_and_heals(tmp_path: Path) -> None:
    database = Database(None, tmp_path)

    def limit(connection: Connection, pages: int) -> None:
        connection.execute(text(f"PRAGMA max_page_count = {pages}"))

    def add_many(connection: Connection) -> None:
        for place in range(1000):
            add(connection, "b" * 60 + str(place))

    await database.run(add, "a")
    await database.run(limit, 1)  # it takes what there is for the least
    with pytest.raises(StorageFullError) as caught:
        await database.run(add_many)
    assert (caught.value.status, caught.value.code) == (507, "storage_full")
    assert await database.run(names) == ["a"]
    await database.run(limit, 1_000_000)
    await database.run(add, "b")
    assert await database.run(names) == ["a", "b"]
    database.close()


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "sluicegate.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="file is not a database"):
        Database(None, tmp_path)


def test_a_folder_with_signs_of_an_address_in_its_name_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a?b#c%20d"
    Database(None, folder).close()
    assert (folder / "sluicegate.db").is_file()


def test_a_killed_processs_transactions_are_whole_or_nothing(tmp_path: Path) -> None:
    program = """if True:
        import sys, pathlib
        from sqlalchemy import text
        from app.store.database import Database
        database = Database(None, pathlib.Path(sys.argv[1]))
        def two(connection, place):
            for half in "ab":
                connection.execute(text(f"INSERT INTO owners VALUES ('{place}{half}', 0)"))
        for place in range(10**6):
            database.run_here(two, place)
            print(place, flush=True)
    """
    writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    while int(writer.stdout.readline()) < 50:
        pass
    writer.kill()
    told = [int(line) for line in writer.communicate()[0].split()]
    database = Database(None, tmp_path)
    found = database.run_here(names)
    database.close()
    assert len(found) % 2 == 0
    assert {f"{place}{half}" for place in range(max(told, default=50)) for half in "ab"} <= set(found)
    with sqlite3.connect(tmp_path / "sluicegate.db") as plain:
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# PostgreSQL


async def test_an_outage_is_told_and_heals(
    lonely_postgres: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(lonely_postgres.fresh(), tmp_path)
    await asyncio.gather(*[database.run(names) for _ in range(20)])
    await asyncio.to_thread(lonely_postgres.stop)
    with caplog.at_level(logging.WARNING, logger="sluicegate"):
        for _ in range(3):
            with pytest.raises(StorageError) as caught:
                await database.run(names)
            assert (caught.value.status, caught.value.code) == (503, "storage_unavailable")
        await asyncio.to_thread(lonely_postgres.start)
        await asyncio.gather(*[database.run(names) for _ in range(20)])
    told = [record.getMessage() for record in caplog.records if "the database" in record.getMessage()]
    assert len(told) == 2
    assert told[1] == "the database: works again"
    database.close()


async def test_a_restart_between_two_calls_is_not_noticed(lonely_postgres: Postgres, tmp_path: Path) -> None:
    database = Database(lonely_postgres.fresh(), tmp_path)
    await asyncio.gather(*[database.run(add, str(place)) for place in range(20)])
    await asyncio.to_thread(lonely_postgres.stop)
    await asyncio.to_thread(lonely_postgres.start)
    assert len(await database.run(names)) == 20
    database.close()


async def test_one_that_is_cut_off_in_the_middle_is_undone(postgres_server: Postgres, tmp_path: Path) -> None:
    database = Database(postgres_server.fresh(), tmp_path)

    def cut_off(connection: Connection) -> None:
        add(connection, "a")
        own = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        postgres_server.execute(f"SELECT pg_terminate_backend({own})")
        add(connection, "b")

    with pytest.raises(StorageError):
        await database.run(cut_off)
    assert await database.run(names) == []
    database.close()


async def test_a_lock_or_a_statement_that_takes_too_long_ends(
    postgres_server: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(postgres_server.fresh(), tmp_path)

    def timeouts(connection: Connection) -> list[str]:
        return [connection.execute(text(f"SHOW {name}")).scalar_one() for name in ("lock_timeout", "statement_timeout")]

    def too_slow(connection: Connection) -> None:
        connection.execute(text("SET LOCAL statement_timeout = 50"))
        connection.execute(text("SELECT pg_sleep(30)"))

    assert await database.run(timeouts) == ["10s", "1min"]
    with pytest.raises(StorageError):
        await database.run(too_slow)
    assert "statement timeout" in caplog.text
    assert await database.run(timeouts) == ["10s", "1min"]
    database.close()


async def test_an_addresss_own_options_are_kept(postgres_server: Postgres, tmp_path: Path) -> None:
    url = postgres_server.fresh()
    database = Database(f"{url}&options=-c%20work_mem%3D5MB&connect_timeout=3", tmp_path)
    assert await database.run(lambda connection: connection.execute(text("SHOW work_mem")).scalar_one()) == "5MB"
    assert database._engine.url.query["connect_timeout"] == "3"
    assert database._engine.url.query["keepalives_idle"] == "10"
    database.close()


def test_a_password_opens_and_never_shows(
    postgres_server: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres_server.fresh(PASSWORD)
    Database(url, tmp_path).close()
    wrong = [
        url.replace(PASSWORD, f"not-{PASSWORD}"),
        url.replace(PASSWORD, f"half@{PASSWORD}"),
        f"postgresql://guarded:{PASSWORD}@127.0.0.1:1/x",
        f"postgresql://guarded:{PASSWORD}@127.0.0.1:port/x",
        f"postgresql://guarded:{PASSWORD}@nowhere.invalid/x",
        url.replace("/fresh", "/no-such-fresh"),
        f"{url}&no_such_option={PASSWORD}",
        url.replace("/fresh", f"/{PASSWORD}"),  # a driver's message may quote what it was given
    ]
    for address in wrong:
        with pytest.raises(StorageError) as caught:
            Database(address, tmp_path)
        assert "\n" not in caught.value.message
        chain: BaseException | None = caught.value
        while chain is not None:  # all that a trace would show
            assert PASSWORD not in f"{chain}{chain!r}"
            chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    assert PASSWORD not in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_the_address_is_said(postgres_server: Postgres, tmp_path: Path) -> None:
    url = postgres_server.fresh(PASSWORD)
    for address, reason in (
        (url.replace(PASSWORD, "wrong"), "password authentication failed"),
        (url.replace("/fresh", "/no-such-fresh"), "does not exist"),
        ("postgresql://u@127.0.0.1:1/x", "refused"),
        ("postgresql://u:a@b@127.0.0.1/x", "percent-encoded"),
    ):
        with pytest.raises(StorageError, match=reason):
            Database(address, tmp_path)
