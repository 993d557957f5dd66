"""Line and bar charts as inline SVG without scripts or fonts. The page's style sheet sets the colors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 26, 12, 48


@dataclass
class Series:
    """A line of a chart.

    name: its name in the legend.
    points: pairs (x, y), from left to right.
    style: class in the page's style sheet: `a`, `b`, `c` or `d`.
    dots (`bool`): whether to mark each point.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "a"
    dots: bool = False


def line_chart(title: str, series: Sequence[Series], x_label: str, y_label: str, bars: Sequence[float] = ()) -> str:
    """A chart as HTML: an SVG with a legend below it.

    Args:
        title: description for screen readers.
        series: the lines.
        x_label, y_label: labels of the axes.
        bars: heights of bars at 1, 2, ... behind the lines, on the same scale.
    """
    series = [line for line in series if line.points]
    xs = [x for line in series for x, _ in line.points] + list(range(1, len(bars) + 1))
    ys = [y for line in series for _, y in line.points] + ([0, *bars] if bars else [])
    margin = 0.5 if bars else 0
    left, right = min(xs) - margin, max(xs) + margin
    right = right if right > left else left + 1
    y_ticks = ticks(min(ys), max(ys))
    bottom, top = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def across(x: float) -> float:
        return LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    x_ticks = range(1, len(bars) + 1) if bars else [x for x in ticks(left, right) if left <= x <= right]
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for y in y_ticks:
        parts += [
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>',
            f'<text x="{LEFT - 7}" y="{down(y) + 4:.1f}" text-anchor="end">{in_short(y)}</text>',
        ]
    for x in x_ticks:
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{in_short(x)}</text>')
    wide = (across(1) - across(0)) * 0.7 if bars else 0
    for number, height in enumerate(bars, 1):
        parts.append(
            f'<rect class="bar" x="{across(number) - wide / 2:.1f}" y="{down(height):.1f}" width="{wide:.1f}" '
            f'height="{down(bottom) - down(height):.1f}"/>'
        )
    for line in series:
        places = [(across(x), down(y)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
        if line.dots:
            parts += [f'<circle class="dot {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in places]
    parts += [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text x="14" y="{(HEIGHT - BOTTOM + TOP) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(HEIGHT - BOTTOM + TOP) / 2})">{escape(y_label)}</text></svg>',
    ]
    legend = "".join(f'<li><span class="key {line.style}"></span>{escape(line.name)}</li>' for line in series)
    return "".join(parts) + (f'<ul class="legend" aria-hidden="true">{legend}</ul>' if len(series) > 1 or bars else "")


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers that span `low` to `high`."""
    span = (high - low) or abs(high) or 1.0
    rough = span / 4
    size = 10 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def in_short(number: float) -> str:
    """A number as an axis label, such as "20 k" for 20,000."""
    for size, name in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(number) >= size:
            return f"{number / (1e3 if name == ' k' else size):.4g}{name}"
    return f"{number:.4g}"
