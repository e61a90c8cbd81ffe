"""The admission point: never more in flight than the limit, first come first served, nothing lost on the way."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import QueueFullError
from app.policies.lanes import Ticket
from app.policies.limits import Limits
from app.upstream.admission import Admission, Slot


def fixed(limit: int, max_queue: int) -> Admission:
    return Admission("up", Limits("fixed", limit), limit, max_queue)


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
    sent: dict[int, float] = field(default_factory=dict)

    async def _enter(self, number: int, patient: bool) -> Slot:
        ticket = Ticket(patient=patient)
        slot = await self.admission.enter(ticket, "m", 100, None)
        assert ticket.sent_at is not None
        self.sent[number] = (
            ticket.sent_at
        )  # when it was woken: in which order tasks run afterwards is the loop's affair
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
        in_order = [run.sent[number] for number in sorted(run.sent)]
        assert in_order == sorted(in_order)

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


async def test_somebody_who_is_cancelled_in_the_same_moment_gives_back_what_the_quota_lent_it() -> None:
    admission = Admission("up", Limits("fixed", 1, requests=60.0), 1, 5)
    slot = await enter(admission)
    (gone,) = queue(admission, 1)
    await turns()
    limiter = admission.family("m").limiter
    slot.release()
    assert limiter.requests.level == pytest.approx(58, abs=0.5)
    gone.cancel()
    await turns()
    assert gone.cancelled()
    assert limiter.requests.level == pytest.approx(59, abs=0.5)
    assert (admission.in_flight, admission.waiting, limiter.in_flight, limiter.waiting) == (0, 0, 0, 0)


async def test_all_who_were_woken_and_cancelled_in_the_same_moment_hand_it_on_to_the_one_who_stays() -> None:
    admission = fixed(2, 50)
    slots = [await enter(admission) for _ in range(2)]
    *gone, stays = queue(admission, 9)
    await turns()
    for slot in slots:
        slot.release()
    for task in gone:
        task.cancel()
    let_in = await admitted(stays)
    assert (admission.in_flight, admission.waiting) == (1, 0)
    let_in.release()
    assert admission.family("m").limiter.in_flight == 0
