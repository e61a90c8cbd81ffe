"""`/client.js` in a real browser: pages of another origin, under a strict policy, and a network that fails them.

`run.mjs` drives all cases in one Chromium; the tests here say what must come of each.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.nginx import program
from tests.node_modules import installed
from tests.support import Server, free_port, serving

FOLDER = Path(__file__).parent
KEY = "sk-frontend"
SECONDS = 150  # two rounds of cases, each of which run.mjs gives a minute
TABS = 7
Facts = dict[str, Any]


def settings(simulator: Server, page: str) -> str:
    return f"""
cors_origins = "{page}"
[keys.frontend]
key = "{KEY}"
[upstreams.sim]
base_url = "{simulator.base_url}"
"""


@pytest.fixture(scope="module")
def cases(simulator: Server) -> dict[str, Facts]:
    """What each case of `run.mjs` has seen, by its name."""
    node, chromium = installed(), program("chromium")
    port = free_port()
    with serving("serve", toml=settings(simulator, f"http://app.localhost:{port}")) as gateway:
        told = {"GATEWAY": gateway.root, "SIMULATOR": simulator.root, "KEY": KEY, "PAGE_PORT": str(port)}
        ran = subprocess.run(
            [node, "run.mjs"],
            cwd=FOLDER,
            env={**os.environ, **told, "CHROMIUM": chromium},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return {facts["case"]: facts for facts in map(json.loads, ran.stdout.splitlines())}


def sound(cases: dict[str, Facts], name: str) -> Facts:
    """The facts of a case that did not break down, and in which nothing tried what the page's policy forbids."""
    facts = cases[name]
    assert "failed" not in facts, facts["failed"]
    assert facts["violations"] == []
    return facts


def whole(cases: dict[str, Facts], name: str) -> Facts:
    """Of a case whose answer came whole, each token once, from one upstream call."""
    facts = sound(cases, name)
    assert facts["error"] is None
    assert facts["text"] == facts["expected"]
    assert facts["calls"] == 1
    assert facts["ids"] == sorted(set(facts["ids"]))
    return facts


def test_a_page_of_another_origin_streams_with_a_browser_token(cases: dict[str, Facts]) -> None:
    facts = whole(cases, "stream")
    assert len(facts["text"].split()) == 60
    assert set(facts["events"]) == {"message"}


def test_a_network_that_drops_three_times_costs_no_token_and_doubles_none(cases: dict[str, Facts]) -> None:
    assert len(whole(cases, "cut")["text"].split()) == 150


def test_the_stop_button_stops_the_upstream(cases: dict[str, Facts]) -> None:
    facts = sound(cases, "stop")
    assert facts["error"]["name"] == "AbortError"
    assert facts["status"] == "cancelled"
    assert 5 <= len(facts["ids"]) < 250


def test_a_token_that_has_expired_is_replaced_by_a_new_one(cases: dict[str, Facts]) -> None:
    assert whole(cases, "expiry")["asked"] == 2


def test_a_reload_goes_on_where_the_page_was(cases: dict[str, Facts]) -> None:
    facts = whole(cases, "reload")
    assert 0 < facts["before"] < len(facts["text"])
    assert min(facts["ids"]) > 19, "what was there before the reload is not sent again"


@pytest.mark.parametrize("event", ["visibility", "online"])
def test_a_connection_that_died_without_a_word_is_replaced_at_once(cases: dict[str, Facts], event: str) -> None:
    assert whole(cases, event)["ms"] < 20_000  # without a word from the browser it takes 40 s


def test_the_browsers_own_event_source_resumes_too(cases: dict[str, Facts]) -> None:
    whole(cases, "source")


def test_a_fan_out_is_streamed_with_its_events_names(cases: dict[str, Facts]) -> None:
    facts = sound(cases, "fanout")
    assert facts["error"] is None
    assert set(facts["events"]) == {"chunk", "result", "summary"}
    assert facts["events"].count("result") == 2
    assert facts["events"][-1] == "summary"


def test_a_refusal_is_an_error_that_a_page_can_read(cases: dict[str, Facts]) -> None:
    error = sound(cases, "refusal")["error"]
    assert (error["status"], error["type"]) == (403, "permission_error")
    assert "sim-case=refusal" in error["message"]


@pytest.mark.parametrize("name", ["tabs", "restored"])
def test_seven_tabs_stream_at_once_and_none_waits_for_the_end_of_another(cases: dict[str, Facts], name: str) -> None:
    facts = sound(cases, name)
    assert [tab["error"] for tab in facts["tabs"]] == [None] * TABS
    assert [tab["text"] for tab in facts["tabs"]] == facts["expected"]
    assert facts["calls"] == [1] * TABS
    assert max(tab["first"] for tab in facts["tabs"]) < min(tab["end"] for tab in facts["tabs"])


def test_the_first_four_tabs_keep_their_connections_and_the_others_take_turns(cases: dict[str, Facts]) -> None:
    turns = cases["tabs"]["turns"]
    assert turns[:4] == [0] * 4
    assert all(turns[4:])


def test_a_violation_of_the_policy_would_have_been_noticed(cases: dict[str, Facts]) -> None:
    assert cases["policy"]["violations"] == ["connect-src http://127.0.0.1:9/"]
