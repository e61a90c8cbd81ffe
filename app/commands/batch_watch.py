"""Follows a batch to its end, over polls: the gateway may go away and come back in between."""

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import IO

from app.commands.batch_object import Batch, path_of
from app.commands.batch_progress import Display
from app.commands.progress import Causes
from app.commands.remote import AwayError, Remote
from app.config import ConfigError

_FIRST_WAIT, _WAIT, _LONGEST_WAIT = 0.2, 1.0, 5.0  # seconds between two looks


class Results:
    """Where result lines go. Nothing is opened, or lost, before the first one is there.

    Args:
        out: None: standard output.
        after: Lines that are left out at the start.
    """

    def __init__(self, out: Path | None, after: int = 0) -> None:
        self._out = out
        self._target: IO[bytes] | None = None
        self.after = after

    def write(self, line: bytes) -> None:
        try:
            self._opened().write(line + b"\n")
        except OSError as error:
            raise self._failed(error) from None
        self.after += 1

    def flush(self) -> None:
        try:
            self._opened().flush()
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        if self._out is not None and self._target is not None:
            self._target.close()

    def _opened(self) -> IO[bytes]:
        if self._target is None:
            self._target = self._out.open("wb") if self._out else sys.stdout.buffer
        return self._target

    def _failed(self, error: OSError) -> Exception:
        return ConfigError(f"{self._out}: {error.strerror}") if self._out else error


class Watch:
    """One batch, looked at again and again.

    Args:
        results: Its result lines go there as they come; None: they are read only to tell why some failed.
    """

    def __init__(self, remote: Remote, batch_id: str, display: Display, results: Results | None = None) -> None:
        self.batch: Batch | None = None
        self.causes = Causes()
        self._remote = remote
        self._path = path_of(batch_id)
        self._display = display
        self._results = results
        self._read = results.after if results else 0

    async def to_the_end(self) -> Batch:
        """Returns: The batch, ended; everything of it was shown and written."""
        wait = _FIRST_WAIT
        while True:
            before = self.batch
            try:
                batch = await self.look()
            except AwayError as error:
                if before is None:  # it never was there: more likely a wrong address than a pause
                    raise
                self._display.away(str(error))
            else:
                if batch.has_ended:
                    return batch
                if before is None or before.status != batch.status or before.counts != batch.counts:
                    wait = min(wait, _WAIT)
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, _LONGEST_WAIT)

    async def look(self) -> Batch:
        """Shows the batch as it is now, and takes the results that are new."""
        batch = Batch.read(await self._remote.ask("GET", self._path))
        if not batch.has_ended:
            self._display.show(batch, self.causes)
        if self._results is not None:
            await self._take(batch, self._results)
        elif batch.has_ended and batch.error_file_id and self.causes.total < batch.counts.failed:
            await self._count_failures(batch.error_file_id)
        elif self.causes.total < batch.counts.failed:
            await self._take(batch)
        self._display.show(batch, self.causes)
        self.batch = batch
        return batch

    async def _take(self, batch: Batch, results: Results | None = None) -> None:
        """Reads on from where it was, up to what is there now."""
        if not batch.has_ended and self._read >= batch.counts.done:
            return
        now = {"after": str(self._read), "follow": "false"}
        lines = self._remote.lines(f"{self._path}/results", params=now)
        try:
            async with contextlib.aclosing(lines):
                async for line in lines:
                    self._read += 1
                    self.causes.add(line)
                    if results is not None:
                        results.write(line)
        finally:
            if results is not None:
                results.flush()

    async def _count_failures(self, error_file_id: str) -> None:
        """An ended batch has them all in one file: nothing else needs to be read for them."""
        causes = Causes()
        lines = self._remote.lines(f"/files/{error_file_id}/content")
        async with contextlib.aclosing(lines):
            async for line in lines:
                causes.add(line)
        self.causes = causes
