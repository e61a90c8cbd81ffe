"""Embedding inputs longer than an upstream takes: cut into parts, and the replies joined again in order."""

import msgspec
from msgspec import Raw

from app.wire.usage import Usage, add

_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_ITEMS = msgspec.json.Decoder(list[Raw])


class _Part(msgspec.Struct):
    data: list[dict[str, Raw]]
    usage: Usage | None = None


_PART = msgspec.json.Decoder(_Part)


def split(body: bytes, most: int) -> list[bytes]:
    """Args:
        body: A valid embeddings request.
        most: Inputs that one call may hold.
    Returns:
        Request bodies, each with at most `most` inputs; `[body]` itself where nothing is to be split.
    """
    if len(body) <= 2 * most:  # an input and its comma are two bytes at least
        return [body]
    fields = _FIELDS.decode(body)
    given = bytes(fields.get("input", b""))
    if not given.startswith(b"["):
        return [body]
    inputs = _ITEMS.decode(given)
    is_one_in_tokens = bytes(inputs[0])[:1] not in {b'"', b"["} if inputs else False
    if len(inputs) <= most or is_one_in_tokens:
        return [body]
    parts = (inputs[start : start + most] for start in range(0, len(inputs), most))
    return [msgspec.json.encode({**fields, "input": part}) for part in parts]


def join(replies: list[bytes], requests: list[bytes]) -> bytes:
    """Args: replies: The parts' reply bodies, in the order of `requests`, which `split` made.

    Returns: One reply: all embeddings with their indexes over the whole, the usage added up.
    Raises: ValueError: A part is not the embeddings reply to its request.
    """
    data: list[dict[str, Raw]] = []
    usage: Usage = {}
    for reply, request in zip(replies, requests, strict=True):
        part = _PART.decode(reply)
        offset = len(data)
        part.data.sort(key=lambda entry: int(bytes(entry["index"])))
        wanted = len(_ITEMS.decode(_FIELDS.decode(request)["input"]))
        if [int(bytes(entry["index"])) for entry in part.data] != list(range(wanted)):
            msg = f"{len(part.data)} embeddings for {wanted} inputs"
            raise ValueError(msg)
        for place, entry in enumerate(part.data, offset):
            entry["index"] = Raw(str(place).encode())
        data += part.data
        add(usage, part.usage or {})
    return msgspec.json.encode({**_FIELDS.decode(replies[0]), "data": data, "usage": usage})
