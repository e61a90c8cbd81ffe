"""Identical calls: what is shared and kept, with whom, for how long, and what becomes of it when callers go."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import DeadlineError, IdleTimeoutError, QueueFullError
from app.services.cache import Cache
from app.settings import Cacheable, CacheSettings
from app.upstream.types import Call, Reply, Trace
from app.wire.endpoints import BY_PATH, CHAT, EMBEDDINGS, FANOUT_PATHS

BODY = b'{"model":"m","input":"x"}'
Outcome = Reply | BaseException


class Upstream:
    """Answers when it is told to; counts."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled = 0
        self._answers: list[asyncio.Future[Reply]] = []

    async def send(self, call: Call) -> Reply:
        self.calls.append(call)
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        call.trace.upstream, call.trace.attempts = "west", call.trace.attempts + 1
        try:
            return await answer
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def answer(self, outcome: Outcome, place: int = -1) -> None:
        if isinstance(outcome, Reply):
            self._answers[place].set_result(outcome)
        else:
            self._answers[place].set_exception(outcome)


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def cache(upstream: Upstream) -> AsyncIterator[Cache]:
    made = cached(upstream.send)
    yield made
    await made.aclose()


def cached(send: Callable[[Call], Coroutine[Any, Any, Reply]], clock: Clock | None = None, **settings: object) -> Cache:
    return Cache(send, CacheSettings.model_validate({"enabled": True, "ttl": 60, **settings}), clock or Clock())


def ask(body: bytes = BODY, **fields: Any) -> Call:
    return Call(EMBEDDINGS, EMBEDDINGS.path, body, model="m", **fields)


def ok(body: bytes = b"{}", **headers: str) -> Reply:
    return Reply(200, {"content-type": "application/json", **headers}, body)


def begin(cache: Cache, call: Call) -> "asyncio.Task[Reply]":
    return asyncio.create_task(cache.call(call))


