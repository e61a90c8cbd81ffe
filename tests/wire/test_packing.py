"""Embedding lines in one call: each line's reply is the one that it would have had alone."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.simulator import replies
from app.wire.packing import inputs_of, key_of, pack, unpack

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
_TEXT_LINES = st.lists(_TEXT | st.lists(_TEXT, min_size=1, max_size=4), min_size=1, max_size=6)
_IDS = st.lists(st.integers(0, 9), min_size=1, max_size=3)
_TOKEN_LINES = st.lists(_IDS | st.lists(_IDS, min_size=1, max_size=4), min_size=1, max_size=6)


def request(given_input: object, **more: object) -> bytes:
    return json.dumps({"model": "embed", "input": given_input, "dimensions": 4, **more}).encode()


def answered(body: bytes) -> bytes:
    """The simulator's reply to a request."""
    return msgspec.json.encode(replies.embeddings(json.loads(body)))


def but_usage(reply: bytes) -> dict[str, Any]:
    return {name: value for name, value in json.loads(reply).items() if name != "usage"}


@given(_TEXT_LINES | _TOKEN_LINES, st.booleans(), st.sampled_from(["float", "base64"]))
def test_each_line_gets_the_reply_that_it_would_get_alone(sent: list[Any], merge: bool, encoding: str) -> None:
    bodies = [request(one, encoding_format=encoding) for one in sent]
    assert len({key_of(body) for body in bodies} - {None}) == 1
    packed = pack(bodies, merge_equal=merge)
    found = unpack(answered(packed.body), packed)
    assert list(map(but_usage, found)) == [but_usage(answered(body)) for body in bodies]
    assert list(packed.counts) == [len(inputs_of(body)) for body in bodies]


@given(_TEXT_LINES)
def test_equal_inputs_are_sent_once_if_they_may_be(sent: list[Any]) -> None:
    bodies = [request(one) for one in sent]
    every = [json.loads(bytes(one)) for body in bodies for one in inputs_of(body)]
    assert json.loads(pack(bodies).body)["input"] == every
    assert json.loads(pack(bodies, merge_equal=True).body)["input"] == list(dict.fromkeys(every))


@given(_TEXT_LINES, st.integers(0, 10_000), st.booleans())
def test_the_shares_of_the_usage_add_up(sent: list[Any], tokens: int, merge: bool) -> None:
    packed = pack([request(one) for one in sent], merge_equal=merge)
    details = {"cached_tokens": tokens // 3, "audio": None, "more": {"deep": 7}}
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "prompt_tokens_details": details, "tier": "x"}
    reply = json.dumps({**json.loads(answered(packed.body)), "usage": usage}).encode()
    shares = [json.loads(line)["usage"] for line in unpack(reply, packed)]
    assert sum(share["prompt_tokens"] for share in shares) == tokens
    assert sum(share["prompt_tokens_details"]["cached_tokens"] for share in shares) == tokens // 3
    assert sum(share["prompt_tokens_details"]["more"]["deep"] for share in shares) == 7
    for share, weight in zip(shares, packed.weights, strict=True):
        assert share["total_tokens"] == share["prompt_tokens"]
        assert abs(share["prompt_tokens"] - tokens * weight / sum(packed.weights)) < 1
        assert (share["tier"], share["prompt_tokens_details"]["audio"]) == ("x", None)


def test_the_rest_of_a_share_goes_to_the_largest_remainders() -> None:
    packed = pack([request("a" * 8), request("b" * 58), request("c" * 28)])  # with its quotes: a tenth, 60 and 30 %
    reply = whole_reply(3, '{"total_tokens": 7, "cost": 0.5, "free": true}')
    shares = [json.loads(line)["usage"] for line in unpack(reply, packed)]
    assert [share["total_tokens"] for share in shares] == [1, 4, 2]  # 0.7, 4.2, 2.1
    assert [share["cost"] for share in shares] == pytest.approx([0.05, 0.3, 0.15])
    assert {share["free"] for share in shares} == {True}


def entry(index: object, value: str = "[0.50]") -> str:
    return f'{{"object": "embedding", "index": {json.dumps(index)}, "embedding": {value}, "more": 1}}'


def reply_of(*entries: str, usage: str = '{"total_tokens": 2}') -> bytes:
    return f'{{"object": "list", "data": [{", ".join(entries)}], "model": "m", "x": 1.50, "usage": {usage}}}'.encode()


def whole_reply(count: int, usage: str) -> bytes:
    return reply_of(*map(entry, range(count)), usage=usage)


