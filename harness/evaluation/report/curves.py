"""Small multiples: stages per language, training, throughput by batch, and search effort. One size; they flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.evaluation.report.svg import (
    Scale,
    circle,
    cut,
    cut_within,
    diamond,
    label,
    line,
    log_ticks,
    path,
    short,
    svg,
    ticks,
)
from harness.evaluation.report.values import branch, clean, dig, items, number
from harness.evaluation.report.view import View
from harness.vectors.approximate import TOO_SMALL

Curve = list[tuple[float, float]]
POINTS = 160  # of a curve; longer ones are thinned
INDEX_NAMES = {"hnsw": "HNSW", "ivf": "IVF", "ivf-pq": "IVF-PQ"}


# ------------------------------------------------------------------------------------------------------- stages


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
    width, height, left, right, top, bottom = 168, 128, 30, 22, 28, 106
    steps = len(view.students)
    y = Scale(0.0, top_value, bottom, top)
    xs = [left + 4 + (width - left - right - 4) * (i / (steps - 1) if steps > 1 else 0.5) for i in range(steps)]
    name = "mean over languages" if scope == "macro" else scope or "(none)"
    parts = [label(0, 12, cut_within(name, 20), "strong"), line(left, bottom, width, bottom, "axis")]
    parts += [label(left - 5, y(m), short(m), "tick", "end") + line(left, y(m), width, y(m), "grid")
              for m in ticks(0.0, top_value, 5) if m <= top_value]  # fmt: skip
    if reference is not None:
        parts.append(line(left, y(reference), width, y(reference), "reference"))
    parts.append(path([(xs[i], y(v)) for i, v in found], f"curve {'summary' if scope == 'macro' else ''}"))
    for i, value in found:
        student = view.students[i]
        parts += [
            circle(xs[i], y(value), 4, "mark", f"{student}: {value:.3f}"),
            label(xs[i], bottom + 12, cut(student.removeprefix("student-"), 9), "tick small", "middle"),
        ]
    told = "; ".join(f"{view.students[i]} {value:.3f}" for i, value in found)
    told += f"; {view.reference} {reference:.3f}" if reference is not None else ""
    return svg(width, height, f"{view.lead}, {name}", parts, told)


# ------------------------------------------------------------------------------------------------------- training


def _thinned(points: Curve) -> Curve:
    """A curve of at most ``POINTS`` points: neighbours are averaged, the last one is kept as it is."""
    size = -(-len(points) // POINTS)
    if size <= 1:
        return points
    parts = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts] + [points[-1]]


def _curve(entries: object, key: str, along: str = "step") -> Curve:
    pairs = [(number(entry.get(along)), number(entry.get(key))) for entry in items(entries)]
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


# ------------------------------------------------------------------------------- several systems in one panel


@dataclass(frozen=True, slots=True)
class Line:
    """One system's curve: ``kind`` "origin" (the reference: diamonds, broken), "candidate" or "other"."""

    name: str
    points: Curve
    kind: str


@dataclass(frozen=True, slots=True)
class Axes:
    """What a panel shows, and along what; ``holds``: points that the scales span too, so that panels share them."""

    title: str
    x: str
    y: str
    log_x: bool = False
    log_y: bool = False
    holds: tuple[tuple[float, float], ...] = ()


