"""The report's plots of quality: from a ``View`` to SVG text, or None where there is nothing to draw.

Plots that need room take a ``width``: the page holds a narrow and a wide drawing and shows the one that fits, so that
text keeps its size on a phone. Small multiples (curves.py) have one size and flow.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from harness.evaluation.bars import OWN_PRECISION
from harness.evaluation.report.dots import ABREAST, Dot, Pair, dumbbells, whiskers
from harness.evaluation.report.svg import (
    Scale,
    circle,
    cut,
    cut_within,
    diamond,
    escaped,
    label,
    line,
    log_ticks,
    path,
    short,
    svg,
    tag,
    ticks,
)
from harness.evaluation.report.values import Interval, branch, clean, count, decimals, dig, items, listed, number
from harness.evaluation.report.view import View

MOST_VALUES = 12  # of one slice in the plot; the table has all
STEP = 34  # height of a step in the waterfall


def recovery(view: View, width: int) -> str | None:
    """Recovery of the candidate: macro and worst first, then the languages from the best kept to the least."""
    known = [(lang, view.recovery(view.candidate, lang, view.lead)) for lang in view.languages]
    ordered = sorted(known, key=lambda pair: (pair[0] in view.small, -(pair[1].value or 0)))
    worst = f"worst ({view.worst_language})" if view.worst_language else "worst"
    names = {"macro": "macro", "worst": worst, "weighted": "weighted"}
    dots = [Dot(name, view.recovery(view.candidate, scope, view.lead), "summary",
                more="one-sided bounds" if scope == "worst" else "") for scope, name in names.items()]  # fmt: skip
    for lang, interval in ordered:
        queries = view.queries(lang)
        more = f"{count(queries)} queries" if queries is not None else ""
        kind = "few" if lang in view.small else "worst" if lang == view.worst_language and len(known) > 1 else ""
        dots.append(Dot(lang or "(none)", interval, kind, more=more))
    title = f"Recovery of {view.lead} per language, {view.candidate} over {view.reference}"
    return whiskers(dots, width=width, reference=1.0, title=title, bar=recovery_bar(view))


def recovery_bar(view: View) -> float | None:
    """The bar that the recipe sets for recovery of the metric in front."""
    asked = (entry for entry in items(view.results.get("bars")) if entry.get("name") == f"recovery of {view.lead}")
    return next((number(entry.get("bar")) for entry in asked), None)


def gains(view: View, width: int) -> str | None:
    """The paired difference of every stage over the one before."""
    dots = []
    for test in view.gains:
        if test.get("metric") != view.lead:
            continue
        systems = [clean(name).removeprefix("student-") for name in test.get("systems") or []]
        name = " over ".join(systems if width > ABREAST else systems[:1])
        dots.append(Dot(name or clean(test.get("name", "")), Interval.of(test, "difference")))
    return whiskers(dots, width=width, reference=0.0, title=f"Gain in {view.lead} of each stage")


def slices(view: View, width: int) -> str | None:
    """Recovery of the candidate within every slice, the mean over languages above them."""
    dots = [Dot("all languages", view.recovery(view.candidate, "macro", view.lead), "summary")]
    for name, values in branch(view.results, "slices", view.candidate, view.set).items():
        known = [(value, row) for value, row in branch({"": values}, "").items() if isinstance(row, Mapping)]
        if len(known) > MOST_VALUES:
            known.sort(key=lambda pair: -(number(pair[1].get("queries")) or 0))
        heading = clean(name)
        for value, row in known[:MOST_VALUES]:
            interval = Interval.of(dig(row, "recovery", view.lead))
            if interval.value is not None:
                kind = "few" if row.get("undecided") is True else ""
                more = f"{count(row.get('queries'))} queries"
                dots.append(Dot(clean(value) or "(none)", interval, kind, heading, more))
                heading = ""
    if len(dots) == 1:
        return None
    return whiskers(dots, width=width, reference=1.0, title=f"Recovery of {view.lead} by slice")


def bias(view: View, width: int) -> str | None:
    """Per document language: its share of the candidate's first hits beside its share of the relevant documents."""
    pairs = []
    for language, row in branch(view.results, "bias", view.candidate, view.set, "documents").items():
        found, wanted = number(dig(row, "share_of_top")), number(dig(row, "share_of_relevant"))
        if found is not None and wanted is not None:
            pairs.append(Pair(clean(language) or "(none)", found, wanted))
    pairs.sort(key=lambda pair: -pair.wanted)
    title = f"Share of the first hits beside share of the relevant documents, {view.candidate}"
    return dumbbells(pairs, width=width, title=title, names=("of the first hits", "of the relevant"))


