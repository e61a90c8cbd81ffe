"""What is known of one model family: dated and tuned models go together, and each family has a health of its own."""

import asyncio
import json

import pytest

from app.policies.lanes import Ticket
from app.policies.limiter import Limits
from app.upstream.admission import Admission
from app.upstream.family import Family, family_of
from tests.upstream.test_admission import fixed, turns


async def test_families_are_bounded_and_idle_ones_make_room() -> None:
    admission = fixed(1000, 10)
    held = [await admission.enter(Ticket(), f"model-{number}", 10, None) for number in range(100)]
    assert len(admission.families) <= 65
    for slot in held:
        slot.release()
    await admission.enter(Ticket(), "another", 10, None)
    assert "another" in admission.families
    assert len(admission.families) <= 65


def test_dated_and_tuned_models_are_counted_with_their_base() -> None:
    names = ["gpt-4o", "gpt-4o-2024-08-06", "ft:gpt-4o:org::id", "gpt-4o-latest"]
    assert {family_of(name) for name in names} == {"gpt-4o"}
    assert family_of("gpt-4o-mini") == "gpt-4o-mini"


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("o3-20250416", "o3"),
        ("gpt-4-0613", "gpt-4"),
        ("ft:gpt-4o-mini-2024-07-18:org:name:id", "gpt-4o-mini"),
        ("text-embedding-3-small", "text-embedding-3-small"),
        ("llama3:8b", "llama3:8b"),
        ("", ""),
    ],
)
def test_only_a_version_at_the_end_is_left_out(model: str, family: str) -> None:
    assert family_of(model) == family


async def test_dated_models_share_one_familys_limits() -> None:
    admission = fixed(10, 10)
    assert admission.family("gpt-4o") is admission.family("gpt-4o-2024-08-06") is not admission.family("gpt-4o-mini")
    assert admission.family(None) is admission.family("")


async def test_a_hundred_thousand_names_are_not_remembered() -> None:
    admission = fixed(10, 10)
    for number in range(5000):
        admission.family(f"name-{number}")
    assert len(admission._names) <= 16 * 64 + 1
    assert len(admission.families) <= 65


async def test_a_family_that_is_in_use_is_not_forgotten() -> None:
    admission = fixed(10, 10)
    slot = await admission.enter(Ticket(), "in use", 10, None)
    for number in range(500):
        admission.family(f"name-{number}")
    assert admission.family("in use") is slot.family


async def test_when_failures_open_the_breaker_those_who_wait_for_an_answer_wait_no_longer() -> None:
    family = Family("up/m", Limits(), asyncio.get_running_loop().time)
    overdue = asyncio.create_task(asyncio.sleep(3600))
    family.overdue.add(overdue)
    for _ in range(4):
        family.strike("call", "503", alone=False)
    await turns()
    assert not overdue.done()
    family.strike("call", "503", alone=False)
    await turns()
    assert family.breaker.state == "open"
    assert overdue.cancelled()


async def test_a_snapshot_is_json_and_tells_what_is_open() -> None:
    admission = Admission("up", Limits("fixed", 2, requests=60.0), 2, 10)
    await admission.enter(Ticket(lane="batch"), "m", 10, None)
    family = admission.family("m")
    told = json.loads(json.dumps(family.snapshot()))
    assert (told["in_flight"], told["limit"], told["queued"]) == (1, 2, {"interactive": 0, "batch": 0})
    assert told["requests"]["remaining"] == pytest.approx(59, abs=0.5)
    assert told["tokens"] is None
    assert told["breaker"] == {"state": "closed", "reason": None, "open_until": None, "opened": 0}
    for _ in range(5):
        family.strike("call", "503", alone=False)
    assert json.loads(json.dumps(family.snapshot()))["breaker"]["state"] == "open"
