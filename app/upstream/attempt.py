"""One attempt at one upstream, from the slot to a judged reply."""

import asyncio
import math
import time
from collections.abc import Coroutine
from typing import Any

from app.errors import CircuitOpenError, DeadlineError, FirstTokenTimeoutError
from app.policies.budget import RetryBudget
from app.policies.lanes import Ticket
from app.policies.limits import Limits
from app.policies.routing import Target
from app.settings import UpstreamSettings
from app.telemetry import UpstreamFigures
from app.upstream.admission import Admission
from app.upstream.body import SENTENCES
from app.upstream.client import UpstreamClient
from app.upstream.family import Family
from app.upstream.flight import Flight
from app.upstream.opening import Opener
from app.upstream.transport import RawReply
from app.upstream.types import Call, Reply
from app.wire.request import with_model

_SOONEST_PROBE_SECONDS = 0.25
_DETOUR_SECONDS = 1.0  # whoever would wait longer goes to the next target


class Upstream:
    """An upstream's client, admission point, budget and figures."""

    def __init__(self, name: str, settings: UpstreamSettings, client: UpstreamClient, max_reply_bytes: int) -> None:
        self.name = name
        self.settings = settings
        self.client = client
        self.admission = Admission(name, _limits(settings), settings.most_in_flight, settings.max_queue)
        self.budget = RetryBudget(self.admission.time())
        self.figures = UpstreamFigures()
        self._opener = Opener(name, settings, max_reply_bytes)

    async def attempt(self, call: Call, target: Target, deadline: float, *, alone: bool, last: bool) -> Reply:
        """Sends the call once.

        Args:
            deadline: On the event loop's clock.
            alone: There is no other target for such calls.
            last: There is none left for this one.
        Returns:
            The reply, of any status; if it is open, it holds the slot until it is closed.
        Raises:
            GatewayError: There was no usable reply. The slot is free again.
        """
        flight = await self._admitted(call, target, deadline, alone=alone, last=last)
        try:
            work = self._exchange(call, target, deadline, flight)
            return await (work if last else _unless_overdue(flight, work, self.settings.first_token_timeout))
        except BaseException as error:
            flight.end(None, error)
            raise
        finally:
            call.trace.upstream_ms += (time.monotonic() - flight.began) * 1000

    def snapshot(self) -> dict[str, object]:
        """Returns: JSON-ready: limits, headroom and breaker of each model family, and what is left for retries."""
        return {
            "retry_budget": round(self.budget.left),
            "garbage_headers": self.admission.quotas.garbage,
            "models": {name: family.snapshot() for name, family in self.admission.families.known.items()},
        }

    async def _admitted(self, call: Call, target: Target, deadline: float, *, alone: bool, last: bool) -> Flight:
        # 4. admission
        family = self.admission.family(target.model)
        if not family.breaker.lets_through(family.time()):  # no need to wait for a slot to hear that
            raise self._left_alone(family)
        ticket = Ticket(call.caller, call.lane, deadline=deadline, patient=call.patient)
        asked = time.monotonic()
        try:
            longest = math.inf if last else _DETOUR_SECONDS
            slot = await self.admission.enter(ticket, target.model, len(call.body), call.most_output, longest)
        finally:
            call.trace.queue_ms += (time.monotonic() - asked) * 1000
        # 5. breaker: innermost, so that a probe is spent only on a call that is really sent
        permit = slot.family.breaker.enter(slot.family.time())
        if permit is None:
            slot.release(answered=False)
            raise self._left_alone(slot.family)
        call.trace.attempted()
        return Flight(slot, permit, self.figures, whole=not call.stream, alone=alone)

    def _left_alone(self, family: Family) -> CircuitOpenError:
        breaker = family.breaker
        wait = max(_SOONEST_PROBE_SECONDS, breaker.open_until - family.time())
        told = f"the upstream {self.name!r} is left alone for a moment: {breaker.reason}"
        return CircuitOpenError(told, retry_after=wait)

    async def _exchange(self, call: Call, target: Target, deadline: float, flight: Flight) -> Reply:
        loop = asyncio.get_running_loop()
        now = loop.time()
        deadline = min(deadline, now + self.settings.total_timeout)
        first_token_by = min(deadline, now + self.settings.first_token_timeout) if call.stream else deadline
        try:
            async with asyncio.timeout_at(first_token_by):
                raw = await self._send(call, target)
        except TimeoutError:
            late = FirstTokenTimeoutError if first_token_by < deadline else DeadlineError
            raise late(SENTENCES[late]) from None
        try:
            reply = await self._opener.open(call, raw, deadline, first_token_by - loop.time(), flight)
        except BaseException:
            raw.close()
            raise
        flight.heard(reply, raw.headers)
        return reply

    async def _send(self, call: Call, target: Target) -> RawReply:
        # 6. client
        body = call.body
        if target.model is not None and call.model is not None:
            body = with_model(call.endpoint, body, call.content_type, call.model, target.model)
        return await self.client.send(
            call.endpoint.method,
            call.path,
            body=body,
            content_type=call.content_type,
            model=target.model,
            headers=call.headers,
        )


def _limits(settings: UpstreamSettings) -> Limits:
    return Limits(
        settings.how_concurrent, settings.most_in_flight, settings.requests_per_minute, settings.tokens_per_minute
    )


async def _unless_overdue(flight: Flight, work: Coroutine[Any, Any, Reply], patience: float) -> Reply:
    """Awaits the reply, but lets another target have the call once this one is known to have fallen silent.

    A call that has heard nothing for several times as long as usual counts as a failure; when enough of them open the
    breaker, all that still wait there are given up. One slow answer alone is waited for.

    Args: patience: Seconds, where the usual time is not known.
    Raises: FirstTokenTimeoutError: The target is given up.
    """
    family = flight.slot.family
    task = asyncio.create_task(work, name="attempt")
    try:
        await asyncio.wait({task}, timeout=flight.patience.overdue or patience)
        if not task.done():
            family.overdue.add(task)
            flight.overdue()
            await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None:
            await task.result().aclose()
        raise
    finally:
        family.overdue.discard(task)
    if task.cancelled():
        raise FirstTokenTimeoutError("the target has fallen silent: none of the last calls has heard of it")
    return task.result()
