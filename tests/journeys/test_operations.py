"""What those who run it see: health, figures, documentation, logs; and the command line."""

import asyncio
import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from app.http import fanout_routes, openai_routes
from app.wire.endpoints import ENDPOINTS
from tests.postgres import PASSWORD, Postgres
from tests.support import Server, clean_environment, eventually, free_port, serving

ASK = {"model": "sim", "messages": [{"role": "user", "content": "secret prompt"}]}


def run(*command: str, cwd: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *command],
        cwd=cwd,
        env=clean_environment(COLUMNS="200", **env),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


async def test_it_says_that_it_lives_and_that_it_can_serve(http: httpx.AsyncClient) -> None:
    assert (await http.get("/livez")).json() == {"status": "ok"}
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "simulator": False})


async def test_status_tells_each_upstreams_figures(gateway: Server, http: httpx.AsyncClient) -> None:
    before = gateway.status()
    await http.post("/v1/chat/completions", json=ASK)
    await http.post("/v1/chat/completions", json={**ASK, "stream": True})
    await http.post("/v1/chat/completions", json={**ASK, "model": "sim-status=418"})
    await eventually(lambda: gateway.status()["calls"] == before["calls"] + 3)
    after = gateway.status()
    assert after["calls"] - before["calls"] == 3
    assert after["succeeded"] - before["succeeded"] == 2
    assert after["outcomes"]["418"] - before["outcomes"].get("418", 0) == 1
    assert 0 < after["success_rate"] <= 1
    assert after["in_flight"] == after["queued"] == 0
    assert after["max_in_flight"] == 2048
    known = after["models"]["sim"]
    assert (known["in_flight"], known["queued"], known["requests"]) == (0, {"interactive": 0, "batch": 0}, None)
    assert known["breaker"] == {"state": "closed", "reason": None, "open_until": None, "opened": 0}
    for times in (after["latency_ms"], after["first_byte_ms"]):
        assert times["p50"] <= times["p90"] <= times["p95"] <= times["p99"]


async def test_the_access_log_is_one_json_line_a_call_without_the_prompt(
    gateway: Server, http: httpx.AsyncClient
) -> None:
    await http.post("/v1/chat/completions", json=ASK, headers={"x-request-id": "find-me"})
    await gateway.logs("find-me")
    (line,) = [json.loads(line) for line in gateway.log().splitlines() if "find-me" in line]
    expected = {"status": 200, "path": "/v1/chat/completions", "model": "sim", "upstream": "openai", "attempts": 1}
    assert expected.items() <= line.items()
    assert line["ms"] >= 0
    assert line["bytes_out"] > 0
    assert "secret prompt" not in gateway.log()


