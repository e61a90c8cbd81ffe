"""One of three targets falls silent, is then killed outright, and comes back."""

import asyncio

from tests.bench.real import servers
from tests.bench.real.figures import Scene, count, ms, punctual
from tests.bench.real.load import Load, Sent, percentile
from tests.support import Server

_RATE = 100
_TIMEOUT = 10.0


async def hole(scene: Scene) -> None:
    kinds = [(strategy, stream) for strategy in ("fallback", "balance") for stream in (False, True)]
    together = len(kinds) if scene.quick else 2
    for place in range(0, len(kinds), together):
        group = kinds[place : place + together]
        found = await asyncio.gather(*(_run(scene, strategy, stream=stream) for strategy, stream in group))
        for (strategy, stream), seen in zip(group, found, strict=True):
            _tell(scene, f"{strategy}, {'streamed' if stream else 'whole'}", *seen)


def _tell(scene: Scene, name: str, calls: list[Sent], warm: float, back: float, lost: int) -> None:
    scene.at_most(f"{name}: failed calls", sum(not one.ok for one in calls), 5, count)
    before = percentile((one.seconds for one in calls if 1 <= one.at < warm), 0.99)
    during = percentile((one.seconds for one in calls if warm <= one.at < back), 0.99)
    scene.told(f"{name}: p99 before, and more during the faults", f"{ms(before)}, {ms(during - before)}")
    scene.told(f"{name}: sent into the hole", str(lost))
    scene.told(f"{name}: how they failed", _how(calls))
    punctual(scene, calls)


async def _run(scene: Scene, strategy: str, *, stream: bool) -> tuple[list[Sent], float, float, int]:
    """Returns: All calls, when the hole opened, when the target was back, and how many calls fell in."""
    warm = scene.seconds(10, 3)
    async with servers.processes() as stack:
        three = await servers.simulators(stack, 3)
        server = await servers.gateway(stack, *three, strategy=strategy)
        load = Load(server, "m", _RATE, _TIMEOUT, stream)
        lost, began = 0, asyncio.get_running_loop().time()
        back = warm

        async def ill(target: Server) -> None:
            nonlocal lost, back
            await asyncio.sleep(warm)
            await asyncio.to_thread(target.ledger, reset=True)
            await asyncio.to_thread(target.fault, hole=True)
            await asyncio.sleep(scene.seconds(30, 4))
            lost = (await asyncio.to_thread(target.ledger))["calls"]
            await servers.kill(target)
            await asyncio.sleep(scene.seconds(10, 2))
            await servers.simulator(stack, port=servers.port_of(target))
            back = asyncio.get_running_loop().time() - began

        fault = asyncio.create_task(ill(three[0]))
        calls = await load.until(lambda passed: fault.done() and passed >= back + scene.seconds(5, 1))
        await fault
    return calls, warm, back, lost


def _how(calls: list[Sent]) -> str:
    failed = [one for one in calls if not one.ok]
    told = [f"{one.status} at {one.at:.1f} s after {one.seconds:.1f} s" for one in failed[:3]]
    return "; ".join(told) + (" …" if len(failed) > 3 else "") or "-"
