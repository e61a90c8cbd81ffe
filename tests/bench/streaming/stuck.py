"""Readers that stop reading: what they cost, when they are dropped, and what the others notice."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Literal

from tests.bench.real.figures import count
from tests.bench.real.load import percentile
from tests.bench.streaming.gateway import gateway, waited_seconds
from tests.bench.streaming.healthy import healthy
from tests.bench.streaming.scene import StreamScene, ranks
from tests.bench.streaming.sockets import unsent_to
from tests.bench.streaming.upstream import Plan, Upstream, upstream
from tests.bench.streaming.wire import Client, Sink, asked, request
from tests.bench.torture.replicas import Replica
from tests.bench.torture.speed import Memory

_GAP = 0.02  # and 200 others: 10,000 tokens a second, a usual load of one core, where a lone token takes no time at all
_LOOK = 0.05
_MOST_MIB = 50.0
_OTHERS_MAY = 1.1
_SLOW = Plan(every=50)  # a token a second
_FAT = 8 * 1024  # bytes of a token
_BUFFER = {False: 4096, True: 32 * 1024}  # a reader's, by whether he reads well before he stops
_WARM = 50  # fat ones at once, to one that reads: a fast connection gets large buffers in the kernel
_FILL = 32  # to one that does not: more than his connection should take before it blocks
_APART = 0.01  # seconds between two readers' stopping
_NEXT = 10  # readers later, each is sent one token more
_SETTLED = 0.5

_When = Literal["alone", "filling", "read", "filling the stuck", "stuck"]


@dataclass
class _Reader:
    """One that stops reading.

    Attributes:
        id: Of the resumable stream that he reads; empty: it is a plain one.
        warm: He has read well before he stops; else he has read nothing but headers.
        unsent: Bytes for him that lie in the gateway's kernel.
        moved: When that last changed: from then on nothing could be sent.
        dropped: When the gateway let him go.
    """

    name: str
    id: str
    sink: Sink
    warm: bool
    unsent: int = -1
    moved: float = 0.0
    dropped: float = math.inf


@dataclass
class _Seen:
    """Attributes:
    windows: From, until, and the share of that time in which the gateway stood in line for its core.
    grown: MiB over the state before they were sent what they do not read, in each round.
    would: Likewise, when they do read it.
    stuck: Seconds that each reader was; by whether he had read well before.
    """

    windows: list[tuple[_When, float, float, float]] = field(default_factory=list)
    grown: list[float] = field(default_factory=list)
    would: list[float] = field(default_factory=list)
    stuck: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    tasks: list[int] = field(default_factory=list)


@dataclass
class _Stage:
    scene: StreamScene
    source: Upstream
    replica: Replica
    client: Client
    seen: _Seen
    eyes: Executor

    async def look(self) -> dict[int, int]:
        """As `unsent_to`, a moment later, and in a process of its own: here it would be in the way of the others."""
        await asyncio.sleep(_LOOK)
        return await asyncio.get_running_loop().run_in_executor(self.eyes, unsent_to, self.client.port)

    async def _look_on(self) -> None:
        while True:
            await self.look()

    @contextlib.asynccontextmanager
    async def window(self, when: _When) -> AsyncIterator[None]:
        began, waited = time.monotonic(), waited_seconds(self.replica.pid)
        yield
        ended = time.monotonic()
        share = (waited_seconds(self.replica.pid) - waited) / (ended - began)
        self.seen.windows.append((when, began, ended, share))

    async def pass_time(self, when: _When) -> None:
        looking = asyncio.create_task(self._look_on(), name="looking")  # as while they are stuck, which costs the same
        async with self.window(when):
            await asyncio.sleep(self.scene.seconds(10, 1))
        looking.cancel()
        await asyncio.wait({looking})


async def stuck(scene: StreamScene) -> None:
    readers, others = int(scene.seconds(200, 12)), int(scene.seconds(200, 20))
    patience = scene.seconds(5, 1)
    seen = _Seen()
    async with contextlib.AsyncExitStack() as stack:
        eyes = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
        source = await stack.enter_async_context(upstream(_GAP))
        server = gateway(source.base_url, scene.core, send_timeout=patience)
        replica, client = await stack.enter_async_context(server)
        beside = await stack.enter_async_context(healthy(client, source, others))
        stage = _Stage(scene, source, replica, client, seen, eyes)
        await stage.look()
        await asyncio.sleep(scene.seconds(3, 0.5))
        for turn in range(int(scene.seconds(3, 1))):
            await stage.pass_time("alone")
            await _who_read(stage, f"read{turn}", readers)
            await _who_stop(stage, f"fat{turn}", readers, patience)
            await stage.pass_time("alone")
        late = ranks(source.pacer.late)  # before the sums are done, which take their time
        delays, lost = beside.delays(), beside.lost()
    _tell_stuck(scene, seen, readers, patience)
    _tell_others(scene, seen, delays, others)
    scene.at_most("  their tokens lost", lost, 0, count)
    scene.told("the bench's own delay: p50, p99", late)


def _tell_stuck(scene: StreamScene, seen: _Seen, readers: int, patience: float) -> None:
    names = {False: "that have read nothing but headers", True: "that have read well before"}
    for warm, name in names.items():
        some = seen.stuck[warm]
        dropped = sum(not math.isinf(one) for one in some)
        scene.at_least(f"{readers // 2} readers {name} stop; dropped, of all rounds", dropped, len(some), count)
        scene.at_most(f"  stuck until dropped, at most, s (send_timeout = {patience:g})", max(some), patience + 1)
        scene.told("  likewise: p50", f"{percentile(some, 0.5):.2f} s")
    scene.at_most("gateway's memory over that just before, MiB", max(seen.grown), _MOST_MIB, count)
    scene.told("  likewise, each round", _signed(seen.grown))
    scene.told("  and where they read the same, each round", _signed(seen.would))
    scene.told("gateway's tasks before, after each round", ", ".join(map(str, seen.tasks)))


def _signed(values: list[float]) -> str:
    return ", ".join(f"{one:+.0f}" for one in values)


def _tell_others(scene: StreamScene, seen: _Seen, delays: list[tuple[float, float]], others: int) -> None:
    parts: dict[_When, str] = {
        "alone": f"{others} others' delay of a token without them: p50, p99 (gateway stood in line)",
        "filling": "  while 0.3 MB is sent to each of as many, who read it",
        "read": "  while these read on",
        "filling the stuck": "  while 0.3 MB is sent to each that does not read",
        "stuck": "  while they are stuck, and dropped",
    }
    p99: dict[str, float] = {}
    for when, name in parts.items():
        windows = [(since, until) for kind, since, until, _ in seen.windows if kind == when]
        found = [delay for at, delay in delays if any(since <= at < until for since, until in windows)]
        waited = [share for kind, _, _, share in seen.windows if kind == when]
        p99[when] = percentile(found, 0.99)
        scene.told(name, f"{ranks(found)} ({sum(waited) / len(waited):.0%})")
    scene.at_most("  p99: stuck ÷ without them", p99["stuck"] / p99["alone"], _OTHERS_MAY)
    scene.told("  p99: stuck ÷ as many who read", f"{p99['stuck'] / p99['read']:.2f}")
    scene.told("  p99: filling the stuck ÷ filling who read", f"{p99['filling the stuck'] / p99['filling']:.2f}")


async def _who_read(stage: _Stage, name: str, count: int) -> None:
    """What as many streams cost whose readers read all along."""
    readers = await _opened(stage, name, count)
    async with Memory(stage.replica.pid) as memory:
        await _fill(stage, readers, "filling")
        await stage.pass_time("read")
    stage.seen.would.append(memory.highest - memory.idle)
    await _end(stage, readers)


async def _who_stop(stage: _Stage, name: str, count: int, patience: float) -> None:
    seen = stage.seen
    seen.tasks.append((await stage.client.status())["tasks"])
    readers = await _opened(stage, name, count, stops=True)
    async with Memory(stage.replica.pid) as memory:
        watch = asyncio.create_task(_watch(stage, readers), name="watch")
        await _fill(stage, readers, "filling the stuck")
        async with stage.window("stuck"):
            await asyncio.wait({watch}, timeout=patience + 10)
            await asyncio.sleep(_SETTLED)
        watch.cancel()
    seen.grown.append(memory.highest - memory.idle)
    for reader in readers:
        seen.stuck[reader.warm].append(reader.dropped - reader.moved)
    await _end(stage, readers)
    seen.tasks.append((await stage.client.status())["tasks"])


async def _opened(stage: _Stage, name: str, count: int, *, stops: bool = False) -> list[_Reader]:
    """Returns: Readers of plain and of resumable streams; half of each have read something."""
    readers = [
        await _reading(stage, f"{name}-{place}", plain=place % 2 == 0, warm=place % 4 < 2) for place in range(count)
    ]
    for reader in readers:
        if reader.warm:
            stage.source.calls[reader.name].write(_WARM, _FAT)
            await asyncio.sleep(_APART)
    await asyncio.sleep(stage.scene.seconds(2, 1))
    if stops:
        for reader in readers:
            reader.sink.stop_reading()
    return readers


async def _fill(stage: _Stage, readers: list[_Reader], when: _When) -> None:
    async with stage.window(when):
        calls = [stage.source.calls[reader.name] for reader in readers]
        for place in range(len(calls) + _NEXT):
            if place < len(calls):
                calls[place].write(_FILL, _FAT)
            if place >= _NEXT:
                calls[place - _NEXT].write(1)  # what the gateway cannot send any more
            await asyncio.sleep(_APART)
        await asyncio.sleep(_SETTLED)


async def _end(stage: _Stage, readers: list[_Reader]) -> None:
    for reader in readers:
        reader.sink.cut()
        if reader.id:
            await stage.client.ask("DELETE", f"/v1/streams/{reader.id}")
    await asyncio.sleep(_SETTLED)


async def _reading(stage: _Stage, name: str, *, plain: bool, warm: bool) -> _Reader:
    stage.source.plans[name] = _SLOW
    if plain:
        id_, sent = "", request("POST", "/v1/chat/completions", {**asked(name), "stream": True})
    else:
        id_ = await stage.client.begin(name)
        sent = request("GET", f"/v1/streams/{id_}/events")
    reader = _Reader(name, id_, await stage.client.sink(sent, _BUFFER[warm]), warm)
    await stage.source.came(name)
    return reader


async def _watch(stage: _Stage, readers: list[_Reader]) -> None:
    """Returns when all have been dropped."""
    left = {reader.sink.port: reader for reader in readers}
    while left:
        now = time.monotonic()
        there = await stage.look()
        for number, reader in list(left.items()):
            unsent = there.get(number)
            if unsent is None:
                reader.dropped = now
                del left[number]
            elif unsent != reader.unsent:
                reader.unsent, reader.moved = unsent, now
