"""How calls find their upstream: aliases, retries, fallback, Azure's paths, keys; and what is sent there."""

import json
import time
from collections.abc import Mapping
from typing import Any

import httpx

from tests.conftest import FRAGILE_PORT
from tests.support import Server, eventually, free_port, reply, scripted, serving, whole

ASK = {"model": "fast", "messages": [{"role": "user", "content": "x"}]}
GOOD = b'{"object": "chat.completion"}'


async def post(server: Server, body: Mapping[str, Any], path: str = "chat/completions") -> httpx.Response:
    async with httpx.AsyncClient(timeout=30) as http:
        return await http.post(f"{server.base_url}/{path}", json=body)


async def test_an_alias_changes_the_models_name_and_no_other_byte() -> None:
    port = free_port()
    toml = f"""
    [upstreams.west]
    base_url = "http://127.0.0.1:{port}/v1"
    api_key = "sk-west"
    [models.fast]
    targets = ["west/real-model"]
    """
    sent = b'{ "messages": [ {"role":"user","content":"\\"model\\": \\"fast\\" \xc3\xa9"} ],\n "model" : "fast", "t": 1.0 }'
    async with scripted(whole(reply(GOOD)), port) as upstream:
        with serving("serve", toml=toml) as server:
            async with httpx.AsyncClient() as http:
                answer = await http.post(f"{server.base_url}/chat/completions", content=sent)
                assert answer.content == GOOD
                await http.post(f"{server.base_url}/chat/completions", json={"model": "west/org/name"})
                await http.post(f"{server.base_url}/chat/completions", json={"model": "other/name"})
                form: dict[str, Any] = {"model": (None, "fast"), "file": ("a.wav", b"\x00\xff--x", "audio/wav")}
                await http.post(f"{server.base_url}/audio/translations", files=form)
        chat, prefixed, unknown_prefix, translation = upstream.requests
    assert chat.body == sent.replace(b'"model" : "fast"', b'"model" : "real-model"')
    assert chat.headers["authorization"] == "Bearer sk-west"
    assert json.loads(prefixed.body)["model"] == "org/name"
    assert json.loads(unknown_prefix.body)["model"] == "other/name"
    assert b"\r\n\r\nreal-model\r\n--" in translation.body
    assert b"\x00\xff--x" in translation.body
    assert translation.headers["content-type"].lower().startswith("multipart/form-data; boundary=")


async def test_the_clients_key_and_cookies_never_go_upstream(fragile: Server) -> None:
    headers = {"authorization": "Bearer client-key", "cookie": "a=b", "x-secret": "s", "openai-beta": "v2"}
    async with (
        scripted(whole(reply(GOOD, headers={"set-cookie": "c=d"})), FRAGILE_PORT) as upstream,
        httpx.AsyncClient() as http,
    ):
        for _ in range(2):
            answer = await http.post(f"{fragile.base_url}/chat/completions", json=ASK, headers=headers)
            assert "set-cookie" not in answer.headers
    for request in upstream.requests:
        assert "client-key" not in str(request.headers)
        assert not {"cookie", "x-secret"} & set(request.headers)
        assert request.headers["openai-beta"] == "v2"


async def test_what_the_environment_holds_for_openai_goes_to_no_other_upstream() -> None:
    port = free_port()
    secrets = {"OPENAI_ORG_ID": "org-private", "OPENAI_PROJECT_ID": "proj-private", "OPENAI_API_KEY": "sk-private"}
    env = {**secrets, "OPENAI_CUSTOM_HEADERS": "x-token: token-private"}
    toml = f'[upstreams.stranger]\nbase_url = "http://127.0.0.1:{port}/v1"'
    async with scripted(whole(reply(GOOD)), port) as upstream:
        with serving("serve", toml=toml, env=env) as server:
            for path in ("chat/completions", "chat/completions", "moderations"):
                await post(server, {**ASK, "input": "x"}, path)
    assert len(upstream.requests) == 3
    assert "private" not in str([request.headers for request in upstream.requests])


