"""The examples of `docs/streaming.md`, copied from the page and run, and what it promises that no other test holds.

Those for browsers, the README's too, run in one, from pages of another origin: `tests/browser/page_examples.mjs`.
"""

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.services.streams import journal, reader
from app.wire.streams import MOST_MERGED
from tests.nginx import program
from tests.node_modules import NODE_FOLDER, installed
from tests.support import Server, clean_environment, eventually, free_port, serving
from tests.wire.event_source import parsed

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "streaming.md").read_text()
ADDRESS = "http://127.0.0.1:8000"
KEY = "YOUR_KEY"  # as the page calls it
PAGE_PORT = free_port()
SECONDS = 120
Facts = dict[str, Any]


def block(language: str, needle: str, page: str = PAGE) -> str:
    """A page's only code block of a language that holds `needle`."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (found,) = (str(code) for written_in, code in blocks if written_in == language and needle in code)
    return found


EXAMPLES = {
    "html": block("html", "/client.js"),
    "source": block("js", "EventSource"),
    "fetch": block("js", "TextDecoderStream"),
    "react": block("jsx", "useEffect"),
    "ai": block("js", "streamText"),
    "readme": block("js", "AbortController", (ROOT / "README.md").read_text()),
}


def settings(simulator: Server, more: str = "") -> str:
    return f"""
