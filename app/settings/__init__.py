"""What can be set, its unit, its default and what is allowed. Values only: `config.py` finds and reads them."""

import ipaddress
import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from app.settings.features import BatchSettings, Cacheable, CacheSettings, SimulatorSettings, StreamSettings
from app.settings.upstreams import ModelSettings, Strategy, UpstreamSettings
from app.settings.values import Count, Frozen, Names, Seconds

__all__ = [
    "OPENAI_URL",
    "BatchSettings",
    "CacheSettings",
    "Cacheable",
    "GatewaySettings",
    "KeySettings",
    "ModelSettings",
    "SimulatorSettings",
    "Strategy",
    "StreamSettings",
    "UpstreamSettings",
    "is_loopback",
]

OPENAI_URL = "https://api.openai.com/v1"


class KeySettings(Frozen):
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
        if self.key is not None and self.key.get_secret_value().startswith("sgb_"):
            msg = "key: sgb_ is how browser tokens begin; choose another"
            raise ValueError(msg)
        return self


class GatewaySettings(Frozen):
    """Every setting of the service. `config.load()` is how it is made from the environment and files."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65_535, description="port to listen on; 0 = any free one")
    workers: int = Field(1, ge=1, le=256, description="processes; limits and figures count per process")
    allow_open: bool = Field(False, description="listen beyond loopback although no key is set")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged")
    access_log: bool = Field(True, description="one JSON line a call, on standard output")
    data_dir: Path = Field(Path("data"), description="embedded storage: a SQLite file, and uploaded files")
    database_url: SecretStr | None = Field(None, description="postgresql://…: storage that many processes share")
    files_url: SecretStr | None = Field(None, description="uploaded files: a folder, or s3://BUCKET/PREFIX")
    lease: float = Field(30, ge=1, le=3600, description="seconds of silence after which others take a process's work")

    max_body_bytes: Count = Field(32 * 1024**2, description="largest request body, bytes")
    max_file_bytes: int = Field(2 * 1024**3, ge=1, le=1024**4, description="largest uploaded file, bytes")
    max_reply_bytes: Count = Field(256 * 1024**2, description="largest reply held whole, bytes")
    max_line_bytes: Count = Field(8 * 1024**2, description="longest line of an NDJSON fan-out or of a batch, bytes")
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
    batches: BatchSettings = Field(default_factory=lambda: BatchSettings.model_validate({}))
    streams: StreamSettings = Field(default_factory=lambda: StreamSettings.model_validate({}))
    simulator: SimulatorSettings = Field(default_factory=lambda: SimulatorSettings.model_validate({}))

    @field_validator("database_url", "files_url", mode="before")
    @classmethod
    def _nothing_is_none(cls, value: object) -> object:
        return value or None

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.match(r"(postgresql|postgres)://", value.get_secret_value()):
            msg = "must be a postgresql:// address; without it SQLite in data_dir is used"
            raise ValueError(msg)
        return value

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
        if self.workers > 1 and self.database_url is None:
            msg = "workers: more than one process needs shared storage (database_url); SQLite serves one"
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
