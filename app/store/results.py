"""Stored results, read in the order in which they were stored."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, and_, func, select

from app.store.clock import now
from app.store.tables import results

_MOST_ROWS = 2048


class Result(NamedTuple):
    """One line's. Attributes: position: From 1. line: The output line's fields behind `id`."""

    position: int
    ok: bool
    line: bytes


def read(connection: Connection, number: int, after: int, most: int) -> list[Result]:
    """Returns: The next results behind position `after`, up to `most` bytes of them, but one at least."""
    behind = and_(results.c.batch == number, results.c.position > after)
    sizes = select(results.c.position, func.length(results.c.line)).where(behind).order_by(results.c.position)
    size, last = 0, after
    for position, length in connection.execute(sizes.limit(_MOST_ROWS)):
        size += length
        if size > most and last > after:
            break
        last = position
    query = select(results.c.position, results.c.ok, results.c.line).where(behind, results.c.position <= last)
    return [Result(*row) for row in connection.execute(query.order_by(results.c.position))]


def ages(connection: Connection, number: int, positions: Sequence[int]) -> dict[int, float]:
    """Returns: How many seconds ago the results at these positions were stored."""
    age = now() - results.c.at
    query = select(results.c.position, age).where(results.c.batch == number, results.c.position.in_(positions))
    return {row[0]: row[1] for row in connection.execute(query)}
