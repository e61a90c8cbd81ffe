"""Identical requests through real servers: how many of them reach the upstream, and who is given whose reply."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tests.support import Server, eventually, serving

KEYS = """
[keys.one]
key = "sk-one"
[keys.two]
key = "sk-two"
"""


def toml(simulator: Server, **cache: object) -> str:
    rows = "\n".join(f"{name} = {json.dumps(value)}" for name, value in cache.items())
    return f'[upstreams.sim]\nbase_url = "{simulator.base_url}"\n[cache]\n{rows}\n{KEYS}'


@pytest.fixture(scope="module")
def caching(simulator: Server) -> Iterator[Server]:
    with serving("serve", toml=toml(simulator, enabled=True)) as server:
        yield server


@pytest.fixture
async def http(caching: Server) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": "Bearer sk-one"}
    async with httpx.AsyncClient(base_url=caching.base_url, headers=headers, timeout=30) as plain:
        yield plain


def cache_of(server: Server) -> dict[str, int]:
    found: dict[str, int] = httpx.get(f"{server.root}/status", headers={"authorization": "Bearer sk-one"}).json()[
        "cache"
    ]
    return found


def embed(text: str, knobs: str = "") -> dict[str, Any]:
    return {"model": f"sim{knobs}", "input": text}


def told(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    headers = answer.headers
    return answer.status_code, headers.get("x-sluicegate-cache"), headers.get("x-sluicegate-attempts")


async def test_the_sdks_identical_embeddings_make_one_upstream_call(caching: Server, simulator: Server) -> None:
    simulator.ledger(reset=True)
    async with AsyncOpenAI(base_url=caching.base_url, api_key="sk-one", max_retries=0) as client:
        raw = client.embeddings.with_raw_response

        async def one() -> tuple[str | None, list[float]]:
            answer = await raw.create(model="sim-latency=0.3", input="sdk")
            return answer.headers.get("x-sluicegate-cache"), answer.parse().data[0].embedding

        together = await asyncio.gather(*(one() for _ in range(8)))
        later = await one()
    assert sorted(how or "" for how, _ in together) == ["miss", *["shared"] * 7]
    assert later[0] == "hit"
    assert all(vector == later[1] for _, vector in together)
    assert simulator.ledger()["calls"] == 1


async def test_a_hit_is_the_same_bytes_and_says_so(http: httpx.AsyncClient) -> None:
    first, second = [await http.post("/embeddings", json=embed("bytes")) for _ in range(2)]
    assert told(first) == (200, "miss", "1")
    assert told(second) == (200, "hit", "0")
    assert first.content == second.content
    assert second.headers["x-sluicegate-upstream"] == "sim"
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


async def test_the_header_switches_it_off_and_on_and_is_checked(http: httpx.AsyncClient, simulator: Server) -> None:
    simulator.ledger(reset=True)
    for _ in range(2):
        off = await http.post("/embeddings", json=embed("off"), headers={"x-sluicegate-cache": "off"})
        assert told(off) == (200, None, "1")
    assert simulator.ledger()["calls"] == 2
    chat = {"model": "sim", "messages": [{"role": "user", "content": "header"}]}
    unasked = await http.post("/chat/completions", json=chat)
    assert told(unasked) == (200, None, "1")
    on = [await http.post("/chat/completions", json=chat, headers={"x-sluicegate-cache": "on"}) for _ in range(2)]
    assert [told(answer)[1] for answer in on] == ["miss", "hit"]
    for path, body in (("/chat/completions", {**chat, "stream": True}), ("/embeddings", embed("x")), ("/fanout", {})):
        wrong = await http.post(path, json=body, headers={"x-sluicegate-cache": "yes"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "x-sluicegate-cache")


async def test_a_stream_is_never_cached(http: httpx.AsyncClient, simulator: Server) -> None:
    simulator.ledger(reset=True)
    chat = {"model": "sim", "stream": True, "messages": []}
    for _ in range(2):
        answer = await http.post("/chat/completions", json=chat, headers={"x-sluicegate-cache": "on"})
        assert answer.content.endswith(b"data: [DONE]\n\n")
        assert "x-sluicegate-cache" not in answer.headers
    assert simulator.ledger()["calls"] == 2


async def test_failures_are_shared_but_not_kept(http: httpx.AsyncClient, simulator: Server) -> None:
    simulator.ledger(reset=True)
    body = embed("failure", "-status=418-latency=0.2")
    together = await asyncio.gather(*(http.post("/embeddings", json=body) for _ in range(2)))
    assert sorted(told(answer) for answer in together) == [(418, "miss", "1"), (418, "shared", "0")]
    assert told(await http.post("/embeddings", json=body)) == (418, "miss", "1")
    assert simulator.ledger()["calls"] == 2


async def test_two_keys_share_only_if_they_may(caching: Server, simulator: Server) -> None:
    def counted(server: Server) -> list[str]:
        simulator.ledger(reset=True)
        answers = [
            httpx.post(f"{server.base_url}/embeddings", json=embed("keys"), headers={"authorization": f"Bearer {key}"})
            for key in ("sk-one", "sk-two", "sk-one")
        ]
        return [answer.headers["x-sluicegate-cache"] for answer in answers]

    assert counted(caching) == ["miss", "miss", "hit"]
    assert simulator.ledger()["calls"] == 2
    with serving("serve", toml=toml(simulator, enabled=True, across_keys=True)) as sharing:
        assert counted(sharing) == ["miss", "hit", "hit"]


async def test_a_fan_outs_items_share_calls_with_each_other_and_with_others(
    http: httpx.AsyncClient, simulator: Server
) -> None:
    simulator.ledger(reset=True)
    body = embed("fanned", "-latency=0.2")
    run = {"url": "/v1/embeddings", "requests": [{"body": body} for _ in range(20)]}
    answer = (await http.post("/fanout", json=run)).json()
    assert answer["counts"] == {"total": 20, "completed": 20, "failed": 0}
    assert sorted(line["timing"]["attempts"] for line in answer["results"]) == [0] * 19 + [1]
    assert simulator.ledger()["calls"] == 1
    assert told(await http.post("/embeddings", content=json.dumps(body, separators=(",", ":")))) == (200, "hit", "0")
    await http.post("/fanout", json=run, headers={"x-sluicegate-cache": "off"})
    assert simulator.ledger()["calls"] == 21


@contextlib.asynccontextmanager
async def waiting(http: httpx.AsyncClient, body: dict[str, Any]) -> "AsyncIterator[asyncio.Task[httpx.Response]]":
    task = asyncio.create_task(http.post("/embeddings", json=body))
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def lines(server: Server, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in server.log().splitlines() if name in line]
    return [line for line in found if line["logger"] == "sluicegate.access"]


async def test_the_leader_hangs_up_and_the_follower_still_gets_its_reply(
    caching: Server, simulator: Server, http: httpx.AsyncClient
) -> None:
    simulator.ledger(reset=True)
    body = embed("leader", "-latency=1")
    async with waiting(http, body):
        await eventually(lambda: simulator.ledger()["in_flight"] == 1)
        follower = asyncio.create_task(http.post("/embeddings", json=body))
        await eventually(lambda: cache_of(caching)["waiting"] == 2)
    answer = await follower
    assert told(answer) == (200, "shared", "0")
    seen = simulator.ledger()
    assert (seen["calls"], seen["aborted"]) == (1, 0)
    assert "499" in {str(line["status"]) for line in lines(caching, '"sim-latency=1"')}


async def test_when_all_hang_up_the_upstream_call_is_aborted(
    caching: Server, simulator: Server, http: httpx.AsyncClient
) -> None:
    simulator.ledger(reset=True)
    body = embed("all", "-latency=30")
    async with waiting(http, body), waiting(http, body):
        await eventually(lambda: simulator.ledger()["in_flight"] == 1)
        await eventually(lambda: cache_of(caching)["waiting"] == 2)
        assert simulator.ledger()["aborted"] == 0
    await eventually(lambda: simulator.ledger()["aborted"] == 1)
    await eventually(lambda: (cache_of(caching)["flying"], cache_of(caching)["waiting"]) == (0, 0))
    assert simulator.ledger()["calls"] == 1


async def test_a_followers_deadline_is_its_own(http: httpx.AsyncClient, simulator: Server) -> None:
    simulator.ledger(reset=True)
    body = embed("deadlines", "-latency=1")
    async with waiting(http, body) as leader:
        await eventually(lambda: simulator.ledger()["in_flight"] == 1)
        hasty = await http.post("/embeddings", json=body, headers={"x-sluicegate-timeout": "0.1"})
        assert (*told(hasty)[:2], hasty.json()["error"]["code"]) == (504, "shared", "deadline_exceeded")
        assert told(await leader) == (200, "miss", "1")


def test_a_server_ends_while_a_call_is_shared(simulator: Server) -> None:
    more = "\ndrain_timeout = 0.2"
    with serving("serve", toml=f"{more}\n{toml(simulator, enabled=True)}") as server, httpx.Client() as http:
        simulator.ledger(reset=True)
        headers = {"authorization": "Bearer sk-one"}
        request = http.build_request(
            "POST", f"{server.base_url}/embeddings", json=embed("end", "-latency=30"), headers=headers
        )

        async def ended() -> httpx.Response:
            sent = asyncio.create_task(asyncio.to_thread(http.send, request))
            await eventually(lambda: simulator.ledger()["in_flight"] == 1)
            server.process.terminate()
            return await sent

        answer = asyncio.run(ended())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
        assert server.process.wait(timeout=20) == 0
        assert "Traceback" not in server.log()
