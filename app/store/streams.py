"""Resumable streams, in SQL: what they are, and how they ended. Their events stand in `stream_log.py`.

A shard is what a process holds of the log. Whoever finds its process dead closes it, and says of the streams that ran
there that they failed; whatever the process still writes into it afterwards is refused.
"""

from collections.abc import Collection
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, update

from app.errors import ServerLostError
from app.store.clock import now
from app.store.owners import NotOursError, is_free
from app.store.tables import shards, stream_log, streams

RUNS = "in_progress"

Stream: TypeAlias = Row[Any]  # of the table


class New(NamedTuple):
    """Attributes: token: SHA-256 of what opens this stream only."""

    id: str
    owner: str
    holder: str
    token: bytes
    url: str
    model: str | None


class Created(NamedTuple):
    """Attributes: created_at, expires_at: Seconds since the epoch."""

    number: int
    created_at: float
    expires_at: float


def open_shard(connection: Connection, runner: str) -> int:
    """Returns: The number of a new one, which `runner` (owners.id) holds."""
    return int(connection.execute(insert(shards).values(runner=runner).returning(shards.c.number)).scalar_one())


def create(connection: Connection, new: New, shard: int, start: int, ttl: float) -> Created:
    """Args:
        shard: Whose log will hold its events.
        start: The first position there that can hold some.
        ttl: Seconds that it lives at least.
    Raises: NotOursError: The shard has been closed.
    """
    if not still_open(connection, {shard}):
        raise NotOursError
    row = {**new._asdict(), "shard": shard, "start": start, "status": RUNS}
    adding = insert(streams).values(**row, created_at=now(), expires_at=now() + ttl)
    made = connection.execute(adding.returning(streams.c.number, streams.c.created_at, streams.c.expires_at)).one()
    return Created(made.number, made.created_at, made.expires_at)


def still_open(connection: Connection, wanted: Collection[int]) -> set[int]:
    """Returns: The shards that nobody has closed, nor will before this transaction ends."""
    held = select(shards.c.number).where(shards.c.number.in_(wanted), ~shards.c.closed)
    return set(connection.scalars(held.with_for_update(read=True)))


def undo(connection: Connection, stream_id: str) -> None:
    """Nobody knows of it, nor ever will."""
    connection.execute(delete(streams).where(streams.c.id == stream_id))


def find(connection: Connection, stream_id: str) -> Stream | None:
    """Returns: Its row; None: there is none, or it is too old."""
    fresh = (streams.c.status == RUNS) | (streams.c.expires_at > now())
    return connection.execute(select(streams).where(streams.c.id == stream_id, fresh)).first()


def cancel(connection: Connection, number: int) -> None:
    """Asks whoever runs it to end it."""
    connection.execute(
        update(streams).where(streams.c.number == number, streams.c.status == RUNS).values(cancelling=True)
    )


def to_cancel(connection: Connection, held: list[int]) -> list[int]:
    """Args: held: Shards. Returns: The numbers of their streams that are to be ended."""
    asked = streams.c.shard.in_(held), streams.c.status == RUNS, streams.c.cancelling
    return list(connection.scalars(select(streams.c.number).where(*asked)))


def close_dead(connection: Connection, ttl: float) -> int:
    """Closes the shards of processes that are gone. Returns: How many of their streams failed by that.

    Args: ttl: Seconds that these can still be read.
    """
    return _close(connection, is_free(shards.c.runner), ttl)


def give_up(connection: Connection, held: Collection[int], ttl: float) -> int:
    """As `close_dead`, of shards that their own process can no longer write to."""
    return _close(connection, shards.c.number.in_(held), ttl)


def _close(connection: Connection, which: ColumnElement[bool], ttl: float) -> int:
    closing = update(shards).where(~shards.c.closed, which).values(closed=True)
    closed = list(connection.scalars(closing.returning(shards.c.number)))
    if not closed:
        return 0
    last = select(func.max(stream_log.c.position)).where(stream_log.c.shard == streams.c.shard).scalar_subquery()
    error = ServerLostError("the server that ran this stream is gone; what came before is all there is").envelope()
    ended = {
        "status": "failed",
        "error": error.decode(),
        "stop": func.coalesce(last, streams.c.start - 1),
        "ended_at": now(),
        "expires_at": now() + ttl,
    }
    failing = update(streams).where(streams.c.shard.in_(closed), streams.c.status == RUNS).values(ended)
    return connection.execute(failing).rowcount
