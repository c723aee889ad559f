"""Small SVG building blocks: escaped tags, linear and logarithmic scales, round ticks.

Colours are classes of the page's style sheet, so that a plot follows light and dark. Lengths are CSS pixels.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.evaluation.report.values import clean


def escaped(text: object) -> str:
    """Text from data, safe between tags and within quoted attributes."""
    return html.escape(clean(text), quote=True)


def tag(name: str, content: str = "", /, **attributes: object) -> str:
    """An SVG element. ``content`` is markup already; attributes are escaped, ``_`` stands for ``-``."""
    pairs = []
    for key, value in attributes.items():
        if value is not None:
            text = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
            pairs.append(f' {key.rstrip("_").replace("_", "-")}="{escaped(text)}"')
    return f"<{name}{''.join(pairs)}>{content}</{name}>" if content else f"<{name}{''.join(pairs)}/>"


def label(x: float, y: float, content: object, class_: str = "", anchor: str = "start") -> str:
    """Text at a point, centred on ``y``."""
    return tag("text", escaped(content), x=x, y=y, dy="0.35em", text_anchor=anchor, class_=class_ or None)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str) -> str:
    """A line through points."""
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def circle(x: float, y: float, radius: float, class_: str, tip: str = "") -> str:
    """A dot; ``tip`` shows on hovering."""
    return tag("circle", tag("title", escaped(tip)) if tip else "", cx=x, cy=y, r=radius, class_=class_)


def diamond(x: float, y: float, radius: float, class_: str, tip: str = "") -> str:
    """A square on its corner."""
    corners = ((x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y))
    points = " ".join(f"{px:.1f},{py:.1f}" for px, py in corners)
    return tag("polygon", tag("title", escaped(tip)) if tip else "", points=points, class_=class_)


def svg(width: float, height: float, title: str, body: Sequence[str], description: str = "") -> str:
    """A whole drawing that scales to its box, with a title and a description for those who can't see it."""
    head = tag("title", escaped(title)) + (tag("desc", escaped(description)) if description else "")
    box = f"0 0 {width:.0f} {height:.0f}"
    return tag("svg", head + "".join(body), viewBox=box, role="img", width=width, height=height)


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps ``low .. high`` onto ``start .. end``, by logarithm where ``log``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most ``most`` round numbers that span ``low .. high``, the first at or below and the last at or above."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    exact = (high - low) / max(1, most - 2)
    power = 10.0 ** math.floor(math.log10(exact))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= exact * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... from at or below ``low`` to at or above ``high``; both positive."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    steps = [factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5)]
    first = max(i for i, step in enumerate(steps) if step <= low * (1 + 1e-9))
    last = min(i for i, step in enumerate(steps) if step >= high * (1 - 1e-9))
    return steps[first : max(last, first + 1) + 1]


def short(value: float) -> str:
    """A tick's label: as few digits as tell it."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def cut(text: object, most: int) -> str:
    """Text of at most ``most`` characters, so that a long name stays within its margin."""
    line_of_text = clean(text)
    return line_of_text if len(line_of_text) <= most else line_of_text[: most - 1] + "…"


def cut_within(text: object, most: int) -> str:
    """The same, cut in the middle: for names of languages and slices that begin alike."""
    name = clean(text)
    tail = (most - 1) // 2
    return name if len(name) <= most else f"{name[: most - 1 - tail]}…{name[-tail:]}"
