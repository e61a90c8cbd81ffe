"""What routes ask for: the running gateway, who calls, and the record of this call. Typed, from the lifespan state."""

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from app.services.embeddings import Splitter
from app.services.keys import Caller, Keyring
from app.settings import GatewaySettings
from app.telemetry import Uptime
from app.upstream.call import CallStack
from app.upstream.catalog import Catalog
from app.upstream.types import Trace


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything that lives as long as the server."""

    settings: GatewaySettings
    stack: CallStack
    splitter: Splitter
    catalog: Catalog
    keyring: Keyring
    uptime: Uptime


@dataclass(slots=True)
class CallRecord:
    """What the access log says of one request; filled in on the way.

    Attributes:
        status: Overrides the status that was sent (499: the client hung up).
        model: The model's public name, as asked for.
    """

    request_id: str
    status: int = 0
    bytes_out: int = 0
    caller: str = ""
    model: str = ""
    error: str = ""
    trace: Trace = field(default_factory=Trace)

    def headers(self) -> dict[str, str]:
        """Returns: The `x-sluicegate-*` reply headers."""
        return {
            "x-sluicegate-upstream": self.trace.upstream,
            "x-sluicegate-attempts": str(self.trace.attempts),
            "x-sluicegate-queue-ms": f"{self.trace.queue_ms:.1f}",
        }


def gateway(request: Request) -> Gateway:
    found: Gateway = request.scope["state"]["gateway"]
    return found


def record(request: Request) -> CallRecord:
    found: CallRecord = request.scope["state"]["record"]
    return found


async def caller(request: Request) -> Caller:
    """Raises: AuthenticationError: The key is missing or unknown."""
    found = gateway(request).keyring.identify(request.headers.get("authorization"))
    record(request).caller = found.name
    return found


CallerDep = Annotated[Caller, Depends(caller)]
