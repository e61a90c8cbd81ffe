"""Output files: whole, by whoever writes them, and never replaced by somebody who comes too late."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, delete

from app.services.batches.finishing import Outputs, finish
from app.services.files import Files
from app.store import batches, commits, ledger
from app.store.blobs import Folder
from app.store.database import Database
from app.store.owners import NotOursError
from app.store.tables import results
from tests.store.ledgers import LINES, add_batch, alive, batch_row, change, made, set_batch

DONE = 3  # of the lines


@pytest.fixture
def files(database: Database, tmp_path: Path) -> Iterator[Files]:
    blobs = Folder(tmp_path / "blobs")
    yield Files(database, blobs)
    blobs.close()


async def running(database: Database, files: Files) -> int:
    """Returns: The number of a batch whose first lines have results."""
    async with files.making("me", "in.jsonl", "batch") as making:
        for place in range(LINES):
            head = b'{"custom_id":"r%d","method":"POST","url":"/v1/embeddings",' % place
            await making.write(head + b'"body":{"model":"m","input":"x"}}\n')
    number = await database.run(add_batch, size=making.file.bytes, input_file_id=making.file.id)
    await database.run(alive, "a", "b")
    (claim,) = await database.run(ledger.claim, "a", 1, ())
    lines = [f'"custom_id":"r{place}","response":{{}},"error":null}}' for place in range(DONE)]
    await database.run(commits.commit, "a", [change(claim, *range(DONE))], made(claim, *lines))
    await database.run(ledger.release, "a", [(number, 0)])
    return number


async def cancelled(database: Database, files: Files) -> dict[str, Any]:
    """Such a batch, taken by `a` to be ended."""
    number = await running(database, files)
    await database.run(set_batch, number, status="cancelling", ending="cancelled")
    row = await database.run(batches.next_job, "a")
    assert row is not None
    return row


async def nothing_new() -> None:
    raise AssertionError("the batch is over: nothing is waited for")


async def written(database: Database, files: Files, row: dict[str, Any]) -> Outputs:
    async def news() -> None:
        raise AssertionError("it has ended: there is nothing to wait for")

    return await finish(database, files, "a", row, news)


async def contents(files: Files, outputs: Outputs) -> list[bytes]:
    """The bytes of both files."""
    ids = (outputs.output, outputs.error)
    return [await files.read(id_, 0, 1_000_000) for id_ in ids if id_ is not None]


def end(connection: Connection, number: int, outputs: Outputs) -> bool:
    told = {"output": outputs.output, "error": outputs.error, "lost": outputs.lost}
    return batches.ended(connection, "a", number, at=7, **told)  # type: ignore[arg-type]


async def test_lines_without_a_result_stand_in_the_error_file(database: Database, files: Files) -> None:
    row = await cancelled(database, files)
    outputs = await finish(database, files, "a", row, nothing_new)
    good, bad = await contents(files, outputs)
    assert (good.count(b"\n"), bad.count(b"\n"), outputs.lost) == (DONE, LINES - DONE, LINES - DONE)
    assert all(b'"custom_id":"r%d"' % place in bad for place in range(DONE, LINES))


async def test_who_comes_too_late_replaces_nothing(database: Database, files: Files) -> None:
    """It was stopped for so long that another has ended the batch, and its results are being cleared away."""
    row = await cancelled(database, files)
    outputs = await finish(database, files, "a", row, nothing_new)
    before = await contents(files, outputs)
    assert await database.run(end, row["number"], outputs)
    for _ in range(3):
        await database.run(batches.purge)
        with pytest.raises(NotOursError):
            await finish(database, files, "a", row, nothing_new)
        assert await contents(files, outputs) == before
    assert (await database.run(batch_row, row["number"]))["status"] == "cancelled"


async def test_writing_the_files_once_more_gives_the_same_files(database: Database, files: Files) -> None:
    row = await cancelled(database, files)
    first = await finish(database, files, "a", row, nothing_new)
    before = await contents(files, first)
    assert await finish(database, files, "a", row, nothing_new) == first
    assert await contents(files, first) == before
    page = await files.page("me", after=None, limit=10)
    assert len(page.files) == 3


async def test_results_are_written_while_the_batch_runs(database: Database, files: Files) -> None:
    number = await running(database, files)
    assert await database.run(batches.next_job, "a") is None, "so few lines are not worth following"
    await database.run(set_batch, number, runner="a")
    row = await database.run(batch_row, number)
    looks = 0

    async def end_it() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            await database.run(set_batch, number, status="cancelling", ending="cancelled")

    outputs = await finish(database, files, "a", row, end_it)
    good, bad = await contents(files, outputs)
    assert (good.count(b"\n"), bad.count(b"\n"), looks) == (DONE, LINES - DONE, 2)


async def test_results_that_are_being_cleared_away_are_not_written_with_a_gap(database: Database, files: Files) -> None:
    """The first go first: who was stopped between two reads would miss those in the middle, and see the last."""
    row = await cancelled(database, files)
    await database.run(lambda connection: connection.execute(delete(results).where(results.c.position == 1)))
    with pytest.raises(NotOursError):
        await written(database, files, row)
    assert len((await files.page("me", after=None, limit=10)).files) == 1
