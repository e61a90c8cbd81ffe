"""What may be sent twice: retries and hedges are paid for by calls that go well, so that no storm can feed itself.

Source: "Retry behavior", AWS SDKs and Tools Reference Guide (standard mode); "The Tail at Scale", CACM 2013 (hedging).
"""

_CAPACITY = 500.0
_RETRY = 14.0
_REFILL_A_SECOND = 5.0  # so that one who has nothing left can find out whether all is well again
_HEDGES_A_CALL = 0.02
_MOST_HEDGES = 10.0


class RetryBudget:
    """One upstream's quota: a retry costs 14 of 500, a success gives back 1, a retried one what its retry cost.

    Args: now: Seconds, on any clock that the caller goes on with.
    """

    __slots__ = ("_at", "left")

    def __init__(self, now: float) -> None:
        self.left = _CAPACITY
        self._at = now

    def spend(self, now: float) -> bool:
        """Returns: Whether there was enough for one retry; it is spent then."""
        self.left = min(_CAPACITY, self.left + _REFILL_A_SECOND * max(0.0, now - self._at))
        self._at = now
        if self.left < _RETRY:
            return False
        self.left -= _RETRY
        return True

    def succeeded(self, *, retried: bool) -> None:
        self.left = min(_CAPACITY, self.left + (_RETRY if retried else 1.0))


class HedgeBudget:
    """Two calls in a hundred may be asked twice."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = 1.0

    def called(self) -> None:
        self._left = min(_MOST_HEDGES, self._left + _HEDGES_A_CALL)

    def spend(self) -> bool:
        """Returns: Whether a hedge may be sent; it is spent then."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
