"""The admission point of one upstream: a slot per attempt, first come, first served, never held while backing off."""

import asyncio
import time

from app.errors import QueueFullError

_SMOOTHING = 0.1
_FIRST_GUESS_SECONDS = 1.0


class Slot:
    """The right to have one call in flight. Released exactly once, however often `release` is called."""

    __slots__ = ("_admission", "_held", "_since")

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self._held = True
        self._since = time.monotonic()

    def release(self) -> None:
        if self._held:
            self._held = False
            self._admission.leave(time.monotonic() - self._since)


class Admission:
    """Args:
    limit: Calls in flight at once.
    max_queue: Calls that may wait; the next one is refused.
    """

    def __init__(self, limit: int, max_queue: int) -> None:
        self.limit = limit
        self.max_queue = max_queue
        self.in_flight = 0
        self.waiting = 0
        self._impatient = 0
        self.peak = 0
        self._semaphore = asyncio.Semaphore(limit)
        self._held_seconds = _FIRST_GUESS_SECONDS

    async def enter(self, *, patient: bool = False) -> Slot:
        """Waits for a slot.

        Args:
            patient: The caller bounds its own queue (a fan-out does), so this one does not count it.
        Raises:
            QueueFullError: Too many wait already; holds the wait after which a place is likely.
        """
        if self._semaphore.locked():
            await self._wait(patient=patient)
        else:
            await self._semaphore.acquire()  # free: does not suspend
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        return Slot(self)

    async def _wait(self, *, patient: bool) -> None:
        if not patient and self._impatient >= self.max_queue:
            wait = max(1.0, self._held_seconds * (self.waiting + 1) / self.limit)
            raise QueueFullError(f"{self._impatient} calls are waiting already", retry_after=wait)
        self.waiting += 1
        self._impatient += not patient
        try:
            await self._semaphore.acquire()
        finally:
            self.waiting -= 1
            self._impatient -= not patient

    def leave(self, held_seconds: float) -> None:
        """Called by `Slot.release` only."""
        self._held_seconds += _SMOOTHING * (held_seconds - self._held_seconds)
        self.in_flight -= 1
        self._semaphore.release()
