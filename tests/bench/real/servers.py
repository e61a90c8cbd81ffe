"""The processes of a scenario: simulators and the gateway in front of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from tests.support import Server, serving


@asynccontextmanager
async def processes() -> AsyncIterator[ExitStack]:
    """Ends them all at the block's end, without holding up what else this process is doing."""
    with ExitStack() as stack:
        try:
            yield stack
        finally:
            await asyncio.to_thread(stack.close)


async def simulator(stack: ExitStack, latency: float = 0.05, *, port: int | None = None, tokens: int = 5) -> Server:
    options = ("--latency", f"{latency:g}", "--tokens", str(tokens), "--gap", "0.001")
    return await asyncio.to_thread(stack.enter_context, serving("simulate", *options, port=port))


async def simulators(stack: ExitStack, count: int) -> list[Server]:
    return list(await asyncio.gather(*(simulator(stack) for _ in range(count))))


async def gateway(stack: ExitStack, *upstreams: Server, strategy: str = "fallback", settings: str = "") -> Server:
    """Returns: One that knows the model `m`, at every upstream, and without it each upstream's own.

    Args: settings: More lines for every upstream.
    """
    tables = [f'[upstreams.u{place}]\nbase_url = "{one.base_url}"\n{settings}\n' for place, one in enumerate(upstreams)]
    targets = ", ".join(f'"u{place}/m"' for place in range(len(upstreams)))
    toml = f'access_log = false\n{"".join(tables)}[models.m]\ntargets = [{targets}]\nstrategy = "{strategy}"\n'
    return await asyncio.to_thread(stack.enter_context, serving("serve", toml=toml))


def port_of(server: Server) -> int:
    return int(server.root.rsplit(":", 1)[1])


async def kill(server: Server) -> None:
    """Ends it without a word to anybody."""
    server.process.kill()
    await asyncio.to_thread(server.process.wait)
