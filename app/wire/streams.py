"""The formats of resumable streams: the request, events with numbers, and positions to go on from."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Raw

from app.errors import InvalidRequestError, UpstreamMalformedError
from app.wire.endpoints import BY_PATH, CHAT, COMPLETIONS, RESPONSES, Endpoint
from app.wire.jsonl import one_line
from app.wire.parsing import decode, loose, sound, within
from app.wire.request import peek
from app.wire.sse import data_of, is_done

FANOUT = "/fanout"
RETRY = b"retry: 1000\n\n"  # milliseconds until EventSource connects again
BEYOND = 1_000_000_000  # more events than a server can have sent that its log did not have yet when it died
MOST_MERGED = 64
_PATHS = {endpoint.path for endpoint in (CHAT, COMPLETIONS, RESPONSES)}
_LONGEST_NUMBER = 15


class _Create(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    body: dict[str, Raw]


class Create(NamedTuple):
    """What a stream is to be made of. Attributes: endpoint: None: a fan-out, whose document is `body`."""

    path: str
    endpoint: Endpoint | None
    body: bytes


_CREATE = msgspec.json.Decoder(_Create)


def read_create(data: bytes) -> Create:
    """Returns: The call; its body asks for a stream, whether the client's did or not.

    Raises: InvalidRequestError: Wrong, or nothing that streams.
    """
    asked = decode(_CREATE, data)
    path = asked.url.removeprefix("/v1")
    if path == FANOUT:
        return Create(path, None, msgspec.json.encode(asked.body))
    if path not in _PATHS:
        allowed = ", ".join(f"/v1{known}" for known in sorted({*_PATHS, FANOUT}))
        raise InvalidRequestError(f"{asked.url!r} is not one of {allowed}", param="url")
    body = msgspec.json.encode({**asked.body, "stream": Raw(b"true")})
    with within("body"):
        peek(BY_PATH[path], body)
    return Create(path, BY_PATH[path], body)


def numbered(events: bytes, last: int, *, names: bool) -> tuple[bytes, int]:
    """Gives every event its number, the `id` to go on from; comments and `[DONE]` are left out.

    Args:
        events: Whole ones, framed.
        last: The number before.
        names: Whether they keep theirs. EventSource hands a named event to its own listeners only.
    Returns: The events, framed; the last one's number.
    """
    if events.startswith(b"data: {") and events.find(b"\n") == len(events) - 2:  # one event: nearly always
        return b"id: %d\n%b" % (last + 1, events), last + 1
    found = []
    for event in events[:-2].split(b"\n\n"):
        lines = event.split(b"\n")
        data = data_of(lines)
        if data is None or is_done(data):
            continue
        last += 1
        kept = (line for line in lines if line.startswith(b"data:") or (names and line.startswith(b"event:")))
        found.append(b"id: %d\n%b\n\n" % (last, b"\n".join(kept)))
    return b"".join(found), last


def without_error(events: bytes) -> tuple[bytes, bytes]:
    """Takes the error event that ends a stream off its last events. Returns: The others; the error's envelope."""
    before, _, last = events[:-2].rpartition(b"\n\n")
    try:
        told = loose((data_of(last.split(b"\n")) or b"").decode(errors="replace"))
        is_envelope = isinstance(told, dict) and "error" in told  # a responses stream's error is the event itself
        envelope = sound(told if is_envelope else {"error": told})
    except (ValueError, RecursionError):
        envelope = UpstreamMalformedError("the upstream ended its stream with an error that cannot be read").envelope()
    return (before + b"\n\n" if before else b""), envelope


def ending(number: int, error: bytes | None) -> bytes:
    """Returns: A stream's last event: `done`, or `error` with the envelope."""
    if error is None:
        return b"id: %d\nevent: done\ndata: [DONE]\n\n" % number
    return b"id: %d\nevent: error\ndata: %b\n\n" % (number, error)


def number_of(event: bytes) -> int:
    """Args: event: Numbered ones; the first counts."""
    return int(event[4 : event.index(b"\n")])


def beyond(events: bytes, seen: int) -> bytes:
    """Returns: Of numbered events those above the number `seen`."""
    start = 0
    for _ in range(seen - number_of(events) + 1):
        start = events.index(b"\n\n", start) + 2
        if start == len(events):
            break
    return events[start:]


def tagged(events: bytes, stream: str, positions: list[int], place: int) -> bytes:
    """Events of one of many streams that share a connection.

    Args:
        events: Numbered ones of this stream.
        positions: The last number of each stream, brought up to date here: an event's `id` tells them all.
        place: This stream's in `positions`.
    """
    found = []
    for event in events[:-2].split(b"\n\n"):
        head, *lines = event.split(b"\n")
        positions[place] = number = int(head[4:])
        name = b"".join(line + b"\n" for line in lines if line.startswith(b"event:"))
        data = data_of(lines) or b""
        chunk = b"null" if is_done(data) else one_line(data)
        told = b'{"stream":"%b","seq":%d,"chunk":%b}' % (stream.encode(), number, chunk)
        found.append(b"id: %b\n%bdata: %b\n\n" % (written(positions), name, told))
    return b"".join(found)


def written(positions: Sequence[int]) -> bytes:
    """Returns: Positions as one `id`: `12.7.0`."""
    return ".".join(map(str, positions)).encode()


def read_positions(text: str, count: int, where: str) -> list[int]:
    """Args: where: The parameter's name, for errors.

    Raises: InvalidRequestError: Not `count` numbers.
    """
    parts = text.split(".")
    if len(parts) != count or not all(_is_number(part) for part in parts):
        shape = "an event's id" if count == 1 else f"{count} numbers with dots between them"
        raise InvalidRequestError(f"must be {shape}", param=where)
    return [int(part) for part in parts]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER
