"""A whole call stack before upstreams that are functions, on a clock that is never waited for: hours take milliseconds."""

import asyncio
import json
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar, cast
from unittest import mock

from app.policies.retry import RetryPolicy
from app.policies.routing import Router, Target
from app.settings import Strategy, UpstreamSettings
from app.upstream import attempt, flight
from app.upstream.attempt import Upstream
from app.upstream.call import CallStack
from app.upstream.client import UpstreamClient
from app.upstream.types import Call
from app.wire.endpoints import ENDPOINTS

T = TypeVar("T")
CHAT = next(endpoint for endpoint in ENDPOINTS if endpoint.path == "/chat/completions")
OK = json.dumps({"id": "x", "choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 20}}).encode()
ERROR = b'{"error":{"message":"x","type":"server_error","code":null}}'
CHUNK = b'data: {"id":"x","choices":[{"delta":{"content":"a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
AGES = 1e6  # seconds


class _Selector(selectors.DefaultSelector):
    """Where the loop would sleep, its clock is put forward."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing will ever happen again"
        self.now += max(0.0, timeout)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def play(scene: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a scene on a clock of its own."""

    def now() -> float:
        return asyncio.get_running_loop().time()

    clock = SimpleNamespace(monotonic=now)
    with (
        mock.patch.object(flight, "time", clock),
        mock.patch.object(attempt, "time", clock),
        asyncio.Runner(loop_factory=_Loop) as runner,
    ):
        return runner.run(scene())


class Raw:
    """A raw reply. Args: pieces: Of a stream: seconds before each, and its bytes; None: it comes whole."""

    def __init__(
        self,
        status: int = 200,
        body: bytes = OK,
        headers: Mapping[str, str] | None = None,
        pieces: Sequence[tuple[float, bytes]] | None = None,
    ) -> None:
        kind = "application/json" if pieces is None else "text/event-stream"
        self.status = status
        self.headers = {"content-type": kind, **(headers or {})}
        self.at_end = False
        self.closed = 0
        self._pieces = list(pieces or [(0.0, body)])

    async def read(self, when: float) -> bytes:
        if not self._pieces:
            self.at_end = True
            return b""
        async with asyncio.timeout_at(when):
            await asyncio.sleep(self._pieces[0][0])
        return self._pieces.pop(0)[1]

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


Answer = Callable[[int, bytes], Awaitable[Raw]]  # the call's number, from 1, and its body


class Client:
    """Sends to a function."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.sent = self.live = 0
        self.replies: list[Raw] = []
        self.asked = asyncio.Event()

    async def send(self, method: str, path: str, *, body: bytes, **more: object) -> Raw:
        self.sent += 1
        self.live += 1
        self.asked.set()
        try:
            reply = await self._answer(self.sent, body)
        finally:
            self.live -= 1
        self.replies.append(reply)
        return reply

    async def aclose(self) -> None:
        pass


class Stage:
    """Upstreams `u0`, `u1`…, and the model `m` that each of them may answer."""

    def __init__(
        self, *answers: Answer, strategy: Strategy = "fallback", attempts: int = 3, **settings: object
    ) -> None:
        self.clients = [Client(answer) for answer in answers]
        told = UpstreamSettings.model_validate({"base_url": "http://x/v1", **settings})
        self.ups = [
            Upstream(f"u{n}", told, cast("UpstreamClient", client), 10**8) for n, client in enumerate(self.clients)
        ]
        router = Router(
            {"m": tuple(Target(up.name, "m") for up in self.ups)}, tuple(up.name for up in self.ups), {"m": strategy}
        )
        self.stack = CallStack({up.name: up for up in self.ups}, router, RetryPolicy(attempts), lambda: 0.5)

    @property
    def sent(self) -> list[int]:
        return [client.sent for client in self.clients]

    @property
    def in_flight(self) -> list[int]:
        """By all accounts of it."""
        for up in self.ups:
            limiters = [family.limiter for family in up.admission.families.known.values()]
            assert up.admission.in_flight == sum(limiter.in_flight for limiter in limiters)
        return [up.admission.in_flight for up in self.ups]

    def breaker(self, upstream: int = 0) -> str:
        return self.ups[upstream].admission.family("m").breaker.state

    def all_closed(self) -> bool:
        """Whether every raw reply was given back."""
        return all(raw.closed for client in self.clients for raw in client.replies)


def chat(**how: Any) -> Call:
    return Call(CHAT, "/chat/completions", **{"body": b'{"model":"m"}', "model": "m", **how})


def whole(seconds: float = 0.05) -> Answer:
    """An upstream that is well."""

    async def answer(number: int, body: bytes) -> Raw:
        await asyncio.sleep(seconds)
        return Raw()

    return answer


def failing(status: int, headers: Mapping[str, str] | None = None) -> Answer:
    async def answer(number: int, body: bytes) -> Raw:
        return Raw(status, ERROR, headers)

    return answer
