"""Many calls in one request, in all its forms."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.conftest import FRAGILE_PORT
from tests.support import LAST_CHUNK, Server, chunk, events_of, eventually, reply, scripted, serving, streamed, whole

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"


def item(text: str, **fields: Any) -> dict[str, Any]:
    return {"body": {"messages": [{"role": "user", "content": text}], **fields}}


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def fan_out(http: httpx.AsyncClient, accept: str = "application/json", **request: Any) -> httpx.Response:
    return await http.post("/v1/fanout", json=request, headers={"accept": accept})


async def fan_out_lines(http: httpx.AsyncClient, *items: bytes, accept: str = NDJSON, **query: str) -> httpx.Response:
    headers = {"content-type": NDJSON, "accept": accept}
    return await http.post("/v1/fanout", content=b"\n".join(items), params=query, headers=headers)


async def open_lines(
    gateway: Server, query: str = "", more: str = "", limit: int = 2**16
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Begins an NDJSON fan-out whose lines are yet to be written, as `chunk`s."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.root.rsplit(":", 1)[1]), limit=limit)
    head = f"POST /v1/fanout{query} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n{more}"
    writer.write(f"{head}content-type: {NDJSON}\r\naccept: {NDJSON}\r\n\r\n".encode())
    return reader, writer


async def test_results_come_in_order_with_counts_usage_and_times(http: httpx.AsyncClient) -> None:
    requests = [{**item("a"), "custom_id": "first"}, item("b", model="sim-latency=0.1"), item("c")]
    answer = (await fan_out(http, defaults={"model": "sim"}, requests=requests)).json()
    assert answer["object"] == "fanout"
    assert [line["custom_id"] for line in answer["results"]] == ["first", "1", "2"]
    assert [line["index"] for line in answer["results"]] == [0, 1, 2]
    assert answer["counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert answer["usage"]["completion_tokens"] == 15
    assert answer["timing"]["sum_ms"] >= 100
    assert answer["timing"]["wall_ms"] > 0
    for line in answer["results"]:
        assert line["id"].startswith("batch_req_")
        assert line["error"] is None
        assert line["response"]["status_code"] == 200
        assert line["response"]["request_id"]
        assert line["response"]["body"]["choices"]
        assert set(line["timing"]) == {"queue_ms", "upstream_ms", "attempts"}


async def test_one_items_failure_never_harms_another(http: httpx.AsyncClient, simulator: Server) -> None:
    models = ["sim", "sim-status=400", "sim", "sim-cut=1", "sim-garbage=0", "sim-html=1"]
    answer = (await fan_out(http, requests=[item("x", model=model) for model in models])).json()
    assert answer["counts"] == {"total": 6, "completed": 2, "failed": 4}
    ok, bad, also_ok, cut, garbage, html = answer["results"]
    assert ok["response"]["status_code"] == also_ok["response"]["status_code"] == 200
    assert bad["response"]["status_code"] == 400
    assert bad["response"]["body"]["error"]["message"]
    assert (cut["response"], cut["error"]["code"]) == (None, "upstream_cut")
    assert garbage["error"]["code"] == html["error"]["code"] == "upstream_malformed"
    assert cut["timing"]["attempts"] == 3


async def test_endpoints_can_be_mixed(http: httpx.AsyncClient) -> None:
    requests = [item("a", model="sim"), {"url": "/v1/embeddings", "body": {"model": "sim", "input": "x"}}]
    answer = (await fan_out(http, requests=requests)).json()
    objects = [line["response"]["body"]["object"] for line in answer["results"]]
    assert objects == ["chat.completion", "list"]


async def test_calls_run_side_by_side_and_concurrency_lowers_how_many(
    http: httpx.AsyncClient, simulator: Server
) -> None:
    for concurrency, peak in ((None, 30), (3, 3)):
        simulator.ledger(reset=True)
        request: dict[str, Any] = {"requests": [item(str(place)) for place in range(30)]}
        if concurrency is not None:
            request["concurrency"] = concurrency
        answer = (await fan_out(http, defaults={"model": "sim-latency=0.1"}, **request)).json()
        assert answer["counts"]["completed"] == 30
        assert simulator.ledger()["peak"] == peak
        assert (answer["results"][-1]["timing"]["queue_ms"] > 100) == (concurrency is not None)


async def test_results_can_leave_as_they_finish(http: httpx.AsyncClient) -> None:
    requests = [item("slow", model="sim-latency=0.5"), item("fast", model="sim")]
    for accept in ("application/json", NDJSON):
        answer = await fan_out(http, accept, requests=requests, order="completed")
        results = answer.json()["results"] if accept.endswith("/json") else lines(answer.text)[:-1]
        assert [line["index"] for line in results] == [1, 0]


async def test_every_model_answers_every_request(http: httpx.AsyncClient) -> None:
    answer = (await fan_out(http, models=["sim-a", "sim-b"], requests=[item("x"), item("y")])).json()
    found = [(line["index"], line["model"]) for line in answer["results"]]
    assert found == [(0, "sim-a"), (0, "sim-b"), (1, "sim-a"), (1, "sim-b")]


async def test_a_race_is_won_by_the_first_success_and_the_losers_are_cancelled_upstream(
    http: httpx.AsyncClient, simulator: Server
) -> None:
    simulator.ledger(reset=True)
    models = ["sim-latency=30", "sim-status=400", "sim-latency=0.05"]
    answer = (await fan_out(http, models=models, mode="race", requests=[item("x"), item("y")])).json()
    assert [line["model"] for line in answer["results"]] == ["sim-latency=0.05"] * 2
    assert answer["counts"] == {"total": 2, "completed": 2, "failed": 0}
    await eventually(lambda: simulator.ledger()["aborted"] == 2)
    lost = (await fan_out(http, models=["a-status=400", "b-status=404"], mode="race", requests=[item("x")])).json()
    assert lost["counts"] == {"total": 1, "completed": 0, "failed": 1}


async def test_one_deadline_for_all(http: httpx.AsyncClient, simulator: Server) -> None:
    simulator.ledger(reset=True)
    requests = [item("a", model="sim"), *(item("b", model="sim-latency=30") for _ in range(3))]
    answer = (await fan_out(http, requests=requests, timeout=0.5, concurrency=2)).json()
    assert answer["results"][0]["response"]["status_code"] == 200
    assert [line["error"]["code"] for line in answer["results"][1:]] == ["timeout"] * 3
    await eventually(lambda: simulator.ledger()["in_flight"] == 0)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({}, "requests"),
        ({"requests": []}, "requests"),
        ({"requests": [item("a"), {"body": "text"}]}, "requests[1].body"),
        ({"requests": [{"custom_id": "a"}]}, "requests[0].body"),
        ({"requests": [{**item("x", model="m"), "custom_id": "a"}] * 2}, "requests[1].custom_id"),
        ({"requests": [item("no model")]}, "requests[0].body.model"),
        ({"requests": [item("x", model=3)]}, "requests[0].body.model"),
        ({"requests": [{**item("x", model="m"), "url": "/v1/files"}]}, "requests[0].url"),
        ({"requests": [{**item("x", model="m"), "method": "GET"}]}, "requests[0].method"),
        ({"requests": [item("x", model="m", stream=True)]}, "requests[0].body.stream"),
        ({"requests": [item("x", model="m")], "mode": "race"}, "mode"),
        ({"requests": [item("x", model="m")], "order": "random"}, "order"),
        ({"requests": [item("x", model="m")], "concurrency": 0}, "concurrency"),
        ({"requests": [item("x", model="m")], "timeout": -1}, "timeout"),
        ({"requests": [item("x", model="m")], "models": []}, "models"),
        ({"requests": [item("x", model="m")], "url": "/v1/nothing"}, "url"),
    ],
    ids=str,
)
async def test_a_wrong_request_is_a_400_that_names_the_place(
    http: httpx.AsyncClient, simulator: Server, request_: dict[str, Any], param: str
) -> None:
    simulator.ledger(reset=True)
    answer = await fan_out(http, **request_)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert simulator.ledger()["calls"] == 0


async def test_ndjson_in_and_out_ends_with_a_summary(http: httpx.AsyncClient) -> None:
    answer = await fan_out_lines(http, *(json.dumps(item(str(place), model="sim")).encode() for place in range(5)))
    assert answer.headers["content-type"].startswith(NDJSON)
    *results, summary = lines(answer.text)
    assert [line["index"] for line in results] == [0, 1, 2, 3, 4]
    assert summary["object"] == "fanout.summary"
    assert summary["counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert summary["usage"]["completion_tokens"] == 25


async def test_a_broken_line_says_so_in_its_own_result_and_the_rest_goes_on(http: httpx.AsyncClient) -> None:
    good = json.dumps({**item("x", model="sim"), "custom_id": "same"}).encode()
    answer = await fan_out_lines(
        http,
        b"\xef\xbb\xbf" + good,
        b"{broken",
        b"",
        b'{"body": {"model": "sim", "x": "\xff"}}',
        good,
        b"[1]",
        good[:-1],
    )
    *results, summary = lines(answer.text)
    assert [line["index"] for line in results] == [0, 1, 2, 3, 4, 5]
    assert results[0]["response"]["status_code"] == 200
    for line in results[1:]:
        assert line["response"] is None
        assert line["error"]["code"] == "invalid_request"
    assert "duplicate" in results[3]["error"]["message"]
    assert summary["counts"] == {"total": 6, "completed": 1, "failed": 5}


async def test_ndjson_takes_its_options_from_the_query(http: httpx.AsyncClient) -> None:
    body = json.dumps(item("x")).encode()
    answer = await fan_out_lines(http, body, body, models="sim-a,sim-b", order="completed", concurrency="1")
    assert len(lines(answer.text)) == 5
    with_defaults = await fan_out_lines(http, body, defaults='{"model": "sim"}', accept="application/json")
    assert with_defaults.json()["counts"]["completed"] == 1
    for name, value in (
        ("order", "x"),
        ("concurrency", "none"),
        ("nonsense", "1"),
        ("defaults", "{"),
        ("mode", "race"),
    ):
        wrong = await fan_out_lines(http, body, **{name: value})
        assert wrong.status_code == 400
        assert wrong.json()["error"]["param"] == name


async def test_results_flow_while_lines_still_come_in(gateway: Server) -> None:
    line = json.dumps(item("x", model="sim")).encode()
    reader, writer = await open_lines(gateway)
    writer.write(chunk(line + b"\n"))
    assert b'"index":0' in await asyncio.wait_for(reader.readuntil(b'"attempts":1}}'), 10)
    writer.write(chunk(line) + LAST_CHUNK)
    rest = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10)
    assert b'"index":1' in rest
    assert b"fanout.summary" in rest
    writer.close()


async def test_a_reader_that_stops_stops_the_reading_of_lines(gateway: Server, simulator: Server) -> None:
    """Back-pressure: with results untaken, only a bounded number of lines reaches the upstream."""
    simulator.ledger(reset=True)
    logged = gateway.log().count('"path":"/v1/fanout"')
    line = json.dumps(item("x" * 2000, model="sim-tokens=3000")).encode() + b"\n"
    _, writer = await open_lines(gateway, limit=1024)

    async def push() -> None:
        while True:
            writer.write(chunk(line))
            await writer.drain()

    pushing = asyncio.create_task(push())
    seen = -1
    while simulator.ledger()["calls"] > seen or simulator.ledger()["in_flight"]:
        seen = simulator.ledger()["calls"]
        await asyncio.sleep(0.3)
    assert not pushing.done()
    assert 0 < seen < 10_000
    pushing.cancel()
    writer.transport.abort()
    await eventually(lambda: gateway.log().count('"path":"/v1/fanout"') > logged)


async def test_sse_brings_tokens_of_all_items_over_one_connection(http: httpx.AsyncClient) -> None:
    requests = [
        {**item("a", stream=True), "custom_id": "a"},
        {**item("b", stream=True, stream_options={"include_usage": True}), "custom_id": "b"},
        {**item("c"), "custom_id": "c"},
    ]
    answer = await fan_out(http, SSE, defaults={"model": "sim"}, requests=requests)
    assert answer.headers["content-type"].startswith(SSE)
    events = [
        (block.split("\n")[0].removeprefix("event: "), json.loads(block.split("data: ", 1)[1]))
        for block in answer.text.strip().split("\n\n")
    ]
    assert events[-1][0] == "summary"
    assert events[-1][1]["counts"] == {"total": 3, "completed": 3, "failed": 0}
    results = {data["custom_id"]: data for name, data in events if name == "result"}
    assert list(results) == ["a", "b", "c"]
    for place, name in enumerate("ab"):
        chunks = [data for kind, data in events if kind == "chunk" and data["custom_id"] == name]
        assert all(set(data) == {"index", "custom_id", "model", "chunk"} for data in chunks)
        assert {(data["index"], data["model"]) for data in chunks} == {(place, "sim")}
        streamed = "".join(c["delta"].get("content", "") for data in chunks for c in data["chunk"]["choices"])
        body = results[name]["response"]["body"]
        assert body["object"] == "chat.completion"
        assert body["choices"][0]["message"] == {"role": "assistant", "content": streamed}
        assert body["choices"][0]["finish_reason"] == "stop"
    assert results["b"]["response"]["body"]["usage"]["completion_tokens"] == 5
    assert not [data for kind, data in events if kind == "chunk" and data["custom_id"] == "c"]


async def test_a_streamed_item_that_breaks_fails_alone(http: httpx.AsyncClient) -> None:
    requests = [item("a", model="sim-cut=3", stream=True), item("b", model="sim", stream=True)]
    answer = await fan_out(http, SSE, requests=requests)
    results = [json.loads(b.split("data: ", 1)[1]) for b in answer.text.split("\n\n") if b.startswith("event: result")]
    assert results[0]["error"]["code"] == "upstream_cut"
    assert results[1]["response"]["status_code"] == 200


async def test_an_upstream_that_writes_its_json_over_many_lines_keeps_ndjson_and_sse_whole(fragile: Server) -> None:
    pretty = b'{\n  "object": "x",\n  "pi": 3.10,\n  "usage": {\r\n "total_tokens": 2 }\n}\n'
    request = {"requests": [{"body": {"model": "m"}}, {"body": {"model": "m"}}]}
    async with scripted(whole(reply(pretty)), FRAGILE_PORT), httpx.AsyncClient(base_url=fragile.root) as http:
        *results, summary = lines((await fan_out(http, NDJSON, **request)).text)
        events = events_of((await fan_out(http, SSE, **request)).text)
    assert [line["response"]["body"]["pi"] for line in results] == [3.10, 3.10]
    assert summary["usage"] == {"total_tokens": 4}
    assert len(events) == 3
    split = b'data: {"choices":\ndata: [{"index": 0, "delta": {"content": "\\ud83d"}}]}\n\ndata: [DONE]\n\n'
    async with scripted(streamed(split), FRAGILE_PORT), httpx.AsyncClient(base_url=fragile.root) as http:
        streamed_item = {"requests": [{"body": {"model": "m", "stream": True}}] * 2}
        text = (await fan_out(http, SSE, **streamed_item)).text
    found = events_of(text)
    assert [one.get("object") for one in found if "chunk" not in one][-1] == "fanout.summary"
    assert found[-1]["counts"] == {"total": 2, "completed": 2, "failed": 0}


async def test_odd_chunks_do_not_lose_an_item(fragile: Server) -> None:
    odd = [b'{"choices": [null]}', b'{"choices": 5}', b'{"response": null}', b'{"choices": [{"index": 0, "delta": 3}]}']
    pieces = [b"data: " + one + b"\n\n" for one in odd]
    async with (
        scripted(streamed(*pieces, b"data: [DONE]\n\n"), FRAGILE_PORT),
        httpx.AsyncClient(base_url=fragile.root) as http,
    ):
        answer = await fan_out(http, SSE, requests=[{"body": {"model": "m", "stream": True}}] * 3)
    assert events_of(answer.text)[-1]["counts"] == {"total": 3, "completed": 3, "failed": 0}


async def test_the_timeout_ends_an_input_that_stalls(gateway: Server) -> None:
    line = json.dumps(item("x", model="sim")).encode() + b"\n"
    for query, more in (("?timeout=0.3", ""), ("", "x-sluicegate-timeout: 0.3\r\n")):
        reader, writer = await open_lines(gateway, query, more)
        writer.write(chunk(line))
        text = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10)
        assert b'"completed":1' in text
        assert b'"truncated":true' in text
        writer.close()


async def test_hanging_up_in_the_middle_of_the_lines_starts_no_more_calls(gateway: Server, simulator: Server) -> None:
    simulator.ledger(reset=True)
    line = json.dumps(item("x", model="sim-latency=0.3")).encode() + b"\n"
    _, writer = await open_lines(gateway, "?concurrency=8")
    writer.write(chunk(line * 3000))
    await eventually(lambda: simulator.ledger()["in_flight"] == 8)
    writer.transport.abort()
    await eventually(lambda: simulator.ledger()["in_flight"] == 0)
    assert simulator.ledger()["calls"] <= 24


async def test_input_order_holds_while_tokens_of_many_streams_fill_the_queue(http: httpx.AsyncClient) -> None:
    requests = [item(str(place), model="sim-tokens=200-gap=0", stream=place % 20 == 0) for place in range(400)]
    answer = await fan_out(http, SSE, requests=requests)
    found = [one["index"] for one in events_of(answer.text) if "timing" in one and "index" in one]
    assert found == list(range(400))


async def test_an_upstream_that_is_down_is_said_per_item() -> None:
    with serving("serve", env={"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "SLUICEGATE_MAX_ATTEMPTS": "1"}) as server:
        async with httpx.AsyncClient(base_url=server.root) as http:
            answer = await fan_out(http, defaults={"model": "m"}, requests=[item("a"), item("b")])
    assert answer.status_code == 200
    assert [line["error"]["code"] for line in answer.json()["results"]] == ["upstream_unreachable"] * 2
