"""Events with numbers: each has one, whoever is cut off anywhere goes on with the next, and an end tells how it was."""

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import InvalidRequestError
from app.wire.sse import event, payloads
from app.wire.streams import (
    BEYOND,
    RETRY,
    beyond,
    ending,
    number_of,
    numbered,
    read_create,
    read_positions,
    tagged,
    without_error,
    written,
)
from tests.wire.cuts import PLACES
from tests.wire.event_source import Event, parsed

CHAT = "/v1/chat/completions"
ERROR = {"error": {"message": "no", "type": "t", "param": None, "code": "c"}}

# --- what comes from upstream ---

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), max_size=6)
_OBJECT = st.dictionaries(_TEXT, st.integers() | _TEXT, max_size=2)


@st.composite
def sent_events(draw: st.DrawFn) -> tuple[bytes, str | None, str | None]:
    """Returns: An event as it comes, its name, and its data; None: one that carries nothing."""
    kind = draw(st.sampled_from(["plain", "plain", "named", "indented", "bare", "comment", "done"]))
    if kind == "comment":
        return f": {draw(_TEXT)}\n\n".encode(), None, None
    if kind == "done":
        return b"data: [DONE]\n\n", None, None
    data = json.dumps(draw(_OBJECT), ensure_ascii=draw(st.booleans()), indent=1 if kind == "indented" else None)
    name = draw(st.sampled_from(["result", "chunk"])) if kind == "named" else None
    space = "" if kind == "bare" else " "
    lines = [f"event:{space}{name}"] if name else []
    lines += [f"data:{space}{line}" for line in data.split("\n")]
    if draw(st.booleans()):
        lines.insert(draw(st.integers(0, len(lines))), f": {draw(_TEXT)}")
    return "\n".join([*lines, "", ""]).encode(), name, data


