"""A streamed answer put together is the answer that would have come whole."""

import json
from collections.abc import Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.simulator import replies, responses
from app.wire.assemble import Assembler

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
WITH_USAGE = {**REQUEST, "stream_options": {"include_usage": True}}
_ANSWER = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=8)


def assembled(chunks: Iterable[dict[str, Any]]) -> dict[str, Any]:
    whole = Assembler()
    for chunk in chunks:
        whole.add(json.dumps(chunk).encode())
    found: dict[str, Any] = json.loads(whole.body())
    return found


def delta(place: int = 0, **fields: object) -> dict[str, Any]:
    choice = {"index": place, "delta": fields, "finish_reason": None}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice]}


def tool(index: int, **fields: object) -> dict[str, Any]:
    return delta(tool_calls=[{"index": index, **fields}])


@given(_ANSWER)
def test_the_chunks_of_a_chat_put_together_are_the_whole_reply(answer: list[str]) -> None:
    whole = replies.chat("1", WITH_USAGE, answer)
    found = assembled(replies.chat_chunks("1", WITH_USAGE, answer))
    for only_whole in ("refusal", "annotations"):  # no chunk ever holds them
        del whole["choices"][0]["message"][only_whole]
    assert found == whole


@given(_ANSWER)
def test_the_chunks_of_a_completion_put_together_have_its_text(answer: list[str]) -> None:
    request = {"model": "m", "prompt": "hello"}
    whole = replies.completion("1", request, answer)
    del whole["usage"]
    assert assembled(replies.completion_chunks("1", request, answer)) == whole


def test_the_events_of_a_response_put_together_are_its_last_state() -> None:
    whole = responses.response("1", {"model": "m", "input": "hello"}, ["a", " b"])
    assert assembled(responses.events(whole, ["a", " b"])) == whole


def test_tool_calls_merge_by_index_even_where_they_come_interleaved() -> None:
    found = assembled(
        [
            delta(role="assistant", content=None),
            tool(0, id="call_0", type="function", function={"name": "rain", "arguments": ""}),
            tool(1, id="call_1", type="function", function={"name": "sun", "arguments": ""}),
            tool(0, function={"arguments": '{"at":'}),
            tool(1, function={"arguments": "{}"}),
            tool(0, function={"arguments": '"mill"}'}),
        ]
    )
    message = found["choices"][0]["message"]
    assert message["content"] is None
    assert [(call["id"], call["type"], call["function"]) for call in message["tool_calls"]] == [
        ("call_0", "function", {"name": "rain", "arguments": '{"at":"mill"}'}),
        ("call_1", "function", {"name": "sun", "arguments": "{}"}),
    ]


def test_a_tool_calls_id_that_is_repeated_is_not_doubled() -> None:
    function = {"name": "rain", "arguments": "{"}
    found = assembled(
        [
            tool(0, id="call_0", type="function", function=function),
            tool(0, id="call_0", type="function", function={"arguments": "}"}),
        ]
    )
    (call,) = found["choices"][0]["message"]["tool_calls"]
    assert (call["id"], call["type"], call["function"]["arguments"]) == ("call_0", "function", "{}")


def test_choices_merge_by_index() -> None:
    found = assembled([delta(1, content="b"), delta(0, content="a"), delta(1, content="B"), delta(0, content="A")])
    texts = {choice["index"]: choice["message"]["content"] for choice in found["choices"]}
    assert texts == {0: "aA", 1: "bB"}


def test_the_finish_reason_is_the_last_one_that_is_not_null() -> None:
    def finish(reason: str | None) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}

    assert assembled([finish(None), finish("stop"), finish(None)])["choices"][0]["finish_reason"] == "stop"


def test_logprobs_are_appended_in_order() -> None:
    def logprob(token: str) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": {}, "logprobs": {"content": [{"token": token}], "refusal": None}}]}

    found = assembled([logprob("a"), logprob("b")])
    assert found["choices"][0]["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}], "refusal": None}


def test_usage_is_the_last_one_and_a_null_does_not_erase_it() -> None:
    chunks = [{**delta(content="a"), "usage": {"total_tokens": 1}}, {"choices": [], "usage": {"total_tokens": 2}}]
    assert assembled([*chunks, {"choices": [], "usage": None}])["usage"] == {"total_tokens": 2}


def test_half_an_emoji_in_each_of_two_chunks_becomes_a_whole_one() -> None:
    whole = Assembler()
    for half in (b"\\ud83d", b"\\ude00"):
        whole.add(b'{"choices": [{"index": 0, "delta": {"content": "' + half + b'"}}]}')
    assert json.loads(whole.body())["choices"][0]["message"]["content"] == "😀"


def test_a_stream_of_nothing_is_an_empty_object() -> None:
    assert assembled([]) == {}
