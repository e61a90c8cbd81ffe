"""The admission bench's tables and charts: who meets all targets in every scenario, and by how much the others miss."""

import math
from collections.abc import Mapping

from tests.bench.drawing import Axis, Panel, Style, chart
from tests.bench.virtual.figures import Figures, Targets, worst
from tests.bench.virtual.race import Outcome
from tests.bench.virtual.scenarios import ORACLE, OURS, SCENARIOS, SORTING_ORACLE

Table = Mapping[str, Mapping[str, Figures]]  # scenario, contender
TARGETS = Targets()
STEPS = "d"  # the scenario whose capacity moves
STEP_CONTENDERS = ("fixed 100", "AIMD alone", OURS)
_YARDSTICKS = (SORTING_ORACLE, ORACLE)
_MISSES = {"makespan": "slow", "refused": "429s", "last_token": "late", "jain": "unfair"}
_STYLES = {
    "fixed 4": Style("fixed 4", "#fde68a"),
    "fixed 10": Style("fixed 10", "#fcd34d"),
    "fixed 32": Style("fixed 32", "#f59e0b"),
    "fixed 100": Style("fixed 100", "#c2410c"),
    "fixed 150": Style("fixed 150", "#991b1b"),
    "fixed 200": Style("fixed 200", "#450a0a"),
    "AIMD alone": Style("AIMD alone", "#7e22ce"),
    "static 25 %": Style("static 25 %", "#0369a1"),
    OURS: Style(OURS, "#15803d", width=2.6),
}
_CAPACITY = Style("slots there are", "#555", dashed=True)


def failures(table: Table, targets: Targets = TARGETS) -> list[str]:
    """Returns: A line for each target that ours misses."""
    return [
        f"({scenario}) misses {name}: {getattr(row[OURS], name):.4f}, target {getattr(targets, name)}"
        for scenario, row in table.items()
        for name in row[OURS].missed(targets)
    ]


def short(table: Table) -> str:
    """Returns: One table, the worst of all scenarios: for the README."""
    names = [name for name in next(iter(table.values())) if name not in _YARDSTICKS]
    return _rows({name: worst([row[name] for row in table.values()]) for name in names})


def markdown(table: Table, items: int, seeds: int, others_seeds: int) -> str:
    """Args: seeds, others_seeds: That ours and the others have run. Returns: All tables, the verdict first."""
    runs = f"Each figure is the worst of several runs with other calls: {seeds} of ours, {others_seeds} of the others."
    parts = [
        f"3 jobs of {items:,} items beside interactive bursts. {runs}\n",
        _verdict(table),
        "**The worst of all scenarios** (bold: misses the target)\n",
        _rows({name: worst([row[name] for row in table.values()]) for name in next(iter(table.values()))}),
    ]
    for scenario, row in table.items():
        parts += [f"**({scenario}) {SCENARIOS[scenario].title}**\n", _rows(row)]
        if scenario == STEPS:
            parts += ["When the capacity moves:\n", _steps(row)]
    return "\n".join(parts)


def _verdict(table: Table) -> str:
    lines = [
        "| all four targets? | "
        + " | ".join(f"({scenario})" for scenario in table)
        + " | everywhere | but for fairness |",
        "|---|" + "---|" * (len(table) + 2),
    ]
    for name in next(iter(table.values())):
        if name in _YARDSTICKS:
            continue
        missed = [row[name].missed(TARGETS) for row in table.values()]
        cells = [", ".join(_MISSES[one] for one in some) or "✓" for some in missed]
        everywhere = "**✓**" if not any(missed) else "no"
        without = "**✓**" if not any(set(some) - {"jain"} for some in missed) else "no"
        shown = f"**{name}**" if not any(missed) else name
        lines.append(f"| {shown} | " + " | ".join([*cells, everywhere, without]) + " |")
    return "\n".join(lines) + "\n"


