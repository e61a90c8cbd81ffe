"""Who may call, and with which models."""

import hashlib

import pytest

from app.errors import AuthenticationError, PermissionDeniedError
from app.services.keys import ANYONE, Caller, Keyring
from app.settings import KeySettings

SECRET = "sk-frontend-schlüssel"


def key(**fields: object) -> KeySettings:
    return KeySettings.model_validate(fields)


@pytest.fixture
def ring() -> Keyring:
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    return Keyring({"plain": key(key="sk-plain"), "hashed": key(key_sha256=digest.upper(), models=["fast"])})


def test_without_keys_anyone_may_call_with_any_header() -> None:
    open_ring = Keyring({})
    assert open_ring.is_open
    assert open_ring.identify(None) is ANYONE
    assert open_ring.identify("Bearer whatever") is ANYONE
    assert open_ring.identify("nonsense") is ANYONE


def test_a_key_is_known_by_itself_or_by_its_hash(ring: Keyring) -> None:
    assert not ring.is_open
    assert ring.identify("Bearer sk-plain") == Caller("plain")
    assert ring.identify(f"Bearer {SECRET}") == Caller("hashed", frozenset({"fast"}))


@pytest.mark.parametrize(
    "authorization", ["bearer sk-plain", "BEARER sk-plain", "Bearer  sk-plain", "Bearer sk-plain "]
)
def test_the_schemes_case_and_spaces_around_the_key_do_not_matter(ring: Keyring, authorization: str) -> None:
    assert ring.identify(authorization).name == "plain"


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "sk-plain", "Basic sk-plain"])
def test_without_a_bearer_key_the_caller_is_told_how_to_send_one(ring: Keyring, authorization: str | None) -> None:
    with pytest.raises(AuthenticationError, match="Authorization: Bearer"):
        ring.identify(authorization)


@pytest.mark.parametrize("secret", ["sk-plai", "sk-plainn", "SK-PLAIN", "x", "\N{SNOWMAN}", "\xff", " "])
def test_an_unknown_key_is_refused_and_not_repeated(ring: Keyring, secret: str) -> None:
    with pytest.raises(AuthenticationError) as caught:
        ring.identify(f"Bearer {secret}")
    assert caught.value.status == 401
    if secret.strip():
        assert secret not in caught.value.message.replace("Bearer KEY", "").split()


def test_a_keys_hash_is_not_the_key(ring: Keyring) -> None:
    with pytest.raises(AuthenticationError):
        ring.identify(f"Bearer {hashlib.sha256(b'sk-plain').hexdigest()}")


def test_a_key_may_ask_for_its_own_models_only(ring: Keyring) -> None:
    caller = ring.identify(f"Bearer {SECRET}")
    caller.check("fast")
    for model in ("west/gpt-4o", None):
        with pytest.raises(PermissionDeniedError) as caught:
            caller.check(model)
        assert (caught.value.status, caught.value.param) == (403, "model")


def test_a_key_without_a_list_may_ask_for_any_model(ring: Keyring) -> None:
    caller = ring.identify("Bearer sk-plain")
    caller.check("anything")
    caller.check(None)


def test_a_key_with_an_empty_list_may_ask_for_none() -> None:
    caller = Keyring({"none": key(key="sk", models=[])}).identify("Bearer sk")
    with pytest.raises(PermissionDeniedError):
        caller.check("fast")


def test_each_key_makes_browser_tokens_under_its_own_digest(ring: Keyring) -> None:
    makers = {caller.name: digest for digest, caller in ring.makers()}
    assert makers == {
        "plain": hashlib.sha256(b"sk-plain").digest(),
        "hashed": hashlib.sha256(SECRET.encode()).digest(),
    }


def test_without_keys_anyone_makes_browser_tokens_under_none() -> None:
    assert list(Keyring({}).makers()) == [(b"", ANYONE)]


def test_a_key_holds_no_browser_token(ring: Keyring) -> None:
    caller = ring.identify("Bearer sk-plain")
    assert (caller.holder, caller.origins, caller.is_counted) == ("", None, False)
