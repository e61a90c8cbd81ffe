"""A stream cannot lie: it ends in `[DONE]`, or in one error event and no `[DONE]`."""

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai import APIError, AsyncOpenAI

from tests.conftest import FRAGILE_PORT
from tests.support import (
    LAST_CHUNK,
    STREAM_HEAD,
    Request,
    Script,
    Scripted,
    Server,
    chunk,
    events_of,
    reply,
    scripted,
    streamed,
    token,
    whole,
)

DONE = b"data: [DONE]\n\n"
ASK = {"model": "m", "stream": True, "messages": []}


@contextlib.asynccontextmanager
async def upstream(script: Script) -> AsyncIterator[Scripted]:
    async with scripted(script, FRAGILE_PORT) as served:
        yield served


async def ask(fragile: Server, script: Script, path: str = "chat/completions") -> httpx.Response:
    async with upstream(script), httpx.AsyncClient(timeout=20) as http:
        return await http.post(f"{fragile.base_url}/{path}", json=ASK)


def error_of(answer: httpx.Response) -> str:
    """The code of the one error event that ends the stream."""
    *before, last = events_of(answer.text)
    assert "data: [DONE]" not in before
    assert not any("error" in event for event in before if isinstance(event, dict))
    assert set(last) == {"error"}
    assert last["error"]["message"]
    code: str = last["error"]["code"]
    return code


async def test_events_are_relayed_one_to_one_however_the_upstream_slices_them(fragile: Server) -> None:
    sent = b": hello\n\n" + token("a") + token("ü€😀") + token("c") + DONE
    first = sent.index(b"data:")
    for size in (1, 2, 7, len(sent)):
        answer = await ask(fragile, streamed(*(sent[i : i + size] for i in range(0, len(sent), size))))
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.content.endswith(sent[first:])


async def test_crlf_framing_becomes_lf_and_lines_that_crash_the_sdks_are_left_out(fragile: Server) -> None:
    sent = b"id: 7\r\nretry: 10\r\n" + token("a").replace(b"\n", b"\r\n") + b"data: [DONE]\r\n\r\n"
    answer = await ask(fragile, streamed(sent))
    assert answer.content == token("a") + DONE


async def test_a_compressed_stream_is_relayed_plain(fragile: Server) -> None:
    packed = gzip.compress(token("a") + token("b") + DONE)
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n")
    answer = await ask(fragile, whole(head + chunk(packed[:10]) + chunk(packed[10:]) + LAST_CHUNK))
    assert answer.content == token("a") + token("b") + DONE
    assert "content-encoding" not in answer.headers


async def test_an_upstream_that_closes_early_ends_in_the_error_event(fragile: Server) -> None:
    answer = await ask(fragile, streamed(token("a"), token("b")))
    assert answer.status_code == 200
    assert answer.content.startswith(token("a") + token("b"))
    assert error_of(answer) == "upstream_cut"


async def test_an_upstream_that_breaks_off_ends_in_the_error_event(fragile: Server) -> None:
    answer = await ask(fragile, streamed(token("a"), b'data: {"id":', last=b""))
    assert error_of(answer) == "upstream_cut"


async def test_garbage_in_the_middle_ends_in_the_error_event(fragile: Server) -> None:
    for garbage in (b'data: {"id": "c", "cho\n\n', b"<html>502</html>\n\n", b'data: {"a": "\xff"}\n\n', b"data: 7\n\n"):
        answer = await ask(fragile, streamed(token("a"), garbage, token("b"), DONE))
        assert error_of(answer) == "upstream_malformed"
        assert token("b") not in answer.content


async def test_a_stall_ends_in_the_error_event(fragile: Server) -> None:
    async def stall(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(token("a")))
        await writer.drain()
        await writer.wait_closed()

    assert error_of(await ask(fragile, stall)) == "idle_timeout"


async def test_the_upstreams_own_error_event_ends_the_stream_unchanged(fragile: Server) -> None:
    own = b'data: {"error": {"message": "too busy", "type": "server_error", "param": null, "code": "overloaded"}}\n\n'
    answer = await ask(fragile, streamed(token("a"), own, token("b"), DONE))
    assert answer.content == token("a") + own


