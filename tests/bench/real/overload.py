"""Five times what the upstream can do, for a minute."""

from tests.bench.real import servers
from tests.bench.real.figures import Scene, ms, punctual, share, spread
from tests.bench.real.load import Load, Sent, goodput, percentile

SLOTS = 20
_HELD = 0.2
_RATE = SLOTS / _HELD
_TIMEOUT = 2.0
UPSTREAMS = {
    "fixed": (f"m-slots={SLOTS}-latency={_HELD}", f"max_in_flight = {SLOTS}"),
    "adaptive, 429s": (f"m-busy={SLOTS}-latency={_HELD}", ""),
    "adaptive, queues": (f"m-slots={SLOTS}-latency={_HELD}", ""),
}


async def overload(scene: Scene) -> None:
    for name, (model, settings) in UPSTREAMS.items():
        async with servers.processes() as stack:
            server = await servers.gateway(stack, await servers.simulator(stack), settings=settings)
            at_rest = scene.seconds(8, 2)
            once = await Load(server, model, _RATE, _TIMEOUT).run(at_rest)
            seconds = scene.seconds(60, 4)
            five = await Load(server, model, 5 * _RATE, _TIMEOUT).run(seconds)
        peak, kept = goodput(once, _TIMEOUT, 1, at_rest), goodput(five, _TIMEOUT, 0, seconds)
        scene.at_least(f"{name}: goodput at 5x ÷ at 1x", kept / peak, 0.9, share)
        scene.told(f"{name}: answers a second at 1x, at 5x", f"{peak:.1f}, {kept:.1f}")
        refused = [one.seconds for one in five if one.status == 429]
        scene.at_most(f"{name}: a refusal takes, p99", percentile(refused, 0.99), 0.05, ms)
        scene.told(f"{name}: a refusal takes, p50 / p99 / max", spread(refused))
        scene.told(f"{name}: answers take, p50 / p99 / max", spread(one.seconds for one in five if one.ok))
        scene.told(f"{name}: what else became of calls", _others(five))
        punctual(scene, five)


def _others(calls: list[Sent]) -> str:
    found = sorted({one.status for one in calls} - {200, 429})
    late = sum(one.ok and one.seconds > _TIMEOUT for one in calls)
    told = [f"{sum(one.status == status for one in calls)} of {status or 'no reply'}" for status in found]
    return ", ".join([*told, *([f"{late} late"] if late else [])]) or "nothing"
