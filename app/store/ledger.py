"""Who works on what: slices of batches under leases. What becomes of them is `commits.py`'s."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    exists,
    func,
    or_,
    select,
    update,
)

from app.policies.turns import Candidate, choose
from app.store.batches import is_going_on, is_paused
from app.store.clock import now
from app.store.commits import Key
from app.store.owners import is_free
from app.store.tables import batches, slices
from app.wire.bits import Bits

SLICE_LINES = 256  # at most
_MOST_SLICES = 16  # at once
_MOST_CANDIDATES = 200


@dataclass(frozen=True, slots=True)
class Claim:
    """A slice and its batch's row. Attributes: doubtful: Lines that were sent by a worker that died."""

    batch: Mapping[str, Any]
    number: int
    start: int
    stop: int
    lines: int
    version: int
    done: bytes
    doubtful: tuple[int, ...]


def claim(connection: Connection, me: str, wanted: int, passed_over: Iterable[int]) -> list[Claim]:
    """Takes slices that nobody alive holds; none of our own, not even when our lease is over.

    Args:
        wanted: Lines, about.
        passed_over: Batches, by number, of which none are wanted now.
    """
    rows = {row["number"]: row for row in _candidates(connection, me, passed_over)}
    at = connection.scalar(select(now()))
    asked = [
        Candidate(number, row["owner"], row["priority"], row["expires_at"] - at, row["leased"], row["free"])
        for number, row in rows.items()
    ]
    shares: dict[int, int] = defaultdict(int)
    lines = 0
    for number in choose(asked, _MOST_SLICES):
        if lines >= wanted:
            break
        row = rows[number]
        lines += min(row["total"] // (row["leased"] + row["free"]) or 1, SLICE_LINES)  # about what a slice has
        shares[number] += 1
    return [claimed for number in sorted(shares) for claimed in _take(connection, me, rows[number], shares[number])]


def _candidates(connection: Connection, me: str, passed_over: Iterable[int]) -> list[dict[str, Any]]:
    of_it = slices.c.batch == batches.c.number
    is_open = and_(of_it, slices.c.finished.is_(False))
    leased = select(func.count()).where(is_open, ~is_free(slices.c.owner)).scalar_subquery()
    free = select(func.count()).where(is_open, _is_to_have(me)).scalar_subquery()
    query = select(batches, leased.label("leased"), free.label("free")).where(
        batches.c.cleared.is_(False),
        is_going_on(),
        ~is_paused(),
        batches.c.number.not_in(list(passed_over)),
        exists().where(is_open, _is_to_have(me)),
    )
    query = query.order_by(batches.c.priority.desc(), batches.c.expires_at, batches.c.number).limit(_MOST_CANDIDATES)
    return [dict(row) for row in connection.execute(query).mappings()]


def _take(connection: Connection, me: str, batch: Mapping[str, Any], count: int) -> list[Claim]:
    goes_on = select(batches.c.number).where(batches.c.number == batch["number"], is_going_on())
    if connection.execute(goes_on.with_for_update()).one_or_none() is None:
        return []  # it was cancelled, or has ended, since it was looked at
    query = (
        select(slices)
        .where(slices.c.batch == batch["number"], slices.c.finished.is_(False), _is_to_have(me))
        .order_by(slices.c.number)
        .limit(count)
        .with_for_update(skip_locked=True)
    )
    taken, doubts = [], 0
    for row in connection.execute(query).mappings().all():
        done = Bits.of(row["done"], row["lines"])
        doubtful = tuple(Bits.of(row["sent"], row["lines"]).minus(done))
        doubts += len(doubtful)
        mine = {"owner": me, "version": row["version"] + 1}
        if batch["on_doubt"] == "retry":  # else the doubt stays, until its lines have their results
            mine |= {"sent": row["done"], "sent_count": row["done_count"]}
        connection.execute(update(slices).where(_is_slice((batch["number"], row["number"]))).values(**mine))
        place = (row["number"], row["start"], row["stop"], row["lines"], mine["version"])
        taken.append(Claim(batch, *place, row["done"], doubtful))
    if doubts:
        more = batches.c.in_doubt + doubts
        connection.execute(update(batches).where(batches.c.number == batch["number"]).values(in_doubt=more))
    return taken


def release(connection: Connection, me: str, keys: Iterable[Key]) -> None:
    """Others may have these slices."""
    for key in sorted(keys):
        connection.execute(update(slices).where(_is_slice(key), slices.c.owner == me).values(owner=None))


def held(connection: Connection, me: str) -> set[Key]:
    """Returns: The slices that are ours."""
    return {(row.batch, row.number) for row in connection.execute(select(slices).where(slices.c.owner == me))}


def unfinished(connection: Connection, number: int, after: int) -> Sequence[RowMapping]:
    """Returns: The next slices, behind number `after`, that have lines without a result; a hundred at most."""
    query = select(slices).where(slices.c.batch == number, slices.c.finished.is_(False), slices.c.number > after)
    return connection.execute(query.order_by(slices.c.number).limit(100)).mappings().all()


def in_flight(connection: Connection, number: int) -> int:
    """Returns: Lines that are with an upstream now, or about to be."""
    flying = func.coalesce(func.sum(slices.c.sent_count - slices.c.done_count), 0)
    is_open = and_(slices.c.batch == number, slices.c.finished.is_(False), ~is_free(slices.c.owner))
    return int(connection.scalar(select(flying).where(is_open)) or 0)


def _is_to_have(me: str) -> ColumnElement[bool]:
    """Of our own there are calls in the air, also when the lease is over because the database was away."""
    return and_(is_free(slices.c.owner), or_(slices.c.owner.is_(None), slices.c.owner != me))


def _is_slice(key: Key) -> ColumnElement[bool]:
    return and_(slices.c.batch == key[0], slices.c.number == key[1])
