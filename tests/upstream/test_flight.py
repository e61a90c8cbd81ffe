"""One attempt in the air: it gives its slot back once, tells the breaker once, and settles what it used."""

import asyncio
from typing import cast

import pytest

from app import errors
from app.policies.breaker import Permit
from app.policies.limits import Limits
from app.telemetry import ABANDONED, UpstreamFigures
from app.upstream.admission import Admission
from app.upstream.body import Events
from app.upstream.flight import Flight
from app.upstream.types import Reply
from tests.upstream.test_admission import enter

Kind = type[errors.GatewayError]


class Ended:
    """A stream that was read to its end."""

    tail = b'data: {"choices":[],"usage":{"prompt_tokens":30,"completion_tokens":70,"total_tokens":100}}\n\n'


def events() -> Events:
    return cast("Events", Ended())


def admission() -> Admission:
    return Admission("up", Limits("fixed", 100, requests=6000.0, tokens=600_000.0), 100, 100)


async def fly(
    at: Admission, *, permit: Permit = "call", whole: bool = True, alone: bool = False
) -> tuple[Flight, UpstreamFigures]:
    figures = UpstreamFigures()
    return Flight(await enter(at), permit, figures, whole=whole, alone=alone), figures


async def opened(at: Admission) -> Flight:
    """The breaker is open, and its time is over: this one is its probe."""
    breaker = at.family("m").breaker
    for _ in range(5):
        breaker.failed("call", "503", at.time() - 3.0, alone=False)
    permit = breaker.enter(at.time())
    assert permit == "probe"
    return (await fly(at, permit=permit))[0]


def failures(at: Admission) -> int:
    return at.family("m").breaker._in_a_row


async def test_a_whole_reply_ends_it_and_gives_everything_back() -> None:
    at = admission()
    flight, figures = await fly(at)
    flight.usage = (30, 70)
    flight.heard(Reply(200, {}), {})
    assert (at.in_flight, failures(at)) == (0, 0)
    assert at.family("m").limiter.tokens.level == pytest.approx(600_000 - 100, abs=50)
    assert (figures.calls, figures.succeeded, dict(figures.outcomes)) == (1, 1, {"200": 1})
    flight.end(None, errors.UpstreamCutError("x"))  # whatever comes after its end is not heard
    flight.closed(200, None)
    assert (at.in_flight, failures(at), figures.calls) == (0, 0, 1)


async def test_a_whole_replys_time_is_learnt_and_a_failed_ones_is_not() -> None:
    at = admission()
    for status in (200, 500, 429, 400):
        flight, _ = await fly(at)
        flight.heard(Reply(status, {}), {})
    patience = at.family("m").patience
    assert (len(patience[True]._last), len(patience[False]._last)) == (1, 0)


async def test_a_stream_ends_when_it_is_closed_and_its_usage_is_settled() -> None:
    at = admission()
    flight, figures = await fly(at, whole=False)
    flight.opened(events())
    flight.heard(Reply(200, {}), {})
    assert (at.in_flight, figures.calls) == (1, 0)
    flight.closed(200, None)
    assert (at.in_flight, figures.calls, flight.usage) == (0, 1, (30, 70))
    assert at.family("m").limiter.tokens.level == pytest.approx(600_000 - 100, abs=50)
    flight.closed(200, None)
    assert (at.in_flight, figures.calls) == (0, 1)
    assert (len(at.family("m").patience[False]._last), len(at.family("m").patience[True]._last)) == (1, 0)


async def test_a_stream_whose_client_went_teaches_no_time_and_its_guess_stands() -> None:
    at = admission()
    flight, figures = await fly(at, whole=False)
    flight.opened(None)
    flight.heard(Reply(200, {}), {})
    before = at.family("m").limiter.tokens.level
    flight.closed(200, errors.ClientHungUpError("x"))
    limiter = at.family("m").limiter
    assert (at.in_flight, limiter.held_seconds, failures(at)) == (0, None, 0)
    assert limiter.tokens.level == pytest.approx(before, abs=50)
    assert dict(figures.outcomes) == {ABANDONED: 1}


@pytest.mark.parametrize(
    ("status", "struck"), [(200, 0), (400, 0), (401, 0), (404, 0), (429, 0), (500, 1), (503, 1), (529, 1)]
)
async def test_a_status_is_one_verdict(status: int, struck: int) -> None:
    at = admission()
    flight, _ = await fly(at)
    flight.heard(Reply(status, {}), {})
    flight.end(status, errors.UpstreamCutError("x"))
    assert failures(at) == struck
    assert at.in_flight == 0


@pytest.mark.parametrize(
    ("error", "struck"),
    [
        (errors.UpstreamUnreachableError, 1),
        (errors.UpstreamCutError, 1),
        (errors.UpstreamMalformedError, 1),
        (errors.FirstTokenTimeoutError, 1),
        (errors.IdleTimeoutError, 1),
        (errors.DeadlineError, 0),  # too soon to tell whether it is late
        (errors.ClientHungUpError, 0),
    ],
)
async def test_an_error_is_one_verdict_and_what_was_not_answered_is_refunded(error: Kind, struck: int) -> None:
    at = admission()
    flight, _ = await fly(at)
    for _ in range(3):
        flight.end(None, error("x"))
    assert failures(at) == struck
    assert at.in_flight == 0
    refunded = error is not errors.ClientHungUpError  # it may have been answered
    assert at.family("m").limiter.requests.level == pytest.approx(6000 if refunded else 5999, abs=0.5)


