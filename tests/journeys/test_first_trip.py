"""The shortest whole trips."""

import httpx
from openai import AsyncOpenAI, OpenAI

from tests.support import Server


def test_a_sync_client_chats(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="sim", messages=[{"role": "user", "content": "hello"}])
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


async def test_an_async_client_streams_token_by_token(async_client: AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(
        model="sim", messages=[{"role": "user", "content": "hello"}], stream=True
    )
    pieces = [chunk.choices[0].delta.content async for chunk in stream if chunk.choices[0].delta.content]
    assert len(pieces) == 5


def test_the_reply_is_the_upstreams_own_bytes(gateway: Server, simulator: Server) -> None:
    body = b'{"model": "sim",  "messages": [], "unknown_field": {"kept": 1.50}}'
    through = httpx.post(f"{gateway.base_url}/chat/completions", content=body)
    direct = httpx.post(f"{simulator.base_url}/chat/completions", content=body)
    assert through.content == direct.content
    assert through.headers["x-sluicegate-upstream"] == "openai"
    assert through.headers["x-sluicegate-attempts"] == "1"
