"""Batches from their creation to their end, on both databases: each step is somebody's, and once."""

import asyncio

import pytest
from sqlalchemy.exc import IntegrityError

from app.store import batches, commits, ledger
from app.store.database import Database
from app.store.owners import NotOursError
from tests.store.ledgers import add_batch, alive, batch_row, change, lines_of, made, set_batch, silent, slice_row

ALL = tuple(range(10))


async def test_a_job_is_one_owners_until_its_lease_is_over(database: Database) -> None:
    number = await database.run(add_batch, 0, status="validating")
    await database.run(alive, "a", "b")
    tries = [
        database.run(batches.next_job, owner, [] if first else [number]) for first in (True, False) for owner in "ab"
    ]
    found = [row for row in await asyncio.gather(*tries) if row is not None]
    assert [row["number"] for row in found] == [number]
    runner = (await database.run(batch_row, number))["runner"]
    await database.run(silent, runner)
    other = "b" if runner == "a" else "a"
    row = await database.run(batches.next_job, other)
    assert row is not None
    assert await database.run(batches.is_validating, other, number)
    assert not await database.run(batches.is_validating, runner, number)


async def test_many_jobs_go_to_different_owners(database: Database) -> None:
    numbers = [await database.run(add_batch, 0, status="validating") for _ in range(12)]
    await database.run(alive, "a", "b", "c")
    found: list[int] = []

    async def take(owner: str) -> None:
        mine: list[int] = []
        while (row := await database.run(batches.next_job, owner, mine)) is not None:
            mine.append(row["number"])
        found.extend(mine)

    await asyncio.gather(*map(take, "abc"))
    await take("d")  # one that was locked just then is passed over
    assert sorted(found) == numbers


async def test_a_job_whose_taking_or_leaving_went_unheard_is_taken_again_by_its_owner_alone(database: Database) -> None:
    number = await database.run(add_batch, 0, status="validating")
    await database.run(alive, "a", "b")
    assert await database.run(batches.next_job, "a") is not None
    assert await database.run(batches.next_job, "b") is None
    assert await database.run(batches.next_job, "a", [number]) is None
    assert await database.run(batches.next_job, "a") is not None


async def test_jobs_that_fail_again_and_again_hold_up_no_others(database: Database) -> None:
    first = await database.run(add_batch, 0, status="validating")
    second = await database.run(add_batch, 0, status="validating")
    await database.run(alive, "a")
    await database.run(batches.pause, first, "storage_unavailable", "no such file", 60)
    found = [await database.run(batches.next_job, "a", busy) for busy in ([], [second])]
    assert [row and row["number"] for row in found] == [second, first]


async def test_a_batch_is_not_ended_while_somebody_alive_works_on_it(database: Database) -> None:
    number = await database.run(add_batch)
    await database.run(alive, "a", "b")
    (claim,) = await database.run(ledger.claim, "a", 1, ())
    await database.run(set_batch, number, ending="expired")
    assert await database.run(batches.next_job, "b") is None
    await database.run(ledger.release, "a", [(number, claim.number)])
    assert await database.run(batches.next_job, "b") is not None


async def test_who_was_silent_when_a_batch_was_ended_writes_nothing_into_it_any_more(database: Database) -> None:
    number = await database.run(add_batch)
    await database.run(alive, "a", "b")
    (claim,) = await database.run(ledger.claim, "a", 1, ())
    await database.run(set_batch, number, ending="expired")
    await database.run(silent, "a")
    assert await database.run(batches.next_job, "b") is not None
    assert await database.run(batches.closed, "b", number) is not None
    await database.run(alive, "a")
    assert await database.run(commits.commit, "a", [change(claim, 0)], made(claim, "late")) == {(number, 0)}
    assert await database.run(lines_of, number) == []
    assert await database.run(end, "b", number)
    ended = await database.run(batch_row, number)
    assert (ended["status"], ended["completed"], ended["failed"]) == ("expired", 0, 10)


async def test_the_books_of_a_batch_stay_open_while_it_runs_or_is_worked_on(database: Database) -> None:
    number = await database.run(add_batch)
    await database.run(alive, "a", "b")
    await database.run(set_batch, number, runner="b")
    assert await database.run(batches.closed, "b", number) is None
    (claim,) = await database.run(ledger.claim, "a", 1, ())
    await database.run(set_batch, number, ending="expired")
    assert await database.run(batches.closed, "b", number) is None
    await database.run(ledger.release, "a", [(number, claim.number)])
    assert await database.run(batches.closed, "b", number) is not None
    with pytest.raises(NotOursError):
        await database.run(batches.closed, "a", number)


