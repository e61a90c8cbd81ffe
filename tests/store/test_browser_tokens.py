"""What a token has left is taken once, however many ask; expired rows go; the secret is drawn once."""

import asyncio
import os

import pytest
from sqlalchemy import Connection, func, select, update

from app.store import browser_tokens, clock
from app.store.database import Database
from app.store.tables import browser_tokens as table


async def add(database: Database, id_: str, requests: int = 1, expires_at: float = 1e12) -> None:
    await database.run(browser_tokens.add, id_, requests, expires_at)


async def spend(database: Database, id_: str, requests: int = 1) -> bool:
    return await database.run(browser_tokens.spend, id_, requests)


def ids(connection: Connection) -> set[str]:
    return set(connection.execute(select(table.c.id)).scalars())


def total(connection: Connection) -> int:
    return int(connection.execute(select(func.sum(table.c.remaining))).scalar_one())


async def test_many_who_spend_at_once_never_spend_more_than_there_is(database: Database) -> None:
    await add(database, "t", 30)
    asked = [1 + place % 3 for place in range(60)]
    given = await asyncio.gather(*(spend(database, "t", requests) for requests in asked))
    left = await database.run(total)
    assert sum(requests for requests, ok in zip(asked, given, strict=True) if ok) == 30 - left
    assert left == 0


async def test_all_is_taken_or_nothing(database: Database) -> None:
    await add(database, "t", 5)
    assert not await spend(database, "t", 6)
    assert await spend(database, "t", 5)
    assert not await spend(database, "t", 1)


async def test_a_token_without_a_row_has_nothing_left_and_others_do_not_matter(database: Database) -> None:
    await add(database, "one", 1)
    await add(database, "other", 5)
    assert await spend(database, "one")
    assert not await spend(database, "one")
    assert not await spend(database, "nobody")
    assert await database.run(total) == 5


async def test_rows_of_expired_tokens_go_page_by_page_the_oldest_first(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in range(5):
        await add(database, f"old{place}")
    await add(database, "living")

    def age(connection: Connection) -> None:
        for place in range(5):
            connection.execute(update(table).where(table.c.id == f"old{place}").values(expires_at=100 - place))

    await database.run(age)
    monkeypatch.setattr(browser_tokens, "_AT_ONCE", 3)
    await add(database, "new")
    assert await database.run(ids) == {"old0", "old1", "living", "new"}
    await add(database, "newer")
    assert await database.run(ids) == {"living", "new", "newer"}


async def test_a_token_that_has_just_expired_keeps_its_row_for_clocks_that_differ(database: Database) -> None:
    now = await database.run(lambda connection: connection.execute(select(clock.now())).scalar_one())
    await add(database, "just", 1, now - 60)
    await add(database, "long ago", 1, now - 1000)
    await add(database, "new")
    assert await database.run(ids) == {"just", "new"}


async def test_the_secret_is_drawn_once_whoever_is_first(database: Database) -> None:
    drawn = [os.urandom(32) for _ in range(20)]
    found = await asyncio.gather(*(database.run(browser_tokens.secret, "s", value) for value in drawn))
    assert len(set(found)) == 1
    assert found[0] in drawn
    assert await database.run(browser_tokens.secret, "another", b"x") == b"x"
