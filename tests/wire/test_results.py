"""Result lines and the summary: each line is one line of JSON, whatever the upstream sent."""

import json
from typing import Any

import pytest

from app.wire.results import Result, Summary, Timing


def replied(body: bytes, status: int = 200, *, model: str | None = None, upstream_ms: float = 7.25) -> Result:
    return Result(3, "mine", model, Timing(1.5, upstream_ms, 2), status, "req_1", body)


def failed(code: str = "timeout") -> Result:
    return Result(3, "mine", None, Timing(attempts=1), code=code, message="it took too long")


def parsed(result: Result) -> dict[str, Any]:
    """The line's fields; fails if it is not one line of UTF-8 JSON."""
    line = result.line()
    assert b"\n" not in line
    assert b"\r" not in line
    found: dict[str, Any] = json.loads(line.decode())
    return found


def test_a_reply_is_a_batch_output_line_with_index_and_timing() -> None:
    line = parsed(replied(b'{"a":1.50}'))
    assert line.pop("id").startswith("batch_req_")
    assert line == {
        "index": 3,
        "custom_id": "mine",
        "response": {"status_code": 200, "request_id": "req_1", "body": {"a": 1.5}},
        "error": None,
        "timing": {"queue_ms": 1.5, "upstream_ms": 7.25, "attempts": 2},
    }


def test_an_upstreams_error_is_a_response_with_its_status_and_body() -> None:
    line = parsed(replied(b'{"error":{"code":"x"}}', 429))
    assert line["response"] == {"status_code": 429, "request_id": "req_1", "body": {"error": {"code": "x"}}}
    assert line["error"] is None


def test_what_has_no_reply_is_an_error() -> None:
    line = parsed(failed())
    assert line["response"] is None
    assert line["error"] == {"code": "timeout", "message": "it took too long"}


def test_the_line_names_the_model_only_where_the_request_named_models() -> None:
    assert "model" not in parsed(replied(b"{}"))
    assert parsed(replied(b"{}", model="west/m"))["model"] == "west/m"


def test_every_line_has_its_own_id() -> None:
    assert parsed(replied(b"{}"))["id"] != parsed(replied(b"{}"))["id"]


def test_a_body_keeps_the_bytes_of_its_values() -> None:
    assert (
        b'"body":{"a":1.50,"n":123456789012345678901234567890}'
        in replied(b'{"a":1.50,"n":123456789012345678901234567890}').line()
    )


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_body_of_several_lines_stays_on_one_line(line_end: bytes) -> None:
    pretty = line_end.join([b"{", b'  "text": "two\\nlines",', b'  "n": [1, 2]', b"}"])
    assert parsed(replied(pretty))["response"]["body"] == {"text": "two\nlines", "n": [1, 2]}


@pytest.mark.parametrize(
    "body",
    [
        b"[1,2]",
        b"null",
        b'"text"',
        b'{"usage":5}',
        b'{"usage":"none","choices":[]}',
        b'{"usage":null}',
        b'{"usage":[1]}',
        b'{"half an emoji":"\\ud83d"}',
    ],
)
def test_a_body_that_is_json_is_shown_as_json_whatever_it_holds(body: bytes) -> None:
    assert parsed(replied(body))["response"]["body"] == json.loads(body)


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"<html>", "<html>"),
        (b"", ""),
        (b'{"half', '{"half'),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b'{"a":"\xff"}', '{"a":"\ufffd"}'),
        (b"two\nlines", "two\nlines"),
    ],
)
def test_a_body_that_is_not_json_is_shown_as_text(body: bytes, shown: str) -> None:
    assert parsed(replied(body))["response"]["body"] == shown


def test_a_body_nested_too_deeply_is_shown_as_text() -> None:
    body = b"[" * 100_000 + b"]" * 100_000
    assert parsed(replied(body))["response"]["body"] == body.decode()


@pytest.mark.parametrize(("status", "ok"), [(200, True), (299, True), (199, False), (300, False), (500, False)])
def test_only_a_reply_in_the_two_hundreds_is_a_success(status: int, ok: bool) -> None:
    assert replied(b"{}", status).ok is ok
    assert not failed().ok


def test_the_summary_adds_up_counts_usage_and_times() -> None:
    summary = Summary()
    usage = b'{"usage":{"total_tokens":5,"details":{"cached":1}}}'
    for result in (replied(usage), replied(usage, upstream_ms=2.0), replied(usage, 500), failed()):
        summary.count(result)
    assert summary.id.startswith("fanout_")
    assert summary.fields(12.345) == {
        "id": summary.id,
        "counts": {"total": 4, "completed": 2, "failed": 2},
        "usage": {"total_tokens": 10, "details": {"cached": 2}},
        "timing": {"wall_ms": 12.3, "sum_ms": 16.5},
    }


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"usage":null}', b'{"usage":5}', b"[" * 100_000])
def test_a_success_without_usage_is_counted_all_the_same(body: bytes) -> None:
    summary = Summary()
    summary.count(replied(body))
    assert summary.fields(0)["counts"] == {"total": 1, "completed": 1, "failed": 0}
    assert summary.usage == {}
