"""A model's name resolves to an alias, else to UPSTREAM/MODEL, else to the first upstream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.policies.routing import Router, Target
from app.settings import GatewaySettings

ALIASES = {
    "fast": (Target("openai", "gpt-4o-mini"), Target("west", "org/gpt-4o-mini")),
    "west/alias": (Target("openai", "other"),),
}


@pytest.fixture
def router() -> Router:
    return Router(ALIASES, ("openai", "west"))


def test_an_alias_is_its_targets_in_their_order(router: Router) -> None:
    assert router.route("fast") == ALIASES["fast"]


def test_an_alias_wins_over_an_upstreams_name(router: Router) -> None:
    assert router.route("west/alias") == ALIASES["west/alias"]


@pytest.mark.parametrize(
    ("model", "target"),
    [
        ("west/gpt-4o", Target("west", "gpt-4o")),
        ("west/meta/llama", Target("west", "meta/llama")),
        ("openai/fast", Target("openai", "fast")),
        ("gpt-4o", Target("openai", "gpt-4o")),
        ("meta/llama", Target("openai", "meta/llama")),
        ("west", Target("openai", "west")),
        ("west/", Target("openai", "west/")),
        ("/west", Target("openai", "/west")),
        ("Fast", Target("openai", "Fast")),
    ],
)
def test_a_name_that_is_no_alias_goes_to_the_upstream_it_names_or_to_the_first(
    router: Router, model: str, target: Target
) -> None:
    assert router.route(model) == (target,)


def test_a_call_without_a_model_may_belong_to_any_upstream(router: Router) -> None:
    assert router.route(None) == (Target("openai", None), Target("west", None))


@given(st.text(max_size=12))
def test_every_name_has_a_target_at_a_known_upstream(model: str) -> None:
    targets = Router(ALIASES, ("openai", "west")).route(model)
    assert targets
    assert all(target.upstream in {"openai", "west"} for target in targets)


def test_a_router_is_made_from_settings() -> None:
    settings = GatewaySettings.model_validate(
        {
            "upstreams": {"west": {"kind": "simulator"}, "openai": {"kind": "simulator"}},
            "models": {"fast": {"targets": ["openai/gpt-4o-mini", "west/org/gpt-4o-mini"]}},
        }
    )
    router = Router.from_settings(settings)
    assert router.route("fast") == ALIASES["fast"]
    assert router.route("unknown") == (Target("west", "unknown"),)
