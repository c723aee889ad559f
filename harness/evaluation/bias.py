"""Cross-lingual bias, where a search sees documents of several languages: which languages are brought up too often?

Every number stands beside the same of the reference: what a student adds is compression's, the rest was there before.
Shares are means over queries, so that a query with many relevant documents counts no more than another.

Axes: Q queries, D languages of documents.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.records import Documents, Record
from harness.evaluation.per_query import PerQuery

Floats = NDArray[np.float64]
Tree = dict[str, Any]

TOP = 10  # hits looked at for the shares
ENGLISH = "en"
FEW_PARALLEL = 10  # documents asked for in several languages: fewer tell nothing of the ranks' variance


@dataclass(frozen=True)
class Shares:
    """Of each query the share of each document language: among the top hits, and among the relevant documents."""

    top_QD: Floats
    relevant_QD: Floats


def bias(
    systems: Mapping[str, PerQuery], reference: str, records: Sequence[Record], documents: Documents
) -> dict[str, Tree] | None:
    """The bias of every system, the reference too, on one set.

    Returns:
        None where all documents are of one language. Else ``{NAME: {"documents": {LANG: {"share_of_top",
        "share_of_relevant", "share_of_pool"}}, "own_language", "english", "rank_variance"}}``:

        - ``own_language``: queries in a language that documents have: share of the top and of the relevant that are of
          the query's language, and ``inclination``, the one less the other;
        - ``english``: the same of English documents, for queries in other languages; None without such documents;
        - ``rank_variance``: the variance of a relevant document's rank over the languages of a group that ask for it,
          mean over documents; a document that was not found has the rank after the last (``not_found`` is their share);
          None where hardly anything is asked for in several languages.

        Of every system but the reference, each of the three holds ``"reference"``, the reference's number, too.
    """
    languages = sorted(set(documents.languages))
    if len(languages) < 2:
        return None
    pool_D = _counted(documents.languages, languages) / len(documents)
    found: dict[str, Tree] = {}
    for name in [reference, *(name for name in systems if name != reference)]:
        shares = _shares(systems[name], records, documents, languages)
        tree: Tree = {
            "documents": {
                language: {"share_of_top": float(shares.top_QD[:, at].mean()),
                           "share_of_relevant": float(shares.relevant_QD[:, at].mean()),
                           "share_of_pool": float(pool_D[at])}
                for at, language in enumerate(languages)
            },
            "own_language": _own(shares, records, languages),
            "english": _english(shares, records, languages),
            "rank_variance": _rank_variance(systems[name], records),
        }  # fmt: skip
        found[name] = tree
        for key, number in (("own_language", "inclination"), ("english", "inclination"), ("rank_variance", "value")):
            if name != reference and tree[key] is not None and (beside := found[reference][key]) is not None:
                tree[key]["reference"] = beside[number]
    return found


def _counted(names: Sequence[str], languages: Sequence[str]) -> Floats:
    number = {language: i for i, language in enumerate(languages)}
    return np.bincount([number[name] for name in names], minlength=len(languages)).astype(np.float64)


def _shares(
    system: PerQuery, records: Sequence[Record], documents: Documents, languages: Sequence[str]
) -> Shares:
    number = {language: i for i, language in enumerate(languages)}
    language_of = {id_: number[language] for id_, language in zip(documents.ids, documents.languages, strict=True)}
    top_QD, relevant_QD = np.zeros((2, len(records), len(languages)))
    for row, (hits, record) in enumerate(zip(system.hits, records, strict=True)):
        for part_D, ids in ((top_QD[row], hits[:TOP]), (relevant_QD[row], list(record.positives))):
            for id_ in ids:
                part_D[language_of[id_]] += 1 / len(ids)
    return Shares(top_QD, relevant_QD)


def _own(shares: Shares, records: Sequence[Record], languages: Sequence[str]) -> Tree | None:
    number = {language: i for i, language in enumerate(languages)}
    rows = [row for row, record in enumerate(records) if record.language in number]
    columns = [number[records[row].language] for row in rows]
    return _inclination(shares.top_QD[rows, columns], shares.relevant_QD[rows, columns])


def _english(shares: Shares, records: Sequence[Record], languages: Sequence[str]) -> Tree | None:
    if ENGLISH not in languages:
        return None
    rows = [row for row, record in enumerate(records) if record.language != ENGLISH]
    at = languages.index(ENGLISH)
    return _inclination(shares.top_QD[rows, at], shares.relevant_QD[rows, at])


def _inclination(top_Q: Floats, relevant_Q: Floats) -> Tree | None:
    if not len(top_Q):
        return None
    top, relevant = float(top_Q.mean()), float(relevant_Q.mean())
    return {"queries": len(top_Q), "share_of_top": top, "share_of_relevant": relevant, "inclination": top - relevant}


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