@pytest.mark.parametrize(("calls", "seconds", "struck"), [(20, 1.5, 1), (20, 0.5, 0), (19, 600.0, 0)])
async def test_a_deadline_counts_only_long_after_the_usual_time(calls: int, seconds: float, struck: int) -> None:
    at = admission()
    for _ in range(calls):
        at.family("m").patience[True].see(0.01)
    flight, _ = await fly(at)
    flight.began -= seconds
    flight.end(None, errors.DeadlineError("x"))
    assert failures(at) == struck


async def test_a_deadline_in_the_middle_of_a_stream_was_too_short_and_harms_nobody() -> None:
    at = admission()
    for _ in range(20):
        at.family("m").patience[False].see(0.01)
    flight, _ = await fly(at, whole=False)
    flight.opened(None)
    flight.heard(Reply(200, {}), {})
    flight.began -= 600.0
    flight.closed(200, errors.DeadlineError("x"))
    assert (failures(at), at.in_flight) == (0, 0)


async def test_a_stream_that_falls_silent_is_a_failure_but_no_sign_of_too_much() -> None:
    at = Admission("up", Limits(), 100, 100)
    flight, _ = await fly(at, whole=False)
    flight.opened(None)
    flight.heard(Reply(200, {}), {})
    flight.closed(200, errors.IdleTimeoutError("x"))
    assert (failures(at), at.family("m").limiter.concurrency.limit) == (1, 32)


async def test_one_that_never_said_anything_had_too_much_but_has_not_counted() -> None:
    at = Admission("up", Limits(), 100, 100)
    *_, (flight, _) = [await fly(at, whole=False) for _ in range(21)]
    flight.end(None, errors.FirstTokenTimeoutError("x"))
    assert (failures(at), at.family("m").limiter.concurrency.limit) == (1, 22)


@pytest.mark.parametrize("failure", [asyncio.CancelledError(), GeneratorExit(), errors.ClientHungUpError("x")])
async def test_a_probe_whose_client_goes_frees_the_next_one_without_a_verdict(failure: BaseException) -> None:
    at = admission()
    flight = await opened(at)
    breaker = at.family("m").breaker
    flight.end(None, failure)
    assert breaker.state == "half_open"
    assert breaker.enter(at.time()) == "probe"


async def test_a_probe_that_is_answered_closes_the_breaker_and_its_permit_is_spent_once() -> None:
    at = admission()
    flight = await opened(at)
    flight.heard(Reply(200, {}), {})
    assert at.family("m").breaker.state == "closed"
    flight.end(None, errors.UpstreamCutError("x"))
    assert at.family("m").breaker.state == "closed"


async def test_a_probe_that_is_refused_for_too_much_is_an_answer_too() -> None:
    at = admission()
    (await opened(at)).heard(Reply(429, {}), {})
    assert at.family("m").breaker.state == "closed"


# overdue


async def test_overdue_counts_once_however_it_goes_on() -> None:
    at = admission()
    flight, _ = await fly(at)
    flight.overdue()
    assert (failures(at), at.in_flight) == (1, 1)
    flight.overdue()
    flight.end(None, errors.FirstTokenTimeoutError("x"))
    assert (failures(at), at.in_flight) == (1, 0)


async def test_an_overdue_call_that_is_answered_after_all_is_a_success() -> None:
    at = admission()
    flight, figures = await fly(at)
    flight.overdue()
    flight.heard(Reply(200, {}), {})
    assert (failures(at), at.in_flight, figures.succeeded) == (0, 0, 1)


async def test_an_overdue_call_that_fails_after_all_is_one_failure() -> None:
    at = admission()
    flight, _ = await fly(at)
    flight.overdue()
    flight.heard(Reply(503, {}), {})
    assert (failures(at), at.in_flight) == (1, 0)


async def test_an_overdue_probe_opens_it_again_and_closes_it_not_by_answering_late() -> None:
    at = admission()
    flight = await opened(at)
    breaker = at.family("m").breaker
    flight.overdue()
    assert (breaker.state, breaker.opened) == ("open", 2)
    flight.heard(Reply(200, {}), {})
    assert (breaker.state, breaker.opened, at.in_flight) == ("open", 2, 0)


async def test_a_stream_that_breaks_after_it_was_well_is_a_failure_too() -> None:
    at = admission()
    flight, figures = await fly(at, whole=False)
    flight.opened(None)
    flight.heard(Reply(200, {}), {})
    assert failures(at) == 0
    flight.closed(200, errors.UpstreamCutError("x"))
    assert (failures(at), at.in_flight) == (1, 0)
    assert dict(figures.outcomes) == {"upstream_cut": 1}
