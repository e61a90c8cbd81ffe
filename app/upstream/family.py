"""What is known of one model family at one upstream: its limits, its health, what its calls usually take."""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Any

from app.policies.breaker import Breaker, Permit
from app.policies.estimate import TokenEstimate
from app.policies.limiter import Limiter, Limits
from app.policies.patience import Patience

log = logging.getLogger("sluicegate")
_VERSION = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|\d{4}|latest)$")


def family_of(model: str) -> str:
    """Returns: The name under which upstreams count a model: dated versions and fine-tunes go with their base."""
    base = model.split(":")[1] if model.startswith("ft:") else model
    return _VERSION.sub("", base)


class Family:
    """Args:
    name: `UPSTREAM/MODEL`, for the log.
    limits: What is known beforehand.
    time: The event loop's clock.
    """

    __slots__ = ("breaker", "estimate", "limiter", "name", "overdue", "patience", "time")

    def __init__(self, name: str, limits: Limits, time: Callable[[], float]) -> None:
        self.name = name
        self.time = time
        self.limiter = Limiter(limits, time())
        self.breaker = Breaker(time())
        self.estimate = TokenEstimate()
        self.patience = {True: Patience(), False: Patience()}  # whole replies, streams
        self.overdue: set[asyncio.Task[Any]] = set()  # attempts that another target could take over

    def is_well(self, permit: Permit) -> None:
        """A call was answered."""
        was = self.breaker.state
        self.breaker.succeeded(permit, self.time())
        if was != self.breaker.state:
            log.warning("%s is well again", self.name)

    def strike(self, permit: Permit, reason: str, *, alone: bool) -> None:
        """A call failed. Where that opens the breaker, those that still wait for an answer wait no longer."""
        was = self.breaker.state
        self.breaker.failed(permit, reason, self.time(), alone=alone)
        if self.breaker.state != "open" or was == "open":
            return
        if was == "closed":
            log.warning("%s is left alone for a moment: %s", self.name, self.breaker.reason)
        for task in self.overdue:
            task.cancel()

    def snapshot(self) -> dict[str, object]:
        """Returns: JSON-ready: limits as they are known now, what is left of them, the breaker; times in seconds."""
        now, limiter, breaker = self.time(), self.limiter, self.breaker
        return {
            "in_flight": limiter.in_flight,
            "limit": limiter.concurrency.limit,
            "settled": limiter.concurrency.settled,
            "reserve": limiter.reserve,
            "queued": {lane: queue.count for lane, queue in limiter.lanes.items()},
            "paused_seconds": round(max(0.0, limiter.paused_until - now), 3),
            "requests": limiter.requests.snapshot(now),
            "tokens": limiter.tokens.snapshot(now),
            "breaker": {
                "state": breaker.state,
                "reason": breaker.reason or None,
                "open_until": round(time.time() + breaker.open_until - now, 3) if breaker.state != "closed" else None,
                "opened": breaker.opened,
            },
        }
