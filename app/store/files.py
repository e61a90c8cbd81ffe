"""Rows of uploaded and of made files.

A file that is deleted or expired is marked first; its row is forgotten a day after its bytes are gone, so that whoever
deletes what a page of the list showed can still ask for the page behind it. What a batch still reads keeps its bytes.
"""

from dataclasses import dataclass

from sqlalchemy import BigInteger, ColumnElement, Connection, and_, cast, delete, exists, insert, or_, select, update
from sqlalchemy.sql.expression import Exists

from app.store.clock import now
from app.store.tables import RUNNING, batches, files

_AT_ONCE = 100
_GONE = -1  # bytes of a file that has none any more; `expires_at` is then when it is forgotten
_REMEMBERED_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is there, whole. Times are in seconds since the epoch."""

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int | None

    def fields(self) -> dict[str, object]:
        """Returns: OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


_COLUMNS = [files.c[name] for name in StoredFile.__dataclass_fields__]


def add(
    connection: Connection, id_: str, owner: str, filename: str, purpose: str, size: int, lifetime: int | None
) -> StoredFile:
    """Stores a file's row; one with its id is replaced. Args: lifetime: Seconds until it expires; None: never."""
    connection.execute(delete(files).where(files.c.id == id_))
    born = connection.execute(select(cast(now(), BigInteger))).scalar_one()
    made = StoredFile(id_, owner, filename, purpose, size, born, None if lifetime is None else born + lifetime)
    connection.execute(insert(files).values({name: getattr(made, name) for name in StoredFile.__dataclass_fields__}))
    return made


def get(connection: Connection, owner: str, id_: str, *, hold: bool = False) -> StoredFile | None:
    """Args: hold: Nobody deletes it before this transaction is over, as for a batch that is to read it."""
    found = select(*_COLUMNS).where(files.c.id == id_, _visible(owner))
    row = connection.execute(found.with_for_update(read=True) if hold else found).one_or_none()
    return None if row is None else StoredFile(*row)


def page(
    connection: Connection, owner: str, *, after: str | None, limit: int, descending: bool, purpose: str | None
) -> list[StoredFile] | None:
    """Returns: At most `limit` files behind the file `after`; None: that file never was."""
    asked = select(*_COLUMNS).where(_visible(owner))
    if purpose is not None:
        asked = asked.where(files.c.purpose == purpose)
    if after is not None:
        number = _number(connection, owner, after)
        if number is None:
            return None
        asked = asked.where(files.c.number < number if descending else files.c.number > number)
    ordered = asked.order_by(files.c.number.desc() if descending else files.c.number.asc())
    return [StoredFile(*row) for row in connection.execute(ordered.limit(limit))]


def _number(connection: Connection, owner: str, id_: str) -> int | None:
    asked = select(files.c.number).where(files.c.id == id_, files.c.owner == owner)
    return connection.execute(asked).scalar_one_or_none()


def mark(connection: Connection, owner: str, id_: str) -> bool:
    """The file is deleted for its owner. Returns: Whether it was there."""
    seen = and_(files.c.id == id_, _visible(owner))
    return bool(connection.execute(update(files).where(seen).values(deleted=True)).rowcount)


def mark_expired(connection: Connection) -> None:
    over = and_(files.c.deleted.is_(False), files.c.expires_at <= now())
    connection.execute(update(files).where(over).values(deleted=True))


def unused(connection: Connection, id_: str | None = None) -> list[str]:
    """Returns: Ids of marked files that nobody reads any more, 100 at most. Args: id_: Only this one."""
    asked = select(files.c.id).where(_is_marked(), ~_is_read())
    if id_ is not None:
        asked = asked.where(files.c.id == id_)
    return list(connection.execute(asked.order_by(files.c.number).limit(_AT_ONCE)).scalars())


def bury(connection: Connection, ids: list[str]) -> None:
    """The bytes of these marked files are gone."""
    gone = {"bytes": _GONE, "expires_at": cast(now(), BigInteger) + _REMEMBERED_SECONDS}
    connection.execute(update(files).where(files.c.id.in_(ids), _is_marked()).values(gone))


def forget(connection: Connection) -> None:
    """Rows of files whose bytes have been gone for a day are removed."""
    connection.execute(delete(files).where(files.c.bytes == _GONE, files.c.expires_at <= now()))


def _is_marked() -> ColumnElement[bool]:
    return and_(files.c.deleted.is_(True), files.c.bytes != _GONE)


def _visible(owner: str) -> ColumnElement[bool]:
    lives = or_(files.c.expires_at.is_(None), files.c.expires_at > now())
    return and_(files.c.owner == owner, files.c.deleted.is_(False), lives)


def _is_read() -> Exists:
    return exists().where(batches.c.input_file_id == files.c.id, batches.c.status.in_(RUNNING))
