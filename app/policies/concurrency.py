"""How many calls an upstream takes at once, found by asking: growth until it refuses or delays, then a known ceiling.

Source: V. Jacobson, "Congestion Avoidance and Control", SIGCOMM 1988 (slow start, one cut per round trip);
S. Ha, I. Rhee, L. Xu, "CUBIC", 2008 (the ceiling is remembered: fast up to it, careful past it).
"""

from dataclasses import dataclass

START = 32
_GROWTH = 1.5
_CUT = 0.7  # capacity has gone, nobody knows how far
_PROBE_SECONDS = 4.0
_LONGEST_PROBE_SECONDS = 10.0
_TOLERATED = 0.03  # of the limit may wait inside the upstream
_RELIEF = 0.8


@dataclass(frozen=True, slots=True)
class Round:
    """What a round trip has shown.

    Attributes:
        in_flight: Calls at once, on average.
        queued: How many of them waited inside the upstream; None: it cannot be told.
        waited: Seconds that each of these waited.
        pressed: The limit was reached, and more would have gone.
        wanted: More would have gone, but for the limit or the reserve below it.
    """

    in_flight: float
    queued: float | None
    pressed: bool
    wanted: bool
    waited: float = 0.0


class FixedLimit:
    """Args: limit: Calls in flight at once, for good."""

    __slots__ = ("limit", "probing")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.probing = False  # the limit is being tested: what is kept free for others may be used for that

    @property
    def settled(self) -> bool:
        """Whether the upstream takes no more than `limit`, as far as is known."""
        return True

    def streams(self) -> None:
        """A stream's first token has come while others wait for a place."""

    def ended(self, seen: Round, now: float) -> bool:  # noqa: ARG002 - what a fixed limit need not know
        """Half a window of calls was sent and answered.

        Returns: Whether what was taken for waiting has turned out to be the work itself.
        """
        return False

    def refused(self, sent_at: float, company: int, now: float) -> None:
        """The upstream had too many: `company` in flight, the call that was sent at `sent_at` included."""


class AdaptiveLimit(FixedLimit):
    """Args:
    most: Never more than this.

    A ceiling once found is kept and tested now and then, by one call more (`probing`); each test that goes well doubles
    the next step, so that lost capacity that comes back is used within a few round trips.
    """

    __slots__ = (
        "_before",
        "_calm",
        "_cut_at",
        "_measured_at",
        "_most",
        "_probe_at",
        "_probe_wait",
        "_step",
        "ceiling",
    )

    def __init__(self, most: int) -> None:
        super().__init__(min(most, START))
        self.ceiling: int | None = None
        self._most = most
        self._calm = True
        self._cut_at = float("-inf")
        self._measured_at: float | None = None
        self._step = 1
        self._probe_at = 0.0
        self._probe_wait = _PROBE_SECONDS
        # when a run of cuts for delay began: limit, ceiling, seconds waited
        self._before: tuple[int, int | None, float] | None = None

    @property
    def settled(self) -> bool:
        return self.ceiling is not None or self.limit >= self._most

    def streams(self) -> None:
        # early news, from a call that may keep its place for long: without a place for each, no round trip would end
        if self.ceiling is None and self._calm:
            self.limit = min(self._most, self.limit + 1)

    def ended(self, seen: Round, now: float) -> bool:
        if seen.queued is not None and seen.queued > max(2.0, _TOLERATED * self.limit):
            return self._delayed(seen.in_flight, seen.queued, seen.waited, now)
        self._before = None
        if self._calm and seen.wanted:
            self._grow(now, reached=seen.pressed)
        self._calm = True
        return False

    def refused(self, sent_at: float, company: int, now: float) -> None:
        if sent_at <= self._cut_at:  # sent before the last cut: it tells of the same excess
            if sent_at == self._measured_at:  # and of how large that was: of its instant's calls, one less was let in
                self.limit = self.ceiling = max(1, self.limit - 1)
            return
        # the first refusal near the limit tells how many were too many; if fewer are still too many, or far fewer were,
        # that is not the measure
        measures = self._calm and 2 * company > self.limit
        self._measured_at = sent_at if measures else None
        self._calm = False
        self._settle_at(min(company - 1, self.limit) if measures else int(self.limit * _CUT), now)

    def _delayed(self, in_flight: float, queued: float, waited: float, now: float) -> bool:
        """Calls wait inside: as many as do not wait are what the upstream takes (Little's law)."""
        if self._before is None:
            self._before = (self.limit, self.ceiling, waited)
        elif self.limit <= _RELIEF * self._before[0] and waited >= _RELIEF * self._before[2]:
            self.limit, self.ceiling, _ = self._before  # fewer calls, no less delay: it is not ours
            self._before = None
            return True
        self._settle_at(min(self.limit, round(in_flight - queued)), now)
        return False

    def _settle_at(self, limit: int, now: float) -> None:
        self._probe_wait = min(2 * self._probe_wait, _LONGEST_PROBE_SECONDS) if self.probing else _PROBE_SECONDS
        self.limit = self.ceiling = max(1, limit)
        self.probing = False
        self._cut_at = now
        self._probe_at = now + self._probe_wait

    def _grow(self, now: float, *, reached: bool) -> None:
        if self.ceiling is None:
            self.limit = min(self._most, int(self.limit * _GROWTH) + 1)
        elif self.probing:
            if reached:  # a round trip above the ceiling went well
                self.ceiling = self.limit
                self._step *= 2
                self.limit = min(self._most, self.limit + self._step)
                self.probing = self.limit > self.ceiling
        elif now >= self._probe_at and self.limit < self._most:
            self.probing, self._step = True, 1
            self.limit += 1
