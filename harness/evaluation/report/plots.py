"""The report's plots: from a ``View`` to SVG text, or None where there is nothing to draw.

Plots that need room take a ``width``: the page holds a narrow and a wide drawing and shows the one that fits, so that
text keeps its size on a phone. Small multiples have one size and flow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.evaluation.report.svg import (
    Scale,
    circle,
    cut,
    diamond,
    label,
    line,
    log_ticks,
    path,
    short,
    svg,
    ticks,
)
from harness.evaluation.report.view import Interval, View, branch, clean, decimals, items, number

ROW = 24  # height of a row in a dot-and-whisker plot
Curve = list[tuple[float, float]]


# --------------------------------------------------------------------------------------------- dots and whiskers


@dataclass(frozen=True, slots=True)
class Dot:
    """A row of a dot-and-whisker plot; ``kind``: "summary", "worst" or "" for the rest."""

    name: str
    interval: Interval
    kind: str = ""


def _dot(dot: Dot, y: float, scale: Scale, reference: float) -> str:
    """One row's marks: hollow where the interval holds the reference, a diamond for a summary."""
    value, low, high = dot.interval.value, dot.interval.low, dot.interval.high
    assert value is not None
    tip = f"{dot.name}: {dot.interval.text()}"
    hollow = " hollow" if dot.interval.side(reference) in (0, None) else ""
    whisker = line(scale(low), y, scale(high), y, f"whisker {dot.kind}") if low is not None and high is not None else ""
    shape = diamond(scale(value), y, 7, f"mark {dot.kind}{hollow}", tip) if dot.kind == "summary" else circle(
        scale(value), y, 5, f"mark {dot.kind}{hollow}", tip
    )  # fmt: skip
    return whisker + shape


def whiskers(dots: Sequence[Dot], *, width: int, reference: float, title: str, bar: float | None = None) -> str | None:
    """Dots with their intervals, a line at ``reference`` and a dotted one at ``bar``; summaries stand first."""
    dots = [dot for dot in dots if dot.interval.value is not None]
    if not dots:
        return None
    edges = [v for d in dots for v in (d.interval.value, d.interval.low, d.interval.high) if v is not None]
    edges += [reference] if bar is None else [reference, bar]
    wide = width > 500
    right = 158 if wide else 48
    longest = max(len(cut(dot.name, 28 if wide else 14)) for dot in dots)
    left = max(56, 16 + 7.4 * longest)
    marks = ticks(min(edges), max(edges), 8 if wide else 5)
    scale = Scale(marks[0], marks[-1], left, width - right)
    summaries = sum(dot.kind == "summary" for dot in dots)
    gap = 10 if 0 < summaries < len(dots) else 0
    top, bottom = 22, 22 + ROW * len(dots) + gap
    parts = [line(scale(m), top, scale(m), bottom, "grid") + label(scale(m), bottom + 13, short(m), "tick", "middle")
             for m in marks]  # fmt: skip
    meaning = "as the reference" if reference else "no change"
    parts += [line(scale(reference), top - 4, scale(reference), bottom, "reference"),
              label(scale(reference), 9, meaning, "tick", "middle")]  # fmt: skip
    if bar is not None:
        parts.append(line(scale(bar), top - 4, scale(bar), bottom, "bar"))
        if abs(scale(bar) - scale(reference)) > 80:
            parts.append(label(scale(bar), 9, f"bar {short(bar)}", "tick", "middle"))
    for index, dot in enumerate(dots):
        y = top + ROW * (index + 0.5) + (gap if index >= summaries else 0)
        strong = "strong" if dot.kind else ""
        shown = dot.interval.text(sign=not reference) if wide else decimals(dot.interval.value, sign=not reference)
        parts += [line(left, y, width - right, y, "grid"), _dot(dot, y, scale, reference),
                  label(left - 12, y, cut(dot.name, 28 if wide else 14), strong, "end"),
                  label(width - 2, y, shown, f"value {strong}", "end")]  # fmt: skip
    told = "; ".join(f"{dot.name} {dot.interval.text(sign=not reference)}" for dot in dots)
    return svg(width, bottom + 24, title, parts, told)


def recovery(view: View, width: int) -> str | None:
    """Recovery of the candidate: macro and worst first, then the languages from the best kept to the least."""
    known = [(lang, view.recovery(view.candidate, lang, view.lead)) for lang in view.languages]
    ordered = sorted(known, key=lambda pair: -(pair[1].value or 0))
    names = {"macro": "macro", "worst": f"worst ({view.worst_language})" if view.worst_language else "worst"}
    dots = [Dot(name, view.recovery(view.candidate, scope, view.lead), "summary") for scope, name in names.items()]
    dots += [Dot(lang or "(none)", interval, "worst" if lang == view.worst_language and len(known) > 1 else "")
             for lang, interval in ordered]  # fmt: skip
    title = f"Recovery of {view.lead} per language, {view.candidate} over {view.reference}"
    return whiskers(dots, width=width, reference=1.0, title=title, bar=_recovery_bar(view))


