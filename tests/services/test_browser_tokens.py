"""A token allows what its maker may do now and what was asked for then, until its time is over or its maker gone."""

import asyncio
import hashlib
from typing import Any

import pytest

from app.errors import (
    AuthenticationError,
    GatewayError,
    InvalidRequestError,
    PermissionDeniedError,
    QuotaSpentError,
    TokenExpiredError,
)
from app.services.browser_tokens import BrowserTokens
from app.services.keys import ANYONE, Caller, Keyring
from app.settings import KeySettings
from app.store.database import Database
from app.wire.browser_tokens import Create

SECRET = b"s" * 32
Names = frozenset[str]
FRONTEND = Caller("frontend", frozenset({"fast", "cheap"}))
OTHER = Caller("other")


class Scene:
    """A gateway's tokens, with a clock that stands until it is moved."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = 1_000_000.9
        self.tokens = self.gateway()

    def gateway(self, secret: bytes = SECRET, **changed: dict[str, Any] | None) -> BrowserTokens:
        """Args: changed: Keys that are not as they were; None: gone."""
        keys = {"frontend": {"key": "sk-frontend", "models": ["fast", "cheap"]}, "other": {"key": "sk-other"}}
        left = {name: key for name, key in {**keys, **changed}.items() if key is not None}
        ring = Keyring({name: KeySettings.model_validate(key) for name, key in left.items()})
        return BrowserTokens(self.database, secret, ring, lambda: self.now)

    async def make(self, maker: Caller = FRONTEND, **asked: Any) -> str:
        made = await self.tokens.create(maker, Create(**asked))
        assert isinstance(made["token"], str)
        return made["token"]


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(database)


def refusal(tokens: BrowserTokens, token: str) -> str | None:
    with pytest.raises(GatewayError) as caught:
        tokens.identify(token)
    assert caught.value.status == 401
    assert token not in caught.value.message
    return caught.value.code


async def test_the_reply_says_what_the_token_allows_in_whole_seconds(scene: Scene) -> None:
    asked = Create(ttl_seconds=60, models=["fast"], max_requests=3, origins=["https://a.example"])
    made = await scene.tokens.create(FRONTEND, asked)
    assert made.pop("token").startswith("sgb_")
    assert made.pop("id").startswith("bt_")
    assert made == {
        "object": "browser_token",
        "created_at": 1_000_000,
        "expires_at": 1_000_060,
        "models": ("fast",),
        "max_requests": 3,
        "origins": ("https://a.example",),
    }
    plain = await scene.tokens.create(FRONTEND, Create())
    assert (plain["models"], plain["max_requests"], plain["origins"]) == (None, None, None)
    assert plain["expires_at"] - plain["created_at"] == 600


async def test_a_token_calls_in_its_makers_name_with_an_id_of_its_own(scene: Scene) -> None:
    one, other = await scene.make(), await scene.make(origins=["https://a.example"], max_requests=1)
    first, second = scene.tokens.identify(one), scene.tokens.identify(other)
    assert (first.name, first.models, first.origins, first.is_counted) == ("frontend", FRONTEND.models, None, False)
    assert (second.name, second.origins, second.is_counted) == ("frontend", Names({"https://a.example"}), True)
    assert first.holder
    assert second.holder
    assert first.holder != second.holder


async def test_a_token_is_good_until_its_time_is_over_and_then_says_so(scene: Scene) -> None:
    token = await scene.make(ttl_seconds=60)
    scene.now = 1_000_059.999
    scene.tokens.identify(token)
    scene.now = 1_000_060
    with pytest.raises(TokenExpiredError):
        scene.tokens.identify(token)
    assert refusal(scene.tokens, token) == "token_expired"


async def test_a_replica_whose_clock_is_behind_takes_it_too(scene: Scene) -> None:
    token = await scene.make()
    scene.now -= 5
    scene.tokens.identify(token)


async def test_an_expired_token_of_nobody_is_only_unknown(scene: Scene) -> None:
    token = await scene.make(ttl_seconds=1)
    scene.now += 100
    assert refusal(scene.gateway(frontend=None), token) == "invalid_api_key"


async def test_a_token_dies_with_its_key_and_comes_back_with_it(scene: Scene) -> None:
    token = await scene.make()
    assert refusal(scene.gateway(frontend=None), token) == "invalid_api_key"
    assert refusal(scene.gateway(frontend={"key": "sk-new"}), token) == "invalid_api_key"
    scene.gateway(other=None).identify(token)
    hashed = hashlib.sha256(b"sk-frontend").hexdigest()  # the same key, told in the other way
    assert scene.gateway(frontend={"key_sha256": hashed}).identify(token).name == "frontend"


async def test_another_gateway_with_another_secret_knows_nothing_of_it(scene: Scene) -> None:
    assert refusal(scene.gateway(b"t" * 32), await scene.make()) == "invalid_api_key"


async def test_a_key_under_anothers_name_does_not_inherit_his_tokens(scene: Scene) -> None:
    token = await scene.make()
    swapped = scene.gateway(frontend={"key": "sk-other"}, other={"key": "sk-frontend"})
    assert refusal(swapped, token) == "invalid_api_key"


async def test_a_token_may_use_what_it_names_and_its_key_may_still_use(scene: Scene) -> None:
    token = await scene.make(models=["fast", "cheap"])
    assert scene.tokens.identify(token).models == Names({"fast", "cheap"})
    assert scene.gateway(frontend={"key": "sk-frontend", "models": ["fast", "new"]}).identify(token).models == Names(
        {"fast"}
    )
    assert scene.gateway(frontend={"key": "sk-frontend", "models": ["new"]}).identify(token).models == Names()
    assert scene.gateway(frontend={"key": "sk-frontend"}).identify(token).models == Names({"fast", "cheap"})


async def test_a_token_without_models_may_use_what_its_key_may(scene: Scene) -> None:
    token = await scene.make()
    assert scene.gateway(frontend={"key": "sk-frontend", "models": ["new"]}).identify(token).models == Names({"new"})
    assert scene.tokens.identify(await scene.make(OTHER)).models is None
    assert scene.tokens.identify(await scene.make(OTHER, models=["any"])).models == Names({"any"})


async def test_no_key_hands_out_more_than_it_has(scene: Scene) -> None:
    with pytest.raises(PermissionDeniedError, match="'dear'") as caught:
        await scene.make(models=["fast", "dear"])
    assert (caught.value.status, caught.value.param) == (403, "models")


async def test_without_keys_anyone_makes_tokens_which_die_when_keys_are_set(scene: Scene) -> None:
    nobodys = scene.gateway(frontend=None, other=None)
    token = (await nobodys.create(ANYONE, Create(models=["fast"])))["token"]
    found = nobodys.identify(token)
    assert (found.name, found.models) == ("open", Names({"fast"}))
    assert found.holder
    assert refusal(scene.tokens, token) == "invalid_api_key"
    assert refusal(scene.gateway(open={"key": "sk"}), token) == "invalid_api_key"
    assert refusal(nobodys, await scene.make()) == "invalid_api_key"


async def test_so_many_requests_and_no_more_however_many_are_made_at_once(scene: Scene) -> None:
    who = scene.tokens.identify(await scene.make(max_requests=7))
    here, there = scene.tokens, scene.gateway()
    tries = [tokens.spend(who, 1) for _ in range(20) for tokens in (here, there)]
    refused = [error for error in await asyncio.gather(*tries, return_exceptions=True) if error is not None]
    assert len(refused) == 33
    assert {type(error) for error in refused} == {QuotaSpentError}


async def test_calls_that_come_together_are_refused_together(scene: Scene) -> None:
    who = scene.tokens.identify(await scene.make(max_requests=5))
    with pytest.raises(QuotaSpentError, match="6 are needed") as caught:
        await scene.tokens.spend(who, 6)
    assert (caught.value.status, caught.value.type, caught.value.code) == (
        429,
        "insufficient_quota",
        "insufficient_quota",
    )
    assert caught.value.headers() == {"x-should-retry": "false"}
    await scene.tokens.spend(who, 5)


async def test_to_look_at_a_token_costs_nothing_and_whoever_is_not_counted_may_go_on(scene: Scene) -> None:
    token = await scene.make(max_requests=1)
    for _ in range(3):
        who = scene.tokens.identify(token)
    await scene.tokens.spend(who, 1)
    free = scene.tokens.identify(await scene.make())
    for caller in (free, FRONTEND, ANYONE):
        await scene.tokens.spend(caller, 1_000_000)


async def test_a_token_too_long_for_a_header_is_not_made_and_leaves_nothing(scene: Scene) -> None:
    with pytest.raises(InvalidRequestError):
        await scene.make(OTHER, models=["m" * 5000], max_requests=1)
    assert (
        await scene.database.run(lambda c: c.exec_driver_sql("SELECT count(*) FROM browser_tokens").scalar_one()) == 0
    )


@pytest.mark.parametrize("token", ["sgb_", "sgb_x", "sgb_a.b.c", "sgb_" + "." * 9000])
def test_nonsense_is_an_unknown_key(scene: Scene, token: str) -> None:
    with pytest.raises(AuthenticationError, match="not known"):
        scene.tokens.identify(token)
