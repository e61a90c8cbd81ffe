"""Short-lived keys for pages: what they open, what they do not, when they end, and that all replicas agree on it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from app.wire.results import new_id
from tests.support import Server, eventually, serving

PAGE = "https://app.example"
KEYS = """
cors_origins = "https://app.example"
[keys.frontend]
key = "sk-frontend"
models = ["fast", "cheap"]
[keys.other]
key = "sk-other"
"""
MODELS = """
[models.fast]
targets = ["sim/sim"]
[models.cheap]
targets = ["sim/sim-cheap"]
"""
MESSAGES: list[Any] = [{"role": "user", "content": "x"}]
ASK = {"model": "fast", "messages": MESSAGES}

# What a page may ask for. A new route is closed to pages until it says otherwise and stands here.
PAGES = {
    *(f"POST /v1/{path}" for path in ("chat/completions", "completions", "embeddings", "responses", "moderations")),
    *(f"POST /v1/images/{path}" for path in ("generations", "edits", "variations")),
    *(f"POST /v1/audio/{path}" for path in ("speech", "transcriptions", "translations")),
    "POST /v1/fanout",
    "POST /v1/streams",
    "GET /v1/streams/events",
    *(f"GET /v1/streams/{{stream_id}}{part}" for part in ("", "/events")),
    "DELETE /v1/streams/{stream_id}",
    "GET /v1/models",
    "GET /v1/models/{name}",
}
PUBLIC = {"GET /livez", "GET /readyz"}


def settings(simulator: Server, keys: str = KEYS) -> str:
    return f'{keys}{MODELS}\n[upstreams.sim]\nbase_url = "{simulator.base_url}"'


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", **more}


@pytest.fixture(scope="module")
def keyed(simulator: Server) -> Iterator[Server]:
    with serving("serve", toml=settings(simulator)) as server:
        yield server


@pytest.fixture
async def http(keyed: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=keyed.base_url, timeout=30) as plain:
        yield plain


async def make(http: httpx.AsyncClient, key: str = "sk-frontend", **asked: Any) -> str:
    answer = await http.post("/browser_tokens", json=asked, headers=bearer(key))
    assert answer.status_code == 201, answer.text
    token: str = answer.json()["token"]
    return token


async def chat(
    http: httpx.AsyncClient, token: str, headers: dict[str, str] | None = None, **ask: Any
) -> httpx.Response:
    return await http.post("/chat/completions", json={**ASK, **ask}, headers={**bearer(token), **(headers or {})})


def code(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["type"], error["code"]


async def test_a_page_streams_with_a_token_in_place_of_a_key(http: httpx.AsyncClient, keyed: Server) -> None:
    token = await make(http, models=["fast"], max_requests=2, origins=[PAGE])
    headers = {"origin": PAGE}
    async with AsyncOpenAI(base_url=keyed.base_url, api_key=token, max_retries=0, default_headers=headers) as client:
        stream = await client.chat.completions.create(model="fast", messages=MESSAGES, stream=True)
        assert len([chunk async for chunk in stream if chunk.choices[0].delta.content]) == 5
        assert [model.id async for model in client.models.list()] == ["fast"]
        with pytest.raises(openai.PermissionDeniedError):
            await client.chat.completions.create(model="cheap", messages=MESSAGES)
        assert (await client.chat.completions.create(model="fast", messages=MESSAGES)).choices
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="fast", messages=MESSAGES)
    assert (caught.value.type, caught.value.code) == ("insufficient_quota", "insufficient_quota")
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_the_reply_is_the_token_and_what_it_is_bound_to(http: httpx.AsyncClient) -> None:
    answer = await http.post(
        "/browser_tokens", json={"origins": ["HTTPS://App.Example:443/"]}, headers=bearer("sk-other")
    )
    made = answer.json()
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    assert (made["object"], made["models"], made["max_requests"]) == ("browser_token", None, None)
    assert made["origins"] == [PAGE]
    assert made["expires_at"] - made["created_at"] == 600
    without_a_body = await http.post("/browser_tokens", headers=bearer("sk-other"))
    assert without_a_body.status_code == 201


async def test_only_a_real_key_makes_tokens_and_within_its_own_bounds(http: httpx.AsyncClient) -> None:
    token = await make(http)
    assert code(await http.post("/browser_tokens", json={}, headers=bearer(token)))[0] == 403
    assert code(await http.post("/browser_tokens", json={}))[0] == 401
    wide = await http.post("/browser_tokens", json={"models": ["dear"]}, headers=bearer("sk-frontend"))
    assert (wide.status_code, wide.json()["error"]["param"]) == (403, "models")
    assert "dear" in wide.json()["error"]["message"]
    for asked, param in (
        ({"ttl": 1}, "ttl"),
        ({"origins": ["*"]}, "origins[0]"),
        ({"max_requests": 0}, "max_requests"),
    ):
        bad = await http.post("/browser_tokens", json=asked, headers=bearer("sk-frontend"))
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, param)


async def test_a_token_ends_with_its_time(http: httpx.AsyncClient) -> None:
    token = await make(http, ttl_seconds=1)
    answers: list[httpx.Response] = []

    async def is_over() -> bool:
        answers.append(await chat(http, token))
        return answers[-1].status_code != 200

    await eventually(is_over)
    assert code(answers[-1]) == (401, "authentication_error", "token_expired")


async def test_many_at_once_make_exactly_as_many_calls_as_were_allowed(
    http: httpx.AsyncClient, simulator: Server
) -> None:
    token = await make(http, max_requests=6)
    simulator.ledger(reset=True)
    answers = await asyncio.gather(*(chat(http, token, stream=place % 2 == 0) for place in range(25)))
    assert sorted(answer.status_code for answer in answers) == [200] * 6 + [429] * 19
    assert simulator.ledger()["calls"] == 6
    assert (await http.get("/models", headers=bearer(token))).status_code == 200


async def test_what_is_refused_beforehand_is_not_counted(http: httpx.AsyncClient) -> None:
    token = await make(http, max_requests=1, models=["fast"], origins=[PAGE])
    page = {"origin": PAGE}
    refused = [
        await chat(http, token, page, model="cheap"),
        await chat(http, token, page, stream="yes"),
        await chat(http, token, {**page, "x-sluicegate-timeout": "never"}),
        await chat(http, token, {"origin": "https://evil.example"}),
        await http.post("/fanout", json={"requests": []}, headers=bearer(token, **page)),
    ]
    assert [answer.status_code for answer in refused] == [403, 400, 400, 403, 400]
    assert (await chat(http, token, page)).status_code == 200
    assert (await chat(http, token, page)).status_code == 429


async def test_a_fan_out_counts_for_all_its_calls_or_is_refused_whole(
    http: httpx.AsyncClient, simulator: Server
) -> None:
    token = await make(http, max_requests=5)
    requests = [{"body": {"messages": MESSAGES}}] * 3
    simulator.ledger(reset=True)
    both = {"requests": requests, "models": ["fast", "cheap"]}
    refused = await http.post("/fanout", json=both, headers=bearer(token))
    assert code(refused) == (429, "insufficient_quota", "insufficient_quota")
    assert simulator.ledger()["calls"] == 0
    done = await http.post("/fanout", json={"requests": requests, "models": ["fast"]}, headers=bearer(token))
    assert done.json()["counts"]["completed"] == 3
    assert [(await chat(http, token)).status_code for _ in range(3)] == [200, 200, 429]


async def test_a_fan_outs_items_reach_no_model_but_the_tokens(http: httpx.AsyncClient) -> None:
    token = await make(http, models=["fast"])
    requests = [{"body": {**ASK, "model": model}} for model in ("fast", "cheap")]
    answer = await http.post("/fanout", json={"requests": requests}, headers=bearer(token))
    assert [line["response"]["status_code"] for line in answer.json()["results"]] == [200, 403]


async def test_lines_without_end_are_not_for_pages(http: httpx.AsyncClient) -> None:
    headers = bearer(await make(http), **{"content-type": "application/x-ndjson"})
    assert code(await http.post("/fanout", content=b"{}", headers=headers)) == (403, "permission_error", None)


async def test_every_route_is_closed_to_pages_unless_it_was_opened(http: httpx.AsyncClient, keyed: Server) -> None:
    token = await make(http)
    paths = (await http.get(f"{keyed.root}/openapi.json")).json()["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert routes > PAGES | PUBLIC
    opened = set()
    for route in routes - PUBLIC:
        method, path = route.split()
        answer = await http.request(
            method, f"{keyed.root}{path.replace('{', '').replace('}', '')}", headers=bearer(token)
        )
        if answer.status_code != 403:
            opened.add(route)
        else:
            assert answer.json()["error"]["type"] == "permission_error"
    assert opened == PAGES


async def test_a_token_works_for_pages_of_its_origins_only(http: httpx.AsyncClient) -> None:
    token = await make(http, origins=[PAGE, "http://localhost:5173"])
    for origin in (PAGE, "http://localhost:5173"):
        assert (await chat(http, token, {"origin": origin})).status_code == 200
    for origin in ("https://evil.example", "http://app.example", f"{PAGE}.evil.example", "null", "http://localhost"):
        answer = await chat(http, token, {"origin": origin})
        assert code(answer) == (403, "permission_error", None)
        assert origin in answer.json()["error"]["message"]
    assert code(await chat(http, token))[0] == 403
    assert (await http.get("/models", headers=bearer(token))).status_code == 200
    assert (await http.get("/models", headers=bearer(token, origin="https://evil.example"))).status_code == 403


async def test_a_bad_token_is_an_unknown_key_and_never_repeated(http: httpx.AsyncClient) -> None:
    token = await make(http)
    head, payload, signature = token.split(".")
    others = (await make(http, "sk-other")).split(".")
    bad = [f"{head}.{others[1]}.{signature}", f"{head}.{payload}.", "sgb_", "sgb_x.y.z", token[:-2], token + ".x"]
    for text in bad:
        answer = await chat(http, text)
        assert code(answer) == (401, "authentication_error", "invalid_api_key")
        assert "sgb_" not in answer.text
    assert (await chat(http, f" {token}")).status_code == 200


async def test_an_idempotency_key_works_with_a_token_and_a_replay_is_free(
    http: httpx.AsyncClient, simulator: Server
) -> None:
    token = await make(http, max_requests=2)
    once = {"idempotency-key": new_id("test-")}
    simulator.ledger(reset=True)
    answers = [await chat(http, token, once) for _ in range(3)]
    assert len({answer.content for answer in answers}) == 1
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true", "true"]
    assert simulator.ledger()["calls"] == 1
    assert [(await chat(http, token)).status_code for _ in range(2)] == [200, 429]
    assert (await chat(http, token, once)).headers["idempotent-replayed"] == "true"
    stranger = await chat(http, await make(http), once)
    assert "idempotent-replayed" not in stranger.headers


async def test_no_token_reaches_the_log(http: httpx.AsyncClient, keyed: Server) -> None:
    token = await make(http, max_requests=1)
    for _ in range(2):
        await chat(http, token)
    await chat(http, token[:-1])
    await http.get("/files", headers=bearer(token))
    log = keyed.log()
    assert '"caller": "frontend"' in log or '"caller":"frontend"' in log
    assert "sgb_" not in log
    assert not any(part in log for part in token.split(".")[1:])


async def test_without_keys_a_token_lets_pages_of_its_origins_in_and_is_checked(gateway: Server) -> None:
    async with httpx.AsyncClient(base_url=gateway.base_url, timeout=30) as http:
        page = {"origin": PAGE, "content-type": "text/plain"}
        strangers = await http.post("/chat/completions", json={**ASK, "model": "sim"}, headers=page)
        assert code(strangers)[:2] == (403, "permission_error")
        no_address = await http.post("/chat/completions", json=ASK, headers={**page, "origin": "http://["})
        assert no_address.status_code == 403
        token = (await http.post("/browser_tokens", json={"origins": [PAGE], "max_requests": 1})).json()["token"]
        assert (await chat(http, token, page, model="sim")).status_code == 200
        assert (await chat(http, token, page, model="sim")).status_code == 429
        assert (await chat(http, token, {"origin": "http://localhost"}, model="sim")).status_code == 403
        for_any_page = (await http.post("/browser_tokens", json={"models": ["sim"]})).json()["token"]
        assert (await chat(http, for_any_page, page, model="sim")).status_code == 403
        assert (await chat(http, for_any_page, model="sim")).status_code == 200
        assert (await chat(http, for_any_page, model="sim-other")).status_code == 403
        assert code(await chat(http, for_any_page[:-3], model="sim"))[2] == "invalid_api_key"
        assert (await chat(http, "whatever", model="sim")).status_code == 200


async def test_tokens_outlive_a_restart_with_what_they_have_left_but_not_their_key(
    simulator: Server, tmp_path: Path
) -> None:
    env = {"SLUICEGATE_DATA_DIR": str(tmp_path)}
    with serving("serve", toml=settings(simulator), env=env) as before:
        async with httpx.AsyncClient(base_url=before.base_url) as http:
            token = await make(http, max_requests=2)
            assert (await chat(http, token)).status_code == 200
    with serving("serve", toml=settings(simulator), env=env) as after:
        async with httpx.AsyncClient(base_url=after.base_url) as http:
            assert [(await chat(http, token)).status_code for _ in range(2)] == [200, 429]
    changed = KEYS.replace("sk-frontend", "sk-new")
    with serving("serve", toml=settings(simulator, changed), env=env) as rotated:
        async with httpx.AsyncClient(base_url=rotated.base_url) as http:
            assert code(await chat(http, token))[2] == "invalid_api_key"


async def test_replicas_take_each_others_tokens_and_count_together(
    simulator: Server, postgres: Callable[[], str]
) -> None:
    env = {"SLUICEGATE_DATABASE_URL": postgres()}
    toml = settings(simulator)
    with serving("serve", toml=toml, env=env) as one, serving("serve", toml=toml, env=env) as other:
        async with (
            httpx.AsyncClient(base_url=one.base_url, timeout=30) as here,
            httpx.AsyncClient(base_url=other.base_url, timeout=30) as there,
        ):
            token = await make(here, max_requests=9)
            answers = await asyncio.gather(*(chat(http, token) for _ in range(15) for http in (here, there)))
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [429] * 21
