"""A batch's output lines: how they are numbered, written, merged again; and the tokens that their replies cost.

A line's id carries its position: by it the output and the error file are put together again, in the results' order.
"""

import hashlib
import json
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Raw

from app.wire.results import embedded

_PREFIX = "batch_req_"
_BEGINS = b'{"id":"' + _PREFIX.encode()
_DIGITS = 10  # of the position, in hex
_ABSURD = 10**12  # tokens: more is a mistake, and could not be added up in the database


def line_id(batch_id: str, position: int) -> str:
    """Returns: An id that no other batch has; within a batch, ids sort as the positions do."""
    return f"{_PREFIX}{position:0{_DIGITS}x}{hashlib.sha256(batch_id.encode()).hexdigest()[:14]}"


def position_of(line: bytes) -> int:
    """Args: line: As `whole` gave it.

    Raises: ValueError: It is not such a line.
    """
    start = len(_BEGINS)
    digits = line[start : start + _DIGITS]
    if not line.startswith(_BEGINS) or len(digits) < _DIGITS:
        raise ValueError("not a line of a batch's output")
    return int(digits, 16)


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: Raw | str


class _Error(msgspec.Struct):
    code: str
    message: str


class _Fields(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: _Error | None = None


def reply_line(custom_id: str, status: int, request_id: str, body: bytes) -> bytes:
    """Returns: The output line's fields behind `id`, for `whole`: a call that was answered, well or not."""
    return _fields(_Fields(custom_id, response=_Response(status, request_id, embedded(body))))


def error_line(custom_id: str, code: str, message: str) -> bytes:
    """Returns: The output line's fields behind `id`, for `whole`: a call without a reply."""
    return _fields(_Fields(custom_id, error=_Error(code, message)))


def _fields(fields: _Fields) -> bytes:
    return msgspec.json.encode(fields)[1:]


def parts(batch_id: str, position: int, fields: bytes) -> tuple[bytes, bytes]:
    """Returns: The output line in two pieces, so that a long one need not be copied."""
    return b'{"id":"%s",' % line_id(batch_id, position).encode(), fields


def whole(batch_id: str, position: int, fields: bytes) -> bytes:
    """Returns: The output line, without a line feed."""
    return b"".join(parts(batch_id, position, fields))


async def merged(first: AsyncIterable[bytes], second: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Args: first, second: Output lines in the order of their positions. Yields: All of them in that order."""
    left, right = aiter(first), aiter(second)
    one, other = await anext(left, None), await anext(right, None)
    while one is not None and other is not None:
        if position_of(one) <= position_of(other):
            yield one
            one = await anext(left, None)
        else:
            yield other
            other = await anext(right, None)
    rest, last = (right, other) if one is None else (left, one)
    while last is not None:
        yield last
        last = await anext(rest, None)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, in the batch object's words."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.total_tokens + other.total_tokens,
        )


class _WithUsage(msgspec.Struct):
    usage: dict[str, Any] | None = None


_WITH_USAGE = msgspec.json.Decoder(_WithUsage)
_OBJECT = json.JSONDecoder()
_USAGE_BYTES = 1024


def usage_of(body: bytes) -> Usage | None:
    """Reads the usage of a reply, in chat's spelling or in that of Responses; what makes no sense counts as nothing.

    Returns: None: the reply does not say, or is no JSON object.
    """
    said = _at_the_end(body) or _anywhere(body)
    if not said:
        return None
    given, made = _count(said, "input_tokens", "prompt_tokens"), _count(said, "output_tokens", "completion_tokens")
    total = _count(said, "total_tokens")
    if given is None and made is None and total is None:
        return None
    cached = _count(_details(said, "input_tokens_details", "prompt_tokens_details"), "cached_tokens")
    reasoning = _count(_details(said, "output_tokens_details", "completion_tokens_details"), "reasoning_tokens")
    given, made = given or 0, made or 0
    return Usage(given, cached or 0, made, reasoning or 0, given + made if total is None else total)


def _at_the_end(body: bytes) -> dict[str, Any] | None:
    """Most replies end with their usage: then the rest, which may be long, is not read at all."""
    _, key, behind = body[-_USAGE_BYTES:].rpartition(b'"usage":')
    if not key:
        return None
    try:
        text = behind.decode().strip()
        said, stop = _OBJECT.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) and text[stop:].strip() == "}" else None  # the brace that ends the reply


def _anywhere(body: bytes) -> dict[str, Any] | None:
    try:
        return _WITH_USAGE.decode(body).usage
    except (ValueError, RecursionError):
        return None


def _count(said: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = said.get(name)
        if type(value) is int and 0 <= value < _ABSURD:  # True is an int, too
            return value
    return None


def _details(said: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        value = said.get(name)
        if isinstance(value, dict):
            return value
    return {}
