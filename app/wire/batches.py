"""What a client says of a batch, and what it is told: OpenAI's create request, batch object and lists."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from app.errors import InvalidRequestError
from app.wire.endpoints import FANOUT_PATHS
from app.wire.jsonl import one_line
from app.wire.parsing import decode

_WINDOW = re.compile(r"([0-9]{1,7})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST_WINDOW = 30 * 86_400


class OutputExpiry(msgspec.Struct):
    """When the output files go."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=2_592_000)]


class InlineRequest(msgspec.Struct, kw_only=True):
    """A line that stands in the request itself."""

    body: Raw
    custom_id: str | None = None
    method: Literal["POST"] = "POST"
    url: str | None = None


class Create(msgspec.Struct, kw_only=True):
    """The create request, checked.

    Attributes:
        endpoint: With `/v1`.
        requests: The lines themselves, where there is no file.
        on_doubt: What to do after a crash with calls that may have been made; None (below, too): as the server is set.
        dedupe: Equal requests are sent once.
        pack_embeddings: Many lines may share a call.
        priority: Higher first.
    """

    endpoint: str = ""
    completion_window: str = "24h"
    input_file_id: str | None = None
    requests: Annotated[list[InlineRequest], Meta(min_length=1, max_length=50_000)] | None = None
    metadata: dict[str, str] | None = None
    output_expires_after: OutputExpiry | None = None
    on_doubt: Literal["retry", "fail"] | None = None
    dedupe: bool | None = None
    pack_embeddings: bool | None = None
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0

    @property
    def window_seconds(self) -> int:
        found = _WINDOW.fullmatch(self.completion_window)
        return int(found[1]) * _UNITS[found[2]] if found else 0


_CREATE = msgspec.json.Decoder(Create)


def read_create(body: bytes) -> Create:
    """Raises: InvalidRequestError: Anything is wrong; `param` names the field."""
    try:
        create = decode(_CREATE, body)
    except InvalidRequestError as error:
        param = error.param and error.param.removesuffix("[...]")  # a pair of the metadata, unnamed
        raise InvalidRequestError(error.message, param=param) from None
    _check_input(create)
    create.endpoint = _endpoint(create)
    if not 0 < create.window_seconds <= _LONGEST_WINDOW:
        message = "completion_window is a number and s, m, h or d, from 1s to 30d"
        raise InvalidRequestError(message, param="completion_window")
    _check_metadata(create.metadata or {})
    return create


def _check_input(create: Create) -> None:
    if create.requests is None:
        if not create.input_file_id:
            raise InvalidRequestError("input_file_id or requests is needed", param="input_file_id")
        return
    if create.input_file_id is not None:
        raise InvalidRequestError("either input_file_id or requests, not both", param="requests")
    for place, request in enumerate(create.requests):
        if bytes(memoryview(request.body)[:1]) != b"{":
            raise InvalidRequestError("the body is not a JSON object", param=f"requests[{place}].body")


def _endpoint(create: Create) -> str:
    where, url = "endpoint", create.endpoint
    if not url:
        if create.requests is None:
            raise InvalidRequestError("endpoint is needed", param="endpoint")
        where, url = "requests[0].url", create.requests[0].url or "/v1/chat/completions"
    path = url.removeprefix("/v1")
    if path not in FANOUT_PATHS:
        allowed = ", ".join(f"/v1{path}" for path in sorted(FANOUT_PATHS))
        raise InvalidRequestError(f"{url[:200]!r} is not one of {allowed}", param=where)
    return f"/v1{path}"


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if len(metadata) > 16:
        raise InvalidRequestError("metadata has at most 16 pairs", param="metadata")
    for key, value in metadata.items():
        if len(key) > 64:
            raise InvalidRequestError("a key of the metadata has at most 64 characters", param="metadata")
        if len(value) > 512:
            raise InvalidRequestError("a value of the metadata has at most 512 characters", param=f"metadata.{key}")


def inline_lines(create: Create) -> Iterator[bytes]:
    """Returns: The lines of the file that the inline requests stand for, each with its line feed."""
    for place, request in enumerate(create.requests or ()):
        line = {
            "custom_id": str(place) if request.custom_id is None else request.custom_id,
            "method": request.method,
            "url": create.endpoint if request.url is None else request.url,
            "body": Raw(one_line(bytes(request.body))),
        }
        yield msgspec.json.encode(line) + b"\n"


_SAME = (
    "endpoint",
    "model",
    "input_file_id",
    "completion_window",
    "status",
    "output_file_id",
    "error_file_id",
    "created_at",
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
    "metadata",
)


def batch_object(row: Mapping[str, Any], progress: Mapping[str, Any] | None) -> dict[str, Any]:
    """Args:
        row: Of the table `batches`.
        progress: What OpenAI does not tell; None: nothing.
    Returns:
        OpenAI's batch object.
    """
    shown = {
        "id": row["id"],
        "object": "batch",
        **{name: row[name] for name in _SAME},
        "errors": {"object": "list", "data": row["errors"]} if row["errors"] else None,
        "request_counts": {name: row[name] for name in ("total", "completed", "failed")},
        "usage": _usage(row),
    }
    return shown if progress is None else {**shown, "progress": dict(progress)}


def _usage(row: Mapping[str, Any]) -> dict[str, Any] | None:
    if not row["total_tokens"] and not row["completed"]:
        return None
    return {
        "input_tokens": row["input_tokens"],
        "input_tokens_details": {"cached_tokens": row["cached_tokens"]},
        "output_tokens": row["output_tokens"],
        "output_tokens_details": {"reasoning_tokens": row["reasoning_tokens"]},
        "total_tokens": row["total_tokens"],
    }


@dataclass(frozen=True, slots=True)
class Page:
    """What part of a list is asked for: so many, behind the one with this id."""

    after: str | None
    limit: int


def read_page(query: Mapping[str, str], default: int, most: int) -> Page:
    """Raises: InvalidRequestError: `limit` is not a number from 1 to `most`."""
    said = query.get("limit") or str(default)
    limit = int(said) if said.isascii() and said.isdigit() and len(said) < 10 else 0
    if not 1 <= limit <= most:
        raise InvalidRequestError(f"limit is a number from 1 to {most}", param="limit")
    return Page(query.get("after") or None, limit)


def page(objects: Sequence[Mapping[str, Any]], has_more: bool) -> dict[str, Any]:
    """Returns: OpenAI's list; the SDKs ask for the next one with the last id."""
    return {
        "object": "list",
        "data": list(objects),
        "first_id": objects[0]["id"] if objects else None,
        "last_id": objects[-1]["id"] if objects else None,
        "has_more": has_more,
    }
