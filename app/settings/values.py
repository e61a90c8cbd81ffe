"""The kinds of values that settings have."""

import json
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import NoDecode


def listed(value: object) -> object:
    """A list as it stands in the environment: with commas between its items, or as JSON."""
    if not isinstance(value, str):
        return value
    if value.startswith("["):
        return json.loads(value)
    return tuple(part.strip() for part in value.split(",") if part.strip())


Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(listed)]
PerMinute = Annotated[int, Field(ge=1, le=10_000_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