def grouped(events: list[bytes], places: list[int]) -> list[bytes]:
    """Returns: The events in blocks, as the network brings them."""
    ends = [0, *sorted(place * len(events) // 1000 for place in places), len(events)]
    return [b"".join(events[start:end]) for start, end in pairwise(ends) if start < end]


@given(sent=st.lists(sent_events(), max_size=12), places=PLACES, names=st.booleans())
@example(
    sent=[(b"data: {}\n\n", None, "{}"), (b'data: {\ndata: "a": 1}\n\n', None, '{\n"a": 1}')], places=[500], names=True
)
def test_events_are_numbered_without_a_gap_and_carry_what_they_carried_however_they_come(
    sent: list[tuple[bytes, str | None, str | None]], places: list[int], *, names: bool
) -> None:
    last, out, ends = 0, b"", []
    for block in grouped([text for text, *_ in sent], places):
        text, last = numbered(block, last, names=names)
        out += text
        ends.append(last)
    carried = [(name, data) for _, name, data in sent if data is not None]
    expected = [
        Event(str(number), (name if names else None) or "message", data)
        for number, (name, data) in enumerate(carried, 1)
    ]
    assert parsed(out) == expected
    assert last == len(carried)
    assert ends == sorted(ends)
    assert b"\n:" not in out
    assert payloads(out) == [data.encode() for _, data in carried]


def test_what_is_left_out_has_no_number() -> None:
    nothing = b": ping\n\n", b"data: [DONE]\n\n", b"data:[DONE] \n\n", b""
    for block in nothing:
        assert numbered(block, 7, names=True) == (b"", 7)


@given(st.integers(0, 10**9), st.lists(_OBJECT, min_size=1, max_size=6), st.data())
def test_whoever_has_some_of_a_piece_is_given_the_rest_of_it(
    before: int, objects: list[dict[str, Any]], data: st.DataObject
) -> None:
    whole, last = numbered(b"".join(event(json.dumps(one).encode()) for one in objects), before, names=False)
    assert number_of(whole) == before + 1
    seen = data.draw(st.integers(max(before - 1, 0), last + 2))
    assert parsed(beyond(whole, seen)) == [one for one in parsed(whole) if int(one.id) > seen]


# --- many streams over one connection ---


@st.composite
def streams(draw: st.DrawFn) -> list[list[bytes]]:
    """Returns: The numbered events of some streams, the one that ends each included."""
    found = []
    for place in range(draw(st.integers(1, 4))):
        names = draw(st.booleans())
        objects = [
            event(json.dumps({"s": place, "n": n}).encode(), "chunk" if names else None)
            for n in range(draw(st.integers(0, 6)))
        ]
        text, last = numbered(b"".join(objects), 0, names=names)
        error = draw(st.sampled_from([None, json.dumps(ERROR).encode()]))
        whole = text + ending(last + 1, error)
        found.append([one + b"\n\n" for one in whole[:-2].split(b"\n\n")])
    return found


def merged(draw: st.DrawFn, rest: list[list[bytes]], positions: list[int]) -> bytes:
    """Returns: What is sent of them from these positions on: pieces of any size, in any order."""
    left = [events[seen:] for events, seen in zip(rest, positions, strict=True)]
    out = RETRY
    now = list(positions)
    while any(left):
        place = draw(st.sampled_from([place for place, events in enumerate(left) if events]))
        size = draw(st.integers(1, 3))
        piece, left[place] = b"".join(left[place][:size]), left[place][size:]
        out += tagged(piece, f"stream_{place}", now, place)
    return out


@given(streams(), st.data())
def test_many_streams_over_one_connection_cut_anywhere_and_gone_on_with_give_each_event_once(
    given_streams: list[list[bytes]], data: st.DataObject
) -> None:
    positions, seen = [0] * len(given_streams), list[Event]()
    for is_cut in [*data.draw(st.lists(st.just(value=True), max_size=3)), False]:
        reply = data.draw(st.composite(merged)(given_streams, positions))
        got = parsed(reply[: data.draw(st.integers(0, len(reply)))] if is_cut else reply)
        seen += got
        if got:
            positions = read_positions(got[-1].id, len(given_streams), "Last-Event-ID")
    told = [json.loads(one.data) for one in seen]
    for place, events in enumerate(given_streams):
        mine = [one for one in told if one["stream"] == f"stream_{place}"]
        assert [one["seq"] for one in mine] == list(range(1, len(events) + 1))
        expected = parsed(b"".join(events))
        names = [one.name for one, what in zip(seen, told, strict=True) if what["stream"] == f"stream_{place}"]
        assert names == [one.name for one in expected]
        assert [one["chunk"] for one in mine] == [
            None if one.data == "[DONE]" else json.loads(one.data) for one in expected
        ]


def test_a_payload_of_several_lines_stays_one_chunk() -> None:
    text, _ = numbered(b'data: {"a":\ndata:  1}\n\n', 4, names=False)
    (only,) = parsed(tagged(text, "s", [4], 0))
    assert json.loads(only.data) == {"stream": "s", "seq": 5, "chunk": {"a": 1}}


# --- positions ---


@given(st.lists(st.integers(0, BEYOND + 10), min_size=1, max_size=64))
def test_positions_are_read_as_they_are_written(positions: list[int]) -> None:
    assert read_positions(written(positions).decode(), len(positions), "after") == positions


@pytest.mark.parametrize(
    "text", ["x", "-1", "1.", "1.2", "1,2", " 1", "1e3", "\uff11", "²", "+1", "1" * 16, ".", "1_0"]
)
def test_what_is_no_position_is_refused_by_its_fields_name(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_positions(text, 1, "Last-Event-ID")
    assert caught.value.param == "Last-Event-ID"


def test_positions_of_too_few_or_too_many_streams_are_refused() -> None:
    for text in ("1", "1.2.3", "1.2.", "1..2"):
        with pytest.raises(InvalidRequestError, match="2 numbers"):
            read_positions(text, 2, "after")


# --- how a stream ends ---


def test_an_end_is_an_event_of_its_own() -> None:
    assert parsed(ending(4, None)) == [Event("4", "done", "[DONE]")]
    assert parsed(ending(4, b'{"error":{}}')) == [Event("4", "error", '{"error":{}}')]


def test_our_own_error_is_taken_off_the_events_before_it() -> None:
    envelope = json.dumps(ERROR, separators=(",", ":")).encode()
    before = b'data: {"a":1}\n\ndata: {"b":1}\n\n'
    assert without_error(before + event(envelope)) == (before, envelope)
    assert without_error(event(envelope)) == (b"", envelope)


def test_an_upstreams_error_keeps_its_words_in_one_line() -> None:
    before, error = without_error(b'data: {"a":1}\n\nevent: error\ndata: {"error":\ndata: {"message": "no"}}\n\n')
    assert before == b'data: {"a":1}\n\n'
    assert json.loads(error) == {"error": {"message": "no"}}
    assert b"\n" not in error


def test_the_error_of_a_responses_stream_is_put_into_an_envelope() -> None:
    own = b'{"type":"error","code":"overloaded","message":"too busy","param":null,"sequence_number":3}'
    before, error = without_error(b"event: error\ndata: " + own + b"\n\n")
    assert before == b""
    assert json.loads(error) == {"error": json.loads(own)}


@pytest.mark.parametrize(
    "payload",
    [
        b'{"error":{"message":"\xff\xfe"}}',
        b'{"type":"error","message":"half an emoji: \\ud83d"}',
        b'{"error":{"message":"half an emoji: \\ud83d"}}',
        b'{"error":{"message":"' + "ü€😀".encode() + b'\\u0000"}}',
        b'{"error":{"cost":1e999}}',
        b'{"error":"a text"}',
        b"7",
    ],
)
def test_whatever_an_upstream_calls_an_error_is_an_envelope_that_every_reader_takes(payload: bytes) -> None:
    _, error = without_error(b"data: " + payload + b"\n\n")
    assert set(msgspec.json.decode(error.decode())) == {"error"}  # which knows no Infinity


# --- what is asked for ---


def asked(**fields: object) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize("url", [CHAT, CHAT.removeprefix("/v1"), "/v1/completions", "/v1/responses"])
def test_a_call_asks_for_a_stream_whatever_its_maker_asked_for(url: str) -> None:
    for body in ({"model": "m"}, {"model": "m", "stream": False}, {"stream": None, "model": "m"}):
        made = read_create(asked(url=url, body=body))
        assert json.loads(made.body) == {"model": "m", "stream": True}
        assert made.endpoint is not None
        assert made.path == made.endpoint.path == url.removeprefix("/v1")


def test_every_other_field_keeps_its_bytes() -> None:
    made = read_create(b'{"url":"/v1/chat/completions","body":{"model":"m","n":1.50e0, "x":{"\\u0061":[ 1 ]}}}')
    assert made.body == b'{"model":"m","n":1.50e0,"x":{"\\u0061":[ 1 ]},"stream":true}'


def test_a_fan_out_is_left_as_it_is() -> None:
    made = read_create(asked(url="/v1/fanout", body={"requests": []}))
    assert (made.endpoint, made.path, made.body) == (None, "/fanout", b'{"requests":[]}')


@pytest.mark.parametrize(
    ("data", "param"),
    [
        (b"", None),
        (b"[]", None),
        (b'{"url":"/v1/chat/completions","body":{"model":"\xff"}}', None),
        (asked(body={"model": "m"}), "url"),
        (asked(url=7, body={}), "url"),
        (asked(url="/v1/embeddings", body={"model": "m"}), "url"),
        (asked(url="/v1/v1/chat/completions", body={"model": "m"}), "url"),
        (asked(url="http://other/v1/chat/completions", body={"model": "m"}), "url"),
        (asked(url=CHAT), "body"),
        (asked(url=CHAT, body=None), "body"),
        (asked(url=CHAT, body=[]), "body"),
        (asked(url=CHAT, body={}), "body.model"),
        (asked(url=CHAT, body={"model": 7}), "body.model"),
        (asked(url=CHAT, body={"model": ""}), "body.model"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, param: str | None) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_create(data)
    assert caught.value.param == param


def test_a_field_that_nobody_knows_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="streem"):
        read_create(asked(url=CHAT, body={"model": "m"}, streem=True))
