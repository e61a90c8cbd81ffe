"""Batches that cannot be: a request that is refused at once, or an input that fails its validation, line by line."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Batch

from tests.journeys.batch_support import (
    CHAT,
    EMBEDDINGS,
    begun,
    by_custom_id,
    chat,
    chats,
    counts,
    ended,
    jsonl,
    upload,
)
from tests.support import Server, serving

_TOML = """
max_line_bytes = 2000
max_body_bytes = 100000
[batches]
max_lines = 200
"""
GOOD = jsonl(chats(1))
_LINE = '{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"sim","messages":[]}}'


@pytest.fixture(scope="module")
def strict(simulator: Server) -> Iterator[Server]:
    """A gateway that takes short lines only, and few of them."""
    env = {"OPENAI_BASE_URL": simulator.base_url, "OPENAI_API_KEY": "sk-upstream"}
    with serving("serve", toml=_TOML, env=env) as server:
        yield server


@pytest.fixture
async def client(strict: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=strict.base_url, api_key="any", max_retries=0, timeout=60) as found:
        yield found


@pytest.fixture
async def http(strict: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=strict.root, timeout=30) as plain:
        yield plain


async def outcome(client: AsyncOpenAI, content: bytes, endpoint: str = CHAT) -> Batch:
    return await ended(client, await begun(client, content, endpoint))


def told(batch: Batch) -> list[tuple[str | None, int | None, str | None]]:
    """Returns: Code, line and param of each error of a batch that has failed."""
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert (batch.in_progress_at, batch.output_file_id, batch.error_file_id) == (None, None, None)
    assert counts(batch) == (0, 0, 0)
    assert batch.errors is not None
    assert batch.errors.object == "list"
    data = batch.errors.data or []
    assert all(error.to_dict().keys() == {"code", "line", "message", "param"} for error in data)
    assert all(error.message for error in data)
    return [(error.code, error.line, error.param) for error in data]


def changed(**fields: Any) -> bytes:
    """A good line with other fields; None: without it."""
    line = {**json.loads(_LINE), **fields}
    return json.dumps({name: value for name, value in line.items() if value is not None}).encode()


@pytest.mark.parametrize(
    ("text", "code", "param"),
    [
        (b"this is no JSON", "invalid_json_line", None),
        (b"custom_id,body", "invalid_json_line", None),
        (b"[1, 2]", "invalid_json_line", None),
        (b"null", "invalid_json_line", None),
        (b'"text"', "invalid_json_line", None),
        (_LINE.encode()[:-1], "invalid_json_line", None),
        (_LINE.encode() + b",", "invalid_json_line", None),
        (_LINE.encode() + _LINE.encode(), "invalid_json_line", None),
        (_LINE.replace('"a"', "'a'").encode(), "invalid_json_line", None),
        (_LINE.encode().replace(b'"a"', b'"\xff\xfe"'), "invalid_json_line", None),
        (_LINE.encode().replace(b"[]", b'["\xc3"]'), "invalid_json_line", None),
        (b"[" * 1500, "invalid_json_line", None),
        (changed(body=None), "missing_required_parameter", "body"),
        (changed(url=None), "missing_required_parameter", "url"),
        (changed(custom_id=None), "missing_required_parameter", "custom_id"),
        (changed(body={}), "missing_required_parameter", "body.model"),
        (changed(body={"model": ""}), "missing_required_parameter", "body.model"),
        (changed(body={"model": 5}), "invalid_request", "body.model"),
        (changed(body="text"), "invalid_request", "body"),
        (changed(body=[]), "invalid_request", "body"),
        (changed(custom_id=5), "invalid_request", "custom_id"),
        (changed(custom_id=""), "invalid_request", "custom_id"),
        (changed(method="GET"), "invalid_request", "method"),
        (changed(url="/v1/embeddings"), "url_mismatch", "url"),
        (changed(url="https://elsewhere/v1/chat/completions"), "url_mismatch", "url"),
        (changed(body={"model": "sim", "messages": [], "stream": True}), "invalid_request", "body.stream"),
        (changed(body={"model": "no-such-model"}), "model_not_found", "body.model"),
    ],
)
async def test_a_bad_line_fails_the_batch(client: AsyncOpenAI, text: bytes, code: str, param: str | None) -> None:
    assert told(await outcome(client, text)) == [(code, 1, param)]


async def test_the_errors_name_the_lines_as_an_editor_counts_them(client: AsyncOpenAI, simulator: Server) -> None:
    simulator.ledger(reset=True)
    content = b"\r\n".join([GOOD.strip(), b"", b"bad", jsonl([chat("a")]).strip(), b"  ", b"{}", changed(), b"{"])
    batch = await outcome(client, content)
    assert told(batch) == [
        ("invalid_json_line", 3, None),
        ("missing_required_parameter", 6, "custom_id"),
        ("duplicate_custom_id", 7, "custom_id"),
        ("invalid_json_line", 8, None),
    ]
    assert simulator.ledger()["calls"] == 0


async def test_of_many_errors_the_first_hundred_are_told(client: AsyncOpenAI) -> None:
    assert told(await outcome(client, b"bad\n" * 150)) == [("invalid_json_line", line, None) for line in range(1, 101)]


@pytest.mark.parametrize("content", [b"\n", b"\n\r\n \t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n", b""])
async def test_a_file_without_lines_fails(client: AsyncOpenAI, content: bytes) -> None:
    assert told(await outcome(client, content)) == [("empty_file", None, None)]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + jsonl(chats(3)),
        jsonl(chats(3)).replace(b"\n", b"\r\n"),
        jsonl(chats(3)).rstrip(),
        jsonl(chats(3)).replace(b"\n", b"\n\n \n"),
        b"\n\n\n" + jsonl(chats(3)),
        b"\xef\xbb\xbf\r\n" + jsonl(chats(3)).replace(b"\n", b"\r\n").rstrip(),
    ],
    ids=["byte-order mark", "CRLF", "no last line feed", "blank lines between", "blank lines first", "all of it"],
)
async def test_line_ends_and_marks_of_every_editor_pass(client: AsyncOpenAI, content: bytes) -> None:
    batch = await outcome(client, content)
    assert (batch.status, counts(batch)) == ("completed", (3, 3, 0))
    good, _ = await by_custom_id(client, batch)
    assert good.keys() == {"line-0", "line-1", "line-2"}


@pytest.mark.parametrize(("more", "fits"), [(0, True), (1, False), (100_000, False)])
async def test_a_line_has_its_longest(client: AsyncOpenAI, more: int, fits: bool) -> None:
    text = jsonl([chat("a", user="x" * (2000 - len(jsonl([chat("a", user="")]).strip()) + more))])
    assert len(text) == 2000 + more + 1
    batch = await outcome(client, GOOD + text)
    assert (batch.status == "completed") == fits
    if not fits:
        assert told(batch) == [("invalid_request", 2, None)]


async def test_a_batch_has_its_most_lines(client: AsyncOpenAI) -> None:
    assert counts(await outcome(client, jsonl(chats(200)))) == (200, 200, 0)
    assert told(await outcome(client, jsonl(chats(201)))) == [("too_many_tasks", None, None)]
    assert told(await outcome(client, jsonl(chats(1000)))) == [("too_many_tasks", None, None)]


async def test_a_custom_id_may_be_anything_but_twice_there(client: AsyncOpenAI) -> None:
    names = ["ü", "\U0001f600", " ", "\n", "\x00", "null", "x" * 512, '"', "\\"]
    batch = await outcome(client, jsonl([chat(name) for name in names]))
    good, _ = await by_custom_id(client, batch)
    assert good.keys() == set(names)
    assert told(await outcome(client, jsonl([chat("x" * 513)]))) == [("invalid_request", 1, "custom_id")]
    twice = b'{"custom_id":"\\u00fc"' + jsonl([chat("ü")])[len(b'{"custom_id": "\\u00fc"') :]
    assert told(await outcome(client, jsonl([chat("ü")]) + twice)) == [("duplicate_custom_id", 2, "custom_id")]


async def test_a_line_with_fields_that_nobody_knows_passes(client: AsyncOpenAI) -> None:
    batch = await outcome(client, changed(extra={"deep": [1]}, body={"model": "sim", "messages": [], "new": {"x": 1}}))
    assert (batch.status, counts(batch)) == ("completed", (1, 1, 0))


async def test_a_file_of_another_purpose_is_refused(client: AsyncOpenAI) -> None:
    file_id = await upload(client, GOOD, "user_data")
    with pytest.raises(openai.BadRequestError) as caught:
        await client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    assert caught.value.param == "input_file_id"
    assert "user_data" in caught.value.message


async def test_an_output_file_is_no_input(client: AsyncOpenAI) -> None:
    done = await outcome(client, GOOD)
    with pytest.raises(openai.BadRequestError) as caught:
        await client.batches.create(input_file_id=done.output_file_id or "", endpoint=CHAT, completion_window="24h")
    assert caught.value.param == "input_file_id"


@pytest.mark.parametrize("file_id", ["file-unknown", "file-" + "0" * 24, "../../etc/passwd", "x" * 1000, "ü", "\x00"])
async def test_an_unknown_file_is_not_found(client: AsyncOpenAI, file_id: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    assert (caught.value.param, caught.value.type) == ("input_file_id", "not_found_error")
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_a_deleted_file_is_not_found(client: AsyncOpenAI) -> None:
    file_id = await upload(client, GOOD)
    await client.files.delete(file_id)
    with pytest.raises(openai.NotFoundError) as caught:
        await client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    assert caught.value.param == "input_file_id"


_HUGE = {f"key-{index}": "x" * 512 for index in range(16)}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/audio/speech"}, "endpoint"),
        ({"endpoint": "chat/completions"}, "endpoint"),
        ({"endpoint": None}, "endpoint"),
        ({"endpoint": 7}, "endpoint"),
        ({"input_file_id": None}, "input_file_id"),
        ({"input_file_id": 7}, "input_file_id"),
        ({"input_file_id": ["x"]}, "input_file_id"),
        ({"completion_window": ""}, "completion_window"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"completion_window": 24}, "completion_window"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {"a": {"b": "c"}}}, "metadata"),
        ({"metadata": {**_HUGE, "one-more": ""}}, "metadata"),
        ({"metadata": {"k" * 65: ""}}, "metadata"),
        ({"metadata": {"a": "x" * 50_000}}, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3599}}, "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 2_592_001}}, "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "completed_at", "seconds": 3600}}, "output_expires_after.anchor"),
        ({"output_expires_after": {"seconds": 3600}}, "output_expires_after.anchor"),
        ({"output_expires_after": 3600}, "output_expires_after"),
        ({"priority": 1000}, "priority"),
        ({"on_doubt": "perhaps"}, "on_doubt"),
        ({"requests": []}, "requests"),
        ({"requests": [{"body": {}}]}, "requests"),
    ],
)
async def test_a_wrong_field_is_refused_and_named(
    http: httpx.AsyncClient, client: AsyncOpenAI, fields: dict[str, Any], param: str
) -> None:
    asked = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h", **fields}
    answer = await http.post("/v1/batches", json={name: value for name, value in asked.items() if value is not None})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"endpoint":"\xff"}', b"[" * 90_000, b"a=b&c=d"]
)
async def test_a_body_that_is_no_json_object_is_refused(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post("/v1/batches", content=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_a_body_that_is_too_large_is_refused(http: httpx.AsyncClient) -> None:
    requests = [{"body": {"model": "sim", "user": "x" * 200_000}}]
    answer = await http.post("/v1/batches", json={"requests": requests})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


async def test_metadata_of_the_largest_size_comes_back(client: AsyncOpenAI) -> None:
    metadata = {**{f"{index:0>64}": "\U0001f600" * 512 for index in range(15)}, "": ""}
    made = await begun(client, GOOD, metadata=metadata)
    assert made.metadata == metadata
    assert (await ended(client, made)).metadata == metadata
    assert (await ended(client, await begun(client, GOOD, metadata={}))).metadata in ({}, None)


@pytest.mark.parametrize(
    ("requests", "param"),
    [
        ([{}], "requests[0].body"),
        ([{"body": {"model": "sim"}}, {"body": []}], "requests[1].body"),
        ([{"body": {}, "custom_id": 5}], "requests[0].custom_id"),
        ([{"body": {}, "method": "GET"}], "requests[0].method"),
        ([{"body": {}, "url": "/v1/files"}], "requests[0].url"),
        (["x"], "requests[0]"),
        ({}, "requests"),
    ],
)
async def test_a_wrong_inline_request_is_named(http: httpx.AsyncClient, requests: Any, param: str) -> None:
    answer = await http.post("/v1/batches", json={"requests": requests})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_inline_requests_are_validated_like_lines(http: httpx.AsyncClient, client: AsyncOpenAI) -> None:
    twice = [
        {"custom_id": "a", "body": {"model": "sim"}},
        {"custom_id": "a", "url": EMBEDDINGS, "body": {"model": "sim"}},
    ]
    made = await http.post("/v1/batches", json={"requests": [*twice, twice[0]]})
    batch = await ended(client, Batch.model_validate(made.json()))
    assert told(batch) == [("url_mismatch", 2, "url"), ("duplicate_custom_id", 3, "custom_id")]


@pytest.mark.parametrize(("query", "param"), [("after=-1", "after"), ("after=x", "after"), ("after=", "after")])
async def test_results_after_what_is_no_number_are_refused(http: httpx.AsyncClient, query: str, param: str) -> None:
    answer = await http.get(f"/v1/batches/batch_x/results?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["", "/cancel", "/retry", "/results"])
async def test_an_unknown_batch_is_not_found(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.request("POST" if path in {"/cancel", "/retry"} else "GET", f"/v1/batches/batch_none{path}")
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (404, "not_found_error", "id")
    assert answer.headers["x-should-retry"] == "false"
