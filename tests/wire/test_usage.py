"""Token counts, added up field by field."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.wire.usage import Usage, add

_COUNTS = st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": st.integers(0, 10**9),
        "total_tokens": st.integers(0, 10**9),
        "details": st.dictionaries(st.sampled_from(["cached", "audio"]), st.integers(0, 10**9)),
    },
)


def total(*parts: Usage) -> Usage:
    found: Usage = {}
    for part in parts:
        add(found, part)
    return found


@given(st.lists(_COUNTS, max_size=6))
def test_every_number_is_the_sum_of_its_parts(parts: list[dict[str, Any]]) -> None:
    found = total(*parts)
    for name in ("prompt_tokens", "total_tokens"):
        assert found.get(name, 0) == sum(part.get(name, 0) for part in parts)
    for name in ("cached", "audio"):
        assert found.get("details", {}).get(name, 0) == sum(part.get("details", {}).get(name, 0) for part in parts)


@given(st.lists(_COUNTS, min_size=1, max_size=6))
def test_adding_changes_no_part(parts: list[dict[str, Any]]) -> None:
    before = repr(parts)
    total(*parts)
    total(*parts)
    assert repr(parts) == before


@pytest.mark.parametrize("value", [None, "5", True, [1]])
def test_what_is_no_number_is_passed_over(value: object) -> None:
    assert total({"a": value, "b": 1}) == {"b": 1}
    assert total({"a": 2}, {"a": value}) == {"a": 2}


def test_a_number_and_an_object_of_one_name_do_not_break_the_sum() -> None:
    assert total({"a": 1}, {"a": {"b": 2}}) == {"a": 1}


def test_costs_in_fractions_are_added_too() -> None:
    assert total({"cost": 0.25}, {"cost": 1}) == {"cost": 1.25}
