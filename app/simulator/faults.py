"""Faults at run time: an upstream that falls ill under load and is healed, without a word in any model's name.

`POST /faults` with the fields of `Fault`, `GET /faults`, `DELETE /faults`. They strike calls, not the looks at
`/models`, `/ledger` and `/faults`.
"""

import random
from typing import Annotated

import msgspec

from app.errors import InvalidRequestError, MethodNotAllowedError
from app.wire.parsing import decode


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What strikes calls until it is changed.

    Attributes:
        status: Every call is answered with this error.
        code: Its code, as `insufficient_quota`.
        hole: Calls are accepted and never answered, also after the healing: they were lost.
        share: The share of calls that is struck, 0 to 1.
        latency: Seconds before a reply, on top of the call's own.
    """

    status: Annotated[int, msgspec.Meta(ge=400, le=599)] | None = None
    code: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    hole: bool = False
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    latency: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0


_NONE = Fault()
_DECODER = msgspec.json.Decoder(Fault)


class Faults:
    """The fault of the hour. Args: seed: The same calls are struck for the same seed."""

    def __init__(self, seed: int) -> None:
        self._now = _NONE
        self._luck = random.Random(f"{seed}:faults")  # noqa: S311 - chance, not secrets

    def strike(self) -> Fault:
        """Returns: What happens to the call at hand."""
        struck = self._now.share == 1 or self._luck.random() < self._now.share
        return self._now if struck else _NONE

    def control(self, method: str, body: bytes) -> bytes:
        """Acts on a call to `/faults`. Returns: What is in force now, as JSON.

        Raises: InvalidRequestError, MethodNotAllowedError: Nothing has changed.
        """
        if method == "POST":
            self._now = _read(body)
        elif method == "DELETE":
            self._now = _NONE
        elif method != "GET":
            raise MethodNotAllowedError(f"/faults knows GET, POST and DELETE, not {method}")
        return msgspec.json.encode(self._now)


def _read(body: bytes) -> Fault:
    fault = decode(_DECODER, body)
    if fault.hole and (fault.status is not None or fault.latency):
        raise InvalidRequestError("what falls into the hole is never answered: no status, no latency", param="hole")
    return fault
