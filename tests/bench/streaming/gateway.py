"""The gateway under test: a process of its own, on a core of its own where its speed is measured."""

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from tests.bench.streaming.wire import Client
from tests.bench.torture.replicas import Replica

CORE = 0
_TICK = os.sysconf("SC_CLK_TCK")


def settings(base_url: str, **more: object) -> dict[str, str]:
    """Returns: The environment of a gateway that knows one upstream, `u`.

    Args: more: Settings by their environment names, without SLUICEGATE_.
    """
    chosen = {
        "access_log": "false",
        "max_attempts": 1,
        "upstreams__u__base_url": base_url,
        "upstreams__u__max_in_flight": 5000,
        **more,
    }
    return {f"SLUICEGATE_{name.upper()}": str(value) for name, value in chosen.items()}


@contextlib.asynccontextmanager
async def gateway(base_url: str, core: int | None, **more: object) -> AsyncIterator[tuple[Replica, Client]]:
    """Yields: One that runs, and who talks to it.

    Args:
        core: To run on; None: any.
        more: As `settings`.
    """
    with tempfile.TemporaryDirectory() as name:
        async with Replica(Path(name), settings(base_url, **more), core=core) as replica:
            yield replica, client_of(replica)


def client_of(replica: Replica) -> Client:
    return Client(int(replica.root.rsplit(":", 1)[1]))


def cpu_seconds(pid: int) -> float:
    """Returns: CPU time of a process so far, all threads, its own and the kernel's for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def waited_seconds(pid: int) -> float:
    """Returns: Time so far in which its main thread could have run, and had no core: others, or its own threads, had."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
