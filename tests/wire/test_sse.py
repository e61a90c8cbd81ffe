"""The event reader: the same events however the bytes are cut, and no end that lies."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.wire.sse import DONE, EventReader, event, payloads
from tests.wire.cuts import PLACES, bytewise, pieces

TERMINALS = frozenset({"response.completed", "error"})


@dataclass
class Seen:
    """What a client sees of one stream; `events` are without their blank lines."""

    events: list[bytes]
    done: bool
    error: bytes | None
    flawed: bool


def read(parts: Iterable[bytes], terminals: frozenset[str] = frozenset()) -> Seen:
    """Reads a stream to its end."""
    reader = EventReader(terminals)
    out = b"".join([reader.feed(part) for part in parts]) + reader.close()
    assert not out or out.endswith(b"\n\n")
    events = [one for one in out.split(b"\n\n") if one]
    return Seen(events, reader.done, reader.error, reader.flaw is not None)


def one_line(text: str) -> str:
    return text.replace("\r", " ").replace("\n", " ")


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(one_line)
_OBJECT = st.dictionaries(_TEXT.map(lambda name: f"x{name}"), st.none() | st.integers() | _TEXT, max_size=3)
_VANISHING = st.sampled_from(["id: 7", "id:", "retry: 3000", "retry:5"])
_EXTRA = st.lists(_VANISHING | st.sampled_from(["event: chunk"]) | _TEXT.map(lambda text: f": {text}"), max_size=2)


@st.composite
def events(draw: st.DrawFn) -> tuple[list[str], dict[str, Any]]:
    """One event's lines, and the object that it carries."""
    carried = draw(_OBJECT)
    indent = draw(st.sampled_from([None, None, 1]))
    space = draw(st.sampled_from(["", " "]))
    text = json.dumps(carried, ensure_ascii=draw(st.booleans()), indent=indent)
    before, after = draw(_EXTRA), draw(_EXTRA)
    return [*before, *(f"data:{space}{line}" for line in text.split("\n")), *after], carried


@given(st.lists(events(), max_size=5), st.sampled_from(["\n", "\r\n", "\r"]), PLACES)
def test_every_event_arrives_once_and_in_order_whatever_its_form_and_however_it_is_cut(
    sent: list[tuple[list[str], dict[str, Any]]], line_end: str, places: list[int]
) -> None:
    blocks = [*(lines for lines, _ in sent), ["data: [DONE]"]]
    stream = "".join(line_end.join(lines) + 2 * line_end for lines in blocks).encode()
    seen = read(pieces(stream, places))
    assert seen.done
    assert not seen.flawed
    assert seen.events[-1] == DONE.strip()
    assert [json.loads(one) for one in payloads(b"\n\n".join(seen.events))] == [carried for _, carried in sent]


@given(st.lists(events(), max_size=5), st.sampled_from(["\n", "\r\n", "\r"]), PLACES)
def test_id_and_retry_lines_vanish_and_every_other_line_is_relayed_as_it_came(
    sent: list[tuple[list[str], dict[str, Any]]], line_end: str, places: list[int]
) -> None:
    stream = "".join(line_end.join(lines) + 2 * line_end for lines, _ in sent).encode()
    kept = ["\n".join(line for line in lines if not line.startswith(("id:", "retry:"))).encode() for lines, _ in sent]
    assert read(pieces(stream, places)).events == kept


_SHREDS = st.lists(
    st.sampled_from(
        [
            b"\n",
            b"\n\n",
            b"\r",
            b"\r\n",
            b"data: {}",
            b'data: {"e":"\xc3\xa9"}',
            b"data: {",
            b"data: }",
            b"data: [DONE]",
            b'data: {"error": {"code": 1}}',
            b'data: {"type": "response.completed"}',
            b": ping",
            b"id: 1",
            b"event: x",
            b"x",
            b"\xff",
        ]
    ),
    max_size=14,
).map(b"".join)


