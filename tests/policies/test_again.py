"""A batch's line whose call is over: its result, another try, or a pause of the whole batch."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import errors
from app.policies.again import Again, Final, Pause, Verdict, decide

_COUNTED = [408, 409, 500, 501, 502, 504, 520, 599]
_PATIENT = [429, 503, 529]
_NOT_THE_LINES: list[type[errors.GatewayError]] = [
    errors.CircuitOpenError,
    errors.QueueFullError,
    errors.RateLimitError,
    errors.DeadlineError,
    errors.UpstreamUnreachableError,
    errors.DrainingError,
    errors.StorageError,
]
_BROKEN: list[type[errors.GatewayError]] = [
    errors.UpstreamCutError,
    errors.UpstreamMalformedError,
    errors.FirstTokenTimeoutError,
    errors.IdleTimeoutError,
]
_HOPELESS: list[type[errors.GatewayError]] = [
    errors.InvalidRequestError,
    errors.ModelNotFoundError,
    errors.PermissionDeniedError,
    errors.BodyTooLargeError,
    errors.InternalError,
]


class Spent(errors.GatewayError):
    status, type, code = 429, "insufficient_quota", "insufficient_quota"


def judged(status: int | None = None, error: errors.GatewayError | None = None, **more: Any) -> Verdict:
    fields = {"error_code": None, "tries": 1, "others_succeed": True, "max_tries": 5, "draw": lambda: 0.5, **more}
    return decide(status=status, error=error, **fields)


@pytest.mark.parametrize("status", [200, 201, 204, 400, 401, 403, 404, 405, 413, 415, 422, 451])
def test_a_success_and_a_plain_refusal_are_final(status: int) -> None:
    assert judged(status, error_code="x", others_succeed=False) == Final()


@pytest.mark.parametrize("error", _HOPELESS)
def test_an_error_that_time_does_not_cure_is_final(error: type[errors.GatewayError]) -> None:
    assert judged(error=error("x"), others_succeed=False) == Final()


def test_no_reply_and_no_error_is_final() -> None:
    assert judged() == Final()


@pytest.mark.parametrize("status", [400, 402, 403, 429, 500, 503])
def test_a_spent_quota_pauses_the_batch_at_any_status_and_any_try(status: int) -> None:
    verdict = judged(status, error_code="insufficient_quota", tries=500)
    assert isinstance(verdict, Pause)
    assert verdict.code == "insufficient_quota"
    assert verdict.reason


def test_a_spent_quota_of_this_gateway_pauses_the_batch_too() -> None:
    assert isinstance(judged(error=Spent("x")), Pause)


def test_a_success_is_final_whatever_its_body_says() -> None:
    assert judged(200, error_code="insufficient_quota") == Final()


@pytest.mark.parametrize("others_succeed", [True, False])
@pytest.mark.parametrize("case", [*_COUNTED, *_BROKEN])
def test_what_may_be_the_lines_fault_counts_always(case: Any, others_succeed: bool) -> None:
    call = {"status": case} if isinstance(case, int) else {"error": case("x")}
    for tries in range(1, 5):
        assert judged(**call, tries=tries, others_succeed=others_succeed) == Again(0.25 * 2 ** (tries - 1))
    assert judged(**call, tries=5, others_succeed=others_succeed) == Final()


@pytest.mark.parametrize("case", [*_PATIENT, *_NOT_THE_LINES])
def test_what_is_not_the_lines_fault_counts_while_others_get_through(case: Any) -> None:
    call = {"status": case} if isinstance(case, int) else {"error": case("x")}
    for tries in range(1, 5):
        assert judged(**call, tries=tries) == Again(0.5 * 2 ** (tries - 1))
    assert judged(**call, tries=5) == Final()


@pytest.mark.parametrize("case", [*_PATIENT, *_NOT_THE_LINES])
def test_an_outage_is_waited_out_and_not_without_end(case: Any) -> None:
    call = {"status": case} if isinstance(case, int) else {"error": case("x")}
    for tries in (1, 5, 50, 119):
        verdict = judged(**call, tries=tries, others_succeed=False)
        assert isinstance(verdict, Again)
        assert verdict.excused
    assert judged(**call, tries=120, others_succeed=False) == Final()
    assert isinstance(judged(**call, tries=120, max_tries=200, others_succeed=False), Again)


def test_tries_of_an_outage_are_not_held_against_the_line_when_it_is_over() -> None:
    assert judged(429, tries=40) == Final()
    assert isinstance(judged(429, tries=40, excused=39), Again)
    assert isinstance(judged(500, tries=43, excused=39), Again)
    assert judged(500, tries=44, excused=39) == Final()


@given(st.integers(1, 5000), st.floats(0, 1, exclude_max=True), st.sampled_from([*_COUNTED, *_PATIENT]))
def test_a_wait_is_drawn_from_zero_to_a_bound_that_doubles_up_to_a_minute(tries: int, draw: float, status: int) -> None:
    verdict = judged(status, tries=tries, max_tries=10_000, draw=lambda: draw)
    base = 0.5 if status in _COUNTED else 1.0
    assert isinstance(verdict, Again)
    assert verdict.seconds == pytest.approx(draw * min(60.0, base * 2 ** min(tries - 1, 10)))


def test_a_wait_is_no_shorter_than_the_error_asks_for_and_that_is_a_minute_at_most() -> None:
    asked = judged(error=errors.CircuitOpenError("x", retry_after=20.0), tries=3)
    assert asked == Again(20.0 + 0.1 * 0.5 * 4)
    long = judged(error=errors.RateLimitError("x", retry_after=5000.0), tries=1)
    assert long == Again(60.0 + 0.1 * 0.5)