def _rows(row: Mapping[str, Figures]) -> str:
    target = (
        f"*≤ {TARGETS.makespan:.2f}* | *≤ {TARGETS.refused:.0%}* | *≤ {TARGETS.last_token:.2f}* | | *≥ {TARGETS.jain}*"
    )
    lines = [
        "| | makespan ÷ oracle | 429s per success | last token, p99 ÷ alone | first token, p99 ÷ alone | Jain | all four |",
        "|---|---|---|---|---|---|---|",
        f"| *target* | {target} | |",
    ]
    for name, seen in row.items():
        missed = seen.missed(TARGETS)
        cells = {
            "makespan": f"{seen.makespan:.2f}",
            "refused": f"{seen.refused:.2%}",
            "last_token": f"{seen.last_token:.2f}",
            "first_token": f"{seen.first_token:.2f}",
            "jain": f"{seen.jain:.3f}",
        }
        shown = [f"**{text}**" if which in missed else text for which, text in cells.items()]
        lines.append(f"| {name} | " + " | ".join(shown) + f" | {'' if missed else '✓'} |")
    return "\n".join(lines) + "\n"


def _steps(row: Mapping[str, Figures]) -> str:
    lines = [
        "| | halved: seconds until refusals stop | doubled: seconds to 90 % of the slots at work |",
        "|---|---|---|",
    ]
    for name, seen in row.items():
        if seen.falls_in is not None and seen.rises_in is not None:
            rises = "never" if math.isinf(seen.rises_in) else f"{seen.rises_in:.1f}"
            lines.append(f"| {name} | {seen.falls_in:.1f} | {rises} |")
    return "\n".join(lines) + "\n"


def trade_off(table: Table) -> str:
    """Returns: A chart: for each scenario how slow the jobs are against how late the people."""
    across = Axis("makespan ÷ oracle", 0.75, 70, (1, 2, 5, 10, 20, 50), log=True)
    up = Axis("last token, p99 ÷ alone", 0.75, 70, (1, 2, 5, 10, 20, 50), log=True)
    panels = []
    for scenario, row in table.items():
        panel = Panel(f"({scenario})", across, up, target=(TARGETS.makespan, TARGETS.last_token))
        for name, style in _STYLES.items():
            if name in row:
                seen = row[name]
                panel.dots.append((style, seen.makespan, seen.last_token, seen.refused > TARGETS.refused))
        panels.append(panel)
    note = "Green: both targets are met. A ring: more than 1 % of 429s."
    return chart(panels, _STYLES.values(), columns=3, width=300, height=250, note=note)


def step_response(seen: Mapping[str, Outcome]) -> str:
    """Args: seen: Contenders' races in scenario STEPS. Returns: A chart: slots at work over time."""
    until = max(outcome.makespan for outcome in seen.values())
    most = max(count for _, _, count in seen[OURS].load)
    across = Axis("seconds", 0, until, tuple(range(0, int(until), 60)))
    up = Axis("slots at work", 0, most * 1.1, (0, most / 4, most / 2, most * 3 / 4, most))
    panels = []
    for name, outcome in seen.items():
        load = [one for one in outcome.load if one[0] <= until]
        panel = Panel(name, across, up)
        panel.lines.append((_STYLES[name], [(when, busy) for when, busy, _ in load]))
        panel.lines.append((_CAPACITY, [(when, count) for when, _, count in load]))
        panels.append(panel)
    note = f"Scenario ({STEPS}): {SCENARIOS[STEPS].title}."
    return chart(panels, [_CAPACITY], columns=3, width=300, height=240, note=note)


def as_worst(several: Mapping[int, Table]) -> dict[str, dict[str, Figures]]:
    """Args: several: A table for each seed. Returns: One with every figure at its worst."""
    first = next(iter(several.values()))
    return {
        scenario: {
            name: worst([one[scenario][name] for one in several.values() if name in one[scenario]]) for name in row
        }
        for scenario, row in first.items()
    }
