"""kill -9, again and again; and what may be repeated after it.

After a kill, a call may be made once more if it was in flight, or if it had ended and its result was not written yet.
The simulator counts the former; of the latter it can only tell which calls ended shortly before. The worker promises to
write what came back within 50 ms; a test on a busy machine allows for more.
"""

import asyncio
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.bench.torture.order import Order
from tests.bench.torture.replicas import Replica
from tests.support import Server

PROMISED = 0.05


@dataclass(frozen=True, slots=True)
class Kill:
    """Attributes:
    in_flight: Calls at the upstream then.
    just_ended: Calls that had ended shortly before.
    """

    in_flight: int
    just_ended: int

    @property
    def bound(self) -> int:
        """Calls that may have been made for nothing."""
        return self.in_flight + self.just_ended


async def ledger(simulator: Server) -> dict[str, Any]:
    return await asyncio.to_thread(simulator.ledger)


async def kill(replica: Replica, simulator: Server, within: float = PROMISED) -> Kill:
    """Kills it. Args: within: Seconds before it, in which calls have just ended."""
    before = await ledger(simulator)
    await asyncio.sleep(within)
    now = await ledger(simulator)
    await replica.kill()
    after = await ledger(simulator)
    return Kill(now["in_flight"] + after["calls"] - now["calls"], after["finished"] - before["finished"])


async def torment(
    order: Order, simulator: Server, times: int, seed: int, longest: float, within: float = PROMISED
) -> list[Kill]:
    """Kills and restarts the gateway at random moments, as long as the batch is not at its end.

    Args: longest: Seconds between a start and the next kill, at most.
    """
    draw, kills = Random(seed), []
    for _ in range(times):
        await asyncio.sleep(draw.uniform(0, longest))
        if await order.is_over():
            break
        await order.look()
        kills.append(await kill(order.at, simulator, within))
        await order.at.start()
    return kills
