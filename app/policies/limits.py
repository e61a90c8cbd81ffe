"""What is known of an upstream's limits beforehand."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Limits:
    """Attributes:
    concurrency: `fixed`: `in_flight` calls at once; `adaptive`: found by asking, `in_flight` at most.
    requests, tokens: A minute; None: not known.
    """

    concurrency: Literal["fixed", "adaptive"] = "adaptive"
    in_flight: int = 2048
    requests: float | None = None
    tokens: float | None = None
