"""Waiting for a slot: who is refused at once or told later that there is no hope, whom time lets in, who goes first."""

import asyncio
import gc

import pytest

from app.errors import QueueFullError, RateLimitError
from app.policies.lanes import Ticket
from app.policies.limits import Limits
from app.upstream.admission import Admission
from tests.upstream.test_admission import admitted, enter, fixed, queue, turns

Waiting = "asyncio.Task[Slot]"


@pytest.mark.parametrize("max_queue", [0, 2])
async def test_a_full_queue_refuses_and_says_when_to_come_back(max_queue: int) -> None:
    admission = fixed(1, max_queue)
    slot = await enter(admission)
    waiters = [asyncio.create_task(enter(admission)) for _ in range(max_queue)]
    await turns()
    with pytest.raises(QueueFullError) as caught:
        await enter(admission)
    assert caught.value.retry_after is not None
    assert caught.value.retry_after >= 1
    assert int(caught.value.headers()["retry-after"]) >= 1
    assert caught.value.headers()["x-should-retry"] == "true"
    assert admission.waiting == max_queue
    slot.release()
    for waiter in waiters:
        (await admitted(waiter)).release()
    assert (admission.in_flight, admission.waiting) == (0, 0)


async def test_the_wait_that_a_full_queue_names_grows_with_what_calls_take() -> None:
    async def named(held_seconds: float) -> float:
        admission = fixed(1, 0)
        await enter(admission)
        admission.family("m").limiter.held_seconds = held_seconds
        with pytest.raises(QueueFullError) as caught:
            await enter(admission)
        assert caught.value.retry_after is not None
        return caught.value.retry_after

    assert await named(0.001) == 1
    assert await named(20) == pytest.approx(40)  # a place, and an answer


async def test_a_patient_caller_waits_where_others_are_refused() -> None:
    admission = fixed(1, 0)
    slot = await enter(admission)
    (waiter,) = queue(admission, 1)
    await turns()
    assert admission.waiting == 1
    slot.release()
    assert await admitted(waiter)
    assert admission.in_flight == 1


async def test_the_peak_is_remembered() -> None:
    admission = fixed(3, 0)
    slots = [await enter(admission) for _ in range(2)]
    for slot in slots:
        slot.release()
    assert (admission.in_flight, admission.peak) == (0, 2)


async def test_a_call_that_cannot_make_its_deadline_is_refused_at_once_and_told_the_wait() -> None:
    admission = fixed(1, 100)
    await enter(admission)
    admission.family("m").limiter.held_seconds = 2.0
    now = asyncio.get_running_loop().time()
    with pytest.raises(RateLimitError) as caught:
        await enter(admission, deadline=now + 1.0)
    assert caught.value.retry_after == pytest.approx(4.0)
    assert admission.waiting == 0
    in_time = asyncio.create_task(enter(admission, deadline=now + 10.0))
    await turns()
    assert admission.waiting == 1
    in_time.cancel()


async def test_time_alone_opens_a_quota() -> None:
    admission = Admission("up", Limits("fixed", 10, requests=6000.0), 10, 100)
    admission.family("m").limiter.requests.take(6000.0, admission.time())
    slot = await asyncio.wait_for(enter(admission), 5)  # after 10 ms
    assert admission.in_flight == 1
    slot.release()


async def test_who_was_let_wait_and_turns_out_to_be_too_late_is_told_so_and_the_next_one_is_let_in() -> None:
    admission = fixed(1, 100)
    slot = await enter(admission)
    now = admission.time()
    late = asyncio.create_task(enter(admission, deadline=now + 50.0))
    stays = asyncio.create_task(enter(admission, deadline=now + 500.0))
    await turns()
    assert admission.waiting == 2
    admission.family("m").limiter.held_seconds = 100.0  # it was not known when they asked
    slot.release(complete=False)
    assert await admitted(stays)
    with pytest.raises(RateLimitError) as caught:
        await late
    assert caught.value.retry_after == 100.0
    limiter = admission.family("m").limiter
    assert (admission.in_flight, admission.waiting, limiter.in_flight, limiter.waiting) == (1, 0, 1, 0)


async def test_who_is_cancelled_in_the_moment_it_is_told_that_it_is_too_late_leaves_nothing_behind() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    admission = fixed(1, 100)
    slot = await enter(admission)
    late = asyncio.create_task(enter(admission, deadline=admission.time() + 50.0))
    await turns()
    admission.family("m").limiter.held_seconds = 100.0
    slot.release(complete=False)
    late.cancel()
    await turns()
    assert late.done()
    limiter = admission.family("m").limiter
    assert (admission.in_flight, admission.waiting, limiter.in_flight, limiter.waiting) == (0, 0, 0, 0)
    assert await enter(admission)
    del late
    gc.collect()
    assert complaints == []  # of an error that nobody was left to hear


async def test_a_timer_lets_in_one_after_the_other_and_is_gone_with_the_last() -> None:
    admission = Admission("up", Limits("fixed", 10, requests=6000.0), 10, 100)
    admission.family("m").limiter.requests.take(6000.0, admission.time())
    tasks = queue(admission, 3)
    await turns()
    assert admission._timer is not None
    slots = [await asyncio.wait_for(task, 5) for task in tasks]  # 10 ms each
    await turns()
    assert admission._timer is None
    assert admission.in_flight == len(slots) == 3


