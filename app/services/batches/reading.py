"""Results as they are read: live while the batch runs, from its output files afterwards, in one order."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from app.errors import NotFoundError
from app.services.batches.finishing import stored
from app.services.files import Files
from app.store import batches
from app.store.batches import Row
from app.store.database import Database
from app.store.tables import ENDED
from app.wire.batch_results import merged, position_of, whole
from app.wire.line_scanner import LineScanner

_LOOK_SECONDS = 0.25
ID = re.compile(r"batch_[0-9a-f]{24}")
_BLOCK_BYTES = 256 * 1024


class Reading:
    """One reader of a batch's results. Raises: NotFoundError: There is no such batch, by `check` or `lines`."""

    def __init__(self, database: Database, files: Files, owner: str, batch_id: str) -> None:
        self._database = database
        self._files = files
        self._owner = owner
        self._id = batch_id

    async def check(self) -> None:
        """Raises: NotFoundError: There is no such batch, or it has ended and its output files are deleted."""
        row = await row_of(self._database, self._owner, self._id)
        if row["status"] in ENDED:
            await must_have(self._files, row, "output_file_id", "error_file_id")

    async def lines(self, after: int, *, follow: bool) -> AsyncGenerator[bytes, None]:
        """Yields: Output lines, several at a time, in the order in which they were stored; the first ones at once.

        Args:
            after: Lines that the reader has already.
            follow: Go on until the batch has ended.
        """
        while True:
            row = await row_of(self._database, self._owner, self._id)
            if row["status"] in ENDED:
                async with aclosing(self._from_files(row, after)) as blocks:
                    async for block in blocks:
                        yield block
                return
            has_gap = False
            async with aclosing(stored(self._database, row["number"], after)) as chunks:
                async for chunk in chunks:
                    has_gap = chunk[0].position != after + 1
                    if has_gap:  # a slow reader: the batch has ended, and its results are being cleared away
                        break
                    yield b"\n".join([*(whole(row["id"], at, line) for at, _, line in chunk), b""])
                    after = chunk[-1].position
            if not (follow or has_gap):
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def _from_files(self, row: Row, after: int) -> AsyncGenerator[bytes, None]:
        """Both output files as one, for the results themselves are gone by then."""
        block, size = [], 0
        both = [lines_of(self._files, row[f"{name}_file_id"]) for name in ("output", "error")]
        async for line in merged(*both):
            if position_of(line) > after:
                block.append(line)
                size += len(line)
            if size >= _BLOCK_BYTES:
                yield b"\n".join([*block, b""])
                block, size = [], 0
        if block:
            yield b"\n".join([*block, b""])


async def row_of(database: Database, owner: str, batch_id: str) -> Row:
    """Raises: NotFoundError: There is no such batch."""
    row = await database.run(batches.find, owner, batch_id) if ID.fullmatch(batch_id) else None
    if row is None:
        raise not_found(batch_id)
    return row


def not_found(batch_id: str) -> NotFoundError:
    return NotFoundError(f"there is no batch {batch_id[:100]!r}", param="id")


async def must_have(files: Files, row: Row, *names: str) -> None:
    """Raises: NotFoundError: One of the files that the batch names is deleted."""
    for name in names:
        try:
            if row[name] is not None:
                await files.get(row["owner"], row[name])
        except NotFoundError as error:
            raise NotFoundError(error.message, param=name) from None


async def lines_of(files: Files, file_id: str | None) -> AsyncGenerator[bytes, None]:
    """Yields: A file's lines, without line feeds."""
    if file_id is None:
        return
    scanner = LineScanner(2**62)
    async with aclosing(files.reading(file_id)) as pieces:
        async for piece in pieces:
            for line in scanner.feed(piece):
                yield line.text or b""
    for line in scanner.close():
        yield line.text or b""
