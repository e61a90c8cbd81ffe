"""`sluicegate batch …`: files full of calls, handed to a running gateway that works them off by itself."""

import asyncio
import os
import shlex
import sys
import uuid
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from app.commands.batch_object import Batch, path_of
from app.commands.batch_progress import Display, end
from app.commands.batch_watch import Results, Watch
from app.commands.progress import plain
from app.commands.remote import LONGEST_LINE, AwayError, Remote
from app.config import ConfigError
from app.wire.jsonl import LineReader

_HOME = "http://127.0.0.1:8000"
DETACHED = 130
_ENDPOINT = "/v1/chat/completions"
_PIECE = 64 * 1024
_PAGE = 100  # the most that the gateway lists at once
_TRIES, _PAUSE = 5, 1.0  # of a create that the gateway could not answer; seconds between


@dataclass(frozen=True, slots=True)
class Place:
    """Which gateway. `url`: None: the one that runs here with its default settings."""

    url: str | None
    api_key: str | None

    def remote(self) -> Remote:
        return Remote(self.url or _HOME, self.api_key)

    def again(self, command: str, *more: str) -> str:
        """Returns: What to type to come back to it."""
        where = [] if self.url in {None, os.environ.get("SLUICEGATE_URL")} else ["--url", str(self.url)]
        return shlex.join(["sluicegate", "batch", command, *more, *where])


class _File(msgspec.Struct):
    id: str


class _Page(msgspec.Struct):
    data: list[msgspec.Raw]
    has_more: bool = False


class _Line(msgspec.Struct):
    url: str = _ENDPOINT


async def submit(place: Place, file: Path, options: Mapping[str, Any], idempotency_key: str | None) -> Batch:
    """Uploads a file and makes a batch of it.

    Args:
        options: Fields of the batch.
        idempotency_key: Holds for the upload, too: only then is the batch asked for the same one.
    """
    wanted = {"endpoint": _endpoint(file), **options}
    key = idempotency_key or uuid.uuid4().hex
    async with place.remote() as remote:
        uploaded = await _uploaded(remote, file, key)
        try:
            return await _created(remote, {"input_file_id": uploaded, **wanted}, key)
        except AwayError as error:
            raise ConfigError(f"{error} (whether there is a batch, `{place.again('list')}` will tell)") from None
        except ConfigError:
            if idempotency_key is None:  # else the next try with the key is given this file
                with suppress(ConfigError):
                    await remote.ask("DELETE", f"/files/{uploaded}")
            raise


async def _created(remote: Remote, fields: Mapping[str, Any], key: str) -> Batch:
    """The upload was the dear part: a create is tried again, and its key makes sure that it counts once."""
    for left in reversed(range(_TRIES)):
        try:
            return Batch.read(await remote.ask("POST", "/batches", json=fields, headers={"idempotency-key": key}))
        except AwayError:
            if not left:
                raise
        await asyncio.sleep(_PAUSE)
    raise AssertionError


def _endpoint(file: Path) -> str:
    """Returns: The url of the first line; if it cannot be read, the gateway will say what is wrong with it."""
    reader = LineReader(LONGEST_LINE)
    with file.open("rb") as source:
        for piece in iter(lambda: source.read(_PIECE), b""):
            for line in reader.feed(piece):
                return _url(line or b"")
    return next((_url(line or b"") for line in reader.close()), _ENDPOINT)


def _url(line: bytes) -> str:
    try:
        return msgspec.json.decode(line, type=_Line).url
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _ENDPOINT


async def _uploaded(remote: Remote, file: Path, key: str) -> str:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    shown = sys.stderr.isatty()
    with (
        Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as progress,
        progress.open(file, "rb", description="uploading") as source,
    ):
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", source, filename=file.name, content_type="application/jsonl")
        answer = await remote.ask("POST", "/files", data=form, headers={"idempotency-key": f"{key}-file"})
    try:
        return msgspec.json.decode(answer, type=_File).id
    except msgspec.DecodeError as error:
        raise ConfigError(f"the gateway answered something that is no file: {error}") from None


async def watch(place: Place, batch_id: str, out: Path | None) -> int:
    """Follows a batch. Returns: The exit code: 0 if every line has succeeded."""
    display = Display()
    with closing(Results(out)) as results:
        try:
            async with place.remote() as remote:
                with display:
                    watched = Watch(remote, batch_id, display, results if out else None)
                    batch = await watched.to_the_end()
        except asyncio.CancelledError:
            typer.echo(f"The batch goes on. Come back with: {place.again('watch', batch_id)}", err=True)
            return DETACHED
    end(batch, watched.causes)
    return 0 if batch.is_well else 1


async def results(place: Place, batch_id: str, out: Path | None, after: int, *, follow: bool) -> int:
    """Writes result lines, those that are there or all that will be. Returns: The exit code."""
    with closing(Results(out, after)) as target:
        try:
            async with place.remote() as remote:
                watched = Watch(remote, batch_id, Display(quiet=True), target)
                await (watched.to_the_end() if follow else watched.look())
        except asyncio.CancelledError:
            come_back = place.again(
                "results", batch_id, "--after", str(target.after), *(["--follow"] if follow else [])
            )
            typer.echo(f"The batch goes on. Come back with: {come_back}", err=True)
            return DETACHED
    return 0


async def change(place: Place, batch_id: str, action: str) -> Batch:
    """Args: action: `cancel` or `retry`. Returns: The batch that the gateway answers with."""
    async with place.remote() as remote:
        return Batch.read(await remote.ask("POST", f"{path_of(batch_id)}/{action}"))


def told(batch: Batch, sentence: str) -> None:
    """Tells of a batch: a sentence on a terminal, else the object as a JSON line."""
    typer.echo(sentence if sys.stdout.isatty() else batch.text)


async def listed(place: Place, limit: int) -> None:
    """Prints the newest batches: a table on a terminal, else a JSON line each."""
    batches: list[Batch] = []
    more = True
    async with place.remote() as remote:
        while more and len(batches) < limit:
            query = {"limit": str(min(_PAGE, limit - len(batches)))}
            if batches:
                query["after"] = batches[-1].id
            page = _page(await remote.ask("GET", "/batches", params=query))
            batches += [Batch.read(bytes(one)) for one in page.data]
            more = page.has_more and bool(page.data)
    if sys.stdout.isatty():
        Console().print(_table(batches))
    else:
        for batch in batches:
            typer.echo(batch.text)


def _page(answer: bytes) -> _Page:
    try:
        return msgspec.json.decode(answer, type=_Page)
    except msgspec.DecodeError as error:
        raise ConfigError(f"the gateway answered something that is no list: {error}") from None


def _table(batches: list[Batch]) -> Table:
    table = Table("batch", "status", box=None)
    for name in ("done", "of", "failed"):
        table.add_column(name, justify="right")
    table.add_column("endpoint")
    table.add_column("created")
    for batch in batches:
        counts = batch.counts
        figures = (f"{number:,}" for number in (counts.done, counts.total, counts.failed))
        status = "paused" if batch.trouble else batch.status
        cells = (batch.id, status, *figures, batch.endpoint, batch.created)
        table.add_row(*(Text(plain(cell), no_wrap=index == 0) for index, cell in enumerate(cells)))
    return table
