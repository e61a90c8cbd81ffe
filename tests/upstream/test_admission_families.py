"""Model families of one upstream: limits of their own, connections in common, interactive first across them."""

import asyncio

from app.policies.lanes import Lane, Ticket
from app.policies.limiter import Limits
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
