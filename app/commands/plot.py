"""A log-log line plot as SVG: all that the bench needs, without a plotting library in the service's image."""

import math
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 20, 110
_HEAD = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
    'font-size="13"><rect width="100%" height="100%" fill="white"/>'
)
_COLOURS = ("#c2410c", "#0369a1", "#15803d", "#7e22ce")


@dataclass(frozen=True, slots=True)
class Series:
    """Attributes:
    points: (x, y, hollow), x and y above 0; hollow points are drawn as rings.
    """

    name: str
    points: list[tuple[float, float, bool]]


def plot(series: list[Series], *, x: str, y: str) -> str:
    """Returns: An SVG document. `x`, `y` name the axes."""
    across = _Axis([point[0] for one in series for point in one.points], _LEFT, _WIDTH - _RIGHT)
    up = _Axis([point[1] for one in series for point in one.points], _HEIGHT - _BOTTOM, _TOP)
    parts = [_HEAD]
    for tick in across.ticks():
        at = across.place(tick)
        parts.append(_line(at, _TOP, at, _HEIGHT - _BOTTOM))
        parts.append(f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{tick:,g}</text>')
    for tick in up.ticks():
        at = up.place(tick)
        parts.append(_line(_LEFT, at, _WIDTH - _RIGHT, at))
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - _BOTTOM + 38}" text-anchor="middle">{escape(x)}</text>')
    parts.append(f'<text transform="translate(16 {_HEIGHT / 2 - 40}) rotate(-90)">{escape(y)}</text>')
    for place, one in enumerate(series):
        parts += _drawn(one, _COLOURS[place % len(_COLOURS)], across, up)
        parts.append(_legend(one.name, _COLOURS[place % len(_COLOURS)], _HEIGHT - 54 + 18 * place))
    return "\n".join([*parts, "</svg>"])


class _Axis:
    def __init__(self, values: list[float], start: float, end: float) -> None:
        self._low = math.floor(math.log10(min(values)))
        self._high = max(math.ceil(math.log10(max(values))), self._low + 1)
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self._low, self._high + 1)]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _drawn(one: Series, colour: str, across: _Axis, up: _Axis) -> list[str]:
    spots = [(across.place(px), up.place(py), hollow) for px, py, hollow in one.points]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in spots)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for px, py, hollow in spots:
        fill = "white" if hollow else colour
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="2"/>')
    return parts


def _legend(name: str, colour: str, at: float) -> str:
    return (
        f'<rect x="{_LEFT}" y="{at - 9:.1f}" width="18" height="4" fill="{colour}"/>'
        f'<text x="{_LEFT + 26}" y="{at:.1f}">{escape(name)}</text>'
    )
