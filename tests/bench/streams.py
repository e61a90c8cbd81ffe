"""Streams under load: resumed, stuck, hung up, drained. The gateway is a real process; upstream and readers are here.

    uv run python -m tests.bench.streams                          # everything, in about ten minutes
    uv run python -m tests.bench.streams --quick                  # smaller, in half a minute
    uv run python -m tests.bench.streams --only resume,stuck --check
    uv run python -m tests.bench.streams --only resume --streams 300

Parts: `resume` (1,000 resumable streams, a third of the readers cut; all cut at once; from the log alone), `stuck` (200
readers that stop reading, beside healthy ones), `hangup` (from a client's going to the upstream call's end), `drain`
(SIGTERM with 500 open streams). Prints a table, and writes a JSON file. The gateway has core 0 to itself, as far as
this machine is ours: where others use it too, figures of time say more about them.
"""

import argparse
import asyncio
import dataclasses
import gc
import json
import os
import platform
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from tests.bench.real.figures import Figure
from tests.bench.streaming import gateway
from tests.bench.streaming.drain import drain
from tests.bench.streaming.hangup import hangup
from tests.bench.streaming.resume import resume
from tests.bench.streaming.scene import StreamScene
from tests.bench.streaming.stuck import stuck

PARTS: dict[str, Callable[[StreamScene], Awaitable[None]]] = {
    "resume": resume,
    "stuck": stuck,
    "hangup": hangup,
    "drain": drain,
}


async def run(names: list[str], figures: list[Figure], *, quick: bool, size: int = 0) -> None:
    """Adds the figures of each part, in order.

    Args:
        quick: Smaller, and side by side.
        size: Streams of `resume`; 0: as many as there should be.
    """
    if quick:
        scenes = [StreamScene(name, quick, [], size) for name in names]
        await asyncio.gather(*(PARTS[scene.name](scene) for scene in scenes))
        figures += [figure for scene in scenes for figure in scene.figures]
        return
    for name in names:
        print(f"… {name}", file=sys.stderr, flush=True)
        await PARTS[name](StreamScene(name, quick, figures, size))
        gc.collect()


def markdown(figures: list[Figure]) -> str:
    """Returns: A table; bold: the target is missed."""
    lines = ["| part | figure | target | measured | ok? |", "|---|---|---|---|---|"]
    for one in figures:
        verdict = {None: "", True: "yes", False: "**no**"}[one.met]
        name = f"&nbsp;&nbsp;{one.name.strip()}" if one.name.startswith(" ") else one.name
        lines.append(f"| {one.scenario} | {name} | {one.target} | {one.measured} | {verdict} |")
    return "\n".join(lines)


def _missed(figures: list[Figure]) -> list[str]:
    """Returns: A line for each target that is missed."""
    lines, of = [], ""
    for one in figures:
        of = of if one.name.startswith(" ") else one.name
        if one.met is False:
            name = f"{of}: {one.name.strip()}" if one.name.startswith(" ") else of
            lines.append(f"misses {one.scenario}: {name}: {one.measured}, target {one.target}")
    return lines


def _written(figures: list[Figure], given: argparse.Namespace) -> str:
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()}
    told = {"quick": given.quick, "machine": machine, "figures": [dataclasses.asdict(one) for one in figures]}
    return json.dumps(told, indent=1)


def _options() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="everything shorter and smaller")
    arguments.add_argument("--only", metavar="a,b", help=", ".join(PARTS))
    arguments.add_argument("--streams", type=int, default=0, metavar="N", help="streams of `resume`")
    place = Path(tempfile.gettempdir()) / "sluicegate-streams.json"
    arguments.add_argument("--json", type=Path, default=place, metavar="FILE", help=f"the figures [{place}]")
    arguments.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    given = arguments.parse_args()
    given.parts = given.only.split(",") if given.only else list(PARTS)
    if unknown := set(given.parts) - set(PARTS):
        arguments.error(f"no such part: {', '.join(sorted(unknown))}")
    return given


def main() -> None:
    given = _options()
    figures: list[Figure] = []
    everywhere = os.sched_getaffinity(0)
    if not given.quick:
        os.sched_setaffinity(0, everywhere - {gateway.CORE} or everywhere)
    gc.disable()  # it would halt upstream and readers, who are one process; run() collects between the parts
    try:
        uvloop.run(run(given.parts, figures, quick=given.quick, size=given.streams))
    finally:
        print(markdown(figures))
        given.json.write_text(_written(figures, given))
    missed = _missed(figures)
    print("\n" + ("\n".join(missed) or "Every target is met."))
    sys.exit(1 if missed and given.check else 0)


if __name__ == "__main__":
    main()
