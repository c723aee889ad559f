"""Cross-lingual bias, where a search sees documents of several languages: which languages are brought up too often?

Every number stands beside the same of the reference: what a student adds is compression's, the rest was there before.
Shares are means over queries, so that a query with many relevant documents counts no more than another.

Axes: Q queries, D languages of documents and, in the last place, English in all its regions.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.data.records import Documents, Record
from harness.evaluation.per_query import PerQuery
from harness.evaluation.statistics import FEW_GROUPS

Floats = NDArray[np.float64]
Tree = dict[str, Any]

TOP = 10  # hits looked at for the shares
_ENGLISH = re.compile(r"en([-_].*)?|eng", re.IGNORECASE)  # BCP 47 and ISO 639-3, of any region
NO_ENGLISH = "no document is in English (en, en-*, en_*, eng), so nothing is told of an inclination to it"
ONLY_ENGLISH = "every query is in English, so nothing is told of an inclination to it"
FEW_PARALLEL = 10  # documents asked for in several languages: fewer tell nothing of the ranks' variance


class Asked(NamedTuple):
    """Queries, and for each the column that is looked at: its own language, or English."""

    row_Q: NDArray[np.int64]
    column_Q: NDArray[np.int64]


def bias(
    systems: Mapping[str, PerQuery],
    reference: str,
    records: Sequence[Record],
    documents: Documents,
    confidence: float = 0.95,
) -> dict[str, Tree] | None:
    """The bias of every system, the reference too, on one set.

    Returns:
        None where all documents are of one language. Else ``{NAME: {"documents": {LANG: {"share_of_top",
        "share_of_relevant", "share_of_pool"}}, "own_language", "english", "rank_variance", "note"}}``:

        - ``own_language``: queries in a language that documents have: share of the top and of the relevant that are of
          the query's language, and ``inclination``, the one less the other;
        - ``english``: the same of English documents of any region, for queries in other languages; None without such
          documents or queries, which ``note`` then says (else it is absent);
        - ``rank_variance``: the variance of a relevant document's rank over the languages of a group that ask for it,
          mean over documents; a document that was not found has the rank after the last (``not_found`` is their share);
          None where hardly anything is asked for in several languages.

        Of every system but the reference, each of the three holds ``"reference"``, the reference's number, too, and the
        first two ``"added"``: {"value", "low", "high"} of the inclination less the reference's, by the spread between
        groups.
    """
    languages = sorted(set(documents.languages))
    if len(languages) < 2:
        return None
    number = {language: i for i, language in enumerate(languages)}
    language_of = {id_: number[language] for id_, language in zip(documents.ids, documents.languages, strict=True)}
    english = [at for at, language in enumerate(languages) if is_english(language)]
    relevant_QD = _shares([list(record.positives) for record in records], language_of, len(languages), english)
    pool_D = np.bincount(list(language_of.values()), minlength=len(languages)) / len(documents)
    asked = {"own_language": _own(records, number), "english": _english(records, len(languages)) if english else None}
    note = "" if asked["english"] else ONLY_ENGLISH if english else NO_ENGLISH
    found: dict[str, Tree] = {}
    tops: dict[str, Floats] = {}
    for name in [reference, *(name for name in systems if name != reference)]:
        top_QD = tops[name] = _shares([hits[:TOP] for hits in systems[name].hits], language_of, len(languages), english)
        tree: Tree = {
            "documents": {
                language: {"share_of_top": float(top_QD[:, at].mean()),
                           "share_of_relevant": float(relevant_QD[:, at].mean()),
                           "share_of_pool": float(pool_D[at])}
                for at, language in enumerate(languages)
            },
            **{key: _inclination(top_QD, relevant_QD, of) for key, of in asked.items()},
            "rank_variance": _rank_variance(systems[name], records),
            **({"note": note} if note else {}),
        }  # fmt: skip
        found[name] = tree
        if name != reference:
            _beside(tree, found[reference])
            for key, of in asked.items():
                if tree[key] is not None and of is not None:
                    groups = [records[row].group for row in of.row_Q.tolist()]
                    tree[key]["added"] = _mean_over_groups((top_QD - tops[reference])[of], groups, confidence)
    return found


def _beside(tree: Tree, reference: Tree) -> None:
    """Put the reference's numbers beside a system's."""
    for key, number in (("own_language", "inclination"), ("english", "inclination"), ("rank_variance", "value")):
        if tree[key] is not None and reference[key] is not None:
            tree[key]["reference"] = reference[key][number]


def is_english(language: str) -> bool:
    """Whether a language is English, of whatever region."""
    return _ENGLISH.fullmatch(language) is not None


def _shares(
    ids: Sequence[Sequence[str]], language_of: Mapping[str, int], languages: int, english: Sequence[int]
) -> Floats:
    """share_QD: of each query's documents, the share of each language, and last that of all English ones."""
    share_QD = np.zeros((len(ids), languages + 1))
    for row, found in enumerate(ids):
        for id_ in found:
            share_QD[row, language_of[id_]] += 1 / len(found)
    share_QD[:, languages] = share_QD[:, english].sum(axis=1)
    return share_QD


def _own(records: Sequence[Record], number: Mapping[str, int]) -> Asked | None:
    rows = [row for row, record in enumerate(records) if record.language in number]
    columns = [number[records[row].language] for row in rows]
    return Asked(np.array(rows), np.array(columns)) if rows else None


def _english(records: Sequence[Record], column: int) -> Asked | None:
    rows = [row for row, record in enumerate(records) if not is_english(record.language)]
    return Asked(np.array(rows), np.full(len(rows), column)) if rows else None


def _inclination(top_QD: Floats, relevant_QD: Floats, asked: Asked | None) -> Tree | None:
    if asked is None:
        return None
    top, relevant = float(top_QD[asked].mean()), float(relevant_QD[asked].mean())
    count = len(asked.row_Q)
    return {"queries": count, "share_of_top": top, "share_of_relevant": relevant, "inclination": top - relevant}


def _mean_over_groups(value_Q: Floats, groups: Sequence[str], confidence: float) -> dict[str, float | None]:
    """A mean and its normal interval; queries of a group are no independent evidence. Few groups: no interval."""
    mean = float(value_Q.mean())
    rest: dict[str, float] = defaultdict(float)
    for group, value in zip(groups, value_Q.tolist(), strict=True):
        rest[group] += value - mean
    if len(rest) < FEW_GROUPS:
        return {"value": mean, "low": None, "high": None}
    error = float(np.sqrt(sum(value**2 for value in rest.values()) * len(rest) / (len(rest) - 1))) / len(value_Q)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return {"value": mean, "low": mean - half, "high": mean + half}


def _rank_variance(system: PerQuery, records: Sequence[Record]) -> Tree | None:
    depth = max(map(len, system.hits), default=0)
    ranks: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    missed = counted = 0
    for hits, record in zip(system.hits, records, strict=True):
        rank_of = {id_: rank for rank, id_ in enumerate(hits, 1) if id_ in record.positives}
        for document in record.positives:
            ranks[record.group, document][record.language].append(rank_of.get(document, depth + 1))
    variances = []
    for by_language in ranks.values():
        if len(by_language) > 1:
            means = [float(np.mean(found)) for found in by_language.values()]
            variances.append(float(np.var(means, ddof=1)))
            missed += sum(rank > depth for found in by_language.values() for rank in found)
            counted += sum(map(len, by_language.values()))
    if len(variances) < FEW_PARALLEL:
        return None
    return {"value": float(np.mean(variances)), "documents": len(variances), "not_found": missed / counted}
