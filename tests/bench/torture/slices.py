"""Who holds which slices, straight from the database: what the API has no reason to tell."""

from dataclasses import dataclass

import psycopg


@dataclass(frozen=True, slots=True)
class Slice:
    number: int
    owner: str | None
    done: int
    lines: int


def slices(url: str) -> dict[int, Slice]:
    """Returns: The only batch's, by number. Args: url: Of a PostgreSQL database."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT number, owner, done_count, lines FROM slices").fetchall()
    return {row[0]: Slice(*row) for row in rows}


def held_by(url: str, pid: int) -> dict[int, Slice]:
    """Returns: Slices that the process holds."""
    return {number: one for number, one in slices(url).items() if one.owner and f":{pid}:" in one.owner}


def taken_over(url: str, before: dict[int, Slice], more: int = 1) -> bool:
    """Returns: Whether one of these slices has another owner now, and so many results of his."""
    return any(
        one.owner != before[number].owner and one.done >= before[number].done + more
        for number, one in slices(url).items()
        if number in before
    )
