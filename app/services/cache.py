"""Identical calls: those at the same time share one upstream call, those that follow are given its reply.

In front of the whole call stack, so that a shared call costs one slot, one attempt and one piece of every limit. What
is shared is a task of its own that belongs to nobody's request: whoever hangs up leaves it to the others, and the last
one to leave takes it with him.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

from app.errors import DeadlineError
from app.policies.lru import LruStore
from app.settings import CacheSettings
from app.upstream.types import Call, Reply
from app.wire.digest import digest_of
from app.wire.endpoints import FANOUT_PATHS

_OF_THE_MOMENT = ("x-ratelimit-", "retry-after", "openai-processing-ms")  # true of one call, not of its repetition
_OF_THE_CALLER = frozenset({"traceparent", "tracestate"})
_JOINS = 2  # flights that may end in somebody else's deadline, before a caller goes alone


@dataclass(frozen=True, slots=True)
class _Kept:
    reply: Reply
    upstream: str


class _Flight:
    """One upstream call and how many wait for it."""

    __slots__ = ("call", "task", "waiters")

    def __init__(self, call: Call, task: "asyncio.Task[Reply]") -> None:
        self.call = call
        self.task = task
        self.waiters = 0


class Cache:
    """`call` stands where the way to an upstream stood.

    Args:
        send: The way to an upstream.
        settings: What is cached unasked; how much is kept, and for how long.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        send: Callable[[Call], Coroutine[Any, Any, Reply]],
        settings: CacheSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._enabled = settings.enabled
        self._paths = frozenset(f"/{name}" for name in settings.endpoints)
        self._across_keys = settings.across_keys
        self._store: LruStore[_Kept] = LruStore(settings.max_bytes, settings.ttl)
        self._clock = clock
        self._flights: dict[bytes, _Flight] = {}
        self._tasks: set[asyncio.Task[Reply]] = set()
        self._hits = self._misses = self._shared = 0

    def call(self, call: Call) -> Coroutine[Any, Any, Reply]:
        """Carries one call, or gives it the reply of one that was the same.

        Returns:
            The reply, of any status. Whether the cache took part stands in the call's trace.
        Raises:
            GatewayError: There was no usable reply; or the call's own deadline passed.
        """
        if call.cache is None and not self._enabled:
            return self._send(call)
        return self._cached(call) if self._takes(call) else self._send(call)

    def _takes(self, call: Call) -> bool:
        # these endpoints' replies are whole unless a stream was asked for: only what is whole can be given twice
        path = call.endpoint.path
        wanted = path in self._paths if call.cache is None else call.cache
        return wanted and not call.stream and path in FANOUT_PATHS and call.endpoint.method == "POST"

    async def _cached(self, call: Call) -> Reply:
        key = _key(call, across_keys=self._across_keys)
        kept = self._store.get(key, self._clock())
        if kept is not None:
            self._hits += 1
            call.trace.upstream, call.trace.cache = kept.upstream, "hit"
            return kept.reply
        loop = asyncio.get_running_loop()
        deadline = None if call.timeout is None else loop.time() + call.timeout
        # a patient call is queued where another is refused, and the lanes wait differently: no call gets another's luck
        name = key + bytes([call.patient, call.lane == "batch"])
        joins = 0
        while (flight := self._flights.get(name)) is not None and joins < _JOINS:
            joins += 1
            try:
                return await self._joined(name, flight, call, deadline)
            except _OtherDeadlineError:
                call.trace.upstream = ""
        self._misses += 1
        call.trace.cache = "miss"
        own = _with_what_is_left(call, deadline)
        return await (self._send(own) if flight else self._awaited(name, self._started(key, name, own)))

    async def _joined(self, name: bytes, flight: _Flight, call: Call, deadline: float | None) -> Reply:
        """Follows a flight.

        Raises:
            DeadlineError: This call's own deadline passed.
            _OtherDeadlineError: The flight ended because its first caller wanted no longer to wait.
            GatewayError: What the flight ended in.
        """
        self._shared += 1
        call.trace.cache = "shared"
        try:
            async with asyncio.timeout_at(deadline):
                return await self._awaited(name, flight)
        except TimeoutError:
            raise DeadlineError(f"no reply within {call.timeout:g} seconds") from None
        except DeadlineError as error:
            if type(error) is DeadlineError:  # the others tell of the upstream's silence, which is everybody's
                raise _OtherDeadlineError from None
            raise
        finally:
            call.trace.upstream = flight.call.trace.upstream

    def _started(self, key: bytes, name: bytes, call: Call) -> _Flight:
        task = asyncio.create_task(self._fly(key, name, call), name=f"shared call {call.path}")
        self._tasks.add(task)
        task.add_done_callback(self._landed)
        flight = self._flights[name] = _Flight(call, task)
        return flight

    async def _fly(self, key: bytes, name: bytes, call: Call) -> Reply:
        task = asyncio.current_task()
        try:
            reply = await self._send(call)
            if reply.status == 200 and reply.events is None and reply.stream is None:
                self._keep(key, call, reply)
            return reply
        finally:  # before anybody reads the result: who asks now is a hit or flies anew
            flight = self._flights.get(name)
            if flight is not None and flight.task is task:
                del self._flights[name]

    def _landed(self, task: "asyncio.Task[Reply]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its waiters have read it, unless all had gone

    def _keep(self, key: bytes, call: Call, reply: Reply) -> None:
        headers = {name: value for name, value in reply.headers.items() if not name.startswith(_OF_THE_MOMENT)}
        size = len(reply.body) + sum(len(name) + len(value) for name, value in headers.items())
        kept = _Kept(replace(reply, headers=headers), call.trace.upstream)
        self._store.put(key, kept, size, self._clock())

    async def _awaited(self, name: bytes, flight: _Flight) -> Reply:
        """Waits for the flight; the last one to give up ends it, upstream too."""
        flight.waiters += 1
        try:
            await asyncio.wait({flight.task})
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                if self._flights.get(name) is flight:
                    del self._flights[name]
                flight.task.cancel()
                await asyncio.wait({flight.task})
        return flight.task.result()

    def snapshot(self) -> dict[str, int]:
        """Returns: Figures, JSON-ready; `waiting`: calls that wait for `flying` upstream calls right now."""
        return {
            "hits": self._hits,
            "misses": self._misses,
            "shared": self._shared,
            "flying": len(self._flights),
            "waiting": sum(flight.waiters for flight in self._flights.values()),
            "entries": len(self._store),
            "bytes": self._store.held,
        }

    async def aclose(self) -> None:
        """Ends every flight."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _OtherDeadlineError(Exception):
    pass


def _with_what_is_left(call: Call, deadline: float | None) -> Call:
    """Returns: The call, with the time that waiting for others has left it.

    Raises: DeadlineError: None is left.
    """
    if deadline is None:
        return call
    left = deadline - asyncio.get_running_loop().time()
    if left <= 0:
        raise DeadlineError(f"no reply within {call.timeout:g} seconds")
    return replace(call, timeout=left)


def _key(call: Call, *, across_keys: bool) -> bytes:
    """Returns: A digest of everything that the reply can depend on."""
    who = b"*" if across_keys else b"=" + call.caller.encode()
    path, model = call.endpoint.path.encode(), (call.model or "").encode()
    return digest_of(who, path, model, _headers(call.headers), call.body)


def _headers(headers: Mapping[str, str]) -> bytes:
    return repr(sorted((name, headers[name]) for name in headers if name not in _OF_THE_CALLER)).encode()
