"""What differs between the two databases: how a connection is set up, and what their errors mean."""

from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql as postgresql_dialect
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
    SQLAlchemyError,
)

from app.errors import StorageError

_BUGS = (DataError, IntegrityError, NotSupportedError, ProgrammingError)  # here, not there: a 500, and the log has it
# Of PostgreSQL (https://www.postgresql.org/docs/current/errcodes-appendix.html): disk_full, serialization_failure,
# deadlock_detected. Of SQLite (https://sqlite.org/rescode.html): SQLITE_FULL, SQLITE_IOERR (what a quota looks like).
FULL = {"53100", 13, 10}
_SQLITE_ERROR = 1
TAKE_TURNS = {"40001", "40P01"}
_NO_ADDRESS = "the address cannot be read; special characters of a password must be percent-encoded"
# The last one: a process that is frozen within a transaction must not keep its locks from those that take over.
_TIMEOUTS = "SET lock_timeout = '10s'; SET statement_timeout = '60s'; SET idle_in_transaction_session_timeout = '3s'"
# Results may be 30 kB each: pages of 8 kB, copied from the log every 16 MB, take half the time of the defaults.
_PRAGMAS = (
    "page_size=8192",
    "auto_vacuum=INCREMENTAL",
    "journal_mode=WAL",
    "wal_autocheckpoint=2000",
    "journal_size_limit=67108864",
    "synchronous=NORMAL",
    "busy_timeout=5000",
)
# A host that is gone without a word is noticed after half a minute, where TCP alone would take hours.
_NETWORK = {
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",  # milliseconds
}


def code(error: DBAPIError) -> str | int | None:
    """Returns: PostgreSQL's SQLSTATE, or SQLite's primary result code."""
    state: str | None = getattr(error.orig, "sqlstate", None)
    number: int | None = getattr(error.orig, "sqlite_errorcode", None)
    return state if number is None else number & 0xFF


def is_bug(error: DBAPIError) -> bool:
    """Whether the fault is in what was asked: SQLite calls "no such table" an operational error."""
    return isinstance(error, _BUGS) or code(error) == _SQLITE_ERROR


def insert_into(connection: Connection, table: Table) -> postgresql_dialect.Insert | sqlite_dialect.Insert:
    """Returns: An INSERT that can say what is to be done on a conflict: both databases know that, each by its own."""
    if connection.dialect.name == "postgresql":
        return postgresql_dialect.insert(table)
    return sqlite_dialect.insert(table)


def sqlite(path: Path) -> Engine:
    """Returns: One connection, for one thread at a time."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"check_same_thread": False},
        pool_size=1,
        max_overflow=0,
        hide_parameters=True,  # prompts and replies have no place in a log
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins no transactions of its own
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}").fetchall()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def postgresql(url: str, connections: int) -> Engine:
    """Args: connections: At most. Raises: StorageError: The address cannot be read."""
    engine = create_engine(
        _address(url),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=10,
        pool_pre_ping=True,
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.autocommit = True  # what is set in a transaction goes when that is rolled back
        connection.execute(_TIMEOUTS)
        connection.autocommit = False

    return engine


def _address(url: str) -> URL:
    """Raises: StorageError: It cannot be read, or would show a part of the password as the host's name."""
    try:
        address = make_url(url)
    except (SQLAlchemyError, ValueError):
        raise StorageError(_NO_ADDRESS) from None
    if "@" in (address.host or ""):
        raise StorageError(_NO_ADDRESS)
    missing = {name: value for name, value in _NETWORK.items() if name not in address.query}
    return address.set(drivername="postgresql+psycopg").update_query_dict(missing)
