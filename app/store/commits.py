"""The group commit: what slices have become, results, counts and usage, together or not at all.

It is fenced: what a worker writes counts only for slices that it still holds. Locks are taken in one order, slices
before batches, both by number, so that PostgreSQL finds no deadlock. It runs dozens of times a second: its statements
are built once, and all slices are written by one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, case, insert, null, or_, select, tuple_, update

from app.store.clock import now
from app.store.tables import batches, results, slices
from app.wire.batch_results import Usage

Key = tuple[int, int]  # a slice: the batch's number, its own


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


_WRITE = update(slices).where(
    slices.c.batch == bindparam("of"),
    slices.c.number == bindparam("place"),
    slices.c.owner == bindparam("me"),
    slices.c.version == bindparam("before"),
)
_TOKENS = tuple(Usage.__dataclass_fields__)
_RESUMED = and_(bindparam("good") > 0, or_(batches.c.paused_until.is_(None), batches.c.paused_until <= now()))
_COUNT = (
    update(batches)
    .where(batches.c.number == bindparam("of"))
    .values(
        completed=batches.c.completed + bindparam("good"),
        failed=batches.c.failed + bindparam("bad"),
        paused_code=case((_RESUMED, null()), else_=batches.c.paused_code),
        paused_reason=case((_RESUMED, null()), else_=batches.c.paused_reason),
        **{name: batches.c[name] + bindparam(f"more_{name}") for name in _TOKENS},
    )
    .returning(batches.c.completed, batches.c.failed, batches.c.total, batches.c.status)
)
_STORE = insert(results).values(at=now())


def commit(connection: Connection, me: str, changes: Sequence[Change], stored: Sequence[Stored]) -> set[Key]:
    """Writes slices and results. Repeating it does no harm, should the answer to the first have been lost.

    Returns: Slices that were no longer ours: nothing was written of them.
    """
    if not changes:
        return set()
    keys = {change.key for change in changes}
    ours = [_row(me, change) for change in sorted(changes, key=lambda change: change.key)]
    count = connection.execute(_WRITE, ours).rowcount
    good = keys if count == len(changes) else _as_written(connection, me, changes)
    # none written now: they were all written before, by the commit that this one repeats
    found: dict[int, list[Stored]] = defaultdict(list)
    for one in stored if count else ():
        if one.key in good:
            found[one.key[0]].append(one)
    for number in sorted(found):
        _store(connection, number, found[number])
    return keys - good


def _row(me: str, change: Change) -> dict[str, Any]:
    (batch, number), version = change.key, change.version
    where = {"of": batch, "place": number, "me": me, "before": version}
    counts = {"sent_count": change.sent_count, "done_count": change.done_count, "finished": change.finished}
    holder = None if change.finished else me
    return {**where, **counts, "sent": change.sent, "done": change.done, "owner": holder, "version": version + 1}


def _as_written(connection: Connection, me: str, changes: Sequence[Change]) -> set[Key]:
    """Returns: Those that stand in the ledger as they were to be written."""
    key = tuple_(slices.c.batch, slices.c.number)
    query = select(slices).where(key.in_([change.key for change in changes]))
    rows = {(row["batch"], row["number"]): row for row in connection.execute(query).mappings()}
    found = set()
    for change in changes:
        row = rows.get(change.key)
        holder = None if change.finished else me
        if row is not None and (row["version"], row["owner"]) == (change.version + 1, holder):
            found.add(change.key)
    return found


def _store(connection: Connection, number: int, stored: list[Stored]) -> None:
    good = sum(one.ok for one in stored)
    usage = sum((one.usage for one in stored if one.usage is not None), Usage())
    tokens = {f"more_{name}": value for name, value in asdict(usage).items()}
    row = connection.execute(_COUNT, {"of": number, "good": good, "bad": len(stored) - good, **tokens}).one()
    first = row.completed + row.failed - len(stored) + 1
    rows = [
        {"batch": number, "position": position, "ok": one.ok, "line": one.fields}
        for position, one in enumerate(stored, first)
    ]
    connection.execute(_STORE, rows)
    if row.completed + row.failed == row.total and row.status == "in_progress":
        at = connection.scalar(select(now()))
        end = {"ending": "completed", "status": "finalizing", "finalizing_at": int(at or 0)}
        connection.execute(update(batches).where(batches.c.number == number).values(**end))
