"""The ledger driven as a worker drives it, 1,000 results a second, with nothing around it: what does that alone cost?"""

import asyncio
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, insert, select

from app.services.batches.holding import Entry, HeldSlice, Parcel
from app.store import commits, ledger
from app.store.commits import Stored
from app.store.database import Database
from app.store.owners import renew
from app.store.tables import batches, results, slices
from app.wire.batch_results import Usage, reply_line
from app.wire.bits import Bits

_RATE, _PULSE_SECONDS, _LINES = 1000, 0.015, 256
_BODY = b'{"id":"chatcmpl-1","object":"chat.completion","choices":[{"message":{"content":"%s"}}]}' % (b"water " * 80)


class Pulses:
    """Args: lines: Of the batch."""

    def __init__(self, folder: Path, lines: int) -> None:
        self.commits = self.claims = 0
        self._database = Database(None, folder)
        self._cut = lines // _LINES + 1
        self._held: list[HeldSlice] = []
        self._flying: list[Parcel] = []

    async def prepare(self) -> None:
        await self._database.run(_batch, self._cut)
        await self._database.run(renew, "me", 3600)

    async def run(self, seconds: float, *, write: bool) -> float:
        """Returns: CPU seconds of this process, per second."""
        began, used, sent = time.monotonic(), time.process_time(), 0
        while (gone := time.monotonic() - began) < seconds:
            due = int(gone * _RATE)
            if write:
                await self._pulse(due - sent)
            sent = due
            await asyncio.sleep(max(0.0, began + gone + _PULSE_SECONDS - time.monotonic()))
        spent = (time.process_time() - used) / (time.monotonic() - began)
        if write:
            stored = await self._database.run(
                lambda connection: connection.scalar(select(func.count()).select_from(results))
            )
            assert stored is not None
            assert stored > 0.9 * seconds * _RATE - 100, stored
        return spent

    async def _pulse(self, count: int) -> None:
        """What was sent in the pulse before has come back; as much is sent now."""
        stored: list[Stored] = []
        for parcel in self._flying:
            fields = reply_line(parcel.entries[0].custom_id, 200, "req_1", _BODY)
            stored.append(parcel.slice.done(parcel.entries[0], ok=True, fields=fields, usage=Usage(5, 0, 9, 0, 14)))
        if sum(len(held.queue) for held in self._held) < _RATE // 2:
            await self._claim()
        self._flying = []
        for held in self._held:
            while held.queue and len(self._flying) < count:
                parcel = held.queue.popleft()
                held.sent(parcel)
                self._flying.append(parcel)
        if changes := [held.change() for held in self._held if held.is_dirty]:
            lost = await self._database.run(commits.commit, "me", changes, stored)
            assert not lost
            self.commits += 1
        self._held = [held for held in self._held if not held.is_finished]

    async def _claim(self) -> None:
        for claim in await self._database.run(ledger.claim, "me", _RATE, ()):
            held = HeldSlice(claim)
            held.queue.extend(Parcel(held, (Entry(index, f"r{index}", b"{}"),)) for index in range(claim.lines))
            self._held.append(held)
            self.claims += 1

    def close(self) -> None:
        self._database.close()


def _batch(connection: Connection, cut: int) -> None:
    needed = {"id": "batch_1", "owner": "me", "endpoint": "/v1/chat/completions", "input_file_id": "file-a"}
    flags = {"status": "in_progress", "on_doubt": "retry", "dedupe": False, "pack_embeddings": False}
    times = {"completion_window": "24h", "created_at": 1, "expires_at": 2_000_000_000 * 2, "total": cut * _LINES}
    number: Any = connection.execute(
        insert(batches).values(**needed, **flags, **times).returning(batches.c.number)
    ).scalar_one()
    bits = Bits(_LINES).bytes()
    place = {"start": 0, "stop": 1, "lines": _LINES, "sent": bits, "done": bits}
    connection.execute(insert(slices), [{"batch": number, "number": each, **place} for each in range(cut)])
