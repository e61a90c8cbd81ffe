"""`Idempotency-Key`: what is sent twice runs once; what failed runs again; nobody sees another's reply."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from app.wire.results import new_id
from tests.conftest import FRAGILE_PORT
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
        await asyncio.sleep(30)

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
