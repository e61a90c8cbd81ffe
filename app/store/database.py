"""The way to the database, embedded or shared: one transaction is one function, run in a thread.

Why threads and not an async driver: a transaction costs one hop instead of one for each statement, and a heartbeat can
come from a thread of its own, whatever the event loop is busy with. SQLite gets exactly one thread with one connection
(two writers in WAL mode can corrupt its 3.40), and a lock on the folder keeps other processes out.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, DisconnectionError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.errors import StorageError, StorageFullError
from app.store import engines
from app.store.migrations import upgrade

log = logging.getLogger("sluicegate")
P = ParamSpec("P")
T = TypeVar("T")
_CONNECTIONS = 8
_LOCK_SECONDS = 2.0  # a predecessor that is just ending may still hold it
_TRIES = 4  # of a transaction that another one got in the way of
_LONGEST_REASON = 300


class StorageInUseError(Exception):
    """Another process works on this folder."""


class Database:
    """Args:
    url: `postgresql://…`; None: SQLite in `folder`.
    folder: Made if it is not there.
    Raises:
        StorageInUseError: Another process has the SQLite file open.
        StorageError: The database cannot be used; the message says why, without the password.
    """

    def __init__(self, url: str | None, folder: Path) -> None:
        self.is_shared = url is not None
        self._is_well = True
        self._lock: int | None = None
        if url is None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts and replies are kept here
            self._lock = _locked(folder / "lock")
            self._engine = engines.sqlite(folder / "sluicegate.db")
        else:
            self._engine = engines.postgresql(url, _CONNECTIONS + 1)  # one for the heartbeat
        self._threads = ThreadPoolExecutor(_CONNECTIONS if self.is_shared else 1, thread_name_prefix="database")
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    def _migrate(self) -> None:
        try:
            self._submit(partial(self._attempt, upgrade)).result()
        except (DBAPIError, DisconnectionError, PoolTimeoutError) as error:
            raise StorageError(f"the database cannot be used: {self._reason(error)}") from None

    async def run(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `work(connection, …)` as one transaction, in a thread.

        Where another transaction got in its way, it is undone and `work` runs once more. A cancelled caller leaves it
        running to its end; whether it was committed is then unknown, as after a StorageError.

        Raises:
            StorageFullError: There is no room for what it writes.
            StorageError: The database cannot be reached, or has had enough.
        """
        return await asyncio.wrap_future(self._submit(partial(self._transact, work, *args, **kwargs)))

    def run_here(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, for threads that are not the event loop's."""
        if self.is_shared:
            return self._transact(work, *args, **kwargs)
        return self._submit(partial(self._transact, work, *args, **kwargs)).result()

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        try:
            return self._threads.submit(work)
        except RuntimeError:
            raise StorageError("the database is closed: the server ends") from None

    def _transact(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            done = self._attempt(work, *args, **kwargs)
        except DBAPIError as error:
            if engines.is_bug(error):
                raise
            self._fell_ill(error)
            if engines.code(error) in engines.FULL:
                raise StorageFullError("there is no room left for the database") from error
            raise StorageError("the database cannot be reached") from error
        except (DisconnectionError, PoolTimeoutError) as error:
            self._fell_ill(error)
            raise StorageError("the database cannot be reached") from error
        if not self._is_well:
            self._is_well = True
            log.warning("the database: works again")
        return done

    def _attempt(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(_TRIES - 1):
            try:
                return self._once(work, *args, **kwargs)
            except OperationalError as error:
                if engines.code(error) not in engines.TAKE_TURNS:
                    raise
        return self._once(work, *args, **kwargs)

    def _once(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._engine.begin() as connection:
            return work(connection, *args, **kwargs)

    def _fell_ill(self, error: SQLAlchemyError) -> None:
        if self._is_well:  # once, not for every call of an outage
            self._is_well = False
            log.warning("the database: %s", self._reason(error))

    def _reason(self, error: SQLAlchemyError) -> str:
        """Returns: What the driver says, in one line, without the password."""
        told = " ".join(str(getattr(error, "orig", None) or error).split())
        password = self._engine.url.password
        return (told.replace(str(password), "***") if password else told)[:_LONGEST_REASON]

    def close(self) -> None:
        """Ends what runs, then gives everything back."""
        self._threads.shutdown(wait=True)
        self._engine.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


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
