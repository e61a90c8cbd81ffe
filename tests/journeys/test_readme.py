"""The README's snippets, copied from the page and run as they stand there, but for the address."""

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.node_modules import NODE_FOLDER
from tests.support import Server, clean_environment

README = (Path(__file__).parents[2] / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def snippets(language: str, needle: str) -> list[str]:
    """The README's code blocks of a language that hold `needle`."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return [block for block in blocks if needle in block]


def run(command: list[str], gateway: Server, cwd: Path) -> str:
    """Runs a command to its good end. Returns: What it printed."""
    command = [part.replace(ADDRESS, gateway.root) for part in command]
    done = subprocess.run(
        command, cwd=cwd, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("code", snippets("python", ADDRESS), ids=["sync", "async", "notebook"])
def test_the_python_snippets_work(code: str, gateway: Server, tmp_path: Path) -> None:
    shown = run([sys.executable, "-c", code + "\nprint(locals().get('answers', ''))"], gateway, tmp_path)
    assert len(shown.split()) >= 5


@pytest.mark.parametrize("command", snippets("sh", "curl"), ids=["chat", "fan-out", "stream"])
def test_the_curl_snippets_work(command: str, gateway: Server, tmp_path: Path) -> None:
    shown = run(["bash", "-c", command.replace("curl ", "curl --silent --fail ")], gateway, tmp_path)
    if "fanout" in command:
        assert json.loads(shown)["counts"] == {"total": 2, "completed": 2, "failed": 0}
    elif "streams" in command:
        events = httpx.get(gateway.root + json.loads(shown)["events_url"])
        assert (events.status_code, events.text.count("event: done")) == (200, 1)
    else:
        assert shown.endswith("data: [DONE]\n\n")


def test_the_node_snippet_works(gateway: Server, node: str, tmp_path: Path) -> None:
    (code,) = snippets("js", "new OpenAI")
    assert run([node, "--input-type=module", "-e", code], gateway, NODE_FOLDER)


def test_the_browser_snippet_reads_a_stream(gateway: Server, node: str, tmp_path: Path) -> None:
    """In Node, which has the same `fetch` and streams; the page's body stands in, and a file for what it imports."""
    (code,) = snippets("js", "AbortController")
    client = tmp_path / "client.mjs"
    client.write_text(httpx.get(f"{gateway.root}/client.js").raise_for_status().text)
    assert f'"{ADDRESS}/client.js"' in code
    code = code.replace(f'"{ADDRESS}/client.js"', f'"{client}"')
    page = "globalThis.document = { body: { append: (text) => process.stdout.write(text) } };\n"
    assert run([node, "--input-type=module", "-e", page + code], gateway, tmp_path)
    wrong = code.replace("/v1/chat/completions", "/v1/nothing")
    with pytest.raises(AssertionError, match="'/v1/nothing' is not one of"):
        run([node, "--input-type=module", "-e", page + wrong], gateway, tmp_path)
