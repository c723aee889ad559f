"""Rows of dots: an estimate with its interval, pairs of shares, and a bar's small picture. Numbers in, SVG text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.evaluation.report.svg import (
    Scale,
    circle,
    cut,
    cut_within,
    diamond,
    label,
    line,
    path,
    short,
    svg,
    tag,
    ticks,
)
from harness.evaluation.report.values import Interval, decimals, percent
from harness.evaluation.report.view import Bar

ROW, TIGHT, MANY = 24, 19, 24  # height of a row, and of one where there are more than ``MANY``
WIDEST = 7.8  # of a letter in a name, on average and in bold
ABREAST = 500  # a drawing wider than this shows intervals as text too


@dataclass(frozen=True, slots=True)
class Dot:
    """A row of a dot-and-whisker plot.

    Attributes:
        kind: "summary" (apart, above the rest) and "base" (what others are held against): diamonds; "worst"; "few" (too
            little data to tell: hollow and broken); "" for the rest.
        heading: the title of a group that starts with this row.
        more: what stands behind the name where there is room.
    """

    name: str
    interval: Interval
    kind: str = ""
    heading: str = ""
    more: str = ""


def _within(value: float, scale: Scale) -> float:
    return min(max(value, scale.low), scale.high)


def _dot(dot: Dot, y: float, scale: Scale, reference: float) -> str:
    """One row's marks: hollow where the interval holds the reference or there is too little data."""
    value, low, high = dot.interval.value, dot.interval.low, dot.interval.high
    assert value is not None
    tip = f"{dot.name}: {dot.interval.text()}" + (f", {dot.more}" if dot.more else "")
    hollow = " hollow" if dot.interval.side(reference) in (0, None) or dot.kind == "few" else ""
    parts, joint = [], dot.interval.joint
    if low is not None and high is not None:
        left, right = scale(_within(low, scale)), scale(_within(high, scale))
        if joint is not None and joint < low:
            end = scale(_within(joint, scale))
            parts += [line(end, y, left, y, f"thin {dot.kind}"), line(end, y - 4, end, y + 4, f"thin {dot.kind}")]
        parts.append(line(left, y, right, y, f"whisker {dot.kind}"))
        for beyond, at, step in ((low < scale.low, left, 5), (high > scale.high, right, -5)):
            if beyond:  # an arrow: the interval goes on
                parts.append(path([(at + step, y - 4), (at, y), (at + step, y + 4)], f"whisker {dot.kind}"))
    x = scale(_within(value, scale))
    kind = f"mark {dot.kind}{hollow}"
    parts.append(diamond(x, y, 7, kind, tip) if dot.kind in ("summary", "base") else circle(x, y, 5, kind, tip))
    return "".join(parts)


def _range(dots: Sequence[Dot], marks: Sequence[float]) -> tuple[float, float]:
    """What the axis spans: everything that can be told, and of what can't only as much again."""
    sure = [dot for dot in dots if dot.kind != "few"] or list(dots)
    ends = [v for d in sure for v in (d.interval.value, d.interval.low, d.interval.high, d.interval.joint)
            if v is not None]  # fmt: skip
    low, high = min(*ends, *marks), max(*ends, *marks)
    room = max(high - low, 0.02) * 0.35
    few = [v for d in dots if d.kind == "few" for v in (d.interval.value, d.interval.low, d.interval.high)
           if v is not None]  # fmt: skip
    return max(min([low, *few]), low - room), min(max([high, *few]), high + room)


def _places(dots: Sequence[Dot], top: float) -> tuple[list[float], float]:
    """The height of every row, and where the last one ends; summaries stand apart, headings take a row."""
    row = TIGHT if len(dots) > MANY else ROW
    y, places = top, []
    for index, dot in enumerate(dots):
        if dot.heading:
            y += row + (4 if index else 0)
        elif index and dots[index - 1].kind == "summary" and dot.kind != "summary":
            y += 10
        places.append(y + row / 2)
        y += row
    return places, y


def whiskers(dots: Sequence[Dot], *, width: int, reference: float, title: str, bar: float | None = None) -> str | None:
    """Dots with their intervals, a line at ``reference`` and a dotted one at ``bar``; summaries stand first."""
    dots = [dot for dot in dots if dot.interval.value is not None]
    if not dots:
        return None
    wide = width > ABREAST
    most, right = (28, 158) if wide else (15, 48)
    names = [cut_within(dot.name, most) for dot in dots]
    beside = 6.0 * max(len(dot.more) for dot in dots) + 10 if wide and any(dot.more for dot in dots) else 0.0
    left = max(56.0, 16 + WIDEST * max(map(len, names))) + beside
    top = 22
    places, bottom = _places(dots, top)
    marks = ticks(*_range(dots, [reference] if bar is None else [reference, bar]), 8 if wide else 5)
    scale = Scale(marks[0], marks[-1], left, width - right)
    parts = [line(scale(m), top, scale(m), bottom, "grid") + label(scale(m), bottom + 13, short(m), "tick", "middle")
             for m in marks]  # fmt: skip
    parts += _rules(scale, reference, bar, (top, bottom), wide)
    for dot, name, y in zip(dots, names, places, strict=True):
        strong = "strong" if dot.kind in ("summary", "base", "worst") else "soft" if dot.kind == "few" else ""
        shown = dot.interval.text(sign=not reference) if wide else decimals(dot.interval.value, sign=not reference)
        if dot.heading:
            parts.append(label(2, y - (TIGHT if len(dots) > MANY else ROW), cut(dot.heading, most + 8), "strong over"))
        parts += [line(left, y, width - right, y, "grid"), _dot(dot, y, scale, reference),
                  label(left - 12 - beside, y, name, strong, "end"),
                  label(width - 2, y, shown, f"value {strong}", "end")]  # fmt: skip
        if beside and dot.more:
            parts.append(label(left - 12, y, dot.more, "tick", "end"))
    told = "; ".join(f"{dot.name} {dot.interval.text(sign=not reference)}" for dot in dots)
    return svg(width, bottom + 24, title, parts, told)


