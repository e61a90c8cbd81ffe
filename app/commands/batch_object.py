"""A batch as the gateway tells of it, as far as the command line reads it."""

from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import quote

import msgspec

from app.config import ConfigError
from app.wire.jsonl import one_line

_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_IN_A_CHANGE = ("id", "status", "request_counts", "progress")


class Counts(msgspec.Struct):
    """Lines; `total` is 0 until the input was read."""

    total: int = 0
    completed: int = 0
    failed: int = 0

    @property
    def done(self) -> int:
        return self.completed + self.failed


class Paused(msgspec.Struct):
    """Why no line is sent for a while."""

    reason: str = "no reason is given"


class Progress(msgspec.Struct):
    """How it goes right now; `eta_seconds` is a range."""

    per_second: float | None = None
    eta_seconds: tuple[float, float] | None = None
    in_doubt: int = 0
    paused: Paused | None = None


class Fault(msgspec.Struct):
    """What is wrong with the input, and in which line."""

    message: str
    line: int | None = None

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}" if self.line is not None else self.message


class Faults(msgspec.Struct):
    data: list[Fault]


class Batch(msgspec.Struct):
    """The fields that are read; `text` is the whole object, in one line."""

    id: str
    status: str
    created_at: int
    endpoint: str = ""
    error_file_id: str | None = None
    request_counts: Counts | None = None
    errors: Faults | None = None
    progress: Progress | None = None
    text: bytes = b""

    @classmethod
    def read(cls, text: bytes) -> Self:
        """Raises: ConfigError: It is no batch."""
        try:
            batch = msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"the gateway answered something that is no batch: {error}") from None
        batch.text = one_line(text)
        return batch

    @property
    def counts(self) -> Counts:
        return self.request_counts or Counts()

    @property
    def has_ended(self) -> bool:
        return self.status in _ENDED

    @property
    def is_well(self) -> bool:
        """Every line has succeeded."""
        return self.status == "completed" and not self.counts.failed

    @property
    def trouble(self) -> str:
        """Why nothing happens; empty if something does."""
        return f"paused: {self.progress.paused.reason}" if self.progress and self.progress.paused else ""

    @property
    def created(self) -> str:
        """In local time."""
        return f"{datetime.fromtimestamp(self.created_at, UTC).astimezone():%Y-%m-%d %H:%M}"

    def change(self) -> bytes:
        """Returns: A JSON line of what changes while it runs."""
        whole: dict[str, Any] = msgspec.json.decode(self.text)
        return msgspec.json.encode({name: whole.get(name) for name in _IN_A_CHANGE})


def path_of(batch_id: str) -> str:
    """Returns: Where a batch is found, behind the gateway's address."""
    return f"/batches/{quote(batch_id, safe='')}"
