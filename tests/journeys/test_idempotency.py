"""`Idempotency-Key`: what is sent twice runs once; what failed runs again; nobody sees another's reply."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from app.wire.results import new_id
from tests.conftest import FRAGILE_PORT
from tests.postgres import Postgres
from tests.support import LAST_CHUNK, STREAM_HEAD, Server, chunk, eventually, scripted, serving, streamed, token

KEYS = """
max_body_bytes = 100000
body_timeout = 0.5
idempotency_max_bytes = 400000
[keys.one]
key = "sk-one"
[keys.two]
key = "sk-two"
"""


@pytest.fixture(scope="module")
def keyed(simulator: Server) -> Iterator[Server]:
    with serving("serve", toml=f'{KEYS}\n[upstreams.sim]\nbase_url = "{simulator.base_url}"') as server:
        yield server


@pytest.fixture
async def http(keyed: Server, simulator: Server) -> AsyncIterator[httpx.AsyncClient]:
    simulator.ledger(reset=True)
    headers = {"authorization": "Bearer sk-one"}
    async with httpx.AsyncClient(base_url=keyed.base_url, headers=headers, timeout=30) as plain:
        yield plain


@pytest.fixture
def once() -> dict[str, str]:
    """Headers with a key of this test's own."""
    return {"idempotency-key": new_id("test-")}


def chat(knobs: str = "", **fields: object) -> dict[str, Any]:
    return {"model": f"sim{knobs}", "messages": [{"role": "user", "content": "x"}], **fields}


def code(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json()["error"]["code"]


def of_gateway(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("x-sluicegate-")}


REQUESTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "whole": ("/chat/completions", chat(), "*/*"),
    "streamed": ("/chat/completions", chat(stream=True), "*/*"),
    "embeddings": ("/embeddings", {"model": "sim", "input": ["a"] * 10, "dimensions": 8}, "*/*"),
    "fan-out": ("/fanout", {"requests": [{"body": chat()}]}, "application/json"),
    "fan-out as lines": ("/fanout", {"requests": [{"body": chat()}]}, "application/x-ndjson"),
    "fan-out as events": ("/fanout", {"requests": [{"body": chat(stream=True)}]}, "text/event-stream"),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_the_same_request_gets_the_same_bytes_and_runs_once(
    http: httpx.AsyncClient, keyed: Server, simulator: Server, once: dict[str, str], name: str
) -> None:
    path, body, accept = REQUESTS[name]
    headers, again = {**once, "accept": accept}, new_id("again-")
    first = await http.post(path, json=body, headers=headers)
    second = await http.post(f"{keyed.root}{path}", json=body, headers={**headers, "x-request-id": again})
    assert simulator.ledger()["calls"] == 1
    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert second.headers["content-type"] == first.headers["content-type"]
    assert of_gateway(second) == of_gateway(first)
    assert second.headers.get_list("x-request-id") == [again]
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    await keyed.logs(again)
    logged = [json.loads(line) for line in keyed.log().splitlines() if again in line]
    assert [(line["status"], line["caller"]) for line in logged] == [(first.status_code, "one")]
    assert logged[0]["bytes_out"] == len(first.content)
    assert once["idempotency-key"] not in keyed.log()


async def test_the_sdk_sends_a_key_and_streams_its_replay(
    keyed: Server, simulator: Server, once: dict[str, str]
) -> None:
    simulator.ledger(reset=True)
    async with AsyncOpenAI(base_url=keyed.base_url, api_key="sk-one", max_retries=0) as client:

        async def ask() -> list[str | None]:
            messages: Any = chat()["messages"]
            stream = await client.chat.completions.create(
                model="sim", messages=messages, stream=True, extra_headers=once
            )
            return [one.choices[0].delta.content async for one in stream]

        assert await ask() == await ask()
    assert simulator.ledger()["calls"] == 1


async def test_while_it_runs_it_is_a_conflict_that_the_sdk_waits_out(
    http: httpx.AsyncClient, keyed: Server, simulator: Server, once: dict[str, str]
) -> None:
    body = chat("-latency=1")
    first = asyncio.create_task(http.post("/chat/completions", json=body, headers=once))
    await eventually(lambda: simulator.ledger()["in_flight"] == 1)
    refused = await http.post("/chat/completions", json=body, headers=once)
    assert code(refused) == (409, "idempotency_in_progress")
    assert refused.json()["error"]["type"] == "conflict_error"
    assert refused.headers["x-should-retry"] == "true"
    assert 0 < int(refused.headers["retry-after-ms"]) <= 1000
    other = await http.post("/chat/completions", json=chat("-latency=2"), headers=once)
    assert (other.status_code, other.json()["error"]["param"]) == (400, "Idempotency-Key")
    async with AsyncOpenAI(base_url=keyed.base_url, api_key="sk-one", max_retries=5) as client:
        answer = await client.post("/chat/completions", body=body, cast_to=object, options={"headers": once})
    assert answer == (await first).json()
    assert simulator.ledger()["calls"] == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [("/chat/completions", chat(temperature=0)), ("/completions", chat()), ("/chat/completions?x=1", chat())],
)
async def test_another_request_under_the_same_key_is_a_400(
    http: httpx.AsyncClient, simulator: Server, once: dict[str, str], path: str, body: dict[str, Any]
) -> None:
    await http.post("/chat/completions", json=chat(), headers=once)
    changed = await http.post(path, json=body, headers=once)
    assert (changed.status_code, changed.headers["x-should-retry"]) == (400, "false")
    error = changed.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "Idempotency-Key")
    assert simulator.ledger()["calls"] == 1


