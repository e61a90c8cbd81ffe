"""OpenAI's batches through its own SDK: every call, every list, every end that a batch can come to."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Batch

from tests.journeys.batch_support import (
    CHAT,
    EMBEDDINGS,
    KEYS,
    WALK,
    Line,
    begun,
    by_custom_id,
    chat,
    chats,
    counts,
    embedding,
    ended,
    file_lines,
    jsonl,
    line,
    reaches,
    results,
    upload,
    walked,
)
from tests.support import Request, Server, eventually, reply, scripted, serving

_OBJECT = set(Batch.model_fields) | {"progress"}
_TOKENS = ("input_tokens", "output_tokens", "total_tokens")


@pytest.fixture(scope="module")
def desk(simulator: Server) -> Iterator[Server]:
    """A gateway with three keys, one of them for two models only."""
    env = {"OPENAI_BASE_URL": simulator.base_url, "OPENAI_API_KEY": "sk-upstream"}
    with serving("serve", toml=KEYS, env=env) as server:
        yield server


async def _client(desk: Server, key: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=desk.base_url, api_key=key, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def one(desk: Server) -> AsyncIterator[AsyncOpenAI]:
    async for client in _client(desk, "sk-one"):
        yield client


@pytest.fixture
async def other(desk: Server) -> AsyncIterator[AsyncOpenAI]:
    async for client in _client(desk, "sk-other"):
        yield client


@pytest.fixture
async def limited(desk: Server) -> AsyncIterator[AsyncOpenAI]:
    async for client in _client(desk, "sk-limited"):
        yield client


@pytest.fixture
async def http(desk: Server) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": "Bearer sk-one"}
    async with httpx.AsyncClient(base_url=desk.root, timeout=60, headers=headers) as plain:
        yield plain


def is_walk(seen: list[str]) -> bool:
    """Whether these are statuses of the way from `validating` to `completed`, in order."""
    way = iter(WALK)
    return all(status in way for status in seen)


async def test_a_file_of_lines_becomes_a_file_of_replies(one: AsyncOpenAI) -> None:
    sent = chats(300)
    made = await begun(one, sent, metadata={"for": "tests"})
    assert (made.status, made.output_file_id, made.errors, counts(made)) == ("validating", None, None, (0, 0, 0))
    batch, seen = await walked(one, made)
    assert is_walk(seen), seen
    assert counts(batch) == (300, 300, 0)
    assert (batch.model, batch.metadata, batch.error_file_id) == ("sim", {"for": "tests"}, None)
    good, bad = await by_custom_id(one, batch)
    assert good.keys() == {one_line["custom_id"] for one_line in sent}
    assert not bad
    for found in good.values():
        assert found.keys() == {"id", "custom_id", "response", "error"}
        assert found["id"].startswith("batch_req_")
        assert found["error"] is None
        assert found["response"].keys() == {"status_code", "request_id", "body"}
        assert found["response"]["status_code"] == 200
        assert found["response"]["body"]["object"] == "chat.completion"


async def test_each_line_gets_the_reply_that_a_single_call_gets(one: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    sent = [chat("ünï \U0001f600"), chat("b", max_tokens=3), chat("c", "sim-b", seed=7)]
    good, _ = await by_custom_id(one, await ended(one, await begun(one, sent)))
    for asked in sent:
        single = await http.post(CHAT, content=json.dumps(asked["body"]))  # the same bytes have the same answer
        assert good[asked["custom_id"]]["response"]["body"] == single.json()


async def test_the_object_has_openais_fields_and_types_at_every_moment(
    one: AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    made = await begun(one, chats(3, "sim-latency=0.3"), output_expires_after={"anchor": "created_at", "seconds": 3600})
    seen = [await http.get(f"/v1/batches/{made.id}")]
    await reaches(one, made, "in_progress")
    seen.append(await http.get(f"/v1/batches/{made.id}"))
    await ended(one, made)
    seen += [await http.get(path) for path in (f"/v1/batches/{made.id}", f"/batches/{made.id}")]
    seen.append(await http.get("/v1/batches", params={"limit": 1}))
    for answer in seen:
        found = answer.json()["data"][0] if answer.url.path.endswith("/batches") else answer.json()
        assert found.keys() == _OBJECT
        Batch.model_validate(found, strict=True)
        assert found["object"] == "batch"
        assert found["endpoint"] == CHAT
        assert found["completion_window"] == "24h"
        assert found["expires_at"] - found["created_at"] == 86_400
        assert found["progress"].keys() == {"per_second", "eta_seconds", "in_flight", "in_doubt", "paused"}
    assert seen[-1].json()["data"] == [seen[-2].json()]
    assert seen[-2].json() == seen[-3].json()
    done = Batch.model_validate(seen[-2].json())
    assert done.in_progress_at is not None
    assert done.finalizing_at is not None
    assert done.completed_at is not None
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    assert (done.failed_at, done.expired_at, done.cancelling_at, done.cancelled_at) == (None,) * 4
    assert abs(done.created_at - time.time()) < 60
    output = await one.files.retrieve(done.output_file_id or "")
    assert (output.purpose, output.status) == ("batch_output", "processed")
    assert output.expires_at == output.created_at + 3600


def test_the_sync_sdk_does_the_same(desk: Server) -> None:
    with OpenAI(base_url=desk.base_url, api_key="sk-one", max_retries=0) as client:
        file = client.files.create(file=("a.jsonl", jsonl(chats(2))), purpose="batch")
        made = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        live = client.get(f"/batches/{made.id}/results", cast_to=str)  # open until the end
        done = client.batches.retrieve(made.id)
        assert (done.status, counts(done)) == ("completed", (2, 2, 0))
        assert client.files.content(done.output_file_id or "").text == live
        assert client.batches.list(limit=1).data == [done]


async def test_usage_is_the_sum_of_the_lines(one: AsyncOpenAI) -> None:
    batch = await ended(one, await begun(one, [*chats(20), chat("bad", "sim-status=400")]))
    good, _ = await by_custom_id(one, batch)
    used = [found["response"]["body"]["usage"] for found in good.values()]
    assert batch.usage is not None
    assert batch.usage.to_dict() == {
        "input_tokens": sum(each["prompt_tokens"] for each in used),
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": sum(each["completion_tokens"] for each in used),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": sum(each["total_tokens"] for each in used),
    }


async def test_the_list_pages_by_itself_newest_first(other: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    assert (await other.batches.list()).to_dict() == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
    }  # fmt: skip
    file_id = await upload(other, chats(1))
    made: list[str] = []
    for _ in range(7):
        created = await other.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
        made.insert(0, created.id)
    for limit in (1, 2, 3, 7, 100):
        assert [batch.id async for batch in other.batches.list(limit=limit)] == made
    page = await other.batches.list(limit=3, after=made[1])
    assert [batch.id for batch in page.data] == made[2:5]
    shown: dict[str, Any] = page.to_dict()
    assert (shown["first_id"], shown["last_id"], shown["has_more"]) == (made[2], made[4], True)
    last = await other.batches.list(limit=3, after=made[3])
    assert ([batch.id for batch in last.data], last.has_more) == (made[4:], False)
    assert (await other.batches.list(after=made[-1])).data == []
    mine = {batch["id"] for batch in (await http.get("/v1/batches?limit=100")).json()["data"]}
    assert not mine & set(made)


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "1.5", "9" * 400])
async def test_a_wrong_limit_is_refused(http: httpx.AsyncClient, limit: str) -> None:
    answer = await http.get("/v1/batches", params={"limit": limit})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")


async def test_nobody_elses_batch_is_there(one: AsyncOpenAI, other: AsyncOpenAI, desk: Server) -> None:
    made = await begun(one, chats(1))
    for batch_id in (made.id, "batch_unknown", "x" * 500, "%00", "ü"):
        for call in (other.batches.retrieve, other.batches.cancel):
            with pytest.raises(openai.NotFoundError) as caught:
                await call(batch_id)
            assert (caught.value.type, caught.value.param) == ("not_found_error", "id")
    async with httpx.AsyncClient(base_url=desk.base_url, headers={"authorization": "Bearer sk-other"}) as plain:
        for method, path in (("GET", "results"), ("POST", "retry"), ("POST", "cancel")):
            answer = await plain.request(method, f"/batches/{made.id}/{path}")
            assert answer.status_code == 404
            assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
            assert answer.headers["x-should-retry"] == "false"
        assert (await plain.delete(f"/batches/{made.id}")).status_code == 405
    assert (await ended(one, made)).status == "completed"


async def test_without_a_key_there_is_no_batch(desk: Server) -> None:
    async with httpx.AsyncClient(base_url=desk.base_url) as plain:
        for method, path in (("GET", ""), ("POST", ""), ("GET", "/x"), ("POST", "/x/cancel"), ("GET", "/x/results")):
            answer = await plain.request(method, f"/batches{path}", json={} if method == "POST" else None)
            assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")


async def test_a_file_of_somebody_else_is_no_input(one: AsyncOpenAI, other: AsyncOpenAI) -> None:
    file_id = await upload(one, chats(1))
    with pytest.raises(openai.NotFoundError) as caught:
        await other.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    assert caught.value.param == "input_file_id"


async def test_a_key_for_some_models_fails_with_the_first_other_one(limited: AsyncOpenAI, simulator: Server) -> None:
    batch = await ended(limited, await begun(limited, [chat("a", "sim"), chat("b", "sim-b")]))
    assert (batch.status, counts(batch), batch.model) == ("completed", (2, 2, 0), None)
    simulator.ledger(reset=True)
    batch = await ended(limited, await begun(limited, [chat("a", "sim"), chat("b", "dear"), chat("c", "dear")]))
    assert batch.status == "failed"
    assert batch.errors is not None
    told = [(error.code, error.line, error.param) for error in batch.errors.data or []]
    assert told == [("model_not_found", 2, "body.model"), ("model_not_found", 3, "body.model")]
    assert simulator.ledger()["calls"] == 0


async def test_an_alias_is_a_model_of_its_key(simulator: Server) -> None:
    toml = f"""
    [upstreams.sim]
    base_url = "{simulator.base_url}"
    [models.fast]
    targets = ["sim/sim"]
    [keys.one]
    key = "sk-one"
    models = ["fast"]
    """
    with serving("serve", toml=toml) as server:
        async with AsyncOpenAI(base_url=server.base_url, api_key="sk-one") as client:
            batch = await ended(client, await begun(client, chats(2, "fast")))
            assert (batch.status, batch.model) == ("completed", "fast")
            simulator.ledger(reset=True)
            assert (await ended(client, await begun(client, chats(1, "sim")))).status == "failed"
            two_models = (
                b'{"custom_id":"a","url":"/v1/chat/completions","body":{"model":"fast","messages":[],"model":"x"}}'
            )
            await ended(client, await begun(client, two_models))
            assert "x" not in simulator.ledger()["models"]


_BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"input": "x"},
    EMBEDDINGS: {"input": "x", "dimensions": 4},
    "/v1/completions": {"prompt": "x"},
    "/v1/moderations": {"input": "x"},
    "/v1/images/generations": {"prompt": "x"},
}


@pytest.mark.parametrize("endpoint", _BODIES)
async def test_every_endpoint_can_be_a_batch(one: AsyncOpenAI, http: httpx.AsyncClient, endpoint: str) -> None:
    body = {"model": "sim", **_BODIES[endpoint]}
    batch = await ended(one, await begun(one, [line("a", body, endpoint), line("b", body, endpoint)], endpoint))
    assert (batch.status, counts(batch), batch.endpoint) == ("completed", (2, 2, 0), endpoint)
    good, _ = await by_custom_id(one, batch)
    single = (await http.post(endpoint, json=body)).json()
    for found in good.values():
        assert found["response"]["body"].keys() == single.keys()
    assert batch.usage is not None
    used = single.get("usage", {})
    given = used.get("input_tokens", used.get("prompt_tokens", 0))
    assert batch.usage.input_tokens == 2 * given


async def test_moderations_need_no_model(one: AsyncOpenAI) -> None:
    batch = await ended(one, await begun(one, [line("a", {"input": "x"}, "/v1/moderations")], "/v1/moderations"))
    assert (batch.status, batch.model) == ("completed", None)


def vectors(found: Line) -> Any:
    body = found["response"]["body"]
    return {**body, "usage": None}


async def test_packed_embeddings_are_those_of_single_calls_but_cost_few(one: AsyncOpenAI, simulator: Server) -> None:
    sent = [embedding(f"text-{index}", f"some text {index}") for index in range(200)]
    sent += [embedding("several", ["a", "b", "c"]), embedding("tokens", [1, 2, 3]), embedding("again", "some text 0")]
    sent.append(embedding("base64", "some text 1", encoding_format="base64"))
    found, calls, batches = [], [], []
    for packed in (True, False):
        simulator.ledger(reset=True)
        batches.append(await ended(one, await begun(one, sent, EMBEDDINGS, pack_embeddings=packed)))
        calls.append(simulator.ledger()["calls"])
        good, bad = await by_custom_id(one, batches[-1])
        assert not bad
        found.append({name: vectors(answer) for name, answer in good.items()})
    assert calls[0] <= 5
    assert calls[1] == len(sent)
    assert found[0] == found[1]
    assert len(found[0]["several"]["data"]) == 3
    assert found[0]["again"]["data"] == found[0]["text-0"]["data"]
    used = [batch.usage.to_dict() for batch in batches if batch.usage]
    assert used[0] == used[1]


async def test_a_bad_line_in_a_pack_harms_no_other(one: AsyncOpenAI) -> None:
    async def upstream_that_knows_no_poison(request: Request, writer: asyncio.StreamWriter) -> None:
        asked = json.loads(request.body)["input"]
        inputs = asked if isinstance(asked, list) else [asked]
        if "poison" in inputs:
            writer.write(reply(b'{"error":{"message":"no","type":"invalid_request_error"}}', status=400))
            return
        data = [{"object": "embedding", "index": at, "embedding": [len(one)]} for at, one in enumerate(inputs)]
        used = {"prompt_tokens": len(inputs), "total_tokens": len(inputs)}
        writer.write(reply(json.dumps({"object": "list", "data": data, "model": "m", "usage": used}).encode()))

    sent = [embedding(str(index), "x" * (index + 1)) for index in range(30)]
    sent[17] = embedding("17", "poison")
    async with scripted(upstream_that_knows_no_poison) as upstream:
        with serving("serve", env={"OPENAI_BASE_URL": upstream.base_url, "OPENAI_API_KEY": "sk"}) as server:
            async with AsyncOpenAI(base_url=server.base_url, api_key="any") as client:
                batch = await ended(client, await begun(client, sent, EMBEDDINGS))
                good, bad = await by_custom_id(client, batch)
    assert (batch.status, counts(batch)) == ("completed", (30, 29, 1))
    assert bad.keys() == {"17"}
    assert bad["17"]["response"]["body"]["error"]["message"] == "no"
    assert {name: found["response"]["body"]["data"][0]["embedding"] for name, found in good.items()} == {
        str(index): [index + 1] for index in range(30) if index != 17
    }


@pytest.mark.parametrize("endpoint", [CHAT, EMBEDDINGS])
async def test_equal_lines_can_share_a_call(one: AsyncOpenAI, simulator: Server, endpoint: str) -> None:
    bodies = [{"model": "sim-latency=0.2", **_BODIES[endpoint], "user": f"u{index % 3}"} for index in range(30)]
    sent = [line(str(index), body, endpoint) for index, body in enumerate(bodies)]
    simulator.ledger(reset=True)
    batch = await ended(one, await begun(one, sent, endpoint, dedupe=True))
    assert counts(batch) == (30, 30, 0)
    assert simulator.ledger()["calls"] == 3
    good, _ = await by_custom_id(one, batch)
    shown = {name: found["response"]["body"] for name, found in good.items()}
    assert all({**shown[name], "usage": 0} == {**shown[str(int(name) % 3)], "usage": 0} for name in shown)


async def test_equal_lines_are_calls_of_their_own_unless_asked(one: AsyncOpenAI, simulator: Server) -> None:
    simulator.ledger(reset=True)
    await ended(one, await begun(one, [chat("a", user="x") | {"custom_id": str(index)} for index in range(5)]))
    assert simulator.ledger()["calls"] == 5


async def test_failed_lines_go_to_the_error_file_with_their_replies(one: AsyncOpenAI) -> None:
    models = ["sim", "sim-status=400", "sim-status=404", "sim", "sim-html=1", "sim-cut=1"]
    batch = await ended(one, await begun(one, [chat(f"{at}", model) for at, model in enumerate(models)]))
    assert (batch.status, counts(batch), batch.model) == ("completed", (6, 2, 4), None)
    good, bad = await by_custom_id(one, batch)
    assert good.keys() == {"0", "3"}
    for name, status in (("1", 400), ("2", 404)):
        assert bad[name]["error"] is None
        assert bad[name]["response"]["status_code"] == status
        assert bad[name]["response"]["request_id"]
        assert bad[name]["response"]["body"]["error"]["message"]
    for name, code in (("4", "upstream_malformed"), ("5", "upstream_cut")):
        assert bad[name]["response"] is None
        assert bad[name]["error"].keys() == {"code", "message"}
        assert bad[name]["error"]["code"] == code


async def test_a_batch_of_nothing_but_failures_is_completed(one: AsyncOpenAI) -> None:
    batch = await ended(one, await begun(one, chats(3, "sim-status=422")))
    assert (batch.status, counts(batch), batch.output_file_id, batch.usage) == ("completed", (3, 0, 3), None, None)
    assert len(await file_lines(one, batch.error_file_id)) == 3


async def test_a_line_that_fails_now_and_then_gets_through(one: AsyncOpenAI) -> None:
    batch = await ended(one, await begun(one, chats(40, "sim-fail=0.3")))
    assert counts(batch) == (40, 40, 0)


async def test_what_is_done_when_the_window_ends_is_kept(one: AsyncOpenAI) -> None:
    batch = await ended(one, await begun(one, [*chats(5), *chats(3, "sim-latency=30", "slow")], window="2s"))
    assert (batch.status, counts(batch)) == ("expired", (8, 5, 3))
    assert batch.expired_at is not None
    assert batch.expired_at >= (batch.expires_at or 0) == batch.created_at + 2
    assert (batch.completed_at, batch.finalizing_at, batch.cancelled_at) == (None, None, None)
    good, bad = await by_custom_id(one, batch)
    assert good.keys() == {f"line-{index}" for index in range(5)}
    assert {(name, found["response"], found["error"]["code"]) for name, found in bad.items()} == {
        (f"slow-{index}", None, "batch_expired") for index in range(3)
    }


async def test_a_cancelled_batch_keeps_what_has_come_back(one: AsyncOpenAI, simulator: Server) -> None:
    simulator.ledger(reset=True)
    made = await begun(one, [*chats(5), *chats(300, "sim-latency=30", "slow")])
    await reaches(one, made, "in_progress", done=5)
    answer = await one.batches.cancel(made.id)
    assert answer.status == "cancelling"
    assert answer.cancelling_at is not None
    again = await one.batches.cancel(made.id)
    assert again.status in {"cancelling", "cancelled"}
    assert again.cancelling_at == answer.cancelling_at
    batch = await ended(one, made)
    assert (batch.status, counts(batch)) == ("cancelled", (305, 5, 300))
    assert batch.cancelled_at is not None
    assert batch.cancelled_at >= answer.cancelling_at
    good, bad = await by_custom_id(one, batch)
    assert good.keys() == {f"line-{index}" for index in range(5)}
    assert {found["error"]["code"] for found in bad.values()} == {"batch_cancelled"}
    assert (await one.batches.cancel(made.id)).status == "cancelled"
    await eventually(lambda: simulator.ledger()["in_flight"] == 0)


async def test_a_batch_can_be_cancelled_before_it_has_begun(one: AsyncOpenAI, simulator: Server) -> None:
    simulator.ledger(reset=True)
    made = await begun(one, chats(20_000, "sim-latency=30"))
    answer = await one.batches.cancel(made.id)
    assert answer.in_progress_at is None
    batch = await ended(one, made)
    assert (batch.status, counts(batch), batch.in_progress_at) == ("cancelled", (0, 0, 0), None)
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert simulator.ledger()["calls"] == 0


async def test_what_has_ended_cannot_be_cancelled(one: AsyncOpenAI) -> None:
    done = await ended(one, await begun(one, chats(1)))
    bad = await ended(one, await begun(one, b"x"))
    for batch in (done, bad):
        with pytest.raises(openai.ConflictError) as caught:
            await one.batches.cancel(batch.id)
        assert caught.value.type == "conflict_error"
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert (await one.batches.retrieve(batch.id)) == batch


@pytest.mark.parametrize(("window", "seconds"), [("24h", 86_400), ("90m", 5400), ("1s", 1), ("30d", 2_592_000)])
async def test_a_window_may_be_said_in_several_ways(one: AsyncOpenAI, window: str, seconds: int) -> None:
    made = await begun(one, chats(1), window=window)
    assert (made.completion_window, (made.expires_at or 0) - made.created_at) == (window, seconds)


async def test_a_key_of_idempotency_makes_one_batch(other: AsyncOpenAI) -> None:
    file_id = await upload(other, chats(1))
    asked: Any = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    headers = {"Idempotency-Key": "the-same"}
    before = len([batch async for batch in other.batches.list(limit=100)])
    first = await other.batches.with_raw_response.create(**asked, extra_headers=headers)
    second = await other.batches.with_raw_response.create(**asked, extra_headers=headers)
    assert second.headers["idempotent-replayed"] == "true"
    assert first.parse() == second.parse()
    assert len([batch async for batch in other.batches.list(limit=100)]) == before + 1
    with pytest.raises(openai.APIStatusError) as caught:
        await other.batches.create(**{**asked, "completion_window": "1h"}, extra_headers=headers)
    assert (caught.value.status_code, caught.value.param) == (400, "Idempotency-Key")


async def test_an_input_that_is_deleted_meanwhile_is_read_to_the_end(one: AsyncOpenAI, desk: Server) -> None:
    made = await begun(one, [*chats(300, "sim-latency=0.2"), *chats(300, "sim-latency=0.3", "more")])
    await one.files.delete(made.input_file_id)
    with pytest.raises(openai.NotFoundError):
        await one.files.retrieve(made.input_file_id)
    batch = await ended(one, made)
    assert (batch.status, counts(batch)) == ("completed", (600, 600, 0))
    assert batch.input_file_id == made.input_file_id


async def test_many_batches_at_once_do_not_mix(one: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    made = [await begun(one, chats(10, prefix=f"batch{number}")) for number in range(12)]
    for number, batch in enumerate(made):
        good, _ = await by_custom_id(one, await ended(one, batch))
        assert good.keys() == {f"batch{number}-{index}" for index in range(10)}
        assert {found["custom_id"] for found in await results(http, batch.id)} == good.keys()
