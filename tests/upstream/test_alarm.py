"""The alarm interrupts a wait that is due, that wait only, and never hides somebody else's cancellation."""

import asyncio

import pytest

from app.upstream.alarm import Alarm

NEVER = 3600.0


async def wait(alarm: Alarm, what: asyncio.Event, seconds: float) -> None:
    alarm.arm(asyncio.get_running_loop().time() + seconds)
    try:
        await what.wait()
    except asyncio.CancelledError:
        alarm.raise_if_rang()
        raise
    finally:
        alarm.disarm()


async def test_a_wait_that_is_due_is_interrupted_and_the_task_goes_on() -> None:
    alarm = Alarm()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await wait(alarm, asyncio.Event(), 0.01)
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0
    alarm.close()


async def test_a_wait_that_ends_in_time_is_not_interrupted_and_neither_is_what_comes_after() -> None:
    alarm, come = Alarm(), asyncio.Event()
    come.set()
    await wait(alarm, come, 0.01)
    await asyncio.sleep(0.03)  # the timer fires into nobody's wait
    with pytest.raises(TimeoutError):
        await wait(alarm, asyncio.Event(), 0.01)
    alarm.close()


async def test_a_later_wait_with_an_earlier_time_is_interrupted_at_that_time() -> None:
    alarm, come = Alarm(), asyncio.Event()
    come.set()
    await wait(alarm, come, NEVER)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wait(alarm, asyncio.Event(), 0.01), 5)
    alarm.close()


async def test_a_later_wait_with_a_later_time_is_not_interrupted_at_the_earlier_one() -> None:
    alarm, come = Alarm(), asyncio.Event()
    come.set()
    await wait(alarm, come, 0.01)
    soon = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, soon.set)
    await wait(alarm, soon, NEVER)
    alarm.close()


async def test_a_cancellation_from_outside_stays_one_even_when_the_alarm_rings_too() -> None:
    alarm = Alarm()
    task = asyncio.create_task(wait(alarm, asyncio.Event(), NEVER))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    both = asyncio.create_task(wait(alarm, asyncio.Event(), 0.0))
    await asyncio.sleep(0)
    both.cancel()
    with pytest.raises(asyncio.CancelledError):
        await both
    alarm.close()


async def test_a_closed_alarm_leaves_no_timer_behind() -> None:
    alarm, come = Alarm(), asyncio.Event()
    come.set()
    await wait(alarm, come, 0.02)
    alarm.close()
    await asyncio.sleep(0.04)
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0
