"""`sluicegate fanout`: a file's lines side by side, here or through a running gateway."""

import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Any

import aiohttp
import anyio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.config import ConfigError
from app.errors import InvalidRequestError
from app.main import running_gateway
from app.services.fanout import Fanout
from app.services.keys import ANYONE
from app.settings import GatewaySettings
from app.wire.fanout import Item, ItemReader, read_options
from app.wire.jsonl import LineReader
from app.wire.results import Result

_PIECE = 256 * 1024
_LONGEST_LINE = 64 * 1024**2


async def in_process(settings: GatewaySettings, file: Path, options: Mapping[str, str]) -> AsyncIterator[bytes]:
    """Yields: A result line per item; needs no server."""
    try:
        wanted = read_options(options)
    except InvalidRequestError as error:
        raise ConfigError(f"{error.param}: {error.message}") from None

    async def items() -> AsyncIterator[Item]:
        lines, reader = LineReader(settings.max_line_bytes), ItemReader(wanted, streams=False)
        async for piece in _pieces(file):
            for line in lines.feed(piece):
                yield reader.line(line)
        for line in lines.close():
            yield reader.line(line)

    async with running_gateway(settings) as gateway:
        most = sum(upstream.admission.limit for upstream in gateway.stack.upstreams.values())
        run = Fanout(gateway.splitter.call, items(), wanted, ANYONE.check, most)
        try:
            async for result in run:
                if isinstance(result, Result):
                    yield result.line()
        finally:
            await run.aclose()


async def over_http(url: str, api_key: str | None, file: Path, options: Mapping[str, str]) -> AsyncIterator[bytes]:
    """Yields: A result line per item, as the gateway at `url` sends them while the file still goes out."""
    headers = {"content-type": "application/x-ndjson", "accept": "application/x-ndjson"}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    address = f"{url.rstrip('/').removesuffix('/v1')}/v1/fanout"
    lines = LineReader(_LONGEST_LINE)
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
            session.post(address, params=options, headers=headers, data=_pieces(file)) as reply,
        ):
            if reply.status != 200:
                raise ConfigError(f"{address} answered {reply.status}: {(await reply.text())[:300]}")
            async for piece in reply.content.iter_any():
                for line in lines.feed(piece):
                    if line is not None and b'"fanout.summary"' not in line[:60]:
                        yield line
    except aiohttp.ClientError as error:
        raise ConfigError(f"{address}: {error}") from None


async def _pieces(file: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(file, "rb") as source:
        while piece := await source.read(_PIECE):
            yield piece


async def run(lines: AsyncIterator[bytes], file: Path, out: Path | None) -> int:
    """Writes the result lines and shows how it goes. Returns: The exit code."""
    total = await anyio.to_thread.run_sync(_count_lines, file)
    failures: Counter[str] = Counter()
    done = 0
    target: IO[bytes] = sys.stdout.buffer if out is None else out.open("wb")
    try:
        with _progress() as progress:
            bar = progress.add_task("", total=total, failures="")
            async for line in lines:
                target.write(line + b"\n")
                done += 1
                if cause := _cause(json.loads(line)):
                    failures[cause] += 1
                progress.update(bar, completed=done, failures=_told(failures))
    finally:
        target.flush()
        if out is not None:
            target.close()
    summary = {"total": done, "failed": failures.total(), "failures": dict(failures), "out": str(out or "-")}
    print(json.dumps(summary), file=sys.stderr)  # noqa: T201
    return 1 if failures else 0


def _progress() -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        _Rate("{task.speed}"),
        TimeRemainingColumn(),
        TextColumn("[red]{task.fields[failures]}"),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )


class _Rate(TextColumn):
    def render(self, task: Any) -> Any:
        self.text_format = f"{task.speed or 0:.1f}/s"
        return super().render(task)


def _told(failures: Counter[str]) -> str:
    return ", ".join(f"{count} x {cause}" for cause, count in failures.most_common(3))


def _cause(line: dict[str, Any]) -> str:
    """Returns: Why an item failed, in a word; empty if it did not."""
    if line["error"] is not None:
        return str(line["error"]["code"])
    status = line["response"]["status_code"]
    return "" if 200 <= status < 300 else f"HTTP {status}"


def _count_lines(file: Path) -> int:
    with file.open("rb") as source:
        return sum(1 for line in source if line.strip())
