"""A batch's input file: where its lines stand, and what is said of the wrong ones."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.wire.batch_lines import Checker, Line, LineError, LineScanner, Scanned, read_line, split
from app.wire.jsonl import LineReader
from tests.wire.cuts import PLACES, bytewise, pieces

BOM = b"\xef\xbb\xbf"
CHAT = "/v1/chat/completions"
_SHREDS = st.lists(
    st.sampled_from([b"\n", b"\r\n", b"\r", b" ", b"a", b"abcd", b"abcde", b"0123456789", BOM, b"\xef", "é".encode()]),
    max_size=14,
).map(b"".join)


def scanned(parts: Iterable[bytes], longest: int = 10_000) -> list[Scanned]:
    scanner = LineScanner(longest)
    return [line for part in parts for line in scanner.feed(part)] + scanner.close()


@given(_SHREDS, PLACES, st.sampled_from([0, 1, 4, 10_000]))
@example(b"", [], 4)
@example(BOM, [], 0)
@example(BOM[:2], [], 0)
@example(b"abcd\r\n", [], 4)
@example(BOM + b"abcd\r\n", [], 4)
@example(b"abcd" + b" " * 9 + b"\n", [], 4)
def test_the_lines_are_the_same_however_the_bytes_are_cut(data: bytes, places: list[int], longest: int) -> None:
    whole = scanned([data], longest)
    assert scanned(pieces(data, places), longest) == whole
    assert scanned(bytewise(data), longest) == whole


@given(_SHREDS, st.sampled_from([1, 4, 10_000]))
def test_the_scanner_finds_the_lines_that_the_reader_finds(data: bytes, longest: int) -> None:
    reader = LineReader(longest)
    assert [line.text for line in scanned([data], longest)] == reader.feed(data) + reader.close()


@given(_SHREDS)
def test_a_lines_bytes_read_again_are_the_line(data: bytes) -> None:
    end = 0
    for line in scanned([data]):
        assert data[line.start : line.stop].strip() == line.text
        assert line.number == data[: line.start].count(b"\n") + 1
        assert line.start >= end
        end = line.stop
    assert data[end:].removeprefix(BOM).strip() == b""


# A mark within the file is refused by `read_line`, so no slice has one.
@given(st.sampled_from([b"", BOM]), _SHREDS.map(lambda data: data.replace(BOM, b"")), PLACES)
def test_a_slice_read_again_has_the_lines_that_were_counted_into_it(
    mark: bytes, rest: bytes, places: list[int]
) -> None:
    data = mark + rest
    lines = scanned([data])
    assert split(data) == [line.text for line in lines]
    for cut in places:
        first, second = lines[: cut * len(lines) // 1000], lines[cut * len(lines) // 1000 :]
        for part in (first, second):
            if part:
                assert split(data[part[0].start : part[-1].stop]) == [line.text for line in part]


def test_offsets_count_the_line_feed_and_the_mark_and_numbers_count_blank_lines() -> None:
    data = BOM + b"{}\r\n\n  \n [1] \n" + b"x" * 20 + b"\n{}"
    assert scanned(bytewise(data), 10) == [
        Scanned(3, 7, 1, b"{}"),
        Scanned(11, 17, 4, b"[1]"),
        Scanned(17, 38, 5, None),
        Scanned(38, 40, 6, b"{}"),
    ]


def test_a_line_is_handed_out_as_soon_as_it_is_complete() -> None:
    scanner = LineScanner(100)
    assert scanner.feed(b"{}") == []
    assert scanner.feed(b"\n[") == [Scanned(0, 3, 1, b"{}")]
    assert scanner.close() == [Scanned(3, 4, 2, b"[")]
    assert scanner.close() == []


def test_a_line_that_is_too_long_is_not_kept_in_memory() -> None:
    scanner = LineScanner(10)
    for _ in range(100):
        assert scanner.feed(b"x" * 1000) == []
    assert scanner._held == []
    assert scanner.feed(b"\n") == [Scanned(0, 100_001, 1, None)]


def line(custom_id: object = "a", body: object = None, **more: object) -> bytes:
    whole = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body or {"model": "m", "messages": []}}
    return json.dumps({**whole, **more}).encode()


def without(field: str) -> bytes:
    return json.dumps({name: value for name, value in json.loads(line()).items() if name != field}).encode()


def refusal(text: bytes, endpoint: str = CHAT) -> tuple[str, str | None]:
    with pytest.raises(LineError) as caught:
        read_line(text, endpoint)
    assert caught.value.message
    return caught.value.code, caught.value.param


@pytest.mark.parametrize("url", [CHAT, CHAT.removeprefix("/v1")])
@pytest.mark.parametrize("endpoint", [CHAT, CHAT.removeprefix("/v1")])
def test_a_right_line_is_read_with_or_without_the_version(url: str, endpoint: str) -> None:
    read = read_line(line("ü", {"model": "m", "n": 1.50}, url=url), endpoint)
    assert (read.custom_id, read.url, read.method) == ("ü", url, "POST")
    assert json.loads(bytes(read.body)) == {"model": "m", "n": 1.5}


def test_the_body_keeps_its_bytes() -> None:
    body = b'{ "model":"m" ,"t":1.50, "x":"\\u00e9" }'
    text = b'{"body": ' + body + b', "custom_id": "a", "url": "/v1/chat/completions", "more": [1]}'
    assert bytes(read_line(text, CHAT).body) == body


def test_the_method_may_be_left_out() -> None:
    assert read_line(without("method"), CHAT).method == "POST"


_DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "text",
    [
        b"x",
        b"{",
        b"[]",
        b"5",
        b"null",
        b'"a"',
        b"{}{}",
        b"{'a': 1}",
        BOM + b"{}",
        b'{"custom_id": 5, "body": {"model": ',
        b'{"custom_id": "\xff"}',
        line()[:-1] + b', "more": "\xff"}',
        line("a", {"model": "m", "x": "@"}).replace(b"@", b"\xff"),
        line("a", {"model": "m", "x": "@"}).replace(b'"@"', _DEEP),
        b'{"custom_id": 5, "body": ' + _DEEP,
    ],
)
def test_a_line_that_is_no_json_object_is_said_to_be_that(text: bytes) -> None:
    assert refusal(text) == ("invalid_json_line", None)


@pytest.mark.parametrize("field", ["custom_id", "url", "body"])
def test_a_field_that_is_missing_is_named(field: str) -> None:
    assert refusal(without(field)) == ("missing_required_parameter", field)


@pytest.mark.parametrize(
    ("text", "param"),
    [
        (line(""), "custom_id"),
        (line("x" * 513), "custom_id"),
        (line(5), "custom_id"),
        (line(None), "custom_id"),
        (line(method="GET"), "method"),
        (line(method="post"), "method"),
        (line(method=None), "method"),
        (line(url=5), "url"),
        (line(body=[1]), "body"),
        (line(body="text"), "body"),
        (line().replace(b'{"model": "m", "messages": []}', b"null"), "body"),
        (line(body={"model": "m", "stream": True}), "body.stream"),
        (line(body={"model": "m", "stream": "yes"}), "body.stream"),
        (line(body={"model": 5}), "body.model"),
        (line(body={"model": None}), "body.model"),
    ],
)
def test_a_wrong_value_is_an_invalid_request_that_names_its_field(text: bytes, param: str) -> None:
    assert refusal(text) == ("invalid_request", param)


def test_an_id_of_just_the_length_that_is_allowed_passes() -> None:
    assert read_line(line("ü" * 512), CHAT).custom_id == "ü" * 512


@pytest.mark.parametrize("body", [{"messages": []}, {"model": ""}])
def test_a_model_that_is_missing_is_named(body: dict[str, Any]) -> None:
    assert refusal(line(body=body)) == ("missing_required_parameter", "body.model")


def test_an_endpoint_that_needs_no_model_takes_a_line_without_one() -> None:
    assert read_line(line(body={"input": "x"}, url="/v1/moderations"), "/v1/moderations").custom_id == "a"


@pytest.mark.parametrize("url", ["/v1/embeddings", "/v1/v1/chat/completions", "", "/v1/chat/completions/", "chat"])
def test_a_url_of_another_endpoint_is_a_mismatch(url: str) -> None:
    assert refusal(line(url=url)) == ("url_mismatch", "url")


def checker(most: int = 1000, allowed: str = "m") -> Checker:
    return Checker(CHAT, lambda model: model is None or model.startswith(allowed), most)


def see_all(check: Checker, *texts: bytes) -> list[Line | None]:
    lines = [check.see(one) for one in scanned([b"\n".join(texts)], 2000)]
    check.finish()
    return lines


def codes(check: Checker) -> list[tuple[str, int | None, str | None]]:
    return [(error["code"], error["line"], error["param"]) for error in check.errors]


def test_a_right_file_has_no_errors() -> None:
    check = checker()
    lines = see_all(check, line("a"), line("b", {"model": "m2"}))
    assert [one and one.custom_id for one in lines] == ["a", "b"]
    assert (check.lines, check.wrong, check.errors, check.models) == (2, 0, [], {"m": 1, "m2": 2})


def test_errors_name_the_line_as_an_editor_shows_it() -> None:
    check = checker()
    lines = see_all(
        check, line("a"), b"", b"x", line("a"), line("c", {"model": "other"}), b'{"x": "%s"}' % (b"x" * 3000)
    )
    assert codes(check) == [
        ("invalid_json_line", 3, None),
        ("duplicate_custom_id", 4, "custom_id"),
        ("model_not_found", 5, "body.model"),
        ("invalid_request", 6, None),
    ]
    assert all(set(error) == {"code", "line", "message", "param"} and error["message"] for error in check.errors)
    assert [one is not None for one in lines] == [True, False, False, False, False]
    assert (check.lines, check.wrong) == (5, 4)


def test_a_file_without_lines_is_empty() -> None:
    check = checker()
    see_all(check, b"", b"  ", b"\r")
    assert codes(check) == [("empty_file", None, None)]
    assert check.wrong == 1


def test_a_file_with_too_many_lines_is_told_so_once() -> None:
    check = checker(most=2)
    lines = see_all(check, *(line(str(index)) for index in range(5)))
    assert codes(check) == [("too_many_tasks", None, None)]
    assert [one is not None for one in lines] == [True, True, False, False, False]
    assert (check.lines, check.wrong) == (5, 1)


def test_only_the_first_hundred_errors_are_kept_but_all_are_counted() -> None:
    check = checker()
    see_all(check, *[b"x"] * 250)
    assert (len(check.errors), check.wrong) == (100, 250)
    assert check.errors[-1]["line"] == 100


def test_the_models_are_collected_up_to_sixty_five_and_every_one_is_checked() -> None:
    check = checker()
    see_all(check, *(line(str(index), {"model": f"m{index}"}) for index in range(100)), line("x", {"model": "other"}))
    assert len(check.models) == 65
    assert codes(check) == [("model_not_found", 101, "body.model")]


def test_a_line_without_a_model_is_checked_too() -> None:
    check = Checker("/v1/moderations", lambda model: model is not None, 10)
    see_all(check, line(body={"input": "x"}, url="/v1/moderations"))
    assert codes(check) == [("model_not_found", 1, "body.model")]
    assert check.models == {}


@given(st.lists(st.sampled_from("abcde"), max_size=12))
def test_every_repeated_id_is_a_duplicate(ids: list[str]) -> None:
    check = checker()
    lines = see_all(check, *map(line, ids))
    assert [one.custom_id for one in lines if one] == list(dict.fromkeys(ids))
    assert check.wrong == (len(ids) - len(set(ids)) if ids else 1)
