"""What a stream has said so far: the same text as its reader has put together, whatever else is in its events."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.wire.stream_text import said

USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def chat(content: object, index: int = 0, **more: object) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": content}}], **more}


def completion(text: object, index: int = 0) -> dict[str, Any]:
    return {"choices": [{"index": index, "text": text}]}


def delta(text: object) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "output_index": 0, "delta": text}


def payloads(*chunks: object) -> list[bytes]:
    return [json.dumps(one).encode() for one in chunks]


@pytest.mark.parametrize("chunk", [chat, completion, delta])
def test_the_text_is_that_of_all_events_in_their_order(chunk: Any) -> None:
    assert (
        said(payloads(chunk("one "), chunk("two "), chunk(""), chunk(None), chunk("drei €"))).text == "one two drei €"
    )


@pytest.mark.parametrize("chunk", [chat, completion])
def test_of_several_choices_the_first_counts(chunk: Any) -> None:
    both = {"choices": [*chunk("x", 1)["choices"], *chunk("b")["choices"]]}
    assert said(payloads(chunk("a"), chunk("x", 1), both)).text == "ab"


@given(st.text(), st.lists(st.integers(0, 60), max_size=6))
def test_an_emoji_that_came_in_two_halves_is_one(text: str, cuts: list[int]) -> None:
    units = text.encode("utf-16-le", "surrogatepass")
    ends = [0, *sorted(2 * cut for cut in cuts if 2 * cut < len(units)), len(units)]
    pieces = [units[start:end].decode("utf-16-le", "surrogatepass") for start, end in pairwise(ends)]
    assert said(payloads(*map(chat, pieces))).text == text


def test_half_an_emoji_that_stays_alone_spoils_nothing_else() -> None:
    for half in ("\ud83d", "\ude00"):
        text = said(payloads(chat(f"a{half}"), chat("b"))).text
        assert (text[0], text[-1], len(text)) == ("a", "b", 3)
        text.encode()


def test_usage_is_the_last_that_was_told() -> None:
    assert said(payloads(chat("a", usage=None), chat("b"))).usage is None
    early, late = {"total_tokens": 1}, USAGE
    assert said(payloads(chat("a", usage=early), chat("b", usage=None), {"choices": [], "usage": late})).usage == late
    completed = {"type": "response.completed", "response": {"usage": late, "output": []}}
    assert (
        said(payloads({"type": "response.created", "response": {"usage": None}}, delta("a"), completed)).usage == late
    )
    assert said(payloads({"object": "fanout.summary", "counts": {}, "usage": late})).usage == late


@pytest.mark.parametrize(
    "payload",
    [
        b"[DONE]",
        b"",
        b"7",
        b"null",
        b'["choices"]',
        b'{"choices": {"0": 1}}',
        b'{"choices": [7, null]}',
        b'{"choices": [{"index": 0, "delta": 7}]}',
        b'{"choices": [{"delta": {"content": [{"text": "x"}]}}]}',
        b'{"choices": [{"text": 7}]}',
        b'{"type": "response.output_text.delta", "delta": {"x": 1}}',
        b'{"type": "response.function_call_arguments.delta", "delta": "x"}',
        b'{"type": "response.completed", "response": 7, "usage": 7}',
        b'{"error": {"message": "x"}}',
        b'{"x": ' + b"9" * 5000 + b"}",
        b'{"x": ' + b"[" * 100_000,
        b'{"choices": [{"index": 0, "delta": {"content": "\xff"}}]}',
    ],
)
def test_what_is_no_text_is_passed_over(payload: bytes) -> None:
    assert said([*payloads(chat("a")), payload, *payloads(chat("b", usage=USAGE))]) == ("ab", USAGE)


@pytest.mark.parametrize(
    "usage",
    [b'{"note": "\\ud83d"}', b'{"\\ud83d": 1}', b'{"cost": NaN}', b'{"cost": 1e999}', b'{"n": 1%b}' % (b"0" * 30)],
)
def test_whatever_the_usage_holds_can_be_told_as_json(usage: bytes) -> None:
    found = said([b'{"choices": [], "usage": %b}' % usage]).usage
    json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
