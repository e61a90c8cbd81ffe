"""The admission point: never more in flight than the limit, first come first served, nothing lost on the way."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import QueueFullError, RateLimitError
from app.policies.lanes import Ticket
from app.policies.limiter import Limits
from app.upstream.admission import Admission, Slot
from app.upstream.family import family_of


def fixed(limit: int, max_queue: int) -> Admission:
    return Admission(Limits("fixed", limit), limit, max_queue)


async def enter(admission: Admission, *, patient: bool = False, deadline: float = float("inf")) -> Slot:
    return await admission.enter(Ticket(patient=patient, deadline=deadline), "m", 100, None)


async def turns(count: int = 3) -> None:
    """Lets every task that can run do so; a wake-up takes a turn or two of the loop, never time."""
    for _ in range(count):
        await asyncio.sleep(0)


async def admitted(task: "asyncio.Task[Slot]") -> Slot:
    """The slot of a task that must have it by now; a queue that is stuck fails instead of hanging."""
    await turns()
    assert task.done()
    return task.result()


def queue(admission: Admission, count: int) -> list["asyncio.Task[Slot]"]:
    return [asyncio.create_task(enter(admission, patient=True)) for _ in range(count)]


@dataclass
class Run:
    """A run of random operations against one admission point, with what must hold after each."""

    admission: Admission
    tasks: list["asyncio.Task[Slot]"] = field(default_factory=list)
    admitted: list[int] = field(default_factory=list)

    async def _enter(self, number: int, patient: bool) -> Slot:
        slot = await enter(self.admission, patient=patient)
        self.admitted.append(number)
        return slot

    def held(self) -> list[Slot]:
        done = [task for task in self.tasks if task.done() and not task.cancelled() and task.exception() is None]
        return [task.result() for task in done if task.result()._held]

    async def do(self, operation: str, pick: int) -> None:
        held = self.held()
        pending = [task for task in self.tasks if not task.done()]
        if operation in {"enter", "patient"}:
            entering = self._enter(len(self.tasks), operation == "patient")
            self.tasks.append(asyncio.create_task(entering))
        elif operation == "release" and held:
            held[pick % len(held)].release()
        elif operation == "release twice" and held:
            slot = held[pick % len(held)]
            slot.release()
            slot.release()
        elif operation == "cancel" and pending:
            pending[pick % len(pending)].cancel()
        elif operation == "turn":
            await turns(1)
        assert 0 <= self.admission.in_flight <= self.admission.most
        assert self.admission.waiting >= 0

    async def settle(self) -> None:
        await turns(6)
        assert self.admission.in_flight == len(self.held())
        assert self.admission.waiting == sum(not task.done() for task in self.tasks)
        assert self.admission.waiting == 0 or self.admission.in_flight == self.admission.most

    async def finish(self) -> None:
        """Everybody leaves: whoever still waits gets a slot in turn, and in the end all slots are back."""
        while held := self.held():
            for slot in held:
                slot.release()
            await self.settle()
        assert all(task.done() for task in self.tasks)
        for ended in await asyncio.gather(*self.tasks, return_exceptions=True):
            assert isinstance(ended, Slot | QueueFullError | asyncio.CancelledError)
        assert (self.admission.in_flight, self.admission.waiting) == (0, 0)
        assert self.admission.peak <= self.admission.most


_OPERATION = st.sampled_from(["enter", "patient", "release", "release twice", "cancel", "turn"])
_OPERATIONS = st.lists(st.tuples(_OPERATION, st.integers(0, 20)), max_size=40)


@given(_OPERATIONS, st.integers(1, 3), st.integers(0, 4))
def test_in_flight_never_exceeds_the_limit_and_no_slot_is_lost(
    operations: list[tuple[str, int]], limit: int, max_queue: int
) -> None:
    async def check() -> None:
        run = Run(fixed(limit, max_queue))
        for operation, pick in operations:
            await run.do(operation, pick)
        await run.settle()
        await run.finish()
        again = [await enter(run.admission) for _ in range(limit)]
        assert run.admission.in_flight == limit == len(again)

    asyncio.run(check())


@given(_OPERATIONS, st.integers(1, 3))
def test_who_comes_first_is_served_first(operations: list[tuple[str, int]], limit: int) -> None:
    async def check() -> None:
        run = Run(fixed(limit, 1000))
        for operation, pick in operations:
            await run.do(operation, pick)
        await run.settle()
        await run.finish()
        assert run.admitted == sorted(run.admitted)

    asyncio.run(check())


async def test_a_slot_is_released_once_however_often_it_is_asked() -> None:
    admission = fixed(2, 0)
    slot, _other = await enter(admission), await enter(admission)
    slot.release()
    slot.release()
    assert admission.in_flight == 1
    await enter(admission)
    with pytest.raises(QueueFullError):
        await enter(admission)


async def test_a_free_slot_is_taken_without_waiting() -> None:
    admission = fixed(1, 0)
    entering = enter(admission)
    with pytest.raises(StopIteration):
        entering.send(None)
    assert admission.in_flight == 1


async def test_who_waits_is_let_in_by_a_release_and_by_nothing_else() -> None:
    admission = fixed(1, 5)
    slot = await enter(admission)
    first, second = queue(admission, 2)
    await turns()
    assert (admission.in_flight, admission.waiting) == (1, 2)
    slot.release()
    let_in = await admitted(first)
    assert (admission.in_flight, admission.waiting, second.done()) == (1, 1, False)
    let_in.release()
    await admitted(second)


async def test_somebody_new_does_not_overtake_who_was_woken() -> None:
    admission = fixed(1, 5)
    slot = await enter(admission)
    (waiter,) = queue(admission, 1)
    await turns()
    slot.release()
    (newcomer,) = queue(admission, 1)
    let_in = await admitted(waiter)
    assert not newcomer.done()
    let_in.release()
    await admitted(newcomer)


async def test_a_waiter_that_is_cancelled_leaves_the_queue_and_the_next_one_moves_up() -> None:
    admission = fixed(1, 1)
    slot = await enter(admission)
    gone = asyncio.create_task(enter(admission))
    await turns()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert admission.waiting == 0
    stays = asyncio.create_task(enter(admission))
    await turns()
    slot.release()
    await admitted(stays)
    assert admission.in_flight == 1


async def test_a_waiter_that_is_cancelled_just_as_its_turn_comes_hands_it_on() -> None:
    admission = fixed(1, 5)
    slot = await enter(admission)
    gone, stays = queue(admission, 2)
    await turns()
    slot.release()
    gone.cancel()
    await admitted(stays)
    assert gone.cancelled()
    assert (admission.in_flight, admission.waiting) == (1, 0)


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
    admission = Admission(Limits("fixed", 10, requests=6000.0), 10, 100)
    admission.family("m").limiter.requests.take(6000.0, admission.time())
    slot = await asyncio.wait_for(enter(admission), 5)  # after 10 ms
    assert admission.in_flight == 1
    slot.release()


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
