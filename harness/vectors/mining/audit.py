"""What mining found, in numbers that parts of the work can add up, and in samples to read.

A score lies in bin ``floor(score / width)``; only bins that hold something are kept, so no range need be known.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.data.records import Documents, Record
from harness.vectors.mining.filters import FILTERS

EXAMPLES = 20  # ids named, queries shown
CHARTED = 20  # languages whose histograms are drawn
BARS = "·▁▂▃▄▅▆▇█"  # of nothing, a dot: renderers join spaces
COLUMNS = 40  # of a histogram that is drawn
SHOWN = 5  # texts shown of a query's positives, and of its negatives
LENGTH = 300  # characters shown of a text


def bin_width(score_P: np.ndarray) -> float:
    """The width of a bin: a hundredth of the power of ten that holds these scores, of cosines .01."""
    largest = float(np.abs(score_P).max(initial=0.0))
    return 10.0 ** (math.ceil(math.log10(largest)) - 2) if largest > 1.01 else 0.01


@dataclass
class Scores:
    """Count, sum, extremes and bins of some scores."""

    width: float
    count: int = 0
    total: float = 0.0
    low: float | None = None
    high: float | None = None
    bins: dict[int, int] = field(default_factory=dict)

    def add(self, score_P: np.ndarray) -> None:
        """Count these in; all finite."""
        if not score_P.size:
            return
        number, count = np.unique(np.floor(score_P.astype(np.float64) / self.width).astype(np.int64),
                                  return_counts=True)  # fmt: skip
        self._join(int(score_P.size), float(score_P.sum(dtype=np.float64)), float(score_P.min()), float(score_P.max()),
                   zip(number.tolist(), count.tolist(), strict=True))  # fmt: skip

    def merge(self, other: Scores) -> None:
        """Count another's in."""
        if other.low is not None and other.high is not None:
            self._join(other.count, other.total, other.low, other.high, other.bins.items())

    def _join(self, count: int, total: float, low: float, high: float, bins: Iterable[tuple[int, int]]) -> None:
        self.count, self.total = self.count + count, self.total + total
        self.low = low if self.low is None else min(low, self.low)
        self.high = high if self.high is None else max(high, self.high)
        for number, some in bins:
            self.bins[number] = self.bins.get(number, 0) + some

    def summary(self, histogram: bool = False) -> dict[str, Any] | None:
        """Mean and extremes; quantiles to within a bin's width; ``histogram``: [lower edge, count] of each bin."""
        if self.low is None or self.high is None:
            return None
        told: dict[str, Any] = {"count": self.count, "mean": self.total / self.count, "min": self.low}
        told |= {name: self._quantile(q) for name, q in (("p5", 0.05), ("median", 0.5), ("p95", 0.95))}
        told["max"] = self.high
        if histogram:
            told["histogram"] = [[round(number * self.width, 9), self.bins[number]] for number in sorted(self.bins)]
        return told

    def _quantile(self, share: float) -> float:
        assert self.low is not None and self.high is not None
        seen = 0
        for number in sorted(self.bins):
            seen += self.bins[number]
            if seen >= share * self.count:
                return min(max((number + 0.5) * self.width, self.low), self.high)
        return self.high


@dataclass
class Tally:
    """What is counted of the queries of one language."""

    positives: Scores
    negatives: Scores
    queries: int = 0
    without: int = 0
    above: int = 0

    @classmethod
    def empty(cls, width: float) -> Tally:
        """Nothing counted yet."""
        return cls(Scores(width), Scores(width))

    def merge(self, other: Tally) -> None:
        """Count another's in."""
        self.positives.merge(other.positives)
        self.negatives.merge(other.negatives)
        self.queries, self.without = self.queries + other.queries, self.without + other.without
        self.above += other.above

    def summary(self, histogram: bool) -> dict[str, Any]:
        """As the audit tells it."""
        negatives = self.negatives.count
        return {
            "queries": self.queries,
            "queries_without_negatives": self.without,
            "negatives": negatives,
            "negatives_per_query": negatives / max(1, self.queries),
            "negatives_above_their_positive": self.above / max(1, negatives),
            "scores": {"positives": self.positives.summary(histogram), "negatives": self.negatives.summary(histogram)},
        }


