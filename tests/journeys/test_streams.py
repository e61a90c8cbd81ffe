"""A stream over HTTP outlives its readers: who comes back, from anywhere, gets exactly the rest; who may not, nothing."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from tests.journeys.streams_support import (
    CHAT,
    COMPLETIONS,
    FANOUT,
    PATIENCE,
    RESPONSES,
    USAGE,
    Client,
    Upstream,
    code_of,
    is_rest,
    numbers,
    text_of,
    upstream,
    words,
)
from tests.support import Server, eventually, free_port, serving
from tests.wire.event_source import Event, parsed

PORT = free_port()
_UPSTREAM = f"""
max_attempts = 1
ping_interval = 0.3
[upstreams.scripted]
base_url = "http://127.0.0.1:{PORT}/v1"
first_token_timeout = 5
idle_timeout = 5
"""
_KEYS = """
[keys.anna]
key = "sk-anna"
[keys.berta]
key = "sk-berta"
[keys.narrow]
key = "sk-narrow"
models = ["only-words=1"]
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A gateway with keys, in front of whatever is at `PORT`."""
    with serving("serve", toml=_UPSTREAM + _KEYS) as running:
        yield running


@pytest.fixture(scope="module")
def small() -> Iterator[Server]:
    """One without keys that keeps little, and not for long."""
    limits = "[streams]\nttl = 1\nmax_running = 2\nmax_stream_bytes = 2000\n"
    with serving("serve", toml=_UPSTREAM + limits) as running:
        yield running


@pytest.fixture
async def says() -> AsyncIterator[Upstream]:
    async with upstream(PORT) as one:
        yield one


@pytest.fixture
async def anna(server: Server) -> AsyncIterator[Client]:
    async with Client(server.root, "sk-anna") as client:
        yield client


@pytest.fixture
async def berta(server: Server) -> AsyncIterator[Client]:
    async with Client(server.root, "sk-berta") as client:
        yield client


@pytest.fixture
async def stranger(server: Server) -> AsyncIterator[Client]:
    async with Client(server.root) as client:
        yield client


def error_of(answer: httpx.Response) -> dict[str, Any]:
    assert set(answer.json()) == {"error"}
    assert answer.headers["x-request-id"]
    found: dict[str, Any] = answer.json()["error"]
    return found


# --- made and read ---


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS, RESPONSES])
async def test_a_stream_is_made_read_to_its_end_and_told(anna: Client, says: Upstream, url: str) -> None:
    made = await anna.create("m-words=5", url)
    assert (made["object"], made["status"], made["url"]) == ("stream", "in_progress", url)
    assert made["events_url"] == f"/v1/streams/{made['id']}/events"
    assert made["expires_at"] >= made["created_at"] + 3000
    got = await anna.read(made)
    assert numbers(got) == [1, 2, 3, 4, 5, 6, 7]
    assert text_of(got) == words(1, 5)
    assert got[-1] == Event("7", "done", "[DONE]")
    assert {one.name for one in got[:-1]} == {"message"}  # for a page's `onmessage`
    told = await anna.ended(made)
    assert (told["status"], told["text"], told["usage"], told["error"]) == ("completed", words(1, 5), USAGE, None)
    assert (told["events"], told["model"]) == (6, "m-words=5")
    assert told["timing"]["total_ms"] >= told["timing"]["first_event_ms"] > 0
    assert (told["timing"]["upstream"], told["timing"]["attempts"]) == ("scripted", 1)
    assert [body["stream"] for body in says.bodies["m-words=5"]] == [True]


async def test_its_chunks_are_those_of_the_plain_stream_and_the_sdk_reads_them(
    server: Server, anna: Client, says: Upstream
) -> None:
    plain = await anna.http.post(CHAT, json={"model": "m-words=3", "stream": True, "messages": []})
    got = await anna.read(await anna.create("m-words=3"))
    assert [one.data for one in got] == [one.data for one in parsed(plain.content)]
    async with AsyncOpenAI(base_url=server.base_url, api_key="sk-anna", max_retries=0) as client:
        asked = {"url": CHAT, "body": {"model": "m-words=3", "messages": []}}
        made = await client.post("/streams", cast_to=object, body=asked)
        assert isinstance(made, dict)
        events = await anna.read(made)
    chunks = [ChatCompletionChunk.model_validate_json(one.data) for one in events[:-2]]
    assert [one.choices[0].delta.content for one in chunks] == ["1 ", "2 ", "3 "]


async def test_the_reply_is_made_for_event_source_and_for_proxies(anna: Client, says: Upstream) -> None:
    made = await anna.http.post("/v1/streams", json={"url": CHAT, "body": {"model": "m-words=1", "messages": []}})
    assert made.status_code == 201
    assert made.headers["location"] == f"/v1/streams/{made.json()['id']}"
    answer = await anna.http.get(made.json()["events_url"])
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert {"no-store", "no-transform"} <= {one.strip() for one in answer.headers["cache-control"].split(",")}
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.content.startswith(b"retry: 1000\n\nid: 1\ndata: ")
    assert (await anna.http.get(made.headers["location"])).json()["id"] == made.json()["id"]


async def test_silence_is_broken_by_comments_that_have_no_number(anna: Client, says: Upstream) -> None:
    made = await anna.create("quiet-words=1-held=1")
    async with anna.reading(made) as one:
        await eventually(lambda: b": ping\n\n" in one._got)
        says.allow("quiet-words=1-held=1", 2)
        assert numbers(await one.whole()) == [1, 2, 3]


async def test_a_fan_out_keeps_the_names_of_its_events(anna: Client, says: Upstream) -> None:
    body = {"model": "m-words=2", "messages": []}
    made = await anna.fan_out(
        requests=[{"body": {**body, "stream": True}}, {"custom_id": "b", "body": {**body, "stream": True}}]
    )
    got = await anna.read(made)
    names = [one.name for one in got]
    assert (names.count("chunk"), names.count("result"), names[-2:]) == (6, 2, ["summary", "done"])
    assert {json.loads(one.data)["custom_id"] for one in got if one.name == "result"} == {"0", "b"}
    for seen in range(len(got)):
        assert is_rest(await anna.read(made, seen), got, seen)
    told = await anna.ended(made)
    assert (told["status"], told["url"], told["model"]) == ("completed", FANOUT, None)
    assert told["usage"]["total_tokens"] == 2 * USAGE["total_tokens"]


async def test_nobody_reads_it_and_yet_it_is_whole(anna: Client, says: Upstream) -> None:
    made = await anna.create("alone-words=50")
    assert (await anna.ended(made))["text"] == words(1, 50)
    assert text_of(await anna.read(made)) == words(1, 50)


async def test_it_works_without_v1_in_front(anna: Client, says: Upstream) -> None:
    asked = {"url": "/chat/completions", "body": {"model": "m-words=2", "messages": []}}
    made = (await anna.http.post("/streams", json=asked)).json()
    events = parsed((await anna.http.get(f"/streams/{made['id']}/events")).content)
    assert text_of(events) == words(1, 2)
    assert (await anna.http.get(f"/streams/{made['id']}")).json()["status"] == "completed"
    assert len(parsed((await anna.http.get(f"/streams/events?ids={made['id']}")).content)) == 4
    assert (await anna.http.delete(f"/streams/{made['id']}")).json()["status"] == "completed"


# --- resumed ---


async def test_resumed_behind_any_event_it_gives_exactly_the_rest_while_it_runs_and_afterwards(
    anna: Client, says: Upstream
) -> None:
    model, last = "rest-words=12-held=1", 14
    made = await anna.create(model)
    readers = [asyncio.create_task(anna.read(made, seen)) for seen in range(13)]
    for n in range(1, 14):
        says.allow(model)
        async with anna.reading(made) as late:
            await late.reaches(n)
            readers.append(asyncio.create_task(anna.read(made, n - 1)))
    whole = await readers[0]
    assert numbers(whole) == list(range(1, last + 1))
    assert text_of(whole) == words(1, 12)
    for seen, task in zip([*range(13), *range(13)], readers, strict=True):
        assert is_rest(await task, whole, seen)
    await anna.ended(made)
    for seen in range(last):
        assert is_rest(await anna.read(made, seen), whole, seen)


async def test_a_reader_who_is_cut_again_and_again_misses_nothing_and_reads_nothing_twice(
    anna: Client, says: Upstream
) -> None:
    model = "cut-up-words=30-held=1"
    made = await anna.create(model)
    got: list[Event] = []
    for turn in range(10):
        async with anna.reading(made, len(got)) as one:
            says.allow(model, 3)
            await one.reaches(len(got) + 1 + turn % 3)
            got += one.events
    says.allow(model, 10)
    got += await anna.read(made, len(got))
    assert numbers(got) == list(range(1, 33))
    assert text_of(got) == words(1, 30)
    assert len(says.bodies[model]) == 1  # and is paid for once


async def test_the_header_of_a_browser_that_comes_back_wins_over_its_address(anna: Client, says: Upstream) -> None:
    made = await anna.create("m-words=4")
    whole = await anna.read(made)
    for header, after, seen in (("3", "1", 3), ("0", "2", 0), ("", "2", 2), ("5", "", 5)):
        url = f"{made['events_url']}?after={after}"
        answer = await anna.http.get(url, headers={"last-event-id": header})
        assert is_rest(parsed(answer.content), whole, seen), (header, after)


async def test_an_event_source_that_has_seen_the_end_is_told_not_to_come_back(anna: Client, says: Upstream) -> None:
    made = await anna.create("m-words=2")
    whole = await anna.read(made)
    await anna.ended(made)
    end = whole[-1].id
    for headers, query in (({"last-event-id": end}, ""), ({}, f"?after={end}"), ({}, "?after=999999")):
        answer = await anna.http.get(made["events_url"] + query, headers=headers)
        assert (answer.status_code, answer.content) == (204, b"")
    assert (await anna.http.get(f"/v1/streams/events?ids={made['id']}&after={end}")).status_code == 204


async def test_a_hold_ends_the_reply_so_that_connections_go_round(anna: Client, says: Upstream) -> None:
    model = "held-words=4-held=1"
    made = await anna.create(model)
    got: list[Event] = []
    for _ in range(4):
        says.allow(model)
        part = await anna.read(made, len(got), hold=0.3)
        assert all(one.name == "message" for one in part)
        got += part
    assert text_of(got) == words(1, 4)
    says.allow(model)
    got += await anna.read(made, len(got), hold=30)
    assert numbers(got) == [1, 2, 3, 4, 5, 6]


# --- many over one connection ---


async def test_many_streams_over_one_connection_each_resumable(anna: Client, says: Upstream) -> None:
    counts = [3, 1, 5]
    models = [f"many{place}-words={count}-held=1" for place, count in enumerate(counts)]
    made = [await anna.create(model) for model in models]
    url = "/v1/streams/events?ids=" + ",".join(one["id"] for one in made)
    reading = asyncio.create_task(anna.http.get(url))
    for model, count in zip(models, counts, strict=True):
        says.allow(model, count + 1)
    got = parsed((await reading).content)
    told = [json.loads(one.data) for one in got]
    for one, count in zip(made, counts, strict=True):
        mine = [each for each in told if each["stream"] == one["id"]]
        single = await anna.read(one)
        assert [each["seq"] for each in mine] == numbers(single) == list(range(1, count + 3))
        assert [each["chunk"] for each in mine[:-1]] == [json.loads(each.data) for each in single[:-1]]
        assert mine[-1]["chunk"] is None
    assert [one.name for one in got].count("done") == 3
    assert got[-1].id == "5.3.7"
    for cut in range(len(got) - 1):
        answer = await anna.http.get(url, headers={"last-event-id": got[cut].id})
        rest = [json.loads(one.data) for one in parsed(answer.content)]
        for one in made:
            assert [each for each in rest if each["stream"] == one["id"]] == [
                each for each in told[cut + 1 :] if each["stream"] == one["id"]
            ]


# --- whose it is ---


async def test_a_stream_is_its_makers_and_of_who_has_its_token(
    anna: Client, berta: Client, stranger: Client, says: Upstream
) -> None:
    made, other = await anna.create("m-words=2"), await berta.create("m-words=2")
    await anna.ended(made)
    paths = [made["events_url"], f"/v1/streams/{made['id']}", f"/v1/streams/events?ids={made['id']}"]
    for path in paths:
        join = "&" if "?" in path else "?"
        for client in (anna, stranger, berta):
            assert (await client.http.get(f"{path}{join}token={made['token']}")).status_code == 200
        assert (await anna.http.get(path)).status_code == 200
        unknown = await stranger.http.get(path)
        assert (unknown.status_code, error_of(unknown)["type"]) == (401, "authentication_error")
        wrong = [f"{join}token={token}" for token in ("", "x", other["token"], made["token"].swapcase(), made["id"])]
        for client, query in ((berta, ""), *((stranger, query) for query in wrong)):
            answer = await client.http.get(path + query)
            assert (answer.status_code, error_of(answer)["type"]) == (404, "not_found_error")
    for client, token in ((berta, ""), (stranger, f"?token={other['token']}")):
        assert (await client.http.delete(f"/v1/streams/{made['id']}{token}")).status_code == 404
    assert (await stranger.http.delete(f"/v1/streams/{made['id']}?token={made['token']}")).status_code == 200


async def test_many_streams_are_opened_by_as_many_tokens(
    anna: Client, berta: Client, stranger: Client, says: Upstream
) -> None:
    made, other = await anna.create("m-words=1"), await berta.create("m-words=2")
    url = f"/v1/streams/events?ids={made['id']},{other['id']}"
    both = f"{url}&token={made['token']},{other['token']}"
    assert len(parsed((await stranger.http.get(both)).content)) == 7
    for wrong in (f"{url}&token={other['token']},{made['token']}", f"{url}&token={made['token']},"):
        assert (await stranger.http.get(wrong)).status_code == 404
    assert (await anna.http.get(url)).status_code == 404
    short = await stranger.http.get(f"{url}&token={made['token']}")
    assert (short.status_code, error_of(short)["param"]) == (400, "token")


async def test_a_key_makes_streams_of_its_models_only(server: Server, says: Upstream) -> None:
    async with Client(server.root, "sk-narrow") as narrow:
        made = await narrow.create("only-words=1")
        assert text_of(await narrow.read(made)) == words(1, 1)
        asked = {"url": CHAT, "body": {"model": "other-words=1", "messages": []}}
        answer = await narrow.http.post("/v1/streams", json=asked)
        assert (answer.status_code, error_of(answer)["type"]) == (403, "permission_error")
    assert "other-words=1" not in says.bodies


async def test_the_same_call_sent_twice_makes_one_stream(anna: Client, berta: Client, says: Upstream) -> None:
    key = {"idempotency-key": "once"}
    first, again = [await anna.create("once-words=2", headers=key) for _ in range(2)]
    assert again == first
    assert text_of(await anna.read(again)) == words(1, 2)
    hers = await berta.create("once-words=2", headers=key)
    assert hers["id"] != first["id"]
    await berta.read(hers)
    assert len(says.bodies["once-words=2"]) == 2
    asked = {"url": CHAT, "body": {"model": "other-words=2", "messages": []}}
    other = await anna.http.post("/v1/streams", json=asked, headers=key)
    assert (other.status_code, error_of(other)["param"]) == (400, "Idempotency-Key")


# --- how it ends ---


@pytest.mark.parametrize(
    ("model", "text", "code"),
    [
        ("m-status=429", "", "overloaded"),
        ("m-status=500", "", "overloaded"),
        ("m-words=0-end=error", "", "overloaded"),
        ("m-words=2-end=error", words(1, 2), "overloaded"),
        ("m-words=2-end=cut", words(1, 2), "upstream_cut"),
        ("m-words=0-end=cut", "", "upstream_cut"),
        ("m-words=2-end=garbage", words(1, 2), "upstream_malformed"),
    ],
)
async def test_what_goes_wrong_upstream_is_the_last_event(
    anna: Client, says: Upstream, model: str, text: str, code: str
) -> None:
    made = await anna.create(model)
    live = await anna.read(made)
    assert (text_of(live), code_of(live)) == (text, code)
    told = await anna.ended(made)
    assert (told["status"], told["text"], told["error"]["code"]) == ("failed", text, code)
    assert await anna.read(made) == live
    for seen in range(len(live)):
        assert is_rest(await anna.read(made, seen), live, seen)


async def test_a_deadline_is_the_calls_and_not_the_readers(anna: Client, says: Upstream) -> None:
    made = await anna.create("m-words=2-end=never", headers={"x-sluicegate-timeout": "0.5"})
    got = await anna.read(made)
    assert (text_of(got), code_of(got)) == (words(1, 2), "deadline_exceeded")


async def test_a_reader_who_hangs_up_ends_nothing_and_delete_ends_it_upstream(anna: Client, says: Upstream) -> None:
    model = "stop-words=5-held=1"
    made = await anna.create(model)
    for _ in range(2):
        async with anna.reading(made) as one:
            says.allow(model)
            await one.reaches(1)
    async with anna.reading(made) as one:
        await one.reaches(2)
        assert not says.gone[model].is_set()
        told = await anna.delete(made)
        assert (told["status"], told["error"]["code"]) == ("cancelled", "cancelled")
        await asyncio.wait_for(says.gone[model].wait(), PATIENCE)
        got = await one.whole()
    assert (text_of(got), code_of(got)) == (words(1, 2), "cancelled")
    assert await anna.read(made) == got
    told = await anna.ended(made)
    assert (told["status"], told["text"]) == ("cancelled", words(1, 2))
    assert (await anna.delete(made))["status"] == "cancelled"


async def test_delete_ends_it_before_its_first_word_and_all_of_a_fan_out(anna: Client, says: Upstream) -> None:
    models = [f"stop{place}-words=1-held=1" for place in range(4)]
    single = await anna.create(models[0])
    many = await anna.fan_out(
        requests=[{"body": {"model": model, "messages": [], "stream": True}} for model in models[1:]]
    )
    await eventually(lambda: all(says.bodies[model] for model in models))
    for one in (single, many):
        await anna.delete(one)
        assert code_of(await anna.read(one)) == "cancelled"
    for model in models:
        await asyncio.wait_for(says.gone[model].wait(), PATIENCE)


async def test_what_was_not_asked_for_well_is_named(anna: Client, says: Upstream) -> None:
    made = await anna.create("m-words=1")
    body = {"model": "m-words=1", "messages": []}
    ids = made["id"]
    posts: list[tuple[Any, str | None]] = [
        ({"url": CHAT}, "body"),
        ({"body": body}, "url"),
        ({"url": "/v1/embeddings", "body": body}, "url"),
        ({"url": CHAT, "body": []}, "body"),
        ({"url": CHAT, "body": {"messages": []}}, "body.model"),
        ({"url": FANOUT, "body": {}}, "body.requests"),
        ({"url": FANOUT, "body": {"requests": [{"body": body}, {"body": {}}]}}, "body.requests[1].body.model"),
        ([], None),
    ]
    for asked, param in posts:
        answer = await anna.http.post("/v1/streams", json=asked)
        assert (answer.status_code, error_of(answer)["param"]) == (400, param), answer.text
    events = made["events_url"]
    gets = [
        (f"{events}?after=x", "after"),
        (f"{events}?after=-1", "after"),
        (f"{events}?after=1.2", "after"),
        (f"{events}?hold=0", "hold"),
        (f"{events}?hold=nan", "hold"),
        (f"{events}?hold=1e9", "hold"),
        (f"{events}?hold=", "hold"),
        ("/v1/streams/events", "ids"),
        ("/v1/streams/events?ids=", "ids"),
        (f"/v1/streams/events?ids={ids},{ids}", "ids"),
        (f"/v1/streams/events?ids={ids},", "ids"),
        ("/v1/streams/events?ids=" + ",".join(f"stream_{n}" for n in range(65)), "ids"),
        (f"/v1/streams/events?ids={ids}&after=1.1", "after"),
    ]
    for path, param in gets:
        answer = await anna.http.get(path)
        assert (answer.status_code, error_of(answer)["param"]) == (400, param), path
    answer = await anna.http.get(events, headers={"last-event-id": "x"})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "Last-Event-ID")


async def test_what_is_not_there_is_a_404(anna: Client) -> None:
    for name in ("stream_0", "events", "%00", "%F0%9F%98%80", "x" * 300):
        for answer in (
            await anna.http.get(f"/v1/streams/{name}/events"),
            await anna.http.delete(f"/v1/streams/{name}"),
        ):
            assert (answer.status_code, error_of(answer)["type"]) == (404, "not_found_error"), name
    assert (await anna.http.get("/v1/streams/events?ids=stream_0")).status_code == 404


# --- bounds ---


async def test_too_many_and_too_much_are_refused_and_what_is_too_old_is_gone(small: Server, says: Upstream) -> None:
    async with Client(small.root) as client:
        running = [await client.create(f"run{place}-words=1-held=1") for place in range(2)]
        asked = {"url": CHAT, "body": {"model": "third-words=1", "messages": []}}
        answer = await client.http.post("/v1/streams", json=asked)
        assert (answer.status_code, error_of(answer)["code"]) == (429, "queue_full")
        assert int(answer.headers["retry-after-ms"]) > 0
        assert answer.headers["x-should-retry"] == "true"
        figures = await client.status()
        assert (figures["running"], figures["max_running"], figures["unlogged_bytes"]) == (2, 2, 0)
        says.allow("run0-words=1-held=1", 2)
        await client.ended(running[0])
        await eventually(lambda: _runs(client, 1))
        fat = await client.create("fat-words=500-end=never")
        got = await client.read(fat)
        assert code_of(got) == "stream_too_large"
        assert numbers(got) == list(range(1, len(got) + 1))
        await asyncio.wait_for(says.gone["fat-words=500-end=never"].wait(), PATIENCE)
        for path in (f"/v1/streams/{running[0]['id']}", running[0]["events_url"]):
            await eventually(lambda path=path: _is_gone(client, path))  # type: ignore[misc]
        assert (await client.told(running[1]))["status"] == "in_progress"  # as long as it takes
        await client.delete(running[1])


async def test_a_page_that_is_refused_a_place_has_paid_nothing_for_it(small: Server, says: Upstream) -> None:
    async with Client(small.root) as client:
        asked = {"ttl_seconds": 60, "max_requests": 1}
        token = (await client.http.post("/v1/browser_tokens", json=asked)).json()["token"]
        running = [await client.create(f"page{place}-words=1-held=1") for place in range(2)]
        body = {"url": CHAT, "body": {"model": "page-words=2", "messages": []}}
        async with Client(small.root, token) as page:
            for code in ("queue_full", "queue_full", None, "insufficient_quota"):
                if code is None:
                    await client.delete(running[0])
                    await eventually(lambda: _runs(client, 1))
                answer = await page.http.post("/v1/streams", json=body)
                assert (answer.status_code == 201) is (code is None), answer.text
                assert code is None or error_of(answer)["code"] == code
                if code is None:
                    assert text_of(await page.read(answer.json())) == words(1, 2)
                    await eventually(lambda: _runs(client, 1))
        await client.delete(running[1])


async def _runs(client: Client, count: int) -> bool:
    return bool((await client.status())["running"] == count)


async def _is_gone(client: Client, path: str) -> bool:
    return (await client.http.get(path)).status_code == 404


async def test_no_prompt_no_word_and_no_token_is_in_the_log(server: Server, anna: Client, says: Upstream) -> None:
    prompt = [{"role": "user", "content": "a secret prompt"}]
    made = await anna.create("log-words=3", messages=prompt)
    async with Client(server.root) as page:
        await page.read(made, token=made["token"])
        await page.http.get(f"/v1/streams/{made['id']}?token={made['token']}")
        await page.http.get(f"/v1/streams/{made['id']}?token=secret-guess")
    await anna.create("log-words=1-end=garbage", messages=prompt)
    failed = await anna.create("log-words=1-end=error", messages=prompt)
    await anna.read(failed)
    log = server.log()
    assert made["id"] in log
    for secret in ("secret", made["token"], failed["token"], "too busy", '"content"', "Traceback"):
        assert secret not in log
