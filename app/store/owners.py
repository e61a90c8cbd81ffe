"""Who holds work, and until when: a process renews one lease for all that it holds, from a thread of its own.

What a process held is free for others once its lease is over. Whoever writes for a piece of work checks in the same
transaction that it still holds it, so a process that was stopped for longer than its lease cannot write twice.
"""

import logging
import os
import socket
import threading

from sqlalchemy import ColumnElement, Connection, delete, insert, or_, select, update
from sqlalchemy.sql.expression import ScalarSelect

from app.errors import StorageError
from app.store.clock import now
from app.store.database import Database
from app.store.tables import owners

log = logging.getLogger("sluicegate")
_BEATS = 3  # within a lease
_AFTER_FAILURE_SECONDS = 1.0
_FORGOTTEN_SECONDS = 86_400


class NotOursError(Exception):
    """The work was taken over by somebody else: this process was silent for too long."""


def is_free(holder: ColumnElement[str | None]) -> ColumnElement[bool]:
    """Returns: The condition that nobody alive holds what `holder`, a column of owners' ids, tells the holder of."""
    return or_(holder.is_(None), holder.not_in(_living()))


def _living() -> ScalarSelect[str]:
    return select(owners.c.id).where(owners.c.until > now()).scalar_subquery()


def renew(connection: Connection, owner: str, lease: float) -> None:
    """The owner holds what it holds for another `lease` seconds."""
    renewed = connection.execute(update(owners).where(owners.c.id == owner).values(until=now() + lease))
    if not renewed.rowcount:
        connection.execute(insert(owners).values(id=owner, until=now() + lease))


def leave(connection: Connection, owner: str) -> None:
    """What the owner still holds is free at once; who has been gone for a day is forgotten."""
    connection.execute(delete(owners).where(or_(owners.c.id == owner, owners.c.until < now() - _FORGOTTEN_SECONDS)))


def leave_all(connection: Connection) -> None:
    connection.execute(delete(owners))


class Owner:
    """This process, as an owner of work, between `start` and `stop`.

    Args: lease: Seconds.
    """

    def __init__(self, database: Database, lease: float) -> None:
        self.id = f"{socket.gethostname()[:32]}:{os.getpid()}:{os.urandom(4).hex()}"
        self.lease = lease
        self._database = database
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Raises: StorageError: The database cannot be reached."""
        if not self._database.is_shared:
            self._database.run_here(leave_all)  # the folder's lock says that all others have ended
        self._database.run_here(renew, self.id, self.lease)
        self._thread.start()

    def _beat(self) -> None:
        every = self.lease / _BEATS
        pause = every
        while not self._over.wait(pause):
            pause = every if self._is_renewed() else min(every, _AFTER_FAILURE_SECONDS)

    def _is_renewed(self) -> bool:
        try:
            self._database.run_here(renew, self.id, self.lease)
        except StorageError as error:
            log.warning("the lease could not be renewed: %s", error.message)
            return False
        except Exception:  # a bug, or a database without its tables: the next beat may still find them
            log.exception("the lease could not be renewed")
            return False
        return True

    def stop(self) -> None:
        """Gives everything back. Blocks for as long as one transaction takes."""
        self._over.set()
        self._thread.join()
        try:
            self._database.run_here(leave, self.id)
        except StorageError as error:
            log.warning("what was held is free only after %g seconds: %s", self.lease, error.message)
