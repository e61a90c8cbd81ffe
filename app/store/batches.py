"""Batches from their creation to their end: one row each. What happens in between is the ledger's (`ledger.py`)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, delete, exists, insert, or_, select, update

from app.store import files
from app.store.clock import now
from app.store.owners import NotOursError, is_free
from app.store.tables import ENDED, RUNNING, batches, results, slices

Row = dict[str, Any]
Fields = Mapping[str, Any]
_ROWS_AT_ONCE = 5_000
_WORTH_FOLLOWING = 1_000  # lines: of fewer, the output is written in a moment


def add(connection: Connection, fields: Fields, since: int) -> Row | None:
    """Stores a new batch, or finds the one that a request with the same `key` has made since then.

    Returns: Its row; None: its input file is not there any more.
    """
    if fields["key"] is not None:
        same = and_(batches.c.key == fields["key"], batches.c.created_at >= since)
        made = connection.execute(select(batches).where(same).limit(1)).mappings().one_or_none()
        if made is not None:
            return dict(made)
    if files.get(connection, fields["owner"], fields["input_file_id"], hold=True) is None:
        return None
    return dict(connection.execute(insert(batches).values(**fields).returning(batches)).mappings().one())


def find(connection: Connection, owner: str, batch_id: str) -> Row | None:
    row = connection.execute(select(batches).where(_is_it(owner, batch_id))).mappings().one_or_none()
    return None if row is None else dict(row)


def page(connection: Connection, owner: str, after: str | None, limit: int) -> tuple[list[Row], bool] | None:
    """Returns: The newest batches, behind the one named `after`; and whether there are more. None: no such batch."""
    query = select(batches).where(batches.c.owner == owner).order_by(batches.c.number.desc())
    if after is not None:
        last = find(connection, owner, after)
        if last is None:
            return None
        query = query.where(batches.c.number < last["number"])
    rows = [dict(row) for row in connection.execute(query.limit(limit + 1)).mappings()]
    return rows[:limit], len(rows) > limit


def cancel(connection: Connection, owner: str, batch_id: str, at: int) -> Row | None:
    """Asks for a batch's end. Returns: Its row, changed if it could still be; None: there is no such batch."""
    can_end = and_(
        _is_it(owner, batch_id), batches.c.status.in_(("validating", "in_progress")), batches.c.ending.is_(None)
    )
    ending = {"status": "cancelling", "ending": "cancelled", "cancelling_at": at}
    connection.execute(update(batches).where(can_end).values(**ending))
    return find(connection, owner, batch_id)


def expire(connection: Connection) -> None:
    """Batches whose window is over are to end."""
    going_on = and_(_is_running(), batches.c.status.in_(("validating", "in_progress")), batches.c.ending.is_(None))
    connection.execute(update(batches).where(going_on, batches.c.expires_at <= now()).values(ending="expired"))


