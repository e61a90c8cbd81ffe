"""How far a fan-out may run ahead: never more items or bytes than allowed, and never stuck."""

import asyncio

from app.services.window import Window


async def entered(window: Window, size: int) -> bool:
    """Whether an item gets in without anybody leaving."""
    try:
        await asyncio.wait_for(window.enter(size), 0.05)
    except TimeoutError:
        return False
    return True


async def test_as_many_items_as_there_are_places() -> None:
    window = Window(1)
    for _ in range(window.places):
        assert await entered(window, 0)
    assert not await entered(window, 0)
    window.leave(0)
    assert await entered(window, 0)


async def test_bytes_held_for_items_and_results_close_it_until_they_are_taken() -> None:
    window = Window(4, most_bytes=100)
    assert await entered(window, 150)  # one item always fits
    assert not await entered(window, 1)
    window.swap(150, 99)
    assert await entered(window, 1)
    assert not await entered(window, 1)
    window.leave(99)
    assert await entered(window, 1)
