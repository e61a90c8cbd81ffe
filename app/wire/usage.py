"""Token counts: nested objects of numbers, added up field by field."""

from typing import Any

Usage = dict[str, Any]


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
