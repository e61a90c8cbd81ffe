"""What holds on the real server: gateways and simulators in processes of their own, calls at a fixed rate.

    uv run python -m tests.bench.protection                  # everything, in less than ten minutes
    uv run python -m tests.bench.protection --quick          # shorter, in less than a minute and a half
    uv run python -m tests.bench.protection --only storm,hedge --check

Scenarios: `storm` (an upstream that answers 503 to everything, and is healed), `overload` (five times what the upstream
can do), `hole` (one of three targets falls silent, is killed and comes back), `fanout` (a large one beside chats),
`hedge` (a target that is slow now and then). Prints a table; bold figures miss their target.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable

from tests.bench.real.beside import beside
from tests.bench.real.figures import Figure, Scene, markdown
from tests.bench.real.hedge import hedge
from tests.bench.real.hole import hole
from tests.bench.real.overload import overload
from tests.bench.real.storm import storm

SCENARIOS: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "storm": storm,
    "overload": overload,
    "hole": hole,
    "fanout": beside,
    "hedge": hedge,
}
# in --quick these run side by side: each leaves the machine nearly idle
_LIGHT = ("storm", "hole", "hedge")


async def run(names: list[str], *, quick: bool) -> list[Figure]:
    """Returns: The figures of each scenario, in order."""
    scenes = {name: Scene(name, quick, []) for name in names}
    together = [name for name in names if quick and name in _LIGHT]
    groups = [[name] for name in names if name not in together] + ([together] if together else [])
    for group in groups:
        print(f"… {', '.join(group)}", file=sys.stderr, flush=True)
        await asyncio.gather(*(SCENARIOS[name](scenes[name]) for name in group))
    return [figure for scene in scenes.values() for figure in scene.figures]


def _options() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="everything shorter and smaller")
    arguments.add_argument("--only", metavar="a,b", help="scenarios")
    arguments.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    given = arguments.parse_args()
    given.scenarios = given.only.split(",") if given.only else list(SCENARIOS)
    if unknown := set(given.scenarios) - set(SCENARIOS):
        arguments.error(f"no such scenario: {', '.join(sorted(unknown))}")
    return given


def main() -> None:
    given = _options()
    figures = asyncio.run(run(given.scenarios, quick=given.quick))
    print(markdown(figures))
    missed = [f"{one.scenario}: {one.name}: {one.measured}, target {one.target}" for one in figures if one.met is False]
    print("\n" + ("\n".join(f"misses {line}" for line in missed) or "Every target is met."))
    sys.exit(1 if missed and given.check else 0)


if __name__ == "__main__":
    main()
