"""What routes ask for: the running gateway, who calls, and the record of this call. Typed, from the lifespan state."""

from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.types import Send

from app.errors import PermissionDeniedError
from app.http.drain import Drain
from app.services.batches.submission import Batches
from app.services.batches.worker import Worker
from app.services.browser_tokens import BrowserTokens
from app.services.cache import Cache
from app.services.files import Files
from app.services.idempotency import IdempotencyStore
from app.services.keys import Caller, Keyring
from app.services.streams.service import Streams
from app.settings import GatewaySettings, is_loopback
from app.telemetry import Uptime
from app.upstream.call import CallStack
from app.upstream.catalog import Catalog
from app.upstream.types import Trace
from app.wire.browser_tokens import PREFIX


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything that lives as long as the server."""

    settings: GatewaySettings
    stack: CallStack
    cache: Cache
    idempotency: IdempotencyStore
    catalog: Catalog
    keyring: Keyring
    uptime: Uptime
    drain: Drain
    files: Files
    batches: Batches
    worker: Worker | None
    browser_tokens: BrowserTokens
    streams: Streams


@dataclass(slots=True)
class CallRecord:
    """What the access log says of one request; filled in on the way.

    Attributes:
        send: What `Edge` was given, for the pieces of a live reply: nothing inside it has anything to do with them.
        status: Overrides the status that was sent (499: the client hung up).
        model: The model's public name, as asked for.
    """

    request_id: str
    send: Send
    status: int = 0
    bytes_out: int = 0
    caller: str = ""
    model: str = ""
    error: str = ""
    trace: Trace = field(default_factory=Trace)

    def headers(self) -> dict[str, str]:
        """Returns: The `x-sluicegate-*` reply headers."""
        told = {
            "x-sluicegate-upstream": self.trace.upstream,
            "x-sluicegate-attempts": str(self.trace.attempts),
            "x-sluicegate-queue-ms": f"{self.trace.queue_ms:.1f}",
        }
        if self.trace.cache:
            told["x-sluicegate-cache"] = self.trace.cache
        return told


def gateway(request: Request) -> Gateway:
    found: Gateway = request.scope["state"]["gateway"]
    return found


def record(request: Request) -> CallRecord:
    found: CallRecord = request.scope["state"]["record"]
    return found


async def caller(request: Request) -> Caller:
    """Whoever calls, be it a page with a browser token. Routes ask through the aliases below: only one lets pages in.

    Raises:
        AuthenticationError: The key is missing or unknown, the token bad or expired.
        PermissionDeniedError: The page that calls may not.
    """
    running = gateway(request)
    authorization = request.headers.get("authorization")
    token = _token_in(authorization)
    if token is None:
        if running.keyring.is_open:
            _check_origin(request, running.settings)
        found = running.keyring.identify(authorization)
    else:
        found = _of_page(request, running, token)
    record(request).caller = found.name
    return found


def _token_in(authorization: str | None) -> str | None:
    """Returns: The browser token, where there is one in place of a key."""
    if authorization is None or PREFIX not in authorization:
        return None
    scheme, _, secret = authorization.partition(" ")
    token = secret.strip()
    return token if scheme.lower() == "bearer" and token.startswith(PREFIX) else None


def _of_page(request: Request, running: Gateway, token: str) -> Caller:
    found = running.browser_tokens.identify(token)
    if found.origins is not None:
        _check_listed(request, found.origins)  # those pages were let in by name: no need to look further
    elif running.keyring.is_open:
        _check_origin(request, running.settings)
    return found


def _check_listed(request: Request, origins: frozenset[str]) -> None:
    """Browsers say where a page comes from, but not when it only reads from its own origin.

    Raises: PermissionDeniedError: The page's origin is not one of the token's.
    """
    origin = request.headers.get("origin")
    if origin is None and request.method not in {"GET", "HEAD"}:
        raise PermissionDeniedError("this browser token is for pages: the header Origin is missing")
    if origin is not None and origin not in origins:
        raise PermissionDeniedError(f"this browser token is not for pages of {origin[:200]}")


async def key_holder(request: Request) -> Caller:
    """As `caller`, for what no page may do.

    Raises: PermissionDeniedError: The caller is a browser token.
    """
    found = await caller(request)
    if found.holder:
        raise PermissionDeniedError("a browser token may not do this: it takes the key itself")
    return found


def _check_origin(request: Request, settings: GatewaySettings) -> None:
    """Without keys, anything on this machine may call, but not any page that happens to be open in its browser.

    A page of another origin can send what needs no preflight (a form, text/plain), and with a name of its own that
    resolves to this machine (DNS rebinding) it can send everything.

    Raises: PermissionDeniedError: The request comes from such a page.
    """
    if settings.allow_open:
        return
    origin, allowed = request.headers.get("origin"), settings.cors_origins
    if origin is None or origin in allowed or "*" in allowed or _is_here(origin):
        return
    is_json = request.headers.get("content-type", "").startswith("application/json")
    if not (is_json and _is_here(f"//{request.headers.get('host', '')}")):
        raise PermissionDeniedError(f"pages of {origin} may not call: see cors_origins")


def _is_here(address: str) -> bool:
    try:
        return is_loopback(urlsplit(address).hostname or "")
    except ValueError:  # what is no address at all
        return False


CallerDep = Annotated[Caller, Depends(key_holder)]
BrowserCallerDep = Annotated[Caller, Depends(caller)]  # for routes that serve pages with a browser token, too
