"""The bench of streams runs, small: its figures of time are not looked at here, what it counts is."""

from tests.bench.real.figures import Figure
from tests.bench.streams import markdown, run


async def test_the_bench_of_streams_runs_and_finds_nothing_lost_or_doubled() -> None:
    figures: list[Figure] = []
    await run(["resume", "hangup"], figures, quick=True, size=20)
    counted = [one for one in figures if one.target == "≤ 0" or one.target.startswith("≥")]
    assert len(counted) == 12
    assert not [one for one in counted if not one.met], markdown(figures)
    assert {one.scenario for one in figures} == {"resume", "hangup"}
