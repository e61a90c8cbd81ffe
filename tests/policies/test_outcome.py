"""What a failed attempt means for the same target and for another one."""

import pytest

from app import errors
from app.policies.outcome import OK, Outcome, of_error, of_status

FINAL = Outcome(ok=False)
TRANSIENT = Outcome(ok=False, retry=True, reroute=True)
SICK = Outcome(ok=False, retry=True, reroute=True, sick=True)
LIMITED = Outcome(ok=False, retry=True, reroute=True, too_much=True)
OVERLOADED = Outcome(ok=False, retry=True, reroute=True, sick=True, too_much=True)
ELSEWHERE = Outcome(ok=False, reroute=True)
BROKEN = Outcome(ok=False, reroute=True, sick=True)
SILENT = Outcome(ok=False, reroute=True, sick=True, too_much=True)


@pytest.mark.parametrize("status", [200, 201, 204, 304, 399])
def test_below_four_hundred_all_is_well(status: int) -> None:
    assert of_status(status, None) is OK


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (408, TRANSIENT),
        (409, TRANSIENT),
        (429, LIMITED),
        (500, SICK),
        (502, SICK),
        (503, OVERLOADED),
        (504, SICK),
        (529, OVERLOADED),
        (599, SICK),
    ],
)
def test_what_may_pass_is_tried_again_here_and_elsewhere(status: int, outcome: Outcome) -> None:
    assert of_status(status, None) == outcome


@pytest.mark.parametrize("status", range(400, 600))
def test_only_its_own_failures_count_against_a_targets_health(status: int) -> None:
    """A limit that works is no illness, and neither is a request that nobody could answer."""
    judged = of_status(status, None)
    assert judged.sick == (status >= 500)
    assert judged.too_much == (status in {429, 503, 529})
    assert not judged.ok


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_is_wrong_with_this_target_only_is_tried_elsewhere(status: int) -> None:
    assert of_status(status, "model_not_found") == ELSEWHERE


@pytest.mark.parametrize("status", [400, 405, 413, 415, 422])
def test_a_wrong_request_is_wrong_everywhere(status: int) -> None:
    assert of_status(status, "invalid_request_error") == FINAL


@pytest.mark.parametrize("status", [403, 429, 500])
def test_a_spent_quota_is_never_tried_again_here(status: int) -> None:
    assert of_status(status, "insufficient_quota") == ELSEWHERE


@pytest.mark.parametrize("error", [errors.UpstreamUnreachableError, errors.UpstreamCutError])
def test_an_upstream_that_was_not_reached_or_broke_off_may_be_well_later(error: type[errors.GatewayError]) -> None:
    assert of_error(error("x")) == SICK


def test_an_upstream_that_was_silent_from_the_start_is_left_for_another_and_had_too_much() -> None:
    assert of_error(errors.FirstTokenTimeoutError("x")) == SILENT


@pytest.mark.parametrize(
    "error", [errors.QueueFullError, errors.RateLimitError, errors.CircuitOpenError, errors.DeadlineError]
)
def test_what_this_gateway_itself_held_back_says_nothing_of_the_targets_health(
    error: type[errors.GatewayError],
) -> None:
    assert of_error(error("x")) == ELSEWHERE


@pytest.mark.parametrize("error", [errors.UpstreamMalformedError, errors.IdleTimeoutError])
def test_an_answer_that_is_malformed_or_falls_silent_is_paid_for_and_not_asked_for_again_here(
    error: type[errors.GatewayError],
) -> None:
    assert of_error(error("x")) == BROKEN


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequestError,
        errors.AuthenticationError,
        errors.ClientHungUpError,
        errors.DrainingError,
        errors.InternalError,
    ],
)
def test_what_no_upstream_can_cure_is_final(error: type[errors.GatewayError]) -> None:
    assert of_error(error("x")) == FINAL
