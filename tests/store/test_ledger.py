"""Slices under leases and results in group commits, on both databases: whatever is repeated or late, nothing is twice."""

import asyncio

from sqlalchemy import update

from app.store import batches, commits, ledger
from app.store.database import Database
from app.store.ledger import Claim
from app.store.tables import slices
from tests.store.ledgers import (
    LINES,
    add_batch,
    alive,
    batch_row,
    change,
    lines_of,
    made,
    set_batch,
    silent,
    slice_row,
)

ALL = tuple(range(10))


async def claimed(database: Database, owner: str, wanted: int = 1) -> list[Claim]:
    """What a living owner gets. Args: wanted: Slices."""
    await database.run(alive, owner)
    return await database.run(ledger.claim, owner, wanted * LINES, ())


async def test_a_commit_that_is_repeated_writes_once(database: Database) -> None:
    number = await database.run(add_batch)
    (claim,) = await claimed(database, "a")
    for _ in range(3):  # the answer to the first was lost, and to the second
        assert await database.run(commits.commit, "a", [change(claim, 0, 1)], made(claim, "x", "y")) == set()
    assert await database.run(lines_of, number) == [(1, "x"), (2, "y")]
    row = await database.run(batch_row, number)
    assert (row["completed"], row["failed"], row["total_tokens"]) == (2, 0, 2)


async def test_a_last_commit_that_is_repeated_writes_once(database: Database) -> None:
    """The slice has no owner any more when it is finished."""
    number = await database.run(add_batch)
    (claim,) = await claimed(database, "a")
    for _ in range(2):
        assert await database.run(commits.commit, "a", [change(claim, *ALL)], made(claim, *"abcdefghij")) == set()
    row = await database.run(batch_row, number)
    assert (row["completed"], row["status"], row["ending"]) == (10, "finalizing", "completed")
    assert (await database.run(slice_row, number))["owner"] is None


async def test_a_repeated_commit_that_is_followed_by_another_goes_on(database: Database) -> None:
    number = await database.run(add_batch)
    (claim,) = await claimed(database, "a")
    first, second = change(claim, 0), change(claim, 0, 1, version=claim.version + 1)
    for each, text in ((first, "x"), (first, "x"), (second, "y"), (second, "y")):
        assert await database.run(commits.commit, "a", [each], made(claim, text)) == set()
    assert await database.run(lines_of, number) == [(1, "x"), (2, "y")]


async def test_who_lost_a_slice_writes_nothing_of_it(database: Database) -> None:
    number = await database.run(add_batch)
    (old,) = await claimed(database, "a")
    await database.run(silent, "a")
    (new,) = await claimed(database, "b")
    await database.run(alive, "a")  # it wakes up
    assert await database.run(commits.commit, "a", [change(old, 0)], made(old, "late")) == {(number, 0)}
    assert await database.run(commits.commit, "b", [change(new, 0)], made(new, "in time")) == set()
    assert await database.run(commits.commit, "a", [change(old, 0)], made(old, "late")) == {(number, 0)}
    assert await database.run(lines_of, number) == [(1, "in time")]
    assert (await database.run(batch_row, number))["completed"] == 1


async def test_of_a_mixed_commit_only_what_is_ours_is_written(database: Database) -> None:
    number = await database.run(add_batch, 2)
    first, second = await claimed(database, "a", 2)
    await database.run(silent, "a")
    (taken,) = await claimed(database, "b")
    assert taken.number == 0
    changes, stored = [change(second, 0), change(first, 0)], [*made(first, "lost"), *made(second, "kept")]
    assert await database.run(commits.commit, "a", changes, stored) == {(number, 0)}
    assert await database.run(lines_of, number) == [(1, "kept")]


async def test_who_is_late_but_was_not_replaced_may_write(database: Database) -> None:
    number = await database.run(add_batch)
    (claim,) = await claimed(database, "a")
    await database.run(silent, "a")
    assert await database.run(commits.commit, "a", [change(claim, 0)], made(claim, "x")) == set()
    assert await database.run(lines_of, number) == [(1, "x")]


