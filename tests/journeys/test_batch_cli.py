"""`sluicegate batch …` against a gateway whose every answer is scripted; the real one has `test_batch_cli_live.py`."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.commands.progress import Causes, span
from tests.journeys.command_line import Fake, answer, batch, faked, line, on_a_terminal, refusal, run
from tests.support import eventually, free_port

PYTHON = sys.executable
COME_BACK = "The batch goes on. Come back with: sluicegate batch watch batch_1"
ETA = {"per_second": 12.3, "eta_seconds": [121, 178], "in_flight": 7, "in_doubt": 0}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "in.jsonl"
    lines = [{"custom_id": str(place), "url": "/v1/embeddings", "body": {"model": "m"}} for place in range(3)]
    made.write_bytes(b"\xef\xbb\xbf\n" + "\n".join(map(json.dumps, lines)).encode())
    return made


async def test_a_file_is_uploaded_and_becomes_a_batch_with_the_url_of_its_first_line(file: Path) -> None:
    fake = Fake()
    async with faked(fake) as url:
        done = await run("batch", "submit", file, "--url", url, SLUICEGATE_API_KEY="sk-1")
    assert (done.code, done.err) == (0, "")
    assert done.lines == [batch("validating", total=0)]
    assert fake.asked == ["POST /v1/files", "POST /v1/batches"]
    upload, create = fake.requests
    assert file.read_bytes() in upload.body
    assert b'name="purpose"\r\n\r\nbatch\r\n' in upload.body
    assert b'filename="in.jsonl"' in upload.body
    assert upload.headers["authorization"] == create.headers["authorization"] == "Bearer sk-1"
    wanted = {"input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h"}
    assert json.loads(create.body) == wanted


async def test_every_option_of_a_batch_reaches_the_gateway(file: Path) -> None:
    fake = Fake()
    options = "--endpoint /v1/responses --window 3h --metadata a=1 --metadata b==x --priority -2 --on-doubt fail"
    more = "--dedupe --no-pack --idempotency-key k1"
    async with faked(fake) as url:
        done = await run("batch", "submit", file, *options.split(), *more.split(), SLUICEGATE_URL=f"{url}/v1/")
    assert done.code == 0, done.err
    upload, create = fake.requests
    assert (upload.headers["idempotency-key"], create.headers["idempotency-key"]) == ("k1-file", "k1")
    assert json.loads(create.body) == {
        "input_file_id": "file-1",
        "endpoint": "/v1/responses",
        "completion_window": "3h",
        "metadata": {"a": "1", "b": "=x"},
        "priority": -2,
        "on_doubt": "fail",
        "dedupe": True,
        "pack_embeddings": False,
    }


async def test_a_create_that_the_gateway_could_not_answer_is_sent_again_with_the_same_key(file: Path) -> None:
    fake = Fake(replies={"POST /v1/batches": [refusal(503, "the storage is away"), b""]})
    async with faked(fake) as url:
        done = await run("batch", "submit", file, "--url", url)
    assert done.code == 0, done.err
    creates = fake.sent("POST /v1/batches")
    assert len(creates) == 3
    assert len({create.headers["idempotency-key"] for create in creates}) == 1
    assert len(fake.sent("POST /v1/files")) == 1


async def test_a_batch_that_is_refused_leaves_no_file_behind(file: Path) -> None:
    fake = Fake(replies={"POST /v1/batches": [refusal(400, "completion_window is wrong", "completion_window")]})
    async with faked(fake) as url:
        done = await run("batch", "submit", file, "--url", url)
    assert (done.code, done.err) == (2, "sluicegate: completion_window is wrong (completion_window)\n")
    assert fake.asked[-1] == "DELETE /v1/files/file-1"


async def test_watch_prints_a_json_line_for_every_change_and_ends_with_0() -> None:
    states = [batch("validating", total=0), batch(done=4, progress=ETA), batch(done=4, progress=ETA)]
    fake = Fake([*states, batch("finalizing", 10), batch("completed", 10)])
    async with faked(fake) as url:
        done = await run("batch", "watch", "batch_1", "--url", url)
    assert done.code == 0, done.err
    assert [(one["status"], one["request_counts"]["completed"]) for one in done.lines] == [
        ("validating", 0),
        ("in_progress", 4),
        ("finalizing", 10),
        ("completed", 10),
    ]
    assert set(done.lines[0]) == {"id", "status", "request_counts", "progress"}
    assert done.lines[1]["progress"] == ETA
    assert done.err == "batch_1 completed: 10 of 10 lines succeeded, 0 failed\n"
    assert not [asked for asked in fake.asked if "results" in asked]


@pytest.mark.parametrize("status", ["completed", "expired", "cancelled"])
async def test_failures_are_told_by_cause_and_end_with_1(status: str) -> None:
    failed = [line(1, 400), line(2, 400), line(3, code="timeout")]
    fake = Fake([batch(status, 10, 3, error_file_id="file-e")], errors=failed)
    async with faked(fake) as url:
        done = await run("batch", "watch", "batch_1", "--url", url)
    assert done.code == 1
    assert done.err.endswith("7 of 10 lines succeeded, 3 failed (2 x HTTP 400, 1 x timeout)\n")


async def test_an_unfinished_end_without_failures_is_no_success() -> None:
    async with faked(Fake([batch("cancelled", 3)])) as url:
        assert (await run("batch", "watch", "batch_1", "--url", url)).code == 1


async def test_a_file_that_is_refused_is_told_by_its_first_lines(file: Path) -> None:
    faults = [
        {"code": "invalid_json_line", "line": place, "message": "no JSON", "param": None} for place in range(1, 13)
    ]
    fake = Fake([batch("failed", total=0, errors={"object": "list", "data": faults})])
    async with faked(fake) as url:
        done = await run("batch", "submit", file, "--watch", "--url", url)
    assert done.code == 1
    assert done.err.splitlines()[:2] == ["sluicegate: line 1: no JSON", "sluicegate: line 2: no JSON"]
    assert done.err.splitlines()[9:11] == ["sluicegate: line 10: no JSON", "sluicegate: and 2 more"]
    assert [one["status"] for one in done.lines] == ["validating", "failed"]


async def test_results_are_written_as_they_come(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = [line(place, 400 if place == 1 else 200) for place in range(3)]
    fake = Fake([batch(done=2)], results=found[:2])
    async with faked(fake) as url:
        running = asyncio.create_task(run("batch", "submit", file, "--watch", "-o", str(out), "--url", url))
        await eventually(lambda: out.exists() and out.read_text().count("\n") == 2)
        fake.results = found
        fake.states = [batch("completed", 3, 1, total=3)]
        done = await running
    assert done.code == 1
    assert [json.loads(text) for text in out.read_text().splitlines()] == fake.results
    assert [asked for asked in fake.asked if "results" in asked] == [
        f"GET /v1/batches/batch_1/results?after={after}&follow=false" for after in (0, 2)
    ]
    assert "(1 x HTTP 400)" in done.err


async def test_results_that_were_written_before_and_the_input_are_kept(file: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "out", file.read_bytes()
    out.write_text("precious")
    fake = Fake([batch("completed", 1, total=1)], results=[line(0)])
    async with faked(fake) as url:
        for more in (["-o", f"{out}"], ["-o", f"{file}", "--force"], ["-o", f"{tmp_path}/none/out"]):
            done = await run("batch", "submit", file, "--watch", *more, "--url", url)
            assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert fake.asked == []
        lost = await run("batch", "watch", "batch_9", "-o", out, "--force", "--url", url)
        assert (lost.code, out.read_text(), file.read_bytes()) == (2, "precious", before)
        await run("batch", "watch", "batch_1", "-o", out, "--force", "--url", url)
    assert json.loads(out.read_text()) == line(0)


async def test_watching_survives_a_gateway_that_is_away(tmp_path: Path) -> None:
    port, out = free_port(), tmp_path / "out"
    cut = b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"id"\r\n'
    first = Fake([batch(done=1)], results=[line(0)])
    async with faked(first, port) as url:
        running = asyncio.create_task(run("batch", "watch", "batch_1", "-o", out, "--url", url))
        await eventually(lambda: len(first.asked) > 2)
    replies = {"GET /v1/batches/batch_1": [refusal(503, "draining")], "GET /v1/batches/batch_1/results": [cut]}
    second = Fake([batch("completed", 2, total=2)], results=[line(0), line(1)], replies=replies)
    async with faked(second, port):
        done = await running
    assert done.code == 0, done.err
    said = [text for text in done.err.splitlines() if "sluicegate: " in text]
    assert len(said) == 2
    assert "waiting for the gateway" in said[0]
    assert said[1] == "sluicegate: the gateway is back"
    assert [json.loads(text) for text in out.read_text().splitlines()] == second.results


async def test_ctrl_c_detaches_and_says_how_to_come_back() -> None:
    fake = Fake([batch(done=4, failed=3, progress=ETA)])
    fake.results = [line(0), line(1, 400), line(2, code="timeout"), line(3, 400)]
    async with faked(fake) as url, on_a_terminal("batch", "watch", "batch_1", SLUICEGATE_URL=url) as terminal:
        for text in ("4/10", "12.3/s", "2 to 3 min", "2 x HTTP 400, 1 x timeout"):
            await terminal.shows(text)
        assert "{" not in terminal.text
        terminal.press(b"\x03")
        assert await terminal.ended() == 130
        await terminal.shows(COME_BACK)
        assert "Traceback" not in terminal.text
    assert not [asked for asked in fake.asked if asked.startswith("POST")]


async def test_a_paused_batch_says_why_and_goes_on() -> None:
    paused = {**ETA, "paused": {"code": "insufficient_quota", "reason": "the quota is spent", "until": 1}}
    fake = Fake([batch(done=4, progress=paused)])
    async with faked(fake) as url, on_a_terminal("batch", "watch", "batch_1", "--url", url) as terminal:
        await terminal.shows("paused: the quota is spent")
        fake.states = [batch("completed", 10)]
        assert await terminal.ended() == 0
        await terminal.shows("10 of 10 lines succeeded")


async def test_on_a_terminal_submit_and_cancel_say_a_sentence(file: Path) -> None:
    async with faked(Fake()) as url:
        async with on_a_terminal("batch", "submit", file, SLUICEGATE_URL=url) as terminal:
            assert await terminal.ended() == 0
            await terminal.shows("Batch batch_1 is under way. Come back with: sluicegate batch watch batch_1\r\n")
        async with on_a_terminal("batch", "cancel", "batch_1", "--url", url) as terminal:
            assert await terminal.ended() == 0
            await terminal.shows("Batch batch_1 is cancelling.")


async def test_results_writes_what_is_there_and_can_begin_later_and_follow(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fake = Fake([batch(done=3)], results=[line(place) for place in range(4)])
    async with faked(fake) as url:
        done = await run("batch", "results", "batch_1", "--url", url)
        assert (done.code, done.err, done.lines) == (0, "", fake.results)
        done = await run("batch", "results", "batch_1", "--after", "2", "--url", url)
        assert done.lines == fake.results[2:]
        following = asyncio.create_task(run("batch", "results", "batch_1", "--follow", "-o", out, "--url", url))
        await eventually(out.exists)
        fake.states = [batch("completed", 4, total=4)]
        assert (await following).code == 0
    assert [json.loads(text) for text in out.read_text().splitlines()] == fake.results


async def test_ctrl_c_while_results_are_followed_says_from_where_to_go_on() -> None:
    fake = Fake([batch(done=2)], results=[line(0), line(1)])
    async with faked(fake) as url:
        command = ["batch", "results", "batch_1", "--follow"]
        async with on_a_terminal(*command, SLUICEGATE_URL=url) as terminal:
            await terminal.shows("batch_req_1")
            terminal.press(b"\x03")
            assert await terminal.ended() == 130
            await terminal.shows("sluicegate batch results batch_1 --after 2 --follow")


async def test_a_reader_of_results_may_leave_early() -> None:
    fake = Fake([batch("completed", 5000, total=5000)], results=[line(place) for place in range(5000)])
    async with faked(fake) as url:
        command = f"{{ '{PYTHON}' -m app.cli batch results batch_1 --url {url}; }} | head -1"
        process = await asyncio.create_subprocess_shell(command, stdout=-1, stderr=-1)
        out, err = await process.communicate()
    assert json.loads(out) == line(0)
    assert err == b""


async def test_cancel_and_retry_print_the_batch_and_retry_can_be_watched() -> None:
    fake = Fake([batch("completed", 10)])
    async with faked(fake) as url:
        assert (await run("batch", "cancel", "batch_1", "--url", url)).lines == [batch("cancelling", 3)]
        assert (await run("batch", "retry", "batch_1", "--url", url)).lines == [batch("validating", total=0)]
        done = await run("batch", "retry", "batch_1", "--watch", "--url", url)
    assert (done.code, [one["status"] for one in done.lines]) == (0, ["validating", "completed"])


async def test_list_follows_pages_and_is_a_table_on_a_terminal() -> None:
    def pages() -> list[bytes]:
        found = [{**batch("completed", 1234, 5, total=1234), "id": f"batch_{place}"} for place in range(101)]
        return [answer({"data": found[:100], "has_more": True}), answer({"data": found[100:], "has_more": True})]

    fake = Fake(replies={"GET /v1/batches": pages() * 2})
    async with faked(fake) as url:
        done = await run("batch", "list", "--limit", "101", "--url", url)
        assert [one["id"] for one in done.lines] == [f"batch_{place}" for place in range(101)]
        assert fake.asked == ["GET /v1/batches?limit=100", "GET /v1/batches?limit=1&after=batch_99"]
        async with on_a_terminal("batch", "list", "--limit", "101", "--url", url) as terminal:
            assert await terminal.ended() == 0
            for text in ("batch_100", "completed", "1,234", "2023-11-1"):
                await terminal.shows(text)
            assert "{" not in terminal.text


_ODD: list[tuple[str, str, dict[str, Any]]] = [
    ("watch batch_9", "sluicegate: No such batch: 'batch_9' (id)", {}),
    ("results batch_9", "sluicegate: No such batch: 'batch_9' (id)", {}),
    ("cancel batch_9", "sluicegate: No such batch: 'batch_9' (id)", {}),
    ("retry batch_9", "sluicegate: No such batch: 'batch_9' (id)", {}),
    ("list", "sluicegate: bad key", {"GET /v1/batches": [refusal(401, "bad\nkey")]}),
    ("list", "/v1/batches answered 502: <html> sick", {"GET /v1/batches": [b"HTTP/1.1 502 X\r\n\r\n<html>\nsick"]}),
    ("list", "sluicegate: the gateway answered something that is no list", {"GET /v1/batches": [answer([1])]}),
    ("cancel batch_1", "something that is no batch", {"POST /v1/batches/batch_1/cancel": [answer({"id": 3})]}),
    ("watch batch_1", "/v1/batches/batch_1: ", {"GET /v1/batches/batch_1": [b""] * 2}),
    ("submit FILE", "sluicegate: the gateway answered something that is no file", {"POST /v1/files": [answer({})]}),
    ("submit FILE", "sluicegate: too big (file)", {"POST /v1/files": [refusal(413, "too big", "file")]}),
    ("submit FILE --metadata x", "sluicegate: metadata = 'x': must be KEY=VALUE", {}),
    ("submit FILE -o OUT", "sluicegate: -o needs --watch", {}),
    ("list --url ftp://x", "sluicegate: url = 'ftp://x': must be an http", {}),
    ("list --url http://", "sluicegate: ", {}),
    ("list --url http://127.0.0.1:9", "sluicegate: http://127.0.0.1:9/v1/batches: Cannot connect", {}),
    ("list --api-key ü", "sluicegate: api_key = (secret): a key holds ASCII characters only", {}),
]


async def test_what_stops_a_command_is_one_line(file: Path, tmp_path: Path) -> None:
    places = {"FILE": str(file), "OUT": str(tmp_path / "out")}

    async def stopped(command: str, said: str, replies: dict[str, list[bytes]]) -> None:
        async with faked(Fake(replies={key: list(given) for key, given in replies.items()})) as url:
            done = await run("batch", *(places.get(word, word) for word in command.split()), SLUICEGATE_URL=url)
        assert (done.code, done.err.count("\n"), done.out) == (2, 1, ""), (command, done)
        assert said in done.err

    await asyncio.gather(*(stopped(*odd) for odd in _ODD))


async def test_an_odd_id_stays_one_part_of_the_address() -> None:
    fake = Fake()
    async with faked(fake) as url:
        assert (await run("batch", "cancel", "../files?a#b", "--url", url)).code == 2
    assert fake.asked == ["POST /v1/batches/..%2Ffiles%3Fa%23b/cancel"]


async def test_wrong_usage_ends_with_2(file: Path) -> None:
    commands = ["", "submit", "submit none", "submit FILE --on-doubt maybe", "submit FILE --priority x", "watch"]
    found = await asyncio.gather(*(run("batch", *one.replace("FILE", str(file)).split()) for one in commands))
    assert [(done.code, "Traceback" in done.err) for done in found] == [(2, False)] * len(commands)


def test_help_needs_nothing_heavy() -> None:
    code = "import sys, app.cli; sys.exit(any(name in sys.modules for name in ('aiohttp', 'fastapi', 'app.commands.batch')))"
    assert subprocess.run([PYTHON, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0, 0, "0 s"),
        (4.2, 7.9, "4 to 8 s"),
        (60, 89, "60 to 89 s"),
        (121, 178, "2 to 3 min"),
        (119, 121, "2 min"),
        (3600, 5399, "60 to 90 min"),
        (5400, 12600, "1.5 to 3.5 h"),
    ],
)
def test_a_range_of_seconds_is_said_as_one_would(low: float, high: float, said: str) -> None:
    assert span(low, high) == said


def test_only_so_many_causes_are_kept_apart() -> None:
    causes = Causes()
    for status in [*range(400, 420), 400, 200]:
        causes.add(json.dumps(line(1, status)).encode())
    causes.add(b"{broken")
    assert causes.total == 22
    assert len(causes.counts()) == 9
    assert str(causes).startswith("2 x HTTP 400, 1 x HTTP 401, ")
    assert str(causes).endswith("1 x HTTP 407, 13 others")
