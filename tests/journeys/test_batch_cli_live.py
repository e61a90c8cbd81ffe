"""`sluicegate batch …` with a real gateway in front of the simulator."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.journeys.command_line import on_a_terminal, run
from tests.support import Server, eventually, free_port, serving


def written(file: Path, *models: str) -> Path:
    """A file with a chat per model."""
    ask = {"method": "POST", "url": "/v1/chat/completions"}
    bodies = [{"model": model, "messages": [{"role": "user", "content": "x"}]} for model in models]
    lines = [{"custom_id": f"i{place}", **ask, "body": body} for place, body in enumerate(bodies)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def read(out: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line for line in lines}


async def test_a_file_goes_in_and_its_results_come_out(gateway: Server, tmp_path: Path) -> None:
    out, at = tmp_path / "out", ("--url", gateway.root)
    file = written(tmp_path / "in", *["sim"] * 40)
    done = await run("batch", "submit", file, "--watch", "-o", out, "--metadata", "a=b", "--priority", "3", *at)
    assert done.code == 0, done.err
    made = done.lines[0]
    assert (made["status"], made["metadata"]) == ("validating", {"a": "b"})
    assert done.lines[-1]["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
    found = read(out)
    assert len(found) == 40
    assert all(line["response"]["status_code"] == 200 for line in found.values())
    again = await run("batch", "results", made["id"], *at)
    assert {line["id"] for line in again.lines} == {line["id"] for line in found.values()}
    rest = await run("batch", "results", made["id"], "--after", "30", *at)
    assert len(rest.lines) == 10
    listed = await run("batch", "list", "--limit", "1", *at)
    assert [one["id"] for one in listed.lines] == [made["id"]]


async def test_lines_that_fail_are_told_by_cause_and_can_be_retried(gateway: Server, tmp_path: Path) -> None:
    at = ("--url", gateway.root)
    file = written(tmp_path / "in", *["sim"] * 5, *["sim-status=400"] * 3, *["sim-status=404"] * 2)
    done = await run("batch", "submit", file, "--watch", *at)
    assert done.code == 1, done.err
    assert done.err.endswith("5 of 10 lines succeeded, 5 failed (3 x HTTP 400, 2 x HTTP 404)\n")
    retried = await run("batch", "retry", done.lines[0]["id"], "--watch", "-o", tmp_path / "out", *at)
    assert retried.code == 1
    assert retried.lines[-1]["request_counts"] == {"total": 5, "completed": 0, "failed": 5}
    assert set(read(tmp_path / "out")) == {f"i{place}" for place in range(5, 10)}


async def test_a_file_with_broken_lines_is_refused_with_their_numbers(gateway: Server, tmp_path: Path) -> None:
    file = written(tmp_path / "in", "sim", "sim")
    file.write_text(file.read_text() + "\n{broken\n")
    done = await run("batch", "submit", file, "--watch", "--url", gateway.root)
    assert done.code == 1
    assert done.err.startswith("sluicegate: line 3: ")
    assert done.lines[-1]["status"] == "failed"


async def test_a_batch_that_is_watched_can_be_cancelled(gateway: Server, tmp_path: Path) -> None:
    file = written(tmp_path / "in", "sim", *["sim-latency=30"] * 3)
    async with on_a_terminal("batch", "submit", file, "--watch", SLUICEGATE_URL=gateway.root) as terminal:
        await terminal.shows("1/4")
        terminal.press(b"\x03")
        assert await terminal.ended() == 130
    come_back = terminal.text.rsplit("sluicegate batch watch ", 1)[1].strip()
    still = (await run("batch", "list", "--limit", "1", "--url", gateway.root)).lines[0]
    assert (still["id"], still["status"]) == (come_back, "in_progress")
    partly = await run("batch", "results", come_back, "--url", gateway.root)
    assert [line["custom_id"] for line in partly.lines] == ["i0"]
    watching = asyncio.create_task(run("batch", "watch", come_back, "--url", gateway.root))
    cancelled = await run("batch", "cancel", come_back, "--url", gateway.root)
    assert cancelled.lines[0]["status"] == "cancelling"
    done = await watching
    assert (done.code, done.lines[-1]["status"]) == (1, "cancelled")


async def test_what_the_gateway_refuses_is_one_line(gateway: Server, tmp_path: Path) -> None:
    file, at = written(tmp_path / "in", "sim"), ("--url", gateway.root)
    ended = (await run("batch", "submit", file, "--watch", *at)).lines[0]["id"]
    files = httpx.get(f"{gateway.base_url}/files").json()["data"]
    for command, said in (
        (["submit", str(file), "--window", "soon"], "(completion_window)"),
        (["submit", str(file), "--endpoint", "/v1/nothing"], "(endpoint)"),
        (["submit", str(file), "--priority", "101"], "(priority)"),
        (["submit", str(file), "--metadata", f"{'k' * 65}=v"], "(metadata"),
        (["watch", "batch_none"], "batch_none"),
        (["results", "batch_none"], "batch_none"),
        (["cancel", ended], "completed"),
        (["retry", ended], "failed"),
    ):
        done = await run("batch", *command, *at)
        assert (done.code, done.err.count("\n"), done.out) == (2, 1, ""), done
        assert said in done.err
    assert httpx.get(f"{gateway.base_url}/files").json()["data"] == files


async def test_the_same_key_makes_one_batch_of_one_file(gateway: Server, tmp_path: Path) -> None:
    file, at = written(tmp_path / "in", "sim"), ("--url", gateway.root, "--idempotency-key", "night-7")
    before = len(httpx.get(f"{gateway.base_url}/files", params={"purpose": "batch"}).json()["data"])
    wrong = await run("batch", "submit", file, "--window", "soon", *at)
    assert wrong.code == 2
    first, second = [await run("batch", "submit", file, *at) for _ in range(2)]
    assert (first.code, second.code) == (0, 0), second.err
    assert first.lines[0]["id"] == second.lines[0]["id"]
    assert len(httpx.get(f"{gateway.base_url}/files", params={"purpose": "batch"}).json()["data"]) == before + 1


async def test_a_file_that_is_too_large_is_refused_with_the_gateways_own_words(
    tmp_path: Path, simulator: Server
) -> None:
    file = tmp_path / "in"
    with file.open("wb") as target:
        target.truncate(64 * 1024**2)
    env = {"OPENAI_BASE_URL": simulator.base_url, "OPENAI_API_KEY": "k", "SLUICEGATE_MAX_FILE_BYTES": "1000000"}
    with serving("serve", env=env) as server:
        done = await run("batch", "submit", file, "--url", server.root)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert "1000000" in done.err.replace(",", "")


async def test_watching_goes_on_over_a_restart_of_the_gateway(tmp_path: Path, simulator: Server) -> None:
    out, port = tmp_path / "out", free_port()
    env = {"OPENAI_BASE_URL": simulator.base_url, "OPENAI_API_KEY": "k", "SLUICEGATE_DATA_DIR": str(tmp_path / "data")}
    file = written(tmp_path / "in", *["sim"] * 20, *["sim-latency=2"] * 4)
    with serving("serve", env=env, port=port) as server:
        watching = asyncio.create_task(run("batch", "submit", file, "--watch", "-o", out, "--url", server.root))
        await eventually(lambda: out.exists() and out.read_text().count("\n") >= 20)
        server.process.kill()
    with serving("serve", env=env, port=port):
        done = await watching
    assert done.code == 0, done.err
    assert "waiting for the gateway" in done.err
    assert len(read(out)) == 24


@pytest.fixture
def locked(tmp_path: Path, simulator: Server) -> Any:
    toml = f'[upstreams.a]\nbase_url = "{simulator.base_url}"\napi_key = "k"\n[keys.me]\nkey = "sk-mine"\n'
    with serving("serve", toml=toml) as server:
        yield server


async def test_the_key_comes_from_the_environment_or_the_command_line(locked: Server) -> None:
    for arguments, env, code in (
        ((), {}, 2),
        (("--api-key", "sk-other"), {"SLUICEGATE_API_KEY": "sk-mine"}, 2),
        ((), {"SLUICEGATE_API_KEY": "sk-mine"}, 0),
        (("--api-key", "sk-mine"), {}, 0),
    ):
        done = await run("batch", "list", *arguments, "--url", locked.root, **env)
        assert (done.code, done.err.count("\n")) == (code, 1 if code else 0), done
