"""What the pages promise is what is there."""

import re
import tomllib
from pathlib import Path

import pytest

from app.settings import GatewaySettings
from tests.reference import ROOT, env_example, readme_with_table, settings

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readme_tells_every_setting_as_it_is() -> None:
    assert readme_with_table(README) == README
    assert all(field.description for _, field in settings())


def test_the_env_example_tells_every_setting_as_it_is() -> None:
    assert (ROOT / ".env.example").read_text() == env_example()


def test_the_readmes_configuration_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    (toml,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    parsed = tomllib.loads(toml)
    parsed["keys"]["frontend"]["key_sha256"] = "0" * 64
    assert list(GatewaySettings.model_validate(parsed).upstreams) == ["openai", "west", "local"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_every_page_of_the_docs_is_linked_from_the_readme() -> None:
    for page in PAGES[1:]:
        assert f"docs/{page.name}" in README
