"""A large fan-out beside people who chat, on one upstream and one quota."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.bench.real import servers
from tests.bench.real.figures import Scene, ms, punctual
from tests.bench.real.load import Load, Sent, percentile
from tests.support import Server

_SLOTS = 50
_HELD = 0.15
_CHATS = 5.0  # a second
_CHAT_HOLDS = _HELD + 5 * 0.001


@dataclass(frozen=True, slots=True)
class _Limit:
    """Attributes: knob: As the model's name has it."""

    knob: str
    size: int

    @property
    def model(self) -> str:
        return f"m-{self.knob}={self.size}-latency={_HELD}"

    def ideal(self, items: int) -> float:
        """Returns: Seconds that it takes whoever knows the limit and loses nothing, beside the chats."""
        if self.knob == "rpm":
            return (items - self.size) / (self.size / 60 - _CHATS)
        return items * _HELD / (_SLOTS - _CHATS * _CHAT_HOLDS)


@dataclass(frozen=True, slots=True)
class _Seen:
    alone: list[Sent]
    with_it: list[Sent]
    seconds: float
    failed: int
    refused: int  # by the simulator


async def beside(scene: Scene) -> None:
    items = 1_000 if scene.quick else 10_000
    limits = [
        _Limit("slots", _SLOTS),
        _Limit("busy", _SLOTS),
        _Limit("rpm", int(items * (0.9 if scene.quick else 0.8))),
    ]
    if scene.quick:
        found = await asyncio.gather(*(_run(scene, limit, items) for limit in limits))
    else:
        found = [await _run(scene, limit, items) for limit in limits]
    for limit, seen in zip(limits, found, strict=True):
        _tell(scene, limit, items, seen)


async def _run(scene: Scene, limit: _Limit, items: int) -> _Seen:
    async with servers.processes() as stack:
        upstream = await servers.simulator(stack)
        server = await servers.gateway(stack, upstream)
        chats = Load(server, limit.model, _CHATS, timeout=60, stream=True)
        alone = await chats.run(scene.seconds(8, 3))
        await asyncio.to_thread(upstream.ledger, reset=True)
        fan_out = asyncio.create_task(_fan_out(server, limit.model, items))
        with_it = await chats.until(lambda _: fan_out.done())
        seconds, counts = await fan_out
        refused = (await asyncio.to_thread(upstream.ledger))["statuses"].get("429", 0)
    return _Seen(alone, with_it, seconds, counts["failed"], refused)


def _tell(scene: Scene, limit: _Limit, items: int, seen: _Seen) -> None:
    name = f"{limit.knob}={limit.size}"
    for rank, share in (("p50", 0.5), ("p99", 0.99)):
        before, beside_it = (percentile((one.first for one in some), share) for some in (seen.alone, seen.with_it))
        scene.told(f"{name}: a chat's first token without, with the fan-out, {rank}", f"{ms(before)}, {ms(beside_it)}")
    scene.at_most(f"{name}: chats that failed", sum(not one.ok for one in seen.with_it), 0, "{:.0f}".format)
    scene.at_most(f"{name}: items that failed", seen.failed, 0, "{:.0f}".format)
    ideal = limit.ideal(items)
    scene.told(f"{name}: fan-out ÷ ideal", f"{seen.seconds:.1f} s ÷ {ideal:.1f} s = {seen.seconds / ideal:.2f}")
    refused = f"{seen.refused} ({seen.refused / (items + len(seen.with_it)):.2%})"
    scene.told(f"{name}: 429s by the upstream", refused)
    punctual(scene, seen.with_it)


async def _fan_out(server: Server, model: str, items: int) -> tuple[float, dict[str, Any]]:
    """Returns: The seconds it took, and its counts."""
    messages = [{"role": "user", "content": "Say it in other words."}]
    body = {"defaults": {"model": model, "messages": messages}, "requests": [{"body": {}}] * items}
    began = time.monotonic()
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http,
        http.post(f"{server.base_url}/fanout", json=body) as reply,
    ):
        answer = await reply.json()
    return time.monotonic() - began, answer["counts"]
