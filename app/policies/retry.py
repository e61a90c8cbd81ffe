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
    """

    max_attempts: int = 3
    base: float = 0.5
    cap: float = 8.0

    def wait(
        self, attempt: int, *, retry_after: float | None, remaining: float, draw: Callable[[], float]
    ) -> float | None:
        """Decides on the pause after try number `attempt` (from 1) has failed.

        Args:
            retry_after: Seconds that the upstream asked for: a minimum.
            remaining: Seconds to the deadline.
            draw: Gives a number in [0, 1).
        Returns:
            Seconds to wait, or None: give up.
        """
        if attempt >= self.max_attempts:
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
    scale, text = (0.001, headers["retry-after-ms"]) if "retry-after-ms" in headers else (1, headers.get("retry-after"))
    if text is None:
        return None
    try:
        seconds = float(text) * scale
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
