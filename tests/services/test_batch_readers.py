"""Who reads a batch's results while it ends: they leave the ledger for the files, and no reader may notice."""

from contextlib import aclosing
from pathlib import Path

from sqlalchemy import Connection, delete, insert

from app.services.batches.submission import Batches
from app.services.files import Files
from app.settings import BatchSettings
from app.store.blobs import open_blobs
from app.store.database import Database
from app.store.tables import results
from app.wire.batch_results import whole
from tests.store import ledgers

_COUNT = 2000


async def test_a_reader_overtaken_by_the_clearing_goes_on_in_the_files(database: Database, tmp_path: Path) -> None:
    files = Files(database, open_blobs(None, tmp_path / "kept"))
    desk = Batches(database, files, BatchSettings.model_validate({}), None, 60)
    number = await database.run(ledgers.add_batch)
    row = await database.run(ledgers.batch_row, number)
    lines = [b'"custom_id":"%d"}' % at for at in range(1, _COUNT + 1)]
    told = [whole(row["id"], at, line) for at, line in enumerate(lines, 1)]

    def store(connection: Connection) -> None:
        fixed = {"batch": number, "ok": True, "at": 0.0}
        rows = [{**fixed, "position": at, "line": line} for at, line in enumerate(lines, 1)]
        connection.execute(insert(results), rows)

    def clear_half(connection: Connection) -> None:
        connection.execute(delete(results).where(results.c.batch == number, results.c.position <= _COUNT - 100))

    await database.run(store)
    found: list[bytes] = []
    async with aclosing(desk.reading("me", row["id"]).lines(0, follow=False)) as blocks:
        found += (await anext(blocks)).splitlines()
        async with files.making("me", "output.jsonl", "batch_output") as making:
            await making.write(b"\n".join([*told, b""]))
        await database.run(ledgers.set_batch, number, status="completed", output_file_id=making.file.id)
        await database.run(clear_half)
        async for block in blocks:
            found += block.splitlines()
    await files.aclose()
    assert found == told
