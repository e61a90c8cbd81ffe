"""Claims: one runs, the others wait for its reply; whatever happens, bounded and never another caller's."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import IdempotencyInProgressError, InvalidRequestError
from app.policies.lru import ENTRY_BYTES
from app.services.idempotency import MemoryStore, StoredReply, key_of

MOST = 16 * ENTRY_BYTES
TTL = 100.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def reply(body: bytes = b"{}") -> StoredReply:
    return StoredReply(200, ((b"content-type", b"application/json"),), body)


def store(clock: Clock | None = None) -> MemoryStore:
    return MemoryStore(MOST, TTL, clock or Clock())


async def test_the_first_runs_the_next_is_told_to_wait_and_then_gets_the_reply() -> None:
    kept = store()
    assert await kept.claim(b"k", b"r") is None
    with pytest.raises(IdempotencyInProgressError) as caught:
        await kept.claim(b"k", b"r")
    assert (caught.value.status, caught.value.code) == (409, "idempotency_in_progress")
    told = caught.value.headers()
    assert told["x-should-retry"] == "true"
    assert 0 < int(told["retry-after-ms"]) <= 1000
    await kept.keep(b"k", b"r", reply())
    assert await kept.claim(b"k", b"r") == reply()
    assert kept.running == 0


async def test_another_request_under_the_same_key_is_refused_during_and_after_the_first() -> None:
    kept = store()
    await kept.claim(b"k", b"r")
    for _ in range(2):
        with pytest.raises(InvalidRequestError) as caught:
            await kept.claim(b"k", b"other")
        assert caught.value.param == "Idempotency-Key"
        if kept.running:
            await kept.keep(b"k", b"r", reply())


async def test_a_released_key_is_free_for_any_request() -> None:
    kept = store()
    await kept.claim(b"k", b"r")
    await kept.release(b"k")
    assert await kept.claim(b"k", b"other") is None


async def test_a_reply_is_forgotten_after_its_time_and_one_that_is_too_large_at_once() -> None:
    clock = Clock()
    kept = store(clock)
    await kept.claim(b"k", b"r")
    await kept.keep(b"k", b"r", reply())
    clock.now = TTL - 1
    assert await kept.claim(b"k", b"r") == reply()
    clock.now = TTL
    assert await kept.claim(b"k", b"r") is None
    await kept.keep(b"k", b"r", reply(b"x" * (kept.largest + 1)))
    assert await kept.claim(b"k", b"r") is None


def test_a_key_is_its_callers_own_and_holds_no_secret() -> None:
    keys = {key_of(secret, key) for secret in (b"", b"Bearer a", b"Bearer b") for key in (b"1", b"2")}
    assert len(keys) == 6
    assert all(len(key) == 32 for key in keys)


steps = st.lists(
    st.tuples(
        st.sampled_from(["claim", "keep", "release"]),
        st.sampled_from([b"k1", b"k2", b"k3", b"k4", b"k5"]),
        st.sampled_from([b"r1", b"r2"]),
        st.integers(0, MOST // 3),
        st.floats(0, 30),
    ),
    max_size=60,
)


@given(steps)
async def test_whatever_happens_each_key_runs_once_at_a_time_and_the_bytes_stay_bounded(
    taken: list[tuple[str, bytes, bytes, int, float]],
) -> None:
    clock = Clock()
    kept = store(clock)
    running: dict[bytes, bytes] = {}
    done: dict[bytes, tuple[bytes, Any, float]] = {}
    for step, key, request, size, later in taken:
        clock.now += later
        if step == "claim":
            if key in running:
                expected = IdempotencyInProgressError if running[key] == request else InvalidRequestError
                with pytest.raises(expected):
                    await kept.claim(key, request)
                continue
            try:
                found = await kept.claim(key, request)
            except InvalidRequestError:
                assert done[key][0] != request
                assert clock.now - done[key][2] < TTL
                continue
            if found is None:
                running[key] = request
            else:
                assert (request, found) == done[key][:2]
                assert clock.now - done[key][2] < TTL
        elif key in running:
            was = running.pop(key)
            done.pop(key, None)
            if step == "release":
                await kept.release(key)
            else:
                done[key] = (was, reply(b"x" * size), clock.now)
                await kept.keep(key, was, done[key][1])
        assert kept.running == len(running)
        assert kept._done.held <= MOST
