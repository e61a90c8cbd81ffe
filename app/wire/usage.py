"""Token counts: nested objects of numbers, added up field by field."""

import re
from typing import Any

Usage = dict[str, Any]
_USAGE_BYTES = 1024


def add(total: Usage, part: Usage) -> None:
    """Adds every number of `part` to `total`, in place; whatever is not a number or an object is passed over."""
    for name, value in part.items():
        if isinstance(value, dict):
            inner = total.setdefault(name, {})
            if isinstance(inner, dict):
                add(inner, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            before = total.get(name, 0)
            total[name] = (before if isinstance(before, int | float) else 0) + value


_COUNTS = re.compile(rb'"(prompt_tokens|input_tokens|completion_tokens|output_tokens|total_tokens)"\s*:\s*(\d{1,12})')


def counted(body: bytes) -> tuple[int, int] | None:
    """Reads a reply's `usage` without reading the reply: it is among the last things in it.

    Args: body: A whole JSON reply, or a stream's last event.
    Returns: Tokens of the prompt and of the answer; None: it does not say.
    """
    start = body.rfind(b'"usage"')
    if start < 0:
        return None
    found = {name: int(number) for name, number in _COUNTS.findall(body, start, start + _USAGE_BYTES)}
    prompt = found.get(b"prompt_tokens", found.get(b"input_tokens"))
    output = found.get(b"completion_tokens", found.get(b"output_tokens", 0))
    return None if prompt is None else (prompt, output)