def next_job(
    connection: Connection, me: str, busy: Iterable[int] = (), *, validate: bool = True, follow: bool = True
) -> Row | None:
    """Takes a batch that is to be brought to its end, to be validated, or to be followed while it runs, in this order.

    Args:
        busy: Those that we are at already. What is ours beside them was taken, or could not be left, unheard.
        validate, follow: Whether such a job is wanted, too.
    Returns: Its row; nobody else has it.
    """
    to_end = and_(_is_running(), batches.c.ending.is_not(None), _nobody_works())
    to_validate = and_(batches.c.status == "validating", batches.c.ending.is_(None))
    to_follow = and_(batches.c.status == "in_progress", batches.c.total >= _WORTH_FOLLOWING, ~is_paused())
    wanted = [to_end, *([to_validate] if validate else []), *([to_follow] if follow else [])]
    query = (
        select(batches)
        .where(batches.c.cleared.is_(False), or_(*wanted), or_(is_free(batches.c.runner), batches.c.runner == me))
        .where(batches.c.number.not_in(list(busy)))
        .order_by(case((is_paused(), 1), else_=0), case((to_end, 0), (to_validate, 1), else_=2), batches.c.number)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = connection.execute(query).mappings().one_or_none()
    if row is not None:
        connection.execute(update(batches).where(batches.c.number == row["number"]).values(runner=me))
    return None if row is None else dict(row)


def closed(connection: Connection, me: str, number: int) -> Row | None:
    """Closes the books of a batch that is to end. Returns: Its row, its counts the last; None: it goes on.

    Raises: NotOursError: The job is not.
    """
    row = connection.execute(select(batches).where(_is_mine(me, number)).with_for_update()).mappings().one_or_none()
    if row is None:
        raise NotOursError
    is_left = select(batches.c.number).where(batches.c.number == number, _nobody_works())
    if row["ending"] is None or connection.execute(is_left).one_or_none() is None:
        return None
    # a worker that was silent for too long may wake up: nothing is his any more
    is_open = and_(slices.c.batch == number, slices.c.finished.is_(False))
    connection.execute(update(slices).where(is_open).values(owner=None))
    return dict(row)


def leave_job(connection: Connection, me: str, number: int) -> None:
    """The job is somebody else's, or to be begun anew."""
    connection.execute(update(batches).where(_is_mine(me, number)).values(runner=None))


def validated(
    connection: Connection, me: str, number: int, cut: Sequence[Fields], model: str | None, at: int, size: int
) -> None:
    """The input is good. Args: cut: Rows for `slices`. size: Lines in all."""
    good = {"status": "in_progress", "in_progress_at": at, "total": size, "model": model, "runner": None}
    is_wanted = and_(_is_mine(me, number), batches.c.status == "validating")
    if connection.execute(update(batches).where(is_wanted).values(**good)).rowcount:
        for start in range(0, len(cut), _ROWS_AT_ONCE):
            connection.execute(insert(slices), [dict(row) for row in cut[start : start + _ROWS_AT_ONCE]])


def is_validating(connection: Connection, me: str, number: int) -> bool:
    """Returns: Whether its input's validation is still wanted, from us."""
    status = connection.scalar(select(batches.c.status).where(_is_mine(me, number), batches.c.ending.is_(None)))
    return bool(status == "validating")


def refused(connection: Connection, me: str, number: int, errors: Sequence[Fields], at: int) -> None:
    """The input is not good, and the batch has failed."""
    bad = {"status": "failed", "failed_at": at, "errors": list(errors), "runner": None}
    is_wanted = and_(_is_mine(me, number), batches.c.status == "validating")
    connection.execute(update(batches).where(is_wanted).values(**bad))


def ended(
    connection: Connection, me: str, number: int, *, at: int, output: str | None, error: str | None, lost: int
) -> bool:
    """The output files are there. Args: lost: Lines that never got a result. Returns: Whether it was ours to say so."""
    row = connection.execute(select(batches.c.ending).where(_is_mine(me, number))).one_or_none()
    if row is None:
        return False
    end = {"status": row.ending, f"{row.ending}_at": at, "output_file_id": output, "error_file_id": error}
    rest = {"failed": batches.c.failed + lost, "runner": None, "paused_code": None, "paused_reason": None}
    return bool(connection.execute(update(batches).where(_is_mine(me, number)).values(**end, **rest)).rowcount)


def purge(connection: Connection) -> bool:
    """Deletes some of what a batch that has ended no longer needs. Returns: Whether there may be more."""
    over = select(batches.c.number).where(batches.c.cleared.is_(False), batches.c.status.in_(ENDED)).limit(1)
    number = connection.scalar(over)
    if number is None:
        return False
    first = select(results.c.position).where(results.c.batch == number).order_by(results.c.position).limit(1000)
    some = and_(results.c.batch == number, results.c.position.in_(first))
    if not connection.execute(delete(results).where(some)).rowcount:
        connection.execute(delete(slices).where(slices.c.batch == number))
        connection.execute(update(batches).where(batches.c.number == number).values(cleared=True))
    return True


def counts(connection: Connection) -> dict[str, int]:
    """Returns: Batches by status, those that run; and their lines in doubt."""
    rows = connection.execute(select(batches.c.status, batches.c.in_doubt).where(_is_running()))
    found = dict.fromkeys(RUNNING, 0) | {"in_doubt": 0}
    for status, in_doubt in rows:
        found[status] += 1
        found["in_doubt"] += in_doubt
    return found


def states(connection: Connection, numbers: Iterable[int]) -> dict[int, str]:
    """Returns: Of each of the batches: `going on`, `paused`, or `ending`: nothing more of it is to be sent."""
    state = case((~is_going_on(), "ending"), (is_paused(), "paused"), else_="going on")
    query = select(batches.c.number, state).where(batches.c.number.in_(list(numbers)))
    return {row[0]: row[1] for row in connection.execute(query)}


def pause(connection: Connection, number: int, code: str, reason: str, seconds: float) -> None:
    """No line of the batch is claimed for so long."""
    paused = {"paused_code": code, "paused_reason": reason, "paused_until": now() + seconds}
    connection.execute(update(batches).where(batches.c.number == number).values(**paused))


def _is_it(owner: str, batch_id: str) -> ColumnElement[bool]:
    return and_(batches.c.owner == owner, batches.c.id == batch_id)


def _is_mine(me: str, number: int) -> ColumnElement[bool]:
    return and_(batches.c.number == number, batches.c.runner == me)


def is_going_on() -> ColumnElement[bool]:
    """Returns: The condition that lines of a batch may be sent, unless it is paused."""
    return and_(batches.c.status == "in_progress", batches.c.ending.is_(None))


def is_paused() -> ColumnElement[bool]:
    return and_(batches.c.paused_until.is_not(None), batches.c.paused_until > now())


def _is_running() -> ColumnElement[bool]:
    return and_(batches.c.cleared.is_(False), batches.c.status.in_(RUNNING))


def _nobody_works() -> ColumnElement[bool]:
    return ~exists().where(slices.c.batch == batches.c.number, ~is_free(slices.c.owner))
