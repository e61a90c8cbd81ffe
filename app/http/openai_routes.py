"""OpenAI's paths: bytes in, bytes out."""

import re
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.errors import GatewayError, ModelNotFoundError, NotFoundError
from app.http.calls import call_of
from app.http.context import BrowserCallerDep, caller, gateway, key_holder, record
from app.http.incoming import HangUpWatch, read_body, unless_hung_up, until_gone
from app.http.live import PIECE, LiveResponse, Pieces
from app.http.openapi import describe
from app.services.relay import StreamRelay
from app.upstream.types import Call, Reply
from app.wire.endpoints import ENDPOINTS, Endpoint

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,255}")


def router() -> APIRouter:
    """Returns: A route per row of the endpoint table, and the model list."""
    routes = APIRouter()
    for endpoint in ENDPOINTS:
        routes.add_api_route(
            endpoint.path,
            _handler(endpoint),
            methods=[endpoint.method],
            response_model=None,
            **describe(endpoint),
        )
    routes.add_api_route("/models", list_models, response_model=None, tags=["models"], summary="All models")
    routes.add_api_route("/models/{name:path}", get_model, response_model=None, tags=["models"], summary="One model")
    return routes


def _handler(endpoint: Endpoint) -> Callable[..., Awaitable[Response]]:
    whoever_may = caller if _serves_pages(endpoint) else key_holder

    async def relay(request: Request) -> Response:
        # asked for without a dependency: on this path FastAPI's way to the same function costs more than the function
        who = await whoever_may(request)
        running = gateway(request)
        call = call_of(request, who, endpoint, _path(endpoint, request), await read_body(request, running))
        await running.browser_tokens.spend(who, 1)
        if call.stream:
            return await _stream(request, call)
        reply = await unless_hung_up(until_gone(request.receive), running.drain, running.cache.call(call))
        return _response(request, reply)

    return relay


def _serves_pages(endpoint: Endpoint) -> bool:
    """Whether a browser token is enough: not to reach what is stored upstream, whoever stored it."""
    return endpoint.method == "POST" and endpoint.model != "none"


def _path(endpoint: Endpoint, request: Request) -> str:
    if "{id}" not in endpoint.path:
        return endpoint.path
    given = request.path_params["id"]
    if not _ID.fullmatch(given):
        raise NotFoundError(f"{given!r} is not an id")
    query = request.url.query
    return endpoint.path.replace("{id}", quote(given)) + (f"?{query}" if query else "")


async def _stream(request: Request, call: Call) -> Response:
    running = gateway(request)
    seen = record(request)

    def note(error: GatewayError) -> None:
        seen.error = error.code or error.type

    relay = StreamRelay(running.stack, call, note)
    try:
        async with HangUpWatch(until_gone(request.receive), running.drain) as watch:
            await watch.wait(relay.task, running.settings.ping_interval)
        reply = relay.reply()
        if reply is not None and reply.events is None:
            return _response(request, reply)
        headers = {**(reply.headers if reply else {}), **seen.headers()}
        return LiveResponse(relay, gateway=running, record=seen, headers=headers)
    except BaseException as error:
        await relay.aclose(error)
        raise


def _response(request: Request, reply: Reply) -> Response:
    running, seen = gateway(request), record(request)
    headers = {**reply.headers, **seen.headers()}
    kind = reply.content_type or "application/octet-stream"
    if reply.stream is not None:
        return LiveResponse(
            reply.stream,
            gateway=running,
            record=seen,
            status=reply.status,
            headers=headers,
            media_type=kind,
        )
    if len(reply.body) > PIECE:  # so that a reader who does not read it is noticed
        sized = {**headers, "content-length": str(len(reply.body))}
        return LiveResponse(
            Pieces(reply.body), gateway=running, record=seen, status=reply.status, headers=sized, media_type=kind
        )
    return Response(reply.body, reply.status, headers)


async def list_models(request: Request, who: BrowserCallerDep) -> Response:
    """Aliases and the upstreams' models; what an upstream lists is looked up in the background."""
    models = gateway(request).catalog.models(who.models)
    return _json({"object": "list", "data": list(models.values())})


async def get_model(name: str, request: Request, who: BrowserCallerDep) -> Response:
    """One model of the list."""
    models = gateway(request).catalog.models(who.models)
    if name not in models:
        raise ModelNotFoundError(f"the model {name!r} does not exist or is not yours to use", param="model")
    return _json(models[name])


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
