"""Connections as this machine's kernel knows them: the only place that tells of a reader that does not read."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.bench.streaming.upstream import NO_MODELS
from tests.support import reply

ESTABLISHED, SYN_SENT = "01", "02"


class Connection(NamedTuple):
    """One end of one. Attributes: unsent, unread: Bytes that lie in the kernel; inode: By which its process knows it."""

    near: int
    far: int
    state: str
    unsent: int
    unread: int
    inode: str


def connections(port: int) -> Iterator[Connection]:
    """Yields: Ends of connections from or to a port."""
    wanted = f":{port:04X} "
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        if wanted in row:
            _, near, far, state, queues, _, _, _, _, inode, *_ = row.split()
            unsent, unread = (int(queue, 16) for queue in queues.split(":"))
            yield Connection(int(near[9:], 16), int(far[9:], 16), state, unsent, unread, inode)


def unsent_to(port: int) -> dict[int, int]:
    """Returns: Bytes that a server on this port has not got rid of yet, by the port of each connection's other end."""
    return {one.far: one.unsent for one in connections(port) if one.near == port and one.state == ESTABLISHED}


def handle_of(pid: int, inode: str) -> Path | None:
    """Returns: What stands for a connection among the open files of its process; None: it is closed."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        if is_open(path, inode):
            return path
    return None


def is_open(handle: Path, inode: str) -> bool:
    """Args: handle: As `handle_of` found it."""
    with contextlib.suppress(OSError):
        return str(handle.readlink()) == f"socket:[{inode}]"
    return False


@contextlib.asynccontextmanager
async def going_deaf() -> AsyncIterator[tuple[int, "asyncio.Task[None]"]]:
    """An upstream that tells its model list once; from then on not even a SYN is answered.

    Yields: Its port; a task that ends when it is deaf.
    """
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, socket.socket() as filler:
        server.setblocking(False)

        async def answer() -> None:
            asked, _ = await loop.sock_accept(server)
            with asked:
                await loop.sock_recv(asked, 65536)
                await loop.sock_sendall(asked, reply(NO_MODELS, headers={"connection": "close"}))
            filler.setblocking(False)
            await loop.sock_connect(filler, server.getsockname())  # nobody accepts it: the queue is full

        yield server.getsockname()[1], asyncio.create_task(answer(), name="model list")
