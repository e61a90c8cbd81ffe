"""`/v1/streams`: calls that run on without their readers, who come back and go on where they were cut."""

import json
from collections.abc import Callable
from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.errors import GatewayError, InvalidRequestError
from app.http.calls import call_of
from app.http.context import BrowserCallerDep, caller, gateway, record
from app.http.fanout_routes import starter
from app.http.incoming import read_body, seconds_in
from app.http.live import LiveResponse
from app.http.openapi import STREAM_EXAMPLE, json_body
from app.services.items import listed
from app.services.keys import Caller
from app.services.relay import StreamRelay
from app.services.streams.reader import Merged
from app.services.streams.run import Source
from app.services.written import Written, as_event
from app.store.streams import Stream
from app.wire.fanout import read_document
from app.wire.parsing import within
from app.wire.streams import MOST_MERGED, read_create, read_positions

_LONGEST_HOLD = 3600.0
_PRIVATE = {"cache-control": "no-store"}  # where `?token=` opens it, no other header tells a cache so


def router() -> APIRouter:
    routes = APIRouter(tags=["streams"])
    one = "/streams/{stream_id}"
    add = routes.add_api_route
    extra = json_body(STREAM_EXAMPLE)
    told = "A stream that outlives its readers"
    add("/streams", create, methods=["POST"], status_code=201, response_model=None, summary=told, openapi_extra=extra)
    add("/streams/events", merged, response_model=None, summary="Many streams over one connection")
    add(one, get, response_model=None, summary="A stream so far")
    add(one, cancel, methods=["DELETE"], response_model=None, summary="Ends a stream, upstream too")
    add(f"{one}/events", events, response_model=None, summary="A stream's events, on from any of them")
    return routes


async def create(request: Request, who: BrowserCallerDep) -> Response:
    """Begins a chat, completion, response or fan-out; it runs on whether anybody reads it or not."""
    running = gateway(request)
    asked = read_create(await read_body(request, running))
    if running.drain.started:  # it came in while the body did
        raise running.drain.error()
    if asked.endpoint is None:
        make, calls = _fan_out(request, who, asked.body)
    else:
        call, calls = call_of(request, who, asked.endpoint, asked.path, asked.body), 1
        make = partial(StreamRelay, running.stack, call, _passed_on)
    running.streams.check_room()  # before anything is spent
    await running.browser_tokens.spend(who, calls)
    seen = record(request)
    made = await running.streams.create(
        who, asked.path, seen.model or None, seen.trace, make, names=asked.endpoint is None
    )
    return _json(made, 201, {"location": made["events_url"].removesuffix("/events")})


def _fan_out(request: Request, who: Caller, document: bytes) -> tuple[Callable[[], Source], int]:
    """Returns: What starts it; how many calls it makes."""
    with within("body"):
        options, items = read_document(document, streams=True)
    start = starter(request, who)
    return lambda: Written(start(listed(items), options), as_event), sum(len(item.units) for item in items)


def _passed_on(_: GatewayError) -> None:
    """The stream's own last event tells of it."""


async def events(stream_id: str, request: Request) -> Response:
    """Server-sent events, each with its number as `id`.

    `Last-Event-ID`, or `?after=`: the last one that you have; `?token=`: the stream's, where no header can be sent;
    `?hold=`: seconds after which the reply ends, to be gone on from in the next one.
    """
    running = gateway(request)
    stream = await _opened(stream_id, request, request.query_params.get("token"))
    (seen,), hold = _after(request, 1), _hold(request)
    if not running.streams.has_more(stream, seen):
        return _nothing_more()
    reader = running.streams.reader(stream, seen, hold)
    return LiveResponse(reader, gateway=running, record=record(request), resumable=True)


async def merged(request: Request) -> Response:
    """The events of `?ids=a,b,…`, each as `{"stream", "seq", "chunk"}`, and an `id` to go on from with all of them.

    `?token=`: the streams' tokens, in the same order, with commas.
    """
    running = gateway(request)
    ids = request.query_params.get("ids", "").split(",")
    if not (all(ids) and len(set(ids)) == len(ids) <= MOST_MERGED):
        raise InvalidRequestError(f"must be 1 to {MOST_MERGED} different ids of streams, with commas", param="ids")
    tokens = request.query_params.get("token")
    each = [None] * len(ids) if tokens is None else tokens.split(",")
    if len(each) != len(ids):
        raise InvalidRequestError("must be as many as there are ids", param="token")
    found = [await _opened(one, request, token) for one, token in zip(ids, each, strict=True)]
    positions, hold = _after(request, len(ids)), _hold(request)
    if not any(map(running.streams.has_more, found, positions)):
        return _nothing_more()
    readers = [running.streams.reader(stream, seen, hold) for stream, seen in zip(found, positions, strict=True)]
    source = Merged(list(zip(ids, readers, strict=True)))
    return LiveResponse(source, gateway=running, record=record(request), resumable=True)


async def get(stream_id: str, request: Request) -> Response:
    """Its status, its text so far, usage as the upstream counts it, and times."""
    stream = await _opened(stream_id, request, request.query_params.get("token"))
    return _json(await gateway(request).streams.snapshot(stream))


async def cancel(stream_id: str, request: Request) -> Response:
    """What has come stays readable; the last event is an error, `cancelled`."""
    stream = await _opened(stream_id, request, request.query_params.get("token"))
    return _json(await gateway(request).streams.cancel(stream))


async def _opened(stream_id: str, request: Request, token: str | None) -> Stream:
    """Raises: AuthenticationError, PermissionDeniedError, NotFoundError: It is not to be seen by whoever asks."""
    who = await caller(request) if token is None else None
    return await gateway(request).streams.find(stream_id, who, token)


def _after(request: Request, count: int) -> list[int]:
    """Where to go on: a browser that comes back tells it in the header, whatever its address said at first."""
    for where, text in (
        ("Last-Event-ID", request.headers.get("last-event-id")),
        ("after", request.query_params.get("after")),
    ):
        if text:
            return read_positions(text, count, where)
    return [0] * count


def _hold(request: Request) -> float | None:
    return seconds_in(request.query_params.get("hold"), _LONGEST_HOLD, "hold")


def _nothing_more() -> Response:
    """Which tells an EventSource not to come back."""
    return Response(status_code=204, headers=_PRIVATE)


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(value, separators=(",", ":"))  # not msgspec: half an emoji of an upstream's may stand in it
    return Response(body, status, {**_PRIVATE, **(headers or {})}, media_type="application/json")
