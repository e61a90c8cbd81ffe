"""What is read of a request's body, and the one change that may be made to it."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequestError
from app.wire.endpoints import BY_PATH, CHAT, ENDPOINTS, RESPONSES, Endpoint
from app.wire.request import Peek, peek, unambiguous, with_model

MODERATION = BY_PATH["/moderations"]
TRANSCRIPTION = BY_PATH["/audio/transcriptions"]
EDIT = BY_PATH["/images/edits"]
NO_BODY = next(endpoint for endpoint in ENDPOINTS if endpoint.body == "none")
FORM = "multipart/form-data; boundary=cut"
_DEEP = b"[" * 100_000 + b"]" * 100_000

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_NAME = st.sampled_from(["model", "stream", '"model"', ',"model":', "Model", "a"]) | _TEXT
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _NAME,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAME, inner, max_size=3),
    max_leaves=12,
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[dict[str, Any], bytes, str]:
    """A JSON object with a model somewhere among its fields: as an object, as bytes, and the model's name."""
    old = draw(st.sampled_from(["fast", "west/gpt-4o", 'a"b', "a\\b", "modèle"]) | _TEXT.filter(bool))
    nested = st.dictionaries(st.just("model"), st.just(old) | _TEXT, min_size=1)
    rest = draw(st.dictionaries(_NAME.filter(lambda name: name not in {"model", "stream"}), _JSON | nested, max_size=5))
    fields = list(rest.items())
    fields.insert(draw(st.integers(0, len(fields))), ("model", old))
    whole = dict(fields)
    text = json.dumps(
        whole,
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 0, 2])),
        separators=draw(st.sampled_from([(",", ":"), (", ", " : ")])),
    )
    return whole, text.encode(), old


def form(*parts: tuple[str, bytes]) -> bytes:
    """A multipart body; a part is what follows `form-data; ` and its content."""
    head = b"--cut\r\nContent-Disposition: form-data; "
    return b"".join(head + name.encode() + b"\r\n\r\n" + value + b"\r\n" for name, value in parts) + b"--cut--\r\n"


def refused(endpoint: Endpoint, body: bytes, content_type: str = "") -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        peek(endpoint, body, content_type)
    return caught.value


@given(bodies())
def test_peek_finds_the_top_level_model_in_any_object(given_body: tuple[dict[str, Any], bytes, str]) -> None:
    _, body, model = given_body
    assert peek(CHAT, body) == Peek(model, stream=False)


@given(bodies(), _TEXT)
def test_with_model_changes_the_top_level_model_and_nothing_else(
    given_body: tuple[dict[str, Any], bytes, str], new: str
) -> None:
    whole, body, old = given_body
    changed = with_model(CHAT, body, "application/json", old, new)
    assert json.loads(changed) == {**whole, "model": new}
    assert list(json.loads(changed)) == list(whole)


def test_with_model_keeps_every_other_byte() -> None:
    body = b'{ "temperature" : 1.50,\n\t"model" : "fast" ,"x":{"y":1e2,"u":"\\u00e9"}, "n": 12345678901234567890123 }'
    changed = with_model(CHAT, body, "application/json", "fast", "gpt-4o")
    assert changed == body.replace(b'"fast"', b'"gpt-4o"')


def test_with_model_gives_back_the_very_body_where_the_name_stays() -> None:
    body = b'{"model": "fast"}'
    assert with_model(CHAT, body, "application/json", "fast", "fast") is body


def test_with_model_leaves_a_nested_model_of_the_same_name_alone() -> None:
    body = b'{"metadata": {"model": "fast", "f": 1.50}, "model": "fast"}'
    changed = with_model(CHAT, body, "application/json", "fast", "gpt-4o")
    assert json.loads(changed) == {"metadata": {"model": "fast", "f": 1.5}, "model": "gpt-4o"}
    assert b"1.50" in changed


