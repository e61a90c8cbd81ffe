"""Every kind of upstream fault at every point of a stream: the SDKs see the whole answer or an exception, never half."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from app.errors import (
    FirstTokenTimeoutError,
    GatewayError,
    IdleTimeoutError,
    UpstreamCutError,
    UpstreamMalformedError,
    UpstreamUnreachableError,
)
from tests.journeys.faults_support import BEFORE, WORDS, Case, gateway_before_faults, node_sees, python_sees
from tests.support import Server, eventually

# Where: while connecting; in place of the reply; after its headers; in the middle of the text; after the text, before
# [DONE]. What: the error's code. A slash: which of the two is up to the packets' timing.
MATRIX = """
fault          connect          reply                first                middle        done
refused        unreachable      -                    -                    -             -
reset          unreachable/cut  cut                  cut                  cut           cut
stalled        unreachable      first_token_timeout  first_token_timeout  idle_timeout  idle_timeout
cut            cut              cut                  cut                  cut           cut
ended          -                -                    cut                  cut           cut
garbage        malformed        malformed            malformed            malformed     malformed
bad_framing    -                -                    cut/malformed        cut           cut
html_page      -                malformed            malformed            malformed     malformed
html_as_200    -                malformed            -                    -             -
sliced         -                whole                -                    -             -
unframed       -                whole                -                    -             -
unframed_reset -                -                    cut                  cut           cut
unframed_cut   -                -                    cut                  cut           cut
gzip           -                whole                -                    -             -
gzip_reset     -                -                    cut                  cut           cut
gzip_cut       -                -                    cut                  cut           cut
gzip_ended     -                -                    cut                  cut           cut
gzip_garbage   -                -                    malformed            malformed     malformed
gzip_bad_gzip  -                -                    malformed            malformed     malformed
"""
# No cell, no sense: a connection that stands cannot be refused. ended (properly by HTTP's rules, but too early) and bad
# framing are faults of a body. A page comes when a request has been read; html_as_200 is that of a login. Sliced (to
# single bytes), unframed (neither chunks nor a length: it ends with its connection) or compressed is a whole reply.
# Responses are whole at `done`, whatever comes: `response.completed` has said all.
ENDPOINTS = ("chat", "completions", "responses")
ERRORS: dict[str, type[GatewayError]] = {
    "unreachable": UpstreamUnreachableError,
    "cut": UpstreamCutError,
    "malformed": UpstreamMalformedError,
    "first_token_timeout": FirstTokenTimeoutError,
    "idle_timeout": IdleTimeoutError,
}


def cells() -> Iterator[tuple[str, str, str]]:
    """Yields: Fault, point and what is to come of it."""
    heading, *rows = (line.split() for line in MATRIX.strip().splitlines())
    for fault, *outcomes in rows:
        for point, outcome in zip(heading[1:], outcomes, strict=True):
            if outcome != "-":
                yield fault, point, outcome


CASES: dict[Case, str] = {
    Case(fault, point, endpoint): outcome for fault, point, outcome in cells() for endpoint in ENDPOINTS
}


def expected(case: Case, outcome: str) -> str:
    """Returns: What a caller is left with: a status before the first token, afterwards the words that came, and why."""
    if outcome == "whole" or (case.endpoint == "responses" and case.point == "done"):
        return "".join(WORDS)  # `response.completed` says all there is to say: nothing is missed after it
    error = ERRORS[outcome]
    told = f"{error.type}/{error.code}"
    if not BEFORE.get(case.point):
        return f"{error.status} {told}"
    return f"{''.join(WORDS[: BEFORE[case.point]])}, then {told}"


@pytest.fixture(scope="module")
def faulty() -> Iterator[Server]:
    with gateway_before_faults() as server:
        yield server


@pytest.fixture(scope="module")
def python_saw(faulty: Server) -> dict[str, str]:
    return asyncio.run(python_sees(faulty, CASES))


@pytest.fixture(scope="module")
def node_saw(node: str, faulty: Server) -> dict[str, str]:
    return asyncio.run(node_sees(node, faulty, CASES))


@pytest.mark.parametrize("sdk", ["python", "node"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_is_an_exception_with_its_code_and_the_answer_is_whole_or_says_that_it_is_not(
    request: pytest.FixtureRequest, sdk: str, case: Case
) -> None:
    saw: dict[str, str] = request.getfixturevalue(f"{sdk}_saw")
    assert saw[case.name] in [expected(case, outcome) for outcome in CASES[case].split("/")]


async def test_no_fault_leaves_anything_behind(
    faulty: Server, python_saw: dict[str, str], node_saw: dict[str, str]
) -> None:
    async def nothing_runs() -> bool:
        async with httpx.AsyncClient() as http:
            status = (await http.get(f"{faulty.root}/status")).json()
        return all(upstream["in_flight"] == 0 for upstream in status["upstreams"].values())

    await eventually(nothing_runs)
    assert "Traceback" not in faulty.log()
