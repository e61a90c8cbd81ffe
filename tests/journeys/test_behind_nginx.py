"""What clients see through a real nginx: tokens when they are sent, no compression, and hang-ups that reach the upstream."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tests.nginx import nginx
from tests.support import (
    LAST_CHUNK,
    STREAM_HEAD,
    Request,
    Server,
    chunk,
    eventually,
    free_port,
    reply,
    scripted,
    serving,
    token,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "proxies.md"
UPSTREAM_PORT = free_port()
EARLY, LATE = b"early bird", b"late riser"


@dataclass(frozen=True)
class Live:
    """A route whose reply goes out while it comes in. Another one needs another row, no more.

    Attributes:
        path: Under the base URL.
        body: Makes its upstream call or calls for `model`, which answer `EARLY`, and `LATE` when they may.
        media_type: What comes.
        accept: What form of reply is asked for.
        events: Where what was made can be read, if the request only begins it.
    """

    path: str
    body: Callable[[str], dict[str, Any]]
    media_type: str
    accept: str = "*/*"
    events: Callable[[dict[str, Any]], str] | None = None


def chat(model: str, *, stream: bool = False, said: str = "x") -> dict[str, Any]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": said}]}


def two_items(model: str) -> dict[str, Any]:
    return {"requests": [{"body": chat(model)}, {"body": chat(model, said="wait")}]}


def stream_of(model: str) -> dict[str, Any]:
    return {"url": "/v1/chat/completions", "body": chat(model)}


EVENTS = "text/event-stream"
LIVE = {
    "chat": Live("chat/completions", lambda model: chat(model, stream=True), EVENTS),
    "completions": Live("completions", lambda model: {"model": model, "prompt": "x", "stream": True}, EVENTS),
    "responses": Live("responses", lambda model: {"model": model, "input": "x", "stream": True}, EVENTS),
    "fan-out of streams": Live(
        "fanout", lambda model: {"requests": [{"body": chat(model, stream=True)}]}, EVENTS, EVENTS
    ),
    "fan-out, events": Live("fanout", two_items, EVENTS, EVENTS),
    "fan-out, lines": Live("fanout", two_items, "application/x-ndjson", "application/x-ndjson"),
    "resumable": Live("streams", stream_of, EVENTS, events=lambda made: str(made["events_url"])),
    "many resumable": Live("streams", stream_of, EVENTS, events=lambda made: f"/v1/streams/events?ids={made['id']}"),
}


@pytest.fixture(scope="module")
def held(simulator: Server) -> Iterator[Server]:
    """A gateway before an upstream that holds back the second half of its answers, and before the simulator."""
    toml = f"""
    [upstreams.halves]
    base_url = "http://127.0.0.1:{UPSTREAM_PORT}/v1"
    [upstreams.sim]
    base_url = "{simulator.base_url}"
    """
    with serving("serve", toml=toml, ready="/livez") as server:
        yield server


def documented(gateway: str, listen: str) -> str:
    """Returns: The block that docs/proxies.md tells people to copy, without its TLS."""
    found = re.search(r"```nginx\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found is not None
    block = found.group(1).replace("127.0.0.1:8000", gateway)
    block, listens = re.subn(r"listen 443 ssl;", f"listen {listen};", block)
    assert listens == 1
    return re.sub(r"^ *(http2|server_name|ssl_\w+) .*\n", "", block, flags=re.MULTILINE)


WAYS = ("by default", "compressing all", "as documented")


@pytest.fixture(scope="module")
def proxies(held: Server) -> Iterator[dict[str, Server]]:
    """One nginx with three servers, by their `WAYS`. `gzip on` is Debian's own setting."""
    ports = {way: free_port() for way in WAYS}
    gateway = held.root.removeprefix("http://")
    bare = f"location / {{ proxy_pass {held.root}; }}"
    http = f"""
    gzip on;
    gzip_types *;
    server {{ listen 127.0.0.1:{ports["by default"]}; gzip_types text/html; {bare} }}
    server {{ listen 127.0.0.1:{ports["compressing all"]}; gzip_min_length 0; gzip_proxied any; {bare} }}
    {documented(gateway, f"127.0.0.1:{ports['as documented']}")}
    """
    with nginx(http, ports["by default"]) as server:
        yield {way: Server(f"http://127.0.0.1:{port}", server.process, server.folder) for way, port in ports.items()}


@dataclass
class Halves:
    """An upstream that says `EARLY`, and `LATE` once it may."""

    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def script(self, request: Request, writer: asyncio.StreamWriter) -> None:
        asked = json.loads(request.body)
        if asked.get("stream"):
            shape = _shape(request.line)
            writer.write(STREAM_HEAD + chunk(shape(EARLY)))
            await writer.drain()
            await self.go.wait()
            writer.write(chunk(shape(LATE) + b"data: [DONE]\n\n") + LAST_CHUNK)
        elif asked["messages"][0]["content"] == "wait":
            await self.go.wait()
            writer.write(reply(b'{"said": "' + LATE + b'"}'))
        else:
            writer.write(reply(b'{"said": "' + EARLY + b'"}'))


