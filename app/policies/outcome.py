"""What a failed attempt means: may the same target be tried again, might another one do better?"""

from dataclasses import dataclass

from app.errors import (
    CircuitOpenError,
    DeadlineError,
    FirstTokenTimeoutError,
    GatewayError,
    IdleTimeoutError,
    QueueFullError,
    RateLimitError,
    UpstreamCutError,
    UpstreamMalformedError,
    UpstreamUnreachableError,
)

_TRY_AGAIN = frozenset({408, 409, 429})
_ANOTHER_TARGET = frozenset({401, 403, 404, 408, 409, 429})  # another key, another catalogue, another quota
_NOT_HERE = (QueueFullError, RateLimitError, CircuitOpenError, DeadlineError)
_TOO_MUCH = frozenset({429, 503, 529})


@dataclass(frozen=True, slots=True)
class Outcome:
    """Attributes:
    ok: The attempt succeeded.
    retry: The same target may succeed later.
    reroute: Another target may succeed now.
    sick: It counts against the target's health: the request is not to blame, nor is a limit.
    too_much: The target had too much to do.
    """

    ok: bool
    retry: bool = False
    reroute: bool = False
    sick: bool = False
    too_much: bool = False


OK = Outcome(ok=True)
_FINAL = Outcome(ok=False)
_TRANSIENT = Outcome(ok=False, retry=True, reroute=True)
_SICK = Outcome(ok=False, retry=True, reroute=True, sick=True)
_LIMITED = Outcome(ok=False, retry=True, reroute=True, too_much=True)
_OVERLOADED = Outcome(ok=False, retry=True, reroute=True, sick=True, too_much=True)
_ELSEWHERE = Outcome(ok=False, reroute=True)
_BROKEN = Outcome(ok=False, reroute=True, sick=True)
_SILENT = Outcome(ok=False, reroute=True, sick=True, too_much=True)


def of_status(status: int, error_code: str | None) -> Outcome:
    """Judges an upstream's reply.

    Args:
        error_code: `code` or `type` of the error envelope. `insufficient_quota` cannot succeed here again.
    """
    if status < 400:
        return OK
    if error_code == "insufficient_quota":
        return _ELSEWHERE
    if status in _TOO_MUCH:
        return _LIMITED if status == 429 else _OVERLOADED
    if status >= 500:
        return _SICK
    if status in _TRY_AGAIN:
        return _TRANSIENT
    return _ELSEWHERE if status in _ANOTHER_TARGET else _FINAL


def of_error(error: GatewayError) -> Outcome:
    """Judges an attempt that got no usable reply."""
    if isinstance(error, UpstreamUnreachableError | UpstreamCutError):
        return _SICK
    if isinstance(error, FirstTokenTimeoutError):
        return _SILENT
    if isinstance(error, UpstreamMalformedError | IdleTimeoutError):  # it is paid for and would come again
        return _BROKEN
    if isinstance(error, _NOT_HERE):
        return _ELSEWHERE
    return _FINAL
