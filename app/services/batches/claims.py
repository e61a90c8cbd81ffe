"""Fetches slices when there is little left to send: claims them, reads their lines, cuts them into parcels."""

import asyncio
import logging
from collections.abc import Callable

from app.errors import StorageError
from app.services.batches.desk import Desk
from app.services.batches.holding import unpacked
from app.services.files import Files
from app.settings import BatchSettings
from app.store import batches, ledger
from app.store.commits import Stored
from app.store.database import Database
from app.store.ledger import Claim

log = logging.getLogger("sluicegate")


class Claims:
    """Args:
    me: The owner of what is claimed.
    taken: Called with results of lines that need not be sent, when a slice has come to the desk.

    Attributes:
        hungry: Set to have a look.
        busy: Held while slices are ours, but not on the desk yet.
    """

    def __init__(
        self,
        database: Database,
        me: str,
        files: Files,
        desk: Desk,
        settings: BatchSettings,
        taken: Callable[[list[Stored]], None],
    ) -> None:
        self.hungry = asyncio.Event()
        self.busy = asyncio.Lock()
        self._database = database
        self._me = me
        self._files = files
        self._desk = desk
        self._settings = settings
        self._taken = taken

    async def run(self) -> None:
        """Claims what is wanted, whenever it is; run it as a task."""
        while True:
            await self.hungry.wait()
            self.hungry.clear()
            try:
                while await self._some():
                    pass
            except StorageError as error:
                log.debug("no slices can be claimed: %s", error.message)  # the database has told
            except Exception:
                log.exception("bug while claiming slices")

    async def _some(self) -> bool:
        """Returns: Whether there may be more."""
        if not (wanted := self._desk.wanted()):
            return False
        async with self.busy:
            passed_over = self._desk.stuck | self._desk.leaving
            claims = await self._database.run(ledger.claim, self._me, wanted, passed_over)
            for claim in claims:
                await self._take(claim)
        return bool(claims)

    async def _take(self, claim: Claim) -> None:
        number = claim.batch["number"]
        try:
            text = await self._files.read(claim.batch["input_file_id"], claim.start, claim.stop)
        except StorageError as error:
            log.warning("a batch's input cannot be read: %s", error.message)
            await self._database.run(ledger.release, self._me, [(number, claim.number)])
            code, reason = "input_unreadable", "its input file cannot be read"
            await self._database.run(batches.pause, number, code, reason, self._settings.pause)
            return
        held, stored = unpacked(claim, text, self._settings.pack_inputs)
        self._desk.take(held)
        self._taken(stored)
