"""One envelope everywhere: a test for each row of the contract's table of errors, and for input that is simply bad."""

import asyncio
import hashlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from app.http.middleware import Edge
from tests.conftest import FRAGILE_PORT
from tests.support import Server, eventually, free_port, reply, scripted, serving, whole

ASK = {"model": "sim", "messages": [{"role": "user", "content": "x"}]}
GOOD = b'{"object": "chat.completion"}'


def check(answer: httpx.Response, status: int, kind: str, code: str | None, param: str | None = None) -> None:
    """The envelope and nothing else, with the request's id."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str)
    assert (body["error"]["type"], body["error"]["code"], body["error"]["param"]) == (kind, code, param)


def retry(answer: httpx.Response) -> str | None:
    found: str | None = answer.headers.get("x-should-retry")
    return found


@pytest.fixture(scope="module")
def locked(simulator: Server) -> Iterator[Server]:
    """A gateway that asks for keys."""
    toml = f"""
    cors_origins = "https://app.example"
    [upstreams.sim]
    base_url = "{simulator.base_url}"
    [models.fast]
    targets = ["sim/gpt-4o-mini"]
    [keys.all]
    key = "key-for-all"
    [keys.narrow]
    key_sha256 = "{hashlib.sha256(b"key-for-fast").hexdigest()}"
    models = ["fast"]
    """
    with serving("serve", toml=toml, ready="/readyz") as server:
        yield server


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"", None),
        (b"[]", None),
        (b'{"model": 7}', "model"),
        (b'{"messages": []}', "model"),
        (b'{"model": ""}', "model"),
        (b'{"model": "sim", "stream": "yes"}', "stream"),
        (b'{"model": "sim", "x": "\xff"}', None),
        (b'{"model": "sim", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", None),
        (b'{"model": "sim", "x": nope}', None),
    ],
    ids=["cut", "empty", "list", "model type", "no model", "empty model", "stream type", "utf-8", "deep", "word"],
)
async def test_400_names_the_field(http: httpx.AsyncClient, body: bytes, param: str | None) -> None:
    answer = await http.post("/v1/chat/completions", content=body)
    check(answer, 400, "invalid_request_error", None, param)
    assert retry(answer) == "false"


@pytest.mark.parametrize("header", ["x-sluicegate-timeout", "x-sluicegate-priority"])
async def test_400_names_a_wrong_header(http: httpx.AsyncClient, header: str) -> None:
    answer = await http.post("/v1/chat/completions", json=ASK, headers={header: "soon"})
    check(answer, 400, "invalid_request_error", None, header)


async def test_400_for_a_form_that_is_none(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/audio/transcriptions", json=ASK)
    check(answer, 400, "invalid_request_error", None, "content-type")
    cut = await http.post(
        "/v1/audio/transcriptions", content=b"--x\r\n", headers={"content-type": "multipart/form-data; boundary=x"}
    )
    check(cut, 400, "invalid_request_error", None)


async def test_401_without_a_key_or_with_an_unknown_one(locked: Server) -> None:
    async with httpx.AsyncClient(base_url=locked.root) as http:
        for headers in ({}, {"authorization": "Bearer nope"}, {"authorization": "Basic a2V5"}):
            for path in ("/v1/chat/completions", "/v1/fanout"):
                answer = await http.post(path, json=ASK, headers=headers)
                check(answer, 401, "authentication_error", "invalid_api_key")
                assert retry(answer) == "false"
        check(await http.get("/status"), 401, "authentication_error", "invalid_api_key")
        for open_path in ("/livez", "/readyz", "/docs", "/openapi.json"):
            assert (await http.get(open_path)).status_code == 200


async def test_403_for_a_model_that_the_key_may_not_use(locked: Server) -> None:
    async with httpx.AsyncClient(base_url=locked.root, headers={"authorization": "Bearer key-for-fast"}) as http:
        assert (await http.post("/v1/chat/completions", json={**ASK, "model": "fast"})).status_code == 200
        answer = await http.post("/v1/chat/completions", json=ASK)
        check(answer, 403, "permission_error", None, "model")
        assert retry(answer) == "false"
        check(await http.post("/v1/moderations", json={"input": "x"}), 403, "permission_error", None, "model")
        assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["fast"]
        many = await http.post("/v1/fanout", json={"requests": [{"body": ASK}, {"body": {**ASK, "model": "fast"}}]})
        assert [line["response"]["status_code"] for line in many.json()["results"]] == [403, 200]


async def test_no_key_reaches_the_log(locked: Server) -> None:
    wrong = {"authorization": "Bearer wrong-secret"}
    async with httpx.AsyncClient(base_url=locked.root) as http:
        await http.post("/v1/chat/completions", json=ASK, headers={"authorization": "Bearer key-for-all"})
        await http.post("/v1/chat/completions", json=ASK, headers={**wrong, "x-request-id": "last"})
    await locked.logs('"last"')
    log = locked.log()
    assert '"caller":"all"' in log
    for secret in ("key-for-all", "wrong-secret", hashlib.sha256(b"key-for-fast").hexdigest(), '"content"'):
        assert secret not in log


async def test_404_for_an_unknown_route_and_405_for_a_wrong_method(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/nothing")
    check(answer, 404, "not_found_error", None)
    assert retry(answer) == "false"
    check(await http.get("/v1/chat/completions"), 405, "invalid_request_error", None)
    check(await http.get("/v1/responses/a%20b"), 404, "not_found_error", None)


async def test_404_for_an_unknown_model(http: httpx.AsyncClient) -> None:
    check(await http.get("/v1/models/nope"), 404, "not_found_error", "model_not_found", "model")


async def test_408_when_the_client_is_too_slow_to_send_its_body(fragile: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(fragile.root.rsplit(":", 1)[1]))
    writer.write(b'POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"model"')
    head, _, body = (await reader.readuntil(b"}}")).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(body)["error"]["code"] == "request_timeout"


async def test_413_for_a_body_over_the_cap_with_and_without_its_length(fragile: Server) -> None:
    async def endless() -> Any:
        for _ in range(30):
            yield b"x" * 10_000

    async with httpx.AsyncClient(base_url=fragile.root) as http:
        for content in (b"x" * 100_001, endless()):
            answer = await http.post("/v1/chat/completions", content=content)
            check(answer, 413, "invalid_request_error", "body_too_large")
            assert retry(answer) == "false"


async def test_429_insufficient_quota_passes_unchanged_and_is_not_retried(
    gateway: Server, simulator: Server, http: httpx.AsyncClient
) -> None:
    simulator.ledger(reset=True)
    answer = await http.post("/v1/chat/completions", json={**ASK, "model": "sim-quota=1"})
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "insufficient_quota"
    assert answer.headers["x-sluicegate-attempts"] == "1"
    assert simulator.ledger()["calls"] == 1


async def test_499_is_logged_when_the_client_hangs_up(gateway: Server, simulator: Server) -> None:
    for body in ({**ASK, "model": "hung-latency=30"}, {**ASK, "model": "hung-first=30", "stream": True}):
        simulator.ledger(reset=True)
        async with httpx.AsyncClient() as http:
            call = asyncio.create_task(http.post(f"{gateway.base_url}/chat/completions", json=body))
            await eventually(lambda: simulator.ledger()["in_flight"] == 1)
            call.cancel()
        await eventually(lambda model=body["model"]: _logged(gateway, model, 499))  # type: ignore[misc]


def _logged(server: Server, model: str, status: int) -> bool:
    return any(f'"model":"{model}"' in line and f'"status":{status}' in line for line in server.log().splitlines())


async def test_500_gives_the_request_id_and_the_log_has_the_trace(caplog: pytest.LogCaptureFixture) -> None:
    async def buggy(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise ZeroDivisionError

    async with httpx.AsyncClient(transport=httpx.ASGITransport(Edge(buggy)), base_url="http://test") as http:
        answer = await http.get("/", headers={"x-request-id": "mine-1"})
    check(answer, 500, "internal_error", None)
    assert answer.headers["x-request-id"] == "mine-1"
    assert "ZeroDivisionError" in caplog.text
    assert "ZeroDivisionError" not in answer.text


async def test_502_when_the_upstream_cannot_be_reached(fragile: Server) -> None:
    async with httpx.AsyncClient(base_url=fragile.root) as http:
        for stream in (False, True):
            answer = await http.post("/v1/chat/completions", json={**ASK, "stream": stream})
            check(answer, 502, "upstream_error", "upstream_unreachable")
            assert answer.headers["x-sluicegate-upstream"] == "scripted"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (reply(b"<html>hello</html>", content_type="text/html"), "upstream_malformed"),
        (reply(b"\x00\x01 garbage"), "upstream_malformed"),
        (reply(b""), "upstream_malformed"),
        (reply(b"x", headers={"content-encoding": "br"}), "upstream_malformed"),
        (reply(b"not gzip", headers={"content-encoding": "gzip"}), "upstream_malformed"),
        (reply(b"{" + b" " * 1_000_001 + b"}"), "upstream_malformed"),
        (reply(GOOD)[:-5], "upstream_cut"),
        (b"", "upstream_cut"),
    ],
    ids=["html", "garbage", "empty", "brotli", "not gzip", "too large", "cut", "closed"],
)
async def test_502_when_the_upstream_answers_nonsense(fragile: Server, answer: bytes, code: str) -> None:
    async with scripted(whole(answer), FRAGILE_PORT), httpx.AsyncClient() as http:
        got = await http.post(f"{fragile.base_url}/chat/completions", json=ASK)
    check(got, 502, "upstream_error", code)


@pytest.mark.parametrize("status", [404, 503])
async def test_an_error_page_keeps_its_status_and_its_retry_after(fragile: Server, status: int) -> None:
    page = reply(b"<html>oops</html>", content_type="text/html", status=status, headers={"retry-after": "7"})
    async with scripted(whole(page), FRAGILE_PORT), httpx.AsyncClient() as http:
        got = await http.post(f"{fragile.base_url}/chat/completions", json=ASK)
    check(got, status, "upstream_error", "upstream_malformed")
    assert "text/html" in got.json()["error"]["message"]
    assert got.headers["retry-after"] == "7"


async def test_a_broken_framing_of_the_upstreams_body_is_a_cut_at_once(fragile: Server) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    async with scripted(whole(head + b'5\r\n{"a":\r\nnot a size\r\n'), FRAGILE_PORT), httpx.AsyncClient() as http:
        got = await http.post(f"{fragile.base_url}/chat/completions", json=ASK)
    assert got.status_code == 502  # malformed if it came with the head, cut if later: never a wait for a timeout
    assert got.json()["error"]["code"] in {"upstream_malformed", "upstream_cut"}


async def test_an_empty_204_passes(fragile: Server) -> None:
    async with scripted(whole(b"HTTP/1.1 204 No Content\r\n\r\n"), FRAGILE_PORT), httpx.AsyncClient() as http:
        got = await http.delete(f"{fragile.base_url}/responses/resp_1")
    assert (got.status_code, got.content) == (204, b"")


async def test_without_keys_a_strange_page_cannot_spend_money(http: httpx.AsyncClient) -> None:
    body = json.dumps(ASK).encode()
    for headers in (
        {"origin": "https://evil.example", "content-type": "text/plain"},
        {"origin": "http://evil.example:8000", "host": "evil.example:8000", "content-type": "application/json"},
    ):
        check(await http.post("/v1/chat/completions", content=body, headers=headers), 403, "permission_error", None)
    local = {"origin": "http://localhost:3000", "content-type": "text/plain"}
    assert (await http.post("/v1/chat/completions", content=body, headers=local)).status_code == 200


async def test_header_values_that_are_not_ascii_do_no_harm(http: httpx.AsyncClient) -> None:
    odd = {b"openai-beta": "caf\xe9".encode("latin-1")}
    assert (await http.post("/v1/chat/completions", json=ASK, headers=odd)).status_code == 200
    form = {b"content-type": "multipart/form-data; boundary=\xe9".encode("latin-1")}
    answer = await http.post("/v1/audio/transcriptions", content=b"x", headers=form)
    check(answer, 400, "invalid_request_error", None, "content-type")


async def test_504_when_the_deadline_passes(gateway: Server, simulator: Server, http: httpx.AsyncClient) -> None:
    simulator.ledger(reset=True)
    for stream in (False, True):
        answer = await http.post(
            "/v1/chat/completions",
            json={**ASK, "model": "sim-latency=30", "stream": stream},
            headers={"x-sluicegate-timeout": "0.2"},
        )
        check(answer, 504, "timeout_error", "deadline_exceeded")
    await eventually(lambda: simulator.ledger()["aborted"] == 2)


async def test_504_when_the_first_token_does_not_come() -> None:
    port = free_port()
    toml = f"""
    max_attempts = 1
    [upstreams.slow]
    base_url = "http://127.0.0.1:{port}/v1"
    first_token_timeout = 0.2
    """
    with serving("serve", toml=toml) as server, socket.create_server(("127.0.0.1", port)):
        async with httpx.AsyncClient() as http:
            answer = await http.post(f"{server.base_url}/chat/completions", json={**ASK, "stream": True})
    check(answer, 504, "timeout_error", "first_token_timeout")


async def test_an_upstreams_own_error_passes_byte_for_byte(fragile: Server) -> None:
    own = b'{ "error": {"message": "bad", "type": "x", "param": "y", "code": "z"},  "more": 1.50 }'
    async with scripted(whole(reply(own, status=422)), FRAGILE_PORT), httpx.AsyncClient() as http:
        got = await http.post(f"{fragile.base_url}/chat/completions", json=ASK)
    assert (got.status_code, got.content) == (422, own)


async def test_a_sane_request_id_is_kept_and_another_replaced(http: httpx.AsyncClient) -> None:
    kept = await http.get("/livez", headers={"x-request-id": "trace-1.2:3"})
    assert kept.headers["x-request-id"] == "trace-1.2:3"
    for strange in ("a b", "x" * 200, "<script>"):
        replaced = await http.get("/livez", headers={"x-request-id": strange})
        assert replaced.headers["x-request-id"].startswith("req_")


async def test_cors_answers_before_authentication_and_exposes_what_browsers_need(locked: Server) -> None:
    origin = {"origin": "https://app.example"}
    wanted = "authorization,content-type,x-stainless-os,x-stainless-anything"
    ask = {**origin, "access-control-request-method": "POST", "access-control-request-headers": wanted}
    async with httpx.AsyncClient(base_url=locked.root) as http:
        preflight = await http.options("/v1/chat/completions", headers=ask)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        for header in wanted.split(","):
            assert header in preflight.headers["access-control-allow-headers"]
        refused = await http.post("/v1/chat/completions", json=ASK, headers=origin)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
        exposed = refused.headers["access-control-expose-headers"]
        for header in ("x-request-id", "x-sluicegate-attempts", "x-ratelimit-remaining-tokens", "retry-after-ms"):
            assert header in exposed
        assert "access-control-allow-credentials" not in refused.headers
        stranger = await http.post("/v1/chat/completions", json=ASK, headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers
