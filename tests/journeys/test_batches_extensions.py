"""What batches do beyond OpenAI's: live results, retries of what failed, progress, pauses, fair turns, drains."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Batch

from tests.journeys.batch_support import (
    CHAT,
    EMBEDDINGS,
    Line,
    begun,
    by_custom_id,
    chat,
    chats,
    counts,
    ended,
    file_lines,
    progress,
    reaches,
    results,
)
from tests.support import Server, eventually, free_port, serving

_TOML = """
max_attempts = 2
[batches]
pause = 0.3
[upstreams.sim]
base_url = "{base_url}"
connect_timeout = 1
"""
_NARROW = """
[upstreams.sim]
base_url = "{base_url}"
max_in_flight = 4
"""
_SIMULATE = ("simulate", "--latency", "0", "--tokens", "5", "--gap", "0.001")


@pytest.fixture(scope="module")
def patient(simulator: Server) -> Iterator[Server]:
    """A gateway with few tries of its own and short pauses."""
    with serving("serve", toml=_TOML.format(base_url=simulator.base_url)) as server:
        yield server


@pytest.fixture
def ill(simulator: Server) -> Iterator[Server]:
    """The upstream, its ledger empty; healthy again after the test."""
    simulator.ledger(reset=True)
    yield simulator
    simulator.heal()


@contextlib.asynccontextmanager
async def sdk(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=server.base_url, api_key="any", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def client(patient: Server) -> AsyncIterator[AsyncOpenAI]:
    async with sdk(patient) as found:
        yield found


@pytest.fixture
async def http(patient: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=patient.root, timeout=60) as plain:
        yield plain


async def read_some(http: httpx.AsyncClient, batch: Batch, after: int, count: int) -> list[Line]:
    """Reads so many live results, then hangs up."""
    found: list[Line] = []
    async with http.stream("GET", f"/v1/batches/{batch.id}/results", params={"after": after}) as reply:
        assert reply.headers["content-type"].startswith("application/x-ndjson")
        async for one in reply.aiter_lines():
            found.append(json.loads(one))
            if len(found) == count:
                break
    return found


async def retried(http: httpx.AsyncClient, batch_id: str) -> httpx.Response:
    return await http.post(f"/v1/batches/{batch_id}/retry")


async def test_lines_may_stand_in_the_request(http: httpx.AsyncClient, client: AsyncOpenAI) -> None:
    requests: list[dict[str, Any]] = [{"body": chat("x")["body"]}, {"custom_id": "b", "body": chat("y")["body"]}]
    made = (await http.post("/v1/batches", json={"requests": requests, "metadata": {"a": "b"}})).json()
    assert (made["endpoint"], made["completion_window"], made["metadata"]) == (CHAT, "24h", {"a": "b"})
    batch = await ended(client, Batch.model_validate(made))
    good, _ = await by_custom_id(client, batch)
    assert good.keys() == {"0", "b"}
    written = await client.files.retrieve(batch.input_file_id)
    assert written.purpose == "batch"
    assert [line["custom_id"] for line in await file_lines(client, written.id)] == ["0", "b"]


async def test_results_can_be_read_while_they_come(http: httpx.AsyncClient, client: AsyncOpenAI) -> None:
    sent = [*chats(30), *chats(10, "sim-status=400", "bad"), *chats(20, "sim-latency=1.5", "slow")]
    batch = await begun(client, sent)
    early = await read_some(http, batch, 0, 25)
    assert (await client.batches.retrieve(batch.id)).status == "in_progress"
    middle = await read_some(http, batch, 25, 15)
    now = await results(http, batch.id, follow="false")
    assert now[:40] == early + middle
    late, done = await asyncio.gather(results(http, batch.id, after=40), ended(client, batch))
    assert counts(done) == (60, 50, 10)
    whole = early + middle + late
    assert {line["custom_id"] for line in late} == {f"slow-{index}" for index in range(20)}
    for after in (0, 1, 40, 59):
        assert await results(http, batch.id, after=after) == whole[after:]
    assert await results(http, batch.id, after=60) == await results(http, batch.id, after=999_999_999) == []
    files = await file_lines(client, done.output_file_id) + await file_lines(client, done.error_file_id)
    assert sorted(files, key=lambda line: line["id"]) == whole
    assert len({line["custom_id"] for line in whole}) == 60


async def test_a_slow_reader_misses_nothing_when_the_batch_ends_meanwhile(
    http: httpx.AsyncClient, client: AsyncOpenAI
) -> None:
    batch = await begun(client, chats(900, "sim-tokens=4000"))
    async with http.stream("GET", f"/v1/batches/{batch.id}/results") as reply:  # far more than any buffer on the way
        lines = reply.aiter_lines()
        found = [json.loads(await anext(lines))]
        await ended(client, batch)  # nobody reads
        found += [json.loads(line) async for line in lines]
    assert len(found) == 900
    assert found == await results(http, batch.id)


async def test_results_of_a_batch_that_failed_its_validation_are_none(
    http: httpx.AsyncClient, client: AsyncOpenAI
) -> None:
    batch = await ended(client, await begun(client, b"bad"))
    assert await results(http, batch.id) == []
    answer = await retried(http, batch.id)
    assert answer.status_code == 409


async def test_only_what_failed_is_done_again(http: httpx.AsyncClient, client: AsyncOpenAI, ill: Server) -> None:
    sent = [*chats(4), *chats(3, "sim-status=400", "bad"), *chats(2, "sim-latency=30", "slow")]
    more: dict[str, Any] = {"metadata": {"a": "b"}, "output_expires_after": {"anchor": "created_at", "seconds": 3600}}
    first = await begun(client, sent, window="2s", **more)
    answer = await retried(http, first.id)
    assert (answer.status_code, answer.json()["error"]["type"]) == (409, "conflict_error")
    assert answer.headers["x-should-retry"] == "false"
    expired = await ended(client, first)
    assert (expired.status, counts(expired)) == ("expired", (9, 4, 5))
    ill.ledger(reset=True)
    answer = await retried(http, first.id)
    assert answer.status_code == 200
    second = Batch.model_validate(answer.json())
    assert second.id != first.id
    assert second.input_file_id != first.input_file_id
    assert (second.status, second.endpoint, second.metadata) == ("validating", CHAT, {"a": "b"})
    done = await ended(client, second)
    assert counts(done) == (5, 0, 5)
    assert ill.ledger()["models"].keys() == {"sim-status=400", "sim-latency=30"}
    _, bad = await by_custom_id(client, done)
    assert bad.keys() == {"bad-0", "bad-1", "bad-2", "slow-0", "slow-1"}
    error_file = await client.files.retrieve(done.error_file_id or "")
    assert error_file.expires_at == error_file.created_at + 3600
    assert await client.batches.retrieve(first.id) == expired


async def test_where_nothing_failed_there_is_nothing_to_retry(http: httpx.AsyncClient, client: AsyncOpenAI) -> None:
    batch = await ended(client, await begun(client, chats(2)))
    answer = await retried(http, batch.id)
    assert (answer.status_code, answer.json()["error"]["type"]) == (409, "conflict_error")


async def test_without_its_files_an_ended_batch_says_so(http: httpx.AsyncClient, client: AsyncOpenAI) -> None:
    batch = await ended(client, await begun(client, [chat("a"), chat("b", "sim-status=400")]))
    for file_id in (batch.output_file_id, batch.error_file_id):
        await client.files.delete(file_id or "")
    for answer in (await http.get(f"/v1/batches/{batch.id}/results"), await retried(http, batch.id)):
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.json()["error"]["message"]


async def test_progress_is_told_while_it_runs(client: AsyncOpenAI) -> None:
    made = await begun(client, [*chats(50), *chats(20, "sim-latency=30", "slow")])
    assert progress(made) == {"per_second": 0.0, "eta_seconds": None, "in_flight": 0, "in_doubt": 0, "paused": None}
    await reaches(client, made, "in_progress", done=50)
    shown: dict[str, Any] = {}

    async def all_slow_ones_fly() -> bool:
        shown.update(progress(await client.batches.retrieve(made.id)))
        return bool(shown["in_flight"] == 20)

    await eventually(all_slow_ones_fly)
    assert shown["per_second"] > 0
    low, high = shown["eta_seconds"]
    assert 0 <= low <= high
    assert (shown["in_doubt"], shown["paused"]) == (0, None)
    (listed,) = (await client.batches.list(limit=1)).data
    assert progress(listed).keys() == shown.keys()
    await client.batches.cancel(made.id)
    last = progress(await ended(client, made))
    assert last == {"per_second": 0.0, "eta_seconds": None, "in_flight": 0, "in_doubt": 0, "paused": None}


@pytest.mark.alone
async def test_a_spent_quota_pauses_a_batch_and_fails_no_line(client: AsyncOpenAI, ill: Server) -> None:
    ill.fault(status=429, code="insufficient_quota")
    made = await begun(client, chats(300))

    async def paused() -> bool:
        batch = await client.batches.retrieve(made.id)
        return bool(batch.status == "in_progress" and progress(batch)["paused"])

    await eventually(paused)
    burnt = ill.ledger()["calls"]
    assert 1 <= burnt <= 40
    waits = progress(await client.batches.retrieve(made.id))["paused"]
    assert waits["code"] == "insufficient_quota"
    assert waits["reason"]
    await eventually(lambda: ill.ledger()["calls"] > burnt)  # it looks again
    ill.heal()
    done = await ended(client, made)
    assert (done.status, counts(done)) == ("completed", (300, 300, 0))
    assert progress(done)["paused"] is None


async def test_a_paused_batch_can_be_cancelled(client: AsyncOpenAI, ill: Server) -> None:
    ill.fault(status=429, code="insufficient_quota")
    made = await begun(client, chats(300))

    async def paused() -> bool:
        return bool(progress(await client.batches.retrieve(made.id))["paused"])

    await eventually(paused)
    await client.batches.cancel(made.id)
    done = await ended(client, made)
    assert (done.status, counts(done)) == ("cancelled", (300, 0, 300))


@pytest.mark.parametrize("status", [503, 429])
async def test_an_outage_in_the_middle_fails_no_line(client: AsyncOpenAI, ill: Server, status: int) -> None:
    made = await begun(client, [*chats(50), *chats(100, "sim-latency=0.3", "more")])
    await reaches(client, made, "in_progress", done=50)
    ill.fault(status=status)
    await eventually(lambda: ill.ledger()["statuses"].get(str(status), 0) >= 5)
    ill.heal()
    done = await ended(client, made, 60)
    assert (done.status, counts(done)) == ("completed", (150, 150, 0))


async def test_an_upstream_that_is_gone_for_a_while_fails_no_line(tmp_path: Path) -> None:
    port = free_port()
    sent = [*chats(50), *chats(200, "sim-latency=0.3", "more")]
    with contextlib.ExitStack() as servers:
        first = servers.enter_context(serving(*_SIMULATE, port=port))
        toml = _TOML.format(base_url=first.base_url)
        client = await _entered(servers.enter_context(serving("serve", toml=toml)))
        made = await begun(client, sent)
        await reaches(client, made, "in_progress", done=30)
        first.process.kill()
        first.process.wait()
        other = await begun(client, chats(20))  # its model cannot even be asked for
        await reaches(client, other, "in_progress")
        servers.enter_context(serving(*_SIMULATE, port=port))
        for batch, count in ((made, 250), (other, 20)):
            done = await ended(client, batch, 60)
            assert (done.status, counts(done)) == ("completed", (count, count, 0))
        await client.close()


async def _entered(server: Server) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=server.base_url, api_key="any", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def narrow(simulator: Server) -> Iterator[Server]:
    """A gateway that makes four calls at once at most."""
    with serving("serve", toml=_NARROW.format(base_url=simulator.base_url)) as server:
        yield server


async def behind_a_huge_one(narrow: Server, **of_small: Any) -> tuple[Batch, Batch]:
    """Returns: A small batch at its end, and the huge one at that moment, which began before it."""
    async with sdk(narrow) as client:
        huge = await begun(client, chats(3000, "sim-latency=0.02"))
        await reaches(client, huge, "in_progress", done=20)
        small = await ended(client, await begun(client, chats(10, "sim-latency=0.02", "small"), **of_small))
        seen = await client.batches.retrieve(huge.id)
        await client.batches.cancel(huge.id)
        await ended(client, huge)
        return small, seen


@pytest.mark.alone
async def test_a_small_batch_behind_a_huge_one_is_done_long_before(narrow: Server) -> None:
    small, huge = await behind_a_huge_one(narrow)
    assert (small.status, counts(small)) == ("completed", (10, 10, 0))
    assert sum(counts(huge)[1:]) < 1000


@pytest.mark.alone
async def test_a_small_batch_of_a_higher_priority_is_next(narrow: Server) -> None:
    small, huge = await behind_a_huge_one(narrow, priority=10)
    assert small.status == "completed"
    assert sum(counts(huge)[1:]) < 600


@pytest.mark.alone
async def test_the_shorter_window_and_the_higher_priority_get_more(narrow: Server) -> None:
    async with sdk(narrow) as client:
        for more, less in (({"window": "1m"}, {"window": "24h"}), ({"priority": 1}, {"priority": 0})):
            slow = await begun(client, chats(500, "sim-latency=0.01"), **less)
            quick = await begun(client, chats(500, "sim-latency=0.01"), **more)
            assert (await ended(client, quick, 60)).status == "completed"
            seen = await client.batches.retrieve(slow.id)
            await client.batches.cancel(slow.id)
            await ended(client, slow)
            assert sum(counts(seen)[1:]) < 400


async def test_calls_of_a_hedging_model_run_side_by_side(ill: Server) -> None:
    upstreams = "".join(f'[upstreams.{name}]\nbase_url = "{ill.base_url}"\n' for name in ("a", "b"))
    model = '[models.two]\ntargets = ["a/sim-latency=20", "b/sim-latency=20"]\nstrategy = "hedge"'
    with serving("serve", toml=upstreams + model) as server:
        async with sdk(server) as client:
            made = await begun(client, chats(60, "two"))
            try:
                await eventually(lambda: ill.ledger()["in_flight"] > 20, 3)
            finally:
                await client.batches.cancel(made.id)
                await ended(client, made)


async def test_single_calls_go_past_a_batch(narrow: Server) -> None:
    async with sdk(narrow) as client:
        huge = await begun(client, chats(3000, "sim-latency=0.2"))
        await reaches(client, huge, "in_progress", done=4)
        for _ in range(3):
            await asyncio.wait_for(client.chat.completions.create(model="sim", messages=[]), 5)
        await client.batches.cancel(huge.id)
        await ended(client, huge)


async def test_a_drained_server_goes_on_after_its_restart_and_calls_no_line_twice(ill: Server, tmp_path: Path) -> None:
    env = {"SLUICEGATE_DATA_DIR": str(tmp_path)}
    toml = _NARROW.format(base_url=ill.base_url)
    with serving("serve", toml=toml, env=env) as server:
        async with sdk(server) as client:
            made = await begun(client, chats(400, "sim-latency=0.02"))
            other = await begun(client, chats(5, prefix="waits"))
            await reaches(client, made, "in_progress", done=30)
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 30) == 0
    before = ill.ledger()
    assert before["aborted"] == 0
    assert before["calls"] < 405
    with serving("serve", toml=toml, env=env) as server:
        async with sdk(server) as client:
            done = await ended(client, made, 60)
            assert (done.status, counts(done)) == ("completed", (400, 400, 0))
            assert progress(done)["in_doubt"] == 0
            good, _ = await by_custom_id(client, done)
            assert len(good) == 400
            assert (await ended(client, other)).status == "completed"
    bodies = ill.ledger()["bodies"]
    assert len(bodies) == len(set(bodies)) == 405


async def test_what_never_reached_an_upstream_is_not_in_doubt(ill: Server, tmp_path: Path) -> None:
    env = {"SLUICEGATE_DATA_DIR": str(tmp_path), "SLUICEGATE_DRAIN_TIMEOUT": "0.5"}
    toml = _NARROW.format(base_url=ill.base_url)
    with serving("serve", toml=toml, env=env) as server:
        async with sdk(server) as client:
            made = await begun(client, chats(40, "sim-latency=30"), on_doubt="fail")

            async def four_fly_and_more_wait() -> bool:
                known = progress(await client.batches.retrieve(made.id))["in_flight"]
                return bool(ill.ledger()["in_flight"] == 4 < known)

            await eventually(four_fly_and_more_wait)
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 30) == 0
    with serving("serve", toml=toml, env=env) as server:
        async with sdk(server) as client:
            seen = await reaches(client, made, "in_progress", done=4)
            assert (counts(seen), progress(seen)["in_doubt"]) == ((40, 0, 4), 4)
            await client.batches.cancel(made.id)
            await ended(client, made)


async def test_a_batch_whose_input_is_lost_holds_up_no_other(simulator: Server) -> None:
    with serving("serve", toml=_TOML.format(base_url=simulator.base_url)) as server:
        async with sdk(server) as client:
            lost = [await begun(client, chats(3, "sim-latency=30")) for _ in range(3)]
            for batch in lost:
                await reaches(client, batch, "in_progress")

                async def all_fly(batch: Batch = batch) -> bool:
                    return bool(progress(await client.batches.retrieve(batch.id))["in_flight"] == 3)

                await eventually(all_fly)
                (server.folder / "data" / "files" / batch.input_file_id).unlink()
                await client.batches.cancel(batch.id)  # its error lines need the input's custom ids
            for _ in range(3):
                good = await ended(client, await begun(client, chats(2)), 8)
                assert good.status == "completed"


async def test_an_unknown_batch_after_is_no_error_of_ours(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.batches.list(after="batch_unknown")
    assert caught.value.param == "after"


async def test_embeddings_of_a_paused_upstream_stay_packed(client: AsyncOpenAI, ill: Server) -> None:
    ill.fault(status=503)
    bodies = [{"model": "sim", "input": f"text {index}", "dimensions": 4} for index in range(100)]
    sent = [{"custom_id": str(at), "method": "POST", "url": EMBEDDINGS, "body": body} for at, body in enumerate(bodies)]
    made = await begun(client, sent, EMBEDDINGS)
    await eventually(lambda: ill.ledger()["calls"] >= 1)
    ill.ledger(reset=True)
    ill.heal()
    done = await ended(client, made, 60)
    assert (done.status, counts(done)) == ("completed", (100, 100, 0))
    assert ill.ledger()["calls"] <= 3
