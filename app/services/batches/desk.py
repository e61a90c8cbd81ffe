"""What is sent next: parcels of the slices in hand, just as many ahead of the upstream as it takes off.

A parcel is written down as sent before it is handed to the call stack, where it may have to wait for its turn. Each one
that waits there would be in doubt after a crash, so only what upstreams take off in a few hundredths of a second does.
Batches whose calls do not get through (a sick upstream, a spent limit) are passed over until they do: they hold up
nobody else's.
"""

import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator

from app.services.batches.holding import HeldSlice, Parcel
from app.store.commits import Key
from app.store.ledger import SLICE_LINES

_LEAST_AHEAD, _MOST_AHEAD = 16, 1024
_AHEAD_SECONDS = 0.06
_GLANCE_SECONDS = 0.05  # over which the rate is counted: calls that began together end together
_FADE_SECONDS = 0.5
_PACE_SECONDS = 1.0  # over which it is averaged for what is claimed: more than that others may have
_STUCK_SECONDS = 2.0
_MOST_BYTES = 64 * 1024**2


class Desk:
    """Attributes:
    held: Slices by key, those of higher priority first, else in the order of their claims.
    leaving: Batches, by number, of which nothing more is sent, and whose slices are given back.
    stuck: Batches, by number, that are passed over: they do not get through.
    """

    def __init__(self, now: float) -> None:
        self.held: dict[Key, HeldSlice] = {}
        self.flying: set[Parcel] = set()
        self.leaving: set[int] = set()
        self.is_closing = False
        self.stuck: set[int] = set()
        self._waiting: set[Parcel] = set()  # of those that fly: with no upstream
        self._later: list[tuple[float, int, Parcel]] = []
        self._put_off: Counter[int] = Counter()  # of those, by batch
        self._count = itertools.count()
        self._looked_at = now
        self._taken: deque[tuple[float, int]] = deque()  # when, how many were taken off
        self._pace = 0.0
        self._rate = 0.0  # parcels a second that upstreams have taken of late
        self._ahead = _LEAST_AHEAD

    def take(self, held: HeldSlice) -> None:
        """A slice has been claimed."""
        if self.is_closing:
            self.leaving.add(held.key[0])
        found = [*self.held.values(), held]
        found.sort(key=lambda one: -one.batch["priority"])
        self.held = {one.key: one for one in found}

    def next(self, now: float) -> list[Parcel]:
        """Returns: What is to be sent now; it is marked so in its slices."""
        self._look(now)
        self.stuck = self._stuck(now)
        room = self._ahead - sum(parcel.slice.key[0] not in self.stuck for parcel in self._waiting)
        found: list[Parcel] = []
        for held in self._open():
            while held.queue and len(found) < room:
                parcel = held.queue.popleft()
                parcel.launched_at = now
                held.sent(parcel)
                found.append(parcel)
        self.flying.update(found)
        self._waiting.update(found)
        return found

    def _stuck(self, now: float) -> set[int]:
        """Returns: Batches of whose calls a quarter waits for too long, or a slice's worth is to be sent again."""
        flying = Counter(parcel.slice.key[0] for parcel in self.flying)
        old = Counter(parcel.slice.key[0] for parcel in self._waiting if now - parcel.launched_at > _STUCK_SECONDS)
        late = {number for number, count in old.items() if 4 * count >= flying[number]}
        return late | {number for number, count in self._put_off.items() if count >= SLICE_LINES}

    def _open(self) -> list[HeldSlice]:
        """Returns: Slices whose lines may be sent now."""
        return [held for held in self.held.values() if held.key[0] not in self.stuck | self.leaving]

    @property
    def has_more(self) -> bool:
        """Whether there is something to be sent as soon as there is room."""
        return any(held.queue for held in self._open())

    def _look(self, now: float) -> None:
        """Learns how fast parcels are taken off, and brings back those whose time has come."""
        waiting = {parcel for parcel in self.flying if parcel.is_waiting}
        count, self._waiting = len(self._waiting - waiting), waiting
        fading = math.exp((self._looked_at - now) / _PACE_SECONDS)
        self._pace = self._pace * fading + count / _PACE_SECONDS
        self._taken.append((now, count))
        while self._taken[0][0] <= now - _GLANCE_SECONDS:
            self._taken.popleft()
        rate = sum(count for _, count in self._taken) / _GLANCE_SECONDS
        self._rate = max(rate, self._rate * math.exp((self._looked_at - now) / _FADE_SECONDS))
        self._looked_at = now
        wanted = max(_LEAST_AHEAD, math.ceil(self._rate * _AHEAD_SECONDS))
        self._ahead = min(wanted, 2 * self._ahead, _MOST_AHEAD)
        while self._later and self._later[0][0] <= now:
            parcel = heapq.heappop(self._later)[2]
            self._put_off[parcel.slice.key[0]] -= 1
            if self.held.get(parcel.slice.key) is parcel.slice:
                parcel.slice.queue.appendleft(parcel)

    def landed(self, parcel: Parcel) -> None:
        self.flying.discard(parcel)

    def later(self, parcels: Iterable[Parcel], due: float) -> None:
        """These are to be sent again, at `due`."""
        for parcel in parcels:
            heapq.heappush(self._later, (due, next(self._count), parcel))
            self._put_off[parcel.slice.key[0]] += 1

    def wanted(self) -> int:
        """Returns: How many lines should be claimed."""
        if self.is_closing:
            return 0
        queued = sum(len(held.queue) for held in self._open())
        if queued >= max(_LEAST_AHEAD, self._pace / 2) or sum(held.size for held in self.held.values()) > _MOST_BYTES:
            return 0
        return max(_LEAST_AHEAD, math.ceil(self._pace))

    def close(self) -> None:
        """Nothing more is sent or claimed: what has not been sent is given back at once, the rest as it ends."""
        self.is_closing = True
        self.leaving |= {number for number, _ in self.held}

    def leave(self, number: int) -> list[Parcel]:
        """Nothing more of the batch is sent. Returns: What of it is in the air."""
        self.leaving.add(number)
        return [parcel for parcel in self.flying if parcel.slice.key[0] == number]

    def drop(self, key: Key) -> list[Parcel]:
        """The slice is no longer in hand. Returns: What of it is in the air."""
        self.held.pop(key, None)
        if not any(number == key[0] for number, _ in self.held):
            self._forget(key[0])
        self.leaving &= {number for number, _ in self.held}
        return [parcel for parcel in self.flying if parcel.slice.key == key]

    def _forget(self, number: int) -> None:
        self._later = [entry for entry in self._later if entry[2].slice.key[0] != number]
        heapq.heapify(self._later)
        del self._put_off[number]

    def done(self) -> Iterator[Key]:
        """Yields: Slices of which nothing is in the air, to be written or to be sent any more."""
        busy = {parcel.slice.key for parcel in self.flying}
        for key, held in self.held.items():
            if key not in busy and not held.is_dirty and (held.is_finished or key[0] in self.leaving):
                yield key

    def goes_on(self, key: Key) -> bool:
        """Returns: Whether the slice is in hand, to be kept."""
        return key in self.held and key[0] not in self.leaving and not self.held[key].is_finished

    def may_fly(self, parcel: Parcel) -> bool:
        key = parcel.slice.key
        return self.held.get(key) is parcel.slice and key[0] not in self.leaving

    def next_due(self) -> float:
        """Returns: When the first parcel that waits for its time is due; never: infinity."""
        return self._later[0][0] if self._later else math.inf