def _rules(scale: Scale, reference: float, bar: float | None, ends: tuple[float, float], wide: bool) -> list[str]:
    """The line that stands for "as good" and the bar, each with its name, away from the other's."""
    top, bottom = ends
    meaning = ("as the reference" if wide else "reference") if reference else "no change"
    at, asked = scale(reference), None if bar is None else scale(bar)
    anchor = "middle" if asked is None or abs(asked - at) > 110 else "start" if asked <= at else "end"
    shift = {"middle": 0.0, "start": -6.0, "end": 6.0}[anchor]
    parts = [line(at, top - 4, at, bottom, "reference"), label(at + shift, 9, meaning, "tick", anchor)]
    if asked is not None and bar is not None:
        other = {"middle": "middle", "start": "end", "end": "start"}[anchor]
        parts.append(line(asked, top - 4, asked, bottom, "bar"))
        if bar != reference:
            parts.append(
                label(
                    min(asked - shift, at - 14) if other == "end" else asked - shift,
                    9,
                    f"bar {short(bar)}",
                    "tick",
                    other,
                )
            )
    return parts


# ------------------------------------------------------------------------------------------------- pairs of shares


@dataclass(frozen=True, slots=True)
class Pair:
    """Two shares of one row: of what was found, and of what should have been."""

    name: str
    found: float
    wanted: float


def dumbbells(pairs: Sequence[Pair], *, width: int, title: str, names: tuple[str, str]) -> str | None:
    """A dot (``names[0]``) and a hollow diamond (``names[1]``) per row, joined by a line."""
    if not pairs:
        return None
    wide = width > ABREAST
    right = 132.0 if wide else 54.0
    left = max(56.0, 16 + WIDEST * max(len(cut_within(pair.name, 28 if wide else 12)) for pair in pairs))
    top, row = 28, TIGHT if len(pairs) > MANY else ROW
    bottom = top + row * len(pairs)
    marks = ticks(0.0, max(max(pair.found, pair.wanted) for pair in pairs), 8 if wide else 5)
    scale = Scale(0.0, marks[-1], left, width - right)
    parts = [line(scale(m), top, scale(m), bottom, "grid")
             + label(scale(m), bottom + 13, f"{100 * m:g} %", "tick", "middle") for m in marks]  # fmt: skip
    parts += [circle(8, 10, 5, "mark"), label(18, 10, names[0], "tick"),
              diamond(32 + 6.3 * len(names[0]), 10, 6, "mark origin hollow"),
              label(43 + 6.3 * len(names[0]), 10, names[1], "tick")]  # fmt: skip
    for index, pair in enumerate(pairs):
        y = top + row * (index + 0.5)
        shown = (
            f"{percent(pair.found)} / {percent(pair.wanted)}" if wide else f"{100 * (pair.found - pair.wanted):+.1f}"
        )
        tip = f"{pair.name}: {names[0]} {percent(pair.found)}, {names[1]} {percent(pair.wanted)}"
        parts += [
            line(left, y, width - right, y, "grid"),
            line(scale(pair.found), y, scale(pair.wanted), y, "whisker other"),
            diamond(scale(pair.wanted), y, 6, "mark origin hollow", tip),
            circle(scale(pair.found), y, 5, "mark", tip),
            label(left - 12, y, cut_within(pair.name, 28 if wide else 12), "", "end"),
            label(width - 2, y, shown, "value", "end"),
        ]
    told = "; ".join(f"{p.name} {names[0]} {percent(p.found)}, {names[1]} {percent(p.wanted)}" for p in pairs)
    return svg(width, bottom + 24, title, parts, told)


# ------------------------------------------------------------------------------------------------------- one bar


def bar_picture(bar: Bar) -> str:
    """Where a bar's value (with its lower bound) stands beside what is asked for; empty where there is no value."""
    value, low, asked = bar.numbers
    if value is None or asked is None:
        return ""
    known = [v for v in (value, low, asked) if v is not None]
    pad = (max(known) - min(known)) * 0.3 or abs(asked) * 0.1 or 0.1
    width, height, middle = 168, 22, 11.0
    scale = Scale(min(known) - pad, max(known) + pad, 4, width - 4)
    start, end = (scale.start, scale(asked)) if bar.at_most else (scale(asked), scale.end)
    parts = [line(scale.start, middle, scale.end, middle, "axis"),
             tag("rect", x=start, y=middle - 7, width=end - start, height=14.0, class_="allowed")]  # fmt: skip
    if low is not None:
        parts.append(line(scale(low), middle, scale(value), middle, f"whisker {bar.status}"))
    parts += [
        line(scale(asked), 1, scale(asked), height - 1, "threshold"),
        circle(scale(value), middle, 5, f"mark {bar.status}{' hollow' if bar.status == 'undecided' else ''}"),
    ]
    told = f"{bar.value} beside {asked:g}" + (f", lower bound {bar.low}" if low is not None else "")
    return svg(width, height, bar.what, parts, told)
