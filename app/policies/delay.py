"""How long calls wait inside an upstream that refuses none: what is left of their time when answering is taken off.

A stream shows it in its time to the first token. A whole reply shows only its end, and a long answer takes long without
any waiting: so time is first set against tokens (a straight line through the last calls), and what the line does not
explain is the wait. Raw latency would call a run of long answers an overload.

Source: L. Brakmo, L. Peterson, "TCP Vegas", IEEE JSAC 1995 (base and current delay).
"""

import math
from collections import deque

_MEMORY = 0.998  # of the line: the last five hundred calls count most
_WARM_UP = 60  # calls before the line is trusted
_SPANS = 12
_SPAN_SECONDS = 15.0  # the base is the least of the last three minutes
_FEWEST = 8
_SURE = 3.0  # standard errors
_NONE = (math.inf, 0.0)
_LEAST_SECONDS = 0.05  # less is the network's, or a busy gateway's own


class Line:
    """Least squares with forgetting: seconds = base + tokens x slope."""

    __slots__ = ("_weight", "_x", "_xx", "_xy", "_y")

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    @property
    def mean(self) -> float:
        """Tokens of a usual answer."""
        return self._x / self._weight if self._weight else 0.0

    @property
    def slope(self) -> float:
        """Seconds a token."""
        if self._weight == 0.0:
            return 0.0
        x, y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - x * x
        return max(0.0, (self._xy / self._weight - x * y) / variance) if variance > 1e-9 else 0.0

    def add(self, x: float, y: float) -> None:
        keep = _MEMORY
        self._weight = keep * self._weight + 1.0
        self._x = keep * self._x + x
        self._y = keep * self._y + y
        self._xx = keep * self._xx + x * x
        self._xy = keep * self._xy + x * y


class DelayGauge:
    """One kind of call: streams, or whole replies."""

    __slots__ = ("_bases", "_line", "_samples", "_seen", "_until")

    def __init__(self, now: float) -> None:
        self._line = Line()
        # (seconds, tokens) of each span's least round: judged by today's line, else its learning looks like a wait
        self._bases: deque[tuple[float, float]] = deque([_NONE], maxlen=_SPANS)
        self._until = now + _SPAN_SECONDS
        self._samples: list[tuple[float, float]] = []
        self._seen = 0

    def see(self, seconds: float, tokens: float) -> None:
        """Args: tokens: In the answer, for a whole reply; 0 for a stream, whose `seconds` end at the first token."""
        self._seen += 1
        self._line.add(tokens, seconds)
        self._samples.append((seconds, tokens))

    def wait(self, now: float) -> float | None:
        """Ends the round. Returns: Seconds that its calls took beyond the base, on average; None: cannot be told."""
        samples = self._samples
        if len(samples) < _FEWEST:
            return None
        self._samples = []
        if self._seen < _WARM_UP:
            return None
        current, error = self._mean(samples)
        if now >= self._until:
            self._bases.append(current)
            self._until = now + _SPAN_SECONDS
        else:
            self._bases[-1] = min(self._bases[-1], current, key=self._rest)
        wait = self._rest(current) - min(map(self._rest, self._bases))
        return wait if wait > max(_SURE * error, _LEAST_SECONDS) else 0.0

    def _rest(self, mean: tuple[float, float]) -> float:
        """Returns: Seconds that the line does not explain."""
        seconds, tokens = mean
        return seconds - tokens * self._line.slope

    def _mean(self, samples: list[tuple[float, float]]) -> tuple[tuple[float, float], float]:
        """Returns: Mean seconds and tokens, and the standard error of the seconds that the line does not explain."""
        usual = self._line.mean or 1.0
        total = first = length = rests = squares = 0.0
        for seconds, tokens in samples:
            rest = self._rest((seconds, tokens))
            weight = 1.0 / (1.0 + (tokens / usual) ** 2)  # the longer the answer, the more its length blurs the rest
            total += weight
            first += weight * seconds
            length += weight * tokens
            rests += weight * rest
            squares += weight * rest * rest
        variance = max(0.0, squares / total - (rests / total) ** 2)
        return (first / total, length / total), math.sqrt(variance / len(samples))

    def rebase(self) -> None:
        """What was taken for waiting is the work itself: begins anew."""
        self._bases.clear()
        self._bases.append(_NONE)
