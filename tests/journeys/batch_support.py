"""Batches as tests make them, wait for them and read them."""

import json
from collections.abc import Iterable
from typing import Any

import httpx
from openai import AsyncOpenAI
from openai.types import Batch

from tests.support import eventually

CHAT: Any = "/v1/chat/completions"  # for the SDK a literal, for HTTP a path
EMBEDDINGS: Any = "/v1/embeddings"
ENDED = {"completed", "failed", "expired", "cancelled"}
WALK = ["validating", "in_progress", "finalizing", "completed"]
KEYS = """
[keys.one]
key = "sk-one"
[keys.other]
key = "sk-other"
[keys.limited]
key = "sk-limited"
models = ["sim", "sim-b"]
"""
Line = dict[str, Any]


def line(custom_id: str, body: dict[str, Any], url: str = CHAT) -> Line:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def chat(custom_id: str, model: str = "sim", **fields: Any) -> Line:
    return line(custom_id, {"model": model, "messages": [{"role": "user", "content": custom_id}], **fields})


def chats(count: int, model: str = "sim", prefix: str = "line") -> list[Line]:
    return [chat(f"{prefix}-{index}", model) for index in range(count)]


def embedding(custom_id: str, given: Any, **fields: Any) -> Line:
    return line(custom_id, {"model": "sim", "input": given, "dimensions": 8, **fields}, EMBEDDINGS)


def jsonl(lines: Iterable[Line]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


async def upload(client: AsyncOpenAI, content: bytes | Iterable[Line], purpose: Any = "batch") -> str:
    """Returns: The file's id."""
    whole = content if isinstance(content, bytes) else jsonl(content)
    return (await client.files.create(file=("lines.jsonl", whole), purpose=purpose)).id


async def begun(
    client: AsyncOpenAI, content: bytes | Iterable[Line], endpoint: Any = CHAT, window: Any = "24h", **more: Any
) -> Batch:
    """Args: more: Fields of the request; those that OpenAI does not know, too."""
    known = {name: more.pop(name) for name in ("metadata", "output_expires_after", "extra_headers") if name in more}
    file_id = await upload(client, content)
    return await client.batches.create(
        input_file_id=file_id, endpoint=endpoint, completion_window=window, extra_body=more or None, **known
    )


async def ended(client: AsyncOpenAI, batch: Batch, seconds: float = 30) -> Batch:
    """Returns: The batch as it is at its end."""
    return (await walked(client, batch, seconds))[0]


async def walked(client: AsyncOpenAI, batch: Batch, seconds: float = 30) -> tuple[Batch, list[str]]:
    """Returns: The batch as it is at its end, and the statuses that were seen on the way."""
    seen = [batch.status]
    latest = batch

    async def is_over() -> bool:
        nonlocal latest
        latest = await client.batches.retrieve(batch.id)
        if latest.status != seen[-1]:
            seen.append(latest.status)
        return latest.status in ENDED

    try:
        await eventually(is_over, seconds)
    except AssertionError:
        raise AssertionError(f"still {latest.to_dict()}") from None
    return latest, [str(status) for status in seen]


async def reaches(client: AsyncOpenAI, batch: Batch, status: str, done: int = 0) -> Batch:
    """Waits until it has this status, and so many results."""
    latest = batch

    async def is_there() -> bool:
        nonlocal latest
        latest = await client.batches.retrieve(batch.id)
        counts = latest.request_counts
        assert counts is not None
        return latest.status == status and counts.completed + counts.failed >= done

    try:
        await eventually(is_there, 20)
    except AssertionError:
        raise AssertionError(f"still {latest.to_dict()}") from None
    return latest


async def file_lines(client: AsyncOpenAI, file_id: str | None) -> list[Line]:
    """Returns: The lines of an output file; none: no lines."""
    if file_id is None:
        return []
    text = (await client.files.content(file_id)).text
    assert text.endswith("\n")
    return [json.loads(one) for one in text.splitlines()]


async def by_custom_id(client: AsyncOpenAI, batch: Batch) -> tuple[dict[str, Line], dict[str, Line]]:
    """Returns: Output lines and error lines by their custom id, which are unique over both."""
    good, bad = await file_lines(client, batch.output_file_id), await file_lines(client, batch.error_file_id)
    both = [one["custom_id"] for one in good + bad]
    assert len(set(both)) == len(both)
    assert len({one["id"] for one in good + bad}) == len(both)
    return {one["custom_id"]: one for one in good}, {one["custom_id"]: one for one in bad}


def counts(batch: Batch) -> tuple[int, int, int]:
    """Returns: Lines in all, completed, failed."""
    found = batch.request_counts
    assert found is not None
    return found.total, found.completed, found.failed


def progress(batch: Batch) -> dict[str, Any]:
    """Returns: What OpenAI's object does not have."""
    found: dict[str, Any] = batch.to_dict()["progress"]  # type: ignore[assignment]
    return found


async def results(http: httpx.AsyncClient, batch_id: str, **query: Any) -> list[Line]:
    """Returns: The result lines, when the reply is over."""
    found = await http.get(f"/v1/batches/{batch_id}/results", params=query)
    assert found.status_code == 200, found.text
    return [json.loads(one) for one in found.text.splitlines()]
