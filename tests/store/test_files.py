"""Files as rows and blobs together: what is seen can be read, and what is deleted goes when nobody reads it."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select, update

from app.errors import InvalidRequestError, NotFoundError, StorageError, StorageFullError
from app.services.files import Files, StoredFile
from app.store import files as rows
from app.store import tables
from app.store.blobs import Blobs, open_blobs
from app.store.database import Database
from tests.support import eventually

ME, OTHER = "me", "other"


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[Blobs]:
    opened = open_blobs(None, tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def files(database: Database, blobs: Blobs) -> Files:
    return Files(database, blobs)


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "files").iterdir())


async def make(files: Files, content: bytes = b"x", *, owner: str = ME, purpose: str = "batch") -> StoredFile:
    async with files.making(owner, "a.jsonl", purpose) as making:
        await making.write(content)
    return making.file


def in_batch(connection: Connection, file_id: str, status: str = "in_progress") -> None:
    needed = {"id": f"batch_{file_id}", "owner": ME, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    more = {"created_at": 1, "expires_at": 2, "on_doubt": "retry", "dedupe": False, "pack_embeddings": False}
    connection.execute(insert(tables.batches).values(**needed, **more, input_file_id=file_id, status=status))


def end_batches(connection: Connection) -> None:
    connection.execute(update(tables.batches).values(status="completed"))


def expire(connection: Connection, file_id: str) -> None:
    connection.execute(update(tables.files).where(tables.files.c.id == file_id).values(expires_at=1))


def all_ids(connection: Connection) -> list[str]:
    return list(connection.execute(select(tables.files.c.id).order_by(tables.files.c.number)).scalars())


async def test_a_file_is_there_only_when_it_is_whole(files: Files, database: Database) -> None:
    async with files.making(ME, "a.jsonl", "batch_output", 3600) as making:
        await making.write(b"x" * 300_000)
        assert await database.run(all_ids) == []
    made = making.file
    assert (made.bytes, made.filename, made.purpose) == (300_000, "a.jsonl", "batch_output")
    assert made.expires_at == made.created_at + 3600
    assert await files.get(ME, made.id) == made
    assert await files.read(made.id, 0, 10) == b"x" * 10
    assert b"".join([piece async for piece in await files.content(made)]) == b"x" * 300_000


async def test_what_is_not_finished_leaves_no_trace(files: Files, database: Database, tmp_path: Path) -> None:
    async def fail() -> None:
        async with files.making(ME) as making:
            await making.write(b"x")
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert (await database.run(all_ids), stored(tmp_path)) == ([], [])


async def test_a_file_whose_row_cannot_be_written_leaves_no_bytes(
    files: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> StoredFile:
        raise StorageFullError("full")

    monkeypatch.setattr(rows, "add", full)
    with pytest.raises(StorageFullError):
        await make(files)
    assert stored(tmp_path) == []


async def test_a_caller_who_goes_while_the_row_is_written_leaves_both_or_none(
    files: Files, database: Database, tmp_path: Path
) -> None:
    for turns in range(40):
        task = asyncio.create_task(make(files))
        for _ in range(turns):
            await asyncio.sleep(0.0002)
        task.cancel()
        await asyncio.wait({task})
        assert stored(tmp_path) == sorted(await database.run(all_ids))


async def test_a_file_made_again_under_its_id_replaces_itself(files: Files, database: Database) -> None:
    for content in (b"first", b"second"):
        async with files.making(ME, "out", "batch_output", None, "file-chosen") as making:
            await making.write(content)
    assert await database.run(all_ids) == ["file-chosen"]
    assert (await files.get(ME, "file-chosen")).bytes == 6
    assert await files.read("file-chosen", 0, 10) == b"second"


async def test_a_file_belongs_to_its_owner(files: Files) -> None:
    made = await make(files)
    with pytest.raises(NotFoundError, match="there is no file"):
        await files.get(OTHER, made.id)
    with pytest.raises(NotFoundError):
        await files.delete(OTHER, made.id)
    assert (await files.page(OTHER, after=None, limit=10)).files == []
    with pytest.raises(InvalidRequestError):
        await files.page(OTHER, after=made.id, limit=10)
    assert await files.get(ME, made.id) == made


@pytest.mark.parametrize("id_", ["", "\0", "'", "file-\ud800", "a" * 1000])
async def test_what_can_be_no_id_is_not_found(files: Files, id_: str) -> None:
    with pytest.raises(NotFoundError):
        await files.get(ME, id_)
    with pytest.raises(NotFoundError):
        await files.delete(ME, id_)


async def test_pages_follow_each_other_in_both_orders(files: Files) -> None:
    made = [await make(files, purpose="batch" if number % 2 else "evals") for number in range(7)]
    await make(files, owner=OTHER)
    for descending in (True, False):
        for purpose in (None, "batch"):
            expected = [file for file in made if purpose in {None, file.purpose}][:: -1 if descending else 1]
            for limit in (1, 3, 7, 8):
                found: list[StoredFile] = []
                after, more = None, True
                while more:
                    page = await files.page(ME, after=after, limit=limit, descending=descending, purpose=purpose)
                    assert len(page.files) <= limit
                    found += page.files
                    after, more = found[-1].id, page.has_more
                assert found == expected


async def test_a_page_behind_a_deleted_file_can_be_asked_for(files: Files) -> None:
    made = [(await make(files)).id for _ in range(4)]
    await files.delete(ME, made[2])
    await files.sweep()
    page = await files.page(ME, after=made[2], limit=10)
    assert [file.id for file in page.files] == made[1::-1]


async def test_a_deleted_file_is_gone_with_its_bytes(files: Files, tmp_path: Path) -> None:
    made = await make(files)
    await files.delete(ME, made.id)
    assert stored(tmp_path) == []
    for again in (files.get(ME, made.id), files.delete(ME, made.id)):
        with pytest.raises(NotFoundError):
            await again
    with pytest.raises(StorageError, match="cannot be reached"):
        await files.read(made.id, 0, 1)
    with pytest.raises(StorageError, match="cannot be reached"):
        await files.content(made)


@pytest.mark.parametrize("status", ["validating", "in_progress", "finalizing", "cancelling"])
async def test_a_deleted_file_that_a_batch_reads_goes_after_the_batch(
    files: Files, database: Database, tmp_path: Path, status: str
) -> None:
    made = await make(files)
    await database.run(in_batch, made.id, status)
    await files.delete(ME, made.id)
    await files.sweep()
    with pytest.raises(NotFoundError):
        await files.get(ME, made.id)
    assert await files.read(made.id, 0, 1) == b"x"
    assert [piece async for piece in files.reading(made.id)] == [b"x"]
    await database.run(end_batches)
    await files.sweep()
    assert stored(tmp_path) == []


async def test_an_expired_file_is_not_seen_and_is_swept(files: Files, database: Database, tmp_path: Path) -> None:
    read, unread, kept = [await make(files) for _ in range(3)]
    await database.run(in_batch, read.id)
    for file in (read, unread):
        await database.run(expire, file.id)
        with pytest.raises(NotFoundError):
            await files.get(ME, file.id)
    assert (await files.page(ME, after=None, limit=10)).files == [kept]
    await files.sweep()
    assert stored(tmp_path) == sorted([read.id, kept.id])
    await database.run(end_batches)
    await files.sweep()
    assert stored(tmp_path) == [kept.id]


async def test_the_row_of_a_deleted_file_is_forgotten_after_a_day(files: Files, database: Database) -> None:
    made = await make(files)
    await files.delete(ME, made.id)
    await files.sweep()
    assert await database.run(all_ids) == [made.id]
    await database.run(expire, made.id)
    await files.sweep()
    assert await database.run(all_ids) == []


async def test_more_files_than_are_swept_at_once_are_swept_by_many_at_the_same_time(
    files: Files, database: Database, tmp_path: Path
) -> None:
    made = [await make(files) for _ in range(130)]
    for file in made[1:]:
        await database.run(expire, file.id)
    await asyncio.gather(*(Files(database, open_blobs(None, tmp_path)).sweep() for _ in range(4)))
    assert stored(tmp_path) == [made[0].id]


async def test_bytes_that_cannot_be_deleted_now_are_deleted_by_the_sweep(
    files: Files, blobs: Blobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def fail(_: str) -> None:
        raise StorageError("not now")

    made = await make(files)
    with monkeypatch.context() as broken:
        broken.setattr(blobs, "delete", fail)
        await files.delete(ME, made.id)
        with pytest.raises(NotFoundError):
            await files.get(ME, made.id)
        with pytest.raises(StorageError):
            await files.sweep()
    await files.sweep()
    assert stored(tmp_path) == []


async def test_the_sweeper_sweeps_and_ends(files: Files, database: Database, tmp_path: Path) -> None:
    made = await make(files)
    await database.run(expire, made.id)
    files.start()
    await eventually(lambda: stored(tmp_path) == [])
    await files.aclose()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "files sweep"]


async def test_a_file_that_is_held_is_not_deleted_before_the_transaction_ends(database: Database, files: Files) -> None:
    if not database.is_shared:
        pytest.skip("SQLite has one transaction at a time anyway")
    made = await make(files)
    loop, held, released = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        assert rows.get(connection, ME, made.id, hold=True) == made
        loop.call_soon_threadsafe(held.set)
        assert released.wait(10)
        in_batch(connection, made.id)

    holding = asyncio.create_task(database.run(hold))
    await held.wait()
    deleting = asyncio.create_task(files.delete(ME, made.id))
    done, _ = await asyncio.wait({deleting}, timeout=0.2)
    assert not done
    released.set()
    await holding
    await deleting
    assert await files.read(made.id, 0, 1) == b"x"
