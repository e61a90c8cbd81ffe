"""A figure, what it should be, and whether it is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.bench.real.load import Sent, percentile


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table. Attributes: met: None: there is no target."""

    scenario: str
    name: str
    measured: str
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """A scenario under way: its name, how long its parts last, and the figures it has found."""

    name: str
    quick: bool
    figures: list[Figure]

    def seconds(self, full: float, quick: float) -> float:
        return quick if self.quick else full

    def told(self, name: str, measured: str) -> None:
        self.figures.append(Figure(self.name, name, measured))

    def at_most(self, name: str, value: float, target: float, show: Callable[[float], str] = "{:.2f}".format) -> None:
        self.figures.append(Figure(self.name, name, show(value), f"≤ {show(target)}", value <= target))

    def at_least(self, name: str, value: float, target: float, show: Callable[[float], str] = "{:.2f}".format) -> None:
        self.figures.append(Figure(self.name, name, show(value), f"≥ {show(target)}", value >= target))


def share(value: float) -> str:
    return f"{value:.1%}"


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def count(value: float) -> str:
    return f"{value:.0f}"


def spread(calls: Iterable[float]) -> str:
    values = list(calls)
    return f"{ms(percentile(values, 0.5))} / {ms(percentile(values, 0.99))} / {ms(max(values, default=float('nan')))}"


def punctual(scene: Scene, calls: Iterable[Sent]) -> None:
    """Says how far behind the load generator itself was: what figures on this machine are worth."""
    scene.told("the load generator's own delay, p99", ms(percentile((one.late for one in calls), 0.99)))


def markdown(figures: Iterable[Figure]) -> str:
    """Returns: A table; bold: the target is missed."""
    lines = ["| scenario | figure | target | measured |", "|---|---|---|---|"]
    for one in figures:
        shown = f"**{one.measured}**" if one.met is False else one.measured
        lines.append(f"| {one.scenario} | {one.name} | {one.target} | {shown} |")
    return "\n".join(lines)
