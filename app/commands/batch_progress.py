"""How a batch goes: as a bar on a terminal, as JSON lines for a program."""

import sys
from types import TracebackType
from typing import Self

import typer
from rich.progress import TextColumn

from app.commands.batch_object import Batch
from app.commands.progress import Bar, Causes, plain, rate, span

_FAULTS_SHOWN = 10


class Display:
    """Shows one batch.

    Args:
        quiet: The results themselves go to standard output; only trouble is told.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        columns = (TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[eta]}"))
        self._bar = Bar(*columns, shown=sys.stderr.isatty() and not quiet)
        self._task = self._bar.add_task("", total=None, rate="", eta="")
        self._has_lines = not quiet and not (sys.stdout.isatty() and sys.stderr.isatty())
        self._last: tuple[object, ...] = ()
        self._is_away = False

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, batch: Batch, causes: Causes) -> None:
        """Tells of the batch if it is not as it was."""
        if self._is_away:
            self._is_away = False
            self._trouble("the gateway is back")
        now = batch.progress
        eta = span(*now.eta_seconds) if now and now.eta_seconds and not batch.has_ended else ""
        self._bar.update(
            self._task,
            description=batch.status,
            total=batch.counts.total or None,
            completed=batch.counts.done,
            rate=rate(now.per_second if now else None),
            eta=eta,
        )
        self._bar.note(causes, plain(batch.trouble))
        state = (batch.status, batch.request_counts, batch.trouble)
        if self._has_lines and state != self._last:
            typer.echo(batch.change())
        self._last = state

    def away(self, why: str) -> None:
        """The gateway does not answer, and is waited for."""
        if not self._is_away:
            self._trouble(f"{why}: waiting for the gateway")
        self._is_away = True

    def _trouble(self, text: str) -> None:
        self._bar.console.print(f"sluicegate: {text}", markup=False, highlight=False, soft_wrap=True)


def end(batch: Batch, causes: Causes) -> None:
    """Tells on standard error how a batch has ended, and the first faults of its input."""
    faults = batch.errors.data if batch.errors else []
    for fault in faults[:_FAULTS_SHOWN]:
        typer.echo(f"sluicegate: {plain(fault)}", err=True)
    if len(faults) > _FAULTS_SHOWN:
        typer.echo(f"sluicegate: and {len(faults) - _FAULTS_SHOWN} more", err=True)
    counts = batch.counts
    why = f" ({causes})" if causes.total else ""
    doubt = f", {batch.progress.in_doubt} once in doubt" if batch.progress and batch.progress.in_doubt else ""
    told = f"{counts.completed} of {counts.total} lines succeeded, {counts.failed} failed{why}{doubt}"
    typer.echo(f"{batch.id} {batch.status}: {told}", err=True)
