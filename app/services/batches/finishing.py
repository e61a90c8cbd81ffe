"""A batch's results become an output file and an error file: while it runs, so that little is left to do at its end.

They are written in the order in which they were stored, and their ids tell it: the two can be read as one again. Their
file ids are made of the batch's, so that a worker that dies here leaves nothing behind which the next does not replace.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from app.errors import FileContentMissingError
from app.services.files import Files, Making
from app.store import batches, ledger, results
from app.store.database import Database
from app.store.owners import NotOursError
from app.store.results import Result
from app.wire.batch_lines import LineError, read_line
from app.wire.batch_results import error_line, parts
from app.wire.bits import Bits
from app.wire.line_scanner import split

_CHUNK_BYTES = 4 * 1024**2
_FIRST_ROWS, _MOST_ROWS = 64, 2048
_ENDINGS = {
    "expired": ("batch_expired", "this request could not be done within the batch's completion window"),
    "cancelled": ("batch_cancelled", "the batch was cancelled before this request had a result"),
}


@dataclass(frozen=True, slots=True)
class Outputs:
    """File ids, where there is a file. Attributes: lost: Lines that never got a result."""

    output: str | None
    error: str | None
    lost: int


async def stored(database: Database, number: int, after: int) -> AsyncGenerator[list[Result], None]:
    """Yields: Results behind position `after`, in chunks of a few MiB, as far as there are any now.

    The next chunk is read while the last one is being used.
    """
    limit = _FIRST_ROWS
    reading = asyncio.create_task(database.run(results.read, number, after, limit), name="batch results")
    try:
        while rows := await reading:
            size = sum(len(row.line) for row in rows)
            limit = max(1, min(_MOST_ROWS, 4 * limit, _CHUNK_BYTES * len(rows) // max(size, 1)))
            after = rows[-1].position
            reading = asyncio.create_task(database.run(results.read, number, after, limit), name="batch results")
            yield rows
    finally:
        reading.cancel()
        await asyncio.wait({reading})


async def finish(
    database: Database, files: Files, me: str, batch: Mapping[str, Any], news: Callable[[], Awaitable[object]]
) -> Outputs:
    """Writes both files: along with the batch as far as it has come, and to the end when it has ended.

    Args: news: Awaits something new; after that it is looked again.
    Raises:
        StorageError: Not now.
        NotOursError: Another worker has taken it over.
    """
    async with AsyncExitStack() as stack:
        made: dict[str, Making] = {}

        async def write(name: str, lines: list[bytes]) -> None:
            if lines and name not in made:
                filename = f"{batch['id']}_{name}.jsonl"
                making = files.making(batch["owner"], filename, "batch_output", batch["output_ttl"], _file_id(filename))
                made[name] = await stack.enter_async_context(making)
            if lines:
                await made[name].write(b"".join(lines))

        async def write_results(position: int) -> int:
            async with aclosing(stored(database, batch["number"], position)) as chunks:
                async for chunk in chunks:
                    if chunk[0].position != position + 1:
                        raise NotOursError  # those between were cleared away: another worker has ended this batch
                    for name, wanted in (("output", True), ("error", False)):
                        await write(name, _joined(batch["id"], ((at, line) for at, ok, line in chunk if ok is wanted)))
                    position = chunk[-1].position
            return position

        position = await write_results(0)
        while (last := await database.run(batches.closed, me, batch["number"])) is None:
            await news()
            position = await write_results(position)
        position = await write_results(position)
        if position != last["completed"] + last["failed"]:
            raise NotOursError  # results were cleared away: another worker has ended this batch
        async with aclosing(_without_result(database, files, batch)) as slices:
            async for custom_ids in slices:
                told = [error_line(custom_id, *_ENDINGS[last["ending"]]) for custom_id in custom_ids]
                await write("error", _joined(batch["id"], enumerate(told, position + 1)))
                position += len(told)
    ids = {name: making.file.id for name, making in made.items()}
    return Outputs(ids.get("output"), ids.get("error"), last["total"] - last["completed"] - last["failed"])


def _joined(batch_id: str, lines: Iterable[tuple[int, bytes]]) -> list[bytes]:
    """Returns: The output lines, with line feeds, in pieces that are still to be joined: they may be long."""
    return [piece for position, fields in lines for piece in (*parts(batch_id, position, fields), b"\n")]


def _file_id(filename: str) -> str:
    return f"file-{hashlib.sha256(filename.encode()).hexdigest()[:24]}"


async def _without_result(
    database: Database, files: Files, batch: Mapping[str, Any]
) -> AsyncGenerator[list[str], None]:
    """Yields: The custom ids of lines that have no result, by slice; of an input whose bytes are gone, none."""
    after = -1
    while rows := await database.run(ledger.unfinished, batch["number"], after):
        for row in rows:
            after = row["number"]
            try:
                lines = split(await files.read(batch["input_file_id"], row["start"], row["stop"]))
            except FileContentMissingError:
                return
            lines += [b""] * (row["lines"] - len(lines))
            yield [_custom_id(lines[index], batch) for index in Bits.of(row["done"], row["lines"]).missing()]


def _custom_id(line: bytes, batch: Mapping[str, Any]) -> str:
    with contextlib.suppress(LineError):
        return read_line(line, batch["endpoint"]).custom_id
    return ""
