"""Where a fan-out's items come from: a list that is here, or lines that are still coming in."""

from collections.abc import AsyncGenerator, AsyncIterator

from app.wire.fanout import Item, ItemReader, Options
from app.wire.jsonl import LineReader


async def listed(items: list[Item]) -> AsyncGenerator[Item, None]:
    """Yields: Items that are all here."""
    for item in items:
        yield item


async def read_from(
    pieces: AsyncIterator[bytes], options: Options, longest_line: int, *, streams: bool
) -> AsyncGenerator[Item, None]:
    """Yields: An item for each line of NDJSON text that comes in pieces."""
    lines, items = LineReader(longest_line), ItemReader(options, streams=streams)
    async for piece in pieces:
        for line in lines.feed(piece):
            yield items.line(line)
    for line in lines.close():
        yield items.line(line)