async def test_a_long_batch_is_followed_while_it_runs_unless_others_have_to_be_ended(database: Database) -> None:
    long = await database.run(add_batch)
    short = await database.run(add_batch)
    await database.run(set_batch, long, total=100_000)
    await database.run(set_batch, short, ending="expired")
    await database.run(alive, "a", "b")
    first = await database.run(batches.next_job, "a")
    assert first is not None
    assert first["number"] == short
    followed = await database.run(batches.next_job, "b")
    assert followed is not None
    assert followed["number"] == long


def end(*args: object) -> bool:
    connection, me, number = args
    return batches.ended(connection, me, number, at=7, output="file-o", error=None, lost=10)  # type: ignore[arg-type]


async def test_a_validation_counts_only_for_who_has_the_job(database: Database) -> None:
    number = await database.run(add_batch, 0, status="validating")
    await database.run(alive, "a", "b")
    await database.run(batches.next_job, "a")
    cut = [{"batch": number, "number": 0, "start": 0, "stop": 9, "first": 0, "lines": 1, "sent": b"\0", "done": b"\0"}]
    await database.run(batches.validated, "b", number, cut, "m", 5, 1)
    assert (await database.run(batch_row, number))["status"] == "validating"
    for _ in range(2):  # the answer to the first was lost
        await database.run(batches.validated, "a", number, cut, "m", 5, 1)
    row = await database.run(batch_row, number)
    assert (row["status"], row["total"], row["model"], row["runner"]) == ("in_progress", 1, "m", None)
    assert (await database.run(slice_row, number))["lines"] == 1


async def test_a_refusal_counts_only_for_who_has_the_job(database: Database) -> None:
    number = await database.run(add_batch, 0, status="validating")
    await database.run(alive, "a", "b")
    await database.run(batches.next_job, "a")
    await database.run(batches.refused, "b", number, [{"code": "empty_file"}], 5)
    assert (await database.run(batch_row, number))["status"] == "validating"
    await database.run(batches.refused, "a", number, [{"code": "empty_file"}], 5)
    row = await database.run(batch_row, number)
    assert (row["status"], row["failed_at"], row["errors"]) == ("failed", 5, [{"code": "empty_file"}])


async def test_a_cancelled_batch_is_not_validated(database: Database) -> None:
    number = await database.run(add_batch, 0, status="validating")
    await database.run(alive, "a")
    row = await database.run(batches.next_job, "a")
    assert row is not None
    await database.run(batches.cancel, "me", row["id"], 6)
    await database.run(batches.validated, "a", number, [], "m", 5, 1)
    assert (await database.run(batch_row, number))["status"] == "cancelling"


async def test_an_end_is_said_once(database: Database) -> None:
    number = await database.run(add_batch, ending="completed", status="finalizing")
    await database.run(alive, "a", "b")
    await database.run(batches.next_job, "a")
    assert not await database.run(end, "b", number)
    assert await database.run(end, "a", number)
    assert not await database.run(end, "a", number)
    row = await database.run(batch_row, number)
    assert (row["status"], row["completed_at"], row["failed"]) == ("completed", 7, 10)


async def test_results_and_slices_go_when_the_batch_has_ended_and_not_before(database: Database) -> None:
    number = await database.run(add_batch)
    await database.run(alive, "a")
    (claim,) = await database.run(ledger.claim, "a", 1, ())
    await database.run(commits.commit, "a", [change(claim, *ALL)], made(claim, *"abcdefghij"))
    assert not await database.run(batches.purge)
    assert len(await database.run(lines_of, number)) == 10
    await database.run(batches.next_job, "a")
    await database.run(end, "a", number)
    while await database.run(batches.purge):
        pass
    assert await database.run(lines_of, number) == []
    assert await database.run(ledger.unfinished, number, -1) == []


async def test_a_big_batchs_slices_are_all_stored_or_none(database: Database) -> None:
    number = await database.run(add_batch, 0, status="validating")
    await database.run(alive, "a")
    await database.run(batches.next_job, "a")
    place = {"start": 0, "stop": 9, "first": 0, "lines": 1, "sent": b"\0", "done": b"\0"}
    cut = [{"batch": number, "number": each, **place} for each in range(5_001)]
    with pytest.raises(IntegrityError):
        await database.run(batches.validated, "a", number, [*cut, cut[-1]], "m", 5, 5_002)
    assert (await database.run(batch_row, number))["status"] == "validating"
    await database.run(batches.validated, "a", number, cut, "m", 5, 5_001)
    assert (await database.run(slice_row, number, 5_000))["number"] == 5_000
