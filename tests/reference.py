"""The table of settings in the README and `.env.example`, written from the settings themselves.

uv run python -m tests.reference      # writes both; the tests compare
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.settings import (
    BatchSettings,
    CacheSettings,
    GatewaySettings,
    KeySettings,
    ModelSettings,
    SimulatorSettings,
    StreamSettings,
    UpstreamSettings,
)

ROOT = Path(__file__).parent.parent
START, END = "<!-- settings: written by tests/reference.py -->\n", "<!-- end of settings -->\n"
_GROUPS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("", GatewaySettings),
    ("upstreams.NAME.", UpstreamSettings),
    ("models.NAME.", ModelSettings),
    ("keys.NAME.", KeySettings),
    ("cache.", CacheSettings),
    ("batches.", BatchSettings),
    ("streams.", StreamSettings),
    ("simulator.", SimulatorSettings),
)
_TABLES = {"upstreams", "models", "keys", "cache", "batches", "streams", "simulator"}


def settings() -> Iterator[tuple[str, FieldInfo]]:
    """Yields: Every setting's dotted name and its field."""
    for prefix, model in _GROUPS:
        for name, field in model.model_fields.items():
            if prefix or name not in _TABLES:
                yield prefix + name, field


def default_of(field: FieldInfo) -> str:
    """The default as it would be written in the environment; empty where there is none."""
    if field.is_required() or field.default is None or field.default == ():
        return ""
    value: Any = field.default
    if isinstance(value, tuple):
        return ",".join(value)
    return json.dumps(value) if isinstance(value, bool) else str(value)


def meaning_of(field: FieldInfo) -> str:
    choices = [str(choice) for choice in get_args(field.annotation) if choice is not NoneType]
    listed = (
        f" ({' / '.join(choices)})" if choices and all(isinstance(c, str) for c in get_args(field.annotation)) else ""
    )
    return (field.description or "") + listed


def table() -> str:
    rows = [f"| `{name}` | {default_of(field)} | {meaning_of(field)} |" for name, field in settings()]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows]) + "\n"


def variable(name: str) -> str:
    return "SLUICEGATE_" + name.upper().replace(".", "__")


def env_example() -> str:
    lines = [
        "# Copy to .env and uncomment what you change. Each line: the default (if there is one), then what it means.",
        "# NAME stands for a name of your choice (it becomes lower case). Secrets may be env:OTHER_VARIABLE.",
        "",
        "# What the official SDK reads, read here too:",
        "# OPENAI_API_KEY=                       # your key; without any upstream the built-in simulator answers",
        "# OPENAI_BASE_URL=                      # another OpenAI-compatible address (AIML API, vLLM, Ollama...)",
        "# AZURE_OPENAI_API_KEY=",
        "# AZURE_OPENAI_ENDPOINT=                # https://RESOURCE.openai.azure.com",
        "# OPENAI_API_VERSION=                   # with Azure: use deployment paths of this version",
        "",
        "# SLUICEGATE_CONFIG=sluicegate.toml     # the configuration file",
    ]
    group = ""
    for name, field in settings():
        if name.rpartition(".")[0] != group:
            group = name.rpartition(".")[0]
            lines += ["", f"# [{group}]"]
        lines.append(f"# {variable(name)}={default_of(field)}  # {meaning_of(field)}")
    return "\n".join(lines) + "\n"


def readme_with_table(readme: str) -> str:
    before, _, rest = readme.partition(START)
    return before + START + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    (ROOT / ".env.example").write_text(env_example())
    (ROOT / "README.md").write_text(readme_with_table((ROOT / "README.md").read_text()))
