"""What is done once for a batch, by whichever worker is there first: its input is validated, its output written."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from app.errors import StorageError
from app.services.batches.finishing import finish
from app.services.batches.validation import validate
from app.services.files import Files
from app.store import batches
from app.store.batches import Row
from app.store.database import Database
from app.store.owners import NotOursError, Owner

log = logging.getLogger("sluicegate")
_AT_ONCE, _VALIDATIONS = 4, 2  # so that no batch waits with its results for the validation of huge ones
_FOLLOWED = 16  # batches whose output is written while they run
_PURGES = 20  # small deletions at one look
_AGAIN_SECONDS = 5.0


class Jobs:
    """Args:
    exists: Whether there is such a model.
    longest: Bytes of an input's longest line.
    most_lines: Of a batch.

    Attributes:
        troubles: Why the last job of a batch, by number, could not be done; a full disk cannot be written down.
    """

    def __init__(
        self,
        database: Database,
        owner: Owner,
        files: Files,
        exists: Callable[[str], Awaitable[bool]],
        longest: int,
        most_lines: int,
    ) -> None:
        self._database = database
        self._me = owner.id
        self._files = files
        self._exists = exists
        self._longest = longest
        self._most_lines = most_lines
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by the batch's number
        self._kinds: dict[int, str] = {}
        self._tick = asyncio.Event()
        self._resting: dict[int, float] = {}  # those that failed, and until when they are left alone
        self.troubles: dict[int, StorageError] = {}
        self.on_done: Callable[[], None] = lambda: None

    async def look(self) -> None:
        """Begins what is to be done, and clears away what is over."""
        self._tick.set()
        self._tick = asyncio.Event()
        await self._database.run(batches.expire)
        self._resting = {number: until for number, until in self._resting.items() if until > time.monotonic()}
        known = self._resting.keys() | self._tasks.keys()
        self.troubles = {number: trouble for number, trouble in self.troubles.items() if number in known}
        while True:
            row = await self._next()
            if row is None:
                break
            task = asyncio.create_task(self._run(row), name=f"batch job {row['id']}")
            self._tasks[row["number"]] = task
            task.add_done_callback(partial(self._is_over, row["number"]))
        for _ in range(_PURGES):
            if not await self._database.run(batches.purge):
                break

    async def _next(self) -> Row | None:
        busy, at = [*self._tasks, *self._resting], Counter(self._kinds.values())
        validate, follow = at["validating"] < _VALIDATIONS, at["in_progress"] < _FOLLOWED
        if len(self._tasks) - at["in_progress"] >= _AT_ONCE:
            return None
        row = await self._database.run(batches.next_job, self._me, busy, validate=validate, follow=follow)
        if row is not None:
            self._kinds[row["number"]] = "ending" if row["ending"] else row["status"]
        return row

    def _is_over(self, number: int, _: "asyncio.Task[None]") -> None:
        del self._tasks[number]
        del self._kinds[number]

    async def _run(self, batch: Mapping[str, Any]) -> None:
        try:
            await (self._validate(batch) if self._kinds[batch["number"]] == "validating" else self._finish(batch))
        except NotOursError:
            log.warning("batch %s was taken over by another worker", batch["id"])
            self._resting[batch["number"]] = time.monotonic() + _AGAIN_SECONDS
        except Exception as error:
            if isinstance(error, StorageError):
                log.warning("batch %s waits: %s", batch["id"], error.message)
            else:
                log.exception("bug in a batch's job", extra={"fields": {"batch": batch["id"]}})
            await self._note(batch["number"], error)
            self._resting[batch["number"]] = time.monotonic() + _AGAIN_SECONDS
        else:
            self.troubles.pop(batch["number"], None)
        finally:
            with contextlib.suppress(StorageError):
                await self._database.run(batches.leave_job, self._me, batch["number"])
        self.on_done()

    async def _note(self, number: int, error: Exception) -> None:
        """Tells the batch's owner why it does not go on."""
        told = error if isinstance(error, StorageError) else StorageError("an internal error; the service's log has it")
        self.troubles[number] = told
        with contextlib.suppress(StorageError):
            code = told.code or told.type
            await self._database.run(batches.pause, number, code, told.message, 2 * _AGAIN_SECONDS)

    async def _validate(self, batch: Mapping[str, Any]) -> None:
        number = batch["number"]
        is_wanted = partial(self._database.run, batches.is_validating, self._me, number)
        verdict = await validate(self._files, batch, self._longest, self._most_lines, self._exists, is_wanted)
        if verdict is None:
            return
        at = int(time.time())
        if verdict.errors:
            await self._database.run(batches.refused, self._me, number, verdict.errors, at)
        else:
            cut, lines = verdict.slices, verdict.lines
            await self._database.run(batches.validated, self._me, number, cut, verdict.model, at, lines)

    async def _news(self) -> None:
        await self._tick.wait()

    async def _finish(self, batch: Mapping[str, Any]) -> None:
        made = await finish(self._database, self._files, self._me, batch, self._news)
        await self._database.run(
            batches.ended,
            self._me,
            batch["number"],
            at=int(time.time()),
            output=made.output,
            error=made.error,
            lost=made.lost,
        )

    async def aclose(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