def _shape(line: str) -> Callable[[bytes], bytes]:
    if "chat" in line:
        return lambda text: token(text.decode())
    return lambda text: b'data: {"delta": "' + text + b'"}\n\n'


@contextlib.asynccontextmanager
async def halves() -> AsyncIterator[Halves]:
    upstream = Halves()
    async with scripted(upstream.script, UPSTREAM_PORT):
        try:
            yield upstream
        finally:
            upstream.go.set()


@contextlib.asynccontextmanager
async def asked(server: Server, live: Live, model: str) -> AsyncIterator[httpx.Response]:
    headers = {"accept": live.accept, "accept-encoding": "gzip"}
    async with httpx.AsyncClient(base_url=server.root, headers=headers, timeout=30) as http:
        request = http.build_request("POST", f"/v1/{live.path}", json=live.body(model))
        if live.events:
            request = http.build_request("GET", live.events((await http.send(request)).json()))
        answer = await http.send(request, stream=True)
        assert answer.status_code == 200
        yield answer
        await answer.aclose()


@pytest.mark.parametrize("route", LIVE)
async def test_a_live_reply_tells_proxies_to_leave_it_alone(held: Server, route: str) -> None:
    async with halves() as upstream, asked(held, LIVE[route], "halves/m") as answer:
        upstream.go.set()
        await answer.aread()
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["cache-control"] == "no-store, no-transform"
    assert "content-encoding" not in answer.headers
    charset = "; charset=utf-8" if LIVE[route].media_type == EVENTS else ""
    assert answer.headers["content-type"] == LIVE[route].media_type + charset


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("route", LIVE)
async def test_what_is_early_arrives_before_what_is_late_is_sent(
    proxies: dict[str, Server], route: str, way: str
) -> None:
    async with halves() as upstream, asked(proxies[way], LIVE[route], "halves/m") as answer:
        pieces, got = answer.aiter_bytes(), b""
        async with asyncio.timeout(10):
            while EARLY not in got:
                got += await anext(pieces)
        assert LATE not in got
        upstream.go.set()
        async for piece in pieces:
            got += piece
    assert LATE in got
    assert ("content-encoding" in answer.headers) == (way == "compressing all")


@pytest.mark.parametrize("way", WAYS)
async def test_the_official_sdk_streams_through_it(proxies: dict[str, Server], way: str) -> None:
    async with (
        halves() as upstream,
        AsyncOpenAI(base_url=proxies[way].base_url, api_key="any", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(model="halves/m", messages=[], stream=True)
        assert (await anext(stream)).choices[0].delta.content == EARLY.decode()
        upstream.go.set()
        assert [part.choices[0].delta.content async for part in stream] == [LATE.decode()]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["whole", "before the first token", "stream", "fan-out"])
async def test_hanging_up_at_nginx_ends_the_upstream_call(
    proxies: dict[str, Server], simulator: Server, way: str, form: str
) -> None:
    body = {
        "whole": chat("sim/m-latency=30"),
        "before the first token": chat("sim/m-first=30", stream=True),
        "stream": chat("sim/m-stall=2", stream=True),
        "fan-out": {"requests": [{"body": chat("sim/m-latency=30")}]},
    }[form]
    path = "fanout" if form == "fan-out" else "chat/completions"
    simulator.ledger(reset=True)
    async with httpx.AsyncClient(timeout=60) as http:
        call = asyncio.create_task(http.post(f"{proxies[way].base_url}/{path}", json=body))
        await eventually(lambda: simulator.ledger()["in_flight"] == 1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    await eventually(lambda: simulator.ledger()["aborted"] == 1)


async def test_as_documented_lines_go_in_while_results_come_out(proxies: dict[str, Server]) -> None:
    line = json.dumps({"body": chat("sim/m")}).encode() + b"\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(proxies["as documented"].root.rsplit(":", 1)[1]))
    head = "POST /v1/fanout HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n"
    kinds = "content-type: application/x-ndjson\r\naccept: application/x-ndjson\r\n\r\n"
    writer.write((head + kinds).encode() + chunk(line))
    assert b'"index":0' in await asyncio.wait_for(reader.readuntil(b'"attempts":1}}'), 10)
    writer.write(chunk(line) + LAST_CHUNK)
    assert b"fanout.summary" in await asyncio.wait_for(reader.read(), 10)
    writer.close()


async def test_as_documented_a_body_may_be_as_large_as_the_gateway_takes_it(proxies: dict[str, Server]) -> None:
    async with httpx.AsyncClient(timeout=30) as http:
        large = json.dumps(chat("sim/m", said="x" * 3_000_000))
        answer = await http.post(f"{proxies['as documented'].base_url}/chat/completions", content=large)
    assert answer.status_code == 200
