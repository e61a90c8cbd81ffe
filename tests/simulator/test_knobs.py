"""Knobs in a model's name."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.settings import SimulatorSettings
from app.simulator.knobs import KNOBS, Behaviour, behaviour

SETTINGS = SimulatorSettings.model_validate(
    {"latency": 0.3, "tokens": 7, "gap": 0.2, "first": 0.1, "fail": 0.5, "requests_per_minute": 9}
)
BY_SETTINGS = Behaviour(latency=0.3, tokens=7, gap=0.2, first=0.1, fail=0.5, rpm=9)


def knobs(model: str, max_tokens: int | None = None) -> Behaviour:
    return behaviour(SETTINGS, model, max_tokens)


@pytest.mark.parametrize("model", ["", "gpt-4o-mini", "west/sim", "latency=5", "a-tokens", "a-tokens=", "a-nope=5"])
def test_a_name_without_knobs_behaves_as_the_settings_say(model: str) -> None:
    assert knobs(model) == BY_SETTINGS


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("sim-latency=0.5", {"latency": 0.5}),
        ("sim-delay=0.5", {"latency": 0.5}),
        ("sim-tokens=20", {"tokens": 20}),
        ("sim-tokens=20.9", {"tokens": 20}),
        ("sim-gap=0", {"gap": 0.0}),
        ("sim-first=2", {"first": 2.0}),
        ("sim-status=503", {"status": 503}),
        ("sim-status=429-after=0.25", {"status": 429, "after": 0.25}),
        ("sim-quota=1", {"quota": True}),
        ("sim-quota=0", {"quota": False}),
        ("sim-fail=0.1", {"fail": 0.1}),
        ("sim-cut=3", {"cut": 3}),
        ("sim-cut=0", {"cut": 0}),
        ("sim-stall=3", {"stall": 3}),
        ("sim-garbage=3", {"garbage": 3}),
        ("sim-html=1", {"html": True}),
        ("sim-rpm=60", {"rpm": 60}),
        ("sim-tpm=30000", {"tpm": 30_000}),
        ("sim-slots=4", {"slots": 4}),
        ("sim-busy=4-after=2", {"busy": 4, "after": 2.0}),
        ("west/any-name-latency=0.5-tokens=20-gap=0.05", {"latency": 0.5, "tokens": 20, "gap": 0.05}),
        ("sim-tokens=1-tokens=2", {"tokens": 2}),
        ("sim-tokens=5-nope=1-gap=1", {"tokens": 5, "gap": 1.0}),
    ],
)
def test_a_knob_wins_over_the_settings_and_leaves_the_rest(model: str, change: dict[str, object]) -> None:
    assert knobs(model) == replace(BY_SETTINGS, **change)  # type: ignore[arg-type]


def test_every_documented_knob_turns_something() -> None:
    turned = {name for name in KNOBS if knobs(f"sim-{name}=99") != BY_SETTINGS}
    assert turned == set(KNOBS)
    assert set(KNOBS) == {field.name for field in fields(Behaviour)}


@pytest.mark.parametrize(("max_tokens", "tokens"), [(None, 7), (3, 3), (100, 7)])
def test_the_requests_own_bound_can_only_shorten_the_answer(max_tokens: int | None, tokens: int) -> None:
    assert knobs("sim", max_tokens).tokens == tokens
    assert knobs("sim-tokens=7", max_tokens).tokens == tokens


@given(st.integers(0, 10**6), st.sampled_from(["tokens", "cut", "stall", "garbage", "rpm", "tpm", "slots", "busy"]))
def test_a_whole_number_stays_whole(number: int, name: str) -> None:
    value = getattr(knobs(f"sim-{name}={number}"), name)
    assert (value, type(value)) == (number, int)


def test_what_no_upstream_could_do_is_bounded() -> None:
    assert knobs("sim-status=99").status == knobs("sim-status=7000").status == 400
    assert knobs("sim-tokens=999999999").tokens == 1_000_000


@given(st.text(max_size=20))
def test_no_name_breaks_the_reading(name: str) -> None:
    assert knobs(f"{name}-tokens=3").tokens == 3