async def test_nobody_claims_anew_what_he_holds_himself(database: Database) -> None:
    """Its lease is over when the database comes back after long: its calls still run."""
    await database.run(add_batch)
    (claim,) = await claimed(database, "a")
    await database.run(silent, "a")
    assert await database.run(ledger.claim, "a", 1, ()) == []
    assert await database.run(commits.commit, "a", [change(claim, 0)], made(claim, "x")) == set()


async def test_a_batch_that_is_cancelled_while_it_is_looked_at_gives_no_slice(database: Database) -> None:
    number = await database.run(add_batch)
    await database.run(alive, "a")
    row = await database.run(batch_row, number)
    await database.run(set_batch, number, status="cancelling", ending="cancelled")
    assert await database.run(ledger._take, "a", row, 1) == []


async def test_doubt_that_is_to_fail_stays_until_it_is_told(database: Database) -> None:
    """Whoever takes the slice over may die, too, before the lines' errors are stored."""
    number = await database.run(add_batch)
    await database.run(set_batch, number, on_doubt="fail")
    (claim,) = await claimed(database, "a")
    await database.run(commits.commit, "a", [change(claim, sent=(0, 1))], [])
    for owner, before in (("b", "a"), ("c", "b")):
        await database.run(silent, before)
        (claim,) = await claimed(database, owner)
        assert claim.doubtful == (0, 1)


async def test_two_owners_at_once_never_get_the_same_slice(database: Database) -> None:
    await database.run(add_batch, 40)
    await database.run(alive, "a", "b", "c", "d")
    rounds = [database.run(ledger.claim, owner, 5 * LINES, ()) for _ in range(4) for owner in ("a", "b", "c")]
    found = [claim.number for claims in await asyncio.gather(*rounds) for claim in claims]
    assert len(found) == len(set(found))
    rest = []
    while more := await database.run(ledger.claim, "d", 40 * LINES, ()):
        rest += more
    assert sorted([*found, *(claim.number for claim in rest)]) == list(range(40))


async def test_a_slice_of_the_living_is_claimed_by_nobody_and_one_that_is_given_back_by_anybody(
    database: Database,
) -> None:
    number = await database.run(add_batch)
    (claim,) = await claimed(database, "a")
    assert await claimed(database, "b") == []
    await database.run(commits.commit, "a", [change(claim, 0, 1)], made(claim, "x", "y"))
    await database.run(ledger.release, "a", [(number, 0)])
    (again,) = await claimed(database, "b")
    assert (again.done, again.doubtful) == (change(claim, 0, 1).done, ())
    assert (await database.run(batch_row, number))["in_doubt"] == 0


async def test_who_does_not_hold_a_slice_cannot_give_it_back(database: Database) -> None:
    number = await database.run(add_batch)
    await claimed(database, "a")
    await database.run(ledger.release, "b", [(number, 0)])
    assert await database.run(ledger.held, "a") == {(number, 0)}


async def test_lines_that_were_sent_by_the_dead_are_in_doubt_once(database: Database) -> None:
    number = await database.run(add_batch)
    (claim,) = await claimed(database, "a")
    await database.run(commits.commit, "a", [change(claim, 0, 1, sent=(2, 3, 9))], made(claim, "x", "y"))
    await database.run(silent, "a")
    (again,) = await claimed(database, "b")
    assert again.doubtful == (2, 3, 9)
    assert (await database.run(batch_row, number))["in_doubt"] == 3
    await database.run(silent, "b")
    (third,) = await claimed(database, "c")
    assert third.doubtful == ()
    assert (await database.run(batch_row, number))["in_doubt"] == 3


