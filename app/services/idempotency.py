"""What became of the calls that carry an `Idempotency-Key`: running, or over with a reply to be given again.

The store is a protocol of three steps, so that it can move from this process's memory to a database that replicas
share.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from app.errors import IdempotencyInProgressError, InvalidRequestError
from app.policies.lru import LruStore

HEADER = "Idempotency-Key"
_ASK_AGAIN_SECONDS = 0.5


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
        """

    async def keep(self, key: bytes, request: bytes, reply: StoredReply) -> None:
        """The claimed call is over, and this is what its repetitions are given."""

    async def release(self, key: bytes) -> None:
        """The claimed call is over, and its repetition is to be run."""


class MemoryStore:
    """The store of one process. What runs is never forgotten, and no more than what runs; replies are bounded.

    Args:
        most_bytes: Replies in all.
        ttl: Seconds that a reply is given again.
        clock: Seconds, never going back.
    """

    def __init__(self, most_bytes: int, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._running: dict[bytes, bytes] = {}
        self._done: LruStore[tuple[bytes, StoredReply]] = LruStore(most_bytes, ttl)
        self._clock = clock

    @property
    def largest(self) -> int:
        return self._done.largest

    @property
    def running(self) -> int:
        """Claims that are neither kept nor released."""
        return len(self._running)

    async def claim(self, key: bytes, request: bytes) -> StoredReply | None:
        if key in self._running:
            _check(self._running[key], request)
            message = f"a call with this {HEADER} still runs"
            raise IdempotencyInProgressError(message, param=HEADER, retry_after=_ASK_AGAIN_SECONDS)
        done = self._done.get(key, self._clock())
        if done is None:
            self._running[key] = request
            return None
        _check(done[0], request)
        return done[1]

    async def keep(self, key: bytes, request: bytes, reply: StoredReply) -> None:
        del self._running[key]
        self._done.put(key, (request, reply), reply.size, self._clock())

    async def release(self, key: bytes) -> None:
        del self._running[key]


def key_of(authorization: bytes, key: bytes) -> bytes:
    """Returns: A caller's `Idempotency-Key` as it is stored: as a digest, with no secret in it and no caller's but his.

    Args: authorization: His header's value; empty where there is none.
    """
    return hashlib.sha256(hashlib.sha256(authorization).digest() + key).digest()


def _check(known: bytes, request: bytes) -> None:
    if known != request:
        raise InvalidRequestError(f"this {HEADER} was used for another request: take a new one", param=HEADER)