def _recovery_bar(view: View) -> float | None:
    """The bar that the recipe sets for recovery of the metric in front."""
    for entry in items(view.results.get("bars")):
        name = str(entry.get("name", ""))
        if "recovery" in name and view.lead in name:
            return number(entry.get("bar"))
    return None


def gains(view: View, width: int) -> str | None:
    """The paired difference of every stage over the one before."""
    dots = []
    for test in view.gains:
        if test.get("metric") != view.lead:
            continue
        interval = Interval(*(number(test.get(key)) for key in ("difference", "low", "high")))
        systems = [clean(name).removeprefix("student-") for name in test.get("systems") or []]
        name = " over ".join(systems if width > 500 else systems[:1])
        dots.append(Dot(name or clean(test.get("name", "")), interval))
    return whiskers(dots, width=width, reference=0.0, title=f"Gain in {view.lead} of each stage")


# ------------------------------------------------------------------------------------------- quality and latency


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _free_place(x: float, y: float, wide: float, taken: Sequence[Box], limits: Box) -> tuple[float, float]:
    """The centre of a label of width ``wide`` near a mark: the first place that hides nothing, else the one above."""
    steps = [sign * (17 + 16 * far) for far in range(12) for sign in (-1, 1)]
    places = [(x + shift * wide / 2, y + step) for step in steps for shift in (0, 0.8, -0.8)]
    within = [(min(max(at, limits[0] + wide / 2), limits[2] - wide / 2), height) for at, height in places]
    for at, height in within:
        left, top, right, bottom = at - wide / 2, height - 8, at + wide / 2, height + 8
        hides = any(left < box[2] and right > box[0] and top < box[3] and bottom > box[1] for box in taken)
        if not hides and top >= limits[1] and bottom <= limits[3]:
            return at, height
    return within[0]


def quality_and_latency(view: View, width: int) -> str | None:
    """Macro quality against p50 latency (logarithmic, whisker to p99) of every timed system."""
    points = []
    for system, engine in view.timed:
        p50, quality = view.latency(system, engine, "p50_ms"), view.quality(system, "macro", view.lead)
        if p50 and p50 > 0 and quality is not None:
            points.append((system, engine, p50, max(p50, view.latency(system, engine, "p99_ms") or p50), quality))
    if not points:
        return None
    height, left, right, top, bottom = 310, 48, 20, 30, 262
    x_marks = log_ticks(min(p[2] for p in points) * 0.8, max(p[3] for p in points) * 1.1)
    spread = max(p[4] for p in points) - min(p[4] for p in points)
    pad = max(0.02, spread * 0.25)
    y_marks = ticks(max(0.0, min(p[4] for p in points) - pad), min(1.0, max(p[4] for p in points) + pad))
    x = Scale(x_marks[0], x_marks[-1], left, width - right, log=True)
    y = Scale(y_marks[0], y_marks[-1], bottom, top)
    parts = [line(x(m), top, x(m), bottom, "grid") + label(x(m), bottom + 14, short(m), "tick", "middle")
             for m in x_marks]  # fmt: skip
    parts += [line(left, y(m), width - right, y(m), "grid") + label(left - 8, y(m), f"{m:.2f}", "tick", "end")
              for m in y_marks]  # fmt: skip
    parts += [label((left + width - right) / 2, height - 10, "encoder p50 at batch 1, ms (log)", "tick", "middle"),
              label(0, 9, f"macro {view.lead}", "tick")]  # fmt: skip
    points.sort(key=lambda p: -p[4])
    taken = [(x(p50) - 8, y(q) - 8, max(x(p50) + 8, x(p99)), y(q) + 8) for _, _, p50, p99, q in points]
    engines = {engine for _, engine, *_ in points}
    for system, engine, p50, p99, quality in points:
        kind = "candidate" if system == view.candidate else "origin" if system == view.reference else "other"
        name = clean(system) + (f" · {clean(engine)}" if len(engines) > 1 else "")
        tip = f"{name}: {view.lead} {quality:.3f}, p50 {p50:.2f} ms, p99 {p99:.2f} ms"
        shown = cut(name, 30)
        wide = 7.6 * len(shown)
        at_x, at_y = _free_place(x(p50), y(quality), wide, taken, (left, top - 14, width, bottom))
        taken.append((at_x - wide / 2, at_y - 8, at_x + wide / 2, at_y + 8))
        mark = diamond(x(p50), y(quality), 8, f"mark {kind}", tip) if kind == "origin" else circle(
            x(p50), y(quality), 6.5, f"mark {kind}", tip)  # fmt: skip
        parts += [line(x(p50), y(quality), x(p99), y(quality), f"whisker {kind}"), mark,
                  label(at_x, at_y, shown, "strong", "middle")]  # fmt: skip
    told = "; ".join(f"{s} with {e}: {view.lead} {q:.3f} at {p50:.2f} ms" for s, e, p50, _, q in points)
    return svg(width, height, f"Macro {view.lead} against encoder latency", parts, told)


# ---------------------------------------------------------------------------------------------- small multiples


