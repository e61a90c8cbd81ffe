"""An upstream that answers 503 to everything for a minute, and is well again."""

import asyncio

from tests.bench.real import servers
from tests.bench.real.figures import Scene, punctual, share
from tests.bench.real.load import Load, Sent

_RATE = 200
_SETTLED = 10.0  # seconds after healing


async def storm(scene: Scene) -> None:
    async with servers.processes() as stack:
        upstream = await servers.simulator(stack)
        load = Load(await servers.gateway(stack, upstream), "m", _RATE, timeout=10)
        await load.run(scene.seconds(5, 2))
        await asyncio.to_thread(upstream.ledger, reset=True)
        await asyncio.to_thread(upstream.fault, status=503)
        ill = await load.run(scene.seconds(60, 5))
        attempts = (await asyncio.to_thread(upstream.ledger))["calls"] / len(ill)
        await asyncio.to_thread(upstream.heal)
        well = await load.run(_SETTLED + scene.seconds(10, 2))
    scene.at_most("attempts a request, all answered 503", attempts, 1.2)
    settled = [one.ok for one in well if one.at >= _SETTLED]
    scene.at_least("succeed from 10 s after healing", sum(settled) / len(settled), 0.99, share)
    scene.told("until a second with 99 %", f"{_first_good_second(well)} s")
    punctual(scene, ill + well)


def _first_good_second(calls: list[Sent]) -> int | str:
    for second in range(int(calls[-1].at) + 1):
        ok = [one.ok for one in calls if int(one.at) == second]
        if ok and sum(ok) >= 0.99 * len(ok):
            return second
    return "never"
