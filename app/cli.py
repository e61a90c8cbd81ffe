"""`sluicegate …`: thin commands over the same services, or over HTTP."""

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from app.commands.batch_cli import batch
from app.commands.explains import explains
from app.config import ConfigError, load

cli = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False, rich_markup_mode=None)
cli.add_typer(batch, name="batch")

Host = Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="Port to listen on [default: 8000]")]
Workers = Annotated[int | None, typer.Option(help="Processes [default: 1]")]
Config = Annotated[str | None, typer.Option(help="Configuration file [default: sluicegate.toml]")]


@cli.callback(invoke_without_command=True)
@explains
def root(
    context: typer.Context,
    host: Host = None,
    port: Port = None,
    workers: Workers = None,
    config: Config = None,
) -> None:
    """The gateway between your applications and their language models. Without a command: serve."""
    if context.invoked_subcommand is None:
        _serve(host, port, workers, config)
    elif any(option is not None for option in (host, port, workers, config)):
        raise ConfigError(f"options go behind the command: sluicegate {context.invoked_subcommand} …")


@cli.command()
@explains
def serve(host: Host = None, port: Port = None, workers: Workers = None, config: Config = None) -> None:
    """Serve the gateway (the default)."""
    _serve(host, port, workers, config)


def _serve(host: str | None, port: int | None, workers: int | None, config: str | None) -> None:
    from app import serving

    settings = load(config, host=host, port=port, workers=workers)
    from app.main import create_app
    from app.wiring import check_storage

    serving.raise_open_files()
    with serving.listener(settings.host, settings.port) as bound:
        check_storage(settings)
        typer.echo(serving.banner(settings, bound.getsockname()[1]), err=True)
        if settings.workers == 1:
            serving.serve(create_app(settings), bound)
        else:
            serving.serve_workers(settings, bound)


@cli.command()
@explains
def worker(config: Config = None) -> None:
    """Work batches off without serving: as many as you like beside servers on one `database_url`."""
    from app import serving
    from app.commands import worker as command
    from app.telemetry import configure_logging

    settings = load(config)
    settings = settings.model_copy(update={"batches": settings.batches.model_copy(update={"worker": True})})
    configure_logging(settings.log_level, access=False)
    serving.raise_open_files()
    asyncio.run(command.run(settings))


@cli.command()
@explains
def simulate(
    host: Annotated[str, typer.Option(help="Address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on")] = 8001,
    latency: Annotated[float | None, typer.Option(help="Seconds before a reply")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens in an answer")] = None,
    gap: Annotated[float | None, typer.Option(help="Seconds between two tokens")] = None,
) -> None:
    """Serve the simulator alone: an upstream to try things against. Knobs go into the model's name."""
    from app import serving
    from app.simulator.app import Simulator
    from app.simulator.knobs import KNOBS

    given = {"latency": latency, "tokens": tokens, "gap": gap}
    chosen = load().simulator.model_copy(update={name: value for name, value in given.items() if value is not None})
    knobs = "\n".join(f"  -{name}=N  {meaning}" for name, meaning in KNOBS.items())
    serving.raise_open_files()
    with serving.listener(host, port) as bound:
        where = f"http://{host}:{bound.getsockname()[1]}"
        typer.echo(f"Simulator: base_url {where}/v1, ledger at /ledger. In the model's name:\n{knobs}", err=True)
        serving.serve(Simulator(chosen), bound)


@cli.command()
@explains
def fanout(
    file: Annotated[
        Path, typer.Argument(help="A JSON Lines file: {custom_id, url, body} a line", exists=True, dir_okay=False)
    ],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Results go here [default: standard output]")] = None,
    model: Annotated[str | None, typer.Option(help="The model of lines that name none")] = None,
    endpoint: Annotated[str, typer.Option(help="The url of lines that name none")] = "/v1/chat/completions",
    order: Annotated[str, typer.Option(help="input or completed")] = "completed",
    concurrency: Annotated[int | None, typer.Option(help="Calls at once, if fewer than the server's limit")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds for all of it")] = None,
    url: Annotated[str | None, typer.Option(help="A running gateway's address; default: run it right here")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="SLUICEGATE_API_KEY", help="The gateway's key, with --url")
    ] = None,
    config: Config = None,
) -> None:
    """Send every line of a file, side by side. Exit code 0: all succeeded, 1: some failed, 2: could not start."""
    from app.commands import fanout as command

    if out is not None and out.resolve() == file.resolve():
        raise ConfigError(f"{out} is the input: the results need a file of their own")
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"{out.parent}: there is no such folder")
    given = {"url": endpoint, "order": order, "concurrency": concurrency, "timeout": timeout}
    options = {name: str(value) for name, value in given.items() if value is not None}
    if model is not None:
        options["defaults"] = json.dumps({"model": model})
    lines = command.over_http(url, api_key, file, options) if url else command.in_process(load(config), file, options)
    raise typer.Exit(asyncio.run(command.run(lines, file, out)))


@cli.command()
@explains
def bench(
    base_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible upstream [default: a simulator]")] = None,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="Its key")] = "none",
    model: Annotated[str | None, typer.Option(help="The model to ask")] = None,
    sizes: Annotated[str, typer.Option(help="Numbers of calls")] = "1,10,100,1000",
    sample: Annotated[int, typer.Option(help="Sequential calls really made; more are extrapolated")] = 10,
    out: Annotated[Path | None, typer.Option(help="A folder for results.csv and plot.svg")] = None,
) -> None:
    """Sync or async? Answers with figures, measured here and now."""
    from app.commands import bench as command

    try:
        numbers = [int(size) for size in sizes.split(",")]
    except ValueError:
        raise ConfigError(f"sizes = {sizes!r}: must be whole numbers with commas between them") from None
    if min(numbers) < 1 or sample < 1:
        raise ConfigError("sizes and sample must be at least 1")
    command.run(base_url, api_key, model, numbers, sample, out)


def main() -> None:
    cli(prog_name="sluicegate")


if __name__ == "__main__":
    main()
