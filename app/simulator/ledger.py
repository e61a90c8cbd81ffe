"""What the simulator saw, for tests that must know what really reached an upstream."""

import hashlib
from collections import Counter, deque
from typing import Any

from app.simulator.service import Service

_LAST = 10_000


class Ledger:
    """Counts since the start or the last `reset`; bodies are kept as hashes, the last 10,000.

    Args: service: Knows how many calls of a model were in service at once.
    """

    def __init__(self, service: Service) -> None:
        self.in_flight = 0
        self._service = service
        self.reset()

    def reset(self) -> None:
        self.calls = self.finished = self.aborted = self.streams = 0
        self.peak = self.in_flight
        self.statuses: Counter[int] = Counter()
        self.models: Counter[str] = Counter()
        self.bodies: deque[str] = deque(maxlen=_LAST)
        self._service.reset()

    def begin(self, model: str, body: bytes) -> None:
        self.calls += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        if len(self.models) < _LAST or model in self.models:
            self.models[model] += 1
        self.bodies.append(hashlib.sha256(body).hexdigest())

    def end(self, *, aborted: bool) -> None:
        self.in_flight -= 1
        self.aborted += aborted
        self.finished += not aborted

    def snapshot(self) -> dict[str, Any]:
        """Returns: JSON-ready counts; `bodies` are SHA-256 of the request bodies, oldest first."""
        return {
            "calls": self.calls,
            "finished": self.finished,
            "aborted": self.aborted,
            "in_flight": self.in_flight,
            "peak": self.peak,
            "peaks": dict(self._service.peaks),
            "streams": self.streams,
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "models": dict(self.models),
            "bodies": list(self.bodies),
        }
