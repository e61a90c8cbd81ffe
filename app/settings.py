"""What can be set, its unit, its default and what is allowed. Values only: `config.py` finds and reads them."""

import ipaddress
import json
import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

OPENAI_URL = "https://api.openai.com/v1"


def _listed(value: object) -> object:
    """A list as it stands in the environment: with commas between its items, or as JSON."""
    if not isinstance(value, str):
        return value
    if value.startswith("["):
        return json.loads(value)
    return tuple(part.strip() for part in value.split(",") if part.strip())


Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
PerMinute = Annotated[int, Field(ge=1, le=10_000_000_000)]
Strategy = Literal["fallback", "balance", "hedge"]
Share = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SimulatorSettings(_Frozen):
    """How the built-in simulator behaves where the model's name does not say otherwise."""

    latency: float = Field(0.05, ge=0, le=3600, description="seconds before a reply")
    tokens: int = Field(40, ge=1, le=1_000_000, description="tokens in an answer")
    gap: float = Field(0.02, ge=0, le=3600, description="seconds between two tokens of a stream")
    first: float = Field(0.0, ge=0, le=3600, description="seconds before the first token, on top of latency")
    fail: Share = Field(0.0, description="share of calls that answer 500, 0 to 1")
    requests_per_minute: Count | None = Field(None, description="429 above it; none = no limit")
    seed: int = Field(1, description="same seed, same calls: same answers")


