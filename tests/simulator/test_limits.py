"""Token buckets on a clock of the test's own, and what is announced of them."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.simulator import limits
from app.simulator.limits import Bucket, Limits, duration
from app.simulator.refusal import RefusedError


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def call(
    limiter: Limits, model: str = "m", *, rpm: int | None = None, tpm: int | None = None, cost: int = 1
) -> dict[str, str]:
    per_minute = {name: limit for name, limit in (("requests", rpm), ("tokens", tpm)) if limit is not None}
    return limiter.charge(model, per_minute, {"requests": 1, "tokens": cost})


def refusal(
    limiter: Limits, model: str = "m", *, rpm: int | None = None, tpm: int | None = None, cost: int = 1
) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        call(limiter, model, rpm=rpm, tpm=tpm, cost=cost)
    return caught.value


def announced(headers: dict[str, str], what: str) -> tuple[str, ...]:
    return tuple(headers[f"x-ratelimit-{field}-{what}"] for field in ("limit", "remaining", "reset"))


def test_a_full_bucket_takes_its_size_at_once_and_then_one_for_each_refill(clock: Clock) -> None:
    limiter = Limits(clock)
    for left, reset in (("2", "20s"), ("1", "40s"), ("0", "1m0s")):
        assert announced(call(limiter, rpm=3), "requests") == ("3", left, reset)
    refusal(limiter, rpm=3)
    clock.now += 19.999
    refusal(limiter, rpm=3)
    clock.now += 0.001
    call(limiter, rpm=3)
    refusal(limiter, rpm=3)


def test_a_refusal_says_when_the_call_fits_and_then_it_does(clock: Clock) -> None:
    limiter = Limits(clock)
    for _ in range(10):
        call(limiter, rpm=10)
    clock.now += 1.7
    no = refusal(limiter, rpm=10)
    assert (no.status, no.headers["retry-after"], no.headers["retry-after-ms"]) == (429, "5", "4300")
    assert announced(no.headers, "requests") == ("10", "0", "58.3s")
    error = msgspec.json.decode(no.body)["error"]
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert "Please try again in 4.3s" in error["message"]
    clock.now += 4.3
    call(limiter, rpm=10)


def test_tokens_are_charged_by_the_call(clock: Clock) -> None:
    limiter = Limits(clock)
    assert announced(call(limiter, tpm=6000, cost=2500), "tokens") == ("6000", "3500", "25s")
    no = refusal(limiter, tpm=6000, cost=3600)
    assert (no.headers["retry-after"], no.headers["retry-after-ms"]) == ("1", "1000")
    assert msgspec.json.decode(no.body)["error"]["type"] == "tokens"
    clock.now += 1
    call(limiter, tpm=6000, cost=3600)


def test_what_never_fits_is_not_told_to_wait(clock: Clock) -> None:
    limiter = Limits(clock)
    for no in (refusal(limiter, rpm=0), refusal(limiter, "n", tpm=100, cost=101)):
        assert not {"retry-after", "retry-after-ms"} & set(no.headers)
        assert "too large" in msgspec.json.decode(no.body)["error"]["message"]


def test_of_two_limits_a_refused_call_is_charged_neither_and_waits_for_the_slower(clock: Clock) -> None:
    limiter = Limits(clock)
    call(limiter, rpm=60, tpm=60, cost=50)
    no = refusal(limiter, rpm=60, tpm=60, cost=30)
    assert announced(no.headers, "requests") == ("60", "59", "1s")
    assert announced(no.headers, "tokens") == ("60", "10", "50s")
    assert no.headers["retry-after"] == "20"


def test_models_have_buckets_of_their_own_and_a_model_without_a_limit_announces_none(clock: Clock) -> None:
    limiter = Limits(clock)
    call(limiter, "one", rpm=1)
    call(limiter, "two", rpm=1)
    refusal(limiter, "one", rpm=1)
    assert call(limiter, "three") == {}


def test_the_model_asked_for_longest_ago_is_forgotten_first(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_MODELS", 2)
    limiter = Limits(clock)
    call(limiter, "one", rpm=1)
    call(limiter, "two", rpm=1)
    refusal(limiter, "one", rpm=1)
    call(limiter, "three", rpm=1)
    refusal(limiter, "one", rpm=1)
    call(limiter, "two", rpm=1)


@given(
    st.integers(1, 10_000),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 500)), max_size=60),
)
def test_never_more_than_the_size_and_the_refill_and_what_a_refusal_promises_holds(
    size: int, calls: list[tuple[float, int]]
) -> None:
    now, taken = 0.0, 0
    bucket = Bucket(size, now)
    for pause, amount in calls:
        now += pause
        wait = bucket.wait(amount, now)
        if math.isinf(wait):
            assert amount > size
            continue
        now += wait
        assert bucket.wait(amount, now) == 0
        bucket.take(amount, now)
        taken += amount
        assert taken <= size + now * size / 60 + 1e-6
        assert 0 <= bucket.left(now) <= size
        assert bucket.until_full(now) <= 60 + 1e-6
    assert bucket.left(now + 60) == size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.012, "12ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (1.25, "1.25s"),
        (10, "10s"),
        (59.9999, "1m0s"),
        (72.5, "1m12.5s"),
        (360, "6m0s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
