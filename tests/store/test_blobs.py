"""A blob is there whole or not at all, in a folder and in a bucket."""

import asyncio
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.errors import StorageError, StorageFullError
from app.store.blobs import BlobMissingError, Blobs, open_blobs
from tests.store.s3 import S3, s3
from tests.support import eventually

MIB = 1024**2


@dataclass
class Place:
    """`left()`: everything that is there, hidden things included; `break_()` makes writing fail."""

    blobs: Blobs
    left: Callable[[], list[str]]
    break_: Callable[[], object]


@pytest.fixture
async def bucket(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3]:
    async with s3() as served:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        chosen = {"ENDPOINT_URL": served.endpoint, "ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "secret"}
        for name, value in {**chosen, "REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        yield served


def in_folder(folder: Path) -> Place:
    def break_() -> None:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    return Place(open_blobs(None, folder.parent), lambda: sorted(path.name for path in folder.iterdir()), break_)


def in_bucket(served: S3) -> Place:
    def left() -> list[str]:
        return sorted([path.removeprefix("/bucket/some/prefix/") for path in served.objects] + list(served.uploads))

    return Place(open_blobs("s3://bucket/some/prefix", Path()), left, lambda: served.refuse.update(put=403, begin=403))


@pytest.fixture(params=["folder", "bucket"])
async def place(request: pytest.FixtureRequest, tmp_path: Path, bucket: S3) -> AsyncIterator[Place]:
    found = in_folder(tmp_path / "files") if request.param == "folder" else in_bucket(bucket)
    yield found
    found.blobs.close()


async def write(blobs: Blobs, key: str, *pieces: bytes) -> None:
    async with blobs.writing(key) as writer:
        for piece in pieces:
            await writer.write(piece)
        assert writer.size == sum(map(len, pieces))


async def whole(blobs: Blobs, key: str, start: int = 0, stop: int | None = None) -> bytes:
    pieces = [piece async for piece in blobs.reading(key, start, stop)]
    assert all(0 < len(piece) <= 256 * 1024 for piece in pieces)
    return b"".join(pieces)


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, MIB, 3 * MIB + 1, 21 * MIB])
async def test_what_is_written_is_read_again(place: Place, size: int) -> None:
    data = random.Random(size).randbytes(size)
    await write(place.blobs, "file-a", *(data[at : at + 100_000] for at in range(0, size, 100_000)))
    assert await place.blobs.size("file-a") == size
    assert await whole(place.blobs, "file-a") == data
    assert await whole(place.blobs, "file-a", 0, size) == data
    assert place.left() == ["file-a"]


async def test_a_range_is_read_without_the_rest(place: Place) -> None:
    data = random.Random(1).randbytes(5 * MIB)
    await write(place.blobs, "file-a", data)
    for start, stop in ((0, 1), (MIB - 1, MIB + 1), (7, 3 * MIB), (5 * MIB - 1, 9 * MIB), (5 * MIB, 6 * MIB), (9, 9)):
        assert await place.blobs.read("file-a", start, stop) == data[start:stop]
        assert await whole(place.blobs, "file-a", start, stop) == data[start:stop]
    assert await whole(place.blobs, "file-a", 4 * MIB + 3) == data[4 * MIB + 3 :]


async def test_a_blob_is_replaced_whole(place: Place) -> None:
    await write(place.blobs, "file-a", b"old" * 10)
    async with place.blobs.writing("file-a") as writer:
        await writer.write(b"new")
        assert await whole(place.blobs, "file-a") == b"old" * 10
    assert await whole(place.blobs, "file-a") == b"new"


async def test_what_is_not_there_is_said_to_be_missing(place: Place) -> None:
    with pytest.raises(BlobMissingError):
        await place.blobs.read("file-a", 0, 10)
    with pytest.raises(BlobMissingError):
        await whole(place.blobs, "file-a")
    assert await place.blobs.size("file-a") is None
    await place.blobs.delete("file-a")


async def test_a_deleted_blob_is_gone(place: Place) -> None:
    await write(place.blobs, "file-a", b"x")
    await write(place.blobs, "file-b", b"y")
    await place.blobs.delete("file-a")
    assert place.left() == ["file-b"]


@pytest.mark.parametrize("size", [1, MIB, 20 * MIB])
async def test_an_exception_leaves_no_trace(place: Place, size: int) -> None:
    await write(place.blobs, "file-a", b"old")

    async def fails() -> None:
        async with place.blobs.writing("file-a") as writer:
            await writer.write(bytes(size))
            raise KeyError

    with pytest.raises(KeyError):
        await fails()
    assert place.left() == ["file-a"]
    assert await whole(place.blobs, "file-a") == b"old"


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 20, 60])
async def test_a_cancellation_at_any_moment_leaves_no_trace(place: Place, steps: int) -> None:
    async def endless() -> None:
        async with place.blobs.writing("file-a") as writer:
            while True:
                await writer.write(bytes(MIB))

    task = asyncio.create_task(endless())
    for _ in range(steps):
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert place.left() == []


