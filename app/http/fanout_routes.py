"""`POST /v1/fanout`: many calls in one request."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from msgspec.structs import replace
from starlette.responses import Response

from app.errors import InvalidRequestError
from app.http.context import CallerDep, Gateway, gateway, record
from app.http.incoming import (
    StreamedBody,
    cache_of,
    lane_of,
    read_body,
    timeout_of,
    unless_hung_up,
    until_gone,
)
from app.http.live import EVENT_STREAM, LiveResponse
from app.http.openapi import FANOUT_EXAMPLE, json_body
from app.services.fanout import Fanout
from app.services.items import listed, read_from
from app.services.keys import Caller
from app.upstream.types import Call
from app.wire.fanout import Item, Options, read_document, read_options
from app.wire.results import Result
from app.wire.sse import event

NDJSON = "application/x-ndjson"
_LINES = (NDJSON, "application/jsonl")
_STREAM = "text/event-stream"


def router() -> APIRouter:
    routes = APIRouter(tags=["fan-out"])
    routes.add_api_route(
        "/fanout",
        fan_out,
        methods=["POST"],
        response_model=None,
        summary="Many calls, side by side",
        openapi_extra=json_body(FANOUT_EXAMPLE),
    )
    return routes


async def fan_out(request: Request, caller: CallerDep) -> Response:
    """Runs every item; the answer's form follows `Accept`: one JSON document, NDJSON lines, or server-sent events."""
    running = gateway(request)
    accept = request.headers.get("accept", "")
    streams = _STREAM in accept
    timeout, cached, lane = timeout_of(request), cache_of(request), lane_of(request, "batch")
    if request.headers.get("content-type", "").startswith(_LINES):
        options = read_options(request.query_params)
        body = StreamedBody(request.receive)
        items = read_from(aiter(body), options, running.settings.max_line_bytes, streams=streams)
        gone, close = body.gone, body.aclose
    else:
        text = await read_body(request, running)
        options, given = read_document(text, streams=streams)
        items, gone, close = listed(given), partial(until_gone, request.receive), _nothing
    options = replace(options, timeout=_shorter(options.timeout, timeout))
    make = partial(Call, caller=caller.name, lane=lane, cache=cached)
    start = partial(_start, running, caller, items, make)
    if streams:
        return _live(request, _Written(start(options), _as_event, close), EVENT_STREAM, gone)
    if any(kind in accept for kind in _LINES):
        return _live(request, _Written(start(options), _as_line, close), NDJSON, gone)
    try:
        # a whole document can wait for its order: no item is held up by a slow one before it
        document = _document(start(replace(options, order="completed")), options, running.settings.max_reply_bytes)
        return Response(await unless_hung_up(gone(), running.drain, document), media_type="application/json")
    finally:
        await close()


async def _nothing() -> None:
    pass


def _start(
    running: Gateway, caller: Caller, items: AsyncGenerator[Item, None], make: Callable[..., Call], options: Options
) -> Fanout:
    return Fanout(running.cache.call, items, options, caller.check, running.stack.slots, make)


def _shorter(one: float | None, other: float | None) -> float | None:
    given = [seconds for seconds in (one, other) if seconds is not None]
    return min(given) if given else None


async def _document(run: Fanout, options: Options, most: int) -> bytes:
    """Returns: The whole reply as JSON.

    Raises: InvalidRequestError: The results exceed `most` bytes; what has run by then is lost.
    """
    found: list[tuple[int, int, bytes]] = []
    size = 0
    try:
        async for result in run:
            if isinstance(result, Result):
                line = result.line()
                size += len(line)
                if size > most:
                    raise InvalidRequestError(f"the results exceed {most} bytes: ask for {NDJSON}", param="accept")
                model = options.models.index(result.model) if options.models and result.model else 0
                found.append((result.index, model, line))
    finally:
        await run.aclose()
    if options.order == "input":
        found.sort(key=lambda entry: entry[:2])
    fields = run.summary.fields(run.wall_ms)
    return msgspec.json.encode({"object": "fanout", **fields, "results": [msgspec.Raw(line) for *_, line in found]})


class _Written:
    """A run as bytes: what its events look like is up to `write`."""

    def __init__(
        self, run: Fanout, write: Callable[[str, bytes], bytes], close: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self._run = run
        self._write = write
        self._close = close

    async def __aiter__(self) -> AsyncIterator[bytes]:
        run = self._run
        async for one in run:
            yield (self._write("result", one.line()) if isinstance(one, Result) else self._write("chunk", one.data))
        summary = {"object": "fanout.summary", **run.summary.fields(run.wall_ms)}
        yield self._write("summary", msgspec.json.encode(summary))

    async def aclose(self, failure: BaseException | None = None) -> None:
        await self._run.aclose(failure)
        await self._close()


def _as_event(name: str, data: bytes) -> bytes:
    return event(data, name)


def _as_line(_name: str, data: bytes) -> bytes:
    return data + b"\n"


def _live(
    request: Request, source: _Written, media_type: str, gone: Callable[[], Coroutine[Any, Any, None]]
) -> LiveResponse:
    running = gateway(request)
    return LiveResponse(source, gateway=running, record=record(request), media_type=media_type, gone=gone)