# ------------------------------------------------------------------------------------------------- the waterfall


def ledger_rows(view: View) -> list[Mapping[str, Any]]:
    """What every step cost or won of the metric in front, macro, in the order of the steps."""
    found = [
        row
        for row in items(view.results.get("ledger"))
        if row.get("set") == view.set and row.get("metric") == view.lead and row.get("scope") == "macro"
    ]
    return [row for row in found if number(row.get("before")) is not None and number(row.get("after")) is not None]


def ledger(view: View, width: int) -> str | None:
    """From the reference to the last student: a floating bar per step, with the interval of its difference.

    Branches (what is made of the exported student) stand below, each from that student's level.
    """
    found = ledger_rows(view)
    if not found:
        return None
    steps, branches = ([row for row in found if bool(row.get("branch")) is told] for told in (False, True))
    rows = steps + branches
    wide = width > ABREAST
    left, right = (200.0, 232.0) if wide else (132.0, 64.0)
    levels = [float(row[key]) for row in rows for key in ("before", "after")]
    spans = [float(row["before"]) + bound for row in rows for key in ("low", "high")
             if (bound := number(row.get(key))) is not None]  # fmt: skip
    marks = ticks(max(0.0, min(levels + spans)), max(levels + spans), 8 if wide else 5)
    scale = Scale(marks[0], marks[-1], left, width - right)
    top, bottom = 8, 8 + STEP * (len(rows) + 2)
    parts = [line(scale(m), top, scale(m), bottom, "grid") + label(scale(m), bottom + 13, short(m), "tick", "middle")
             for m in marks]  # fmt: skip
    start, end = rows[0], (steps or rows)[-1]
    parts += _level(start["before"], (start.get("systems") or ["", view.reference])[-1], top, scale, width)
    x = scale(float(start["before"]))
    parts.append(line(x, top + STEP / 2 + 8, x, top + STEP * 1.5 - 8, "joint"))
    told = []
    for index, row in enumerate(rows):
        below = 1 if index < len(steps) or not steps else 2  # the last student's row stands between
        parts += _step(row, top + STEP * (index + below), scale, width)
        told.append(f"{clean(row.get('step'))} {Interval.of(row, 'difference').text(sign=True)}")
    share = f", {100 * end['after'] / start['before']:.1f} % of the first" if wide and start["before"] else ""
    if steps:
        parts += _level(end["after"], (end.get("systems") or [view.candidate])[0], top + STEP * (len(steps) + 1), scale,
                        width, share)  # fmt: skip
    return svg(width, bottom + 24, f"What every step cost or won of macro {view.lead}", parts, "; ".join(told))


def _level(value: float, name: object, top: float, scale: Scale, width: int, more: str = "") -> list[str]:
    """A row of the waterfall that says where it stands."""
    y, wide = top + STEP / 2, width > ABREAST
    return [diamond(scale(value), y, 7, "mark summary", f"{clean(name)}: {value:.3f}"),
            label(scale.start - 12, y, cut_within(name, 24 if wide else 15), "strong", "end"),
            label(width - 2, y, decimals(value) + more, "value strong", "end")]  # fmt: skip


