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
from app.services.cache import Cache
from app.services.files import Files
from app.services.idempotency import IdempotencyStore
from app.services.keys import Caller, Keyring
from app.settings import GatewaySettings, is_loopback
from app.telemetry import Uptime
from app.upstream.call import CallStack
from app.upstream.catalog import Catalog
from app.upstream.types import Trace


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
    """Raises: AuthenticationError: The key is missing or unknown."""
    running = gateway(request)
    if running.keyring.is_open and not running.settings.allow_open:
        _check_origin(request, running.settings.cors_origins)
    found = running.keyring.identify(request.headers.get("authorization"))
    record(request).caller = found.name
    return found


def _check_origin(request: Request, allowed: tuple[str, ...]) -> None:
    """Without keys, anything on this machine may call, but not any page that happens to be open in its browser.

    A page of another origin can send what needs no preflight (a form, text/plain), and with a name of its own that
    resolves to this machine (DNS rebinding) it can send everything.

    Raises: PermissionDeniedError: The request comes from such a page.
    """
    origin = request.headers.get("origin")
    if origin is None or origin in allowed or "*" in allowed or is_loopback(urlsplit(origin).hostname or ""):
        return
    to_us = is_loopback(urlsplit(f"//{request.headers.get('host', '')}").hostname or "")
    if not (to_us and request.headers.get("content-type", "").startswith("application/json")):
        raise PermissionDeniedError(f"pages of {origin} may not call: see cors_origins")


CallerDep = Annotated[Caller, Depends(caller)]