async def turn() -> None:
    """Lets everything that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_identical_calls_at_the_same_time_are_one_and_those_that_follow_none(
    cache: Cache, upstream: Upstream
) -> None:
    calls = [ask() for _ in range(5)]
    tasks = [begin(cache, call) for call in calls]
    await turn()
    reply = ok(b"[1]", **{"openai-model": "m", "x-ratelimit-remaining-requests": "7", "retry-after": "1"})
    upstream.answer(reply)
    assert await asyncio.gather(*tasks) == [reply] * 5
    later = ask()
    again = await cache.call(later)
    assert len(upstream.calls) == 1
    assert (again.status, again.body) == (200, b"[1]")
    assert set(again.headers) == {"content-type", "openai-model"}, "what was true of the moment is not repeated"
    seen = [(call.trace.cache, call.trace.attempts, call.trace.upstream) for call in [*calls, later]]
    assert seen == [("miss", 1, "west"), *[("shared", 0, "west")] * 4, ("hit", 0, "west")]


@pytest.mark.parametrize(
    "other",
    [
        ask(BODY + b" "),
        ask(caller="else"),
        ask(headers={"openai-beta": "assistants=v2"}),
        replace(ask(), model="n"),
        Call(BY_PATH["/moderations"], "/moderations", BODY, model="m", cache=True),
    ],
    ids=["body", "caller", "header", "model", "path"],
)
async def test_calls_that_differ_share_nothing(cache: Cache, upstream: Upstream, other: Call) -> None:
    for call in (ask(), other):
        task = begin(cache, call)
        await turn()
        upstream.answer(ok())
        await task
    assert len(upstream.calls) == 2


async def test_trace_headers_make_no_difference_and_keys_share_if_they_may(upstream: Upstream) -> None:
    cache = cached(upstream.send, across_keys=True)
    first = begin(cache, ask(caller="a", headers={"traceparent": "1"}))
    second = begin(cache, ask(caller="b", headers={"traceparent": "2", "tracestate": "x"}))
    await turn()
    upstream.answer(ok())
    assert await first == await second
    assert len(upstream.calls) == 1


async def test_only_what_is_asked_for_is_cached(cache: Cache, upstream: Upstream) -> None:
    chat = Call(CHAT, CHAT.path, BODY, model="m")
    uncached = [chat, ask(cache=False), ask(stream=True, cache=True)]
    speech = BY_PATH["/audio/speech"]
    uncached.append(Call(speech, speech.path, BODY, model="m", cache=True))
    for call in [*uncached, *uncached]:
        task = begin(cache, replace(call, trace=(trace := Trace())))
        await turn()
        upstream.answer(ok())
        await task
        assert trace.cache == ""
    assert len(upstream.calls) == 2 * len(uncached)
    wanted = [replace(chat, cache=True, trace=Trace()) for _ in range(2)]
    tasks = [begin(cache, call) for call in wanted]
    await turn()
    upstream.answer(ok())
    await asyncio.gather(*tasks)
    assert [call.trace.cache for call in wanted] == ["miss", "shared"]


def test_what_may_be_cached_is_what_has_a_json_body_and_a_json_reply() -> None:
    assert {f"/{name}" for name in get_args(Cacheable)} == FANOUT_PATHS


def test_switched_off_it_hands_out_the_way_to_the_upstream_itself() -> None:
    marker: Any = object()
    cache = cached(lambda _: marker, enabled=False)
    assert cache.call(ask()) is marker


async def test_a_refusal_is_shared_but_not_kept(cache: Cache, upstream: Upstream) -> None:
    for outcome in (Reply(429, {}, b"{}"), Reply(201, {}, b"{}"), QueueFullError("full"), IdleTimeoutError("silent")):
        before = len(upstream.calls)
        tasks = [begin(cache, ask()) for _ in range(2)]
        await turn()
        upstream.answer(outcome)
        assert await asyncio.gather(*tasks, return_exceptions=True) == [outcome, outcome]
        assert len(upstream.calls) == before + 1


async def test_whoever_goes_harms_nobody_and_the_last_one_takes_the_call_along(
    cache: Cache, upstream: Upstream
) -> None:
    leader, follower = begin(cache, ask()), begin(cache, ask())
    await turn()
    leader.cancel()
    await turn()
    assert upstream.cancelled == 0
    late = begin(cache, ask())
    await turn()
    upstream.answer(ok(b"[2]"))
    assert (await follower).body == (await late).body == b"[2]"
    assert len(upstream.calls) == 1

    others = [begin(cache, ask(b"other")) for _ in range(3)]
    await turn()
    for task in others:
        task.cancel()
    await asyncio.wait(others)
    assert upstream.cancelled == 1
    anew = begin(cache, ask(b"other"))
    await turn()
    upstream.answer(ok(b"[3]"))
    assert (await anew).body == b"[3]"


async def test_a_follower_has_a_deadline_of_its_own(cache: Cache, upstream: Upstream) -> None:
    leader, follower = begin(cache, ask()), begin(cache, ask(timeout=0.01))
    with pytest.raises(DeadlineError, match=r"0\.01 seconds"):
        await follower
    upstream.answer(ok())
    assert (await leader).ok


async def test_the_leaders_deadline_is_not_its_followers(cache: Cache, upstream: Upstream) -> None:
    calls = [ask(timeout=1), ask(timeout=50), ask()]
    leader, *followers = [begin(cache, call) for call in calls]
    await turn()
    upstream.answer(DeadlineError("late"))
    with pytest.raises(DeadlineError):
        await leader
    await turn()
    assert len(upstream.calls) == 2, "one follower leads, the other follows it"
    assert 0 < (upstream.calls[1].timeout or 0) < 50
    upstream.answer(ok(b"[4]"))
    assert [(await follower).body for follower in followers] == [b"[4]"] * 2
    assert sorted(call.trace.cache for call in calls) == ["miss", "miss", "shared"]


async def test_who_is_let_down_twice_goes_alone(cache: Cache, upstream: Upstream) -> None:
    tasks = [begin(cache, ask()) for _ in range(4)]
    for _ in range(2):
        await turn()
        upstream.answer(DeadlineError("late"))
    await turn()
    assert len(upstream.calls) == 4
    for place in (2, 3):
        upstream.answer(ok(), place)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found] == [DeadlineError, DeadlineError, Reply, Reply]


async def test_a_call_that_may_wait_does_not_share_one_that_may_be_refused(cache: Cache, upstream: Upstream) -> None:
    tasks = [begin(cache, ask()), begin(cache, ask(patient=True))]
    await turn()
    assert len(upstream.calls) == 2
    upstream.answer(QueueFullError("full"), 0)
    upstream.answer(ok(), 1)
    assert [type(one) for one in await asyncio.gather(*tasks, return_exceptions=True)] == [QueueFullError, Reply]
    assert (await cache.call(ask())).ok, "what is kept is kept for both"


async def test_at_the_end_nothing_is_left_running(upstream: Upstream) -> None:
    cache = cached(upstream.send)
    tasks = [begin(cache, ask()), begin(cache, ask(b"other"))]
    await turn()
    await cache.aclose()
    await asyncio.wait(tasks)
    assert upstream.cancelled == 2


requests = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from([b"1", b"2"]), st.floats(0, 40)), max_size=30
)


@given(requests, st.booleans())
def test_a_hit_is_never_too_old_nor_anothers(asked: list[tuple[str, bytes, float]], across: bool) -> None:
    clock = Clock()
    made: dict[bytes, tuple[str, float]] = {}

    async def send(call: Call) -> Reply:
        body = b"%d" % len(made)
        made[body] = call.caller, clock.now
        return ok(body)

    async def run() -> None:
        cache = cached(send, clock, across_keys=across)
        for who, body, later in asked:
            clock.now += later
            call = ask(body, caller=who)
            reply = await cache.call(call)
            maker, at = made[reply.body]
            assert clock.now - at < 60
            assert across or maker == who

    asyncio.run(run())
