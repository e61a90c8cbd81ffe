"""What a streamed answer says so far: its text and its usage, read from its events."""

import contextlib
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from app.wire.parsing import loose, sound


class Said(NamedTuple):
    """Attributes: usage: As the upstream counts it; None: it has not said so (yet)."""

    text: str
    usage: dict[str, Any] | None


def said(payloads: Iterable[bytes]) -> Said:
    """Args: payloads: The data of each event of a chat, completion or response; the first choice counts."""
    parts: list[str] = []
    usage: dict[str, Any] | None = None
    for payload in payloads:
        with contextlib.suppress(ValueError, RecursionError):  # a number of 5,000 digits, say
            chunk = loose(payload)  # not msgspec: half an emoji may stand in it
            if isinstance(chunk, dict):
                parts.append(_text(chunk))
                usage = _usage(chunk) or usage
    return Said(_whole("".join(parts)), None if usage is None else json.loads(sound(usage)))


def _text(chunk: dict[str, Any]) -> str:
    if chunk.get("type") == "response.output_text.delta":
        return _string(chunk.get("delta"))
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        if isinstance(choice, dict) and choice.get("index", 0) == 0:
            delta = choice.get("delta")
            return _string(delta.get("content") if isinstance(delta, dict) else choice.get("text"))
    return ""


def _usage(chunk: dict[str, Any]) -> dict[str, Any] | None:
    response = chunk.get("response")
    found = (response if isinstance(response, dict) else chunk).get("usage")
    return found if isinstance(found, dict) else None


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _whole(text: str) -> str:
    """Two halves of an emoji that came in two tokens become one; a half that is alone becomes a question mark."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