@given(_SHREDS, PLACES)
@example(b"data: {}\r\r", [])
@example(b"data: {}\n\ndata: x\n\n", [500])
def test_shreds_of_streams_are_read_the_same_whole_or_cut(stream: bytes, places: list[int]) -> None:
    whole = read([stream], TERMINALS)
    assert read(pieces(stream, places), TERMINALS) == whole
    assert read(bytewise(stream), TERMINALS) == whole


@given(_SHREDS)
def test_whatever_is_relayed_of_a_stream_is_json_objects_only(stream: bytes) -> None:
    for payload in payloads(b"\n\n".join(read([stream]).events)):
        assert isinstance(json.loads(payload), dict)


@given(_SHREDS, PLACES)
def test_a_stream_ends_in_exactly_one_way(stream: bytes, places: list[int]) -> None:
    seen = read(pieces(stream, places), TERMINALS)
    assert [seen.done, seen.error is not None, seen.flawed].count(True) == 1
    last = seen.events[-1] if seen.events else b""  # comments may stand around the end marker, in one block
    assert (DONE.strip() in last.split(b"\n")) == seen.done


def test_done_ends_the_stream_and_what_follows_it_is_dropped() -> None:
    reader = EventReader()
    assert reader.feed(b"data: {}\n\ndata: [DONE]\n\ndata: {}\n\n") == b"data: {}\n\ndata: [DONE]\n\n"
    assert reader.done
    assert reader.feed(b"data: garbage\n\n") == b""
    assert reader.close() == b""
    assert reader.flaw is None


def test_an_error_event_ends_the_stream_and_is_relayed_itself() -> None:
    reader = EventReader()
    out = reader.feed(b'data: {}\n\ndata: {"error": {"message": "boom"}}\n\ndata: [DONE]\n\n')
    assert out == b'data: {}\n\ndata: {"error": {"message": "boom"}}\n\n'
    assert reader.error == b'{"message": "boom"}'
    assert reader.ended
    assert not reader.done


def test_an_error_that_is_null_is_no_error() -> None:
    seen = read([b'data: {"error": null, "id": "x"}\n\ndata: [DONE]\n\n'])
    assert seen.done
    assert seen.error is None


def test_an_error_event_that_comes_first_does_not_count_as_a_start() -> None:
    reader = EventReader()
    reader.feed(b'data: {"error": {"message": "boom"}}\n\n')
    assert not reader.started


def test_a_comment_is_relayed_but_starts_nothing() -> None:
    reader = EventReader()
    assert reader.feed(b": ping\n\n") == b": ping\n\n"
    assert not reader.started


def test_an_event_with_nothing_but_an_id_vanishes() -> None:
    reader = EventReader()
    assert reader.feed(b"id: 5\n\nretry: 10\n\nevent: x\nid: 6\n\n") == b""
    assert reader.flaw is None


def test_after_a_terminal_type_the_stream_may_end_and_done_is_added() -> None:
    reader = EventReader(TERMINALS)
    sent = b'event: response.completed\ndata: {"type": "response.completed"}\n\n'
    assert reader.feed(sent) == sent
    assert reader.close() == DONE
    assert reader.done


def test_a_terminal_type_means_nothing_where_the_endpoint_has_none() -> None:
    seen = read([b'data: {"type": "response.completed"}\n\n'])
    assert seen.flawed
    assert not seen.done


def test_a_terminal_event_of_type_error_is_an_error() -> None:
    seen = read([b'data: {"type": "error", "message": "boom"}\n\n'], TERMINALS)
    assert seen.error == b'{"type": "error", "message": "boom"}'
    assert not seen.done


@pytest.mark.parametrize("stream", [b"", b": ping\n\n", b"data: {}\n\n", b"data: {}", b"data: [DONE"])
def test_a_stream_that_closes_early_has_a_flaw_and_no_done(stream: bytes) -> None:
    seen = read([stream])
    assert seen.flawed
    assert not seen.done
    assert DONE.strip() not in seen.events


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_a_last_event_without_its_blank_line_counts(line_end: bytes) -> None:
    assert read([b"data: {}\n\ndata: [DONE]" + line_end]).done
    assert read([b"data: {}\n\ndata: [DONE]"]).events == [b"data: {}", b"data: [DONE]"]


