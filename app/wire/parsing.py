"""JSON in, errors out that name the field. msgspec reads only what is asked for: unknown fields cost no memory."""

import contextlib
import json
import math
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from app.errors import InvalidRequestError

T = TypeVar("T")
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_FIELD = re.compile(r"field `([^`]+)`")


def decode(decoder: msgspec.json.Decoder[T], data: bytes, where: str = "") -> T:
    """Decodes JSON text.

    Args:
        data: UTF-8 JSON.
        where: The dotted place of `data` in the request, put before the names of its fields.
    Raises:
        InvalidRequestError: Not JSON, not UTF-8, nested too deeply, or a field of the wrong type (`param` names it).
    """
    try:
        value = decoder.decode(data)
        if not data.isascii():  # msgspec does not look into the strings that it skips
            data.decode()
    except msgspec.ValidationError as error:
        message = str(error)
        raise InvalidRequestError(_PATH.sub("", message), param=_param(message, where)) from None
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the body is not UTF-8 at byte {error.start}", param=where or None) from None
    except msgspec.DecodeError as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}", param=where or None) from None
    except RecursionError:
        raise InvalidRequestError("the JSON is nested too deeply", param=where or None) from None
    return value


@contextlib.contextmanager
def within(where: str) -> Iterator[None]:
    """What is wrong inside is wrong at a place in the request: its field is named from there."""
    try:
        yield
    except InvalidRequestError as error:
        param = f"{where}.{error.param}" if error.param else where
        raise InvalidRequestError(error.message, param=param) from None


def loose(text: str | bytes) -> Any:
    """Parses JSON as clients do: half an emoji may stand in it. A number that is too large becomes null.

    Raises: ValueError, RecursionError: It is none.
    """
    return json.loads(text, parse_float=_finite, parse_constant=_nothing)


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _nothing(_: str) -> None:
    """`NaN`, `Infinity`: not JSON, but some write it."""


def sound(value: object) -> bytes:
    """Returns: Parsed JSON as text that every reader takes: half an emoji becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def _param(message: str, where: str) -> str | None:
    path = _PATH.search(message)
    parts = [where, path.group(1) if path else ""]
    missing = _FIELD.search(message)
    if missing:
        parts.append(missing.group(1))
    return ".".join(part for part in parts if part).replace(".[", "[") or None
