"""Model families of one upstream: limits of their own, connections in common, interactive first across them."""

import asyncio
from unittest import mock

import pytest

from app.errors import RateLimitError
from app.policies.lanes import Lane, Ticket
from app.policies.limits import Limits
from app.upstream.admission import Admission, Slot
from tests.upstream.test_admission import admitted, enter, queue, turns


def ask(admission: Admission, model: str, lane: Lane = "interactive") -> "asyncio.Task[Slot]":
    return asyncio.create_task(admission.enter(Ticket(lane=lane, patient=True), model, 10, None))


async def test_each_family_has_limits_of_its_own_and_all_share_the_connections() -> None:
    admission = Admission("up", Limits("fixed", 2), 3, 100)
    one = [ask(admission, "one") for _ in range(3)]
    other = [ask(admission, "other") for _ in range(3)]
    await turns()
    assert [task.done() for task in one] == [True, True, False]
    assert [task.done() for task in other] == [True, False, False]
    assert (admission.in_flight, admission.waiting) == (3, 3)
    (await one[0]).release()
    await turns()
    assert sum(task.done() for task in one + other) == 4
    assert admission.in_flight == 3
    for task in one + other:
        task.cancel()


async def test_across_families_interactive_goes_before_batch() -> None:
    admission = Admission("up", Limits("fixed", 2), 1, 100)
    slot = await admission.enter(Ticket(), "one", 10, None)
    batch = ask(admission, "one", "batch")
    await turns()
    interactive = ask(admission, "other")
    await turns()
    slot.release()
    let_in = await admitted(interactive)
    assert not batch.done()
    let_in.release()
    assert await admitted(batch)


async def test_of_two_families_the_one_with_least_in_flight_is_next() -> None:
    admission = Admission("up", Limits("fixed", 10), 2, 100)
    slots = [await admission.enter(Ticket(), name, 10, None) for name in ("one", "one")]
    first, second = ask(admission, "one"), ask(admission, "other")
    await turns()
    slots[0].release()
    assert await admitted(second)
    assert not first.done()
    first.cancel()


async def test_headroom_is_the_free_share_and_below_nothing_while_calls_wait() -> None:
    admission = Admission("up", Limits("fixed", 4), 8, 100)
    assert admission.headroom("m") == 1.0
    for _ in range(3):
        await enter(admission)
    assert (admission.headroom("m"), admission.headroom("other")) == (0.25, 1.0)
    await enter(admission)
    (waiting,) = queue(admission, 1)
    await turns()
    assert admission.headroom("m") == -0.25
    waiting.cancel()


async def test_a_familys_batch_does_not_go_before_another_familys_interactive_call() -> None:
    admission = Admission("up", Limits("fixed", 10), 3, 100)
    slots = [await admission.enter(Ticket(), name, 10, None) for name in ("other", "filler", "filler")]
    batch = ask(admission, "one", "batch")
    both = [ask(admission, "one"), ask(admission, "other")]
    await turns()
    slots[1].release()
    slots[2].release()
    await turns()
    assert [task.done() for task in both] == [True, True]
    assert not batch.done()


async def expecting(admission: Admission, people: int) -> None:
    """For a minute so many interactive calls have been in flight at once."""
    for second in range(60):
        for change in (admission.pool.went, admission.pool.came_back):
            for _ in range(people):
                change("interactive", admission.time() - 60.0 + second)
    await turns()


async def test_people_of_one_model_find_a_place_beside_a_batch_of_another() -> None:
    admission = Admission("up", Limits("fixed", 16), 16, 100)
    await expecting(admission, 3)
    batch = [ask(admission, "big", "batch") for _ in range(64)]
    await turns()
    assert sum(task.done() for task in batch) == 13
    people = [ask(admission, "other") for _ in range(3)]
    await turns()
    assert [task.done() for task in people] == [True] * 3
    (await people[0]).release()
    await turns()
    assert sum(task.done() for task in batch) == 13  # the next of them is expected
    (await batch[0]).release()
    await turns()
    assert sum(task.done() for task in batch) == 14
    for task in batch:
        task.cancel()


async def test_who_cannot_have_a_connection_before_its_deadline_is_told_so_at_once() -> None:
    admission = Admission("up", Limits("fixed", 16), 2, 100)
    for _ in range(2):
        await admission.enter(Ticket(lane="batch"), "big", 10, None)
    admission.family("other").limiter.held_seconds = 4.0
    with pytest.raises(RateLimitError) as caught:
        await admission.enter(Ticket(deadline=admission.time() + 1.0), "other", 10, None)
    assert caught.value.retry_after == pytest.approx(6.0)


async def test_a_batch_that_leaves_places_for_people_does_not_keep_the_loop_busy() -> None:
    admission = Admission("up", Limits("fixed", 10), 4, 100)
    await expecting(admission, 2)
    with mock.patch.object(admission, "let_go", wraps=admission.let_go) as woken:
        batch = [ask(admission, "big", "batch") for _ in range(3)]
        await asyncio.sleep(0.1)
        assert [task.done() for task in batch] == [True, True, False]
        assert woken.call_count <= 10


async def test_a_call_that_is_let_go_is_expected_once() -> None:
    admission = Admission("up", Limits("fixed", 100), 100, 100)
    limiter = admission.family("m").limiter
    limiter.pause.until = admission.time() + 0.02
    people = [ask(admission, "m") for _ in range(20)]
    await asyncio.sleep(0.1)
    assert all(task.done() for task in people)
    assert admission.pool._demand._peak == 20


async def test_a_call_that_is_cancelled_as_it_is_let_go_gives_its_place_back_in_the_pool_too() -> None:
    admission = Admission("up", Limits("fixed", 10), 1, 100)
    slot = await enter(admission)
    for lane in ("batch", "interactive"):
        waiting = ask(admission, "other", lane)
        await turns()
        slot.release()
        waiting.cancel()
        await turns()
        assert (admission.in_flight, admission.waiting, admission.pool._interactive) == (0, 0, 0)
        slot = await enter(admission)
