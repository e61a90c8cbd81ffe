"""People who read as they should, beside whatever else goes on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tests.bench.streaming.upstream import Upstream
from tests.bench.streaming.wire import Client, Reply, Token, token_of


@dataclass(frozen=True, slots=True)
class Healthy:
    """Args: replies: Of plain relayed streams, as endless as their upstream's."""

    replies: list[Reply]

    def tokens(self) -> list[tuple[Token, float]]:
        """Returns: All that have come, and when."""
        found = ((token_of(event.data), event.at) for reply in self.replies for event in reply.events())
        return [(token, at) for token, at in found if token is not None]

    def delays(self) -> list[tuple[float, float]]:
        """Returns: When each token was written, and the seconds it took."""
        return [(token.written, at - token.written) for token, at in self.tokens()]

    def lost(self) -> int:
        """Returns: Tokens that should have come between others; and streams that have ended."""
        places: dict[str, int] = {}
        lost = 0
        for token, _ in self.tokens():
            lost += abs(token.number - places.get(token.stream, 0) - 1)
            places[token.stream] = token.number
        return lost + sum(reply.over.done() for reply in self.replies)


@contextlib.asynccontextmanager
async def healthy(client: Client, source: Upstream, count: int, model: str = "m") -> AsyncIterator[Healthy]:
    """Opens their streams, and hangs up at the block's end."""
    names = [f"healthy-{model}-{place}" for place in range(count)]
    replies = [await client.chat(name, model) for name in names]
    try:
        await asyncio.gather(*(source.came(name, 2) for name in names))
        yield Healthy(replies)
    finally:
        for reply in replies:
            reply.cut()
