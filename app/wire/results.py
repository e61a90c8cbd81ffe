"""The fan-out's lines that go out: OpenAI's batch output line with `index` and `timing`, and the summary."""

import contextlib
import json
import os
from dataclasses import dataclass

import msgspec
from msgspec import Raw

from app.wire.jsonl import one_line
from app.wire.usage import Usage, add


def new_id(prefix: str) -> str:
    return prefix + os.urandom(12).hex()


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one result."""

    queue_ms: float = 0.0
    upstream_ms: float = 0.0
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """How one item (and model) ended: with a reply (`status`, `body`), or without one (`code`, `message`)."""

    index: int
    custom_id: str | None
    model: str | None
    timing: Timing
    status: int = 0
    request_id: str = ""
    body: bytes = b""
    code: str = ""
    message: str = ""

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def line(self) -> bytes:
        """Returns: The result line as JSON, without a line feed: OpenAI's batch output line, `index`, `timing`."""
        response, error = None, None
        if self.status:
            response = {"status_code": self.status, "request_id": self.request_id, "body": embedded(self.body)}
        else:
            error = {"code": self.code, "message": self.message}
        line: dict[str, object] = {
            "id": new_id("batch_req_"),
            "index": self.index,
            "custom_id": self.custom_id,
            "response": response,
            "error": error,
            "timing": self.timing,
        }
        if self.model is not None:
            line["model"] = self.model
        return msgspec.json.encode(line)


def embedded(body: bytes) -> Raw | str:
    """Returns: A reply body as it stands in a line: JSON as it is but on one line, anything else as a string."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return body.decode(errors="replace")
    with contextlib.suppress(ValueError, RecursionError):
        try:
            _RAW.decode(body)
        except msgspec.DecodeError:
            json.loads(text)  # it takes half an emoji ("\\ud83d"), as clients do
        return Raw(one_line(body))
    return text


class _WithUsage(msgspec.Struct):
    usage: Usage | None = None


_RAW = msgspec.json.Decoder(Raw)
_WITH_USAGE = msgspec.json.Decoder(_WithUsage)


class Summary:
    """Counts, usage and times over all results so far.

    Attributes:
        truncated: The input stalled past the deadline: there may have been more of it.
    """

    def __init__(self) -> None:
        self.id = new_id("fanout_")
        self.total = self.completed = self.failed = 0
        self.sum_ms = 0.0
        self.usage: Usage = {}
        self.truncated = False

    def count(self, result: Result) -> None:
        self.total += 1
        self.completed += result.ok
        self.failed += not result.ok
        self.sum_ms += result.timing.upstream_ms
        if result.ok:
            with contextlib.suppress(msgspec.MsgspecError, RecursionError):
                add(self.usage, _WITH_USAGE.decode(result.body).usage or {})

    def fields(self, wall_ms: float) -> dict[str, object]:
        """Returns: What the reply and the summary line have in common."""
        return {
            "id": self.id,
            "counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": self.usage,
            "timing": {"wall_ms": round(wall_ms, 1), "sum_ms": round(self.sum_ms, 1)},
            **({"truncated": True} if self.truncated else {}),
        }
