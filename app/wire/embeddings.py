"""Embedding inputs longer than an upstream takes: cut into parts, and the replies joined again in order."""

import msgspec
from msgspec import Raw

from app.wire.usage import Usage, add

_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_ITEMS = msgspec.json.Decoder(list[Raw])


class _Part(msgspec.Struct):
    data: list[dict[str, Raw]]
    usage: Usage = {}


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
    if len(inputs) <= most or bytes(inputs[0])[:1] not in {
        b'"',
        b"[",
    }:  # numbers: one input, already in tokens
        return [body]
    parts = (inputs[start : start + most] for start in range(0, len(inputs), most))
    return [msgspec.json.encode({**fields, "input": part}) for part in parts]


def join(replies: list[bytes]) -> bytes:
    """Args: replies: The parts' reply bodies, in the order of `split`.

    Returns: One reply: all embeddings with their indexes over the whole, the usage added up.
    Raises: msgspec.MsgspecError: A part is not an embeddings reply.
    """
    data: list[dict[str, Raw]] = []
    usage: Usage = {}
    for reply in replies:
        part = _PART.decode(reply)
        offset = len(data)
        part.data.sort(key=lambda entry: int(bytes(entry["index"])))
        for place, entry in enumerate(part.data, offset):
            entry["index"] = Raw(str(place).encode())
        data += part.data
        add(usage, part.usage)
    return msgspec.json.encode({**_FIELDS.decode(replies[0]), "data": data, "usage": usage})