async def test_batches_that_are_paused_ending_or_passed_over_are_not_claimed(database: Database) -> None:
    number = await database.run(add_batch)
    await database.run(alive, "a")
    await database.run(batches.pause, number, "code", "reason", 60)
    assert await database.run(ledger.claim, "a", 1, ()) == []
    await database.run(set_batch, number, paused_until=0)
    assert await database.run(ledger.claim, "a", 1, (number,)) == []
    for ending in ({"ending": "expired"}, {"status": "cancelling", "ending": "cancelled"}, {"status": "validating"}):
        await database.run(set_batch, number, **ending)
        assert await database.run(ledger.claim, "a", 1, ()) == []
        await database.run(set_batch, number, status="in_progress", ending=None)
    assert len(await database.run(ledger.claim, "a", 1, ())) == 1


async def test_a_result_ends_a_pause_that_is_over_and_no_other(database: Database) -> None:
    number = await database.run(add_batch)
    (claim,) = await claimed(database, "a")
    await database.run(batches.pause, number, "code", "reason", 60)
    await database.run(commits.commit, "a", [change(claim, 0)], made(claim, "x"))
    assert (await database.run(batch_row, number))["paused_code"] == "code"
    await database.run(set_batch, number, paused_until=0)
    await database.run(commits.commit, "a", [change(claim, 0, 1, version=claim.version + 1)], made(claim, "y"))
    assert (await database.run(batch_row, number))["paused_code"] is None


async def test_results_of_two_owners_stand_in_one_order_without_gaps(database: Database) -> None:
    number = await database.run(add_batch, 8)
    claims = {owner: await claimed(database, owner, 4) for owner in ("a", "b")}

    async def work(owner: str) -> None:
        for claim in claims[owner]:
            for count in range(1, 11):
                now = change(claim, *range(count), version=claim.version + count - 1)
                assert await database.run(commits.commit, owner, [now], made(claim, f"{claim.number}-{count}")) == set()

    await asyncio.gather(work("a"), work("b"))
    lines = await database.run(lines_of, number)
    assert [position for position, _ in lines] == list(range(1, 81))
    assert len({text for _, text in lines}) == 80
    assert (await database.run(batch_row, number))["status"] == "finalizing"


async def test_two_that_write_for_the_same_batches_in_opposite_order_do_not_block_each_other(
    database: Database,
) -> None:
    numbers = [await database.run(add_batch, 2) for _ in range(3)]
    claims = {owner: await claimed(database, owner, 3) for owner in ("a", "b")}

    async def work(owner: str, *, backwards: bool) -> None:
        for count in range(1, 11):
            mine = list(reversed(claims[owner])) if backwards else claims[owner]
            changes = [change(claim, *range(count), version=claim.version + count - 1) for claim in mine]
            stored = [one for claim in mine for one in made(claim, f"{owner}{count}")]
            assert await database.run(commits.commit, owner, changes, stored) == set()

    await asyncio.gather(work("a", backwards=False), work("b", backwards=True))
    for number in numbers:
        assert (await database.run(batch_row, number))["completed"] == 20


async def test_what_is_in_flight_is_told_of_the_living_only(database: Database) -> None:
    number = await database.run(add_batch, 2)
    first, second = await claimed(database, "a", 2)
    changes = [change(first, 0, sent=(1, 2)), change(second, sent=(5,))]
    await database.run(commits.commit, "a", changes, made(first, "x"))
    assert await database.run(ledger.in_flight, number) == 3
    await database.run(silent, "a")
    assert await database.run(ledger.in_flight, number) == 0


async def test_unfinished_slices_come_page_by_page(database: Database) -> None:
    number = await database.run(add_batch, 120)
    await database.run(
        lambda connection: connection.execute(update(slices).where(slices.c.number == 7).values(finished=True))
    )
    first = await database.run(ledger.unfinished, number, -1)
    rest = await database.run(ledger.unfinished, number, first[-1]["number"])
    assert [row["number"] for row in [*first, *rest]] == [place for place in range(120) if place != 7]
