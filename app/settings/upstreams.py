"""Who answers calls: upstreams, and the public names of their models."""

import re
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from app.settings.values import Frozen, Names, PerMinute, Seconds

Strategy = Literal["fallback", "balance", "hedge"]


class UpstreamSettings(Frozen):
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


class ModelSettings(Frozen):
    """A public model name for one or more targets."""

    targets: Names = Field(min_length=1, description="UPSTREAM/MODEL, comma-separated")
    strategy: Strategy = Field("fallback", description="in order, by free capacity, or a second one for slow calls")
