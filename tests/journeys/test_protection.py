"""A sick upstream costs a few calls, not an outage: storm, overload, black hole, recovery, breaker, budget."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, InternalServerError, RateLimitError

from tests.bench.real import servers
from tests.bench.real.load import Load, Sent, goodput, percentile
from tests.support import Server, eventually, serving

pytestmark = pytest.mark.alone
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
FAILURES = 40  # in a row, until an only target is left alone


@pytest.fixture(scope="module")
def ward() -> Iterator[tuple[Server, Server]]:
    """A simulator of its own, and a gateway that knows no other target and asks it once for each call."""
    with serving("simulate", "--latency", "0", "--tokens", "3", "--gap", "0.001") as upstream:
        toml = f'max_attempts = 1\n[upstreams.only]\nbase_url = "{upstream.base_url}"\n'
        with serving("serve", toml=toml) as server:
            yield server, upstream


@asynccontextmanager
async def asking(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=server.base_url, api_key="any", max_retries=0) as client:
        yield client


def failed(calls: list[Sent]) -> list[Sent]:
    return [one for one in calls if not one.ok]


def breaker(server: Server, model: str) -> dict[str, Any]:
    found: dict[str, Any] = server.status()["models"][model]["breaker"]
    return found


async def fall_ill(server: Server, upstream: Server, model: str) -> None:
    """Calls fail until the breaker is about to open: one more will do it."""
    upstream.fault(status=500)
    async with httpx.AsyncClient() as http:
        for _ in range(FAILURES - 1):
            answer = await http.post(f"{server.base_url}/chat/completions", json={**ASK, "model": model})
            assert answer.status_code == 500


async def test_a_storm_costs_about_one_attempt_a_request_and_is_over_soon_after_it_ends() -> None:
    async with servers.processes() as stack:
        upstream = await servers.simulator(stack, 0.01)
        load = Load(await servers.gateway(stack, upstream), "m", rate=100, timeout=5)
        assert not failed(await load.run(0.5))
        upstream.ledger(reset=True)
        upstream.fault(status=503)
        stormed = await load.run(2)
        assert {one.status for one in stormed} == {503}
        assert upstream.ledger()["calls"] <= 1.2 * len(stormed)
        upstream.heal()

        async def well() -> bool:
            return not failed(await load.run(0.2))

        await eventually(well, 10)
        assert not failed(await load.run(0.5))


SLOTS, HELD = 10, 0.2
OVERLOADED = {
    "fixed": (f"m-slots={SLOTS}-latency={HELD}", f"max_in_flight = {SLOTS}"),
    "adaptive": (f"m-busy={SLOTS}-latency={HELD}", ""),
}


async def overloaded(stack: ExitStack, kind: str) -> tuple[RateLimitError, list[Sent]]:
    """Five times what the upstream can do, for two seconds. Returns: What one more was told, and all the others."""
    model, settings = OVERLOADED[kind]
    upstream = await servers.simulator(stack)
    server = await servers.gateway(stack, upstream, settings=settings)
    await Load(server, model, SLOTS / HELD, 1).run(1)
    load = asyncio.create_task(Load(server, model, 5 * SLOTS / HELD, 1).run(2))
    await eventually(lambda: sum(server.status()["models"][model]["queued"].values()) > SLOTS)
    async with asking(server) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.chat.completions.create(**{**ASK, "model": model}, extra_headers=soon(2.1 * HELD))
    return caught.value, await load


async def test_who_cannot_be_served_in_time_is_told_at_once_and_the_others_are_served() -> None:
    async with servers.processes() as stack:
        both = await asyncio.gather(*(overloaded(stack, kind) for kind in OVERLOADED))
    for told, calls in both:
        assert (told.code, told.response.headers["x-should-retry"]) == ("rate_limit_exceeded", "true")
        assert int(told.response.headers["retry-after-ms"]) > 0
        assert int(told.response.headers["retry-after"]) >= 1
        assert goodput(calls, 1, 0, 2) >= 0.7 * SLOTS / HELD
        refused = [one.seconds for one in calls if one.status == 429]
        assert len(refused) >= len(calls) / 2
        assert percentile(refused, 0.9) <= 0.25


def soon(seconds: float) -> dict[str, str]:
    return {"x-sluicegate-timeout": f"{seconds:g}"}


KINDS = [(strategy, stream) for strategy in ("fallback", "balance") for stream in (False, True)]


@asynccontextmanager
async def threefold(stack: ExitStack) -> AsyncIterator[tuple[Server, list[Server]]]:
    """A gateway before three simulators; a public name, and a model, for each strategy and kind of reply."""
    three = await servers.simulators(stack, 3)
    tables = [f'[upstreams.u{place}]\nbase_url = "{one.base_url}"' for place, one in enumerate(three)]
    for strategy, stream in KINDS:
        name = f"{strategy}-{stream}"
        targets = ", ".join(f'"u{place}/{name}"' for place in range(3))
        tables.append(f'[models.{name}]\ntargets = [{targets}]\nstrategy = "{strategy}"')
    toml = "\n".join(tables)
    yield await asyncio.to_thread(stack.enter_context, serving("serve", toml=toml)), three


async def test_one_of_three_targets_may_fall_silent_be_killed_and_come_back() -> None:
    async with servers.processes() as stack, threefold(stack) as (server, (first, *_)):
        loads = [Load(server, f"{strategy}-{stream}", 40, 4, stream) for strategy, stream in KINDS]
        assert not any(map(failed, await asyncio.gather(*(load.run(1) for load in loads))))
        ended = asyncio.Event()
        under_way = [asyncio.create_task(load.until(lambda _: ended.is_set())) for load in loads]
        first.fault(hole=True)
        await eventually(lambda: all(is_open(server, load.model) for load in loads[:2]))  # balance hardly goes there
        await eventually(lambda: all(lost(server, load.model) <= 1 for load in loads[:2]))
        await servers.kill(first)
        await servers.simulator(stack, port=servers.port_of(first))
        await eventually(lambda: not any(is_open(server, load.model) for load in loads), 20)
        ended.set()
        calls = dict(zip(KINDS, await asyncio.gather(*under_way), strict=True))
        after = await asyncio.gather(*(load.run(0.5) for load in loads))
    assert {kind: len(failed(some)) for kind, some in calls.items() if len(failed(some)) > 5} == {}
    assert not any(map(failed, after))
    assert all("u0" in {one.upstream for one in some} for some in after)


def first_target(server: Server, model: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.root}/status").json()["upstreams"]["u0"]["models"][model]
    return found


def is_open(server: Server, model: str) -> bool:
    return bool(first_target(server, model)["breaker"]["state"] != "closed")


def lost(server: Server, model: str) -> int:
    """Calls that still wait in the hole."""
    found: int = first_target(server, model)["in_flight"]
    return found


async def test_an_only_target_that_fails_again_and_again_is_left_alone_until_a_probe_goes_well(
    ward: tuple[Server, Server],
) -> None:
    server, upstream = ward
    model = "breaker"
    await fall_ill(server, upstream, model)
    assert breaker(server, model) == {"state": "closed", "reason": None, "open_until": None, "opened": 0}
    async with asking(server) as client:
        for code in (None, "circuit_open"):
            with pytest.raises(InternalServerError) as caught:
                await client.chat.completions.create(**{**ASK, "model": model})
            assert (caught.value.status_code, caught.value.code) == (503 if code else 500, code)
        told = caught.value.response.headers
        assert told["x-sluicegate-attempts"] == "0"
        assert told["x-should-retry"] == "true"
        assert int(told["retry-after"]) >= 1
        assert int(told["retry-after-ms"]) > 0
        seen = breaker(server, model)
        assert (seen["state"], seen["opened"]) == ("open", 1)
        assert seen["reason"] == f"{FAILURES} failures in a row, the last one 500"
        assert abs(seen["open_until"] - time.time()) < 10
        upstream.heal()
        upstream.ledger(reset=True)

        async def answered() -> bool:
            try:
                await client.chat.completions.create(**{**ASK, "model": model})
            except InternalServerError:
                return False
            return True

        await eventually(answered)
    assert upstream.ledger()["calls"] == 1
    assert breaker(server, model) == {"state": "closed", "reason": None, "open_until": None, "opened": 1}


async def test_a_failed_probe_leaves_the_target_alone_for_longer(ward: tuple[Server, Server]) -> None:
    server, upstream = ward
    await fall_ill(server, upstream, "probed")
    load = Load(server, "probed", rate=50, timeout=5)
    await load.until(lambda _: breaker(server, "probed")["opened"] == 2)
    seen = breaker(server, "probed")
    upstream.heal()
    assert seen["open_until"] - time.time() > 1.0


async def test_a_fan_outs_items_wait_while_their_only_target_is_left_alone(ward: tuple[Server, Server]) -> None:
    server, upstream = ward
    model = "patient"
    await fall_ill(server, upstream, model)
    async with httpx.AsyncClient(timeout=30) as http:
        url = f"{server.base_url}/chat/completions"
        assert (await http.post(url, json={**ASK, "model": model})).status_code == 500
        assert (await http.post(url, json={**ASK, "model": model})).status_code == 503
        upstream.heal()
        upstream.ledger(reset=True)
        body = {"defaults": {**ASK, "model": model}, "requests": [{"body": {}}] * 20}
        answer = (await http.post(f"{server.base_url}/fanout", json=body)).json()
    assert answer["counts"] == {"total": 20, "completed": 20, "failed": 0}
    assert upstream.ledger()["calls"] == 20


async def test_retries_end_with_the_budget_and_successes_earn_new_ones(simulator: Server) -> None:
    toml = f'[upstreams.only]\nbase_url = "{simulator.base_url}"\nmax_in_flight = 100\n'
    with serving("serve", toml=toml) as server:
        async with httpx.AsyncClient(base_url=server.root, timeout=30) as http:

            async def attempts(model: str) -> int:
                answer = await http.post("/v1/chat/completions", json={**ASK, "model": model})
                return int(answer.headers["x-sluicegate-attempts"])

            simulator.ledger(reset=True)
            made = await asyncio.gather(*(attempts("sim-status=429") for _ in range(40)))
            paid = 500 // 14
            assert sum(made) == simulator.ledger()["calls"]
            assert (
                40 + paid <= sum(made) <= 40 + paid + 5
            )  # of 120; a little runs in with time, a retry in three seconds
            assert 2 <= max(made) <= 3
            for _ in range(14):
                assert await attempts("sim") == 1
            assert await attempts("sim-status=429") >= 2