@dataclass
class Counts:
    """What is counted of a part of the queries: by language, by filter, and queries to read.

    ``samples`` and ``worst`` hold {query, positives, negatives}: the number of a query, and [document's row, score]
    pairs; in ``worst``, of queries whose best negative lies farthest above their best positive, first the farthest.
    """

    width: float
    languages: dict[str, Tally] = field(default_factory=dict)
    fallen: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*FILTERS, "not_picked", "kept"), 0))
    without: list[int] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    worst: list[dict[str, Any]] = field(default_factory=list)

    def language(self, name: str) -> Tally:
        """The tally of a language."""
        return self.languages.setdefault(name, Tally.empty(self.width))

    def merge(self, other: Counts) -> None:
        """Count the part that follows in."""
        for name, tally in other.languages.items():
            self.language(name).merge(tally)
        for name, count in other.fallen.items():
            self.fallen[name] += count
        self.without = [*self.without, *other.without][:EXAMPLES]
        self.samples += other.samples
        self.worst = worst_first([*self.worst, *other.worst])

    def to_json(self) -> dict[str, Any]:
        """Plain data, for a part's entry."""

        def scores(one: Scores) -> dict[str, Any]:
            return {**vars(one), "bins": sorted(one.bins.items())}

        languages = {
            name: {**vars(tally), "positives": scores(tally.positives), "negatives": scores(tally.negatives)}
            for name, tally in sorted(self.languages.items())
        }
        return {**vars(self), "languages": languages}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Counts:
        """What ``to_json`` told; raises KeyError, TypeError or ValueError of anything else."""

        def scores(one: Mapping[str, Any]) -> Scores:
            return Scores(**{**one, "bins": {int(number): int(count) for number, count in one["bins"]}})

        languages = {
            name: Tally(**{**one, "positives": scores(one["positives"]), "negatives": scores(one["negatives"])})
            for name, one in told["languages"].items()
        }
        return cls(**{**told, "languages": languages})


