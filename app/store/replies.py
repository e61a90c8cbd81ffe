"""Calls with an `Idempotency-Key`, in SQL: who runs one, and what it answered.

One statement decides who of many runs a call, and all that ends one is fenced by its owner.
"""

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import Connection, and_, delete, func, or_, select, update

from app.store.clock import now
from app.store.engines import insert_into
from app.store.owners import is_free
from app.store.tables import replies

_PAGE = 500


class Reply(NamedTuple):
    """A whole reply. Attributes: size: What it counts for, bytes."""

    status: int
    headers: bytes
    body: bytes
    size: int


class Known(NamedTuple):
    """A call that is not to be run. Attributes: reply: None: it still runs."""

    request: bytes
    reply: Reply | None


def claim(connection: Connection, key: bytes, request: bytes, owner: str) -> Known | None:
    """Takes the key if nobody has it, its holder is gone or its reply is too old.

    Args: owner: Runs nothing under this key: what stands there as its own is left over.
    Returns: None: it is taken.
    """
    nothing = dict.fromkeys(("status", "headers", "body", "expires_at"))
    fresh = {**nothing, "request": request, "owner": owner, "size": 0}
    over = or_(
        and_(replies.c.owner.is_not(None), or_(replies.c.owner == owner, is_free(replies.c.owner))),
        and_(replies.c.owner.is_(None), replies.c.expires_at <= now()),
    )
    taking = insert_into(connection, replies).values(key=key, **fresh)
    taking = taking.on_conflict_do_update(index_elements=["key"], set_=fresh, where=over)
    if connection.execute(taking.returning(replies.c.key)).first() is not None:
        return None
    row = connection.execute(select(replies).where(replies.c.key == key)).one()
    return Known(row.request, None if row.body is None else Reply(row.status, row.headers, row.body, row.size))


def keep(connection: Connection, key: bytes, owner: str, reply: Reply, ttl: float, most: int | None) -> bool:
    """Ends the owner's claim with a reply.

    Args:
        ttl: Seconds that it lives.
        most: Bytes that all replies are cut down to on the occasion; None: not now.
    Returns: Whether the owner still had the claim; if not, the reply is not written.
    """
    values = {**reply._asdict(), "owner": None, "expires_at": now() + ttl}
    kept = connection.execute(update(replies).where(replies.c.key == key, replies.c.owner == owner).values(values))
    if most is not None:
        _trim(connection, most)
    return bool(kept.rowcount)


def release(connection: Connection, keys: Collection[bytes], owner: str) -> None:
    """Frees those of the keys that the owner has a claim on."""
    connection.execute(delete(replies).where(replies.c.key.in_(keys), replies.c.owner == owner))


def _trim(connection: Connection, most: int) -> None:
    """Deletes what is too old or was claimed by the dead; then the oldest replies, until `most` bytes are left."""
    connection.execute(delete(replies).where(replies.c.expires_at <= now()))
    connection.execute(delete(replies).where(replies.c.owner.is_not(None), is_free(replies.c.owner)))
    held = select(func.coalesce(func.sum(replies.c.size), 0)).where(replies.c.expires_at.is_not(None))
    too_much = int(connection.execute(held).scalar_one()) - most
    while too_much > 0:
        too_much -= _delete_oldest(connection, too_much)


def _delete_oldest(connection: Connection, size: int) -> int:
    """Deletes a page of replies at most, and no more than make up `size`. Returns: Bytes deleted."""
    oldest = select(replies.c.key, replies.c.size).where(replies.c.expires_at.is_not(None))
    keys, deleted = [], 0
    for key, bytes_of_it in connection.execute(oldest.order_by(replies.c.expires_at).limit(_PAGE)):
        if deleted < size:
            keys.append(key)
            deleted += bytes_of_it
    connection.execute(delete(replies).where(replies.c.key.in_(keys)))
    return deleted or size  # none left: another replica was faster
