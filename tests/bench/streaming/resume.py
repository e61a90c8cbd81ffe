"""A thousand resumable streams; readers that are cut, come back and go on; all at once; from the log alone."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random

from tests.bench.real.figures import count
from tests.bench.real.load import percentile
from tests.bench.streaming.gateway import cpu_seconds, gateway, waited_seconds
from tests.bench.streaming.scene import StreamScene, ends, ranks
from tests.bench.streaming.story import Cut, Story, Verdict, judged, luck
from tests.bench.streaming.upstream import Plan, Upstream, upstream
from tests.bench.streaming.wire import Client
from tests.bench.torture.replicas import Replica
from tests.bench.torture.speed import Memory

_GAP = 0.05
_SHARE_CUT = 0.3
_BEGIN_AT_ONCE = 64
_READ_AT_ONCE = 32
_FORGET = 8  # events that a reader may not know of any more, when all are cut
_PATIENCE = 180.0  # whoever has not come to his end then never will


@dataclass
class _Watched:
    """What a run cost.

    Attributes:
        busy: Share of a core in each second.
        waited: Share of the time in which the gateway's main thread stood in line for its core.
        commits: `commit_ms` in each second.
    """

    busy: list[float] = field(default_factory=list)
    waited: float = 0.0
    commits: list[float] = field(default_factory=list)
    unlogged: int = 0
    memory: float = 0.0


async def resume(scene: StreamScene) -> None:
    streams = scene.size or int(scene.seconds(1000, 50))
    tokens = int(scene.seconds(600, 30))
    await _cuts(scene, streams, tokens)
    await _herd(scene, streams, tokens)


async def _cuts(scene: StreamScene, streams: int, tokens: int) -> None:
    draw, lasts = Random(5), tokens * _GAP
    stories = [Story(f"s{place}", []) for place in range(streams)]
    for story in draw.sample(stories, int(_SHARE_CUT * streams)):
        story.cuts = luck(draw, lasts, min(5.0, lasts / 3))
    async with upstream(_GAP) as source, gateway(source.base_url, scene.core) as (replica, client):
        _plan(source, stories, tokens)
        seconds, watched = await _run(replica, client, stories)
        verdict = judged(stories, tokens)
        interrupted = sum(len(story.replies) > 1 for story in stories)
        again = sum(len(story.replies) - 1 for story in stories)
        name = f"{streams:,} streams of {tokens} tokens, 20 a second"
        scene.told(f"{name}: readers cut; came back, times", f"{interrupted}; {again}")
        _tell(scene, verdict, streams)
        ideal = max(story.made for story in stories) - min(story.made for story in stories) + lasts
        scene.told("  took ÷ ideal", f"{seconds:.1f} s ÷ {ideal:.1f} s = {seconds / ideal:.2f}")
        _tell_cost(scene, watched, source)
        await _log_only(scene, replica, stories, tokens)


async def _herd(scene: StreamScene, streams: int, tokens: int) -> None:
    draw, lasts = Random(9), tokens * _GAP
    away = lasts / 3
    async with upstream(_GAP) as source, gateway(source.base_url, scene.core) as (replica, client):
        stories = [Story(f"h{place}", []) for place in range(streams)]
        _plan(source, stories, tokens)
        await _begin(client, stories)
        now = time.monotonic()
        for story in stories:  # all at the same moment
            story.cuts = [Cut(now + lasts / 3 - time.monotonic(), away, forgets=draw.randrange(_FORGET))]
        _, watched = await _run(replica, client, stories)
    verdict = judged(stories, tokens)
    came_back = str(sum(len(story.replies) > 1 for story in stories))
    scene.told(f"all {streams:,} cut at once, back after {away:g} s, at once: came back", came_back)
    _tell(scene, verdict, streams)
    scene.told("  back, to the first event: p50, max", ends(verdict.first))
    scene.told("  back, to the first new token: p50, max", ends(verdict.caught_up))
    _tell_cost(scene, watched, source)


async def _log_only(scene: StreamScene, replica: Replica, before: list[Story], tokens: int) -> None:
    """Another process reads them: nothing of them is in its memory."""
    await replica.end()
    await replica.start()
    draw, client = Random(6), Client(int(replica.root.rsplit(":", 1)[1]))
    stories = [Story(story.name, [], story.id) for story in before]
    gate = asyncio.Semaphore(_READ_AT_ONCE)

    async def read(story: Story) -> None:
        async with gate:
            await story.read(client, draw.choice([0, draw.randrange(tokens)]))

    began, cpu = time.monotonic(), cpu_seconds(replica.pid)
    await asyncio.gather(*map(read, stories))
    seconds, busy = time.monotonic() - began, cpu_seconds(replica.pid) - cpu
    verdict = judged(stories, tokens)
    scene.told(f"after a restart, all {len(stories):,} from the log, {_READ_AT_ONCE} at once", f"{seconds:.1f} s")
    scene.told("  CPU for each", f"{1000 * busy / len(stories):.1f} ms")
    _tell(scene, verdict, len(stories))


def _plan(source: Upstream, stories: list[Story], tokens: int) -> None:
    """One stream in four comes in lumps: several events in one read, between which a reader may go on."""
    for place, story in enumerate(stories):
        source.plans[story.name] = Plan(tokens, lump=4 if place % 4 == 0 else 1)


async def _begin(client: Client, stories: list[Story]) -> None:
    gate = asyncio.Semaphore(_BEGIN_AT_ONCE)
    await asyncio.gather(*(_made(client, story, gate) for story in stories))


async def _made(client: Client, story: Story, gate: asyncio.Semaphore) -> None:
    if not story.id:
        async with gate:
            story.id = await client.begin(story.name)
            story.made = time.monotonic()


async def _run(replica: Replica, client: Client, stories: list[Story]) -> tuple[float, _Watched]:
    """Returns: Seconds from the first request to the last reader's end; the cost."""
    gate = asyncio.Semaphore(_BEGIN_AT_ONCE)

    async def one(story: Story) -> None:
        await _made(client, story, gate)
        await story.read(client)

    began = time.monotonic()
    async with _watching(replica, client) as watched:
        readers = [asyncio.create_task(one(story)) for story in stories]
        _, late = await asyncio.wait(readers, timeout=_PATIENCE)
        for reader in late:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    return time.monotonic() - began, watched


