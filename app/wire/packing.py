"""Many embedding lines of a batch in one upstream call, and its reply taken apart again: one for each line.

Lines go together when they differ in nothing but their input, and when all inputs are texts or all are tokens.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from app.wire.digest import digest_of

_Text = Annotated[str, Meta(min_length=1)]  # the upstream refuses an empty one, and with it the whole call
_Tokens = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)]
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_ITEMS = msgspec.json.Decoder(list[Raw])
_TEXT = msgspec.json.Decoder(_Text)
_TEXTS = msgspec.json.Decoder(Annotated[list[_Text], Meta(min_length=1)])
_TOKENS = msgspec.json.Decoder(_Tokens)
_MANY_TOKENS = msgspec.json.Decoder(Annotated[list[_Tokens], Meta(min_length=1)])
_IS_LIST = re.compile(rb'\[\s*(["\[]?)')
_ENCODINGS = frozenset({b'"float"', b'"base64"', b"null"})


@dataclass(frozen=True, slots=True)
class Packed:
    """One call for several lines.

    Attributes:
        body: Its request body.
        counts: How many inputs each line has.
        places: For each input of each line, which input of the call it is.
        weights: Bytes of each line's inputs: by them the usage is shared out.
    """

    body: bytes
    counts: tuple[int, ...]
    places: tuple[int, ...]
    weights: tuple[int, ...]


def key_of(body: bytes) -> bytes | None:
    """Returns: A digest that lines have in common which may share a call; None: this one needs its own."""
    try:
        fields = _FIELDS.decode(body)
        if not body.isascii():  # msgspec does not look into the strings that it skips
            body.decode()
        kind = _kind(bytes(fields.pop("input")))
    except (KeyError, ValueError, RecursionError):
        return None
    if bytes(fields.get("encoding_format", b"null")) not in _ENCODINGS:
        return None
    parts = [part for name in sorted(fields) for part in (name.encode(), bytes(fields[name]))]
    return digest_of(kind, *parts)


def _kind(given: bytes) -> bytes:
    """Raises: ValueError: An input that the upstream would refuse, or an unknown one."""
    found = _IS_LIST.match(given)
    if found is None:
        _TEXT.decode(given)
        return b"text"
    first = found[1]
    decoder: msgspec.json.Decoder[Any] = {b'"': _TEXTS, b"[": _MANY_TOKENS}.get(first, _TOKENS)
    decoder.decode(given)
    return b"text" if first == b'"' else b"tokens"


def inputs_of(body: bytes) -> list[Raw]:
    """Args: body: One that has a key.

    Returns: What each of its embeddings is asked for; a text, or one list of tokens, is one input.
    """
    given = _FIELDS.decode(body)["input"]
    found = _IS_LIST.match(bytes(given))
    return _ITEMS.decode(given) if found and found[1] else [given]


def pack(bodies: Sequence[bytes], *, merge_equal: bool = False) -> Packed:
    """Args:
        bodies: At least one; all with the same key.
        merge_equal: Equal inputs are sent once.
    Returns:
        One request that holds all their inputs, in order.
    """
    lines = [[bytes(one) for one in inputs_of(body)] for body in bodies]
    every = [one for line in lines for one in line]
    sent = list(dict.fromkeys(every)) if merge_equal else every
    place_of = {one: place for place, one in enumerate(sent)}
    places = tuple(place_of[one] for one in every) if merge_equal else tuple(range(len(every)))
    fields = {**_FIELDS.decode(bodies[0]), "input": [Raw(one) for one in sent]}
    weights = tuple(sum(map(len, line)) for line in lines)
    return Packed(msgspec.json.encode(fields), tuple(map(len, lines)), places, weights)


def unpack(reply: bytes, packed: Packed) -> list[bytes]:
    """Args: reply: The call's reply body.

    Returns: A reply body for each line: its embeddings counted from 0, its share of the usage, all else as it came.
    Raises: ValueError: The reply does not answer each input of the call once.
    """
    try:
        fields = _FIELDS.decode(reply)
        entries = _in_order(_FIELD_LISTS.decode(fields["data"]), max(packed.places) + 1)
        shares = _shares_of(fields.get("usage"), packed.weights)
    except (KeyError, RecursionError) as error:
        msg = f"not an embeddings reply: {error}"
        raise ValueError(msg) from None
    ends = accumulate(packed.counts, initial=0)
    return [
        msgspec.json.encode({**fields, **usage, "data": list(_renumbered(entries, packed.places[start:stop]))})
        for (start, stop), usage in zip(pairwise(ends), shares, strict=True)
    ]


_FIELD_LISTS = msgspec.json.Decoder(list[dict[str, Raw]])


def _in_order(entries: list[dict[str, Raw]], wanted: int) -> list[dict[str, Raw]]:
    by_index = {int(bytes(entry["index"])): entry for entry in entries if bytes(entry["embedding"]) != b"null"}
    if len(entries) != wanted or by_index.keys() != set(range(wanted)):
        msg = f"{len(entries)} embeddings for {wanted} inputs"
        raise ValueError(msg)
    return [by_index[place] for place in range(wanted)]


def _renumbered(entries: list[dict[str, Raw]], places: Sequence[int]) -> Iterator[dict[str, Raw]]:
    for index, place in enumerate(places):
        yield {**entries[place], "index": Raw(b"%d" % index)}


def _shares_of(usage: Raw | None, weights: Sequence[int]) -> list[dict[str, Any]]:
    if usage is None:
        return [{} for _ in weights]
    return [{"usage": share} for share in _share(msgspec.json.decode(usage), weights)]


def _share(value: Any, weights: Sequence[int]) -> list[Any]:
    """Every number of a usage, nested ones too, cut into parts; what is no number goes to all."""
    if isinstance(value, dict):
        parts = {name: _share(inner, weights) for name, inner in value.items()}
        return [{name: part[place] for name, part in parts.items()} for place in range(len(weights))]
    if isinstance(value, int) and not isinstance(value, bool):
        return _apportion(value, weights)
    if isinstance(value, float):
        return [value * weight / sum(weights) for weight in weights]
    return [value for _ in weights]


def _apportion(total: int, weights: Sequence[int]) -> list[int]:
    """The method of largest remainders (Hamilton's): whole parts that add up."""
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda place: -(total * weights[place] % whole))
    for place in by_remainder[: total - sum(parts)]:
        parts[place] += 1
    return parts