async def test_every_endpoint_is_documented_with_an_example_that_works(http: httpx.AsyncClient) -> None:
    paths: dict[str, Any] = (await http.get("/openapi.json")).json()["paths"]
    assert (await http.get("/docs")).status_code == 200
    for endpoint in ENDPOINTS:
        described = paths[f"/v1{endpoint.path}"][endpoint.method.lower()]
        assert described["summary"]
        if endpoint.body == "json":
            example = described["requestBody"]["content"]["application/json"]["example"]
            assert (await http.post(f"/v1{endpoint.path}", json=example)).status_code == 200
        if endpoint.body == "multipart":
            fields = described["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
            form = {
                name: ("x", b"x") if field.get("format") == "binary" else (None, field["example"])
                for name, field in fields.items()
            }
            answer = await http.post(f"/v1{endpoint.path}", files=form)
            assert answer.status_code == 200, (endpoint.path, answer.text)
    example = paths["/v1/fanout"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert (await http.post("/v1/fanout", json=example)).json()["counts"]["failed"] == 0


def test_no_route_is_left_out_of_the_documentation() -> None:
    for route in [*openai_routes.router().routes, *fanout_routes.router().routes]:
        assert isinstance(route, APIRoute)
        assert route.summary


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"SLUICEGATE_PORT": "x"}, "sluicegate: port = 'x': Input should be a valid integer"),
        ({"SLUICEGATE_HOST": "0.0.0.0"}, "sluicegate: host: '0.0.0.0' is reachable from other machines"),
        ({"SLUICEGATE_UPSTREAMS__A__MAX_IN_FLIGHT": "0"}, "sluicegate: upstreams.a.max_in_flight = '0': Input should"),
        ({"OPENAI_API_KEY": "sk-…"}, "sluicegate: upstreams.openai.api_key = (secret): a key holds ASCII"),
        ({"SLUICEGATE_CONFIG": "none.toml"}, "sluicegate: config = 'none.toml': there is no such file"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line(tmp_path: Path, env: dict[str, str], line: str) -> None:
    done = run(cwd=tmp_path, **env)
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_options_before_the_command_and_an_address_that_is_taken_are_said_in_one_line(
    tmp_path: Path, gateway: Server
) -> None:
    port = gateway.root.rsplit(":", 1)[1]
    for command in (
        ["--port", "1", "simulate"],
        ["--port", port],
        ["serve", "--port", port],
        ["simulate", "--port", port],
    ):
        done = run(*command, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith("sluicegate: ")


def items(folder: Path) -> Path:
    file = folder / "in.jsonl"
    good = [{"custom_id": f"i{place}", "body": {"messages": []}} for place in range(20)]
    file.write_text("\n".join([*map(json.dumps, good), json.dumps({"body": {"model": "sim-status=400"}}), "{"]))
    return file


@pytest.mark.parametrize("through_a_server", [False, True])
def test_fanout_sends_a_file_and_its_exit_code_tells_of_failures(
    tmp_path: Path, simulator: Server, gateway: Server, *, through_a_server: bool
) -> None:
    command = ["fanout", str(items(tmp_path)), "-o", str(tmp_path / "out"), "--model", "sim", "--order", "input"]
    if through_a_server:
        done = run(*command, "--url", gateway.root, cwd=tmp_path)
    else:
        done = run(*command, cwd=tmp_path, OPENAI_BASE_URL=simulator.base_url)
    assert done.returncode == 1, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [line["custom_id"] for line in lines[:20]] == [f"i{place}" for place in range(20)]
    assert len(lines) == 22
    summary = json.loads(done.stderr.splitlines()[-1])
    assert summary["failures"] == {"HTTP 400": 1, "invalid_request": 1}


def test_fanout_prints_json_lines_and_ends_with_0_when_all_is_well(tmp_path: Path, simulator: Server) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"url": "/v1/embeddings", "body": {"model": "sim", "input": "x"}}\n')
    done = run("fanout", str(file), cwd=tmp_path, OPENAI_BASE_URL=simulator.base_url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["response"]["status_code"] == 200


def test_fanout_says_in_one_line_what_stops_it(tmp_path: Path) -> None:
    file = items(tmp_path)
    for more in (["--order", "random"], ["--url", "http://127.0.0.1:9"]):
        done = run("fanout", str(file), *more, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("sluicegate: ")
        assert "Traceback" not in done.stderr


def test_fanout_keeps_old_results_and_its_input(tmp_path: Path) -> None:
    file, old = items(tmp_path), tmp_path / "old"
    old.write_text("precious")
    before = file.read_text()
    for more in (["-o", str(file)], ["-o", str(old), "--order", "random"], ["-o", str(tmp_path / "no" / "folder")]):
        done = run("fanout", str(file), *more, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("Traceback")) == (2, 0), done.stderr
    assert (file.read_text(), old.read_text()) == (before, "precious")


def test_fanout_tells_every_line_of_a_timeout(tmp_path: Path, simulator: Server) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    line = json.dumps({"body": {"model": "sim-latency=0.3", "messages": []}})
    file.write_text("\n".join([line] * 3000))
    limits = ["--timeout", "0.5", "--concurrency", "10", "-o", str(out)]
    done = run("fanout", str(file), *limits, cwd=tmp_path, OPENAI_BASE_URL=simulator.base_url)
    assert done.returncode == 1
    assert json.loads(done.stderr.splitlines()[-1])["total"] == 3000
    assert len(out.read_text().splitlines()) == 3000


def test_bench_measures_and_writes_a_table_and_a_plot(tmp_path: Path, simulator: Server) -> None:
    out = tmp_path / "figures"
    sizes = ["--sizes", "1,4", "--sample", "2", "--model", "sim-latency=0.2", "--out", str(out)]
    done = run("bench", "--base-url", simulator.base_url, *sizes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "one after another" in done.stdout
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [(row["calls"], row["extrapolated"]) for row in rows[:6]] == [("1", "False"), ("4", "True")] + [
        (size, "False") for _ in range(2) for size in "14"
    ]
    sequential, gathered, fanned_out = (float(rows[place]["seconds"]) for place in (1, 3, 5))
    assert sequential > gathered
    assert sequential > fanned_out
    assert (out / "plot.svg").read_text().startswith("<svg")


def test_several_workers_serve_on_one_port(simulator: Server, postgres: Callable[[], str]) -> None:
    env = {"OPENAI_BASE_URL": simulator.base_url, "SLUICEGATE_DATABASE_URL": postgres()}
    with serving("serve", "--workers", "2", env=env) as server:
        parent = server.process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        assert len(children) >= 2
        for _ in range(10):
            assert httpx.post(f"{server.base_url}/chat/completions", json=ASK).status_code == 200


# Storage that cannot be used


@pytest.mark.alone
async def test_gateways_that_start_together_on_an_empty_database_all_serve(
    simulator: Server, postgres: Callable[[], str]
) -> None:
    env = {"OPENAI_BASE_URL": simulator.base_url, "SLUICEGATE_DATABASE_URL": postgres()}

    def serve_once() -> int:
        with serving("serve", "--workers", "2", env=env) as server:
            status = httpx.post(f"{server.base_url}/chat/completions", json=ASK).status_code
            assert "Traceback" not in server.log()
            return status

    assert await asyncio.gather(*[asyncio.to_thread(serve_once) for _ in range(3)]) == [200] * 3


def refused(tmp_path: Path, *command: str, **env: str) -> str:
    """Returns: The one line with which a start ended."""
    done = run(*command, "--port", str(free_port()), cwd=tmp_path, **env)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), done.stderr
    assert done.stderr.startswith("sluicegate: ")
    assert PASSWORD not in done.stderr
    return done.stderr.removeprefix("sluicegate: ")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_database_that_cannot_be_used_stops_the_start_with_one_line(
    tmp_path: Path, postgres_server: Postgres, workers: int
) -> None:
    url = postgres_server.fresh(PASSWORD)
    nowhere = f"postgresql://me:{PASSWORD}@127.0.0.1:{free_port()}/x"
    for address, reason in (
        (nowhere, "refused"),
        (url.replace(PASSWORD, f"x{PASSWORD}"), "password authentication failed"),
        (url.replace("/fresh", "/not-so-fresh"), "does not exist"),
        (url.replace(PASSWORD, f"x@{PASSWORD}"), "percent-encoded"),
    ):
        line = refused(tmp_path, "serve", "--workers", str(workers), SLUICEGATE_DATABASE_URL=address)
        assert line.startswith("database_url: ")
        assert reason in line


def test_a_folder_that_cannot_be_used_stops_the_start_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refused(tmp_path, SLUICEGATE_DATA_DIR="file").startswith("data_dir = 'file': File exists")
    assert refused(tmp_path, SLUICEGATE_DATA_DIR="file/x").startswith("data_dir = 'file/x': Not a directory")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sluicegate.db").write_bytes(b"no database" * 1000)
    assert refused(tmp_path, SLUICEGATE_DATA_DIR="broken").startswith("data_dir: the database cannot be used: file is")


def test_a_folder_that_may_not_be_written_stops_the_start_with_one_line(tmp_path: Path) -> None:
    """`/proc` refuses even root."""
    assert refused(tmp_path, SLUICEGATE_DATA_DIR="/proc/data").startswith("data_dir = '/proc/data': ")


def test_a_folder_that_another_gateway_works_on_stops_the_start_with_one_line(tmp_path: Path, gateway: Server) -> None:
    folder = gateway.folder / "data"
    assert "in use by another process" in refused(tmp_path, SLUICEGATE_DATA_DIR=str(folder))


def test_files_that_cannot_be_kept_stop_the_start_with_one_line(tmp_path: Path) -> None:
    for wrong in ("nothing://x", f"s3://me:{PASSWORD}@", "/proc/files"):
        assert refused(tmp_path, SLUICEGATE_FILES_URL=wrong).startswith("files_url")
