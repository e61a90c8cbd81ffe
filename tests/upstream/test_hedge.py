"""A second target for a call that is slower than usual: asked once, and whatever happens, nothing is left behind."""

import asyncio
from unittest import mock

import pytest

from app.errors import DeadlineError, GatewayError
from app.policies.budget import HedgeBudget, RetryBudget
from tests.upstream.scene import AGES, CHUNK, DONE, ERROR, Answer, Raw, Stage, chat, failing, play, whole

WARM = 40


def then(seconds: float, status: int = 200, *, stream: bool = False) -> Answer:
    """Fast until its usual time is known, then as slow as this, with this status."""

    async def answer(number: int, body: bytes) -> Raw:
        warm = number <= WARM
        await asyncio.sleep(0.01 if warm else seconds)
        if not warm and status != 200:
            return Raw(status, ERROR)
        return Raw(pieces=[(0, CHUNK), (0, DONE)]) if stream else Raw()

    return answer


async def warmed(*answers: Answer, stream: bool = False) -> Stage:
    stage = Stage(*answers, strategy="hedge")
    for _ in range(WARM):
        await (await stage.stack.call(chat(stream=stream))).aclose()
    assert stage.sent == [WARM, *[0] * (len(answers) - 1)]
    return stage


def test_a_call_that_is_slower_than_usual_is_asked_of_a_second_target_and_the_loser_is_dismissed() -> None:
    async def scene() -> None:
        stage = await warmed(then(AGES), whole(0.02))
        call = chat()
        assert (await stage.stack.call(call)).status == 200
        assert (call.trace.attempts, call.trace.upstream) == (2, "u1")
        assert stage.sent == [WARM + 1, 1]
        assert stage.in_flight == [0, 0]
        assert stage.clients[0].live == 0
        assert stage.breaker() == "closed"  # a loser says nothing of its target's health

    play(scene)


def test_the_first_target_may_win_after_all() -> None:
    async def scene() -> None:
        stage = await warmed(then(0.1), whole(AGES))
        call = chat()
        await stage.stack.call(call)
        assert (call.trace.attempts, call.trace.upstream) == (2, "u0")
        assert stage.in_flight == [0, 0]

    play(scene)


def test_before_anything_is_usual_nobody_else_is_asked() -> None:
    async def scene() -> None:
        stage = Stage(whole(60.0), whole(), strategy="hedge")
        await stage.stack.call(chat())
        assert stage.sent == [1, 0]

    play(scene)


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_a_first_target_that_fails_once_the_second_is_out_does_not_have_it_asked_again(status: int) -> None:
    async def scene() -> None:
        stage = await warmed(then(0.2, status), whole(1.0))
        call = chat()
        assert (await stage.stack.call(call)).status == 200
        assert stage.sent[1] == 1
        assert status != 401 or stage.sent[0] == WARM + 1  # what may pass is tried again there meanwhile
        assert (call.trace.attempts, call.trace.upstream) == (sum(stage.sent) - WARM, "u1")
        assert stage.in_flight == [0, 0]

    play(scene)


def test_a_first_target_that_fails_at_once_is_followed_by_the_rest_as_in_fallback() -> None:
    async def scene() -> None:
        stage = Stage(failing(401), failing(401), whole(), strategy="hedge")
        call = chat()
        assert (await stage.stack.call(call)).status == 200
        assert (stage.sent, call.trace.attempts, call.trace.upstream) == ([1, 1, 1], 3, "u2")

    play(scene)


def test_what_no_other_target_could_cure_is_the_answer() -> None:
    async def scene() -> None:
        stage = Stage(failing(400), whole(), strategy="hedge")
        assert (await stage.stack.call(chat())).status == 400
        assert stage.sent == [1, 0]

    play(scene)


def test_if_all_fail_the_last_ones_word_is_passed_on_and_each_was_asked_once() -> None:
    async def scene() -> None:
        stage = await warmed(then(0.2, 401), failing(404), failing(403))
        reply = await stage.stack.call(chat())
        assert reply.status == 401  # the last to be heard
        assert stage.sent == [WARM + 1, 1, 1]
        assert stage.in_flight == [0, 0, 0]

    play(scene)


def test_a_second_target_that_fails_leaves_the_first_its_time() -> None:
    async def scene() -> None:
        stage = await warmed(then(5.0), failing(401))
        assert (await stage.stack.call(chat())).status == 200
        assert stage.sent == [WARM + 1, 1]

    play(scene)


