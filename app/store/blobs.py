"""Where the bytes of files are: a folder, local or shared, or a bucket.

A blob is there whole or not at all. Nothing here holds a file in memory, and no file is touched on the event loop.
"""

import asyncio
import contextlib
import errno
import functools
import os
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, ParamSpec, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from app.errors import StorageError, StorageFullError
from app.store.pieces import BlobMissingError, Gathering, Writer, checked, sliced, unbroken

__all__ = ["BlobMissingError", "Blobs", "Folder", "Writer", "open_blobs"]

P = ParamSpec("P")
T = TypeVar("T")
_SLICE = 1024**2  # read at once
_THREADS = 8
_TEMPORARY = ".tmp-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Blobs(Protocol):
    """What all places for blobs can do.

    Every method may raise StorageFullError or StorageError; those that read, BlobMissingError.
    """

    def writing(self, key: str) -> contextlib.AbstractAsyncContextManager[Writer]:
        """Writes a blob: it is there, whole, once the block is left; after an exception no trace is left.

        A blob that was there under this key is replaced.
        """

    def reading(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[bytes, None]:
        """Yields: The bytes from `start` up to `stop` (None: the end), in pieces of 256 KiB at most."""

    async def read(self, key: str, start: int, stop: int) -> bytes:
        """Returns: The bytes from `start` up to `stop`, all at once; fewer if the blob ends before that."""

    async def delete(self, key: str) -> None:
        """Removes the blob, if it is there."""

    async def size(self, key: str) -> int | None:
        """Returns: Bytes; None: there is no such blob."""

    async def sweep(self, older_than: float) -> None:
        """Removes what killed processes left unfinished, where nothing was written for `older_than` seconds."""

    def close(self) -> None:
        """Gives everything back."""


def open_blobs(files_url: str | None, data_dir: Path) -> Blobs:
    """Args:
    files_url: A path, file://… or s3://BUCKET/PREFIX; None: a folder in `data_dir`.
    Raises:
        StorageError: It cannot be used.
    """
    parts = urlsplit(files_url or "")
    if parts.scheme == "s3":
        from app.store.buckets import Bucket  # noqa: PLC0415 - most have no bucket, and need not load its client

        return Bucket(files_url or "")
    if parts.scheme == "file":
        return Folder(Path(unquote(parts.path)))
    if parts.scheme:
        raise StorageError("must be a folder, file:///FOLDER or s3://BUCKET/PREFIX")
    return Folder(Path(files_url) if files_url else data_dir / "files")


class Folder:
    """Blobs as files of one folder. Many processes, on many machines, may share it.

    Args: folder: Made if it is not there.
    Raises: StorageError: It cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="files")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            attempt = folder / f"{_TEMPORARY}{secrets.token_hex(8)}"
            attempt.touch()
            attempt.unlink()
        except OSError as error:
            raise _storage_error(error) from error

    @contextlib.asynccontextmanager
    async def writing(self, key: str) -> AsyncGenerator[Writer, None]:
        file = _File(self._folder / f"{_TEMPORARY}{secrets.token_hex(8)}", self._folder / checked(key))
        try:
            await self._run(file.open)
            writer = Gathering(lambda data: self._run(file.write, data), lambda: self._run(file.touch))
            yield writer
            await writer.flush()
            await self._run(file.finish)
        except BaseException:
            await self._run(file.discard)
            raise

    def reading(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[bytes, None]:
        return sliced(self.read, _SLICE, key, start, stop)

    async def read(self, key: str, start: int, stop: int) -> bytes:
        return await self._run(_read, self._folder / checked(key), start, stop)

    async def delete(self, key: str) -> None:
        await self._run((self._folder / checked(key)).unlink, missing_ok=True)

    async def size(self, key: str) -> int | None:
        return await self._run(_size, self._folder / checked(key))

    async def sweep(self, older_than: float) -> None:
        await self._run(_sweep, self._folder, older_than)

    def close(self) -> None:
        self._threads.shutdown(wait=True)

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await unbroken(loop.run_in_executor(self._threads, functools.partial(work, *args, **kwargs)))
        except OSError as error:
            raise _storage_error(error) from error


def _storage_error(error: OSError) -> StorageError:
    if error.errno in _FULL:
        return StorageFullError("there is no room left for files")
    return StorageError("the files cannot be reached")


class _File:
    """A file under a temporary name; every method blocks."""

    def __init__(self, temporary: Path, final: Path) -> None:
        self._temporary = temporary
        self._final = final
        self._file: BinaryIO | None = None

    def open(self) -> None:
        self._file = self._temporary.open("xb")

    def write(self, data: bytes) -> None:
        assert self._file is not None  # noqa: S101 - opened first
        self._file.write(data)

    def touch(self) -> None:
        os.utime(self._temporary)

    def finish(self) -> None:
        assert self._file is not None  # noqa: S101
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        self._temporary.replace(self._final)

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)


def _read(path: Path, start: int, stop: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(max(0, stop - start))
    except FileNotFoundError:
        raise BlobMissingError from None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _sweep(folder: Path, older_than: float) -> None:
    oldest = time.time() - older_than
    for path in folder.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(FileNotFoundError):  # another process sweeps, too
            if path.stat().st_mtime <= oldest:
                path.unlink()
