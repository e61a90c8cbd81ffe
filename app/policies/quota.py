"""What replies say of an upstream's limits: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`.

OpenAI gives the reset as a duration (`6m0s`), Azure as whole seconds; Azure has been seen to say 0 and -1 where it knew
nothing, and such values count as unsaid. Source: https://platform.openai.com/docs/guides/rate-limits
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Unit = Literal["requests", "tokens"]

_UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_LONGEST_RESET = 86_400.0
_PART = r"(\d{1,12}(?:\.\d{1,12})?)(ms|us|µs|ns|[dhms])"
_DURATION = re.compile(f"(?:{_PART})+")
_PARTS = re.compile(_PART)
_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d{1,15})?")


@dataclass(frozen=True, slots=True)
class Quota:
    """What a reply said of one limit; None: nothing, or nothing sensible.

    Attributes:
        limit: Units a minute.
        remaining: Units left when the upstream let the call in.
        reset: Seconds until the upstream's bucket is full.
    """

    limit: float | None = None
    remaining: float | None = None
    reset: float | None = None


class QuotaReader:
    """Reads replies' headers; `garbage` counts the values that made no sense."""

    __slots__ = ("garbage",)

    def __init__(self) -> None:
        self.garbage = 0

    def read(self, headers: Mapping[str, str], unit: Unit) -> Quota | None:
        """Args: headers: A reply's, names in lower case.

        Returns: What they say of this unit; None: nothing.
        """
        limit = self._value(headers.get(f"x-ratelimit-limit-{unit}"))
        remaining = self._value(headers.get(f"x-ratelimit-remaining-{unit}"))
        reset = self._value(headers.get(f"x-ratelimit-reset-{unit}"))
        if remaining is not None and (remaining < 0 or (remaining == 0 and not reset)):
            remaining = None  # nothing left and nothing to come: it does not know
        if reset is not None and reset > _LONGEST_RESET:  # a date, say
            self.garbage += 1
            reset = None
        found = Quota(limit or None, remaining, reset or None)
        return None if found == _NOTHING else found

    def _value(self, text: str | None) -> float | None:
        """Returns: A number, or a duration's seconds; None where it is missing, negative or garbage."""
        if text is None:
            return None
        text = text.strip()
        if _NUMBER.fullmatch(text):
            number = float(text)
            return number if number >= 0 else None
        if _DURATION.fullmatch(text):
            return sum(float(number) * _UNITS[unit] for number, unit in _PARTS.findall(text))
        self.garbage += 1
        return None


_NOTHING = Quota()
