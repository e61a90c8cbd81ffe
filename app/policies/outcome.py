"""What a failed attempt means: may the same target be tried again, might another one do better?"""

from dataclasses import dataclass

from app.errors import (
    DeadlineError,
    FirstTokenTimeoutError,
    GatewayError,
    QueueFullError,
    UpstreamCutError,
    UpstreamMalformedError,
    UpstreamUnreachableError,
)

_TRY_AGAIN = frozenset({408, 409, 429})
_ANOTHER_TARGET = frozenset({401, 403, 404, 408, 409, 429})  # another key, another catalogue, another quota


@dataclass(frozen=True, slots=True)
class Outcome:
    """Attributes:
    ok: The attempt succeeded.
    retry: The same target may succeed later.
    reroute: Another target may succeed now.
    """

    ok: bool
    retry: bool = False
    reroute: bool = False


OK = Outcome(ok=True)
_FINAL = Outcome(ok=False)
_TRANSIENT = Outcome(ok=False, retry=True, reroute=True)
_ELSEWHERE = Outcome(ok=False, reroute=True)


def of_status(status: int, error_code: str | None) -> Outcome:
    """Judges an upstream's reply.

    Args:
        error_code: `code` or `type` of the error envelope. `insufficient_quota` cannot succeed here again.
    """
    if status < 400:
        return OK
    if error_code == "insufficient_quota":
        return _ELSEWHERE
    if status in _TRY_AGAIN or status >= 500:
        return _TRANSIENT
    return _ELSEWHERE if status in _ANOTHER_TARGET else _FINAL


def of_error(error: GatewayError) -> Outcome:
    """Judges an attempt that got no usable reply."""
    if isinstance(error, UpstreamUnreachableError | UpstreamCutError):
        return _TRANSIENT
    # a malformed answer is paid for and would come again
    if isinstance(error, UpstreamMalformedError | FirstTokenTimeoutError | QueueFullError | DeadlineError):
        return _ELSEWHERE
    return _FINAL
