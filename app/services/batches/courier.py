"""One parcel's way: to the call stack and back, and what its reply, or the lack of one, means for its lines."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from app.errors import GatewayError, InternalError
from app.policies.again import Again, Pause, decide
from app.services.batches.holding import Entry, Parcel
from app.store.commits import Stored
from app.upstream.types import Call, Reply, Trace
from app.wire import packing
from app.wire.batch_results import error_line, reply_line, usage_of
from app.wire.endpoints import BY_PATH
from app.wire.request import peek, unambiguous
from app.wire.results import new_id

log = logging.getLogger("sluicegate")


@dataclass(frozen=True, slots=True)
class Delivered:
    """Its lines have results."""

    stored: list[Stored]


@dataclass(frozen=True, slots=True)
class Later:
    """These parcels are to be sent in so many seconds. Attributes: excused: It was not their fault."""

    parcels: list[Parcel]
    seconds: float
    excused: bool = False


@dataclass(frozen=True, slots=True)
class Paused:
    """Nothing of the batch can succeed now; the parcels are as before."""

    parcels: list[Parcel]
    code: str
    reason: str


Outcome = Delivered | Later | Paused


class Courier:
    """Args:
    send: The way to an upstream.
    max_tries: Of a line that fails while others succeed.
    """

    def __init__(self, send: Callable[[Call], Awaitable[Reply]], max_tries: int) -> None:
        self._send = send
        self._max_tries = max_tries
        self._succeeded_at: dict[str, float] = {}  # by upstream

    async def carry(self, parcel: Parcel) -> Outcome:
        """Sends a parcel. Never raises but when cancelled."""
        parcel.trace = Trace()
        parcel.tries += 1
        try:
            return await (self._single(parcel) if len(parcel.entries) == 1 else self._pack(parcel))
        except Exception:
            log.exception("bug in a batch", extra={"fields": {"batch": parcel.slice.batch["id"]}})
            error = InternalError("an internal error; the service's log has it")
            return Delivered([_without_reply(parcel, entry, error) for entry in parcel.entries])

    async def _single(self, parcel: Parcel) -> Outcome:
        (entry,) = parcel.entries
        reply, error = await self._exchange(parcel, entry.body)
        if (again := self._again(parcel, reply, error)) is not None:
            return again
        if reply is not None:
            return Delivered([_with_reply(parcel, entry, reply, reply.body)])
        return Delivered([_without_reply(parcel, entry, error or InternalError("no reply"))])

    async def _pack(self, parcel: Parcel) -> Outcome:
        """Whatever is wrong with a pack, its lines go on alone: one bad line never harms the others."""
        packed = packing.pack([entry.body for entry in parcel.entries], merge_equal=parcel.slice.batch["dedupe"])
        reply, error = await self._exchange(parcel, packed.body)
        again = self._again(parcel, reply, error)
        if isinstance(again, Paused) or (isinstance(again, Later) and (again.excused or parcel.tries < 2)):
            return again
        if reply is None or not reply.ok:
            return Later(parcel.alone(), 0.0)
        try:
            bodies = packing.unpack(reply.body, packed)
        except ValueError:
            return Later(parcel.alone(), 0.0)
        pairs = zip(parcel.entries, bodies, strict=True)
        return Delivered([_with_reply(parcel, entry, reply, body) for entry, body in pairs])

    async def _exchange(self, parcel: Parcel, body: bytes) -> tuple[Reply | None, GatewayError | None]:
        batch = parcel.slice.batch
        endpoint = BY_PATH[batch["endpoint"].removeprefix("/v1")]
        if batch["models"] is not None:
            body = unambiguous(body)
        try:
            seen = peek(endpoint, body)
            call = Call(
                endpoint,
                endpoint.path,
                body,
                model=seen.model,
                most_output=seen.most_output,
                patient=True,
                caller=batch["owner"],
                lane="batch",
                cache=True if batch["dedupe"] else None,
                trace=parcel.trace,
            )
            reply = await self._send(call)
        except GatewayError as error:
            return None, error
        if reply.ok:
            self._succeeded_at[parcel.trace.upstream] = _now()
        return reply, None

    def _again(self, parcel: Parcel, reply: Reply | None, error: GatewayError | None) -> Later | Paused | None:
        """Returns: None: that is its last word."""
        since = max(parcel.failed_at, parcel.launched_at)
        verdict = decide(
            status=None if reply is None else reply.status,
            error_code=None if reply is None else reply.error_code,
            error=error,
            tries=parcel.tries,
            others_succeed=self._succeeded_at.get(parcel.trace.upstream, 0.0) > since,
            max_tries=self._max_tries,
            excused=parcel.excused,
            draw=random.random,
        )
        if isinstance(verdict, Again):
            parcel.failed_at = _now()
            parcel.excused += verdict.excused
            return Later([parcel], verdict.seconds, verdict.excused)
        if isinstance(verdict, Pause):
            parcel.tries -= 1  # it was no try of the line's
            return Paused([parcel], verdict.code, verdict.reason)
        return None


def _with_reply(parcel: Parcel, entry: Entry, reply: Reply, body: bytes) -> Stored:
    fields = reply_line(entry.custom_id, reply.status, reply.request_id or new_id("req_"), body)
    is_paid = reply.ok and parcel.trace.cache not in {"hit", "shared"}  # another line's call is its usage
    usage = usage_of(body) if is_paid else None
    return parcel.slice.done(entry, ok=reply.ok, fields=fields, usage=usage)


def _without_reply(parcel: Parcel, entry: Entry, error: GatewayError) -> Stored:
    """A refusal by this gateway is a reply, as it would be to the single call; a failure to get one is not."""
    if error.status < 500:
        fields = reply_line(entry.custom_id, error.status, new_id("req_"), error.envelope())
    else:
        fields = error_line(entry.custom_id, error.cause, error.message)
    return parcel.slice.done(entry, ok=False, fields=fields)


def _now() -> float:
    return asyncio.get_running_loop().time()
