"""`sluicegate fanout`: a file's lines side by side, here or through a running gateway."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Any

import aiohttp
import anyio
from rich.progress import Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from app.commands.progress import Bar, Causes, rate
from app.commands.remote import LONGEST_LINE, authorized, home
from app.config import ConfigError
from app.errors import InvalidRequestError
from app.services.fanout import Fanout
from app.services.items import read_from
from app.services.keys import ANYONE
from app.settings import GatewaySettings
from app.wire.fanout import read_options
from app.wire.jsonl import LineReader
from app.wire.results import Result
from app.wiring import running_calls

_PIECE = 256 * 1024


async def in_process(settings: GatewaySettings, file: Path, options: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
    """Yields: A result line per item; needs no server."""
    try:
        wanted = read_options(options)
    except InvalidRequestError as error:
        raise ConfigError(f"{error.param}: {error.message}") from None

    async with running_calls(settings) as calls:
        items = read_from(_pieces(file), wanted, settings.max_line_bytes, streams=False)
        run = Fanout(calls.cache.call, items, wanted, ANYONE.check, calls.stack.slots)
        try:
            async for result in run:
                if isinstance(result, Result):
                    yield result.line()
        finally:
            await run.aclose()


async def over_http(
    url: str, api_key: str | None, file: Path, options: Mapping[str, str]
) -> AsyncGenerator[bytes, None]:
    """Yields: A result line per item, as the gateway at `url` sends them while the file still goes out."""
    headers = {"content-type": "application/x-ndjson", "accept": "application/x-ndjson", **authorized(api_key)}
    address = f"{home(url)}/fanout"
    lines = LineReader(LONGEST_LINE)
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
            session.post(address, params=options, headers=headers, data=_pieces(file)) as reply,
        ):
            if reply.status != 200:
                raise ConfigError(f"{address} answered {reply.status}: {(await reply.text())[:300]}")
            async for piece in reply.content.iter_any():
                for line in lines.feed(piece):
                    if line is None:
                        raise ConfigError(f"a result line is longer than {LONGEST_LINE} bytes")
                    if b'"fanout.summary"' in line[:60]:
                        return
                    yield line
        raise ConfigError(f"{address} ended before its summary: the results are not all here")
    except aiohttp.ClientError as error:
        raise ConfigError(f"{address}: {error}") from None


async def _pieces(file: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(file, "rb") as source:
        while piece := await source.read(_PIECE):
            yield piece


async def run(lines: AsyncGenerator[bytes, None], file: Path, out: Path | None) -> int:
    """Writes the result lines and shows how it goes. Returns: The exit code."""
    total = await anyio.to_thread.run_sync(_count_lines, file)
    failures = Causes()
    done = 0
    target: IO[bytes] | None = None
    progress = _progress(quiet=out is None)
    try:
        progress.start()
        async with contextlib.aclosing(lines):
            bar = progress.add_task("", total=total)
            async for line in lines:
                if target is None:  # only now: an old file of results is not lost to a wrong option
                    target = _opened(out)
                target.write(line + b"\n")
                done += 1
                if failures.add(line):
                    progress.note(failures)
                progress.update(bar, completed=done)
    except asyncio.CancelledError:
        _say({"stopped": True, "done": done, "of": total, "out": str(out or "-")})
        raise
    finally:
        progress.stop()
        if target is not None:
            target.flush()
        if target is not None and out is not None:
            target.close()
    _say({"total": done, "failed": failures.total, "failures": failures.counts(), "out": str(out or "-")})
    return 1 if failures.total else 0


def _say(summary: dict[str, Any]) -> None:
    print(json.dumps(summary), file=sys.stderr)  # noqa: T201


def _opened(out: Path | None) -> IO[bytes]:
    if out is None:
        return sys.stdout.buffer
    try:
        return out.open("wb")
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror}") from None


def _progress(*, quiet: bool) -> Bar:
    """Args: quiet: The results themselves go to the terminal."""
    shown = sys.stderr.isatty() and not (quiet and sys.stdout.isatty())
    return Bar(_Rate("{task.speed}"), TimeRemainingColumn(), shown=shown)


class _Rate(TextColumn):
    def render(self, task: Task) -> Text:
        return Text(rate(task.speed))


def _count_lines(file: Path) -> int:
    with file.open("rb") as source:
        return sum(1 for line in source if line.strip())
