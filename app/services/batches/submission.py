"""What can be asked of batches: to make one, to look at them, to end one, to have its failures done again."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from app.errors import ConflictError, InvalidRequestError, NotFoundError
from app.policies.eta import estimate
from app.services.batches.reading import ID, Reading, lines_of, must_have, not_found, row_of
from app.services.batches.worker import Worker
from app.services.files import Files, StoredFile
from app.services.keys import Caller
from app.settings import BatchSettings
from app.store import batches, ledger, results
from app.store.batches import Row
from app.store.database import Database
from app.store.tables import ENDED
from app.wire.batches import Create, OutputExpiry, Page, batch_object, inline_lines, page
from app.wire.results import new_id

_HORIZONS = (100, 1_000, 10_000)  # results; the first is the speed of late


class Batches:
    """Args:
    worker: The one in this process, if there is one.
    remembers: Seconds that a request with an Idempotency-Key makes no second batch.
    """

    def __init__(
        self,
        database: Database,
        files: Files,
        settings: BatchSettings,
        worker: Worker | None,
        remembers: float,
    ) -> None:
        self._database = database
        self._files = files
        self._settings = settings
        self._worker = worker
        self._remembers = remembers

    async def create(self, caller: Caller, asked: Create, once: bytes | None = None) -> dict[str, Any]:
        """Args:
            once: A digest of the request, if it carries an Idempotency-Key: whatever got lost, it makes one batch.
        Returns:
            The batch object, `validating` if it is new.
        Raises: NotFoundError: There is no such input file.
        """
        if asked.requests is None:
            file_id = asked.input_file_id or ""
            file = await self._input(caller, file_id)
        else:
            file = await self._written(caller.name, inline_lines(asked), once)
        return await self._added(caller, asked, file, once)

    async def _input(self, caller: Caller, file_id: str) -> StoredFile:
        try:
            file = await self._files.get(caller.name, file_id)
        except NotFoundError as error:
            raise NotFoundError(error.message, param="input_file_id") from None
        if file.purpose != "batch":
            message = f"the file's purpose is {file.purpose!r}: upload it with purpose 'batch'"
            raise InvalidRequestError(message, param="input_file_id")
        return file

    async def _written(self, owner: str, lines: Iterable[bytes], once: bytes | None) -> StoredFile:
        async with self._files.making(owner, "requests.jsonl", "batch", id_=_file_id(once)) as making:
            for line in lines:
                await making.write(line)
        return making.file

    async def _added(self, caller: Caller, asked: Create, file: StoredFile, once: bytes | None) -> dict[str, Any]:
        now = int(time.time())
        fields = {
            "id": new_id("batch_"),
            "owner": caller.name,
            "models": None if caller.models is None else sorted(caller.models),
            "endpoint": asked.endpoint,
            "input_file_id": file.id,
            "completion_window": asked.completion_window,
            "status": "validating",
            "created_at": now,
            "expires_at": now + asked.window_seconds,
            "metadata": asked.metadata,
            "output_ttl": None if asked.output_expires_after is None else asked.output_expires_after.seconds,
            "priority": asked.priority,
            "on_doubt": asked.on_doubt or self._settings.on_doubt,
            "dedupe": self._settings.dedupe if asked.dedupe is None else asked.dedupe,
            "pack_embeddings": self._settings.pack_embeddings
            if asked.pack_embeddings is None
            else asked.pack_embeddings,
            "key": once,
        }
        row = await self._database.run(batches.add, fields, int(now - self._remembers))
        if row is None:
            raise NotFoundError(f"there is no file {file.id!r} any more", param="input_file_id")
        self._kick()
        return batch_object(row, _NO_PROGRESS)

    async def get(self, owner: str, batch_id: str) -> dict[str, Any]:
        """Raises: NotFoundError: There is no such batch."""
        row = await row_of(self._database, owner, batch_id)
        return batch_object(row, await self._progress(row))

    async def page(self, owner: str, wanted: Page) -> dict[str, Any]:
        """Raises: InvalidRequestError: `after` is no batch's id."""
        is_id = wanted.after is None or ID.fullmatch(wanted.after)
        found = await self._database.run(batches.page, owner, wanted.after, wanted.limit) if is_id else None
        if found is None:
            raise InvalidRequestError(f"there is no batch {wanted.after!r}", param="after")
        rows, has_more = found
        return page([batch_object(row, await self._progress(row)) for row in rows], has_more)

    async def cancel(self, owner: str, batch_id: str) -> dict[str, Any]:
        """Raises:
        NotFoundError: There is no such batch.
        ConflictError: It has ended already, or is about to.
        """
        is_id = ID.fullmatch(batch_id)
        row = await self._database.run(batches.cancel, owner, batch_id, int(time.time())) if is_id else None
        if row is None:
            raise not_found(batch_id)
        if row["status"] not in {"cancelling", "cancelled"}:
            state = row["ending"] or row["status"]
            raise ConflictError(f"a batch that is {state} cannot be cancelled")
        self._kick()
        return batch_object(row, await self._progress(row))

    async def _progress(self, row: Row) -> Mapping[str, Any]:
        if row["status"] in ENDED:
            return {**_NO_PROGRESS, "in_doubt": row["in_doubt"]}
        stored_so_far = row["completed"] + row["failed"]
        horizons = [n for n in _HORIZONS if n < stored_so_far]
        positions = [stored_so_far - n for n in horizons]
        ages = await self._database.run(results.ages, row["number"], positions) if positions else {}
        spans = [(n, ages[at]) for n, at in zip(horizons, positions, strict=True) if at in ages]
        if row["in_progress_at"] is not None:
            spans.append((stored_so_far, max(1.0, time.time() - row["in_progress_at"])))
        per_second, eta = estimate(row["total"] - stored_so_far, spans)
        in_flight = await self._database.run(ledger.in_flight, row["number"])
        progress: dict[str, Any] = {
            "per_second": per_second,
            "eta_seconds": None if eta is None or not row["total"] else list(eta),
            "in_flight": in_flight,
            "in_doubt": row["in_doubt"],
            "paused": self._paused(row),
        }
        return progress

    def _kick(self) -> None:
        if self._worker is not None:
            self._worker.kick()

    def _paused(self, row: Row) -> dict[str, str] | None:
        trouble = None if self._worker is None else self._worker.trouble(row["number"])
        if trouble is not None:
            return {"code": trouble.code or trouble.type, "reason": trouble.message}
        if row["paused_code"] is None:
            return None
        return {"code": row["paused_code"], "reason": row["paused_reason"]}

    def reading(self, owner: str, batch_id: str) -> Reading:
        """Returns: What reads the batch's results."""
        return Reading(self._database, self._files, owner, batch_id)

    async def retry(self, caller: Caller, batch_id: str, once: bytes | None = None) -> dict[str, Any]:
        """A new batch of those lines that failed. Args: once: As for `create`. Returns: Its object.

        Raises:
            NotFoundError: There is no such batch, or its files are deleted.
            ConflictError: It has not ended, or no line of it failed.
        """
        row = await row_of(self._database, caller.name, batch_id)
        if row["status"] not in ENDED or row["status"] == "failed":
            raise ConflictError(f"a batch that is {row['status']} has no failed lines to retry")
        if row["error_file_id"] is None:
            raise ConflictError("no line of this batch has failed")
        await must_have(self._files, row, "error_file_id", "input_file_id")
        failed = {hash(_id_of(line)) async for line in lines_of(self._files, row["error_file_id"])}  # maybe a million
        async with self._files.making(caller.name, f"retry_of_{batch_id}.jsonl", "batch", id_=_file_id(once)) as making:
            async for line in lines_of(self._files, row["input_file_id"]):
                if hash(_id_of(line)) in failed:
                    await making.write(line + b"\n")
        again = {name: row[name] for name in ("endpoint", "completion_window", "metadata", "priority", "on_doubt")}
        expiry = None if row["output_ttl"] is None else OutputExpiry("created_at", row["output_ttl"])
        packed = {name: row[name] for name in ("dedupe", "pack_embeddings")}
        asked = Create(**again, **packed, output_expires_after=expiry)
        return await self._added(caller, asked, making.file, once)

    async def snapshot(self) -> dict[str, int]:
        """Returns: Batches that run, by status, and their lines in doubt."""
        return await self._database.run(batches.counts)


_NO_PROGRESS: dict[str, Any] = {
    "per_second": 0.0,
    "eta_seconds": None,
    "in_flight": 0,
    "in_doubt": 0,
    "paused": None,
}


class _WithId(msgspec.Struct):
    custom_id: str | None = None


_WITH_ID = msgspec.json.Decoder(_WithId)


def _id_of(line: bytes) -> str | None:
    return _WITH_ID.decode(line).custom_id


def _file_id(once: bytes | None) -> str | None:
    return None if once is None else f"file-{once.hex()[:24]}"