send_timeout = 1
cors_origins = "http://app.localhost:{PAGE_PORT},https://your.page"
{more}
[upstreams.sim]
base_url = "{simulator.base_url}"
"""


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    """A simulator that nobody else calls."""
    with serving("simulate", "--latency", "0", "--tokens", "5", "--gap", "0.001") as server:
        yield server


@pytest.fixture(scope="module")
def keyed(own: Server) -> Iterator[Server]:
    with serving("serve", toml=settings(own, f'[keys.page]\nkey = "{KEY}"')) as server:
        yield server


@pytest.fixture(scope="module")
def open_to_pages(own: Server) -> Iterator[Server]:
    """A gateway without keys."""
    with serving("serve", toml=settings(own, "")) as server:
        yield server


@pytest.fixture(scope="module")
def cases(own: Server, keyed: Server, open_to_pages: Server) -> dict[str, Facts]:
    """What came of each case of `page_examples.mjs`, by its name."""
    node, chromium = installed(), program("chromium")
    told = {"GATEWAY": open_to_pages.root, "KEYED": keyed.root, "SIMULATOR": own.root, "KEY": KEY}
    told |= {"PAGE_PORT": str(PAGE_PORT), "CHROMIUM": chromium, "BLOCKS": json.dumps(EXAMPLES)}
    ran = subprocess.run(
        [node, "page_examples.mjs"],
        cwd=ROOT / "tests" / "browser",
        env={**os.environ, **told},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = {facts["case"]: facts for facts in map(json.loads, ran.stdout.splitlines())}
    broken = [facts for facts in found.values() if "failed" in facts]
    assert not broken, broken
    return found


# --- in a browser ---


@pytest.mark.parametrize("name", ["html", "readme", "source", "source, with a token", "fetch", "ai sdk", "react"])
def test_an_example_shows_the_whole_answer_once(cases: dict[str, Facts], name: str) -> None:
    facts = cases[name]
    assert (facts["text"], facts["errors"]) == (facts["expected"], [])
    assert len(facts["text"].split()) == 5
    assert facts.get("alerts", 0) == 0
    assert facts.get("changed", True), "the comment that says where the token goes is not there any more"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("html, another model", "this key may not use the model 'another'"),
        ("source, refused", "send your key as `Authorization: Bearer KEY`"),
        ("fetch, refused", "send your key as `Authorization: Bearer KEY`"),
        ("fetch, failing", "the upstream broke off its reply"),
    ],
)
def test_an_example_fails_with_the_reason(cases: dict[str, Facts], name: str, message: str) -> None:
    (told,) = cases[name]["errors"]
    assert message in told


def test_an_event_source_closes_at_the_streams_own_error(cases: dict[str, Facts]) -> None:
    facts = cases["source, failing"]
    assert (len(facts["text"].split()), facts["errors"]) == (1, [])


def test_the_react_example_shows_an_error(cases: dict[str, Facts]) -> None:
    facts = cases["react, failing"]
    assert (facts["alert"], facts["errors"]) == ("The simulator was asked for a 400.", [])


def test_the_react_example_cancels_upstream_when_it_goes(cases: dict[str, Facts]) -> None:
    facts = cases["react, unmounted"]
    assert (facts["before"], facts["left"], facts["text"], facts["errors"]) == (1, 0, "", [])


def test_the_react_example_asks_anew_for_other_messages_and_drops_the_old_answer(cases: dict[str, Facts]) -> None:
    facts = cases["react, other messages"]
    assert (facts["more"], facts["left"], facts["errors"]) == (1, 1, [])


# --- outside ---


def run(command: list[str], gateway: Server, model: str = "gpt-4o-mini") -> "subprocess.CompletedProcess[str]":
    command = [part.replace(ADDRESS, gateway.root).replace("gpt-4o-mini", model) for part in command]
    return subprocess.run(
        command, cwd=NODE_FOLDER, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
    )


def test_the_ai_sdk_streams_and_does_not_hide_a_failure(open_to_pages: Server) -> None:
    command = [installed(), "--input-type=module", "-e", EXAMPLES["ai"]]
    good = run(command, open_to_pages)
    assert (good.returncode, len(good.stdout.split())) == (0, 5), good.stderr
    for model, reason in (
        ("page-status=400", "The simulator was asked for a 400."),
        ("page-tokens=5-cut=2", "the upstream broke off its reply"),
    ):
        bad = run(command, open_to_pages, model)
        assert bad.returncode == 1, model
        assert reason in bad.stderr


def test_the_curl_example_makes_a_token_that_does_what_it_says(keyed: Server) -> None:
    made = run(["bash", "-c", block("sh", "browser_tokens").replace("curl ", "curl --silent --fail ")], keyed)
    assert made.returncode == 0, made.stderr
    token = json.loads(made.stdout)["token"]
    ask = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
    for origin, model, status in (
        ("https://your.page", "gpt-4o-mini", 200),
        ("https://another.page", "gpt-4o-mini", 403),
        ("https://your.page", "gpt-4o", 403),
    ):
        headers = {"authorization": f"Bearer {token}", "origin": origin}
        answer = httpx.post(f"{keyed.base_url}/chat/completions", json={**ask, "model": model}, headers=headers)
        assert answer.status_code == status, answer.text


# --- what the page says ---


def create(
    http: httpx.Client, model: str = "gpt-4o-mini", headers: Facts | None = None, more: Facts | None = None
) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "a question of mine"}], **(more or {})}
    made = http.post("/v1/streams", json={"url": "/v1/chat/completions", "body": body}, headers=headers)
    assert made.status_code == 201, made.text
    return made.json()


def test_the_objects_have_the_shapes_that_are_shown(open_to_pages: Server) -> None:
    with httpx.Client(base_url=open_to_pages.root, timeout=30) as http:
        shown, made = json.loads(block("json", "events_url")), create(http)
        assert [(name, type(value)) for name, value in made.items()] == [(n, type(v)) for n, v in shown.items()]
        assert made["expires_at"] - made["created_at"] == shown["expires_at"] - shown["created_at"]


def test_many_streams_over_one_connection_look_as_shown(open_to_pages: Server) -> None:
    with httpx.Client(base_url=open_to_pages.root, timeout=30) as http:
        made = [create(http, model)["id"] for model in ("gpt-4o-mini", "gpt-4o-mini", "page-status=400")]
        text = http.get(f"/v1/streams/events?ids={','.join(made)}").text
    (shown,) = parsed(block("", '"seq"').replace("{…}", "{}").encode() + b"\n")
    events = [(one, json.loads(one.data)) for one in parsed(text.encode())]
    assert {(one.id.count("."), *told) for one, told in events} == {(shown.id.count("."), *json.loads(shown.data))}
    assert events[-1][0].id == "8.8.1"
    ends = {told["stream"]: (one.name, told["chunk"]) for one, told in events if one.name != "message"}
    assert [ends[stream] for stream in made[:2]] == [("done", None)] * 2
    assert (ends[made[2]][0], *ends[made[2]][1]) == ("error", "error")


def test_usage_comes_where_it_was_asked_for(open_to_pages: Server) -> None:
    with httpx.Client(base_url=open_to_pages.root, timeout=30) as http:
        for more, has_usage in ((None, False), ({"stream_options": {"include_usage": True}}, True)):
            made = create(http, more=more)
            http.get(made["events_url"])
            told = http.get(f"/v1/streams/{made['id']}").json()
            assert (told["usage"] is not None, len(told["text"].split())) == (has_usage, 5)


def test_reading_costs_a_token_nothing(keyed: Server) -> None:
    with httpx.Client(base_url=keyed.root, timeout=30) as http:
        asked = {"max_requests": 1}
        token = http.post("/v1/browser_tokens", json=asked, headers={"authorization": f"Bearer {KEY}"}).json()["token"]
        page = {"authorization": f"Bearer {token}"}
        made = create(http, headers=page)
        for after in (0, 1, 3):
            assert http.get(made["events_url"], params={"after": after}, headers=page).status_code == 200
        assert http.get(f"/v1/streams/{made['id']}", headers=page).json()["status"] == "completed"
        again = http.post("/v1/streams", json={"url": "/v1/chat/completions", "body": {"model": "m"}}, headers=page)
        assert (again.status_code, again.json()["error"]["code"]) == (429, "insufficient_quota")


async def test_the_request_is_not_stored_and_the_answer_is(open_to_pages: Server) -> None:
    with httpx.Client(base_url=open_to_pages.root, timeout=30) as http:
        made = create(http, "page-tokens=5-stored", headers={"idempotency-key": "page"})
        http.get(made["events_url"])
        word = http.get(f"/v1/streams/{made['id']}").json()["text"].split()[-1]
        await eventually(lambda: http.get("/status").json()["streams"]["unlogged_bytes"] == 0)
    stored = b"".join(one.read_bytes() for one in (open_to_pages.folder / "data").rglob("*") if one.is_file())
    assert f'"content":" {word}"'.encode() in stored
    assert b"a question of mine" not in stored


async def test_who_does_not_read_is_dropped_and_his_stream_goes_on(open_to_pages: Server) -> None:
    tokens = 40_000  # more than all sockets between hold
    with httpx.Client(base_url=open_to_pages.root, timeout=30) as http:
        made = create(http, f"page-tokens={tokens}-gap=0")
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(("127.0.0.1", int(open_to_pages.root.rsplit(":", 1)[1])))
            stuck.sendall(f"GET {made['events_url']} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            await eventually(lambda: '"error":"slow_reader"' in open_to_pages.log(), 20)
        assert http.get(made["events_url"]).text.count("\nevent: done\n") == 1
        assert http.get(f"/v1/streams/{made['id']}").json()["events"] == tokens + 2


def test_the_options_of_the_client_are_those_that_it_takes() -> None:
    code = (ROOT / "app" / "http" / "client.js").read_text()
    (taken,) = re.findall(r"function stream\(url, body, \{ (.*?) \} = \{\}\)", code)
    shown = re.findall(r"^\| `(\w+)[`(:]", PAGE.split("| option |")[1].split("## ")[0], re.MULTILINE)
    assert sorted(shown) == sorted(taken.split(", "))


def test_the_figures_are_those_of_the_code() -> None:
    assert f"{MOST_MERGED} streams at most" in PAGE
    assert (journal._MOST_SHARE, journal._MEMORY_BYTES) == (256 * 1024, 64 * 1024**2)
    assert "256 kB of a stream, or 64 MB of all" in PAGE
    assert journal._EVERY_SECONDS <= 0.05
    assert "at most 50 ms later" in PAGE
    assert reader._POLL_SECONDS <= 0.25
    assert reader._POLL_SECONDS * reader._POLLS_A_SECOND == 100
    assert "above a hundred such readers" in PAGE
