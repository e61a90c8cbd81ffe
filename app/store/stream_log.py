"""The append log of resumable streams, in SQL: one row holds what a group commit adds to several streams of a shard.

A row of its own for each stream would be simpler to read, and make every commit touch a page of the index for every
stream: 8 MB of writing for a thousand tokens. So a reader passes over its neighbours' events instead, a few dozen
streams' at most; and it seldom comes here, for what is new stands in memory.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, select, update

from app.store.clock import now
from app.store.engines import insert_into
from app.store.streams import RUNS, Stream, still_open
from app.store.tables import shards, stream_log, streams

_ROWS, _LOOKED_AT_BYTES = 64, 1024**2  # of a shard, in one transaction

Part = tuple[int, int, bytes]  # a stream's number, the number of its last event in it, events as they are sent
_PARTS = msgspec.msgpack.Decoder(list[Part])
_UPDATED = (
    update(streams)
    .where(streams.c.number == bindparam("_number"), streams.c.status == RUNS)
    .values(ended_at=now(), expires_at=now() + bindparam("_ttl"))
)


class Record(NamedTuple):
    """What is added to a shard. `position`: 1, 2, 3…"""

    shard: int
    position: int
    parts: list[Part]


class End(NamedTuple):
    """How a stream ended. Attributes: stop: The last position that holds events of it; ttl: Seconds it is kept."""

    number: int
    shard: int
    stop: int
    events: int
    status: str
    error: str | None
    timing: dict[str, Any]
    ttl: float


class Page(NamedTuple):
    """Events of one stream.

    Attributes:
        row: The stream's, as it was just before; None: it is gone.
        parts: The number of the last event in each, and its events.
        position: The last one that was looked at to its end.
        more: Whether there is more behind it already.
    """

    row: Stream | None
    parts: list[tuple[int, bytes]]
    position: int
    more: bool


def append(connection: Connection, records: list[Record], ends: list[End], over: Collection[int] = ()) -> set[int]:
    """Writes what is new. May be repeated with the same arguments.

    Args: over: Shards that will never be written to again.
    Returns: Shards that have been closed by others: nothing was written for them.
    """
    wanted = {record.shard for record in records} | {end.shard for end in ends}
    held = still_open(connection, wanted)
    rows = [_row(record) for record in records if record.shard in held]
    if rows:
        connection.execute(insert_into(connection, stream_log).on_conflict_do_nothing(), rows)
    ended = [_values(end) for end in ends if end.shard in held]
    if ended:
        connection.execute(_UPDATED, ended)
    if over:
        connection.execute(update(shards).where(shards.c.number.in_(over)).values(closed=True))
    return wanted - held


def _row(record: Record) -> dict[str, Any]:
    data = msgspec.msgpack.encode(record.parts)
    return {"shard": record.shard, "position": record.position, "size": len(data), "data": data}


def _values(end: End) -> dict[str, Any]:
    values = end._asdict()
    del values["shard"]
    return {**values, "_number": values.pop("number"), "_ttl": values.pop("ttl")}


def read(connection: Connection, number: int, position: int, seen: int, most: int) -> Page:
    """Reads a stream's events on from a position of its shard's log.

    Args:
        position: The first to look at.
        seen: Events up to this number are passed over.
        most: Bytes of the stream's events, about: one part always comes whole.
    """
    row = connection.execute(select(streams).where(streams.c.number == number)).first()
    if row is None:
        return Page(None, [], position, more=False)
    start = max(position, row.start)
    stop, more = _reach(connection, row, start)
    wanted = select(stream_log.c.position, stream_log.c.data).where(
        stream_log.c.shard == row.shard, stream_log.c.position.between(start, stop)
    )
    found: list[tuple[int, bytes]] = []
    last = start - 1
    for record in connection.execute(wanted.order_by(stream_log.c.position)):
        for of, end, events in _PARTS.decode(record.data):
            if of == number and end > seen:
                if most <= 0:
                    return Page(row, found, last, more=True)
                found.append((end, events))
                most -= len(events)
        last = record.position
    return Page(row, found, last, more=more or last < stop)


def _reach(connection: Connection, stream: Stream, start: int) -> tuple[int, bool]:
    """Returns: The last position to look at, for a bounded number of bytes; whether there is more behind it."""
    wanted = select(stream_log.c.position, stream_log.c.size).where(
        stream_log.c.shard == stream.shard, stream_log.c.position >= start
    )
    if stream.stop is not None:
        wanted = wanted.where(stream_log.c.position <= stream.stop)
    records = connection.execute(wanted.order_by(stream_log.c.position).limit(_ROWS)).all()
    stop, looked_at = start - 1, 0
    for record in records:
        if looked_at >= _LOOKED_AT_BYTES:
            return stop, True
        stop = record.position
        looked_at += record.size
    return stop, len(records) == _ROWS