async def test_upstreams_on_this_machine_are_reached_past_a_proxy() -> None:
    with serving("serve", env={"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}) as server:
        assert (await post(server, ASK)).status_code == 200


async def test_odd_upstream_headers_do_no_harm_and_hold_no_slot(fragile: Server) -> None:
    odd = "HTTP/1.1 200 OK\r\ncontent-type: {}\r\nopenai-organization: 日本\r\nx-long: {}\r\n\r\n{}"
    stream = odd.format("text/event-stream", "x" * 9000, 'data: {"choices":[]}\n\ndata: [DONE]\n\n').encode()
    async with scripted(whole(stream), FRAGILE_PORT):
        answer = await post(fragile, {**ASK, "stream": True})
    assert answer.text.endswith("data: [DONE]\n\n")
    await eventually(lambda: fragile.status()["in_flight"] == 0)
    async with scripted(whole(b"HTTP/1.1 799 Odd\r\ncontent-length: 2\r\n\r\n{}"), FRAGILE_PORT):
        strange = await post(fragile, ASK)
    assert (strange.status_code, strange.json()["error"]["code"]) == (502, "upstream_malformed")


async def test_limit_headers_come_back_and_others_do_not(fragile: Server) -> None:
    passed = {"x-ratelimit-remaining-requests": "9", "openai-processing-ms": "12", "openai-version": "2020-10-01"}
    answered = reply(GOOD, headers={**passed, "server": "secret-server", "x-internal": "1"})
    async with scripted(whole(answered), FRAGILE_PORT):
        answer = await post(fragile, ASK)
    assert passed.items() <= dict(answer.headers).items()
    assert not {"server", "x-internal"} & set(answer.headers)
    assert float(answer.headers["x-sluicegate-queue-ms"]) >= 0


async def test_paths_work_without_the_prefix_too(gateway: Server) -> None:
    async with httpx.AsyncClient() as http:
        for path in ("/chat/completions", "/fanout"):
            body = ASK if path != "/fanout" else {"requests": [{"body": ASK}]}
            assert (await http.post(f"{gateway.root}{path}", json=body)).status_code == 200
        assert (await http.get(f"{gateway.root}/models")).json()["object"] == "list"


async def test_a_transient_failure_is_retried_and_the_attempts_are_shown(simulator: Server, gateway: Server) -> None:
    simulator.ledger(reset=True)
    for status in (408, 409, 429, 500, 503):
        answer = await post(gateway, {**ASK, "model": f"sim-status={status}"})
        assert answer.status_code == status
        assert answer.headers["x-sluicegate-attempts"] == "3"
    for status in (400, 401, 403, 404, 422):
        answer = await post(gateway, {**ASK, "model": f"sim-status={status}"})
        assert answer.status_code == status
        assert answer.headers["x-sluicegate-attempts"] == "1"
    assert simulator.ledger()["calls"] == 5 * 3 + 5


async def test_a_retry_succeeds_also_for_a_stream(simulator: Server) -> None:
    seen = 0

    async def second_time_lucky(request: object, writer: object) -> None:
        nonlocal seen
        seen += 1
        good = b'data: {"choices":[]}\n\ndata: [DONE]\n\n'
        answer = reply(b'{"error":{}}', status=500) if seen % 2 else reply(good, content_type="text/event-stream")
        writer.write(answer)  # type: ignore[attr-defined]

    port = free_port()
    async with scripted(second_time_lucky, port):
        with serving("serve", env={"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1"}) as server:
            answer = await post(server, {**ASK, "stream": True})
    assert answer.status_code == 200
    assert answer.headers["x-sluicegate-attempts"] == "2"
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_retry_after_is_a_minimum_and_a_wait_past_the_deadline_is_not_begun(gateway: Server) -> None:
    began = time.monotonic()
    answer = await post(gateway, {**ASK, "model": "sim-status=429-after=1"})
    assert answer.status_code == 429
    assert time.monotonic() - began >= 2  # two waits of a second at least
    async with httpx.AsyncClient() as http:
        hurried = await http.post(
            f"{gateway.base_url}/chat/completions",
            json={**ASK, "model": "sim-status=429-after=60"},
            headers={"x-sluicegate-timeout": "5"},
        )
    assert hurried.headers["x-sluicegate-attempts"] == "1"
    assert hurried.headers["retry-after"] == "60"


async def test_the_next_target_answers_when_the_first_cannot(simulator: Server) -> None:
    toml = f"""
    max_attempts = 1
    [upstreams.down]
    base_url = "http://127.0.0.1:9/v1"
    [upstreams.sim]
    base_url = "{simulator.base_url}"
    first_token_timeout = 0.3
    [models.fast]
    targets = ["down/x", "sim/good"]
    [models.slow]
    targets = ["sim/slow-latency=30", "sim/good"]
    [models.spent]
    targets = ["sim/spent-quota=1", "sim/missing-status=404", "sim/good"]
    [models.wrong]
    targets = ["sim/wrong-status=400", "sim/good"]
    [models.hopeless]
    targets = ["down/x", "sim/y-status=503"]
    """
    with serving("serve", toml=toml) as server:
        for stream in (False, True):
            answer = await post(server, {**ASK, "stream": stream})
            assert answer.status_code == 200
            assert answer.headers["x-sluicegate-upstream"] == "sim"
            assert answer.headers["x-sluicegate-attempts"] == "2"
        assert (await post(server, {**ASK, "model": "slow", "stream": True})).status_code == 200
        assert (await post(server, {**ASK, "model": "spent"})).headers["x-sluicegate-attempts"] == "3"
        assert (await post(server, {**ASK, "model": "wrong"})).status_code == 400
        assert (await post(server, {**ASK, "model": "hopeless"})).status_code == 503


async def test_a_target_that_wants_to_be_waited_for_is_passed_by_while_another_is_left(simulator: Server) -> None:
    toml = f"""
    [upstreams.sim]
    base_url = "{simulator.base_url}"
    [models.fast]
    targets = ["sim/busy-status=429-after=60", "sim/good"]
    """
    with serving("serve", toml=toml) as server:
        answer = await post(server, ASK)
    assert (answer.status_code, answer.headers["x-sluicegate-attempts"]) == (200, "2")


async def test_a_stored_response_is_found_whichever_upstream_has_it(simulator: Server) -> None:
    with serving("simulate", "--latency", "0") as other:
        toml = f"""
        [upstreams.one]
        base_url = "{simulator.base_url}"
        [upstreams.two]
        base_url = "{other.base_url}"
        """
        with serving("serve", toml=toml) as server:
            made = (await post(server, {"model": "two/sim", "input": "made nowhere else"}, "responses")).json()
            async with httpx.AsyncClient() as http:
                found = await http.get(f"{server.base_url}/responses/{made['id']}")
    assert found.json()["id"] == made["id"]
    assert found.headers["x-sluicegate-upstream"] == "two"


async def test_azure_deployments_stand_in_the_path_and_the_newer_address_works_too() -> None:
    port = free_port()
    toml = f"""
    [upstreams.classic]
    kind = "azure"
    base_url = "http://127.0.0.1:{port}"
    api_key = "azure-key"
    api_version = "2024-10-21"
    [upstreams.v1]
    kind = "azure"
    base_url = "http://127.0.0.1:{port}/openai/v1"
    api_key = "azure-key"
    """
    async with scripted(whole(reply(GOOD)), port) as upstream:
        with serving("serve", toml=toml) as server:
            for model in ("classic/my gpt", "v1/gpt"):
                assert (await post(server, {**ASK, "model": model})).content == GOOD
            await post(server, {"model": "classic/r", "input": "x"}, "responses")
        calls = [request for request in upstream.requests if "/models" not in request.line]
    lines = [call.line for call in calls]
    assert lines == [
        "POST /openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21 HTTP/1.1",
        "POST /openai/v1/chat/completions HTTP/1.1",
        "POST /openai/responses?api-version=2024-10-21 HTTP/1.1",
    ]
    assert calls[0].headers["api-key"] == "azure-key"
    assert calls[1].headers["authorization"] == "Bearer azure-key"


async def test_models_are_aliases_and_every_upstreams_list_and_a_dead_upstream_does_not_block(
    simulator: Server,
) -> None:
    toml = f"""
    [upstreams.sim]
    kind = "simulator"
    [upstreams.two]
    base_url = "{simulator.base_url}"
    [upstreams.silent]
    base_url = "http://127.0.0.1:9/v1"
    [models.fast]
    targets = ["two/gpt-4o"]
    """
    with serving("serve", toml=toml) as server:
        async with httpx.AsyncClient() as http:
            names: set[str] = set()
            while "two/gpt-4o" not in names:
                listed = (await http.get(f"{server.base_url}/models")).json()
                names = {model["id"] for model in listed["data"]}
                assert {"fast", "gpt-4o-mini"} <= names  # at once
            found = (await http.get(f"{server.base_url}/models/two/gpt-4o")).json()
    assert found["id"] == "two/gpt-4o"
    assert found["object"] == "model"


async def test_with_nothing_configured_the_simulator_answers_and_it_is_said() -> None:
    with serving("serve") as server:
        answer = await post(server, ASK)
        assert answer.json()["object"] == "chat.completion"
        assert answer.headers["x-sluicegate-upstream"] == "simulator"
        async with httpx.AsyncClient() as http:
            for path in ("/readyz", "/", "/status"):
                assert "simulator" in (await http.get(f"{server.root}{path}")).json()["notice"]
        assert "built-in simulator" in server.log()
