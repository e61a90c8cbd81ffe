"""Files, as the official SDK uploads, lists, reads and deletes them."""

import json
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest
from openai import OpenAI

from app.config import ConfigError
from app.http.upload import PURPOSES
from app.settings import GatewaySettings
from app.wiring import open_files
from tests.store.s3 import s3
from tests.support import Server, eventually, serving

MIB = 1024**2
LINE = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{}}\n'
_TOML = """
body_timeout = 1
send_timeout = 1
drain_timeout = 1
max_file_bytes = 400_000_000
[keys.one]
key = "sk-one"
[keys.other]
key = "sk-other"
"""


@pytest.fixture(scope="module")
def keeper(simulator: Server) -> Iterator[Server]:
    """A gateway with two keys and short clocks."""
    env = {"OPENAI_BASE_URL": simulator.base_url, "OPENAI_API_KEY": "sk-upstream"}
    with serving("serve", toml=_TOML, env=env) as server:
        yield server


@pytest.fixture
def one(keeper: Server) -> Iterator[OpenAI]:
    """The SDK with a key whose files are gone before the test and after it."""
    with OpenAI(base_url=keeper.base_url, api_key="sk-one", max_retries=0) as client:
        _empty(client)
        yield client
        _empty(client)


@pytest.fixture
async def http(keeper: Server) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": "Bearer sk-one"}
    async with httpx.AsyncClient(base_url=keeper.root, timeout=60, headers=headers) as plain:
        yield plain


def _empty(client: OpenAI) -> None:
    for file in client.files.list():
        client.files.delete(file.id)


def stored(server: Server) -> list[str]:
    return sorted(path.name for path in (server.folder / "data" / "files").iterdir())


def form(*parts: tuple[str, bytes], boundary: str = "edge") -> bytes:
    """A multipart body; a part's first half is what stands behind `form-data; `."""
    pieces = [f"--{boundary}\r\ncontent-disposition: form-data; {head}\r\n\r\n".encode() + body for head, body in parts]
    return b"\r\n".join([*pieces, f"--{boundary}--\r\n".encode()])


PURPOSE = ('name="purpose"', b"batch")
FILE = ('name="file"; filename="lines.jsonl"', LINE)
MULTIPART = {"content-type": "multipart/form-data; boundary=edge"}


async def upload(http: httpx.AsyncClient, *parts: tuple[str, bytes], path: str = "/v1/files") -> httpx.Response:
    return await http.post(path, content=form(*parts), headers=MULTIPART)