async def test_a_forms_boundary_may_change_from_try_to_try(
    http: httpx.AsyncClient, simulator: Server, once: dict[str, str]
) -> None:
    form: dict[str, Any] = {"model": (None, "sim"), "file": ("a.wav", b"RIFF")}
    first, second = [await http.post("/audio/transcriptions", files=form, headers=once) for _ in range(2)]
    assert first.request.headers["content-type"] != second.request.headers["content-type"]
    assert (second.status_code, second.content) == (200, first.content)
    form["file"] = ("a.wav", b"other")
    assert (await http.post("/audio/transcriptions", files=form, headers=once)).status_code == 400
    assert simulator.ledger()["calls"] == 1


@pytest.mark.parametrize("status", [400, 401, 404, 409, 418, 429, 500, 503])
async def test_a_failure_frees_the_key(
    http: httpx.AsyncClient, simulator: Server, once: dict[str, str], status: int
) -> None:
    for _ in range(2):
        before = simulator.ledger(reset=True)
        answer = await http.post("/chat/completions", json=chat(f"-status={status}-quota=1", stream=True), headers=once)
        assert answer.status_code == status, before
        assert simulator.ledger()["calls"] >= 1
        assert "idempotent-replayed" not in answer.headers
    assert (await http.post("/chat/completions", json=chat(), headers=once)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hang_up_frees_the_key(
    http: httpx.AsyncClient, simulator: Server, once: dict[str, str], *, stream: bool
) -> None:
    body = chat("-stall=2" if stream else "-latency=30", stream=stream)
    task = asyncio.create_task(http.post("/chat/completions", json=body, headers=once))
    await eventually(lambda: simulator.ledger()["in_flight"] == 1)
    task.cancel()
    await asyncio.wait({task})

    async def is_free() -> bool:
        return (await http.post("/chat/completions", json=chat(), headers=once)).status_code == 200

    await eventually(is_free)
    assert simulator.ledger()["aborted"] == 1


@pytest.mark.parametrize("knob", ["-cut=2", "-garbage=2"])
async def test_a_stream_that_ends_in_an_error_frees_the_key(
    http: httpx.AsyncClient, simulator: Server, once: dict[str, str], knob: str
) -> None:
    for _ in range(2):
        answer = await http.post("/chat/completions", json=chat(knob, stream=True), headers=once)
        assert b'data: {"error"' in answer.content
        assert "idempotent-replayed" not in answer.headers
    assert simulator.ledger()["calls"] == 2


async def test_so_does_one_that_the_upstream_ends_with_an_error_of_its_own(
    fragile: Server, once: dict[str, str]
) -> None:
    own = b'data: {"error": {"message": "too busy", "type": "server_error", "param": null, "code": "overloaded"}}\n\n'
    async with scripted(streamed(token("a"), own), FRAGILE_PORT) as upstream, httpx.AsyncClient(timeout=20) as plain:
        for _ in range(2):
            answer = await plain.post(f"{fragile.base_url}/chat/completions", json=chat(stream=True), headers=once)
            assert answer.content == token("a") + own
        assert len(upstream.requests) == 2


async def test_a_keep_alive_comment_is_replayed_with_its_stream(fragile: Server, once: dict[str, str]) -> None:
    async def late(_: object, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        writer.write(STREAM_HEAD + chunk(token("a")) + chunk(b"data: [DONE]\n\n") + LAST_CHUNK)

    async with scripted(late, FRAGILE_PORT) as upstream, httpx.AsyncClient(timeout=20) as plain:
        first, second = [
            await plain.post(f"{fragile.base_url}/chat/completions", json=chat(stream=True), headers=once)
            for _ in range(2)
        ]
        assert first.content == second.content == b": ping\n\n" + token("a") + b"data: [DONE]\n\n"
        assert len(upstream.requests) == 1


async def test_two_keys_never_see_each_others(http: httpx.AsyncClient, simulator: Server, once: dict[str, str]) -> None:
    for secret in ("sk-one", "sk-two"):
        answer = await http.post(
            "/embeddings", json={"model": "sim", "input": "x"}, headers={**once, "authorization": f"Bearer {secret}"}
        )
        assert answer.status_code == 200
        assert "idempotent-replayed" not in answer.headers
    assert simulator.ledger()["calls"] == 2
    stranger = await http.post(
        "/embeddings", json={"model": "sim", "input": "x"}, headers={**once, "authorization": "Bearer sk-no"}
    )
    assert code(stranger) == (401, "invalid_api_key")


async def test_a_reply_that_is_too_large_is_not_kept(
    http: httpx.AsyncClient, simulator: Server, once: dict[str, str]
) -> None:
    body = {"model": "sim", "input": ["x"] * 8, "encoding_format": "float"}
    for _ in range(2):
        answer = await http.post("/embeddings", json=body, headers=once)
        assert len(answer.content) > 100_000
        assert "idempotent-replayed" not in answer.headers
    assert simulator.ledger()["calls"] == 2


@pytest.mark.parametrize("key", [b"", b"with blank", b"x" * 256, "schlüssel".encode()])
async def test_a_key_that_is_none_is_a_400(http: httpx.AsyncClient, key: bytes) -> None:
    answer = await http.post("/chat/completions", json=chat(), headers={b"idempotency-key": key})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", "Idempotency-Key")


async def test_a_body_is_bounded_in_size_and_time(keyed: Server, http: httpx.AsyncClient, once: dict[str, str]) -> None:
    assert code(await http.post("/chat/completions", content=b" " * 100_001, headers=once)) == (413, "body_too_large")

    async def halting() -> AsyncIterator[bytes]:
        yield b'{"model":'
        await asyncio.sleep(3)

    assert code(await http.post("/chat/completions", content=halting(), headers=once)) == (408, "request_timeout")
    assert (await http.post("/chat/completions", json=chat(), headers=once)).status_code == 200


async def test_what_only_reads_has_no_use_for_a_key(http: httpx.AsyncClient) -> None:
    for _ in range(2):
        assert "idempotent-replayed" not in (await http.get("/models", headers={"idempotency-key": "k"})).headers


async def test_the_sdk_is_told_of_a_changed_body(keyed: Server, once: dict[str, str]) -> None:
    async with AsyncOpenAI(base_url=keyed.base_url, api_key="sk-one") as client:
        await client.embeddings.create(model="sim", input="a", extra_headers=once)
        with pytest.raises(openai.BadRequestError, match="used for another request"):
            await client.embeddings.create(model="sim", input="b", extra_headers=once)


# What outlives a process, and what processes share


def one_of(simulator: Server, **env: str) -> contextlib.AbstractContextManager[Server]:
    """A gateway without keys; what it stores is where `env` says."""
    told = {f"SLUICEGATE_{name.upper()}": value for name, value in env.items()}
    return serving("serve", env={"OPENAI_BASE_URL": simulator.base_url, **told})


def ask(server: Server, once: dict[str, str], body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.base_url}/chat/completions", json=body, headers=once, timeout=30)


async def in_flight(simulator: Server, server: Server, once: dict[str, str], body: dict[str, Any]) -> asyncio.Task[Any]:
    """Returns: The call, now that it has reached the upstream."""
    before = simulator.ledger()["calls"]
    call = asyncio.create_task(asyncio.to_thread(ask, server, once, body))
    await eventually(lambda: simulator.ledger()["calls"] == before + 1)
    return call


async def killed(server: Server, call: asyncio.Task[Any]) -> None:
    server.process.kill()
    with pytest.raises(httpx.TransportError):
        await call


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_a_reply_outlives_its_gateway(simulator: Server, tmp_path: Path, once: dict[str, str], end: str) -> None:
    simulator.ledger(reset=True)
    with one_of(simulator, data_dir=str(tmp_path)) as server:
        first = ask(server, once, chat(stream=True))
        getattr(server.process, end)()
    with one_of(simulator, data_dir=str(tmp_path)) as server:
        again = ask(server, once, chat(stream=True))
        assert (again.status_code, again.content) == (200, first.content)
        assert again.headers["idempotent-replayed"] == "true"
        assert ask(server, once, chat()).status_code == 400
    assert simulator.ledger()["calls"] == 1


async def test_a_call_in_flight_at_a_kill_frees_its_key_at_the_next_start(
    simulator: Server, tmp_path: Path, once: dict[str, str]
) -> None:
    with one_of(simulator, data_dir=str(tmp_path)) as server:
        await killed(server, await in_flight(simulator, server, once, chat("-latency=30")))
    with one_of(simulator, data_dir=str(tmp_path)) as server:
        again = ask(server, once, chat())
        assert again.status_code == 200
        assert "idempotent-replayed" not in again.headers


async def test_two_gateways_on_one_database_run_it_once(
    simulator: Server, postgres: Callable[[], str], once: dict[str, str]
) -> None:
    url, body = postgres(), chat("-latency=1.5")
    with one_of(simulator, database_url=url) as one, one_of(simulator, database_url=url) as other:
        simulator.ledger(reset=True)
        call = await in_flight(simulator, one, once, body)
        refused = await asyncio.to_thread(ask, other, once, body)
        assert code(refused) == (409, "idempotency_in_progress")
        first = await call
        again = await asyncio.to_thread(ask, other, once, body)
        assert (again.status_code, again.content) == (200, first.content)
        assert again.headers["idempotent-replayed"] == "true"
        assert simulator.ledger()["calls"] == 1


async def test_another_gateway_takes_over_the_key_of_a_killed_one(
    simulator: Server, postgres: Callable[[], str], once: dict[str, str]
) -> None:
    url = postgres()
    with one_of(simulator, database_url=url, lease="3") as one, one_of(simulator, database_url=url) as other:
        call = await in_flight(simulator, one, once, chat("-latency=30"))
        assert ask(other, once, chat("-latency=30")).status_code == 409
        await killed(one, call)

        async def is_free() -> bool:
            return ask(other, once, chat()).status_code == 200

        await eventually(is_free)


async def test_workers_run_it_once(simulator: Server, postgres: Callable[[], str], once: dict[str, str]) -> None:
    simulator.ledger(reset=True)
    with one_of(simulator, database_url=postgres(), workers="3") as server:
        answers = [await asyncio.to_thread(ask, server, once, chat()) for _ in range(20)]
    assert {(one.status_code, one.content) for one in answers} == {(200, answers[0].content)}
    assert simulator.ledger()["calls"] == 1


async def test_a_database_that_is_away_lets_nothing_run_under_a_key_and_everything_else(
    simulator: Server, lonely_postgres: Postgres, once: dict[str, str]
) -> None:
    with one_of(simulator, database_url=lonely_postgres.fresh()) as server:
        call = await in_flight(simulator, server, once, chat("-latency=1"))
        await asyncio.to_thread(lonely_postgres.stop)
        simulator.ledger(reset=True)
        refused = ask(server, {"idempotency-key": "another"}, chat())
        assert code(refused) == (503, "storage_unavailable")
        assert refused.headers["x-should-retry"] == "true"
        assert simulator.ledger()["calls"] == 0
        assert (await call).status_code == 200
        assert httpx.post(f"{server.base_url}/chat/completions", json=chat()).status_code == 200
        await asyncio.to_thread(lonely_postgres.start)

        async def works() -> bool:
            return ask(server, once, chat("-latency=1")).status_code == 200

        await eventually(works)


# What makes things


LINE = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"sim","messages":[]}}\n'


