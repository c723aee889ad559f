"""Every table of the report once, as plain text cells; the renderings escape and lay out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.evaluation.bench import CALLS_FOR_P99_9
from harness.evaluation.report.values import (
    MISSING,
    Interval,
    branch,
    clean,
    count,
    decimals,
    described,
    dig,
    items,
    listed,
    number,
    rate,
    whole_percent,
)
from harness.evaluation.report.view import STATUS_MARKS, Status, View

WORST = (
    "worst: the lowest language that can be told; its two bounds are each one-sided and hold for all languages at "
    "once."
)
SCOPES = {"macro": "the mean over languages", "all languages": "all languages at once"}
AGREEMENT = ("overlap@10", "rbo@100", "cosine")


@dataclass(frozen=True, slots=True)
class Row:
    """Cells, the first of which names the row; ``strong`` rows summarise, ``status`` colours."""

    cells: list[str]
    strong: bool = False
    status: Status | None = None


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: ``left`` columns are text, all others numbers (set to the right); ``starts`` are rows under a rule."""

    title: str
    header: list[str]
    rows: list[Row]
    note: str = ""
    left: frozenset[int] = frozenset({0})
    starts: frozenset[int] = field(default_factory=frozenset)


def grid(
    title: str, header: Sequence[str], rows: Sequence[Row], note: str = "", left: Sequence[int] = (0,)
) -> Grid | None:
    """A table, or None where nothing would stand in it."""
    if not any(cell not in ("", MISSING) for row in rows for cell in row.cells[1:]):
        return None
    return Grid(title, list(header), list(rows), note, frozenset(left))


def selected_note(view: View) -> str:
    """What is to be said of numbers on a set that something was chosen on."""
    return "† The set was also used to choose checkpoints, so it flatters." if view.selected_on else ""


def verdict_notes(view: View) -> list[str]:
    """What qualifies the verdict: the claim, bars in doubt, undecided languages, and a set that was selected on."""
    notes = claim_note(view)
    doubtful = [bar.what for bar in view.bars if bar.doubtful]
    if doubtful:
        notes.append("Reached, but the interval reaches below the bar: " + "; ".join(doubtful) + ".")
    for few, why in ((view.small, "too small to tell"), (view.empty, f"{clean(view.reference)} finds nothing there")):
        if few:
            notes.append(f"Undecided languages, {why}: {listed(few)} ({len(few)} of {len(view.languages)}).")
    below, ours, theirs = view.sides[-1], clean(view.candidate), clean(view.reference)
    if below and len(view.languages) > 1:
        many = f"{len(below)} of {len(view.languages)}, uncorrected for their number"
        notes.append(f"{ours} is clearly below {theirs} in {listed(below)} ({many}).")
    if view.selected_on:
        notes.append(f"Measured on {clean(view.set)}, where checkpoints were chosen: read every number as optimistic.")
    return notes


def claim_note(view: View) -> list[str]:
    """Whether "loses less than x %" is shown of the metric in front, for the mean and for all languages at once."""
    found: dict[str, list[str]] = {}
    for test in view.claims:
        scope = SCOPES.get(str(test.get("scope")))
        if scope and test.get("metric") == view.lead:
            found.setdefault(whole_percent(test.get("margin")), []).append(f"{clean(test.get('verdict'))} for {scope}")
    head = f"{clean(view.candidate)} loses less than"
    return [f"{head} {margin} of {clean(view.lead)}: {'; '.join(told)}." for margin, told in found.items()]


def confidence_note(view: View) -> str:
    """At which confidence and from how many resamples intervals are, and by which method, where the file tells it."""
    told = "; ".join(filter(None, [how_sure(view), clean(dig(view.results, "statistics", "method"))]))
    return f"Intervals: {told}." if told else ""


def how_sure(view: View) -> str:
    """Confidence and resamples of the intervals, in a line."""
    told = branch(view.results, "statistics")
    confidence, resamples = (number(told.get(key)) for key in ("confidence", "resamples"))
    parts = [f"{whole_percent(confidence)} confidence" if confidence is not None else "",
             f"{count(resamples)} resamples" if resamples is not None else ""]
    return ", ".join(filter(None, parts))


def labels_note(view: View) -> list[str]:
    """How many labels that came after the data, from which files, judged this run."""
    told = branch(view.results, "labels")
    many = number(told.get("labels"))
    if many is None:
        return []
    files = [f"{clean(file.get('name'))} ({count(file.get('labels'))})" for file in items(told.get("files"))]
    used = [f"{clean(name)} {count(n)}" for name, n in branch(told, "used").items() if number(n)]
    origin = f", read from {', '.join(files)}" if files else ""
    where = f" They count for {listed(used)}." if used else " They count for no set that was evaluated."
    return [f"Beside the data's own judgments, {count(many)} labels of raters judged this run{origin}.{where}"]


