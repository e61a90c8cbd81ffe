"""A part of the bench under way."""

from collections.abc import Iterable
from dataclasses import dataclass

from tests.bench.real.figures import Scene
from tests.bench.real.load import percentile
from tests.bench.streaming.gateway import CORE


@dataclass(frozen=True, slots=True)
class StreamScene(Scene):
    """Attributes: size: Streams of `resume`; 0: as many as there should be."""

    size: int = 0

    @property
    def core(self) -> int | None:
        """What the gateway has to itself; None: no core, for nothing is measured that would need one."""
        return None if self.quick else CORE


def ranks(values: Iterable[float]) -> str:
    """Args: values: Seconds. Returns: p50 and p99."""
    some = list(values)
    return ", ".join(f"{1000 * percentile(some, rank):.1f} ms" for rank in (0.5, 0.99))


def ends(values: Iterable[float]) -> str:
    """Args: values: Seconds. Returns: p50 and the highest."""
    some = list(values)
    return f"{1000 * percentile(some, 0.5):.1f} ms, {1000 * max(some, default=0.0):.1f} ms"
