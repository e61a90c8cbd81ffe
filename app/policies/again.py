"""A batch's line whose call is over: is that its result, is it sent again and when, or must the whole batch wait?

The call stack has made its own retries within seconds; a batch has hours. So what says nothing about the line (a full
queue, a limit, an upstream that is away) does not use up its tries while nobody else gets through either: an outage of
half an hour must not turn a batch into a file of errors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from app.errors import (
    CircuitOpenError,
    DeadlineError,
    DrainingError,
    GatewayError,
    QueueFullError,
    RateLimitError,
    StorageError,
    UpstreamError,
    UpstreamUnreachableError,
)
from app.policies.outcome import of_status
from app.policies.retry import RetryPolicy

_MOST = 120  # tries in all: an hour of nothing but an outage
_CAP = 60.0
_DOUBLINGS = 20  # the cap is reached long before
_PATIENT = RetryPolicy(max_attempts=1_000_000, base=1.0, cap=_CAP)
_COUNTED = RetryPolicy(max_attempts=1_000_000, base=0.5, cap=_CAP)
_QUOTA = "insufficient_quota"
_NOT_THE_LINES = (
    CircuitOpenError,
    QueueFullError,
    RateLimitError,
    UpstreamUnreachableError,
    DrainingError,
    StorageError,
)


@dataclass(frozen=True, slots=True)
class Final:
    """This is the line's result."""


@dataclass(frozen=True, slots=True)
class Again:
    """Send it once more.

    Attributes:
        seconds: To wait.
        excused: The try was not the line's fault, and nobody else got through.
    """

    seconds: float
    excused: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """No line of this batch can succeed until somebody does something."""

    code: str
    reason: str


Verdict = Final | Again | Pause
_FINAL = Final()


def decide(
    *,
    status: int | None,
    error_code: str | None,
    error: GatewayError | None,
    tries: int,
    others_succeed: bool,
    max_tries: int,
    draw: Callable[[], float],
    excused: int = 0,
) -> Verdict:
    """Judges a line's call.

    Args:
        status: Of the upstream's reply; None: there was none, and `error` says why.
        error_code: `code` or `type` of the reply's error envelope.
        tries: So far, this one included.
        others_succeed: Calls to the same upstream do succeed.
        max_tries: That a line may have.
        draw: Gives a number in [0, 1).
        excused: Of `tries`, those that were judged so before.
    """
    if _QUOTA in {error_code, error and error.code} and not 200 <= (status or 0) < 300:
        return Pause(_QUOTA, "the upstream's quota is spent")
    patient = _is_not_the_lines(status, error)
    if not patient and not _may_pass(status, error):
        return _FINAL
    pardoned = patient and not others_succeed
    if (tries >= max(_MOST, max_tries)) if pardoned else (tries - excused >= max_tries):
        return _FINAL
    policy = _PATIENT if patient else _COUNTED
    asked = error.retry_after if error else None
    wait = policy.wait(
        min(tries, _DOUBLINGS), retry_after=None if asked is None else min(asked, _CAP), remaining=math.inf, draw=draw
    )
    return _FINAL if wait is None else Again(wait, pardoned)


def _is_not_the_lines(status: int | None, error: GatewayError | None) -> bool:
    if status is not None:
        return of_status(status, None).too_much
    return isinstance(error, _NOT_THE_LINES) or type(error) is DeadlineError


def _may_pass(status: int | None, error: GatewayError | None) -> bool:
    if status is not None:
        return of_status(status, None).retry
    return isinstance(error, UpstreamError | DeadlineError)
