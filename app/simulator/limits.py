"""Requests and tokens a minute, as OpenAI counts and announces them.

The gateway's own limiter is measured against this one, so it shares no code with it.
Source: https://platform.openai.com/docs/guides/rate-limits (headers, and `429` with `rate_limit_exceeded`)
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from app.errors import envelope
from app.simulator.refusal import RefusedError

_MODELS = 1000  # the least recently asked for is forgotten: its buckets are full again
_HAIR = 1e-9  # a token that is missing only by rounding is there


class Bucket:
    """A token bucket: full at first, refilled continuously.

    Args:
        per_minute: What it holds, and what flows in within 60 seconds.
        now: Seconds on the clock that every other call is told the time of.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.size = per_minute
        self._rate = per_minute / 60
        self._level = float(per_minute)
        self._at = now

    def wait(self, amount: float, now: float) -> float:
        """Returns: Seconds until `amount` is there: 0 for now, infinite for never."""
        missing = amount - self._refill(now)
        if missing <= _HAIR:
            return 0.0
        return missing / self._rate if amount <= self.size else math.inf

    def take(self, amount: float, now: float) -> None:
        self._level = max(0.0, self._refill(now) - amount)

    def left(self, now: float) -> int:
        return int(self._refill(now) + _HAIR)

    def until_full(self, now: float) -> float:
        return self.wait(self.size, now)

    def _refill(self, now: float) -> float:
        self._level = min(float(self.size), self._level + max(0.0, now - self._at) * self._rate)
        self._at = max(self._at, now)
        return self._level


class Limits:
    """The buckets of the last 1,000 models. Args: clock: Seconds, never going back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._models: OrderedDict[str, dict[str, Bucket]] = OrderedDict()

    def charge(self, model: str, per_minute: dict[str, int], cost: dict[str, int]) -> dict[str, str]:
        """Takes a call out of its model's buckets: of all of them, or of none.

        Args:
            per_minute: The model's limits; "requests" and "tokens" are those there are.
            cost: What the call costs of each.
        Returns: The headers that say what is left.
        Raises: RefusedError: 429; it does not fit.
        """
        now = self._clock()
        buckets = self._buckets(model, per_minute, now)
        waits = {name: bucket.wait(cost[name], now) for name, bucket in buckets.items()}
        fits = not any(waits.values())
        headers: dict[str, str] = {}
        for name, bucket in buckets.items():
            if fits:
                bucket.take(cost[name], now)
            headers[f"x-ratelimit-limit-{name}"] = str(bucket.size)
            headers[f"x-ratelimit-remaining-{name}"] = str(bucket.left(now))
            headers[f"x-ratelimit-reset-{name}"] = duration(bucket.until_full(now))
        if fits:
            return headers
        slowest = max(waits, key=waits.__getitem__)
        raise _refused(model, slowest, buckets[slowest], cost[slowest], waits[slowest], headers)

    def _buckets(self, model: str, per_minute: dict[str, int], now: float) -> dict[str, Bucket]:
        if not per_minute:
            return {}
        if model not in self._models:
            self._models[model] = {name: Bucket(size, now) for name, size in per_minute.items()}
        self._models.move_to_end(model)
        while len(self._models) > _MODELS:
            self._models.popitem(last=False)
        return self._models[model]


def _refused(model: str, name: str, bucket: Bucket, cost: int, wait: float, headers: dict[str, str]) -> RefusedError:
    limit = f"for {model} on {name} per min: Limit {bucket.size}, Requested {cost}."
    if math.isinf(wait):  # no waiting helps, so none is advised
        text = f"Request too large {limit}"
    else:
        text = f"Rate limit reached {limit} Please try again in {duration(wait)}."
        headers["retry-after"] = str(math.ceil(wait))
        headers["retry-after-ms"] = str(math.ceil(wait * 1000))
    return RefusedError(429, envelope(text, name, None, "rate_limit_exceeded"), headers)


def duration(seconds: float) -> str:
    """Returns: Seconds as OpenAI's headers have them, rounded up to the millisecond: `12ms`, `1.5s`, `6m0s`."""
    thousandths = math.ceil(seconds * 1000 - _HAIR)
    if 0 < thousandths < 1000:
        return f"{thousandths}ms"
    minutes, rest = divmod(thousandths, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