@pytest.mark.parametrize("empty", ["hedges", "retries"])
def test_an_empty_budget_hedges_nothing_but_a_failure_is_still_cured(empty: str) -> None:
    async def scene() -> None:
        stage = await warmed(then(5.0, 401), whole())
        with mock.patch.object(HedgeBudget if empty == "hedges" else RetryBudget, "spend", return_value=False):
            task = asyncio.create_task(stage.stack.call(chat()))
            await asyncio.sleep(4.0)
        assert stage.sent[1] == 0
        assert (await task).status == 200
        assert stage.sent == [WARM + 1, 1]

    play(scene)


def test_a_calls_deadline_ends_both() -> None:
    async def scene() -> None:
        stage = await warmed(then(AGES), whole(AGES))
        with pytest.raises(GatewayError) as caught:
            await stage.stack.call(chat(timeout=3.0))
        assert caught.value.code == "deadline_exceeded"
        assert stage.sent == [WARM + 1, 1]
        assert stage.in_flight == [0, 0]
        assert [client.live for client in stage.clients] == [0, 0]

    play(scene)


def test_a_call_that_is_late_is_not_sent_to_a_second_target() -> None:
    async def scene() -> None:
        stage = Stage(whole(AGES), whole(AGES), strategy="hedge")
        for _ in range(20):
            with pytest.raises(DeadlineError):
                await stage.stack.call(chat(timeout=0.1))
        assert stage.sent == [20, 0]

    play(scene)


# hanging up


async def cancelled_after(loop_turns: int, first: Answer, second: Answer, *, twice: int | None = None) -> bool:
    """Hangs up so many turns of the loop after the second target was asked. Returns: Whether the call was over by then.

    Args: twice: Turns after which it is cancelled once more.
    """
    stage = await warmed(first, second, stream=True)
    task = asyncio.create_task(stage.stack.call(chat(stream=True)))
    await stage.clients[1].asked.wait()
    for _ in range(loop_turns):
        await asyncio.sleep(0)
    over = task.done()
    task.cancel()
    if twice is not None:
        for _ in range(twice):
            await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        await task.result().aclose()
    await asyncio.sleep(0.5)
    assert stage.in_flight == [0, 0], loop_turns
    assert [client.live for client in stage.clients] == [0, 0]
    assert stage.all_closed()
    assert [up.admission.pool.waiting for up in stage.ups] == [{"interactive": 0, "batch": 0}] * 2
    return over


async def streams_at_once(number: int, body: bytes) -> Raw:
    await asyncio.sleep(0)
    return Raw(pieces=[(0, CHUNK), (AGES, CHUNK)])


async def falls_asleep(number: int, body: bytes) -> Raw:
    await asyncio.sleep(0.01)
    return Raw(pieces=[(0 if number <= WARM else AGES, CHUNK), (0, DONE)])


@pytest.mark.parametrize("first", [then(AGES, stream=True), falls_asleep], ids=["before headers", "after headers"])
def test_whoever_hangs_up_at_any_moment_leaves_nothing_in_flight(first: Answer) -> None:
    async def scene() -> None:
        over = [await cancelled_after(turns, first, streams_at_once) for turns in range(40)]
        assert not over[0]
        assert over[-1]  # every moment was tried

    play(scene)


@pytest.mark.parametrize("apart", [0, 1, 2, 3])
def test_whoever_is_cancelled_twice_leaves_nothing_in_flight_either(apart: int) -> None:
    """By its client and by its deadline, say."""

    async def scene() -> None:
        for turns in range(40):
            await cancelled_after(turns, then(AGES, stream=True), streams_at_once, twice=apart)

    play(scene)


def test_a_loser_that_answers_in_the_same_moment_gives_its_reply_back() -> None:
    """Both streams begin in one turn of the loop: one of them goes to the client."""

    async def scene() -> None:
        for late in range(8):

            async def second(number: int, body: bytes, late: int = late) -> Raw:
                await asyncio.sleep(0.1 - 0.015)
                for _ in range(late):
                    await asyncio.sleep(0)
                return Raw(pieces=[(0, CHUNK), (0, DONE)])

            stage = await warmed(then(0.1, stream=True), second, stream=True)
            reply = await stage.stack.call(chat(stream=True))
            assert sum(stage.in_flight) == 1
            await reply.aclose()
            assert stage.in_flight == [0, 0]
            assert stage.all_closed()

    play(scene)
