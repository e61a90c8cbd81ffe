"""Small charts as SVG, several panels side by side, each on axes of its own: all that the benches' pages need."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 30, 42  # of a panel
_LEGEND_WIDTH, _LEGEND_HEIGHT = 150, 22


@dataclass(frozen=True, slots=True)
class Axis:
    """Attributes:
    log: Equal steps are equal ratios.
    """

    name: str
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Returns: 0.0 at the axis' low end, 1.0 at its high one; what lies beyond is drawn at the end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Style:
    """Attributes:
    dashed: Of lines.
    """

    name: str
    colour: str
    dashed: bool = False
    width: float = 1.8


@dataclass(slots=True)
class Panel:
    """Attributes:
    target: (x, y): what lies left of x and below y is shaded.
    dots: (style, x, y, hollow).
    lines: (style, points).
    """

    title: str
    across: Axis
    up: Axis
    target: tuple[float, float] | None = None
    dots: list[tuple[Style, float, float, bool]] = field(default_factory=list)
    lines: list[tuple[Style, list[tuple[float, float]]]] = field(default_factory=list)


def chart(panels: list[Panel], styles: Iterable[Style], *, columns: int, width: int, height: int, note: str) -> str:
    """Args: width, height: Of a panel. note: What stands under the legend. Returns: An SVG document."""
    styles = list(styles)
    rows = math.ceil(len(panels) / columns)
    a_row = max(1, columns * width // _LEGEND_WIDTH)
    legend_top = rows * height + 10
    total = legend_top + math.ceil(len(styles) / a_row) * _LEGEND_HEIGHT + 24
    box = f'viewBox="0 0 {columns * width} {total}" font-family="sans-serif" font-size="12"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {box}><rect width="100%" height="100%" fill="white"/>']
    for place, panel in enumerate(panels):
        parts.append(f'<g transform="translate({place % columns * width} {place // columns * height})">')
        parts += [*_Frame(panel, width, height).drawn(), "</g>"]
    for place, style in enumerate(styles):
        x, y = 20 + place % a_row * _LEGEND_WIDTH, legend_top + place // a_row * _LEGEND_HEIGHT
        parts.append(f'<path d="M{x} {y + 8}h22" {_stroke(style, 4)}/>')
        parts.append(_text(x + 28, y + 12, style.name))
    parts.append(_text(20, total - 10, note, colour="#555"))
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Frame:
    """One panel and where things are in it."""

    def __init__(self, panel: Panel, width: int, height: int) -> None:
        self._panel = panel
        self._end, self._floor = width - _RIGHT, height - _BOTTOM

    def drawn(self) -> list[str]:
        panel = self._panel
        middle = (_LEFT + self._end) / 2
        parts = [_text(middle, 18, panel.title, anchor="middle", bold=True)]
        if panel.target is not None:
            x, y = self._x(panel.target[0]), self._y(panel.target[1])
            parts.append(
                f'<rect x="{_LEFT}" y="{y:.1f}" width="{x - _LEFT:.1f}" height="{self._floor - y:.1f}" fill="#bbf7d0"/>'
            )
        parts += self._grid()
        parts.append(_text(middle, self._floor + 34, panel.across.name, anchor="middle"))
        turned = f"translate(13 {(_TOP + self._floor) / 2:.0f}) rotate(-90)"
        parts.append(f'<text transform="{turned}" text-anchor="middle">{escape(panel.up.name)}</text>')
        for style, points in panel.lines:
            path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" {_stroke(style, style.width)}/>')
        for style, x, y, hollow in panel.dots:
            fill = "white" if hollow else style.colour
            parts.append(
                f'<circle cx="{self._x(x):.1f}" cy="{self._y(y):.1f}" r="4.5" fill="{fill}" {_stroke(style, 2)}/>'
            )
        return parts

    def _grid(self) -> list[str]:
        parts = []
        for tick in self._panel.across.ticks:
            x = self._x(tick)
            parts.append(f'<path d="M{x:.1f} {_TOP}V{self._floor}" stroke="#ddd"/>')
            parts.append(_text(x, self._floor + 16, f"{tick:,g}", anchor="middle"))
        for tick in self._panel.up.ticks:
            y = self._y(tick)
            parts.append(f'<path d="M{_LEFT} {y:.1f}H{self._end}" stroke="#ddd"/>')
            parts.append(_text(_LEFT - 6, y + 4, f"{tick:,g}", anchor="end"))
        return parts

    def _x(self, value: float) -> float:
        return _LEFT + self._panel.across.share(value) * (self._end - _LEFT)

    def _y(self, value: float) -> float:
        return self._floor + self._panel.up.share(value) * (_TOP - self._floor)


def _stroke(style: Style, width: float) -> str:
    dash = ' stroke-dasharray="5 4"' if style.dashed else ""
    return f'stroke="{style.colour}" stroke-width="{width:g}"{dash}'


def _text(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False, colour: str = "black") -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{weight}>{escape(text)}</text>'