class UpstreamSettings(_Frozen):
    """One place that answers calls."""

    kind: Literal["openai", "azure", "simulator"] = Field("openai", description="what it speaks")
    base_url: str = Field("", description="OpenAI-compatible base URL; for azure the resource's endpoint")
    api_key: SecretStr | None = Field(None, description="the upstream's key, or env:NAME")
    organization: str | None = Field(None, description="OpenAI-Organization sent along")
    project: str | None = Field(None, description="OpenAI-Project sent along")
    api_version: str | None = Field(None, description="azure only: deployment paths with this api-version")
    concurrency: Literal["adaptive", "fixed"] | None = Field(
        None, description="calls at once: found by asking, or as set; none = fixed where max_in_flight is set"
    )
    max_in_flight: int | None = Field(
        None, ge=1, le=100_000, description="calls at once, at most; none = 2048 (adaptive) or 256 (fixed)"
    )
    max_queue: int = Field(10_000, ge=0, le=1_000_000, description="calls that may wait for a slot")
    requests_per_minute: PerMinute | None = Field(None, description="known limit; none = as replies' headers say")
    tokens_per_minute: PerMinute | None = Field(None, description="known limit; none = as replies' headers say")
    connect_timeout: Seconds = Field(5, description="seconds to connect")
    first_token_timeout: Seconds = Field(60, description="seconds to the first chunk of a stream")
    idle_timeout: Seconds = Field(60, description="seconds between two chunks of a stream")
    total_timeout: Seconds = Field(600, description="seconds for a whole call")

    @property
    def how_concurrent(self) -> Literal["adaptive", "fixed"]:
        return self.concurrency or ("adaptive" if self.max_in_flight is None else "fixed")

    @property
    def most_in_flight(self) -> int:
        """Calls at once, whatever is found."""
        return self.max_in_flight or (2048 if self.how_concurrent == "adaptive" else 256)

    @field_validator("base_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in {"http", "https"} or not parts.hostname):
            msg = "must be an http:// or https:// address"
            raise ValueError(msg)
        if parts.username or parts.password:
            msg = "must not hold a password: that is what api_key is for"
            raise ValueError(msg)
        return value.rstrip("/")

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[!-~]*", value.get_secret_value()):
            msg = "a key holds ASCII characters only, and no blanks"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _azure_has_an_endpoint(self) -> Self:
        if self.kind == "azure" and not self.base_url:
            msg = "an azure upstream needs base_url (the resource's endpoint) or AZURE_OPENAI_ENDPOINT"
            raise ValueError(msg)
        return self


class ModelSettings(_Frozen):
    """A public model name for one or more targets."""

    targets: Names = Field(min_length=1, description="UPSTREAM/MODEL, comma-separated")
    strategy: Strategy = Field("fallback", description="in order, by free capacity, or a second one for slow calls")


class KeySettings(_Frozen):
    """Who may call."""

    key: SecretStr | None = Field(None, description="the key itself, or env:NAME")
    key_sha256: str | None = Field(None, description="or its SHA-256, in hex")
    models: Names | None = Field(None, description="the models it may ask for, comma-separated; none = all")

    @field_validator("key_sha256")
    @classmethod
    def _is_a_digest(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            msg = 'must be 64 hex digits: printf %s "$KEY" | sha256sum'
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _has_one_secret(self) -> Self:
        if (self.key is None) == (self.key_sha256 is None):
            msg = "needs either key or key_sha256"
            raise ValueError(msg)
        if self.key is not None and not self.key.get_secret_value():
            msg = "key is empty"
            raise ValueError(msg)
        return self


Cacheable = Literal["chat/completions", "completions", "embeddings", "images/generations", "moderations", "responses"]


class CacheSettings(_Frozen):
    """Identical requests: one upstream call for those at the same time, its reply for those that follow."""

    enabled: bool = Field(False, description="identical requests to `endpoints` share one call; its reply is kept")
    endpoints: Annotated[tuple[Cacheable, ...], NoDecode, BeforeValidator(_listed)] = Field(
        ("embeddings",), description="what is cached unasked, comma-separated"
    )
    ttl: Seconds = Field(3600, description="seconds that a reply is kept")
    max_bytes: Count = Field(64 * 1024**2, description="kept replies in all, bytes; a quarter of it for one")
    across_keys: bool = Field(False, description="keys share replies, too")


class GatewaySettings(_Frozen):
    """Every setting of the service. `config.load()` is how it is made from the environment and files."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65_535, description="port to listen on; 0 = any free one")
    workers: int = Field(1, ge=1, le=256, description="processes; limits and figures count per process")
    allow_open: bool = Field(False, description="listen beyond loopback although no key is set")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged")
    access_log: bool = Field(True, description="one JSON line a call, on standard output")
    data_dir: Path = Field(Path("data"), description="embedded storage (read, not used yet)")
    database_url: SecretStr | None = Field(None, description="shared storage (read, not used yet)")

    max_body_bytes: Count = Field(32 * 1024**2, description="largest request body, bytes")
    max_reply_bytes: Count = Field(256 * 1024**2, description="largest reply held whole, bytes")
    max_line_bytes: Count = Field(8 * 1024**2, description="longest line of an NDJSON fan-out, bytes")
    max_embedding_inputs: Count = Field(2048, description="longer embedding inputs are split, items")
    max_attempts: int = Field(3, ge=1, le=10, description="tries for one target")
    body_timeout: Seconds = Field(30, description="seconds between two pieces of a request body")
    send_timeout: Seconds = Field(30, description="seconds after which a reader that does not read is dropped")
    ping_interval: Seconds = Field(15, description="seconds of silence before a keep-alive comment")
    drain_timeout: Seconds = Field(30, description="seconds that streams may go on after SIGTERM")
    models_ttl: Seconds = Field(300, description="seconds between two looks at an upstream's model list")
    cors_origins: Names = Field((), description="origins, comma-separated; or *")
    idempotency_ttl: Seconds = Field(86_400, description="seconds that an Idempotency-Key's reply is replayed")
    idempotency_max_bytes: Count = Field(64 * 1024**2, description="such replies in all, bytes; a quarter for one")

    upstreams: dict[str, UpstreamSettings] = Field(default_factory=dict)
    models: dict[str, ModelSettings] = Field(default_factory=dict)
    keys: dict[str, KeySettings] = Field(default_factory=dict)
    cache: CacheSettings = Field(default_factory=lambda: CacheSettings.model_validate({}))
    simulator: SimulatorSettings = Field(default_factory=lambda: SimulatorSettings.model_validate({}))

    @property
    def is_simulated(self) -> bool:
        """Whether nothing but the simulator answers."""
        return all(upstream.kind == "simulator" for upstream in self.upstreams.values())

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        for name in self.upstreams:
            if not name or "/" in name:
                msg = f"upstreams: the name {name!r} must not be empty or hold a '/'"
                raise ValueError(msg)
        for name, model in self.models.items():
            for target in model.targets:
                upstream, _, rest = target.partition("/")
                if upstream not in self.upstreams or not rest:
                    known = ", ".join(self.upstreams) or "none"
                    msg = f"models.{name}.targets: {target!r} must be UPSTREAM/MODEL with UPSTREAM one of: {known}"
                    raise ValueError(msg)
        if not self.keys and not self.allow_open and not is_loopback(self.host):
            msg = (
                f"host: {self.host!r} is reachable from other machines and no key is set: "
                "set [keys.NAME], or allow_open=true if something in front checks callers"
            )
            raise ValueError(msg)
        return self


def is_loopback(host: str) -> bool:
    """Returns: Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
