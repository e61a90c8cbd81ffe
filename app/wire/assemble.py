"""Puts a streamed answer together again, for the result line of a fan-out item that was streamed."""

from typing import Any

import msgspec


class Assembler:
    """Adds up the chunks of one stream: deltas are merged, text is joined, the last word on anything else wins.

    Works on chat completions, legacy completions and, by their last event, on responses.
    """

    def __init__(self) -> None:
        self._whole: dict[str, Any] = {}

    def add(self, chunk: bytes) -> None:
        """Args: chunk: One event's data."""
        fields = msgspec.json.decode(chunk, type=dict[str, Any])
        if "response" in fields:  # every such event of a responses stream holds the response so far
            self._whole = fields["response"]
            return
        choices = fields.pop("choices", None) or []
        for name, value in fields.items():
            if value is not None:
                self._whole[name] = value
        for choice in choices:
            delta = choice.pop("delta", None)
            if delta is not None:
                choice["message"] = delta
            _merge_by_index(self._whole.setdefault("choices", []), [choice])

    def body(self) -> bytes:
        """Returns: The reply as if it had not been streamed."""
        if self._whole.get("object") == "chat.completion.chunk":
            self._whole["object"] = "chat.completion"
        return msgspec.json.encode(self._whole)


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
        known = next((one for one in whole if index is not None and one.get("index") == index), None)
        if known is None:
            whole.append(part)
        else:
            _merge(known, part)
