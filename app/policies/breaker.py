"""Stops sending to a target that fails, and asks it now and then whether it is well again.

Source: M. Nygard, "Release It!", 2007, chapter 5; states and rules as in resilience4j and Envoy's outlier detection.
"""

import math
from typing import Literal

State = Literal["closed", "open", "half_open"]
Permit = Literal["call", "probe"]

_IN_A_ROW = 5
_SHARE = 0.5
_SHARE_ALONE = 0.9  # nobody else could answer: better a failing target than none
_FEWEST = 20
_FEWEST_ALONE = 40
_WINDOW_SECONDS = 10.0
_FIRST_OPEN_SECONDS = 1.0
_PROBE_SECONDS = 10.0  # after which a probe that hangs does not stand in another's way
_LONGEST_OPEN_SECONDS = 5.0  # so that a healed upstream is found soon; a probe costs one call


class Breaker:
    """Closed until failures in a row, or their share, open it; then half-open: one probe decides.

    Args: now: Seconds, on any clock that the caller goes on with.
    """

    __slots__ = (
        "_before", "_calls", "_failures", "_in_a_row", "_open_seconds", "_probe_until", "_window_until",
        "open_until", "opened", "reason", "state",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.state: State = "closed"
        self.reason = ""
        self.open_until = -math.inf
        self.opened = 0  # times
        self._in_a_row = 0
        self._calls = self._failures = 0
        self._before = (0, 0)
        self._window_until = now + _WINDOW_SECONDS
        self._open_seconds = _FIRST_OPEN_SECONDS
        self._probe_until = -math.inf  # one is out, and its answer is waited for

    def lets_through(self, now: float) -> bool:
        """Whether a call could be sent now; nothing is spent."""
        if self.state == "closed":
            return True
        return now >= self.open_until and now >= self._probe_until

    def enter(self, now: float) -> Permit | None:
        """Returns: What the call may be sent as; None: it may not.

        Each permit goes back in one of `succeeded`, `failed`, `abandoned`.
        """
        if self.state == "closed":
            return "call"
        if not self.lets_through(now):
            return None
        self.state, self._probe_until = "half_open", now + _PROBE_SECONDS
        return "probe"

    def succeeded(self, permit: Permit, now: float) -> None:
        self._in_a_row = 0
        if self.state == "closed":
            self._count(now, failed=False)
        elif permit == "probe":  # a late answer to a call from before it opened says nothing of now
            self._close(now)

    def failed(self, permit: Permit, reason: str, now: float, *, alone: bool = True) -> None:
        """Args:
        reason: A status or an error code; never anything of a request.
        alone: No other target can take the call.
        """
        if self.state != "closed":
            if permit == "probe":
                self._open_seconds = min(2 * self._open_seconds, _LONGEST_OPEN_SECONDS)
                self._open(reason, now)
            return
        self._in_a_row += 1
        self._count(now, failed=True)
        calls, failures = self._calls + self._before[0], self._failures + self._before[1]
        most, share, fewest = (_FEWEST_ALONE, _SHARE_ALONE, _FEWEST_ALONE) if alone else (_IN_A_ROW, _SHARE, _FEWEST)
        if self._in_a_row >= most:
            self._open(f"{self._in_a_row} failures in a row, the last one {reason}", now)
        elif calls >= fewest and failures >= share * calls:
            self._open(f"{failures} of {calls} calls failed, the last one with {reason}", now)

    def abandoned(self, permit: Permit) -> None:
        """The call ended without a verdict: its client went. A probe may be sent again."""
        if permit == "probe":
            self._probe_until = -math.inf

    def _open(self, reason: str, now: float) -> None:
        self.state, self.reason, self._probe_until = "open", reason, -math.inf
        self.open_until = now + self._open_seconds
        self.opened += 1

    def _close(self, now: float) -> None:
        self.state, self.reason, self._probe_until = "closed", "", -math.inf
        self._open_seconds = _FIRST_OPEN_SECONDS
        self._in_a_row = self._calls = self._failures = 0
        self._before = (0, 0)
        self._window_until = now + _WINDOW_SECONDS

    def _count(self, now: float, *, failed: bool) -> None:
        if not self._window_until - _WINDOW_SECONDS <= now < self._window_until:
            self._before = (self._calls, self._failures) if 0 <= now - self._window_until < _WINDOW_SECONDS else (0, 0)
            self._calls = self._failures = 0
            self._window_until = now + _WINDOW_SECONDS
        self._calls += 1
        self._failures += failed