def test_a_file_goes_up_and_comes_down_byte_by_byte(one: OpenAI, keeper: Server, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(LINE * 1000)
    made = one.files.create(file=path, purpose="batch")
    assert made.id.startswith("file-")
    assert len(made.id) == 29
    assert (made.object, made.filename, made.purpose, made.status) == ("file", "lines.jsonl", "batch", "processed")
    assert (made.bytes, made.expires_at) == (len(LINE) * 1000, None)
    assert abs(made.created_at - time.time()) < 60
    assert one.files.retrieve(made.id) == made
    assert one.files.content(made.id).read() == LINE * 1000
    assert stored(keeper) == [made.id]


def test_every_form_in_which_the_sdk_takes_a_file_is_understood(one: OpenAI) -> None:
    bare = one.files.create(file=LINE, purpose="user_data")
    named = one.files.create(file=("ü/../\u202ename.jsonl", LINE, "application/jsonl"), purpose="batch")
    assert bare.filename == "upload"
    assert named.filename == "name.jsonl"
    empty = one.files.create(file=("empty", b""), purpose="batch")
    assert one.files.content(empty.id).read() == b""


@pytest.mark.parametrize("purpose", PURPOSES)
def test_every_purpose_of_an_upload_is_taken(one: OpenAI, purpose: Any) -> None:
    assert one.files.create(file=b"x", purpose=purpose).purpose == purpose


def test_the_list_pages_by_itself_in_both_orders_and_by_purpose(one: OpenAI) -> None:
    made = [one.files.create(file=b"x", purpose="batch" if number % 2 else "evals").id for number in range(7)]
    for limit in (1, 2, 3, 7, 10_000):
        assert [file.id for file in one.files.list(limit=limit)] == made[::-1]
        assert [file.id for file in one.files.list(limit=limit, order="asc")] == made
        assert [file.id for file in one.files.list(limit=limit, purpose="batch")] == made[1::2][::-1]
    page = one.files.list(limit=3)
    assert page.has_more
    assert not one.files.list(limit=4, after=page.data[-1].id).has_more


async def test_the_list_tells_its_ends(one: OpenAI, http: httpx.AsyncClient) -> None:
    empty = (await http.get("/v1/files")).json()
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    made = [one.files.create(file=b"x", purpose="batch").id for _ in range(3)]
    page = (await http.get("/files", params={"limit": 2})).json()
    assert (page["first_id"], page["last_id"], page["has_more"]) == (made[2], made[1], True)


def test_whoever_deletes_what_he_lists_sees_every_file_once(one: OpenAI) -> None:
    made = [one.files.create(file=b"x", purpose="batch").id for _ in range(6)]
    for order in ("asc", "desc"):
        seen = []
        for file in one.files.list(limit=2, order=cast("Any", order)):
            seen.append(file.id)
            if order == "desc" or made.index(file.id) % 2:
                one.files.delete(file.id)
        assert seen == (made if order == "asc" else made[::2][::-1])


def test_a_deleted_file_is_gone(one: OpenAI, keeper: Server) -> None:
    made = one.files.create(file=b"x", purpose="batch")
    gone = one.files.delete(made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "file", True)
    assert stored(keeper) == []
    for ask in (one.files.retrieve, one.files.content, one.files.delete):
        with pytest.raises(openai.NotFoundError) as told:
            ask(made.id)
        assert told.value.body == {
            "message": f"there is no file '{made.id}'",
            "type": "not_found_error",
            "param": "id",
            "code": None,
        }


def test_another_keys_file_is_not_found(one: OpenAI, keeper: Server) -> None:
    made = one.files.create(file=b"x", purpose="batch")
    with OpenAI(base_url=keeper.base_url, api_key="sk-other", max_retries=0) as other:
        assert list(other.files.list()) == []
        for ask in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError):
                ask(made.id)
        with pytest.raises(openai.BadRequestError):
            other.files.list(after=made.id)
    with OpenAI(base_url=keeper.base_url, api_key="sk-wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            stranger.files.create(file=b"x", purpose="batch")
        with pytest.raises(openai.AuthenticationError):
            stranger.files.content(made.id)
    assert one.files.content(made.id).read() == b"x"


def test_a_file_may_be_asked_to_expire(one: OpenAI) -> None:
    made = one.files.create(file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
    assert made.expires_at == made.created_at + 3600


@pytest.mark.parametrize(
    "said",
    [
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "7200"},
        {"expires_after.anchor": "created_at", "expires_after.seconds": "7200"},
        {"expires_after": '{"anchor": "created_at", "seconds": 7200}'},
    ],
)
async def test_every_spelling_of_the_expiry_is_read(one: OpenAI, http: httpx.AsyncClient, said: dict[str, str]) -> None:
    more = [(f'name="{name}"', value.encode()) for name, value in said.items()]
    made = (await upload(http, FILE, *more, PURPOSE)).json()
    assert made["expires_at"] == made["created_at"] + 7200


async def test_the_purpose_may_come_after_the_file_and_the_length_may_be_unknown(
    one: OpenAI, http: httpx.AsyncClient
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        whole = form(('name="file"; filename="a.jsonl"', LINE * 30_000), PURPOSE)
        for start in range(0, len(whole), 100_001):
            yield whole[start : start + 100_001]

    answer = await http.post("/files", content=pieces(), headers=MULTIPART)
    assert answer.status_code == 200
    assert answer.json()["bytes"] == len(LINE) * 30_000
    content = await http.get(f"/files/{answer.json()['id']}/content", headers={"accept": "application/binary"})
    assert content.content == LINE * 30_000
    assert content.headers["content-type"] == "application/octet-stream"
    assert content.headers["content-length"] == str(len(LINE) * 30_000)


def field(name: str, value: str) -> tuple[str, bytes]:
    return f'name="{name}"', value.encode()


ANCHOR, SECONDS = field("expires_after[anchor]", "created_at"), field("expires_after[seconds]", "3600")


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ((FILE,), "purpose"),
        ((FILE, field("purpose", "batch_output")), "purpose"),
        ((field("purpose", ""), FILE), "purpose"),
        ((PURPOSE,), "file"),
        ((FILE, PURPOSE, FILE), "file"),
        ((FILE, PURPOSE, PURPOSE), "purpose"),
        ((FILE, PURPOSE, ANCHOR), "expires_after.seconds"),
        ((FILE, PURPOSE, SECONDS), "expires_after.anchor"),
        ((FILE, PURPOSE, SECONDS, field("expires_after[anchor]", "now")), "expires_after.anchor"),
        ((FILE, PURPOSE, ANCHOR, field("expires_after[seconds]", "3599")), "expires_after.seconds"),
        ((FILE, PURPOSE, ANCHOR, field("expires_after[seconds]", "2592001")), "expires_after.seconds"),
        ((FILE, PURPOSE, ANCHOR, field("expires_after[seconds]", "1e4")), "expires_after.seconds"),
        ((FILE, PURPOSE, field("expires_after", "{")), "expires_after"),
        ((FILE, PURPOSE, field("expires_after", "{}")), "expires_after.anchor"),
        ((('name="purpose"', b"\xff"), FILE), "purpose"),
        ((field("x", "y" * 20_000), FILE, PURPOSE), "x"),
        ((FILE, PURPOSE, *(field(str(number), "") for number in range(100))), None),
    ],
    ids=range(17),
)
async def test_a_wrong_form_is_a_400_that_names_the_field_and_leaves_nothing(
    one: OpenAI, http: httpx.AsyncClient, keeper: Server, parts: list[tuple[str, bytes]], param: str | None
) -> None:
    answer = await upload(http, *parts)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["param"] == param
    assert stored(keeper) == []


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{}", "application/json"),
        (b"", "multipart/form-data"),
        (b"no boundary at all", "multipart/form-data; boundary=edge"),
        (b"", "multipart/form-data; boundary=edge"),
        (form(FILE, PURPOSE)[:-8], "multipart/form-data; boundary=edge"),
        (form(FILE, PURPOSE), f"multipart/form-data; boundary={'e' * 5000}"),
        (b"--edge\r\n" + b"x" * 20_000, "multipart/form-data; boundary=edge"),
    ],
    ids=range(7),
)
async def test_what_is_no_form_is_a_400(
    one: OpenAI, http: httpx.AsyncClient, keeper: Server, body: bytes, kind: str
) -> None:
    answer = await http.post("/v1/files", content=body, headers={"content-type": kind})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert stored(keeper) == []


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=10001", "limit=x", "order=up", "purpose=%00", "after=%00", "after=file-nothing"]
)
async def test_a_wrong_question_is_a_400_that_names_the_parameter(http: httpx.AsyncClient, query: str) -> None:
    answer = await http.get(f"/v1/files?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.partition("=")[0]


@pytest.mark.parametrize("name", ["nothing", "%00", "..%2f..%2flock", "file-" + "a" * 300, "%ff"])
async def test_an_id_that_is_none_is_not_found(http: httpx.AsyncClient, name: str) -> None:
    for path in (f"/v1/files/{name}", f"/v1/files/{name}/content"):
        answer = await http.get(path)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
    assert (await http.delete(f"/v1/files/{name}")).status_code == 404


def rss(server: Server, field_: str = "VmRSS") -> int:
    """Bytes of memory that the server holds (`VmHWM`: has held at most)."""
    rows = dict(line.split(":") for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines())
    return int(rows[field_].split()[0]) * 1024


async def test_a_large_file_takes_no_memory_up_or_down(one: OpenAI, http: httpx.AsyncClient, keeper: Server) -> None:
    size = 300 * MIB

    async def pieces() -> AsyncIterator[bytes]:
        yield form(FILE).removesuffix(b"\r\n--edge--\r\n")
        for _ in range(300):
            yield bytes(MIB)
        yield b"\r\n" + form(PURPOSE)

    one.files.create(file=bytes(10 * MIB), purpose="batch")
    Path(f"/proc/{keeper.process.pid}/clear_refs").write_text("5")
    before = rss(keeper)
    made = (await http.post("/v1/files", content=pieces(), headers=MULTIPART)).json()
    assert made["bytes"] == size + len(LINE)
    came = 0
    async with http.stream("GET", f"/v1/files/{made['id']}/content") as answer:
        async for piece in answer.aiter_raw():
            came += len(piece)
    assert came == size + len(LINE)
    assert rss(keeper, "VmHWM") - before < 30 * MIB


async def test_a_file_that_is_too_large_is_refused_at_once_or_when_it_shows(
    one: OpenAI, http: httpx.AsyncClient, keeper: Server
) -> None:
    with _sending(keeper, "content-length: 500000000") as told:
        head = _answer(told)
        assert " 413 " in head.splitlines()[0]
        assert "max_file_bytes" in head

    async def pieces() -> AsyncIterator[bytes]:
        yield form(PURPOSE, FILE).removesuffix(b"\r\n--edge--\r\n")
        while True:
            yield bytes(MIB)

    async with http.stream("POST", "/v1/files", content=_until_refused(pieces()), headers=MULTIPART) as answer:
        assert answer.status_code == 413
        assert json.loads(await answer.aread())["error"]["code"] == "body_too_large"
    assert stored(keeper) == []


async def _until_refused(pieces: AsyncIterator[bytes], most: int = 450) -> AsyncIterator[bytes]:
    for _ in range(most):
        yield await anext(pieces)


def _sending(server: Server, length: str = "transfer-encoding: chunked") -> socket.socket:
    """A connection on which an upload has begun."""
    opened = socket.create_connection(("127.0.0.1", int(server.root.rsplit(":", 1)[1])))
    kind = MULTIPART["content-type"]
    head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-one\r\ncontent-type: {kind}\r\n{length}\r\n"
    opened.sendall(head.encode() + b"\r\n")
    return opened


def _answer(opened: socket.socket) -> str:
    """Returns: What the server says, an error that ends in `}}`."""
    opened.settimeout(20)
    came = b""
    while not came.endswith(b"}}"):
        piece = opened.recv(4096)
        assert piece, came
        came += piece
    return came.decode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def test_a_client_that_hangs_up_in_the_middle_leaves_nothing(one: OpenAI, keeper: Server) -> None:
    with _sending(keeper) as gone:
        gone.sendall(_chunk(form(PURPOSE, FILE).removesuffix(b"\r\n--edge--\r\n") + bytes(MIB)))
        await eventually(lambda: len(stored(keeper)) == 1)
        assert stored(keeper)[0].startswith(".tmp-")
    await eventually(lambda: stored(keeper) == [])
    assert list(one.files.list()) == []


async def test_a_client_that_falls_silent_is_told_and_leaves_nothing(one: OpenAI, keeper: Server) -> None:
    with _sending(keeper) as silent:
        silent.sendall(_chunk(form(PURPOSE, FILE).removesuffix(b"\r\n--edge--\r\n")))
        head = _answer(silent)
    assert " 408 " in head.splitlines()[0]
    assert stored(keeper) == []


async def test_a_reader_that_does_not_read_is_dropped(one: OpenAI, keeper: Server) -> None:
    made = one.files.create(file=bytes(30 * MIB), purpose="batch")
    with socket.create_connection(("127.0.0.1", int(keeper.root.rsplit(":", 1)[1]))) as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.sendall(
            f"GET /v1/files/{made.id}/content HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-one\r\n\r\n".encode()
        )
        await eventually(lambda: '"error":"slow_reader"' in keeper.log(), 20)


async def test_a_full_disk_is_a_507_and_leaves_nothing(one: OpenAI, keeper: Server) -> None:
    before = resource.prlimit(keeper.process.pid, resource.RLIMIT_FSIZE, (20 * MIB, resource.RLIM_INFINITY))
    try:
        with pytest.raises(openai.APIStatusError) as told:
            one.files.create(file=bytes(30 * MIB), purpose="batch")
    finally:
        resource.prlimit(keeper.process.pid, resource.RLIMIT_FSIZE, before)
    assert told.value.status_code == 507
    assert told.value.code == "storage_full"
    assert stored(keeper) == []
    assert one.files.create(file=bytes(30 * MIB), purpose="batch").bytes == 30 * MIB


def test_an_upload_that_is_cut_by_the_servers_end_is_told_and_leaves_nothing(simulator: Server) -> None:
    env = {"OPENAI_BASE_URL": simulator.base_url, "OPENAI_API_KEY": "sk-upstream"}
    with serving("serve", toml=_TOML.replace("body_timeout = 1", "body_timeout = 60"), env=env) as server:
        with _sending(server) as cut:
            cut.sendall(_chunk(form(PURPOSE, FILE).removesuffix(b"\r\n--edge--\r\n") + bytes(MIB)))
            _wait_for(lambda: len(stored(server)) == 1)
            server.process.terminate()
            head = _answer(cut)
        assert " 503 " in head.splitlines()[0]
        assert "draining" in head
        assert server.process.wait(20) == 0
        assert stored(server) == []


def _wait_for(check: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not check():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_files_outlive_the_server_that_took_them(simulator: Server, tmp_path: Path) -> None:
    env = {
        "OPENAI_BASE_URL": simulator.base_url,
        "OPENAI_API_KEY": "sk-upstream",
        "SLUICEGATE_DATA_DIR": str(tmp_path / "data"),
    }
    with serving("serve", env=env) as server, OpenAI(base_url=server.base_url, api_key="any") as client:
        made = client.files.create(file=LINE, purpose="batch")
        server.process.kill()
        server.process.wait()
    with serving("serve", env=env) as server, OpenAI(base_url=server.base_url, api_key="any") as client:
        assert client.files.retrieve(made.id) == made
        assert client.files.content(made.id).read() == LINE


async def test_files_can_be_kept_in_a_bucket(simulator: Server) -> None:
    async with s3() as bucket:
        env = {"AWS_ENDPOINT_URL": bucket.endpoint, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}
        env |= {
            "OPENAI_BASE_URL": simulator.base_url,
            "OPENAI_API_KEY": "sk",
            "SLUICEGATE_FILES_URL": "s3://some/where",
        }
        with serving("serve", env=env) as server:
            async with httpx.AsyncClient(base_url=server.base_url, timeout=60) as http:
                content = LINE * 300_000
                made = (await upload(http, ('name="file"', content), PURPOSE, path="/files")).json()
                assert list(bucket.objects) == [f"/some/where/{made['id']}"]
                assert (await http.get(f"/files/{made['id']}/content")).content == content
                bucket.refuse["put"] = 403
                refused = await upload(http, FILE, PURPOSE, path="/files")
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
                assert "s3" not in refused.text
                assert (await http.delete(f"/files/{made['id']}")).json()["deleted"]
                assert (bucket.objects, bucket.uploads) == ({}, {})


def test_a_place_that_cannot_be_used_is_told_by_the_settings_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for url in (str(tmp_path / "file"), "gs://bucket"):
        settings = GatewaySettings.model_validate({"data_dir": tmp_path, "files_url": url})
        with pytest.raises(ConfigError, match="files_url: "):
            open_files(settings)


async def test_the_description_shows_the_form(http: httpx.AsyncClient) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]
    body = paths["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert body["required"] == ["file", "purpose"]
    assert body["properties"]["file"]["format"] == "binary"
    assert {"/v1/files/{id}", "/v1/files/{id}/content"} <= set(paths)
