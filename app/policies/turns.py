"""Whose slice of a batch comes next.

First come, first served would let a batch of a million lines keep one of ten waiting for hours. So, in this order:

1. A higher priority goes first, always: whoever sets it means it.
2. Owners take turns: the one with the fewest slices being worked on. Many batches do not buy a larger share.
3. Of an owner's batches, the one with the least (slices being worked on + 1) x (seconds left). That keeps slices x
   seconds equal, so a batch's share is inverse to what is left of its window: the urgent one gets most, a small one
   gets its slice at once however huge its neighbour is, and as a window runs out its share grows by itself.
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice


@dataclass(frozen=True, slots=True)
class Candidate:
    """A batch with slices that nobody works on.

    Attributes:
        batch: Its number.
        remaining: Seconds to its window's end.
        leased: Its slices that are being worked on, by anybody.
        free: Its slices that can be had; None: as many as are asked for.
    """

    batch: int
    owner: str
    priority: int
    remaining: float
    leased: int
    free: int | None = None


def choose(candidates: Sequence[Candidate], count: int) -> list[int]:
    """Returns: The batch of each slice to claim, in order; each claim counts as a slice worked on for the next."""
    return list(islice(_turns(candidates), count))


def _turns(candidates: Sequence[Candidate]) -> Iterator[int]:
    leased: Counter[str] = Counter()
    for each in candidates:
        leased[each.owner] += each.leased
    by_priority = sorted(candidates, key=lambda each: -each.priority)
    for _, equals in groupby(by_priority, key=lambda each: each.priority):
        yield from _among(equals, leased)


_Turn = tuple[float, int, Candidate]  # the least comes next


def _turn(each: Candidate) -> _Turn:
    return (each.leased + 1) * max(each.remaining, 1.0), each.batch, each


def _among(equals: Iterator[Candidate], leased: Counter[str]) -> Iterator[int]:
    """The turns among candidates of one priority, until nothing is free."""
    owned: dict[str, list[_Turn]] = {}
    for each in equals:
        if each.free is None or each.free > 0:
            owned.setdefault(each.owner, []).append(_turn(each))
    for turns in owned.values():
        heapq.heapify(turns)
    owners = [(leased[owner], turns[0][:2], owner) for owner, turns in owned.items()]
    heapq.heapify(owners)
    while owners:
        owner, turns = owners[0][2], owned[owners[0][2]]
        chosen = turns[0][2]
        yield chosen.batch
        leased[owner] += 1
        _take(chosen, turns)
        if turns:
            heapq.heapreplace(owners, (leased[owner], turns[0][:2], owner))
        else:
            heapq.heappop(owners)


def _take(chosen: Candidate, turns: list[_Turn]) -> None:
    free = None if chosen.free is None else chosen.free - 1
    if free == 0:
        heapq.heappop(turns)
    else:
        heapq.heapreplace(turns, _turn(replace(chosen, leased=chosen.leased + 1, free=free)))
