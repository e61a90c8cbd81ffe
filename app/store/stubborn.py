"""Transactions that must not be lost: they are tried until there is room, or until the database is back."""

import asyncio
import logging
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from app.errors import StorageError
from app.store.database import Database

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger("sluicegate")
_AGAIN_SECONDS = 0.5


class Stubborn:
    """A database that is asked until it answers.

    Args: what: Waits for it meanwhile, for the log.
    Attributes:
        trouble: Why it does not right now.
    """

    def __init__(self, database: Database, what: str) -> None:
        self.trouble: StorageError | None = None
        self._database = database
        self._what = what

    async def run(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `Database.run`, but raises no StorageError. `work` may run twice: its first answer may have been lost."""
        while True:
            try:
                done = await self._database.run(work, *args, **kwargs)
            except StorageError as error:
                if self.trouble is None or self.trouble.code != error.code:
                    log.warning("%s wait: %s", self._what, error.message)
                self.trouble = error
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                if self.trouble is not None:
                    log.warning("%s go on", self._what)
                    self.trouble = None
                return done
