"""Long embedding inputs: the parts' replies, joined, are the reply that the whole would have had."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.simulator import replies
from app.wire.embeddings import join, split

_TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), min_size=1, max_size=12)
_TOKENS = st.lists(st.lists(st.integers(0, 100_000), min_size=1, max_size=4), min_size=1, max_size=12)


def request(given_input: object, **more: object) -> bytes:
    return json.dumps({"model": "embed", "input": given_input, "dimensions": 4, **more}).encode()


def answered(body: bytes) -> bytes:
    """The simulator's reply to a request."""
    return msgspec.json.encode(replies.embeddings(json.loads(body)))


def inputs(bodies: list[bytes]) -> list[Any]:
    return [json.loads(body)["input"] for body in bodies]


@given(_TEXTS | _TOKENS, st.integers(1, 5), st.sampled_from(["float", "base64"]))
def test_the_joined_replies_of_the_parts_are_the_reply_of_the_whole(sent: list[Any], most: int, encoding: str) -> None:
    body = request(sent, encoding_format=encoding)
    parts = split(body, most)
    joined = join([answered(part) for part in parts], parts)
    assert json.loads(joined) == json.loads(answered(body))


@given(_TEXTS | _TOKENS, st.integers(1, 5))
def test_parts_hold_every_input_once_in_order_and_at_most_so_many(sent: list[Any], most: int) -> None:
    parts = inputs(split(request(sent), most))
    assert [one for part in parts for one in part] == sent
    assert all(0 < len(part) <= most for part in parts)
    assert len(parts) == -(-len(sent) // most)


@given(st.lists(st.integers(0, 100_000), max_size=30), st.integers(1, 5))
def test_one_input_in_tokens_is_never_split(tokens: list[int], most: int) -> None:
    body = request(tokens)
    assert split(body, most) == [body]


@pytest.mark.parametrize("given_input", ["a" * 100, [], ["a"], ["a", "b"], None, 5, {"a": 1}])
def test_what_is_short_enough_or_no_list_stays_the_very_body(given_input: object) -> None:
    body = request(given_input)
    assert split(body, 2) == [body]


def test_a_request_without_input_stays_as_it_is() -> None:
    body = b'{"model": "embed", "dimensions": 1024}'
    assert split(body, 2) == [body]


def test_every_part_keeps_the_other_fields_and_every_value_its_bytes() -> None:
    body = b'{"model": "m", "f": 1.50, "input" :  [ "\\u00e9" , "b","c" ] , "user": {"x" : 1}}'
    assert split(body, 2) == [
        b'{"model":"m","f":1.50,"input":["\\u00e9","b"],"user":{"x" : 1}}',
        b'{"model":"m","f":1.50,"input":["c"],"user":{"x" : 1}}',
    ]


def asks(*counts: int) -> list[bytes]:
    """Requests for so many inputs each."""
    return [request(["x"] * count) for count in counts]


def part(*indexes: int, usage: str = '"usage": {"prompt_tokens": 1, "total_tokens": 2}') -> bytes:
    data = ", ".join(f'{{"index": {index}, "embedding": [{index}.50]}}' for index in indexes)
    return f'{{"object": "list", "data": [{data}], "model": "m", {usage}}}'.encode()


def test_a_part_that_came_out_of_order_is_put_in_order() -> None:
    joined = json.loads(join([part(1, 0), part(2, 0, 1)], asks(2, 3)))
    assert [entry["index"] for entry in joined["data"]] == [0, 1, 2, 3, 4]
    assert [entry["embedding"] for entry in joined["data"]] == [[0.5], [1.5], [0.5], [1.5], [2.5]]


def test_numbers_keep_their_bytes_and_usage_is_added_up() -> None:
    joined = join([part(0), part(0)], asks(1, 1))
    assert joined.count(b"[0.50]") == 2
    assert json.loads(joined)["usage"] == {"prompt_tokens": 2, "total_tokens": 4}
    assert json.loads(joined)["object"] == "list"


@pytest.mark.parametrize("usage", ['"x": 1', '"usage": null'])
def test_parts_without_usage_are_joined_all_the_same(usage: str) -> None:
    assert len(json.loads(join([part(0, usage=usage), part(0, usage=usage)], asks(1, 1)))["data"]) == 2


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"data": {}}',
        b'{"data": [1]}',
        b'{"data": [{}]}',
        b'{"data": [{"index": "a"}]}',
        b'{"data": [{"index": 1.5}]}',
        b'{"data": [{"index": null}]}',
    ],
)
def test_a_part_that_is_no_embeddings_reply_is_an_error_that_its_caller_expects(reply: bytes) -> None:
    with pytest.raises((KeyError, ValueError)):
        join([part(0), reply], asks(1, 1))


@pytest.mark.parametrize("indexes", [(), (0,), (0, 0), (1, 2), (0, 1, 2), (-1, 0)])
def test_a_part_that_does_not_answer_each_of_its_inputs_once_is_refused(indexes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="for 2 inputs"):
        join([part(0), part(*indexes)], asks(1, 2))
