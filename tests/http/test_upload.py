"""A form is the same, however its bytes are cut."""

import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as some

from app.errors import BodyTooLargeError, InvalidRequestError
from app.http.upload import Form, lifetime_of, receive
from app.services.files import Making

EDGE = "edge"
KIND = f"multipart/form-data; boundary={EDGE}"
CONTENT = b"a\r\n--edgy\r\n--edg\r\n\r\n--\r\n" * 3


def form(*parts: tuple[str, bytes]) -> bytes:
    pieces = [f"--{EDGE}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + body for head, body in parts]
    return b"\r\n".join([*pieces, f"--{EDGE}--\r\n".encode()])


WHOLE = form(('name="file"; filename="a.jsonl"', CONTENT), ('name="purpose"', b"batch"))


class Kept:
    """A writer that keeps what is written."""

    def __init__(self) -> None:
        self.content = b""
        self.longest = 0

    @property
    def size(self) -> int:
        return len(self.content)

    @size.setter
    def size(self, _: int) -> None:
        raise NotImplementedError

    async def write(self, data: bytes) -> None:
        self.content += data
        self.longest = max(self.longest, len(data))

    async def touch(self) -> None:
        raise NotImplementedError


async def read(body: bytes, cuts: list[int], limit: int = 10**6) -> tuple[Making, Kept]:
    async def pieces() -> AsyncIterator[bytes]:
        places = [0, *sorted(cuts), len(body)]
        for start, stop in itertools.pairwise(places):
            if start < stop:
                yield body[start:stop]

    kept = Kept()
    making = Making("file-a", kept, "", "", None)
    await receive(pieces(), Form(KIND), making, limit)
    return making, kept


@given(some.lists(some.integers(0, len(WHOLE)), max_size=20))
async def test_any_cut_gives_the_same_file(cuts: list[int]) -> None:
    making, kept = await read(WHOLE, cuts)
    assert kept.content == CONTENT
    assert (making.filename, making.purpose, making.expires_after) == ("a.jsonl", "batch", None)


async def test_a_form_that_comes_byte_by_byte_is_read() -> None:
    _, kept = await read(WHOLE, list(range(len(WHOLE))))
    assert kept.content == CONTENT


@pytest.mark.parametrize("stop", [0, 1, 20, 80, len(WHOLE) - 80, len(WHOLE) - 10])
async def test_a_form_that_ends_early_is_refused(stop: int) -> None:
    with pytest.raises(InvalidRequestError, match="ends before its last boundary"):
        await read(WHOLE[:stop], [])


async def test_a_form_that_ends_where_a_part_should_follow_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="ends before its last boundary"):
        await read(WHOLE.replace(b"--edge--", b"--edge"), [])


async def test_a_file_may_be_as_large_as_the_limit_and_no_larger() -> None:
    await read(WHOLE, [], len(CONTENT))
    with pytest.raises(BodyTooLargeError):
        await read(WHOLE, [], len(CONTENT) - 1)


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        ('filename="a b.jsonl"', "a b.jsonl"),
        ('filename="../../etc/passwd"', "passwd"),
        ('filename="C:\\\\dir\\\\x.jsonl"', "x.jsonl"),
        ('filename="ümläut.jsonl"', "ümläut.jsonl"),
        ('filename="a\x00b\x7f\u2028.jsonl"', "ab.jsonl"),
        (f'filename="{"n" * 300}"', "n" * 255),
        ('filename=""', "upload"),
        ('filename="/"', "upload"),
        ("", "upload"),
    ],
)
async def test_a_file_name_is_kept_without_folders_and_traps(given_: str, kept: str) -> None:
    making, _ = await read(form((f'name="file"; {given_}', b"x"), ('name="purpose"', b"batch")), [])
    assert making.filename == kept


async def test_a_wrong_purpose_is_told_before_the_file_has_come() -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield form(('name="purpose"', b"nothing"), ('name="file"', b"x")).removesuffix(b"\r\n--edge--\r\n")
        while True:
            yield b"x" * 1000

    with pytest.raises(InvalidRequestError) as told:
        await receive(endless(), Form(KIND), Making("file-a", Kept(), "", "", None), 10**9)
    assert told.value.param == "purpose"


@pytest.mark.parametrize(
    "head", [b"", b"--edge\r\n", b"--edge\r\nx: ", b'--edge\r\ncontent-disposition: form-data; name="a"\r\n\r\n']
)
async def test_what_never_becomes_a_file_is_not_read_for_ever(head: bytes) -> None:
    fed = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal fed
        yield head
        while True:
            fed += 1000
            yield b"x" * 1000

    with pytest.raises(InvalidRequestError):
        await receive(endless(), Form(KIND), Making("file-a", Kept(), "", "", None), 10**9)
    assert fed < 3_000_000


async def test_what_follows_the_last_boundary_is_not_read_for_ever() -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield WHOLE
        while True:
            yield b"x" * 1000

    with pytest.raises(InvalidRequestError):
        await receive(endless(), Form(KIND), Making("file-a", Kept(), "", "", None), 10**9)


def test_seconds_may_be_a_number_in_json() -> None:
    assert lifetime_of({"expires_after": '{"anchor":"created_at","seconds":3600}'}) == 3600
    assert lifetime_of({"expires_after": '{"anchor":"created_at","seconds":"3600"}'}) == 3600
    assert lifetime_of({"purpose": "batch"}) is None
