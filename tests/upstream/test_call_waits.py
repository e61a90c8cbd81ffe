"""What a call waits for: a breaker's probe, a budget that has run out; the patient a minute, the others not at all."""

import asyncio
from unittest import mock

import pytest

from app.errors import CircuitOpenError, UpstreamUnreachableError
from app.policies.budget import RetryBudget
from tests.upstream.scene import AGES, ERROR, Raw, Stage, chat, failing, play, whole
from tests.upstream.test_call import now, status_of

# the breaker


def test_a_probe_that_hangs_stands_in_the_way_for_ten_seconds_and_no_longer() -> None:
    state = "ill"

    async def answer(number: int, body: bytes) -> Raw:
        if state == "hangs":
            await asyncio.sleep(AGES)
        return Raw() if state == "well" else Raw(500, ERROR)

    async def scene() -> None:
        nonlocal state
        stage = Stage(answer, attempts=1, max_in_flight=64)
        for _ in range(40):
            await status_of(stage, chat())
        assert stage.breaker() == "open"
        state = "hangs"
        await asyncio.sleep(1.1)
        probe = asyncio.create_task(stage.stack.call(chat()))
        await asyncio.sleep(0.1)
        state, sent = "well", stage.sent[0]
        await asyncio.sleep(9.0)
        with pytest.raises(CircuitOpenError):
            await stage.stack.call(chat())
        assert stage.sent[0] == sent
        await asyncio.sleep(1.0)
        assert await status_of(stage, chat()) == 200
        assert stage.breaker() == "closed"
        probe.cancel()
        await asyncio.wait({probe})
        assert (stage.breaker(), stage.in_flight) == ("closed", [0])

    play(scene)


async def unreachable(number: int, body: bytes) -> Raw:
    raise UpstreamUnreachableError("cannot connect")


def test_a_patient_call_waits_a_minute_for_an_upstream_to_be_well_again_and_no_longer() -> None:
    async def scene() -> None:
        stage = Stage(unreachable, total_timeout=3600)
        for _ in range(40):
            await status_of(stage, chat())
        assert stage.breaker() == "open"
        began = now()
        assert await status_of(stage, chat()) == "circuit_open"
        assert now() == began
        ends = []

        async def patient() -> None:
            assert await status_of(stage, chat(patient=True, lane="batch")) in {"circuit_open", "upstream_unreachable"}
            ends.append(now() - began)

        await asyncio.gather(*(patient() for _ in range(8)))
        assert max(ends) < 75.0
        assert min(ends[-3:]) >= 60.0

    play(scene)


def test_a_patient_call_that_has_another_target_goes_there_at_once() -> None:
    async def scene() -> None:
        stage = Stage(unreachable, whole())
        for _ in range(10):
            began = now()
            assert await status_of(stage, chat(patient=True, lane="batch")) == 200
        assert stage.breaker() == "open"
        assert now() - began == pytest.approx(0.05)

    play(scene)


# the budget


def test_a_fan_out_on_an_empty_budget_goes_on_once_all_is_well_again() -> None:
    heal_at = 0.0

    async def half_ill(number: int, body: bytes) -> Raw:
        await asyncio.sleep(0.01)
        return Raw() if now() >= heal_at or number % 5 < 2 else Raw(500, ERROR)

    async def scene() -> None:
        nonlocal heal_at
        stage = Stage(half_ill, total_timeout=600)
        heal_at, began = now() + 10.0, now()
        together = asyncio.Semaphore(8)

        async def one() -> int | str:
            async with together:
                return await status_of(stage, chat(patient=True, lane="batch"))

        ends = await asyncio.gather(*(one() for _ in range(300)))
        assert now() - began < 60.0
        assert ends.count(200) >= 200
        assert stage.sent[0] < 300 * 3

    play(scene)


def test_an_empty_budget_is_waited_for_by_the_patient_only_and_for_a_minute() -> None:
    async def scene() -> None:
        stage = Stage(failing(500))
        for patient, seconds in ((False, 0.0), (True, 60.0)):
            began = now()
            with mock.patch.object(RetryBudget, "spend", return_value=False):
                assert await status_of(stage, chat(patient=patient)) == 500
            assert seconds <= now() - began <= seconds + 3.0
        assert stage.sent == [2]

    play(scene)


def test_time_refills_the_budget_and_a_patient_call_is_retried_then() -> None:
    async def once_ill(number: int, body: bytes) -> Raw:
        return Raw(500, ERROR) if number == 1 else Raw()

    async def scene() -> None:
        stage = Stage(once_ill)
        stage.ups[0].budget.left, began = 0.0, now()
        stage.ups[0].budget._at = began
        assert await status_of(stage, chat(patient=True)) == 200
        assert 2.8 <= now() - began < 6.0

    play(scene)
