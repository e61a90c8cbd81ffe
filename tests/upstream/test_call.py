"""The call stack as a whole: what is retried, waited for, sent elsewhere, and who is left alone for it."""

import asyncio

import pytest

from app.errors import DeadlineError, GatewayError, UpstreamUnreachableError
from app.upstream.types import Call
from tests.upstream.scene import AGES, CHUNK, DONE, ERROR, Raw, Stage, chat, failing, play, whole


def now() -> float:
    return asyncio.get_running_loop().time()


async def status_of(stage: Stage, call: Call) -> int | str:
    """Returns: The reply's status, or the error's code."""
    try:
        reply = await stage.stack.call(call)
    except GatewayError as error:
        return error.code or error.type
    return reply.status


async def read(stage: Stage, call: Call) -> str | None:
    """Reads a stream to its end. Returns: The code of the error that it ended with."""
    failure = None
    reply = await stage.stack.call(call)
    assert reply.events is not None
    try:
        async for _ in reply.events:
            pass
    except GatewayError as error:
        failure = error
    await reply.aclose(failure)
    return failure.code if failure is not None else None


# slow is not ill


@pytest.mark.parametrize("stream", [False, True])
def test_healthy_targets_that_are_slow_are_never_given_up_as_overdue(*, stream: bool) -> None:
    async def slow(number: int, body: bytes) -> Raw:
        await asyncio.sleep(12)
        return Raw(pieces=[(0, CHUNK), (0, DONE)]) if stream else Raw()

    async def scene() -> None:
        stage = Stage(slow, slow)
        for _ in range(5):
            calls = [chat(stream=stream) for _ in range(8)]
            for reply in await asyncio.gather(*map(stage.stack.call, calls)):
                await reply.aclose()
            assert [(call.trace.attempts, call.trace.upstream) for call in calls] == [(1, "u0")] * 8
        assert (stage.sent, stage.breaker(), stage.in_flight) == ([40, 0], "closed", [0, 0])

    play(scene)


def test_a_target_that_was_fast_and_falls_silent_is_given_up_for_another() -> None:
    async def falls_silent(number: int, body: bytes) -> Raw:
        await asyncio.sleep(0.1 if number <= 20 else AGES)
        return Raw()

    async def scene() -> None:
        stage = Stage(falls_silent, whole())
        for _ in range(20):
            await stage.stack.call(chat())
        began = now()
        replies = await asyncio.gather(*(stage.stack.call(chat()) for _ in range(8)))
        assert [reply.status for reply in replies] == [200] * 8
        assert now() - began < 1.5
        assert (stage.breaker(), stage.sent[1], stage.in_flight) == ("open", 8, [0, 0])

    play(scene)


# one client's clock is its own affair


@pytest.mark.parametrize("targets", [1, 2])
def test_one_clients_short_timeout_harms_nobody(targets: int) -> None:
    async def stream(number: int, body: bytes) -> Raw:
        return Raw(pieces=[(0.05, CHUNK), *[(0.2, CHUNK)] * 30, (0, DONE)])

    async def scene() -> None:
        stage = Stage(*[stream] * targets, max_in_flight=256)
        warm = await asyncio.gather(*(read(stage, chat(stream=True)) for _ in range(25)))
        assert set(warm) == {None}
        cut = await asyncio.gather(*(read(stage, chat(stream=True, timeout=2.0)) for _ in range(45)))
        assert set(cut) == {"deadline_exceeded"}
        assert stage.breaker() == "closed"
        assert await read(stage, chat(stream=True)) is None
        assert stage.in_flight == [0] * targets

    play(scene)


def test_timeouts_before_anything_is_usual_harm_nobody_either() -> None:
    async def scene() -> None:
        stage = Stage(whole(5.0))
        late = await asyncio.gather(*(status_of(stage, chat(timeout=1.0)) for _ in range(60)))
        assert set(late) <= {"deadline_exceeded", "rate_limit_exceeded"}
        assert stage.breaker() == "closed"
        assert await status_of(stage, chat()) == 200

    play(scene)


def test_a_call_that_is_late_is_not_sent_to_a_second_target() -> None:
    async def scene() -> None:
        stage = Stage(whole(AGES), whole(AGES))
        for n in range(20):
            call = chat(timeout=0.1 + n / 700)
            with pytest.raises(DeadlineError):
                await stage.stack.call(call)
            assert (call.trace.attempts, call.trace.upstream) == (1, "u0")
        assert stage.sent[1] == 0

    play(scene)


def test_a_call_that_is_late_is_not_sent_to_a_second_target_by_uvloop_either() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def scene() -> int:
        stage = Stage(whole(AGES), whole(AGES))
        for n in range(60):
            with pytest.raises(DeadlineError):
                await stage.stack.call(chat(timeout=0.01 + n * 0.00013))
        return stage.sent[1]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(scene()) == 0


# a target that asks for a pause


@pytest.mark.parametrize("strategy", ["fallback", "balance"])
def test_a_target_that_pauses_is_gone_round(strategy: str) -> None:
    async def scene() -> None:
        stage = Stage(failing(429, {"retry-after": "20"}), whole(), strategy=strategy)  # type: ignore[arg-type]
        for _ in range(6):
            call, began = chat(), now()
            reply = await stage.stack.call(call)
            assert (reply.status, call.trace.upstream) == (200, "u1")
            assert now() - began < 0.1
            assert call.trace.queue_ms == 0.0
        assert stage.sent[0] <= 2  # the second refusal in a row is a matter of time

    play(scene)


def test_the_last_target_is_waited_for_as_long_as_it_pauses() -> None:
    async def at_first(number: int, body: bytes) -> Raw:
        return Raw(429, ERROR, {"retry-after": "20"}) if number <= 1 else Raw()

    async def scene() -> None:
        stage = Stage(at_first)
        began = now()
        assert await status_of(stage, chat()) == 200
        assert 20 <= now() - began < 21

    play(scene)


# and in the end


def test_whatever_becomes_of_calls_nothing_stays_in_flight() -> None:

    async def mixed(number: int, body: bytes) -> Raw:
        await asyncio.sleep(number % 7)
        if number % 3 == 0:
            raise UpstreamUnreachableError("x")
        return Raw((200, 429, 500, 400)[number % 4], ERROR)

    async def scene() -> None:
        stage = Stage(mixed, mixed)
        tasks = [asyncio.create_task(status_of(stage, chat(timeout=1.0 + n % 20))) for n in range(80)]
        await asyncio.sleep(3.0)
        for task in tasks[::3]:
            task.cancel()
        await asyncio.wait(tasks)
        assert stage.in_flight == [0, 0]
        assert [up.admission.waiting for up in stage.ups] == [0, 0]
        assert stage.all_closed()

    play(scene)