def test_a_stream_that_closes_early_still_gives_its_last_whole_event() -> None:
    assert read([b'data: {"a": 1}\n\ndata: {"a": 2}']).events == [b'data: {"a": 1}', b'data: {"a": 2}']


def test_what_came_before_garbage_is_handed_out_and_what_comes_after_is_not() -> None:
    seen = read([b'data: {"a": 1}\n\ndata: {"a":\n\ndata: {"a": 3}\n\ndata: [DONE]\n\n'])
    assert seen.events == [b'data: {"a": 1}']
    assert seen.flawed
    assert not seen.done


_GARBAGE = {
    "half an object": b'{"id": "x", "choi',
    "an array": b"[1]",
    "a number": b"1",
    "text": b"hello",
    "nothing": b"",
    "two objects": b"{}{}",
    "bad UTF-8": b'{"a": "\xff"}',
    "a bare control character": b'{"a": "\x01"}',
    "HTML": b"<html></html>",
    "nested without end": b'{"a": ' + b"[" * 100_000,
    "a number that is no JSON": b'{"a": NaN}',
    "infinity": b'{"a": Infinity}',
    "UTF-16": '{"a": 1}'.encode("utf-16-le"),
    "half an emoji in UTF-8": b'{"a": "\xed\xa0\xbd"}',
    "a byte-order mark": b'\xef\xbb\xbf{"a": 1}',
}


@pytest.mark.parametrize("payload", _GARBAGE.values(), ids=_GARBAGE.keys())
def test_data_that_is_not_a_json_object_is_a_flaw(payload: bytes) -> None:
    reader = EventReader()
    assert reader.feed(b"data: " + payload + b"\n\n") == b""
    assert reader.flaw is not None


def test_text_that_is_no_event_stream_is_a_flaw() -> None:
    reader = EventReader()
    assert reader.feed(b"<!doctype html>\n<title>x</title>\n\n") == b""
    assert reader.flaw is not None


def test_half_an_emoji_escape_is_relayed_because_models_cut_them() -> None:
    sent = b'data: {"choices": [{"delta": {"content": "\\ud83d"}}]}\n\n'
    reader = EventReader()
    assert reader.feed(sent) == sent
    assert reader.started
    assert reader.flaw is None


def test_an_error_beside_half_an_emoji_escape_is_still_seen() -> None:
    seen = read([b'data: {"a": "\\ud83d", "error": {"code": 1}}\n\n'])
    assert seen.error is not None
    assert json.loads(seen.error) == {"code": 1}


def test_an_event_without_end_is_a_flaw_before_it_fills_the_memory() -> None:
    reader = EventReader()
    assert reader.feed(b"data: " + b"x" * (33 * 1024**2)) == b""
    assert reader.flaw is not None


def test_a_carriage_return_at_the_edge_of_a_piece_waits_for_its_line_feed() -> None:
    reader = EventReader()
    out = reader.feed(b"data: {}\r") + reader.feed(b"\n\r") + reader.feed(b"\ndata: [DONE]\r\n\r\n")
    assert out == b"data: {}\n\ndata: [DONE]\n\n"


def test_an_event_is_framed_with_and_without_a_name() -> None:
    assert event(b"{}") == b"data: {}\n\n"
    assert event(b"{}", "chunk") == b"event: chunk\ndata: {}\n\n"


def test_payloads_leave_out_comments_names_and_done() -> None:
    block = b': ping\n\nevent: chunk\ndata: {"a": 1}\n\ndata:{\ndata: }\n\n' + DONE
    assert payloads(block) == [b'{"a": 1}', b"{\n}"]


def test_payloads_leave_out_a_done_that_has_spaces_around_it() -> None:
    reader = EventReader()
    out = reader.feed(b"data:  [DONE] \n\n")
    assert reader.done
    assert payloads(out) == []
