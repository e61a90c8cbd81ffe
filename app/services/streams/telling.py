"""The object that tells of a stream."""

import json
from typing import Any

from app.services.streams.channel import End
from app.store.streams import RUNS, Stream


def stream_object(stream: Stream, end: End | None, events: int | None, timing: dict[str, Any] | None) -> dict[str, Any]:
    """Returns: It, JSON-ready.

    Args:
        end: How it ended, if the storage does not say so yet.
        events: How many it has; None: it runs elsewhere, or nobody knows any more.
        timing: See `Run.timing`.
    """
    status, error = (stream.status, stream.error) if end is None else end
    if status == RUNS and stream.cancelling:
        status = "cancelling"
    return {
        "id": stream.id,
        "object": "stream",
        "status": status,
        "url": f"/v1{stream.url}",
        "model": stream.model,
        "created_at": int(stream.created_at),
        "ended_at": None if stream.ended_at is None else int(stream.ended_at),
        "expires_at": int(stream.expires_at),
        "events": events,
        "error": None if error is None else json.loads(error)["error"],
        "timing": timing,
        "events_url": f"/v1/streams/{stream.id}/events",
    }
