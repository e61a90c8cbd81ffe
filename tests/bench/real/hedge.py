"""Two targets, the first of which is slow now and then."""

import asyncio
from typing import Any

from tests.bench.real import servers
from tests.bench.real.figures import Scene, ms, punctual, share
from tests.bench.real.load import Load, Sent, percentile

_RATE = 100
_SLOW_SHARE = 0.02
_SLOW_SECONDS = 1.0


async def hedge(scene: Scene) -> None:
    kinds = ("fallback", "hedge")
    both = await asyncio.gather(*(_run(scene, kind) for kind in kinds))
    p99 = {}
    for kind, (calls, _) in zip(kinds, both, strict=True):
        taken = [one.seconds for one in calls]
        p99[kind] = percentile(taken, 0.99)
        scene.told(f"{kind}: p98 / p99", f"{ms(percentile(taken, 0.98))} / {ms(p99[kind])}")
        punctual(scene, calls)
    scene.at_most("hedge: p99 ÷ fallback's", p99["hedge"] / p99["fallback"], 0.5)
    _, second = both[1]
    scene.at_most("hedge: calls asked twice", second["calls"] / second["of"], 0.02, share)


async def _run(scene: Scene, strategy: str) -> tuple[list[Sent], dict[str, Any]]:
    """Returns: The calls of the slow time; what the second target saw, with all calls as `of`."""
    async with servers.processes() as stack:
        first, second = await servers.simulators(stack, 2)
        load = Load(await servers.gateway(stack, first, second, strategy=strategy), "m", _RATE, timeout=10)
        warm = await load.run(scene.seconds(5, 3))
        await asyncio.to_thread(first.fault, share=_SLOW_SHARE, latency=_SLOW_SECONDS)
        calls = await load.run(scene.seconds(30, 10))
        ledger = await asyncio.to_thread(second.ledger)
        return calls, {**ledger, "of": len(warm) + len(calls)}
