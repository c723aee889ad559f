"""Reading results.json for the report: what there is, what it says, and any one number, or None where it is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from harness.evaluation.bars import OWN_PRECISION, STUDENTS
from harness.evaluation.report.values import (
    Interval,
    branch,
    clean,
    decimals,
    described,
    dig,
    in_order,
    items,
    listed,
    number,
)

AGGREGATES = ("macro", "micro", "worst", "all", "weighted")
METRICS = ("P@1", "P@10", "nDCG@10", "MRR@10", "Hit@10", "Recall@100", "judged@10")
SYSTEMS = (
    "teacher-base", "teacher", "teacher-more", "student-untrained", "student-aligned", "student-refined",
    "student-int8", "student-ann",
)  # fmt: skip
SETS = ("test", "report", "select")
STATUS_MARKS = {"reached": "✓", "missed": "✗", "undecided": "?"}
NON_INFERIORITY = "non-inferiority"
Status = Literal["reached", "missed", "undecided"]


@dataclass(frozen=True, slots=True)
class Bar:
    """One thing the recipe asks for, and whether the run reached it; ``why`` it is undecided.

    ``what``: ends with the number it asks for and, where it is undecided, the reason; ``bound``: what kind ``low`` is;
    ``name``: short; ``key``: the same in all runs that ask for it; ``numbers``: the value, its lower bound and the bar;
    ``at_most``: whether less is better; ``doubtful``: reached, yet the interval reaches below the bar (only where
    the entry itself does not tell a status).
    """

    what: str
    value: str
    low: str
    status: Status
    doubtful: bool
    key: str = ""
    numbers: tuple[float | None, float | None, float | None] = (None, None, None)
    at_most: bool = False
    name: str = ""
    bound: str = ""
    why: str = ""

    @property
    def brief(self) -> str:
        """What it asks for, in words that name no run's own findings."""
        asked = self.numbers[2]
        if asked is None:
            return self.name
        how = "interval above" if "interval above" in self.what else "at most" if self.at_most else "at least"
        return f"{self.name}, {how} {asked:g}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to "can I ship it?": a word, a sentence, and a status for its colour ("" without bars)."""

    word: str
    sentence: str
    status: Status | Literal[""]


def _bar(entry: Mapping[str, Any]) -> Bar:
    value, low, bar = (number(entry.get(key)) for key in ("value", "low", "bar"))
    passed, told = entry.get("passed"), entry.get("status")
    asked = clean(entry.get("what") or entry.get("name") or "bar")
    why = clean(entry.get("why") or "")
    what = asked + ("" if bar is None else f" {bar:g}") + (f" ({why})" if why else "")
    status: Status = "reached" if passed is True else "missed" if passed is False else "undecided"
    if told == "reached" or told == "missed" or told == "undecided":
        status = told
    doubtful = told is None and passed is True and low is not None and bar is not None and low < bar
    at_most = asked.endswith("at most")
    key = f"{entry.get('name')} {bar}"
    name = clean(entry.get("name") or entry.get("what") or "bar").replace(", ", " ")  # they are listed by commas
    bound = clean(entry.get("bound") or "")
    return Bar(
        what, decimals(value), decimals(low), status, doubtful, key, (value, low, bar), at_most, name, bound, why
    )


