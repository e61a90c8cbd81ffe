"""Whatever comes, is written down and is forgotten: each reader is given every event once, or sent to the log for it."""

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.services.streams.channel import Channel, End
from app.store.stream_log import Part
from app.wire.sse import DONE, PING, event
from app.wire.streams import beyond, number_of
from tests.wire.event_source import parsed

NUMBER, SHARD = 7, 3
LARGEST = 40_000  # of an event: the log's places are remembered every 64 KiB


def block(first: int, sizes: list[int]) -> bytes:
    """Events that carry their own numbers, as they come from upstream."""
    return b"".join(
        event(json.dumps({"n": first + place, "x": "x" * size}).encode()) for place, size in enumerate(sizes)
    )


def numbers(events: bytes) -> list[int]:
    """The numbers of events, which are those that they carry."""
    found = parsed(events)
    assert [json.loads(one.data)["n"] for one in found] == [int(one.id) for one in found]
    return [int(one.id) for one in found]


def upto(last: int, first: int = 1) -> list[int]:
    return list(range(first, last + 1))


@dataclass
class Reading:
    seen: int
    got: list[int] = field(default_factory=list)


class Model(RuleBasedStateMachine):
    """Against a log that is a list, in which neighbours write, too."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[int, Part]] = []
        self.taken: deque[Part] = deque()
        self.readers: list[Reading] = []
        self.largest_group = 0
        self.keep = 1 << 30
        self.given = 0

    @initialize(start=st.integers(1, 5))
    def begin(self, start: int) -> None:
        self.channel = Channel(NUMBER, SHARD, start, names=False)
        self.position = start - 1

    @rule(sizes=st.lists(st.integers(0, LARGEST), min_size=1, max_size=6))
    def add(self, sizes: list[int]) -> None:
        before = self.channel.bytes
        self.channel.add(block(self.given + 1, sizes))
        self.given += len(sizes)
        self.largest_group = max(self.largest_group, self.channel.bytes - before)

    @rule(nothing=st.sampled_from([PING, DONE, b""]))
    def add_nothing(self, nothing: bytes) -> None:
        self.channel.add(nothing)

    @rule()
    def take(self) -> None:
        part = self.channel.take()
        if part is not None:
            self.taken.append(part)

    @precondition(lambda self: self.taken)
    @rule(keep=st.sampled_from([0, 1000, 50_000, 200_000]), neighbours=st.integers(0, 3))
    def logged(self, keep: int, neighbours: int) -> None:
        part = self.taken.popleft()
        self.position += 1 + neighbours
        self.log.append((self.position, part))
        self.channel.logged(part, self.position, keep)
        self.keep = keep

    @rule(data=st.data())
    def come(self, data: st.DataObject) -> None:
        self.readers.append(Reading(data.draw(st.integers(0, self.given))))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), most=st.sampled_from([1, 500, 64_000, 10**9]))
    def read(self, data: st.DataObject, most: int) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        found = self.channel.after(reader.seen, most)
        if found is None:
            reached, events = self.from_log(reader.seen)
        else:
            reached, events = found
            assert len(events) < most + self.largest_group
            assert bool(events) == (reader.seen < self.given)
        assert numbers(events) == upto(reached, reader.seen + 1)
        reader.seen = reached

    def from_log(self, seen: int) -> tuple[int, bytes]:
        """What a reader finds there who goes on at the place that he is told: it must be the next, and no less."""
        at = self.channel.position_of(seen)
        page = [part for position, part in self.log if position >= at and part[1] > seen]
        assert page, "neither memory nor log have it"
        _, last, events = page[0]
        return last, beyond(events, seen) if number_of(events) <= seen else events

    @invariant()
    def memory_is_bounded(self) -> None:
        if self.log or self.given:
            assert self.channel._kept_bytes == sum(len(events) for _, events in self.channel._kept)
            assert self.channel._kept_bytes <= self.keep + self.channel.unlogged + self.largest_group
            assert len(self.channel._marks) <= 1 + self.channel.bytes // (64 * 1024)

    @invariant()
    def it_knows_what_the_log_does_not_have(self) -> None:
        if self.given:
            assert self.channel.unlogged == self.channel.bytes - sum(len(events) for _, (*_, events) in self.log)
            assert self.channel.last == self.given

    @invariant()
    def no_place_in_the_log_passes_anything_over(self) -> None:
        for reader in self.readers:
            at = self.channel.position_of(reader.seen)
            assert all(position >= at for position, part in self.log if part[1] > reader.seen)

    def teardown(self) -> None:
        """All of them come to the end."""
        for reader in self.readers:
            while (found := self.channel.after(reader.seen, 10**9) or self.from_log(reader.seen))[1]:
                assert numbers(found[1]) == upto(found[0], reader.seen + 1)
                reader.seen = found[0]
            assert reader.seen == self.given


TestModel = Model.TestCase


# --- waiting ---


async def follow(channel: Channel, hops: int) -> list[int]:
    """Reads to the end; `hops`: how often others get their turn between two pieces."""
    seen, got = 0, list[int]()
    while True:
        found = channel.after(seen, 100)
        assert found is not None
        seen, events = found
        got += numbers(events)
        if not events:
            if channel.end is not None:
                return got
            await channel.more(asyncio.get_running_loop().create_future())
        for _ in range(hops):
            await asyncio.sleep(0)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), max_size=10),
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.integers(0, 3),
)
def test_no_reader_sleeps_through_an_event_or_the_end(
    blocks: list[tuple[int, int]], readers: list[int], before_the_end: int
) -> None:
    async def play() -> None:
        channel = Channel(NUMBER, SHARD, 1, names=False)
        tasks = [asyncio.create_task(follow(channel, hops)) for hops in readers]
        for size, hops in blocks:
            channel.add(block(channel.last + 1, [1] * size))
            for _ in range(hops):
                await asyncio.sleep(0)
        for _ in range(before_the_end):
            await asyncio.sleep(0)
        channel.finish(End("completed", None))
        async with asyncio.timeout(3):
            assert await asyncio.gather(*tasks) == [upto(channel.last)] * len(readers)
        assert not channel._readers

    asyncio.run(play())


async def waiting(channel: Channel, count: int) -> list["asyncio.Task[None]"]:
    tasks = [asyncio.create_task(channel.more(asyncio.get_running_loop().create_future())) for _ in range(count)]
    await asyncio.sleep(0)
    assert len(channel._readers) == count
    return tasks


async def test_a_reader_that_goes_leaves_nothing_behind_and_the_others_are_woken() -> None:
    channel = Channel(NUMBER, SHARD, 1, names=False)
    first, second, third = await waiting(channel, 3)
    second.cancel()
    await asyncio.wait({second})
    assert len(channel._readers) == 2
    third.cancel()  # as the event comes
    channel.add(block(1, [1]))
    await asyncio.wait({first, third})
    assert (first.cancelled(), third.cancelled()) == (False, True)
    assert not channel._readers


async def test_somebody_else_may_wake_a_reader() -> None:
    channel = Channel(NUMBER, SHARD, 1, names=False)
    alarm: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    (other,) = await waiting(channel, 1)
    task = asyncio.create_task(channel.more(alarm))
    await asyncio.sleep(0)
    alarm.set_result(None)
    await task
    channel.finish(End("completed", None))
    await other
    assert not channel._readers


async def test_whoever_writes_too_fast_waits_for_the_log() -> None:
    channel = Channel(NUMBER, SHARD, 1, names=False)
    parts: list[Part] = []
    for _ in range(3):
        channel.add(block(channel.last + 1, [1000]))
        part = channel.take()
        assert part is not None
        parts.append(part)
    await channel.room(channel.unlogged + 1)  # there is some
    room = asyncio.create_task(channel.room(1500))
    for position, part in enumerate(parts[:2], 1):
        await asyncio.sleep(0)
        assert not room.done()
        channel.logged(part, position, 10**6)
    await asyncio.wait_for(room, 5)
    assert channel.unlogged == len(parts[2][2])


async def test_a_writer_that_is_ended_while_it_waits_does_not_disturb_the_log() -> None:
    channel = Channel(NUMBER, SHARD, 1, names=False)
    channel.add(block(1, [1000]))
    room = asyncio.create_task(channel.room(10))
    await asyncio.sleep(0)
    room.cancel()
    await asyncio.wait({room})
    part = channel.take()
    assert part is not None
    channel.logged(part, 1, 0)
    await channel.room(10)
    assert channel.unlogged == 0
