"""`/v1/batches`: OpenAI's batches, and what goes beyond them: live results, and a retry of what failed."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.errors import InvalidRequestError
from app.http.context import CallerDep, gateway, record
from app.http.idempotency import once
from app.http.incoming import read_body
from app.http.live import NDJSON, LiveResponse
from app.http.openapi import BATCH_EXAMPLE, json_body
from app.wire.batches import read_create, read_page

_LONGEST_PAGE, _USUAL_PAGE = 100, 20


def router() -> APIRouter:
    routes = APIRouter(tags=["batches"])
    one = "/batches/{batch_id}"
    add = routes.add_api_route
    extra = json_body(BATCH_EXAMPLE)
    add("/batches", create, methods=["POST"], response_model=None, summary="A new batch", openapi_extra=extra)
    add("/batches", list_batches, response_model=None, summary="The newest batches")
    add(one, get, response_model=None, summary="One batch")
    add(f"{one}/cancel", cancel, methods=["POST"], response_model=None, summary="Ends a batch")
    add(f"{one}/retry", retry, methods=["POST"], response_model=None, summary="A new batch of the lines that failed")
    add(f"{one}/results", results, response_model=None, summary="Result lines, live")
    return routes


async def create(request: Request, caller: CallerDep) -> Response:
    """Takes a file of lines, or the lines themselves (`requests`); answers at once and validates in the background."""
    running = gateway(request)
    body = await read_body(request, running)
    return _json(await running.batches.create(caller, read_create(body), once(request, body)))


async def list_batches(request: Request, caller: CallerDep) -> Response:
    """Newest first; `after` (an id) and `limit` page through them."""
    wanted = read_page(request.query_params, _USUAL_PAGE, _LONGEST_PAGE)
    return _json(await gateway(request).batches.page(caller.name, wanted))


async def get(batch_id: str, request: Request, caller: CallerDep) -> Response:
    """Its state, counts, usage and progress."""
    return _json(await gateway(request).batches.get(caller.name, batch_id))


async def cancel(batch_id: str, request: Request, caller: CallerDep) -> Response:
    """Sends nothing more, ends what runs, and keeps what has come back."""
    return _json(await gateway(request).batches.cancel(caller.name, batch_id))


async def retry(batch_id: str, request: Request, caller: CallerDep) -> Response:
    """Only the lines that failed, expired or were cancelled."""
    return _json(await gateway(request).batches.retry(caller, batch_id, once(request, b"")))


async def results(batch_id: str, request: Request, caller: CallerDep) -> Response:
    """NDJSON, live; `after`: lines that you have already; `follow=false`: only what is there now."""
    running = gateway(request)
    after = _after(request.query_params.get("after", "0"))
    follow = request.query_params.get("follow", "true").lower() not in {"false", "0"}
    reading = running.batches.reading(caller.name, batch_id)
    await reading.check()
    return LiveResponse(
        _Lines(reading.lines(after, follow=follow)), gateway=running, record=record(request), media_type=NDJSON
    )


def _after(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidRequestError("must be a number of lines", param="after")
    return int(text)


class _Lines:
    """Lines as a live reply's source."""

    def __init__(self, lines: AsyncGenerator[bytes, None]) -> None:
        self._lines = lines

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._lines

    async def aclose(self, failure: BaseException | None = None) -> None:  # noqa: ARG002 - a Source's signature
        await self._lines.aclose()


def _json(value: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