async def test_an_error_event_in_the_first_place_is_an_error_reply(fragile: Server) -> None:
    own = b'data: {"error": {"message": "slow down", "type": "rate_limit_error", "param": null, "code": 429}}\n\n'
    answer = await ask(fragile, streamed(own, DONE))
    assert answer.status_code == 429
    assert answer.json()["error"]["message"] == "slow down"


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
async def test_an_upstreams_refusal_is_that_status_not_a_broken_200(fragile: Server, status: int) -> None:
    body = json.dumps({"error": {"message": "no", "type": "t", "param": None, "code": "c"}}).encode()
    answer = await ask(fragile, whole(reply(body, status=status, headers={"retry-after": "3"})))
    assert answer.status_code == status
    assert answer.content == body
    assert answer.headers["retry-after"] == "3"


async def test_a_stream_that_breaks_before_its_first_event_is_a_502(fragile: Server) -> None:
    closed = await ask(fragile, streamed())
    assert (closed.status_code, closed.json()["error"]["code"]) == (502, "upstream_cut")
    garbage = await ask(fragile, streamed(b"data: {{{\n\n"))
    assert (garbage.status_code, garbage.json()["error"]["code"]) == (502, "upstream_malformed")


async def test_an_answer_that_is_no_stream_is_a_502(fragile: Server) -> None:
    answer = await ask(fragile, whole(reply(b'{"object": "chat.completion"}')))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_malformed")


def slow_start(seconds: float) -> Script:
    async def script(_: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        writer.write(STREAM_HEAD + chunk(token("a")) + chunk(DONE) + LAST_CHUNK)

    return script


async def test_headers_go_out_with_a_comment_when_the_first_event_is_late(fragile: Server) -> None:
    answer = await ask(fragile, slow_start(0.5))
    assert answer.status_code == 200
    assert answer.content == b": ping\n\n" + token("a") + DONE


async def test_a_first_event_that_never_comes_is_an_error_event_once_the_headers_are_out(fragile: Server) -> None:
    answer = await ask(fragile, slow_start(3))
    assert answer.status_code == 200
    assert error_of(answer) == "first_token_timeout"


async def test_a_late_refusal_is_an_error_event(fragile: Server) -> None:
    async def late(_: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        writer.write(reply(b'{"error": {"message":\n"no", "type": "t", "code": "c"}}', status=429))

    answer = await ask(fragile, late)
    assert answer.status_code == 200
    assert error_of(answer) == "c"


async def test_pings_break_silence_and_only_silence(fragile: Server) -> None:
    async def with_a_gap(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for place in range(20):
            writer.write(chunk(token(str(place))))
            await asyncio.sleep(0.04)  # 0.8 s of steady data: no ping
        await asyncio.sleep(0.45)  # more than ping_interval, less than idle_timeout
        writer.write(chunk(DONE) + LAST_CHUNK)

    answer = await ask(fragile, with_a_gap)
    assert answer.content.count(b": ping") == 1
    assert answer.content.endswith(token("19") + b": ping\n\n" + DONE)


async def test_a_responses_stream_ends_in_done_after_its_last_event(fragile: Server) -> None:
    last = b'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n'
    answer = await ask(fragile, streamed(b'data: {"type":"response.created"}\n\n', last), "responses")
    assert answer.content.endswith(last + DONE)
    broken_off_after_the_end = await ask(fragile, streamed(last, last=b""), "responses")
    assert broken_off_after_the_end.content == last + DONE
    cut = await ask(fragile, streamed(b'data: {"type":"response.created"}\n\n'), "responses")
    assert error_of(cut) == "upstream_cut"


async def test_the_official_sdk_sees_every_fault_as_an_exception(fragile: Server) -> None:
    async with (
        upstream(streamed(token("a"))),
        AsyncOpenAI(base_url=fragile.base_url, api_key="x", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        assert (await anext(stream)).choices[0].delta.content == "a"
        with pytest.raises(APIError, match="ended early"):
            await anext(stream)


async def test_a_transcription_that_ignores_stream_is_passed_on(fragile: Server) -> None:
    async with upstream(whole(reply(b'{"text": "hello"}'))), httpx.AsyncClient() as http:
        form: dict[str, Any] = {"model": (None, "whisper-1"), "stream": (None, "true"), "file": ("a", b"x")}
        answer = await http.post(f"{fragile.base_url}/audio/transcriptions", files=form)
    assert answer.json() == {"text": "hello"}


async def test_audio_that_breaks_off_breaks_the_clients_connection(fragile: Server) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: audio/wav\r\ntransfer-encoding: chunked\r\n\r\n"
    async with upstream(whole(head + chunk(b"RIFF"))), httpx.AsyncClient() as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post(f"{fragile.base_url}/audio/speech", json={"model": "m", "input": "x", "voice": "v"})
