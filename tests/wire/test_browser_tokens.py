"""How a browser token is asked for, and what becomes of a text that only looks like one."""

import base64
import json
from typing import Any

import jwt
import msgspec
import pytest

from app.errors import AuthenticationError, InvalidRequestError
from app.wire.browser_tokens import Claims, Create, maker_of, read_create, sign, verified

KEY = b"k" * 64
CLAIMS = Claims(sub="frontend", jti="bt_1", iat=1000, exp=1600, models=("fast",), origins=("https://a.example",))


def read(**fields: object) -> Create:
    return read_create(json.dumps(fields).encode())


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_everything_is_optional(body: bytes) -> None:
    assert read_create(body) == Create(ttl_seconds=600, models=None, max_requests=None, origins=None)


def test_what_is_asked_for_twice_is_meant_once() -> None:
    asked = read(models=["b", "a", "b"], origins=["https://A.example/", "https://a.example:443"])
    assert (asked.models, asked.origins) == (["b", "a"], ["https://a.example"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"ttl_seconds": 0}, "ttl_seconds"),
        ({"ttl_seconds": 86_401}, "ttl_seconds"),
        ({"ttl_seconds": "600"}, "ttl_seconds"),
        ({"ttl_seconds": 1.5}, "ttl_seconds"),
        ({"max_requests": 0}, "max_requests"),
        ({"max_requests": 1_000_001}, "max_requests"),
        ({"max_requests": True}, "max_requests"),
        ({"models": []}, "models"),
        ({"models": [""]}, "models[0]"),
        ({"models": "fast"}, "models"),
        ({"models": [7]}, "models[0]"),
        ({"origins": []}, "origins"),
        ({"origins": ["https://good.example", "nonsense"]}, "origins[1]"),
        ({"model": "fast"}, "model"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("https://app.example", "https://app.example"),
        ("HTTPS://App.Example/", "https://app.example"),
        ("https://app.example:443", "https://app.example"),
        ("http://app.example:80/", "http://app.example"),
        ("http://app.example:443", "http://app.example:443"),
        ("http://localhost:05173", "http://localhost:5173"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://[0:0:0:0:0:0:0:1]:8000", "http://[::1]:8000"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("capacitor://localhost", "capacitor://localhost"),
    ],
)
def test_an_origin_is_kept_as_browsers_write_it(written: str, meant: str) -> None:
    assert read(origins=[written]).origins == [meant]


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "null",
        "app.example",
        "//app.example",
        "https://",
        "https://app.example/path",
        "https://app.example?x",
        "https://app.example#x",
        "https://user@app.example",
        "https://*.example",
        "https://app.example:",
        "https://app.example:65536",
        "https://app.example:x",
        "https://a b.example",
        "https://bücher.example",
        "https://\u212aelvin.example",
        "https://[::g]",
        "https://[1:2]",
        "https://app.example\n",
        " https://app.example",
    ],
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(origins=[text])
    assert (caught.value.status, caught.value.param) == (400, "origins[0]")


def test_what_was_signed_is_what_is_read() -> None:
    token = sign(CLAIMS, KEY)
    assert token.startswith("sgb_")
    assert maker_of(token) == "frontend"
    assert verified(token, KEY) == CLAIMS


def test_what_is_not_said_takes_no_room() -> None:
    said = jwt.decode(sign(Claims(sub="a", jti="b", iat=1, exp=2), KEY)[4:], options={"verify_signature": False})
    assert said == {"sub": "a", "jti": "b", "iat": 1, "exp": 2}


def test_a_token_that_would_not_fit_a_header_is_not_made() -> None:
    long = ("https://" + "a" * 4000,)
    said = {"sub": "a", "jti": "b", "iat": 1, "exp": 2}
    for field in ("models", "origins"):
        with pytest.raises(InvalidRequestError, match="too long") as caught:
            sign(msgspec.convert({**said, field: long}, Claims), KEY)
        assert caught.value.param == field


def text(value: object) -> str:
    return (
        base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).decode().strip("=")
    )


def forged(header: object, payload: object, signature: str = "") -> str:
    return f"sgb_{text(header)}.{text(payload)}.{signature}"


GOOD_HEADER = {"alg": "HS256", "typ": "JWT"}
SAID = {"sub": "frontend", "jti": "bt_1", "iat": 1000, "exp": 1600}


@pytest.mark.parametrize(
    "token",
    [
        "sgb_",
        "sgb_..",
        "sgb_a.b",
        "sgb_\xff.\xff.\xff",
        "sgb_" + "a." * 40_000,
        forged(b"[" * 2500, SAID),
        forged(GOOD_HEADER, b"[" * 2500),
        forged([], SAID),
        forged(GOOD_HEADER, []),
        forged(GOOD_HEADER, {}),
        forged(GOOD_HEADER, {**SAID, "sub": ["frontend"]}),
        forged(GOOD_HEADER, {**SAID, "sub": None}),
        forged({"alg": "HS256", "b64": False, "crit": ["b64"]}, b""),
    ],
)
def test_what_is_no_token_names_no_maker(token: str) -> None:
    with pytest.raises(AuthenticationError):
        maker_of(token)


@pytest.mark.parametrize(
    "token",
    [
        forged({"alg": "none"}, SAID),
        forged({"alg": "None", "typ": "JWT"}, SAID),
        forged({"typ": "JWT"}, SAID),
        forged(GOOD_HEADER, SAID),
        forged(GOOD_HEADER, SAID, text(b"\0" * 32)),
        "sgb_" + jwt.encode(SAID, KEY, algorithm="HS512"),
        "sgb_" + jwt.encode(SAID, b"x" * 32, algorithm="HS256"),
        "sgb_" + jwt.encode({**SAID, "exp": "soon"}, KEY, algorithm="HS256"),
        "sgb_" + jwt.encode({**SAID, "models": "fast"}, KEY, algorithm="HS256"),
        "sgb_" + jwt.encode({"sub": "frontend"}, KEY, algorithm="HS256"),
    ],
)
def test_only_what_this_key_signed_this_way_is_believed(token: str) -> None:
    with pytest.raises(AuthenticationError) as caught:
        verified(token, KEY)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


def test_any_changed_character_breaks_a_token() -> None:
    token = sign(CLAIMS, KEY)
    for place in range(4, len(token)):
        if token[place] != ".":
            changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
            with pytest.raises(AuthenticationError):
                verified(changed, KEY)
