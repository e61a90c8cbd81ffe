"""The admission point against what people do without one, on six upstreams, in a simulation over the real policy code.

uv run python -m tests.bench.admission             # all of it, minutes; writes docs/admission.md, its charts, README.md
uv run python -m tests.bench.admission --quick     # 1,500 items a job instead of 10,000; writes nothing
uv run python -m tests.bench.admission --only d,e  # some scenarios; writes nothing
uv run python -m tests.bench.admission --check     # and exit 1 if ours misses a target
"""

import argparse
import multiprocessing
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.bench import report
from tests.bench.virtual.figures import Figures, figures
from tests.bench.virtual.race import Outcome, race
from tests.bench.virtual.scenarios import CONTENDERS, ITEMS, ORACLE, OURS, SCENARIOS

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
QUICK_ITEMS = 1500
OTHERS_SEEDS = 3  # they do not search, and hardly depend on luck
_ALONE = "alone"  # ours without jobs: what people would have without them

Key = tuple[str, str, int]  # scenario, contender or _ALONE, seed


def _raced(task: tuple[Key, int]) -> tuple[Key, Outcome]:
    (scenario, contender, seed), items = task
    alone = contender == _ALONE
    return task[0], race(scenario, OURS if alone else contender, items, seed, jobs=not alone)


def run(scenarios: Iterable[str], items: int, seeds: int) -> dict[Key, Outcome]:
    """Races on all cores. Returns: What happened."""
    keys = [
        (scenario, name, seed)
        for seed in range(1, seeds + 1)
        for scenario in scenarios
        for name in (*CONTENDERS, _ALONE)
        if seed <= OTHERS_SEEDS or name in {OURS, ORACLE, _ALONE}
    ]
    with multiprocessing.get_context("spawn").Pool() as pool:
        return dict(pool.imap_unordered(_raced, [(key, items) for key in keys]))


def tables(seen: Mapping[Key, Outcome]) -> dict[int, dict[str, dict[str, Figures]]]:
    """Returns: For each seed: scenario, contender, figures; in the order of the registries."""
    scenarios = [name for name in SCENARIOS if any(key[0] == name for key in seen)]
    return {
        seed: {
            scenario: {
                name: figures(seen[scenario, name, seed], seen[scenario, ORACLE, seed], seen[scenario, _ALONE, seed])
                for name in CONTENDERS
                if (scenario, name, seed) in seen
            }
            for scenario in scenarios
        }
        for seed in sorted({key[2] for key in seen})
    }


def _put(page: Path, marker: str, written: str) -> None:
    """Replaces what stands between a page's markers."""
    start, end = f"<!-- {marker}: written by tests/bench/admission.py -->\n", f"<!-- end of {marker} -->\n"
    before, _, rest = page.read_text().partition(start)
    page.write_text(before + start + written + end + rest.partition(end)[2])


def _write(table: report.Table, markdown: str, seen: Mapping[Key, Outcome], seed: int) -> None:
    _put(DOCS / "admission.md", "figures", markdown)
    _put(ROOT / "README.md", "admission", report.short(table))
    (DOCS / "admission.svg").write_text(report.trade_off(table))
    steps = {name: seen[report.STEPS, name, seed] for name in report.STEP_CONTENDERS}
    (DOCS / "admission-step.svg").write_text(report.step_response(steps))


def _options() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help=f"{QUICK_ITEMS:,} items a job")
    arguments.add_argument("--only", metavar="a,b", help="scenarios")
    arguments.add_argument("--seeds", type=int, default=12, help="for ours; the others run the first three at most")
    arguments.add_argument("--check", action="store_true", help="exit 1 if ours misses a target")
    given = arguments.parse_args()
    given.scenarios = given.only.split(",") if given.only else list(SCENARIOS)
    if unknown := set(given.scenarios) - set(SCENARIOS):
        arguments.error(f"no such scenario: {', '.join(sorted(unknown))}")
    if given.seeds < 1:
        arguments.error("--seeds must be 1 or more")
    return given


def main() -> None:
    given = _options()
    items = QUICK_ITEMS if given.quick else ITEMS
    seen = run(given.scenarios, items, given.seeds)
    by_seed = tables(seen)
    table = report.as_worst(by_seed)
    markdown = report.markdown(table, items, given.seeds, min(given.seeds, OTHERS_SEEDS))
    print(markdown)
    if not given.quick and not given.only:
        _write(table, markdown, seen, seed=1)
    missed = [f"seed {seed}: ours {line}" for seed, one in by_seed.items() for line in report.failures(one)]
    print("\n".join(missed) or "Ours meets every target.")
    sys.exit(1 if missed and given.check else 0)


if __name__ == "__main__":
    main()