async def test_a_place_that_fails_is_told_without_its_address(place: Place) -> None:
    place.break_()
    for size in (1, 20 * MIB):
        with pytest.raises(StorageError) as told:
            await write(place.blobs, "file-a", bytes(size))
        assert told.value.message == "the files cannot be reached"


async def test_a_cancellation_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(_: int) -> None:
        begun.set()
        assert go_on.wait(10)

    place = in_folder(tmp_path / "files")
    monkeypatch.setattr(os, "fsync", slow)
    task = asyncio.create_task(write(place.blobs, "file-a", b"x"))
    await eventually(begun.is_set)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    done, _ = await asyncio.wait({task}, timeout=0.05)
    go_on.set()
    await asyncio.wait({task})
    assert not done
    assert not [name for name in place.left() if name.startswith(".tmp-")]


@pytest.mark.parametrize("key", ["", "..", "a/b", "../a", "a\0", "a" * 65, "a\n", ".tmp-a"])
async def test_only_our_own_ids_are_keys(place: Place, key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        await write(place.blobs, key, b"x")
    with pytest.raises(ValueError, match="key"):
        await place.blobs.read(key, 0, 1)
    with pytest.raises(ValueError, match="key"):
        await place.blobs.delete(key)
    with pytest.raises(ValueError, match="key"):
        await place.blobs.size(key)


async def test_many_write_and_read_side_by_side(place: Place) -> None:
    async def one(number: int) -> None:
        data = bytes([number]) * (MIB + number)
        await write(place.blobs, f"file-{number}", data)
        assert await whole(place.blobs, f"file-{number}") == data

    await asyncio.gather(*(one(number) for number in range(30)))


@pytest.mark.parametrize("step", ["begin", "part", "complete"])
async def test_a_large_upload_that_fails_at_any_step_is_aborted(bucket: S3, step: str) -> None:
    place = in_bucket(bucket)
    bucket.refuse[step] = 403
    with pytest.raises(StorageError):
        await write(place.blobs, "file-a", bytes(20 * MIB))
    assert place.left() == []


async def test_a_full_bucket_is_told_from_a_broken_one(bucket: S3) -> None:
    bucket.refuse["put"] = 507
    with pytest.raises(StorageFullError, match="no room"):
        await write(in_bucket(bucket).blobs, "file-a", b"x")


async def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    place = in_folder(tmp_path / "files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    try:
        with pytest.raises(StorageFullError, match="there is no room left for files"):
            await write(place.blobs, "file-a", bytes(2 * MIB))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert place.left() == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_told_at_the_last_moment_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(_: int) -> None:
        raise OSError(number, "full")

    place = in_folder(tmp_path / "files")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFullError):
        await write(place.blobs, "file-a", b"x")
    assert place.left() == []


async def test_what_a_killed_process_left_is_swept_when_it_is_old(tmp_path: Path) -> None:
    place = in_folder(tmp_path / "files")
    await write(place.blobs, "file-a", b"x")
    program = """
import asyncio, os, sys, pathlib
from app.store.blobs import open_blobs
async def main():
    async with open_blobs(None, pathlib.Path(sys.argv[1])).writing("file-b") as writer:
        await writer.write(bytes(300_000))
        os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left, kept) = place.left()
    assert (left.startswith(".tmp-"), kept) == (True, "file-a")
    await place.blobs.sweep(3600)
    assert place.left() == [left, "file-a"]
    old = time.time() - 4000
    os.utime(tmp_path / "files" / left, (old, old))
    await place.blobs.sweep(3600)
    assert place.left() == ["file-a"]


async def test_the_event_loop_runs_on_while_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(_: int) -> None:
        time.sleep(0.3)

    place = in_folder(tmp_path / "files")
    monkeypatch.setattr(os, "fsync", slow)
    turns = await _turns_while(write(place.blobs, "file-a", b"x"))
    assert turns > 5


async def _turns_while(work: Awaitable[None]) -> int:
    task = asyncio.ensure_future(work)
    turns = 0
    while not task.done():
        await asyncio.sleep(0.01)
        turns += 1
    await task
    return turns


def test_a_place_is_a_folder_or_a_bucket(tmp_path: Path) -> None:
    open_blobs(f"file://{tmp_path}/with%20space", Path("/nowhere")).close()
    assert (tmp_path / "with space").is_dir()
    open_blobs(str(tmp_path / "plain"), Path("/nowhere")).close()
    assert (tmp_path / "plain").is_dir()
    (tmp_path / "file").touch()
    for url in (str(tmp_path / "file"), "gs://bucket", "s3://"):
        with pytest.raises(StorageError) as told:
            open_blobs(url, tmp_path)
        assert str(tmp_path) not in told.value.message
