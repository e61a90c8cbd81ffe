"""Browser tokens: short-lived keys for pages, made by a key, bound to models, origins and a number of requests.

Each is signed with a key of its maker's own, derived from the maker's digest: it dies with the maker, without a list of
what was revoked. Only those with a number of requests touch the database, when they spend one.
"""

import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Any

from app.errors import PermissionDeniedError, QuotaSpentError, TokenExpiredError
from app.services.keys import Caller, Keyring
from app.store import browser_tokens
from app.store.database import Database
from app.wire.browser_tokens import Claims, Create, maker_of, sign, token_object, unknown, verified
from app.wire.results import new_id


class BrowserTokens:
    """Args:
    secret: At random, the same in all replicas.
    keyring: The keys of today: a token of another one is none.
    clock: Seconds since the epoch.
    """

    def __init__(
        self, database: Database, secret: bytes, keyring: Keyring, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._clock = clock
        self._makers = {
            maker.name: (maker, hmac.digest(secret, digest, hashlib.sha256)) for digest, maker in keyring.makers()
        }

    async def create(self, maker: Caller, asked: Create) -> dict[str, Any]:
        """Returns: The token object, with the token in it.

        Raises:
            PermissionDeniedError: A model is not the maker's own to use.
            InvalidRequestError: Models and origins are too long for a token.
        """
        for model in asked.models or ():
            if maker.models is not None and model not in maker.models:
                raise PermissionDeniedError(f"this key may not use the model {model[:200]!r}", param="models")
        made = int(self._clock())
        claims = Claims(
            sub=maker.name,
            jti=new_id("bt_"),
            iat=made,
            exp=made + asked.ttl_seconds,
            models=None if asked.models is None else tuple(asked.models),
            origins=None if asked.origins is None else tuple(asked.origins),
            max_requests=asked.max_requests,
        )
        token = sign(claims, self._makers[maker.name][1])
        if claims.max_requests is not None:
            await self._database.run(browser_tokens.add, claims.jti, claims.max_requests, claims.exp)
        return token_object(claims, token)

    def identify(self, token: str) -> Caller:
        """Verifies a token; spends nothing. Its origins are for the caller of this to check.

        Raises:
            TokenExpiredError: Its time is over.
            AuthenticationError: It is none, or its maker is no longer what it was.
        """
        found = self._makers.get(maker_of(token))
        if found is None:
            raise unknown()
        maker, key = found
        claims = verified(token, key)
        if claims.exp <= self._clock():
            raise TokenExpiredError("this browser token has expired: get a new one")
        return Caller(
            maker.name,
            _both(maker.models, claims.models),
            claims.jti,
            None if claims.origins is None else frozenset(claims.origins),
            is_counted=claims.max_requests is not None,
        )

    async def spend(self, who: Caller, calls: int) -> None:
        """Counts upstream calls that are about to be made: all of them, or none. Whoever is not counted may go on.

        Raises:
            QuotaSpentError: Fewer are left.
            StorageError: Nobody can tell; the calls must not be made.
        """
        if who.is_counted and not await self._database.run(browser_tokens.spend, who.holder, calls):
            needed = "" if calls == 1 else f": {calls} are needed"
            raise QuotaSpentError(f"this browser token has too few requests left{needed}")


def _both(one: frozenset[str] | None, other: tuple[str, ...] | None) -> frozenset[str] | None:
    """Returns: The models that both allow; None: all."""
    if one is None or other is None:
        return one if other is None else frozenset(other)
    return one.intersection(other)
