"""What was sent, what came back, and who works on what: slices of batches under leases, results in group commits.

Everything that a worker writes is fenced: it counts only for slices that the worker still holds. Locks are taken in one
order, slices before batches, both by number, so that PostgreSQL finds no deadlock.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    case,
    exists,
    func,
    insert,
    null,
    or_,
    select,
    update,
)

from app.policies.turns import Candidate, choose
from app.store.clock import now
from app.store.owners import is_free
from app.store.tables import batches, results, slices
from app.wire.batch_results import Usage
from app.wire.bits import Bits

Key = tuple[int, int]  # a slice: the batch's number, its own


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


@dataclass(frozen=True, slots=True)
class Change:
    """A slice as it is to be written. Attributes: version: What it was before."""

    key: Key
    version: int
    sent: bytes
    done: bytes
    sent_count: int
    done_count: int
    finished: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """A result. Attributes: fields: The output line's, behind `id`."""

    key: Key
    ok: bool
    fields: bytes
    usage: Usage | None = None


def claim(connection: Connection, me: str, wanted: int, passed_over: Iterable[int]) -> list[Claim]:
    """Takes up to `wanted` slices that nobody alive holds; none of our own, not even when our lease is over.

    Args: passed_over: Batches, by number, of which none are wanted now.
    """
    rows = {row["number"]: row for row in _candidates(connection, me, passed_over)}
    at = connection.scalar(select(now()))
    asked = [
        Candidate(number, row["owner"], row["priority"], row["expires_at"] - at, row["leased"], row["free"])
        for number, row in rows.items()
    ]
    shares: dict[int, int] = defaultdict(int)
    for number in choose(asked, wanted):
        shares[number] += 1
    return [claimed for number in sorted(shares) for claimed in _take(connection, me, rows[number], shares[number])]


def _candidates(connection: Connection, me: str, passed_over: Iterable[int]) -> list[dict[str, Any]]:
    of_it = slices.c.batch == batches.c.number
    is_open = and_(of_it, slices.c.finished.is_(False))
    leased = select(func.count()).where(is_open, ~is_free(slices.c.owner)).scalar_subquery()
    free = select(func.count()).where(is_open, _is_to_have(me)).scalar_subquery()
    is_paused = and_(batches.c.paused_until.is_not(None), batches.c.paused_until > now())
    query = select(batches, leased.label("leased"), free.label("free")).where(
        batches.c.status == "in_progress",
        batches.c.ending.is_(None),
        ~is_paused,
        batches.c.number.not_in(list(passed_over)),
        exists().where(is_open, _is_to_have(me)),
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def _take(connection: Connection, me: str, batch: Mapping[str, Any], count: int) -> list[Claim]:
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
        mine = {"owner": me, "sent": row["done"], "sent_count": row["done_count"], "version": row["version"] + 1}
        connection.execute(update(slices).where(_is_slice((batch["number"], row["number"]))).values(**mine))
        place = (row["number"], row["start"], row["stop"], row["lines"], mine["version"])
        taken.append(Claim(batch, *place, row["done"], doubtful))
    if doubts:
        more = batches.c.in_doubt + doubts
        connection.execute(update(batches).where(batches.c.number == batch["number"]).values(in_doubt=more))
    return taken


def commit(connection: Connection, me: str, changes: Sequence[Change], stored: Sequence[Stored]) -> set[Key]:
    """Writes slices and results together. Repeating it does no harm, should the answer to the first have been lost.

    Returns: Slices that were no longer ours: nothing was written of them.
    """
    lost, written = set(), set()
    for change in sorted(changes, key=lambda change: change.key):
        if _write(connection, me, change):
            written.add(change.key)
        elif not _was_written(connection, me, change):
            lost.add(change.key)
    found: dict[int, list[Stored]] = defaultdict(list)
    for one in stored:
        if one.key in written:
            found[one.key[0]].append(one)
    for number in sorted(found):
        _count(connection, number, found[number])
    return lost


def _write(connection: Connection, me: str, change: Change) -> bool:
    values: dict[str, Any] = {
        "sent": change.sent,
        "done": change.done,
        "sent_count": change.sent_count,
        "done_count": change.done_count,
        "finished": change.finished,
        "version": change.version + 1,
    }
    if change.finished:
        values["owner"] = None
    is_ours = and_(_is_slice(change.key), slices.c.owner == me, slices.c.version == change.version)
    return bool(connection.execute(update(slices).where(is_ours).values(**values)).rowcount)


def _was_written(connection: Connection, me: str, change: Change) -> bool:
    row = connection.execute(select(slices).where(_is_slice(change.key))).mappings().one_or_none()
    if row is None or row["version"] != change.version + 1:
        return False
    return bool(row["owner"] == me or (row["finished"] and row["owner"] is None))


def _count(connection: Connection, number: int, stored: list[Stored]) -> None:
    completed = sum(one.ok for one in stored)
    usage = sum((one.usage for one in stored if one.usage is not None), Usage())
    row = connection.execute(
        update(batches)
        .where(batches.c.number == number)
        .values(_totals(completed, len(stored) - completed, usage))
        .returning(batches.c.completed, batches.c.failed, batches.c.total, batches.c.status)
    ).one()
    first = row.completed + row.failed - len(stored) + 1
    at = connection.scalar(select(now()))
    rows = [
        {"batch": number, "position": position, "ok": one.ok, "at": at, "line": one.fields}
        for position, one in enumerate(stored, first)
    ]
    connection.execute(insert(results), rows)
    if row.completed + row.failed == row.total and row.status == "in_progress":
        end = {"ending": "completed", "status": "finalizing", "finalizing_at": int(at or 0)}
        connection.execute(update(batches).where(batches.c.number == number).values(**end))


def _totals(completed: int, failed: int, usage: Usage) -> dict[str, ColumnElement[Any]]:
    tokens = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "total_tokens")
    values: dict[str, ColumnElement[Any]] = {name: batches.c[name] + getattr(usage, name) for name in tokens}
    values |= {"completed": batches.c.completed + completed, "failed": batches.c.failed + failed}
    if completed:  # it goes on: there was nothing to pause for any more
        is_over = or_(batches.c.paused_until.is_(None), batches.c.paused_until <= now())
        values |= {name: case((is_over, null()), else_=batches.c[name]) for name in ("paused_code", "paused_reason")}
    return values


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
