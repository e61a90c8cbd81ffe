"""How a command ends that cannot do what it was asked: with one line, never with a traceback."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from app.config import ConfigError


def explains(command: Callable[..., None]) -> Callable[..., None]:
    """A wrong setting ends the command with one line and exit code 2."""

    @wraps(command)
    def explained(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ConfigError as error:
            typer.echo(f"sluicegate: {error}", err=True)
            raise typer.Exit(2) from None

    return explained
