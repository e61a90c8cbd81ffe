"""How a call that was let in is answered: whole, as a stream, as sound, or broken as its knobs say."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from app.errors import envelope
from app.settings import SimulatorSettings
from app.simulator import replies, responses
from app.simulator.exchange import Exchange
from app.simulator.knobs import Behaviour, behaviour
from app.simulator.ledger import Ledger
from app.simulator.replies import Body
from app.simulator.requests import POSTS
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


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked for.

    Attributes:
        path: Without `/v1`.
        request: The body, parsed; it names a model.
        body: The body as it came.
        resumes: Whether the query asks for a stored response as a stream.
        how: The knobs.
        limits: Headers that say what is left of the model's limits.
    """

    method: str
    path: str
    request: Body
    body: bytes
    resumes: bool
    how: Behaviour
    limits: dict[str, str]


class Answers:
    """Answers calls. Args: settings: Of the simulator. ledger: Counts the streams."""

    def __init__(self, settings: SimulatorSettings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._store = responses.ResponseStore()

    async def give(self, exchange: Exchange, call: Call) -> None:
        """Answers one call. Raises: HungUpError: Nobody is left to read it."""
        path, request = call.path, call.request
        call_id = replies.token_id(self._settings.seed, call.body)
        answer = replies.words(self._settings.seed, call.body, call.how.tokens)
        if call.how.html:
            await exchange.whole(200, _HTML, "text/html", {})
        elif path.startswith("/responses/"):
            await self._stored(exchange, call)
        elif path not in POSTS or call.method != "POST":
            text = envelope(f"Unknown request URL: {call.method} {path}", "invalid_request_error", None, "unknown_url")
            await exchange.whole(404, text, "application/json", {})
        elif path == "/audio/speech" and request.get("stream_format") != "sse":
            await self._speak(exchange, call.how)
        elif request.get("stream") in {True, "true"} or request.get("stream_format") == "sse":
            events = self._events(path, call_id, request, answer)
            await self._stream(exchange, path, events, call.how, call.limits)
        else:
            await self._reply(exchange, call, self._body(path, call_id, request, answer))

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
        self._ledger.streams += 1
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

    async def _reply(self, exchange: Exchange, call: Call, reply: Body) -> None:
        plain = _TEXT.get(str(call.request.get("response_format"))) if call.path.startswith("/audio") else None
        body = reply["text"].encode() if plain else msgspec.json.encode(reply)
        if call.how.garbage is not None:
            body = b"\x00\xff this is not JSON"
        if call.how.cut is not None:
            await exchange.start(200, "application/json", {"content-length": str(len(body))})
            await exchange.write(body[: len(body) // 2])
            return
        await exchange.whole(200, body, plain or "application/json", call.limits)

    async def _speak(self, exchange: Exchange, how: Behaviour) -> None:
        sound = replies.speech()
        await exchange.start(200, "audio/wav")
        for start in range(0, len(sound), 1000):
            if how.cut is not None and start >= how.cut * 1000:
                return
            await exchange.write(sound[start : start + 1000])
            await exchange.pause(0)
        await exchange.write(b"", more=False)

    async def _stored(self, exchange: Exchange, call: Call) -> None:
        found = self._store.answer(call.method, call.path)
        if found is None:
            text = envelope(f"Response with id '{call.path.split('/')[2]}' not found.", "invalid_request_error")
            await exchange.whole(404, text, "application/json", {})
        elif call.resumes and call.method == "GET":
            text = found["output"][0]["content"][0]["text"]
            how = behaviour(self._settings, "")
            await self._stream(exchange, "/responses", responses.events(found, [text]), how, {})
        else:
            await exchange.whole(200, msgspec.json.encode(found), "application/json", {})
