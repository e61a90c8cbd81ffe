"""What `/docs` shows: an example that can be tried for every endpoint, although their bodies pass as bytes."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.wire.endpoints import Endpoint

_MODEL = "gpt-4o-mini"
_MESSAGES = [{"role": "user", "content": "Say hello."}]

JSON_EXAMPLES: dict[str, dict[str, Any]] = {
    "/chat/completions": {"model": _MODEL, "messages": _MESSAGES, "stream": False},
    "/completions": {"model": "gpt-3.5-turbo-instruct", "prompt": "Once upon a time", "max_tokens": 20},
    "/embeddings": {"model": "text-embedding-3-small", "input": ["sluice", "gate"]},
    "/responses": {"model": _MODEL, "input": "Say hello."},
    "/moderations": {"model": "omni-moderation-latest", "input": "Have a nice day."},
    "/images/generations": {"model": "gpt-image-1", "prompt": "A sluice gate at dawn", "size": "1024x1024"},
    "/audio/speech": {"model": "tts-1", "voice": "alloy", "input": "Hello."},
}
FORM_EXAMPLES: dict[str, dict[str, str]] = {
    "/images/edits": {"image": "file", "prompt": "Add a heron.", "model": "gpt-image-1"},
    "/images/variations": {"image": "file", "model": "dall-e-2"},
    "/audio/transcriptions": {"file": "file", "model": "whisper-1"},
    "/audio/translations": {"file": "file", "model": "whisper-1"},
}
FANOUT_EXAMPLE: dict[str, Any] = {
    "url": "/v1/chat/completions",
    "defaults": {"model": _MODEL, "temperature": 0},
    "requests": [
        {"custom_id": "a", "body": {"messages": _MESSAGES}},
        {"custom_id": "b", "body": {"messages": [{"role": "user", "content": "Say goodbye."}]}},
    ],
    "order": "completed",
    "concurrency": 32,
}
BATCH_EXAMPLE: dict[str, Any] = {
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
    "requests": [{"custom_id": "a", "body": {"model": _MODEL, "messages": _MESSAGES}}],
    "metadata": {"job": "greetings"},
}
BROWSER_TOKEN_EXAMPLE: dict[str, Any] = {
    "ttl_seconds": 600,
    "models": [_MODEL],
    "max_requests": 20,
    "origins": ["https://app.example"],
}
STREAM_EXAMPLE: dict[str, Any] = {
    "url": "/v1/chat/completions",
    "body": {"model": _MODEL, "messages": _MESSAGES},
}


def describe(endpoint: Endpoint) -> dict[str, Any]:
    """Returns: Keyword arguments for `add_api_route`."""
    extra: dict[str, Any] = {}
    if endpoint.body == "json":
        extra = json_body(JSON_EXAMPLES[endpoint.path])
    elif endpoint.body == "multipart":
        extra = _form_body(FORM_EXAMPLES[endpoint.path])
    if "{id}" in endpoint.path:
        extra["parameters"] = [
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "example": "resp_1"}
        ]
    tag = endpoint.path.split("/")[1]
    return {"summary": endpoint.summary, "tags": [tag], "openapi_extra": extra}


def json_body(example: dict[str, Any]) -> dict[str, Any]:
    """Returns: An OpenAPI request body with an example to try."""
    media = {"schema": {"type": "object", "additionalProperties": True}, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": media}}}


def _form_body(fields: dict[str, str]) -> dict[str, Any]:
    properties = {
        name: {"type": "string", "format": "binary"} if value == "file" else {"type": "string", "example": value}
        for name, value in fields.items()
    }
    schema = {"type": "object", "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _upload_form() -> dict[str, Any]:
    form = _form_body({"file": "file", "purpose": "batch", "expires_after[anchor]": "", "expires_after[seconds]": ""})
    schema = form["requestBody"]["content"]["multipart/form-data"]["schema"]
    schema["required"] = ["file", "purpose"]
    schema["properties"]["expires_after[anchor]"] = {"type": "string", "enum": ["created_at"]}
    schema["properties"]["expires_after[seconds]"] = {"type": "integer", "minimum": 3600, "maximum": 2_592_000}
    return form


UPLOAD_FORM = _upload_form()


def install(app: FastAPI) -> None:
    """Makes the OpenAPI document say how to send a key."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schemes = {"key": {"type": "http", "scheme": "bearer"}}
            made.setdefault("components", {})["securitySchemes"] = schemes
            made["security"] = [{"key": []}, {}]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
