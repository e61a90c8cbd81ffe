"""A batch's output lines: OpenAI's shape, an order that can be found again, and what the replies cost."""

import itertools
import json
import re
from collections.abc import AsyncIterator, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.wire.batch_results import Usage, error_line, line_id, merged, position_of, reply_line, usage_of, whole

_POSITIONS = st.integers(0, 16**10 - 1)
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)


def lines(positions: Iterable[int]) -> list[bytes]:
    return [whole("batch_1", position, error_line("a", "x", "y")) for position in positions]


async def arriving(some: Iterable[bytes]) -> AsyncIterator[bytes]:
    for one in some:
        yield one


@given(_POSITIONS, _POSITIONS, _TEXTS)
def test_ids_sort_as_the_positions_do_and_are_found_again(one: int, other: int, batch: str) -> None:
    first, second = line_id(batch, one), line_id(batch, other)
    assert (first < second, first == second) == (one < other, one == other)
    assert position_of(whole(batch, one, error_line("a", "x", "y"))) == one


def test_ids_differ_between_batches_and_have_one_length() -> None:
    ids = {line_id(f"batch_{batch}", position) for batch in range(50) for position in (0, 1, 16**10 - 1)}
    assert len(ids) == 150
    assert all(re.fullmatch("batch_req_[0-9a-f]{24}", one) for one in ids)


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b'{"id":"batch_req_', b'{"id":"batch_req_00', b'{"id": "batch_req_' + b"0" * 24 + b'"}', b"x" * 50],
)
def test_a_line_of_another_kind_has_no_position(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a line"):
        position_of(line)


@given(_TEXTS, st.integers(100, 599), st.dictionaries(_TEXTS, st.integers() | _TEXTS))
def test_a_reply_stands_in_its_line_as_openai_writes_it(custom_id: str, status: int, body: dict[str, object]) -> None:
    text = json.dumps(body, indent=2).encode()
    line = whole("batch_1", 7, reply_line(custom_id, status, "req_1", text))
    assert b"\n" not in line
    assert json.loads(line) == {
        "id": line_id("batch_1", 7),
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": "req_1", "body": body},
        "error": None,
    }


@pytest.mark.parametrize("body", [b"", b"<html>\n", b"{", b"\xff\n\xfe", b'{"a": "\xff"}', b"[" * 100_000])
def test_a_reply_that_is_no_json_stands_there_as_a_string(body: bytes) -> None:
    line = whole("batch_1", 7, reply_line("a", 502, "req_1", body))
    assert b"\n" not in line
    assert json.loads(line)["response"]["body"] == body.decode(errors="replace")


def test_numbers_keep_their_bytes() -> None:
    assert b'{"n":1.50}' in reply_line("a", 200, "r", b'{"n":1.50}')


@given(_TEXTS, _TEXTS, _TEXTS)
def test_a_call_without_a_reply_has_an_error_and_no_response(custom_id: str, code: str, message: str) -> None:
    assert json.loads(whole("batch_1", 7, error_line(custom_id, code, message))) == {
        "id": line_id("batch_1", 7),
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }


@given(st.sets(st.integers(0, 50)), st.sets(st.integers(0, 50)))
async def test_two_files_are_merged_by_position(one: set[int], other: set[int]) -> None:
    first, second = lines(sorted(one - other)), lines(sorted(other))
    expected = lines(sorted(one | other))
    assert [line async for line in merged(arriving(first), arriving(second))] == expected


async def test_an_asynchronous_merge_reads_no_further_than_it_is_asked_to() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for position in itertools.count():
            yield lines([position])[0]

    found = merged(endless(), arriving(lines([1])))
    assert [position_of(await anext(found)) for _ in range(4)] == [0, 1, 1, 2]


_CHAT_USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 7,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
_RESPONSES_USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 17,
}


@pytest.mark.parametrize("usage", [_CHAT_USAGE, _RESPONSES_USAGE])
def test_both_spellings_of_usage_are_read(usage: dict[str, object]) -> None:
    assert usage_of(json.dumps({"id": "x", "usage": usage, "data": [1]}).encode()) == Usage(10, 4, 7, 3, 17)


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        ({"prompt_tokens": 5, "total_tokens": 5}, Usage(5, 0, 0, 0, 5)),
        ({"prompt_tokens": 5, "completion_tokens": 2}, Usage(5, 0, 2, 0, 7)),
        ({"total_tokens": 5}, Usage(total_tokens=5)),
        ({"prompt_tokens": 5, "prompt_tokens_details": None, "completion_tokens_details": [1]}, Usage(5, 0, 0, 0, 5)),
        ({"prompt_tokens": -5, "completion_tokens": 2}, Usage(0, 0, 2, 0, 2)),
        ({"prompt_tokens": 10**30, "completion_tokens": 2}, Usage(0, 0, 2, 0, 2)),
        ({"prompt_tokens": True, "completion_tokens": "2", "total_tokens": 3}, Usage(total_tokens=3)),
        ({"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": -1}}, Usage(1, 0, 0, 0, 1)),
        ({"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}, Usage()),
    ],
)
def test_what_is_missing_or_makes_no_sense_counts_as_nothing(usage: dict[str, object], read: Usage) -> None:
    assert usage_of(json.dumps({"usage": usage}).encode()) == read


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"usage": null}',
        b'{"usage": {}}',
        b'{"usage": 5}',
        b'{"usage": [1]}',
        b'{"usage": {"prompt_tokens": -1}}',
        b'{"usage": {"\xff": 1}}',
        b'{"usage": ' + b"[" * 100_000,
        b'{"x": ' + b"[" * 100_000,
    ],
)
def test_a_reply_that_does_not_say_what_it_cost_has_no_usage(body: bytes) -> None:
    assert usage_of(body) is None


def test_usages_are_added_field_by_field() -> None:
    assert Usage(1, 2, 3, 4, 5) + Usage(10, 20, 30, 40, 50) == Usage(11, 22, 33, 44, 55)
