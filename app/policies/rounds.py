"""Round trips: what happens between the sending of half a window of calls and their answers is told to the limit."""

from app.policies.concurrency import FixedLimit, Round
from app.policies.delay import DelayGauge

_EXPLICIT_SECONDS = 120.0
_INSTANT = 1e-9


class Rounds:
    """Args:
    concurrency: Whose limit follows from them.
    now: Seconds, on any clock that the caller goes on with.
    """

    __slots__ = ("_concurrency", "_explicit_until", "_gauges", "_trip")

    def __init__(self, concurrency: FixedLimit, now: float) -> None:
        self._concurrency = concurrency
        self._trip = _Trip(now)
        self._gauges = {True: DelayGauge(now), False: DelayGauge(now)}  # whole replies, streams
        self._explicit_until = float("-inf")

    def moved(self, in_flight: int, now: float) -> None:
        """`in_flight` was the number until now."""
        self._trip.move(in_flight, now)

    def blocked(self, *, at_limit: bool) -> None:
        """A call found no place: the limit is reached, or only the reserve below it."""
        self._trip.wanted = True
        self._trip.pressed |= at_limit

    def refused(self, sent_at: float, company: int, now: float) -> None:
        """As `FixedLimit.refused`. Who says when it has too many is believed, and its delay is not asked."""
        if company:
            self._explicit_until = now + _EXPLICIT_SECONDS
        self._concurrency.refused(sent_at, company, now)

    def answered(self, sent_at: float, now: float, *, tokens: float | None, whole: bool, metered: bool) -> None:
        """A call got its first byte.

        Args:
            tokens: Of a whole reply: what its time goes with; None: unknown.
            whole: The reply came whole; else this is a stream's first token.
            metered: The upstream tells its quota: its delay is its own.
        """
        trip = self._trip
        trip.answered += 1
        if sent_at < trip.began:
            return
        if now >= self._explicit_until and not metered and (tokens is not None or not whole):
            self._gauges[whole].see(now - sent_at, tokens or 0.0)
        if trip.wanted and not whole:
            self._concurrency.streams()
        trip.there_and_back += 1
        if trip.there_and_back * 2 >= self._concurrency.limit:
            self._end(now)

    def _end(self, now: float) -> None:
        trip = self._trip
        waits = [wait for gauge in self._gauges.values() if (wait := gauge.wait(now)) is not None]
        waited = max(waits, default=0.0)
        # Little's law: calls that wait = calls a second x seconds that each waits
        queued = waited * trip.answered / max(now - trip.began, _INSTANT) if waits else None
        if self._concurrency.ended(Round(trip.in_flight(now), queued, trip.pressed, trip.wanted, waited), now):
            for gauge in self._gauges.values():
                gauge.rebase()
        self._trip = _Trip(now)


class _Trip:
    __slots__ = ("_area", "_at", "answered", "began", "pressed", "there_and_back", "wanted")

    def __init__(self, now: float) -> None:
        self.began = self._at = now
        self.there_and_back = 0  # calls sent and answered in it
        self.answered = 0  # calls answered in it
        self.pressed = self.wanted = False
        self._area = 0.0

    def move(self, in_flight: int, now: float) -> None:
        """`in_flight` was the number until now."""
        self._area += in_flight * max(0.0, now - self._at)
        self._at = now

    def in_flight(self, now: float) -> float:
        """Returns: Calls at once, on average."""
        return self._area / max(now - self.began, _INSTANT)
