"""Where settings come from: the command line, the environment, `.env`, then `sluicegate.toml`; the first wins."""

import logging
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from dotenv import load_dotenv
from pydantic import ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from app.settings import OPENAI_URL, GatewaySettings

log = logging.getLogger("sluicegate")
PREFIX = "SLUICEGATE_"
_SECRET_FIELDS = {"api_key", "key", "key_sha256", "database_url", "files_url"}
_LONGEST_SHOWN = 80
_NO_SETTINGS = ("CONFIG", "URL", "API_KEY")  # read elsewhere: which file, and the command line's gateway


def upstreams_of_the_sdk(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The upstreams that the official SDK's own variables describe, else the simulator.

    Source: the constructors of `openai.AsyncOpenAI` and `openai.AsyncAzureOpenAI`.
    """
    found: dict[str, dict[str, Any]] = {}
    if environ.get("OPENAI_API_KEY") or environ.get("OPENAI_BASE_URL"):
        found["openai"] = {"kind": "openai"}
    if environ.get("AZURE_OPENAI_ENDPOINT") and environ.get("AZURE_OPENAI_API_KEY"):
        found["azure"] = {"kind": "azure"}
    return found or {"simulator": {"kind": "simulator"}}


def with_sdk_defaults(upstream: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Fills what an upstream leaves out from the SDK's variables.

    OpenAI's key is only ever filled in for the address it belongs to, so that naming another
    `base_url` cannot send it to a stranger.
    """
    given = dict(upstream)
    if given.get("kind", "openai") == "openai":
        home = environ.get("OPENAI_BASE_URL") or OPENAI_URL
        is_home = str(given.setdefault("base_url", home)).rstrip("/") == home.rstrip("/")
        variables = {"api_key": "OPENAI_API_KEY", "organization": "OPENAI_ORG_ID", "project": "OPENAI_PROJECT_ID"}
        for field, variable in variables.items() if is_home else ():
            if environ.get(variable):
                given.setdefault(field, environ[variable])
    elif given["kind"] == "azure":
        home = environ.get("AZURE_OPENAI_ENDPOINT", "")
        if str(given.setdefault("base_url", home)).rstrip("/") == home.rstrip("/"):
            if environ.get("AZURE_OPENAI_API_KEY"):
                given.setdefault("api_key", environ["AZURE_OPENAI_API_KEY"])
            if environ.get("OPENAI_API_VERSION"):
                given.setdefault("api_version", environ["OPENAI_API_VERSION"])
    return given


class ConfigError(Exception):
    """A setting is wrong. The message is one line and holds no secret."""


class Settings(GatewaySettings, BaseSettings):
    """`GatewaySettings` that read themselves from the environment and the configuration file."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True, frozen=True, extra="forbid"
    )
    config_file: ClassVar[Path | None] = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - load() reads .env for `env:NAME` too
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, cls.config_file)

    @model_validator(mode="before")
    @classmethod
    def _with_the_sdks_variables(cls, data: dict[str, Any]) -> dict[str, Any]:
        upstreams = data.get("upstreams") or upstreams_of_the_sdk(os.environ)
        if isinstance(upstreams, Mapping):
            data["upstreams"] = {
                name: with_sdk_defaults(upstream, os.environ) if isinstance(upstream, Mapping) else upstream
                for name, upstream in upstreams.items()
            }
        return data

    @field_validator("upstreams", "keys", "database_url", "files_url", mode="before")
    @classmethod
    def _with_env_references(cls, value: object, info: ValidationInfo) -> object:
        return _resolved(value, info.field_name or "")


def load(config: str | None = None, **overrides: object) -> Settings:
    """Reads every source and checks the whole.

    Args:
        config: The configuration file; default `SLUICEGATE_CONFIG`, then `sluicegate.toml` if there is one.
        overrides: Settings that win over every source (the command line's); None means not given.
    Raises:
        ConfigError: A setting is wrong; one line names it, its value and what is allowed.
    """
    try:
        load_dotenv(Path(".env"), override=False)
    except UnicodeDecodeError as error:
        raise ConfigError(f".env is not UTF-8: {error}") from None
    if os.environ.get(f"{PREFIX}PORT", "").startswith("tcp://"):
        del os.environ[f"{PREFIX}PORT"]  # Kubernetes sets it so for any service named "sluicegate"
    path = _config_file(config)
    bound = type("Settings", (Settings,), {"config_file": path, "__module__": __name__})
    try:
        settings: Settings = bound(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except SettingsError as error:
        raise ConfigError(f"the environment holds a value that is not valid JSON: {error}") from None
    _warn_of_unknown_variables(settings)
    return settings


def _config_file(given: str | None) -> Path | None:
    named = given or os.environ.get(f"{PREFIX}CONFIG")
    if named:
        if not Path(named).is_file():
            raise ConfigError(f"config = {named!r}: there is no such file")
        return Path(named)
    default = Path("sluicegate.toml")
    return default if default.is_file() else None


def _resolved(value: object, where: str) -> object:
    """Replaces every `env:NAME` by that variable's value; `where` is the setting's dotted name, for the error."""
    if isinstance(value, Mapping):
        return {key: _resolved(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, str) and value.startswith("env:"):
        name = value.removeprefix("env:")
        if not os.environ.get(name):
            msg = f"{where} = {value!r} names an environment variable that is not set"
            raise ValueError(msg)
        return os.environ[name]
    return value


def _one_line(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    if reason.startswith(where):  # the setting's own check already named it
        where = ""
    shown = _shown(first["loc"], first["type"], first["input"]) if where else ""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return " ".join(f"{where}{shown}: {reason}{more}".lstrip(": ").split())


def _shown(loc: tuple[int | str, ...], kind: str, value: object) -> str:
    """The value for an error message; nothing that is or might be a secret (a misspelt `api_key`, say)."""
    if not loc or kind in {"missing", "extra_forbidden", "model_type", "dict_type"}:
        return ""
    if _SECRET_FIELDS.intersection(map(str, loc)) or (isinstance(value, str) and "@" in value):
        return " = (secret)"
    scalar = isinstance(value, str | int | float | bool)
    return f" = {value!r}"[:_LONGEST_SHOWN] if scalar else ""


def _warn_of_unknown_variables(settings: Settings) -> None:
    known = {name.upper() for name in (*type(settings).model_fields, *_NO_SETTINGS)}
    for variable in os.environ:
        if variable.startswith(PREFIX) and variable.removeprefix(PREFIX).split("__", 1)[0].upper() not in known:
            log.warning("%s is not a setting of this version: ignored", variable)
