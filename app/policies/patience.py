"""How long a target usually takes to its first byte: after that, a second one may be asked, or the first is overdue."""

from collections import deque

_LAST = 500
_REFRESH = 20  # calls between two looks at them
_HEDGE_TIMES = 1.5
_OVERDUE_TIMES = 4.0
_SHORTEST_OVERDUE = 1.0


class Patience:
    """The 95th percentile of the last five hundred times to the first byte."""

    __slots__ = ("_count", "_last", "_looked_at", "_p95")

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_LAST)
        self._count = self._looked_at = 0
        self._p95: float | None = None

    def see(self, seconds: float) -> None:
        self._last.append(seconds)
        self._count += 1

    @property
    def p95(self) -> float | None:
        """Seconds; None: too little is known."""
        if self._count >= self._looked_at + _REFRESH:
            self._looked_at = self._count
            self._p95 = sorted(self._last)[int(0.95 * len(self._last))]
        return self._p95

    @property
    def overdue(self) -> float | None:
        """Seconds after which a call that has heard nothing counts against its target; None: too little is known."""
        return None if (usual := self.p95) is None else max(_OVERDUE_TIMES * usual, _SHORTEST_OVERDUE)

    @property
    def hedge(self) -> float | None:
        """Seconds after which a second target may be asked; None: too little is known.

        Beyond the percentile itself, else healthy calls that miss it by a hair would use up what may be hedged.
        """
        return None if (usual := self.p95) is None else _HEDGE_TIMES * usual