async def test_a_repeated_upload_is_one_file(http: httpx.AsyncClient, once: dict[str, str]) -> None:
    form: dict[str, Any] = {"purpose": (None, "batch"), "file": ("lines.jsonl", LINE)}
    before = len((await http.get("/files")).json()["data"])
    first, second = [await http.post("/files", files=form, headers=once) for _ in range(2)]
    assert first.request.headers["content-type"] != second.request.headers["content-type"]
    assert (second.status_code, second.json()) == (200, first.json())
    assert second.headers["idempotent-replayed"] == "true"
    assert len((await http.get("/files")).json()["data"]) == before + 1
    longer: dict[str, Any] = {**form, "file": ("lines.jsonl", LINE * 2)}
    assert (await http.post("/files", files=longer, headers=once)).status_code == 400


async def test_an_upload_far_beyond_the_largest_body_takes_a_key_too(
    http: httpx.AsyncClient, once: dict[str, str]
) -> None:
    form: dict[str, Any] = {"purpose": (None, "batch"), "file": ("lines.jsonl", LINE * 10_000)}
    answer = await http.post("/files", files=form, headers=once)
    assert (answer.status_code, answer.json()["bytes"]) == (200, len(LINE) * 10_000)


async def test_a_repeated_order_is_one_batch(http: httpx.AsyncClient, once: dict[str, str]) -> None:
    form: dict[str, Any] = {"purpose": (None, "batch"), "file": ("lines.jsonl", LINE)}
    file = (await http.post("/files", files=form)).json()["id"]
    order = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    first, second = [await http.post("/batches", json=order, headers=once) for _ in range(2)]
    assert first.status_code == 200, first.text
    assert second.json() == first.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert len((await http.get("/batches")).json()["data"]) == 1
