"""Reads a batch's input from end to end before a line of it is sent, and cuts it into slices."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from app.errors import FileContentMissingError
from app.services.files import Files
from app.store.ledger import SLICE_LINES
from app.wire.batch_lines import Checker
from app.wire.bits import Bits
from app.wire.line_scanner import LineScanner, Scanned

_SLICE_BYTES = 1024**2
_MOST_MODELS = 64  # that are looked up
_ASK_EVERY = 64  # pieces
_ENOUGH_ERRORS = 100


@dataclass(frozen=True, slots=True)
class Verdict:
    """Attributes:
    slices: Rows for `store.tables.slices`.
    model: The one that all lines name; None: they differ.
    errors: As in the batch object; none: the input is good.
    """

    slices: list[dict[str, Any]]
    lines: int
    model: str | None
    errors: list[dict[str, Any]]


@dataclass(slots=True)
class Cutter:
    """Cuts lines into slices. Args: batch: Its number."""

    batch: int
    slices: list[dict[str, Any]] = field(default_factory=list)
    _lines: int = 0
    _start: int = 0
    _stop: int = 0

    def add(self, line: Scanned) -> None:
        if self._lines and (self._lines == SLICE_LINES or line.stop - self._start > _SLICE_BYTES):
            self.close()
        if not self._lines:
            self._start = line.start
        self._lines += 1
        self._stop = line.stop

    def close(self) -> None:
        """Ends the slice at hand."""
        if self._lines:
            bits = Bits(self._lines).bytes()
            place = {"start": self._start, "stop": self._stop, "lines": self._lines}
            self.slices.append({"batch": self.batch, "number": len(self.slices), **place, "sent": bits, "done": bits})
            self._lines = 0


async def validate(
    files: Files,
    batch: Mapping[str, Any],
    longest: int,
    most_lines: int,
    exists: Callable[[str], Awaitable[bool]],
    is_wanted: Callable[[], Awaitable[bool]],
) -> Verdict | None:
    """Args:
        longest: Bytes of the longest line.
        exists: Whether there is such a model.
        is_wanted: Whether to go on; asked every 16 MiB.
    Returns:
        None: nobody wants to know any more.
    """
    allowed = None if batch["models"] is None else frozenset(batch["models"])
    checker = Checker(batch["endpoint"], lambda model: allowed is None or model in allowed, most_lines)
    scanner, cutter = LineScanner(longest), Cutter(batch["number"])

    def see(piece: bytes) -> bool:
        for line in scanner.feed(piece) if piece else scanner.close():
            if checker.see(line) is not None:
                cutter.add(line)
        return checker.wrong < _ENOUGH_ERRORS and checker.lines <= most_lines

    try:
        if not await _read(files, batch["input_file_id"], see, is_wanted):
            return None
    except FileContentMissingError as error:
        return Verdict([], 0, None, [_flaw("invalid_request", None, error.message, "input_file_id")])
    see(b"")
    cutter.close()
    checker.finish()
    if not checker.errors and len(checker.models) <= _MOST_MODELS:
        for model, line in checker.models.items():
            if not await exists(model):
                message = f"the model {model[:200]!r} does not exist or is not yours to use"
                checker.errors.append(_flaw("model_not_found", line, message, "body.model"))
    only = next(iter(checker.models)) if len(checker.models) == 1 else None
    return Verdict(cutter.slices, checker.lines, only, checker.errors)


async def _read(
    files: Files, file_id: str, see: Callable[[bytes], bool], is_wanted: Callable[[], Awaitable[bool]]
) -> bool:
    """Shows the file to `see`, as long as that wants more. Returns: Whether anybody still wants to know."""
    pieces = 0
    async with aclosing(files.reading(file_id)) as reading:
        async for piece in reading:
            if not await asyncio.to_thread(see, piece):
                break
            pieces += 1
            if pieces % _ASK_EVERY == 0 and not await is_wanted():
                return False
    return True


def _flaw(code: str, line: int | None, message: str, param: str) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": param}