def _step(row: Mapping[str, Any], top: float, scale: Scale, width: int) -> list[str]:
    """One step: a bar from before to after, hollow where it is undecided, and the interval around its end."""
    wide, y = width > ABREAST, top + STEP / 2
    before, after = float(row["before"]), float(row["after"])
    change = Interval.of(row, "difference")
    side = change.side(0.0)
    kind = "loss" if after < before else "gain"
    doubt = " hollow" if side in (0, None) or row.get("verdict") == "undecided" else ""
    tip = f"{clean(row.get('step'))}: {before:.3f} to {after:.3f}, {change.text(sign=True)}"
    x1, x2 = sorted((scale(before), scale(after)))
    shape = {"x": x1, "y": y - 8, "width": max(x2 - x1, 1.5), "height": 16.0, "class_": f"step {kind}{doubt}"}
    parts = [tag("rect", tag("title", escaped(tip)), **shape)]
    if change.low is not None and change.high is not None:
        ends = [scale(min(max(before + bound, scale.low), scale.high)) for bound in (change.low, change.high)]
        parts.append(line(ends[0], y, ends[1], y, "whisker summary"))
    if not row.get("branch"):
        parts.append(line(scale(after), y + 8, scale(after), y + STEP - 8, "joint"))
    shown = change.text(sign=True) if wide else decimals(change.value, sign=True)
    step = clean(row.get("step")).replace("approximate", "approximate" if wide else "approx.")
    verdict = "  " + clean(row.get("verdict") or "") if wide else " ?" if doubt else ""
    names = textwrap.wrap(step, 24 if wide else 13) or [""]  # joined steps take several lines
    lines = [y + 12 * (at - (len(names) - 1) / 2) for at in range(len(names))]
    parts += [label(scale.start - 12, at, name, "", "end") for at, name in zip(lines, names, strict=True)]
    return [*parts, label(width - 2, y, shown + verdict, "value", "end")]


# ------------------------------------------------------------------------------------------- quality and latency


Box = tuple[float, float, float, float]  # left, top, right, bottom
Point = tuple[str, str, float, float, float]  # system, engine, p50, p99, quality
INT8 = ("student-int8", "onnx-int8")  # the evaluated system that is what the deployed one answers in this engine


def _free_place(
    at: tuple[float, float], wide: float, taken: Sequence[Box], others: Sequence[tuple[float, float]], limits: Box
) -> tuple[float, float]:
    """The centre of a label of width ``wide`` for the mark ``at`` a point.

    The first place that hides nothing and is nearer to its own mark than to those of ``others``; else one that hides
    nothing; else the one above.
    """
    x, y = at
    steps = [sign * (17 + 16 * far) for far in range(12) for sign in (-1, 1)]
    places = [(x + shift * wide / 2, y + step) for step in steps for shift in (0, 0.8, -0.8)]
    beside = [(x - 12 - wide / 2, y), (x - 12 - wide / 2, y - 12), (x - 12 - wide / 2, y + 12)]
    inside = [(min(max(px, limits[0] + wide / 2), limits[2] - wide / 2), py) for px, py in [*places[:6], *beside,
                                                                                           *places[6:]]]  # fmt: skip
    free = []
    for px, py in inside:
        box = (px - wide / 2, py - 8, px + wide / 2, py + 8)
        hides = any(box[0] < b[2] and box[2] > b[0] and box[1] < b[3] and box[3] > b[1] for b in taken)
        if not hides and box[1] >= limits[1] and box[3] <= limits[3]:
            free.append(((px, py), box))
    own = [place for place, box in free if all(_apart(box, at) + 6 < _apart(box, other) for other in others)]
    return next(iter([*own, *(place for place, _ in free), inside[0]]))


def _apart(box: Box, point: tuple[float, float]) -> float:
    """How far a point is from a box."""
    (x, y), (left, top, right, bottom) = point, box
    return math.hypot(max(left - x, 0, x - right), max(top - y, 0, y - bottom))


def evaluated_as(view: View, system: str, engine: str) -> str | None:
    """The evaluated system that answers as this one does in this engine; None where none does.

    An engine of lower precision answers something else than its system.
    """
    if engine in OWN_PRECISION:
        return system
    exported = view.results.get("exported") or view.candidate
    return INT8[0] if system == exported and engine == INT8[1] else None