def language_note(view: View) -> str:
    """In which languages the candidate differs clearly from the reference."""
    words = ((-1, "clearly below in"), (0, "no clear difference in"), (1, "clearly above in"))
    parts = [f"{text} {listed(view.sides[side])}" for side, text in words if view.sides[side]]
    head = f"{view.lead} of {clean(view.candidate)} beside {clean(view.reference)}: "
    caution = " Each language is judged alone, uncorrected for their number." if len(view.languages) > 1 else ""
    return head + "; ".join(parts) + "." + caution if parts else ""


def bars(view: View) -> Grid | None:
    """What the recipe asked for, and whether it was reached."""
    kinds = any(bar.bound for bar in view.bars)  # earlier files have none
    rows = [
        Row([f"{STATUS_MARKS[bar.status]} {bar.status}", bar.what, bar.value, bar.low, *([bar.bound] if kinds else [])],
            status=bar.status)
        for bar in view.bars
    ]  # fmt: skip
    return grid("Bars", ["", "bar", "value", "lower bound", *(["which"] if kinds else [])], rows, left=(0, 1, 4))


def by_language(view: View, metric: str) -> Grid | None:
    """One metric (or agreement with the reference): a row per language and for their mean, a column per system.

    The metric in front also shows how many queries there are.
    """
    counted = metric == view.lead
    of_agreement = metric in AGREEMENT
    systems = [name for name in view.systems if not (of_agreement and name == view.reference)]
    value = view.agreement if of_agreement else view.quality
    names = {"macro": "macro", **{lang: clean(lang) or "(none)" for lang in view.languages}, "all": "all queries"}
    rows = []
    for scope, name in names.items():
        values = [decimals(value(system, scope, metric)) for system in systems]
        if any(value != MISSING for value in values):
            rows.append(Row([name, *([count(view.queries(scope))] if counted else []), *values], scope == "macro"))
    title = f"{metric} with {clean(view.reference)}" if of_agreement else metric
    return grid(title, ["language", *(["queries"] if counted else []), *(clean(name) for name in systems)], rows)


def macro(view: View) -> Grid | None:
    """Every metric as the mean over languages: a row per system."""
    rows = [
        Row([clean(n), *(decimals(view.quality(n, "macro", metric)) for metric in view.metrics),
             decimals(view.agreement(n, "macro")) if n != view.reference else MISSING], n == view.candidate)
        for n in view.systems
    ]  # fmt: skip
    title = f"Mean over languages on {view.set_label}"
    return grid(title, ["system", *map(clean, view.metrics), "overlap@10"], rows)


def recovery(view: View) -> Grid | None:
    """The share of the reference that is kept, of the metric in front: a row per language and for each summary."""
    systems = view.compared
    means = [(scope, scope) for scope in ("macro", "worst", "weighted", "micro")]
    scopes = [*means, *((lang, clean(lang) or "(none)") for lang in view.languages)]
    rows = []
    for scope, label in scopes:
        cells = [view.recovery(name, scope, view.lead).text(mark=view.mark) for name in systems]
        if any(cell != MISSING for cell in cells):
            overlap = decimals(view.agreement(view.candidate, "all" if scope == "micro" else scope))
            rows.append(Row([label, cells[0], overlap, *cells[1:]], scope in ("macro", "worst")))
    title = f"Recovery of {view.lead} against {clean(view.reference)} on {view.set_label}"
    sure = how_sure(view)
    note = f"overlap@10: of {clean(view.candidate)} with {clean(view.reference)}. {WORST}"
    names = [clean(name) for name in systems]
    header = ["language", *names[:1], "overlap@10", *names[1:]]
    notes = filter(None, [note, sure and f"Intervals: {sure}.", selected_note(view)])
    return grid(title, header, rows, " ".join(notes))


def recovery_of_all_metrics(view: View) -> Grid | None:
    """Macro recovery: a row per metric, a column per system."""
    systems = view.compared
    rows = [
        Row([clean(metric), *(view.recovery(name, "macro", metric).text(mark=view.mark) for name in systems)])
        for metric in view.metrics
    ]
    shown = [row for row in rows if any(cell != MISSING for cell in row.cells[1:])]
    title = f"Macro recovery of every metric against {clean(view.reference)}"
    return grid(title, ["metric", *(clean(name) for name in systems)], shown)


