"""Who hangs up before the upstream has even taken the call leaves no connection that is still being made, and no retry."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.journeys.faults_support import full_backlog
from tests.support import Server, eventually, free_port, serving

PORTS = {"accepts_nobody": free_port(), "never_greets": free_port()}  # the second takes a TLS greeting, and is silent
_ON_THE_WAY = {"01": "established", "02": "SYN sent"}  # as /proc/net/tcp writes it


@pytest.fixture(scope="module")
def gateway_to_nowhere(simulator: Server) -> Iterator[Server]:
    """A gateway that would try to connect for a minute."""
    toml = f"""
    [upstreams.accepts_nobody]
    base_url = "http://127.0.0.1:{PORTS["accepts_nobody"]}/v1"
    connect_timeout = 60
    [upstreams.never_greets]
    base_url = "https://127.0.0.1:{PORTS["never_greets"]}/v1"
    connect_timeout = 60
    [upstreams.sim]
    base_url = "{simulator.base_url}"
    """
    with serving("serve", toml=toml, ready="/livez") as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def _upstreams() -> Iterator[None]:
    with full_backlog(PORTS["accepts_nobody"]), socket.create_server(("127.0.0.1", PORTS["never_greets"]), backlog=64):
        yield


def connections_to(port: int) -> set[str]:
    """The near ends of all connections to a port, those still being made included."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {near for _, near, far, state, *_ in rows if far.endswith(f":{port:04X}") and state in _ON_THE_WAY}


@contextlib.asynccontextmanager
async def call(server: Server, path: str, body: dict[str, Any]) -> AsyncIterator[None]:
    """A call under way inside the block; at its end its client hangs up."""
    async with httpx.AsyncClient(timeout=60) as http:
        task = asyncio.create_task(http.post(f"{server.base_url}/{path}", json=body))
        yield
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def status(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.root}/status").json()
    return found


def in_flight(server: Server) -> int:
    return sum(upstream["in_flight"] for upstream in status(server)["upstreams"].values())


def chat(model: str, *, stream: bool = False) -> dict[str, Any]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize("form", ["whole", "stream", "fan-out"])
@pytest.mark.parametrize("upstream", PORTS)
async def test_hanging_up_while_connecting_ends_the_attempt_to_connect(
    gateway_to_nowhere: Server, upstream: str, form: str
) -> None:
    port = PORTS[upstream]
    ask = chat(f"{upstream}/m", stream=form == "stream")
    path, body = ("fanout", {"requests": [{"body": ask}]}) if form == "fan-out" else ("chat/completions", ask)
    before = connections_to(port)
    async with call(gateway_to_nowhere, path, body):
        await eventually(lambda: in_flight(gateway_to_nowhere) == 1)
        await eventually(lambda: len(connections_to(port) - before) > 0)
        its = connections_to(port) - before
    await eventually(lambda: in_flight(gateway_to_nowhere) == 0)
    await eventually(lambda: not its & connections_to(port), 20)  # one may be a look at the model list: ten seconds


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_hanging_up_between_two_tries_leaves_it_at_one(
    gateway_to_nowhere: Server, simulator: Server, stream: bool
) -> None:
    simulator.ledger(reset=True)
    tasks = status(gateway_to_nowhere)["tasks"]
    model = f"sim/again-{stream}-status=503-after=30"
    async with call(gateway_to_nowhere, "chat/completions", chat(model, stream=stream)):
        await eventually(lambda: simulator.ledger()["calls"] == 1)
        await eventually(lambda: in_flight(gateway_to_nowhere) == 0)
    await eventually(lambda: status(gateway_to_nowhere)["tasks"] <= tasks)  # nobody is left to try again
    assert simulator.ledger()["calls"] == 1
