"""What became of the calls that carry an `Idempotency-Key`: running, or over with a reply to be given again.

It stands in the database, so that it outlives this process and replicas share it. A claim belongs to the process that
runs the call, and is free once that process's lease is over: a crash locks no key for ever.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec

from app.errors import IdempotencyInProgressError, InvalidRequestError, StorageError
from app.store import replies
from app.store.database import Database
from app.store.owners import Owner

log = logging.getLogger("sluicegate")
HEADER = "Idempotency-Key"
_ASK_AGAIN_SECONDS = 0.5
_PATIENCE_SECONDS = 2.0  # that a reply's last byte waits for the database at most
_TRIM_SECONDS = 60.0
_SHARES = 16  # of all the bytes: so much is kept between two looks at what must go
_MOST_OWED = 10_000
_PAGE = 500
_HEADERS = msgspec.msgpack.Decoder(tuple[tuple[bytes, bytes], ...])

T = TypeVar("T")
Task: TypeAlias = asyncio.Task[Any]


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A whole reply as it went out. `headers` are ASGI's."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.body) + sum(len(name) + len(value) for name, value in self.headers)


class IdempotencyStore(Protocol):
    """A claim is followed by exactly one `keep` or `release`, also under cancellation."""

    @property
    def largest(self) -> int:
        """The most bytes that one reply may have to be kept."""

    async def claim(self, key: bytes, request: bytes) -> StoredReply | None:
        """Asks for the right to run a call.

        Args:
            key: Of `key_of`.
            request: A digest of what was asked.
        Returns:
            The reply that the same call had; None: the key is claimed, the call is to be run.
        Raises:
            InvalidRequestError: The key was used for another request.
            IdempotencyInProgressError: The same call still runs.
            StorageError: Nobody can tell; the call must not be run.
        """

    async def keep(self, key: bytes, reply: StoredReply) -> None:
        """The claimed call is over, and this is what its repetitions are given. Never fails."""

    async def release(self, key: bytes) -> None:
        """The claimed call is over, and its repetition is to be run. Never fails."""


class StoredReplies:
    """The store in a database.

    Args:
        owner: This process; claims are its own.
        most_bytes: Replies in all; every other process may add a sixteenth to them.
        ttl: Seconds that a reply is given again.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        database: Database,
        owner: Owner,
        most_bytes: int,
        ttl: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._owner = owner.id
        self._most = most_bytes
        self._ttl = ttl
        self._clock = clock
        self._share = most_bytes // _SHARES
        self._since_trim = self._share  # nobody knows yet what there is
        self._trim_at = clock() + _TRIM_SECONDS
        self._running: dict[bytes, bytes] = {}  # with the request's digest
        self._asking: dict[bytes, Task] = {}  # of whom the database is being asked: the next one waits
        self._owed: set[bytes] = set()  # over, but the database may still call them claimed
        self._settling: set[Task] = set()
        self._payer: Task | None = None

    @property
    def largest(self) -> int:
        return self._most // 4

    @property
    def running(self) -> int:
        """Claims that are neither kept nor released."""
        return len(self._running)

    async def claim(self, key: bytes, request: bytes) -> StoredReply | None:
        while key in self._asking:
            await asyncio.wait({self._asking[key]})
        if key in self._running:
            _check(self._running[key], request)
            raise _still_runs()
        known = await self._ask(key, request)
        if known is None:
            return None
        _check(known.request, request)
        if known.reply is None:
            raise _still_runs()
        return StoredReply(known.reply.status, _HEADERS.decode(known.reply.headers), known.reply.body)

    async def _ask(self, key: bytes, request: bytes) -> replies.Known | None:
        """Claims the key, unless it is known. Whatever goes wrong, it is not left claimed."""
        self._owed.discard(key)
        self._running[key] = request
        asked = _heard(self._database.run(replies.claim, key, request, self._owner))
        self._asking[key] = asked
        try:
            known = await asyncio.shield(asked)
        except BaseException:
            self._settle(self._give_up(key, asked))
            raise
        del self._asking[key]
        if known is not None:
            del self._running[key]
        return known

    async def _give_up(self, key: bytes, asked: Task) -> None:
        await asyncio.wait({asked})
        del self._asking[key]
        self._owe(key)

    async def keep(self, key: bytes, reply: StoredReply) -> None:
        if reply.size > self.largest:
            await self.release(key)
        else:
            await asyncio.wait({self._settle(self._write(key, reply))}, timeout=_PATIENCE_SECONDS)

    async def release(self, key: bytes) -> None:
        await asyncio.wait({self._owe(key)}, timeout=_PATIENCE_SECONDS)

    async def _write(self, key: bytes, reply: StoredReply) -> None:
        row = replies.Reply(reply.status, msgspec.msgpack.encode(reply.headers), reply.body, reply.size)
        most = self._to_trim(reply.size)
        try:
            if not await self._database.run(replies.keep, key, self._owner, row, self._ttl, most):
                log.warning("a reply under an %s came when its lease was over: not kept", HEADER)
        except Exception as error:  # whatever it is: the call itself went well
            log.warning("a reply under an %s is not kept: %s", HEADER, error, exc_info=_is_bug(error))
            self._since_trim = self._share
            self._owe(key)
        else:
            del self._running[key]

    def _to_trim(self, size: int) -> int | None:
        """Returns: Bytes that all replies are to be cut down to, now that one more is kept; None: not yet."""
        self._since_trim += size
        if self._since_trim < self._share and self._clock() < self._trim_at:
            return None
        self._since_trim, self._trim_at = 0, self._clock() + _TRIM_SECONDS
        return self._most - self._share

    def _owe(self, key: bytes) -> Task:
        """Ends a claim. Returns: What tells the database, as soon as that lets it."""
        del self._running[key]
        if len(self._owed) < _MOST_OWED:  # the others end with this process
            self._owed.add(key)
        if self._payer is None or self._payer.done():
            self._payer = asyncio.create_task(self._pay())
        return self._payer

    async def _pay(self) -> None:
        while keys := tuple(islice((key for key in self._owed if key not in self._asking), _PAGE)):
            asked = _heard(self._database.run(replies.release, keys, self._owner))
            self._asking.update(dict.fromkeys(keys, asked))
            await asyncio.wait({asked})
            for key in keys:
                del self._asking[key]
            if asked.exception() is None:
                self._owed.difference_update(keys)
            else:
                await asyncio.sleep(_ASK_AGAIN_SECONDS)

    def _settle(self, work: Coroutine[Any, Any, None]) -> Task:
        """Does what ends a claim: to its end, whatever becomes of the caller."""
        task = asyncio.create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return task

    async def aclose(self) -> None:
        """Waits for what is being written; what is then still claimed is free with the owner's end."""
        tasks = self._settling | ({self._payer} if self._payer else set())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_PATIENCE_SECONDS)
            for task in late:
                task.cancel()


def key_of(authorization: bytes, key: bytes) -> bytes:
    """Returns: A caller's `Idempotency-Key` as it is stored: as a digest, with no secret in it and no caller's but his.

    Args: authorization: His header's value; empty where there is none.
    """
    return hashlib.sha256(hashlib.sha256(authorization).digest() + key).digest()


def _check(known: bytes, request: bytes) -> None:
    if known != request:
        raise InvalidRequestError(f"this {HEADER} was used for another request: take a new one", param=HEADER)


def _heard(work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Returns: A task that may fail without anybody left to hear of it."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


def _is_bug(error: Exception) -> bool:
    return not isinstance(error, StorageError)


def _still_runs() -> IdempotencyInProgressError:
    message = f"a call with this {HEADER} still runs"
    return IdempotencyInProgressError(message, param=HEADER, retry_after=_ASK_AGAIN_SECONDS)
