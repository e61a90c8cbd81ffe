"""A request as a call: what its body is looked into for, and what its headers say of it."""

from fastapi import Request

from app.http.context import record
from app.http.incoming import cache_of, lane_of, timeout_of
from app.services.keys import Caller
from app.upstream.types import Call
from app.wire.endpoints import Endpoint
from app.wire.request import peek, unambiguous

_FORWARDED = ("openai-beta", "traceparent", "tracestate")


def call_of(request: Request, who: Caller, endpoint: Endpoint, path: str, body: bytes) -> Call:
    """Args: path: With ids and query.

    Raises:
        InvalidRequestError: The body, or a header, is wrong.
        PermissionDeniedError: The caller may not use this model.
    """
    headers = request.headers
    content_type = headers.get("content-type", "application/json")
    wanted = peek(endpoint, body, content_type)
    seen = record(request)
    seen.model = wanted.model or ""
    if endpoint.model != "none":  # a stored response is found by its id, which only its maker knows
        who.check(wanted.model)
    if who.models is not None and endpoint.body == "json":
        body = unambiguous(body)
    return Call(
        endpoint,
        path,
        body if endpoint.body != "none" else b"",
        content_type if endpoint.body == "multipart" else "application/json",
        wanted.model,
        wanted.stream or (endpoint.streams_by_query and request.query_params.get("stream") == "true"),
        {name: headers[name] for name in _FORWARDED if headers.get(name, "\x80").isascii()},
        timeout_of(request),
        caller=who.name,
        lane=lane_of(request, "interactive"),
        most_output=wanted.most_output,
        cache=cache_of(request),
        trace=seen.trace,
    )