def stages(view: View) -> list[str]:
    """A small slope per language (the mean first): quality of the student after each stage, beside the reference."""
    steps = view.students
    scopes = ["macro", *view.languages]
    known = {(n, s): view.quality(n, s, view.lead) for n in [view.reference, *steps] for s in scopes}
    values = [value for value in known.values() if value is not None]
    if not steps or not values:
        return []
    top_value = max(values) * 1.05 or 1.0
    drawn = []
    for scope in scopes:
        found = [(i, value) for i, n in enumerate(steps) if (value := known[n, scope]) is not None]
        if found:
            drawn.append(_slope(view, scope, found, known[view.reference, scope], top_value))
    return drawn


def _slope(view: View, scope: str, found: list[tuple[int, float]], reference: float | None, top_value: float) -> str:
    """One panel: x = stage, y = the metric from 0; the dashed line is the reference."""
    width, height, left, right, top, bottom = 168, 128, 30, 24, 28, 106
    count = len(view.students)
    y = Scale(0.0, top_value, bottom, top)
    xs = [left + 16 + (width - left - right - 16) * (i / (count - 1) if count > 1 else 0.5) for i in range(count)]
    name = "mean over languages" if scope == "macro" else scope or "(none)"
    parts = [label(left, 12, cut(name, 20), "strong"), line(left, bottom, width, bottom, "axis")]
    parts += [label(left - 5, y(m), short(m), "tick", "end") + line(left, y(m), width, y(m), "grid")
              for m in ticks(0.0, top_value, 5) if m <= top_value]  # fmt: skip
    if reference is not None:
        parts.append(line(left, y(reference), width, y(reference), "reference"))
    parts.append(path([(xs[i], y(v)) for i, v in found], f"curve {'summary' if scope == 'macro' else ''}"))
    for i, value in found:
        student = view.students[i]
        parts += [circle(xs[i], y(value), 4, "mark", f"{student}: {value:.3f}"),
                  label(xs[i], bottom + 12, cut(student.removeprefix("student-"), 9 if count < 4 else 5), "tick small",
                        "middle")]  # fmt: skip
    told = "; ".join(f"{view.students[i]} {value:.3f}" for i, value in found)
    told += f"; {view.reference} {reference:.3f}" if reference is not None else ""
    return svg(width, height, f"{view.lead}, {name}", parts, told)


# -------------------------------------------------------------------------------------------------- training


def _thinned(points: Curve, most: int = 160) -> Curve:
    """A curve of at most ``most`` points: neighbours are averaged, the last one is kept as it is."""
    size = -(-len(points) // most)
    if size <= 1:
        return points
    parts = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts] + [points[-1]]


def _curve(entries: object, key: str) -> Curve:
    pairs = [(number(entry.get("step")), number(entry.get(key))) for entry in items(entries)]
    return sorted((step, value) for step, value in pairs if step is not None and value is not None)


def _panel(title: str, points: Curve, dots: bool) -> str | None:
    """One training curve; rare points (evaluations) get dots, and the last value is written out."""
    if not points:
        return None
    width, height, left, right, top, bottom = 300, 170, 44, 12, 32, 138
    x_marks = ticks(0, max(step for step, _ in points) or 1, 5)
    y_marks = ticks(min(v for _, v in points), max(v for _, v in points), 5)
    x = Scale(x_marks[0], max(points[-1][0], x_marks[0] + 1), left, width - right)
    y = Scale(y_marks[0], y_marks[-1], bottom, top)
    parts = [label(0, 12, cut(title, 30), "strong"),
             label(width - 2, 12, f"last {points[-1][1]:.3f}", "value", "end")]  # fmt: skip
    parts += [line(left, y(m), width - right, y(m), "grid") + label(left - 6, y(m), short(m), "tick", "end")
              for m in y_marks]  # fmt: skip
    parts += [label(x(m), bottom + 13, short(m), "tick", "middle") for m in x_marks if m <= points[-1][0]]
    parts.append(line(left, bottom, width - right, bottom, "axis"))
    parts.append(path([(x(step), y(v)) for step, v in _thinned(points)], "curve"))
    if dots and len(points) <= 40:
        parts += [circle(x(s), y(v), 3.5, "mark", f"step {s:.0f}: {v:.4f}") for s, v in points]
    parts.append(label((left + width - right) / 2, height - 7, "step", "tick", "middle"))
    told = f"from {points[0][1]:.4f} at step {points[0][0]:.0f} to {points[-1][1]:.4f} at step {points[-1][0]:.0f}"
    return svg(width, height, title, parts, told)


def training(view: View) -> list[str]:
    """Per stage its metric on ``select`` and its loss."""
    drawn = []
    for stage, part in branch(view.results, "training").items():
        if not isinstance(part, Mapping):
            continue
        by_metric: dict[str, list[Mapping[str, object]]] = {}
        for entry in items(part.get("curve")):
            by_metric.setdefault(str(entry.get("metric") or "metric"), []).append(entry)
        for metric, found in by_metric.items():
            drawn.append(_panel(f"{stage}: {metric} on select", _curve(found, "value"), True))
        drawn.append(_panel(f"{stage}: loss", _curve(part.get("loss"), "loss"), False))
    return [panel for panel in drawn if panel]
