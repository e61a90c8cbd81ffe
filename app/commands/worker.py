"""`sluicegate worker`: works batches off without serving anything. Start as many as you like on one shared database."""

import asyncio
import contextlib
import logging
import signal

from app.settings import GatewaySettings
from app.wiring import running_gateway

log = logging.getLogger("sluicegate")


async def run(settings: GatewaySettings) -> None:
    """Works until SIGTERM or SIGINT: what runs may then end within `drain_timeout`; a second signal ends it now."""
    loop = asyncio.get_running_loop()
    stopping, hurry = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        (hurry if stopping.is_set() else stopping).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    async with running_gateway(settings) as gateway:
        worker = gateway.worker
        assert worker is not None  # noqa: S101 - the settings say so: see app/cli.py
        log.info("works batches off")
        await stopping.wait()
        worker.hand_back()
        waits = {asyncio.create_task(worker.idle()), asyncio.create_task(hurry.wait())}
        await asyncio.wait(waits, timeout=settings.drain_timeout, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*waits, return_exceptions=True)
