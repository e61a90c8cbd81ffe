"""Batches through kill -9, frozen replicas, full disks and a database that goes away: nothing is lost, nothing twice."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bench.torture.disk import Disk
from tests.bench.torture.killing import kill, ledger, torment
from tests.bench.torture.order import Order, chats, order, started, upload
from tests.bench.torture.replicas import Replica, settings, two
from tests.bench.torture.slices import held_by, slices, taken_over
from tests.postgres import Postgres
from tests.support import Server, clean_environment, eventually, serving

MANY = 1000
MODEL = "m-latency=0.1"
HEAVY = "m-tokens=100"  # with MANY_CHOICES a reply of 150 kB
MANY_CHOICES = {"n": 200}
BUSY = 0.2  # seconds that a write may take on a busy machine


@pytest.fixture(scope="module")
def upstream() -> Iterator[Server]:
    """A simulator whose calls are those of one test at a time."""
    with serving("simulate", "--latency", "0", "--tokens", "5") as server:
        yield server


@pytest.fixture
def simulator(upstream: Server) -> Iterator[Server]:
    yield upstream
    upstream.heal()
    upstream.ledger(reset=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    small = Disk(tmp_path / "disk", 24)
    yield small
    small.close()


async def beyond(simulator: Server, batch: Order) -> int:
    """Calls more than there are lines."""
    calls: int = (await ledger(simulator))["calls"]
    return calls - batch.total


async def test_kill_9_at_any_moment_loses_nothing_and_repeats_what_was_in_flight(
    simulator: Server, tmp_path: Path
) -> None:
    async with Replica(tmp_path, settings(simulator)) as replica:
        batch = await started(replica, chats(1200, MODEL), done=1)
        kills = await torment(batch, simulator, 5, seed=4, longest=0.5, within=BUSY)
        state = await batch.ended()
        good, _ = await batch.verified()
        assert len(kills) >= 4
        assert (state["status"], len(good)) == ("completed", 1200)
        extra = await beyond(simulator, batch)
        assert extra <= state["progress"]["in_doubt"]
        assert extra <= sum(one.bound for one in kills)


async def test_kill_9_while_an_input_is_validated_and_while_outputs_are_written(
    simulator: Server, tmp_path: Path
) -> None:
    lines = chats(300, HEAVY, user="x" * 200_000, **MANY_CHOICES)
    async with Replica(tmp_path, settings(simulator)) as replica:
        batch = await order(replica, lines)
        await replica.kill()
        await replica.start()
        assert (await batch.state())["status"] == "validating"
        await batch.becomes("finalizing")
        await replica.kill()
        await replica.start()
        assert (await batch.state())["status"] == "finalizing"
        assert (await batch.ended())["status"] == "completed"
        good, _ = await batch.verified()
        assert all(len(line["response"]["body"]["choices"]) == 200 for line in good)
        assert await beyond(simulator, batch) == 0


async def test_calls_in_doubt_are_not_repeated_where_that_is_asked_for(simulator: Server, tmp_path: Path) -> None:
    async with Replica(tmp_path, settings(simulator)) as replica:
        batch = await started(replica, chats(600, MODEL), on_doubt="fail")
        await kill(replica, simulator)
        await replica.start()
        state = await batch.ended()
        _, bad = await batch.verified()
        assert {line["error"]["code"] for line in bad} == {"in_doubt"}
        assert all(line["response"] is None for line in bad)
        assert len(bad) == state["progress"]["in_doubt"] > 0
        bodies = (await ledger(simulator))["bodies"]
        assert len(bodies) == len(set(bodies))


async def test_a_replica_takes_over_from_one_that_was_killed(
    simulator: Server, tmp_path: Path, postgres: Callable[[], str]
) -> None:
    url, lease = postgres(), 3
    env = settings(simulator, database_url=url, lease=lease, max_in_flight=24)
    async with two(tmp_path, env) as (doomed, other):
        batch = await started(doomed, chats(MANY, MODEL), done=200)
        batch.at = other
        await batch.look()
        await eventually(lambda: len(held_by(url, doomed.pid)) > 0)
        died = await kill(doomed, simulator, BUSY)
        held = held_by(url, doomed.pid)
        assert held
        await eventually(lambda: taken_over(url, held), 2 * lease)
        state = await batch.ended()
        await batch.verified()
        assert await beyond(simulator, batch) <= min(state["progress"]["in_doubt"], died.bound)


async def test_a_replica_that_was_frozen_past_its_lease_writes_nothing_twice(
    simulator: Server, tmp_path: Path, postgres: Callable[[], str]
) -> None:
    url = postgres()
    async with two(tmp_path, settings(simulator, database_url=url, lease=1, max_in_flight=24)) as (frozen, other):
        batch = await started(other, chats(MANY, MODEL), done=200)
        await eventually(lambda: len(held_by(url, frozen.pid)) > 0)
        frozen.halt()
        held = held_by(url, frozen.pid)
        await eventually(lambda: taken_over(url, held))
        await batch.look()
        frozen.go_on()
        if held:
            await eventually(lambda: "a slice was lost to another worker" in frozen.log())
        await batch.ended()
        await batch.verified()
        await other.end()
        again = await order(frozen, chats(100))
        assert (await again.ended())["status"] == "completed"
        assert "bug" not in frozen.log()


async def test_a_replica_that_is_told_to_end_hands_over_at_once_and_repeats_nothing(
    simulator: Server, tmp_path: Path, postgres: Callable[[], str]
) -> None:
    url, lease = postgres(), 3600
    async with two(tmp_path, settings(simulator, database_url=url, lease=lease, max_in_flight=24)) as (ending, other):
        batch = await started(other, chats(MANY, MODEL), done=100)
        await eventually(lambda: len(held_by(url, ending.pid)) > 0)
        simulator.fault(latency=1)  # slices would take it a while
        held = held_by(url, ending.pid)
        assert await ending.end() == 0
        assert held_by(url, ending.pid) == {}
        left = slices(url)
        assert any(left[number].done < left[number].lines for number in held), "it has worked them off before it ended"
        simulator.heal()
        state = await batch.ended()
        good, _ = await batch.verified()
        assert len(good) == MANY
        assert (await beyond(simulator, batch), state["progress"]["in_doubt"]) == (0, 0)


async def test_a_full_disk_pauses_batches_and_refuses_uploads_until_there_is_room(
    simulator: Server, tmp_path: Path, disk: Disk
) -> None:
    env = settings(simulator, data_dir=disk.folder / "data", lease=1, max_in_flight=32)
    async with Replica(tmp_path, env) as replica:
        batch = await started(replica, chats(600, MODEL))
        await batch.look()
        disk.fill(replica.pid)
        await batch.is_paused("storage_full")
        refused = await upload(replica, chats(20_000))
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage_full")
        await eventually(lambda: "the lease could not be renewed" in replica.log())
        disk.relieve(replica.pid)
        await batch.ended()
        good, _ = await batch.verified()
        assert (len(good), await beyond(simulator, batch)) == (600, 0)


async def test_a_disk_that_fills_up_under_the_output_file_is_waited_for(
    simulator: Server, tmp_path: Path, disk: Disk
) -> None:
    """The last line is held up until the disk is nearly full: its result still fits, the output does not."""
    lines = [*chats(40, HEAVY, **MANY_CHOICES), *chats(41, "m-latency=1.5")[-1:]]
    env = settings(simulator, data_dir=disk.folder / "data")
    async with Replica(tmp_path, env) as replica:
        batch = await started(replica, lines, done=40)
        disk.fill(replica.pid, leave=3 * 1024**2)
        await batch.is_paused("storage_full")
        assert (await batch.state())["status"] == "finalizing" or not disk.is_mounted
        disk.relieve(replica.pid)
        await batch.ended()
        good, _ = await batch.verified()
        assert (len(good), await beyond(simulator, batch)) == (41, 0)


async def test_a_database_that_is_away_is_waited_for(
    simulator: Server, tmp_path: Path, lonely_postgres: Postgres
) -> None:
    env = settings(simulator, database_url=lonely_postgres.fresh(), lease=1, max_in_flight=24)
    async with Replica(tmp_path, env) as replica:
        batch = await started(replica, chats(600, MODEL), done=100)
        await batch.look()
        await asyncio.to_thread(lonely_postgres.stop)
        told = await batch.ask(f"/batches/{batch.id}")
        assert (told.status_code, told.json()["error"]["code"]) == (503, "storage_unavailable")
        await eventually(lambda: replica.log().count("the lease could not be renewed") > 2)
        await asyncio.to_thread(lonely_postgres.start)
        state = await batch.ended()
        good, _ = await batch.verified()
        assert (len(good), await beyond(simulator, batch), state["progress"]["in_doubt"]) == (600, 0, 0)


async def test_a_worker_alone_does_what_a_server_has_accepted(
    simulator: Server, tmp_path: Path, postgres: Callable[[], str]
) -> None:
    url = postgres()
    env = settings(simulator, database_url=url, files_url=tmp_path / "shared", batches__worker=False)
    async with Replica(tmp_path / "server", env) as server:
        batch = await order(server, chats(300))
        assert (await batch.state())["status"] == "validating"
        assert slices(url) == {}
        async with Replica(tmp_path / "worker", env, "worker") as worker:
            assert (await batch.ended())["status"] == "completed"
            await batch.verified()
            assert await worker.end() == 0


async def test_a_second_process_on_sqlite_is_refused_in_one_line(simulator: Server, tmp_path: Path) -> None:
    async with Replica(tmp_path, settings(simulator)):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "app.cli", "worker"],
            cwd=tmp_path,
            env=clean_environment(**settings(simulator)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0
        (line,) = (done.stdout + done.stderr).strip().splitlines()
        assert "data_dir" in line
        assert "in use by another process" in line