def gains(view: View) -> Grid | None:
    """What each stage won or lost over the one before: paired differences."""
    rows = []
    for test in view.gains:
        difference, low, high = (decimals(test.get(key), sign=True) for key in ("difference", "low", "high"))
        interval = f"{difference} [{low}, {high}]" if MISSING not in (low, high) else difference
        systems = " over ".join(clean(name) for name in test.get("systems") or [])
        rows.append(Row([clean(test.get("name") or systems), systems, clean(test.get("metric") or ""), interval,
                         clean(test.get("verdict") or MISSING)]))  # fmt: skip
    title = f"What each stage won, on {view.set_label}"
    header = ["stage", "systems", "metric", "difference", "verdict"]
    return grid(title, header, rows, training_note(view), left=(0, 1, 2, 4))


def training_note(view: View) -> str:
    """Whether the teacher had come to rest: an undertrained one makes a student look better than it is."""
    gain = number(dig(view.results, "training", "teacher", "last_quarter_gain"))
    if gain is None:
        return ""
    return f"The teacher gained {gain:+.3f} on select over the last quarter of its steps."


def cost(view: View) -> Grid | None:
    """Latency at batch 1 and throughput of every timed system, and the ratio to the reference."""
    base = view.latency(view.reference, view.first_engine(view.reference), "p50_ms")
    keys = {"p50_ms": "p50 ms", "p90_ms": "p90 ms", "p99_ms": "p99 ms", "p99_9_ms": "p99.9 ms",
            "tokenise_p50_ms": "tokeniser p50", "search_p50_ms": "search p50", "whole_p50_ms": "whole p50",
            "whole_p90_ms": "whole p90", "whole_p99_ms": "whole p99", "whole_p99_9_ms": "whole p99.9"}  # fmt: skip
    always = ("p50_ms", "p99_ms", "tokenise_p50_ms")
    keys = {key: name for key, name in keys.items()
            if key in always or any(view.latency(s, e, key) is not None for s, e in view.timed)}  # fmt: skip
    rows = []
    for system, engine in view.timed:
        p50 = view.latency(system, engine, "p50_ms")
        ratio = f"{p50 / base:.2f}" if p50 is not None and base and system != view.reference else MISSING
        ms = (decimals(view.latency(system, engine, key), 2) for key in keys)
        rows.append(Row([clean(system), clean(engine), *ms, ratio, rate(view.throughput(system, engine)),
                         count(view.throughput(system, engine, "batch"))], system == view.candidate))  # fmt: skip
    header = ["system", "engine", *keys.values(), "p50 ratio", "queries/s", "at batch"]
    tail = "p99.9" if "p99_9_ms" in keys else "p99"
    path = f" p50 to {tail}: the encoder. Whole: tokenise, encode and search." if "whole_p50_ms" in keys else ""
    if path and not dig(view.results, "conditions", "encoder"):  # results of before both were taken in one call
        path += " The encoder was timed in other calls, so a part can be above its whole."
    origin = clean(view.first_engine(view.reference))
    ratio = f" p50 ratio: over {clean(view.reference)} in {origin}, whatever the engine." if base else ""
    note = f"Latency: one query at a time, systems interleaved{calls_note(view)}.{path}{ratio}" + (
        f" {view.conditions}." if view.conditions else ""
    )
    note = " ".join(filter(None, [note, rare_note(view), noise_note(view)]))
    return grid("Latency and throughput", header, rows, note, left=(0, 1))


def calls_note(view: View) -> str:
    """How many calls stand behind each percentile."""
    found = {calls for s, e in view.timed if (calls := view.latency(s, e, "calls")) is not None}
    return f", {' to '.join(count(calls) for calls in sorted({min(found), max(found)}))} calls each" if found else ""


def rare_note(view: View) -> str:
    """That a 99.9th percentile takes more calls than were made; empty where it is told."""
    rows = [branch(view.results, "latency", s, e, "all") for s, e in view.timed]
    calls = [number(row.get("calls")) for row in rows if "p99_9_ms" in row and row["p99_9_ms"] is None]
    fewest = min((many for many in calls if many), default=None)
    if fewest is None:
        return ""
    repeats = number(dig(view.results, "conditions", "repeats"))
    enough = f" (bench.repeats of {math.ceil(CALLS_FOR_P99_9 / fewest * repeats)} would do)" if repeats else ""
    return f"p99.9: needs {count(CALLS_FOR_P99_9)} calls, had {count(fewest)}{enough}."


def noise_note(view: View) -> str:
    """How far two timings of one and the same system lie apart; what disturbed them is among the warnings."""
    floor = number(dig(view.results, "noise", "percent"))
    return f"Medians that differ by less than {floor:.1f} % are equal here (one system, timed twice)." if floor else ""


