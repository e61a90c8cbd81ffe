"""Errors leave the service here, and only here: one envelope for every one of them."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.errors import (
    ClientHungUpError,
    GatewayError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
)
from app.http.context import record


def install(app: FastAPI) -> None:
    """Replaces every error reply of the framework by OpenAI's envelope."""
    app.add_exception_handler(GatewayError, _gateway_error)
    app.add_exception_handler(HTTPException, _framework_error)
    app.add_exception_handler(RequestValidationError, _validation_error)


def error_response(request: Request, error: GatewayError) -> Response:
    """Returns: The error as a reply, with what is known of the call in its headers."""
    seen = record(request)
    seen.error = error.code or error.type
    if isinstance(error, ClientHungUpError):
        seen.status = error.status
    tried = seen.headers() if seen.trace.upstream else {}
    headers = {**error.headers(), **tried}
    return Response(error.envelope(), error.status, headers, media_type="application/json")


async def _gateway_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)  # noqa: S101 - narrows what Starlette types too widely
    return error_response(request, error)


async def _framework_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    path = request.url.path
    if error.status_code == 405:
        reply = error_response(request, MethodNotAllowedError(f"{request.method} is not allowed on {path}"))
        reply.headers.update(error.headers or {})
        return reply
    if error.status_code == 404:
        return error_response(request, NotFoundError(f"there is no {path} here"))
    return error_response(request, InvalidRequestError(str(error.detail)))


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    first = error.errors()[0]
    return error_response(request, InvalidRequestError(first["msg"], param=".".join(map(str, first["loc"][1:]))))
