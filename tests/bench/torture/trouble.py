"""Batches in trouble, the long way: killed fifty times, frozen, cut off from their database, on a full disk."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from tests.bench.real.figures import Scene, count
from tests.bench.torture.disk import Disk
from tests.bench.torture.killing import PROMISED, Kill, kill, ledger, torment
from tests.bench.torture.order import Order, chats, order, upload
from tests.bench.torture.replicas import Replica, settings, two
from tests.bench.torture.slices import held_by, taken_over
from tests.postgres import Postgres
from tests.support import Server, eventually, serving

_MODEL = "m-latency=0.1"
_LEASE = 2


@contextmanager
def upstream() -> Iterator[tuple[Server, Path]]:
    """Yields: A simulator, and a folder."""
    with serving("simulate", "--latency", "0", "--tokens", "5") as simulator, tempfile.TemporaryDirectory() as name:
        yield simulator, Path(name)


async def kills(scene: Scene) -> None:
    lines, times = (5_000, 50) if not scene.quick else (800, 6)
    with upstream() as (simulator, folder):
        async with Replica(folder, settings(simulator, max_in_flight=16)) as replica:
            batch = await order(replica, chats(lines, _MODEL))
            await eventually(lambda: batch.has(1))
            died = await torment(batch, simulator, times, seed=1, longest=0.4)
            state = await batch.ended(300)
            await _tell(scene, f"SQLite, {lines:,} lines", simulator, batch, state, died)
    await _takeovers(scene)


async def _takeovers(scene: Scene) -> None:
    lines, times, draw = (10_000, 10, Random(2)) if not scene.quick else (1_500, 2, Random(2))
    seconds: list[tuple[float, float]] = []
    died: list[Kill] = []
    with upstream() as (simulator, folder), Postgres() as database:
        url = database.fresh()
        async with two(folder, settings(simulator, database_url=url, lease=_LEASE, max_in_flight=24)) as pair:
            one, other = pair
            batch = await order(one, chats(lines, _MODEL))
            while len(died) < times and not await batch.is_over():
                await asyncio.sleep(draw.uniform(0, 0.8))
                if not held_by(url, one.pid):
                    continue
                batch.at = other
                await batch.look()
                died.append(await kill(one, simulator))
                seconds += await _taken_over(url, one)
                await one.start()
                one, other = other, one
            state = await batch.ended(300)
            name = f"PostgreSQL, two replicas, {lines:,} lines"
            await _tell(scene, name, simulator, batch, state, died)
    claimed, first = (max(each) for each in zip(*seconds, strict=True))
    name = f"  {len(seconds)} takeovers, lease {_LEASE} s, the other one busy: worst until"
    scene.at_most(f"{name} a slice is taken, s", claimed, 2 * _LEASE)
    scene.at_most(f"{name} its first result, s", first, 2 * _LEASE)


async def _taken_over(url: str, dead: Replica) -> list[tuple[float, float]]:
    """Returns: Seconds from the death until a slice that it held is another's, and has a result; none: it held none."""
    began, held = time.monotonic(), held_by(url, dead.pid)
    if not held:
        return []
    await eventually(lambda: taken_over(url, held, 0), 60)
    claimed = time.monotonic() - began
    await eventually(lambda: taken_over(url, held), 60)
    return [(claimed, time.monotonic() - began)]


async def _tell(
    scene: Scene, name: str, simulator: Server, batch: Order, state: dict[str, Any], died: list[Kill]
) -> None:
    await batch.verified()
    extra = (await ledger(simulator))["calls"] - batch.total
    in_doubt, flying = state["progress"]["in_doubt"], sum(one.in_flight for one in died)
    scene.told(f"{name}: kills", f"{len(died)}; nothing lost, one result a line")
    ended = sum(one.just_ended for one in died)
    scene.told(f"  in flight at the kills; ended within {PROMISED * 1000:.0f} ms before", f"{flying}; {ended}")
    scene.at_most("  calls beyond the lines; at most: in doubt", extra, in_doubt, count)
    scene.at_most("  …; at most: in flight + just ended", extra, sum(one.bound for one in died), count)
    scene.told("  calls beyond the lines ÷ calls in flight at the kills", f"{extra / max(1, flying):.2f}")


async def stop(scene: Scene) -> None:
    """Frozen past its lease, again and again."""
    times = 5 if not scene.quick else 1
    with upstream() as (simulator, folder), Postgres() as database:
        url = database.fresh()
        async with two(folder, settings(simulator, database_url=url, lease=1, max_in_flight=24)) as (frozen, other):
            batch = await order(other, chats(1500 * times, _MODEL))
            for _ in range(times):
                await eventually(lambda: held_by(url, frozen.pid) != {}, 30)
                frozen.halt()
                held = held_by(url, frozen.pid)
                await eventually(lambda held=held: taken_over(url, held) or not held, 30)  # type: ignore[misc]
                frozen.go_on()
            await batch.ended(300)
            await batch.verified()
            lost = frozen.log().count("a slice was lost to another worker")
            scene.told(f"frozen past its lease {times} times", f"{lost} slices lost, one result a line")


async def away(scene: Scene) -> None:
    """The database, for longer than the lease."""
    seconds = scene.seconds(30, 5)
    with upstream() as (simulator, folder), Postgres() as database:
        env = settings(simulator, database_url=database.fresh(), lease=_LEASE, max_in_flight=24)
        async with Replica(folder, env) as replica:
            batch = await order(replica, chats(2_000, _MODEL))
            await eventually(lambda: batch.has(200), 30)
            await batch.look()
            await asyncio.to_thread(database.stop)
            told = set()
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                reply = await batch.ask(f"/batches/{batch.id}")
                told.add((reply.status_code, reply.json()["error"]["code"]))
                await asyncio.sleep(0.5)
            await asyncio.to_thread(database.start)
            back = time.monotonic()
            await eventually(lambda: batch.has(201), 60)
            again = time.monotonic() - back
            await batch.ended(120)
            await batch.verified()
            extra = (await ledger(simulator))["calls"] - batch.total
    scene.told(f"database away for {seconds:.0f} s: answers", ", ".join(f"{status} {code}" for status, code in told))
    scene.told("  next result after its return", f"{again:.1f} s")
    scene.at_most("  calls made twice", extra, 0, count)


async def full(scene: Scene) -> None:
    """The disk, for longer than the lease."""
    with upstream() as (simulator, folder):
        disk = Disk(folder / "disk", 24)
        try:
            env = settings(simulator, data_dir=disk.folder / "data", lease=_LEASE, max_in_flight=32)
            async with Replica(folder, env) as replica:
                batch = await order(replica, chats(2_000, _MODEL))
                await eventually(lambda: batch.has(100), 30)
                disk.fill(replica.pid)
                await asyncio.sleep(scene.seconds(10, 3))
                paused = (await batch.state())["progress"]["paused"]
                refused = (await upload(replica, chats(20_000))).status_code
                disk.relieve(replica.pid)
                await batch.ended(120)
                await batch.verified()
        finally:
            disk.close()
        extra = (await ledger(simulator))["calls"] - batch.total
    scene.told(f"disk full ({'tmpfs' if disk.is_mounted else 'RLIMIT_FSIZE'}): paused", f"{paused}")
    scene.told("  an upload meanwhile", f"{refused}")
    scene.at_most("  calls made twice", extra, 0, count)
