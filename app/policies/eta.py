"""How fast a batch runs, and when it will be over: a range, for one number would be a promise.

The speed of late may not last and the speed on the whole may be gone: the truth is likely between the fastest and the
slowest of several horizons.
"""

import math
from collections.abc import Sequence

_ENOUGH = 10  # results: of fewer, a speed is mostly chance


def estimate(remaining: int, spans: Sequence[tuple[int, float]]) -> tuple[float, tuple[float, float] | None]:
    """Args:
        remaining: Results that are still to come.
        spans: Results, and seconds they took up to now, over several horizons, the shortest first.
    Returns:
        Results a second; and the seconds that are left, at best and at worst, or None: nothing is known.
    """
    known = [(results, results / seconds) for results, seconds in spans if results > 0 and seconds > 0]
    rates = [rate for results, rate in known if results >= _ENOUGH] or [rate for _, rate in known[-1:]]
    per_second = float(f"{rates[0]:.3g}") if rates else 0.0
    if remaining <= 0:
        return per_second, (0.0, 0.0)
    if not rates:
        return per_second, None
    return per_second, (float(math.floor(remaining / max(rates))), float(math.ceil(remaining / min(rates))))
