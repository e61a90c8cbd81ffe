"""Slices in hand without a database: for what decides and carries, but does not store."""

import json
from typing import Any

from app.services.batches.holding import HeldSlice, unpacked
from app.store.commits import Stored
from app.store.ledger import Claim
from app.wire.bits import Bits

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"


def batch(number: int = 1, **fields: Any) -> dict[str, Any]:
    """A batch's row, as far as a worker looks at it."""
    usual = {
        "number": number,
        "id": f"batch_{number}",
        "owner": "anna",
        "models": None,
        "endpoint": CHAT,
        "priority": 0,
        "on_doubt": "retry",
        "dedupe": False,
        "pack_embeddings": True,
    }
    return {**usual, **fields}


def lines(count: int, endpoint: str = CHAT, **body: Any) -> bytes:
    """Lines of an input file, with the ids `r0`, `r1`…"""
    content = {"messages": [{"role": "user", "content": "hi"}]} if endpoint == CHAT else {"input": "hi"}
    found = [
        {"custom_id": f"r{i}", "method": "POST", "url": endpoint, "body": {"model": "m", **content, **body}}
        for i in range(count)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in found)


def taken(
    row: dict[str, Any],
    text: bytes,
    *,
    number: int = 0,
    done: tuple[int, ...] = (),
    doubtful: tuple[int, ...] = (),
    pack_inputs: int = 128,
) -> tuple[HeldSlice, list[Stored]]:
    """A slice as it comes to a worker's desk."""
    count = text.count(b"\n")
    bits = Bits(count)
    for index in done:
        bits.set(index)
    claim = Claim(row, number, 0, len(text), count, 1, bits.bytes(), doubtful)
    return unpacked(claim, text, pack_inputs)