@pytest.mark.parametrize(
    "top", [b'"mod\\u0065l": "fast"', b'"model": "\\u0066ast"', b'"model": "old", "model": "\\u0066ast"']
)
def test_with_model_changes_the_top_level_model_however_it_is_escaped(top: bytes) -> None:
    body = b'{"metadata": {"model": "fast"}, ' + top + b"}"
    assert peek(CHAT, body).model == "fast"
    changed = with_model(CHAT, body, "application/json", "fast", "gpt-4o")
    assert json.loads(changed) == {"metadata": {"model": "fast"}, "model": "gpt-4o"}


def test_with_model_changes_the_model_that_counts_where_it_is_named_twice() -> None:
    body = b'{"model": "slow", "model": "fast"}'
    assert json.loads(with_model(CHAT, body, "application/json", "fast", "gpt-4o"))["model"] == "gpt-4o"


def test_text_that_looks_like_a_model_field_is_not_touched() -> None:
    body = json.dumps({"messages": [{"content": ', "model": "fast"'}], "model": "fast"}).encode()
    changed = json.loads(with_model(CHAT, body, "application/json", "fast", "gpt-4o"))
    assert changed == {"messages": [{"content": ', "model": "fast"'}], "model": "gpt-4o"}


@pytest.mark.parametrize(
    ("given_stream", "stream"), [(b"", False), (b', "stream": true', True), (b', "stream": null', False)]
)
def test_peek_tells_whether_a_stream_is_asked_for(given_stream: bytes, stream: bool) -> None:
    assert peek(CHAT, b'{"model": "m"' + given_stream + b"}").stream is stream


_WRONG: dict[str, tuple[bytes, str | None]] = {
    "no model": (b"{}", "model"),
    "an empty model": (b'{"model": ""}', "model"),
    "a number for a model": (b'{"model": 5}', "model"),
    "null for a model": (b'{"model": null}', "model"),
    "text for stream": (b'{"model": "m", "stream": "yes"}', "stream"),
    "a number for stream": (b'{"model": "m", "stream": 1}', "stream"),
    "an array": (b"[]", None),
    "text": (b'"m"', None),
    "nothing": (b"", None),
    "half an object": (b'{"model": "m"', None),
    "two objects": (b'{"model": "m"}{}', None),
    "bad UTF-8 in the model": (b'{"model": "\xff"}', None),
    "bad UTF-8 elsewhere": (b'{"model": "m", "x": "\xff"}', None),
    "deep nesting": (b'{"model": "m", "x": ' + _DEEP + b"}", None),
    "deep nesting without end": (b'{"model": "m", "x": ' + b"[" * 100_000, None),
    "deep nesting in the model": (b'{"model": ' + _DEEP + b"}", "model"),
}


@pytest.mark.parametrize(("body", "param"), _WRONG.values(), ids=_WRONG.keys())
def test_a_wrong_json_body_is_refused_and_the_field_named(body: bytes, param: str | None) -> None:
    error = refused(CHAT, body)
    assert error.param == param
    assert error.status == 400
    assert "\n" not in error.message


def test_the_error_says_at_which_byte_the_text_is_not_utf8() -> None:
    body = b'{"model": "m", "x": "\xff"}'
    assert f"at byte {body.index(0xFF)}" in refused(CHAT, body).message


def test_a_model_is_optional_where_the_table_says_so() -> None:
    assert peek(MODERATION, b'{"input": "x"}') == Peek(None, stream=False)
    assert refused(MODERATION, b'{"model": ""}').param == "model"


def test_a_stored_prompt_brings_its_own_model_to_responses_only() -> None:
    assert peek(RESPONSES, b'{"prompt": {"id": "p"}, "stream": true}') == Peek(None, stream=True)
    assert refused(RESPONSES, b'{"input": "x"}').param == "model"
    assert refused(CHAT, b'{"prompt": {"id": "p"}}').param == "model"


def test_a_call_without_a_body_asks_for_nothing() -> None:
    assert peek(NO_BODY, b"whatever") == Peek(None, stream=False)


def test_a_forms_plain_fields_are_read_and_its_files_are_not() -> None:
    body = form(
        ('name="file"; filename="model"', b'\r\n--cu\r\nname="model"\r\n\r\nno'),
        ('name="model"', b"whisper-1"),
        ('name="stream"', b"true"),
    )
    assert peek(TRANSCRIPTION, body, FORM) == Peek("whisper-1", stream=True)