def _marks(values: Sequence[float], log: bool) -> tuple[list[float], bool]:
    """Ticks over ``values``: by logarithm only where all are positive, then the values themselves if few."""
    own = sorted(set(values))
    if not log or own[0] <= 0 or own[0] == own[-1]:
        return ticks(own[0], own[-1], 5), False
    whole = all(value == int(value) for value in own)  # sizes and efforts: what was measured
    if whole and all(b / a > 1.5 for a, b in zip(own, own[1:], strict=False)):
        return sorted({*own[:: -(-len(own) // 8)], own[-1]}), True
    found = log_ticks(own[0], own[-1])
    return (found if len(found) <= 7 else found[:: -(-len(found) // 5)] + [found[-1]]), True


def _lines(axes: Axes, lines: Sequence[Line], at: float | None = None, note: str = "") -> str | None:
    """One panel with a curve per system; ``at``: a height to show; ``note`` is written over it."""
    lines = [one for one in lines if one.points]
    if not lines:
        return None
    width, height, left, right, top, bottom = 320, 228, 48, 24, 64, 186
    points = [*axes.holds, *(point for one in lines for point in one.points)]
    x_marks, log_x = _marks([x for x, _ in points], axes.log_x)
    y_marks, log_y = _marks([y for _, y in points] + ([] if at is None else [at]), axes.log_y)
    x = Scale(x_marks[0], x_marks[-1], left, width - right, log_x)
    y = Scale(y_marks[0], y_marks[-1], bottom, top, log_y)
    parts = [label(0, 11, cut(axes.title, 18 if note else 40), "strong")]
    parts += [line(left, y(m), width - right, y(m), "grid") + label(left - 6, y(m), short(m), "tick", "end")
              for m in dict.fromkeys(y_marks)]  # fmt: skip
    parts += [label(x(m), bottom + 13, short(m), "tick", "middle") for m in dict.fromkeys(x_marks)]
    parts += [line(left, bottom, width - right, bottom, "axis"),
              label((left + width - right) / 2, height - 9, axes.x + (" (log)" if log_x else ""), "tick", "middle"),
              label(0, 46, axes.y + (" (log)" if log_y else ""), "tick")]  # fmt: skip
    if at is not None:
        parts.append(line(left, y(at), width - right, y(at), "bar"))
    if note:
        parts.append(label(width - 2, 11, note, "stamp", "end"))  # beside the title, clear of marks and names
    beside = 0.0
    for one in lines:
        parts.append(path([(x(a), y(b)) for a, b in one.points], f"curve {one.kind}"))
        shape = diamond if one.kind == "origin" else circle
        parts += [shape(x(a), y(b), 4, f"mark {one.kind}", f"{one.name}: {axes.x} {a:g}, {axes.y} {b:.4g}")
                  for a, b in one.points]  # fmt: skip
        name = cut(one.name, 17)
        if beside + 18 + 6.6 * len(name) <= width:
            parts += [shape(beside + 6, 27, 4, f"mark {one.kind}"), label(beside + 15, 27, name, "tick")]
            beside += 28 + 6.6 * len(name)
    told = "; ".join(f"{o.name}: " + ", ".join(f"{b:.4g} at {a:g}" for a, b in o.points) for o in lines)
    return svg(width, height, f"{axes.title}: {axes.y} by {axes.x}", parts, told)


def _kind(view: View, system: str) -> str:
    return "origin" if system == view.reference else "candidate" if system == view.candidate else "other"


def by_batch(entry: object) -> Curve:
    """Queries per second by batch size: a mapping or a list of entries, whichever is stored."""
    if isinstance(entry, Mapping):
        pairs = [(number(int(size)) if str(size).isdecimal() else None,
                  number(told) if number(told) is not None else number(dig(told, "queries_per_second")))
                 for size, told in entry.items()]  # fmt: skip
        return sorted((size, speed) for size, speed in pairs if size is not None and speed is not None)
    return _curve(entry, "queries_per_second", along="batch")


def throughput(view: View) -> list[str]:
    """Queries per second by batch size: a panel per engine, a curve per system, one scale from 0."""
    curves = {(s, e): by_batch(dig(view.results, "throughput", s, e, "by_batch")) for s, e in view.timed}
    points = [point for curve in curves.values() for point in curve]
    if len({size for size, _ in points}) < 2:
        return []
    holds = ((points[0][0], 0.0), *points)
    drawn = []
    for engine in dict.fromkeys(engine for _, engine in curves):
        lines = [Line(clean(s), curve, _kind(view, s)) for (s, e), curve in curves.items() if e == engine]
        drawn.append(_lines(Axes(clean(engine), "batch", "queries per second", log_x=True, holds=holds), lines))
    return [panel for panel in drawn if panel]


def effort(view: View) -> list[str]:
    """Per approximate index: recall by effort, and speed by recall; labelled where the index is too small to tell."""
    told = branch(view.results, "ann")
    note = TOO_SMALL if told.get("verdict") == TOO_SMALL else ""
    recall = f"recall@{clean(told.get('k', 10))}"
    drawn = []
    for index, about in branch(told, "indexes").items():
        curves = {name: dig(part, "curve") for name, part in branch(about, "systems").items()}
        title = INDEX_NAMES.get(index, clean(index))
        by_effort = [Line(clean(n), _curve(c, recall, along="effort"), _kind(view, n)) for n, c in curves.items()]
        by_recall = [Line(clean(n), _curve(c, "queries_per_second", along=recall), _kind(view, n))
                     for n, c in curves.items()]  # fmt: skip
        drawn.append(_lines(Axes(title, "effort", f"{recall} of exact search", log_x=True), by_effort, 0.99, note))
        drawn.append(_lines(Axes(title, f"{recall} of exact search", "queries per second", log_y=True), by_recall,
                            note=note))  # fmt: skip
    return [panel for panel in drawn if panel]
