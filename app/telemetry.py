"""What the service knows about itself: structured logs, and figures per upstream over the last calls."""

import logging
import sys
import time
from collections import Counter, deque
from datetime import UTC, datetime

import msgspec

log = logging.getLogger("sluicegate")
access_log = logging.getLogger("sluicegate.access")
_LAST_CALLS = 1024
ABANDONED = "abandoned"  # the client went, or another call won: nobody's failure


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, and what was handed in as `extra={"fields": …}`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def configure_logging(level: str, *, access: bool) -> None:
    """Sends the access log to standard output and everything else to standard error, as JSON lines."""
    problems = logging.StreamHandler(sys.stderr)
    problems.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[problems], force=True)
    for noisy in ("httpx2", "openai", "sse_starlette", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    calls = logging.StreamHandler(sys.stdout)
    calls.setFormatter(JsonLines())
    access_log.handlers = [calls]
    access_log.propagate = False
    access_log.disabled = not access


class UpstreamFigures:
    """Counts and times of one upstream's attempts; percentiles are over the last 1,024."""

    def __init__(self) -> None:
        self.calls = 0
        self.succeeded = 0
        self.outcomes: Counter[str] = Counter()  # by status or error code: both are short, closed lists
        self._latency: deque[float] = deque(maxlen=_LAST_CALLS)
        self._first_byte: deque[float] = deque(maxlen=_LAST_CALLS)

    def ended(self, outcome: str, *, ok: bool, seconds: float) -> None:
        """Records an attempt's end; `outcome` is the status, or the code of the error that took its place."""
        self.calls += 1
        self.succeeded += ok
        self.outcomes[outcome] += 1
        self._latency.append(seconds)

    def answered(self, seconds: float) -> None:
        """Records the time from sending to the reply's first usable byte."""
        self._first_byte.append(seconds)

    def snapshot(self) -> dict[str, object]:
        """Returns: JSON-ready; times in milliseconds."""
        judged = self.calls - self.outcomes[ABANDONED]
        return {
            "calls": self.calls,
            "succeeded": self.succeeded,
            "success_rate": round(self.succeeded / judged, 4) if judged else None,
            "outcomes": dict(self.outcomes),
            "latency_ms": _percentiles(self._latency),
            "first_byte_ms": _percentiles(self._first_byte),
        }


def _percentiles(seconds: deque[float]) -> dict[str, float | None]:
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {
        name: round(1000 * ordered[round(share * last)], 1) if ordered else None
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99))
    }


class Uptime:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def seconds(self) -> float:
        return round(time.monotonic() - self._start, 1)