async def test_without_a_place_no_timer_is_set_and_a_closed_admission_has_none() -> None:
    full = fixed(1, 10)
    await enter(full)
    (waiting,) = queue(full, 1)
    await turns()
    assert full._timer is None
    waiting.cancel()
    admission = Admission("up", Limits("fixed", 10, requests=60.0), 10, 100)
    admission.family("m").limiter.requests.take(60.0, admission.time())
    (waiting,) = queue(admission, 1)
    await turns()
    timer = admission._timer
    assert timer is not None
    admission.close()
    assert timer.cancelled()
    waiting.cancel()
    await turns()
    assert admission._timer is None


# another target is left


async def test_who_would_wait_longer_than_it_may_is_refused_at_once_however_patient() -> None:
    admission = fixed(1, 100)
    await enter(admission)
    limiter = admission.family("m").limiter
    limiter.held_seconds = 2.0
    for patient in (True, False):
        with pytest.raises(RateLimitError, match="another target is left") as caught:
            await admission.enter(Ticket(patient=patient), "m", 100, None, longest=1.0)
        assert caught.value.retry_after == pytest.approx(4.0)  # a place, and an answer
    assert (admission.waiting, limiter.waiting) == (0, 0)
    waits = asyncio.create_task(admission.enter(Ticket(patient=True), "m", 100, None, longest=2.5))
    await turns()
    assert admission.waiting == 1
    waits.cancel()


async def test_who_meets_a_pause_goes_elsewhere_or_waits_as_it_may() -> None:
    admission = fixed(10, 100)
    limiter = admission.family("m").limiter
    limiter.pause.until = admission.time() + 20.0
    with pytest.raises(RateLimitError):
        await admission.enter(Ticket(), "m", 100, None, longest=1.0)
    assert admission.headroom("m") == -1.0
    waits = asyncio.create_task(enter(admission))
    await turns()
    assert (admission.waiting, admission.headroom("m")) == (1, -2.0)
    waits.cancel()


async def test_where_there_is_a_place_nobody_asks_how_long_it_may_wait() -> None:
    admission = fixed(1, 100)
    assert await admission.enter(Ticket(), "m", 100, None, longest=0.0)


# what a slot passes on


@pytest.mark.parametrize(("status", "limit"), [(429, 20), (503, 22), (504, 22), (529, 22)])
async def test_only_who_says_429_has_counted(status: int, limit: int) -> None:
    admission = Admission("up", Limits(), 100, 100)
    slots = [await enter(admission) for _ in range(21)]
    slots[-1].refused(status, {})
    assert admission.family("m").limiter.concurrency.limit == limit


async def test_a_slot_is_released_once_in_every_account() -> None:
    admission = Admission("up", Limits("fixed", 4, requests=60.0, tokens=6000.0), 4, 100)
    limiter = admission.family("m").limiter
    slot = await enter(admission)
    for _ in range(3):
        slot.release(answered=False)
    assert (admission.in_flight, limiter.in_flight, limiter.flying["interactive"]) == (0, 0, 0)
    assert (limiter.requests.level, limiter.tokens.level) == (60.0, 6000.0)


async def test_usage_settles_the_quota_and_teaches_the_estimate() -> None:
    admission = Admission("up", Limits("fixed", 4, tokens=6000.0), 4, 100)
    family = admission.family("m")
    slot = await enter(admission)
    guess = family.estimate.output
    slot.release(usage=(30, 1000))
    assert family.limiter.tokens.level == pytest.approx(6000 - 1030, abs=5)
    assert family.estimate.output > guess


async def test_a_replys_quota_is_followed_and_a_refusals_too() -> None:
    admission = Admission("up", Limits("fixed", 4), 4, 100)
    limiter = admission.family("m").limiter
    slot = await enter(admission)
    slot.answered({"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "40"}, None, whole=True)
    assert limiter.requests.limit == 60
    assert limiter.requests.level == pytest.approx(40, abs=1)
    refused = await enter(admission)
    refused.refused(
        429, {"x-ratelimit-remaining-requests": "0", "retry-after": "7", "x-ratelimit-reset-requests": "7s"}
    )
    assert limiter.requests.level == pytest.approx(0, abs=0.5)
    slot.release()
    refused.release(answered=False)
    (waiting,) = queue(admission, 1)
    await turns()
    assert not waiting.done()
    waiting.cancel()


async def test_a_limit_that_has_grown_lets_in_at_once_although_nobody_has_left() -> None:
    admission = Admission("up", Limits("adaptive", 2048), 2048, 1000)
    entering = [asyncio.create_task(admission.enter(Ticket(), "m", 10, None)) for _ in range(48)]
    await turns()
    first = [task.result() for task in entering if task.done()]
    assert len(first) == 32
    for slot in first[:16]:
        slot.answered({}, None, whole=False)  # a stream's first token: it keeps its place
    await turns()
    assert all(task.done() for task in entering)
