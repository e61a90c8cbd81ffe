"""`POST /v1/fanout`: many calls in one request."""

from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from msgspec.structs import replace
from starlette.responses import Response

from app.errors import InvalidRequestError, PermissionDeniedError
from app.http.context import BrowserCallerDep, gateway, record
from app.http.incoming import (
    StreamedBody,
    cache_of,
    lane_of,
    read_body,
    timeout_of,
    unless_hung_up,
    until_gone,
)
from app.http.live import EVENT_STREAM, NDJSON, LiveResponse
from app.http.openapi import FANOUT_EXAMPLE, json_body
from app.services.fanout import Fanout
from app.services.items import listed, read_from
from app.services.keys import Caller
from app.services.written import Written, as_event, as_line
from app.upstream.types import Call
from app.wire.fanout import Item, Options, read_document, read_options
from app.wire.results import Result

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


async def fan_out(request: Request, caller: BrowserCallerDep) -> Response:
    """Runs every item; the answer's form follows `Accept`: one JSON document, NDJSON lines, or server-sent events."""
    running = gateway(request)
    accept = request.headers.get("accept", "")
    streams = _STREAM in accept
    start = starter(request, caller)
    if request.headers.get("content-type", "").startswith(_LINES):
        if caller.holder:
            raise PermissionDeniedError("a browser token may not send lines without end: send one JSON document")
        options = read_options(request.query_params)
        body = StreamedBody(request.receive)
        items = read_from(aiter(body), options, running.settings.max_line_bytes, streams=streams)
        gone, close = body.gone, body.aclose
    else:
        text = await read_body(request, running)
        options, given = read_document(text, streams=streams)
        await running.browser_tokens.spend(caller, sum(len(item.units) for item in given))
        items, gone, close = listed(given), partial(until_gone, request.receive), _nothing
    if streams:
        return _live(request, Written(start(items, options), as_event, close), EVENT_STREAM, gone)
    if any(kind in accept for kind in _LINES):
        return _live(request, Written(start(items, options), as_line, close), NDJSON, gone)
    try:
        # a whole document can wait for its order: no item is held up by a slow one before it
        document = _document(
            start(items, replace(options, order="completed")), options, running.settings.max_reply_bytes
        )
        return Response(await unless_hung_up(gone(), running.drain, document), media_type="application/json")
    finally:
        await close()


async def _nothing() -> None:
    pass


def starter(request: Request, caller: Caller) -> Callable[[AsyncGenerator[Item, None], Options], Fanout]:
    """Returns: What starts a run of items, as the request's headers want it.

    Raises: InvalidRequestError: One of them is wrong.
    """
    running = gateway(request)
    timeout, cached, lane = timeout_of(request), cache_of(request), lane_of(request, "batch")
    make = partial(Call, caller=caller.name, lane=lane, cache=cached)

    def start(items: AsyncGenerator[Item, None], options: Options) -> Fanout:
        options = replace(options, timeout=_shorter(options.timeout, timeout))
        return Fanout(running.cache.call, items, options, caller.check, running.stack.slots, make)

    return start


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


def _live(
    request: Request, source: Written, media_type: str, gone: Callable[[], Coroutine[Any, Any, None]]
) -> LiveResponse:
    running = gateway(request)
    return LiveResponse(source, gateway=running, record=record(request), media_type=media_type, gone=gone)
