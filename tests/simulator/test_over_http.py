"""Slots, limits and faults as a client sees them, over a socket."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.support import Server, eventually, serving

WELL = {"status": None, "code": None, "hole": False, "share": 1.0, "latency": 0.0}


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with serving("simulate", "--latency", "0", "--tokens", "5", "--gap", "0") as server:
        yield server


@pytest.fixture
async def upstream(shared: Server) -> AsyncIterator[Server]:
    """A simulator that nobody else uses: healthy, nothing under way, an empty ledger."""
    shared.heal()
    await eventually(lambda: shared.ledger()["in_flight"] == 0)
    shared.ledger(reset=True)
    yield shared
    shared.heal()


@pytest.fixture
async def http(upstream: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=upstream.base_url, timeout=30) as client:
        yield client


def chat(model: str, **more: object) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "x"}], **more}


class Held:
    """A call whose stream never ends: `served` is done when its headers came, `hang_up()` ends it."""

    def __init__(self, http: httpx.AsyncClient, model: str) -> None:
        self.served = asyncio.Event()
        self.status = 0
        self._end = asyncio.Event()
        self._task = asyncio.create_task(self._call(http, chat(f"{model}-stall=1", stream=True)))

    async def _call(self, http: httpx.AsyncClient, body: dict[str, Any]) -> None:
        async with http.stream("POST", "chat/completions", json=body) as response:
            self.status = response.status_code
            self.served.set()
            await self._end.wait()

    async def hang_up(self) -> None:
        self._end.set()
        if not self.served.is_set():
            self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


async def hold(http: httpx.AsyncClient, upstream: Server, model: str, count: int) -> list[Held]:
    """Calls that came in one after the other."""
    held: list[Held] = []
    for number in range(count):
        held.append(Held(http, model))
        await eventually(lambda seen=number + 1: upstream.ledger()["calls"] == seen)  # type: ignore[misc]
    return held


async def test_calls_wait_in_order_for_a_slot(http: httpx.AsyncClient, upstream: Server) -> None:
    held = await hold(http, upstream, "sim-slots=2", 5)
    await asyncio.gather(held[0].served.wait(), held[1].served.wait())
    for ending, following in ((1, 2), (0, 3), (2, 4)):
        assert [one.served.is_set() for one in held] == [place < following for place in range(5)]
        await held[ending].hang_up()
        await asyncio.wait_for(held[following].served.wait(), 10)
    for one in held:
        await one.hang_up()
    assert upstream.ledger()["peaks"] == {"sim-slots=2-stall=1": 2}


async def test_a_caller_that_hangs_up_leaves_the_queue_and_takes_no_slot_along(
    http: httpx.AsyncClient, upstream: Server
) -> None:
    held = await hold(http, upstream, "sim-slots=1", 4)
    await held[1].hang_up()
    await held[2].hang_up()
    await eventually(lambda: upstream.ledger()["aborted"] == 2)
    assert upstream.ledger()["in_flight"] == 2
    await held[0].hang_up()
    await asyncio.wait_for(held[3].served.wait(), 10)
    await held[3].hang_up()
    await eventually(lambda: upstream.ledger()["in_flight"] == 0)
    again = Held(http, "sim-slots=1")
    await asyncio.wait_for(again.served.wait(), 10)
    await again.hang_up()
    assert upstream.ledger()["peaks"] == {"sim-slots=1-stall=1": 1}


async def test_a_crowd_gets_its_answers_a_few_at_a_time(http: httpx.AsyncClient, upstream: Server) -> None:
    model = "sim-slots=4-latency=0.01"
    replies = await asyncio.gather(*(http.post("chat/completions", json=chat(model)) for _ in range(60)))
    assert {reply.status_code for reply in replies} == {200}
    ledger = upstream.ledger()
    assert (ledger["peaks"], ledger["finished"], ledger["in_flight"]) == ({model: 4}, 60, 0)


async def test_a_slot_is_given_back_by_every_way_a_call_can_end(http: httpx.AsyncClient, upstream: Server) -> None:
    for knob in ("status=503", "fail=1", "html=1", "garbage=0", "cut=1"):
        for stream in (False, True):
            for _ in range(3):
                with contextlib.suppress(httpx.RemoteProtocolError):
                    await http.post("chat/completions", json=chat(f"sim-slots=1-{knob}", stream=stream), timeout=10)
    assert upstream.ledger()["in_flight"] == 0


async def test_above_busy_is_429_at_once_and_only_then(http: httpx.AsyncClient, upstream: Server) -> None:
    held = await hold(http, upstream, "sim-busy=2", 2)
    no = await http.post("chat/completions", json=chat("sim-busy=2-stall=1", stream=True))
    assert (no.status_code, no.json()["error"]["type"]) == (429, "rate_limit_error")
    assert not [name for name in no.headers if name.startswith(("x-ratelimit", "retry-after"))]
    assert upstream.ledger()["statuses"] == {"429": 1}
    await held[0].hang_up()
    await eventually(lambda: upstream.ledger()["in_flight"] == 1)
    again = Held(http, "sim-busy=2")
    await asyncio.wait_for(again.served.wait(), 10)
    assert again.status == 200
    for one in (held[1], again):
        await one.hang_up()


async def test_busy_advises_a_wait_where_it_is_asked_to_and_counts_those_that_wait(
    http: httpx.AsyncClient, upstream: Server
) -> None:
    held = await hold(http, upstream, "sim-busy=2-after=7-slots=1", 2)
    no = await http.post("chat/completions", json=chat("sim-busy=2-after=7-slots=1-stall=1", stream=True))
    assert (no.status_code, no.headers["retry-after"]) == (429, "7")
    for one in held:
        await one.hang_up()


async def test_requests_a_minute_are_announced_and_enforced(http: httpx.AsyncClient, upstream: Server) -> None:
    body = chat("sim-rpm=2-latency=0")
    first, second, third = [await http.post("chat/completions", json=body) for _ in range(3)]
    assert [reply.status_code for reply in (first, second, third)] == [200, 200, 429]
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in (first, second, third)] == ["1", "0", "0"]
    assert first.headers["x-ratelimit-reset-requests"] == "30s"
    assert 0 < int(third.headers["retry-after-ms"]) <= 30_000
    assert 0 < int(third.headers["retry-after"]) <= 30
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert upstream.ledger()["statuses"] == {"429": 1}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "a longer question" * 9}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}),
        ("completions", {"prompt": "once upon a time"}),
        ("embeddings", {"input": ["one text", "another text, and a longer one"]}),
        ("responses", {"input": "a question"}),
        ("images/generations", {"prompt": "a mill"}),
    ],
)
async def test_a_call_is_charged_the_tokens_of_its_usage(
    http: httpx.AsyncClient, path: str, body: dict[str, object], request: pytest.FixtureRequest
) -> None:
    model = f"{request.node.callspec.id}-tpm=1000"
    reply = await http.post(path, json={"model": model, **body})
    left = int(reply.headers["x-ratelimit-remaining-tokens"])
    assert (reply.headers["x-ratelimit-limit-tokens"], 1000 - left) == ("1000", reply.json()["usage"]["total_tokens"])


async def test_tokens_a_minute_are_charged_when_a_call_comes_in(http: httpx.AsyncClient) -> None:
    model = "sim-tpm=1000-tokens=900-stall=1"
    async with http.stream("POST", "chat/completions", json=chat(model, stream=True)) as first:
        assert int(first.headers["x-ratelimit-remaining-tokens"]) < 100
        second = await http.post("chat/completions", json=chat(model, stream=True))
    assert (second.status_code, second.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "retry-after" in second.headers


async def test_every_call_is_answered_with_the_fault_until_it_is_healed(
    http: httpx.AsyncClient, upstream: Server
) -> None:
    assert upstream.fault(status=503) == {**WELL, "status": 503}
    assert (await http.get(f"{upstream.root}/faults")).json() == {**WELL, "status": 503}
    for _ in range(3):
        reply = await http.post("chat/completions", json=chat("sim"))
        assert (reply.status_code, reply.json()["error"]["type"]) == (503, "server_error")
    assert (await http.get("models")).status_code == 200
    upstream.heal()
    assert (await http.post("chat/completions", json=chat("sim"))).status_code == 200
    assert upstream.ledger()["statuses"] == {"503": 3}


async def test_what_fell_into_the_hole_stays_there(http: httpx.AsyncClient, upstream: Server) -> None:
    upstream.fault(hole=True)
    lost = asyncio.create_task(http.post("chat/completions", json=chat("sim-slots=1")))
    await eventually(lambda: upstream.ledger()["in_flight"] == 1)
    upstream.heal()
    assert (await http.post("chat/completions", json=chat("sim-slots=1"))).status_code == 200
    assert not lost.done()
    lost.cancel()
    await eventually(lambda: upstream.ledger()["in_flight"] == 0)
    ledger = upstream.ledger()
    assert (ledger["aborted"], ledger["finished"]) == (1, 1)


async def test_a_share_of_the_calls_is_struck(http: httpx.AsyncClient, upstream: Server) -> None:
    upstream.fault(status=500, share=0.5)
    replies = [(await http.post("chat/completions", json=chat("sim"))).status_code for _ in range(40)]
    assert set(replies) == {200, 500}


async def test_a_fault_can_be_slowness(http: httpx.AsyncClient, upstream: Server) -> None:
    upstream.fault(latency=0.3)
    for fault, status in (({"latency": 0.3}, 200), ({"latency": 0.3, "status": 503}, 503)):
        upstream.fault(**fault)
        begun = time.monotonic()
        assert (await http.post("chat/completions", json=chat("sim"))).status_code == status
        assert time.monotonic() - begun >= 0.3


async def test_what_is_no_fault_is_a_clear_400(http: httpx.AsyncClient, upstream: Server) -> None:
    reply = await http.post(f"{upstream.root}/faults", json={"statis": 503})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "statis")
    assert "statis" in error["message"]
    assert (await http.put(f"{upstream.root}/faults", json={})).status_code == 405
    assert upstream.ledger()["calls"] == 0
