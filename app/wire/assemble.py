"""Puts a streamed answer together again, for the result line of a fan-out item that was streamed."""

import json
from typing import Any


class Assembler:
    """Adds up the chunks of one stream: deltas are merged, text is joined, the last word on anything else wins.

    Works on chat completions, legacy completions and, by their last event, on responses.
    """

    def __init__(self) -> None:
        self._whole: dict[str, Any] = {}

    def add(self, chunk: bytes) -> None:
        """Args: chunk: One event's data, a JSON object; what is not shaped as it should be is passed over."""
        try:
            fields = json.loads(chunk)  # not msgspec: half an emoji may stand in it
        except (ValueError, RecursionError):  # a number of 5,000 digits, say
            return
        if isinstance(fields.get("response"), dict):  # such an event of a responses stream holds the response so far
            self._whole = fields["response"]
            return
        choices = fields.pop("choices", None)
        for name, value in fields.items():
            if value is not None:
                self._whole[name] = value
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict):
                if isinstance(delta := choice.pop("delta", None), dict):
                    choice["message"] = delta
                _merge_by_index(self._whole.setdefault("choices", []), [choice])

    def body(self) -> bytes:
        """Returns: The reply as if it had not been streamed, as JSON."""
        if self._whole.get("object") == "chat.completion.chunk":
            self._whole["object"] = "chat.completion"
        return json.dumps(self._whole, separators=(",", ":")).encode()


_REPLACED = frozenset({"id", "type", "role", "finish_reason"})


def _merge(whole: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        known = whole.get(name)
        if known is None or name in _REPLACED:
            whole[name] = value if value is not None else known
        elif isinstance(known, str) and isinstance(value, str):
            whole[name] = known + value
        elif isinstance(known, dict) and isinstance(value, dict):
            _merge(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            _merge_by_index(known, value)
        elif value is not None:
            whole[name] = value


def _merge_by_index(whole: list[Any], parts: list[Any]) -> None:
    for part in parts:
        index = part.get("index") if isinstance(part, dict) else None
        alike = (one for one in whole if isinstance(one, dict) and one.get("index") == index)
        known = None if index is None else next(alike, None)
        if known is None:
            whole.append(part)
        else:
            _merge(known, part)
