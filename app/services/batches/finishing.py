"""A batch's results become an output file and an error file: while it runs, so that little is left to do at its end.

They are written in the order in which they were stored, and their ids tell it: the two can be read as one again. Their
file ids are made of the batch's, so that a worker that dies here leaves nothing behind which the next does not replace.
"""

import asyncio
import contextlib
import hashlib
import time
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
_TOUCH_SECONDS = 600.0
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

    def read() -> "asyncio.Task[list[Result]]":
        return asyncio.create_task(database.run(results.read, number, after, _CHUNK_BYTES), name="batch results")

    reading = read()
    try:
        while rows := await reading:
            after = rows[-1].position
            reading = read()
            yield rows
    finally:
        reading.cancel()
        await asyncio.wait({reading})


class _Pair:
    """The two files in the making, each begun with its first line. Attributes: position: Of the last line."""

    def __init__(self, files: Files, batch: Mapping[str, Any], stack: AsyncExitStack) -> None:
        self.position = 0
        self._files = files
        self._batch = batch
        self._stack = stack
        self._made: dict[str, Making] = {}
        self._touched_at = time.monotonic()

    async def write(self, name: str, lines: Iterable[tuple[int, bytes]]) -> None:
        """Args: lines: Positions, and what stands behind the id."""
        pieces = [piece for at, fields in lines for piece in (*parts(self._batch["id"], at, fields), b"\n")]
        if pieces and name not in self._made:
            filename = f"{self._batch['id']}_{name}.jsonl"
            id_ = f"file-{hashlib.sha256(filename.encode()).hexdigest()[:24]}"
            making = self._files.making(self._batch["owner"], filename, "batch_output", self._batch["output_ttl"], id_)
            self._made[name] = await self._stack.enter_async_context(making)
        if pieces:
            await self._made[name].write(b"".join(pieces))

    async def results(self, database: Database) -> None:
        """Writes what is stored and not written yet.

        Raises: NotOursError: Some are cleared away, the first ones first: another worker has ended this batch.
        """
        async with aclosing(stored(database, self._batch["number"], self.position)) as chunks:
            async for chunk in chunks:
                if chunk[0].position != self.position + 1:
                    raise NotOursError
                await self.write("output", ((at, line) for at, ok, line in chunk if ok))
                await self.write("error", ((at, line) for at, ok, line in chunk if not ok))
                self.position = chunk[-1].position

    async def touch(self) -> None:
        """Now and then says that the files are still in the making."""
        if time.monotonic() > self._touched_at + _TOUCH_SECONDS:
            self._touched_at = time.monotonic()
            for making in self._made.values():
                await making.touch()

    def id_of(self, name: str) -> str | None:
        """Returns: The file's id, after the stack is left; None: no line stood in it."""
        making = self._made.get(name)
        return None if making is None else making.file.id


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
        pair = _Pair(files, batch, stack)
        await pair.results(database)
        while (last := await database.run(batches.closed, me, batch["number"])) is None:
            await news()
            await pair.touch()
            await pair.results(database)
        await pair.results(database)
        if pair.position != last["completed"] + last["failed"]:
            raise NotOursError
        async with aclosing(_without_result(database, files, batch)) as slices:
            async for custom_ids in slices:
                told = [error_line(custom_id, *_ENDINGS[last["ending"]]) for custom_id in custom_ids]
                await pair.write("error", enumerate(told, pair.position + 1))
                pair.position += len(told)
        await database.run(batches.closed, me, batch["number"])  # still ours: else what is there must not be replaced
    lost = last["total"] - last["completed"] - last["failed"]
    return Outputs(pair.id_of("output"), pair.id_of("error"), lost)


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
