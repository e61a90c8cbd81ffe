"""Calls in flight to one upstream, over all its model families: one bound, and a reserve for people as within one."""

from app.policies.demand import Demand
from app.policies.lanes import Lane


class Pool:
    """Args:
    most: Calls in flight at once.
    now: Seconds, on any clock that the caller goes on with.
    """

    def __init__(self, most: int, now: float) -> None:
        self.most = most
        self.in_flight = 0
        self.peak = 0
        self.waiting: dict[Lane, int] = {"interactive": 0, "batch": 0}
        self._interactive = 0  # in flight
        self._demand = Demand(now)

    @property
    def free(self) -> int:
        return self.most - self.in_flight

    def room(self, lane: Lane) -> int:
        """Returns: Places that this lane may still take; less than 1: none."""
        if lane == "interactive":
            return self.free
        return self.free - self._demand.kept_free(self.most, self._interactive)

    def waits(self, lane: Lane, change: int, now: float) -> None:
        """A call joined the queue (1) or left it (-1)."""
        self.waiting[lane] += change
        self._see(now)

    def went(self, lane: Lane, now: float) -> None:
        """A call was sent."""
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        self._interactive += lane == "interactive"
        self._see(now)

    def came_back(self, lane: Lane, now: float) -> None:
        """A call has ended."""
        self.in_flight -= 1
        self._interactive -= lane == "interactive"
        self._see(now)

    def wait_for(self, lane: Lane, held: float) -> float:
        """Args: held: Seconds that a call usually takes.

        Returns: Seconds until one more in this lane would find a place.
        """
        ahead = self.waiting["interactive"] + (self.waiting["batch"] if lane == "batch" else 0)
        return max(0, ahead + 1 - self.free) * held / self.most

    def _see(self, now: float) -> None:
        self._demand.see(self._interactive + self.waiting["interactive"], now)
