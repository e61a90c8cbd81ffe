"""The way to the database, embedded or shared: one transaction is one function, run in a thread.

Why threads and not an async driver: a transaction costs one hop instead of one for each statement, and a heartbeat can
come from a thread of its own, whatever the event loop is busy with. SQLite gets exactly one thread with one connection
(two writers in WAL mode can corrupt its 3.40), and a lock on the folder keeps other processes out.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.errors import StorageError, StorageFullError
from app.store.migrations import upgrade

P = ParamSpec("P")
T = TypeVar("T")
_CONNECTIONS = 8
_LOCK_SECONDS = 5.0  # a predecessor that is just ending may still hold it
_SQLITE_FULL = ("disk is full", "disk I/O error")  # the second one is what a quota looks like
_POSTGRESQL_FULL = "53100"  # disk_full, https://www.postgresql.org/docs/current/errcodes-appendix.html


class StorageInUseError(Exception):
    """Another process works on this folder."""


class Database:
    """Args:
    url: `postgresql://…`; None: SQLite in `folder`.
    folder: Made if it is not there.
    Raises:
        StorageInUseError: Another process has the SQLite file open.
        StorageError: The database cannot be reached.
    """

    def __init__(self, url: str | None, folder: Path) -> None:
        self.is_shared = url is not None
        self._lock: int | None = None
        if url is None:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder / "lock")
            self._engine = _sqlite(folder / "sluicegate.db")
        else:
            self._engine = _postgresql(url)
        self._threads = ThreadPoolExecutor(_CONNECTIONS if self.is_shared else 1, thread_name_prefix="database")
        try:
            self.run_here(upgrade)
        except BaseException:
            self.close()
            raise

    async def run(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `work(connection, …)` as one transaction, in a thread.

        A cancelled caller leaves it running to its end; whether it was committed is then unknown.

        Raises:
            StorageFullError: There is no room for what it writes.
            StorageError: The database cannot be reached, or has had enough.
        """
        return await asyncio.wrap_future(self._threads.submit(partial(self._transact, work, *args, **kwargs)))

    def run_here(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, for threads that are not the event loop's."""
        if self.is_shared:
            return self._transact(work, *args, **kwargs)
        return self._threads.submit(partial(self._transact, work, *args, **kwargs)).result()

    def _transact(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with self._engine.begin() as connection:
                return work(connection, *args, **kwargs)
        except (IntegrityError, ProgrammingError):
            raise
        except DBAPIError as error:
            raise _storage_error(error) from error
        except (DisconnectionError, PoolTimeoutError) as error:
            raise StorageError("the database cannot be reached") from error

    def close(self) -> None:
        """Ends what runs, then gives everything back."""
        self._threads.shutdown(wait=True)
        self._engine.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _storage_error(error: DBAPIError) -> StorageError:
    told = str(error.orig)
    if any(sign in told for sign in _SQLITE_FULL) or getattr(error.orig, "sqlstate", None) == _POSTGRESQL_FULL:
        return StorageFullError("there is no room left for the database")
    return StorageError("the database cannot be reached")


def _locked(path: Path) -> int:
    """Returns: The file, open and locked for this process."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up = time.monotonic() + _LOCK_SECONDS
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        if time.monotonic() >= give_up:
            os.close(file)
            raise StorageInUseError(f"{path.parent} is in use by another process: one folder, one process")
        time.sleep(0.05)


def _sqlite(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"check_same_thread": False}, pool_size=1, max_overflow=0)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins no transactions of its own
        for pragma in ("auto_vacuum=INCREMENTAL", "journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000"):
            connection.execute(f"PRAGMA {pragma}").fetchall()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _postgresql(url: str) -> Engine:
    address = url.partition("://")[2]
    return create_engine(
        f"postgresql+psycopg://{address}",
        pool_size=_CONNECTIONS + 1,  # one for the heartbeat
        max_overflow=0,
        pool_timeout=10,
        pool_pre_ping=True,
        connect_args={"connect_timeout": 5, "options": "-c lock_timeout=10s -c statement_timeout=60s"},
    )
