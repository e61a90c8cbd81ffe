"""What must be looked at now and then: streams of dead servers, wishes of other replicas, and what is too old."""

import asyncio
import itertools
import logging
from collections.abc import Callable

from app.errors import StorageError
from app.settings import StreamSettings
from app.store import stream_sweep, streams
from app.store.database import Database

log = logging.getLogger("sluicegate")
_TICK_SECONDS = 1.0
_SWEEP_TICKS = 15


class Keeper:
    """Args:
    held: Gives the shards that this process writes to.
    on_cancel: Told of each stream of theirs that another replica was asked to end.
    """

    def __init__(
        self,
        database: Database,
        settings: StreamSettings,
        held: Callable[[], list[int]],
        on_cancel: Callable[[int], None],
    ) -> None:
        self._database = database
        self._settings = settings
        self._held = held
        self._on_cancel = on_cancel
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises: StorageError: The storage cannot be reached."""
        await self._database.run(streams.close_dead, self._settings.ttl)
        self._task = asyncio.create_task(self._keep(), name="stream keeper")

    async def _keep(self) -> None:
        for tick in itertools.count(1):
            await asyncio.sleep(_TICK_SECONDS)
            try:
                if self._database.is_shared:
                    await self._look_around()
                if tick % _SWEEP_TICKS == 0:
                    await self._sweep()
            except StorageError:
                pass  # the database itself says so, once
            except Exception:
                log.exception("bug in the stream keeper")

    async def _look_around(self) -> None:
        await self._database.run(streams.close_dead, self._settings.ttl)
        if held := self._held():
            for number in await self._database.run(streams.to_cancel, held):
                self._on_cancel(number)

    async def _sweep(self) -> None:
        kept, size = self._settings.max_kept, self._settings.max_bytes
        while await self._database.run(stream_sweep.sweep, kept, size) >= stream_sweep.PAGE:
            pass

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
