"""Runs side by side: every table of the comparison. The first run is the measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.evaluation.report.runs import Compared, data_hash, results_file
from harness.evaluation.report.tables import WORST, Grid, Row, duration, grid
from harness.evaluation.report.values import (
    MISSING,
    Interval,
    branch,
    clean,
    count,
    decimals,
    described,
    dig,
    in_order,
    listed,
    number,
    rate,
    whole_percent,
)
from harness.evaluation.report.view import STATUS_MARKS, SYSTEMS, Bar, View

APART = "‡"  # behind a number that can't be held against the first run's
OVER = "p50 over the reference's"
SHOWN = 5  # metrics of the systems in question
CONFIDENCE = 0.95  # of paired intervals, where the first run's results tell none
# The paired difference of two stored evaluations, or in words why there is none.
Paired = Callable[[Path, Path, str, tuple[float | None, float | None], float], Mapping[str, Any] | str]


# --------------------------------------------------------------------------------------------------------- tables


class Comparison:
    """The tables. A column per run; behind its numbers the difference to the first run, where there is one to tell."""

    def __init__(self, runs: Sequence[Compared], paired: Paired | None = None) -> None:
        self.runs, self._paired = list(runs), paired
        self._differences: dict[tuple[str, ...], Mapping[str, Any] | str] = {}

    @property
    def first(self) -> Compared:
        return self.runs[0]

    @property
    def lead(self) -> str:
        return self.first.view.lead

    @property
    def confidence(self) -> float:
        """Of paired intervals: that of the first run's own."""
        return _confidence(self.first.view) or CONFIDENCE

    @property
    def _paired_metrics(self) -> set[str]:
        """Whose differences have an interval."""
        return {self.lead, "nDCG@10"}

    @cached_property
    def names(self) -> list[str]:
        return [run.name for run in self.runs]

    @cached_property
    def scopes(self) -> list[str]:
        return ["macro", "worst", *sorted({lang for run in self.runs for lang in run.view.languages})]

    def cautions(self) -> list[str]:
        """Which runs can't be held against the first, and why; in words."""
        what = {kind: f"its {kind}" for kind in ("quality", "recovery", "latency", "throughput")}
        alone = "without the manifest of the run that wrote it; nothing vouches that it was not edited"
        found = [f"{run.name}: {results_file(run.folder).name} {alone}." for run in self.runs if run.loose]
        for run in self.runs[1:]:
            by_reason: dict[str, list[str]] = {}
            for kind, words in what.items():
                for reason in run.reasons(kind):
                    by_reason.setdefault(reason, []).append(words)
            for reason, kinds in by_reason.items():
                joined = " and ".join(kinds) if len(kinds) < 3 else ", ".join(kinds)
                found.append(f"{APART} {run.name} is not comparable with {self.first.name} in {joined}: {reason}.")
            if not run.reasons("quality") and not (data_hash(run.view) and data_hash(self.first.view)):
                found.append(f"{run.name}: its results do not tell which data they were made from; taken as the same.")
            own, paired = _confidence(run.view), self.confidence
            if own not in (None, paired):
                found.append(f"{run.name}: its own intervals are at {whole_percent(own)} confidence, the paired ones "
                             f"at {whole_percent(paired)}, as {self.first.name}'s.")  # fmt: skip
            if _method(run.view) != _method(self.first.view):
                found.append(f"{run.name}: its own intervals come from another method than {self.first.name}'s "
                             "(statistics.method in both results.json): they, bars and verdicts may differ by the "
                             "method alone.")  # fmt: skip
        return found + self._without_intervals()

    def _without_intervals(self) -> list[str]:
        """Why differences that are shown have no interval."""
        self.quality(), self.systems()  # so that all of them are asked for
        told = dict.fromkeys(why for why in self._differences.values() if isinstance(why, str))
        return [f"A difference without an interval: {clean(why)}." for why in told]

    def overview(self) -> Grid | None:
        """What each run is, and its answer."""
        rows: dict[str, list[str]] = {}
        for run in self.runs:
            view, about = run.view, branch(run.view.results, "provenance")
            verdict = view.verdict
            mark = f"{STATUS_MARKS[verdict.status]} " if verdict.status else ""
            seconds = number(about.get("wall_seconds"))
            told = {
                "can it ship?": f"{mark}{verdict.word}",
                "candidate": clean(view.candidate),
                "reference": clean(view.reference),
                f"{clean(self.lead)} kept, macro": view.recovery(view.candidate, "macro", self.lead).text(
                    mark=view.mark
                ),
                "lowest language": self._worst(view),
                "folder": clean(run.folder),
                "data": data_hash(view) or MISSING,
                "queries": count(view.queries("all")),
                "machine": described(about.get("hardware")) or MISSING,
                "commit": clean(about.get("commit") or MISSING),
                "seed": clean(about.get("seed", MISSING)),
                "run time": MISSING if seconds is None else duration(seconds),
            }
            for key, text in told.items():
                rows.setdefault(key, []).append(text)
        found = [Row([key, *cells], strong=key == "can it ship?") for key, cells in rows.items()]
        return grid("Runs", ["", *self.names], found, left=range(len(self.runs) + 1))

    def _worst(self, view: View) -> str:
        found = view.recovery(view.candidate, "worst", self.lead).text()
        return f"{clean(view.worst_language)} {found}" if view.worst_language else found

    def bars(self) -> Grid | None:
        """Every bar of any run, and where each run stands."""
        asked: dict[str, Bar] = {}
        for run in self.runs:
            for bar in run.view.bars:
                asked.setdefault(bar.key, bar)
        rows = [Row([bar.brief, *(self._bar(run, key) for run in self.runs)]) for key, bar in asked.items()]
        return grid("Bars", ["bar", *self.names], rows)

    def _bar(self, run: Compared, key: str) -> str:
        """Where a run stands on its bar, marked where that is no match for the first run."""
        bar = next((own for own in run.view.bars if own.key == key), None)
        if bar is None:
            return MISSING
        kinds = {"recovery": "recovery", "worst": "recovery", "latency": "latency"}  # by first words; others: quality
        mark = f" {APART}" if run.reasons(kinds.get(bar.name.split()[0], "quality")) else ""
        return f"{STATUS_MARKS[bar.status]} {bar.value}{mark}"

    def quality(self) -> Grid | None:
        """The candidates' metrics, macro, with paired differences where both runs kept every query."""
        metrics = [m for m in self.first.view.metrics if any(m in run.view.metrics for run in self.runs[1:])][:SHOWN]
        paired = [clean(metric) for metric in metrics if metric in self._paired_metrics]
        rows = [Row([clean(metric), *(self._quality(run, run.view.candidate, metric) for run in self.runs)],
                    metric == self.lead) for metric in metrics]  # fmt: skip
        note = f"Macro, on {clean(self.first.view.set)}. In brackets: the difference to {self.first.name}"
        if paired:
            note += (f"; that of {' and '.join(paired)} with its paired interval ({whole_percent(self.confidence)} "
                     "confidence), where both runs kept their evaluations. A question mark: undecided")  # fmt: skip
        names = [f"{run.name}: {clean(run.view.candidate)}" for run in self.runs]
        return grid("Quality of the systems in question", ["metric", *names], rows, f"{note}.")

    def systems(self) -> Grid | None:
        """The metric in front, of every system that two runs have."""
        held = [name for run in self.runs for name in run.view.systems]
        shared = in_order([name for name in held if held.count(name) > 1], SYSTEMS)
        rows = [
            Row([clean(name), *(self._quality(run, name, self.lead, alike=True) for run in self.runs)])
            for name in shared
        ]
        return grid(f"{clean(self.lead)} of every system, macro", ["system", *self.names], rows)

    def _quality(self, run: Compared, system: str, metric: str, alike: bool = False) -> str:
        value = run.view.quality(system, "macro", metric)
        beside = system if alike else self.first.view.candidate
        base = self.first.view.quality(beside, "macro", metric)
        if value is None or base is None or run is self.first:
            return decimals(value)
        if run.reasons("quality"):
            return f"{decimals(value)} {APART}"
        told = self._difference(run, system, beside, metric, (value, base))
        if told is None or isinstance(told, str):
            return f"{decimals(value)} ({decimals(value - base, sign=True)})"
        if told.get("same"):
            return f"{decimals(value)} (the same in every query)"
        doubt = " ?" if told.get("verdict") == "undecided" else ""
        return f"{decimals(value)} ({Interval.of(told, 'difference').text(sign=True)}{doubt})"

    def _difference(
        self, run: Compared, system: str, beside: str, metric: str, values: tuple[float, float]
    ) -> Mapping[str, Any] | str | None:
        """The paired difference to the first run, from what both stored of every query, or why there is none."""
        if self._paired is None or metric not in self._paired_metrics:
            return None
        key = (str(run.folder), system, beside, metric)
        if key in self._differences:
            return self._differences[key]
        folders = [r.folder / "evaluations" / name / r.view.set for r, name in ((run, system), (self.first, beside))]
        self._differences[key] = self._paired(folders[0], folders[1], metric, values, self.confidence)
        return self._differences[key]

    def recovery(self) -> Grid | None:
        """What each candidate keeps of its reference, summaries and languages."""
        rows = []
        for scope in self.scopes:
            cells = []
            base = self.first.view.recovery(self.first.view.candidate, scope, self.lead).value
            for run in self.runs:
                found = run.view.recovery(run.view.candidate, scope, self.lead)
                text = found.text(mark=run.view.mark)
                if run is not self.first and base is not None and found.value is not None:
                    text += f" {APART}" if run.reasons("recovery") else f" ({decimals(found.value - base, sign=True)})"
                cells.append(text)
            rows.append(Row([clean(scope) or "(none)", *cells], scope in ("macro", "worst")))
        note = f"In brackets: the difference of the estimates; their intervals are each run's own. {WORST}"
        return grid(f"Recovery of {clean(self.lead)}", ["language", *self.names], rows, note)

    def cost(self) -> Grid | None:
        """One query's time and the queries per second, of every system and engine that is timed in any run."""
        keys = [pair for run in self.runs for pair in run.view.timed]
        pairs = [
            (s, e) for s in in_order([s for s, _ in keys], SYSTEMS) for e in dict.fromkeys(e for n, e in keys if n == s)
        ]
        whole = all(run.view.path_key for run in self.runs)
        key = "whole_p50_ms" if whole else "p50_ms"
        rows = []
        for system, engine in pairs:
            asked = {
                "p50 ms": [run.view.latency(system, engine, key) for run in self.runs],
                OVER: [_over_reference(run.view, system, engine, key) for run in self.runs],
                "queries/s": [run.view.throughput(system, engine) for run in self.runs],
            }
            for what, values in asked.items():
                cells = [self._timed(run, value, values[0], what) for run, value in zip(self.runs, values, strict=True)]
                if any(cell != MISSING for cell in cells):
                    rows.append(Row([f"{clean(system)} · {clean(engine)}", what, *cells], what == OVER))
        path = "the whole path (tokenise, encode, search)" if whole else "the encoder"
        origin = self.first.view.first_engine(self.first.view.reference)
        note = (
            f"p50 of {path} for one query. In brackets: how many times the first run's. Runs are timed one after the "
            "other, not in turns: what the machine did meanwhile is in the milliseconds, less so in the ratio to the "
            f"run's own reference (in {clean(origin)})."
        )
        return grid("Latency and throughput", ["system", "", *self.names], rows, note, left=(0, 1))

    def _timed(self, run: Compared, value: float | None, base: float | None, what: str) -> str:
        text = rate(value) if what == "queries/s" else decimals(value, 2)
        if run is self.first or value is None or not base:
            return text
        if run.reasons("throughput" if what == "queries/s" else "latency"):
            return f"{text} {APART}"
        return f"{text} (×{value / base:.2f})"

    def grids(self) -> list[Grid]:
        """Every table that says something, in order."""
        every = (self.overview(), self.bars(), self.quality(), self.recovery(), self.cost(), self.systems())
        return [found for found in every if found is not None]

    def sentence(self) -> str:
        """What is compared, in a line."""
        return f"{listed(self.names)} on {clean(self.first.view.set)}; differences are to {self.first.name}."


def _confidence(view: View) -> float | None:
    """Of a run's own intervals; None where its results do not tell."""
    told = number(dig(view.results, "statistics", "confidence"))
    return told if told is not None and 0 < told < 1 else None


def _method(view: View) -> str:
    """By which a run's own intervals were made; empty where its results do not tell."""
    return clean(dig(view.results, "statistics", "method") or "")


def _over_reference(view: View, system: str, engine: str, key: str) -> float | None:
    """A system's time over that of the run's own reference."""
    base = view.latency(view.reference, view.first_engine(view.reference), key)
    own = view.latency(system, engine, key)
    return own / base if own is not None and base and system != view.reference else None