def test_a_file_that_is_called_model_names_no_model() -> None:
    body = form(('name="model"; filename="x.txt"', b"whisper-1"))
    assert refused(TRANSCRIPTION, body, FORM).param == "model"
    assert peek(EDIT, body, FORM).model is None


_VALUES = st.lists(st.sampled_from(["--", "--cu", "a", "é", '"', "cut", " "]), min_size=1, max_size=8)


@pytest.mark.parametrize("model", ["a\rb", "a\nb", "west/\r\n--Cut"])
def test_a_forms_model_cannot_hold_what_could_become_a_boundary(model: str) -> None:
    assert refused(TRANSCRIPTION, form(('name="model"', model.encode())), FORM).param == "model"


def test_a_form_that_names_two_models_is_refused() -> None:
    body = form(('name="model"', b"one"), ('name="model"', b"two"))
    assert refused(TRANSCRIPTION, body, FORM).param == "model"


@pytest.mark.parametrize(
    "body",
    [b'{"model":"a","model":"b"}', b'{"mod\\u0065l":"a","model":"b"}', b'{"model":"a","mod\\u0065l":"b","n":1.0}'],
)
def test_a_body_that_names_two_models_is_left_with_the_one_that_was_read(body: bytes) -> None:
    clean = unambiguous(body)
    assert clean.count(b"model") == 1
    assert peek(CHAT, clean) == peek(CHAT, body)
    assert unambiguous(clean) == clean
    assert with_model(CHAT, body, "", "b", "c").count(b"model") == 1


@given(st.binary(max_size=40), _VALUES.map("".join), _TEXT)
def test_a_form_is_spliced_and_every_other_byte_stays(file: bytes, old: str, new: str) -> None:
    def body(model: str) -> bytes:
        return form(
            ('name="before"', b"1"),
            ('name="file"; filename="f"', file.replace(b"--cut", b"")),
            ('name="model"', model.encode()),
            ('name="after"', old.encode().replace(b"--cut", b"")),
        )

    old = old.replace("--cut", "")
    if old:
        assert peek(TRANSCRIPTION, body(old), FORM).model == old
        assert with_model(TRANSCRIPTION, body(old), FORM, old, new) == body(new)


_MALFORMED_FORMS: dict[str, tuple[bytes, str, str | None]] = {
    "JSON": (b'{"model": "m"}', "application/json", "content-type"),
    "no content type": (form(('name="model"', b"m")), "", "content-type"),
    "no boundary": (form(('name="model"', b"m")), "multipart/form-data", "content-type"),
    "another boundary": (form(('name="model"', b"m")), "multipart/form-data; boundary=other", None),
    "no last boundary": (form(('name="model"', b"m"))[: -len(b"--cut--\r\n")], FORM, None),
    "cut in a header": (b"--cut\r\nContent-Dispo", FORM, None),
    "nothing": (b"", FORM, None),
    "no model": (form(('name="prompt"', b"m")), FORM, "model"),
    "an empty model": (form(('name="model"', b"")), FORM, "model"),
    "a model that is not UTF-8": (form(('name="model"', b"\xff")), FORM, "model"),
    "a part without a name": (form(("x=y", b"m")), FORM, "model"),
    "a part without a disposition": (b"--cut\r\nX: y\r\n\r\nm\r\n--cut--\r\n", FORM, "model"),
    "a broken header": (b"--cut\r\nno colon here\r\n\r\nm\r\n--cut--\r\n", FORM, None),
}


@pytest.mark.parametrize(("body", "content_type", "param"), _MALFORMED_FORMS.values(), ids=_MALFORMED_FORMS.keys())
def test_a_wrong_form_is_refused_and_the_field_named(body: bytes, content_type: str, param: str | None) -> None:
    assert refused(TRANSCRIPTION, body, content_type).param == param


@given(st.binary(max_size=60))
def test_no_bytes_at_all_break_the_form_reader(middle: bytes) -> None:
    with contextlib.suppress(InvalidRequestError):
        assert isinstance(peek(EDIT, b"--cut\r\n" + middle + b"\r\n--cut--\r\n", FORM), Peek)
