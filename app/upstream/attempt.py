"""One attempt at one upstream, from the slot to a judged reply."""

import asyncio
import time
from collections.abc import Callable, Mapping

import msgspec

from app.errors import (
    ClientHungUpError,
    DeadlineError,
    FirstTokenTimeoutError,
    GatewayError,
    InternalError,
    UpstreamMalformedError,
    envelope,
)
from app.policies.routing import Target
from app.settings import UpstreamSettings
from app.telemetry import ABANDONED, UpstreamFigures
from app.upstream.admission import Admission, Slot
from app.upstream.body import SENTENCES, Body, Events
from app.upstream.client import UpstreamClient
from app.upstream.transport import RawReply
from app.upstream.types import Call, Reply
from app.wire.endpoints import Endpoint
from app.wire.request import with_model

_PASSED_ON = ("x-ratelimit-", "openai-", "retry-after")
_KEPT = frozenset({"content-type", "content-disposition", "x-should-retry"})


class Upstream:
    """An upstream's client, admission point and figures."""

    def __init__(self, name: str, settings: UpstreamSettings, client: UpstreamClient, max_reply_bytes: int) -> None:
        self.name = name
        self.settings = settings
        self.client = client
        self.admission = Admission(settings.max_in_flight, settings.max_queue)
        self.figures = UpstreamFigures()
        self._max_reply_bytes = max_reply_bytes

    async def attempt(self, call: Call, target: Target, deadline: float) -> Reply:
        """Sends the call once.

        Args:
            deadline: On the event loop's clock.
        Returns:
            The reply, of any status; if it is open, it holds the slot until it is closed.
        Raises:
            GatewayError: There was no usable reply. The slot is free again.
        """
        asked = time.monotonic()
        try:
            slot = await self.admission.enter(patient=call.patient)
        finally:
            began = time.monotonic()
            call.trace.queue_ms += (began - asked) * 1000
        finish = self._finisher(slot, began)
        try:
            # the breaker's place: innermost, so that a probe is spent only on a call that is really sent
            reply = await self._exchange(call, target, deadline, finish)
        except BaseException as error:
            finish(None, error)
            raise
        finally:
            call.trace.upstream_ms += (time.monotonic() - began) * 1000
        self.figures.answered(time.monotonic() - began)
        return reply

    def _finisher(self, slot: Slot, began: float) -> Callable[[int | None, BaseException | None], None]:
        """Returns: A function that releases the slot and records the attempt, the first time it is called."""
        done = False

        def finish(status: int | None, failure: BaseException | None) -> None:
            nonlocal done
            if not done:
                done = True
                slot.release()
                outcome = _outcome(status, failure)
                self.figures.ended(outcome, ok=outcome.startswith(("2", "3")), seconds=time.monotonic() - began)

        return finish

    async def _exchange(
        self,
        call: Call,
        target: Target,
        deadline: float,
        finish: Callable[[int | None, BaseException | None], None],
    ) -> Reply:
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
            return await self._open(call, raw, deadline, first_token_by - loop.time(), finish)
        except BaseException:
            raw.close()
            raise

    async def _send(self, call: Call, target: Target) -> RawReply:
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

    async def _open(
        self,
        call: Call,
        raw: RawReply,
        deadline: float,
        patience: float,
        finish: Callable[[int | None, BaseException | None], None],
    ) -> Reply:
        def on_end(failure: BaseException | None) -> None:
            finish(raw.status, failure)

        if not 100 <= raw.status < 600:
            raise UpstreamMalformedError(f"the upstream {self.name!r} answered with the status {raw.status}")
        headers = _passed_on(raw.headers)
        idle = self.settings.idle_timeout
        kind = headers.get("content-type", "").lower()
        if raw.status < 400 and call.stream and _may_be_events(call.endpoint, kind):
            events = Events(raw, terminals=call.endpoint.terminals, deadline=deadline, idle_timeout=idle, on_end=on_end)
            await events.open(patience)
            if events.reader.error is not None and not events.reader.started:
                return await _as_error(events, headers)
            return Reply(raw.status, {**headers, "content-type": "text/event-stream; charset=utf-8"}, events=events)
        body = Body(raw, deadline=deadline, idle_timeout=idle, on_end=on_end)
        if raw.status < 400 and call.endpoint.reply == "any" and not kind.startswith(("application/json", "text/html")):
            return Reply(raw.status, headers, stream=body)
        whole = await body.whole(self._max_reply_bytes)
        await body.aclose()
        return self._checked(call, Reply(raw.status, headers, whole, request_id=raw.headers.get("x-request-id", "")))

    def _checked(self, call: Call, reply: Reply) -> Reply:
        """A reply that no OpenAI client could read becomes an error that says what came instead."""
        looks_json = reply.body.lstrip()[:1] in {b"{", b"["} and reply.body.rstrip()[-1:] in {b"}", b"]"}
        may_ignore_stream = call.endpoint.reply == "any"  # whisper-1 does
        if reply.status == 204 or (looks_json and not (call.stream and reply.ok and not may_ignore_stream)):
            return reply
        kind = reply.content_type or "no content type"
        wanted = "not a stream" if looks_json else "not JSON"
        message = f"the upstream {self.name!r} answered {reply.status} with something that is {wanted} ({kind})"
        if reply.status < 400:
            raise UpstreamMalformedError(message)
        # the status itself is news, and so is its Retry-After
        body = envelope(message, UpstreamMalformedError.type, None, UpstreamMalformedError.code)
        return Reply(reply.status, {**reply.headers, "content-type": "application/json"}, body=body)


async def _as_error(events: Events, headers: Mapping[str, str]) -> Reply:
    """An error event in the first place is what it says it is: an error reply, not a broken 200."""
    error = msgspec.json.decode(events.reader.error or b"null")
    code = error.get("status", error.get("code")) if isinstance(error, dict) else None
    status = code if isinstance(code, int) and 400 <= code < 600 else 502
    await events.aclose()
    body = msgspec.json.encode({"error": error})
    return Reply(status, {**headers, "content-type": "application/json"}, body=body)


def _may_be_events(endpoint: Endpoint, content_type: str) -> bool:
    """Some upstreams leave an event stream's content type out, or get it wrong."""
    if endpoint.reply == "any":
        return content_type.startswith("text/event-stream")
    return not content_type.startswith(("application/json", "text/html"))


def _passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name, value in headers.items():
        lower = name.lower()
        if (lower in _KEPT or lower.startswith(_PASSED_ON)) and value.isascii() and value.isprintable():
            found[lower] = value
    return found


def _outcome(status: int | None, failure: BaseException | None) -> str:
    if isinstance(failure, ClientHungUpError | asyncio.CancelledError | GeneratorExit):
        return ABANDONED
    if isinstance(failure, GatewayError):
        return failure.code or failure.type
    return str(status) if failure is None else InternalError.type
