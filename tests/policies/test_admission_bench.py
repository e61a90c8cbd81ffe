"""The admission bench in small: the real policy code on a virtual clock, against two semaphores, in all six scenarios.

With fewer items, finding the limits and each change of them weigh more: hence targets of its own. The bench as it is meant
holds the real ones: `python -m tests.bench.admission --check`.
"""

import pytest

from tests.bench.virtual.figures import Figures, Targets, figures
from tests.bench.virtual.race import race
from tests.bench.virtual.scenarios import ORACLE, OURS, SCENARIOS

ITEMS = 3000
SMALL = Targets(makespan=1.20, refused=0.05)
CONTENDERS = (OURS, "fixed 4", "fixed 100")


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, Figures]]:
    """Scenario, contender, figures."""
    found: dict[str, dict[str, Figures]] = {}
    for scenario in SCENARIOS:
        oracle, alone = race(scenario, ORACLE, ITEMS), race(scenario, OURS, ITEMS, jobs=False)
        found[scenario] = {name: figures(race(scenario, name, ITEMS), oracle, alone) for name in (*CONTENDERS, ORACLE)}
    return found


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ours_meets_every_target_in_every_scenario(scenario: str, table: dict[str, dict[str, Figures]]) -> None:
    assert table[scenario][OURS].missed(SMALL) == [], table[scenario][OURS]


@pytest.mark.parametrize("limit", ["fixed 4", "fixed 100"])
def test_no_semaphore_does_even_if_fairness_is_not_asked_for(limit: str, table: dict[str, dict[str, Figures]]) -> None:
    assert any(set(row[limit].missed(SMALL)) - {"jain"} for row in table.values())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_oracle_is_never_refused_and_nobody_waits_for_its_jobs(
    scenario: str, table: dict[str, dict[str, Figures]]
) -> None:
    oracle = table[scenario][ORACLE]
    assert oracle.refused == 0.0
    assert oracle.last_token == pytest.approx(1.0)
    assert oracle.first_token == pytest.approx(1.0)


def test_the_oracle_uses_all_the_time_there_is() -> None:
    """With the longest answers first, it is within one percent of a bound that nobody can beat: work over slots."""
    seen = race("c", "oracle, longest first", ITEMS)
    until = seen.makespan
    whole = sum(busy for when, busy, _ in seen.load if when <= until) / sum(
        n for when, _, n in seen.load if when <= until
    )
    assert whole >= 0.985


def test_the_same_seed_is_the_same_race() -> None:
    assert race("d", OURS, 300, seed=5) == race("d", OURS, 300, seed=5)
