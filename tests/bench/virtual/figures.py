"""From what happened in the races to the figures that are compared, and the targets they are held against."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

from tests.bench.virtual.race import Outcome

_QUANTILE = 0.99
_REACHED = 0.9  # of the new capacity
_QUIET_SECONDS = 3.0  # without a refusal: they have stopped


@dataclass(frozen=True, slots=True)
class Targets:
    """What is to be reached in every scenario at once."""

    makespan: float = 1.10
    refused: float = 0.01
    last_token: float = 1.10
    jain: float = 0.95


@dataclass(frozen=True, slots=True)
class Figures:
    """One contender in one scenario.

    Attributes:
        makespan: Of the jobs, over the oracle's.
        refused: 429s for each success.
        last_token, first_token: People's 99th percentile, from arrival to that token, over the same calls' without jobs.
        jain: Fairness between the three callers, in tokens.
        falls_in: Seconds from the step down until refusals stop; None: no such step.
        rises_in: Seconds from the step up until 90 % of the slots are at work (infinite: never); None: no such step.
    """

    makespan: float
    refused: float
    last_token: float
    first_token: float
    jain: float
    falls_in: float | None = None
    rises_in: float | None = None

    def missed(self, targets: Targets) -> list[str]:
        """Returns: The names of the targets that are missed."""
        missed = []
        for one in fields(Targets):
            value, target = getattr(self, one.name), getattr(targets, one.name)
            if value < target if one.name == "jain" else value > target:
                missed.append(one.name)
        return missed


def figures(seen: Outcome, oracle: Outcome, alone: Outcome) -> Figures:
    """Args:
    oracle: The oracle's race on the same upstream with the same calls.
    alone: The same people without jobs.
    """
    beside = [place for place, one in enumerate(seen.people) if one.arrived <= seen.makespan]
    with_jobs = [seen.people[place] for place in beside]
    without = [alone.people[place] for place in beside]
    return Figures(
        makespan=seen.makespan / oracle.makespan,
        refused=len(seen.refusals) / seen.calls,
        last_token=_late(one.last for one in with_jobs) / _late(one.last for one in without),
        first_token=_late(one.first for one in with_jobs) / _late(one.first for one in without),
        jain=seen.jain,
        falls_in=_falls_in(seen),
        rises_in=_rises_in(seen),
    )


def worst(several: list[Figures]) -> Figures:
    """Returns: Each figure at its worst."""

    def most(name: str) -> float | None:
        values = [value for one in several if (value := getattr(one, name)) is not None]
        return max(values, default=None)

    found = {one.name: most(one.name) for one in fields(Figures)}
    return Figures(**{**found, "jain": min(one.jain for one in several)})  # type: ignore[arg-type]


def _late(seconds: Iterable[float]) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(_QUANTILE * len(ordered)))]


def _falls_in(seen: Outcome) -> float | None:
    if not seen.load or len(seen.steps) < 2:
        return None
    last = began = seen.steps[0].at
    for when in seen.refusals:
        if began <= when <= last + _QUIET_SECONDS:
            last = when
    return last - began


def _rises_in(seen: Outcome) -> float | None:
    if not seen.load or len(seen.steps) < 2:
        return None
    began = seen.steps[-1].at
    reached = (when for when, busy, count in seen.load if when >= began and busy >= _REACHED * count)
    return next(reached, math.inf) - began
