"""What is known of one model family at one upstream: its limits, its health, what its calls usually take."""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Any

from app.policies.breaker import Breaker, Permit
from app.policies.estimate import TokenEstimate
from app.policies.limiter import Limiter
from app.policies.limits import Limits
from app.policies.patience import Patience

log = logging.getLogger("sluicegate")
_MOST_FAMILIES = 64
_MOST_NAMES = 1024
_LONGEST_NAME = 256
_OTHERS = "*"  # where there are more: models' names come from clients
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

    __slots__ = ("breaker", "estimate", "limiter", "name", "overdue", "patience", "time", "used_at")

    def __init__(self, name: str, limits: Limits, time: Callable[[], float]) -> None:
        self.name = name
        self.time = time
        self.used_at = time()
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
        """A call failed. Once the breaker is open, those that are overdue wait no longer."""
        was = self.breaker.state
        self.breaker.failed(permit, reason, self.time(), alone=alone)
        if self.breaker.state == "closed":
            return
        if was == "closed":
            log.warning("%s is left alone for a moment: %s", self.name, self.breaker.reason)
        for task in self.overdue:
            task.cancel()

    @property
    def is_as_new(self) -> bool:
        """Whether nothing is known of it that would be missed."""
        return self.breaker.state == "closed" and self.limiter.is_idle(self.time())

    def snapshot(self) -> dict[str, object]:
        """Returns: JSON-ready: limits as they are known now, what is left of them, the breaker; times in seconds."""
        now, limiter, breaker = self.time(), self.limiter, self.breaker
        return {
            "in_flight": limiter.in_flight,
            "limit": limiter.concurrency.limit,
            "settled": limiter.concurrency.settled,
            "reserve": limiter.reserve,
            "queued": {lane: queue.count for lane, queue in limiter.lanes.items()},
            "paused_seconds": round(max(0.0, limiter.pause.until - now), 3),
            "requests": limiter.requests.snapshot(now),
            "tokens": limiter.tokens.snapshot(now),
            "breaker": {
                "state": breaker.state,
                "reason": breaker.reason or None,
                "open_until": round(time.time() + breaker.open_until - now, 3) if breaker.state != "closed" else None,
                "opened": breaker.opened,
            },
        }


class Families:
    """Those of one upstream, a bounded number of them.

    Args:
        upstream: Its name.
        limits: What is known of each family's.
        time: The event loop's clock.
    """

    def __init__(self, upstream: str, limits: Limits, time: Callable[[], float]) -> None:
        self.known: dict[str, Family] = {}
        self._upstream = upstream
        self._limits = limits
        self._time = time
        self._names: dict[str, str] = {}

    def of(self, model: str | None) -> Family:
        """Args: model: The upstream's name of it; None: the call names none."""
        name = self._names.get(model or "")
        family = self.known.get(name) if name is not None else None
        if family is None:
            family = self._found(model or "")
        family.used_at = self._time()
        return family

    def _found(self, model: str) -> Family:
        name = family_of(model) if len(model) <= _LONGEST_NAME else _OTHERS
        if name not in self.known and len(self.known) >= _MOST_FAMILIES and not self._made_room():
            name = _OTHERS
        elif len(model) <= _LONGEST_NAME:
            if len(self._names) >= _MOST_NAMES:
                self._names.clear()
            self._names[model] = name
        if name not in self.known:
            self.known[name] = Family(f"{self._upstream}/{name}", self._limits, self._time)
        return self.known[name]

    def _made_room(self) -> bool:
        """Forgets the one that has not been used for longest, of those that would not be missed."""
        idle = [name for name, family in self.known.items() if family.is_as_new]
        if not idle:
            return False
        del self.known[min(idle, key=lambda name: self.known[name].used_at)]
        return True