@contextlib.asynccontextmanager
async def _watching(replica: Replica, client: Client) -> AsyncIterator[_Watched]:
    found = _Watched()

    async def look() -> None:
        while True:
            since, busy = time.monotonic(), cpu_seconds(replica.pid)
            await asyncio.sleep(1)
            found.busy.append((cpu_seconds(replica.pid) - busy) / (time.monotonic() - since))
            told = (await client.status())["streams"]
            found.commits.append(told["commit_ms"])
            found.unlogged = max(found.unlogged, told["unlogged_bytes"])

    looking = asyncio.create_task(look(), name="look")
    began, waited = time.monotonic(), waited_seconds(replica.pid)
    async with Memory(replica.pid) as memory:
        yield found
    seconds = time.monotonic() - began
    found.waited = (waited_seconds(replica.pid) - waited) / seconds
    found.memory = memory.highest
    looking.cancel()
    await asyncio.wait({looking})


def _tell(scene: StreamScene, verdict: Verdict, streams: int) -> None:
    scene.at_least("  complete", verdict.complete, streams, count)
    scene.at_most("  tokens lost", verdict.lost, 0, count)
    scene.at_most("  doubled", verdict.doubled, 0, count)
    scene.at_most("  another stream's, or out of order", verdict.strange, 0, count)
    if verdict.delays:
        scene.told("  upstream's write to reader: p50, p99", ranks(verdict.delays))


def _tell_cost(scene: StreamScene, watched: _Watched, source: Upstream) -> None:
    busy = f"{percentile(watched.busy, 0.5):.0%}, {max(watched.busy, default=0):.0%}"
    scene.told("  gateway's CPU in a second: p50, max", busy)
    scene.told("  time it stood in line for its core", f"{watched.waited:.0%}")
    commits = watched.commits
    scene.told("  commit_ms: p50, max", f"{percentile(commits, 0.5):.0f}, {max(commits, default=0):.0f}")
    scene.told("  not in the log yet, at most", f"{watched.unlogged / 1024:.0f} KiB")
    scene.told("  gateway's memory, at most", f"{watched.memory:.0f} MiB")
    scene.told("  the bench's own delay: p50, p99", ranks(source.pacer.late))
