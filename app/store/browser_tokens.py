"""What the database knows of browser tokens, in SQL: how many requests each may still make, and the secret behind all.

A token is a signed text; only one with a number of requests has a row, so that all replicas count alike.
"""

from sqlalchemy import Connection, delete, insert, select, update

from app.store.clock import now
from app.store.engines import insert_into
from app.store.tables import browser_tokens, secrets

_AT_ONCE = 100
_SKEW_SECONDS = 300.0  # a token expires on a gateway's clock, its row is deleted on the database's


def secret(connection: Connection, name: str, drawn: bytes) -> bytes:
    """What all replicas know alike. Args: drawn: At random; it becomes the secret if there is none yet."""
    connection.execute(insert_into(connection, secrets).values(name=name, value=drawn).on_conflict_do_nothing())
    found: bytes = connection.execute(select(secrets.c.value).where(secrets.c.name == name)).scalar_one()
    return found


def add(connection: Connection, id_: str, requests: int, expires_at: float) -> None:
    """A token that may make so many requests. On the occasion, 100 rows at most of expired ones are deleted."""
    old = select(browser_tokens.c.id).where(browser_tokens.c.expires_at <= now() - _SKEW_SECONDS)
    page = old.order_by(browser_tokens.c.expires_at).limit(_AT_ONCE).with_for_update(skip_locked=True)
    if ids := list(connection.execute(page).scalars()):
        connection.execute(delete(browser_tokens).where(browser_tokens.c.id.in_(ids)))
    connection.execute(insert(browser_tokens).values(id=id_, remaining=requests, expires_at=expires_at))


def spend(connection: Connection, id_: str, requests: int) -> bool:
    """Takes all of the requests or none. Returns: Whether so many were left; of a token without a row, none is."""
    left = browser_tokens.c.remaining
    taken = update(browser_tokens).where(browser_tokens.c.id == id_, left >= requests).values(remaining=left - requests)
    return bool(connection.execute(taken).rowcount)
