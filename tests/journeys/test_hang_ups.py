"""Who goes away takes his calls with him; who does not read is dropped; what was taken is given back exactly once."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import FRAGILE_PORT
from tests.support import Server, events_of, eventually, reply, scripted, serving, whole

SLOTS = 4
STREAMS = 300


@pytest.fixture(scope="module")
def narrow(simulator: Server) -> Iterator[Server]:
    """A gateway with four slots and a queue of two."""
    toml = f"""
    max_attempts = 1
    send_timeout = 1
    drain_timeout = 1
    [upstreams.sim]
    base_url = "{simulator.base_url}"
    max_in_flight = {SLOTS}
    max_queue = 2
    """
    with serving("serve", toml=toml) as server:
        yield server


def tasks_of(server: Server) -> int:
    found: int = httpx.get(f"{server.root}/status").json()["tasks"]
    return found


def connections(server: Server) -> int:
    """Established connections that lead to this server, as the kernel counts them."""
    port = f":{int(server.root.rsplit(':', 1)[1]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(local.endswith(port) and state == "01" for _, local, _, state, *_ in rows)


def chat(model: str, *, stream: bool = False) -> dict[str, Any]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": "x"}]}


@contextlib.asynccontextmanager
async def calls(server: Server, *bodies: dict[str, object], path: str = "chat/completions") -> AsyncIterator[None]:
    """Calls under way inside the block; at its end their clients hang up."""
    async with httpx.AsyncClient(timeout=60) as http:
        tasks = [asyncio.create_task(http.post(f"{server.base_url}/{path}", json=body)) for body in bodies]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", chat("sim-latency=30")),
        ("chat/completions", chat("sim-latency=30", stream=True)),
        ("chat/completions", chat("sim-first=30", stream=True)),
        ("chat/completions", chat("sim-stall=2", stream=True)),
        ("embeddings", {"model": "sim-latency=30", "input": "x"}),
        ("fanout", {"requests": [{"body": chat("sim-latency=30")} for _ in range(3)]}),
    ],
    ids=["whole", "before the headers", "before the first token", "streaming", "embeddings", "fan-out"],
)
async def test_hanging_up_cancels_upstream(
    narrow: Server, simulator: Server, path: str, body: dict[str, object]
) -> None:
    simulator.ledger(reset=True)
    expected = 3 if path == "fanout" else 1
    async with calls(narrow, body, path=path):
        await eventually(lambda: simulator.ledger()["in_flight"] == expected)
    await eventually(lambda: simulator.ledger()["aborted"] == expected)
    await eventually(lambda: narrow.status()["in_flight"] == 0)


async def test_hanging_up_while_queued_leaves_the_queue_and_never_reaches_the_upstream(
    narrow: Server, simulator: Server
) -> None:
    simulator.ledger(reset=True)
    async with calls(narrow, *[chat("sim-latency=30")] * SLOTS):
        await eventually(lambda: narrow.status()["in_flight"] == SLOTS)
        async with calls(narrow, chat("queued"), chat("queued", stream=True)):
            await eventually(lambda: narrow.status()["queued"] == 2)
        await eventually(lambda: narrow.status()["queued"] == 0)
    await eventually(lambda: narrow.status()["in_flight"] == 0)
    assert "queued" not in simulator.ledger()["models"]


async def test_one_deadline_covers_the_queue_and_the_middle_of_a_stream(narrow: Server, simulator: Server) -> None:
    url, soon = f"{narrow.base_url}/chat/completions", {"x-sluicegate-timeout": "0.5"}
    async with httpx.AsyncClient(timeout=30) as http:
        cut = await http.post(url, json=chat("sim-tokens=9999-gap=0.05", stream=True), headers=soon)
        assert cut.status_code == 200
        assert events_of(cut.text)[-1]["error"]["code"] == "deadline_exceeded"
        async with calls(narrow, *[chat("sim-latency=30")] * SLOTS):
            await eventually(lambda: narrow.status()["in_flight"] == SLOTS)
            for stream in (False, True):
                queued = await http.post(url, json=chat("queued", stream=stream), headers=soon)
                assert (queued.status_code, queued.json()["error"]["code"]) == (504, "deadline_exceeded")
                assert float(queued.headers.get("x-sluicegate-queue-ms", "500")) >= 400
    await eventually(lambda: narrow.status()["in_flight"] == 0)


async def test_a_full_queue_refuses_with_the_wait_and_a_fan_out_is_not_refused(narrow: Server) -> None:
    async with calls(narrow, *[chat("sim-latency=2")] * (SLOTS + 2)), httpx.AsyncClient(timeout=30) as http:
        await eventually(lambda: narrow.status()["queued"] == 2)
        refused = await http.post(f"{narrow.base_url}/chat/completions", json=chat("sim"))
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert refused.headers["x-should-retry"] == "true"
        assert int(refused.headers["retry-after"]) >= 1
        assert int(refused.headers["retry-after-ms"]) >= 1000
        many = await http.post(f"{narrow.base_url}/fanout", json={"requests": [{"body": chat("sim")}] * 20})
        assert many.json()["counts"] == {"total": 20, "completed": 20, "failed": 0}


async def test_a_reader_that_does_not_read_is_dropped_and_its_upstream_call_ends(
    narrow: Server, simulator: Server
) -> None:
    simulator.ledger(reset=True)
    body = json.dumps(chat("sim-tokens=400000-gap=0", stream=True)).encode()
    with socket.create_connection(("127.0.0.1", int(narrow.root.rsplit(":", 1)[1]))) as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        stuck.sendall(head.encode() + body)
        await eventually(lambda: simulator.ledger()["in_flight"] == 1)
        await eventually(lambda: simulator.ledger()["aborted"] == 1, 20)
    await eventually(lambda: narrow.status()["in_flight"] == 0)
    assert '"error":"slow_reader"' in narrow.log()


@pytest.mark.alone
async def test_a_third_of_three_hundred_streams_hang_up_and_everything_is_given_back(
    gateway: Server, simulator: Server
) -> None:
    """The hour-glass: the simulator's ledger shows every abort, and slots and connections are back at their start."""
    simulator.ledger(reset=True)
    tasks, clients, upstreams = tasks_of(gateway), connections(gateway), connections(simulator)
    draw = random.Random(1)
    quitters = set(draw.sample(range(STREAMS), STREAMS // 3))

    async def one(http: httpx.AsyncClient, place: int) -> bool:
        body = chat(f"glass-tokens=60-gap=0.02-n={place}", stream=True)
        async with http.stream("POST", f"{gateway.base_url}/chat/completions", json=body) as answer:
            leave_at = draw.randrange(1, 25)
            seen = 0
            async for line in answer.aiter_lines():
                seen += line.startswith("data:")
                if place in quitters and seen >= leave_at:
                    return False
                if line == "data: [DONE]":
                    return True
        raise AssertionError("a stream ended without [DONE]")

    limits = httpx.Limits(max_connections=STREAMS)
    async with httpx.AsyncClient(timeout=60, limits=limits) as http:
        ends = await asyncio.gather(*(one(http, place) for place in range(STREAMS)))
    assert ends.count(True) == STREAMS - len(quitters)
    await eventually(lambda: simulator.ledger()["in_flight"] == 0, 1)
    seen = simulator.ledger()
    assert seen["calls"] == STREAMS
    assert seen["aborted"] == len(quitters)
    await eventually(lambda: gateway.status()["in_flight"] == 0)
    assert gateway.status()["queued"] == 0
    await eventually(lambda: tasks_of(gateway) <= tasks)
    await eventually(lambda: connections(gateway) <= clients)
    assert connections(simulator) <= upstreams + STREAMS - len(quitters)  # those that ended well wait in the pool


async def test_sigterm_lets_streams_finish_then_ends_the_rest_in_the_error_event_and_exits_0(
    simulator: Server,
) -> None:
    env = {"OPENAI_BASE_URL": simulator.base_url, "SLUICEGATE_DRAIN_TIMEOUT": "1"}
    with serving("serve", env=env) as server:
        async with httpx.AsyncClient(timeout=30) as http:
            short = asyncio.create_task(
                http.post(f"{server.base_url}/chat/completions", json=chat("sim-tokens=10-gap=0.05", stream=True))
            )
            long = asyncio.create_task(
                http.post(f"{server.base_url}/chat/completions", json=chat("sim-tokens=9999-gap=0.05", stream=True))
            )
            waiting = asyncio.create_task(http.post(f"{server.base_url}/chat/completions", json=chat("sim-latency=30")))
            gated = asyncio.create_task(
                http.post(f"{server.base_url}/chat/completions", json=chat("sim-latency=30", stream=True))
            )
            await eventually(lambda: server.status()["in_flight"] == 4)
            server.process.send_signal(signal.SIGTERM)
            await eventually(lambda: httpx.get(f"{server.root}/readyz").status_code == 503)
            refused = await http.post(f"{server.base_url}/chat/completions", json=chat("sim"))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert refused.headers["retry-after"] == "1"
            assert (await short).text.endswith("data: [DONE]\n\n")
            assert events_of((await long).text)[-1]["error"]["code"] == "draining"
            for call in (waiting, gated):
                assert (await call).status_code == 503
                assert (await call).json()["error"]["code"] == "draining"
        assert await asyncio.to_thread(server.process.wait, 20) == 0
        assert "Traceback" not in server.log()


async def test_sigterm_ends_an_idle_server_at_once_and_a_second_one_ends_a_busy_one(simulator: Server) -> None:
    env = {"OPENAI_BASE_URL": simulator.base_url}
    with serving("serve", env=env) as idle:
        idle.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(idle.process.wait, 10) == 0
    with serving("serve", env=env) as busy:
        async with httpx.AsyncClient(timeout=30) as http:
            endless = chat("sim-tokens=99999-gap=0.05", stream=True)
            stream = asyncio.create_task(http.post(f"{busy.base_url}/chat/completions", json=endless))
            await eventually(lambda: busy.status()["in_flight"] == 1)

            busy.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(1.1)  # twice within a second counts once: a group's signal comes twice
            assert not stream.done()
            busy.process.send_signal(signal.SIGTERM)
            assert events_of((await stream).text)[-1]["error"]["code"] == "draining"
        assert await asyncio.to_thread(busy.process.wait, 10) == 0


async def test_a_signal_to_the_whole_group_lets_the_workers_streams_finish(
    simulator: Server, postgres: Callable[[], str]
) -> None:
    env = {"OPENAI_BASE_URL": simulator.base_url, "SLUICEGATE_DATABASE_URL": postgres()}
    with serving("serve", "--workers", "2", env=env, group=True) as server:
        async with httpx.AsyncClient(timeout=30) as http:
            body = chat("group-tokens=40-gap=0.05", stream=True)
            stream = asyncio.create_task(http.post(f"{server.base_url}/chat/completions", json=body))
            await eventually(lambda: "group-tokens=40-gap=0.05" in simulator.ledger()["models"])
            os.killpg(server.process.pid, signal.SIGTERM)
            assert (await stream).text.endswith("data: [DONE]\n\n")
        await asyncio.to_thread(server.process.wait, 20)


async def test_sigterm_answers_an_upload_that_does_not_end(simulator: Server) -> None:
    env = {"OPENAI_BASE_URL": simulator.base_url, "SLUICEGATE_DRAIN_TIMEOUT": "0.5"}
    with serving("serve", env=env) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.root.rsplit(":", 1)[1]))
        writer.write(b'POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"model"')
        await eventually(lambda: connections(server) >= 1)
        server.process.send_signal(signal.SIGTERM)
        head = await asyncio.wait_for(reader.readuntil(b"}}"), 10)
        assert head.startswith(b"HTTP/1.1 503")
        assert b'"draining"' in head
        writer.close()
        assert await asyncio.to_thread(server.process.wait, 20) == 0


async def test_readers_who_do_not_read_a_large_whole_reply_are_dropped(fragile: Server) -> None:
    large = reply(b'{"data": "' + b"x" * 900_000 + b'"}')
    dropped = fragile.log().count("slow_reader")
    async with scripted(whole(large), FRAGILE_PORT):
        body = json.dumps(chat("m")).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(("127.0.0.1", int(fragile.root.rsplit(":", 1)[1])))
            for _ in range(8):  # enough to fill what the kernel buffers
                stuck.sendall(head.encode() + body)
            await eventually(lambda: fragile.log().count("slow_reader") > dropped)
