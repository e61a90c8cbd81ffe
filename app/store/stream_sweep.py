"""What makes room: streams that are too old or too many go, and with them what nobody can read of the log."""

from sqlalchemy import Connection, Select, delete, exists, func, select

from app.store.clock import now
from app.store.streams import RUNS
from app.store.tables import shards, stream_log, streams

PAGE = 1000


def sweep(connection: Connection, most_kept: int, most_bytes: int) -> int:
    """Deletes streams past their time; beyond `most_kept`, or `most_bytes` of log, the oldest that have ended.

    Does a page of them at most. Returns: How many went.
    """
    ended = streams.c.status != RUNS
    gone = _delete(connection, select(streams.c.number).where(ended, streams.c.expires_at <= now()).limit(PAGE))
    oldest = select(streams.c.number).where(ended).order_by(streams.c.expires_at)
    too_many = _count(connection) - most_kept
    if too_many > 0:
        gone += _delete(connection, oldest.limit(min(too_many, PAGE)))
    if gone:
        _prune(connection)
    if _logged(connection) > most_bytes:  # a sixteenth of them: about that much of the log goes with them
        gone += _delete(connection, oldest.limit(min(PAGE, _count(connection) // 16 + 1)))
        _prune(connection)
    return gone


def _count(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).select_from(streams)).scalar_one())


def _logged(connection: Connection) -> int:
    return int(connection.execute(select(func.coalesce(func.sum(stream_log.c.size), 0))).scalar_one())


def _delete(connection: Connection, numbers: Select[tuple[int]]) -> int:
    return connection.execute(delete(streams).where(streams.c.number.in_(numbers))).rowcount


def _prune(connection: Connection) -> None:
    """Of each shard the log before its first stream that is left; closed shards without any stream."""
    for shard in connection.scalars(select(shards.c.number)).all():
        first = select(func.min(streams.c.start)).where(streams.c.shard == shard).scalar_subquery()
        old = stream_log.c.position < func.coalesce(first, 1 << 62)
        connection.execute(delete(stream_log).where(stream_log.c.shard == shard, old))
    used = exists().where(streams.c.shard == shards.c.number)
    connection.execute(delete(shards).where(shards.c.closed, ~used))
