"""Where settings come from, what wins, and what a wrong one is told."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from pydantic import SecretStr

from app.config import ConfigError, Settings, load
from app.settings import OPENAI_URL, GatewaySettings, UpstreamSettings, is_loopback
from tests.support import clean_environment

SECRET = "sk-do-not-print-me"
CONTRACT = """
data_dir = "./data"
database_url = ""

[upstreams.openai]
kind = "openai"
base_url = "https://api.openai.com/v1"
api_key = "env:OPENAI_API_KEY"
max_in_flight = 256
requests_per_minute = 10000
tokens_per_minute = 2000000
connect_timeout = 5
first_token_timeout = 60
idle_timeout = 60
total_timeout = 600

[models.fast]
targets = ["openai/gpt-4o-mini", "west/gpt-4o-mini"]
strategy = "fallback"

[keys.frontend]
key_sha256 = "%s"
models = ["fast"]
"""
WEST = """
[upstreams.west]
kind = "simulator"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to start in, and an environment without settings, put back afterwards whoever changed it."""
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ, clean_environment(), clear=True):
        yield tmp_path


def toml(text: str, name: str = "sluicegate.toml") -> None:
    Path(name).write_text(text)


def env(**variables: str) -> None:
    os.environ.update(variables)


def upstream(settings: Settings, name: str) -> UpstreamSettings:
    return settings.upstreams[name]


def key_of(settings: Settings, name: str) -> str | None:
    api_key = settings.upstreams[name].api_key
    return None if api_key is None else api_key.get_secret_value()


def complaint(config: str | None = None, **overrides: object) -> str:
    """What `load` says is wrong; always one line, never with a secret."""
    with pytest.raises(ConfigError) as caught:
        load(config, **overrides)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert SECRET not in message
    return message


# Sources


def test_with_nothing_set_the_simulator_is_the_upstream_on_loopback() -> None:
    settings = load()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert {name: one.kind for name, one in settings.upstreams.items()} == {"simulator": "simulator"}


def test_the_command_line_wins_over_the_environment_over_dotenv_over_the_file() -> None:
    toml('port = 1\nworkers = 1\nmax_attempts = 1\nmax_embedding_inputs = 1\ndatabase_url = "postgresql://db/x"')
    assert load().port == 1
    Path(".env").write_text("SLUICEGATE_PORT=2\nSLUICEGATE_WORKERS=2\nSLUICEGATE_MAX_ATTEMPTS=2\n")
    env(SLUICEGATE_PORT="3", SLUICEGATE_WORKERS="3")
    settings = load(port=4)
    found = (settings.port, settings.workers, settings.max_attempts, settings.max_embedding_inputs)
    assert found == (4, 3, 2, 1)


def test_an_option_that_is_not_given_overrides_nothing() -> None:
    env(SLUICEGATE_PORT="3")
    assert load(port=None).port == 3


def test_an_empty_variable_is_not_a_setting() -> None:
    toml("port = 1")
    env(SLUICEGATE_PORT="")
    assert load().port == 1


def test_the_file_may_have_another_name() -> None:
    toml("port = 1")
    toml("port = 2", "other.toml")
    toml("port = 3", "third.toml")
    env(SLUICEGATE_CONFIG="other.toml")
    assert load().port == 2
    assert load("third.toml").port == 3


def test_dotenv_may_name_the_file() -> None:
    toml("port = 2", "other.toml")
    Path(".env").write_text("SLUICEGATE_CONFIG=other.toml")
    assert load().port == 2


def test_the_environment_reaches_nested_settings_and_leaves_their_neighbours() -> None:
    toml('[upstreams.west]\nbase_url = "http://west.example/v1"\nmax_in_flight = 5\nidle_timeout = 7')
    env(SLUICEGATE_UPSTREAMS__WEST__MAX_IN_FLIGHT="9", SLUICEGATE_SIMULATOR__TOKENS="3")
    settings = load()
    west = upstream(settings, "west")
    assert (west.base_url, west.max_in_flight, west.idle_timeout) == ("http://west.example/v1", 9, 7)
    assert settings.simulator.tokens == 3


def test_the_environment_alone_can_describe_everything() -> None:
    env(
        SLUICEGATE_UPSTREAMS__WEST__BASE_URL="http://west.example/v1",
        SLUICEGATE_UPSTREAMS__WEST__API_KEY="sk-west",
        SLUICEGATE_MODELS__FAST__TARGETS='["west/gpt-4o-mini"]',
        SLUICEGATE_KEYS__FRONTEND__KEY="sk-front",
        SLUICEGATE_CORS_ORIGINS="https://a.example, https://b.example",
    )
    settings = load()
    assert key_of(settings, "west") == "sk-west"
    assert settings.models["fast"].targets == ("west/gpt-4o-mini",)
    assert settings.keys["frontend"].key == SecretStr("sk-front")
    assert settings.cors_origins == ("https://a.example", "https://b.example")


def test_a_whole_table_may_be_json_in_the_environment() -> None:
    env(SLUICEGATE_UPSTREAMS='{"west": {"base_url": "http://west.example/v1"}}')
    assert upstream(load(), "west").base_url == "http://west.example/v1"


def test_origins_in_the_file_are_a_list() -> None:
    toml('cors_origins = ["https://a.example"]')
    assert load().cors_origins == ("https://a.example",)


def test_the_contracts_example_loads_once_its_second_upstream_is_there() -> None:
    digest = hashlib.sha256(b"sk-front").hexdigest()
    toml(CONTRACT % digest + WEST)
    env(OPENAI_API_KEY="sk-openai")
    settings = load()
    openai = upstream(settings, "openai")
    assert key_of(settings, "openai") == "sk-openai"
    assert (openai.max_in_flight, openai.requests_per_minute, openai.tokens_per_minute) == (256, 10_000, 2_000_000)
    times = (openai.connect_timeout, openai.first_token_timeout, openai.idle_timeout, openai.total_timeout)
    assert times == (5, 60, 60, 600)
    assert settings.models["fast"].targets == ("openai/gpt-4o-mini", "west/gpt-4o-mini")
    assert (settings.keys["frontend"].key_sha256, settings.keys["frontend"].models) == (digest, ("fast",))


def test_settings_cannot_be_changed_later() -> None:
    settings = load()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


# env:NAME, and the SDK's own variables


def test_a_secret_may_stand_in_another_variable() -> None:
    toml('[upstreams.west]\nbase_url = "env:WEST_URL"\napi_key = "env:WEST_KEY"\n[keys.front]\nkey = "env:FRONT_KEY"')
    env(WEST_URL="http://west.example/v1/", WEST_KEY="sk-west", FRONT_KEY="sk-front")
    settings = load()
    assert (upstream(settings, "west").base_url, key_of(settings, "west")) == ("http://west.example/v1", "sk-west")
    assert settings.keys["front"].key == SecretStr("sk-front")


def test_a_secret_may_stand_in_dotenv() -> None:
    Path(".env").write_text("WEST_KEY=sk-west")
    toml('[upstreams.west]\nbase_url = "http://west.example/v1"\napi_key = "env:WEST_KEY"')
    assert key_of(load(), "west") == "sk-west"


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set_is_named(value: str | None) -> None:
    toml('[upstreams.west]\nbase_url = "http://west.example/v1"\napi_key = "env:WEST_KEY"')
    if value is not None:
        env(WEST_KEY=value)
    message = complaint()
    assert "upstreams.west.api_key" in message
    assert "env:WEST_KEY" in message


def test_openais_own_variables_make_an_upstream() -> None:
    env(OPENAI_API_KEY="sk-openai")
    settings = load()
    assert list(settings.upstreams) == ["openai"]
    assert upstream(settings, "openai").base_url == OPENAI_URL
    assert key_of(settings, "openai") == "sk-openai"


def test_openais_base_url_is_honoured_with_and_without_a_key() -> None:
    env(OPENAI_BASE_URL="http://local.example/v1/")
    assert upstream(load(), "openai").base_url == "http://local.example/v1"
    assert key_of(load(), "openai") is None
    env(OPENAI_API_KEY="sk-local")
    assert key_of(load(), "openai") == "sk-local"


def test_azures_own_variables_make_an_upstream() -> None:
    env(
        AZURE_OPENAI_ENDPOINT="https://mine.openai.azure.com/",
        AZURE_OPENAI_API_KEY="azure-key",
        OPENAI_API_VERSION="2024-10-21",
    )
    settings = load()
    azure = upstream(settings, "azure")
    assert (azure.kind, azure.base_url, azure.api_version) == ("azure", "https://mine.openai.azure.com", "2024-10-21")
    assert key_of(settings, "azure") == "azure-key"


def test_both_kinds_of_variables_make_two_upstreams_openai_first() -> None:
    env(AZURE_OPENAI_ENDPOINT="https://mine.openai.azure.com", AZURE_OPENAI_API_KEY="a", OPENAI_API_KEY="o")
    assert list(load().upstreams) == ["openai", "azure"]


def test_what_the_file_says_wins_over_the_sdks_variables() -> None:
    toml('[upstreams.openai]\napi_key = "sk-file"')
    env(OPENAI_API_KEY="sk-env")
    assert key_of(load(), "openai") == "sk-file"


def test_named_upstreams_get_the_sdks_variables_where_they_leave_something_out() -> None:
    toml('[upstreams.mine]\nkind = "openai"\n[upstreams.cloud]\nkind = "azure"')
    env(OPENAI_API_KEY="sk-env", AZURE_OPENAI_ENDPOINT="https://mine.openai.azure.com", AZURE_OPENAI_API_KEY="a")
    settings = load()
    assert (upstream(settings, "mine").base_url, key_of(settings, "mine")) == (OPENAI_URL, "sk-env")
    assert key_of(settings, "cloud") == "a"


@pytest.mark.parametrize(
    "base_url",
    [
        "https://west.example/v1",
        "https://api.openai.com.west.example/v1",
        "http://api.openai.com/v1",
        "env:WEST_URL",
    ],
)
@pytest.mark.parametrize("home", [None, "https://home.example/v1"])
def test_openais_key_is_never_sent_to_another_address(base_url: str, home: str | None) -> None:
    toml(f'[upstreams.west]\nbase_url = "{base_url}"')
    env(OPENAI_API_KEY=SECRET, WEST_URL="https://west.example/v1", **({"OPENAI_BASE_URL": home} if home else {}))
    assert key_of(load(), "west") is None


def test_azures_key_is_never_sent_to_another_address() -> None:
    toml('[upstreams.cloud]\nkind = "azure"\nbase_url = "https://theirs.openai.azure.com"')
    env(AZURE_OPENAI_ENDPOINT="https://mine.openai.azure.com", AZURE_OPENAI_API_KEY=SECRET)
    assert key_of(load(), "cloud") is None


def test_openais_address_with_a_slash_at_its_end_is_openais_address() -> None:
    toml(f'[upstreams.openai]\nbase_url = "{OPENAI_URL}/"')
    env(OPENAI_API_KEY="sk-openai")
    assert key_of(load(), "openai") == "sk-openai"


def test_a_simulator_gets_no_key() -> None:
    toml('[upstreams.demo]\nkind = "simulator"')
    env(OPENAI_API_KEY=SECRET, AZURE_OPENAI_API_KEY=SECRET)
    assert key_of(load(), "demo") is None


def test_the_port_that_kubernetes_sets_for_a_service_of_our_name_is_ignored() -> None:
    env(SLUICEGATE_PORT="tcp://10.0.0.7:8000", SLUICEGATE_SERVICE_HOST="10.0.0.7")
    assert load().port == 8000


def test_a_variable_that_is_no_setting_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    env(SLUICEGATE_PROT="9000", SLUICEGATE_UPSTREAM__WEST__API_KEY=SECRET, SLUICEGATE_WORKERS="1")
    with caplog.at_level(logging.WARNING, logger="sluicegate"):
        load()
    warned = " ".join(record.getMessage() for record in caplog.records)
    assert "SLUICEGATE_PROT" in warned
    assert "SLUICEGATE_UPSTREAM__WEST__API_KEY" in warned
    assert "SLUICEGATE_WORKERS" not in warned
    assert SECRET not in warned


# What is wrong

_WRONG: dict[str, tuple[dict[str, str], list[str]]] = {
    "a port of text": ({"PORT": "http"}, ["port", "'http'", "integer"]),
    "a port too high": ({"PORT": "70000"}, ["port", "70000", "65535"]),
    "no workers": ({"WORKERS": "0"}, ["workers", "0", "greater than or equal to 1"]),
    "several workers on one file": ({"WORKERS": "2"}, ["workers", "database_url", "SQLite"]),
    "another database": ({"DATABASE_URL": f"mysql://me:{SECRET}@db/x"}, ["database_url", "(secret)", "postgresql://"]),
    "no lease": ({"LEASE": "0.5"}, ["lease", "0.5", "greater than or equal to 1"]),
    "no time": ({"DRAIN_TIMEOUT": "0"}, ["drain_timeout", "0", "greater than 0"]),
    "a time that is no number": ({"BODY_TIMEOUT": "nan"}, ["body_timeout", "nan"]),
    "an unknown level": ({"LOG_LEVEL": "loud"}, ["log_level", "'loud'", "'debug', 'info', 'warning' or 'error'"]),
    "a switch of text": ({"ACCESS_LOG": "maybe"}, ["access_log", "'maybe'", "boolean"]),
    "a share over one": ({"SIMULATOR__FAIL": "2"}, ["simulator.fail", "2", "less than or equal to 1"]),
    "an unknown kind": (
        {"UPSTREAMS__WEST__KIND": "cohere"},
        ["upstreams.west.kind", "'cohere'", "'openai', 'azure' or 'simulator'"],
    ),
    "an address of another kind": (
        {"UPSTREAMS__WEST__BASE_URL": "ftp://west.example"},
        ["upstreams.west.base_url", "'ftp://west.example'", "http://"],
    ),
    "an address without a host": (
        {"UPSTREAMS__WEST__BASE_URL": "https://"},
        ["upstreams.west.base_url", "'https://'", "http://"],
    ),
    "no call at once": (
        {"UPSTREAMS__WEST__MAX_IN_FLIGHT": "0"},
        ["upstreams.west.max_in_flight", "'0'", "greater than or equal to 1"],
    ),
    "too many calls at once": (
        {"UPSTREAMS__WEST__MAX_IN_FLIGHT": "100001"},
        ["upstreams.west.max_in_flight", "100001", "less than or equal to 100000"],
    ),
    "a queue of less than nothing": (
        {"UPSTREAMS__WEST__MAX_QUEUE": "-1"},
        ["upstreams.west.max_queue", "-1", "greater than or equal to 0"],
    ),
    "no request a minute": (
        {"UPSTREAMS__WEST__REQUESTS_PER_MINUTE": "0"},
        ["upstreams.west.requests_per_minute", "'0'", "greater than or equal to 1"],
    ),
    "half a request a minute": (
        {"UPSTREAMS__WEST__REQUESTS_PER_MINUTE": "0.5"},
        ["upstreams.west.requests_per_minute", "0.5", "integer"],
    ),
    "a negative limit": (
        {"UPSTREAMS__WEST__TOKENS_PER_MINUTE": "-2000"},
        ["upstreams.west.tokens_per_minute", "-2000", "greater than or equal to 1"],
    ),
    "an absurd limit": (
        {"UPSTREAMS__WEST__TOKENS_PER_MINUTE": "1" + "0" * 30},
        ["upstreams.west.tokens_per_minute", "less than or equal to 10000000000"],
    ),
    "a limit that is no number": (
        {"UPSTREAMS__WEST__REQUESTS_PER_MINUTE": "inf"},
        ["upstreams.west.requests_per_minute", "inf"],
    ),
    "concurrency of another kind": (
        {"UPSTREAMS__WEST__CONCURRENCY": "none"},
        ["upstreams.west.concurrency", "'none'", "'adaptive' or 'fixed'"],
    ),
    "a strategy that is none": (
        {"MODELS__FAST__TARGETS": '["simulator/m"]', "MODELS__FAST__STRATEGY": "random"},
        ["models.fast.strategy", "'random'", "'fallback', 'balance' or 'hedge'"],
    ),
    "a field that is none": ({"UPSTREAMS__WEST__MAX_FLIGHT": "5"}, ["upstreams.west.max_flight"]),
    "azure without an endpoint": ({"UPSTREAMS__WEST__KIND": "azure"}, ["upstreams.west", "AZURE_OPENAI_ENDPOINT"]),
    "a target without an upstream": (
        {"MODELS__FAST__TARGETS": '["gpt-4o"]'},
        ["models.fast.targets", "'gpt-4o'", "UPSTREAM/MODEL", "simulator"],
    ),
    "a target at an unknown upstream": (
        {"MODELS__FAST__TARGETS": '["nowhere/gpt-4o"]'},
        ["models.fast.targets", "'nowhere/gpt-4o'", "simulator"],
    ),
    "no targets": ({"MODELS__FAST__TARGETS": "[]"}, ["models.fast.targets", "at least 1"]),
    "a table that is not JSON": ({"MODELS": "fast"}, ["models", "JSON"]),
    "a hash that is none": ({"KEYS__FRONT__KEY_SHA256": "abc"}, ["keys.front.key_sha256"]),
    "a key without a secret": ({"KEYS__FRONT__MODELS": '["fast"]'}, ["keys.front", "key or key_sha256"]),
    "a key with both": (
        {"KEYS__FRONT__KEY": "a", "KEYS__FRONT__KEY_SHA256": "0" * 64},
        ["keys.front", "key or key_sha256"],
    ),
}


@pytest.mark.parametrize(("variables", "parts"), _WRONG.values(), ids=_WRONG.keys())
def test_a_wrong_setting_is_one_line_with_its_name_its_value_and_what_is_allowed(
    variables: dict[str, str], parts: list[str]
) -> None:
    env(**{f"SLUICEGATE_{name}": value for name, value in variables.items()})
    message = complaint()
    assert [part for part in parts if part not in message] == [], message


def test_a_wrong_setting_in_the_file_is_named_too() -> None:
    toml('[upstreams.west]\nmax_in_flight = "many"')
    assert "upstreams.west.max_in_flight = 'many'" in complaint()


def test_a_setting_of_the_file_that_is_none_is_named() -> None:
    toml("prot = 8000")
    assert "prot" in complaint()


def test_a_wrong_option_of_the_command_line_is_named() -> None:
    assert "port = 70000" in complaint(port=70_000)


def test_of_several_wrong_settings_one_is_named_and_the_others_are_counted() -> None:
    env(SLUICEGATE_PORT="x", SLUICEGATE_WORKERS="x", SLUICEGATE_MAX_ATTEMPTS="x")
    assert "2 more" in complaint()


def test_a_file_that_is_not_there_is_named() -> None:
    assert "nowhere.toml" in complaint("nowhere.toml")
    env(SLUICEGATE_CONFIG="missing.toml")
    assert "missing.toml" in complaint()


def test_a_file_that_is_not_toml_is_named_with_the_line() -> None:
    toml("port = 1\nport port")
    message = complaint()
    assert "sluicegate.toml" in message
    assert "line 2" in message


def test_a_file_that_is_not_utf8_is_named() -> None:
    Path("sluicegate.toml").write_bytes(b'host = "\xff"')
    assert "sluicegate.toml" in complaint()


def test_an_upstreams_name_may_not_hold_a_slash() -> None:
    toml('[upstreams."a/b"]\nkind = "simulator"')
    assert "'a/b'" in complaint()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "gateway.example", "128.0.0.1"])
def test_an_address_that_others_can_reach_is_refused_without_keys(host: str) -> None:
    message = complaint(host=host)
    assert repr(host) in message
    assert "allow_open" in message
    assert load(host=host, allow_open=True).host == host
    env(SLUICEGATE_KEYS__FRONT__KEY="sk-front")
    assert load(host=host).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    assert load(host=host).host == host


def test_an_empty_host_is_every_address_and_needs_a_key_too() -> None:
    assert "allow_open" in complaint(host="")


# Secrets

_MISPLACED: dict[str, dict[str, str]] = {
    "an upstream that is a key": {"SLUICEGATE_UPSTREAMS__WEST": SECRET},
    "upstreams that are a key": {"SLUICEGATE_UPSTREAMS": SECRET},
    "a key's table that is a key": {"SLUICEGATE_KEYS__FRONT": SECRET},
    "a misspelt api_key": {"SLUICEGATE_UPSTREAMS__WEST__APIKEY": SECRET},
    "a hash that is the key": {"SLUICEGATE_KEYS__FRONT__KEY_SHA256": SECRET},
    "a password in the address": {"SLUICEGATE_UPSTREAMS__WEST__BASE_URL": f"ftp://me:{SECRET}@west.example"},
    "a key deeper than it should be": {"SLUICEGATE_UPSTREAMS__WEST__API_KEY__VALUE": SECRET},
    "a wrong neighbour": {"SLUICEGATE_UPSTREAMS__WEST__API_KEY": SECRET, "SLUICEGATE_UPSTREAMS__WEST__KIND": "x"},
    "azure without an endpoint": {
        "SLUICEGATE_UPSTREAMS__WEST__API_KEY": SECRET,
        "SLUICEGATE_UPSTREAMS__WEST__KIND": "azure",
    },
    "a key and its hash": {
        "SLUICEGATE_KEYS__FRONT__KEY": SECRET,
        "SLUICEGATE_KEYS__FRONT__KEY_SHA256": "0" * 64,
    },
    "a database": {"SLUICEGATE_DATABASE_URL": f"postgresql://me:{SECRET}@db", "SLUICEGATE_PORT": "x"},
}


@pytest.mark.parametrize("variables", _MISPLACED.values(), ids=_MISPLACED.keys())
def test_no_complaint_ever_holds_a_secret(variables: dict[str, str]) -> None:
    env(**variables)
    complaint()


@pytest.mark.parametrize(
    "text",
    [
        f'[upstreams]\nwest = "{SECRET}"',
        f'[upstreams]\napi_key = "{SECRET}"',
        f'[upstreams.west]\napi_key = ["{SECRET}"]',
        f'[upstreams.west]\napi_key = {{ value = "{SECRET}" }}',
        f'[keys.front]\nkey_sha256 = "{SECRET}"',
        f'[keys]\nfront = "{SECRET}"',
        f'keys = ["{SECRET}"]',
        f'api_key = "{SECRET}"',
        f'database_url = ["{SECRET}"]',
        f'[upstreams.west]\napi_key = "{SECRET}\n',
        f"[upstreams.west]\napi_key = {SECRET}\n",
    ],
)
def test_no_complaint_about_the_file_ever_holds_a_secret(text: str) -> None:
    toml(text)
    complaint()


def whole() -> Settings:
    """Settings with a secret wherever there may be one."""
    toml(
        f'[upstreams.west]\nbase_url = "https://west.example/v1"\napi_key = "{SECRET}"\n[keys.front]\nkey = "{SECRET}"'
    )
    env(SLUICEGATE_DATABASE_URL=f"postgresql://me:{SECRET}@db")
    return load()


def test_settings_that_are_printed_hold_no_secret() -> None:
    settings = whole()
    assert key_of(settings, "west") == SECRET
    shown: list[Any] = [repr(settings), str(settings), settings.model_dump_json(), settings.model_dump()]
    assert SECRET not in " ".join(map(str, shown))
    assert SECRET not in json.dumps(settings.model_dump(mode="json"))


def test_a_password_in_an_address_is_refused_and_not_printed_either() -> None:
    env(SLUICEGATE_UPSTREAMS__WEST__BASE_URL=f"https://me:{SECRET}@west.example/v1")
    with pytest.raises(ConfigError, match="must not hold a password") as caught:
        load()
    assert SECRET not in str(caught.value)


def test_every_setting_of_the_gateway_can_be_read_from_the_environment() -> None:
    assert set(GatewaySettings.model_fields) == set(Settings.model_fields)
