"""Files: uploaded ones, and those that batches make. The row says that a file is there, the blob holds its bytes.

The row comes after the blob and goes after it, too: what is seen can be read.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from app.errors import FileContentMissingError, InvalidRequestError, NotFoundError, StorageError
from app.store import files as rows
from app.store.blobs import BlobMissingError, Blobs, Writer
from app.store.database import Database
from app.store.files import StoredFile
from app.store.pieces import unbroken
from app.wire.results import new_id

__all__ = ["Files", "Making", "Page", "StoredFile"]

log = logging.getLogger("sluicegate")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SWEEP_SECONDS = 60.0
_UNFINISHED_SECONDS = 3600.0  # that nothing was written to a blob in the making: its maker is dead


@dataclass(frozen=True, slots=True)
class Page:
    files: list[StoredFile]
    has_more: bool


class Making:
    """A file in the making. What it is called and what it is for may be said until the block's end.

    Attributes:
        expires_after: Seconds; None: never.
        file: What it became, after the block.
    """

    def __init__(self, id_: str, writer: Writer, filename: str, purpose: str, expires_after: int | None) -> None:
        self.id = id_
        self.filename = filename
        self.purpose = purpose
        self.expires_after = expires_after
        self.file: StoredFile
        self._writer = writer

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._writer.size

    async def write(self, data: bytes) -> None:
        """Raises: StorageFullError, StorageError: As they say."""
        await self._writer.write(data)

    async def touch(self) -> None:
        """It is still being made, though nothing is written: to be said several times an hour."""
        await self._writer.touch()


class Files:
    """Args:
    database: Rows.
    blobs: Bytes.
    """

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs
        self._sweeper: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def making(
        self,
        owner: str,
        filename: str = "",
        purpose: str = "",
        expires_after: int | None = None,
        id_: str | None = None,
    ) -> AsyncGenerator[Making, None]:
        """Makes a file: it is there once the block is left; after an exception no trace is left.

        Args:
            expires_after: Seconds; None: never.
            id_: One that was chosen beforehand: what had it before is replaced.
        Raises:
            StorageFullError, StorageError: As they say.
        """
        chosen = id_ or new_id("file-")
        try:
            async with self._blobs.writing(chosen) as writer:
                making = Making(chosen, writer, filename, purpose, expires_after)
                yield making
        except BaseException:  # a cancellation may come when the blob has just become whole
            await self._withdraw(chosen, id_)
            raise
        told = (making.filename, making.purpose, making.size, making.expires_after)
        try:
            making.file = await unbroken(self._database.run(rows.add, chosen, owner, *told))
        except StorageError:
            await self._withdraw(chosen, id_)
            raise

    async def _withdraw(self, made: str, chosen: str | None) -> None:
        if chosen is None:  # else it may be the blob of a row that is there
            with contextlib.suppress(StorageError):
                await unbroken(self._blobs.delete(made))

    async def get(self, owner: str, id_: str) -> StoredFile:
        """Raises: NotFoundError: There is none, or it is somebody else's."""
        found = await self._database.run(rows.get, owner, id_) if _ID.fullmatch(id_) else None
        if found is None:
            raise _not_found(id_)
        return found

    async def page(
        self, owner: str, *, after: str | None, limit: int, descending: bool = True, purpose: str | None = None
    ) -> Page:
        """Args:
            after: The last file of the page before; it may be deleted by now.
            limit: Files at most.
        Raises:
            InvalidRequestError: `after` is no file's id.
        """
        run = self._database.run
        found = await run(rows.page, owner, after=after, limit=limit + 1, descending=descending, purpose=purpose)
        if found is None:
            raise InvalidRequestError(f"there is no file {after!r}", param="after")
        return Page(found[:limit], len(found) > limit)

    async def delete(self, owner: str, id_: str) -> None:
        """Deletes it for its owner; its bytes go when no batch reads them any more.

        Raises: NotFoundError: There is none, or it is somebody else's.
        """
        if not _ID.fullmatch(id_) or not await self._database.run(rows.mark, owner, id_):
            raise _not_found(id_)
        with contextlib.suppress(StorageError):  # the next sweep has better luck
            await self._remove(await self._database.run(rows.unused, id_))

    async def content(self, file: StoredFile) -> AsyncGenerator[bytes, None]:
        """Returns: Its bytes, which are there, whole, to begin with.

        Raises: StorageError: They are not.
        """
        if await self._blobs.size(file.id) != file.bytes:
            raise _missing(file.id)
        return self.reading(file.id)

    async def read(self, id_: str, start: int, stop: int) -> bytes:
        """As `Blobs.read`, whoever owns it, deleted or not.

        Raises: StorageError: It cannot be read.
        """
        try:
            return await self._blobs.read(id_, start, stop)
        except BlobMissingError:
            raise _missing(id_) from None

    async def reading(self, id_: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[bytes, None]:
        """As `Blobs.reading`, whoever owns it, deleted or not.

        Raises: StorageError: It cannot be read.
        """
        try:
            async for piece in self._blobs.reading(id_, start, stop):
                yield piece
        except BlobMissingError:
            raise _missing(id_) from None

    def start(self) -> None:
        """Begins to sweep, now and then."""
        self._sweeper = asyncio.create_task(self._sweep_on(), name="files sweep")

    async def aclose(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})
        await asyncio.to_thread(self._blobs.close)

    async def _sweep_on(self) -> None:
        while True:
            try:
                await self.sweep()
            except StorageError as error:
                log.warning("files could not be swept: %s", error.message)
            await asyncio.sleep(_SWEEP_SECONDS)

    async def sweep(self) -> None:
        """Removes what is expired, what is deleted and read no more, and what killed processes left unfinished.

        Several processes may do so at once.

        Raises: StorageError: Not now.
        """
        await self._database.run(rows.mark_expired)
        while ids := await self._database.run(rows.unused):
            await self._remove(ids)
        await self._database.run(rows.forget)
        await self._blobs.sweep(_UNFINISHED_SECONDS)

    async def _remove(self, ids: list[str]) -> None:
        for id_ in ids:
            await self._blobs.delete(id_)
        if ids:
            await self._database.run(rows.bury, ids)


def _not_found(id_: str) -> NotFoundError:
    return NotFoundError(f"there is no file {id_[:64]!r}", param="id")


def _missing(id_: str) -> FileContentMissingError:
    return FileContentMissingError(f"the content of the file {id_!r} cannot be reached")