class View:
    """What the report shows of ``results``: one set, its systems and languages in order, one metric in front.

    Args:
        results: the content of results.json; any part of it may be missing.
        on: the set in front, where it is not to be the usual one.
    """

    def __init__(self, results: Mapping[str, Any], on: str | None = None) -> None:
        self.results, self._on = results, on

    @cached_property
    def name(self) -> str:
        return clean(self.results.get("name") or "run")

    @cached_property
    def reference(self) -> str:
        return str(self.results.get("reference") or "teacher")

    @cached_property
    def set(self) -> str:
        """The set in front: ``test`` if there is one, otherwise ``report``, otherwise ``select``."""
        if self._on is not None:
            return self._on
        quality = branch(self.results, "quality")
        found = [key for sets in quality.values() if isinstance(sets, Mapping) for key in sets]
        return next(iter(in_order([*found, *branch(self.results, "sets")], SETS)), "")

    @cached_property
    def selected_on(self) -> bool:
        """Whether something was chosen by looking at this set, so that its numbers flatter."""
        return self.set == "select" or bool(dig(self.results, "sets", self.set, "selected_on"))

    @cached_property
    def set_label(self) -> str:
        return (clean(self.set) or "no") + (" (selected on)" if self.selected_on else "")

    @property
    def mark(self) -> str:
        """What stands behind an interval on data that something was selected on."""
        return "†" if self.selected_on else ""

    @cached_property
    def systems(self) -> list[str]:
        quality = branch(self.results, "quality")
        return in_order([name for name in quality if dig(quality, name, self.set)], SYSTEMS)

    @cached_property
    def compared(self) -> list[str]:
        """The systems that have a recovery against the reference, the candidate first."""
        recovery = branch(self.results, "recovery")
        found = [n for n in recovery if n != self.reference and dig(recovery, n, self.set)]
        return in_order(found, (self.candidate, *reversed(SYSTEMS)))

    @cached_property
    def timed(self) -> list[tuple[str, str]]:
        """(system, engine) pairs with a latency or a throughput."""
        found = [branch(self.results, key) for key in ("latency", "throughput")]
        systems = in_order([name for part in found for name in part], SYSTEMS)
        return [
            (name, engine)
            for name in systems
            for engine in dict.fromkeys(e for part in found for e in branch(part, name))
        ]

    @cached_property
    def students(self) -> list[str]:
        """The student after each stage; what was made of it (int8, approximate search) is no stage."""
        return [name for name in STUDENTS if name in self.systems and name != self.reference]

    @cached_property
    def candidate(self) -> str:
        """The system in question: the one that bars and claims are about.

        In a file that does not name it, the student after its last stage.
        """
        told = self.results.get("candidate")
        if told in self.systems:
            return str(told)
        others = [name for name in self.systems if name != self.reference]
        return next(reversed(self.students), next(reversed(others), ""))

    @cached_property
    def languages(self) -> list[str]:
        found = [branch(self.results, p, name, self.set) for p in ("quality", "recovery") for name in self.systems]
        return sorted({key for part in found for key in part if key not in AGGREGATES})

    @cached_property
    def metrics(self) -> list[str]:
        scopes = [(name, scope) for name in self.systems for scope in branch(self.results, "quality", name, self.set)]
        found = [key for name, scope in scopes for key in branch(self.results, "quality", name, self.set, scope)]
        return [key for key in in_order(found, METRICS) if key not in ("queries", "groups")]

    @cached_property
    def lead(self) -> str:
        """The metric in front: the first that tests and ledger are about, else the first there is."""
        about = {row.get("metric") for row in (*self.tests, *items(self.results.get("ledger")))}
        return next((name for name in self.metrics if name in about), next(iter(self.metrics), "P@1"))

    @cached_property
    def bars(self) -> list[Bar]:
        """What was asked for: first what was missed, then what can't be told, then what was reached; of each first what
        is kept of the reference, then latency."""
        order, first = ("missed", "undecided", "reached"), ("recovery", "worst", "latency")
        places = {kind: place for place, kind in enumerate(first)}
        found = [_bar(entry) for entry in items(self.results.get("bars"))]
        return sorted(found, key=lambda bar: (order.index(bar.status), places.get(bar.name.split(" ")[0], len(first))))

    @cached_property
    def warnings(self) -> list[str]:
        found = self.results.get("warnings")
        return [clean(text) for text in found if isinstance(text, str)] if isinstance(found, list) else []

    @cached_property
    def tests(self) -> list[Mapping[str, Any]]:
        """The statistical tests on this set."""
        return [test for test in items(self.results.get("tests")) if test.get("set") == self.set]

    @cached_property
    def gains(self) -> list[Mapping[str, Any]]:
        """The paired differences; ``difference`` is the first of ``systems`` less the second."""
        return [test for test in self.tests if test.get("kind", "difference") == "difference"]

    @cached_property
    def claims(self) -> list[Mapping[str, Any]]:
        """Whether the candidate "loses less than x %": one entry a metric and scope."""
        found = [test for test in self.tests if test.get("kind") == NON_INFERIORITY]
        return [test for test in found if self.candidate in (test.get("systems") or [self.candidate])]

    @cached_property
    def small(self) -> list[str]:
        """The languages that are too small to tell: they are undecided, never passed."""
        worst = dig(self.results, "recovery", self.candidate, self.set, "worst", self.lead, "undecided")
        told = {str(lang) for lang in worst} if isinstance(worst, list) else set()
        found = {lang: self.recovery(self.candidate, lang, self.lead) for lang in self.languages}
        known = {lang: kept for lang, kept in found.items() if kept.value is not None}
        return [lang for lang, kept in known.items() if lang in told or (self.has_joint and kept.joint is None)]

    @cached_property
    def undecided(self) -> list[str]:
        """The languages that can't be told, those among them without any recovery too."""
        worst = dig(self.results, "recovery", self.candidate, self.set, "worst", self.lead, "undecided")
        told = {str(lang) for lang in worst} if isinstance(worst, list) else set()
        return [lang for lang in self.languages if lang in told or lang in self.small]

    @cached_property
    def empty(self) -> list[str]:
        """The languages in which the reference finds nothing, so that nothing can be kept: undecided, however large."""
        return [lang for lang in self.undecided if lang not in self.small]

    @cached_property
    def has_joint(self) -> bool:
        """Whether any language has a lower bound that holds for all languages at once."""
        found = branch(self.results, "recovery", self.candidate, self.set)
        return any(number(dig(found, lang, self.lead, "simultaneous_low")) is not None for lang in self.languages)

    # -------------------------------------------------------------------------------------------- single numbers

    def quality(self, system: str, scope: str, metric: str) -> float | None:
        """A metric of a system in a language, ``macro`` or ``all``."""
        return number(dig(self.results, "quality", system, self.set, scope, metric))

    def agreement(self, system: str, scope: str, key: str = "overlap@10") -> float | None:
        """Agreement with the reference; ``macro``, where it is not given, is the mean over languages."""
        value = number(dig(self.results, "agreement", system, self.set, scope, key))
        if value is None and scope == "macro":
            known = [v for lang in self.languages if (v := self.agreement(system, lang, key)) is not None]
            value = sum(known) / len(known) if known else None
        return value

    def queries(self, scope: str) -> float | None:
        """How many queries stand behind a language."""
        found = (number(dig(self.results, "quality", n, self.set, scope, "queries")) for n in self.systems)
        return next((value for value in found if value is not None), None)

    def recovery(self, system: str, scope: str, metric: str) -> Interval:
        """Student over reference, with its interval."""
        return Interval.of(branch(self.results, "recovery", system, self.set, scope, metric))

    def latency(self, system: str, engine: str, key: str, scope: str = "all") -> float | None:
        """Milliseconds (or calls, or the batch) of one engine."""
        return number(dig(self.results, "latency", system, engine, scope, key))

    def throughput(self, system: str, engine: str, key: str = "queries_per_second") -> float | None:
        """Queries per second, or the batch they were measured with."""
        return number(dig(self.results, "throughput", system, engine, key))

    def first_engine(self, system: str) -> str:
        """The engine that ratios of latency are over."""
        return next((engine for name, engine in self.timed if name == system), "")

    def fastest_engine(self, system: str) -> str:
        """The engine that stands for a system in the summary, as in the bar of latency: that of the least p99, of those
        that answer as the system that was evaluated."""
        known = {engine: p99 for name, engine in self.timed if name == system and engine in OWN_PRECISION
                 and (p99 := self.latency(system, engine, f"{self.path_key}p99_ms")) is not None}  # fmt: skip
        return min(known, key=lambda engine: known[engine], default=self.first_engine(system))

    # ------------------------------------------------------------------------------------------------ in a sentence

    @cached_property
    def path_key(self) -> str:
        """What latency is shown: of the whole path (tokenise, encode, search) where all were timed so, or encoding."""
        timed = [(s, e) for s, e in self.timed if self.latency(s, e, "p50_ms") is not None]
        whole = timed and all(self.latency(s, e, "whole_p50_ms") is not None for s, e in timed)
        return "whole_" if whole else ""

    @cached_property
    def worst_language(self) -> str | None:
        """The language in which the candidate keeps least."""
        told = dig(self.results, "recovery", self.candidate, self.set, "worst", self.lead, "language")
        if told in self.languages:
            return str(told)
        known = {lang: self.recovery(self.candidate, lang, self.lead).value for lang in self.languages}
        found = {lang: value for lang, value in known.items() if value is not None}
        return min(found, key=lambda lang: found[lang]) if found else None

    @cached_property
    def conditions(self) -> str:
        """Under which conditions latency was measured, as one line; versions are told with the provenance."""
        told = branch(self.results, "conditions")
        return described({key: value for key, value in told.items() if key != "versions"})

    @cached_property
    def verdict(self) -> Verdict:
        """Missed bars decide first, then undecided ones: what can't be told never counts as reached."""
        total = len(self.bars)
        missed, undecided = ([bar.name for bar in self.bars if bar.status == s] for s in ("missed", "undecided"))
        if not self.systems:
            return Verdict("Nothing measured", "No system was evaluated.", "")
        if not total:
            return Verdict("No bars set", "The recipe sets no bar, so the numbers below stand for themselves.", "")
        of = f"of {total} bars" if total > 1 else "of 1 bar"
        tail = f"; {len(undecided)} undecided: {listed(undecided)}" if undecided else ""
        if missed:
            return Verdict("Not yet", f"{len(missed)} {of} missed: {listed(missed)}{tail}.", "missed")
        if undecided:
            told = f"{len(undecided)} {of} undecided: {listed(undecided)}; none missed."
            return Verdict("Undecided", told, "undecided")
        return Verdict("Yes", f"All {total} bars reached." if total > 1 else "The one bar is reached.", "reached")

    @cached_property
    def sides(self) -> dict[int, list[str]]:
        """The languages whose recovery interval lies below 1 (-1), holds it (0) or lies above (1), each on its own."""
        found: dict[int, list[str]] = {-1: [], 0: [], 1: []}
        for lang in self.languages:
            side = self.recovery(self.candidate, lang, self.lead).side(of=1)
            if side is not None:
                found[side].append(lang)
        return found
