"""Blobs in an S3 bucket, through obstore.

Keys, region and endpoint come from the AWS_* variables, as obstore reads them. A killed process leaves its multipart
upload behind, unseen: no listing of obstore shows it, so removing it is left to a rule of the bucket
(AbortIncompleteMultipartUpload).
"""

import contextlib
from collections.abc import AsyncGenerator, Awaitable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from app.errors import StorageError, StorageFullError
from app.store.pieces import BlobMissingError, Gathering, Writer, checked, sliced, unbroken

if TYPE_CHECKING:  # it exists for type checkers only
    from obstore.store import ClientConfig

T = TypeVar("T")
_PART = 8 * 1024**2  # a bucket takes 10,000 of them: 78 GiB
_PARTS_AT_ONCE = 2
_SLICE = 4 * 1024**2  # read at once: a trip takes tens of milliseconds
_CLIENT: "ClientConfig" = {
    "timeout": timedelta(seconds=60),
    "connect_timeout": timedelta(seconds=5),
    "allow_http": True,  # whoever names an http:// endpoint means it
}
_FULL = ("StorageFull", "507 Insufficient", "QuotaExceeded")


class Bucket:
    """Args: url: `s3://BUCKET/PREFIX`.

    Raises: StorageError: Not such an address, or the AWS_* variables hold nonsense.
    """

    def __init__(self, url: str) -> None:
        try:
            self._store = S3Store.from_url(
                url,
                disable_bulk_delete=True,  # not every S3 has it, and one is deleted at a time
                client_options=_CLIENT,
                retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=20)},
            )
        except (BaseError, ValueError) as error:
            raise StorageError("cannot be used: it takes s3://BUCKET/PREFIX and sound AWS_* variables") from error

    @contextlib.asynccontextmanager
    async def writing(self, key: str) -> AsyncGenerator[Writer, None]:
        upload = obstore.open_writer_async(self._store, checked(key), buffer_size=_PART, max_concurrency=_PARTS_AT_ONCE)
        writer = Gathering(lambda data: _told(upload.write(data)))
        try:
            yield writer
            await writer.flush()
        except BaseException as error:
            with contextlib.suppress(StorageError):
                await _told(upload.__aexit__(type(error), error, error.__traceback__))  # aborts it
            raise
        await _told(upload.close())

    def reading(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[bytes, None]:
        return sliced(self.read, _SLICE, key, start, stop)

    async def read(self, key: str, start: int, stop: int) -> bytes:
        if start >= stop:
            return b""
        try:
            return bytes(await obstore.get_range_async(self._store, checked(key), start=start, end=stop))
        except FileNotFoundError:
            raise BlobMissingError from None
        except (BaseError, OSError, ValueError) as error:
            size = await self.size(key)
            if size is not None and size <= start:  # which is an error there
                return b""
            raise _storage_error(error) from error

    async def delete(self, key: str) -> None:
        await _found(obstore.delete_async(self._store, checked(key)))

    async def size(self, key: str) -> int | None:
        found = await _found(obstore.head_async(self._store, checked(key)))
        return None if found is None else found["size"]

    async def sweep(self, older_than: float) -> None:
        pass

    def close(self) -> None:
        pass


async def _found(work: Awaitable[T]) -> T | None:
    try:
        return await unbroken(work)
    except FileNotFoundError:
        return None
    except (BaseError, OSError, ValueError) as error:
        raise _storage_error(error) from error


async def _told(work: Awaitable[T]) -> T:
    """Awaits to the end; what goes wrong is told in our words."""
    try:
        return await unbroken(work)
    except (BaseError, OSError, ValueError) as error:
        raise _storage_error(error) from error


def _storage_error(error: Exception) -> StorageError:
    if any(sign in str(error) for sign in _FULL):
        return StorageFullError("there is no room left for files")
    return StorageError("the files cannot be reached")
