"""One admission point: limits that are set or learnt, lanes, and which target a call goes to."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tests.journeys.test_hang_ups import calls
from tests.support import Server, eventually, free_port, reply, scripted, serving, whole

pytestmark = pytest.mark.alone
ODD_PORT = free_port()
RPM, TPM = 240, 6000
SETTINGS = {
    "requests": f"requests_per_minute = {RPM}",
    "tokens": f"tokens_per_minute = {TPM}",
    "learnt": "",
    "narrow": "max_in_flight = 4",
    "one": "max_in_flight = 1",
    "left": "max_in_flight = 20",
    "middle": "max_in_flight = 20",
    "right": "max_in_flight = 20",
    "second": "",
}
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(scope="module")
def slow_now_and_then() -> Iterator[Server]:
    with serving("simulate", "--latency", "0.01", "--tokens", "3", "--gap", "0.001") as server:
        yield server


@pytest.fixture(scope="module")
def limited(simulator: Server, slow_now_and_then: Server) -> Iterator[Server]:
    """A gateway with several upstreams that are one simulator; what differs is what is known of them."""
    tables = [f'[upstreams.{name}]\nbase_url = "{simulator.base_url}"\n{more}' for name, more in SETTINGS.items()]
    toml = (
        "\n".join(tables)
        + f"""
    [upstreams.odd]
    base_url = "http://127.0.0.1:{ODD_PORT}/v1"
    [upstreams.first]
    base_url = "{slow_now_and_then.base_url}"
    [models.spread]
    targets = ["left/sim-latency=0.2", "middle/sim-latency=0.2", "right/sim-latency=0.2"]
    strategy = "balance"
    [models.twice]
    targets = ["first/sim-twice", "second/sim-twice"]
    strategy = "hedge"
    """
    )
    with serving("serve", toml=toml) as server:
        yield server


@pytest.fixture
async def plain(limited: Server) -> Any:
    async with httpx.AsyncClient(base_url=limited.root, timeout=60) as http:
        yield http


async def seen(http: httpx.AsyncClient, upstream: str) -> dict[str, Any]:
    found: dict[str, Any] = (await http.get("/status")).json()["upstreams"][upstream]
    return found


async def fan_out(http: httpx.AsyncClient, model: str, count: int, **headers: str) -> dict[str, Any]:
    body = {"defaults": {**ASK, "model": model}, "requests": [{"body": {}}] * count}
    found: dict[str, Any] = (await http.post("/v1/fanout", json=body, headers=headers)).json()
    return found


async def refused(http: httpx.AsyncClient, upstream: str, model: str, count: int) -> int:
    """How many calls of a fan-out the upstream refused: each of them was sent once more."""
    answer = await fan_out(http, f"{upstream}/{model}", count)
    assert answer["counts"] == {"total": count, "completed": count, "failed": 0}
    return sum(line["timing"]["attempts"] - 1 for line in answer["results"])


async def test_requests_a_minute_are_used_up_and_not_exceeded(plain: httpx.AsyncClient) -> None:
    # replies of one burst that overtake each other can lift the known level by as many calls as are left: each once
    assert await refused(plain, "requests", f"sim-known-rpm={RPM}", RPM + 10) <= 10


async def test_limits_are_learnt_and_tokens_a_minute_are_not_exceeded(plain: httpx.AsyncClient) -> None:
    learnt, tokens = f"sim-learnt-rpm={RPM}", f"sim-tpm={TPM}"
    found = await asyncio.gather(refused(plain, "learnt", learnt, RPM + 10), refused(plain, "tokens", tokens, 50))
    assert found[0] <= 0.05 * RPM
    assert found[1] == 0
    assert (await seen(plain, "learnt"))["models"][learnt]["requests"]["per_minute"] == RPM
    assert (await seen(plain, "tokens"))["models"][tokens]["tokens"]["per_minute"] == TPM


async def test_what_calls_reserved_and_did_not_need_is_given_back(plain: httpx.AsyncClient) -> None:
    model = f"sim-spare-tpm={TPM}"
    assert await refused(plain, "tokens", model, 100) == 0
    known = (await seen(plain, "tokens"))["models"][model]["tokens"]
    assert known["remaining"] >= 0.7 * TPM  # a call takes 13


async def test_no_more_are_in_flight_than_may_be_however_many_models_there_are(
    plain: httpx.AsyncClient, simulator: Server
) -> None:
    simulator.ledger(reset=True)
    models = [f"narrow/sim-{name}-latency=0.05" for name in "abc"]
    many = [plain.post("/v1/chat/completions", json={**ASK, "model": model}) for model in models * 8]
    assert {answer.status_code for answer in await asyncio.gather(*many)} == {200}
    assert simulator.ledger()["peak"] == 4
    assert (await seen(plain, "narrow"))["peak_in_flight"] == 4


@asynccontextmanager
async def taken(limited: Server, http: httpx.AsyncClient, model: str) -> Any:
    """The only place is taken, and somebody interactive waits for the next one, while the block lasts."""
    async with calls(limited, {**ASK, "model": f"{model}-latency=60"}):

        async def is_taken() -> bool:
            return bool((await seen(http, "one"))["in_flight"] == 1)

        await eventually(is_taken)
        yield


async def queued(http: httpx.AsyncClient, model: str) -> dict[str, int]:
    found: dict[str, int] = (await seen(http, "one"))["models"].get(model, {}).get("queued", {})
    return found


async def test_batch_calls_go_after_interactive_ones_whoever_came_first(
    limited: Server, plain: httpx.AsyncClient
) -> None:
    order: list[str] = []

    async def call(client: AsyncOpenAI, lane: str) -> None:
        headers = {"x-sluicegate-priority": lane}
        await client.chat.completions.create(**{**ASK, "model": "one/sim"}, extra_headers=headers)
        order.append(lane)

    async with AsyncOpenAI(base_url=limited.base_url, api_key="any", max_retries=0) as client:
        async with taken(limited, plain, "one/other"):
            tasks = []
            for lane in ("batch", "interactive"):
                tasks += [asyncio.create_task(call(client, lane)) for _ in range(3)]

                async def all_wait(lane: str = lane) -> bool:
                    return (await queued(plain, "sim")).get(lane) == 3

                await eventually(all_wait)
        await asyncio.gather(*tasks)
    assert order == ["interactive"] * 3 + ["batch"] * 3


@pytest.mark.parametrize(
    ("headers", "lane"), [({}, "batch"), ({"x-sluicegate-priority": "interactive"}, "interactive")]
)
async def test_a_fan_out_is_batch_work_unless_it_says_otherwise_and_leaves_the_queue_with_its_client(
    limited: Server, plain: httpx.AsyncClient, headers: dict[str, str], lane: str
) -> None:
    model = f"sim-{lane}"
    async with taken(limited, plain, "one/other"):
        task = asyncio.create_task(fan_out(plain, f"one/{model}", 3, **headers))

        async def all_wait() -> bool:
            return await queued(plain, model) == {"interactive": 0, "batch": 0, lane: 3}

        async def all_left() -> bool:
            return await queued(plain, model) == {"interactive": 0, "batch": 0}

        await eventually(all_wait)
        task.cancel()
        await eventually(all_left)
        assert (await seen(plain, "one"))["queued"] == 0


async def test_a_priority_that_is_none_is_refused(plain: httpx.AsyncClient) -> None:
    headers = {"x-sluicegate-priority": "urgent"}
    answer = await plain.post("/v1/chat/completions", json={**ASK, "model": "one/sim"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-sluicegate-priority")


async def test_balance_sends_calls_where_there_is_room(plain: httpx.AsyncClient) -> None:
    many = [plain.post("/v1/chat/completions", json={**ASK, "model": "spread"}) for _ in range(30)]
    found = Counter(answer.headers["x-sluicegate-upstream"] for answer in await asyncio.gather(*many))
    assert found.keys() == {"left", "middle", "right"}
    assert min(found.values()) >= 5


async def test_a_call_that_is_slower_than_usual_is_asked_twice_and_the_loser_is_cancelled(
    limited: Server, slow_now_and_then: Server
) -> None:
    async with AsyncOpenAI(base_url=limited.base_url, api_key="any", max_retries=0) as client:
        ask = client.chat.completions.with_raw_response
        upstreams = {(await ask.create(**ASK, model="twice")).headers["x-sluicegate-upstream"] for _ in range(40)}
        assert "first" in upstreams
        slow_now_and_then.ledger(reset=True)
        slow_now_and_then.fault(latency=30)
        answer = await ask.create(**ASK, model="twice")
        slow_now_and_then.heal()
    assert answer.headers["x-sluicegate-upstream"] == "second"
    assert answer.headers["x-sluicegate-attempts"] == "2"
    await eventually(lambda: slow_now_and_then.ledger()["aborted"] == 1)


@pytest.mark.parametrize("value", ["soon", "-5", "1e400", "0", "NaN", "9" * 400, "6 minutes", "\t"])
async def test_what_makes_no_sense_in_an_upstreams_headers_is_counted_and_does_no_harm(
    plain: httpx.AsyncClient, value: str
) -> None:
    kinds = [
        f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")
    ]
    answer = reply(b'{"object": "chat.completion"}', headers=dict.fromkeys(kinds, value))
    before = (await seen(plain, "odd"))["garbage_headers"]
    async with scripted(whole(answer), ODD_PORT):
        many = [plain.post("/v1/chat/completions", json={**ASK, "model": "odd/m"}) for _ in range(5)]
        assert {one.status_code for one in await asyncio.gather(*many)} == {200}
    after = await seen(plain, "odd")
    assert (after["garbage_headers"] > before) == (value not in {"-5", "0"})
    assert (after["models"]["m"]["requests"], after["models"]["m"]["tokens"]) == (None, None)
