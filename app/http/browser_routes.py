"""`POST /v1/browser_tokens`: a short-lived key, to be handed to a page in place of the real one."""

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.http.context import CallerDep, gateway
from app.http.incoming import read_body
from app.http.openapi import BROWSER_TOKEN_EXAMPLE, json_body
from app.wire.browser_tokens import read_create


def router() -> APIRouter:
    routes = APIRouter(tags=["browser tokens"])
    routes.add_api_route(
        "/browser_tokens",
        create,
        methods=["POST"],
        status_code=201,
        response_model=None,
        summary="A short-lived key for a page",
        openapi_extra=json_body(BROWSER_TOKEN_EXAMPLE),
    )
    return routes


async def create(request: Request, caller: CallerDep) -> Response:
    """Bound, as asked, to models, origins and a number of requests; it dies with the key that made it."""
    running = gateway(request)
    made = await running.browser_tokens.create(caller, read_create(await read_body(request, running)))
    headers = {"cache-control": "no-store"}  # as RFC 6749 asks of whoever hands out tokens
    return Response(msgspec.json.encode(made), 201, headers, media_type="application/json")
