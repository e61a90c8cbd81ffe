"""What commands tell of many calls: how far they are, how long they will take, and why some failed."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
from rich.text import Text

_MOST_CAUSES = 8
_OTHERS = "others"


class _Fault(msgspec.Struct):
    code: str | None = None


class _Response(msgspec.Struct):
    status_code: int


class _Line(msgspec.Struct):
    response: _Response | None = None
    error: _Fault | None = None


_LINE = msgspec.json.Decoder(_Line)


class Causes:
    """Failures, grouped; only so many groups, however many causes there are."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self._counts.total()

    def add(self, line: bytes) -> bool:
        """Takes a result line. Returns: Whether it tells of a failure."""
        cause = _cause(line)
        if cause not in self._counts and len(self._counts) >= _MOST_CAUSES:
            cause = cause and _OTHERS
        if cause:
            self._counts[cause] += 1
        return bool(cause)

    def counts(self) -> dict[str, int]:
        return dict(self._counts)

    def __str__(self) -> str:
        named = [(cause, count) for cause, count in self._counts.most_common() if cause != _OTHERS]
        more = self._counts.total() - sum(count for _, count in named)
        return ", ".join(f"{count} x {cause}" for cause, count in named) + (f", {more} {_OTHERS}" if more else "")


class Bar(Progress):
    """A bar on standard error, and under it what is worth a line of its own: failures, or why nothing happens.

    Args:
        rest: Columns behind how many are done.
    """

    def __init__(self, *rest: ProgressColumn, shown: bool) -> None:
        self._notes: list[Text] = []
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), *rest)
        super().__init__(*columns, console=Console(stderr=True), disable=not shown)

    def note(self, failures: Causes, trouble: str = "") -> None:
        told = [Text(str(failures), "red"), Text(trouble, "yellow")]
        self._notes = [text for text in told if text]

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from self._notes


def _cause(line: bytes) -> str:
    """Returns: Why a call failed, in a word; empty if it did not."""
    try:
        found = _LINE.decode(line)
    except msgspec.DecodeError:
        return "unreadable result"
    if found.error is not None:
        return plain(found.error.code or "error")
    status = found.response.status_code if found.response is not None else 0
    return "" if 200 <= status < 300 else f"HTTP {status}"


def rate(per_second: float | None) -> str:
    return f"{per_second or 0:.1f}/s"


def span(low: float, high: float) -> str:
    """Returns: A range of seconds as one would say it: `2 to 3 min`."""
    unit, name = (3600, "h") if high >= 5400 else (60, "min") if high >= 90 else (1, "s")
    first, last = (f"{seconds / unit:.{int(unit == 3600)}f}" for seconds in (low, high))
    return f"{last} {name}" if first == last else f"{first} to {last} {name}"


def plain(text: Any) -> str:
    """Returns: One line that cannot steer a terminal."""
    return "".join(one for one in " ".join(str(text).split()) if one.isprintable())
