"""From a client's going, or his stop button, to the end of what was done for him, in every state that a call can be in."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.bench.real.load import percentile
from tests.bench.streaming.gateway import gateway
from tests.bench.streaming.healthy import healthy
from tests.bench.streaming.scene import StreamScene, ranks
from tests.bench.streaming.sockets import SYN_SENT, connections, going_deaf, handle_of, is_open
from tests.bench.streaming.upstream import Plan, Upstream, upstream
from tests.bench.streaming.wire import Client, Figures, Reply, asked, request

_GAP = 0.05
_P99, _MAX = 0.25, 1.0
_SLOTS = 2
_TOGETHER = 8


@dataclass(frozen=True, slots=True)
class _Bench:
    """Attributes:
    pid: The gateway's.
    deaf: The port of an upstream that nobody can connect to.
    draw: When a client goes.
    """

    client: Client
    source: Upstream
    figures: Figures
    pid: int
    deaf: int
    draw: Random

    async def queued(self) -> int:
        found: int = (await self.figures.now())["upstreams"]["narrow"]["queued"]
        return found

    async def connecting(self) -> tuple[Path, str]:
        """Returns: The gateway's only connection that is being made, as `is_open` knows it."""
        while True:
            inodes = (one.inode for one in connections(self.deaf) if one.state == SYN_SENT)
            if (inode := next(inodes, None)) and (handle := handle_of(self.pid, inode)):
                return handle, inode
            await asyncio.sleep(0.001)


class _Caller:
    """One client and his call. Args: stops: He presses the stop button of a resumable stream; else he hangs up."""

    def __init__(self, bench: _Bench, name: str, model: str, number: int, *, stops: bool) -> None:
        self._bench = bench
        self._name = name
        self._model = model
        self._number = number
        self._stops = stops
        self._id = ""
        self._reply: Reply | None = None

    async def call(self, *, stream: bool) -> None:
        client = self._bench.client
        if self._stops:
            self._id = await client.begin(self._name, self._model)
        else:
            body = {**asked(self._name, self._model), "stream": stream}
            self._reply = await client.send(request("POST", "/v1/chat/completions", body))

    async def go(self) -> float:
        """Returns: When he went."""
        await asyncio.sleep(self._bench.draw.uniform(0, _GAP))
        now = time.monotonic()
        if self._reply is not None:
            self._reply.cut(reset=self._number % 2 == 0)
        else:
            await self._bench.client.send(request("DELETE", f"/v1/streams/{self._id}"))
        return now


_Sample = Callable[[_Bench, int, bool], Awaitable[float]]


async def _queued(bench: _Bench, number: int, stops: bool) -> float:
    caller = _Caller(bench, f"q{number}", "narrow/m", number, stops=stops)
    await caller.call(stream=number % 4 < 2)
    while await bench.queued() != 1:
        pass
    gone = await caller.go()
    while await bench.queued():
        pass
    return time.monotonic() - gone


async def _connecting(bench: _Bench, number: int, stops: bool) -> float:
    caller = _Caller(bench, f"c{number}", "deaf/m", number, stops=stops)
    await caller.call(stream=number % 4 < 2)
    its = await bench.connecting()
    gone = await caller.go()
    while is_open(*its):
        await asyncio.sleep(0.001)
    return time.monotonic() - gone


def _at_upstream(state: str, plan: Plan, sent: int = 0) -> _Sample:
    """Args: sent: Tokens that have been written when the client goes."""

    async def sample(bench: _Bench, number: int, stops: bool) -> float:
        name = f"{state}-{stops}-{number}"
        bench.source.plans[name] = plan
        caller = _Caller(bench, name, "u/m", number, stops=stops)
        await caller.call(stream=sent > 0 or number % 4 < 2)
        call = await bench.source.came(name, sent)
        gone = await caller.go()
        await asyncio.wait_for(call.gone, 10)
        return call.closed - gone

    return sample


STATES: dict[str, tuple[_Sample, int]] = {  # and how many at once
    "queued": (_queued, 1),
    "connecting": (_connecting, 1),
    "before the headers": (_at_upstream("headers", Plan(silent="head")), _TOGETHER),
    "before the first token": (_at_upstream("first", Plan(silent="token")), _TOGETHER),
    "streaming": (_at_upstream("streaming", Plan(), sent=2), _TOGETHER),
}


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


async def hangup(scene: StreamScene) -> None:
    samples, others = int(scene.seconds(200, 8)), int(scene.seconds(100, 10))
    async with _scene(scene.core) as bench, healthy(bench.client, bench.source, others, "u/m"):
        for stops in (False, True):
            for state, (sample, together) in STATES.items():
                found = await _sampled(bench, sample, samples, together, stops=stops)
                name = f"{'DELETE' if stops else 'hang-up'}, {state}"
                scene.at_most(f"{name}: p99 (p50: {_ms(percentile(found, 0.5))})", percentile(found, 0.99), _P99, _ms)
                scene.at_most(f"{name}: max", max(found), _MAX, _ms)
        scene.told("the bench's own delay: p50, p99", ranks(bench.source.pacer.late))


async def _sampled(bench: _Bench, sample: _Sample, samples: int, together: int, *, stops: bool) -> list[float]:
    found: list[float] = []
    for first in range(0, samples, together):
        places = range(first, min(first + together, samples))
        found += await asyncio.gather(*(sample(bench, place, stops) for place in places))
    return found


@contextlib.asynccontextmanager
async def _scene(core: int | None) -> AsyncIterator[_Bench]:
    """A gateway with an upstream that answers, one whose slots are taken, and one that cannot be connected to."""
    async with going_deaf() as (port, is_deaf), upstream(_GAP) as source:
        known = {
            "upstreams__narrow__base_url": source.base_url,
            "upstreams__narrow__max_in_flight": _SLOTS,
            "upstreams__deaf__base_url": f"http://127.0.0.1:{port}/v1",
            "upstreams__deaf__connect_timeout": 60,
        }
        async with (
            gateway(source.base_url, core, **known) as (replica, client),
            healthy(client, source, _SLOTS, "narrow/m"),
        ):
            await is_deaf
            with contextlib.closing(Figures(client.port)) as figures:
                yield _Bench(client, source, figures, replica.pid, port, Random(7))
