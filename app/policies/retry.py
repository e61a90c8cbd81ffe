"""When to try again: exponential backoff with full jitter, never before `Retry-After`, never past the deadline.

Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015; Retry-After: RFC 9110 section 10.2.3.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Attributes:
    max_attempts: Tries in all, the first included.
    base, cap: Seconds; the wait after try n is drawn from 0 to min(cap, base * 2**(n-1)).
    longest: Seconds; a longer Retry-After is the client's to wait out (the official SDKs give up there, too).
    """

    max_attempts: int = 3
    base: float = 0.5
    cap: float = 8.0
    longest: float = 120.0

    def wait(
        self,
        attempt: int,
        *,
        retry_after: float | None,
        remaining: float,
        draw: Callable[[], float],
        alternative: bool = False,
    ) -> float | None:
        """Decides on the pause after try number `attempt` (from 1) has failed.

        Args:
            retry_after: Seconds that the upstream asked for: a minimum.
            remaining: Seconds to the deadline.
            draw: Gives a number in [0, 1).
            alternative: Another target is left: better to ask it now than to wait as long as this one wants.
        Returns:
            Seconds to wait, or None: give up.
        """
        if attempt >= self.max_attempts or (retry_after or 0.0) > self.longest:
            return None
        if alternative and retry_after:
            return None
        jitter = draw() * min(self.cap, self.base * 2 ** (attempt - 1))
        wait = jitter if retry_after is None else retry_after + jitter * 0.1
        return wait if wait < remaining else None


def retry_after_of(headers: Mapping[str, str], now: float) -> float | None:
    """Reads `retry-after-ms`, then `retry-after` (seconds or an HTTP date).

    Args:
        headers: A reply's, with names in lower case.
        now: Seconds since the epoch.
    Returns:
        Seconds to wait, or None where nothing sensible is said.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        seconds = _seconds(headers.get(name, ""), unit, now)
        if seconds is not None:
            return seconds
    return None


def _seconds(text: str, unit: float, now: float) -> float | None:
    try:
        seconds = float(text) * unit
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
