"""Who may call: static keys, compared by SHA-256 in constant time."""

import hashlib
import hmac
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from app.errors import AuthenticationError, PermissionDeniedError
from app.settings import KeySettings


@dataclass(frozen=True, slots=True)
class Caller:
    """Attributes:
    name: The key's name in the settings.
    models: The public model names it may ask for; None: all.
    holder: The id of the browser token that calls in the key's name; empty: the key itself.
    origins: Of the pages that may hold that token; None: any.
    is_counted: Whether the token is for a number of requests (`BrowserTokens.spend`).
    """

    name: str
    models: frozenset[str] | None = None
    holder: str = ""
    origins: frozenset[str] | None = None
    is_counted: bool = False

    def check(self, model: str | None) -> None:
        """Raises: PermissionDeniedError: The key may not use this model."""
        if self.models is not None and model not in self.models:
            named = f"may not use the model {model!r}" if model else "must name one of its models"
            raise PermissionDeniedError(f"this key {named}", param="model")


ANYONE = Caller("open")


class Keyring:
    """Args: keys: By name; none: everybody may call (the server then listens on loopback only)."""

    def __init__(self, keys: Mapping[str, KeySettings]) -> None:
        self._callers = [
            (_digest_of(key), Caller(name, None if key.models is None else frozenset(key.models)))
            for name, key in keys.items()
        ]

    @property
    def is_open(self) -> bool:
        """Whether everybody may call."""
        return not self._callers

    def makers(self) -> Iterator[tuple[bytes, Caller]]:
        """Yields: Who can make browser tokens, each with the digest of his key; without keys, anyone, with none."""
        yield from self._callers or [(b"", ANYONE)]

    def identify(self, authorization: str | None) -> Caller:
        """Args: authorization: The request header `Authorization`.

        Raises: AuthenticationError: No key, or an unknown one.
        """
        if not self._callers:
            return ANYONE
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise AuthenticationError("send your key as `Authorization: Bearer KEY`")
        digest = hashlib.sha256(secret.strip().encode()).digest()
        found = None
        for known, caller in self._callers:  # all of them, always: the time taken tells nothing
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise AuthenticationError("this key is not known here")
        return found


def _digest_of(key: KeySettings) -> bytes:
    if key.key_sha256 is not None:
        return bytes.fromhex(key.key_sha256)
    assert key.key is not None  # noqa: S101 - settings.py lets no key pass that has neither
    return hashlib.sha256(key.key.get_secret_value().encode()).digest()
