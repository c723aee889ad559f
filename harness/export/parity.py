"""Is an artefact the student? Both answer real queries over the frozen index, and the differences are held to bounds.

Axes: Q queries, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.records import Documents, Record
from harness.evaluation.per_query import PerQuery
from harness.evaluation.searching import agreement, judged, search
from harness.evaluation.statistics import recovery
from harness.recipe import ParitySettings
from harness.vectors.index import VectorIndex

Floats = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Floats]

METRICS = ("P@1", "nDCG@10")
DEPTH = 100
SAME_DOCUMENT = 0.999  # as of vectors that are brought along: they may be rounded
BATCH = 64  # texts that an artefact is given at once
# What an artefact of the student's own precision reaches where nothing is wrong. Rounding in another order moves a
# float32 vector by some 1e-7 and swaps a near-tie now and then; half precision has three digits.
_OWN_BOUNDS = {
    "fp32": ParitySettings(min_cosine=0.99999, mean_cosine=0.99999, overlap=0.98, recovery_loss=0.002, norm=1e-4,
                           max_difference=1e-4),
    "fp16": ParitySettings(min_cosine=0.999, mean_cosine=0.9995, overlap=0.95, recovery_loss=0.005),
}  # fmt: skip


def bounds_of(precision: str, settings: ParitySettings) -> ParitySettings:
    """The bounds of a precision (``fp32``, ``fp16``, ``int8``, ``int8-static``): of two the tighter one."""
    own = _OWN_BOUNDS.get(precision)
    if own is None:
        return settings
    return ParitySettings(
        min_cosine=max(own.min_cosine, settings.min_cosine), mean_cosine=max(own.mean_cosine, settings.mean_cosine),
        overlap=max(own.overlap, settings.overlap), recovery_loss=min(own.recovery_loss, settings.recovery_loss),
        norm=min(own.norm, settings.norm), max_difference=min(own.max_difference, settings.max_difference),
    )  # fmt: skip


@dataclass(frozen=True)
class Questions:
    """What both are asked, and where they search.

    Attributes:
        records: real queries; those of a file have no judgments, and then no recovery is told.
        documents: of the index, in its order.
        index: the frozen one.
        within: whether a query sees documents of its language alone.
    """

    records: list[Record]
    documents: Documents
    index: VectorIndex
    within: bool = False

    @property
    def texts(self) -> list[str]:
        """The queries' texts."""
        return [record.text for record in self.records]

    @property
    def judged(self) -> bool:
        """Whether it is known what is relevant."""
        return all(record.positives for record in self.records)


def some_of_each(records: Sequence[Record], per_language: int, seed: int) -> list[Record]:
    """At most so many records of each language, always the same ones, in their order."""
    random = np.random.default_rng(seed)
    kept: list[int] = []
    languages = np.array([record.language for record in records], dtype=object)
    for language in sorted(set(languages)):
        rows = np.flatnonzero(languages == language)
        kept += random.permutation(rows)[:per_language].tolist()
    return [records[row] for row in sorted(kept)]


