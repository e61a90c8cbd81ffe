"""How long nobody is sent to an upstream that has asked for it by `Retry-After`."""

_LONGEST = 60.0


class Pause:
    """`until`: when it ends, on the clock of those who ask."""

    __slots__ = ("_refused_at", "until")

    def __init__(self) -> None:
        self.until = float("-inf")
        self._refused_at: float | None = None  # nobody sent since then has been let in

    def let_in(self, sent_at: float) -> None:
        """Whatever became of a call: the upstream did not have too much when it was sent."""
        if self._refused_at is not None and sent_at > self._refused_at:
            self._refused_at = None

    def refused(self, sent_at: float, now: float, retry_after: float | None, *, for_all: bool) -> None:
        """Args: for_all: The refusal is not this call's alone, by the upstream's own word.

        Else one refusal may be a matter of calls in flight, which ends with the next one; two in a row, one of time.
        """
        in_a_row = self._refused_at is not None and sent_at > self._refused_at
        if retry_after and (in_a_row or for_all):
            self.until = max(self.until, now + min(retry_after, _LONGEST))
        if in_a_row or self._refused_at is None:
            self._refused_at = now
