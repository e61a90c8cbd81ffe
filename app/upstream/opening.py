"""From an upstream's raw reply to one that can go on to a client: checked, its first event here, its errors named."""

from collections.abc import Mapping

import msgspec

from app.errors import UpstreamMalformedError, envelope
from app.settings import UpstreamSettings
from app.upstream.body import Body, Events
from app.upstream.flight import Flight
from app.upstream.transport import RawReply
from app.upstream.types import Call, Reply
from app.wire.endpoints import Endpoint
from app.wire.usage import counted

_PASSED_ON = ("x-ratelimit-", "openai-", "retry-after")
_KEPT = frozenset({"content-type", "content-disposition", "x-should-retry"})


class Opener:
    """Args:
    name: The upstream's, for error messages.
    settings: Its clocks.
    max_reply_bytes: Most that is held of a whole reply.
    """

    def __init__(self, name: str, settings: UpstreamSettings, max_reply_bytes: int) -> None:
        self._name = name
        self._idle = settings.idle_timeout
        self._max_reply_bytes = max_reply_bytes

    async def open(self, call: Call, raw: RawReply, deadline: float, patience: float, flight: Flight) -> Reply:
        """Args:
            deadline: On the event loop's clock, for the whole call.
            patience: Seconds left for the first event.
            flight: Ends when an open reply is closed.
        Returns:
            The reply, of any status.
        Raises:
            GatewayError: It is of no use. `raw` is for the caller to close.
        """
        if not 100 <= raw.status < 600:
            raise UpstreamMalformedError(f"the upstream {self._name!r} answered with the status {raw.status}")
        headers = _passed_on(raw.headers)
        kind = headers.get("content-type", "").lower()

        def on_end(failure: BaseException | None) -> None:
            flight.closed(raw.status, failure)

        if raw.status < 400 and call.stream and _may_be_events(call.endpoint, kind):
            ends = call.endpoint.terminals
            events = Events(raw, terminals=ends, deadline=deadline, idle_timeout=self._idle, on_end=on_end)
            await events.open(patience)
            if events.reader.error is not None and not events.reader.started:
                return await _as_error(events, headers)
            flight.opened(events)
            return Reply(raw.status, {**headers, "content-type": "text/event-stream; charset=utf-8"}, events=events)
        body = Body(raw, deadline=deadline, idle_timeout=self._idle, on_end=on_end)
        if raw.status < 400 and call.endpoint.reply == "any" and not kind.startswith(("application/json", "text/html")):
            flight.opened(None)
            return Reply(raw.status, headers, stream=body)
        whole = await body.whole(self._max_reply_bytes)
        await body.aclose()
        request_id = raw.headers.get("x-request-id", "")
        if raw.status >= 400:
            return self._checked(call, Reply(raw.status, headers, whole, None, None, request_id, _error_code(whole)))
        flight.usage = counted(whole)
        return self._checked(call, Reply(raw.status, headers, whole, request_id=request_id))

    def _checked(self, call: Call, reply: Reply) -> Reply:
        """A reply that no OpenAI client could read becomes an error that says what came instead."""
        looks_json = reply.body.lstrip()[:1] in {b"{", b"["} and reply.body.rstrip()[-1:] in {b"}", b"]"}
        may_ignore_stream = call.endpoint.reply == "any"  # whisper-1 does
        if reply.status == 204 or (looks_json and not (call.stream and reply.ok and not may_ignore_stream)):
            return reply
        kind = reply.content_type or "no content type"
        wanted = "not a stream" if looks_json else "not JSON"
        message = f"the upstream {self._name!r} answered {reply.status} with something that is {wanted} ({kind})"
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
    return Reply(status, {**headers, "content-type": "application/json"}, body=body, error_code=_error_code(body))


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


class _Error(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None


class _Envelope(msgspec.Struct):
    error: _Error | None = None


_ENVELOPE = msgspec.json.Decoder(_Envelope)


def _error_code(body: bytes) -> str | None:
    try:
        error = _ENVELOPE.decode(body).error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if error is None:
        return None
    return "insufficient_quota" if "insufficient_quota" in {error.code, error.type} else str(error.code)
