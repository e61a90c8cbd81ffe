"""How many interactive calls there have been at once of late: what batch work leaves free for them."""

from collections import deque

_SPANS = 60
_SPAN_SECONDS = 1.0
_QUANTILE = 0.95


class Demand:
    """The 95th percentile, over the last minute's seconds, of each second's peak."""

    __slots__ = ("_last", "_peak", "_peaks", "_until", "reserve")

    def __init__(self, now: float) -> None:
        self._peaks: deque[int] = deque([0] * _SPANS, maxlen=_SPANS)
        self._peak = self._last = 0
        self._until = now + _SPAN_SECONDS
        self.reserve = 0

    def see(self, count: int, now: float) -> int:
        """Args: count: Interactive calls that wait or are in flight now.

        Returns: How many to expect at once.
        """
        if not self._until - _SPAN_SECONDS <= now < self._until:
            self._turn(now)
        self._last = count
        self._peak = max(self._peak, count)
        return self.reserve

    def kept_free(self, limit: int, taken: int) -> int:
        """Args: limit: Places in all. taken: Those that interactive calls have.

        Returns: Places that batch calls leave free: never more than half of all, with what is taken already.
        """
        return max(0, min(self.reserve, limit // 2) - taken)

    def _turn(self, now: float) -> None:
        passed = int((now - self._until) / _SPAN_SECONDS) + 1 if now >= self._until else 1
        self._peaks.append(self._peak)
        self._peaks.extend([self._last] * min(passed - 1, _SPANS))  # nothing came or went: it stayed as it was
        self._peak = self._last
        self._until = now + _SPAN_SECONDS
        self.reserve = sorted(self._peaks)[round(_QUANTILE * (_SPANS - 1))]
