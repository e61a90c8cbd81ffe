"""How fast batches go when nothing goes wrong, and what they cost."""

import asyncio
import contextlib
import gc
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

from tests.bench.real.figures import Scene, count, share
from tests.bench.torture.killing import ledger
from tests.bench.torture.order import Order, chats, embeddings, order
from tests.bench.torture.replicas import Replica, settings
from tests.support import Server, serving

GATEWAY_CORE = 0  # all else is on the other one: see tests/bench/batches.py
_MIB = 1024**2


@contextlib.asynccontextmanager
async def gateway(**more: object) -> AsyncIterator[tuple[Server, Replica]]:
    """Yields: A simulator and a gateway in front of it, on SQLite. Args: more: As `settings`."""
    with serving("simulate", "--latency", "0", "--tokens", "20") as simulator, tempfile.TemporaryDirectory() as name:
        async with Replica(Path(name), settings(simulator, **more), core=GATEWAY_CORE) as replica:
            yield simulator, replica


async def finished(batch: Order, seconds: float) -> dict[str, Any]:
    """Waits without being in the way. Returns: The batch object."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        await asyncio.sleep(0.1)
        state = await batch.state()
        if state["status"] == "completed":
            return state
    raise AssertionError(f"still {await batch.state()}")


async def packing(scene: Scene) -> None:
    """Embedding lines, one by one and packed."""
    lines = embeddings(int(scene.seconds(10_000, 2_000)), "m-latency=0.2")
    ideal = len(lines) / 256 * 0.2
    seconds, calls = {}, {}
    for packed in (False, True):
        async with gateway(max_in_flight=256) as (simulator, replica):
            await (await order(replica, embeddings(10, "warm"))).ended()
            began, before = time.perf_counter(), await ledger(simulator)
            batch = await order(replica, lines, pack_embeddings=packed)
            await finished(batch, 300)
            seconds[packed] = time.perf_counter() - began
            calls[packed] = (await ledger(simulator))["calls"] - before["calls"]
            await batch.verified()
    name = f"{len(lines):,} embedding lines"
    scene.told(f"{name}, 0.2 s each, 256 at once: ideal", f"{ideal:.2f} s")
    scene.told("  upload to completed", f"{seconds[False]:.2f} s, {calls[False]:,} calls")
    scene.at_most("  ÷ ideal", seconds[False] / ideal, 1.15)
    scene.told("  packed", f"{seconds[True]:.2f} s, {calls[True]:,} calls")
    scene.at_least("  packed: times fewer calls", calls[False] / calls[True], 20, count)


class Memory:
    """The highest resident memory of a process while the block runs; sampled every 100 ms."""

    def __init__(self, pid: int) -> None:
        self._statm = Path(f"/proc/{pid}/statm")
        self.idle = self.highest = self.now()

    def now(self) -> float:
        """Returns: MiB."""
        return int(self._statm.read_text().split()[1]) * 4096 / _MIB

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _watch(self) -> None:
        while True:
            self.highest = max(self.highest, self.now())
            await asyncio.sleep(0.1)


async def many(scene: Scene) -> None:
    """A hundred thousand chat lines."""
    lines = chats(int(scene.seconds(100_000, 10_000)), "m-latency=0.05")
    async with gateway(max_in_flight=256) as (_, replica):
        await (await order(replica, chats(100))).ended()
        async with Memory(replica.pid) as memory:
            began = time.perf_counter()
            batch = await order(replica, lines)
            while (await batch.state())["status"] == "validating":
                await asyncio.sleep(0.02)
            accepted = time.perf_counter()
            state = await finished(batch, 1200)
            ended = time.perf_counter()
        good, _ = await batch.verified()
        assert len(good) == len(lines)
    size = sum(map(len, lines)) / _MIB
    scene.at_most(f"{len(lines):,} chat lines ({size:.0f} MiB): uploaded and validated, s", accepted - began, 15)
    scene.told("  upload to completed", f"{ended - began:.1f} s")
    scene.told("  results a second, from validated to completed", f"{len(lines) / (ended - accepted):.0f}")
    scene.told("  completed_at - finalizing_at", f"{state['completed_at'] - state['finalizing_at']} s")
    scene.at_most(f"  memory over idle ({memory.idle:.0f} MiB), MiB", memory.highest - memory.idle, 80, count)


async def cost(scene: Scene) -> None:
    """Claims and commits for 1,000 results a second, on SQLite, in a process that does nothing else."""
    from tests.bench.torture.pulses import Pulses  # noqa: PLC0415 - the app is loaded where it is measured

    seconds = scene.seconds(20, 4)
    with (
        tempfile.TemporaryDirectory() as name,
        contextlib.closing(Pulses(Path(name), lines=int(seconds * 1200))) as pulses,
    ):
        await pulses.prepare()
        gc.collect()
        idle = await pulses.run(seconds / 2, write=False)
        busy = await pulses.run(seconds, write=True)
    scene.told("pulses of 15 ms at 1,000 results/s: commits, claims", f"{pulses.commits:,}, {pulses.claims:,}")
    scene.told("  process CPU of the same loop without the ledger", share(idle))
    scene.told("  process CPU in all", share(busy))
    scene.at_most("  CPU of claim + commit, of a core", busy - idle, 0.15, share)