def timed_points(view: View) -> list[Point]:
    """Every timed system that was also evaluated, in every engine whose answers were."""
    points = []
    for system, engine in view.timed:
        p50 = view.latency(system, engine, f"{view.path_key}p50_ms")
        quality = view.quality(evaluated_as(view, system, engine) or "", "macro", view.lead)
        if p50 and p50 > 0 and quality is not None:
            p99 = view.latency(system, engine, f"{view.path_key}p99_ms")
            points.append((system, engine, p50, max(p50, p99 or p50), quality))
    return points


def not_drawn(view: View) -> str:
    """What stands in no plot of quality, for what it answers was not evaluated; empty where everything does."""
    drawn = {point[:2] for point in timed_points(view)}
    left = [f"{clean(system)} in {clean(engine)}" for system, engine in view.timed if (system, engine) not in drawn]
    return f"Timed, but not evaluated, so not drawn: {listed(left)}." if left else ""


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both: faster and at least as good, from the fastest on."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p[2], -p[4])):
        if not front or point[4] > front[-1][4]:
            front.append(point)
    return front


def quality_and_latency(view: View, width: int) -> str | None:
    """Macro quality against p50 latency (logarithmic, whisker to p99) of every timed system, and the Pareto band."""
    points = timed_points(view)
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
    digits = max(len(f"{m:g}".partition(".")[2]) for m in y_marks)  # 0.275 is not to read 0.28
    parts += [line(left, y(m), width - right, y(m), "grid") + label(left - 8, y(m), f"{m:.{digits}f}", "tick", "end")
              for m in y_marks]  # fmt: skip
    path_name = "whole path" if view.path_key else "encoder"
    parts += [label((left + width - right) / 2, height - 10, f"{path_name} p50 at batch 1, ms (log)", "tick", "middle"),
              label(0, 9, f"macro {view.lead}", "tick")]  # fmt: skip
    front = pareto(points)
    if len(front) > 1:
        corners = [(x(front[0][2]), y(front[0][4]))]
        for before, after in zip(front, front[1:], strict=False):
            corners += [(x(after[2]), y(before[4])), (x(after[2]), y(after[4]))]
        parts.append(path(corners, "front"))
    points.sort(key=lambda p: -p[4])
    marks = [(x(p50), y(q)) for _, _, p50, _, q in points]
    taken = [(x(p50) - 8, y(q) - 8, max(x(p50) + 8, x(p99)), y(q) + 8) for _, _, p50, p99, q in points]
    several = len({engine for _, engine in view.timed}) > 1  # drawn or not: int8 is not the student's own engine
    for place, point in enumerate(points):
        others = marks[:place] + marks[place + 1 :]
        parts += _point(view, point, (marks[place], x(point[3])), several, (taken, others),
                        (left, top - 14, width, bottom))  # fmt: skip
    told = "; ".join(f"{s} with {e}: {view.lead} {q:.3f} at {p50:.2f} ms" for s, e, p50, _, q in points)
    return svg(width, height, f"Macro {view.lead} against latency", parts, told)


def _point(
    view: View, point: Point, at: tuple[tuple[float, float], float], several: bool,
    around: tuple[list[Box], Sequence[tuple[float, float]]], limits: Box,
) -> list[str]:  # fmt: skip
    """One system: its mark, the line to its p99, and its name where nothing stands yet.

    Args:
        at: the mark, and where the line ends; around: what is hidden by nothing, to be added to, and the other marks.
    """
    system, engine, p50, p99, quality = point
    (x, y), end = at
    kind = "candidate" if system == view.candidate else "origin" if system == view.reference else "other"
    name = clean(system) + (f" · {clean(engine)}" if several else "")
    tip = f"{name}: {view.lead} {quality:.3f}, p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    shown = cut(name, 30)
    wide = 7.6 * len(shown)
    at_x, at_y = _free_place((x, y), wide, *around, limits)
    around[0].append((at_x - wide / 2, at_y - 8, at_x + wide / 2, at_y + 8))
    mark = diamond(x, y, 8, f"mark {kind}", tip) if kind == "origin" else circle(x, y, 6.5, f"mark {kind}", tip)
    return [line(x, y, end, y, f"whisker {kind}"), mark, label(at_x, at_y, shown, "strong", "middle")]
