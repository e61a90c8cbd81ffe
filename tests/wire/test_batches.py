"""What a client says of a batch, and what it is told."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequestError
from app.store import tables
from app.wire.batch_lines import LineScanner, read_line
from app.wire.batches import Create, Page, batch_object, inline_lines, page, read_create, read_page

CHAT = "/v1/chat/completions"


def create(**fields: object) -> Create:
    """From a file, unless other fields say otherwise; None leaves a field out."""
    given_fields = {"endpoint": CHAT, "input_file_id": "file-1", "completion_window": "24h", **fields}
    return read_create(json.dumps({name: value for name, value in given_fields.items() if value is not None}).encode())


def inline(*requests: dict[str, object], **fields: object) -> Create:
    return create(
        **{"endpoint": None, "input_file_id": None, "completion_window": None, "requests": requests, **fields}
    )


def refused(**fields: object) -> str | None:
    with pytest.raises(InvalidRequestError) as caught:
        create(**fields)
    assert caught.value.message
    return caught.value.param


@pytest.mark.parametrize(
    "path", ["chat/completions", "responses", "embeddings", "completions", "moderations", "images/generations"]
)
def test_openais_six_endpoints_are_taken(path: str) -> None:
    assert create(endpoint=f"/v1/{path}").endpoint == f"/v1/{path}"
    assert create(endpoint=f"/{path}").endpoint == f"/v1/{path}"


def test_what_openais_clients_send_is_read() -> None:
    expiry = {"anchor": "created_at", "seconds": 3600}
    read = create(metadata={"a": "b"}, output_expires_after=expiry, something="else")
    assert (read.input_file_id, read.requests, read.window_seconds) == ("file-1", None, 86_400)
    assert read.metadata == {"a": "b"}
    assert read.output_expires_after is not None
    assert read.output_expires_after.seconds == 3600
    assert (read.on_doubt, read.dedupe, read.pack_embeddings, read.priority) == (None, None, None, 0)


def test_this_servers_own_fields_are_read() -> None:
    read = create(on_doubt="fail", dedupe=True, pack_embeddings=False, priority=-100)
    assert (read.on_doubt, read.dedupe, read.pack_embeddings, read.priority) == ("fail", True, False, -100)


@pytest.mark.parametrize(
    ("window", "seconds"),
    [("24h", 86_400), ("90m", 5400), ("1s", 1), ("30d", 2_592_000), ("720h", 2_592_000), (None, 86_400)],
)
def test_a_window_is_a_number_and_a_unit(window: str | None, seconds: int) -> None:
    assert create(completion_window=window).window_seconds == seconds


@pytest.mark.parametrize(
    "window", ["", "24", "h", "0h", "0s", "31d", "721h", "-1h", "1.5h", " 1h", "1h\n", "1w", "٣h", "9" * 30 + "d"]
)
def test_another_window_is_refused(window: str) -> None:
    assert refused(completion_window=window) == "completion_window"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": None}, "endpoint"),
        ({"endpoint": 5}, "endpoint"),
        ({"endpoint": "/v1/audio/speech"}, "endpoint"),
        ({"endpoint": "/v1/images/edits"}, "endpoint"),
        ({"endpoint": "/v1/chat"}, "endpoint"),
        ({"endpoint": "/v1/v1/embeddings"}, "endpoint"),
        ({"input_file_id": None}, "input_file_id"),
        ({"input_file_id": ""}, "input_file_id"),
        ({"input_file_id": 5}, "input_file_id"),
        ({"requests": [{"body": {}}]}, "requests"),
        ({"requests": []}, "requests"),
        ({"completion_window": 24}, "completion_window"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(index): "" for index in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "a"}}, "metadata"),
        ({"metadata": {"k": "a" * 513}}, "metadata.k"),
        ({"output_expires_after": 5}, "output_expires_after"),
        ({"output_expires_after": {"seconds": 3600}}, "output_expires_after.anchor"),
        ({"output_expires_after": {"anchor": "created_at"}}, "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "output_expires_after.anchor"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3599}}, "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 2_592_001}}, "output_expires_after.seconds"),
        ({"on_doubt": "ask"}, "on_doubt"),
        ({"dedupe": "yes"}, "dedupe"),
        ({"pack_embeddings": 1}, "pack_embeddings"),
        ({"priority": 101}, "priority"),
        ({"priority": 1.5}, "priority"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, object], param: str) -> None:
    assert refused(**fields) == param


@pytest.mark.parametrize("body", [b"", b"[]", b"x", b'{"endpoint": "\xff"}', b'{"x": ' + b"[" * 100_000])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        read_create(body)


def test_metadata_of_just_the_size_that_is_allowed_passes() -> None:
    metadata = {f"{index:0>64}": "ü" * 512 for index in range(16)}
    assert create(metadata=metadata).metadata == metadata


def test_inline_requests_need_nothing_but_bodies() -> None:
    read = inline({"body": {"model": "m"}}, {"body": {"model": "n"}})
    assert (read.endpoint, read.window_seconds, read.input_file_id) == (CHAT, 86_400, None)
    assert [json.loads(line) for line in inline_lines(read)] == [
        {"custom_id": "0", "method": "POST", "url": CHAT, "body": {"model": "m"}},
        {"custom_id": "1", "method": "POST", "url": CHAT, "body": {"model": "n"}},
    ]


def test_the_first_inline_request_says_the_endpoint_when_nobody_else_does() -> None:
    requests: list[dict[str, object]] = [{"body": {}, "url": "/embeddings"}, {"body": {}}]
    read = inline(*requests)
    assert read.endpoint == "/v1/embeddings"
    assert [json.loads(line)["url"] for line in inline_lines(read)] == ["/embeddings", "/v1/embeddings"]
    assert inline(*requests, endpoint=CHAT).endpoint == CHAT


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({}, "requests[0].body"),
        ({"body": []}, "requests[0].body"),
        ({"body": None}, "requests[0].body"),
        ({"body": {}, "custom_id": 5}, "requests[0].custom_id"),
        ({"body": {}, "method": "GET"}, "requests[0].method"),
        ({"body": {}, "url": "/v1/audio/speech"}, "requests[0].url"),
        (5, "requests[0]"),
    ],
)
def test_a_wrong_inline_request_is_named(request_: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        inline(request_)
    assert caught.value.param == param


@pytest.mark.parametrize("field", ["body", "custom_id", "method", "url"])
def test_a_later_request_that_is_wrong_is_named_by_its_place(field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        inline({"body": {}}, {"body": {}, field: 5})
    assert caught.value.param == f"requests[1].{field}"


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5),
            st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.integers(0, 9)),
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([None, 2]),
)
def test_inline_requests_become_the_lines_of_a_file_that_reads_the_same(
    sent: list[tuple[str, dict[str, int]]], indent: int | None
) -> None:
    requests = [{"custom_id": name, "body": {**body, "model": "m"}} for name, body in sent]
    read = read_create(json.dumps({"requests": requests}, indent=indent).encode())
    found = LineScanner(10_000).feed(b"".join(inline_lines(read)))
    lines = [read_line(one.text or b"", CHAT) for one in found]
    assert [(line.custom_id, json.loads(bytes(line.body))) for line in lines] == [
        (name, {**body, "model": "m"}) for name, body in sent
    ]


def test_an_inline_body_keeps_its_numbers() -> None:
    read = read_create(b'{"requests": [{"body": {"t": 1.50,\n "u": 1e3}}]}')
    assert b'{"t": 1.50,  "u": 1e3}' in next(inline_lines(read))


def row(**more: object) -> dict[str, Any]:
    """As the table gives it: every column, nothing in it but what stands here."""
    empty = {column.name: 0 if "tokens" in column.name else None for column in tables.batches.columns}
    said = {"id": "batch_1", "endpoint": CHAT, "input_file_id": "file-1", "completion_window": "24h"}
    counts = {"total": 0, "completed": 0, "failed": 0}
    return {**empty, **said, **counts, "status": "validating", "created_at": 5, "expires_at": 86_405, **more}


_NULLS = [
    "model",
    "errors",
    "output_file_id",
    "error_file_id",
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
    "metadata",
    "usage",
]


def test_a_new_batch_is_shown_with_exactly_openais_fields() -> None:
    assert batch_object(row(), None) == {
        "id": "batch_1",
        "object": "batch",
        "endpoint": CHAT,
        "input_file_id": "file-1",
        "completion_window": "24h",
        "status": "validating",
        "created_at": 5,
        "expires_at": 86_405,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        **dict.fromkeys(_NULLS),
    }


def test_usage_is_shown_once_something_was_counted() -> None:
    tokens = {"input_tokens": 10, "cached_tokens": 4, "output_tokens": 7, "reasoning_tokens": 3, "total_tokens": 17}
    shown = batch_object(row(total=3, completed=1, failed=1, **tokens), None)
    assert shown["request_counts"] == {"total": 3, "completed": 1, "failed": 1}
    assert shown["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 17,
    }
    assert batch_object(row(completed=1), None)["usage"]["total_tokens"] == 0


def test_errors_are_a_list_object() -> None:
    error = {"code": "empty_file", "line": None, "message": "x", "param": None}
    assert batch_object(row(errors=[error]), None)["errors"] == {"object": "list", "data": [error]}


def test_progress_is_added_where_it_is_known() -> None:
    assert batch_object(row(), {"per_second": 1.5})["progress"] == {"per_second": 1.5}


def test_openais_own_types_take_what_is_shown() -> None:
    from openai.types import Batch  # noqa: PLC0415 (half a second, for this test only)

    error = {"code": "empty_file", "line": None, "message": "x", "param": None}
    for shown in (batch_object(row(), None), batch_object(row(completed=1, errors=[error], metadata={"a": "b"}), None)):
        Batch.model_validate(shown, strict=True)


def test_a_page_names_its_first_and_last() -> None:
    objects = [{"id": "c"}, {"id": "b"}, {"id": "a"}]
    shown = page(objects, has_more=True)
    assert shown == {"object": "list", "data": objects, "first_id": "c", "last_id": "a", "has_more": True}


def test_an_empty_page_has_no_first_and_last() -> None:
    assert page([], has_more=False) == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.parametrize(
    ("query", "read"),
    [
        ({}, Page(None, 20)),
        ({"after": "", "limit": ""}, Page(None, 20)),
        ({"after": "batch_1", "limit": "1"}, Page("batch_1", 1)),
        ({"limit": "100", "order": "asc"}, Page(None, 100)),
    ],
)
def test_a_page_is_asked_for_by_id_and_limit(query: dict[str, str], read: Page) -> None:
    assert read_page(query, 20, 100) == read


@pytest.mark.parametrize("limit", ["0", "101", "-1", "1.5", "x", "٣", " 1", "1e1", "9" * 5000])
def test_a_wrong_limit_is_named(limit: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_page({"limit": limit}, 20, 100)
    assert caught.value.param == "limit"