def parity(view: View) -> Grid | None:
    """What was exported, held against the student in memory on real queries."""
    rows = []
    for name, told in branch(view.results, "parity").items():
        row, kept = branch(told, "languages", "all"), branch(told, "recovery", "P@1", "macro")
        passed = dig(told, "passed") is True
        share = Interval(*(number(kept.get(key)) for key in ("value", "low", "high")))
        digits = {"min_cosine": 5, "mean_cosine": 5, "overlap@10": 3}
        cells = [clean(dig(told, "artefact") or f"onnx {name}"), "exported" if passed else "not exported",
                 count(row.get("queries")), *(decimals(row.get(key), places) for key, places in digits.items()),
                 share.text()]  # fmt: skip
        rows.append(Row(cells, status="reached" if passed else "missed"))
    header = ["artefact", "", "queries", "least cosine", "mean cosine", "overlap@10",
              "P@1 of the student's, plain paired bootstrap"]  # fmt: skip
    return grid("Artefacts beside the student in memory", header, rows, left=(0, 1))


def hand_over(view: View) -> Grid | None:
    """What approximate forms of the index cost."""
    rows = [
        Row([clean(name), decimals(dig(cost, "recall@10")), decimals(dig(cost, "recall@10_of_100")),
             count(dig(cost, "bytes_per_vector"))])
        for name, cost in branch(view.results, "hand_over", "cost").items()
    ]  # fmt: skip
    header = ["index", "exact first 10 in its first 10", "in its first 100", "bytes a vector"]
    return grid("The index, handed over", header, rows)


def latency_by_language(view: View) -> Grid | None:
    """Calls, encoding and the whole path: a row per language and timed system."""
    found = {key for s, e in view.timed for key in branch(view.results, "latency", s, e)} - {"all"}
    names = {"calls": "calls", "p50_ms": "p50 ms", "p90_ms": "p90 ms", "p99_ms": "p99 ms", "whole_p50_ms": "whole p50",
             "whole_p90_ms": "whole p90", "whole_p99_ms": "whole p99"}  # fmt: skip
    rows, known = [], []
    for scope in [*sorted(found), "all"]:
        for system, engine in view.timed:
            values = {key: view.latency(system, engine, key, scope) for key in names}
            known += [key for key, value in values.items() if value is not None]
            cells = {key: count(value) if key == "calls" else decimals(value, 2) for key, value in values.items()}
            if any(value is not None for value in values.values()):
                rows.append(([clean(scope), clean(system), clean(engine)], cells, scope == "all"))
    keys = [key for key in names if key in known]
    shown = [Row([*head, *(cells[key] for key in keys)], strong) for head, cells, strong in rows]
    header = ["language", "system", "engine", *(names[key] for key in keys)]
    note = "p50, p90, p99: encoding. Whole: tokenise, encode and search. Few calls: the tails are single calls."
    return grid("Latency per language", header, shown, note, left=(0, 1, 2)) if found else None


def systems(view: View) -> Grid | None:
    """How large every system is."""
    rows = []
    for name in view.systems:
        about = branch(view.results, "systems", name)
        sizes = (count(about.get(k)) for k in ("parameters", "parameters_without_embeddings", "layers", "dimensions"))
        rows.append(Row([clean(name), *sizes], name == view.candidate))
    header = ["system", "parameters", "without embeddings", "layers", "dimensions"]
    return grid("Systems", header, rows)


def sets(view: View) -> Grid | None:
    """What was searched."""
    rows = []
    for name, about in branch(view.results, "sets").items():
        if isinstance(about, dict):
            langs = about.get("languages")
            many = count(len(langs)) if isinstance(langs, (list, dict)) else count(langs)
            chosen = "yes" if about.get("selected_on") else "no"
            sizes = [count(about.get("queries")), count(about.get("documents")), many]
            rows.append(Row([clean(name), *sizes, chosen], name == view.set))
    header = ["set", "queries", "documents", "languages", "selected on"]
    return grid("Sets", header, rows)


def provenance(view: View) -> list[tuple[str, str]]:
    """Where the numbers come from, as (name, text) pairs."""
    found = dict(branch(view.results, "provenance"))
    seconds = number(found.pop("wall_seconds", None))
    steps = found.pop("steps", None)
    pairs = [(clean(key).replace("_", " "), described(value)) for key, value in found.items()]
    if isinstance(steps, dict):
        known = {clean(name): spent for name, value in steps.items() if (spent := number(value)) is not None}
        pairs.append(("steps", ", ".join(f"{name} {duration(spent)}" for name, spent in known.items())))
    if sure := how_sure(view):
        pairs.append(("intervals", sure))
    if seconds is not None:
        pairs.append(("run time", duration(seconds)))
    for stage, part in branch(view.results, "training").items():
        spent = number(dig(part, "seconds"))
        if spent is not None:
            pairs.append((f"{clean(stage)} training", duration(spent)))
    return [(key, text) for key, text in pairs if text]


def duration(seconds: float) -> str:
    """Seconds for people: ``42 s``, ``6 min 20 s``, ``3 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
