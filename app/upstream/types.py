"""What goes into the call stack and what comes out of it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from app.policies.lanes import Lane
from app.upstream.body import Body, Events
from app.wire.endpoints import Endpoint

_CLOCK_SECONDS = 0.001  # uvloop's clock has milliseconds: its timers ring a little early


def is_over(deadline: float) -> bool:
    """Args: deadline: On the event loop's clock."""
    return asyncio.get_running_loop().time() >= deadline - _CLOCK_SECONDS


@dataclass(slots=True)
class Trace:
    """What happened to a call so far; filled in as it happens, so that a failed call tells it too.

    Attributes:
        upstream: The last one tried.
        queue_ms: Waiting for slots, over all attempts.
        upstream_ms: From the first attempt to the reply (streams: to its first event), without queueing.
        cache: `hit`, `miss` or `shared` (another caller's upstream call); empty: the cache took no part.
        flying: Attempts that are with an upstream, or were answered well by one: none while the call waits.
        whole: Of a part (of a split call, or one of two hedged ones): the trace of the call itself.
    """

    upstream: str = ""
    attempts: int = 0
    queue_ms: float = 0.0
    upstream_ms: float = 0.0
    cache: str = ""
    flying: int = 0
    whole: "Trace | None" = None

    def part(self) -> "Trace":
        """Returns: The trace of a part of the call."""
        return Trace(whole=self)

    def attempted(self) -> None:
        """One more attempt is on its way."""
        self.attempts += 1
        self._flying(1)

    def refused(self) -> None:
        """The last attempt has come to nothing."""
        self._flying(-1)

    def _flying(self, change: int) -> None:
        self.flying += change
        if self.whole is not None:
            self.whole.flying += change


@dataclass(frozen=True, slots=True)
class Call:
    """One call as a client asked for it.

    Attributes:
        path: Under the base URL, ids filled in, with the query if there is one.
        model: The public name; None where the call names none.
        headers: What goes upstream beside the body.
        timeout: Seconds for queue, attempts and body together; None: the upstream's `total_timeout`.
        patient: Its queueing is bounded elsewhere (fan-out).
        caller: The name of the key that asks.
        lane: Whether somebody waits for it, or it is work that can wait.
        most_output: Tokens that the answer may have; None: not said.
        cache: Whether an identical call's reply will do; None: as the settings say.
    """

    endpoint: Endpoint
    path: str
    body: bytes = b""
    content_type: str = "application/json"
    model: str | None = None
    stream: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    patient: bool = False
    caller: str = ""
    lane: Lane = "interactive"
    most_output: int | None = None
    cache: bool | None = None
    trace: Trace = field(default_factory=Trace)


@dataclass(frozen=True, slots=True)
class Reply:
    """An upstream's reply: either whole (`body`) or open (`events`, `stream`); an open one must be `aclose()`d.

    Attributes:
        headers: Those that go on to the client, names in lower case.
        events: A checked event stream, its first event awaited.
        stream: Bytes of unknown length (audio).
        request_id: The upstream's own id of the call, for its support; may be empty.
        error_code: `code` or `type` of the error envelope, where it is one.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    events: Events | None = None
    stream: Body | None = None
    request_id: str = ""
    error_code: str | None = None

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "")

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    async def aclose(self, failure: BaseException | None = None) -> None:
        held = self.events or self.stream
        if held is not None:
            await held.aclose(failure)
