"""The format of browser tokens: how one is asked for, what it says, and how it is signed.

A token is `sgb_` and a JWT (RFC 7519) under HS256, the one algorithm that is ever accepted. Whoever holds it can read
it, so it says nothing secret; what it allows is under the signature.
"""

import ipaddress
import re
from typing import Annotated, Any

import jwt
import msgspec
from jwt.types import Options
from msgspec import Meta

from app.errors import AuthenticationError, InvalidRequestError
from app.wire.parsing import decode

PREFIX = "sgb_"
_LONGEST = 4096  # characters of a token: it travels in a header, of which proxies take no more than 8 kB in all
_ALGORITHM = "HS256"
# Times are ours to check: by a clock that is handed in, and `iat` not at all (another replica's clock made it).
_UNCHECKED: Options = {"verify_exp": False, "verify_iat": False}
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?/?")
_DEFAULT_PORTS = {"http": 80, "https": 443}

_Text = Annotated[str, Meta(min_length=1)]


class Create(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a token is to allow. None: no bound but the key's own. `origins` are as browsers write them."""

    ttl_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 600
    models: Annotated[list[_Text], Meta(min_length=1)] | None = None
    max_requests: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    origins: Annotated[list[_Text], Meta(min_length=1)] | None = None


class Claims(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What a token says.

    Attributes:
        sub: The name of the key that made it.
        jti: Its own id.
        iat, exp: From when to when, seconds since the epoch.
    """

    sub: str
    jti: str
    iat: int
    exp: int
    models: tuple[str, ...] | None = None
    origins: tuple[str, ...] | None = None
    max_requests: int | None = None


_CREATE = msgspec.json.Decoder(Create)


def read_create(body: bytes) -> Create:
    """Raises: InvalidRequestError: Anything is wrong; `param` names the field."""
    asked = decode(_CREATE, body or b"{}")
    if asked.models is not None:
        asked.models = list(dict.fromkeys(asked.models))
    if asked.origins is not None:
        asked.origins = list(dict.fromkeys(_origin(text, place) for place, text in enumerate(asked.origins)))
    return asked


def _origin(text: str, place: int) -> str:
    """Returns: The origin as a browser writes it. Source: https://html.spec.whatwg.org/#ascii-serialisation-of-an-origin"""
    param = f"origins[{place}]"
    found = _ORIGIN.fullmatch(text.lower()) if text.isascii() else None
    if found is None or int(found[3] or 0) > 65_535:
        raise InvalidRequestError(f"{text[:200]!r} is no origin: https://app.example, in ASCII", param=param)
    scheme, host, port = found.groups()
    if host.startswith("["):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            raise InvalidRequestError(f"{text[:200]!r} holds no IPv6 address", param=param) from None
    is_usual = port is None or int(port) == _DEFAULT_PORTS.get(scheme)
    return f"{scheme}://{host}" if is_usual else f"{scheme}://{host}:{int(port)}"


def sign(claims: Claims, key: bytes) -> str:
    """Returns: The token.

    Raises: InvalidRequestError: It would not fit into a header.
    """
    token = PREFIX + jwt.encode(msgspec.to_builtins(claims), key, algorithm=_ALGORITHM)
    if len(token) > _LONGEST:
        message = f"models and origins are too long: the token would have {len(token)} characters of {_LONGEST}"
        raise InvalidRequestError(message, param="models" if claims.models else "origins")
    return token


def maker_of(token: str) -> str:
    """Returns: The name of the key that made the token, or so the token says: nothing is verified yet.

    Raises: AuthenticationError: It is none.
    """
    try:
        if len(token) > _LONGEST:
            raise unknown()
        said = jwt.decode(token.removeprefix(PREFIX), options={"verify_signature": False})["sub"]
    except (jwt.InvalidTokenError, KeyError):
        raise unknown() from None
    if not isinstance(said, str):
        raise unknown()
    return said


def verified(token: str, key: bytes) -> Claims:
    """Returns: What the token says. Whether its time is over is up to the caller.

    Raises: AuthenticationError: Another key signed it, or something is not as it was signed.
    """
    try:
        said = jwt.decode(token.removeprefix(PREFIX), key, algorithms=[_ALGORITHM], options=_UNCHECKED)
        return msgspec.convert(said, Claims)
    except (jwt.InvalidTokenError, msgspec.ValidationError):
        raise unknown() from None


def unknown() -> AuthenticationError:
    """Returns: What a bad token is told: no more than an unknown key."""
    return AuthenticationError("this key is not known here")


def token_object(claims: Claims, token: str) -> dict[str, Any]:
    """Returns: The reply to whoever made the token."""
    return {
        "object": "browser_token",
        "id": claims.jti,
        "token": token,
        "created_at": claims.iat,
        "expires_at": claims.exp,
        "models": claims.models,
        "max_requests": claims.max_requests,
        "origins": claims.origins,
    }
