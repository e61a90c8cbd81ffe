"""The simulator on a socket of its own, inside this process: the gateway reaches it as it reaches any upstream."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn

from app.settings import SimulatorSettings
from app.simulator.app import Simulator


class _Quiet(uvicorn.Server):
    """A server whose signals belong to somebody else."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def running(settings: SimulatorSettings) -> AsyncIterator[str]:
    """Serves a simulator on a free loopback port. Yields: Its base URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        Simulator(settings),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
    )
    server = _Quiet(config)
    task = asyncio.create_task(server.serve([listener]), name="simulator")
    try:
        while not server.started:
            if task.done():
                await task
            await asyncio.sleep(0)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = server.force_exit = True
        await task
