"""The options of `sluicegate batch …`. What the commands import is imported when they run: `--help` is instant."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.commands.explains import explains
from app.config import ConfigError

if TYPE_CHECKING:
    from app.commands.batch import Place
    from app.commands.batch_object import Batch

batch = typer.Typer(help="Files full of calls, worked off by a running gateway.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="The batch's id", show_default=False)]
Url = Annotated[
    str | None, typer.Option(envvar="SLUICEGATE_URL", help="The gateway's address [default: http://127.0.0.1:8000]")
]
Key = Annotated[str | None, typer.Option(envvar="SLUICEGATE_API_KEY", help="The gateway's key")]
Out = Annotated[Path | None, typer.Option("-o", "--out", help="Result lines go here, as they come")]
Force = Annotated[bool, typer.Option("--force", help="Write over an existing file of results")]
Watching = Annotated[bool, typer.Option("--watch", help="Go on as `watch`")]


@batch.command()
@explains
def submit(
    file: Annotated[
        Path,
        typer.Argument(help="A JSON Lines file: {custom_id, method, url, body} a line", exists=True, dir_okay=False),
    ],
    endpoint: Annotated[str | None, typer.Option(help="What the lines ask for [default: the first line's url]")] = None,
    window: Annotated[str, typer.Option(help="How long it may take, as 24h or 30m")] = "24h",
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Kept with the batch")] = None,
    priority: Annotated[int | None, typer.Option(help="Batches of a higher one go first")] = None,
    on_doubt: Annotated[
        Literal["retry", "fail"] | None, typer.Option(help="What becomes of lines that a crash leaves in doubt")
    ] = None,
    dedupe: Annotated[bool | None, typer.Option(help="Identical lines share one call")] = None,
    pack: Annotated[bool | None, typer.Option(help="Embedding lines that agree share upstream calls")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key never makes a second batch")] = None,
    watch: Watching = False,
    out: Out = None,
    force: Force = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Upload a file and start a batch of it. Exit code 2: it could not start; with --watch, else as `watch`."""
    from app.commands import batch as command

    _check_out(out, force=force, watch=watch, source=file)
    given = {
        "endpoint": endpoint,
        "completion_window": window,
        "metadata": _pairs(metadata),
        "priority": priority,
        "on_doubt": on_doubt,
        "dedupe": dedupe,
        "pack_embeddings": pack,
    }
    options = {name: value for name, value in given.items() if value is not None}
    place = command.Place(url, api_key)
    try:
        made = asyncio.run(command.submit(place, file, options, idempotency_key))
    except KeyboardInterrupt:
        typer.echo(f"Stopped. Whether there is a batch already, tells: {place.again('list')}", err=True)
        raise typer.Exit(command.DETACHED) from None
    _go_on(place, made, out, watch=watch)


@batch.command(name="watch")
@explains
def watch_(batch_id: Id, out: Out = None, force: Force = False, url: Url = None, api_key: Key = None) -> None:
    """Follow a batch to its end. Exit code 0: all lines succeeded, 1: not all, 2: no such batch, 130: it goes on."""
    from app.commands import batch as command

    _check_out(out, force=force)
    raise typer.Exit(asyncio.run(command.watch(command.Place(url, api_key), batch_id, out)))


@batch.command()
@explains
def results(
    batch_id: Id,
    out: Out = None,
    after: Annotated[int, typer.Option(min=0, help="Lines to leave out at the start")] = 0,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the batch has ended")] = False,
    force: Force = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Write the result lines, also while the batch runs."""
    from app.commands import batch as command

    _check_out(out, force=force)
    place = command.Place(url, api_key)
    raise typer.Exit(asyncio.run(command.results(place, batch_id, out, after, follow=follow)))


@batch.command()
@explains
def cancel(batch_id: Id, url: Url = None, api_key: Key = None) -> None:
    """End a batch early; what is done is kept."""
    from app.commands import batch as command

    ended = asyncio.run(command.change(command.Place(url, api_key), batch_id, "cancel"))
    command.told(ended, f"Batch {ended.id} is {ended.status}.")


@batch.command()
@explains
def retry(
    batch_id: Id, watch: Watching = False, out: Out = None, force: Force = False, url: Url = None, api_key: Key = None
) -> None:
    """Start a new batch of those lines that failed."""
    from app.commands import batch as command

    _check_out(out, force=force, watch=watch)
    place = command.Place(url, api_key)
    _go_on(place, asyncio.run(command.change(place, batch_id, "retry")), out, watch=watch)


@batch.command(name="list")
@explains
def list_(
    limit: Annotated[int, typer.Option(min=1, help="So many, the newest first")] = 20,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """List batches."""
    from app.commands import batch as command

    asyncio.run(command.listed(command.Place(url, api_key), limit))


def _go_on(place: "Place", made: "Batch", out: Path | None, *, watch: bool) -> None:
    from app.commands import batch as command

    come_back = "" if watch else f" Come back with: {place.again('watch', made.id)}"
    command.told(made, f"Batch {made.id} is under way.{come_back}")
    if watch:
        raise typer.Exit(asyncio.run(command.watch(place, made.id, out)))


def _check_out(out: Path | None, *, force: bool, watch: bool = True, source: Path | None = None) -> None:
    if out is None:
        return
    if not watch:
        raise ConfigError("-o needs --watch: results come later")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent}: there is no such folder")
    if source is not None and out.resolve() == source.resolve():
        raise ConfigError(f"{out} is the input: the results need a file of their own")
    if out.exists() and not force:
        raise ConfigError(f"{out} is there already: --force writes over it")


def _pairs(metadata: list[str] | None) -> dict[str, Any] | None:
    pairs = [one.partition("=") for one in metadata or []]
    if wrong := [name for name, is_pair, _ in pairs if not is_pair]:
        raise ConfigError(f"metadata = {wrong[0]!r}: must be KEY=VALUE")
    return {name: value for name, _, value in pairs} or None
