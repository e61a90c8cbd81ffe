"""An upstream that 20,000 tokens a second do not tire: raw asyncio, in the bench's own process and on its clock.

What a call is answered with is set beforehand, under its name, which it has as the `user` field of its body.
A token tells whose it is, which one, and when it was written, so that a lost, doubled or late one cannot hide.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import cast

from tests.support import LAST_CHUNK, STREAM_HEAD, chunk, reply

_HEAD = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
NO_MODELS = b'{"object":"list","data":[]}'
_DONE = b"data: [DONE]\n\n"
_BEFORE = (
    b'data: {"id":"chatcmpl-CqZq2y0mXb5dN3sGg7rV1f","object":"chat.completion.chunk","created":1731000000,"model":"m",'
    b'"service_tier":"default","system_fingerprint":"fp_0705bf87c0","choices":[{"index":0,"delta":{"content":"'
)
_BEHIND = b'"},"logprobs":null,"finish_reason":null}]}\n\n'
_ENDLESS = 1 << 40
_TICKS = 50  # of the pacer in a gap: so many groups of streams take turns
_BACKLOG = 4096


@dataclass(frozen=True, slots=True)
class Plan:
    """What a call is answered with.

    Attributes:
        tokens: Of the stream, before its `[DONE]`.
        lump: Tokens that are written at once; then it pauses as long as they would have taken one by one.
        every: Turns of the pacer for each token.
        silent: `head`: not even headers come; `token`: they come, and nothing follows.
    """

    tokens: int = _ENDLESS
    lump: int = 1
    every: int = 1
    silent: str = ""


class Call(asyncio.Protocol):
    """One connection, which is one call.

    Attributes:
        closed: When the gateway closed it; 0: it has not, or not before the stream's own end.
        gone: Resolved when the connection is.
        ended: When `[DONE]` was written.
    """

    def __init__(self, upstream: "Upstream") -> None:
        self.name = ""
        self.plan = Plan()
        self.came = self.closed = self.ended = 0.0
        self.sent = 0
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._upstream = upstream
        self._asked = b""
        self._turn = 0
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._asked += data
        head, _, body = self._asked.partition(b"\r\n\r\n")
        if head.startswith(b"GET"):
            self._transport.write(reply(NO_MODELS, headers={"connection": "close"}))
            self._transport.close()
        elif body.endswith(b"}") and not self.came:
            with contextlib.suppress(json.JSONDecodeError):
                self.name = json.loads(body)["user"]
                self._begin()

    def _begin(self) -> None:
        self.came = time.monotonic()
        self.plan = self._upstream.plans.get(self.name, self._upstream.usual)
        self._upstream.calls[self.name] = self
        if self.plan.silent == "head":
            return
        self._transport.write(_HEAD)
        if self.plan.silent == "token":
            return
        self._upstream.pacer.add(self)

    def tick(self) -> None:
        """A token's time has come."""
        self._turn += 1
        if self._turn % (self.plan.lump * self.plan.every) or self._paused:
            return
        if self.sent < self.plan.tokens:
            self.write(min(self.plan.lump, self.plan.tokens - self.sent))
        else:
            self.finish()

    def write(self, count: int, padding: int = 0) -> None:
        """Writes so many tokens at once. Args: padding: More bytes in each."""
        now, name, more = time.monotonic_ns() // 1000, self.name.encode(), b"." * padding
        said = b""
        for number in range(self.sent + 1, self.sent + count + 1):
            said += b"%b%b %d %d %b%b" % (_BEFORE, name, number, now, more, _BEHIND)
        self.sent += count
        self._transport.write(chunk(said))

    def finish(self) -> None:
        """Ends it well, now."""
        self._upstream.pacer.drop(self)
        self.ended = time.monotonic()
        self._transport.write(chunk(_DONE) + LAST_CHUNK)
        self._transport.close()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False

    def eof_received(self) -> None:
        self._noted()

    def connection_lost(self, _: Exception | None) -> None:
        self._noted()

    def _noted(self) -> None:
        self._upstream.pacer.drop(self)
        if not self.ended and not self.closed:
            self.closed = time.monotonic()
        if not self.gone.done():
            self.gone.set_result(None)


class Pacer:
    """Lets every stream write when it is its turn, `gap` seconds apart; late turns are made up for.

    Attributes: late: Seconds by which each turn was behind: what figures of this process are worth.
    """

    def __init__(self, gap: float) -> None:
        self.late: list[float] = []
        self._step = gap / _TICKS
        self._groups: list[dict[Call, None]] = [{} for _ in range(_TICKS)]
        self._place: dict[Call, int] = {}
        self._added = 0

    def add(self, call: Call) -> None:
        place = self._added % _TICKS
        self._added += 1
        self._place[call] = place
        self._groups[place][call] = None

    def drop(self, call: Call) -> None:
        place = self._place.pop(call, None)
        if place is not None:
            del self._groups[place][call]

    async def run(self) -> None:
        due, turn = time.monotonic(), 0
        while True:
            await asyncio.sleep(due - time.monotonic())
            self.late.append(time.monotonic() - due)
            for call in list(self._groups[turn]):
                call.tick()
            turn = (turn + 1) % _TICKS
            due += self._step


class Upstream:
    """Attributes:
    plans: By the name of a call.
    usual: For all others.
    calls: By name, the last of each.
    """

    def __init__(self, gap: float, usual: Plan) -> None:
        self.pacer = Pacer(gap)
        self.plans: dict[str, Plan] = {}
        self.usual = usual
        self.calls: dict[str, Call] = {}
        self.base_url = ""

    async def came(self, name: str, sent: int = 0) -> Call:
        """Waits until a call is there. Returns: It, with so many tokens written at least."""
        while (call := self.calls.get(name)) is None or call.sent < sent:
            await asyncio.sleep(0.001)
        return call


@contextlib.asynccontextmanager
async def upstream(gap: float, usual: Plan | None = None) -> AsyncIterator[Upstream]:
    """Serves one. Args: gap: Seconds between two tokens of a stream."""
    made = Upstream(gap, usual or Plan())
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Call(made), "127.0.0.1", 0, backlog=_BACKLOG)
    made.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    pacing = asyncio.create_task(made.pacer.run(), name="pacer")
    try:
        yield made
    finally:
        pacing.cancel()
        await asyncio.wait({pacing})
        server.close()