def worst_first(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The queries whose best negative lies farthest above their best positive; between equal ones, the first."""
    above = [(entry["negatives"][0][1] - entry["positives"][0][1], entry) for entry in found]
    ranked = sorted(above, key=lambda pair: (-pair[0], pair[1]["query"]))
    return [entry for excess, entry in ranked if excess > 0][:EXAMPLES]


# --------------------------------------------------------------------------------------------------------- to read


def audit_of(
    counts: Counts, settings: Mapping[str, Any], records: Sequence[Record], documents: Documents
) -> dict[str, Any]:
    """``audit.json``: the counts of all parts, with the texts of the samples.

    Keys: those of a language's tally over all queries (histograms stand under each language); ``settings``; ``hits``
    looked at; ``fell_to``: how many of them each filter took, in the order in which filters are asked, ``not_picked``
    what passed and was not kept, ``kept`` the negatives; ``without_negatives``: the first ids; ``samples``: queries
    evenly spaced; ``above_their_positive``: those whose best negative lies farthest above their best positive.
    """
    everything = Tally.empty(counts.width)
    for tally in counts.languages.values():
        everything.merge(tally)

    def shown(entry: Mapping[str, Any]) -> dict[str, Any]:
        record = records[entry["query"]]
        told: dict[str, Any] = {"id": record.id, "language": record.language, "text": _short(record.text)}
        for side in ("positives", "negatives"):
            told[side] = [
                {"id": documents.ids[row], "score": score, "text": _short(documents.texts[row])}
                for row, score in entry[side]
            ]
        return told

    return {
        **everything.summary(histogram=False),
        "settings": dict(settings),
        "hits": sum(counts.fallen.values()),
        "fell_to": counts.fallen,
        "without_negatives": [records[number].id for number in counts.without],
        "bin_width": counts.width,
        "languages": {name: tally.summary(histogram=True) for name, tally in sorted(counts.languages.items())},
        "samples": [shown(entry) for entry in counts.samples],
        "above_their_positive": [shown(entry) for entry in counts.worst],
    }


def _short(text: str) -> str:
    return text if len(text) <= LENGTH else text[:LENGTH] + "…"


def audit_markdown(audit: Mapping[str, Any]) -> str:
    """``audit.md``: what the filters took, scores and their histograms per language, samples. Texts are escaped."""
    hits = max(1, audit["hits"])
    lines = [
        "# Mined negatives", "",
        f"{audit['queries']:,} queries, {audit['negatives']:,} negatives ({audit['negatives_per_query']:.1f} a query); "
        f"{audit['queries_without_negatives']:,} queries without negatives; "
        f"{audit['negatives_above_their_positive']:.2%} of the negatives score above their query's best positive.",
        "", "| hits | | |", "|---|---:|---:|",
        *(f"| {_escaped(name)} | {count:,} | {count / hits:.2%} |" for name, count in audit["fell_to"].items()),
    ]  # fmt: skip
    if audit["without_negatives"]:
        lines += ["", "Without negatives, the first: " + ", ".join(map(_escaped, audit["without_negatives"]))]
    header = "| language | queries | without | scores of | mean | p5 | median | p95 |"
    lines += ["", header, "|---|---:|---:|---|" + "---:|" * 4]
    for name, tally in audit["languages"].items():
        for side, told in tally["scores"].items():
            cells = [f"{told[key]:.3f}" if told else "-" for key in ("mean", "p5", "median", "p95")]
            start = [_escaped(name), f"{tally['queries']:,}", f"{tally['queries_without_negatives']:,}", side]
            lines.append("| " + " | ".join([*start, *cells]) + " |")
    lines += _charts(audit)
    titles = {"above_their_positive": "Negatives above their positive, the farthest first", "samples": "Samples"}
    for key, title in titles.items():
        if audit[key]:
            lines += ["", f"## {title}", *(line for entry in audit[key] for line in _sample(entry))]
    return "\n".join(lines) + "\n"


def _charts(audit: Mapping[str, Any]) -> list[str]:
    """Histograms of the largest languages, drawn with characters over one range: columns of equal width."""
    largest = sorted(audit["languages"].items(), key=lambda item: (-item[1]["queries"], item[0]))[:CHARTED]
    drawn = {(name, side): told["histogram"] for name, tally in largest
             for side, told in tally["scores"].items() if told}  # fmt: skip
    if not drawn:
        return []
    width = audit["bin_width"]
    bins = {key: [(round(edge / width), count) for edge, count in some] for key, some in drawn.items()}
    numbers = [number for some in bins.values() for number, _ in some]
    low, high = min(numbers), max(numbers) + 1
    together = math.ceil((high - low) / COLUMNS)
    columns = math.ceil((high - low) / together)
    edges = f"{low * width:.3f} to {(low + columns * together) * width:.3f}, {together * width:.3g} a column"
    lines = ["", "## Scores", "", f"Histograms, each to its own height: {edges}. The numbers are in audit.json."]
    if len(audit["languages"]) > CHARTED:
        lines[-1] += f" Of {len(audit['languages']):,} languages, the {CHARTED} with the most queries."
    lines += ["", "| language | scores of | |", "|---|---|---|"]
    for (name, side), some in bins.items():
        counts = [0] * columns
        for number, count in some:
            counts[(number - low) // together] += count
        bars = "".join(BARS[math.ceil(8 * count / max(counts))] for count in counts)  # what is there is seen
        lines.append(f"| {_escaped(name)} | {side} | `{bars}` |")
    return lines


def _sample(entry: Mapping[str, Any]) -> list[str]:
    told = ["", f"**{_escaped(entry['text'])}** ({_escaped(entry['language'])}, {_escaped(entry['id'])})", ""]
    for sign, side in (("+", "positives"), ("-", "negatives")):
        told += [
            f"- `{sign}{one['score']:.3f}` {_escaped(one['text'])} ({_escaped(one['id'])})".replace("+-", "+ -")
            for one in entry[side]
        ]
    return told


def _escaped(text: str) -> str:
    """One line of text that neither Markdown nor HTML takes for markup, without control characters."""
    line = "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return re.sub(r"([\\`*_|~\[\]()#!])", r"\\\1", html.escape(line, quote=False))
