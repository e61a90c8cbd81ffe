"""Batches: how fast they go, what they cost, and what they survive. Gateways and simulators are real processes.

    uv run python -m tests.bench.batches                     # everything, in a quarter of an hour
    uv run python -m tests.bench.batches --quick             # smaller, in three minutes
    uv run python -m tests.bench.batches embeddings kills --check

Sections: `embeddings` (one by one, and packed), `chat100k` (a hundred thousand chats), `cost` (of the ledger alone),
`kills` (kill -9, fifty times; takeovers), `stop` (a frozen replica), `away` (no database), `full` (no room on the disk).
Prints a table; bold figures miss their target. Where a speed is measured, the gateway has core 0 to itself, as far as
this machine is ours: say so beside the figures if it is not.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

from tests.bench.real.figures import Figure, Scene, markdown
from tests.bench.torture import speed, trouble

SECTIONS: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "embeddings": speed.packing,
    "chat100k": speed.many,
    "cost": speed.cost,
    "kills": trouble.kills,
    "stop": trouble.stop,
    "away": trouble.away,
    "full": trouble.full,
}
_APART = ("embeddings", "chat100k")  # the gateway has a core of its own
_CORES = os.sched_getaffinity(0)


async def run(names: list[str], figures: list[Figure], *, quick: bool) -> None:
    """Adds the figures of each section, in order."""
    for name in names:
        print(f"… {name}", file=sys.stderr, flush=True)
        others = _CORES - {speed.GATEWAY_CORE} if name in _APART else _CORES
        os.sched_setaffinity(0, others or _CORES)
        await SECTIONS[name](Scene(name, quick, figures))


def _options() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    arguments.add_argument("--quick", action="store_true", help="everything shorter and smaller")
    arguments.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    given = arguments.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        arguments.error(f"no such section: {', '.join(sorted(unknown))}")
    return given


def main() -> None:
    given = _options()
    figures: list[Figure] = []
    try:
        asyncio.run(run(given.sections or list(SECTIONS), figures, quick=given.quick))
    finally:
        print(markdown(figures))
    missed = [f"{one.scenario}: {one.name}: {one.measured}, target {one.target}" for one in figures if one.met is False]
    print("\n" + ("\n".join(f"misses {line}" for line in missed) or "Every target is met."))
    sys.exit(1 if missed and given.check else 0)


if __name__ == "__main__":
    main()
