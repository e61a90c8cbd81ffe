"""The built-in upstream: an OpenAI-shaped ASGI app, for demos, tests and benches.

It is deterministic by seed, misbehaves on demand (`knobs.py`) and keeps a ledger of what it saw (`GET /ledger`).
"""

import random
import time
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs

import msgspec
from starlette.types import Receive, Scope, Send

from app.errors import InvalidRequestError, envelope
from app.settings import SimulatorSettings
from app.simulator import replies, responses
from app.simulator.exchange import Exchange, HungUpError
from app.simulator.knobs import Behaviour, behaviour
from app.simulator.ledger import Ledger
from app.simulator.replies import Body
from app.simulator.requests import POSTS, parse
from app.wire.sse import DONE, event

_NO_DONE = frozenset({"/responses", "/images/generations", "/images/edits", "/audio/transcriptions", "/audio/speech"})
_TEXT = {"text": "text/plain", "srt": "text/plain", "vtt": "text/vtt"}
_HTML = b"<!doctype html><title>Not what you asked for</title>"


def _transcript(_call_id: str, _request: Body, answer: list[str]) -> Body:
    return {"text": "".join(answer)}


def _transcript_events(_call_id: str, _request: Body, answer: list[str]) -> Iterator[Body]:
    return replies.transcript_events(answer)


_BODIES: dict[str, Callable[[str, Body, list[str]], Body]] = {
    "/chat/completions": replies.chat,
    "/completions": replies.completion,
    "/embeddings": lambda _id, request, _answer: replies.embeddings(request),
    "/responses": responses.response,
    "/moderations": lambda call_id, request, _answer: replies.moderation(call_id, request),
    "/images/generations": lambda _id, request, _answer: replies.images(request),
    "/images/edits": lambda _id, request, _answer: replies.images(request),
    "/images/variations": lambda _id, request, _answer: replies.images(request),
}
_EVENTS: dict[str, Callable[[str, Body, list[str]], Iterator[Body]]] = {
    "/chat/completions": replies.chat_chunks,
    "/completions": replies.completion_chunks,
    "/images/generations": lambda _id, request, _answer: replies.image_events("image_generation", request),
    "/images/edits": lambda _id, request, _answer: replies.image_events("image_edit", request),
    "/audio/speech": lambda _id, _request, _answer: replies.speech_events(),
}


