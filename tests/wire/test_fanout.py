"""The fan-out's request: one document or many lines; what is wrong is named, what is right keeps its bytes."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequestError
from app.wire.fanout import Item, ItemReader, Options, read_document, read_options

CHAT_URL = "/v1/chat/completions"
GOOD: dict[str, Any] = {"body": {"model": "m"}}


def document(*requests: object, **options: object) -> bytes:
    return json.dumps({"requests": requests, **options}).encode()


def param_of(body: bytes) -> str | None:
    """What `read_document` says is wrong with a body."""
    with pytest.raises(InvalidRequestError) as caught:
        read_document(body, streams=False)
    assert caught.value.status == 400
    assert "\n" not in caught.value.message
    return caught.value.param


def items(body: bytes, *, streams: bool = False) -> list[Item]:
    return read_document(body, streams=streams)[1]


def only_body(item: Item) -> bytes:
    (unit,) = item.units
    return unit.body()


def reader(*, streams: bool = False, **options: Any) -> ItemReader:
    return ItemReader(msgspec.convert(options, Options), streams=streams)


def line(**fields: object) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


_WRONG: dict[str, tuple[bytes, str | None]] = {
    "an item without a body": (document(GOOD, GOOD, GOOD, {}), "requests[3].body"),
    "a body that is text": (document(GOOD, {"body": "x"}), "requests[1].body"),
    "a body without a model": (document(GOOD, {"body": {}}), "requests[1].body.model"),
    "a body whose model is a number": (document({"body": {"model": 5}}), "requests[0].body.model"),
    "a body whose stream is text": (document({"body": {"model": "m", "stream": "x"}}), "requests[0].body.stream"),
    "an item that is text": (document(GOOD, "x"), "requests[1]"),
    "a custom_id twice": (document({**GOOD, "custom_id": "a"}, {**GOOD, "custom_id": "a"}), "requests[1].custom_id"),
    "a custom_id like an index": (document(GOOD, {**GOOD, "custom_id": "0"}), "requests[1].custom_id"),
    "an index like a custom_id": (document({**GOOD, "custom_id": "1"}, GOOD), "requests[1].custom_id"),
    "a custom_id that is a number": (document({**GOOD, "custom_id": 1}), "requests[0].custom_id"),
    "an unknown url": (document(GOOD, {**GOOD, "url": "/v1/nowhere"}), "requests[1].url"),
    "a url that takes a form": (document({**GOOD, "url": "/v1/images/edits"}), "requests[0].url"),
    "a url that gives sound": (document({**GOOD, "url": "/v1/audio/speech"}), "requests[0].url"),
    "a method that is not POST": (document({**GOOD, "method": "GET"}), "requests[0].method"),
    "a stream without SSE": (document({"body": {"model": "m", "stream": True}}), "requests[0].body.stream"),
    "a stream by defaults": (document(GOOD, defaults={"stream": True}), "requests[0].body.stream"),
    "no items": (document(), "requests"),
    "no requests": (b"{}", "requests"),
    "requests that are an object": (b'{"requests": {}}', "requests"),
    "an unknown option": (document(GOOD, concurrancy=5), "concurrancy"),
    "an unknown mode": (document(GOOD, mode="some"), "mode"),
    "an unknown order": (document(GOOD, order="random"), "order"),
    "a race without models": (document(GOOD, mode="race"), "mode"),
    "no models": (document(GOOD, models=[]), "models"),
    "too many models": (document(GOOD, models=["m"] * 65), "models"),
    "a model that is a number": (document(GOOD, models=["m", 5]), "models[1]"),
    "no concurrency": (document(GOOD, concurrency=0), "concurrency"),
    "no time": (document(GOOD, timeout=0), "timeout"),
    "defaults that are text": (document(GOOD, defaults="x"), "defaults"),
    "an unknown default url": (document(GOOD, url="/v1/nowhere"), "url"),
    "an array": (b"[]", None),
    "half a document": (b'{"requests": [', None),
    "nothing": (b"", None),
    "bad UTF-8": (b'{"requests": [{"body": {"model": "m", "x": "\xff"}}]}', None),
    "deep nesting": (b'{"requests": [{"body": {"model": "m", "x": ' + b"[" * 100_000, None),
}


@pytest.mark.parametrize(("body", "param"), _WRONG.values(), ids=_WRONG.keys())
def test_a_wrong_document_is_refused_and_the_item_named(body: bytes, param: str | None) -> None:
    assert param_of(body) == param


def test_a_url_that_is_refused_is_told_what_is_allowed() -> None:
    with pytest.raises(InvalidRequestError, match="/v1/embeddings"):
        items(document({**GOOD, "url": "/v1/nowhere"}))


def test_an_item_may_stream_where_events_are_accepted() -> None:
    (item,) = items(document({"body": {"model": "m", "stream": True}}), streams=True)
    assert item.units[0].peek.stream


def test_items_are_numbered_and_named_by_their_index_unless_they_say_otherwise() -> None:
    found = items(document(GOOD, {**GOOD, "custom_id": "mine"}, GOOD))
    assert [(item.index, item.custom_id) for item in found] == [(0, "0"), (1, "mine"), (2, "2")]


def test_an_item_may_have_its_own_url_with_or_without_the_prefix() -> None:
    sent = document(GOOD, {**GOOD, "url": "/embeddings"}, {**GOOD, "url": CHAT_URL}, url="/v1/completions")
    paths = [item.units[0].endpoint.path for item in items(sent)]
    assert paths == ["/completions", "/embeddings", "/chat/completions"]


def test_fields_of_a_batch_line_that_are_unknown_are_passed_over() -> None:
    assert only_body(items(document({**GOOD, "metadata": 1}))[0]) == b'{"model":"m"}'


def test_defaults_lie_under_every_body_and_every_value_keeps_its_bytes() -> None:
    sent = (
        b'{"defaults": {"model": "fast", "temperature": 1.50, "seed": 123456789012345678901234567890},'
        b' "requests": [{"body": {"x": {"y" : 1e2}}}, {"body": {"temperature": 0.0, "model":"\\u00e9"}}]}'
    )
    seed = b'"seed":123456789012345678901234567890'
    assert list(map(only_body, items(sent))) == [
        b'{"model":"fast","temperature":1.50,' + seed + b',"x":{"y" : 1e2}}',
        b'{"model":"\\u00e9","temperature":0.0,' + seed + b"}",
    ]


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_FIELDS = st.dictionaries(st.sampled_from(["a", "b", "c"]) | _TEXT, st.integers() | _TEXT, max_size=4).map(
    lambda fields: {name: value for name, value in fields.items() if name not in {"model", "stream"}}
)


@given(_FIELDS, st.lists(_FIELDS, min_size=1, max_size=4))
def test_what_is_sent_is_the_defaults_with_the_body_over_them(
    defaults: dict[str, Any], sent: list[dict[str, Any]]
) -> None:
    found = items(document(*({"body": body} for body in sent), defaults={"model": "m", **defaults}))
    assert [json.loads(only_body(item)) for item in found] == [{"model": "m", **defaults, **body} for body in sent]


def test_every_item_goes_to_every_model_and_the_unit_says_which() -> None:
    found = items(document({"body": {"n": 1}}, {"body": {"model": "ignored", "n": 2}}, models=["fast", 'a"b']))
    assert [[unit.model for unit in item.units] for item in found] == [["fast", 'a"b'], ["fast", 'a"b']]
    sent = [json.loads(unit.body()) for item in found for unit in item.units]
    assert sent == [{"n": n, "model": model} for n in (1, 2) for model in ("fast", 'a"b')]
    assert all(unit.peek.model == unit.model for item in found for unit in item.units)


def test_without_models_a_unit_names_none_for_the_result_line() -> None:
    (item,) = items(document(GOOD))
    assert item.units[0].model is None
    assert item.units[0].peek.model == "m"


def test_a_line_becomes_an_item() -> None:
    item = reader(defaults={"model": msgspec.Raw(b'"m"')}).line(b'{"custom_id": "a", "body": {"x": 1.50}}')
    assert (item.index, item.custom_id, item.flaw) == (0, "a", None)
    assert only_body(item) == b'{"model":"m","x":1.50}'


_BROKEN_LINES: dict[str, tuple[bytes | None, str | None]] = {
    "not JSON": (b"hello", None),
    "half an object": (b'{"body": {', None),
    "an array": (b"[]", None),
    "bad UTF-8": (b'{"body": {"model": "m", "x": "\xff"}}', None),
    "deep nesting": (b'{"body": {"x": ' + b"[" * 100_000, None),
    "too long": (None, None),
    "no body": (b"{}", "body"),
    "no model": (b'{"body": {}}', "body.model"),
    "an unknown url": (line(url="/v1/nowhere"), "url"),
    "another method": (line(method="GET"), "method"),
    "a stream without SSE": (line(body={"model": "m", "stream": True}), "body.stream"),
}


@pytest.mark.parametrize(("text", "param"), _BROKEN_LINES.values(), ids=_BROKEN_LINES.keys())
def test_a_broken_line_becomes_an_item_with_a_flaw_and_the_next_line_is_read(
    text: bytes | None, param: str | None
) -> None:
    lines = reader()
    broken, good = lines.line(text), lines.line(line())
    assert broken.flaw is not None
    assert broken.flaw.param == param
    assert broken.units == ()
    assert (broken.index, good.index, good.flaw) == (0, 1, None)
    assert good.custom_id == "1"


def test_a_line_that_is_too_long_is_told_which_setting_says_so() -> None:
    flaw = reader().line(None).flaw
    assert flaw is not None
    assert "max_line_bytes" in flaw.message


def test_a_broken_line_keeps_the_custom_id_that_it_named() -> None:
    assert reader().line(line(custom_id="a", url="/v1/nowhere")).custom_id == "a"


def test_a_broken_line_without_a_custom_id_is_named_by_its_index() -> None:
    lines = reader()
    assert lines.line(line()).custom_id == "0"
    assert lines.line(line(url="/v1/nowhere")).custom_id == "1"


def test_a_line_with_a_custom_id_seen_before_has_a_flaw() -> None:
    lines = reader()
    assert lines.line(line(custom_id="a")).flaw is None
    again = lines.line(line(custom_id="a"))
    assert again.flaw is not None
    assert again.flaw.param == "custom_id"
    assert lines.line(line(custom_id="b")).flaw is None


@pytest.mark.parametrize("named_first", [True, False])
def test_a_lines_custom_id_may_not_be_the_index_that_names_another(named_first: bool) -> None:
    lines = reader()
    first, second = (line(custom_id="1"), line()) if named_first else (line(), line(custom_id="0"))
    assert lines.line(first).flaw is None
    assert lines.line(second).flaw is not None


def test_lines_are_numbered_one_by_one_broken_or_not() -> None:
    lines = reader()
    found = [lines.line(text) for text in (line(), None, b"x", line(custom_id="a"), line(custom_id="a"), line())]
    assert [item.index for item in found] == [0, 1, 2, 3, 4, 5]


def test_options_are_read_from_query_parameters() -> None:
    options = read_options(
        {
            "url": "/v1/embeddings",
            "models": "fast,west/gpt-4o",
            "mode": "race",
            "order": "completed",
            "concurrency": "3",
            "timeout": "2.5",
            "defaults": '{"model": "m"}',
        }
    )
    assert (options.url, options.models, options.mode) == ("/v1/embeddings", ["fast", "west/gpt-4o"], "race")
    assert (options.order, options.concurrency, options.timeout) == ("completed", 3, 2.5)
    assert {name: bytes(value) for name, value in options.defaults.items()} == {"model": b'"m"'}


def test_without_query_parameters_the_options_are_the_defaults() -> None:
    assert read_options({}) == Options()


def test_defaults_in_the_query_keep_the_bytes_of_their_values() -> None:
    options = read_options({"defaults": '{"temperature": 1.50, "seed": 123456789012345678901234567890}'})
    assert {name: bytes(value) for name, value in options.defaults.items()} == {
        "temperature": b"1.50",
        "seed": b"123456789012345678901234567890",
    }


_WRONG_QUERIES: dict[str, tuple[dict[str, str], str]] = {
    "an unknown option": ({"concurrancy": "5"}, "concurrancy"),
    "a concurrency of text": ({"concurrency": "many"}, "concurrency"),
    "no concurrency": ({"concurrency": "0"}, "concurrency"),
    "half a concurrency": ({"concurrency": "1.5"}, "concurrency"),
    "a negative timeout": ({"timeout": "-1"}, "timeout"),
    "a timeout of text": ({"timeout": "soon"}, "timeout"),
    "a timeout that is no number": ({"timeout": "nan"}, "timeout"),
    "an unknown mode": ({"mode": "some"}, "mode"),
    "a race without models": ({"mode": "race"}, "mode"),
    "an unknown order": ({"order": "random"}, "order"),
    "an unknown url": ({"url": "/v1/nowhere"}, "url"),
    "an empty model": ({"models": ""}, "models"),
    "an empty model among others": ({"models": "fast,,west/m"}, "models"),
    "too many models": ({"models": ",".join(["m"] * 65)}, "models"),
    "defaults that are an array": ({"defaults": "[1]"}, "defaults"),
    "defaults that are not JSON": ({"defaults": "{"}, "defaults"),
    "defaults that are nested too deeply": ({"defaults": "[" * 9000}, "defaults"),
}


@pytest.mark.parametrize(("query", "param"), _WRONG_QUERIES.values(), ids=_WRONG_QUERIES.keys())
def test_a_wrong_query_parameter_is_refused_and_named(query: dict[str, str], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_options(query)
    assert caught.value.param == param
