"""Calls at a fixed rate, whether the last ones have been answered or not, and what became of each."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import aiohttp

from tests.support import Server

_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Sent:
    """One call.

    Attributes:
        at: When it was sent; seconds since the load began.
        late: Seconds by which the generator itself was behind.
        seconds: Until its end.
        status: 0: there was no reply.
        first: Seconds to the first piece of the reply's body.
        ok: It was answered, whole.
        upstream: Who answered.
    """

    at: float
    late: float
    seconds: float
    status: int
    first: float = math.nan
    ok: bool = False
    upstream: str = ""

    @property
    def done_at(self) -> float:
        return self.at + self.seconds


@dataclass(frozen=True, slots=True)
class Load:
    """Open loop: `rate` calls a second of `model` to a gateway."""

    gateway: Server
    model: str
    rate: float
    timeout: float
    stream: bool = False
    _body: dict[str, object] = field(init=False)

    def __post_init__(self) -> None:
        messages = [{"role": "user", "content": "How does a sluice gate work?"}]
        object.__setattr__(self, "_body", {"model": self.model, "messages": messages, "stream": self.stream})

    async def run(self, seconds: float) -> list[Sent]:
        """Returns: Every call, when the last one is over."""
        return await self.until(lambda passed: passed >= seconds)

    async def until(self, over: Callable[[float], bool]) -> list[Sent]:
        """Args: over: Told the seconds since the beginning; whether that was the last call."""
        tasks: list[asyncio.Task[Sent]] = []
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as http:
            began = time.monotonic()
            while not over(due := len(tasks) / self.rate):
                await asyncio.sleep(max(0.0, began + due - time.monotonic()))
                tasks.append(asyncio.create_task(self._one(http, began, due)))
            return list(await asyncio.gather(*tasks))

    async def _one(self, http: aiohttp.ClientSession, began: float, due: float) -> Sent:
        sent = time.monotonic()
        at, late = sent - began, sent - began - due
        headers = {"x-sluicegate-timeout": f"{self.timeout:g}"}
        first, pieces = math.nan, bytearray()
        try:
            async with http.post(
                f"{self.gateway.base_url}/chat/completions", json=self._body, headers=headers
            ) as reply:
                async for piece in reply.content.iter_any():
                    if not pieces:
                        first = time.monotonic() - sent
                    pieces += piece
        except (aiohttp.ClientError, OSError):
            return Sent(at, late, time.monotonic() - sent, 0)
        whole = not self.stream or (pieces.endswith(_DONE) and b'data: {"error"' not in pieces)
        upstream = reply.headers.get("x-sluicegate-upstream", "")
        ok = reply.status == 200 and whole
        return Sent(at, late, time.monotonic() - sent, reply.status, first, ok, upstream)


def percentile(values: Iterable[float], share: float) -> float:
    """Returns: The value that `share` of them do not exceed; NaN: there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def goodput(calls: Iterable[Sent], timeout: float, since: float, until: float) -> float:
    """Returns: Good answers a second that came between two moments, within their deadline."""
    good = sum(one.ok and one.seconds <= timeout and since <= one.done_at < until for one in calls)
    return good / (until - since)