def measure_parity(
    artefact: Encode,
    student_QD: Floats,
    questions: Questions,
    bounds: ParitySettings,
    *,
    resamples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare an artefact with the student in memory.

    Args:
        artefact: encodes queries, the prompt included.
        student_QD: the student's own vectors of the questions.
        questions: what is asked.
        bounds: that it must keep.
        resamples, confidence, seed: of the plain paired bootstrap over groups, for the change of recovery: artefact
            and student answer the very same queries, and where they answer alike the interval is [1, 1].

    Returns:
        ``passed``; ``reasons``, why not; ``queries``; ``languages``, ``{LANG | "all": {"queries", "min_cosine",
        "mean_cosine", "overlap@10"}}``; ``norm`` and ``max_difference``, by how much the length of a vector and one
        component are off at most, as shares of the length of the student's vector; ``recovery``, what the artefact
        finds as a share of what the student finds,
        ``{METRIC: {LANG | "macro": {"value", "low", "high"}}}`` (empty without judgments); ``bounds``.
    """
    answer: dict[str, Any] = {"queries": len(questions.records), "bounds": bounds.model_dump(), "languages": {},
                              "recovery": {}}  # fmt: skip
    vector_QD = _encode(artefact, questions.texts)
    broken = _broken(vector_QD, student_QD)
    if broken:
        return {"passed": False, "reasons": [broken], **answer}
    student, own = (_judge(questions, one_QD) for one_QD in (student_QD, vector_QD))
    answer |= _lengths(vector_QD, student_QD)
    agreed = agreement(vector_QD.astype(np.float64), own, student_QD.astype(np.float64), student)
    answer["languages"] = _by_language(questions.records, agreed)
    if questions.judged:
        found = recovery(own, student, metrics=METRICS, resamples=resamples, confidence=confidence, seed=seed,
                         added_group=False)  # fmt: skip
        answer["recovery"] = {
            metric: {name: rows[metric] for name, rows in found.items() if name not in ("micro", "worst", "weighted")}
            for metric in METRICS
        }
    reasons = [*_too_far(answer["languages"], bounds), *_too_long(answer, bounds), *_lost(answer["recovery"], bounds)]
    return {"passed": not reasons, "reasons": reasons, **answer}


def same_documents(artefact: Encode, texts: Sequence[str], vector_ND: Floats) -> dict[str, Any]:
    """Whether documents are encoded to the vectors that the frozen index holds; told as ``measure_parity`` tells it.

    Args:
        artefact: encodes documents, the prompt included.
        texts: of some documents.
        vector_ND: their stored vectors, which may be rounded, and computed on another device.
    """
    found_ND = _encode(artefact, texts)
    answer: dict[str, Any] = {"queries": len(texts), "bounds": {"min_cosine": SAME_DOCUMENT,
                              "norm": ParitySettings().norm}, "languages": {},
                              "recovery": {}}  # fmt: skip
    broken = _broken(found_ND, vector_ND)
    if broken:
        return {"passed": False, "reasons": [broken], **answer}
    answer |= _lengths(found_ND, vector_ND)
    lengths_N = np.linalg.norm(found_ND, axis=1) * np.linalg.norm(vector_ND, axis=1)
    cosine_N = (found_ND * vector_ND).sum(axis=1) / np.maximum(lengths_N, 1e-12)
    least = float(cosine_N.min())
    row = {"queries": len(texts), "min_cosine": least, "mean_cosine": float(cosine_N.mean()), "overlap@10": None}
    reasons = [] if least >= SAME_DOCUMENT else [
        f"the least cosine to a stored vector is {least:.6g}, at least {SAME_DOCUMENT:g} is wanted"
    ]  # fmt: skip
    reasons += _too_long(answer, ParitySettings())
    return {"passed": not reasons, "reasons": reasons, **answer, "languages": {"all": row}}


def _encode(artefact: Encode, texts: Sequence[str]) -> Floats:
    """In batches of like length, so that padding is compared, too, but does not take over."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    parts = [artefact([texts[row] for row in order[start : start + BATCH]]) for start in range(0, len(texts), BATCH)]
    sorted_QD = np.concatenate([np.asarray(part, dtype=np.float32) for part in parts])
    vector_QD = np.empty_like(sorted_QD)
    vector_QD[order] = sorted_QD
    return vector_QD


def _broken(vector_QD: Floats, student_QD: Floats) -> str:
    """What of the vectors can't be compared at all."""
    if vector_QD.shape != student_QD.shape:
        return f"vectors of shape {list(vector_QD.shape)}, the student's are {list(student_QD.shape)}"
    count = int((~np.isfinite(vector_QD).all(axis=1)).sum())
    return f"{count} vectors are not finite" if count else ""


def _judge(questions: Questions, query_QD: Floats) -> PerQuery:
    records, documents = questions.records, questions.documents
    # One process exports while the others wait: it must not wait for them here.
    score_QK, row_QK = search(questions.index, query_QD, records, DEPTH, questions.within, shared=False)
    if questions.judged:
        return judged(score_QK, row_QK, records, documents)
    hits = [[documents.ids[row] for row in rows if row >= 0] for rows in row_QK]
    names = [record.id for record in records]
    return PerQuery(names, [r.language for r in records], [r.group for r in records], np.ones(len(records)), hits,
                    score_QK, {})  # fmt: skip


def _by_language(records: Sequence[Record], agreed: dict[str, NDArray[Any]]) -> dict[str, dict[str, Any]]:
    languages = np.array([record.language for record in records], dtype=object)
    rows_of = {name: languages == name for name in sorted(set(languages))} | {"all": np.ones(len(records), dtype=bool)}
    return {
        name: {
            "queries": int(rows.sum()),
            "min_cosine": float(agreed["cosine"][rows].min()),
            "mean_cosine": float(agreed["cosine"][rows].mean()),
            "overlap@10": float(agreed["overlap@10"][rows].mean()),
        }
        for name, rows in rows_of.items()
    }


def _too_far(languages: dict[str, dict[str, Any]], bounds: ParitySettings) -> list[str]:
    """One reason for each measure, naming the worst language and how many fall short."""
    measures = {"min_cosine": ("the least cosine", bounds.min_cosine), "overlap@10": ("overlap@10", bounds.overlap),
                "mean_cosine": ("the mean cosine", bounds.mean_cosine)}  # fmt: skip
    own = {language: row for language, row in languages.items() if language != "all"}
    reasons = []
    for key, (what, bound) in measures.items():
        short = {language: row[key] for language, row in own.items() if not row[key] >= bound}
        if short:
            worst = min(short, key=lambda language: short[language])
            reasons.append(f"{what} is {short[worst]:.6g} in {worst}, at least {bound:g} is wanted "
                           f"({len(short)} of {len(own)} languages fall short)")  # fmt: skip
    return reasons


def _lengths(vector_QD: Floats, student_QD: Floats) -> dict[str, float]:
    """What cosines don't see: an artefact that lost its normalisation has none of its directions changed."""
    length_Q, student_Q = (np.linalg.norm(one_QD.astype(np.float64), axis=1) for one_QD in (vector_QD, student_QD))
    shares_Q = np.maximum(student_Q, 1e-12)
    difference_Q = np.abs(vector_QD.astype(np.float64) - student_QD).max(axis=1)
    return {"norm": float((np.abs(length_Q - student_Q) / shares_Q).max()),
            "max_difference": float((difference_Q / shares_Q).max())}  # fmt: skip


def _too_long(found: dict[str, Any], bounds: ParitySettings) -> list[str]:
    measures = {"norm": ("the length of a vector", bounds.norm),
                "max_difference": ("a component of a vector", bounds.max_difference)}  # fmt: skip
    return [
        f"{what} is off by {found[key]:.3g} of the length of the student's, at most {bound:g} is allowed"
        for key, (what, bound) in measures.items() if not found[key] <= bound
    ]


def _lost(found: dict[str, dict[str, Any]], bounds: ParitySettings) -> list[str]:
    reasons = []
    for metric, rows in found.items():
        value = rows["macro"]["value"]
        if value is not None and 1 - value > bounds.recovery_loss:
            reasons.append(f"it loses {1 - value:.2%} of the student's {metric} (macro over languages), "
                           f"at most {bounds.recovery_loss:.2%} is allowed")  # fmt: skip
    return reasons


def one_line(parity: dict[str, Any]) -> str:
    """The figures of a comparison in one line, for people."""
    row = parity["languages"].get("all")
    if row is None:
        return "; ".join(parity["reasons"])
    told = [f"cosine {row['min_cosine']:.6f} at least, {row['mean_cosine']:.6f} on average",
            f"lengths off by {parity['norm']:.1e} at most",
            *([f"overlap@10 {row['overlap@10']:.4f}"] if row["overlap@10"] is not None else [])]  # fmt: skip
    for metric, rows in parity["recovery"].items():
        macro = rows["macro"]
        if macro["value"] is not None:
            known = macro["low"] is not None and macro["high"] is not None
            interval = f" [{macro['low']:.4f}, {macro['high']:.4f}; plain paired bootstrap]" if known else ""
            told.append(f"keeps {macro['value']:.4f}{interval} of {metric}")
    return f"{row['queries']:,} texts: " + "; ".join(told)
