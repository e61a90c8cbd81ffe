"""What is known of one model family: dated and tuned models go together, and each family has a health of its own."""

import asyncio
import json

import pytest

from app.policies.lanes import Ticket
from app.policies.limits import Limits
from app.upstream.admission import Admission
from app.upstream.family import Family, family_of
from tests.upstream.test_admission import fixed, turns


async def test_families_are_bounded_and_idle_ones_make_room() -> None:
    admission = fixed(1000, 10)
    held = [await admission.enter(Ticket(), f"model-{number}", 10, None) for number in range(100)]
    known = admission.families.known
    assert len(known) == 65
    for slot in held:
        slot.release()
    await admission.enter(Ticket(), "another", 10, None)
    assert "another" in known
    assert len(known) <= 65


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
    assert len(admission.families._names) <= 1024
    assert len(admission.families.known) == 64


async def test_names_of_any_length_share_one_family_and_are_not_remembered() -> None:
    admission = fixed(10, 10)
    for number in range(300):
        assert admission.family(f"{number}" + "y" * 1000).name == "up/*"
    assert admission.family("z" * 257) is admission.family("y" * 257) is not admission.family("z" * 256)
    assert len(admission.families._names) == 1
    assert len(admission.families.known) == 2


async def test_the_one_that_was_not_used_for_longest_makes_room() -> None:
    admission, now = fixed(10, 10), 0.0
    admission.families._time = lambda: now
    for number in range(64):
        now = float(number)
        admission.family(f"name-{number}")
    now = 100.0
    admission.family("name-0")
    admission.family("another")
    known = admission.families.known
    assert "name-0" in known
    assert "name-1" not in known
    assert admission.family("another").used_at == 100.0


async def test_a_family_whose_quota_is_used_up_or_that_is_ill_is_not_forgotten() -> None:
    """Else other models' names would give a caller a full bucket, and an ill target a clean record."""
    admission = Admission("up", Limits("fixed", 100, requests=5.0), 100, 10)
    empty, ill, paused = (admission.family(name) for name in ("empty", "ill", "paused"))
    slots = [await admission.enter(Ticket(), "empty", 10, None) for _ in range(5)]
    for slot in slots:
        slot.release()
    for _ in range(5):
        ill.strike("call", "503", alone=False)
    paused.limiter.pause.until = admission.time() + 30.0
    assert not any(family.is_as_new for family in (empty, ill, paused))
    assert admission.family("new").is_as_new
    for number in range(300):
        admission.family(f"name-{number}")
    assert [admission.family(name) for name in ("empty", "ill", "paused")] == [empty, ill, paused]


async def test_where_all_would_be_missed_the_rest_share_one() -> None:
    admission = fixed(1000, 10)
    held = [await admission.enter(Ticket(), f"model-{number}", 10, None) for number in range(64)]
    other = await admission.enter(Ticket(), "one", 10, None)
    assert admission.family("one") is admission.family("other") is other.family
    assert other.family.name == "up/*"
    held[7].release()
    assert admission.family("third").name == "up/third"
    assert "model-7" not in admission.families.known


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