class Simulator:
    """Args: settings: How replies behave where the model's name does not say."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self.ledger = Ledger()
        self._settings = settings
        self._store = responses.ResponseStore()
        self._luck = random.Random(settings.seed)  # noqa: S311 - chance, not secrets
        self._minutes: dict[str, list[float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(receive, send)
        path = scope["path"].removeprefix("/v1")
        try:
            if path == "/ledger":
                await self._show_ledger(exchange, scope)
            elif path == "/models":
                await exchange.whole(200, msgspec.json.encode(replies.model_list()), "application/json", {})
            else:
                await self._counted(exchange, scope["method"], path, scope)
        except HungUpError:
            pass
        finally:
            await exchange.close()

    async def _show_ledger(self, exchange: Exchange, scope: Scope) -> None:
        seen = msgspec.json.encode(self.ledger.snapshot())
        if b"reset" in scope["query_string"]:
            self.ledger.reset()
        await exchange.whole(200, seen, "application/json", {})

    async def _counted(self, exchange: Exchange, method: str, path: str, scope: Scope) -> None:
        body = await exchange.body()
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        aborted = True
        try:
            request = parse(path, body, headers.get("content-type", ""))
            self.ledger.begin(str(request.get("model") or ""), body)
            query = parse_qs(scope["query_string"].decode())
            await self._answer(exchange, method, path, request, body, stream=query.get("stream") == ["true"])
            aborted = False
        except InvalidRequestError as error:
            self.ledger.begin("", body)
            await exchange.whole(error.status, error.envelope(), "application/json", {})
            aborted = False
        finally:
            self.ledger.end(aborted=aborted)

    async def _answer(
        self, exchange: Exchange, method: str, path: str, request: Body, body: bytes, *, stream: bool
    ) -> None:
        model = str(request.get("model") or "gpt-4o-mini")
        request.setdefault("model", model)
        max_tokens = request.get("max_completion_tokens") or request.get("max_tokens")
        how = behaviour(self._settings, model, max_tokens if isinstance(max_tokens, int) else None)
        await exchange.pause(how.latency)
        limits, error = self._refusal(model, how)
        call_id = replies.token_id(self._settings.seed, body)
        answer = replies.words(self._settings.seed, body, how.tokens)
        if error is not None:
            status, text = error
            self.ledger.statuses[status] += 1
            await exchange.whole(status, text, "application/json", limits)
        elif how.html:
            await exchange.whole(200, _HTML, "text/html", {})
        elif path.startswith("/responses/"):
            await self._stored(exchange, method, path, stream=stream)
        elif path not in POSTS or method != "POST":
            text = envelope(f"Unknown request URL: {method} {path}", "invalid_request_error", None, "unknown_url")
            await exchange.whole(404, text, "application/json", {})
        elif path == "/audio/speech" and request.get("stream_format") != "sse":
            await self._speak(exchange, how)
        elif request.get("stream") in {True, "true"} or request.get("stream_format") == "sse":
            await self._stream(exchange, path, self._events(path, call_id, request, answer), how, limits)
        else:
            await self._reply(exchange, path, self._body(path, call_id, request, answer), how, limits, request)

    def _refusal(self, model: str, how: Behaviour) -> tuple[dict[str, str], tuple[int, bytes] | None]:
        """Returns: Limit headers, and the error (status, body) if the call is refused."""
        headers: dict[str, str] = {}
        if how.rpm is not None:
            left, reset = self._take(model, how.rpm)
            headers |= {
                "x-ratelimit-limit-requests": str(how.rpm),
                "x-ratelimit-remaining-requests": str(max(0, left)),
                "x-ratelimit-reset-requests": f"{reset:.3f}s",
            }
            if left < 0:
                headers["retry-after"] = str(max(1, round(reset)))
                return headers, (429, _error(429, "rate_limit_exceeded"))
        if how.status is not None or how.quota:
            status = how.status or 429
            if how.after is not None:
                headers["retry-after"] = f"{how.after:g}"
            return headers, (status, _error(status, "insufficient_quota" if how.quota else None))
        if how.fail and self._luck.random() < how.fail:
            return headers, (500, _error(500, None))
        return headers, None

    def _take(self, model: str, rpm: int) -> tuple[int, float]:
        now = time.monotonic()
        recent = self._minutes.setdefault(model, []) if len(self._minutes) < 1000 else []
        recent[:] = [at for at in recent if now - at < 60]
        left = rpm - len(recent) - 1
        if left >= 0:
            recent.append(now)
        return left, 60 - (now - recent[0]) if recent else 0.0

    def _body(self, path: str, call_id: str, request: Body, answer: list[str]) -> Body:
        body = _BODIES.get(path, _transcript)(call_id, request, answer)
        if path == "/responses":
            self._store.keep(body, request.get("input"))
        return body

    def _events(self, path: str, call_id: str, request: Body, answer: list[str]) -> Iterator[Body]:
        if path == "/responses":
            return responses.events(self._body(path, call_id, request, answer), answer)
        return _EVENTS.get(path, _transcript_events)(call_id, request, answer)

    async def _stream(
        self, exchange: Exchange, path: str, events: Iterator[Body], how: Behaviour, limits: dict[str, str]
    ) -> None:
        self.ledger.streams += 1
        await exchange.start(200, "text/event-stream; charset=utf-8", limits)
        await exchange.pause(how.first)
        for place, one in enumerate(events):
            if how.cut == place:
                return  # the server closes a connection whose reply is unfinished
            if how.stall == place:
                await exchange.pause(None)
            if how.garbage == place:
                await exchange.write(b'data: {"id": "chatcmpl-broken", "choi\n\n')
            kind = one.get("type") if path in _NO_DONE else None
            numbered = {**one, "sequence_number": place} if path == "/responses" else one
            await exchange.write(event(msgspec.json.encode(numbered), kind))
            await exchange.pause(how.gap)
        if path not in _NO_DONE:
            await exchange.write(DONE)
        await exchange.write(b"", more=False)

    async def _reply(
        self,
        exchange: Exchange,
        path: str,
        reply: Body,
        how: Behaviour,
        limits: dict[str, str],
        request: Body,
    ) -> None:
        plain = _TEXT.get(str(request.get("response_format"))) if path.startswith("/audio") else None
        body = reply["text"].encode() if plain else msgspec.json.encode(reply)
        if how.garbage is not None:
            body = b"\x00\xff this is not JSON"
        if how.cut is not None:
            await exchange.start(200, "application/json", {"content-length": str(len(body))})
            await exchange.write(body[: len(body) // 2])
            return
        await exchange.whole(200, body, plain or "application/json", limits)

    async def _speak(self, exchange: Exchange, how: Behaviour) -> None:
        sound = replies.speech()
        await exchange.start(200, "audio/wav")
        for start in range(0, len(sound), 1000):
            if how.cut is not None and start >= how.cut * 1000:
                return
            await exchange.write(sound[start : start + 1000])
            await exchange.pause(0)
        await exchange.write(b"", more=False)

    async def _stored(self, exchange: Exchange, method: str, path: str, *, stream: bool) -> None:
        found = self._store.answer(method, path)
        if found is None:
            text = envelope(f"Response with id '{path.split('/')[2]}' not found.", "invalid_request_error")
            await exchange.whole(404, text, "application/json", {})
        elif stream and method == "GET":
            text = found["output"][0]["content"][0]["text"]
            how = behaviour(self._settings, "")
            await self._stream(exchange, "/responses", responses.events(found, [text]), how, {})
        else:
            await exchange.whole(200, msgspec.json.encode(found), "application/json", {})


def _error(status: int, code: str | None) -> bytes:
    kinds = {
        404: ("invalid_request_error", "model_not_found"),
        429: ("rate_limit_error", "rate_limit_exceeded"),
    }
    kind, usual = kinds.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
    return envelope(f"The simulator was asked for a {status}.", code or kind, None, code or usual)
