"""What a call will cost is guessed from what the last ones cost."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.policies.estimate import TokenEstimate


def test_before_anything_is_known_four_bytes_are_a_token_and_an_answer_has_two_hundred() -> None:
    assert TokenEstimate().of(400, None) == 300


def test_what_the_request_allows_bounds_the_answer() -> None:
    estimate = TokenEstimate()
    assert estimate.of(400, 16) == 116
    assert estimate.of(400, 100_000) == 300


def test_where_no_answer_is_to_come_none_is_reserved() -> None:
    assert TokenEstimate().of(400, 0) == 100


def test_a_call_costs_something() -> None:
    assert TokenEstimate().of(0, 0) == 1.0


def test_usage_teaches_both_halves() -> None:
    estimate = TokenEstimate()
    for _ in range(200):
        estimate.learn(1000, 500, 40)
    assert estimate.of(2000, None) == pytest.approx(1040, rel=0.01)


def test_one_odd_call_moves_it_only_a_little() -> None:
    estimate = TokenEstimate()
    estimate.learn(400, 100, 2200)
    assert estimate.of(400, None) == pytest.approx(400)


def test_an_embedding_teaches_nothing_of_answers() -> None:
    estimate = TokenEstimate()
    estimate.learn(400, 200, 0)
    assert estimate.output == 200
    assert estimate.tokens_a_byte == pytest.approx(0.2625)


def test_a_request_without_bytes_teaches_nothing_of_prompts() -> None:
    estimate = TokenEstimate()
    estimate.learn(0, 200, 100)
    assert estimate.tokens_a_byte == 0.25
    assert estimate.output == pytest.approx(195)


def test_what_is_beyond_sixty_four_kilobytes_is_pictures_and_neither_counted_nor_learnt_from() -> None:
    estimate = TokenEstimate()
    assert estimate.of(65_536, 0) == estimate.of(2_000_000, 0) == 65_536 / 4
    estimate.learn(65_537, 1_000_000, 0)
    assert estimate.tokens_a_byte == 0.25
    estimate.learn(65_536, 65_536, 0)
    assert estimate.tokens_a_byte == pytest.approx(0.2875)


def test_a_large_requests_answer_teaches_as_any_other() -> None:
    estimate = TokenEstimate()
    estimate.learn(2_000_000, 1000, 400)
    assert estimate.tokens_a_byte == 0.25
    assert estimate.output == pytest.approx(210)


_TOKENS = st.floats(0, 1e7)


@given(
    st.lists(st.tuples(st.integers(0, 10**8), _TOKENS, _TOKENS), max_size=40),
    st.integers(0, 10**8),
    st.none() | st.integers(0, 10**7),
)
def test_an_estimate_is_always_at_least_one_and_no_more_answer_than_allowed(
    usages: list[tuple[int, float, float]], size: int, most: int | None
) -> None:
    estimate = TokenEstimate()
    for one in usages:
        estimate.learn(*one)
    found = estimate.of(size, most)
    assert 1.0 <= found < math.inf
    if most is not None:
        assert found <= max(1.0, min(size, 65_536) * estimate.tokens_a_byte + most)
