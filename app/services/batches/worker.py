"""Works batches off: claims slices, sends their lines, stores what comes back. As many workers as you like, anywhere.

Three loops. The *pulse* is the only one that writes to the ledger: every 15 ms at most it stores, in one transaction,
what came back and what is about to be sent, then sends it. The *claims* fetch slices when there is little left to
send. The *rounds* look every second after everything else: windows that end, batches that are cancelled or paused,
leases that are lost, inputs to be validated, outputs to be written.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

from app.errors import StorageError
from app.services.batches.claims import Claims
from app.services.batches.courier import Courier, Delivered, Later
from app.services.batches.desk import Desk
from app.services.batches.holding import Parcel
from app.services.batches.jobs import Jobs
from app.services.files import Files
from app.settings import BatchSettings
from app.store import batches, commits, ledger
from app.store.commits import Key, Stored
from app.store.database import Database
from app.store.owners import Owner
from app.store.stubborn import Stubborn
from app.upstream.types import Call, Reply

log = logging.getLogger("sluicegate")
_PULSE_SECONDS = 0.015
_ROUND_SECONDS = 1.0
_END_SECONDS = 5.0  # a database that is away keeps nobody from ending


class Worker:
    """Args:
    send: The way to an upstream.
    jobs: Validates inputs and writes outputs.
    """

    def __init__(
        self,
        database: Database,
        owner: Owner,
        files: Files,
        send: Callable[[Call], Awaitable[Reply]],
        jobs: Jobs,
        settings: BatchSettings,
    ) -> None:
        self._database = database
        self._stubborn = Stubborn(database, "batches")
        self._me = owner.id
        self._jobs = jobs
        self._settings = settings
        self._courier = Courier(send, settings.max_tries)
        self._desk = Desk(_now())
        self._stored: list[Stored] = []
        self._flights: dict[Parcel, asyncio.Task[None]] = {}
        self._news, self._look = asyncio.Event(), asyncio.Event()
        self._claims = Claims(database, owner.id, files, self._desk, settings, self._taken)
        self._tasks: list[asyncio.Task[None]] = []
        jobs.on_done = self.kick

    def trouble(self, number: int) -> StorageError | None:
        """Returns: Why nothing can be stored of a batch right now, if so."""
        return self._stubborn.trouble or self._jobs.troubles.get(number)

    def start(self) -> None:
        loops = {"batch pulse": self._pulses(), "batch claims": self._claims.run(), "batch rounds": self._rounds()}
        self._tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]

    def kick(self) -> None:
        """Something has changed: look now."""
        self._look.set()
        self._claims.hungry.set()

    def snapshot(self) -> dict[str, object]:
        """Returns: Figures of this worker, JSON-ready."""
        trouble = None if self._stubborn.trouble is None else self._stubborn.trouble.message
        return {"slices": len(self._desk.held), "in_flight": len(self._flights), "trouble": trouble}

    async def _pulses(self) -> None:
        while self._desk.held or not self._desk.is_closing:
            began = _now()
            try:
                await self._pulse()
            except Exception:
                log.exception("bug in the batches' pulse: what is in hand is begun anew")
                self._forget()
            await asyncio.sleep(max(0.0, began + _PULSE_SECONDS - _now()))
            if not self._news.is_set():
                wait = _PULSE_SECONDS if self._desk.has_more else _ROUND_SECONDS
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(wait, max(0.0, self._desk.next_due() - _now()))):
                        await self._news.wait()

    async def _pulse(self) -> None:
        self._news.clear()
        parcels = self._desk.next(_now())
        changes = [held.change() for held in self._desk.held.values() if held.is_dirty]
        stored, self._stored = self._stored, []
        lost = await self._stubborn.run(commits.commit, self._me, changes, stored) if changes else set()
        for key in lost:
            self._drop(key)
        if any(change.finished for change in changes):
            self._look.set()
        for parcel in parcels:
            self._launch(parcel)
        if over := list(self._desk.done()):
            await self._stubborn.run(ledger.release, self._me, over)
            for key in over:
                self._desk.drop(key)
        if self._desk.wanted():
            self._claims.hungry.set()

    def _launch(self, parcel: Parcel) -> None:
        if not self._desk.may_fly(parcel):  # lost, cancelled or handed back while that was written down
            self._desk.landed(parcel)
            parcel.slice.refused(parcel)
            return
        task = asyncio.create_task(self._fly(parcel), name=f"batch call {parcel.slice.key}")
        self._flights[parcel] = task
        task.add_done_callback(partial(self._landed, parcel))

    def _landed(self, parcel: Parcel, flight: "asyncio.Task[None]") -> None:
        if flight.cancelled() and parcel.is_waiting:  # no upstream has seen it: there is no doubt
            parcel.slice.refused(parcel)
        del self._flights[parcel]
        self._desk.landed(parcel)
        self._news.set()

    def _forget(self) -> None:
        """Drops everything; in a second the round finds the slices in the database and hands them back."""
        for key in list(self._desk.held):
            self._cut(self._desk.drop(key))
        self._stored = []

    def _cut(self, parcels: Iterable[Parcel]) -> None:
        """Ends calls, upstream too."""
        for parcel in parcels:
            if parcel in self._flights:
                self._flights[parcel].cancel()

    def _taken(self, stored: list[Stored]) -> None:
        self._stored += stored
        self._news.set()

    async def _fly(self, parcel: Parcel) -> None:
        held = parcel.slice
        outcome = await self._courier.carry(parcel)
        if isinstance(outcome, Delivered):
            self._stored += outcome.stored
            return
        held.refused(parcel)
        if isinstance(outcome, Later):
            self._desk.later(outcome.parcels, _now() + outcome.seconds)
            return
        held.queue.extendleft(outcome.parcels)
        number = held.key[0]
        if number not in self._desk.leaving:
            self._desk.leave(number)
            log.warning("a batch is paused: %s", outcome.reason)
            await self._stubborn.run(batches.pause, number, outcome.code, outcome.reason, self._settings.pause)

    def _drop(self, key: Key) -> None:
        log.warning("a slice was lost to another worker", extra={"fields": {"slice": key}})
        self._cut(self._desk.drop(key))

    async def _rounds(self) -> None:
        while True:
            self._look.clear()
            for work in (self._round, self._jobs.look):
                try:
                    await work()
                except StorageError as error:
                    log.debug("batches cannot be looked after: %s", error.message)  # the database has told
                except Exception:
                    log.exception("bug while looking after batches")
            self._claims.hungry.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ROUND_SECONDS):
                    await self._look.wait()

    async def _round(self) -> None:
        mine = set(self._desk.held)
        for number, state in (await self._database.run(batches.states, {number for number, _ in mine})).items():
            if state != "going on" and number not in self._desk.leaving:
                in_the_air = self._desk.leave(number)
                self._cut(in_the_air if state == "ending" else ())
                self._news.set()
        async with self._claims.busy:
            in_the_ledger = await self._database.run(ledger.held, self._me)
            for key in mine - in_the_ledger:
                if self._desk.goes_on(key):
                    self._drop(key)
            if strays := in_the_ledger - set(self._desk.held):  # what was forgotten
                await self._database.run(ledger.release, self._me, strays)

    def hand_back(self) -> None:
        """Sends nothing more: what has not been sent is free for others at once, the rest as soon as it has ended."""
        self._desk.close()
        self._cut([parcel for parcel in self._flights if parcel.is_waiting])
        self._news.set()

    async def idle(self) -> None:
        """Returns when nothing is in hand any more; for after `hand_back`."""
        if self._tasks:
            await asyncio.wait({self._tasks[0]})

    async def aclose(self) -> None:
        """Ends everything now. What is in the air is cancelled, upstream too; what has come back is stored."""
        self.hand_back()
        self._cut(list(self._flights))
        await _end(self._tasks[1:])  # before the jobs: they begin new ones
        await self._jobs.aclose()
        if self._tasks:
            await asyncio.wait(self._tasks[:1], timeout=_END_SECONDS)
            await _end(self._tasks[:1])


async def _end(tasks: "Sequence[asyncio.Task[None]]") -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _now() -> float:
    return asyncio.get_running_loop().time()
