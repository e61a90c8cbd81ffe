"""Batches and slices as rows, for tests of what is written to them."""

from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from app.store.clock import now
from app.store.commits import Change, Key, Stored
from app.store.ledger import Claim
from app.store.owners import renew
from app.store.tables import batches, owners, results, slices
from app.wire.batch_results import Usage
from app.wire.bits import Bits

LINES = 10  # of a slice


def bits(*places: int, lines: int = LINES) -> bytes:
    found = Bits(lines)
    for place in places:
        found.set(place)
    return found.bytes()


def add_batch(connection: Connection, /, cut: int = 1, size: int = 100, **fields: Any) -> int:
    """Returns: The number of a batch in progress, with `cut` slices of ten lines and `size` bytes."""
    at = connection.scalar(select(now())) or 0.0
    needed = {"owner": "me", "endpoint": "/v1/embeddings", "input_file_id": "file-a", "completion_window": "24h"}
    flags = {"status": "in_progress", "on_doubt": "retry", "dedupe": False, "pack_embeddings": False}
    times = {"created_at": 1, "expires_at": int(at) + 3600, "total": cut * LINES}
    id_ = f"batch_{connection.scalar(select(func.count()).select_from(batches)):024x}"
    row = connection.execute(
        insert(batches).values({"id": id_, **needed, **flags, **times, **fields}).returning(batches)
    )
    number: int = row.one().number
    for each in range(cut):
        place = {
            "batch": number,
            "number": each,
            "start": each * size,
            "stop": each * size + size,
        }
        connection.execute(insert(slices).values(**place, lines=LINES, sent=bits(), done=bits()))
    return number


def alive(connection: Connection, /, *names: str) -> None:
    for name in names:
        renew(connection, name, 60)


def silent(connection: Connection, /, name: str) -> None:
    """Its lease is over."""
    connection.execute(update(owners).where(owners.c.id == name).values(until=0))


def change(claim: Claim, *done: int, sent: tuple[int, ...] = (), version: int | None = None) -> Change:
    """Args: done, sent: Lines; those that are done were sent. version: None: that of the claim."""
    finished = len(done) == LINES
    was = claim.version if version is None else version
    all_sent = {*done, *sent}
    return Change(key_of(claim), was, bits(*all_sent), bits(*done), len(all_sent), len(done), finished)


def key_of(claim: Claim) -> Key:
    return claim.batch["number"], claim.number


def made(claim: Claim, *texts: str, ok: bool = True) -> list[Stored]:
    return [Stored(key_of(claim), ok, text.encode(), Usage(total_tokens=1)) for text in texts]


def batch_row(connection: Connection, /, number: int) -> dict[str, Any]:
    return dict(connection.execute(select(batches).where(batches.c.number == number)).mappings().one())


def slice_row(connection: Connection, /, number: int, place: int = 0) -> dict[str, Any]:
    query = select(slices).where(slices.c.batch == number, slices.c.number == place)
    return dict(connection.execute(query).mappings().one())


def set_batch(connection: Connection, /, number: int, **fields: Any) -> None:
    connection.execute(update(batches).where(batches.c.number == number).values(**fields))


def lines_of(connection: Connection, /, number: int) -> list[tuple[int, str]]:
    """Returns: Position and text of each result."""
    query = select(results.c.position, results.c.line).where(results.c.batch == number).order_by(results.c.position)
    return [(row[0], row[1].decode()) for row in connection.execute(query)]
