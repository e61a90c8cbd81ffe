"""A token bucket that follows the upstream's own: refilled by the clock, corrected by what replies say is left."""

from collections import deque

from app.policies.quota import Quota

_MINUTE = 60.0
_INSTANT = 0.01  # seconds
_OVERTAKING = 1.0  # seconds that a new connection may take
_SPAN_SECONDS = 1.0  # what others take is judged over spans at least as long: shorter ones are mostly noise
_LEARNING = 0.3
_RETURNS = 64  # more of them at once are a storm, in which the breaker has the word
_LEAST_SHARE = 0.05  # of the rate is ours, whatever others take
_NOTHING = 1e-6  # what rounding leaves


class Mark:
    """One instant of sending: how much had been taken in all before it and after it.

    In which order the upstream hears the calls of one instant, nobody knows, and a call on a new connection is
    overtaken by those on old ones: `before` is what had been taken a second earlier.
    """

    __slots__ = ("after", "at", "before", "company")

    def __init__(self, at: float, taken: float) -> None:
        self.at = at
        self.before = self.after = taken
        self.company = 0  # calls in flight after it


class Bucket:
    """Args:
    per_minute: Capacity, and refill a minute; None: no limit is known until a reply tells one.
    now: Seconds, on any clock that the caller goes on with.

    Source: the upstreams' own model, https://platform.openai.com/docs/guides/rate-limits
    """

    __slots__ = (
        "_at",
        "_heard_at",
        "_known",
        "_mark",
        "_recent",
        "_returned",
        "_said",
        "level",
        "limit",
        "others",
        "rate",
        "taken",
    )

    def __init__(self, per_minute: float | None, now: float) -> None:
        self.limit = per_minute
        self.rate = (per_minute or 0.0) / _MINUTE
        self.level = per_minute or 0.0
        self.others = 0.0  # units a second that other clients of the same quota take
        self.taken = 0.0
        self._known = per_minute
        self._at = now
        self._heard_at = float("-inf")  # when the call was sent whose reply is believed
        self._said: tuple[float, float, float] | None = None  # when, what we had taken by then, what was left
        self._mark = Mark(now, 0.0)
        # instants of the last second, and what was taken before them
        self._recent: deque[tuple[float, float]] = deque()
        self._returned: deque[tuple[float, float]] = deque(maxlen=_RETURNS)  # what was given back: when taken, how much

    @property
    def net_rate(self) -> float:
        """Units a second that are there for us; never none, else nothing would be sent that could tell better."""
        return max(self.rate - self.others, self.rate * _LEAST_SHARE)

    def take(self, amount: float, now: float) -> Mark:
        """Takes whether there is enough or not: `wait` is who asks."""
        mark = self._mark
        if not 0.0 <= now - mark.at < _INSTANT:
            mark = self._mark = Mark(now, self.taken)
            recent = self._recent
            recent.append((now, self.taken))
            while not 0.0 <= now - recent[0][0] <= _OVERTAKING:
                recent.popleft()
            mark.before = recent[0][1]
        self.taken += amount
        mark.after = self.taken
        if self.limit is not None:
            self._refill(now)
            self.level -= amount
        return mark

    def give_back(self, amount: float, mark: Mark) -> None:
        """What was taken at `mark` and then not used; negative: more was used than was taken."""
        if self._said is not None and mark.at > self._said[0]:  # nor is it our use since the last look
            at, taken, left = self._said
            self._said = (at, taken + amount, left)
        if self.limit is not None:
            self._returned.append((mark.at, amount))
            if mark.at >= self._heard_at:  # else what the upstream has said has it in already
                self.level = min(self.limit, self.level + amount)

    def wait(self, amount: float, now: float, keep: float = 0.0) -> float:
        """Returns: Seconds until `amount` can be taken and `keep` is left; 0.0: now.

        More than the capacity is let through as soon as the bucket is full, else it would wait for ever.
        """
        if self.limit is None:
            return 0.0
        self._refill(now)
        missing = min(amount + min(keep, self.limit / 2), self.limit) - self.level
        if missing <= _NOTHING:
            return 0.0
        return missing / self.net_rate

    def wait_for_all(self, amount: float, now: float) -> float:
        """Returns: Seconds until `amount` in all can have been taken, however much more than the capacity it is."""
        if self.limit is None:
            return 0.0
        self._refill(now)
        return max(0.0, amount - self.level) / self.net_rate

    def sync(self, said: Quota, mark: Mark, now: float, *, refused: bool = False) -> None:
        """Follows what a reply said, less what was sent since its call, plus what has run in since.

        A reply to an older call than the last one listened to says nothing new.
        """
        if mark.at < self._heard_at:
            return
        if self._known is None and said.limit is not None and said.limit != self.limit:
            self._learn_limit(said.limit, now)
        if self.limit is None or said.remaining is None:
            return
        self._heard_at = mark.at
        self._learn_rate(said)
        self._learn_others(mark, said.remaining, _LEARNING if not refused else 1.0)
        self._refill(now)
        returned = sum(amount for at, amount in self._returned if at > mark.at)
        left = said.remaining + self.net_rate * max(0.0, now - mark.at) - (self.taken - returned)
        # which of the last second's calls were heard before this one, nobody knows: our own account decides within that
        self.level = min(max(self.level, left + mark.before), left + mark.after, self.limit)

    def snapshot(self, now: float) -> dict[str, float] | None:
        """Returns: JSON-ready; None: no limit is known."""
        if self.limit is None:
            return None
        self._refill(now)
        return {"per_minute": self.limit, "remaining": round(self.level, 1), "others_a_second": round(self.others, 2)}

    def _refill(self, now: float) -> None:
        passed = now - self._at
        self._at = now
        if passed > 0.0 and self.limit is not None:  # a clock that jumps back neither fills nor drains
            self.level = min(self.limit, self.level + passed * self.net_rate)

    def _learn_limit(self, limit: float, now: float) -> None:
        first = self.limit is None
        self.limit, self.rate = limit, limit / _MINUTE
        self.level = limit if first else min(self.level, limit)
        self._at = now

    def _learn_rate(self, said: Quota) -> None:
        """Some limits are a day's: once much is missing, the time until it is back tells the true rate."""
        limit = self.limit or 0.0
        missing = limit - (said.remaining or 0.0)
        if said.reset is not None and missing > limit / 2:
            self.rate = min(limit / _MINUTE, missing / said.reset)

    def _learn_others(self, mark: Mark, remaining: float, learning: float) -> None:
        """What is missing beyond our own use is somebody else's: it will be so in the next second, too."""
        if self._said is None:
            self._said = (mark.at, mark.after, remaining)
            return
        at, taken, was_left = self._said
        if mark.at == at:  # who of that instant was heard last saw all of it
            self._said = (at, taken, min(was_left, remaining))
        span = mark.at - at
        if span < _SPAN_SECONDS:
            return
        expected = min(self.limit or 0.0, was_left + self.rate * span) - (mark.after - taken)
        theirs = min(max((expected - remaining) / span, 0.0), self.rate)
        self.others += learning * (theirs - self.others)
        self._said = (mark.at, mark.after, remaining)
