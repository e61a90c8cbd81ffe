"""What can be set of the cache, of batches, of resumable streams and of the simulator."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from app.settings.values import Count, Frozen, Seconds, Share, listed

Cacheable = Literal["chat/completions", "completions", "embeddings", "images/generations", "moderations", "responses"]


class CacheSettings(Frozen):
    """Identical requests: one upstream call for those at the same time, its reply for those that follow."""

    enabled: bool = Field(False, description="identical requests to `endpoints` share one call; its reply is kept")
    endpoints: Annotated[tuple[Cacheable, ...], NoDecode, BeforeValidator(listed)] = Field(
        ("embeddings",), description="what is cached unasked, comma-separated"
    )
    ttl: Seconds = Field(3600, description="seconds that a reply is kept")
    max_bytes: Count = Field(64 * 1024**2, description="kept replies in all, bytes; a quarter of it for one")
    across_keys: bool = Field(False, description="keys share replies, too")


class BatchSettings(Frozen):
    """Files full of calls, worked off in the background."""

    worker: bool = Field(True, description="this process works batches off; else `sluicegate worker` does")
    max_lines: Count = Field(1_000_000, description="lines of one batch")
    max_tries: int = Field(4, ge=1, le=100, description="tries of a line that fails while others succeed")
    pause: Seconds = Field(60, description="seconds between two looks whether a paused batch can go on")
    on_doubt: Literal["retry", "fail"] = Field("retry", description="lines that a crash leaves in doubt")
    pack_embeddings: bool = Field(True, description="embedding lines that agree share upstream calls")
    pack_inputs: int = Field(128, ge=1, le=2048, description="inputs in such a call")
    dedupe: bool = Field(False, description="identical lines share one call and its reply")


class StreamSettings(Frozen):
    """Streams that outlive their readers (`/v1/streams`)."""

    ttl: Seconds = Field(3600, description="seconds that a stream can be read after its end")
    max_running: int = Field(5000, ge=1, le=100_000, description="streams that run at once, in this process")
    max_kept: Count = Field(100_000, description="streams in the storage; above it, the oldest that ended go early")
    max_bytes: Count = Field(1024**3, description="their events in the storage, bytes; above it, likewise")
    max_stream_bytes: Count = Field(32 * 1024**2, description="one stream's events, bytes")


class SimulatorSettings(Frozen):
    """How the built-in simulator behaves where the model's name does not say otherwise."""

    latency: float = Field(0.05, ge=0, le=3600, description="seconds before a reply")
    tokens: int = Field(40, ge=1, le=1_000_000, description="tokens in an answer")
    gap: float = Field(0.02, ge=0, le=3600, description="seconds between two tokens of a stream")
    first: float = Field(0.0, ge=0, le=3600, description="seconds before the first token, on top of latency")
    fail: Share = Field(0.0, description="share of calls that answer 500, 0 to 1")
    requests_per_minute: Count | None = Field(None, description="429 above it; none = no limit")
    seed: int = Field(1, description="same seed, same calls: same answers")
