"""One stream and what became of its reader, gone over when it is all over: what was lost, doubled, or not his."""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from tests.bench.streaming.wire import Client, Event, Reply, Token, token_of

_STALE = 40  # events that a reader may have forgotten


class Cut(NamedTuple):
    """A connection's end.

    Attributes:
        after: Seconds that it lasts.
        away: Seconds until the reader is back.
        reset: By RST; else by FIN.
        forgets: Of the events that he has seen he does not know the last so many.
    """

    after: float
    away: float
    reset: bool = False
    forgets: int = 0


@dataclass
class Story:
    """Attributes:
    id: The stream's; empty: it is not made yet.
    replies: Each with the number of the event that the reader said he had.
    """

    name: str
    cuts: list[Cut]
    id: str = ""
    made: float = 0.0
    replies: list[tuple[int, Reply]] = field(default_factory=list)

    async def read(self, client: Client, after: int = 0) -> None:
        """Reads to the end, with all interruptions. Args: after: The event to go on behind."""
        for cut in self.cuts:
            reply = await self._open(client, after)
            await asyncio.wait({reply.over}, timeout=cut.after)
            if reply.over.done():
                return
            reply.cut(reset=cut.reset)
            seen = [event.number for event in reply.events()]
            after = max(0, (seen[-1] if seen else after) - cut.forgets)
            await asyncio.sleep(cut.away)
        await (await self._open(client, after)).over

    async def _open(self, client: Client, after: int) -> Reply:
        reply = await client.events(self.id, after)
        self.replies.append((after, reply))
        return reply


def luck(draw: Random, lasts: float, longest: float) -> list[Cut]:
    """Returns: One to three cuts. Args: lasts: Seconds that the stream does; longest: Seconds away."""
    times = draw.choice([1, 1, 1, 2, 3])
    return [
        Cut(
            draw.uniform(0, lasts / times),
            draw.uniform(0, longest),
            reset=draw.random() < 0.5,
            forgets=draw.choice([0, 0, draw.randrange(1, _STALE)]),
        )
        for _ in range(times)
    ]


@dataclass
class Verdict:
    """What readers were left with.

    Attributes:
        complete: Streams that ended in `event: done`, at its place.
        lost: Tokens that a reader passed over, or never came to.
        doubled: Tokens that he was sent though he had them.
        strange: Another stream's, or not where they belong.
        delays: From the upstream's write to the reader, of tokens that were written while he was there; seconds.
        first: From a request that goes on behind the beginning to its first event; seconds.
        caught_up: Likewise, to the first event that was written after it.
    """

    complete: int = 0
    lost: int = 0
    doubled: int = 0
    strange: int = 0
    delays: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    caught_up: list[float] = field(default_factory=list)


def judged(stories: Iterable[Story], tokens: int) -> Verdict:
    """Args: tokens: Of each stream."""
    verdict = Verdict()
    for story in stories:
        last = 0
        for after, reply in story.replies:
            last = _followed(verdict, story.name, after, reply)
        verdict.lost += max(0, tokens - last)
        ends = [event for event in story.replies[-1][1].events() if event.name] if story.replies else []
        verdict.complete += [(end.name, end.number) for end in ends] == [(b"done", tokens + 1)]
    return verdict


def _followed(verdict: Verdict, name: str, after: int, reply: Reply) -> int:
    """Goes over one reply. Returns: The number of the last event that its reader has."""
    last, live = after, False
    for event, token in _tokens(reply):
        if last == after and after:
            verdict.first.append(event.at - reply.asked)
        verdict.doubled += event.number <= last
        verdict.lost += max(0, event.number - last - 1)
        verdict.strange += (token.stream, token.number) != (name, event.number)
        last = max(last, event.number)
        if token.written >= reply.asked:
            verdict.delays.append(event.at - token.written)
            if after and not live:
                verdict.caught_up.append(event.at - reply.asked)
            live = True
    return last


def _tokens(reply: Reply) -> Iterator[tuple[Event, Token]]:
    for event in reply.events():
        if (token := token_of(event.data)) is not None:
            yield event, token