def test_a_line_begins_at_zero_again_and_every_other_byte_stays() -> None:
    packed = pack([request("aa"), request(["bb", "cc"])])
    reply = reply_of(entry(2, "[2.50]"), entry(0, "[0.50]"), entry(1, "[1.50]"))
    first, second = unpack(reply, packed)
    ends = b'],"model":"m","x":1.50,"usage":{"total_tokens":1}}'
    assert first == b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.50],"more":1}' + ends
    assert second == (
        b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[1.50],"more":1},'
        b'{"object":"embedding","index":1,"embedding":[2.50],"more":1}' + ends
    )


@pytest.mark.parametrize("usage", ["null", '"x"', "{}"])
def test_a_reply_without_usage_is_taken_apart_all_the_same(usage: str) -> None:
    found = unpack(whole_reply(2, usage), pack([request("a"), request("b")]))
    assert [json.loads(line)["usage"] for line in found] == [json.loads(usage)] * 2
    silent = whole_reply(2, "0").replace(b', "usage": 0', b"")
    assert all("usage" not in json.loads(line) for line in unpack(silent, pack([request("a"), request("b")])))


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"data": {}}',
        b'{"data": [1, 2]}',
        b'{"data": ' + b"[" * 100_000,
        reply_of(),
        reply_of(entry(0)),
        reply_of(entry(0), entry(0)),
        reply_of(entry(1), entry(2)),
        reply_of(entry(0), entry(-1)),
        reply_of(entry(0), entry("1")),
        reply_of(entry(0), entry(1.5)),
        reply_of(entry(0), entry(None)),
        reply_of(entry(0), entry(1), entry(2)),
        reply_of(entry(0), entry(1), entry(1)),
        reply_of(entry(0), entry(1, "null")),
        reply_of(entry(0), '{"index": 1}'),
        reply_of(entry(0), '{"embedding": [1]}'),
    ],
)
def test_a_reply_that_does_not_answer_every_input_once_is_refused(reply: bytes) -> None:
    packed = pack([request("a"), request("b")])
    with pytest.raises(ValueError, match=r"."):
        unpack(reply, packed)


def test_the_call_keeps_the_other_fields_and_every_value_its_bytes() -> None:
    bodies = [
        b'{"model": "m", "f": 1.50, "input" :  [ "\\u00e9" , "b" ] , "user": {"x" : 1}}',
        b'{"user": {"x" : 1}, "input":"c", "model": "m", "f": 1.50}',
    ]
    assert key_of(bodies[0]) == key_of(bodies[1])
    assert pack(bodies).body == b'{"model":"m","f":1.50,"input":["\\u00e9","b","c"],"user":{"x" : 1}}'


@given(st.permutations(["model", "input", "dimensions", "user"]), _TEXT)
def test_neither_order_nor_input_changes_the_key(order: list[str], text: str) -> None:
    fields = {"model": "m", "input": text, "dimensions": 4, "user": "u"}
    body = json.dumps({name: fields[name] for name in order}).encode()
    assert key_of(body) == key_of(json.dumps({**fields, "input": ["x"]}).encode())


def test_lines_that_differ_in_anything_else_have_different_keys() -> None:
    bodies = [
        request("a"),
        request("a", model="other"),
        request("a", dimensions=5),
        request("a", encoding_format="base64"),
        request("a", user="x"),
        request([1, 2]),
    ]
    assert len({key_of(body) for body in bodies}) == len(bodies)
    assert key_of(request([1, 2])) == key_of(request([[3], [4]]))


@pytest.mark.parametrize(
    "given_input",
    [
        None,
        5,
        "",
        [],
        [""],
        ["a", ""],
        [[]],
        [[1], []],
        ["a", [1]],
        [[1], "a"],
        [1, "a"],
        [1.5],
        [-1],
        [[-1]],
        {},
        [{}],
        [None],
        [True],
    ],
)
def test_an_input_that_an_upstream_may_refuse_goes_alone(given_input: object) -> None:
    assert key_of(request(given_input)) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"x",
        b"{}",
        b'{"model": "m"}',
        b'{"input": "a", "model": "\xff"}',
        b'{"input": "\\ud83d"}',
        b'{"input": ["a"], "encoding_format": "int8"}',
        b'{"input": ["a"], "encoding_format": 5}',
        b'{"input": ' + b"[" * 100_000,
    ],
)
def test_a_body_that_is_odd_goes_alone(body: bytes) -> None:
    assert key_of(body) is None


@pytest.mark.parametrize(
    ("given_input", "inputs"),
    [
        ('"a"', [b'"a"']),
        ('[ "a", "[" ]', [b'"a"', b'"["']),
        ("[ 1, 2 ]", [b"[ 1, 2 ]"]),
        ("[[1], [2, 3]]", [b"[1]", b"[2, 3]"]),
    ],
)
def test_a_text_or_one_list_of_tokens_is_one_input(given_input: str, inputs: list[bytes]) -> None:
    assert [bytes(one) for one in inputs_of(f'{{"input": {given_input}}}'.encode())] == inputs
